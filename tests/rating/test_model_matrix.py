"""A matrix: each cell of dimension values has a price or tiers of its own."""

from decimal import Decimal

from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

MATRIX = """
out:
  model: matrix
  metric: output
  by: [model, attributes.region]
  per: 1000
  cells:
    - {model: gpt-5*, attributes.region: eu, price: 3.00}
    - {model: gpt-5*, tiers: [{up_to: 1000, price: 2.00}, {price: 1.00}]}
    - {model: llama*, mode: volume, per: 1, tiers: [{up_to: 10, price: 0.50}, {price: 0.40}]}
  default: %s
"""


def used_by(quantity, model, region):
    return used("llm.tokens.output", quantity, model=model, attributes__region=region)


def lines_of(result):
    return [(line.description, line.quantity, line.amount_minor) for line in result.lines]


def test_each_cell_that_has_usage_is_one_line_at_its_own_price():
    result = rated(
        book_with(MATRIX % "none"),
        used_by("500", "gpt-5", "eu"),
        used_by("500", "gpt-5-mini", "eu"),
        used_by("900", "gpt-5", "us"),
        used_by("600", "gpt-5-mini", ""),
        used_by("20", "llama-4", "us"),
    )
    assert lines_of(result) == [
        ("out (gpt-5*, eu)", Decimal(1000), 300),
        # 1,500 of two models in two regions fill one cell's tiers: 1,000 at 2.00, 500 at 1.00 per 1,000
        ("out (gpt-5*, any)", Decimal(1500), 250),
        ("out (llama*, any)", Decimal(20), 800),
    ]


def test_what_no_cell_matches_is_left_unrated_with_the_line_to_add():
    (left,) = rated(book_with(MATRIX % "none"), used_by("7", "mistral", "eu")).leftovers
    assert (left.quantity, left.reason) == (Decimal(7), "no_price")
    assert "- {model: 'mistral', attributes.region: 'eu', price: ...}" in left.hint


def test_a_default_is_the_price_of_all_the_rest():
    assert lines_of(rated(book_with(MATRIX % "9.00"), used_by("500", "mistral", "eu"))) == [
        ("out (any, any)", Decimal(500), 450)
    ]


def test_a_cells_tiers_go_on_where_an_earlier_part_of_the_month_filled_that_cell():
    cell = ("output", (("model", "gpt-5*"), ("attributes.region", "*")))
    other = ("output", (("model", "llama*"), ("attributes.region", "*")))
    before = {"out": Before({"output": Decimal(905)}, cells={cell: Decimal(900), other: Decimal(5)})}
    # gpt-5: 100 left at 2.00 and 100 at 1.00 per 1,000 = 0.30; llama: 15 at 0.40 less 5 at 0.50 = 3.50
    result = rated(
        book_with(MATRIX % "none"), used_by("200", "gpt-5", "us"), used_by("10", "llama-4", ""), before=before
    )
    assert [line.amount_minor for line in result.lines] == [30, 350]
