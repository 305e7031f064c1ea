"""The price book as immutable facts, and how its YAML text becomes one.

A book is a pure function of its text; meters, which are declared elsewhere, only matter when a text is checked before
it is published. The format is described in docs/pricing.md.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from meterhouse_rating.charges import Component
from meterhouse_rating.document import Block, Mistake, read
from meterhouse_rating.metrics import (
    ALL_TASKS,
    STATUSES,
    UNBILLED_STATUSES,
    Billed,
    Metric,
    check_declared,
    read_billed,
    read_metric,
)
from meterhouse_rating.models import MODELS
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.models.reading import Scope
from meterhouse_rating.models.recurring import Recurring
from meterhouse_rating.money import ROUNDING
from meterhouse_rating.rates import Rate, read_rates
from meterhouse_store.currencies import MINOR_DIGITS

__all__ = ["Book", "BookRefused", "Checked", "Metric", "Options", "Plan", "check", "check_component", "parse"]

_CURRENCY: Final = "Write the three letters of ISO 4217, such as USD, EUR or JPY."
_BEHAVIOURS: Final = ("exclusive", "inclusive", "unspecified")
_PLACES: Final = ("line",)
_MAX_NAME: Final = 64
_MAX_TRIAL_DAYS: Final = 366


@dataclass(frozen=True)
class Tax:
    """How a line is taxed, carried through to the invoice: `behaviour` of the price, tax `code` of the product."""

    behaviour: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Options:
    """What any component may say beside its model: what invoices call it, which calls are billed, how it is taxed."""

    title: str
    billed: Billed = field(default_factory=Billed)
    tax: Tax = field(default_factory=Tax)


@dataclass(frozen=True)
class Plan:
    """What a customer on it pays, in one currency; `unbilled` are meters that only this plan leaves free.

    An add-on is a plan, too: its components are added to those of the customer's plan.
    """

    name: str
    title: str
    currency: str
    components: tuple[Component, ...]
    unbilled: frozenset[str]
    line: int
    options: Mapping[str, Options] = field(default_factory=dict)
    trial_days: int = 0
    ended: str = ""
    """Of what customers are on whose contract ended, which is no plan of the book: what is told of usage."""


@dataclass(frozen=True)
class PlanChanges:
    """What becomes of a plan that another one follows within a month.

    `at_once`: the month is cut there and each part priced by its own plan; else the change waits for the next month.
    `carry_on`: tiers and included usage of the new plan go on from what the month's earlier part used; else they
    begin anew.
    """

    at_once: bool = False
    carry_on: bool = False


@dataclass(frozen=True)
class Book:
    """A price book; `sha256` is that of its text."""

    name: str
    currency: str
    rounding: str
    metrics: Mapping[str, Metric]
    unbilled_meters: frozenset[str]
    unbilled_statuses: frozenset[str]
    plans: Mapping[str, Plan]
    addons: Mapping[str, Plan]
    rates: tuple[Rate, ...]
    tax: Tax
    sha256: str
    plan_changes: "PlanChanges" = field(default_factory=lambda: PlanChanges())

    @property
    def dimensions(self) -> tuple[str, ...]:
        """All dimensions that any price depends on: what usage has to be grouped by."""
        offers = (*self.plans.values(), *self.addons.values())
        parts = (component for plan in offers for component in plan.components)
        return tuple(sorted({dimension for component in parts for dimension in component.dimensions}))

    def carried_on(self) -> frozenset[str]:
        """The metrics whose tiers and included usage go on when the plan changes: sums alone can."""
        sums = frozenset(name for name, metric in self.metrics.items() if not metric.measured)
        return sums if self.plan_changes.carry_on else frozenset()

    def free_statuses(self, metric: Metric, options: Options) -> tuple[str, ...]:
        """The statuses of calls that are not billed: what the component says, else the metric, else the book."""
        for said in (options.billed.statuses, metric.billed.statuses):
            if said is not None:
                return tuple(status for status in STATUSES if status not in said)
        return tuple(status for status in STATUSES if status in self.unbilled_statuses)

    def task_rule(self, metric: Metric, options: Options) -> str:
        """Which calls inside tasks are billed."""
        return options.billed.tasks or metric.billed.tasks or ALL_TASKS


class BookRefused(ValueError):
    """A price book with mistakes; all of them, in the order of their lines."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


