"""`warehouse verify` finds what the warehouse lacks of the journal, whoever took it, and mends it."""

from datetime import UTC, datetime

import pytest
from collector_samples import RECEIVED_NS, event, record, request_of
from foreign_samples import call, metrics_record, span, total_of, traces_record

from meterhouse_collector import segments
from meterhouse_collector.foreign import rows_of
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projector import Projector
from meterhouse_collector.records import encode
from meterhouse_collector.verify import CannotVerify, verify
from meterhouse_store import decided, decisions, sql, suspended, warehouse
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

ID = "c0ffee00c0ffee00c0ffee00c0ffee00"
FIRST, SECOND = "c0ffee00-00000001-00000001.seg", "c0ffee00-00000002-00000002.seg"


@pytest.fixture
def journal(tmp_path):
    """Two segments: a and b; then a again, c, and NaN. Among them a copy that is in conflict."""
    directory = tmp_path / "journal"
    directory.mkdir()
    (directory / "collector_id").write_text(ID)
    hold = request_of(event(float("nan"), "x"), value=float("nan"))
    (directory / FIRST).write_bytes(
        record(request_of(event(7, "a")), 1, segment=FIRST)
        + record(request_of(event(5, "b")), 2, segment=FIRST, received_ns=RECEIVED_NS + 1)
    )
    (directory / SECOND).write_bytes(
        record(request_of(event(7, "a"), event(3, "c")), 3, segment=SECOND, received_ns=RECEIVED_NS + 2)
        + record(request_of(event(9, "b")), 4, segment=SECOND, received_ns=RECEIVED_NS + 3)
        + record(hold, 5, segment=SECOND, received_ns=RECEIVED_NS + 4)
    )
    return directory


def project(client, journal):
    projector = Projector(
        ID,
        Inbox(client),
        horizon=lambda: Horizon(segments.end(journal), RECEIVED_NS + 9),
        read=lambda position, until, limit: segments.read(journal, position, until, limit),
    )
    while projector.step():
        pass


@pytest.fixture
def live(database, journal):
    project(database, journal)
    return database


@pytest.fixture
def check(live, journal, collector_warehouse):
    def connect(name):
        return warehouse.connect(Settings(warehouse_url=collector_warehouse), timeout_s=30, database=name)

    return lambda **how: verify(journal, connect, live.database, lambda done, total: None, **how)


def usage(client):
    return client.query("SELECT event_id, toInt64(quantity) FROM usage ORDER BY event_id").result_rows


def test_a_warehouse_that_has_all_of_the_journal_agrees_with_it(check):
    found = check()
    assert (found.ranges, found.differences, found.is_wrong) == (2, [], False)
    assert found.verdict().endswith("the warehouse agrees with it")


@pytest.mark.parametrize("asked", [pytest.param("told", marks=pytest.mark.long), "mended"])
def test_what_was_taken_from_the_warehouse_is_told_and_mended(live, check, asked):
    for damage in (
        "DELETE FROM events WHERE event_id = 'c'",
        "ALTER TABLE events DROP PARTITION '202611'",
        "TRUNCATE TABLE events",
        "ALTER TABLE events UPDATE reason = 'bad_quantity' WHERE event_id = 'c'",
        "TRUNCATE TABLE segment_totals",
    ):
        live.command(damage, settings={"mutations_sync": 2})
        if asked == "told":  # and stays as it is: each adds to those before
            assert check().is_wrong, damage
            continue
        found = check(repair=True)
        assert found.differences and not found.is_wrong, damage
        assert usage(live) == [("a", 7), ("b", 5), ("c", 3)], damage
        conservation = "SELECT toInt64(sum(received)), toInt64(sum(duplicates)) FROM conservation"
        assert live.query(conservation).result_rows == [(6, 1)], damage
    assert asked == "told" or not check().differences


def test_a_conflict_that_was_lost_is_told_and_mended(live, check):
    live.command("TRUNCATE TABLE conflicts")
    assert usage(live) == [("a", 7), ("b", 5), ("b", 9), ("c", 3)]
    assert check().is_wrong
    assert not check(repair=True).is_wrong
    assert usage(live) == [("a", 7), ("b", 5), ("c", 3)]
    assert not check().differences


def test_what_conflicts_are_found_by_is_told_and_mended(live, check):
    live.command("TRUNCATE TABLE identities")
    assert check().is_wrong
    assert not check(repair=True).is_wrong
    assert not check().differences


def test_a_verdict_about_a_span_that_was_lost_is_told_and_mended(journal, check, live):
    spans = [encode(traces_record(span(1, more=call(9)), 6)), encode(traces_record(span(2, parent=1, more=call(8)), 7))]
    with open(journal / SECOND, "ab") as file:
        file.write(b"".join(spans))
    project(live, journal)
    of_spans = "SELECT toInt64(quantity) FROM usage WHERE source = 'otel.span' AND meter = 'llm.tokens.input'"
    assert live.query(of_spans).result_rows == [(8,)]
    assert not check().is_wrong
    live.command("DELETE FROM events WHERE reason = 'twin'", settings={"mutations_sync": 2})
    assert check().is_wrong
    assert not check(repair=True).is_wrong
    assert live.query(of_spans).result_rows == [(8,)]


