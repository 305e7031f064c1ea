"""What the page shows of one month: usage from the warehouse, cost and plans from SQL, and what needs a look."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select

from meterhouse_rating import late, periods
from meterhouse_rating.late import LateUsage
from meterhouse_rating.settled import contract_in_force
from meterhouse_rating.sorting import BY_CHOICE
from meterhouse_rating.world import World
from meterhouse_store import registry, tables

LAST_YEAR = 2199
CUSTOMERS_SHOWN = 100
"""The page is for a look; whoever has more customers asks the command line or Grafana."""
HINTS_SHOWN = 20


@dataclass(frozen=True)
class Month:
    """A calendar month; its beginning and end depend on the customer's time zone."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> "Month":
        """`2026-11`; raises ValueError with a sentence for anything else."""
        found = re.fullmatch(r"(2\d{3})-(0[1-9]|1[0-2])", text, re.ASCII)
        if found is None:
            raise ValueError(f"a period is a month like 2026-11, not {text[:20]!r}")
        if int(found[1]) > LAST_YEAR:
            raise ValueError(f"a period is a month up to the year {LAST_YEAR}, not {text[:20]!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, moment: datetime) -> "Month":
        """The month that the moment is in, in its own zone."""
        return cls(moment.year, moment.month)

    def shifted(self, months: int) -> "Month":
        """So many months later; earlier where negative."""
        count = self.year * 12 + self.month - 1 + months
        return Month(count // 12, count % 12 + 1)

    def within(self, zone: str) -> periods.Period:
        """From its beginning to its end in the zone."""
        return periods.parse(str(self), zone)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True)
class MeterUsage:
    """A customer's quantity of one meter in the month, and of how many usage events it is the sum."""

    meter: str
    quantity: Decimal
    events: int


@dataclass(frozen=True)
class Cost:
    """A rated period of a customer that overlaps the month; `invoice` is the state of its invoice, if it has one."""

    period_start: datetime
    period_end: datetime
    state: str
    total_minor: int
    currency: str
    rated_at: datetime
    invoice: str | None


@dataclass(frozen=True)
class CustomerMonth:
    """One customer in the month; `name` is None for one who is not registered, `plan` where no contract holds.

    `unpriced` counts the usage events of the month that were rated and have no price.
    """

    customer_id: str
    name: str | None
    plan: str | None
    usage: tuple[MeterUsage, ...]
    costs: tuple[Cost, ...]
    unpriced: int = 0

    @property
    def events(self) -> int:
        """Usage events of all meters."""
        return sum(meter.events for meter in self.usage)


@dataclass(frozen=True)
class Unrated:
    """Usage without a price: why, how many events, and the line that would change it."""

    reason: str
    hint: str
    events: int


@dataclass(frozen=True)
class FromWarehouse:
    """What only the warehouse knows; `projected_through` is None before a collector has written its first watermark.

    `suspense` counts by reason what is held back of the month, which is that of UTC: who it belongs to is not certain.
    """

    usage: dict[str, list[MeterUsage]]
    suspense: dict[str, int] = field(default_factory=dict)
    suspense_elsewhere: int = 0
    late: tuple[LateUsage, ...] = ()
    projected_through: datetime | None = None
    latest_event_time: datetime | None = None


@dataclass(frozen=True)
class Overview:
    """Everything on the page. `warehouse` None: it did not answer, and the usage is unknown, not nought."""

    namespace: str
    month: Month
    now: datetime
    customers: tuple[CustomerMonth, ...]
    not_shown: int
    unrated: tuple[Unrated, ...]
    unrated_elsewhere: int
    warehouse: FromWarehouse | None


def read_warehouse(client: Client, namespace: str, month: Month, zones: dict[str, str]) -> FromWarehouse:
    """Usage, suspense and watermark; `zones` gives the time zone of each registered customer, all others are in UTC."""
    usage: dict[str, list[MeterUsage]] = defaultdict(list)
    by_zone: dict[str, list[str]] = defaultdict(list)
    for customer_id, zone in zones.items():
        by_zone[zone].append(customer_id)
    elsewhere = [customer_id for customer_id, zone in zones.items() if zone != "UTC"]
    questions = [(zone, "IN", of_zone) for zone, of_zone in sorted(by_zone.items()) if zone != "UTC"]
    for zone, operator, of_zone in [*questions, ("UTC", "NOT IN", elsewhere)]:
        period = month.within(zone)
        rows = client.query(
            USAGE[operator],
            parameters={
                "namespace": namespace,
                "customers": of_zone,
                "start": _sql_time(period.start),
                "end": _sql_time(period.end),
            },
        ).result_rows
        for customer_id, meter, quantity, events in rows:
            usage[customer_id].append(MeterUsage(meter, quantity, events))
    whole = month.within("UTC")
    edges = {"start": _sql_time(whole.start), "end": _sql_time(whole.end)}
    suspense = client.query(SUSPENSE, parameters={"namespace": namespace, **edges}).result_rows
    (watermarks, projected_through) = client.query(WATERMARK).result_rows[0]
    latest = client.query(LATEST, parameters={"namespace": namespace}).result_rows if not usage else []
    return FromWarehouse(
        usage=dict(usage),
        suspense={str(reason): int(events) for reason, events, _ in suspense if events},
        suspense_elsewhere=sum(int(elsewhere) for _, _, elsewhere in suspense),
        projected_through=_aware(projected_through) if watermarks else None,
        latest_event_time=_aware(latest[0][0]) if latest else None,
    )


def read_late(
    engine: Engine, client: Client, namespace: str, month: Month, zones: dict[str, str], now: datetime
) -> tuple[LateUsage, ...]:
    """Usage of the month that arrived after its period was closed."""
    return late.look(World(engine, client, namespace, {}), str(month), None, zones, now)


def read(engine: Engine, namespace: str, month: Month, warehouse: FromWarehouse | None, now: datetime) -> Overview:
    """The page's content; customers with the most events come first, those without usage last."""
    known = {customer.customer_id: customer for customer in registry.customers(engine, namespace)}
    plans = _plans(known, registry.contracts(engine, namespace), month)
    unrated, unpriced, elsewhere = _unrated(engine, namespace, known, month)
    costs = _costs(engine, namespace, month)
    usage = warehouse.usage if warehouse else {}
    customers = [
        CustomerMonth(
            customer_id=customer_id,
            name=known[customer_id].name if customer_id in known else None,
            plan=plans.get(customer_id),
            usage=tuple(sorted(usage.get(customer_id, []), key=lambda meter: meter.meter)),
            costs=tuple(costs.get(customer_id, [])),
            unpriced=unpriced[customer_id],
        )
        for customer_id in {*known, *usage, *costs, *unpriced}
    ]
    customers.sort(key=lambda customer: (-customer.events, customer.customer_id))
    return Overview(
        namespace=namespace,
        month=month,
        now=now,
        customers=tuple(customers[:CUSTOMERS_SHOWN]),
        not_shown=max(0, len(customers) - CUSTOMERS_SHOWN),
        unrated=unrated,
        unrated_elsewhere=elsewhere,
        warehouse=warehouse,
    )


def zones(engine: Engine, namespace: str) -> dict[str, str]:
    """The time zone of each registered customer."""
    return {customer.customer_id: customer.time_zone for customer in registry.customers(engine, namespace)}


def _plans(known: dict[str, registry.Customer], contracts: Iterable[registry.Contract], month: Month) -> dict[str, str]:
    """The plan that rating prices the month with, for each customer who has one."""
    of_customer: dict[str, list[registry.Contract]] = defaultdict(list)
    for contract in contracts:
        of_customer[contract.customer_id].append(contract)
    in_force = {
        customer_id: contract_in_force(of_customer[customer_id], month.within(customer.time_zone))
        for customer_id, customer in known.items()
    }
    return {name: contract.plan for name, contract in in_force.items() if contract and contract.plan}


def _costs(engine: Engine, namespace: str, month: Month) -> dict[str, list[Cost]]:
    ratings, invoices, customers = tables.ratings, tables.invoices, tables.customers
    zone_of = customers.c.time_zone
    query = (
        select(ratings, invoices.c.state.label("invoice_state"), zone_of)
        .outerjoin(invoices, invoices.c.rating_id == ratings.c.rating_id)
        .outerjoin(
            customers,
            (customers.c.namespace == ratings.c.namespace) & (customers.c.customer_id == ratings.c.customer_id),
        )
        .where(
            ratings.c.namespace == namespace,
            # The month as it could be in any zone; the customer's own zone narrows it down below.
            ratings.c.period_start < month.within("Etc/GMT+12").end,
            ratings.c.period_end > month.within("Etc/GMT-14").start,
        )
        .order_by(ratings.c.customer_id, ratings.c.period_start)
    )
    found: dict[str, list[Cost]] = defaultdict(list)
    with engine.connect() as connection:
        for row in connection.execute(query):
            period = month.within(row.time_zone or "UTC")
            if row.period_start < period.end and row.period_end > period.start:
                cost = Cost(
                    period_start=row.period_start,
                    period_end=row.period_end,
                    state=row.state,
                    total_minor=row.total_minor,
                    currency=row.currency,
                    rated_at=row.rated_at,
                    invoice=row.invoice_state,
                )
                found[row.customer_id].append(cost)
    return found


def _unrated(
    engine: Engine, namespace: str, known: dict[str, registry.Customer], month: Month
) -> tuple[tuple[Unrated, ...], Counter[str], int]:
    """What has no price in the month, by cause and by customer; and how many events have none in other months."""
    table = tables.unrated_usage
    query = select(table).where(table.c.namespace == namespace, table.c.reason.not_in(BY_CHOICE))
    causes: Counter[tuple[str, str]] = Counter()
    customers: Counter[str] = Counter()
    elsewhere = 0
    with engine.connect() as connection:
        for row in connection.execute(query):
            period = month.within(known[row.customer_id].time_zone if row.customer_id in known else "UTC")
            if row.period_start < period.end and row.period_end > period.start:
                causes[row.reason, row.hint] += row.events
                customers[row.customer_id] += row.events
            else:
                elsewhere += row.events
    ordered = sorted(causes.items(), key=lambda cause: (-cause[1], cause[0]))
    return tuple(Unrated(reason, hint, events) for (reason, hint), events in ordered), customers, elsewhere


_USAGE = """
SELECT billed_customer_id, meter, sum(quantity), count()
FROM usage
WHERE namespace = {{namespace:String}}
  AND billed_customer_id {operator} {{customers:Array(String)}}
  AND event_time >= {{start:DateTime64(9, 'UTC')}} AND event_time < {{end:DateTime64(9, 'UTC')}}
GROUP BY billed_customer_id, meter
"""
USAGE = {operator: _USAGE.format(operator=operator) for operator in ("IN", "NOT IN")}
# What could not be read has no namespace: it is everybody's concern. A time that could not be is that of receipt.
SUSPENSE = """
SELECT reason, countIf(here), countIf(NOT here)
FROM (
    SELECT reason, event_time >= {start:DateTime64(9, 'UTC')} AND event_time < {end:DateTime64(9, 'UTC')} AS here
    FROM suspense WHERE namespace IN ({namespace:String}, '')
)
GROUP BY reason ORDER BY reason
"""
WATERMARK = "SELECT count(), min(projected_through) FROM watermark"
LATEST = "SELECT max(event_time) FROM usage WHERE namespace = {namespace:String} HAVING count() > 0"


def _sql_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
