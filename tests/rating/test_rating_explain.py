"""What `rate explain` says of each kind of step, in sentences."""

from decimal import Decimal

import pytest
from rating_samples import at, book_with, rated, used

from meterhouse_rating.agreements import Agreement, Discount
from meterhouse_rating.charges import Before
from meterhouse_rating.explain import as_text


def said(components, *usage, line=0, **more):
    found = rated(book_with(components), *usage, **more).lines[line]
    row = {
        **vars(found),
        "line_id": "id",
        "currency": "USD",
        "period_start": at("2026-10-01"),
        "period_end": at("2026-11-01"),
        "customer_id": "acme",
        "state": "open",
    }
    return as_text(row).splitlines()


IN = used("llm.tokens.input", "1500")


@pytest.mark.parametrize(
    ("components", "sentence"),
    [
        (
            "a: {model: volume, metric: input, tiers: [{up_to: 1000, price: 1}, {price: 0.5, flat: 2}]}",
            "  The fee of the tier, beyond 1,000: 2 USD (line 12).",
        ),
        (
            "a: {model: package, metric: input, size: 1000, price: 3, free: 100}",
            "  1,400 in 2 packages of 1,000 at 3 USD: 6 USD (line 12).",
        ),
        ("a: {model: percentage, metric: input, percent: 2, fixed: 0.3}", "  2 % of 1,500 USD: 30 USD."),
        ("a: {model: percentage, metric: input, percent: 2, fixed: 0.3}", "  1 times 0.3 USD: 0.3 USD."),
        ("a: {model: percentage, metric: input, percent: 2, max: 5}", "  At most 5 USD: -25 USD."),
        ("a: {model: percentage, metric: input, percent: 2, min: 50}", "  At least 50 USD: 20 USD more."),
        ("a: {model: formula, inputs: {x: input}, amount: x * 2}", "  x * 2 with x 1,500: 3,000 USD."),
        ("a: {model: cost_plus, metric: input, markup: 50, cost: {price: 2}}", "  50 % of 3,000 USD: 1,500 USD."),
        (
            "a: {model: cost_plus, metric: input, markup: 50, cost: {price: 2}}",
            "  Costs 3,000 USD: 1,500 at 2 USD: 3,000 USD (line 12).",
        ),
        (
            "a: {model: recurring, price: 31, quantity: seats}",
            "  No quantity of seats is recorded: `meterhouse contracts quantity CUSTOMER seats NUMBER`.",
        ),
        ("a: {model: minimum, amount: 10}", "  The minimum is 10 USD."),
        ("a: {model: minimum, amount: 10}", "  The other components come to 0 USD."),
    ],
)
def test_every_kind_of_step_is_said(components, sentence):
    assert sentence in said(components, IN)


def test_a_known_cost_is_what_the_provider_asks():
    row = used("llm.tokens.input", "5", cost="1.5")
    lines = said("a: {model: cost_plus, metric: input, markup: 0}", row)
    assert "  The provider asks 1 at 1.5 USD: 1.5 USD (list)." in lines


def test_a_share_of_a_month_says_from_when_to_when():
    lines = said("a: {model: recurring, price: 31}", since="2026-10-11")
    assert "  1 at 31 USD from 2026-10-11 to 2026-11-01, 21/31 days: 21 USD." in lines
    assert "  5 USD of the minimum of 5 USD, for 31/31 days." not in lines
    assert "  21 USD of the minimum of 31 USD, for 21/31 days." in said(
        "a: {model: minimum, amount: 31}", since="2026-10-11"
    )


def test_what_was_billed_before_is_taken_off():
    before = {"a": Before(charged=True, billed={"2026-10-01..2026-11-01": Decimal(30)})}
    lines = said("a: {model: recurring, price: 31, pay: advance}", before=before)
    assert "  Less what was billed before for 2026-10-01..2026-11-01: -30 USD." in lines
    before = {"a": Before({"input": Decimal(100)})}
    assert "  Less what 100 came to earlier this month: -100 USD." in said(
        "a: {model: volume, metric: input, tiers: [{price: 1}]}", IN, before=before
    )


def test_a_discount_says_what_it_is_off_and_in_which_order():
    discount = Discount("d" * 20, "Launch", Decimal(10), None, (), None, False, at("2026-10-01"), None)
    lines = said(
        "a: {model: per_unit, metric: input, price: 1}", IN, line=1, agreement=Agreement(discounts=(discount,))
    )
    assert lines[0] == "Launch: -150.00 USD"
    assert "  Off a: 10 % of 1500.00 USD: -150 USD." in lines
    assert "  Taken off after the minimum commitment, by agreement dddddddddddd." in lines
