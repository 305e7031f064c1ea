"""Decisions about single rows of `events`, as they are recorded: in SQL, each once, never changed.

Each names the decision about the same row that it follows, so that of two people who decide at once one is told, and
its id follows from what it says. `decided.py` applies them to ClickHouse.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from meterhouse import vocabulary as words
from meterhouse_store.numbers import plain
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import decisions, erasures

ASSIGN: Final = "assign"
RELEASE: Final = "release"
DISCARD: Final = "discard"
RETRACT: Final = "retract"
UNDO: Final = "undo"

TWIN_RANK: Final = 2**64 - 2**60
"""`events.first` of the version that sets a span twin aside: above every copy, below every decision."""

POINT: Final = "otel-"
"""What event ids of data points of other sources begin with; a digest of 32 characters follows."""

_CHUNK: Final = 5_000
_POINT_CHARACTERS: Final = len(POINT) + 32


class DecidedMeanwhile(RuntimeError):
    """Somebody else decided about one of the rows, or erases its customer, at the same time; nothing was recorded."""


@dataclass(frozen=True, slots=True)
class Key:
    """A row of `events` by its sorting key; the time is in ns, 0 for an event whose identity has none."""

    namespace: str
    customer_id: str
    meter: str
    event_time_ns: int
    event_id: str
    quantity: Decimal

    @property
    def row_id(self) -> str:
        """The row's name in SQL."""
        return _hash(*self.identity, plain(self.quantity))

    @property
    def identity(self) -> tuple[str, ...]:
        """What copies of one event have in common."""
        return (self.namespace, self.customer_id, self.meter, str(self.event_time_ns), self.event_id)


@dataclass(frozen=True, slots=True)
class Draft:
    """A decision before it is recorded: what becomes of a row that `follows` (a decision id, or '') made what it is."""

    kind: str
    key: Key
    reason: str
    billed_customer_id: str
    original_reason: str
    follows: str

    @property
    def decision_id(self) -> str:
        """The same for the same decision about the same state of the row."""
        return _hash(self.key.row_id, self.follows, self.kind, self.reason, self.billed_customer_id)


@dataclass(frozen=True, slots=True)
class Decision:
    """A recorded decision."""

    draft: Draft
    why: str
    who: str
    decided_at: datetime

    @property
    def decision_id(self) -> str:
        return self.draft.decision_id


def rank(decided_at: datetime) -> int:
    """`events.first` of the version that a decision makes: above all copies, the later decision above the earlier.

    Fits into 64 bits until the year 2112.
    """
    return TWIN_RANK + _microseconds(decided_at) * 256


def record(engine: Engine, drafts: Sequence[Draft], *, why: str, who: str, clock: Callable[[], datetime]) -> datetime:
    """Record what one command decides, all or nothing; returns its decided_at, later than that of any before.

    The clock is read when nobody else can record any more, so decisions are there in the order of their times.

    Raises ValueError without a reason why, DecidedMeanwhile where one of the rows is not what the draft follows.
    """
    if not why.strip():
        raise ValueError("a decision needs a reason: --why")
    try:
        with begin_write(engine) as sql:
            alone(sql)
            _check_erasures(sql, drafts)
            now = clock()
            last = sql.execute(select(func.max(decisions.c.decided_at))).scalar_one()
            decided_at = now.astimezone(UTC) if last is None else max(now, last + timedelta(microseconds=1))
            for start in range(0, len(drafts), _CHUNK):
                rows = [_row(draft, why.strip(), who, decided_at) for draft in drafts[start : start + _CHUNK]]
                sql.execute(insert(decisions), rows)
    except IntegrityError:
        raise DecidedMeanwhile(
            "somebody else decided about some of these rows at the same moment: nothing was done, look again"
        ) from None
    return decided_at


def wait_for_others(engine: Engine) -> None:
    """Until what is being recorded now is there: whatever is decided after this has a later time."""
    with begin_write(engine) as sql:
        alone(sql)


def alone(sql: Connection) -> None:
    """Until the transaction ends nobody else decides anything."""
    if sql.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        sql.execute(text("LOCK TABLE decisions IN SHARE ROW EXCLUSIVE MODE"))


def event_ids(engine: Engine, namespace: str) -> frozenset[str]:
    """The event ids that decisions of a namespace speak of; of a running total that does not stand its point's, too."""
    with engine.connect() as sql:
        found = sql.execute(select(decisions.c.event_id).where(decisions.c.namespace == namespace)).scalars().all()
    return frozenset(found) | {split_event_id(one)[0] for one in found}


def split_event_id(event_id: str) -> tuple[str, str]:
    """An event id as its record gives it, and what the warehouse adds to that of a total that does not stand."""
    if event_id.startswith(POINT):
        return event_id[:_POINT_CHARACTERS], event_id[_POINT_CHARACTERS:]
    return event_id, ""


def of_rows(engine: Engine, row_ids: Iterable[str]) -> list[Decision]:
    """All decisions about these rows, in the order they were made."""
    return _select(engine, decisions.c.row_id.in_(list(row_ids)))


