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
        ("plan, pay, tiers, tiers up to 1,000, price", "0.010"),
        ("plan, pay, tiers, tiers no. 2, price", "0.008"),
        ("plan, pay, tiers, tiers no. 2, flat", "5"),
        ("plan, pay, by, prices model gpt-5*, price", "1"),
        ("add-on, support, fee, price", "100"),
    ]


def test_each_amount_says_of_which_plan_it_is_and_of_what_it_is_the_price():
    book = """
book: own
currency: EUR
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  calls: {unit: call, meters: [tool.calls]}
  payments: {unit: USD, meters: [payments]}
plans:
  pay:
    title: Pay as you go
    components:
      in: {model: per_unit, metric: input, per: 1_000_000, by: [model], prices: [{model: gpt*, price: 1}], default: 2}
      calls: {model: graduated, metric: calls, tiers: [{up_to: 10_000, price: 0.5, flat: 3}, {price: 0.4}]}
      base: {model: flat, price: 49, included: {input: 5}, overage: {input: {per: 1000, tiers: [{price: 9}]}}}
  packs:
    currency: USD
    components:
      pack: {model: package, metric: calls, size: 100, price: 5, free: 10}
      seats: {model: recurring, quantity: seats, price: 10}
      cut: {model: percentage, metric: payments, percent: 2.9, fixed: 0.3, free: 500, min: 1}
      cost: {model: cost_plus, metric: input, markup: 200, per: 1000, fee: 0.5}
addons:
  extra: {components: {credits: {model: credit_pack, price: 20, credits: 25}}}
"""
    assert [(it.group, it.label, it.measure) for it in amounts(book)] == [
        ("Plan Pay as you go (pay)", "in, prices model gpt*, price", "EUR per 1,000,000 input"),
        ("Plan Pay as you go (pay)", "in, default", "EUR per 1,000,000 input"),
        ("Plan Pay as you go (pay)", "calls, tiers up to 10,000, price", "EUR per call"),
        ("Plan Pay as you go (pay)", "calls, tiers up to 10,000, flat", "EUR per calendar month that reaches the tier"),
        ("Plan Pay as you go (pay)", "calls, tiers no. 2, price", "EUR per call"),
        ("Plan Pay as you go (pay)", "base, price", "EUR per calendar month"),
        ("Plan Pay as you go (pay)", "base, overage, input, tiers no. 1, price", "EUR per 1,000 input"),
        ("Plan packs", "pack, price", "USD per package of 100 calls"),
        ("Plan packs", "pack, free", "calls per calendar month"),
        ("Plan packs", "seats, price", "USD per calendar month, each"),
        ("Plan packs", "cut, percent", "percent"),
        ("Plan packs", "cut, fixed", "USD per event"),
        ("Plan packs", "cut, free", "USD per calendar month"),
        ("Plan packs", "cut, min", "USD per calendar month"),
        ("Plan packs", "cost, markup", "percent"),
        ("Plan packs", "cost, fee", "USD per 1,000 input"),
        ("Add-on extra", "credits, price", "EUR once"),
        ("Add-on extra", "credits, credits", "EUR once"),
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
