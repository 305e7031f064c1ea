"""Budgets as agents meet them: the real collector, warehouse, SDK and provider; what is passed, and how soon."""

import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import collector_samples as samples
import pytest
from agent_programs import provider, starting, talker
from sqlalchemy import update

from meterhouse_billing import budget_round
from meterhouse_rating.world import World
from meterhouse_store import budgets, registry, tables
from meterhouse_store.budgets import PAUSE, UNITS, Budget, Policy
from meterhouse_store.meters import declared

WHO = {"who": "ann", "why": "a test"}

AGENTS = """
import sys, threading, time
import meterhouse
from meterhouse import limits

process, holds, patience_s = sys.argv[1], sys.argv[2] == "hold", float(sys.argv[3])
used, lock = 0, threading.Lock()

def agent(number):
    global used
    paused_s = 0
    with meterhouse.customer("crowd"), meterhouse.agent(f"agent-{process}-{number}"):
        while paused_s < patience_s:
            try:
                limits.admit()
            except meterhouse.UsageLimitExceeded as stopped:
                if stopped.reason == "hard_cap":
                    return
                paused_s += 0.25
                time.sleep(0.25)
                continue
            meterhouse.meter("tool.calls").add(1)
            with lock:
                used += 1
            if holds:
                return
            paused_s = 0
            time.sleep(0.01)

threads = [threading.Thread(target=agent, args=(number,)) for number in range(16)]
for one in threads:
    one.start()
for one in threads:
    one.join()
print(used, flush=True)
if holds:
    time.sleep(60)
"""


@pytest.fixture
def world(shared_collector, shared_database):
    meters = declared(shared_collector.settings)
    return World(shared_collector.engine, shared_database, "live", meters, lambda: datetime.now(UTC))


@pytest.fixture
def start(shared_collector, tmp_path):
    """Starts a program beside the test: start(arguments of Python)."""
    with starting(shared_collector, tmp_path) as program:
        yield program


def put(world, customer, limit, of):
    registry.add_customer(world.engine, "live", customer)
    budget = Budget(customer, "b", UNITS, Decimal(limit), of=of)
    budgets.set_budget(world.engine, "live", budget, **WHO, now=datetime.now(UTC))
    budget_round.run(world, customer)
    return budget


def standing(world, customer):
    """What has arrived, and what agents hold or have under way."""
    done = budget_round.run(world, customer)
    (state,) = done.states
    return state.used, done.reserved(state)


def ended(world, processes):
    """How many units the processes used; rounds go on all the while, and none finds more than the limit allows."""
    deadline = time.monotonic() + 180
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        assert sum(standing(world, "crowd")) <= 400 + 64
        time.sleep(0.3)
    return sum(int(process.stdout.read()) for process in processes)


def test_64_agents_of_which_16_are_killed_with_leases_use_the_limit_and_their_calls_under_way_at_most(world, start):
    put(world, "crowd", 400, "tool.calls")
    closed = Policy(on_unreachable=PAUSE)  # an answer that gets lost on a busy machine lets nobody go on
    budgets.set_policy(world.engine, "live", "crowd", closed, **WHO, now=datetime.now(UTC))
    budget_round.run(world, "crowd")
    killed = start(AGENTS, "0", "hold", "60")
    assert killed.stdout.readline() == "16\n"
    assert standing(world, "crowd")[1] > 300  # an eighth of what was free for each, and then an eighth of the rest
    killed.kill()
    used = 16 + ended(world, [start(AGENTS, str(number), "use", "5") for number in (1, 2, 3)])
    assert 16 < used < 100  # the rest is in the hands of agents of whom nobody can know that they are dead
    samples.wait_for(lambda: standing(world, "crowd")[0] == used, within_s=60, what="what the killed ones used, too")
    with world.engine.begin() as connection:
        is_theirs = tables.leases.c.customer_id == "crowd"
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        connection.execute(update(tables.leases).where(is_theirs).values(expires_at=long_ago))
    used += ended(world, [start(AGENTS, str(number), "use", "90") for number in (4, 5)])
    samples.wait_for(lambda: standing(world, "crowd")[0] == used, within_s=60, what="all usage in the warehouse")
    assert 400 <= used <= 400 + 64


def test_a_capped_agent_never_reaches_the_provider_and_goes_on_within_five_seconds(world, start, tmp_path):
    budget = put(world, "solo", 2, "llm.requests")
    url, calls = provider(start, tmp_path)
    call = talker(start, url)
    assert [call(0)[0] for _ in range(3)] == ["called", "called", "reserved"]
    samples.wait_for(lambda: standing(world, "solo") == (2, 0), within_s=60, what="its usage in the warehouse")
    assert call(4)[0] == "hard_cap" and calls() == 2
    now = datetime.now(UTC)
    (state,) = budget_round.run(world, "solo", write=False).states
    budgets.raise_limit(world.engine, "live", budget, Decimal(50), state.period.start, **WHO, now=now)
    budget_round.run(world, "solo")
    said, took_s = call(20)
    assert said == "called" and took_s < 5 and calls() == 3
    assert budgets.pause(world.engine, "live", "solo", **WHO, now=now)
    samples.wait_for(lambda: call(0)[0] == "operator", what="the pause at its next question")
    before = calls()
    assert call(4)[0] == "operator" and calls() == before
    assert budgets.lift(world.engine, "live", "solo", **WHO, now=datetime.now(UTC))
    said, took_s = call(20)
    assert said == "called" and took_s < 5
    kinds = [json.dumps(row["facts"].get("threshold_percent")) for row in _notices(world, "solo")]
    assert sorted(kinds) == ["100", "50", "80", "null"]  # the thresholds and the cap, once each


def _notices(world, customer):
    with world.engine.connect() as connection:
        query = tables.notices.select().where(tables.notices.c.customer_id == customer)
        return connection.execute(query).mappings().all()