def test_a_segment_that_cannot_be_read_is_told_and_the_others_are_compared(live, check, journal):
    (journal / FIRST).unlink()
    (journal / f"{FIRST}.zst").write_bytes(b"no table of blocks")
    live.command("DELETE FROM events WHERE event_id = 'c'", settings={"mutations_sync": 2})
    found = check(repair=True)
    assert found.is_wrong and FIRST in found.verdict() and "is damaged" in found.verdict()
    assert [(one.segment, one.mended) for one in found.differences] == [(SECOND, True)]


def test_it_says_where_and_how_much(live, check):
    live.command("DELETE FROM events WHERE event_id IN ('c', 'x')", settings={"mutations_sync": 2})
    (found,) = check().differences
    assert (found.segment, found.start, found.missing, found.surplus, found.totals) == (SECOND, 0, 2, 0, 0)
    assert str(found).startswith(f"{SECOND}, bytes 0 to ") and str(found).endswith(": 2 rows are missing or changed")


def test_totals_that_were_changed_are_told_and_mended(live, check):
    nine = "SELECT * REPLACE ([toUInt64(9)] AS rows) FROM segment_totals WHERE record_id LIKE '%2'"
    live.command(f"INSERT INTO segment_totals {nine}")
    (found,) = check(repair=True).differences
    assert (found.segment, found.missing, found.totals, found.mended) == (FIRST, 0, 1, True)
    assert not check().differences


def test_a_row_that_no_journal_has_is_told_and_left_to_a_rebuild(live, check):
    live.command(
        "INSERT INTO events SELECT * REPLACE (toDecimal128(1000, 9) AS quantity, 'forged' AS event_id) FROM events "
        "WHERE events.event_id = 'c'"
    )
    (found,) = check(repair=True).differences
    assert (found.missing, found.surplus, found.mended) == (0, 1, False)


def test_one_segment_can_be_verified_alone(live, check):
    live.command("DELETE FROM events WHERE event_id = 'c'", settings={"mutations_sync": 2})
    assert check(segment=FIRST).differences == []
    assert len(check(segment=SECOND).differences) == 1
    with pytest.raises(CannotVerify, match="no segment nothing"):
        check(segment="nothing")


def test_a_decision_that_its_row_has_lost_is_told_and_applied_again(live, check, tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    drafts = suspended.discard(suspended.find(live, "live", Filter(events=("x",)), 10)).drafts
    decisions.record(engine, drafts, why="no use", who="ann", clock=lambda: datetime(2026, 11, 2, tzinfo=UTC))
    decided.apply(engine, live)
    engine.dispose()
    assert not check().is_wrong
    live.command("DELETE FROM events WHERE event_id = 'x'", settings={"mutations_sync": 2})
    assert (check().lost_decisions, check().is_wrong) == (1, True)
    mended = check(repair=True)
    assert (mended.lost_decisions, mended.decisions_mended, mended.is_wrong) == (1, True, False)
    assert live.query("SELECT event_id, reason FROM set_aside").result_rows == [("x", "discarded")]


def test_without_a_journal_it_says_where_to_run_it(tmp_path):
    with pytest.raises(CannotVerify, match="run this where the collector runs"):
        verify(tmp_path, lambda name: None, "x", lambda done, total: None)


@pytest.fixture
def running_totals(journal):
    """The second segment has totals 10, 12, 12 of one source, too."""
    with (journal / SECOND).open("ab") as file:
        told = total_of((1, 10), (2, 12), (3, 12))
        file.write(encode(metrics_record(told, 6, received_ns=RECEIVED_NS + 5)))


@pytest.mark.long
def test_increases_that_are_not_what_their_points_give_are_told_and_mended(running_totals, live, check):
    query = "SELECT customer_id, toInt64(quantity) FROM usage WHERE meter = 'pages.read' ORDER BY event_time"
    assert live.query(query).result_rows == [("acme", 10), ("acme", 2)]
    assert check().wrong_increases == 0
    for damage in (
        "DELETE FROM counted_increases WHERE quantity = 2",
        "TRUNCATE TABLE counted_increases",
        "ALTER TABLE counted_increases UPDATE quantity = 1000 WHERE quantity = 2",
        "INSERT INTO counted_increases SELECT * REPLACE (1000 AS quantity, version + 1 AS version) "
        "FROM counted_increases WHERE counted_increases.quantity = 2",
        "INSERT INTO counted_increases SELECT * REPLACE ('globex' AS customer_id) FROM counted_increases",
    ):
        live.command(damage, settings={"mutations_sync": 2})
        found = check(repair=True)
        assert found.wrong_increases in (1, 2) and found.increases_mended, damage
        assert "increases of running totals were not what their points give and are now" in found.verdict()
        assert live.query(query).result_rows == [("acme", 10), ("acme", 2)], damage
    assert check().wrong_increases == 0
    Inbox(live).add(rows_of(metrics_record(total_of((4, 15)), 7, received_ns=RECEIVED_NS + 9)))
    assert live.query(query).result_rows == [("acme", 10), ("acme", 2), ("acme", 3)]


def test_wrong_increases_are_told_before_they_are_mended(running_totals, live, check):
    live.command("TRUNCATE TABLE counted_increases")
    found = check()
    assert found.wrong_increases == 2 and found.is_wrong and "increases of running totals" in found.verdict()
