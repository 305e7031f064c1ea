"""A month that is rated in parts, in whatever order, comes to what it comes to as a whole: random prices and usage."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from rating_samples import DECLARED, at, used

from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import parse
from meterhouse_rating.charges import Fact
from meterhouse_rating.periods import parse as period
from meterhouse_rating.settle import imagine
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import Version
from meterhouse_store.registry import Contract, Customer

BOOK = """
book: parts
currency: USD
metrics:
  one: {unit: unit, meters: [llm.tokens.input, llm.tokens.cache_write]}
  two: {unit: unit, meters: [tool.calls]}
plans:
  sample:
    components:
"""
USAGE = [
    "model: per_unit, metric: %s, price: 0.5",
    "model: graduated, metric: %s, tiers: [{up_to: 50, price: 1, flat: 3}, {up_to: 100, price: 0.5}, {price: 0.25}]",
    "model: volume, metric: %s, tiers: [{up_to: 50, price: 1, flat: 3}, {up_to: 100, price: 0.5}, {price: 0.25}]",
    "model: package, metric: %s, size: 30, price: 5, free: 10",
    "model: percentage, metric: %s, percent: 10, fixed: 0.5, free: 5, min: 2, max: 20",
    "model: included, metric: %s, included: 40, price: 1",
    "model: flat, price: 20, included: {%s: 30}, overage: {%s: {tiers: [{up_to: 20, price: 2}, {price: 1}]}}",
    "model: matrix, metric: %s, by: [model], default: 1, "
    "cells: [{model: a, mode: volume, tiers: [{up_to: 20, price: 2}, {price: 1}]}]",
    "model: cost_plus, metric: %s, markup: 50, fee: 0.1, cost: {price: 0.2}",
    'model: formula, inputs: {x: %s}, amount: "max(0, x - 50) * 0.3 + 1"',
]
FEES = [
    "",
    "fee: {model: recurring, price: 31}",
    *(
        f"fee: {{model: recurring, price: 31, quantity: seats{more}}}"
        for more in ("", ", prorate: none", ", pay: advance")
    ),
    "fee: {model: recurring, price: 31, quantity: seats, prorate: second}",
]
MORE = [
    "",
    "support: {model: percentage, of: [one, two], percent: 10, min: 2, max: 15, fixed: 1}",
    "least: {model: minimum, amount: 200}",
    "least: {model: minimum, amount: 90, of: [one], prorate: none}",
]
ROWS = st.dictionaries(
    st.tuples(st.sampled_from(["llm.tokens.input", "llm.tokens.cache_write", "tool.calls"]), st.sampled_from("abc")),
    st.tuples(st.sampled_from([0, 1, 5, 10, 20, 40, 50]), st.integers(1, 3)),
    max_size=5,
)
OCTOBER = period("2026-10", "UTC")
SEATS = tuple(
    Fact(at(when), Decimal(number)) for when, number in (("2026-01-01", 2), ("2026-10-13", 3), ("2026-10-25", 1))
)


@st.composite
def books(draw):
    of = {metric: draw(st.sampled_from(USAGE)).replace("%s", metric) for metric in ("one", "two")}
    lines = [
        *(f"{name}: {{{it}}}" for name, it in of.items()),
        draw(st.sampled_from(FEES)),
        draw(st.sampled_from(MORE)),
    ]
    return BOOK + "".join(f"      {line}\n" for line in lines if line)


def rows(found):
    made = [
        used(meter, str(quantity), events=events, model=model) for (meter, model), (quantity, events) in found.items()
    ]
    return tuple(sorted(made, key=lambda it: (it.meter, it.dimensions)))


@given(
    books(),
    st.sampled_from(["2026-01-01", "2026-10-05"]),
    st.lists(ROWS, min_size=3, max_size=3),
    st.permutations(["2026-10-01..2026-10-11", "2026-10-11..2026-10-16", "2026-10-16..2026-11-01"]),
)
def test_the_parts_of_a_month_come_to_the_month_in_whatever_order_they_are_rated(text, since, usage, order):
    customer = Customer("test", "acme", "acme", "USD", "UTC", None, None, "operator", at(since))
    contract = Contract("contract", "test", "acme", "sample", at(since), at(since))
    version = Version(1, "hash", text, "test", at("2025-01-01"), at("2025-01-01"))
    agreed = {"acme": Agreement(quantities={"seats": SEATS})}
    terms = Terms("test", {"acme": customer}, {"acme": [contract]}, [version], {1: parse(text)}, DECLARED, agreed)
    whole = {}
    for part in usage:
        for row in rows(part):
            so_far = whole.get((row.meter, row.dimensions), replace(row, events=0, quantity=Decimal(0)))
            more = {"events": so_far.events + row.events, "quantity": so_far.quantity + row.quantity}
            whole[row.meter, row.dimensions] = replace(row, **more)
    month, _ = imagine(terms, "acme", OCTOBER, Found(tuple(whole[key] for key in sorted(whole))), [], "month")
    history, came, lines = [], 0, 0
    for span, part in zip(order, usage, strict=True):
        outcome, made = imagine(terms, "acme", period(span, "UTC"), Found(rows(part)), history, span)
        history.append(made)
        came, lines = came + outcome.rated.total_minor, lines + len(outcome.rated.lines)
    # Each line is rounded by itself.
    assert abs(came - month.rated.total_minor) <= lines
