"""Sorts usage before it is priced: what a component charges, what is free by choice, what has no price.

What a metric sums or counts is known from the rows. What it measures otherwise (a maximum, how many different users)
the warehouse has worked out; the rows then only say what went into it, and both must tell of the same events.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from meterhouse_rating.book import Book, Options, Plan
from meterhouse_rating.charges import NO_PRICE, Before, Component, Dimensions, Portion
from meterhouse_rating.costs_asked import Cost
from meterhouse_rating.metrics import COUNT, NOT_FAILED, OK_ONLY, Metric
from meterhouse_store.meters import how_to_declare

NOT_DECLARED: Final = "meter_not_declared"
CONTRACT_ENDED: Final = "contract_ended"
TOO_MANY_GROUPS: Final = "too_many_groups"
NEGATIVE_QUANTITY: Final = "negative_quantity"
UNBILLED_METER: Final = "unbilled_meter"
UNBILLED_STATUS: Final = "unbilled_status"
UNBILLED_TASK: Final = "unbilled_task"
UNBILLED_TRIAL: Final = "unbilled_trial"
BY_CHOICE: Final = frozenset({UNBILLED_METER, UNBILLED_STATUS, UNBILLED_TASK, UNBILLED_TRIAL})
"""Reasons why usage is free because the price book says so; all other reasons are exceptions to look at."""

TASK_OK: Final = "ok"
TASK_FAILED: Final = "failed"
TASK_OPEN: Final = "open"


class ConservationError(AssertionError):
    """Usage went in that came out nowhere, or twice: a defect of a price model, never of data."""


@dataclass(frozen=True)
class UsageRow:
    """Aggregated usage of one customer: one meter, status and combination of the book's dimensions.

    `task`: how the task ended that the calls were in (`ok`, `failed`, `open`; empty outside of tasks, and where no
    price depends on it). `trial`: used within the customer's trial. `cost`: what the provider asks; None where
    no price depends on it.
    """

    meter: str
    status: str
    dimensions: Dimensions
    events: int
    quantity: Decimal
    task: str = ""
    trial: bool = False
    cost: Cost | None = None

    def of(self, quantity: Decimal) -> "UsageRow":
        """The row with another quantity, its cost in proportion."""
        cost = None if self.cost is None else self.cost.shared(quantity, self.quantity)
        return replace(self, quantity=quantity, cost=cost)


@dataclass(frozen=True)
class Measurement:
    """What the warehouse has to work out: a metric's value by dimensions, over the calls that are billed."""

    metric: Metric
    dimensions: tuple[str, ...]
    free_statuses: tuple[str, ...]
    tasks: str


@dataclass(frozen=True)
class Measure:
    """What it is for one combination of the dimensions, and how many events of the period went into it."""

    measurement: Measurement
    dimensions: Dimensions
    events: int
    value: Decimal


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
class Sorted:
    """Portions per component, and what is left."""

    portions: Mapping[str, Sequence[Portion]]
    leftovers: list[Leftover]


def measurement(book: Book, plan: Plan, component: Component, metric: Metric) -> Measurement:
    """What has to be measured for a component's metric."""
    options = options_of(plan, component)
    free = book.free_statuses(metric, options)
    return Measurement(metric, tuple(component.dimensions), free, book.task_rule(metric, options))


def measurements(book: Book, plans: Iterable[Plan]) -> tuple[Measurement, ...]:
    """All that has to be measured for the plans, each once."""
    found: dict[Measurement, None] = {}
    for plan in plans:
        for component in plan.components:
            for name in component.metrics:
                if book.metrics[name].measured:
                    found[measurement(book, plan, component, book.metrics[name])] = None
    return tuple(found)


def needs_tasks(book: Book, plans: Iterable[Plan]) -> bool:
    """Whether any price depends on how tasks ended."""
    return any(
        book.task_rule(book.metrics[name], options_of(plan, component)) in (OK_ONLY, NOT_FAILED)
        for plan in plans
        for component in plan.components
        for name in component.metrics
    )


def options_of(plan: Plan, component: Component) -> Options:
    return plan.options.get(component.name, Options(component.name))


def sort_out(
    book: Book,
    plan: Plan,
    usage: Iterable[UsageRow],
    measures: Iterable[Measure],
    declared: frozenset[str],
    before: Mapping[str, Before],
) -> Sorted:
    """Where each row of usage goes. Raises ConservationError where rows and measures tell of different events."""
    charged = charged_by(book, plan)
    rows: dict[tuple[str, str], list[UsageRow]] = {}
    leftovers: list[Leftover] = []
    for row in usage:
        component, metric = charged.get(row.meter, (None, None))
        why = left_out(book, plan, row, component, metric, declared)
        if why is not None or component is None or metric is None:
            reason, hint = why or (NO_PRICE, "")
            leftovers.append(Leftover(row.meter, (), row.events, row.quantity, reason, hint))
        else:
            rows.setdefault((component.name, metric.name), []).append(row)
    portions: dict[str, list[Portion]] = {}
    known = list(measures)
    for component in plan.components:
        mine = portions.setdefault(component.name, [])
        for name in component.metrics:
            metric, found = book.metrics[name], rows.get((component.name, name), [])
            if not metric.measured:
                whole, taken_out = _without_negative(metric, component, found)
                mine += [_portion(metric, row) for row in whole]
                leftovers += taken_out
                continue
            if found and before.get(component.name, Before()).quantities.get(name):
                hint = _whole_month(metric)
                leftovers += [Leftover(it.meter, (), it.events, it.quantity, NO_PRICE, hint) for it in found]
                continue
            wanted = measurement(book, plan, component, metric)
            mine += _measured(metric, component, found, [it for it in known if it.measurement == wanted])
    return Sorted(portions, leftovers)


