"""What running totals add: the increases of a sequence of points, and where the sequence stands after them.

`count` is a pure function. Points in their order of time, in one go or in parts, give the same rows; a point that comes
late changes its successors', so then the sequence is counted from its beginning (counting.py). Of several values at
one time the one received first stands. A fall without a new start time is suspended with what was counted since the
fall. What is no increase counts nothing: the baseline, and an unchanged total.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from decimal import ROUND_DOWN, Context, Decimal
from itertools import groupby
from typing import Any, Final

from meterhouse.vocabulary import REASON_CUMULATIVE_CONFLICT, REASON_CUMULATIVE_FALL, REASON_FRACTION
from meterhouse_collector.foreign.numbers import is_fraction
from meterhouse_collector.foreign.rows import CumulativePoint, Event
from meterhouse_store.numbers import plain

Sequence = tuple[str, str, int, int]
"""namespace, series, part, start_time."""
Claim = tuple[str, str]
"""A customer and a meter that points of a sequence were for."""

_WIDE: Final = Context(prec=76)
_NANO: Final = Decimal("1e-9")
_NOUGHT: Final = Decimal(0)
_POINT: Final = 2**64
_COPIED: Final = tuple(one.name for one in fields(Event))
_NAMES: Final = frozenset(
    ["namespace", "event_time", "credential_id", "received_at", "segment", "record_id", "first", "source"]
)


@dataclass(frozen=True, slots=True)
class End:
    """Where a sequence stands: its last time, the highest and the last total that stood, the version of its rows."""

    event_time: int
    highest: Decimal
    last: Decimal
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Increase(Event):
    """A row of `counted_increases`: an event with the quantity that its point adds.

    `version` grows with every point that is known up to the row's time, and with every copy of one that is taken in its
    place: of two rows of one name, the one that more points went into has the larger one. `is_row`: False where nothing
    is added, so that no row is to be seen.
    """

    version: int
    is_row: bool


def sequence_of(point: CumulativePoint) -> Sequence:
    """The sequence that a point belongs to."""
    return point.namespace, point.series, point.part, point.start_time


def ordered(points: Iterable[CumulativePoint]) -> list[CumulativePoint]:
    """The points of a sequence by time and, at one time, the one that stands first; of copies the one that is kept."""
    kept: dict[tuple[int, Decimal], CumulativePoint] = {}
    for point in points:
        other = kept.get((point.event_time, point.value))
        if other is None or point.first >= other.first:
            kept[point.event_time, point.value] = point
    return sorted(kept.values(), key=lambda point: (point.event_time, -point.first, point.record_id, point.value))


def count(
    end: End | None, points: Iterable[CumulativePoint], claims: Collection[Claim] = ()
) -> tuple[list[Increase], End | None]:
    """The rows of points that are `ordered` and later than `end` (None: before the first), and the end after them.

    `claims`: for whom points of the sequence were ever stored. A point that was taken instead of another may have been
    for somebody else: the rows that there may be of the other one are told not to count.
    """
    rows: list[Increase] = []
    for time_ns, found in groupby(points, key=lambda point: point.event_time):
        several = list(found)
        version = (end.version if end else 0) + sum(_POINT + point.first for point in several)
        told = [_row(end, point, several[0], version) for point in several]
        rows += told
        if len(several) > 1 or len(claims) > 1:
            rows += _void(several, told, claims)
        value = several[0].value
        end = End(time_ns, max(end.highest, value) if end else value, value, version)
    return rows, end


def _row(end: End | None, point: CumulativePoint, standing: CumulativePoint, version: int) -> Increase:
    value, raw_value, why, event_id = point.value, point.raw_value, point.reason, point.event_id
    if point is not standing:
        # Another row than that of the total that stands: deciding about it says nothing of that.
        increase, event_id = _WIDE.subtract(value, standing.value), _name_beside(event_id, value)
        why = why or REASON_CUMULATIVE_CONFLICT
        seen = f"{plain(value)} instead of {plain(standing.value)}"
    elif end is None:
        increase, seen = value if point.from_zero else _NOUGHT, ""
    elif value < end.highest:
        increase = value if value < end.last else _WIDE.subtract(value, end.last)
        why = why or REASON_CUMULATIVE_FALL
        seen = f"{plain(value)} after {plain(end.highest)}"
    else:
        increase, seen = _WIDE.subtract(value, end.highest), ""
    quantity = _WIDE.multiply(increase, point.factor).quantize(_NANO, ROUND_DOWN, _WIDE)
    if not why and is_fraction(point.meter, quantity):
        why, raw_value = REASON_FRACTION, plain(quantity)
    own = why in (REASON_CUMULATIVE_FALL, REASON_CUMULATIVE_CONFLICT)
    columns: dict[str, Any] = {name: getattr(point, name) for name in _COPIED} | {
        "event_id": event_id,
        "quantity": quantity,
        "raw_value": seen if own else raw_value,
        "reason": why,
    }
    return Increase(**columns, version=version, is_row=own or increase != 0)


def _void(several: list[CumulativePoint], told: list[Increase], claims: Collection[Claim]) -> Iterator[Increase]:
    """Of the points of one time: the rows that other sets of them would have given."""
    names = {point.event_id for point in several}
    names |= {_name_beside(point.event_id, point.value) for point in several}
    whose = {(point.customer_id, point.meter) for point in several} | set(claims)
    present = {(row.customer_id, row.meter, row.event_id) for row in told}
    standing = several[0]
    common: dict[str, Any] = {name: getattr(standing, name) for name in _NAMES}
    for customer_id, meter in sorted(whose):
        for event_id in sorted(names):
            if (customer_id, meter, event_id) not in present:
                yield Increase(
                    **common,
                    customer_id=customer_id,
                    meter=meter,
                    event_id=event_id,
                    quantity=_NOUGHT,
                    raw_value="",
                    reason="",
                    version=told[0].version,
                    is_row=False,
                )


def _name_beside(event_id: str, value: Decimal) -> str:
    return f"{event_id}-{plain(value)}"