def latest(engine: Engine, namespace: str, limit: int) -> list[Decision]:
    """The latest decisions of the namespace, and of records that have none, the latest first."""
    query = (
        select(decisions)
        .where(decisions.c.namespace.in_([namespace, ""]))
        .order_by(decisions.c.decided_at.desc(), decisions.c.decision_id)
        .limit(limit)
    )
    with engine.connect() as sql:
        return [_decision(row) for row in sql.execute(query).mappings()]


def with_its_command(engine: Engine, namespace: str, decision_id: str, *, whole: bool) -> list[Decision]:
    """A decision by its id or the beginning of it, and what the same command decided about the same event.

    It is one of the namespace, or about a record that has none. `whole`: all that the same command decided. Raises
    LookupError.
    """
    is_it = decisions.c.decision_id.startswith(decision_id, autoescape=True)
    found = _select(engine, is_it & decisions.c.namespace.in_([namespace, ""])) if decision_id else []
    if len(found) != 1:
        raise LookupError(
            f"there is no decision {decision_id!r} in namespace {namespace}"
            if not found
            else f"{decision_id!r} begins {len(found)} decisions"
        )
    identity = found[0].draft.key.identity
    beside = _select(engine, decisions.c.decided_at == found[0].decided_at)
    return [one for one in beside if whole or one.draft.key.identity == identity]


def undo(engine: Engine, undone: Sequence[Decision]) -> list[Draft]:
    """Drafts that put rows back to what they were before `undone`; LookupError where a later decision builds on one."""
    history: dict[str, list[Decision]] = {}
    for start in range(0, len(undone), 500):
        for one in of_rows(engine, [item.draft.key.row_id for item in undone[start : start + 500]]):
            history.setdefault(one.draft.key.row_id, []).append(one)
    drafts = []
    for one in undone:
        of_row = history[one.draft.key.row_id]
        if of_row[-1].decision_id != one.decision_id:
            raise LookupError(
                f"decision {one.decision_id[:12]} was followed by {of_row[-1].decision_id[:12]} about the same row: "
                "undo that one first"
            )
        before = next((it for it in of_row if it.decision_id == one.draft.follows), None)
        drafts.append(
            Draft(
                UNDO,
                one.draft.key,
                before.draft.reason if before else _came_as(one.draft),
                before.draft.billed_customer_id if before else "",
                one.draft.original_reason,
                one.decision_id,
            )
        )
    return drafts


def _came_as(draft: Draft) -> str:
    """The reason of a row before the only decision about it; a copy in conflict came as usage, and did not stand."""
    released = draft.kind == RELEASE and not draft.original_reason
    return words.REASON_CONFLICT if released else draft.original_reason


def _check_erasures(sql: Connection, drafts: Sequence[Draft]) -> None:
    """While the bytes of a customer are being erased its rows change their names, which decisions go by."""
    query = select(erasures.c.namespace, erasures.c.former_id).where(erasures.c.former_id.is_not(None))
    erased = {(namespace, former) for namespace, former in sql.execute(query)}
    for draft in drafts if erased else ():
        namespace = draft.key.namespace
        is_theirs = {(namespace, draft.key.customer_id), (namespace, draft.billed_customer_id)} & erased
        # What names nobody may stand beside what names the customer, and change its name with it.
        if is_theirs or (not draft.key.customer_id and any(namespace == one for one, _ in erased)):
            raise DecidedMeanwhile(
                "a customer is being erased (`meterhouse customers erase --bytes`), whose rows change their names: "
                "nothing was done, decide when it is through"
            )


def _select(engine: Engine, condition: Any) -> list[Decision]:
    query = select(decisions).where(condition).order_by(decisions.c.decided_at, decisions.c.decision_id)
    with engine.connect() as sql:
        return [_decision(row) for row in sql.execute(query).mappings()]


def _decision(row: Any) -> Decision:
    key = Key(*(row[name] for name in ("namespace", "customer_id", "meter", "event_time_ns", "event_id", "quantity")))
    draft = Draft(row["kind"], key, row["reason"], row["billed_customer_id"], row["original_reason"], row["follows"])
    return Decision(draft, row["why"], row["who"], row["decided_at"])


def _row(draft: Draft, why: str, who: str, decided_at: datetime) -> dict[str, Any]:
    key = draft.key
    return {
        "decision_id": draft.decision_id,
        "namespace": key.namespace,
        "kind": draft.kind,
        "row_id": key.row_id,
        "customer_id": key.customer_id,
        "meter": key.meter,
        "event_time_ns": key.event_time_ns,
        "event_id": key.event_id,
        "quantity": key.quantity,
        "reason": draft.reason,
        "billed_customer_id": draft.billed_customer_id,
        "original_reason": draft.original_reason,
        "follows": draft.follows,
        "why": why,
        "who": who,
        "decided_at": decided_at,
    }


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _hash(*parts: str) -> str:
    # Lengths first: no two lists of parts read alike.
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
