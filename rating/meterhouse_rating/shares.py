"""What single uses cost: the share that each has in the rated line it is on.

A unit costs what its line comes to exactly, divided by the line's quantity. Where the line has one price for all its
units that is the price itself (EXACT); where it has tiers, packages, costs or a formula it is their average, which
moves until the period is closed (AVERAGE). Either way the shares of a line add up to what it comes to before rounding,
but for what is cut off after 18 digits.
Discounts, minimums, fees, credits and corrections are on no single use.
"""

import decimal
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from meterhouse_rating.book import Book, Plan
from meterhouse_rating.charges import NO_PRICE, Before, Component, Dimensions, Portion, Setting
from meterhouse_rating.costs_asked import Cost
from meterhouse_rating.metrics import COUNT, Metric
from meterhouse_rating.periods import Period, month_of
from meterhouse_rating.results import Row
from meterhouse_rating.sorting import BY_CHOICE, UsageRow, charged_by, left_out
from meterhouse_store.numbers import D

EXACT: Final = "exact"
AVERAGE: Final = "average"
FREE: Final = "free"
WHOLE_LINE: Final = "whole_line"
"""The line counts something that single uses have no share of, such as the highest number of a month."""
PARTLY: Final = "partly_priced"
"""Some of such usage is on a line and some has no price: which of it cannot be told."""
AFTER_CLOSING: Final = "after_closing"
NOT_RATED: Final = "not_rated"

DIGITS: Final = 30
SHOWN: Final = 18
_EACH, _SHOWN = Decimal(1).scaleb(-DIGITS), Decimal(1).scaleb(-SHOWN)
_WIDE: Final = decimal.Context(prec=120)

MEANINGS: Final[Mapping[str, str]] = {
    EXACT: "one price for all units of its line",
    AVERAGE: "the average of its line",
    FREE: "free by the price list",
    WHOLE_LINE: "priced for the month as a whole",
    PARTLY: "some of it is beyond what has a price",
    AFTER_CLOSING: "came after its month was closed; a later invoice corrects it",
    NOT_RATED: "not rated yet",
    NO_PRICE: "has no price yet",
}
"""How a price is known, or why there is none, for people. Other reasons are those of unrated usage."""


@dataclass(frozen=True)
class Kind:
    """What the price of a use depends on; `task` as in `sorting.UsageRow`, `known_at`: from when on it counts."""

    meter: str
    status: str
    task: str
    dimensions: Dimensions
    event_time: datetime
    known_at: datetime


@dataclass(frozen=True)
class UnitPrice:
    """What one unit costs, in major units, with at most DIGITS digits; `each` None: no price, and `how` is the reason.

    `of_events`: a unit is an event, whatever its quantity. `line` is what the invoice calls it.
    """

    how: str
    each: Decimal | None = None
    of_events: bool = False
    line: str = ""

    def of(self, quantity: Decimal) -> Decimal | None:
        """What a use of so much costs, cut after SHOWN digits."""
        if self.each is None:
            return None
        with decimal.localcontext(_WIDE):
            return (self.each * (1 if self.of_events else quantity)).quantize(_SHOWN, rounding=decimal.ROUND_DOWN)


@dataclass(frozen=True)
class Left:
    """Usage of a meter with such dimensions that is on no line, and why."""

    meter: str
    dimensions: Mapping[str, str]
    reason: str


