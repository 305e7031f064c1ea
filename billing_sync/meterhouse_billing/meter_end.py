"""The end of subscriptions: a customer that is billed by invoices again has none in Stripe from that month on.

Stripe is told the moment as soon as the switch is known, ends the subscription by itself then, and makes its last
invoice. A switch that is taken back is told, too. What was told last is read from the outbox.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from meterhouse_billing.drivers import INVOICES, Driver
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.meter_records import Subscription
from meterhouse_billing.meter_sync import Step, Sync
from meterhouse_billing.outbox import Outbox
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import short

UPDATE, CANCEL = "subscription.update", "subscription.cancel"


def end(run: Sync) -> Iterator[Step]:
    """Tell Stripe of each subscription when it ends, where that is not what it was told last."""
    world = run.world
    outbox = Outbox(world.engine, world.gateway, world.namespace, world.now)
    for it in run.subscriptions:
        wanted = _ends(run.known.get(it.customer_id, ()), it)
        try:
            yield from _one(outbox, it, wanted, world.now())
        except StripeRefused as refused:
            told = f"{it.stripe_subscription_id} could not be ended: {refused}"
            yield Step(told, it.customer_id, failed=True)


def _ends(changes: Sequence[Driver], it: Subscription) -> datetime | None:
    """The first month from the subscription's on that is billed by invoices; None where there is none."""
    return next((one.valid_from for one in changes if one.valid_from >= it.valid_from and one.driver == INVOICES), None)


def _one(outbox: Outbox, it: Subscription, wanted: datetime | None, now: datetime) -> Iterator[Step]:
    name = it.stripe_subscription_id
    if outbox.done_on(CANCEL, name):
        return
    told = outbox.done_on(UPDATE, name)
    cancel_at = "" if wanted is None else int(wanted.timestamp())
    if cancel_at == (told[-1]["params"]["cancel_at"] if told else ""):
        return
    if wanted is not None and wanted <= now:  # the month has begun: no usage of it was sent, or it would be metered
        request: dict[str, Any] = {"on": name, "params": {"invoice_now": False, "prorate": False}}
        outbox.call(CANCEL, digest([CANCEL, name]), request, lambda: None)
        yield Step(f"{name} is ended in Stripe: billed by invoices since {short(wanted)}", it.customer_id)
        return
    params = {"cancel_at": cancel_at, "proration_behavior": "none"}
    outbox.call(UPDATE, digest([UPDATE, name, len(told)]), {"on": name, "params": params}, lambda: None)
    when = "goes on" if wanted is None else f"ends in Stripe on {short(wanted)}"
    yield Step(f"{name} {when}", it.customer_id)
