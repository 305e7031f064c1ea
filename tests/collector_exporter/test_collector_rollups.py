"""Sums of days: what dashboards and reports read is what `usage` comes to, whatever comes, is decided or is rebuilt."""

import json
from datetime import date
from decimal import Decimal

import pytest
from collector_samples import RECEIVED_NS as RECEIVED
from collector_samples import event, request_of
from foreign_samples import call, span, total_of

from meterhouse.cli import main
from meterhouse_collector.verify import verify
from meterhouse_store import rollups, schema, suspended

LAST, FIRST = date(2026, 10, 31), date(2026, 11, 1)
ANY = {"valid_from_ns": 0}
TOTALS = """
    SELECT {customer}, meter, toInt64(sum({events})), toInt64(sum(quantity)) FROM {view} GROUP BY 1, 2 ORDER BY 1, 2
"""
KEPT = "SELECT credential_id, toString(hour), received, counted, suspended, set_aside FROM conservation ORDER BY ALL"
DELAYS = "SELECT toString(received_hour), delay_ms, sum(events) FROM usage_delays_by_hour GROUP BY ALL ORDER BY ALL"
TOUCHING = ("events", "increases", "decided_increases", "conflicts", "points")
CONVERSATIONS = """
    SELECT conversation_id, toInt64(sum(tokens)), toInt64(sum(calls)), toInt64(sum(events)), toString(max(last_event))
    FROM usage_by_conversation GROUP BY 1
"""


@pytest.fixture
def world(world, collector_warehouse):
    world.url = collector_warehouse
    return world


def roll(world):
    return rollups.roll_up(world.client, settled_s=0)


def rolled_days(world):
    query = "SELECT day FROM usage_day_states WHERE is_rolled ORDER BY day"
    return [day for (day,) in world.client.query(query).result_rows]


def totals(world, view, customer="billed_customer_id", events="events"):
    query = TOTALS.format(customer=customer, events=events, view=view)
    return [tuple(row) for row in world.client.query(query).result_rows]


def assert_sums(world, **expected):
    """Each view of sums comes to this, as `usage` does; expected: customer -> quantity of tokens."""
    tokens = [(customer, "llm.tokens.input", quantity) for customer, quantity in sorted(expected.items())]
    assert [row[:2] + row[3:] for row in totals(world, "usage_by_day") if row[1] == "llm.tokens.input"] == tokens
    assert totals(world, "usage_by_day") == totals(world, "usage", events="1")
    assert totals(world, "usage_by_hour", customer="''") == totals(world, "usage", customer="''", events="1")


def test_sums_are_those_of_usage_before_and_after_they_are_made_whatever_happens(world):
    nobodys = request_of(event(11, "n"), point={"gen_ai.agent.name": "x"})
    once = request_of(event(1, "task", extra={"meterhouse.once": "true"}), name="meterhouse.agent.tasks")
    world.metrics(once, **ANY)  # its key has no day: it is always looked up
    steps = [
        (lambda: world.metrics(request_of(event(7, "a"), event(5, "b")), **ANY), {"acme": 12}),
        (lambda: world.metrics(request_of(event(7, "a")), **ANY), {"acme": 12}),  # a copy
        (lambda: world.metrics(request_of(event(9, "b")), **ANY), {"acme": 12}),  # in conflict: the first stands
        (lambda: world.decide(suspended.release, reason="conflict"), {"acme": 16}),  # 9 in the place of 5
        (world.undo, {"acme": 12}),
        (lambda: world.metrics(nobodys, **ANY), {"acme": 12}),  # waits in suspense
        (lambda: world.decide(suspended.assign, "globex", events=("n",)), {"acme": 12, "globex": 11}),
        (world.undo, {"acme": 12}),
        (lambda: world.traces(span(1, more=call(50, 20))), {"acme": 62}),
        (lambda: world.traces(span(2, parent=1, more=call(50, 20))), {"acme": 62}),  # tells of the same call
    ]
    for number, (step, expected) in enumerate(steps):
        step()
        assert_sums(world, **expected)
        kept, delays = (world.client.query(query).result_rows for query in (KEPT, DELAYS))
        # It has touched its day, which was read event by event until now.
        assert len(roll(world).days) == 1, number
        assert_sums(world, **expected)
        assert world.client.query(KEPT).result_rows == kept, number
        assert world.client.query(DELAYS).result_rows == delays, number
    assert rollups.wrong_days(world.client) == []
    assert ("acme", "agent.tasks", 1, 1) in totals(world, "usage_by_day")
    assert rolled_days(world) == [LAST, FIRST]  # the spans', and that of all else


