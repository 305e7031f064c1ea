"""`warehouse rebuild` gives the same warehouse: of all sources, with all kinds of decisions, whenever made."""

import json
import os
import threading
from contextlib import contextmanager

import commands
import pytest
from collector_samples import event, request_of
from foreign_samples import START_NS, call, span, sum_of, tokens_of, total_of
from worlds import VIEWS

from meterhouse_collector import rebuild
from meterhouse_collector.projection import projection_lock
from meterhouse_collector.verify import verify
from meterhouse_store import mirror, suspended

OLD = json.dumps({"metrics": [{"metric": "shop.*", "customer": "tenant", "meter": "pages.read"}]})
NEW = json.dumps({"metrics": [{"metric": "shop.*", "customer": "buyer", "meter": "pages.sold", "scale": "0.5"}]})


def assert_rebuilds_the_same(world):
    before = world.state()
    found = world.rebuild()
    assert (found.differences, found.exchanged) == ((), True)
    assert found.live_sha256 == found.rebuilt_sha256
    after = world.state()
    for name in VIEWS:
        assert after[name] == before[name], name
    return after


@pytest.mark.long
def test_all_sources_with_decisions_about_each_are_the_same_after_a_rebuild(world):
    world.client.command(
        "INSERT INTO refusals VALUES ('live', 'key-1', '2026-11-01 00:00:00', 'too_large', 'a-run', 3, 1000)"
    )
    world.client.command(
        "INSERT INTO collector_minutes VALUES ('c', today(), 'a-run', 3, 1, 0, [0.1, inf], [2, 1], [1, 0], 700, 1.5, 6)"
    )
    # Meterhouse's own: usage, a copy, a conflict, nobody's, a forbidden customer's, one that counts once.
    own = {"valid_from_ns": 0}
    world.metrics(request_of(event(7, "a"), event(5, "b")), **own)
    world.metrics(request_of(event(7, "a"), event(9, "b")), **own)
    world.decide(suspended.release, reason="conflict")
    world.metrics(request_of(event(2, "b")), **own)
    world.metrics(request_of(event(11, "n"), point={"gen_ai.agent.name": "x"}), **own)
    world.decide(suspended.assign, "globex", events=("n",))
    world.undo()
    world.decide(suspended.assign, "initech", events=("n",))
    world.metrics(request_of(event(13, "f")), allowed=["globex"], **own)
    world.decide(suspended.discard, events=("f",))
    once = request_of(event(1, "task", extra={"meterhouse.once": "true"}), name="meterhouse.agent.tasks", point={})
    world.metrics(once, **own)
    world.decide(suspended.assign, "acme", events=("task",))
    # Sums and histograms, under two versions of a mapping file; the second time with another customer and meter.
    world.metrics(sum_of((1, 5), name="shop.pages", customer=None, tenant="acme", buyer="globex"), mapping=OLD)
    world.metrics(sum_of((2, 6), name="shop.pages", customer=None, tenant="acme", buyer="globex"), mapping=NEW)
    world.metrics(sum_of((3, 8), name="shop.pages", customer=None, buyer="globex"), mapping=OLD)
    world.decide(suspended.assign, "initech", reason="customer_missing", meter="pages.read")
    world.metrics(tokens_of((1, 100.0)))
    world.metrics(tokens_of((1, 100.0), (2, 150.0), kind=2, agent="b"))
    # Spans: a parent that repeats its child, an event of the same call, and one response id in two traces.
    world.traces(span(1, more=call(50, 20)))
    world.traces(span(2, parent=1, more=call(50, 20)))
    metered = event(50, "m", START_NS, extra={"gen_ai.response.id": "r-" + "7" * 30}, trace_id=(3).to_bytes(16))
    world.traces(span(3, trace=3, more=call(50, 20, response_id="r-" + "7" * 30)))
    world.metrics(request_of(metered), **own)
    for trace in (5, 6):
        world.traces(span(5, trace=trace, more=call(30, 10, response_id="r-" + "8" * 30)))
    world.decide(suspended.release, events=(f"{5:032x}-{5:016x}",))
    after = assert_rebuilds_the_same(world)
    assert after["refused"] and len(after["decisions"]) == 11
    found = world.client.query("SELECT meter, billed_customer_id, toFloat64(sum(quantity)) FROM usage GROUP BY 1, 2")
    totals = {(meter, customer): quantity for meter, customer, quantity in found.result_rows}
    assert totals["pages.read", "acme"] == 5 and totals["pages.read", "initech"] == 8
    assert totals["pages.sold", "globex"] == 3
    assert totals["llm.tokens.input", "acme"] == 7 + 9 + 100 + 150 + 50 + 50 + 30
    negative = world.client.query("SELECT count() FROM conservation WHERE duplicates < 0").result_rows
    assert negative == [(0,)]
    checked = verify(world.journal, world.connect, world.client.database, lambda done, total: None)
    assert (checked.differences, checked.is_wrong) == ([], False)


