"""Payments that customers' banks took back, or ask about, as rows: as Stripe showed them last, of invoices and top-ups.

https://docs.stripe.com/disputes/how-disputes-work: an inquiry (`warning_...`) takes no money, a dispute does at once,
and one that is won brings it back.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select, update

from meterhouse_billing.amounts import from_stripe
from meterhouse_store.tables import disputes as table
from meterhouse_store.tables import invoices, metered_invoices

LOST: Final = "lost"
DECIDED: Final = ("won", LOST, "prevented", "warning_closed")
"""States of a dispute after which it stays as it is."""

_NOTHING_TAKEN: Final = ("won", "prevented", "warning_needs_response", "warning_under_review", "warning_closed")


def takes(shown: Mapping[str, Any]) -> bool:
    """Whether the money of a dispute, as Stripe shows it, is with the bank."""
    return shown["status"] not in _NOTHING_TAKEN


def keep(
    connection: Connection,
    namespace: str,
    customer_id: str,
    shown: Mapping[str, Any],
    now: datetime,
    stripe_invoice_id: str | None = None,
) -> bool:
    """A dispute as Stripe shows it now (https://docs.stripe.com/api/disputes/object); whether that is news.

    What is decided stays so: an answer that was asked for before came late. Raises NotPayable.
    """
    currency = shown["currency"].upper()
    row = {
        "dispute_id": shown["id"],
        "namespace": namespace,
        "customer_id": customer_id,
        "payment_intent": shown["payment_intent"],
        "stripe_invoice_id": stripe_invoice_id,
        "amount_minor": from_stripe(shown["amount"], currency),
        "currency": currency,
        "status": shown["status"],
        "reason": shown["reason"],
        "disputed_at": datetime.fromtimestamp(shown["created"], UTC),
        "seen_at": now,
    }
    known = status(connection, shown["id"])
    if known is None:
        connection.execute(insert(table).values(**row))
    elif known == row["status"] or known in DECIDED:
        return False
    else:
        connection.execute(update(table).where(table.c.dispute_id == row["dispute_id"]).values(**row))
    return True


def status(connection: Connection, dispute_id: str) -> str | None:
    """What was known last of a dispute; None for one that is not known."""
    found: str | None = connection.execute(
        select(table.c.status).where(table.c.dispute_id == dispute_id)
    ).scalar_one_or_none()
    return found


def listed(engine: Engine, namespace: str, customer_id: str | None = None) -> Sequence[RowMapping]:
    """The disputes, the latest first; `number` of the invoice that was paid, None of a top-up."""
    number = func.coalesce(invoices.c.number, metered_invoices.c.number, table.c.stripe_invoice_id).label("number")
    query = (
        select(table, number)
        .outerjoin(invoices, invoices.c.stripe_invoice_id == table.c.stripe_invoice_id)
        .outerjoin(metered_invoices, metered_invoices.c.stripe_invoice_id == table.c.stripe_invoice_id)
        .where(table.c.namespace == namespace)
    )
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    with engine.connect() as connection:
        return connection.execute(query.order_by(table.c.disputed_at.desc(), table.c.dispute_id)).mappings().all()


def lost_minor(engine: Engine, namespace: str, payment_intent: str) -> int:
    """How much of a payment banks kept for good."""
    query = select(func.coalesce(func.sum(table.c.amount_minor), 0)).where(
        table.c.namespace == namespace, table.c.payment_intent == payment_intent, table.c.status == LOST
    )
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def going_on(engine: Engine, namespace: str) -> Sequence[RowMapping]:
    """The disputes of invoices that are not decided."""
    query = select(table).where(
        table.c.namespace == namespace, table.c.status.not_in(DECIDED), table.c.stripe_invoice_id.is_not(None)
    )
    with engine.connect() as connection:
        return connection.execute(query.order_by(table.c.dispute_id)).mappings().all()
