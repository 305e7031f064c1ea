"""The projector: whatever stops it, every event is in `usage` exactly once, and nothing waits behind a bad record."""

import pytest
from collector_samples import DAY_NS, RECEIVED_NS, add_sum, event, record, request_of, wait_for
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from quick_stores import empty

from meterhouse_collector import segments
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Entry, Horizon, Journal
from meterhouse_collector.projector import Projector, Rejected, Unavailable
from meterhouse_collector.records import frames
from meterhouse_collector.segments import Gone, Position

SEGMENT = "a-00000001.seg"
STEPS = ("checkpoint", "post", "mark_conflicts", "settle_spans", "write_checkpoint")


class Killed(Exception):
    """The process died here."""


class Faulty:
    """A store that fails around its n-th call: before it took effect, or after (the reply was lost)."""

    def __init__(self, store, fail_at=None, after=False, failure=Killed):
        self.store, self.fail_at, self.after, self.failure = store, fail_at, after, failure
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            failing = len(self.calls) == self.fail_at
            if failing and not self.after:
                raise self.failure(name)
            result = getattr(self.store, name)(*arguments)
            if failing:
                raise self.failure(name)
            return result

        return call


class Source:
    """A journal of one segment in memory."""

    def __init__(self, data, through_ns=RECEIVED_NS + 1000):
        self.data, self.through_ns = data, through_ns

    def horizon(self):
        return Horizon(Position(SEGMENT, len(self.data)), self.through_ns)

    def read(self, position, until, limit):
        if position.offset > len(self.data) or position.segment not in ("", SEGMENT):
            raise Gone("it ends before that")
        data = self.data[position.offset : until.offset]
        ends = [frame.end for frame in frames(data, SEGMENT)]
        end = max((end for end in ends if end <= limit), default=len(data)) if len(data) > limit else len(data)
        return data[:end], Position(SEGMENT, position.offset + end)


def projector(source, store, range_bytes=2**20):
    return Projector("collector-1", store, horizon=source.horizon, read=source.read, range_bytes=range_bytes)


def three_records():
    """Two events, one of them twice, and one with another quantity: 7 + 5 count, 9 is a conflict."""
    return [
        record(request_of(event(7, "a")), 1, received_ns=RECEIVED_NS + 1),
        record(request_of(event(5, "b"), event(7, "a")), 2, received_ns=RECEIVED_NS + 2),
        record(request_of(event(9, "a")), 3, received_ns=RECEIVED_NS + 3),
    ]


def usage(database):
    return database.query("SELECT event_id, toInt64(quantity) FROM usage ORDER BY event_id").result_rows


def suspended(database):
    return database.query("SELECT reason, toInt64(quantity) FROM suspense ORDER BY reason, quantity").result_rows


def test_a_step_projects_and_the_next_one_is_only_a_heartbeat(database):
    source = Source(b"".join(three_records()))
    one = projector(source, Inbox(database))
    assert one.step() is True
    source.through_ns += 5000
    assert one.step() is False
    assert usage(database) == [("a", 7), ("b", 5)]
    assert suspended(database) == [("conflict", 9)]
    query = "SELECT collector_id, segment, position, toUnixTimestamp64Nano(projected_through) FROM watermark"
    assert database.query(query).result_rows == [("collector-1", SEGMENT, len(source.data), RECEIVED_NS + 6000)]


@pytest.mark.parametrize(
    ("fail_at", "after"),
    [
        # A failure after one step and one before the next come to the same, but for what the step itself does.
        pytest.param(step, after, marks=pytest.mark.long if (step % 2 == 0) == after else ())
        for step in range(1, 11)
        for after in (False, True)
    ],
)
def test_killed_at_every_step_and_started_again_the_totals_are_the_same(database, fail_at, after):
    parts = three_records()
    source = Source(parts[0])
    faulty = Faulty(Inbox(database), fail_at, after)
    one = projector(source, faulty)
    killed = False
    for step in range(3):
        source.data = b"".join(parts[: step + 1])
        try:
            one.step()
        except Killed:
            killed = True
            one = projector(source, Inbox(database))
            one.step()
    assert killed
    assert usage(database) == [("a", 7), ("b", 5)]
    assert suspended(database) == [("conflict", 9)]


def test_the_checkpoint_is_written_last(database):
    faulty = Faulty(Inbox(database))
    projector(Source(b"".join(three_records())), faulty).step()
    assert tuple(faulty.calls) == STEPS


def test_a_warehouse_that_is_down_changes_nothing_and_is_asked_again(database):
    source = Source(b"".join(three_records()))
    one = projector(source, Faulty(Inbox(database), fail_at=2, failure=Unavailable))
    with pytest.raises(Unavailable):
        one.step()
    assert database.query("SELECT count() FROM watermark").first_row == (0,)
    one.forget()
    one.step()
    assert usage(database) == [("a", 7), ("b", 5)]


