"""Each price model, with amounts worked out by hand."""

from decimal import Decimal

from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

# ---- per unit -------------------------------------------------------------------------------------------------------

PER_UNIT = """
in: {model: per_unit, metric: input, per: 1_000_000, price: 2.50}
"""

BY_MODEL = """
in:
  model: per_unit
  metric: input
  per: 1000
  by: [model]
  prices:
    - {model: small-2, price: 0.20}
    - {model: small*, price: 0.10}
  default: %s
"""


def test_per_unit_multiplies_and_rounds_the_line_once():
    # 1,234,567 * 2.50 / 1,000,000 = 3.0864175
    result = rated(book_with(PER_UNIT), used("llm.tokens.input", "1234567"))
    assert [(line.amount_exact, line.amount_minor) for line in result.lines] == [(Decimal("3.0864175"), 309)]
    assert result.total_minor == 309


def test_per_unit_adds_the_meters_of_a_metric_before_it_rounds():
    # 2,000 * 2.5e-6 = 0.005 each would round to 0.00; together 0.01 exactly.
    result = rated(book_with(PER_UNIT), used("llm.tokens.input", "2000"), used("llm.tokens.cache_write", "2000"))
    assert [line.amount_minor for line in result.lines] == [1]
    assert result.lines[0].explanation["meters"] == {"llm.tokens.cache_write": "2000", "llm.tokens.input": "2000"}


def test_per_unit_without_usage_makes_no_line():
    assert rated(book_with(PER_UNIT)).lines == ()


def test_per_unit_by_model_makes_one_line_per_model_and_the_first_matching_price_counts():
    result = rated(
        book_with(BY_MODEL % "1.00"),
        used("llm.tokens.input", "1000", model="small-2"),
        used("llm.tokens.input", "3000", model="small-9"),
        used("llm.tokens.input", "500", model="large"),
    )
    assert [(line.description, line.amount_minor) for line in result.lines] == [
        ("in (large)", 50),
        ("in (small-2)", 20),
        ("in (small-9)", 30),
    ]


def test_per_unit_with_default_none_leaves_an_unknown_model_unrated_and_says_which_line_to_add():
    result = rated(book_with(BY_MODEL % "none"), used("llm.tokens.input", "500", model="large", events=4))
    assert result.lines == ()
    (left,) = result.leftovers
    assert (left.reason, left.quantity, left.events) == ("no_price", Decimal(500), 4)
    assert "- {model: 'large', price: ...}" in left.hint


# ---- graduated ------------------------------------------------------------------------------------------------------

GRADUATED = """
out:
  model: graduated
  metric: output
  tiers:
    - {up_to: 100, price: 0.10}
    - {up_to: 200, price: 0.05}
    - {price: 0.01}
"""


def test_graduated_usage_exactly_on_a_tiers_edge_is_priced_in_the_lower_tier():
    assert rated(book_with(GRADUATED), used("llm.tokens.output", "100")).total_minor == 1000


def test_graduated_one_unit_beyond_the_edge_is_priced_in_the_next_tier():
    assert rated(book_with(GRADUATED), used("llm.tokens.output", "101")).total_minor == 1005


def test_graduated_shows_the_arithmetic_of_every_tier_it_touches():
    # 100 * 0.10 + 100 * 0.05 + 50 * 0.01 = 10 + 5 + 0.50
    (line,) = rated(book_with(GRADUATED), used("llm.tokens.output", "250")).lines
    assert line.amount_minor == 1550
    assert [(step["tier"], step["quantity"], step["amount"]) for step in line.explanation["steps"]] == [
        ("0..100", "100", "10"),
        ("100..200", "100", "5"),
        ("200..", "50", "0.5"),
    ]


def test_graduated_goes_on_where_an_earlier_rating_of_the_month_ended():
    # 150 came before: 50 left in the second tier, then 10 in the third: 2.50 + 0.10
    before = {"out": Before({"output": Decimal(150)})}
    assert rated(book_with(GRADUATED), used("llm.tokens.output", "60"), before=before).total_minor == 260


