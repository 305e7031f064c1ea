"""Application fees of invoices: what was asked for with the draft, and what Stripe really kept of the payment.

The ledger of a namespace is that of who sells: the connected account. To it the fee is a cost, taken out of the cash
that came in; the platform's revenue is the same amount, seen from the other side (`meterhouse bill fees`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select, update

from meterhouse_billing import states
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import Draft
from meterhouse_billing.policies import Policy
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import APPLICATION_FEES, CASH, Entry, Posting
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import application_fees as table
from meterhouse_store.tables import invoices, ledger_entries, ledger_transactions

KIND: Final = "application_fee"


def asked(
    connection: Connection,
    draft: Draft,
    policy: Policy,
    stripe_invoice_id: str,
    request: Mapping[str, Any],
    now: datetime,
) -> None:
    """Remember what was asked for with a draft (`request` as it was sent); nothing for none. Repeatable."""
    amount = from_stripe(request.get("params", {}).get("application_fee_amount", 0), draft.currency)
    if not amount:
        return
    if connection.execute(select(table).where(table.c.stripe_invoice_id == stripe_invoice_id)).first() is not None:
        return
    row = {
        "stripe_invoice_id": stripe_invoice_id,
        "namespace": draft.namespace,
        "invoice_id": draft.invoice_id,
        "customer_id": draft.customer_id,
        "stripe_account": policy.stripe_account,
        "currency": draft.currency,
        "asked_minor": amount,
        "recorded_at": now,
    }
    connection.execute(insert(table).values(**row))


def of_draft(draft: Draft, policy: Policy) -> int:
    """The fee of an invoice, of its total before tax; only connected accounts pay one."""
    return policy.fee.of(draft.total_minor, draft.currency) if policy.stripe_account else 0


@dataclass(frozen=True)
class Kept:
    """What the platform kept of the payment of an invoice; `is_refunded`: money of it went back already."""

    customer_id: str
    currency: str
    amount_minor: int
    payment_intent: str | None
    is_refunded: bool

    def __str__(self) -> str:
        return f"{self.customer_id}: the platform kept {show(self.amount_minor, self.currency)} {self.currency}"


def collect(world: World) -> Iterator[Kept]:
    """Post the fees of invoices that are paid, as Stripe shows them; says which. Repeatable."""
    query = (
        select(table)
        .join(invoices, invoices.c.stripe_invoice_id == table.c.stripe_invoice_id)
        .where(table.c.namespace == world.namespace, table.c.taken_minor.is_(None), invoices.c.state == states.PAID)
    )
    with world.engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.stripe_invoice_id)).mappings().all()
    for row in rows:
        payment = world.on(row["stripe_account"]).gateway.payment_of(row["stripe_invoice_id"]) or {}
        intent, charge = payment.get("id"), payment.get("latest_charge") or {}
        taken = from_stripe(payment.get("application_fee_amount") or 0, row["currency"])
        post(world, row["customer_id"], row["currency"], intent or row["stripe_invoice_id"], taken)
        with begin_write(world.engine) as connection:
            is_it = table.c.stripe_invoice_id == row["stripe_invoice_id"]
            connection.execute(update(table).where(is_it).values(taken_minor=taken, payment_intent=intent))
        yield Kept(row["customer_id"], row["currency"], taken, intent, bool(charge.get("amount_refunded")))


def post(world: World, customer_id: str, currency: str, payment: str, amount_minor: int) -> None:
    """What was kept of a payment, once; nothing for nothing."""
    name, now = source(payment), world.now()
    sides = (Entry(APPLICATION_FEES, amount_minor, currency), Entry(CASH, -amount_minor, currency))
    with begin_write(world.engine) as connection:
        if amount_minor and not ledger.posted(connection, world.namespace, KIND, name):
            posting = Posting(KIND, name, f"application fee of {payment}", sides)
            where = (connection, world.namespace, customer_id)
            ledger.post(*where, [posting], effective_at=now, recorded_at=now)


def source(payment: str) -> str:
    """What names the posting of the fee of a payment."""
    return digest([KIND, payment])


def of_invoice(engine: Engine, stripe_invoice_id: str) -> RowMapping | None:
    """What was asked for and taken; None where there is no fee."""
    with engine.connect() as connection:
        query = select(table).where(table.c.stripe_invoice_id == stripe_invoice_id)
        return connection.execute(query).mappings().one_or_none()


def sums(engine: Engine, namespace: str) -> Sequence[tuple[str, str, int]]:
    """(customer, currency, minor units) of all fees that were posted: of invoices and of top-ups."""
    entries, transactions = ledger_entries, ledger_transactions
    query = (
        select(transactions.c.customer_id, entries.c.currency, func.sum(entries.c.amount_minor))
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(transactions.c.namespace == namespace, entries.c.account == APPLICATION_FEES)
        .group_by(transactions.c.customer_id, entries.c.currency)
        .order_by(transactions.c.customer_id, entries.c.currency)
    )
    with engine.connect() as connection:
        found: list[Any] = [(name, currency, int(amount)) for name, currency, amount in connection.execute(query)]
    return found
