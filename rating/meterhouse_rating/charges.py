"""The vocabulary between the engine and the price models: portions of usage go in, charges come out.

A price model is one file in `models/`: a frozen dataclass that satisfies `Component`, and a function that reads it from
the price book. It knows nothing of statuses, rounding, credits, SQL or ClickHouse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol

from meterhouse_rating.costs_asked import Cost
from meterhouse_rating.periods import Period
from meterhouse_rating.rates import Rate
from meterhouse_store.numbers import plain

NO_PRICE: Final = "no_price"
COST_UNKNOWN: Final = "cost_unknown"
FORMULA_FAILED: Final = "formula_failed"
"""Why a component leaves usage unrated; what to do about it is the hint beside it."""

Dimensions = tuple[tuple[str, str], ...]
"""Names and values in the order of the price book's dimensions."""


@dataclass(frozen=True)
class Portion:
    """Billable usage of one meter of a metric, for one combination of the priced dimensions.

    `quantity` is what was used, `value` what of it is priced where that is something else: the number of events, a
    maximum, how many different conversations (of several portions the first has it, the others 0). `cost` is what
    the provider asks for it; None where nobody looked for that.
    """

    metric: str
    meter: str
    unit: str
    dimensions: Dimensions
    events: int
    quantity: Decimal
    value: Decimal | None = None
    cost: Cost | None = None

    @property
    def priced(self) -> Decimal:
        """The number that prices multiply."""
        return self.quantity if self.value is None else self.value


@dataclass(frozen=True)
class Before:
    """What earlier ratings of the same month (or contract) settled already for a component.

    `quantities` per metric: tiers and included usage go on from there; `cells` the same per metric and the dimensions
    of the line. `events` per metric, where the component counts them. `billed`: exact amounts per service period, of
    fees that name one; `billed_ahead`: what of that ratings of other months billed; `billed_off`: what discounts
    took off it. `charged`: the month's recurring fee, or the credit pack of the contract, is already on an earlier
    rating.
    """

    quantities: Mapping[str, Decimal] = field(default_factory=dict)
    charged: bool = False
    cells: Mapping[tuple[str, Dimensions], Decimal] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)
    billed: Mapping[str, Decimal] = field(default_factory=dict)
    billed_ahead: Mapping[str, Decimal] = field(default_factory=dict)
    billed_off: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True)
class Fact:
    """From a moment on a quantity (seats, add-ons) is so many, until the next fact."""

    valid_from: datetime
    quantity: Decimal


@dataclass(frozen=True)
class Setting:
    """What a component is charged in, beside usage: the rated period, and the customer's calendar month around it.

    `since` and `until` (None: open) are when the contract, or the add-on, begins and ends. `facts` are the dated
    quantities by name. `amounts` is what the other components come to, on rounded lines, in this rating, and `earlier`
    in earlier ratings of the month, of which discounts before the minimum took `earlier_off`; all in major units, by
    component; `settled_until` is the latest end of those. `discounted` is what discounts of so much a month took off in
    earlier ratings of the month, by agreement, in the customer's currency, and `discounted_left` what they left there.
    `currency` is the plan's, `rates` convert to it what is asked in others.
    """

    period: Period
    month: Period
    next_month: Period
    zone: str
    since: datetime
    until: datetime | None = None
    facts: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    amounts: Mapping[str, Decimal] = field(default_factory=dict)
    earlier: Mapping[str, Decimal] = field(default_factory=dict)
    earlier_off: Mapping[str, Decimal] = field(default_factory=dict)
    settled_until: datetime | None = None
    discounted: Mapping[str, Decimal] = field(default_factory=dict)
    discounted_left: Mapping[str, Decimal] = field(default_factory=dict)
    currency: str = ""
    rates: Mapping[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True)
class Charge:
    """What one line will say, before rounding. `amount` in major units; `credits` is what a pack grants.

    The amounts of the steps add up to `amount` exactly. `quantities` (per metric) and `events` are told where a later
    rating of the month has to go on from them and `quantity` does not say it; `service` is the period a fee is for.
    """

    kind: str  # usage | flat | credit_pack | minimum
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
    quantities: Mapping[str, Decimal] = field(default_factory=dict)
    events: int | None = None
    service: Period | None = None
    credits_expire_days: int | None = None
    credits_priority: int = 0


@dataclass(frozen=True)
class Unpriced:
    """A portion without a price, what to do about it, and the reason."""

    portion: Portion
    hint: str
    reason: str = NO_PRICE


@dataclass(frozen=True)
class Charged:
    """A component's charges, and the portions that it has no price for."""

    charges: tuple[Charge, ...]
    unpriced: tuple[Unpriced, ...] = ()


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

    @property
    def depends_on(self) -> tuple[str, ...] | None:
        """The components whose amounts it needs, which are charged before it; None: all others."""
        ...

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """Price the portions of its metrics; quantities that come in leave in a charge or as unpriced."""
        ...


def total(portions: Iterable[Portion]) -> Decimal:
    """What prices multiply, of all the portions."""
    return sum((portion.priced for portion in portions), Decimal(0))


def events(portions: Iterable[Portion]) -> int:
    return sum(portion.events for portion in portions)


def step(quantity: Decimal, price: Decimal, per: Decimal, book_line: int | None = None) -> dict[str, Any]:
    """The arithmetic of so many units at one price, as an explanation shows it."""
    shown = {
        "quantity": plain(quantity),
        "price": plain(price),
        "per": plain(per),
        "amount": plain(quantity * price / per),
    }
    return shown if book_line is None else shown | {"book_line": book_line}


def grouped(portions: Iterable[Portion], dimensions: Sequence[str]) -> list[tuple[tuple[str, ...], list[Portion]]]:
    """The portions by the values of some of their dimensions, in the order of the values."""
    groups: dict[tuple[str, ...], list[Portion]] = {}
    for portion in portions:
        known = dict(portion.dimensions)
        groups.setdefault(tuple(known[name] for name in dimensions), []).append(portion)
    return sorted(groups.items())


def by_meter(portions: Iterable[Portion]) -> dict[str, Decimal]:
    """Quantity per meter, in the meters' order."""
    quantities: dict[str, Decimal] = {}
    for portion in portions:
        quantities[portion.meter] = quantities.get(portion.meter, Decimal(0)) + portion.quantity
    return dict(sorted(quantities.items()))


def usage_charge(
    description: str,
    metric: str,
    portions: Sequence[Portion],
    amount: Decimal,
    steps: Sequence[Mapping[str, Any]],
    book_line: int,
    dimensions: Dimensions = (),
) -> Charge:
    """The charge for portions of one metric."""
    return Charge(
        kind="usage",
        description=description,
        quantity=total(portions),
        unit=portions[0].unit,
        amount=amount,
        steps=tuple(steps),
        book_line=book_line,
        metric=metric,
        dimensions=dimensions,
        meters=by_meter(portions),
    )
