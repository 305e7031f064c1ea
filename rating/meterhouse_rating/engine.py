"""The rating engine: usage, a plan and what was settled before go in, rated lines come out. Nothing else is read.

The same inputs give the same bytes at any later time. Every unit of usage ends in exactly one place: on a line, in what
the book leaves free by choice, or in what has no price; `rate` checks that before it returns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.book import Book, Plan
from meterhouse_rating.charges import Before, Charge, Dimensions, Portion
from meterhouse_rating.ids import digest
from meterhouse_rating.money import exact, show, smallest, to_minor
from meterhouse_store.numbers import plain

NOT_REGISTERED: Final = "customer_not_registered"
NOT_DECLARED: Final = "meter_not_declared"
NO_PRICE: Final = "no_price"
UNBILLED_METER: Final = "unbilled_meter"
UNBILLED_STATUS: Final = "unbilled_status"
BY_CHOICE: Final = frozenset({UNBILLED_METER, UNBILLED_STATUS})
"""Reasons why usage is free because the price book says so; all other reasons are exceptions to look at."""


class ConservationError(AssertionError):
    """Usage went in that came out nowhere, or twice: a defect of a price model, never of data."""


@dataclass(frozen=True)
class UsageRow:
    """Aggregated usage of one customer: one meter, status and combination of the book's dimensions."""

    meter: str
    status: str
    dimensions: Dimensions
    events: int
    quantity: Decimal


@dataclass(frozen=True)
class Inputs:
    """All that a rating depends on.

    `contract_id` names the agreement that put the customer on the plan, `declared` the declared meters, `before` what
    was settled earlier per component, `credit_minor` the credit balance before this period.
    """

    contract_id: str
    currency: str
    book: Book
    version: int
    plan: Plan
    usage: tuple[UsageRow, ...]
    declared: frozenset[str]
    before: Mapping[str, Before] = field(default_factory=dict)
    credit_minor: int = 0

    def sha256(self) -> str:
        """The hash of everything that can change the result."""
        before = {
            name: {"charged": it.charged, "quantities": {key: plain(it.quantities[key]) for key in it.quantities}}
            for name, it in self.before.items()
        }
        usage = [[r.meter, r.status, [list(d) for d in r.dimensions], r.events, plain(r.quantity)] for r in self.usage]
        book = [self.book.sha256, self.version, self.plan.name]
        return digest(
            [self.contract_id, self.currency, book, sorted(usage), sorted(self.declared), before, self.credit_minor]
        )


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
class Leftover:
    """Usage that is on no line, why, and what to do about it (or why it is free)."""

    meter: str
    dimensions: Dimensions
    events: int
    quantity: Decimal
    reason: str
    hint: str


@dataclass(frozen=True)
class Rated:
    """A rated period of one customer. The total is the sum of the lines."""

    lines: tuple[RatedLine, ...]
    leftovers: tuple[Leftover, ...]
    total_minor: int

    def sha256(self) -> str:
        """The hash of the result: the same inputs give the same hash."""
        return digest([[_plain(asdict(line)) for line in self.lines], [_plain(asdict(it)) for it in self.leftovers]])


def rate(inputs: Inputs) -> Rated:
    """Rate one customer's period. Raises ConservationError where a price model lost or doubled usage."""
    with exact():
        portions, leftovers = _sort_out(inputs)
        lines: list[RatedLine] = []
        granted = 0
        for component in inputs.plan.components:
            mine = [portion for portion in portions if portion.metric in component.metrics]
            charged = component.charge(mine, inputs.before.get(component.name, Before()))
            lines += [_line(inputs, component.name, charge) for charge in charged.charges]
            granted += sum(_minor(inputs, charge.credits) for charge in charged.charges)
            leftovers += [_unpriced(portion, hint) for portion, hint in charged.unpriced]
        lines += _apply_credits(inputs, lines, inputs.credit_minor + granted)
        _check_conservation(inputs.usage, lines, leftovers)
    return Rated(tuple(lines), _merge(leftovers), sum(line.amount_minor for line in lines))


def left_over(usage: Iterable[UsageRow], reason: str, hint: str) -> tuple[Leftover, ...]:
    """All of the usage, left for one reason: a customer that cannot be rated at all."""
    return _merge(Leftover(row.meter, (), row.events, row.quantity, reason, hint) for row in usage)


def _sort_out(inputs: Inputs) -> tuple[list[Portion], list[Leftover]]:
    """Usage that a component charges, and usage that is free, undeclared or without a component."""
    book, plan = inputs.book, inputs.plan
    charged = {name for component in plan.components for name in component.metrics}
    metric_of = {meter: book.metrics[name] for name in charged for meter in book.metrics[name].meters}
    portions, leftovers = [], []
    for row in inputs.usage:
        metric = metric_of.get(row.meter)
        if row.meter not in inputs.declared:
            reason, hint = NOT_DECLARED, _declaration(row.meter)
        elif row.status in book.unbilled_statuses:
            reason, hint = UNBILLED_STATUS, f"the price book {book.name} does not bill calls that are {row.status}"
        elif row.meter in book.unbilled_meters or row.meter in plan.unbilled:
            reason, hint = UNBILLED_METER, f"listed as unbilled in the price book {book.name}"
        elif metric is None:
            reason, hint = NO_PRICE, _component_to_add(inputs, row.meter)
        else:
            portions.append(Portion(metric.name, row.meter, metric.unit, row.dimensions, row.events, row.quantity))
            continue
        leftovers.append(Leftover(row.meter, (), row.events, row.quantity, reason, hint))
    return portions, leftovers


