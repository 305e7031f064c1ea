"""The agent's client of usage limits against the real collector: what stands in `allowances` is what happens."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import delete, insert

import meterhouse
from meterhouse import limits
from meterhouse.allowance_client import Client
from meterhouse_store import registry, switches, tables


@pytest.fixture
def agent(shared_collector, monkeypatch, tmp_path):
    """An agent in this process that asks the collector; `agent(**row)` writes an allowance first."""
    monkeypatch.setenv("METERHOUSE_ENDPOINT", shared_collector.http)
    monkeypatch.setenv("METERHOUSE_API_KEY", shared_collector.key)
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(tmp_path))
    monkeypatch.setattr(limits, "_client", Client())
    row = {
        "namespace": "live",
        "agent_id": "",
        "decision": "allow",
        "units": None,
        "weights": {},
        "pause_at": "call",
        "on_unreachable": "allow",
        "reason": None,
        "computed_at": datetime.now(UTC),
    }

    def write(customer_id, **changes):
        with shared_collector.engine.begin() as connection:
            connection.execute(delete(tables.allowances).where(tables.allowances.c.customer_id == customer_id))
            connection.execute(insert(tables.allowances).values(**row | {"customer_id": customer_id} | changes))

    yield write
    import meterhouse.runtime

    meterhouse.runtime.flush(5)


def admitted(customer_id, agent_name=None):
    with meterhouse.customer(customer_id), meterhouse.agent(agent_name or "any"):
        limits.admit()


def test_without_a_row_there_is_no_limit_and_a_lease_all_the_same(agent):
    admitted("free")
    lease = limits._client.leases["free", "any"]
    assert lease.allowed and lease.left is None and len(lease.lease_id) == 32


def test_where_pausing_is_turned_off_nobody_is_stopped(agent, shared_collector):
    agent("spared", decision="pause", reason="hard_cap", units=Decimal(0))

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
    agent("capped", agent_id="support", decision="pause", reason="hard_cap")
    with pytest.raises(meterhouse.UsageLimitExceeded, match="hard_cap") as raised:
        admitted("capped", "support")
    assert 50 < (raised.value.until - datetime.now(UTC)).total_seconds() <= 61
    admitted("capped", "billing")


def test_units_and_weights_arrive_as_exact_numbers_and_are_counted_down(agent):
    agent("metered", units=Decimal("100.5"), weights={"pages": "2.25"})
    with meterhouse.customer("metered"), meterhouse.agent("any"):
        limits.admit()
        meterhouse.meter("pages").add(2)
    assert limits._client.leases["metered", "any"].left == Decimal("96")


def test_a_key_that_may_not_act_for_the_customer_decides_nothing(agent, shared_collector, monkeypatch):
    _, key = registry.create_key(shared_collector.engine, "live", "only-acme", customers=["acme"])
    agent("other", decision="pause")
    monkeypatch.setenv("METERHOUSE_API_KEY", key)
    admitted("other")  # its usage is suspended as customer_forbidden anyway