# ---- flat with included usage ---------------------------------------------------------------------------------------

FLAT = """
fee:
  model: flat
  price: 49.00
  included: {output: 1000}
  overage:
    output:
      per: 100
      tiers:
        - {up_to: 500, price: 1.00}
        - {price: 0.50}
"""


def test_flat_charges_the_fee_without_any_usage():
    assert [(line.kind, line.amount_minor) for line in rated(book_with(FLAT)).lines] == [("flat", 4900)]


def test_flat_usage_up_to_the_included_quantity_costs_nothing_more():
    lines = rated(book_with(FLAT), used("llm.tokens.output", "1000")).lines
    assert [(line.kind, line.quantity, line.amount_minor) for line in lines] == [
        ("flat", Decimal(1), 4900),
        ("usage", Decimal(1000), 0),
    ]


def test_flat_overage_tiers_count_from_the_end_of_the_included_usage():
    # 1,700 - 1,000 included = 700: 500 at 1.00 and 200 at 0.50 per 100: 5.00 + 1.00
    lines = rated(book_with(FLAT), used("llm.tokens.output", "1700")).lines
    assert [line.amount_minor for line in lines] == [4900, 600]
    assert lines[1].explanation["steps"][0] == {"included": "1000", "quantity": "1000", "amount": "0"}


def test_flat_is_charged_once_a_month_and_included_usage_is_used_up_once():
    # The month's first rating used 900; 300 more: 100 are still included, 200 cost 2.00.
    before = {"fee": Before({"output": Decimal(900)}, charged=True)}
    lines = rated(book_with(FLAT), used("llm.tokens.output", "300"), before=before).lines
    assert [(line.kind, line.amount_minor) for line in lines] == [("usage", 200)]


def test_flat_overage_goes_on_in_the_tiers_when_all_included_usage_is_gone():
    # 1,400 before = 400 of overage; 200 more: 100 at 1.00, 100 at 0.50 per 100.
    before = {"fee": Before({"output": Decimal(1400)}, charged=True)}
    assert rated(book_with(FLAT), used("llm.tokens.output", "200"), before=before).total_minor == 150


# ---- credit pack ----------------------------------------------------------------------------------------------------

PREPAID = """
pack: {model: credit_pack, price: 20.00, credits: 25.00}
in: {model: per_unit, metric: input, price: 1.00}
out: {model: per_unit, metric: output, price: 1.00}
"""


def test_credit_pack_is_bought_and_pays_the_usage_lines_in_their_order():
    result = rated(book_with(PREPAID), used("llm.tokens.input", "10"), used("llm.tokens.output", "20"))
    assert [(line.kind, line.amount_minor) for line in result.lines] == [
        ("credit_pack", 2000),
        ("usage", 1000),
        ("usage", 2000),
        ("credit_applied", -2500),
    ]
    applied = result.lines[-1].explanation
    # What the pack is worth beyond its price, 5.00, is promotional, and used first.
    assert [(it["pays"], it["amount"]) for it in applied["steps"]] == [("in", "5.00"), ("in", "5.00"), ("out", "15.00")]
    assert (applied["balance_before"], applied["balance_after"]) == ("25.00", "0.00")
    assert result.total_minor == 2500


def test_credit_pack_is_bought_once_and_an_old_balance_goes_on_paying():
    before = {"pack": Before(charged=True)}
    result = rated(book_with(PREPAID), used("llm.tokens.input", "10"), before=before, credit_minor=400)
    assert [(line.kind, line.amount_minor) for line in result.lines] == [("usage", 1000), ("credit_applied", -400)]


def test_credits_never_pay_a_recurring_fee():
    book = book_with("fee: {model: flat, price: 5.00}\nin: {model: per_unit, metric: input, price: 1.00}")
    result = rated(book, used("llm.tokens.input", "1"), credit_minor=5000)
    assert [(line.kind, line.amount_minor) for line in result.lines] == [
        ("flat", 500),
        ("usage", 100),
        ("credit_applied", -100),
    ]
