"""What the `ledger` commands read and write: balances as folds, the last entries, adjustments by hand."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, Engine, RowMapping, func, select

from meterhouse_rating import ledger
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_rating.money import chargeable, largest, show, smallest
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import D
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import customers, ledger_chain, ledger_entries, ledger_transactions

ADJUSTED_AGAINST = (ledger.ADJUSTMENTS, ledger.REVENUE, ledger.TAX, ledger.CASH)


class AdjustmentRefused(ValueError):
    """An adjustment that cannot be posted; the text says what to do."""


class Balance(NamedTuple):
    """What stands on a customer's account, in minor units."""

    customer_id: str
    account: str
    currency: str
    amount_minor: int
    amount: str


class Adjustment(NamedTuple):
    """What was, or would be, posted; `new` False: it was there."""

    transaction_id: str
    amount_minor: int
    amount: str
    currency: str
    new: bool


def balances(engine: Engine, namespace: str, customer_id: str | None, at: datetime | None) -> list[Balance]:
    """The fold of all entries that are effective up to a moment, by customer, account and currency."""
    transactions, entries = ledger_transactions, ledger_entries
    keys = (transactions.c.customer_id, entries.c.account, entries.c.currency)
    query = (
        select(*keys, func.sum(entries.c.amount_minor))
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(transactions.c.namespace == namespace)
        .group_by(*keys)
        .order_by(*keys)
    )
    if customer_id is not None:
        query = query.where(transactions.c.customer_id == customer_id)
    if at is not None:
        query = query.where(transactions.c.effective_at <= at)
    with engine.connect() as connection:
        return [Balance(*row[:3], int(row[3]), show(int(row[3]), row[2])) for row in connection.execute(query)]


def entries(
    engine: Engine, namespace: str, customer_id: str | None, account: str | None, limit: int
) -> Sequence[RowMapping]:
    """The entries of the last `limit` transactions, in the order of the chain."""
    chain, transactions, entries = ledger_chain, ledger_transactions, ledger_entries
    chosen = select(chain.c.sequence, transactions).join(
        transactions, transactions.c.transaction_id == chain.c.transaction_id
    )
    chosen = chosen.where(chain.c.namespace == namespace)
    if customer_id is not None:
        chosen = chosen.where(transactions.c.customer_id == customer_id)
    if account is not None:
        on_it = select(entries.c.transaction_id).where(entries.c.account == account)
        chosen = chosen.where(transactions.c.transaction_id.in_(on_it))
    last = chosen.order_by(chain.c.sequence.desc()).limit(limit).subquery()
    columns = (entries.c.position, entries.c.account, entries.c.amount_minor, entries.c.currency, entries.c.grant_id)
    query = select(last, *columns).join(entries, entries.c.transaction_id == last.c.transaction_id)
    with engine.connect() as connection:
        return connection.execute(query.order_by(last.c.sequence, entries.c.position)).mappings().all()


def adjust(
    engine: Engine,
    namespace: str,
    customer_id: str,
    amount: str,
    *,
    account: str,
    why: str,
    who: str,
    corrects: str | None,
    now: datetime,
    write: bool = True,
) -> Adjustment:
    """Post that the customer owes `amount` (major units, in its currency) more or, negative, less.

    The same adjustment, named by customer, amount, account, reason and what it corrects, is posted once. Raises
    AdjustmentRefused.
    """
    if account not in ADJUSTED_AGAINST:
        raise AdjustmentRefused(f"{account!r} cannot be adjusted against: write {', '.join(ADJUSTED_AGAINST)}")
    if not why.strip():
        raise AdjustmentRefused("say why: it is kept with the transaction")
    with begin_write(engine) as connection:
        currency = _currency(connection, namespace, customer_id)
        minor = minor_of(amount, currency)
        corrected = None if corrects is None else _named(connection, namespace, customer_id, corrects)
        source = digest(["adjustment", namespace, customer_id, minor, currency, account, why, corrected])
        sides = (Entry(ledger.RECEIVABLE, minor, currency), Entry(account, -minor, currency))
        posting = Posting("adjustment", source, f"{why} ({who})", sides, corrected)
        name = ledger.transaction_id(namespace, posting.kind, source)
        new = not ledger.posted(connection, namespace, posting.kind, source)
        if new and write:
            ledger.post(connection, namespace, customer_id, [posting], effective_at=now, recorded_at=now)
        return Adjustment(name, minor, show(minor, currency), currency, new)


def minor_of(amount: str, currency: str) -> int:
    """An amount as somebody wrote it, in minor units. Raises AdjustmentRefused for what is none, or zero."""
    try:
        value = D(amount.replace("_", "").replace(",", ""))
    except ValueError:
        raise AdjustmentRefused(f"{amount!r} is no amount: write digits and a point, such as 12.50") from None
    if not value or not chargeable(value, currency):
        span = f"{smallest(currency)} to {largest(currency)}"
        raise AdjustmentRefused(f"{amount} {currency} is no amount that can be charged: {span}")
    return int(value.scaleb(MINOR_DIGITS[currency]))


def _currency(connection: Connection, namespace: str, customer_id: str) -> str:
    # The customer's row is the lock, as for rating.
    query = select(customers.c.currency).where(
        customers.c.namespace == namespace, customers.c.customer_id == customer_id
    )
    found = connection.execute(query.with_for_update()).scalar_one_or_none()
    if found is None:
        raise AdjustmentRefused(f"{customer_id} is not registered: `meterhouse customers add {customer_id}`")
    return str(found)


def _named(connection: Connection, namespace: str, customer_id: str, beginning: str) -> str:
    transactions = ledger_transactions
    query = select(transactions.c.transaction_id).where(
        transactions.c.namespace == namespace,
        transactions.c.customer_id == customer_id,
        transactions.c.transaction_id.startswith(beginning, autoescape=True),
    )
    found = connection.execute(query.limit(2)).scalars().all()
    if len(found) != 1:
        many = "several transactions" if found else "no transaction"
        raise AdjustmentRefused(
            f"{many} of {customer_id} begin with {beginning}: `meterhouse ledger entries` lists them"
        )
    return str(found[0])
