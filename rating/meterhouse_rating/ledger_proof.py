"""Proves the ledger: every transaction is where it was sealed, says what it said, and sums to zero; nothing is missing.

What the chain alone cannot show, that its end was cut off or that all of it was made anew, an anchor shows: number and
hash of a seal, kept where who can write the ledger cannot.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, case, func, select

from meterhouse_rating.ledger import RECEIVABLE
from meterhouse_rating.settled import CLOSED
from meterhouse_store.chain_proof import CHUNK, MAX_PROBLEMS, Proof, by_sequence, end_is_there
from meterhouse_store.ledger_chain import personal_seal, seal_of
from meterhouse_store.sql import snapshot
from meterhouse_store.tables import (
    erasures,
    ledger_chain,
    ledger_entries,
    ledger_transactions,
    rated_lines,
    ratings,
)


@dataclass(frozen=True)
class Anchor:
    """A seal to hold the ledger against later."""

    namespace: str
    sequence: int
    hash: str
    anchored_at: datetime


def prove(engine: Engine, namespace: str, anchors: Iterable[Anchor] = ()) -> Proof:
    """Read the whole ledger of the namespace at one moment and compare it with its chain and the anchors."""
    with snapshot(engine) as connection:
        return prove_on(connection, namespace, anchors)


def prove_on(connection: Connection, namespace: str, anchors: Iterable[Anchor] = ()) -> Proof:
    """`prove`, on an open transaction."""
    proof = Proof(namespace)
    wanted = by_sequence(proof, anchors, "ledger")
    customers_erased = set(
        connection.execute(select(erasures.c.customer_id).where(erasures.c.namespace == namespace)).scalars()
    )
    for rows in _sealed(connection, namespace):
        _check_seal(proof, rows, customers_erased)
        for anchor in wanted.pop(proof.sequence, ()):
            if anchor.hash != proof.hash:
                proof.wrong(
                    f"transaction {proof.sequence} has the seal {proof.hash}, the anchor of "
                    f"{anchor.anchored_at.isoformat()} says {anchor.hash}: what was there then was changed"
                )
    end_is_there(proof, wanted, "ledger", "transactions")
    _check_outside(connection, proof)
    _check_lines(connection, proof)
    return proof


def _sealed(connection: Connection, namespace: str) -> Iterator[list[RowMapping]]:
    """The seals in order, each with its transaction and entries; what is not there is NULL."""
    chain, transactions, entries = ledger_chain, ledger_transactions, ledger_entries
    query = (
        select(
            chain,
            transactions.c.transaction_id.label("found_id"),
            transactions.c.namespace.label("found_namespace"),
            *(transactions.c[name] for name in _OWN),
            entries.c.position,
            entries.c.account,
            entries.c.amount_minor,
            entries.c.currency,
            entries.c.grant_id,
        )
        .outerjoin(transactions, transactions.c.transaction_id == chain.c.transaction_id)
        .outerjoin(entries, entries.c.transaction_id == chain.c.transaction_id)
        .where(chain.c.namespace == namespace)
        .order_by(chain.c.sequence, entries.c.position)
    )
    rows = connection.execution_options(yield_per=CHUNK).execute(query).mappings()
    for _, found in groupby(rows, key=lambda row: row["sequence"]):
        yield list(found)


_OWN: Final = ("customer_id", "kind", "source_id", "effective_at", "recorded_at", "corrects", "memo")


def _check_seal(proof: Proof, rows: Sequence[RowMapping], erased: set[str]) -> None:
    seal, name = rows[0], rows[0]["transaction_id"]
    if seal["sequence"] != proof.sequence + 1:
        proof.wrong(f"transactions {proof.sequence + 1} to {seal['sequence'] - 1} are missing")
    if seal["previous_hash"] != proof.hash:
        proof.wrong(f"transaction {seal['sequence']} does not follow the one before it: one of them was changed")
    proof.sequence, proof.hash = seal["sequence"], seal["hash"]
    if seal["found_id"] is None:
        proof.wrong(f"transaction {seal['sequence']} ({name[:12]}) is sealed and not there")
        return
    transaction: dict[str, Any] = {**seal, "namespace": seal["found_namespace"]}
    there = [row for row in rows if row["position"] is not None]
    personal = seal["personal_sha256"]
    if seal_of(seal["previous_hash"], seal["sequence"], personal, transaction, there) != seal["hash"]:
        proof.wrong(f"transaction {seal['sequence']} ({name[:12]}) is not what was sealed")
    _check_person(proof, seal, erased)
    sums: dict[str, int] = {}
    for row in there:
        sums[row["currency"]] = sums.get(row["currency"], 0) + row["amount_minor"]
    if any(sums.values()) or not there:
        proof.wrong(f"transaction {seal['sequence']} ({name[:12]}) does not sum to zero: {sums}")


def _check_person(proof: Proof, seal: RowMapping, erased: set[str]) -> None:
    if seal["personal_salt"] is not None:
        if personal_seal(seal["personal_salt"], seal["customer_id"], seal["memo"]) != seal["personal_sha256"]:
            proof.wrong(f"transaction {seal['sequence']} was of another customer, or its memo was another")
        return
    proof.erased += 1
    # Words of an erased customer may stand in a memo of somebody else; without any erasure, nothing is forgotten.
    if not erased:
        proof.wrong(f"transaction {seal['sequence']} lost the seal of its customer, and nobody was erased")


def _check_outside(connection: Connection, proof: Proof) -> None:
    chain, transactions, entries = ledger_chain, ledger_transactions, ledger_entries
    unsealed = (
        select(transactions.c.transaction_id)
        .outerjoin(chain, chain.c.transaction_id == transactions.c.transaction_id)
        .where(transactions.c.namespace == proof.namespace, chain.c.transaction_id.is_(None))
    )
    for name in connection.execute(unsealed.limit(MAX_PROBLEMS)).scalars():
        proof.wrong(f"transaction {name[:12]} is there and was never sealed")
    orphans = (
        select(entries.c.transaction_id)
        .outerjoin(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(transactions.c.transaction_id.is_(None))
    )
    for name in connection.execute(orphans.distinct().limit(MAX_PROBLEMS)).scalars():
        proof.wrong(f"entries of transaction {name[:12]} are there, the transaction is not")
    other = transactions.alias()
    dangling = (
        select(transactions.c.transaction_id, transactions.c.corrects)
        .outerjoin(
            other,
            (other.c.transaction_id == transactions.c.corrects)
            & (other.c.namespace == transactions.c.namespace)
            & (other.c.customer_id == transactions.c.customer_id),
        )
        .where(
            transactions.c.namespace == proof.namespace,
            transactions.c.corrects.is_not(None),
            other.c.transaction_id.is_(None),
        )
    )
    for name, corrects in connection.execute(dangling.limit(MAX_PROBLEMS)).all():
        proof.wrong(f"transaction {name[:12]} corrects {corrects[:12]}, which is none of the same customer")


def _check_lines(connection: Connection, proof: Proof) -> None:
    """Closed ratings are in the ledger, line by line: what was cut off its end is missed here."""
    transactions, entries = ledger_transactions, ledger_entries
    owed = func.coalesce(func.sum(case((entries.c.account == RECEIVABLE, entries.c.amount_minor), else_=0)), 0)
    query = (
        select(rated_lines.c.line_id, rated_lines.c.amount_minor, owed.label("owed"))
        .join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
        .outerjoin(
            transactions,
            (transactions.c.source_id == rated_lines.c.line_id)
            & (transactions.c.kind == rated_lines.c.kind)
            & (transactions.c.namespace == ratings.c.namespace),
        )
        .outerjoin(entries, entries.c.transaction_id == transactions.c.transaction_id)
        .where(ratings.c.namespace == proof.namespace, ratings.c.state == CLOSED)
        .group_by(rated_lines.c.line_id, rated_lines.c.amount_minor)
        .having(owed != rated_lines.c.amount_minor)
        .order_by(rated_lines.c.line_id)
        .limit(MAX_PROBLEMS)
    )
    for row in connection.execute(query):
        proof.wrong(f"line {row.line_id[:12]} is closed with {row.amount_minor}, the ledger has {row.owed} of it")
