"""Rows in suspense as people look at them, and what may be decided about each: the rules of `meterhouse suspense`.

A rule refuses with a sentence; refused rows stay where they are, and the others are decided about.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse import vocabulary as words
from meterhouse_store import decisions
from meterhouse_store.decisions import Draft, Key

ASSIGNABLE: Final = frozenset(
    {
        words.REASON_CUSTOMER_MISSING,
        words.REASON_CUSTOMER_FORBIDDEN,
        words.REASON_GRANT_MISSING,
        words.REASON_GRANT_EXPIRED,
        words.REASON_OVERFLOW,
        words.REASON_BAD_IDENTIFIER,
    }
)
"""Where the customer is in doubt."""

RELEASABLE: Final = frozenset(
    {
        words.REASON_CUSTOMER_FORBIDDEN,
        words.REASON_GRANT_MISSING,
        words.REASON_GRANT_EXPIRED,
        words.REASON_BAD_IDENTIFIER,
        words.REASON_EVENT_ID_MISSING,
        words.REASON_TIME_OUT_OF_RANGE,
        words.REASON_EXEMPLARS_MISSING,
        words.REASON_CONFLICT,
        words.REASON_CUMULATIVE_FALL,
        words.REASON_SPAN_AMBIGUOUS,
    }
)
"""What may count as it stands, for the customer it names; where it names none, for whom it is assigned to."""

_WHY_NOT: Final = {
    words.REASON_CUSTOMER_MISSING: "it names no customer: `suspense assign CUSTOMER` says whose it is",
    words.REASON_OVERFLOW: "its series had lost its customer: `suspense assign CUSTOMER` says whose it is",
    words.REASON_BAD_QUANTITY: "what was sent is no quantity, so nothing of it could count: discard it, and let the "
    "sender report the true one as a new event",
    words.REASON_FRACTION: "its meter counts whole ones, as of tokens or calls: discard it, and let the sender report "
    "whole ones, or under a meter of yours with `values: decimal`",
    words.REASON_SOURCE_UNSUPPORTED: "what its number means is not known (a running total, a distribution?): map the "
    "metric to a meter for what comes from now on, and discard this",
    words.REASON_UNREADABLE: "its bytes cannot be decoded; they are kept in raw_value",
}
_FOREIGN: Final = "otel."
"""What the sources of other instrumentations begin with."""
_OTHER: Final = "rows held back as {reason} can only be discarded"


def choices(reason: str) -> tuple[str, ...]:
    """What may be decided about rows that are held back for this reason: the commands of `meterhouse suspense`."""
    rules = (("assign", reason in ASSIGNABLE), ("release", reason in RELEASABLE), ("discard", True))
    return tuple(name for name, may in rules if may)


BATCH: Final = "import.batch"
"""The attribute that names the file an event was imported with."""

Counting = dict[tuple[str, ...], list[Draft]]
"""Per identity the rows that count, each as the draft that would retract it."""

COLUMNS: Final = (
    "namespace", "customer_id", "meter", "event_id", "toUnixTimestamp64Nano(key_time) AS key_ns", "quantity", "reason",
    "decision_id", "original_reason", "received_at", "event_time", "raw_value", "agent_name", "credential_id", "source",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows; what is None does not matter. Times are of receipt, half-open."""

    reason: str | None = None
    customer: str | None = None
    meter: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    credential: str | None = None
    agent: str | None = None
    events: tuple[str, ...] = ()
    quantity: Decimal | None = None

    @property
    def is_empty(self) -> bool:
        return self == Filter()


