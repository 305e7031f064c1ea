"""Budgets as agents meet them: the real collector, warehouse, SDK and provider; what is passed, and how soon."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import collector_samples as samples
import pytest
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

TALKER = """
import sys, time
import meterhouse, openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="k", max_retries=3)
for patience_s in sys.stdin:
    began = time.monotonic()
    while True:
        try:
            with meterhouse.customer("solo"):
                client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
            said = "called"
        except meterhouse.UsageLimitExceeded as stopped:
            said = stopped.reason
        if said == "called" or time.monotonic() - began > float(patience_s):
            print(said, flush=True)
            break
        time.sleep(0.1)
"""

PROVIDER = (
    "import sys; from pathlib import Path; from meterhouse_sandbox.provider import serve;"
    "serve('127.0.0.1', int(sys.argv[1]), Path(sys.argv[2]), seed=7, fault_rate=0.0)"
)


@pytest.fixture
def world(shared_collector, shared_database):
    meters = declared(shared_collector.settings)
    return World(shared_collector.engine, shared_database, "live", meters, lambda: datetime.now(UTC))


@pytest.fixture
def start(shared_collector, tmp_path):
    """Starts a program beside the test: start(arguments of Python)."""
    running = []
    settings = {
        "METERHOUSE_ENDPOINT": shared_collector.http,
        "METERHOUSE_API_KEY": shared_collector.key,
        "METERHOUSE_JOURNAL_DIR": str(tmp_path / "journal"),
        "METERHOUSE_EXPORT_INTERVAL_S": "1",
        "METERHOUSE_ALLOWANCE_TIMEOUT": "30",  # on a slow machine nobody is let go because the answer took long
        # Nor because the first one got lost: what an agent that fails open uses then is no part of the bound.
        "METERHOUSE_ON_UNREACHABLE": "pause",
    }

    def program(*arguments):
        clean = {name: it for name, it in os.environ.items() if not name.startswith(("METERHOUSE_", "OTEL_"))}
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            env=clean | settings,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield program
    for process in running:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


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
    port = samples.free_port()
    start(PROVIDER, str(port), str(tmp_path / "provider.log"))
    url = f"http://127.0.0.1:{port}"
    samples.wait_for(lambda: _answers(url), what="the provider")
    run = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
    agent = start(run, "run", "--", sys.executable, "-c", TALKER, url)

    def call(patience_s):
        began = time.monotonic()
        agent.stdin.write(f"{patience_s}\n")
        agent.stdin.flush()
        return agent.stdout.readline().strip(), time.monotonic() - began

    def calls():
        return len((tmp_path / "provider.log").read_text().splitlines())

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


def _answers(url):
    try:
        with urllib.request.urlopen(f"{url}/sandbox/streams", timeout=2):
            return True
    except OSError:
        return False