def test_a_late_point_of_a_running_total_changes_the_sums_of_its_successors_too(world):
    world.metrics(total_of((1, 10), (2_000, 30)))  # a quarter of an hour before and after midnight
    roll(world)
    assert rolled_days(world) == [LAST, FIRST]
    world.metrics(total_of((500, 25)))  # before midnight: of what came after it there is less
    assert rolled_days(world) == []
    by_day = "SELECT day, toInt64(sum(quantity)) FROM usage_by_day GROUP BY day ORDER BY day"
    for _ in range(2):
        increases = [quantity for _, quantity in world.client.query(by_day).result_rows]
        assert increases == [25, 30 - 25]
        roll(world)
    assert rolled_days(world) == [LAST, FIRST]


def test_a_point_of_a_running_total_without_an_increase_has_its_day_summed_anew(world):
    world.metrics(total_of((1, 10)))
    roll(world)
    (before,) = world.client.query(KEPT).result_rows
    world.metrics(total_of((2, 10)))  # the total stands still: no usage, and a row that came
    for _ in range(2):
        (kept,) = world.client.query(KEPT).result_rows
        assert kept[:2] == before[:2] and kept[2:4] == (2, 2)
        roll(world)


def test_a_copy_of_a_point_that_turns_out_to_be_the_first_counts_for_who_sent_that(world):
    world.metrics(total_of((1, 10)))
    roll(world)
    earlier = "first + 1 AS first, 'key of the first' AS credential_id"
    world.client.command(f"INSERT INTO cumulative_points SELECT * REPLACE ({earlier}) FROM cumulative_points")
    counted = "SELECT credential_id, sum(counted + suspended) AS of FROM conservation GROUP BY ALL HAVING of > 0"
    for _ in range(2):
        assert world.client.query(counted).result_rows == [("key of the first", 1)]
        roll(world)


def test_delays_are_summed_by_their_first_two_digits(world):
    seconds = ("0", "0.004", "0.125", "1.234", "1.249", "100", "-2.55")
    for number, delay in enumerate(seconds):
        at = RECEIVED - int(Decimal(delay) * 10**9)
        world.client.command(
            "INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, received_at) SELECT "
            f"'live', 'acme', 'm', '{number}', fromUnixTimestamp64Nano({at}), 1, fromUnixTimestamp64Nano({RECEIVED})"
        )
    wanted = {0: 1, 4: 1, 120: 1, 1200: 2, 100_000: 1, -2500: 1}
    for _ in range(2):
        told = world.client.query("SELECT delay_ms, sum(events) FROM usage_delays_by_hour GROUP BY 1").result_rows
        assert dict(told) == wanted
        roll(world)


def test_a_day_is_summed_only_when_nothing_came_for_it_for_a_quarter_of_an_hour(world):
    world.metrics(request_of(event(7, "a")), **ANY)
    assert rollups.roll_up(world.client) == rollups.Rolled((), 1)
    world.client.command("INSERT INTO usage_touches VALUES ('live', '2026-11-01', 1, now() - 1000)")
    assert rollups.roll_up(world.client) == rollups.Rolled((), 1)  # the later time counts
    assert roll(world) == rollups.Rolled((("live", FIRST),), 0)
    assert roll(world) == rollups.Rolled((), 0)  # once