@dataclass(frozen=True)
class Checked:
    """A book without mistakes, and notes on what will stay unrated under it or may surprise."""

    book: Book
    notes: tuple[Mistake, ...]


def parse(text: str) -> Book:
    """The book of a text that was published; raises BookRefused."""
    return check(text, None).book


def check(text: str, declared: Mapping[str, str] | None) -> Checked:
    """The book of a text; `declared` (meter -> unit) also checks that meters exist and add up.

    Raises BookRefused with all mistakes.
    """
    mistakes: list[Mistake] = []
    notes: list[Mistake] = []
    root = read(text, mistakes)
    if root is None:
        raise BookRefused(mistakes)
    top = Block(root, "", mistakes, line=1)
    name = top.text("book")
    currency = top.text("currency", choices=tuple(MINOR_DIGITS), remedy=_CURRENCY)
    rounding, tax, rates, changes = _rounding(top), _tax(top), read_rates(top), _plan_changes(top)
    metrics: dict[str, Metric] = {}
    for metric_name, block in top.named_blocks("metrics"):
        check_name(metric_name, block)
        metrics[metric_name] = read_metric(metric_name, block, declared)
    free_meters, free_statuses = _unbilled(top, declared)
    reader = _PlanReader(metrics, free_meters, currency or "USD", declared, notes, tax)
    plans = {name: reader.plan(name, block) for name, block in top.named_blocks("plans")}
    addons = {name: reader.addon(name, block) for name, block in top.named_blocks("addons", required=False)}
    top.done()
    _check_covered(top, metrics, free_meters, declared, notes)
    if mistakes or name is None or rounding is None:
        raise BookRefused(mistakes)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    free = frozenset(free_meters), frozenset(free_statuses)
    book = Book(name, currency or "USD", rounding, metrics, *free, plans, addons, rates, tax, sha256, changes)
    return Checked(book, tuple(sorted(notes)))


def check_component(name: str, text: str, book: Book, plan: Plan) -> tuple[Component, Options]:
    """A component that is written by itself, as an override of a plan's; raises BookRefused."""
    mistakes: list[Mistake] = []
    root = read(text, mistakes)
    if root is None:
        raise BookRefused(mistakes)
    block = Block(root, "", mistakes, line=1)
    above = tuple(part.name for part in plan.components if part.name != name)
    reader = _PlanReader(book.metrics, (), plan.currency, None, [])
    found = reader.component(name, block, plan.currency, above)
    if mistakes or found is None:
        raise BookRefused(mistakes)
    return found


