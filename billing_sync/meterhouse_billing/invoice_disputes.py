"""Disputes of invoices' payments: the money that a bank took is owed again until the dispute is won.

Stripe keeps such an invoice `paid`; so the ledger says what is owed (receivable against cash), and whether a customer
whose bank was right pays again is a person's to settle. A dispute is looked at as Stripe shows it now, so any order and
any repetition of news end the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import stripe

from meterhouse_billing import disputes, postings, purchases, records, refunds
from meterhouse_billing.amounts import NotPayable, from_stripe
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.layout import money
from meterhouse_store.sql import begin_write

EVENTS = "charge.dispute."


@dataclass(frozen=True)
class Dispute:
    """A dispute (`shown`, as Stripe does) of one of our invoices, of which something is not known here."""

    shown: Mapping[str, Any]
    invoice: Mapping[str, Any]

    def __str__(self) -> str:
        currency = self.shown["currency"].upper()
        amount = f"{money(from_stripe(self.shown['amount'], currency), currency)} {currency}"
        name = self.invoice["number"] or self.invoice["stripe_invoice_id"]
        return f"{amount} of invoice {name} are disputed ({self.shown['reason']}): {self.shown['status']}"


def look(world: World, dispute_id: str) -> str | None:
    """Settle the dispute that an event is about; says what that led to, None for none of ours.

    Raises StripeUnavailable and StripeRefused.
    """
    try:
        shown = world.gateway.call(partial(_shown, name=dispute_id))
    except StripeRefused as refused:
        if refused.missing:
            return None
        raise
    invoice = refunds.invoice_paid_by(world, shown["payment_intent"])
    return None if invoice is None else _settle(world, Dispute(shown, invoice)) or "nothing new"


def unrecorded(world: World) -> Iterator[Dispute]:
    """The disputes of ours, recent or going on, that Stripe shows otherwise than they are known here."""
    since = world.now() - refunds.LOOKED_BACK
    found = {one["id"]: one for one in world.gateway.call(lambda client: _since(client, since))}
    for row in disputes.going_on(world.engine, world.namespace):
        name = row["dispute_id"]
        if name not in found and world.of(row["customer_id"]).gateway is world.gateway:
            found[name] = world.gateway.call(partial(_shown, name=name))
    for shown in found.values():
        with world.engine.connect() as connection:
            if disputes.status(connection, shown["id"]) == shown["status"]:
                continue
        intent = shown["payment_intent"]
        if intent is None or purchases.by_stripe_id(world.engine, world.namespace, intent) is not None:
            continue
        invoice = refunds.invoice_paid_by(world, intent)
        if invoice is not None:
            yield Dispute(shown, invoice)


def record(world: World) -> Iterator[str]:
    """Keep and post them; says which."""
    for dispute in list(unrecorded(world)):
        said = _settle(world, dispute)
        if said is not None:
            yield f"{dispute.invoice['customer_id']}: {said}"


def _settle(world: World, dispute: Dispute) -> str | None:
    shown, invoice, now = dispute.shown, dispute.invoice, world.now()
    currency, name = shown["currency"].upper(), invoice["number"] or invoice["stripe_invoice_id"]
    moment = datetime.fromtimestamp(shown["created"], UTC)
    with begin_write(world.engine) as connection:
        records.alone(connection, world.namespace)
        try:
            amount = from_stripe(shown["amount"], currency)
            news = disputes.keep(
                connection, world.namespace, invoice["customer_id"], shown, now, invoice["stripe_invoice_id"]
            )
        except NotPayable as refused:
            return f"CONTRADICTION: {shown['id']} of invoice {name}: {refused}"
        taken = postings.disputed(shown["id"], name, amount, currency)
        is_taken = ledger.posted(connection, world.namespace, taken.kind, taken.source_id)
        where = (connection, world.namespace, invoice["customer_id"])
        if disputes.takes(shown) and not is_taken:
            ledger.post(*where, [taken], effective_at=moment, recorded_at=now)
        elif not disputes.takes(shown) and is_taken:
            won = postings.dispute_won(world.namespace, taken)
            if not ledger.posted(connection, world.namespace, won.kind, won.source_id):
                ledger.post(*where, [won], effective_at=now, recorded_at=now)
    return str(dispute) if news else None


def _shown(client: stripe.StripeClient, name: str) -> dict[str, Any]:
    return client.v1.disputes.retrieve(name).to_dict()


def _since(client: stripe.StripeClient, since: datetime) -> list[dict[str, Any]]:
    page = client.v1.disputes.list({"created": {"gte": int(since.timestamp())}, "limit": 100})
    return [it.to_dict() for it in page.auto_paging_iter()]
