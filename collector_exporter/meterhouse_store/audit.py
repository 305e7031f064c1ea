"""The audit log: who changed what, when and why, in one hash chain per namespace.

It is written by the way that every change takes. `begin_write` looks at each statement on a table of audit_rules.py,
and seals what it found at the end of the same transaction: there is no change without its row, and no row without its
change. Whoever may not make a change (roles.py) is refused there, too.

Each row is sealed by a hash of all it says and of the seal before it, as in the ledger (ledger_chain.py). Who may
change a row can make a chain of their own from there on; an anchor, kept elsewhere, tells that apart.

What may say who a person is (customer, subject, who, why, details) is sealed by a salted hash beside it. Erasing
removes the salt: the chain still holds, and nothing in it says any more who it was.
"""

import getpass
import hashlib
import json
import os
import secrets
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Delete,
    Engine,
    Insert,
    RowMapping,
    Select,
    Table,
    Update,
    bindparam,
    event,
    insert,
    select,
)

from meterhouse_store import roles
from meterhouse_store.audit_rules import RULES, Rule
from meterhouse_store.chain_proof import GENESIS
from meterhouse_store.numbers import plain
from meterhouse_store.tables import audit_log, metadata, namespaces

RULE: Final = "rule"
"""Who it was where nobody decided: what somebody set before did."""
ADDED, CHANGED, REMOVED = "added", "changed", "removed"
PERSONAL: Final = ("customer_id", "subject", "who", "why", "details")

# Built once: most transactions that write run these, and building a statement takes longer than SQLite does.
_LOCK: Final = select(namespaces.c.namespace).where(namespaces.c.namespace == bindparam("namespace")).with_for_update()
_HEAD: Final = (
    select(audit_log.c.sequence, audit_log.c.hash)
    .where(audit_log.c.namespace == bindparam("namespace"))
    .order_by(audit_log.c.sequence.desc())
    .limit(1)
)
_ADD: Final = insert(audit_log)

_CHANGES: Final = "meterhouse_changes"
_BEFORE: Final = "meterhouse_before"
_acting: ContextVar[str] = ContextVar("acting", default="")


Row = RowMapping | Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """One change of one row, or of several rows of one customer in one statement."""

    namespace: str
    customer_id: str
    what: str
    subject: str
    who: str
    why: str
    changed_at: datetime
    details: str


@contextmanager
def acting(who: str) -> Iterator[None]:
    """Who it is in this block, where a row does not say it; otherwise the user that the process runs as."""
    token = _acting.set(who)
    try:
        yield
    finally:
        _acting.reset(token)


def listen(engine: Engine) -> None:
    """Look at the statements of an engine's transactions that write."""
    event.listen(engine, "before_execute", _before)
    event.listen(engine, "after_execute", _after)


def begin(connection: Connection) -> None:
    """Collect what is changed on this connection, until it is sealed."""
    connection.execution_options(**{_CHANGES: [], _BEFORE: []})


@contextmanager
def paused(connection: Connection) -> Iterator[None]:
    """Changes that are none: rows of a backup, and what takes a person out of rows."""
    options = connection.get_execution_options()
    connection.execution_options(**{_CHANGES: None})
    try:
        yield
    finally:
        connection.execution_options(**{_CHANGES: options.get(_CHANGES)})


def note(
    connection: Connection,
    namespace: str,
    what: str,
    *,
    subject: str,
    who: str,
    why: str,
    at: datetime,
    added: Mapping[str, Any],
    customer_id: str = "",
    role: str = "",
) -> None:
    """Write in a `begin_write` what has no table of its own; `added`: what there is to say, for JSON.

    `role`: who may do it; raises roles.NotAllowed where it is somebody else's.
    """
    if role:
        roles.require(connection, namespace, role, who)
    changes: list[Change] = connection.get_execution_options()[_CHANGES]
    changes.append(Change(namespace, customer_id, what, subject, who, why, at, _json({ADDED: dict(added)})))