@dataclass
class _PlanReader:
    """Reads plans and add-ons; `free` are the meters that the whole book leaves free."""

    metrics: Mapping[str, Metric]
    free: tuple[str, ...]
    currency: str
    declared: Mapping[str, str] | None
    notes: list[Mistake]
    tax: Tax = field(default_factory=Tax)

    def plan(self, name: str, block: Block) -> Plan:
        trial = block.number("trial_days", default=None) if block.has("trial_days") else None
        if trial is not None and (trial != int(trial) or trial > _MAX_TRIAL_DAYS):
            block.wrong("no number of days", f"Write a whole number up to {_MAX_TRIAL_DAYS}.", key="trial_days")
            trial = None
        plan = self._offer(name, block, int(trial or 0))
        self._check_charged_once(plan, block)
        self._check_taxed_alike(plan, block)
        self._note_unpriced(plan, block)
        self._note_paid_ahead(plan, block)
        return plan

    def addon(self, name: str, block: Block) -> Plan:
        addon = self._offer(name, block, 0)
        self._check_charged_once(addon, block)
        self._check_taxed_alike(addon, block)
        for component in addon.components:
            # On a rated line it is named add-on.component, a credit pack with eight more characters and a point.
            if len(name) + len(component.name) > _MAX_NAME - 10:
                what = f"`{name}.{component.name}` is too long a name"
                block.wrong(what, f"Shorten them to {_MAX_NAME - 10} characters together.", key="components")
        return addon

    def component(
        self, name: str, block: Block, currency: str, above: tuple[str, ...]
    ) -> tuple[Component, Options] | None:
        """A component with what any component may say; None when it cannot be made."""
        check_name(name, block)
        model = block.text("model", choices=tuple(MODELS))
        if model is None:
            return None
        title = block.text("title", default=name) or name
        options = Options(title, read_billed(block), _tax(block))
        kinds = {metric.name: metric.aggregate for metric in self.metrics.values()}
        component = MODELS[model](name, block, Scope(kinds, currency, above))
        block.done()
        if component is None:
            return None
        if not component.metrics and options.billed != Billed():
            block.wrong("bills no usage", "Leave `statuses` and `tasks` out.")
        return component, options

    def _offer(self, name: str, block: Block, trial_days: int) -> Plan:
        check_name(name, block)
        title = block.text("title", default=name) or name
        own = block.text("currency", choices=tuple(MINOR_DIGITS), default=self.currency, remedy=_CURRENCY)
        currency = own or self.currency
        unbilled = block.texts("unbilled", default=())
        check_declared(block, "unbilled", unbilled, self.declared)
        components: list[Component] = []
        options: dict[str, Options] = {}
        above: list[str] = []
        for part, inner in block.named_blocks("components"):
            found = self.component(part, inner, currency, tuple(above))
            if found is not None:
                components.append(found[0])
                options[part] = found[1]
            if inner.text("model", default="") != "minimum":
                above.append(part)
        block.done()
        return Plan(name, title, currency, tuple(components), frozenset(unbilled), block.line, options, trial_days)

    def _check_charged_once(self, plan: Plan, block: Block) -> None:
        """Within a plan, a unit of usage is charged by one component or is free, never both and never twice."""
        free = {*self.free, *plan.unbilled}
        charged: dict[str, str] = {}
        for component in plan.components:
            for name in component.metrics:
                for meter in self.metrics[name].meters if name in self.metrics else ():
                    if meter in charged:
                        block.wrong(
                            f"charges {meter} twice, by {charged[meter]} and by {component.name}",
                            "Leave one of the two out.",
                            key="components",
                        )
                    elif meter in free:
                        block.wrong(
                            f"charges {meter} by {component.name}, but {meter} is listed as unbilled",
                            "Remove it from `unbilled` or from the component's metric.",
                            key="components",
                        )
                    charged[meter] = component.name

    def _check_taxed_alike(self, plan: Plan, block: Block) -> None:
        """Minimums, discounts and credits go over the lines of a plan: amounts with and without tax do not add up."""
        said = {options.tax.behaviour or self.tax.behaviour for options in plan.options.values()}
        if self.declared is not None and {"exclusive", "inclusive"} <= said:
            block.wrong(
                "has prices with tax in them (inclusive) and without (exclusive)",
                "Choose one of the two for the whole plan; codes may differ.",
                key="components",
            )

    def _note_unpriced(self, plan: Plan, block: Block) -> None:
        named = {name for component in plan.components for name in component.metrics if name in self.metrics}
        charged = {meter for name in named for meter in self.metrics[name].meters}
        for metric in self.metrics.values():
            missing = [it for it in metric.meters if it not in charged and it not in {*self.free, *plan.unbilled}]
            if missing:
                what = f"no price for {metric.name} ({', '.join(missing)}): its usage will be unrated"
                remedy = "Add a component, or list the meters as `unbilled`."
                self.notes.append(Mistake(block.line, block.path, what, remedy))

    def _note_paid_ahead(self, plan: Plan, block: Block) -> None:
        ahead = {it.name for it in plan.components if isinstance(it, Recurring) and it.advance}
        for it in plan.components:
            counted = sorted(ahead if it.depends_on is None else ahead & set(it.depends_on))
            if isinstance(it, Minimum) and counted:
                ahead_of = ", ".join(counted)
                what = f"{it.name} compares what is on a month's invoice: of {ahead_of} that is the next month's fee"
                remedy = "To compare months alone leave it out by `of`, or bill it with `pay: arrears`."
                self.notes.append(Mistake(it.line, f"{block.path}.components.{it.name}", what, remedy))