def test_sums_are_read_and_not_the_events_and_old_sums_go_when_nobody_can_be_reading_them(world):
    world.metrics(request_of(event(7, "a")), **ANY)
    roll(world)
    first = world.client.query("SELECT version FROM usage_rolled FINAL").first_row
    world.client.command("ALTER TABLE events DELETE WHERE 1", settings={"mutations_sync": 2})  # touches nothing
    assert totals(world, "usage_by_day") == [("acme", "llm.tokens.input", 1, 7)]
    assert rollups.wrong_days(world.client) == [("live", FIRST)]
    rollups.distrust(world.client, [("live", FIRST)])
    assert totals(world, "usage_by_day") == []
    world.metrics(request_of(event(3, "b")), **ANY)
    roll(world)
    assert totals(world, "usage_by_day") == [("acme", "llm.tokens.input", 1, 3)]
    versions = "SELECT DISTINCT version FROM usage_days"
    assert first in world.client.query(versions).result_rows
    rollups._forget(world.client, unread_s=0)
    now = "SELECT version FROM usage_rolled FINAL"
    assert world.client.query(versions).result_rows == world.client.query(now).result_rows


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("usage_days", "events"),
        pytest.param("usage_hours", "events", marks=pytest.mark.long),
        pytest.param("usage_conversations", "events", marks=pytest.mark.long),
        pytest.param("usage_delays", "events", marks=pytest.mark.long),
        ("usage_receipts", "counted"),
    ],
)
def test_verify_tells_of_sums_that_are_wrong_and_repair_has_them_read_no_more(world, table, column):
    world.metrics(request_of(event(7, "a", extra={"gen_ai.conversation.id": "talk"})), **ANY)
    roll(world)
    (found,) = world.client.query(CONVERSATIONS).result_rows
    assert found[:4] == ("talk", 7, 0, 1)

    def check(**how):
        return verify(world.journal, world.connect, world.client.database, lambda done, total: None, **how)

    assert not check().is_wrong
    world.client.command(f"ALTER TABLE {table} UPDATE {column} = 2 WHERE 1", settings={"mutations_sync": 2})
    told = check()
    assert (told.wrong_days, told.is_wrong) == (1, True)
    assert "the sums of 1 days were not those of their usage" in told.verdict()
    mended = check(repair=True)
    assert (mended.wrong_days, mended.is_wrong) == (1, False)
    assert_sums(world, acme=7)
    assert world.client.query(CONVERSATIONS).result_rows == [found]


def test_a_rebuild_empties_the_sums_and_what_they_said_of_names(world):
    world.metrics(request_of(event(7, "a")), **ANY)
    roll(world)
    assert world.rebuild().exchanged
    for table in schema._SUMS:
        assert world.client.query(f"SELECT count() FROM {table}").first_row == (0,), table
    assert_sums(world, acme=7)
    world.metrics(request_of(event(5, "b")), **ANY)  # what follows an insert was made anew
    roll(world)
    assert rolled_days(world) == [FIRST]
    assert_sums(world, acme=12)


def test_a_database_from_before_there_were_sums_has_all_of_its_days_summed(world):
    world.metrics(request_of(event(7, "a")), **ANY)
    for of in TOUCHING:
        world.client.command(f"DROP TABLE touch_{of} SYNC")
    world.client.command("DROP TABLE usage_touches SYNC")
    bring_from(world, 3)
    assert_sums(world, acme=7)
    roll(world)
    assert rolled_days(world) == [FIRST]
    assert_sums(world, acme=7)


def test_a_database_from_before_receipts_were_summed_has_its_days_summed_anew(world):
    world.metrics(request_of(event(7, "a")), **ANY)
    kept = world.client.query(KEPT).result_rows
    roll(world)
    for one in ("touch_points", "usage_delays", "usage_receipts"):
        world.client.command(f"DROP TABLE {one} SYNC")
    bring_from(world, 4)
    for _ in range(2):
        assert world.client.query(KEPT).result_rows == kept
        roll(world)
    assert rolled_days(world) == [FIRST]


def bring_from(world, version):
    """Up to date, as if the database were of that version."""
    world.client.command("TRUNCATE TABLE schema_migrations")
    earlier = f"INSERT INTO schema_migrations VALUES ('03_views.sql', 'earlier', {version}, '0.1', '', now64(6))"
    world.client.command(earlier)
    schema.migrate(world.client, world.client.database)


def test_the_command_says_how_many_days_it_summed_and_how_many_are_under_way(world, tmp_path, monkeypatch, capsys):
    world.metrics(request_of(event(7, "a")), **ANY)
    world.client.command("TRUNCATE TABLE usage_touches")
    world.client.command(
        "INSERT INTO usage_touches VALUES ('live', '2026-11-01', 1, now() - 1000), ('live', '2026-11-02', 1, now())"
    )
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_URL", world.url)
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_DATABASE", str(world.client.database))

    def call(*options):
        with pytest.raises(SystemExit) as ended:
            main(["warehouse", "rollup", "--data", str(tmp_path), *options])
        return ended.value.code or 0, capsys.readouterr().out

    assert call() == (0, "1 days summed, 1 under way: those are read event by event\n")
    assert json.loads(call("--json")[1]) == {"days": [], "unsettled": 1}
