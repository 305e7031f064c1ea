"""Increases of running totals are stored where points are: the same whatever the way points came, for the same cost."""

import random
from dataclasses import replace
from decimal import Decimal

import pytest
from collector_samples import RECEIVED_NS
from foreign_samples import SECOND_NS, START_NS, metrics_record, total_of
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse_collector.foreign import Rows, counting, increases, rows_of
from meterhouse_collector.foreign.rows import CumulativePoint
from meterhouse_collector.inbox import Inbox
from meterhouse_store import schema

SEEN = "namespace, customer_id, meter, event_id, event_time, quantity, raw_value, reason, received_at, record_id"


def point(second, value, *, series="s", customer="acme", meter="pages", received=0, reason="", factor="1", **more):
    received_ns = RECEIVED_NS + received
    rank = ~received_ns & (2**64 - 1)
    return CumulativePoint(
        **{
            "namespace": "live", "customer_id": customer, "meter": meter, "event_id": f"otel-{series}-{second}",
            "event_time": START_NS + second * SECOND_NS, "quantity": Decimal(0), "raw_value": "", "reason": reason,
            "source": "otel.sum", "credential_id": "key-1", "received_at": received_ns, "segment": "a-1.seg",
            "record_id": f"{received:032x}", "first": rank >> 1 if reason else rank, "series": series, "part": 0,
            "start_time": START_NS, "value": Decimal(value), "factor": Decimal(factor), "from_zero": True,
        }
        | more
    )  # fmt: skip


def add(client, *points):
    """Points of one insert."""
    Inbox(client).add(Rows(points=list(points)))


def shown(client):
    columns = "customer_id, quantity, reason"
    return client.query(f"SELECT {columns} FROM increases ORDER BY event_time, event_id, customer_id").result_rows


def by_windows(client):
    """What the points give by SQL: the query that made increases of the points when nothing was stored."""
    (script,) = (one for one in schema.scripts(client.database) if one.name == "02_increases.sql")
    (statement,) = (one for one in script.statements if "INSERT INTO tests.counted_increases" in one)
    return statement.partition("INSERT INTO tests.counted_increases\n")[2]


def differences(client):
    stored = f"SELECT {SEEN} FROM increases"
    told = f"SELECT {SEEN} FROM ({by_windows(client)}) WHERE is_row"
    return client.query(
        f"SELECT {SEEN}, groupArray(side) FROM (SELECT 'stored' AS side, * FROM ({stored}) "
        f"UNION ALL SELECT 'by windows', * FROM ({told})) GROUP BY {SEEN} HAVING count() != 2"
    ).result_rows


def point_of_a_record(second, value, record, reason):
    """What was received at one time was judged by one mapping; of suspended rows two nanoseconds are one time."""
    customer, factor = ("acme", "1") if record % 2 else ("globex", "-0.5")
    return point(second, value, customer=customer, factor=factor, received=2 * record, reason=reason)


