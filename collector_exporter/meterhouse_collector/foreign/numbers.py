"""The number of a data point, exactly: what counts, and what it looked like."""

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Final

from meterhouse_store.meters import counted_whole

LIMIT: Final = Decimal(10**15)
"""The largest quantity: beyond it a double is no longer exact to the unit."""
_NANO: Final = Decimal("1e-9")
_NOUGHT: Final = Decimal(0)
_WIDE: Final = Context(prec=60)
_NOISY_DIGITS: Final = 13
"""Nobody means so many digits with more than nine decimals: 0.1 + 0.2 is 0.30000000000000004 as a double."""


@dataclass(frozen=True, slots=True)
class Number:
    """`value` is None where it is no quantity; `raw` is how it is written, '' for none; `rounded`: they differ."""

    value: Decimal | None
    raw: str
    rounded: bool = False


NONE: Final = Number(None, "")


def of_double(number: float) -> Number:
    """A double with at most nine decimals, once the noise of adding doubles is rounded off: less than 5e-10."""
    if not math.isfinite(number):
        return Number(None, repr(number))
    if number == 0:
        return Number(_NOUGHT, "0")
    raw = repr(number).removesuffix(".0")
    exact = Decimal(raw)
    if not 0 <= exact <= LIMIT:
        return Number(None, raw)
    if int(exact.as_tuple().exponent) >= -9:
        return Number(exact, raw)
    rounded = exact.quantize(_NANO)
    if len(exact.as_tuple().digits) < _NOISY_DIGITS or not rounded:
        return Number(None, raw)
    return Number(rounded, raw, True)


def of_integer(number: int) -> Number:
    """An integer of a point."""
    return Number(Decimal(number) if 0 <= number <= LIMIT else None, str(number))


def of_point(point: Any) -> Number:
    """The value of a NumberDataPoint."""
    kind = point.WhichOneof("value")
    if kind is None or point.flags & 1:  # DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
        return NONE
    return of_integer(point.as_int) if kind == "as_int" else of_double(point.as_double)


def is_fraction(meter: str, quantity: Decimal | None) -> bool:
    """Whether it is no whole number of what the meter counts in whole ones only."""
    return bool(quantity and meter in counted_whole() and quantity % 1)


def times(number: Number, scale: Decimal) -> Number:
    """The number in other units; no quantity where that takes more than nine decimals."""
    if number.value is None or scale == 1:
        return number
    scaled = _WIDE.multiply(number.value, scale).normalize(_WIDE)
    if scaled > LIMIT or int(scaled.as_tuple().exponent) < -9:
        return Number(None, number.raw)
    return Number(scaled, number.raw, True)