@dataclass(frozen=True, slots=True)
class Held:
    """A row in suspense. Times are aware UTC; `decision_id`: of what was decided about it before, or ''.

    `original_reason` is how it came, before any decision: '' for a copy in conflict, which came as usage.
    """

    key: Key
    reason: str
    decision_id: str
    original_reason: str
    received_at: datetime
    event_time: datetime
    raw_value: str
    agent_name: str
    credential_id: str
    source: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What becomes of the rows: drafts, how many of the rows they are about, and per sentence how many were refused."""

    drafts: tuple[Draft, ...]
    rows: int
    quantity: Decimal
    refused: tuple[tuple[str, int], ...]


def count(client: Client, namespace: str, which: Filter) -> int:
    """How many rows of the namespace, and of none, the filter finds."""
    where, parameters = _where(namespace, which)
    return int(client.query(f"SELECT count() FROM suspense WHERE {where}", parameters=parameters).result_rows[0][0])  # noqa: S608


def find(client: Client, namespace: str, which: Filter, limit: int) -> list[Held]:
    """The rows that the filter finds, the latest received first."""
    where, parameters = _where(namespace, which)
    query = (
        f"SELECT {', '.join(COLUMNS)} FROM suspense WHERE {where} "  # noqa: S608 - fixed parts, values are bound
        "ORDER BY received_at DESC, event_id, meter, quantity LIMIT {limit:UInt32}"
    )
    return [_held(row) for row in client.query(query, parameters=parameters | {"limit": limit}).result_rows]


def find_counted(client: Client, namespace: str, which: Filter, limit: int, batch: str | None = None) -> list[Held]:
    """The same of rows that count; `customer` is whom they are billed to, `batch` the import that they came with."""
    where, parameters = _where(namespace, replace(which, reason=None, customer=None))
    chosen = {"billed": ("billed_customer_id", which.customer), "batch": (f"attributes['{BATCH}']", batch)}
    for name, (column, value) in chosen.items():
        if value is not None:
            where += f" AND {column} = {{{name}:String}}"
            parameters[name] = value
    columns = ", ".join("'' AS reason" if column == "reason" else column for column in COLUMNS)
    query = (
        f"SELECT {columns} FROM usage WHERE {where} "  # noqa: S608 - fixed parts, values are bound
        "ORDER BY received_at DESC, event_id, meter, quantity LIMIT {limit:UInt32}"
    )
    return [_held(row) for row in client.query(query, parameters=parameters | {"limit": limit}).result_rows]


def counting(client: Client, namespace: str, which: Filter, customer: str | None = None) -> Counting:
    """The rows that count now under the identities of the rows that the filter finds.

    With `customer` also those under the identities that the rows would have had with that customer.
    """
    where, parameters = _where(namespace, which)
    identity = "namespace, {customer}, meter, key_time, event_id"
    claimed = [identity.format(customer="customer_id")]
    if customer is not None:
        claimed.append(identity.format(customer="{target:String}"))
        parameters["target"] = customer
    found: dict[tuple[str, ...], list[Draft]] = {}
    for columns in claimed:
        query = (
            "SELECT namespace, customer_id, meter, toUnixTimestamp64Nano(key_time), event_id, quantity, "  # noqa: S608
            "decision_id, original_reason FROM usage "
            f"WHERE ({claimed[0]}) IN (SELECT {columns} FROM suspense WHERE {where})"
        )
        for *key, decision_id, original_reason in client.query(query, parameters=parameters).result_rows:
            one = Key(*key)
            found.setdefault(one.identity, []).append(
                Draft(decisions.RETRACT, one, words.REASON_RETRACTED, "", original_reason, decision_id)
            )
    return found


def assign(held: Iterable[Held], customer: str, counting_now: Counting) -> Ruling:
    """Bill the rows to `customer`, as far as the customer is what was in doubt; `counting_now` is for it, too."""
    ruled = _Ruled()
    for row in held:
        if row.reason not in ASSIGNABLE and (row.key.customer_id or row.reason not in RELEASABLE):
            ruled.refuse(f"{row.reason} is no doubt about the customer: see `suspense release` and `suspense discard`")
        elif problem := _cannot_count(row):
            ruled.refuse(problem)
        elif _other(row.key, counting_now) or counting_now.get(_under(row.key, customer).identity):
            ruled.refuse("another copy of the event counts already")
        else:
            ruled.decide(row, decisions.ASSIGN, "", "" if customer == row.key.customer_id else customer)
    return ruled.ruling()


def release(held: Iterable[Held], counting_now: Counting) -> Ruling:
    """Let the rows count as they are, for the customer they name. A copy in conflict takes the standing one's place."""
    ruled = _Ruled()
    for row in held:
        others = _other(row.key, counting_now)
        if row.reason not in RELEASABLE:
            ruled.refuse(_WHY_NOT.get(row.reason, _OTHER.format(reason=row.reason)))
        elif problem := _cannot_count(row):
            ruled.refuse(problem)
        elif not row.key.customer_id:
            ruled.refuse(_WHY_NOT[words.REASON_CUSTOMER_MISSING])
        elif others and row.reason != words.REASON_CONFLICT:
            ruled.refuse("another copy of the event counts already")
        else:
            ruled.decide(row, decisions.RELEASE, "", "", instead_of=others)
    return ruled.ruling()