@dataclass(frozen=True)
class Part:
    """A rated period with its lines (rows of `rated_lines`), or one that cannot be rated: `reason`.

    `left`: what of its usage is on no line, but for what is free by choice. `as_of`: what became known later is not on
    the lines of a closed period; None while it is open.
    """

    period: Period
    zone: str
    currency: str | None = None
    priced_by: tuple[Book, Plan] | None = None
    reason: str = NOT_RATED
    lines: Sequence[Row] = ()
    left: Sequence[Left] = ()
    declared: frozenset[str] = frozenset()
    trial_end: datetime | None = None
    as_of: datetime | None = None

    def unit_price(self, kind: Kind) -> UnitPrice:
        """What a unit of such usage costs."""
        if self._late(kind):
            return UnitPrice(AFTER_CLOSING)
        if self.priced_by is None:
            return UnitPrice(self.reason)
        book, plan = self.priced_by
        component, metric = charged_by(book, plan).get(kind.meter, (None, None))
        row = UsageRow(kind.meter, kind.status, kind.dimensions, 1, Decimal(1), kind.task, self._in_trial(kind))
        left = left_out(book, plan, row, component, metric, self.declared)
        if left is not None:
            return UnitPrice(FREE if left[0] in BY_CHOICE else left[0])
        assert component is not None and metric is not None, "what is not left out is charged"
        line = self._line(component, metric, kind)
        reason = self._left(kind)
        if line is None:
            return UnitPrice(reason or NOT_RATED)
        if reason is not None:
            return UnitPrice(PARTLY, line=line["description"])
        return _unit_price(line, metric)

    def alike(self, kind: Kind) -> Hashable:
        """The same for all usage of the period of which a unit costs the same, whenever in it that was."""
        return kind.meter, kind.status, kind.task, kind.dimensions, self._late(kind), self._in_trial(kind)

    def _late(self, kind: Kind) -> bool:
        return self.as_of is not None and kind.known_at > self.as_of

    def _in_trial(self, kind: Kind) -> bool:
        return self.trial_end is not None and kind.event_time < self.trial_end

    def _left(self, kind: Kind) -> str | None:
        """Why such usage, or some of it, is on no line."""
        known = kind.dimensions
        mine = (it for it in self.left if it.meter == kind.meter and set(it.dimensions.items()) <= set(known))
        return next((it.reason for it in mine), None)

    def _line(self, component: Component, metric: Metric, kind: Kind) -> Row | None:
        """The line that such usage is on; which of several of a component, the component itself says."""
        among = [it for it in self.lines if it["component"] == component.name and it["kind"] == "usage"]
        if component.dimensions:
            one = Decimal(1)
            cost = Cost(price=one, quantity=one)
            portion = Portion(metric.name, kind.meter, metric.unit, kind.dimensions, 1, one, one, cost)
            charges = component.charge([portion], Before(), self._setting()).charges
            among = [it for it in among if charges and dict(it["dimensions"]) == dict(charges[0].dimensions)]
        return next((it for it in among if kind.meter in it["explanation"].get("meters", {})), None)

    def _setting(self) -> Setting:
        month = month_of(self.period.start, self.zone)
        return Setting(self.period, month, month_of(month.end, self.zone), self.zone, self.period.start)


def left_in(rows: Sequence[Row]) -> list[Left]:
    """Rows of `unrated_usage` as `Part.left` has them."""
    found = [Left(it["meter"], dict(it["dimensions"]), it["reason"]) for it in rows]
    return [it for it in found if it.reason not in BY_CHOICE]


def _unit_price(line: Row, metric: Metric) -> UnitPrice:
    explanation, name = line["explanation"], line["description"]
    counted = {key: D(value) for key, value in explanation.get("quantities", {}).items()}
    if metric.measured or len(counted) > 1:
        return UnitPrice(WHOLE_LINE, line=name)
    of_events = metric.aggregate == COUNT
    same = _same_for_all(explanation)
    if same is not None:
        each = _cut(same)
        return UnitPrice(EXACT if Fraction(each) == same else AVERAGE, each, of_events, name)
    quantity = counted.get(metric.name, D(line["quantity"]))
    if not quantity:
        return UnitPrice(WHOLE_LINE, line=name)
    return UnitPrice(AVERAGE, _cut(Fraction(D(line["amount_exact"])) / Fraction(quantity)), of_events, name)


def _cut(value: Fraction) -> Decimal:
    return _WIDE.divide(Decimal(value.numerator), Decimal(value.denominator)).quantize(_EACH, context=_WIDE)


def _same_for_all(explanation: Mapping[str, Any]) -> Fraction | None:
    """The one price that all units of a line have; None where its arithmetic has several steps, or another kind."""
    steps = [it for it in explanation["steps"] if "amount" in it]
    if len(steps) != 1:
        return None
    (step,) = steps
    if "included" in step and not D(step["amount"]):
        return Fraction(0)
    if not {"price", "per"} <= set(step) or "cost" in step:
        return None
    rate = D(explanation["conversion"]["rate"]) if "conversion" in explanation else Decimal(1)
    return Fraction(D(step["price"])) / Fraction(D(step["per"])) * Fraction(rate)
