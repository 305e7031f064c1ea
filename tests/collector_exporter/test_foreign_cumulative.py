"""Running totals in the warehouse: their increases are exact whatever order, copies, restarts and gaps there are."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from collector_samples import CUMULATIVE, RECEIVED_NS, event, record, request_of
from foreign_samples import SECOND_NS, START_NS, metrics_record, sum_of, tokens_of, total_of

from meterhouse_collector.foreign import Rows, rows_of
from meterhouse_collector.foreign.mapping import parse
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projector import Projector
from meterhouse_collector.records import encode
from meterhouse_collector.segments import Position
from meterhouse_store import completeness, decided, decisions, sql, suspended
from meterhouse_store.settings import Settings


def add(client, *requests, first=0, **more):
    """Each request as a record, received one after the other."""
    store = Inbox(client)
    for number, request in enumerate(requests, first):
        store.add(rows_of(metrics_record(request, number, received_ns=RECEIVED_NS + number, **more)))


def add_at_once(client, *requests, first=0, **more):
    """The same in one insert, as the projector does."""
    rows = Rows()
    for number, request in enumerate(requests, first):
        rows.extend(rows_of(metrics_record(request, number, received_ns=RECEIVED_NS + number, **more)))
    Inbox(client).add(rows)


def used(client, columns="second, quantity"):
    second = f"intDiv(toUnixTimestamp64Nano(event_time) - {START_NS}, {SECOND_NS}) AS second"
    return client.query(
        f"SELECT {columns} FROM (SELECT *, {second} FROM usage) ORDER BY second, meter, quantity"
    ).result_rows


def held(client, columns="reason, quantity, raw_value"):
    return client.query(f"SELECT {columns} FROM suspense ORDER BY event_time, quantity").result_rows


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_a_point_that_comes_late_is_put_in_its_place(database, order):
    points = [(1, 10), (2, 20), (3, 30)]
    add(database, *(total_of(points[at]) for at in order))
    assert used(database) == [(1, 10), (2, 10), (3, 10)]
    assert held(database) == []


def test_copies_count_once_and_an_unchanged_total_is_no_row(database):
    add(database, total_of((1, 10)), total_of((1, 10), (2, 10), (3, 14)), total_of((3, 14)))
    assert used(database) == [(1, 10), (3, 4)]


def test_a_gap_is_covered_by_the_next_point(database):
    add(database, total_of((1, 10)), total_of((500, 60)))
    assert used(database) == [(1, 10), (500, 50)]


def test_a_new_start_begins_again_from_nought(database):
    add(database, total_of((1, 10), (2, 25)), total_of((4, 7), (5, 9), start_ns=START_NS + 3 * SECOND_NS))
    assert used(database) == [(1, 10), (2, 15), (4, 7), (5, 2)]


def test_several_writers_of_the_same_attributes_are_kept_apart_by_their_starts(database):
    one = total_of((1, 10), (3, 30))
    other = total_of((2, 5), (3, 6), start_ns=START_NS + 1)
    add(database, one, other)
    assert used(database) == [(1, 10), (2, 5), (3, 1), (3, 20)]


def test_what_was_counted_before_the_key_was_made_is_the_baseline(database):
    add(database, total_of((1, 1000), (2, 1010)), valid_from_ns=START_NS + 1)
    assert used(database) == [(2, 10)]
    assert held(database) == []


@pytest.mark.parametrize("start_ns", [0, START_NS + SECOND_NS], ids=["no start", "no duration"])
def test_a_total_of_unknown_start_begins_with_a_baseline(database, start_ns):
    add(database, total_of((1, 1000), (2, 1010), start_ns=start_ns))
    assert used(database) == [(2, 10)]


def test_a_fall_without_a_new_start_is_suspended_with_what_was_counted_since(database):
    add(database, total_of((1, 10), (2, 100), (3, 5), (4, 8), (5, 120)))
    assert used(database) == [(1, 10), (2, 90), (5, 20)]
    assert held(database) == [("cumulative_fall", 5, "5 after 100"), ("cumulative_fall", 3, "8 after 100")]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_totals_at_one_time_the_one_received_first_stands(database, order):
    requests = total_of((1, 10), (2, 20)), total_of((2, 25))
    store = Inbox(database)
    for number in order:
        record_ = metrics_record(requests[number], number, received_ns=RECEIVED_NS + number)
        store.add(rows_of(record_))
    add(database, total_of((3, 30)), first=5)
    assert used(database) == [(1, 10), (2, 10), (3, 10)]
    assert held(database) == [("cumulative_conflict", 5, "25 instead of 20")]


def test_what_a_key_may_not_report_stays_in_suspense_when_it_may_later(database):
    add(database, total_of((1, 10), (2, 25)), allowed=["globex"])
    add(database, total_of((3, 40)), first=2)
    assert used(database) == [(3, 15)]
    assert held(database, "reason, quantity") == [("customer_forbidden", 10), ("customer_forbidden", 15)]


def test_a_forbidden_copy_does_not_displace_one_that_counts(database):
    store = Inbox(database)
    store.add(rows_of(metrics_record(total_of((1, 10)), 1, allowed=["globex"])))
    store.add(rows_of(metrics_record(total_of((1, 10)), 2, received_ns=RECEIVED_NS + 1)))
    database.command("OPTIMIZE TABLE cumulative_points FINAL")
    assert used(database) == [(1, 10)]


def test_a_metric_that_is_mapped_later_goes_on_where_it_was(database):
    rule = parse("metrics:\n  - {metric: pages.read, meter: pages, scale: '0.5'}", "m").for_record(["pages.read"])
    add(database, total_of((1, 10), (2, 20)))
    add(database, total_of((3, 40)), first=1, mapping=rule)
    assert used(database, "second, meter, quantity") == [(1, "pages.read", 10), (2, "pages.read", 10), (3, "pages", 10)]


def test_a_bad_total_is_suspended_and_the_next_one_covers_it(database):
    add(database, total_of((1, 10), (2, float("nan")), (3, 30)))
    assert used(database) == [(1, 10), (3, 20)]
    assert held(database) == [("bad_quantity", 0, "nan")]


def test_totals_of_doubles_add_up_without_noise(database):
    total, points = 0.0, []
    for second in range(1, 101):
        total += 0.1
        points.append((second, total))
    add(database, total_of(*points))
    assert database.query("SELECT count(), sum(quantity) FROM usage").result_rows == [(100, Decimal(10))]


@pytest.mark.parametrize("exponential", [False, True])
def test_cumulative_token_histograms_count_their_increases(database, exponential):
    add(database, tokens_of((1, 100.0), (2, 150.0), kind=CUMULATIVE, exponential=exponential))
    assert used(database, "second, meter, quantity") == [(1, "llm.tokens.input", 100), (2, "llm.tokens.input", 50)]


def test_cumulative_parts_of_tokens_are_taken_out_of_what_contains_them(database):
    prefix = "gen_ai.client.inference.usage."
    add(
        database,
        total_of((1, 60), (2, 90), name=prefix + "cache_read.input_tokens"),
        total_of((1, 100), (2, 180), name=prefix + "input_tokens"),
    )
    query = "SELECT meter, sum(quantity) FROM usage GROUP BY meter ORDER BY meter"
    assert database.query(query).result_rows == [("llm.tokens.cache_read", 90), ("llm.tokens.input", 90)]


def test_totals_of_hosts_wait_in_suspense_as_increases(database):
    add(database, total_of((1, 10), (2, 12), name="process.cpu.time", customer=None))
    assert held(database) == [("source_unsupported", 10, "10"), ("source_unsupported", 2, "12")]


def test_an_increase_has_the_columns_of_an_event(database):
    names = [database.query(f"SELECT * FROM {view} LIMIT 0").column_names for view in ("increases", "events")]
    assert names[0] == names[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_copies_and_cuts_the_sum_is_what_was_counted(database, seed):
    """Three processes, one after the other, of two customers; each total is sent once or more, in any order."""
    chance = random.Random(seed)
    truth, requests = {}, []
    for start in (0, 40, 80):
        for customer in ("acme", "globex"):
            total = 0
            for second in range(start + 1, start + 30):
                total += chance.choice([0, 0, 1, 7, 1000])
                if chance.random() < 0.7 or second == start + 29:
                    request = total_of((second, total), customer=customer, start_ns=START_NS + start * SECOND_NS)
                    requests += [request] * chance.choice([1, 1, 2])
            truth[customer] = truth.get(customer, 0) + total
    chance.shuffle(requests)
    for at in range(0, len(requests), 25):
        add_at_once(database, *requests[at : at + 25], first=at)
    query = "SELECT customer_id, toInt64(sum(quantity)) FROM usage GROUP BY customer_id"
    assert dict(database.query(query).result_rows) == truth
    assert held(database) == []


def test_the_projector_brings_every_source_into_usage_and_again_on_replay(database):
    parts = [
        record(request_of(event(7)), 1),
        encode(metrics_record(sum_of((10, 5)), 2)),
        encode(metrics_record(total_of((1, 10), (2, 12)), 3)),
        record(request_of(event(3, "event-2")), 4),
    ]
    data = b"".join(parts)

    def read(position, until, limit):
        return data[position.offset : until.offset], until

    def horizon():
        return Horizon(Position("a-1.seg", len(data)), RECEIVED_NS)

    for name in "collector-1", "collector-2":  # the second one replays it all
        Projector(name, Inbox(database), horizon=horizon, read=read).step()
        query = "SELECT meter, source, sum(quantity) FROM usage GROUP BY meter, source ORDER BY meter, source"
        assert database.query(query).result_rows == [
            ("llm.tokens.input", "meterhouse", 10),
            ("pages.read", "otel.sum", 17),
        ]
        assert held(database) == []


def test_a_record_whose_decoding_fails_is_held_and_those_around_it_count(database, monkeypatch):
    from meterhouse_collector import projector

    def decode(found):
        if found.record_id.endswith("2"):
            raise ValueError("a mistake of ours")
        return rows_of(found)

    monkeypatch.setattr(projector, "rows_of", decode)
    data = b"".join(encode(metrics_record(sum_of((n, n)), n)) for n in (1, 2, 3))
    Projector(
        "collector-1",
        Inbox(database),
        horizon=lambda: Horizon(Position("a-1.seg", len(data)), RECEIVED_NS),
        read=lambda position, until, _limit: (data[position.offset : until.offset], until),
    ).step()
    assert used(database) == [(1, 1), (3, 3)]
    assert held(database, "reason, attributes['meterhouse.error']") == [
        ("unreadable_record", "ValueError: a mistake of ours")
    ]


@pytest.fixture
def decide(database, tmp_path):
    """Records what a rule of `suspense` makes of all that is held, and applies it."""
    engine = sql.open_engine(Settings(data=tmp_path))
    everything = suspended.Filter(since=datetime(2020, 1, 1, tzinfo=UTC))

    def decided_by(rule):
        ruling = rule(suspended.find(database, "live", everything, 10))
        moment = datetime(2026, 11, 2, tzinfo=UTC)
        decisions.record(engine, ruling.drafts, why="known", who="ann", clock=lambda: moment)
        decided.apply(engine, database)
        decided.apply(engine, database)

    yield decided_by
    engine.dispose()


def test_an_increase_in_suspense_is_released_as_an_event_is(database, decide):
    add(database, total_of((1, 10), (2, 100), (3, 5), (4, 8)))
    decide(lambda rows: suspended.release(rows, {}))
    assert used(database) == [(1, 10), (2, 90), (3, 5), (4, 3)]
    assert held(database) == []


def test_assigning_token_counters_takes_cached_tokens_out_of_the_input_as_well(database, decide):
    prefix = "gen_ai.client.inference.usage."
    for make in (sum_of, total_of):
        for name, count in (("input_tokens", 100), ("cache_read.input_tokens", 60)):
            add(database, make((1, count), name=prefix + name, customer=None))
    decide(lambda rows: suspended.assign(rows, "acme", {}))
    query = "SELECT billed_customer_id, meter, sum(quantity) FROM usage GROUP BY ALL ORDER BY ALL"
    assert database.query(query).result_rows == [
        ("acme", "llm.tokens.cache_read", 120),
        ("acme", "llm.tokens.input", 80),
    ]
    assert held(database) == []


def test_a_total_that_does_not_stand_can_be_discarded_and_the_one_that_does_stays(database, decide):
    add(database, total_of((1, 10), (2, 20)), total_of((2, 25)))
    decide(suspended.discard)
    assert used(database) == [(1, 10), (2, 10)]
    assert held(database) == []


def test_completeness_tells_what_totals_stood_at_before_their_key_was_valid(database):
    late = {"valid_from_ns": START_NS + 1}
    add(database, total_of((1, 1000), (2, 1010)), total_of((3, 1030)), **late)
    add(database, total_of((1, 7), customer="umbrella"), **late)
    add(database, total_of((4, 5), start_ns=START_NS + SECOND_NS), first=9, **late)  # a new start: counts in full
    day = datetime.fromtimestamp(START_NS // SECOND_NS, UTC).replace(hour=0, minute=0, second=0)
    until = day + timedelta(days=1)
    found = completeness.report(database, "live", "acme", day, until, now=until)
    assert [(one.meter, one.totals, one.stood_at) for one in found.found.baselines] == [("pages.read", 1, 1000)]
    assert any("the 1000 that they stood at" in sentence for sentence in found.exceptions)
    before = completeness.report(database, "live", "acme", day - timedelta(days=1), day, now=until)
    assert before.found.baselines == ()