points_of_a_sequence = st.lists(
    st.builds(
        point_of_a_record,
        st.integers(1, 6),
        st.integers(0, 30),
        st.integers(0, 9),
        st.sampled_from(["", "customer_forbidden"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(found=points_of_a_sequence, cut=st.integers(1, 6))
def test_a_sequence_counted_in_two_parts_gives_the_rows_and_the_end_of_one(found, cut):
    whole = increases.ordered(found)
    at = START_NS + cut * SECOND_NS
    early, end = increases.count(None, [one for one in whole if one.event_time <= at])
    late, end = increases.count(end, [one for one in whole if one.event_time > at])
    assert (early + late, end) == increases.count(None, whole)


@settings(max_examples=150, deadline=None)
@given(found=points_of_a_sequence, more=points_of_a_sequence)
def test_rows_that_more_points_went_into_replace_those_of_fewer(found, more):
    """Stored one after the other in any order, what remains is what the larger set gives alone."""
    claims = {(one.customer_id, one.meter) for one in found + more}
    fewer = increases.count(None, increases.ordered(found), claims)[0]
    all_of_them = increases.count(None, increases.ordered(found + more), claims)[0]
    for order in (fewer + all_of_them, all_of_them + fewer):
        kept = {}
        for row in order:
            name = (row.customer_id, row.event_time, row.event_id)
            if name not in kept or row.version >= kept[name].version:
                kept[name] = row
        expected = {(row.customer_id, row.event_id): row.quantity for row in all_of_them if row.is_row}
        assert {(row.customer_id, row.event_id): row.quantity for row in kept.values() if row.is_row} == expected


def random_program(chance):
    """Points of three sequences, some of them falls, conflicts, copies, forbidden, or of another customer and meter."""
    found = []
    for series in "abc":
        total, customer, meter = 0, "acme", "pages"
        for second in range(1, 15):
            total = chance.choice([total, total + 1, total + 7, total + 1000, total // 2])
            if chance.random() < 0.1:
                customer, meter = chance.choice([("globex", "pages"), ("acme", "sheets")])
            reason = "customer_forbidden" if chance.random() < 0.1 else ""
            told = point(second, total, series=series, customer=customer, meter=meter, reason=reason)
            told = replace(told, factor=chance.choice([Decimal(1), Decimal("-0.001")]))
            found.append(told)
            if chance.random() < 0.15:
                found.append(replace(told, value=told.value + chance.choice([1, 5])))
            if chance.random() < 0.15:
                found.append(replace(told, customer_id="initech", reason=""))
    received = list(range(len(found)))
    chance.shuffle(received)
    found = [
        replace(
            one,
            received_at=RECEIVED_NS + n,
            record_id=f"{n:032x}",
            first=(~(RECEIVED_NS + n) & (2**64 - 1)) >> bool(one.reason),
        )
        for n, one in zip(received, found, strict=True)
    ]
    if chance.random() < 0.7:
        chance.shuffle(found)
    return found


class Stopped(Exception):
    """The process ended here."""


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_order_the_cuts_and_the_crashes_it_is_what_the_points_give(database, seed, monkeypatch):
    chance = random.Random(seed)
    found = random_program(chance)
    while found:
        size = chance.choice([1, 5, 40])
        some, found = found[:size], found[size:]
        if chance.random() < 0.4:
            place = chance.choice(["_known", "store", "_store_ends"])
            with monkeypatch.context() as stopped, pytest.raises(Stopped):
                stopped.setattr(counting, place, lambda *_: (_ for _ in ()).throw(Stopped))
                add(database, *some)
        add(database, *some)
    assert differences(database) == []
    database.command("OPTIMIZE TABLE counted_increases FINAL")
    database.command("OPTIMIZE TABLE cumulative_points FINAL")
    assert differences(database) == []


def test_a_point_of_another_customer_that_stands_instead_leaves_no_row_of_the_first(database):
    add(database, point(1, 10, customer="globex", received=2))
    database.command("OPTIMIZE TABLE cumulative_points FINAL")
    add(database, point(1, 10, customer="acme", received=1))
    assert shown(database) == [("acme", 10, "")]
    add(database, point(1, 12, customer="initech", received=0))
    assert shown(database) == [("initech", 12, ""), ("acme", -2, "cumulative_conflict")]


def test_a_total_that_is_unchanged_becomes_an_increase_when_an_earlier_point_goes_and_back(database):
    add(database, point(1, 10), point(3, 20))
    assert shown(database) == [("acme", 10, ""), ("acme", 10, "")]
    add(database, point(2, 20))
    assert shown(database) == [("acme", 10, ""), ("acme", 10, "")]
    assert differences(database) == []


def test_points_of_two_collectors_that_do_not_see_each_other_are_all_counted(database, monkeypatch):
    """The one is slow: it asked before the other one's point was stored, and writes after it."""
    add(database, point(1, 10))
    asked = counting._known

    def slow(client, sequences):
        known = asked(client, sequences)
        monkeypatch.setattr(counting, "_known", asked)
        add(client, point(2, 50, received=1))  # a higher total of an earlier time
        return known

    monkeypatch.setattr(counting, "_known", slow)
    add(database, point(3, 40, received=2))
    assert shown(database) == [("acme", 10, ""), ("acme", 40, ""), ("acme", 40, "cumulative_fall")]
    add(database, point(4, 60, received=3))
    assert differences(database) == []


def read_by(client, monkeypatch, *points):
    """The rows that are read by the queries of one insert."""
    read, ask = [], type(client).query

    def query(self, *args, **more):
        found = ask(self, *args, **more)
        read.append(int(found.summary["read_rows"]))
        return found

    with monkeypatch.context() as watched:
        watched.setattr(type(client), "query", query)
        add(client, *points)
    assert read
    return sum(read)


def test_the_next_point_costs_the_same_however_many_there_were(database, monkeypatch):
    add(database, *(point(second, second) for second in range(1, 11)))
    add(database, *(point(second, second, series="long") for second in range(1, 3001)))
    short = read_by(database, monkeypatch, point(11, 11, received=1))
    long = read_by(database, monkeypatch, point(3001, 3001, series="long", received=1))
    assert short <= 10 and long <= 10
    assert read_by(database, monkeypatch, point(1, 1, series="long", received=2)) > 3000  # a copy: all are counted anew


def test_a_question_about_one_customer_reads_the_increases_of_that_customer(database):
    database.command(
        "INSERT INTO counted_increases (namespace, customer_id, meter, event_time, event_id, quantity, is_row) "
        "SELECT 'live', concat('customer-', toString(number % 20)), 'pages', "
        "toDateTime64('2026-11-01 00:00:00', 9, 'UTC') + number, toString(number), 1, true FROM numbers(200000)"
    )
    for customer in ("customer_id", "billed_customer_id"):
        found = database.query(
            f"SELECT toInt64(sum(quantity)) FROM usage WHERE namespace = 'live' AND {customer} = 'customer-7'"
        )
        assert found.result_rows == [(10_000,)]
        assert int(found.summary["read_rows"]) < 30_000


def test_a_database_of_before_increases_were_stored_gets_them_when_it_is_migrated(database):
    add(database, point(1, 10), point(2, 25), point(3, 5))
    before = shown(database)
    assert len(before) == 3
    for name in ("VIEW count_sequences", "TABLE counted_increases", "TABLE sequence_counts", "TABLE sequence_ends"):
        database.command(f"DROP {name} SYNC")
    database.command("ALTER TABLE schema_migrations UPDATE version = 2 WHERE true", settings={"mutations_sync": 2})
    schema.migrate(database, database.database)
    assert shown(database) == before
    schema.migrate(database, database.database)
    assert shown(database) == before
    add(database, point(4, 30, received=1))
    assert shown(database) == [*before, ("acme", 5, "")]
    assert differences(database) == []


def test_requests_that_a_collector_takes_are_counted_as_their_points(database):
    Inbox(database).add(rows_of(metrics_record(total_of((1, 10), (2, 12)))))
    assert differences(database) == []
    assert shown(database) == [("acme", 10, ""), ("acme", 2, "")]
