"""Control totals: received = counted + suspended + set aside + duplicates, whatever is sent twice or replayed."""

from datetime import UTC, datetime
from decimal import Decimal

from collector_samples import RECEIVED_NS, event, record, request_of
from foreign_samples import CUMULATIVE, metrics_record, sum_of, tokens_of

from meterhouse_collector.foreign import rows_of
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.projector import Unreadable
from meterhouse_collector.segments import Position
from meterhouse_store import decided, decisions, rollups, sql, suspended
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

HOUR_NS = 3_600_000_000_000


def post(client, *records):
    Inbox(client).post(b"".join(records))
    Inbox(client).mark_conflicts(0, 2 * RECEIVED_NS)


def kept(client):
    """The same before and after days are summed."""
    columns = "toString(hour), toInt64(received), toInt64(counted), toInt64(suspended), toInt64(set_aside)"
    query = f"SELECT {columns}, toInt64(duplicates) FROM conservation ORDER BY credential_id, hour"
    rows = client.query(query).result_rows
    rollups.roll_up(client, settled_s=0)
    assert client.query(query).result_rows == rows
    return rows


def totals(client):
    query = """
        SELECT record_id, reason, toInt64(n), q FROM segment_totals FINAL
        ARRAY JOIN reasons AS reason, rows AS n, quantities AS q ORDER BY record_id, reason
    """
    return client.query(query).result_rows


def sample():
    """Hour 0: a counts; NaN is held. Hour 1: a again, b, and a with another quantity."""
    return (
        record(request_of(event(7, "a"), event(float("nan"), "x"), value=float("nan")), 1),
        record(request_of(event(7, "a"), event(5, "b")), 2, received_ns=RECEIVED_NS + HOUR_NS),
        record(request_of(event(9, "a")), 3, received_ns=RECEIVED_NS + HOUR_NS + 5),
    )


def test_what_was_received_is_counted_suspended_or_a_duplicate_in_each_hour(database):
    post(database, *sample())
    assert kept(database) == [("2026-11-01 00:00:00", 2, 1, 1, 0, 0), ("2026-11-01 01:00:00", 3, 1, 1, 0, 1)]
    number = "0" * 31
    assert totals(database) == [
        (f"{number}1", "", 1, Decimal(7)),
        (f"{number}1", "bad_quantity", 1, Decimal(0)),
        (f"{number}2", "", 2, Decimal(12)),
        (f"{number}3", "", 1, Decimal(9)),
    ]


def test_a_replay_in_other_ranges_and_a_merge_change_no_total(database):
    post(database, *sample())
    before = kept(database), totals(database)
    for one in reversed(sample()):
        post(database, one)
    post(database, *sample()[1:])
    database.command("OPTIMIZE TABLE events FINAL")
    assert (kept(database), totals(database)) == before


def test_a_decision_moves_a_row_and_receives_nothing(database, tmp_path):
    post(database, *sample())
    engine = sql.open_engine(Settings(data=tmp_path))
    rows = suspended.find(database, "live", Filter(reason="bad_quantity"), 10)
    drafts = suspended.discard(rows).drafts
    decisions.record(engine, drafts, why="no use", who="ann", clock=lambda: datetime(2026, 11, 2, tzinfo=UTC))
    decided.apply(engine, database)
    engine.dispose()
    assert kept(database) == [("2026-11-01 00:00:00", 2, 1, 0, 1, 0), ("2026-11-01 01:00:00", 3, 1, 1, 0, 1)]


def test_a_record_of_50000_events_beside_others_is_counted_whole_however_often_it_is_posted(database):
    large = [record(request_of(*(event(1, f"{n}-{i}") for i in range(50_000))), n) for n in (1, 2)]
    small = [record(request_of(event(1, f"s{n}")), n) for n in range(3, 300)]
    for records in ([*small, *large], large, [large[1], *small]):
        post(database, *records)
    found = totals(database)
    assert [row[2] for row in found] == [50_000, 50_000] + 297 * [1]
    assert kept(database) == [("2026-11-01 00:00:00", 100_297, 100_297, 0, 0, 0)]


def test_records_that_cannot_be_decoded_are_counted_each(database):
    held = [
        Unreadable(None, Position("a-1.seg", at), b"\xff" * (at + 1), RECEIVED_NS, "damaged record") for at in range(2)
    ]
    for _ in range(2):
        Inbox(database).hold(held)
    assert kept(database) == [("2026-11-01 00:00:00", 2, 0, 2, 0, 0)]


def test_points_of_other_sources_are_counted_whole_also_where_their_increases_are_decided_about(database, tmp_path):
    deltas = sum_of(*((n, 1) for n in range(1, 901)), name="pages.read")
    totals_of_two = tokens_of((1, 10), (2, 5), kind=CUMULATIVE, customer=None)
    for _ in range(2):
        for number, request in enumerate((deltas, totals_of_two), 1):
            Inbox(database).add(rows_of(metrics_record(request, number)))
    expected = [("2026-11-01 00:00:00", 902, 900, 2, 0, 0)]
    assert kept(database) == expected
    engine = sql.open_engine(Settings(data=tmp_path))
    held = suspended.find(database, "live", Filter(reason="customer_missing"), 10)
    drafts = suspended.assign(held, "acme", {}).drafts
    assert drafts
    decisions.record(engine, drafts, why="known", who="ann", clock=lambda: datetime(2026, 11, 2, tzinfo=UTC))
    decided.apply(engine, database)
    engine.dispose()
    assert kept(database) == expected
