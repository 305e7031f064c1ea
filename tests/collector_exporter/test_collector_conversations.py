"""Events that count once whenever they are told: conversations, and whatever a host names itself."""

from decimal import Decimal

import pytest
from collector_samples import DAY_NS, RECEIVED_NS, event, record, request_of

from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projector import Projector
from meterhouse_collector.records import frames
from meterhouse_collector.segments import Position
from meterhouse_store import schema

SEGMENT = "a-00000001.seg"
CONVERSATIONS = "meterhouse.agent.conversations"
JANUARY = RECEIVED_NS - 3 * DAY_NS  # 2026-10-29
ONCE = {"meterhouse.once": "true"}


def once(quantity=1, event_id="c-1", time_ns=JANUARY, **extra):
    return event(quantity, event_id, time_ns, ONCE | extra)


def project(client, *records, range_bytes=2**20):
    data = b"".join(records)

    def read(position, until, limit):
        rest = data[position.offset : until.offset]
        ends = [frame.end for frame in frames(rest, SEGMENT)]
        end = max((end for end in ends if end <= limit), default=ends[0] if ends else 0)
        return rest[:end], Position(SEGMENT, position.offset + end)

    one = Projector(
        "collector-1",
        Inbox(client),
        horizon=lambda: Horizon(Position(SEGMENT, len(data)), RECEIVED_NS + DAY_NS),
        read=read,
        range_bytes=range_bytes,
    )
    while one.step():
        pass


def counted(client, where="1"):
    columns = "meter, customer_id, event_id, toString(toDate(event_time)), toInt64(quantity)"
    return client.query(f"SELECT {columns} FROM usage WHERE {where} ORDER BY ALL").result_rows


def suspended(client):
    return client.query(
        "SELECT reason, event_id, toInt64(quantity), toString(toDate(event_time)) FROM suspense"
    ).result_rows


def three_processes():
    """One conversation told by three processes on three days, received in this order, the last a re-sent copy."""
    return [
        record(request_of(once(), name=CONVERSATIONS), 1, received_ns=RECEIVED_NS + 1),
        record(request_of(once(time_ns=RECEIVED_NS + 5), name=CONVERSATIONS), 2, received_ns=RECEIVED_NS + 10),
        record(
            request_of(once(time_ns=RECEIVED_NS + DAY_NS), name=CONVERSATIONS), 3, received_ns=RECEIVED_NS + 2 * DAY_NS
        ),
        record(request_of(once(), name=CONVERSATIONS), 4, received_ns=RECEIVED_NS + 3 * DAY_NS),
    ]


@pytest.mark.parametrize("range_bytes", [2**20, 1], ids=["one insert", "an insert each"])
def test_a_conversation_told_on_three_days_counts_once_in_its_first_period(database, range_bytes):
    project(database, *three_processes(), range_bytes=range_bytes)
    assert counted(database) == [("agent.conversations", "acme", "c-1", "2026-10-29", 1)]
    assert suspended(database) == []
    october = "event_time >= '2026-10-01' AND event_time < '2026-11-01'"
    november = "event_time >= '2026-11-01' AND event_time < '2026-12-01'"
    assert len(counted(database, october)) == 1 and counted(database, november) == []


def test_another_order_of_inserts_and_merges_gives_the_same_rows(database):
    for one in reversed(three_processes()):
        Inbox(database).post(one)
    before = counted(database)
    database.command("OPTIMIZE TABLE events FINAL")
    assert counted(database) == before == [("agent.conversations", "acme", "c-1", "2026-10-29", 1)]


def test_the_same_id_of_another_customer_or_meter_is_another_event(database):
    project(
        database,
        record(request_of(once(), name=CONVERSATIONS), 1),
        record(request_of(once(), name=CONVERSATIONS, point={"customer.id": "globex"}), 2),
        record(request_of(once(), name="meterhouse.pages"), 3),
    )
    assert [row[:2] for row in counted(database)] == [
        ("agent.conversations", "acme"),
        ("agent.conversations", "globex"),
        ("pages", "acme"),
    ]


def test_an_id_of_the_hosts_told_again_with_another_quantity_is_a_conflict(database):
    project(
        database,
        record(request_of(once(3, "job-42"), name="meterhouse.pages"), 1, received_ns=RECEIVED_NS + 1),
        record(
            request_of(once(4, "job-42", RECEIVED_NS), name="meterhouse.pages"), 2, received_ns=RECEIVED_NS + DAY_NS
        ),
    )
    assert counted(database) == [("pages", "acme", "job-42", "2026-10-29", 3)]
    assert suspended(database) == [("conflict", "job-42", 4, "2026-11-01")]


def test_a_suspended_copy_keeps_its_time_and_displaces_no_copy_that_counts(database):
    early = record(request_of(once(), name=CONVERSATIONS), 1, received_ns=RECEIVED_NS, allowed=["globex"])
    project(database, early)
    assert suspended(database) == [("customer_forbidden", "c-1", 1, "2026-10-29")]
    Inbox(database).post(
        record(request_of(once(time_ns=RECEIVED_NS), name=CONVERSATIONS), 2, received_ns=RECEIVED_NS + 9)
    )
    assert counted(database) == [("agent.conversations", "acme", "c-1", "2026-11-01", 1)]


def test_without_the_mark_the_same_id_at_another_time_is_another_event(database):
    project(
        database,
        record(request_of(event(3, "job-42", JANUARY), event(3, "job-42", RECEIVED_NS), name="meterhouse.pages"), 1),
    )
    assert [row[3] for row in counted(database)] == ["2026-10-29", "2026-11-01"]


def test_the_mark_is_no_custom_dimension(database):
    project(database, record(request_of(once(team="blue"), name="meterhouse.pages"), 1))
    assert database.query("SELECT attributes FROM usage").first_row == ({"team": "blue"},)


def test_a_database_of_an_earlier_version_learns_the_mark(database):
    name = database.database
    database.command("ALTER TABLE events DROP COLUMN once_time")
    old = "SELECT 'live' AS namespace, 'old' AS customer_id, received_at_unix_nano AS first FROM inbox"
    database.command("DROP VIEW explode SYNC")
    database.command(f"CREATE MATERIALIZED VIEW explode TO {name}.events AS {old}")
    schema.migrate(database, name)
    project(database, *three_processes())
    assert counted(database) == [("agent.conversations", "acme", "c-1", "2026-10-29", 1)]
    assert database.query("SELECT sum(quantity) FROM usage").first_row == (Decimal(1),)
