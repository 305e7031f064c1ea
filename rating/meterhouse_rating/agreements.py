"""What one customer has agreed to beside its plan: add-ons, prices of its own, discounts and dated quantities.

The records are kept in SQL (`meterhouse_store.agreements`); here they are immutable facts that a rating depends on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import Fact
from meterhouse_rating.periods import Period
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class AddOn:
    """So many of an add-on of the book, from a moment on, until another; `until` None: open."""

    agreement_id: str
    name: str
    quantity: Decimal
    valid_from: datetime
    until: datetime | None

    def touches(self, period: Period) -> bool:
        return self.valid_from < period.end and (self.until is None or self.until > period.start) and not self.withdrawn

    @property
    def withdrawn(self) -> bool:
        """Whether it ends where it begins: it never held."""
        return self.until is not None and self.until <= self.valid_from


@dataclass(frozen=True)
class Override:
    """A component of the plan at a price of the customer's own, as `text` in the price book's format."""

    agreement_id: str
    component: str
    text: str
    valid_from: datetime
    until: datetime | None

    def holds(self, period: Period) -> bool:
        """Like a price book, it prices whole periods: those that begin while it is in force."""
        return self.valid_from <= period.start and (self.until is None or self.until > period.start)


@dataclass(frozen=True)
class Discount:
    """A coupon, promotion or discount for a commitment: a percentage, or an amount in the customer's currency.

    It holds for `months` calendar months, the one in which it begins included; None: until it is ended. `components`
    empty: all. `before_minimum`: the minimum commitment is compared with what is left. `budget`: the name of the budget
    whose cap it comes from.
    """

    agreement_id: str
    name: str
    percent: Decimal | None
    amount: Decimal | None
    components: tuple[str, ...]
    months: int | None
    before_minimum: bool
    valid_from: datetime
    until: datetime | None
    budget: str = ""


@dataclass(frozen=True)
class Cap:
    """A budget's hard cap of a month, in units `of` a meter or metric, or ('') in money of the customer's currency.

    `raised` and `acknowledged` name months by their start, ISO 8601 in UTC. It was set `since`, and set anew or removed
    at `until`.
    """

    name: str
    of: str
    limit: Decimal
    raised: Mapping[str, Decimal]
    acknowledged: frozenset[str]
    since: datetime
    until: datetime | None = None

    def stands_at(self, end: datetime) -> bool:
        """Whether it is what was said last before a month's end: what is said later says nothing of that month."""
        return self.since < end and (self.until is None or self.until >= end)


@dataclass(frozen=True)
class Agreement:
    """All of one customer's. `quantities` are dated facts by name; `caps` matter by the discounts they become."""

    addons: tuple[AddOn, ...] = ()
    overrides: tuple[Override, ...] = ()
    discounts: tuple[Discount, ...] = ()
    quantities: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    caps: tuple[Cap, ...] = ()

    def canonical(self) -> list[Any]:
        """Everything that can change a rating, as JSON."""
        facts = {
            name: [[it.valid_from.isoformat(), plain(it.quantity)] for it in found]
            for name, found in sorted(self.quantities.items())
        }
        records: Sequence[Any] = (*self.addons, *self.overrides, *self.discounts)
        return [[{key: _json(value) for key, value in vars(it).items()} for it in records], facts]


def _json(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value
