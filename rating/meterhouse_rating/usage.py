"""What ClickHouse tells rating: usage aggregates, measures, and how far the collectors' records are in it.

The queries are built in `queries.py`, from fixed parts; values are bound by the server.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse_rating import costs_usage
from meterhouse_rating.costs_queries import NOT_OF_METERS
from meterhouse_rating.costs_usage import Costing
from meterhouse_rating.metrics import TIME_WEIGHTED
from meterhouse_rating.money import decimal_of
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import (
    EPOCH,
    FIRST_DAYS,
    FIRST_USAGE,
    HOURS,
    MAX_GROUPS,
    USAGE,
    USED_DAYS,
    WATERMARK,
    Whom,
    aggregate_query,
    measure_parameters,
    measure_query,
    nanoseconds,
    totals_query,
    window_parameters,
)
from meterhouse_rating.sorting import Measure, Measurement, UsageRow
from meterhouse_rating.sums import Sums

__all__ = ["Found", "Wanted", "Watermark", "aggregates", "first_days", "first_usage", "gather", "watermark"]

_NANOSECONDS: Final = 10**9


@dataclass(frozen=True)
class Wanted:
    """What the prices of a period depend on: dimensions, whether tasks matter, what has to be measured, and `costs`:
    of which meters what the provider asks.
    """

    dimensions: tuple[str, ...] = ()
    tasks: bool = False
    measurements: tuple[Measurement, ...] = ()
    costs: Costing | None = None


@dataclass(frozen=True)
class Found:
    """One customer's usage of a period. `too_many`: by these dimensions it has more groups than are rated."""

    rows: tuple[UsageRow, ...] = ()
    measures: tuple[Measure, ...] = ()
    too_many: tuple[str, ...] = ()

    def joined(self, trial: "Found") -> "Found":
        """This usage, and that of a trial before it, which is marked and measured by nothing."""
        return Found(
            tuple(replace(row, trial=True) for row in trial.rows) + self.rows,
            self.measures,
            self.too_many or trial.too_many,
        )


@dataclass
class _Gathered:
    rows: dict[str, list[UsageRow]] = field(default_factory=dict)
    measures: dict[str, list[Measure]] = field(default_factory=dict)
    too_many: dict[str, tuple[str, ...]] = field(default_factory=dict)


def gather(
    client: Client,
    namespace: str,
    period: Period,
    wanted: Wanted,
    *,
    as_of: datetime,
    customers: Whom = None,
    source: str = USAGE,
    after: datetime = EPOCH,
    sums: Sums | None = None,
) -> dict[str, Found]:
    """Usage per customer: rows, measures, and whose usage has too many groups to be rated by its dimensions.

    `source`: queries.USAGE, or WOUND_BACK for what it was at `as_of`: decisions of later are taken back. `after`: only
    what became known after that. `sums`: what is known already of the one customer; what it does not tell is asked.
    """
    found = _Gathered()
    asked = _Asked(client, namespace, period, as_of, after, customers, source, sums)
    for customer, row in _rows(asked, wanted):
        found.rows.setdefault(customer, []).append(row)
    if wanted.costs is not None:
        _add_costed(found, asked, wanted, wanted.costs)
    _set_aside(found, found.rows, wanted.dimensions)
    for measurement in wanted.measurements:
        per_customer: dict[str, list[Measure]] = {}
        for customer, measure in _measures(asked, measurement):
            per_customer.setdefault(customer, []).append(measure)
        _set_aside(found, per_customer, measurement.dimensions)
        for customer, measures in per_customer.items():
            found.measures.setdefault(customer, []).extend(measures)
    if found.too_many:
        whole = _grouped(_rows(replace(asked, customers=sorted(found.too_many)), Wanted()))
        found.rows |= {customer: list(rows) for customer, rows in whole.items()}
    return {
        name: Found(tuple(found.rows.get(name, ())), tuple(found.measures.get(name, ())), found.too_many.get(name, ()))
        for name in {*found.rows, *found.measures}
    }


def aggregates(
    client: Client,
    namespace: str,
    period: Period,
    dimensions: Sequence[str],
    *,
    as_of: datetime,
    after: datetime = EPOCH,
    customers: Sequence[str] | None = None,
) -> dict[str, tuple[UsageRow, ...]]:
    """Usage per customer: events in the period, received after `after` and up to `as_of`. Quantities are exact."""
    asked = _Asked(client, namespace, period, as_of, after, customers)
    return _grouped(_rows(asked, Wanted(tuple(dimensions))))