def seal(connection: Connection) -> None:
    """Put what was changed in this transaction at the end of its namespaces' chains.

    The last thing that a transaction does, if it does not hold the row of the namespace: writers of one namespace wait
    for each other here until they commit.
    """
    changes: list[Change] = connection.get_execution_options().get(_CHANGES) or []
    connection.execution_options(**{_CHANGES: []})
    for namespace in sorted({change.namespace for change in changes}):
        # The row of the namespace is the lock (SQLite has locked by now); what is read after it is the last seal.
        connection.execute(_LOCK, {"namespace": namespace})
        sequence, previous = head(connection, namespace)
        rows = []
        for change in changes:
            if change.namespace != namespace:
                continue
            sequence += 1
            row: dict[str, Any] = {**vars(change), "sequence": sequence, "personal_salt": secrets.token_hex(16)}
            row["personal_sha256"] = personal_seal(row)
            row["previous_hash"] = previous
            row["hash"] = previous = seal_of(row)
            rows.append(row)
        connection.execute(_ADD, rows)


def head(connection: Connection, namespace: str) -> tuple[int, str]:
    """Number and hash of the last seal; 0 and GENESIS where there is none."""
    row = connection.execute(_HEAD, {"namespace": namespace}).one_or_none()
    return (0, GENESIS) if row is None else (row.sequence, row.hash)


def seal_of(row: Row) -> str:
    """The hash of a row in its place: SHA-256, in hex, of the canonical JSON of all that is sealed."""
    at = row["changed_at"].astimezone(UTC).isoformat(timespec="microseconds")
    return _sha256([row["namespace"], row["sequence"], row["previous_hash"], row["personal_sha256"], row["what"], at])


def personal_seal(row: Row) -> str:
    """The salted hash of what may say who a person is."""
    return _sha256([row["personal_salt"], *(row[name] for name in PERSONAL)])


# ---- what a statement changes


def records(connection: Connection, table: Table, namespace: str) -> set[str]:
    """What the log would say of the rows of a table as they are: the names of `record_name`."""
    rule = RULES[table.name]
    query = select(table)
    if rule.of is None:
        query = query.where(table.c.namespace == namespace)
        whose: dict[str, str] = {}
    else:
        parent, key = metadata.tables[rule.of[0]], rule.of[1]
        owners = select(parent.c[key], parent.c.customer_id).where(parent.c.namespace == namespace)
        whose = {row[0]: row[1] for row in connection.execute(owners).all()}
        query = query.where(table.c[key].in_(select(parent.c[key]).where(parent.c.namespace == namespace)))
    found = set()
    for row in connection.execute(query.execution_options(yield_per=5_000)).mappings():
        customer = whose.get(row[rule.of[1]], "") if rule.of else row.get("customer_id") or ""
        details = _json({ADDED: _shown(table, rule, row)})
        found.add(record_name(customer, str(row[rule.who]), str(row.get(rule.why) or ""), details))
    return found


def record_name(customer_id: str, who: str, why: str, details: str) -> str:
    """A short name of what the log says of an added row."""
    return _sha256([customer_id, who, why, details])[:32]


def _before(connection: Connection, statement: Any, _many: Any, _params: Any, _options: Any) -> None:
    """Keep the rows that an UPDATE or DELETE is about to change."""
    options = connection.get_execution_options()
    if options.get(_CHANGES) is None or not isinstance(statement, (Update, Delete)):
        return
    table = statement.table
    if isinstance(table, Table) and table.name in RULES:
        query = select(table)
        if statement.whereclause is not None:
            query = query.where(statement.whereclause)
        options[_BEFORE].append(connection.execute(query).mappings().all())


def _after(connection: Connection, statement: Any, _many: Any, _params: Any, _options: Any, result: Any) -> None:
    options = connection.get_execution_options()
    changes: list[Change] | None = options.get(_CHANGES)
    if changes is None or not isinstance(statement, (Insert, Update, Delete)):
        return
    table = statement.table
    if not isinstance(table, Table) or table.name not in RULES:
        return
    rule = RULES[table.name]
    if isinstance(statement, Insert):
        rows = result.context.compiled_parameters
        changes += _added(connection, table, rule, rows)
        return
    for old in options[_BEFORE].pop():
        is_it = [column == old[column.name] for column in table.primary_key.columns]
        new = connection.execute(select(table).where(*is_it)).mappings().one_or_none()
        changes += _altered(connection, table, rule, old, new)


