"""By which terms a customer would be billed in Stripe, and what stands against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from meterhouse_billing.gateway import BillingError
from meterhouse_billing.meter_prices import Item, offer
from meterhouse_billing.world import World
from meterhouse_rating import versions
from meterhouse_rating.agreed import agreed_in
from meterhouse_rating.periods import Period, month_of, short
from meterhouse_store import registry
from meterhouse_store.meters import Meter
from meterhouse_store.tables import credit_grants, credit_top_ups


@dataclass(frozen=True)
class Terms:
    """A customer, its plan in a version of the price book, and the plan's prices in Stripe."""

    customer: registry.Customer
    plan: str
    version: int
    items: tuple[Item, ...]


def terms(world: World, declared: Mapping[str, Meter], name: str, start: datetime) -> Terms:
    """The terms from the month on that begins at `start`, or the current one. Raises BillingError with why not."""
    engine, namespace = world.engine, world.namespace
    customer = registry.customer(engine, namespace, name)
    if customer is None:
        raise BillingError("is not registered: `meterhouse customers add`")
    _refuse_what_stripe_lacks(world, customer, start)
    month = month_of(max(start, world.now()), "UTC")
    contracts = registry.contracts(engine, namespace, name)
    held = [it for it in contracts if it.valid_from <= month.start]
    changes = [it for it in contracts if it.valid_from > month.start]
    if not held or held[-1].plan == registry.ENDED:
        raise BillingError(f"has no plan on {short(month.start)}: `meterhouse contracts change`")
    if changes:
        raise BillingError(
            f"{_change(changes[0].plan)} on {short(changes[0].valid_from)}, and a subscription in "
            "Stripe keeps its prices: set it up when that is in force"
        )
    version = versions.in_force(versions.versions(engine, namespace), month)
    if version is None:
        raise BillingError(f"no price book is in force on {short(month.start)}: `meterhouse prices publish FILE`")
    book = version.book
    plan = book.plans.get(held[-1].plan)
    if plan is None:
        raise BillingError(f"the price book has no plan {held[-1].plan}, version {version.version}")
    items = offer(book, plan, customer.currency, declared, namespace)
    return Terms(customer, plan.name, version.version, items)


def _change(plan: str) -> str:
    return "ends its contract" if plan == registry.ENDED else f"changes to the plan {plan}"


def refuse_start(name: str, start: datetime, now: datetime, items: Sequence[Item]) -> None:
    """A subscription begins with the current month, without fees, or with the next one."""
    next_month = month_of(now, "UTC").end
    fees = [item.component for item in items if item.event_name is None]
    if start < month_of(now, "UTC").start:
        raise BillingError(f"is on the meters since {short(start)}, and that month is over: switch anew")
    if start > next_month:
        raise BillingError(f"is on the meters from {short(start)} on: set it up within the month before")
    if fees and start <= now:
        raise BillingError(
            f"its plan has a monthly fee ({', '.join(fees)}), which Stripe does not bill for a month that has "
            f"begun: `meterhouse bill driver {name} meters --from {next_month:%Y-%m}`"
        )


def _refuse_what_stripe_lacks(world: World, customer: registry.Customer, start: datetime) -> None:
    """What belongs to the customer beside its plan changes its ratings, and Stripe knows nothing of it."""
    reasons = []
    for month in _year(start):
        local = month_of(month.start, customer.time_zone)
        if local != month:
            reasons.append(
                f"its months are those of {customer.time_zone}, Stripe's billing periods are in UTC: register it "
                "with `--time-zone UTC`"
            )
            break
    agreed = agreed_in(world.engine, world.namespace).get(customer.customer_id)
    if agreed is not None:
        there = {
            "add-ons": agreed.addons,
            "prices of its own": agreed.overrides,
            "discounts": agreed.discounts,
            "quantities": agreed.quantities,
        }
        reasons += [f"it has {what}, which its Stripe prices do not have" for what, found in there.items() if found]
    for what, table in (("credits", credit_grants), ("a rule that buys credits", credit_top_ups)):
        query = select(func.count()).where(
            table.c.namespace == world.namespace, table.c.customer_id == customer.customer_id
        )
        with world.engine.connect() as connection:
            if connection.execute(query).scalar_one():
                reasons.append(f"it has {what}, which Stripe's meters do not burn down")
    if reasons:
        raise BillingError("cannot be billed by Stripe's meters: " + "; ".join(reasons))


def _year(start: datetime) -> list[Period]:
    """The twelve months (UTC) from the one that begins at `start` on."""
    found, moment = [], start
    for _ in range(12):
        month = month_of(moment, "UTC")
        found.append(month)
        moment = month.end
    return found