def discard(held: Iterable[Held]) -> Ruling:
    """Take the rows out of suspense for good."""
    ruled = _Ruled()
    for row in held:
        ruled.decide(row, decisions.DISCARD, words.REASON_DISCARDED, "")
    return ruled.ruling()


def retract(held: Iterable[Held]) -> Ruling:
    """Take rows that count out of usage."""
    ruled = _Ruled()
    for row in held:
        ruled.decide(row, decisions.RETRACT, words.REASON_RETRACTED, "")
    return ruled.ruling()


class _Ruled:
    def __init__(self) -> None:
        self._drafts: dict[str, Draft] = {}
        self._released: set[tuple[str, ...]] = set()
        self._rows, self._quantity = 0, Decimal(0)
        self._refused: Counter[str] = Counter()

    def refuse(self, sentence: str) -> None:
        self._refused[sentence] += 1

    def decide(self, row: Held, kind: str, reason: str, billed: str, *, instead_of: Sequence[Draft] = ()) -> None:
        if not reason and row.key.identity in self._released:
            self.refuse("of several copies of one event only one can count: choose it with --quantity")
            return
        for retraction in instead_of:
            self._add(retraction)
        if not reason:
            self._released.add(row.key.identity)
        self._add(Draft(kind, row.key, reason, billed, row.original_reason, row.decision_id))
        self._rows += 1
        self._quantity += row.key.quantity

    def _add(self, draft: Draft) -> None:
        self._drafts[draft.key.row_id] = draft

    def ruling(self) -> Ruling:
        return Ruling(tuple(self._drafts.values()), self._rows, self._quantity, tuple(self._refused.most_common()))


def _cannot_count(row: Held) -> str | None:
    if row.source.startswith(_FOREIGN):
        # Negative rows take cached tokens out of the input that contains them; an increase is not what was sent.
        return None if row.key.quantity or _says(row) else _WHY_NOT[words.REASON_BAD_QUANTITY]
    if row.key.quantity < 0:
        return "the quantity is negative: what the exemplars say exceeds their point"
    if row.reason not in (words.REASON_EXEMPLARS_MISSING, words.REASON_CONFLICT) and not _says(row):
        return _WHY_NOT[words.REASON_BAD_QUANTITY]
    return None


def _says(row: Held) -> bool:
    """Whether what was sent is the row's quantity: a bad one is stored as 0, whatever else was wrong with the row."""
    try:
        return Decimal(row.raw_value) == row.key.quantity
    except ArithmeticError:
        return False


def _other(key: Key, counting_now: Counting) -> list[Draft]:
    return [it for it in counting_now.get(key.identity, []) if it.key.quantity != key.quantity]


def _under(key: Key, customer: str) -> Key:
    return Key(key.namespace, customer, key.meter, key.event_time_ns, key.event_id, key.quantity)


def _held(row: Sequence[Any]) -> Held:
    namespace, customer, meter, event_id, key_ns, quantity, *rest = row
    reason, decision_id, original_reason, received_at, event_time, raw_value, agent_name, credential_id, source = rest
    return Held(
        Key(namespace, customer, meter, key_ns, event_id, quantity),
        reason,
        decision_id,
        original_reason,
        received_at.replace(tzinfo=UTC),
        event_time.replace(tzinfo=UTC),
        raw_value,
        agent_name,
        credential_id,
        source,
    )


def _where(namespace: str, which: Filter) -> tuple[str, dict[str, Any]]:
    # Records that could not be decoded have no namespace: they are everybody's concern.
    parts, parameters = ["namespace IN ({namespace:String}, '')"], {"namespace": namespace}
    chosen: dict[str, tuple[str, Any]] = {
        "reason": ("reason = {reason:String}", which.reason),
        "customer": ("customer_id = {customer:String}", which.customer),
        "meter": ("meter = {meter:String}", which.meter),
        "credential": ("credential_id = {credential:String}", which.credential),
        "agent": ("(agent_name = {agent:String} OR agent_id = {agent:String})", which.agent),
        "since": ("received_at >= {since:DateTime64(6, 'UTC')}", which.since),
        "until": ("received_at < {until:DateTime64(6, 'UTC')}", which.until),
        "quantity": ("quantity = {quantity:Decimal(38, 9)}", which.quantity),
        "events": ("event_id IN {events:Array(String)}", list(which.events) or None),
    }
    for name, (condition, value) in chosen.items():
        if value is not None:
            parts.append(condition)
            parameters[name] = value
    return " AND ".join(parts), parameters
