"""What a rating comes to: lines, and what of the usage is on none. Plain facts, with a hash that tells them apart."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.charges import Dimensions
from meterhouse_rating.ids import digest
from meterhouse_rating.money import exact
from meterhouse_rating.sorting import Leftover, UsageRow

DISCOUNTED: Final = frozenset({"usage", "flat", "minimum"})
"""Kinds of lines of which discounts take their part back where they give something back."""
CORRECTION: Final = "correction"
CREDIT_RESTORED: Final = "credit_restored"
CREDIT_APPLIED: Final = "credit_applied"
ABOUT_CLOSED: Final = (CORRECTION, CREDIT_RESTORED)
"""Kinds of lines about a period that was closed before."""


@dataclass(frozen=True)
class RatedLine:
    """One line of a rating: the exact amount in major units, and the amount after rounding in minor units."""

    kind: str
    component: str
    metric: str | None
    description: str
    quantity: Decimal
    unit: str
    dimensions: Dimensions
    amount_exact: Decimal
    amount_minor: int
    explanation: Mapping[str, Any]


@dataclass(frozen=True)
class Rated:
    """A rated period of one customer. The total is the sum of the lines."""

    lines: tuple[RatedLine, ...]
    leftovers: tuple[Leftover, ...]
    total_minor: int

    def sha256(self) -> str:
        """The hash of the result: the same inputs give the same hash."""
        return digest([[vars(line) for line in self.lines], [vars(it) for it in self.leftovers]])


def left_over(usage: Iterable[UsageRow], reason: str, hint: str) -> tuple[Leftover, ...]:
    """All of the usage, left for one reason: a customer that cannot be rated at all."""
    return merged(Leftover(row.meter, (), row.events, row.quantity, reason, hint) for row in usage)


def merged(leftovers: Iterable[Leftover]) -> tuple[Leftover, ...]:
    """One leftover per meter, dimensions, reason and hint, in a fixed order."""
    sums: dict[tuple[str, Dimensions, str, str], tuple[int, Decimal]] = {}
    with exact():
        for it in leftovers:
            key = (it.meter, it.dimensions, it.reason, it.hint)
            events, quantity = sums.get(key, (0, Decimal(0)))
            sums[key] = (events + it.events, quantity + it.quantity)
    return tuple(
        Leftover(meter, dimensions, events, quantity, reason, hint)
        for (meter, dimensions, reason, hint), (events, quantity) in sorted(sums.items())
    )
