"""Several sums over one customer's usage, asked of the warehouse at once.

A question of the view `usage` takes the engine longer to plan than a customer's month takes to read. So a page asks
once: for what rating needs between some moments (the edges of parts, of trials, of the last days), and for sums by
whatever else it shows. The answers are exact for every period between two of the moments.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse_rating.charges import Dimensions
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import MAX_GROUPS, USAGE, columns_of, nanoseconds, window_parameters
from meterhouse_rating.sorting import UsageRow

# Every part of the texts below is a constant or a column of a closed list.
# ruff: noqa: S608

_SEGMENT: Final = "arrayCount(edge -> edge <= toUnixTimestamp64Nano(event_time), {edges:Array(Int64)}) - 1"
"""Which of the moments is the last before an event."""
_KNOWN: Final = (
    "known_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC') "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')"
)
_MINE: Final = (
    "namespace = {namespace:String} AND billed_customer_id = {customer:String} "
    "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)


@dataclass(frozen=True)
class By:
    """What else is summed: by these expressions over `usage` (constants of the caller), and the parameters in them.

    `some`: of very many values only MAX_GROUPS are told, whichever.
    """

    columns: tuple[str, ...]
    bound: Mapping[str, Any] = field(default_factory=dict, compare=False)
    some: bool = False


@dataclass(frozen=True)
class Sum:
    """Usage with the same values of a `By`: how many events, their quantity, and when the first of them was."""

    values: tuple[Any, ...]
    events: int
    quantity: Decimal
    first: datetime


@dataclass(frozen=True)
class Sums:
    """What one customer used, as one question told it."""

    customer_id: str
    _as_of: datetime
    _edges: tuple[datetime, ...]
    _dimensions: tuple[str, ...]
    _rated: Sequence[tuple[int, UsageRow]] | None
    _more: Mapping[By, Sequence[tuple[int, Sum]]]

    def by(self, by: By, period: Period) -> list[Sum]:
        """All usage of a period, whenever it became known; of the same values there may be several sums.

        Raises ValueError for a period that was not asked for.
        """
        segments = self._segments(period)
        if segments is None:
            raise ValueError(f"{period} was not asked for")
        return [it for segment, it in self._more[by] if segment in segments]

    def rows(
        self, period: Period, as_of: datetime, dimensions: Sequence[str], left_out: Collection[str], *, tasks: bool
    ) -> list[UsageRow] | None:
        """The rows of `queries.aggregate_query` in their order, but for the meters that are left out.

        None where this does not tell: another period or moment, other dimensions, too many of them, or how tasks ended.
        """
        segments = self._segments(period)
        if self._rated is None or segments is None or as_of != self._as_of or tasks:
            return None
        if not set(dimensions) <= set(self._dimensions):
            return None
        found: dict[tuple[str, ...], UsageRow] = {}
        for segment, it in self._rated:
            if segment not in segments or it.meter in left_out:
                continue
            known = dict(it.dimensions)
            key = (it.meter, it.status, *(known[name] for name in dimensions))
            so_far = found.get(key)
            if so_far is None:
                found[key] = replace(it, dimensions=tuple((name, known[name]) for name in dimensions))
            else:
                events, quantity = so_far.events + it.events, so_far.quantity + it.quantity
                found[key] = replace(so_far, events=events, quantity=quantity)
        return [found[key] for key in sorted(found)]

    def _segments(self, period: Period) -> range | None:
        if period.start not in self._edges or period.end not in self._edges:
            return None
        return range(self._edges.index(period.start), self._edges.index(period.end))


def ask(
    client: Client,
    namespace: str,
    customer_id: str,
    edges: Sequence[datetime],
    *,
    as_of: datetime,
    dimensions: Sequence[str] | None = None,
    more: Sequence[By] = (),
    source: str = USAGE,
) -> Sums:
    """What the customer used from the first of the moments to the last: for rating by `dimensions` (None: not for it),
    as far as it was known at `as_of`; and by `more`, of which no two have the same columns. `source`: the view.
    """
    moments = tuple(sorted(set(edges)))
    rated = None if dimensions is None else By((_KNOWN, "meter", "status", *columns_of(dimensions)), some=True)
    asked = [*more, *([] if rated is None else [rated])]
    columns = list(dict.fromkeys(it for one in asked for it in one.columns))
    sets = [["segment", *(f"key_{columns.index(it)}" for it in one.columns)] for one in asked]
    keys = ["segment", *(f"key_{at}" for at in range(len(columns)))]
    # `grouping` is a number whose bits, the first key's the highest, say which keys are not of the row's set.
    places = [sum((key not in one) << at for at, key in enumerate(reversed(keys))) for one in sets]
    inner = ", ".join(f"{column} AS {key}" for column, key in zip([_SEGMENT, *columns], keys, strict=True))
    query = (
        f"SELECT grouping({', '.join(keys)}) AS place, {', '.join(keys)}, count(), sum(amount), min(at) FROM ("
        f"SELECT {inner}, quantity AS amount, event_time AS at FROM {source} WHERE {_MINE}) "
        f"GROUP BY GROUPING SETS ({', '.join('(' + ', '.join(one) + ')' for one in sets)}) "
        f"LIMIT {MAX_GROUPS + 1} BY place, if(place IN {{some:Array(UInt64)}}, 0, cityHash64({', '.join(keys)}))"
    )
    bound: dict[str, Any] = {name: value for it in asked for name, value in it.bound.items()}
    bound |= window_parameters(namespace, Period(moments[0], moments[-1]), dimensions or (), as_of=as_of)
    bound |= {
        "customer": customer_id,
        "edges": [nanoseconds(it) for it in moments],
        "some": [place for place, it in zip(places, asked, strict=True) if it.some],
    }
    found: dict[int, list[tuple[int, Sum]]] = {place: [] for place in places}
    used = {place: [keys.index(key) for key in one] for place, one in zip(places, sets, strict=True)}
    for place, *values, events, quantity, first in client.query(query, parameters=bound).result_rows:
        segment, *own = (values[at] for at in used[int(place)])
        found[int(place)].append((int(segment), Sum(tuple(own), int(events), quantity, _aware(first))))
    told = {it: found[place] for it, place in zip(asked, places, strict=True)}
    rows = None if rated is None or len(told[rated]) > MAX_GROUPS else told[rated]
    return Sums(
        customer_id,
        as_of,
        moments,
        tuple(dimensions or ()),
        None if rows is None else [(at, _row(it, dimensions or ())) for at, it in rows if it.values[0]],
        told,
    )


def _row(it: Sum, dimensions: Sequence[str]) -> UsageRow:
    _, meter, status, *values = it.values
    pairs: Dimensions = tuple(zip(dimensions, values, strict=True))
    return UsageRow(meter, status, pairs, it.events, it.quantity)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