def charged_by(book: Book, plan: Plan) -> dict[str, tuple[Component, Metric]]:
    """Meter -> the component of the plan that charges it, and by which metric."""
    return {
        meter: (component, book.metrics[name])
        for component in plan.components
        for name in component.metrics
        for meter in book.metrics[name].meters
    }


def left_out(
    book: Book,
    plan: Plan,
    row: UsageRow,
    component: Component | None,
    metric: Metric | None,
    declared: frozenset[str],
) -> tuple[str, str] | None:
    """Why the row is on no line, and the hint; None for one that is charged."""
    if row.meter not in declared:
        return NOT_DECLARED, how_to_declare(row.meter)
    if row.trial:
        return UNBILLED_TRIAL, f"within the trial of {plan.trial_days} days of the plan {plan.name}"
    if component is None or metric is None:
        free = row.meter in book.unbilled_meters or row.meter in plan.unbilled
        if row.status in book.unbilled_statuses:
            return UNBILLED_STATUS, f"the price book {book.name} does not bill calls that are {row.status}"
        if free:
            return UNBILLED_METER, f"listed as unbilled in the price book {book.name}"
        if plan.ended:
            return CONTRACT_ENDED, plan.ended
        return NO_PRICE, _component_to_add(book, plan, row.meter)
    options = options_of(plan, component)
    if row.status in book.free_statuses(metric, options):
        return UNBILLED_STATUS, f"the price book {book.name} does not bill calls that are {row.status}"
    rule = book.task_rule(metric, options)
    if rule == OK_ONLY and row.task in (TASK_FAILED, TASK_OPEN):
        how = "failed" if row.task == TASK_FAILED else "had no outcome when this was rated"
        return UNBILLED_TASK, f"the price book {book.name} bills {metric.name} of tasks that end well only; this {how}"
    if rule == NOT_FAILED and row.task == TASK_FAILED:
        return UNBILLED_TASK, f"the price book {book.name} does not bill {metric.name} of tasks that failed"
    return None


def _without_negative(
    metric: Metric, component: Component, rows: Sequence[UsageRow]
) -> tuple[list[UsageRow], list[Leftover]]:
    """The rows that can be priced, and those of combinations of the component's dimensions that sum to less than zero.

    Sources that report parts of a whole (cached of input tokens) have them taken out of it: a part whose whole has not
    arrived is no usage yet, and neither a credit nor nothing.
    """
    if metric.aggregate == COUNT:
        return list(rows), []
    sums: dict[Dimensions, Decimal] = {}
    for row in rows:
        key = _combination(component, row)
        sums[key] = sums.get(key, Decimal(0)) + row.quantity
    whole = [row for row in rows if sums[_combination(component, row)] >= 0]
    return whole, [
        Leftover(row.meter, _combination(component, row), row.events, row.quantity, NEGATIVE_QUANTITY, _WHOLE_MISSING)
        for row in rows
        if sums[_combination(component, row)] < 0
    ]


def _combination(component: Component, row: UsageRow) -> Dimensions:
    known = dict(row.dimensions)
    return tuple((name, known[name]) for name in component.dimensions)


_WHOLE_MISSING: Final = (
    "a part (cached or reasoning tokens) was taken out of a whole that has not arrived: run again when it has; "
    "`meterhouse completeness` shows what is late"
)


def _portion(metric: Metric, row: UsageRow) -> Portion:
    value = Decimal(row.events) if metric.aggregate == COUNT else None
    return Portion(metric.name, row.meter, metric.unit, row.dimensions, row.events, row.quantity, value, row.cost)


def _measured(
    metric: Metric, component: Component, rows: Sequence[UsageRow], measures: Sequence[Measure]
) -> list[Portion]:
    """Portions per group of the component's dimensions: the first of a group has the value, all have their events."""
    groups: dict[Dimensions, list[UsageRow]] = {}
    for row in rows:
        groups.setdefault(_combination(component, row), []).append(row)
    values = {it.dimensions: it for it in measures}
    for key, group in groups.items():
        went_in = values[key].events if key in values else 0
        came = sum(row.events for row in group)
        if went_in != came:
            raise ConservationError(
                f"{metric.name} was measured over {went_in} events, and there are {came}: the warehouse changed on the "
                "way. Rate again"
            )
    portions = []
    for key, measure in sorted(values.items()):
        if measure.events and key not in groups:
            raise ConservationError(f"{metric.name} was measured over {measure.events} events that are not there")
        # A level that goes on from before the period has a value and no event in it.
        group = groups.get(key) or [UsageRow(metric.meters[0], "", key, 0, Decimal(0))]
        left = measure.value
        for row in sorted(group, key=lambda it: (it.meter, it.status, it.task, it.dimensions)):
            portions.append(Portion(metric.name, row.meter, metric.unit, key, row.events, row.quantity, left))
            left = Decimal(0)
    return portions


def _whole_month(metric: Metric) -> str:
    return (
        f"{metric.name} ({metric.aggregate}) of a month cannot be rated in parts, and a part of this month is rated "
        "already: bill the rest by hand, and rate such months as a whole"
    )


def _component_to_add(book: Book, plan: Plan, meter: str) -> str:
    metrics = [metric.name for metric in book.metrics.values() if meter in metric.meters]
    if metrics:
        return (
            f"the plan {plan.name} (line {plan.line}) has no price for {metrics[0]}: below `components` "
            f"add a component with metric: {metrics[0]}, or add {meter} to the plan's `unbilled`"
        )
    return f"add {meter} to a metric of the price book {book.name}, or to `unbilled: {{meters: [{meter}]}}`"
