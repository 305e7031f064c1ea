"""What customers on the meters pay: Stripe makes their invoices, and what was paid of them is posted here.

The usage of a metered month is rated and posted as ever, so the receivable is there; a payment of the subscription's
invoice, and the tax that Stripe put on it, are posted once each, whether a webhook or a poll tells of them. The invoice
is a row of its own (meter_invoices.py), from which notices and pauses follow as from invoices that are made here.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from meterhouse_billing import meter_invoices, meter_records, postings, records, states, taxes
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import StripeInvoice
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.layout import money
from meterhouse_rating.ledger import Posting
from meterhouse_store.sql import begin_write

_FINALISED = ("open", "paid", "uncollectible")


def take_over(world: World, shown: StripeInvoice) -> str | None:
    """Keep and post what one of Stripe's invoices shows; says what. None where it is of no subscription of ours.

    Repeatable, in any order. Raises Contradiction when Stripe shows what cannot follow from what is recorded.
    """
    customer_id = owners(world).get(shown.subscription or "")
    if customer_id is None:
        return None
    now, done = world.now(), []
    with world.engine.connect() as connection:
        known = meter_invoices.state(connection, shown.stripe_invoice_id) is not None
    lines = [] if known or shown.status == "draft" else world.gateway.lines(shown.stripe_invoice_id)
    moment = shown.paid_at or shown.finalised_at or now
    with begin_write(world.engine) as connection:
        records.alone(connection, world.namespace)
        if (news := meter_invoices.keep(connection, world.namespace, customer_id, shown, lines, now)) is not None:
            done.append(news)
        for posting in _due(connection, world.namespace, shown):
            if not ledger.posted(connection, world.namespace, posting.kind, posting.source_id):
                ledger.post(connection, world.namespace, customer_id, [posting], effective_at=moment, recorded_at=now)
                done.append(f"{_amount(posting, shown.currency)} ({posting.memo})")
    return "; ".join(done) or "nothing new"


def poll(world: World) -> list[str]:
    """Look at the invoices of all subscriptions of ours, for webhooks that never came; says what was posted."""
    found = []
    whose = {it.stripe_customer_id: it.customer_id for it in meter_records.subscriptions(world.engine, world.namespace)}
    for stripe_customer_id, customer_id in whose.items():
        for shown in world.gateway.invoices_of(stripe_customer_id):
            try:
                outcome = take_over(world, shown)
            except states.Contradiction as problem:
                outcome = f"CONTRADICTION: {problem}"
            if outcome not in (None, "nothing new"):
                found.append(f"{customer_id} {shown.stripe_invoice_id}: {outcome}")
    return found


def owners(world: World) -> dict[str, str]:
    """Stripe subscription -> customer."""
    found = meter_records.subscriptions(world.engine, world.namespace)
    return {it.stripe_subscription_id: it.customer_id for it in found}


def named(world: World, stripe_invoice_id: str) -> Mapping[str, Any] | None:
    """Whose invoice it is, with its number and currency; None where it is of no subscription of ours."""
    shown = world.gateway.invoice(stripe_invoice_id)
    customer_id = owners(world).get(shown.subscription or "")
    if customer_id is None:
        return None
    return {
        "customer_id": customer_id,
        "stripe_invoice_id": stripe_invoice_id,
        "number": shown.number,
        "currency": shown.currency,
    }


def _due(connection: Connection, namespace: str, shown: StripeInvoice) -> list[Posting]:
    stripe_id, currency = shown.stripe_invoice_id, shown.currency
    name = shown.number or stripe_id
    tax = postings.tax(stripe_id, name, *taxes.in_minor(shown.tax, currency), currency)
    found = []
    if tax is not None and shown.status in _FINALISED:
        found.append(tax)
    if tax is not None and shown.status == "void" and ledger.posted(connection, namespace, tax.kind, tax.source_id):
        found.append(postings.untax(namespace, tax))
    paid = from_stripe(shown.amount_paid, currency)
    if shown.status == "paid" and paid:  # `paid` is also one whose amount moved to the customer's balance
        found.append(postings.payment(postings.payment_id(namespace, stripe_id), name, paid, currency))
    return found


def _amount(posting: Posting, currency: str) -> str:
    return f"{money(abs(posting.entries[0].amount_minor), currency)} {currency}"
