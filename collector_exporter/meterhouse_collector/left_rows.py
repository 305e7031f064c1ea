"""Rows that a collector's process left in a file: whether each is one that the warehouse's columns can take.

A file that a disk or a person has damaged may still be JSON. A row that no column takes would be refused with all that
are written beside it, each time again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

INSTANT_BOUND_S: Final = 2**32
"""A DateTime column has Unix seconds from 0 to before this, in the year 2106."""


def _whole_below(bound: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < bound


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)


_TAKES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "text": lambda value: isinstance(value, str) and value.isprintable(),
    "minute": _whole_below(INSTANT_BOUND_S // 60),
    "hour": _whole_below(INSTANT_BOUND_S // 3600),
    "uint32": _whole_below(2**32),
    "uint64": _whole_below(2**64),
    "float64": _is_number,
    "uint64s": lambda value: isinstance(value, list) and all(map(_TAKES["uint64"], value)),
    "float64s": lambda value: isinstance(value, list) and all(map(_is_number, value)),
}


def fits(row: Any, kinds: Sequence[str]) -> bool:
    """Whether `row`, read from JSON, is a list that has a value of each of these kinds, in this order."""
    return (
        isinstance(row, list)
        and len(row) == len(kinds)
        and all(_TAKES[kind](it) for kind, it in zip(kinds, row, strict=True))
    )
