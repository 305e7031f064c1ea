"""Volume: all of the month's units at the price of the tier that the last of them reaches."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

VOLUME = """
out:
  model: volume
  metric: output
  tiers:
    - {up_to: 100, price: 0.10, flat: 2.00}
    - {up_to: 200, price: 0.05, flat: 3.00}
    - {price: 0.01}
"""


@pytest.mark.parametrize(
    ("quantity", "minor"),
    [
        ("1", 210),  # 2.00 + 1 x 0.10
        ("100", 1200),  # 2.00 + 100 x 0.10: the edge is in the lower tier
        ("101", 805),  # 3.00 + 101 x 0.05: cheaper than 100
        ("200", 1300),  # 3.00 + 200 x 0.05
        ("200.5", 200),  # 200.5 x 0.01 = 2.005, half to even
        ("1000", 1000),
    ],
)
def test_volume_prices_all_units_by_the_tier_that_the_last_one_reaches(quantity, minor):
    assert rated(book_with(VOLUME), used("llm.tokens.output", quantity)).total_minor == minor


def test_volume_shows_the_fee_of_the_tier_and_the_units():
    (line,) = rated(book_with(VOLUME), used("llm.tokens.output", "150")).lines
    assert [(step["tier"], step.get("fee"), step["amount"]) for step in line.explanation["steps"]] == [
        ("100..200", "3", "3"),
        ("100..200", None, "7.5"),
    ]


def test_volume_without_usage_makes_no_line():
    assert rated(book_with(VOLUME)).lines == ()


def test_volume_takes_off_what_the_months_earlier_part_came_to():
    # 90 came before, as 2.00 + 9.00; 30 more make 120: 3.00 + 6.00. The rest of the month is 2.00 cheaper.
    before = {"out": Before({"output": Decimal(90)})}
    (line,) = rated(book_with(VOLUME), used("llm.tokens.output", "30"), before=before).lines
    assert line.amount_minor == -200
    assert line.explanation["steps"][-1] == {"earlier_this_month": "90", "amount": "-11"}


def test_volume_of_a_month_in_parts_comes_to_what_the_whole_month_comes_to():
    book = book_with(VOLUME)
    first = rated(book, used("llm.tokens.output", "90")).total_minor
    second = rated(book, used("llm.tokens.output", "160"), before={"out": Before({"output": Decimal(90)})}).total_minor
    assert first + second == rated(book, used("llm.tokens.output", "250")).total_minor == 250
