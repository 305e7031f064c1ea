"""The pure parts: states of an invoice, and amounts in Stripe's units."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse_billing import states
from meterhouse_billing.amounts import NotPayable, from_stripe, to_stripe
from meterhouse_billing.documents import StripeInvoice
from meterhouse_billing.gateway import LiveKeyRefused, NoStripeKey, connect

OPEN = StripeInvoice("in_1", "open", "USD", 100, 0, 100, 0, 0, "cus_1", {}, "A-1", None, None, None)


@pytest.mark.parametrize(
    ("current", "wanted", "path"),
    [
        ("draft", "approved", [("draft", "approved")]),
        ("in review", "finalised", [("in review", "approved"), ("approved", "finalised")]),
        ("draft", "paid", [("draft", "approved"), ("approved", "finalised"), ("finalised", "paid")]),
        ("finalised", "failed", [("finalised", "failed")]),
        ("failed", "paid", [("failed", "paid")]),
        ("failed", "finalised", []),  # older news
        ("paid", "finalised", []),
        ("paid", "paid", []),
    ],
)
def test_a_state_moves_forward_only(current, wanted, path):
    assert states.path(current, wanted) == path


@pytest.mark.parametrize(("current", "wanted"), [("paid", "void"), ("void", "paid")])
def test_one_final_state_does_not_follow_another(current, wanted):
    with pytest.raises(states.Contradiction):
        states.path(current, wanted)


@pytest.mark.parametrize("ending", ["paid", "void"])
def test_news_in_any_order_ends_in_the_same_state(ending):
    ends = set()
    for order in permutations(["finalised", "failed", ending]):
        state = "draft"
        for wanted in order:
            state = states.path(state, wanted)[-1][1] if states.path(state, wanted) else state
        ends.add(state)
    assert ends == {ending}


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"status": "draft"}, None),
        ({}, "finalised"),
        ({"attempt_count": 1}, "failed"),
        ({"status": "uncollectible"}, "failed"),
        ({"status": "paid", "attempt_count": 1}, "paid"),
        ({"status": "void"}, "void"),
    ],
)
def test_stripes_statuses(change, state):
    assert states.of(replace(OPEN, **change)) == state


@pytest.mark.parametrize(
    ("minor", "currency", "stripes"),
    [
        (1234, "USD", 1234),
        (150, "JPY", 150),
        (7, "ISK", 700),
        (500, "UGX", 50000),
        (4500, "MGA", 45),
        (1230, "KWD", 1230),
    ],
)
def test_stripes_smallest_unit(minor, currency, stripes):
    assert to_stripe(minor, currency) == stripes
    assert from_stripe(stripes, currency) == minor


@pytest.mark.parametrize(("minor", "currency"), [(1235, "KWD"), (4550, "MGA")])
def test_what_stripe_cannot_express_is_refused(minor, currency):
    with pytest.raises(NotPayable):
        to_stripe(minor, currency)


@given(st.integers(-(10**12), 10**12), st.sampled_from(["USD", "JPY", "ISK", "UGX", "MGA", "KWD"]))
def test_an_amount_that_goes_to_stripe_comes_back_as_it_was(minor, currency):
    try:
        there = to_stripe(minor, currency)
    except NotPayable:
        return
    assert from_stripe(there, currency) == minor


def test_live_keys_need_permission_and_never_go_to_another_host():
    with pytest.raises(LiveKeyRefused, match="never uses it"):
        connect({"STRIPE_API_KEY": "rk_live_1"}, live=False)
    connect({"STRIPE_SECRET_KEY": "sk_live_1"}, live=True)
    with pytest.raises(LiveKeyRefused, match="METERHOUSE_STRIPE_URL"):
        connect({"STRIPE_API_KEY": "sk_live_1", "METERHOUSE_STRIPE_URL": "http://127.0.0.1:1"}, live=True)


def test_a_missing_or_public_key_is_named():
    with pytest.raises(NoStripeKey, match="STRIPE_API_KEY"):
        connect({}, live=False)
    with pytest.raises(NoStripeKey, match="no secret key"):
        connect({"STRIPE_API_KEY": "pk_test_1"}, live=False)
