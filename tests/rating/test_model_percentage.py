"""A percentage of money: of a metric that counts it, or of what other components come to."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

CARD = "fee: {model: percentage, metric: output, percent: 2.9, fixed: 0.30}"
BOUNDED = "fee: {model: percentage, metric: output, percent: 10, free: 50, min: 2.00, max: 9.00}"
OF_COMPONENTS = """
in: {model: per_unit, metric: input, price: 0.10}
out: {model: per_unit, metric: output, price: 0.333}
support: {model: percentage, of: [in, out], percent: 20, max: 50.00}
"""


def test_a_percentage_of_money_and_a_fixed_fee_for_each_event():
    # 3 payments of 1,000 together: 29.00 + 3 x 0.30
    (line,) = rated(book_with(CARD), used("llm.tokens.output", "1000", events=3)).lines
    assert line.amount_minor == 2990
    assert [step["amount"] for step in line.explanation["steps"]] == ["29", "0.9"]


@pytest.mark.parametrize(
    ("money", "minor"),
    [
        ("40", 200),  # all of it is free: the minimum of 2.00
        ("60", 200),  # 10 % of 10 = 1.00, at least 2.00
        ("100", 500),  # 10 % of 50
        ("140", 900),
        ("500", 900),  # 10 % of 450 = 45.00, at most 9.00
    ],
)
def test_free_money_and_the_bounds_of_a_month(money, minor):
    (line,) = rated(book_with(BOUNDED), used("llm.tokens.output", money)).lines
    assert line.amount_minor == minor


def test_the_bounds_hold_for_the_month_when_it_is_rated_in_parts():
    before = {"fee": Before({"output": Decimal(100)}, events={"output": 1})}
    # 100 came before, as 5.00. 100 more make 10 % of 150 = 15.00, at most 9.00: 4.00 are left to charge.
    (line,) = rated(book_with(BOUNDED), used("llm.tokens.output", "100"), before=before).lines
    assert line.amount_minor == 400
    assert line.explanation["steps"][-1] == {"earlier_this_month": "100", "amount": "-5"}


def test_no_events_no_minimum():
    assert rated(book_with(BOUNDED)).lines == ()


def test_a_percentage_of_components_is_of_what_their_lines_say():
    # in: 10.00; out: 7 x 0.333 = 2.331, on its line 2.33; 20 % of 12.33 = 2.466
    lines = rated(book_with(OF_COMPONENTS), used("llm.tokens.input", "100"), used("llm.tokens.output", "7")).lines
    assert [(line.description, line.kind, line.amount_minor) for line in lines] == [
        ("in", "usage", 1000),
        ("out", "usage", 233),
        ("support", "flat", 247),
    ]
    assert lines[-1].explanation["steps"][0] == {
        "percent": "20",
        "money": "12.33",
        "amount": "2.466",
        "book_line": 14,
    }


def test_a_percentage_of_components_without_anything_to_pay_makes_no_line():
    assert rated(book_with(OF_COMPONENTS)).lines == ()


def test_a_percentage_of_components_keeps_to_its_bound_over_the_parts_of_a_month():
    # 200.00 came before, of which 40.00 were charged; 200.00 now: 80.00 at most 50.00, so 10.00 are left.
    result = rated(book_with(OF_COMPONENTS), used("llm.tokens.input", "2000"), earlier={"in": "200.00"})
    assert [line.amount_minor for line in result.lines] == [20000, 1000]
