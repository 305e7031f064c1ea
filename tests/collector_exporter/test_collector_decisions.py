"""Decisions about rows in suspense: they hold whatever is sent, replayed or merged later, and each can be undone."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from collector_samples import RECEIVED_NS, event, record, request_of

from meterhouse_collector.inbox import Inbox
from meterhouse_collector.records import Record, encode
from meterhouse_store import decided, decisions, privacy, registry, sql, suspended
from meterhouse_store.settings import Settings
from meterhouse_store.suspended import Filter

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
NOBODY = {"gen_ai.agent.name": "support"}
ALL = Filter(since=datetime(2020, 1, 1, tzinfo=UTC))


@pytest.fixture
def sql_engine(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    yield engine
    engine.dispose()


class Desk:
    """Decides as the command does, and projects as the projector does."""

    def __init__(self, engine, client):
        self.engine, self.client, self.journal = engine, client, []

    def receive(self, *records):
        self.journal += records
        self.project(*records)

    def project(self, *records):
        Inbox(self.client).post(b"".join(records))
        Inbox(self.client).mark_conflicts(0, 2 * RECEIVED_NS)

    def assign(self, customer, which=ALL, **how):
        now = suspended.counting(self.client, "live", which, customer)
        return self._decide(suspended.assign(self._rows(which), customer, now), **how)

    def release(self, which=ALL, **how):
        return self._decide(suspended.release(self._rows(which), suspended.counting(self.client, "live", which)), **how)

    def discard(self, which=ALL, **how):
        return self._decide(suspended.discard(self._rows(which)), **how)

    def undo(self, number=-1, *, whole=False, now=NOON):
        chosen = decisions.latest(self.engine, "live", 100)[::-1][number]
        undone = decisions.with_its_command(self.engine, "live", chosen.decision_id, whole=whole)
        decisions.record(
            self.engine, decisions.undo(self.engine, undone), why="a mistake", who="ann", clock=lambda: now
        )
        decided.apply(self.engine, self.client)

    def _rows(self, which):
        return suspended.find(self.client, "live", which, 1000)

    def _decide(self, ruling, *, now=NOON, apply=True):
        if ruling.drafts:
            decisions.record(self.engine, ruling.drafts, why="the contract says so", who="ann", clock=lambda: now)
        if apply:
            decided.apply(self.engine, self.client)
        return ruling

    def usage(self, columns="event_id, billed_customer_id, toInt64(quantity)"):
        return self.client.query(f"SELECT {columns} FROM usage ORDER BY event_id, quantity").result_rows

    def suspense(self):
        query = "SELECT event_id, reason, toInt64(quantity) FROM suspense ORDER BY event_id, quantity"
        return self.client.query(query).result_rows

    def set_aside(self):
        query = "SELECT event_id, reason, original_reason FROM set_aside ORDER BY event_id, quantity"
        return self.client.query(query).result_rows

    def merge(self):
        self.client.command("OPTIMIZE TABLE events FINAL")

    def state(self):
        return self.usage(), self.suspense(), self.set_aside()

    def rebuilt(self):
        """The state of a warehouse that is projected from the journal again, with the decisions waiting for it."""
        for table in ("events", "conflicts", "mirror_decisions", "assigned_claims"):
            self.client.command(f"TRUNCATE TABLE {table}")
        decided.apply(self.engine, self.client)
        for one in self.journal:
            self.project(one)
        decided.apply(self.engine, self.client)
        return self.state()


@pytest.fixture
def desk(sql_engine, database):
    return Desk(sql_engine, database)


def nobodys(quantity, event_id, number=1, **more):
    return record(request_of(event(quantity, event_id), point=NOBODY), number, **more)


def test_usage_of_nobody_is_billed_to_whom_it_is_assigned_and_keeps_what_was_claimed(desk):
    desk.receive(nobodys(7, "a"), nobodys(5, "b", 2))
    ruling = desk.assign("acme", Filter(events=("a",)))
    assert (ruling.rows, ruling.quantity, ruling.refused) == (1, Decimal(7), ())
    columns = "event_id, customer_id, billed_customer_id, toInt64(quantity), original_reason, toString(known_at)"
    assert desk.usage(columns) == [("a", "", "acme", 7, "customer_missing", "2026-11-02 12:00:00.000000000")]
    assert desk.suspense() == [("b", "customer_missing", 5)]
    query = "SELECT event_id FROM usage WHERE billed_customer_id = 'acme' AND event_time >= '2026-11-01'"
    assert desk.client.query(query).result_rows == [("a",)]
    assert desk.client.query("SELECT event_id FROM usage WHERE billed_customer_id = ''").result_rows == []


def test_a_replay_and_a_later_copy_do_not_displace_a_decision(desk):
    desk.receive(nobodys(7, "a"), nobodys(5, "b", 2))
    desk.assign("acme", Filter(events=("a",)))
    desk.discard(Filter(events=("b",)))
    before = desk.state()
    assert before == ([("a", "acme", 7)], [], [("b", "discarded", "customer_missing")])
    desk.project(*desk.journal)
    desk.receive(nobodys(7, "a", 9, received_ns=RECEIVED_NS + 5), nobodys(5, "b", 8, received_ns=RECEIVED_NS - 5))
    assert desk.state() == before
    desk.merge()
    assert desk.state() == before
    assert desk.rebuilt() == before


def test_a_decision_that_was_recorded_and_not_applied_is_applied_by_whoever_comes_next(desk):
    desk.receive(nobodys(7, "a"))
    desk.assign("acme", apply=False)
    assert desk.usage() == []
    assert decided.apply(desk.engine, desk.client) == decided.Applied(1, 0)
    assert decided.apply(desk.engine, desk.client) == decided.Applied(0, 0)
    assert desk.usage() == [("a", "acme", 7)]


def test_a_decision_waits_for_its_row_and_holds_before_the_watermark_passes_it(desk):
    desk.receive(nobodys(7, "a"))
    desk.discard()
    for table in ("events", "mirror_decisions"):
        desk.client.command(f"TRUNCATE TABLE {table}")
    assert decided.apply(desk.engine, desk.client) == decided.Applied(0, 1)
    desk.project(*desk.journal)  # the checkpoint is written after this
    assert desk.state() == ([], [], [("a", "discarded", "customer_missing")])


@pytest.mark.parametrize("step", ["_CLAIMS", "_VERSIONS", "_APPLIED"])
def test_killed_between_any_two_steps_of_applying_the_next_one_brings_it_to_its_end(desk, monkeypatch, step):
    desk.receive(nobodys(7, "a"))
    desk.assign("acme", apply=False)
    original = getattr(decided, step)
    monkeypatch.setattr(decided, step, "SELECT throwIf(1)")
    with pytest.raises(Exception, match="throwIf"):
        decided.apply(desk.engine, desk.client)
    monkeypatch.setattr(decided, step, original)
    decided.apply(desk.engine, desk.client)
    assert desk.state() == ([("a", "acme", 7)], [], [])


def test_an_undone_decision_leaves_the_row_as_it_was_and_it_can_be_decided_again(desk):
    desk.receive(nobodys(7, "a"))
    before = desk.state()
    desk.assign("acme")
    desk.undo()
    assert desk.state() == before
    desk.assign("globex")
    assert desk.usage() == [("a", "globex", 7)]
    with pytest.raises(LookupError, match="was followed by"):
        desk.undo(0)
    desk.undo()
    assert desk.state() == before == desk.rebuilt()
    kinds = [one.draft.kind for one in decisions.latest(desk.engine, "live", 10)]
    assert kinds == ["undo", "assign", "undo", "assign"]


def test_the_copy_that_lost_a_conflict_can_be_released_in_place_of_the_one_that_stands(desk):
    desk.receive(
        record(request_of(event(7, "a")), 1), record(request_of(event(9, "a")), 2, received_ns=RECEIVED_NS + 3)
    )
    assert (desk.usage(), desk.suspense()) == ([("a", "acme", 7)], [("a", "conflict", 9)])
    assert desk.release().rows == 1
    expected = ([("a", "acme", 9)], [], [("a", "retracted", "")])
    assert desk.state() == expected
    # A third quantity loses against the decision, also where it was received before all others.
    desk.receive(record(request_of(event(4, "a")), 3, received_ns=RECEIVED_NS - 9))
    assert desk.state() == (expected[0], [("a", "conflict", 4)], expected[2])
    desk.merge()
    desk.project(*desk.journal)
    assert desk.state() == (expected[0], [("a", "conflict", 4)], expected[2]) == desk.rebuilt()


def test_undoing_the_release_of_a_losing_copy_brings_back_the_one_that_stood(desk):
    desk.receive(
        record(request_of(event(7, "a")), 1), record(request_of(event(9, "a")), 2, received_ns=RECEIVED_NS + 3)
    )
    before = desk.state()
    desk.release()
    desk.undo()
    assert desk.state() == before == desk.rebuilt()


def test_a_copy_that_comes_as_usage_after_another_quantity_was_released_is_in_conflict(desk):
    forbidden = record(request_of(event(5, "a")), 1, allowed=["globex"])
    desk.receive(forbidden)
    assert desk.suspense() == [("a", "customer_forbidden", 5)]
    desk.release()
    desk.receive(record(request_of(event(7, "a")), 2, received_ns=RECEIVED_NS + 3))
    assert desk.state() == ([("a", "acme", 5)], [("a", "conflict", 7)], [])
    desk.undo()
    assert desk.state() == ([("a", "acme", 7)], [("a", "customer_forbidden", 5)], [])
    assert desk.rebuilt() == ([("a", "acme", 7)], [("a", "customer_forbidden", 5)], [])


def test_of_copies_of_one_event_only_one_can_be_let_through(desk):
    desk.receive(
        record(request_of(event(5, "a")), 1, allowed=["globex"]),
        record(request_of(event(6, "a")), 2, allowed=["globex"]),
        record(request_of(event(3, "b")), 3, allowed=["globex"]),
        record(request_of(event(4, "b")), 4),
    )
    ruling = desk.release()
    assert ruling.rows == 1
    assert {sentence.split(":")[0]: rows for sentence, rows in ruling.refused} == {
        "of several copies of one event only one can count": 1,
        "another copy of the event counts already": 1,
    }
    assert len(desk.usage()) == 2


def test_what_lacks_its_events_and_its_customer_is_let_through_by_an_assignment_alone(desk):
    desk.receive(record(request_of(value=3, point=NOBODY)), record(request_of(value=4), 2))
    assert {row[1:] for row in desk.suspense()} == {("exemplars_missing", 3), ("exemplars_missing", 4)}
    named = "exemplars_missing is no doubt about the customer: see `suspense release` and `suspense discard`"
    assert desk.assign("globex").refused == ((named, 1),)
    assert [row[1:] for row in desk.usage()] == [("globex", 3)]
    assert [row[1:] for row in desk.suspense()] == [("exemplars_missing", 4)]
    desk.release()
    assert {row[1:] for row in desk.usage()} == {("globex", 3), ("acme", 4)}


def test_usage_is_not_assigned_to_a_customer_for_whom_the_same_event_counts(desk):
    desk.receive(nobodys(7, "a"), record(request_of(event(7, "a")), 2))
    assert desk.assign("acme").refused == (("another copy of the event counts already", 1),)
    assert desk.usage() == [("a", "acme", 7)]


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (lambda: record(request_of(event(float("nan"), "a"))), "what was sent is no quantity"),
        (lambda: nobodys(7, "a"), "it names no customer"),
        (lambda: record(request_of(event(3, "a"), point=[("otel.metric.overflow", True)])), "its series had lost"),
        (lambda: record(request_of(event(9, "a"), value=4)), "the quantity is negative"),
        (lambda: record(request_of(event(float("nan"), "a")), allowed=["globex"]), "what was sent is no quantity"),
    ],
    ids=["NaN", "no customer", "overflow", "negative gap", "NaN of a forbidden customer"],
)
def test_what_cannot_count_is_not_released_and_can_be_discarded(desk, sent, refusal):
    desk.receive(sent())
    which = Filter(since=ALL.since, events=tuple(row[0] for row in desk.suspense()))
    held = desk.suspense()
    ruling = desk.release()
    assert (ruling.rows, len(ruling.refused)) == (0, 1)
    assert ruling.refused[0][0].startswith(refusal)
    assert desk.suspense() == held
    desk.discard(which)
    assert desk.suspense() == []
    assert {row[1] for row in desk.set_aside()} == {"discarded"}


def test_an_event_that_counts_once_can_be_assigned_and_is_found_at_its_own_time(desk):
    once = {"meterhouse.once": "true"}
    desk.receive(record(request_of(event(1, "task-1", extra=once), name="meterhouse.agent.tasks", point=NOBODY)))
    desk.assign("acme")
    query = (
        "SELECT event_id, toString(event_time) FROM usage WHERE event_time >= '2026-11-01' AND meter = 'agent.tasks'"
    )
    assert desk.client.query(query).result_rows == [("task-1", "2026-11-01 00:00:00.000000000")]
    later = record(request_of(event(1, "task-1", RECEIVED_NS + 10**9, extra=once), name="meterhouse.agent.tasks",
                              point=NOBODY), 2, received_ns=RECEIVED_NS + 10**9)  # fmt: skip
    desk.receive(later)
    assert desk.usage() == [("task-1", "acme", 1)]


def test_two_who_decide_about_one_row_at_once_one_is_told(desk):
    desk.receive(nobodys(7, "a"), nobodys(5, "b", 2))
    rows = suspended.find(desk.client, "live", ALL, 10)
    first = suspended.assign(rows, "acme", {}).drafts
    second = suspended.discard(rows[1:]).drafts
    decisions.record(desk.engine, first, why="x", who="ann", clock=lambda: NOON)
    with pytest.raises(decisions.DecidedMeanwhile):
        decisions.record(desk.engine, second, why="x", who="bob", clock=lambda: NOON)
    assert len(decisions.latest(desk.engine, "live", 10)) == 2


def test_decisions_are_ordered_also_where_the_clock_falls_back(desk):
    desk.receive(nobodys(7, "a"))
    desk.assign("acme")
    desk.undo(now=NOON - timedelta(hours=3))
    assert desk.usage() == []
    assert [one.decided_at for one in decisions.latest(desk.engine, "live", 2)] == [
        NOON + timedelta(microseconds=1),
        NOON,
    ]


def test_a_decision_ranks_above_every_copy_and_fits_into_64_bits():
    assert decisions.rank(datetime(1970, 1, 1, tzinfo=UTC)) == 17293822569102704640
    assert decisions.rank(datetime(2111, 1, 1, tzinfo=UTC)) < 2**64
    assert decisions.rank(NOON) - decisions.rank(NOON - timedelta(microseconds=1)) == 256
    assert decisions.rank(NOON) > ~RECEIVED_NS & 2**64 - 1


def test_a_decision_needs_a_reason(desk):
    with pytest.raises(ValueError, match="--why"):
        decisions.record(desk.engine, [], why=" ", who="ann", clock=lambda: NOON)


def test_nobody_decides_about_a_customer_who_is_being_erased(desk):
    registry.ensure_namespace(desk.engine, "live")
    registry.add_customer(desk.engine, "live", "acme", name="Acme")
    desk.receive(nobodys(7, "a"), *(
        record(request_of(event(7, f"of-{name}"), point={"customer.id": name}), 2 + at, allowed=["initech"])
        for at, name in enumerate(("acme", "globex"))
    ))  # fmt: skip
    privacy.begin(desk.engine, "e", "live", "acme", who="ann", why="ticket 17", now=NOON)
    for events, decide in (
        (("a",), lambda which: desk.assign("acme", which)),
        (("a",), desk.discard),  # it may stand beside what is renamed
        (("of-acme",), desk.release),
    ):
        with pytest.raises(decisions.DecidedMeanwhile, match="a customer is being erased"):
            decide(Filter(events=events))
    assert desk.release(Filter(events=("of-globex",))).rows == 1


def test_only_usage_whose_customer_is_in_doubt_is_assigned(desk):
    desk.receive(
        record(request_of(event(float("nan"), "bad")), 1),
        record(request_of(event(float("nan"), "bad-and-nobodys"), point=NOBODY), 2),
        record(request_of(event(7, "c")), 3),
        record(request_of(event(9, "c")), 4, received_ns=RECEIVED_NS + 3),
    )
    held = desk.suspense()
    assert [row[1] for row in held] == ["bad_quantity", "customer_missing", "conflict"]
    ruling = desk.assign("globex")
    assert ruling.drafts == ()
    assert sorted(sentence.split(":")[0] for sentence, _ in ruling.refused) == [
        "bad_quantity is no doubt about the customer",
        "conflict is no doubt about the customer",
        "what was sent is no quantity, so nothing of it could count",
    ]
    assert (desk.suspense(), desk.usage("event_id")) == (held, [("c",)])


def test_rows_of_another_namespace_are_neither_found_nor_decided_about(desk):
    of_nobody = request_of(event(7, "a"), point=NOBODY).SerializeToString()
    desk.receive(encode(Record("key-1", "test", (), RECEIVED_NS, f"{1:032x}", "a-00000001.seg", of_nobody)))
    assert suspended.count(desk.client, "live", ALL) == 0
    assert desk.discard().drafts == desk.assign("acme").drafts == ()
    assert desk.suspense() == [("a", "customer_missing", 7)]


def test_a_decision_of_another_namespace_or_without_a_name_is_not_undone(desk):
    desk.receive(nobodys(7, "a"))
    desk.assign("acme")
    (made,) = decisions.latest(desk.engine, "live", 10)
    for namespace, name in (("test", made.decision_id), ("live", "")):
        with pytest.raises(LookupError, match=f"there is no decision '{name}' in namespace {namespace}"):
            decisions.with_its_command(desk.engine, namespace, name, whole=False)
    assert decisions.with_its_command(desk.engine, "live", made.decision_id, whole=False) == [made]


def test_a_decision_whose_row_came_while_it_was_being_applied_is_not_taken_for_applied(desk, monkeypatch):
    desk.receive(nobodys(7, "a"))
    desk.assign("acme", apply=False)
    with monkeypatch.context() as patched:
        patched.setattr(decided, "_VERSIONS", "SELECT 1")  # as if the row had come a moment later
        assert decided.apply(desk.engine, desk.client) == decided.Applied(0, 1)
    assert decided.apply(desk.engine, desk.client) == decided.Applied(1, 0)
    assert desk.usage() == [("a", "acme", 7)]
