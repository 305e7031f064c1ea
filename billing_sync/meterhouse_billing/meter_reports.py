"""Stripe's reports about meter events that it took and does not count: matched to what was sent, and shown.

They are thin events (`v1.billing.meter.error_report_triggered`, `v1.billing.meter.no_meter_found`) that name the HTTP
idempotency key of a request: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-errors.
A request of the stream has many events, which are looked up then.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from meterhouse_billing import meter_records as records
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.meter_gateway import MeterGateway, identifier_of
from meterhouse_billing.meter_records import Event
from meterhouse_billing.meter_stream import batch_of
from meterhouse_billing.world import World
from meterhouse_rating.layout import counted
from meterhouse_rating.periods import Period

TYPES: Final = "v1.billing.meter."


def take(world: World, event_id: str) -> str:
    """Mark what a report is about as rejected; says what that was. Raises StripeUnavailable and StripeRefused."""
    gateway = MeterGateway(world.gateway)
    try:
        body = gateway.report(event_id)
    except StripeRefused as refused:
        if refused.missing:
            return "is not in Stripe (any more)"
        raise
    found, strange, told = 0, 0, 0
    batches: dict[str, str] = {}
    for kind in body["data"]["reason"]["error_types"]:
        told += kind["error_count"]
        for sample in kind["sample_errors"]:
            key = (sample["request"] or {}).get("identifier") or ""
            why = f"{sample['error_message']} ({kind['code']})"
            if (name := batch_of(key)) is not None:
                batches.setdefault(name, why)
                continue
            identifier = identifier_of(key)
            event = identifier and records.reject(world.engine, world.namespace, identifier, why, world.now())
            found, strange = found + bool(event), strange + (not event)
    for name, why in batches.items():
        missing = _missing(world, gateway, records.of_batch(world.engine, world.namespace, name))
        for event in missing:
            records.reject(world.engine, world.namespace, event.identifier, why, world.now())
        found += len(missing)
    # A report has samples only: what it does not name is found when the month is compared.
    unnamed = max(0, told - found - strange)
    parts = [f"{counted(found, 'meter event')} of ours not counted"]
    parts += [f"{strange} not ours"] * bool(strange) + [f"{unnamed} not named"] * bool(unnamed)
    return ", ".join(parts)


def _missing(world: World, gateway: MeterGateway, events: Sequence[Event]) -> list[Event]:
    """Which events of a batch do not count: the report names their request only, so their hours are looked at."""
    meters = {
        metered.event_name: metered.stripe_meter_id
        for it in records.subscriptions(world.engine, world.namespace)
        for metered in it.metered
    }
    return [
        event
        for event in events
        if event.event_name in meters
        and gateway.total(
            meters[event.event_name], event.stripe_customer_id, Period(event.hour, event.hour + timedelta(hours=1))
        )
        != event.total
    ]