def test_decided_running_totals_hold_when_later_points_change_their_increases_and_count_once(world):
    rows = "SELECT received, counted + suspended + set_aside, duplicates FROM conservation"
    read, seen = (f"SELECT toInt64(sum(quantity)) FROM usage WHERE meter = 'pages.{of}'" for of in ("read", "seen"))
    world.metrics(total_of((10, 10), (30, 30), (40, 25)))
    world.metrics(total_of((40, 26)))  # another total at the same time
    world.metrics(sum_of((1, 5), name="pages.sold", **{"gen_ai.agent.id": 7}))
    world.metrics(total_of((10, 10), (20, 15), name="pages.seen"), allowed=["globex"])
    assert world.client.query(rows).result_rows == [(7, 7, 0)]
    for reason in ("cumulative_fall", "bad_identifier", "customer_forbidden"):
        world.decide(suspended.release, reason=reason)
        assert world.client.query(rows).result_rows == [(7, 7, 0)], reason
    world.decide(suspended.discard, reason="cumulative_conflict")
    assert world.client.query(rows).result_rows == [(7, 7, 0)]

    world.metrics(total_of((35, 20)))  # it falls, too: of the later point 5 would be left
    world.metrics(total_of((15, 15), name="pages.seen"), allowed=["globex"])  # nothing of the later one would be left
    assert world.client.query(read).result_rows == [(30 + 25,)]
    assert world.client.query(seen).result_rows == [(10 + 5,)]
    assert_rebuilds_the_same(world)
    assert world.client.query(read).result_rows == [(30 + 25,)]
    assert world.client.query(seen).result_rows == [(10 + 5,)]
    assert world.client.query(rows).result_rows == [(9, 9, 0)]


def test_two_rebuilds_at_once_are_refused_and_the_first_is_not_disturbed(world):
    world.metrics(request_of(event(1, "a")), valid_from_ns=0)
    refused = []

    def say(line):
        with pytest.raises(rebuild.CannotRebuild) as told:
            world.rebuild()
        refused.append(str(told.value))

    assert not world.rebuild(say).differences
    assert set(refused) == {"the warehouse is being rebuilt by another command: wait for that one"}
    assert world.client.query("SELECT count() FROM usage").result_rows == [(1,)]
    assert not world.rebuild().differences


@pytest.fixture
def environment(world, tmp_path, collector_warehouse):
    """What a command needs to work on `world`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    return clean | {
        "METERHOUSE_DATA": str(tmp_path),
        "METERHOUSE_WAREHOUSE_URL": collector_warehouse,
        "METERHOUSE_WAREHOUSE_DATABASE": world.client.database,
    }


@contextmanager
def a_rebuild_before_its_end(world, environment, output):
    """The command in a process, which has filled the new tables and waits until the block is left, then ends."""
    read, write = os.pipe()
    with open(read) as says:
        with projection_lock(world.journal, wait=True):
            with open(write, "wb") as told:
                command = commands.start(["warehouse", "rebuild"], env=environment, stdout=output, stderr=told)
            assert any(line.startswith("copying") for line in says)
            yield command
        command.wait(60)


def test_the_command_refuses_a_second_rebuild_unless_the_first_one_was_killed(world, environment, tmp_path):
    usage = "SELECT count(), toInt64(sum(quantity)) FROM usage"
    world.metrics(request_of(event(3, "a"), event(4, "b")), valid_from_ns=0)
    with open(tmp_path / "said", "w+b") as output:
        with a_rebuild_before_its_end(world, environment, output) as killed:
            killed.kill()
        assert world.client.query(usage).result_rows == [(2, 7)]
        with a_rebuild_before_its_end(world, environment, output) as first:
            second = commands.run(["warehouse", "rebuild", "--force"], env=environment)
        output.seek(0)
        live, rebuilt, verdict = output.read().decode().splitlines()
    assert (second.returncode, second.stdout, second.stderr) == (
        1, "", "the warehouse is being rebuilt by another command: wait for that one\n"
    )  # fmt: skip
    assert (first.returncode, verdict) == (0, "identical")
    assert rebuilt.endswith("  2 events, 0 in suspense") and live.split()[1] == rebuilt.split()[1]
    assert world.client.query(usage).result_rows == [(2, 7)]


def test_whoever_reads_decides_or_sends_during_a_rebuild_sees_one_warehouse(world):
    for number in range(4):
        world.metrics(request_of(event(1, f"a-{number}"), event(2, f"b-{number}")), valid_from_ns=0)
    world.metrics(total_of((10, 10), (30, 30), (40, 25)))
    world.metrics(request_of(event(7, "n"), point={"gen_ai.agent.name": "x"}), valid_from_ns=0)
    stop, totals, problems = threading.Event(), set(), []

    def read():
        client = world.connect(world.client.database)
        while not stop.is_set():
            try:
                totals.add(client.query("SELECT toInt64(sum(quantity)) FROM usage").result_rows[0][0])
                totals.add(client.query("SELECT toInt64(sum(quantity)) FROM suspense").result_rows[0][0])
                mirror.push_all(world.engine, client)
            except Exception as problem:  # noqa: BLE001 - shown below
                problems.append(problem)
        client.close()

    def say(line):
        # The last thing before the tables are compared and exchanged: somebody decides, and the collector goes on.
        if line.startswith("copying"):
            world.decide(suspended.assign, "globex", events=("n",))
            world.metrics(request_of(event(3, "late")), valid_from_ns=0)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        found = world.rebuild(say)
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert (found.differences, found.exchanged, found.live_sha256) == ((), True, found.rebuilt_sha256)
    assert totals <= {12 + 30, 12 + 30 + 7, 12 + 30 + 7 + 3, 25 + 7, 25}
    assert world.client.query("SELECT toInt64(sum(quantity)) FROM usage").result_rows == [(12 + 30 + 7 + 3,)]
