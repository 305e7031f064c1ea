"""The agent's client of usage limits against the real collector: what stands in `allowances` is what happens."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import delete, insert

import meterhouse
from meterhouse import limits
from meterhouse.allowance_client import Client
from meterhouse_store import access, switches, tables


@pytest.fixture
def agent(shared_collector, monkeypatch, tmp_path):
    """An agent in this process that asks the collector; `agent(**row)` writes an allowance first."""
    monkeypatch.setenv("METERHOUSE_ENDPOINT", shared_collector.http)
    monkeypatch.setenv("METERHOUSE_API_KEY", shared_collector.key)
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "_client", Client())
    row = {
        "namespace": "live",
        "pauses": [],
        "limits": [],
        "pause_at": "call",
        "on_unreachable": "allow",
        "computed_at": datetime.now(UTC),
    }

    def write(customer_id, **changes):
        with shared_collector.engine.begin() as connection:
            connection.execute(delete(tables.allowances).where(tables.allowances.c.customer_id == customer_id))
            connection.execute(insert(tables.allowances).values(**row | {"customer_id": customer_id} | changes))

    yield write
    import meterhouse.runtime

    meterhouse.runtime.flush(5)


def limit(left, weights, *, name="units", agent_id="", least="0"):
    return {
        "name": name,
        "agent_id": agent_id,
        "left": left,
        "least": least,
        "weights": weights,
        "reason": "hard_cap",
    }


def admitted(customer_id, agent_name=None):
    with meterhouse.customer(customer_id), meterhouse.agent(agent_name or "any"):
        limits.admit()


def test_without_a_row_there_is_no_limit_and_a_lease_all_the_same(agent):
    admitted("free")
    lease = limits._client.leases["free", "any"]
    assert lease.allowed and lease.left is None and len(lease.lease_id) == 32


def test_where_pausing_is_turned_off_nobody_is_stopped(agent, shared_collector):
    agent("spared", pauses=[{"agent_id": "", "reason": "operator"}])

    def turn(state):
        now = datetime.now(UTC)
        switches.turn(shared_collector.engine, "live", {"pausing": state}, who="ann", why="limits are wrong", now=now)

    turn("off")
    try:
        admitted("spared", "first")
    finally:
        turn("on")
    with pytest.raises(meterhouse.UsageLimitExceeded):
        admitted("spared", "second")


def test_a_paused_customer_is_stopped_and_its_other_agent_is_not(agent):
    agent("capped", pauses=[{"agent_id": "support", "reason": "payment_failed"}])
    with pytest.raises(meterhouse.UsageLimitExceeded, match="payment_failed") as raised:
        admitted("capped", "support")
    assert 0 < (raised.value.until - datetime.now(UTC)).total_seconds() <= 5  # so soon it asks again
    admitted("capped", "billing")


@pytest.mark.parametrize("character", ["\n", "\0", "\x9b", "\u202e"])
def test_limits_are_for_the_customer_and_agent_as_usage_is_stored_for_them(agent, character):
    agent("odd\ufffdone", pauses=[{"reason": "operator", "agent_id": "its\ufffdagent"}])
    with pytest.raises(meterhouse.UsageLimitExceeded, match="operator"):
        admitted(f"odd{character}one", f"its{character}agent")
    admitted(f"odd{character}one", "another")


def test_units_and_weights_arrive_as_exact_numbers_and_are_counted_down(agent):
    agent("metered", limits=[limit("804", {"pages": "2.25"})])  # an eighth of it is handed out
    with meterhouse.customer("metered"), meterhouse.agent("any"):
        limits.admit()
        meterhouse.meter("pages").add(2)
    assert limits._client.leases["metered", "any"].left == Decimal("96")


def test_a_key_that_may_not_act_for_the_customer_decides_nothing(agent, shared_collector, monkeypatch):
    _, key = access.create_key(shared_collector.engine, "live", "only-acme", customers=["acme"])
    agent("other", pauses=[{"agent_id": "", "reason": "operator"}])
    monkeypatch.setenv("METERHOUSE_API_KEY", key)
    admitted("other")  # its usage is suspended as customer_forbidden anyway