@pytest.mark.parametrize("kept", [0, 1], ids=["without a record", "with the first record"])
def test_a_checkpoint_that_a_restored_journal_does_not_have_makes_it_project_anew(database, kept):
    parts = three_records()
    projector(Source(b"".join(parts)), Inbox(database)).step()
    other = record(request_of(event(2, "restored")), 9, received_ns=RECEIVED_NS + 9)
    source = Source(b"".join([*parts[:kept], other]))
    one = projector(source, Inbox(database))
    while one.step():
        pass
    assert usage(database) == [("a", 7), ("b", 5), ("restored", 2)]
    assert database.query("SELECT segment, position FROM watermark").result_rows == [(SEGMENT, len(source.data))]


def unreadable(number):
    """A record whose checksum is right and whose request ClickHouse cannot decode: a varint that does not end."""
    return record(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", number, received_ns=RECEIVED_NS + number)


def test_a_record_that_cannot_be_decoded_is_held_and_those_around_it_count(database):
    good = [record(request_of(event(1, f"e{n}")), n, received_ns=RECEIVED_NS + n) for n in range(8)]
    bad = unreadable(50)
    source = Source(b"".join([*good[:5], bad, *good[5:]]))
    projector(source, Inbox(database)).step()
    assert usage(database) == [(f"e{n}", 1) for n in range(8)]
    columns = "reason, namespace, credential_id, record_id, base64Decode(raw_value) = unhex({raw:String})"
    query = f"SELECT {columns} FROM suspense"
    assert database.query(query, parameters={"raw": bad.hex()}).result_rows == [
        ("unreadable_record", "live", "key-1", f"{50:032x}", 1)
    ]


def test_a_rotten_record_is_held_and_those_around_it_count(database):
    good = [record(request_of(event(1, f"e{n}")), n, received_ns=RECEIVED_NS + n) for n in range(3)]
    rotten = bytearray(good[1])
    rotten[-20] ^= 1
    source = Source(good[0] + bytes(rotten) + good[2] + b"\xff\xff")
    for _ in range(2):  # a replay holds the same rows
        projector(source, Inbox(database)).step()
        database.command("TRUNCATE TABLE checkpoints")
    assert usage(database) == [("e0", 1), ("e2", 1)]
    assert database.query("SELECT reason, attributes['meterhouse.error'] FROM suspense ORDER BY 2").result_rows == [
        ("unreadable_record", "damaged record"),
        ("unreadable_record", "not a record"),
    ]


@pytest.fixture
def small_segments(tmp_path):
    """Of five segments with an event each, the second has a rotten record, the third bytes behind its record."""
    journal = Journal(tmp_path / "journal", on_fatal=lambda problem: None)
    for number in range(5):
        request = request_of(event(1, f"e{number}")).SerializeToString()
        journal.append(Entry("key-1", "live", (), request)).result(20)
        journal.rotate()
        wait_for(lambda: journal.segment[9:17] == f"{number + 2:08d}", what="the next segment")  # noqa: B023
    journal.close()
    names = segments.names(journal.directory)
    second, third = (bytearray((journal.directory / name).read_bytes()) for name in names[1:3])
    second[-20] ^= 1
    (journal.directory / names[1]).write_bytes(second)
    (journal.directory / names[2]).write_bytes(third + b"\xff\xff")
    return journal.directory, names, len(third)


def of_segments(directory, store, **options):
    goal = Horizon(segments.end(directory), RECEIVED_NS)
    return Projector(
        "collector-1",
        store,
        horizon=lambda: goal,
        read=lambda position, until, limit: segments.read(directory, position, until, limit),
        **options,
    )


def test_small_segments_are_posted_together_and_what_is_damaged_is_told_by_its_place(database, small_segments):
    directory, names, third = small_segments
    store = Faulty(Inbox(database))
    one = of_segments(directory, store)
    while one.step():
        pass
    # Up to the rotten record, up to the bytes behind the third, and the rest.
    assert (store.calls.count("post"), store.calls.count("mark_conflicts")) == (3, 1)
    place = "attributes['meterhouse.position'], attributes['meterhouse.error']"
    assert database.query(f"SELECT segment, {place} FROM suspense ORDER BY segment").result_rows == [
        (names[1], f"{names[1]}:0", "damaged record"),
        (names[2], f"{names[2]}:{third}", "not a record"),
    ]
    assert database.query("SELECT count() FROM watermark").first_row == (1,)
    totals = usage(database), suspended(database)
    empty(database)
    alone = Faulty(Inbox(database))
    one = of_segments(directory, alone, gather_bytes=0)
    while one.step():
        pass
    # One by one; what is behind the third record is a range of its own.
    assert (alone.calls.count("post"), alone.calls.count("mark_conflicts")) == (4, 6)
    assert (usage(database), suspended(database)) == totals


@pytest.mark.parametrize("fail_at", [2, 4, 5, 8])  # the first and the last post, what is held, the checkpoint
def test_killed_among_small_segments_and_started_again_the_totals_are_the_same(database, small_segments, fail_at):
    directory, _, _ = small_segments
    one = of_segments(directory, Faulty(Inbox(database), fail_at, after=True))
    with pytest.raises(Killed):
        while one.step():
            pass
    one = of_segments(directory, Inbox(database))
    while one.step():
        pass
    assert database.query("SELECT count(), uniqExact(event_id) FROM usage").first_row == (4, 4)
    assert database.query("SELECT count() FROM suspense WHERE reason = 'unreadable_record'").first_row == (2,)


class NothingStored:
    """A warehouse whose disk is full: it answers, and rejects everything."""

    def __init__(self):
        self.held = []

    def checkpoint(self, _collector_id):
        return None

    def post(self, data):
        if data:
            raise Rejected("NOT_ENOUGH_SPACE")

    def hold(self, records):
        self.held += records

    def mark_conflicts(self, *_times):
        pass

    def write_checkpoint(self, *_checkpoint):
        raise Rejected("NOT_ENOUGH_SPACE")


def test_a_warehouse_that_stores_nothing_makes_no_record_unreadable():
    store = NothingStored()
    with pytest.raises(Unavailable, match="stores nothing at all"):
        projector(Source(b"".join(three_records())), store).step()
    assert store.held == []


def test_one_journal_through_many_small_ranges_gives_the_same_rows(database):
    parts = three_records()
    one = projector(Source(b"".join(parts)), Inbox(database), range_bytes=max(map(len, parts)) + 1)
    while one.step():
        pass
    assert usage(database) == [("a", 7), ("b", 5)]
    assert suspended(database) == [("conflict", 9)]


def rows_read(database, work):
    """How many stored rows the engine reads for it; nothing else runs there."""
    query = "SELECT sum(value) FROM system.events WHERE event = 'SelectedRows'"
    before = database.query(query).first_row[0]
    work()
    return database.query(query).first_row[0] - before


def stored(database, records):
    """These records in `events` and checked, in one part of each table."""
    Inbox(database).post(b"".join(records))
    for table in ("events", "identities"):
        database.command(f"OPTIMIZE TABLE {table} FINAL")


@pytest.mark.parametrize("extra", [{}, {"meterhouse.once": "true"}], ids=["imported with one time", "once"])
def test_what_came_before_at_the_same_moment_is_not_read_again_for_each_range(database, extra):
    number, each = 60, 1000
    stored(
        database,
        [record(request_of(*(event(1, f"{n:04}-{i:04}", extra=extra) for i in range(each))), n) for n in range(number)],
    )
    later = RECEIVED_NS + 10**9
    new = [event(1, f"{n:04}-new", extra=extra) for n in range(0, number, 6)]
    Inbox(database).post(record(request_of(*new, event(2, "0030-0500", extra=extra)), 9999, received_ns=later))
    first = rows_read(database, lambda: Inbox(database).mark_conflicts(later, later))
    assert suspended(database) == [("conflict", 2)]
    # Eleven events; looked up among all that has their moment it would be more than the 60,000.
    assert first < number * each / 2
    Inbox(database).post(record(request_of(event(1, "9999-0000", extra=extra)), 10000, received_ns=later + 1))
    assert rows_read(database, lambda: Inbox(database).mark_conflicts(later + 1, later + 1)) < 2_000


def test_what_many_customers_used_before_is_not_read_again_for_each_range(database):
    customers, each = 400, 100
    now = RECEIVED_NS + 20 * DAY_NS  # all in one month
    times = [*(RECEIVED_NS + n * DAY_NS // 5 for n in range(each - 1)), now + 2]
    requests = []
    for n in range(customers):
        events = [event(1, f"{n:04}-{i:04}", time_ns=at) for i, at in enumerate(times)]
        request = request_of(*events, point={"customer.id": f"customer-{n:04}"})
        requests.append(record(request, n, received_ns=now))
    stored(database, requests)
    new = ExportMetricsServiceRequest()
    for n in range(customers):
        add_sum(new, [event(1, f"{n:04}-new", time_ns=now + 1)], point={"customer.id": f"customer-{n:04}"})
    Inbox(database).post(record(new, 9999, received_ns=now + 1))
    assert rows_read(database, lambda: Inbox(database).mark_conflicts(now + 1, now + 1)) < 5 * customers
