"""The vocabulary between the engine and the price models: portions of usage go in, charges come out.

A price model is one file in `models/`: a frozen dataclass that satisfies `Component`, and a function that reads it from
the price book. It knows nothing of statuses, rounding, credits, SQL or ClickHouse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

Dimensions = tuple[tuple[str, str], ...]
"""Names and values in the order of the price book's dimensions."""


@dataclass(frozen=True)
class Portion:
    """Billable usage of one meter of a metric, for one combination of the priced dimensions."""

    metric: str
    meter: str
    unit: str
    dimensions: Dimensions
    events: int
    quantity: Decimal


@dataclass(frozen=True)
class Before:
    """What earlier ratings of the same month (or contract) settled already for a component.

    `quantities` per metric: tiers and included usage go on from there. `charged`: the month's recurring fee, or the
    credit pack of the contract, is already on an earlier rating.
    """

    quantities: Mapping[str, Decimal] = field(default_factory=dict)
    charged: bool = False


@dataclass(frozen=True)
class Charge:
    """What one line will say, before rounding. `amount` in major units; `credits` is what a pack grants."""

    kind: str  # usage | flat | credit_pack
    description: str
    quantity: Decimal
    unit: str
    amount: Decimal
    steps: tuple[Mapping[str, Any], ...]
    book_line: int
    metric: str | None = None
    dimensions: Dimensions = ()
    meters: Mapping[str, Decimal] = field(default_factory=dict)
    credits: Decimal = Decimal(0)


@dataclass(frozen=True)
class Charged:
    """A component's charges, and the portions that it has no price for, each with the line to add."""

    charges: tuple[Charge, ...]
    unpriced: tuple[tuple[Portion, str], ...] = ()


class Component(Protocol):
    """One priced part of a plan."""

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics it charges for; no other component of the plan has them."""
        ...

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions its price depends on."""
        ...

    @property
    def memory(self) -> str:
        """What `Before` reaches back over: the calendar `month`, or the `contract`."""
        ...

    def charge(self, portions: Sequence[Portion], before: Before) -> Charged:
        """Price the portions of its metrics; quantities that come in leave in a charge or as unpriced."""
        ...


def total(portions: Iterable[Portion]) -> Decimal:
    return sum((portion.quantity for portion in portions), Decimal(0))


def by_meter(portions: Iterable[Portion]) -> dict[str, Decimal]:
    """Quantity per meter, in the meters' order."""
    quantities: dict[str, Decimal] = {}
    for portion in portions:
        quantities[portion.meter] = quantities.get(portion.meter, Decimal(0)) + portion.quantity
    return dict(sorted(quantities.items()))