def largest(
    client: Client, namespace: str, period: Period, wanted: Wanted, customer_id: str, *, as_of: datetime, source: str
) -> tuple[UsageRow, ...]:
    """One customer's usage, with the largest quantity of an event in the place of their sum."""
    asked = _Asked(client, namespace, period, as_of, EPOCH, [customer_id], source)
    return tuple(row for _, row in _rows(asked, wanted, largest=True))


def totals(
    client: Client, namespace: str, period: Period, *, as_of: datetime, customers: Sequence[str] | None = None
) -> dict[str, dict[str, tuple[Decimal, datetime]]]:
    """Per customer and meter the quantity of a period, and when the last of it became known."""
    found: dict[str, dict[str, tuple[Decimal, datetime]]] = {}
    parameters = window_parameters(namespace, period, as_of=as_of, customers=customers)
    for customer, meter, quantity, last in client.query(totals_query(customers), parameters=parameters).result_rows:
        found.setdefault(customer, {})[meter] = (_exact(quantity), _aware(last))
    return found


@dataclass(frozen=True)
class Hour:
    """What a customer used of a meter in an hour, by the status of the calls; `start` in UTC."""

    customer_id: str
    meter: str
    status: str
    start: datetime
    events: int
    quantity: Decimal


def by_hour(
    client: Client, namespace: str, period: Period, customers: Sequence[str], *, as_of: datetime
) -> Iterator[Hour]:
    """The usage of a period hour by hour, in the order of customers, meters and time."""
    parameters = window_parameters(namespace, period, as_of=as_of, customers=customers)
    for customer, meter, status, hour, events, quantity in client.query(HOURS, parameters=parameters).result_rows:
        yield Hour(customer, meter, status, datetime.fromtimestamp(hour, UTC), events, _exact(quantity))


def first_days(client: Client, namespace: str) -> dict[str, datetime]:
    """Per customer the start of the UTC day before which it has no usage, whenever that became known."""
    rows = client.query(FIRST_DAYS, parameters={"namespace": namespace}).result_rows
    return {customer: datetime.combine(day, time(0), UTC) for customer, day in rows}


def used_days(client: Client, namespace: str, customers: Sequence[str], since: datetime) -> dict[str, list[Period]]:
    """Per customer the UTC days from one on, on which it used anything, whenever that became known."""
    found: dict[str, list[Period]] = {}
    parameters = {"namespace": namespace, "customers": list(customers), "since": since.astimezone(UTC).date()}
    for customer, day in client.query(USED_DAYS, parameters=parameters).result_rows:
        start = datetime.combine(day, time(0), UTC)
        found.setdefault(customer, []).append(Period(start, start + timedelta(days=1)))
    return found


def first_usage(client: Client, namespace: str, customers: Sequence[str], *, as_of: datetime) -> dict[str, datetime]:
    """Per customer, the time of its first usage event. Reads all events of these customers."""
    if not customers:
        return {}
    parameters = {"namespace": namespace, "as_of_ns": nanoseconds(as_of), "customers": list(customers)}
    result = client.query(FIRST_USAGE, parameters=parameters)
    return {customer: _aware(first) for customer, first in result.result_rows}


@dataclass(frozen=True)
class Watermark:
    """Per collector its position (segment, byte) and the time up to which what it received is in the warehouse."""

    positions: dict[str, tuple[str, int]]
    projected_through: dict[str, datetime]

    @property
    def as_of(self) -> datetime | None:
        """The moment up to which every collector is in the warehouse; None when there is no collector."""
        return min(self.projected_through.values(), default=None)

    def behind(self, moment: datetime) -> list[str]:
        """The collectors that are not yet in the warehouse up to the moment."""
        return sorted(name for name, through in self.projected_through.items() if through < moment)

    def went_backwards(self, recorded: dict[str, Any]) -> list[str]:
        """The collectors that stand before what was recorded (see `as_json`), or are gone."""
        return sorted(
            name
            for name, position in recorded.items()
            if name not in self.positions or self.positions[name] < (position[0], position[1])
        )

    def as_json(self) -> dict[str, list[Any]]:
        return {name: list(position) for name, position in sorted(self.positions.items())}


