"""Cost plus markup: three times what the provider asks; an unknown cost is unrated, never 0."""

from decimal import Decimal

from rating_samples import book_with, rated, used

LISTED = """
out:
  model: cost_plus
  metric: output
  markup: 200
  cost:
    by: [model]
    per: 1000
    prices:
      - {model: gpt-5*, price: 0.0125}
    default: none
"""
KNOWN = "out: {model: cost_plus, metric: output, markup: 25, by: [model], fee: 0.10, per: 1000}"


def test_a_markup_of_200_percent_makes_three_times_the_listed_cost():
    # 10,000 x 0.0125 / 1,000 = 0.125; and 200 % of it: 0.375
    (line,) = rated(book_with(LISTED), used("llm.tokens.output", "10000", model="gpt-5")).lines
    assert (line.description, line.amount_exact, line.amount_minor) == ("out (gpt-5)", Decimal("0.375"), 38)
    assert [step["amount"] for step in line.explanation["steps"]] == ["0.125", "0.25"]


def test_a_model_without_a_listed_cost_is_left_unrated_with_the_line_to_add():
    result = rated(book_with(LISTED), used("llm.tokens.output", "5", model="llama"))
    assert (result.lines, result.total_minor) == ((), 0)
    (left,) = result.leftovers
    assert (left.reason, left.quantity) == ("cost_unknown", Decimal(5))
    assert "- {model: 'llama', price: ...}" in left.hint


def test_a_cost_that_comes_with_the_usage_is_marked_up_and_has_a_fee_per_unit():
    # 4.00 + 25 % + 20,000 x 0.10 / 1,000
    (line,) = rated(book_with(KNOWN), used("llm.tokens.output", "20000", model="m", cost="4.00")).lines
    assert line.amount_minor == 700
    assert [step["amount"] for step in line.explanation["steps"]] == ["4", "1", "2"]


def test_usage_without_a_known_cost_is_left_unrated_and_the_rest_is_billed():
    result = rated(
        book_with(KNOWN),
        used("llm.tokens.output", "1000", model="m", cost="4.00"),
        used("llm.tokens.reasoning", "500", model="m"),
    )
    assert [(line.quantity, line.amount_minor) for line in result.lines] == [(Decimal(1000), 510)]
    (left,) = result.leftovers
    assert (left.meter, left.reason, left.quantity) == ("llm.tokens.reasoning", "cost_unknown", Decimal(500))


def test_a_known_cost_of_nothing_is_a_cost():
    (line,) = rated(book_with(KNOWN), used("llm.tokens.output", "1000", model="m", cost="0")).lines
    assert line.amount_minor == 10
