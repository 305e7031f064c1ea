"""The end of a metered month: our usage and Stripe's summary, per customer and meter, compared for good.

An hour after its end a month is frozen: Stripe makes its invoice then, and nothing that is sent for it later is on one.
What differs, and usage that becomes known later, is an exception for a person.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import Engine

from meterhouse_billing import meter_records as records
from meterhouse_billing.drivers import Driver, on_meters_since
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.meter_records import Frozen, Subscription
from meterhouse_billing.meter_sync import OLDEST, Step, Sync, deliver
from meterhouse_billing.meter_usage import count
from meterhouse_rating.layout import counted, number
from meterhouse_rating.periods import Period, months

FREEZE_AFTER: Final = timedelta(hours=1)
"""So long Stripe leaves a subscription's invoice a draft: https://docs.stripe.com/billing/invoices/subscription"""
LOOK_BACK: Final = timedelta(days=92)
"""So long usage that comes late for a frozen month is looked for."""


def freeze(run: Sync) -> Iterator[Step]:
    """Compare the months that are over; look for usage that came late to those that were compared before."""
    world, now = run.world, run.world.now()
    as_of = run.source.as_of()
    begun = min((it.valid_from for it in run.subscriptions), default=None)
    if as_of is None or begun is None:
        return
    known = records.frozen(world.engine, world.namespace)
    waiting = {event.customer_id for lane in records.pending(world.engine, world.namespace).values() for event in lane}
    for month in months(max(begun, now - LOOK_BACK), now, "UTC"):
        if as_of < month.end + FREEZE_AFTER or month.start < begun:
            continue
        billed = run.billed(month)
        if not billed:
            continue
        sums = count(billed, run.hours(month, billed, as_of)).sums
        done = {(it.customer_id, it.event_name): it for it in known if it.period == month}
        changed = [
            replace(it, later=sums.get(lane, Decimal(0)), handled_at=None)
            for lane, it in done.items()
            if it.later != sums.get(lane, Decimal(0))
        ]
        records.freeze(world.engine, world.namespace, changed)
        for subscription in billed:
            if any(customer_id == subscription.customer_id for customer_id, _ in done):
                continue
            if subscription.customer_id in waiting:
                yield Step(f"{month.start:%Y-%m} is compared when all of it is sent", subscription.customer_id)
                continue
            yield _compare(run, subscription, month, sums, now)


def _compare(
    run: Sync, subscription: Subscription, month: Period, sums: dict[tuple[str, str], Decimal], now: datetime
) -> Step:
    compared = []
    for metered in subscription.metered:
        lane = subscription.customer_id, metered.event_name
        ours = sums.get(lane, Decimal(0))
        stripes = run.gateway.total(metered.stripe_meter_id, subscription.stripe_customer_id, month)
        compared.append(Frozen(*lane, month, ours, stripes, ours, now))
    records.freeze(run.world.engine, run.world.namespace, compared)
    equal = sum(it.ours == it.stripes for it in compared)
    return Step(
        f"{month.start:%Y-%m} is compared: {equal} of {counted(len(compared), 'meter')} equal", subscription.customer_id
    )


