"""News from Stripe: the webhook inbox and the poll. Both end in fetching the invoice as it is now.

Stripe delivers events at least once and in no order (https://docs.stripe.com/webhooks#event-delivery-behaviors), so an
event says only which invoice to look at.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, insert, select, update

from meterhouse_billing import (
    fee_records,
    fee_refunds,
    invoice_disputes,
    meter_payments,
    meter_reports,
    policies,
    records,
    refunds,
    states,
    top_up_news,
)
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.world import World
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import webhook_inbox

BATCH = 100
REFUNDS = ("refund.", "charge.refund")
"""How the types of events about refunds begin."""
THIN = "v2.core.event"
"""Events that carry no data: https://docs.stripe.com/event-destinations#thin-payload"""


def receive(engine: Engine, namespace: str, payload: str, now: datetime) -> bool:
    """Store a verified event; False for one that is there already, or of an account that sells nothing here.

    An endpoint of a platform gets the events of all of its connected accounts. Raises ValueError for what is no event.
    """
    try:
        event: dict[str, Any] = json.loads(payload)
        account = account_of(event)
        if event.get("object") == THIN:
            object_id, created = (event["related_object"] or {}).get("id", ""), datetime.fromisoformat(event["created"])
        else:
            object_id = event["data"]["object"].get("id", "")
            created = datetime.fromtimestamp(int(event["created"]), UTC)
        row = {
            "event_id": _name(event["id"], 128),
            "type": _name(event["type"], 128),
            "object_id": _name(object_id, 128),
            "stripe_created_at": created,
        }
    except (KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError) as problem:
        raise ValueError(f"this is no Stripe event: {problem!r}") from None
    if account not in policies.accounts(engine, namespace):
        return False
    with begin_write(engine) as connection:
        is_it = webhook_inbox.c.event_id == row["event_id"]
        if connection.execute(select(webhook_inbox.c.event_id).where(is_it)).first() is not None:
            return False
        connection.execute(insert(webhook_inbox).values(namespace=namespace, payload=payload, received_at=now, **row))
    return True


def account_of(event: dict[str, Any]) -> str:
    """The connected account that an event is of; '' for the key's own."""
    account = event.get("context" if event.get("object") == THIN else "account") or ""
    return _name(account, 128)


def _name(value: Any, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"this is no Stripe event: {value!r:.60} is no name")
    return value


def process(world: World) -> list[str]:
    """Work through a batch of the inbox; says what each event led to. Raises StripeUnavailable: the rest waits."""
    query = (
        select(webhook_inbox)
        .where(webhook_inbox.c.namespace == world.namespace, webhook_inbox.c.processed_at.is_(None))
        .order_by(webhook_inbox.c.received_at)
        .limit(BATCH)
    )
    with world.engine.connect() as connection:
        events = connection.execute(query).mappings().all()
    done, refunded = [], {}
    for event in events:
        outcome, told = "ignored", json.loads(event["payload"])
        # What an event is about is asked for in its own account: nobody else's objects can be named by it.
        there = world.on(account_of(told))
        if event["type"].startswith("invoice."):
            outcome = _look(there, event["object_id"], event["type"])
        elif event["type"].startswith(meter_reports.TYPES):
            outcome = meter_reports.take(there, event["event_id"])
        elif event["type"].startswith(top_up_news.EVENTS):
            outcome = _money(there, event["type"], told["data"]["object"])
        done.append(f"{event['type']} {event['object_id']}: {outcome}")
        if event["type"].startswith(REFUNDS) and isinstance(told["data"]["object"].get("payment_intent"), str):
            # Done when the fee is settled, too: nothing but this event says that there is something to give back.
            refunded[event["event_id"]] = (outcome, told["data"]["object"]["payment_intent"])
        else:
            _done(world, event["event_id"], outcome)
    if done:
        kept = list(fee_records.collect(world))
        payments = {intent for _, intent in refunded.values()}
        payments |= {it.payment_intent for it in kept if it.is_refunded and it.payment_intent is not None}
        done += [*map(str, kept), *fee_refunds.collect(world, payments)]
    for event_id, (outcome, _) in refunded.items():
        _done(world, event_id, outcome)
    return done


def _done(world: World, event_id: str, outcome: str) -> None:
    values = {"processed_at": world.now(), "outcome": outcome[:256]}
    with begin_write(world.engine) as connection:
        connection.execute(update(webhook_inbox).where(webhook_inbox.c.event_id == event_id).values(**values))


def _money(world: World, kind: str, about: dict[str, Any]) -> str:
    """Payments, refunds and disputes: of a top-up, or of an invoice, of which the payment itself says nothing new."""
    outcome = top_up_news.look(world, about)
    if outcome is None and kind.startswith(REFUNDS):
        outcome = "; ".join(refunds.record(world)) or "nothing new"
    elif outcome is None and kind.startswith(invoice_disputes.EVENTS):
        outcome = invoice_disputes.look(world, about["id"])
    return outcome or "ignored"


def poll(world: World) -> list[str]:
    """Look at all of ours that may still change, for webhooks that never came.

    Invoices, those of subscriptions, refunds, disputes, top-ups.
    """
    found = []
    for row in records.unsettled(world.engine, world.namespace):
        outcome = _look(world.of(row["customer_id"]), row["stripe_invoice_id"], "poll")
        if outcome not in ("nothing new", "still a draft"):
            found.append(f"{row['customer_id']} {row['stripe_invoice_id']}: {outcome}")
    for account in policies.accounts(world.engine, world.namespace):
        found += [*refunds.record(world.on(account)), *invoice_disputes.record(world.on(account))]
    found += [*meter_payments.poll(world), *map(str, fee_records.collect(world)), *fee_refunds.poll(world)]
    return [*found, *top_up_news.poll(world)]


def _look(world: World, stripe_invoice_id: str, why: str) -> str:
    try:
        shown = world.gateway.invoice(stripe_invoice_id)
        if shown.subscription is not None and (posted := meter_payments.take_over(world, shown)) is not None:
            return posted
        return records.take_over(world.engine, world.namespace, shown, who="stripe", why=why, now=world.now())
    except StripeRefused as refused:
        if refused.missing:
            return "is not in Stripe (any more)"
        raise
    except states.Contradiction as problem:
        return f"CONTRADICTION: {problem}"
