"""What ClickHouse tells rating: usage aggregates, and how far the collectors' records are in it.

The queries are built from fixed parts: column names come from a closed list, values are bound by the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse_rating.engine import UsageRow
from meterhouse_rating.models.dimensions import DIMENSIONS
from meterhouse_rating.periods import Period

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_WINDOW: Final = (
    "namespace = {namespace:String} "
    "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC') "
    "AND received_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC') "
    "AND received_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')"
)
"""Half-open in event_time; in received_at what came after one moment, up to another."""

FIRST_USAGE: Final = (
    "SELECT billed_customer_id, min(event_time) FROM usage WHERE namespace = {namespace:String} "
    "AND received_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') GROUP BY billed_customer_id"
)

WATERMARK: Final = "SELECT collector_id, segment, position, projected_through FROM watermark ORDER BY collector_id"


def aggregate_query(dimensions: Sequence[str], customers: Sequence[str] | None) -> str:
    """The aggregate of a period: one row per customer, meter, status and the dimensions that prices depend on.

    `customers` None: of the whole namespace, in one pass. Raises ValueError for a dimension that is no column.
    """
    strange = sorted(set(dimensions) - set(DIMENSIONS))
    if strange:
        raise ValueError(f"no dimensions of usage: {strange}")
    keys = ", ".join(["billed_customer_id", "meter", "status", *dimensions])
    only = "" if customers is None else " AND billed_customer_id IN {customers:Array(String)}"
    # Every part is a constant of this module or a name of the closed list above.
    return f"SELECT {keys}, count(), sum(quantity) FROM usage WHERE {_WINDOW}{only} GROUP BY {keys} ORDER BY {keys}"  # noqa: S608


def window_parameters(
    namespace: str, period: Period, *, as_of: datetime, after: datetime = _EPOCH, customers: Sequence[str] | None = None
) -> dict[str, Any]:
    """The parameters of `aggregate_query`."""
    parameters: dict[str, Any] = {
        "namespace": namespace,
        "start_ns": nanoseconds(period.start),
        "end_ns": nanoseconds(period.end),
        "after_ns": nanoseconds(after),
        "as_of_ns": nanoseconds(as_of),
    }
    return parameters if customers is None else parameters | {"customers": list(customers)}


def aggregates(
    client: Client,
    namespace: str,
    period: Period,
    dimensions: Sequence[str],
    *,
    as_of: datetime,
    after: datetime = _EPOCH,
    customers: Sequence[str] | None = None,
) -> dict[str, tuple[UsageRow, ...]]:
    """Usage per customer: events in the period, received after `after` and up to `as_of`. Quantities are exact."""
    parameters = window_parameters(namespace, period, as_of=as_of, after=after, customers=customers)
    result = client.query(aggregate_query(dimensions, customers), parameters=parameters)
    rows: dict[str, list[UsageRow]] = {}
    for customer, meter, status, *values, events, quantity in result.result_rows:
        if not isinstance(quantity, Decimal):
            raise TypeError(f"the warehouse answered the quantity {quantity!r}, which is not an exact number")
        pairs = tuple(zip(dimensions, values, strict=True))
        rows.setdefault(customer, []).append(UsageRow(meter, status, pairs, events, quantity))
    return {customer: tuple(found) for customer, found in rows.items()}


def first_usage(client: Client, namespace: str, *, as_of: datetime) -> dict[str, datetime]:
    """Per customer, the time of its first usage event."""
    result = client.query(FIRST_USAGE, parameters={"namespace": namespace, "as_of_ns": nanoseconds(as_of)})
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


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970 of an aware datetime, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