def exceptions(
    engine: Engine, namespace: str, known: Mapping[str, list[Driver]], subscriptions: Iterable[Subscription]
) -> Iterator[Step]:
    """Everything that a person has to look at, each with what to do next."""
    billed = {it.customer_id: it.valid_from for it in subscriptions}
    for customer_id, changes in known.items():
        since = on_meters_since(changes)
        if since is not None and (customer_id not in billed or billed[customer_id] < since):
            yield Step(
                f"has no subscription in Stripe: `meterhouse bill setup --customer {customer_id}`", customer_id, True
            )
    for event in records.rejected(engine, namespace):
        yield Step(
            f"Stripe does not count {number(Decimal(event.total))} of {event.event_name} in the hour from "
            f"{event.hour:%Y-%m-%d %H:%M} UTC: {event.last_error}. When that is mended: "
            f"`meterhouse bill sync --repair {event.hour:%Y-%m} --customer {event.customer_id}`",
            event.customer_id,
            failed=True,
        )
    for it in records.frozen(engine, namespace):
        if it.handled_at is not None:
            continue
        month = f"{it.period.start:%Y-%m}"
        if it.ours != it.stripes:
            yield Step(
                f"{month}: Stripe has {number(it.stripes)} of {it.event_name}, used are {number(it.ours)}: "
                f"`meterhouse bill sync --repair {month} --customer {it.customer_id}`; an invoice that Stripe made "
                "already is corrected there, by a credit note or an invoice item",
                it.customer_id,
                failed=True,
            )
        if it.later != it.ours:
            to_do = (
                "add an invoice item or a credit note there for the correction that the next rating shows"
                if on_meters_since(known.get(it.customer_id, ())) is not None
                else "`meterhouse bill run` invoices the correction, if it is on a rating of a month that is billed by "
                "invoices; else add an invoice item or a credit note there"
            )
            yield Step(
                f"{month}: {number(it.later - it.ours)} of {it.event_name} came after the month was closed on "
                f"{it.frozen_at:%Y-%m-%d %H:%M} UTC, and are on no invoice of its subscription: {to_do}",
                it.customer_id,
                failed=True,
            )


def handle(
    engine: Engine, namespace: str, month: Period, customer_id: str, *, who: str, why: str, now: datetime
) -> list[Frozen]:
    """Keep that what differs in a customer's month is seen to, and who says so; it is listed no more unless it changes.

    Raises BillingError where nothing differs or nobody says why, roles.NotAllowed where others have invoicing's role.
    """
    if not why.strip():
        raise BillingError("say in --why what was done, for instance the credit note that was made in Stripe")
    found = records.handle(engine, namespace, customer_id, month.start, who=who, why=why.strip(), now=now)
    if not found:
        raise BillingError(
            f"there is no difference to see to in {month.start:%Y-%m} of {customer_id}: "
            "`meterhouse bill meters` lists those there are"
        )
    return found


def repair(run: Sync, month: Period, customer_id: str) -> Iterator[Step]:
    """Send every hour of a month anew in which Stripe's summary is not our usage; compare again what was compared.

    Raises BillingError for a month that is too old for Stripe, or that is not billed by meters.
    """
    world, now = run.world, run.world.now()
    if month.end <= now - OLDEST:
        raise BillingError(f"{month.start:%Y-%m} is over for more than 35 days: Stripe takes no events of it any more")
    mine = [it for it in run.billed(month) if it.customer_id == customer_id]
    as_of = run.source.as_of()
    if not mine or as_of is None:
        raise BillingError(
            f"{customer_id} is not billed by Stripe's meters in {month.start:%Y-%m}: `meterhouse bill driver`"
        )
    found = count(mine, run.hours(month, mine, as_of))
    ours = {(it.event_name, it.hour): it.total for it in found.buckets}
    force = set()
    for metered in mine[0].metered:
        stripes = run.gateway.by_hour(metered.stripe_meter_id, mine[0].stripe_customer_id, month)
        hours = {*stripes, *(hour for name, hour in ours if name == metered.event_name)}
        force |= {
            (customer_id, metered.event_name, hour)
            for hour in hours
            if stripes.get(hour, Decimal(0)) != ours.get((metered.event_name, hour), 0)
        }
    lanes = {(customer_id, metered.event_name): mine[0].stripe_customer_id for metered in mine[0].metered}
    written = records.record(
        world.engine,
        world.namespace,
        month,
        found.buckets,
        of=lanes,
        since=now - OLDEST,
        until=as_of + timedelta(microseconds=1),
        now=now,
        force=force,
    )
    yield Step(f"{month.start:%Y-%m}: {counted(written, 'hourly total')} to send again", customer_id)
    yield from deliver(run)
    if any(
        it.customer_id == customer_id and it.period == month for it in records.frozen(world.engine, world.namespace)
    ):
        yield _compare(run, mine[0], month, found.sums, now)
