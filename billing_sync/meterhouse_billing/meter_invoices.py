"""The invoices that Stripe makes of subscriptions, as rows: what customers on the meters owe, and since when it failed.

A row is what Stripe showed last, and its state only moves forward (states.py): the order of news does not matter.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from meterhouse_billing import states
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import StripeInvoice, StripeLine
from meterhouse_store.tables import metered_invoices as table


def state(connection: Connection, stripe_invoice_id: str) -> str | None:
    """The state that an invoice is known in; None where it is not known."""
    query = select(table.c.state).where(table.c.stripe_invoice_id == stripe_invoice_id)
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def keep(
    connection: Connection,
    namespace: str,
    customer_id: str,
    shown: StripeInvoice,
    lines: Sequence[StripeLine],
    now: datetime,
) -> str | None:
    """The invoice as Stripe shows it; the state it has come to, None where that is no other. A draft is no row.

    In a transaction that no other news of the namespace is in. `lines` are wanted of an invoice that is not known only.
    Raises Contradiction where Stripe shows what cannot follow.
    """
    wanted = states.of(shown)
    if wanted is None:
        return None
    is_it = table.c.stripe_invoice_id == shown.stripe_invoice_id
    row = connection.execute(select(table).where(is_it)).mappings().one_or_none()
    before = states.FINALISED if row is None else row["state"]
    if states.is_old(before, wanted):
        return None
    moved = bool(states.path(before, wanted))
    values: dict[str, Any] = {
        "state": wanted,
        "total_minor": from_stripe(shown.total, shown.currency),
        "remaining_minor": from_stripe(shown.amount_remaining, shown.currency),
        "paid_minor": from_stripe(shown.amount_paid, shown.currency),
        "number": shown.number,
        "hosted_url": shown.hosted_url,
        "due_at": shown.due_at,
        "paid_at": shown.paid_at,
    }
    if moved and wanted == states.FAILED:
        values["failed_at"] = now
    if row is not None:
        connection.execute(update(table).where(is_it).values(**values))
    else:
        finalised_at = shown.finalised_at or now
        told = [
            {"description": line.description, "amount_minor": from_stripe(line.amount, line.currency)} for line in lines
        ]
        connection.execute(
            insert(table).values(
                stripe_invoice_id=shown.stripe_invoice_id,
                namespace=namespace,
                customer_id=customer_id,
                period_start=shown.period_start or finalised_at,
                period_end=shown.period_end or finalised_at,
                currency=shown.currency,
                lines=told,
                finalised_at=finalised_at,
                **values,
            )
        )
    return wanted if moved else None