def _line(inputs: Inputs, component: str, charge: Charge) -> RatedLine:
    amount_minor = _minor(inputs, charge.amount)
    explanation = {
        "price": {
            "book": inputs.book.name,
            "version": inputs.version,
            "plan": inputs.plan.name,
            "component": component,
            "line": charge.book_line,
            "contract": inputs.contract_id,
        },
        "meters": {meter: plain(quantity) for meter, quantity in charge.meters.items()},
        "steps": [dict(step) for step in charge.steps],
        "amount_exact": plain(charge.amount),
        "rounding": f"{inputs.book.rounding} to {smallest(inputs.currency)} {inputs.currency}",
        "amount": show(amount_minor, inputs.currency),
    }
    if charge.credits:
        explanation["credits"] = show(_minor(inputs, charge.credits), inputs.currency)
    return RatedLine(
        charge.kind,
        component,
        charge.metric,
        charge.description,
        charge.quantity,
        charge.unit,
        charge.dimensions,
        charge.amount,
        amount_minor,
        explanation,
    )


def _apply_credits(inputs: Inputs, lines: list[RatedLine], balance: int) -> list[RatedLine]:
    """One negative line that pays the usage lines in their order, as far as the balance reaches."""
    left, steps = balance, []
    for line in lines:
        paid = min(left, line.amount_minor) if line.kind == "usage" else 0
        if paid > 0:
            left -= paid
            steps.append({"pays": line.description, "amount": show(paid, inputs.currency)})
    spent = balance - left
    if spent <= 0:
        return []
    amount = Decimal(show(-spent, inputs.currency))
    explanation = {
        "balance_before": show(balance, inputs.currency),
        "steps": steps,
        "balance_after": show(left, inputs.currency),
        "amount": show(-spent, inputs.currency),
    }
    return [
        RatedLine("credit_applied", "credits", None, "Credits applied", Decimal(1), "", (), amount, -spent, explanation)
    ]


def _check_conservation(usage: Iterable[UsageRow], lines: Iterable[RatedLine], left: Iterable[Leftover]) -> None:
    balance: dict[str, Decimal] = {}
    for row in usage:
        balance[row.meter] = balance.get(row.meter, Decimal(0)) + row.quantity
    for line in lines:
        for meter, quantity in line.explanation.get("meters", {}).items():
            balance[meter] = balance.get(meter, Decimal(0)) - Decimal(quantity)
    for item in left:
        balance[item.meter] = balance.get(item.meter, Decimal(0)) - item.quantity
    wrong = {meter: plain(rest) for meter, rest in balance.items() if rest}
    if wrong:
        raise ConservationError(f"usage minus rated, unbilled and unrated is not zero: {wrong}")


def _merge(leftovers: Iterable[Leftover]) -> tuple[Leftover, ...]:
    """One leftover per meter, dimensions, reason and hint, in a fixed order."""
    merged: dict[tuple[str, Dimensions, str, str], tuple[int, Decimal]] = {}
    with exact():
        for it in leftovers:
            key = (it.meter, it.dimensions, it.reason, it.hint)
            events, quantity = merged.get(key, (0, Decimal(0)))
            merged[key] = (events + it.events, quantity + it.quantity)
    return tuple(
        Leftover(meter, dimensions, events, quantity, reason, hint)
        for (meter, dimensions, reason, hint), (events, quantity) in sorted(merged.items())
    )


def _minor(inputs: Inputs, amount: Decimal) -> int:
    return to_minor(amount, inputs.currency, inputs.book.rounding)


def _unpriced(portion: Portion, hint: str) -> Leftover:
    return Leftover(portion.meter, portion.dimensions, portion.events, portion.quantity, NO_PRICE, hint)


def _component_to_add(inputs: Inputs, meter: str) -> str:
    metrics = [metric.name for metric in inputs.book.metrics.values() if meter in metric.meters]
    if metrics:
        return (
            f"the plan {inputs.plan.name} (line {inputs.plan.line}) has no price for {metrics[0]}: below `components` "
            f"add a component with metric: {metrics[0]}, or add {meter} to the plan's `unbilled`"
        )
    return f"add {meter} to a metric of the price book {inputs.book.name}, or to `unbilled: {{meters: [{meter}]}}`"


def _declaration(meter: str) -> str:
    return (
        f'declare it in the file that METERHOUSE_METERS names: meters: {{{meter}: {{unit: "1", counts: what one of it '
        "is, values: integer, step: 1}}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
