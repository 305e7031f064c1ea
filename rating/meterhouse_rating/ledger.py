"""The double entry behind rated lines: what a line posts, and the credit balance as the fold of what was posted.

Accounts: `receivable` (the customer owes), `revenue` (earned), `deferred_credits` (prepaid, not used yet), `promotions`
(credits granted beyond their price). Debits are positive, credits negative; each transaction sums to zero.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select

from meterhouse_rating.ids import digest
from meterhouse_store.tables import ledger_entries, ledger_transactions

RECEIVABLE: Final = "receivable"
REVENUE: Final = "revenue"
DEFERRED_CREDITS: Final = "deferred_credits"
PROMOTIONS: Final = "promotions"


def entries(kind: str, amount_minor: int, credits_minor: int = 0) -> list[tuple[str, int]]:
    """The accounts and amounts that a line posts; empty for an amount of zero.

    `credits_minor` is what a credit pack grants. Raises KeyError for a kind that has no posting.
    """
    posted = {
        "usage": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "flat": [(RECEIVABLE, amount_minor), (REVENUE, -amount_minor)],
        "credit_pack": [
            (RECEIVABLE, amount_minor),
            (PROMOTIONS, credits_minor - amount_minor),
            (DEFERRED_CREDITS, -credits_minor),
        ],
        "credit_applied": [(RECEIVABLE, amount_minor), (DEFERRED_CREDITS, -amount_minor)],
    }[kind]
    return [(account, amount) for account, amount in posted if amount]


def transaction_id(namespace: str, kind: str, line_id: str) -> str:
    """The one name of the transaction that a line causes."""
    return digest(["ledger", namespace, kind, line_id])


def post(
    connection: Connection,
    namespace: str,
    customer_id: str,
    lines: list[dict[str, Any]],
    *,
    effective_at: datetime,
    recorded_at: datetime,
) -> None:
    """Post the transactions of rated lines (rows of `rated_lines`, with `credits_minor`); once, by their ids."""
    transactions, posted = [], []
    for line in lines:
        accounts = entries(line["kind"], line["amount_minor"], line["credits_minor"])
        if not accounts:
            continue
        name = transaction_id(namespace, line["kind"], line["line_id"])
        transactions.append(
            {
                "transaction_id": name,
                "namespace": namespace,
                "customer_id": customer_id,
                "kind": line["kind"],
                "source_id": line["line_id"],
                "effective_at": effective_at,
                "recorded_at": recorded_at,
                "corrects": None,
                "memo": line["description"],
            }
        )
        posted += [
            {
                "transaction_id": name,
                "position": position,
                "account": account,
                "amount_minor": amount,
                "currency": line["currency"],
            }
            for position, (account, amount) in enumerate(accounts)
        ]
    if transactions:
        connection.execute(insert(ledger_transactions), transactions)
        connection.execute(insert(ledger_entries), posted)


def credit_balance(connection: Connection, namespace: str, customer_id: str, currency: str) -> int:
    """The customer's unused credits in minor units: what was deferred and not applied."""
    query = (
        select(func.coalesce(func.sum(ledger_entries.c.amount_minor), 0))
        .join(ledger_transactions, ledger_transactions.c.transaction_id == ledger_entries.c.transaction_id)
        .where(
            ledger_transactions.c.namespace == namespace,
            ledger_transactions.c.customer_id == customer_id,
            ledger_entries.c.account == DEFERRED_CREDITS,
            ledger_entries.c.currency == currency,
        )
    )
    return -int(connection.execute(query).scalar_one())
