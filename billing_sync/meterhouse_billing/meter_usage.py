"""What the customers of the meter driver used, hour by hour, as Stripe's meters are to know it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from meterhouse_billing.meter_records import Bucket, Lane, Subscription
from meterhouse_rating import usage
from meterhouse_rating.metrics import COUNT
from meterhouse_rating.periods import Period
from meterhouse_rating.usage import Hour
from meterhouse_rating.world import World
from meterhouse_store import decided, decisions
from meterhouse_store.numbers import plain


class Source(Protocol):
    """Where usage is read from."""

    def as_of(self) -> datetime | None:
        """The moment up to which all that was received is known; None where nothing is known yet."""

    def hours(self, period: Period, customers: Sequence[str], as_of: datetime) -> Iterable[Hour]:
        """Usage of the customers that was known at `as_of`."""


@dataclass(frozen=True)
class Warehouse:
    """The usage in ClickHouse, with decisions applied."""

    world: World

    def as_of(self) -> datetime | None:
        decisions.wait_for_others(self.world.engine)
        decided.apply(self.world.engine, self.world.client)
        reached = usage.watermark(self.world.client).as_of
        return None if reached is None else min(reached, self.world.now())

    def hours(self, period: Period, customers: Sequence[str], as_of: datetime) -> Iterable[Hour]:
        return usage.by_hour(self.world.client, self.world.namespace, period, customers, as_of=as_of)


@dataclass(frozen=True)
class Counted:
    """The totals of each hour, whole sums per lane, and what cannot be sent (lane -> why)."""

    buckets: tuple[Bucket, ...]
    sums: dict[Lane, Decimal] = field(default_factory=dict)
    problems: dict[Lane, str] = field(default_factory=dict)


def count(subscriptions: Iterable[Subscription], hours: Iterable[Hour]) -> Counted:
    """What each Stripe meter is to know of each hour; calls whose status is free are in none of it."""
    of_meter = {
        (subscription.customer_id, meter): (subscription, metered)
        for subscription in subscriptions
        for metered in subscription.metered
        for meter in metered.meters
    }
    totals: dict[tuple[Lane, datetime], Decimal] = {}
    stripe_ids: dict[Lane, str] = {}
    for hour in hours:
        subscription, metered = of_meter.get((hour.customer_id, hour.meter), (None, None))
        if subscription is None or metered is None or hour.status in metered.free_statuses:
            continue
        lane = hour.customer_id, metered.event_name
        stripe_ids[lane] = subscription.stripe_customer_id
        amount = Decimal(hour.events) if metered.aggregate == COUNT else hour.quantity
        totals[lane, hour.start] = totals.get((lane, hour.start), Decimal(0)) + amount
    sums: dict[Lane, Decimal] = {}
    problems: dict[Lane, str] = {}
    for (lane, start), total in totals.items():
        sums[lane] = sums.get(lane, Decimal(0)) + total
        if total != total.to_integral_value():
            problems[lane] = f"{plain(total)} in the hour from {start:%Y-%m-%d %H:%M} is no whole number"
    buckets = tuple(
        Bucket(*lane, stripe_ids[lane], start, int(total))
        for (lane, start), total in sorted(totals.items())
        if lane not in problems
    )
    return Counted(buckets, sums, problems)
