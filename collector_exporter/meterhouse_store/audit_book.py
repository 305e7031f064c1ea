"""Reads the audit log: what was changed, and whether the log is as it was written."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, select

from meterhouse_store.audit import personal_seal, record_name, records, seal_of
from meterhouse_store.audit_rules import RULES
from meterhouse_store.chain_proof import CHUNK, Proof, by_sequence, end_is_there
from meterhouse_store.sql import snapshot
from meterhouse_store.tables import audit_log, metadata


@dataclass(frozen=True)
class Entry:
    """One change. `details`: {"added": columns} | {"changed": {column: [before, after]}} | {"removed": columns}."""

    sequence: int
    changed_at: datetime
    what: str
    customer_id: str
    subject: str
    who: str
    why: str
    details: dict[str, Any]


@dataclass(frozen=True)
class Anchor:
    """A seal to hold the log against later."""

    namespace: str
    sequence: int
    hash: str


def entries(
    engine: Engine,
    namespace: str,
    *,
    customer_id: str | None = None,
    what: str | None = None,
    who: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[Entry]:
    """The last changes that fit, the latest first."""
    table = audit_log
    query = select(table).where(table.c.namespace == namespace)
    for column, wanted in ((table.c.customer_id, customer_id), (table.c.what, what), (table.c.who, who)):
        if wanted is not None:
            query = query.where(column == wanted)
    if since is not None:
        query = query.where(table.c.changed_at >= since)
    shown = [name for name in Entry.__annotations__ if name != "details"]
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.sequence.desc()).limit(limit)).mappings().all()
    return [Entry(**{name: row[name] for name in shown}, details=json.loads(row["details"])) for row in rows]


def told(details: dict[str, Any]) -> str:
    """`state: draft -> approved` or the columns of what was added, in a line."""
    if "from_state" in details.get("added", {}):
        return f"{details['added']['from_state']} -> {details['added']['to_state']}"
    rows = f"{details['rows']} rows, " if "rows" in details else ""
    for word, columns in details.items():
        if word == "changed":
            return "; ".join(f"{name}: {_from_to(it)}" for name, it in columns.items())
        if isinstance(columns, dict):
            said = "; ".join(f"{name} {it}" for name, it in columns.items() if it not in (None, "", [], {}))
            return f"{rows}{word}: {said}"[:120]
    return rows


def _from_to(change: Any) -> str:
    if not isinstance(change, list):
        return str(change)
    before, after = ("none" if it is None else it for it in change)
    return f"{before} -> {after}"


def verify(engine: Engine, namespace: str, anchors: Iterable[Anchor] = ()) -> Proof:
    """Read the whole log of the namespace and compare each row with its seal, and the seals with the anchors.

    And the records that are never changed (changes of budgets, transitions, ...) with what the log says of them.
    """
    proof, table = Proof(namespace), audit_log
    wanted = by_sequence(proof, anchors, "log")
    query = select(table).where(table.c.namespace == namespace).order_by(table.c.sequence)
    with snapshot(engine) as connection:
        for row in connection.execute(query.execution_options(yield_per=CHUNK)).mappings():
            _check(proof, row)
            for anchor in wanted.pop(proof.sequence, ()):
                if anchor.hash != proof.hash:
                    proof.wrong(f"row {anchor.sequence} is not what an anchor says it was: {anchor.hash}")
        _compare_records(connection, proof)
    end_is_there(proof, wanted, "log", "rows")
    return proof


def _compare_records(connection: Connection, proof: Proof) -> None:
    """What was added to tables whose rows are never changed has to be there as it was added."""
    log = audit_log
    for name, rule in RULES.items():
        if not rule.kept:
            continue
        query = select(log).where(log.c.namespace == proof.namespace, log.c.what == rule.what)
        # Erased persons are called otherwise now; rows of one statement are told together, and not each.
        single = log.c.details.startswith('{"added":') & log.c.personal_salt.is_not(None)
        said = connection.execute(query.where(single).order_by(log.c.sequence)).mappings().all()
        there = records(connection, metadata.tables[name], proof.namespace) if said else set()
        for row in said:
            if record_name(row["customer_id"], row["who"], row["why"], row["details"]) not in there:
                told = f"{row['what']} {row['subject']} by {row['who']}"
                proof.wrong(
                    f"what row {row['sequence']} says ({told}) is not in {name}: it was changed or removed there"
                )


def _check(proof: Proof, row: Any) -> None:
    sequence = row["sequence"]
    if sequence != proof.sequence + 1:
        proof.wrong(f"row {proof.sequence + 1} is followed by row {sequence}: what was between them is missing")
    if row["previous_hash"] != proof.hash:
        proof.wrong(f"row {sequence} does not follow the row before it")
    if seal_of(row) != row["hash"]:
        proof.wrong(f"row {sequence} ({row['what']}) is not what was sealed: its time, kind or seal was changed")
    if row["personal_salt"] is None:
        proof.erased += 1
    elif personal_seal(row) != row["personal_sha256"]:
        told = f"{row['what']} {row['subject']} by {row['who']}"
        proof.wrong(f"row {sequence} ({told}) is not what was sealed: whose, who, why or details were changed")
    proof.sequence, proof.hash = sequence, row["hash"]
