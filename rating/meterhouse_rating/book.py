"""The price book as immutable facts, and how its YAML text becomes one.

A book is a pure function of its text; meters, which are declared elsewhere, only matter when a text is checked before
it is published. The format is described in docs/pricing.md.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meterhouse.vocabulary import ABORTED, FAILED, UNFINISHED
from meterhouse_rating.charges import Component
from meterhouse_rating.document import Block, Mistake, read
from meterhouse_rating.models import MODELS
from meterhouse_rating.money import MINOR_DIGITS, ROUNDING

UNBILLED_STATUSES: Final = (FAILED, ABORTED, UNFINISHED)
"""What a book leaves free when it says nothing about it."""

_CURRENCY: Final = "Write the three letters of ISO 4217, such as USD, EUR or JPY."
_MAX_NAME: Final = 64
_MAX_UNIT: Final = 32


@dataclass(frozen=True)
class Metric:
    """A billable metric: the sum of its meters, in `unit` (what an invoice says: token, call)."""

    name: str
    unit: str
    meters: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Plan:
    """What a customer on it pays, in one currency; `unbilled` are meters that only this plan leaves free."""

    name: str
    title: str
    currency: str
    components: tuple[Component, ...]
    unbilled: frozenset[str]
    line: int


@dataclass(frozen=True)
class Book:
    """A price book; `sha256` is that of its text."""

    name: str
    rounding: str
    metrics: Mapping[str, Metric]
    unbilled_meters: frozenset[str]
    unbilled_statuses: frozenset[str]
    plans: Mapping[str, Plan]
    sha256: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        """All dimensions that any price depends on: what usage has to be grouped by."""
        parts = (component for plan in self.plans.values() for component in plan.components)
        return tuple(sorted({dimension for component in parts for dimension in component.dimensions}))


class BookRefused(ValueError):
    """A price book with mistakes; all of them, in the order of their lines."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


@dataclass(frozen=True)
class Checked:
    """A book without mistakes, and notes on what will stay unrated under it."""

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
    rounding = top.text("rounding", choices=tuple(ROUNDING), default="half_even")
    metrics = {
        name: metric for name, block in top.named_blocks("metrics") if (metric := _metric(name, block, declared))
    }
    free_meters, free_statuses = _unbilled(top, declared)
    plans = {
        name: _plan(name, block, metrics, free_meters, currency or "USD", declared, notes)
        for name, block in top.named_blocks("plans")
    }
    top.done()
    _check_covered(top, metrics, free_meters, declared, notes)
    if mistakes or name is None or rounding is None:
        raise BookRefused(mistakes)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    book = Book(name, rounding, metrics, frozenset(free_meters), frozenset(free_statuses), plans, sha256)
    return Checked(book, tuple(sorted(notes)))


def _metric(name: str, block: Block, declared: Mapping[str, str] | None) -> Metric | None:
    _check_name(name, block)
    unit, meters = block.text("unit"), block.texts("meters")
    if unit and len(unit) > _MAX_UNIT:
        block.wrong(f"a unit of more than {_MAX_UNIT} characters", "Write what one is called: token.", key="unit")
    block.done()
    _check_declared(block, "meters", meters, declared)
    units = {declared[meter] for meter in meters if meter in declared} if declared is not None else set()
    if len(units) > 1:
        block.wrong(f"adds up different units ({', '.join(sorted(units))})", "Make one metric per unit.", key="meters")
    return Metric(name, unit or "", meters, block.line)


def _unbilled(top: Block, declared: Mapping[str, str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    block = top.block("unbilled", required=False)
    if block is None:
        return (), UNBILLED_STATUSES
    meters = block.texts("meters", default=())
    statuses = block.texts("statuses", default=UNBILLED_STATUSES)
    _check_declared(block, "meters", meters, declared)
    for status in statuses:
        if status not in UNBILLED_STATUSES:
            block.wrong(f"`{status}` cannot be free", f"Choose from: {', '.join(UNBILLED_STATUSES)}.", key="statuses")
    block.done()
    return meters, statuses


def _plan(
    name: str,
    block: Block,
    metrics: Mapping[str, Metric],
    free: tuple[str, ...],
    currency: str,
    declared: Mapping[str, str] | None,
    notes: list[Mistake],
) -> Plan:
    _check_name(name, block)
    title = block.text("title", default=name) or name
    own_currency = block.text("currency", choices=tuple(MINOR_DIGITS), default=currency, remedy=_CURRENCY) or currency
    unbilled = block.texts("unbilled", default=())
    _check_declared(block, "unbilled", unbilled, declared)
    components = []
    for part, inner in block.named_blocks("components"):
        _check_name(part, inner)
        model = inner.text("model", choices=tuple(MODELS))
        if model is None:
            continue
        component = MODELS[model](part, inner, tuple(metrics), own_currency)
        inner.done()
        if component is not None:
            components.append(component)
    block.done()
    plan = Plan(name, title, own_currency, tuple(components), frozenset(unbilled), block.line)
    _check_charged_once(plan, block, metrics, {*free, *unbilled}, notes)
    return plan


def _check_charged_once(
    plan: Plan, block: Block, metrics: Mapping[str, Metric], free: set[str], notes: list[Mistake]
) -> None:
    """Within a plan, a unit of usage is charged by one component or is free, never both and never twice."""
    charged: dict[str, str] = {}
    for component in plan.components:
        for name in component.metrics:
            for meter in metrics[name].meters if name in metrics else ():
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
    for metric in metrics.values():
        missing = [meter for meter in metric.meters if meter not in charged and meter not in free]
        if missing:
            what = f"no price for {metric.name} ({', '.join(missing)}): its usage will be unrated"
            notes.append(Mistake(block.line, block.path, what, "Add a component, or list the meters as `unbilled`."))


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


def _check_declared(block: Block, key: str, meters: tuple[str, ...], declared: Mapping[str, str] | None) -> None:
    for meter in meters:
        if declared is not None and meter not in declared:
            block.wrong(
                f"the meter {meter} is not declared", "Declare it in meters.yaml, or mind its spelling.", key=key
            )


def _check_name(name: str, block: Block) -> None:
    plain_name = name.replace("-", "_").replace(".", "_")
    if not plain_name.isidentifier() or not name.isascii() or len(name) > _MAX_NAME:
        block.wrong(
            f"`{name}` is no name", f"Use letters, digits, `-`, `_` and `.`, at most {_MAX_NAME}, a letter first."
        )