def check_name(name: str, block: Block) -> None:
    plain_name = name.replace("-", "_").replace(".", "_")
    if not plain_name.isidentifier() or not name.isascii() or len(name) > _MAX_NAME:
        block.wrong(
            f"`{name}` is no name", f"Use letters, digits, `-`, `_` and `.`, at most {_MAX_NAME}, a letter first."
        )


def _rounding(top: Block) -> str | None:
    """`rounding: half_up`, or `rounding: {mode: half_up, place: line}`."""
    if not top.has("rounding") or top.is_text("rounding"):
        return top.text("rounding", choices=tuple(ROUNDING), default="half_even")
    block = top.block("rounding")
    if block is None:
        return None
    mode = block.text("mode", choices=tuple(ROUNDING), default="half_even")
    block.text("place", choices=_PLACES, default="line")
    block.done()
    return mode


def _plan_changes(top: Block) -> PlanChanges:
    """`plan_changes: {apply: at_once, usage: carry_on}`."""
    block = top.block("plan_changes") if top.has("plan_changes") else None
    if block is None:
        return PlanChanges()
    apply = block.text("apply", choices=("next_month", "at_once"), default="next_month")
    usage = block.text("usage", choices=("restart", "carry_on"), default="restart")
    if apply != "at_once" and usage == "carry_on":
        block.wrong("has nothing to carry on: a change that waits for a month begins with it", "Add `apply: at_once`.")
    block.done()
    return PlanChanges(apply == "at_once", usage == "carry_on")


def _tax(outer: Block) -> Tax:
    if not outer.has("tax"):
        return Tax()
    block = outer.block("tax")
    if block is None:
        return Tax()
    behaviour = block.text("behaviour", choices=_BEHAVIOURS) if block.has("behaviour") else None
    code = block.text("code") if block.has("code") else None
    if code is not None and len(code) > _MAX_NAME:
        block.wrong(f"a code of more than {_MAX_NAME} characters", "Write it as your tax service does.", key="code")
    block.done()
    return Tax(behaviour, code)


def _unbilled(top: Block, declared: Mapping[str, str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    block = top.block("unbilled", required=False)
    if block is None:
        return (), UNBILLED_STATUSES
    meters = block.texts("meters", default=())
    statuses = block.texts("statuses", default=UNBILLED_STATUSES)
    check_declared(block, "meters", meters, declared)
    for status in statuses:
        if status not in UNBILLED_STATUSES:
            block.wrong(f"`{status}` cannot be free", f"Choose from: {', '.join(UNBILLED_STATUSES)}.", key="statuses")
    block.done()
    return meters, statuses


def _check_covered(
    top: Block,
    metrics: Mapping[str, Metric],
    free: tuple[str, ...],
    declared: Mapping[str, str] | None,
    notes: list[Mistake],
) -> None:
    named = {meter for metric in metrics.values() for meter in metric.meters} | set(free)
    for meter in sorted(set(declared or ()) - named):
        notes.append(
            Mistake(
                top.line_of("metrics"),
                "metrics",
                f"{meter} is in no metric and not unbilled: its usage will be unrated",
                "Add it to a metric, or to `unbilled: {meters: [...]}`.",
            )
        )
