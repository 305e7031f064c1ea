"""Refunds that somebody made in Stripe by hand: money that went back without a credit note of ours.

Stripe keeps such an invoice `paid` and owes nobody anything; so cash goes down, and what customers owe stays as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from meterhouse_billing import meter_payments, postings, records
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.crediting import NOTE_ID
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.layout import money
from meterhouse_store.sql import begin_write

LOOKED_BACK: Final = timedelta(days=35)
"""How old refunds are looked for by a poll; a poll runs daily."""


@dataclass(frozen=True)
class Refund:
    """A refund of one of our invoices that is not in the ledger, in minor units."""

    refund_id: str
    invoice: Mapping[str, Any]
    amount_minor: int

    def __str__(self) -> str:
        currency = self.invoice["currency"]
        amount = f"{money(self.amount_minor, currency)} {currency}"
        return f"{amount} of {self.invoice['number'] or self.invoice['stripe_invoice_id']} were refunded in Stripe"


def unrecorded(world: World) -> Iterator[Refund]:
    """The refunds of ours that succeeded, that no credit note of ours made, and that the ledger does not have."""
    for body in world.gateway.refunds(since=world.now() - LOOKED_BACK):
        with world.engine.connect() as connection:
            if ledger.posted(connection, world.namespace, postings.REFUND, postings.refund_source(body["id"])):
                continue
        row = invoice_paid_by(world, body["payment_intent"]) if body["status"] == "succeeded" else None
        if row is None:
            continue
        ours = (one for one in world.gateway.credit_notes(row["stripe_invoice_id"]) if NOTE_ID in one.metadata)
        if not any(body["id"] in one.refund_ids for one in ours):
            yield Refund(body["id"], row, from_stripe(body["amount"], row["currency"]))


def invoice_paid_by(world: World, payment_intent: str | None) -> Mapping[str, Any] | None:
    """Our invoice that a payment was for, or Stripe's of a subscription of ours, by its columns; None for neither."""
    stripe_id = world.gateway.invoice_of(payment_intent) if payment_intent else None
    if stripe_id is None:
        return None
    known = records.by_stripe_id(world.engine, world.namespace, stripe_id)
    return dict(known) if known is not None else meter_payments.named(world, stripe_id)


def record(world: World) -> list[str]:
    """Post them, each once; says which."""
    done = []
    for refund in list(unrecorded(world)):
        row, now = refund.invoice, world.now()
        name = row["number"] or row["stripe_invoice_id"]
        posting = postings.refund_by_hand(refund.refund_id, name, refund.amount_minor, row["currency"])
        with begin_write(world.engine) as connection:
            if ledger.posted(connection, world.namespace, posting.kind, posting.source_id):
                continue
            customer = row["customer_id"]
            ledger.post(connection, world.namespace, customer, [posting], effective_at=now, recorded_at=now)
        done.append(f"{row['customer_id']}: {refund}")
    return done