def _added(connection: Connection, table: Table, rule: Rule, rows: Iterable[Row]) -> Iterator[Change]:
    """One change per row; rows of one statement that are by one person for one customer and reason are put together."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        whose = _whose(connection, rule, row)
        who, why = str(row.get(rule.who) or row.get("who") or _actor()), str(row.get(rule.why) or "")
        groups.setdefault((*whose, who, why), []).append(row)
    for (namespace, customer_id, who, why), found in groups.items():
        shown = [{ADDED: _shown(table, rule, row)} for row in found]
        subjects = sorted({_subject(rule, row) for row in found})
        details = shown[0] if len(shown) == 1 else {"rows": len(shown), "sha256": _sha256(shown), **_common(shown)}
        subject = subjects[0] if len(subjects) == 1 else f"{len(subjects)} of them"
        at = found[0].get(rule.at) or datetime.now(UTC)
        if rule.role and not _is_said(rule, found[0]):
            roles.require(connection, namespace, rule.role, who)
        yield Change(namespace, customer_id, rule.what, subject, who, why, at, _json(details))


def _altered(connection: Connection, table: Table, rule: Rule, old: Row, new: Row | None) -> Iterator[Change]:
    before, row = _shown(table, rule, old), new or old
    if new is None:
        details: dict[str, Any] = {REMOVED: before}
    else:
        after = _shown(table, rule, new)
        hidden = [name for name in rule.hidden.split() if old[name] != new[name]]
        details = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
        details = {CHANGED: details | dict.fromkeys(hidden, CHANGED)}
        if not details[CHANGED]:
            return
    # Who added the row is not who changed it, but where the change says so.
    said = {name: row.get(name) for name in (rule.who, rule.why) if new is not None and old.get(name) != row.get(name)}
    who, why = str(said.get(rule.who) or _actor()), str(said.get(rule.why) or "")
    namespace, customer_id = _whose(connection, rule, row)
    if rule.role:
        roles.require(connection, namespace, rule.role, who)
    yield Change(namespace, customer_id, rule.what, _subject(rule, row), who, why, datetime.now(UTC), _json(details))


def _is_said(rule: Rule, row: Row) -> bool:
    """Whether the row only tells what somebody said: a question."""
    return rule.why == "answer" and not row.get("outcome")


def _whose(connection: Connection, rule: Rule, row: Row) -> tuple[str, str]:
    """Namespace and customer ('' for none) of a row."""
    if rule.of is not None:
        row = connection.execute(_parent(*rule.of), {"key": row[rule.of[1]]}).mappings().one()
    return row["namespace"], row.get("customer_id") or ""


@cache
def _parent(table: str, key: str) -> Select[Any]:
    """The row in which namespace and customer of another table's row are found."""
    parent = metadata.tables[table]
    wanted = [parent.c[name] for name in ("namespace", "customer_id") if name in parent.c]
    return select(*wanted).where(parent.c[key] == bindparam("key"))


def _subject(rule: Rule, row: Row) -> str:
    return " ".join(str(row.get(name)) for name in rule.subject.split())


def _shown(table: Table, rule: Rule, row: Row) -> dict[str, Any]:
    """What a row says beside what has a column of its own in the log, for JSON."""
    own = {"namespace", "customer_id", rule.who, "who", rule.why, rule.at, *rule.hidden.split()}
    return {
        column.name: _value(column.name, row.get(column.name)) for column in table.columns if column.name not in own
    }


def _value(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if name == "customers" and isinstance(value, list):  # so that an erasure knows them for ids
        return [f"customer:{it}" for it in value]
    return value


def _common(shown: list[dict[str, Any]]) -> dict[str, Any]:
    """What all of the rows say alike."""
    first = shown[0][ADDED]
    return {ADDED: {name: value for name, value in first.items() if all(it[ADDED][name] == value for it in shown)}}


def _actor() -> str:
    if said := _acting.get():
        return said
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
