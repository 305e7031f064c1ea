"""The double-entry ledger: what a rated line posts, posting, and balances as the fold of what was posted.

Debits are positive, credits negative; each transaction sums to zero in each currency, is sealed into the hash chain of
its namespace (`meterhouse_store.ledger_chain`), and is never changed: a correction is a further one that names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, case, func, insert, select

from meterhouse_rating.credit_lines import grants_of, used_by
from meterhouse_rating.credits import BEFORE_GRANTS
from meterhouse_rating.ids import digest
from meterhouse_store import ledger_chain
from meterhouse_store.tables import ledger_chain as ledger_chain_table
from meterhouse_store.tables import ledger_entries, ledger_transactions

RECEIVABLE: Final = "receivable"
REVENUE: Final = "revenue"
DEFERRED_CREDITS: Final = "deferred_credits"
PROMOTIONS: Final = "promotions"
ADJUSTMENTS: Final = "adjustments"
TAX: Final = "tax"
CASH: Final = "cash"
APPLICATION_FEES: Final = "application_fees"

ACCOUNTS: Final[Mapping[str, str]] = {
    RECEIVABLE: "what customers owe",
    CASH: "what they paid",
    REVENUE: "earned",
    DEFERRED_CREDITS: "credits that are there and not used yet",
    PROMOTIONS: "credits that were given away",
    ADJUSTMENTS: "what was let off or charged by hand",
    TAX: "owed to the tax office",
    APPLICATION_FEES: "what the platform kept of payments",
}


CREDIT_EXPIRED: Final = "credit_expired"
"""The kind of transaction by which a rest of a grant goes."""


class Entry(NamedTuple):
    """One side of a transaction, in minor units; `grant_id` says whose credits, in `deferred_credits`."""

    account: str
    amount_minor: int
    currency: str
    grant_id: str | None = None


@dataclass(frozen=True)
class Posting:
    """A transaction to be posted: what kind, what caused it, its entries; `corrects` names another transaction."""

    kind: str
    source_id: str
    memo: str
    entries: tuple[Entry, ...]
    corrects: str | None = None


def entries(kind: str, amount_minor: int, credits_minor: int = 0) -> list[tuple[str, int]]:
    """The accounts and amounts that a line posts; empty for an amount of zero.

    `credits_minor` is what a credit pack grants. Raises KeyError for a kind that has no posting.
    """
    posted = {
        "usage": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "flat": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "minimum": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "discount": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "credit_pack": [
            (RECEIVABLE, amount_minor),
            (PROMOTIONS, credits_minor - amount_minor),
            (DEFERRED_CREDITS, -credits_minor),
        ],
        "credit_applied": [(RECEIVABLE, amount_minor), (DEFERRED_CREDITS, -amount_minor)],
        "correction": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "credit_restored": [(RECEIVABLE, amount_minor), (DEFERRED_CREDITS, -amount_minor)],
    }[kind]
    return [(account, amount) for account, amount in posted if amount]


def of_lines(lines: Iterable[Mapping[str, Any]], namespace: str = "") -> list[Posting]:
    """The postings of rated lines (rows of `rated_lines`): what each grant gets or gives is an entry of its own."""
    found = []
    for line in lines:
        explanation, currency = line["explanation"], line["currency"]
        moved: dict[str | None, int] = {}
        if line["kind"] == "credit_pack":
            moved = {it.grant_id: it.left_minor for it in grants_of(explanation, currency)}
        elif line["kind"] in ("credit_applied", "credit_restored"):
            moved = {name: -amount for name, amount in used_by(explanation, currency).items()}
        if not moved and line["kind"] in ("credit_pack", "credit_applied"):
            moved = {None: line["amount_minor"]}
        sides = entries(line["kind"], line["amount_minor"], sum(moved.values()))
        made = [Entry(account, amount, currency) for account, amount in sides if account != DEFERRED_CREDITS]
        made += [Entry(DEFERRED_CREDITS, -amount, currency, name) for name, amount in moved.items()]
        if made:
            corrects = explanation.get("corrects", {})
            named = transaction_id(namespace, corrects["kind"], corrects["line"]) if corrects.get("line") else None
            found.append(Posting(line["kind"], line["line_id"], line["description"], tuple(made), named))
    return found


def transaction_id(namespace: str, kind: str, source_id: str) -> str:
    """The one name of the transaction that something causes."""
    return digest(["ledger", namespace, kind, source_id])


class Due(NamedTuple):
    """A posting of a customer, and when it is effective and was recorded."""

    customer_id: str
    posting: Posting
    effective_at: datetime
    recorded_at: datetime


def post(
    connection: Connection,
    namespace: str,
    customer_id: str,
    postings: Sequence[Posting],
    *,
    effective_at: datetime,
    recorded_at: datetime,
) -> list[str]:
    """`post_all` of one customer at one time."""
    return post_all(connection, namespace, [Due(customer_id, it, effective_at, recorded_at) for it in postings])


def post_all(connection: Connection, namespace: str, due: Sequence[Due]) -> list[str]:
    """Post and seal, in this order, in the caller's transaction; returns the transactions' names.

    A second time violates their names (IntegrityError). Raises ValueError for what does not sum to zero.
    """
    names = [transaction_id(namespace, it.posting.kind, it.posting.source_id) for it in due]
    for it in due:
        _check(it.posting)
    if not due:
        return []
    transactions = [
        {
            "transaction_id": name,
            "namespace": namespace,
            "customer_id": it.customer_id,
            "kind": it.posting.kind,
            "source_id": it.posting.source_id,
            "effective_at": it.effective_at,
            "recorded_at": it.recorded_at,
            "corrects": it.posting.corrects,
            "memo": it.posting.memo[:256],
        }
        for name, it in zip(names, due, strict=True)
    ]
    entries = [
        [
            {"transaction_id": name, "position": position, **entry._asdict()}
            for position, entry in enumerate(it.posting.entries)
        ]
        for name, it in zip(names, due, strict=True)
    ]
    connection.execute(insert(ledger_transactions), transactions)
    connection.execute(insert(ledger_entries), [row for rows in entries for row in rows])
    ledger_chain.seal_rows(connection, namespace, list(zip(transactions, entries, strict=True)))
    return names


def posted(connection: Connection, namespace: str, kind: str, source_id: str) -> bool:
    """Whether the transaction is there."""
    name = transaction_id(namespace, kind, source_id)
    query = select(ledger_transactions.c.transaction_id).where(ledger_transactions.c.transaction_id == name)
    return connection.execute(query).first() is not None


@dataclass(frozen=True)
class Upto:
    """What of the ledger was known: recorded up to a moment, and before a place in the chain, where that is given."""

    recorded_at: datetime
    before: int | None


class CreditsLeft(NamedTuple):
    """What is left of a grant, in minor units, and how often a rest of it has expired."""

    minor: int
    expired: int


_LEFT: Final = (
    func.sum(ledger_entries.c.amount_minor),
    func.sum(case(((ledger_transactions.c.kind == CREDIT_EXPIRED) & (ledger_entries.c.amount_minor > 0), 1), else_=0)),
)


def credits_left(
    connection: Connection,
    namespace: str,
    customer_id: str,
    currency: str,
    at: datetime | None = None,
    upto: Upto | None = None,
) -> dict[str, CreditsLeft]:
    """Per grant of the customer what was deferred and not used: the fold of entries (up to `at`)."""
    grant = func.coalesce(ledger_entries.c.grant_id, BEFORE_GRANTS)
    query = (
        select(grant, *_LEFT)
        .join(ledger_transactions, ledger_transactions.c.transaction_id == ledger_entries.c.transaction_id)
        .where(
            ledger_transactions.c.namespace == namespace,
            ledger_transactions.c.customer_id == customer_id,
            ledger_entries.c.account == DEFERRED_CREDITS,
            ledger_entries.c.currency == currency,
        )
        .group_by(grant)
    )
    if at is not None:
        query = query.where(ledger_transactions.c.effective_at <= at)
    if upto is not None:
        query = query.where(ledger_transactions.c.recorded_at <= upto.recorded_at)
        if upto.before is not None:
            chain = ledger_chain_table
            query = query.join(chain, chain.c.transaction_id == ledger_transactions.c.transaction_id)
            query = query.where(chain.c.sequence < upto.before)
    return {str(name): CreditsLeft(-int(minor), int(expired)) for name, minor, expired in connection.execute(query)}


def all_credits_left(
    connection: Connection, namespace: str, customers: Sequence[str]
) -> Iterable[tuple[str, str, str, CreditsLeft]]:
    """What `credits_left` says of each customer and currency: customer, currency, grant and what is left of it."""
    grant = func.coalesce(ledger_entries.c.grant_id, BEFORE_GRANTS)
    whose = (ledger_transactions.c.customer_id, ledger_entries.c.currency, grant)
    query = (
        select(*whose, *_LEFT)
        .join(ledger_transactions, ledger_transactions.c.transaction_id == ledger_entries.c.transaction_id)
        .where(
            ledger_transactions.c.namespace == namespace,
            ledger_transactions.c.customer_id.in_(customers),
            ledger_entries.c.account == DEFERRED_CREDITS,
        )
        .group_by(*whose)
    )
    for customer, currency, name, minor, expired in connection.execute(query):
        yield str(customer), str(currency), str(name), CreditsLeft(-int(minor), int(expired))


def _check(posting: Posting) -> None:
    sums: dict[str, int] = {}
    for entry in posting.entries:
        if entry.account not in ACCOUNTS:
            raise ValueError(f"the ledger has no account {entry.account!r}")
        if isinstance(entry.amount_minor, bool) or not isinstance(entry.amount_minor, int):
            raise ValueError(f"an amount is a whole number of minor units, not {entry.amount_minor!r}")
        sums[entry.currency] = sums.get(entry.currency, 0) + entry.amount_minor
    if len(posting.entries) < 2 or any(sums.values()):
        raise ValueError(f"a ledger transaction sums to zero in each currency, {posting.entries} does not")