def watermark(client: Client) -> Watermark:
    """How far the warehouse is, by its view `watermark`."""
    rows = client.query(WATERMARK).result_rows
    positions = {collector: (segment, int(position)) for collector, segment, position, _ in rows}
    return Watermark(positions, {collector: _aware(through) for collector, _, _, through in rows})


@dataclass(frozen=True)
class _Asked:
    """What every query of a gathering is about."""

    client: Client
    namespace: str
    period: Period
    as_of: datetime
    after: datetime = EPOCH
    customers: Whom = None
    source: str = USAGE
    sums: Sums | None = None

    def window(self, dimensions: Sequence[str]) -> dict[str, Any]:
        """The parameters of its window."""
        known = {"as_of": self.as_of, "after": self.after}
        return window_parameters(self.namespace, self.period, dimensions, **known, customers=self.customers)


def _add_costed(found: _Gathered, asked: _Asked, wanted: Wanted, costing: Costing) -> None:
    """Put usage with what it cost beside the rest."""
    about = costs_usage.Asked(
        asked.period, wanted.dimensions, wanted.tasks, asked.source, asked.customers, asked.window(wanted.dimensions)
    )
    rows, too_many = costs_usage.costed(
        lambda query, parameters: asked.client.query(query, parameters=dict(parameters)).result_rows, about, costing
    )
    for customer, row in rows:
        found.rows.setdefault(customer, []).append(row)
    for customer in too_many:
        found.too_many[customer] = (*wanted.dimensions, "what costs depend on")


def _rows(asked: _Asked, wanted: Wanted, *, largest: bool = False) -> list[tuple[str, UsageRow]]:
    if asked.sums is not None and not largest and (asked.source, asked.after) == (USAGE, EPOCH):
        left_out = () if wanted.costs is None else wanted.costs.meters
        told = asked.sums.rows(asked.period, asked.as_of, wanted.dimensions, left_out, tasks=wanted.tasks)
        if told is not None:
            return [(asked.sums.customer_id, row) for row in told]
    but, parameters = "", asked.window(wanted.dimensions)
    if wanted.costs is not None and not largest:
        but, parameters["cost_meters"] = NOT_OF_METERS, list(wanted.costs.meters)
    query = aggregate_query(
        wanted.dimensions, asked.customers, tasks=wanted.tasks, source=asked.source, largest=largest, but=but
    )
    found = asked.client.query(query, parameters=parameters).result_rows
    rows = []
    for customer, meter, status, *values, events, quantity in found:
        task = values.pop() if wanted.tasks else ""
        pairs = tuple(zip(wanted.dimensions, values, strict=True))
        rows.append((customer, UsageRow(meter, status, pairs, events, _exact(quantity), task)))
    return rows


def _grouped(rows: Iterable[tuple[str, UsageRow]]) -> dict[str, tuple[UsageRow, ...]]:
    found: dict[str, list[UsageRow]] = {}
    for customer, row in rows:
        found.setdefault(customer, []).append(row)
    return {customer: tuple(theirs) for customer, theirs in found.items()}


def _measures(asked: _Asked, measurement: Measurement) -> list[tuple[str, Measure]]:
    query = measure_query(measurement, asked.customers, source=asked.source)
    parameters = measure_parameters(
        asked.namespace, asked.period, measurement, as_of=asked.as_of, customers=asked.customers
    )
    measures = []
    for customer, *values, events, value in asked.client.query(query, parameters=parameters).result_rows:
        pairs = tuple(zip(measurement.dimensions, values, strict=True))
        number = Decimal(value) if isinstance(value, int) else _exact(value)
        if measurement.metric.aggregate == TIME_WEIGHTED:
            number = decimal_of(Fraction(number) / (Fraction(measurement.metric.per) * _NANOSECONDS))
        measures.append((customer, Measure(measurement, pairs, events, number)))
    return measures


def _set_aside(found: _Gathered, groups: Mapping[str, Sequence[object]], dimensions: tuple[str, ...]) -> None:
    for customer, rows in groups.items():
        if len(rows) > MAX_GROUPS:
            found.too_many[customer] = dimensions


def _exact(quantity: Any) -> Decimal:
    if not isinstance(quantity, Decimal):
        raise TypeError(f"the warehouse answered the quantity {quantity!r}, which is not an exact number")
    return quantity


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
