"""How a customer is billed: by invoices made here, or by Stripe's own meters. One of the two, from a month on.

After the month in which its contract ends a customer is billed by invoices: what is corrected then is on such. One that
begins anew is so, too, until it is switched to the meters again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, RowMapping, insert, select

from meterhouse_billing.gateway import BillingError
from meterhouse_rating.periods import month_of, next_month, short
from meterhouse_store import registry
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import billing_drivers, contracts, customers, invoices, meter_events

INVOICES: Final = "invoices"
METERS: Final = "meters"
DRIVERS: Final = (INVOICES, METERS)


class DriverRefused(BillingError):
    """A switch that would bill usage twice or not at all; the text says what to do."""


@dataclass(frozen=True)
class Driver:
    """A customer's driver from `valid_from` on, until the next one; `who` is empty where a contract's end made it."""

    customer_id: str
    valid_from: datetime
    driver: str
    who: str
    why: str


def switch(
    engine: Engine,
    namespace: str,
    customer_id: str,
    driver: str,
    *,
    valid_from: datetime | None,
    who: str,
    why: str,
    now: datetime,
) -> Driver:
    """Bill the customer by the driver from the month on that begins at `valid_from`; None: the next month.

    Raises DriverRefused for an instant that is no edge of the customer's months, and where that month, or a later one,
    is billed by the other driver already.
    """
    if driver not in DRIVERS:
        raise DriverRefused(f"{driver!r} is no driver: choose from {', '.join(DRIVERS)}")
    if not why.strip():
        raise DriverRefused("say why: it is kept with the change")
    with begin_write(engine) as connection:
        zone = _time_zone(connection, namespace, customer_id)
        this_month = month_of(now, zone)
        start = valid_from or this_month.end
        month = month_of(start, zone)
        if month.start != start:
            near = f"{short(month.start)} and {short(month.end)}"
            raise DriverRefused(f"{short(start)} is within a month of {customer_id}: switch at its edge ({near})")
        if start < this_month.start:
            raise DriverRefused(
                f"the month from {short(start)} is over: switch from {short(this_month.start)} on, or later"
            )
        if driver_at(_drivers(connection, namespace), customer_id, start) == driver:
            raise DriverRefused(f"{customer_id} is billed by {driver} from {short(start)} on already")
        _refuse_billed(connection, namespace, customer_id, driver, start)
        connection.execute(
            insert(billing_drivers).values(
                namespace=namespace,
                customer_id=customer_id,
                valid_from=start,
                recorded_at=now,
                driver=driver,
                who=who[:128],
                why=why[:500],
            )
        )
    return Driver(customer_id, start, driver, who, why)


def drivers(engine: Engine, namespace: str) -> dict[str, list[Driver]]:
    """Customer -> its drivers by time, of those that were ever switched, ends of contracts among them."""
    with engine.connect() as connection:
        return _drivers(connection, namespace)


def _drivers(connection: Connection, namespace: str) -> dict[str, list[Driver]]:
    table = billing_drivers
    query = select(table).where(table.c.namespace == namespace)
    latest: dict[tuple[str, datetime], RowMapping] = {}
    for row in connection.execute(query.order_by(table.c.valid_from, table.c.recorded_at)).mappings():
        latest[row["customer_id"], row["valid_from"]] = row
    found: dict[str, dict[datetime, Driver]] = {}
    for (customer_id, valid_from), row in latest.items():
        made = Driver(customer_id, valid_from, row["driver"], row["who"], row["why"])
        found.setdefault(customer_id, {})[valid_from] = made
    for customer_id, end in _ends(connection, namespace, found):
        found[customer_id][end] = Driver(customer_id, end, INVOICES, "", "its contract ended")
    return {name: [it for _, it in sorted(changes.items())] for name, changes in found.items()}


def _ends(connection: Connection, namespace: str, among: Collection[str]) -> list[tuple[str, datetime]]:
    """The ends of contracts: the first month that begins then, or later, in the customer's zone."""
    table, whose = contracts, customers
    query = (
        select(table.c.customer_id, table.c.valid_from, whose.c.time_zone)
        .join(whose, (whose.c.namespace == table.c.namespace) & (whose.c.customer_id == table.c.customer_id))
        .where(table.c.namespace == namespace, table.c.plan == registry.ENDED)
    )
    return [(name, next_month(end, zone)) for name, end, zone in connection.execute(query) if name in among]


def driver_at(known: Mapping[str, list[Driver]], customer_id: str, moment: datetime) -> str:
    """By what the customer's usage of that moment is billed."""
    begun = [it for it in known.get(customer_id, ()) if it.valid_from <= moment]
    return begun[-1].driver if begun else INVOICES


def on_meters_since(changes: Sequence[Driver]) -> datetime | None:
    """From when on a customer is on the meters for good, by all its changes; None where the last one is another."""
    since = None
    for change in reversed(changes):
        if change.driver != METERS:
            break
        since = change.valid_from
    return since


def _time_zone(connection: Connection, namespace: str, customer_id: str) -> str:
    query = select(customers.c.time_zone).where(
        customers.c.namespace == namespace, customers.c.customer_id == customer_id
    )
    zone: str | None = connection.execute(query).scalar_one_or_none()
    if zone is None:
        raise registry.RegistryError(f"there is no customer {customer_id!r} in {namespace}: `meterhouse customers add`")
    return zone


def _refuse_billed(connection: Connection, namespace: str, customer_id: str, driver: str, start: datetime) -> None:
    if driver == METERS:
        query = select(invoices.c.invoice_id).where(
            invoices.c.namespace == namespace,
            invoices.c.customer_id == customer_id,
            invoices.c.period_end > start,
            invoices.c.state != "void",
        )
        what = "an invoice of it is made"
    else:
        query = select(meter_events.c.identifier).where(
            meter_events.c.namespace == namespace,
            meter_events.c.customer_id == customer_id,
            meter_events.c.hour >= start,
        )
        what = "usage of it was sent to Stripe's meters"
    if connection.execute(query.limit(1)).first() is not None:
        raise DriverRefused(f"the month from {short(start)} cannot be billed by {driver}, {what}: take a later one")
