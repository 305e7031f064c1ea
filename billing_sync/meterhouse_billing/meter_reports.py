"""Stripe's reports about meter events that it took and does not count: matched to what was sent, and shown.

They are thin events (`v1.billing.meter.error_report_triggered`, `v1.billing.meter.no_meter_found`) that name the HTTP
idempotency key of a request: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-errors.
"""

from typing import Final

from meterhouse_billing import meter_records as records
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.meter_gateway import MeterGateway, identifier_of
from meterhouse_billing.world import World
from meterhouse_rating.layout import counted

TYPES: Final = "v1.billing.meter."


def take(world: World, event_id: str) -> str:
    """Mark what a report is about as rejected; says what that was. Raises StripeUnavailable and StripeRefused."""
    try:
        body = MeterGateway(world.gateway).report(event_id)
    except StripeRefused as refused:
        if refused.missing:
            return "is not in Stripe (any more)"
        raise
    found, strange, told = 0, 0, 0
    for kind in body["data"]["reason"]["error_types"]:
        told += kind["error_count"]
        for sample in kind["sample_errors"]:
            identifier = identifier_of((sample["request"] or {}).get("identifier") or "")
            why = f"{sample['error_message']} ({kind['code']})"
            event = identifier and records.reject(world.engine, world.namespace, identifier, why, world.now())
            found, strange = found + bool(event), strange + (not event)
    # A report has samples only: what it does not name is found when the month is compared.
    unnamed = max(0, told - found - strange)
    parts = [f"{counted(found, 'meter event')} of ours not counted"]
    parts += [f"{strange} not ours"] * bool(strange) + [f"{unnamed} not named"] * bool(unnamed)
    return ", ".join(parts)
