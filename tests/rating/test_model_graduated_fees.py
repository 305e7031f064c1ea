"""Graduated tiers with a flat fee each: due once, with the first unit of the tier."""

from decimal import Decimal

import pytest
from rating_samples import book_with, rated, used

from meterhouse_rating.charges import Before

FEES = """
out:
  model: graduated
  metric: output
  tiers:
    - {up_to: 100, flat: 10.00}
    - {up_to: 200, price: 0.05, flat: 3.00}
    - {price: 0.01, flat: 1.00}
"""


@pytest.mark.parametrize(
    ("quantity", "minor"),
    [
        ("1", 1000),  # the first tier is a fee alone
        ("100", 1000),
        ("101", 1305),  # 10.00 + 3.00 + 1 x 0.05
        ("200", 1800),
        ("300", 2000),  # 10 + (3 + 5) + (1 + 1)
    ],
)
def test_a_tiers_fee_is_due_with_its_first_unit(quantity, minor):
    assert rated(book_with(FEES), used("llm.tokens.output", quantity)).total_minor == minor


def test_a_fee_that_an_earlier_part_of_the_month_paid_is_not_due_again():
    # 150 came before, so both fees are paid: 60 more are 50 x 0.05, the last tier's fee, and 10 x 0.01.
    before = {"out": Before({"output": Decimal(150)})}
    assert rated(book_with(FEES), used("llm.tokens.output", "60"), before=before).total_minor == 360


def test_a_month_that_was_rated_up_to_the_edge_pays_the_next_tiers_fee_with_the_next_unit():
    before = {"out": Before({"output": Decimal(100)})}
    assert rated(book_with(FEES), used("llm.tokens.output", "1"), before=before).total_minor == 305
