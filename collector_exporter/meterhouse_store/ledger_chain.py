"""The ledger's hash chain: each transaction is sealed by a hash of all it says and of the seal before it.

A chain per namespace, numbered from 1 without gaps. Who may change a row of the ledger can make a chain of their own
from there on; an anchor (number and hash), kept elsewhere, tells that apart.

What a person may have erased, the customer's id and the memo, is sealed by a salted hash beside it (`personal_sha256`).
Erasing removes the salt: the chain still holds, and nothing in it says any more who it was.

The database refuses what would break this, too: entries of a sealed transaction, a seal on what does not sum to zero
in each currency or that does not follow the last one, and changing or deleting any of it.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, insert, select, update

from meterhouse_store.chain_proof import GENESIS
from meterhouse_store.tables import ledger_chain, ledger_entries, ledger_transactions, namespaces

SEALED: Final = ("transaction_id", "kind", "source_id", "effective_at", "recorded_at", "corrects")
"""The columns of a transaction that its seal covers as they are, beside namespace, number and entries."""

Row = RowMapping | Mapping[str, Any]

_CHUNK: Final = 500


def seal_of(previous: str, sequence: int, personal: str, transaction: Row, entries: Iterable[Row]) -> str:
    """The hash of a transaction in its place: SHA-256, in hex, of the canonical JSON of all that is sealed."""
    body = [
        transaction["namespace"],
        sequence,
        previous,
        personal,
        [_text(transaction[name]) for name in SEALED],
        [
            [it["position"], it["account"], it["amount_minor"], it["currency"], it["grant_id"]]
            for it in sorted(entries, key=lambda it: it["position"])
        ],
    ]
    return _sha256(body)


def personal_seal(salt: str, customer_id: str, memo: str) -> str:
    """The salted hash of what says who it is about."""
    return _sha256([salt, customer_id, memo])


def seal(
    connection: Connection,
    namespace: str,
    transaction_ids: Sequence[str],
    new_salt: Callable[[], str] = lambda: secrets.token_hex(16),
) -> None:
    """Put posted transactions at the end of the namespace's chain, in this order, in the caller's transaction.

    Writers of one namespace wait for each other here until they commit.
    """
    for start in range(0, len(transaction_ids), _CHUNK):
        names = transaction_ids[start : start + _CHUNK]
        found = _posted(connection, names)
        seal_rows(connection, namespace, [found[name] for name in names], new_salt)


def seal_rows(
    connection: Connection,
    namespace: str,
    posted: Sequence[tuple[Row, Sequence[Row]]],
    new_salt: Callable[[], str] = lambda: secrets.token_hex(16),
) -> None:
    """`seal` of transactions that the caller has just posted: each as its row and those of its entries."""
    if not posted:
        return
    # The row of the namespace is the lock (SQLite has locked by now); what is read after it is the last seal there is.
    connection.execute(select(namespaces.c.namespace).where(namespaces.c.namespace == namespace).with_for_update())
    sequence, previous = head(connection, namespace)
    rows = []
    for transaction, entries in posted:
        salt, sequence = new_salt(), sequence + 1
        personal = personal_seal(salt, transaction["customer_id"], transaction["memo"])
        hash_ = seal_of(previous, sequence, personal, transaction, entries)
        rows.append(
            {
                "namespace": namespace,
                "sequence": sequence,
                "transaction_id": transaction["transaction_id"],
                "personal_salt": salt,
                "personal_sha256": personal,
                "previous_hash": previous,
                "hash": hash_,
            }
        )
        previous = hash_
    connection.execute(insert(ledger_chain), rows)


def head(connection: Connection, namespace: str) -> tuple[int, str]:
    """Number and hash of the last seal; 0 and GENESIS where there is none."""
    query = select(ledger_chain.c.sequence, ledger_chain.c.hash).where(ledger_chain.c.namespace == namespace)
    row = connection.execute(query.order_by(ledger_chain.c.sequence.desc()).limit(1)).one_or_none()
    return (0, GENESIS) if row is None else (row.sequence, row.hash)


def seal_unsealed(connection: Connection) -> None:
    """Seal what was posted before there was a chain, in the order in which it was recorded."""
    chain, transactions = ledger_chain, ledger_transactions
    query = (
        select(transactions.c.namespace, transactions.c.transaction_id)
        .outerjoin(chain, chain.c.transaction_id == transactions.c.transaction_id)
        .where(chain.c.transaction_id.is_(None))
        .order_by(transactions.c.namespace, transactions.c.recorded_at, transactions.c.transaction_id)
    )
    waiting: dict[str, list[str]] = {}
    for namespace, name in connection.execute(query).all():
        waiting.setdefault(namespace, []).append(name)
    for namespace, names in waiting.items():
        seal(connection, namespace, names)


def unseal_persons(connection: Connection, condition: Any) -> None:
    """Forget the salts of the transactions for which a condition holds, so that who they are about may be replaced."""
    chosen = select(ledger_transactions.c.transaction_id).where(condition)
    connection.execute(update(ledger_chain).where(ledger_chain.c.transaction_id.in_(chosen)).values(personal_salt=None))


def _posted(connection: Connection, names: Sequence[str]) -> dict[str, tuple[RowMapping, list[RowMapping]]]:
    query = select(ledger_transactions).where(ledger_transactions.c.transaction_id.in_(names))
    found: dict[str, tuple[RowMapping, list[RowMapping]]] = {}
    for row in connection.execute(query).mappings():
        found[row["transaction_id"]] = (row, [])
    every = select(ledger_entries).where(ledger_entries.c.transaction_id.in_(names))
    for row in connection.execute(every).mappings():
        found[row["transaction_id"]][1].append(row)
    return found


def _text(value: Any) -> Any:
    return value.astimezone(UTC).isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def _sha256(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
