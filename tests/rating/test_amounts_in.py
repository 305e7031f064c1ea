"""The amounts of a price book in a form: each is found at its place, and changing one changes nothing else."""

import pytest

from meterhouse_rating.amounts_in import NoAmount, amounts, changed

BOOK = """
book: own
metrics:
  input: {unit: token, meters: [llm.tokens.input]}   # price: 9 is no price
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1_000_000, price: 2.50}
      tiers:
        model: graduated
        tiers: [{up_to: 1000, price: 0.010}, {price: 0.008, flat: 5}]
      by: {by: [model], prices: [{model: gpt-5*, price: 1}], default: none}
addons:
  support: {components: {fee: {model: flat, price: 100}}}
"""


def test_amounts_are_found_with_what_they_are_of():
    assert [(it.place, it.written) for it in amounts(BOOK)] == [
        ("plan, pay, in, price", "2.50"),
        ("plan, pay, tiers, tiers up to 1000, price", "0.010"),
        ("plan, pay, tiers, tiers no. 2, price", "0.008"),
        ("plan, pay, tiers, tiers no. 2, flat", "5"),
        ("plan, pay, by, prices model gpt-5*, price", "1"),
        ("add-on, support, fee, price", "100"),
    ]


def test_a_changed_amount_changes_nothing_else():
    assert changed(BOOK, {"amount-1": "0.0125", "amount-5": " 120 "}) == BOOK.replace("0.010", "0.0125").replace(
        "price: 100", "price: 120"
    )
    assert changed(BOOK, {"amount-0": "", "amount-99": "7"}) == BOOK


@pytest.mark.parametrize("typed", ["free", "-1", "1,5", "1e9", "2.50}\nplans: {", "٣", "1 # no"])
def test_what_is_no_amount_is_refused_with_its_place(typed):
    with pytest.raises(NoAmount, match=r"plan, pay, in, price: .* is no amount"):
        changed(BOOK, {"amount-0": typed})


@pytest.mark.parametrize("text", ["plans: [", "plans: " + "[" * 100_000, "a" * 1_000_001])
def test_what_cannot_be_read_is_said(text):
    with pytest.raises(NoAmount):
        amounts(text)
