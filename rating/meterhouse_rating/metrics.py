"""Billable metrics: which meters they count, how, and of which calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from meterhouse.vocabulary import ABORTED, FAILED, OK, UNFINISHED
from meterhouse_rating.document import Block
from meterhouse_rating.models.dimensions import DIMENSIONS, is_dimension
from meterhouse_store.meters import how_to_declare

SUM: Final = "sum"
COUNT: Final = "count"
MAX: Final = "max"
UNIQUE: Final = "unique"
LATEST: Final = "latest"
TIME_WEIGHTED: Final = "time_weighted"
AGGREGATIONS: Final = (SUM, COUNT, MAX, UNIQUE, LATEST, TIME_WEIGHTED)
"""`count` is of events; `latest` and `time_weighted` read each event as the level from its time on."""

STATUSES: Final = (OK, FAILED, ABORTED, UNFINISHED)
UNBILLED_STATUSES: Final = (FAILED, ABORTED, UNFINISHED)
"""What a book leaves free when it says nothing about it."""

ALL_TASKS: Final = "all"
OK_ONLY: Final = "ok_only"
NOT_FAILED: Final = "not_failed"
TASKS: Final = (ALL_TASKS, OK_ONLY, NOT_FAILED)
"""Of a call inside a task: billed in any case; only when the task ended well; unless it failed (one without an outcome
is billed)."""

PER: Final = {"second": Decimal(1), "minute": Decimal(60), "hour": Decimal(3600), "day": Decimal(86400)}
"""Seconds of the units that `time_weighted` counts in."""

_MAX_UNIT: Final = 32


@dataclass(frozen=True)
class Billed:
    """Which calls are billed; None: what the book, or the metric, says."""

    statuses: tuple[str, ...] | None = None
    tasks: str | None = None


@dataclass(frozen=True)
class Metric:
    """A billable metric of its meters, in `unit` (what an invoice says: token, call).

    `of` is the dimension whose values `unique` counts, or of which each value has a level of its own. `per` are the
    seconds that one unit of `time_weighted` lasts.
    """

    name: str
    unit: str
    meters: tuple[str, ...]
    line: int
    aggregate: str = SUM
    of: str | None = None
    per: Decimal = Decimal(1)
    billed: Billed = field(default_factory=Billed)

    @property
    def measured(self) -> bool:
        """Whether the warehouse has to work its value out, because it is no sum over rows."""
        return self.aggregate not in (SUM, COUNT)


def read_metric(name: str, block: Block, declared: Mapping[str, str] | None) -> Metric:
    """The metric; mistakes are collected by the block."""
    unit, meters = block.text("unit"), block.texts("meters")
    if unit and len(unit) > _MAX_UNIT:
        block.wrong(f"a unit of more than {_MAX_UNIT} characters", "Write what one is called: token.", key="unit")
    aggregate = block.text("aggregate", choices=AGGREGATIONS, default=SUM) or SUM
    of = _read_of(block, aggregate)
    per = PER["hour"]
    if aggregate == TIME_WEIGHTED:
        per = PER[block.text("per", choices=tuple(PER), default="hour") or "hour"]
    billed = read_billed(block)
    block.done()
    check_declared(block, "meters", meters, declared)
    units = {declared[meter] for meter in meters if meter in declared} if declared is not None else set()
    if len(units) > 1 and aggregate not in (COUNT, UNIQUE):
        block.wrong(f"adds up different units ({', '.join(sorted(units))})", "Make one metric per unit.", key="meters")
    return Metric(name, unit or "", meters, block.line, aggregate, of, per, billed)


def read_billed(block: Block) -> Billed:
    """`statuses` and `tasks` of a metric or a component."""
    statuses = block.texts("statuses") if block.has("statuses") else None
    for status in statuses or ():
        if status not in STATUSES:
            block.wrong(f"`{status}` is no status", f"Choose from: {', '.join(STATUSES)}.", key="statuses")
    tasks = block.text("tasks", choices=TASKS) if block.has("tasks") else None
    return Billed(statuses, tasks)


def check_declared(block: Block, key: str, meters: tuple[str, ...], declared: Mapping[str, str] | None) -> None:
    for meter in meters:
        if declared is not None and meter not in declared:
            hint = how_to_declare(meter)
            block.wrong(f"the meter {meter} is not declared", f"{hint[0].upper()}{hint[1:]}.", key=key)


def _read_of(block: Block, aggregate: str) -> str | None:
    if aggregate == UNIQUE or (aggregate in (LATEST, TIME_WEIGHTED) and block.has("of")):
        of = block.text("of")
    else:
        return None
    if of is not None and not is_dimension(of):
        known = ", ".join(DIMENSIONS)
        block.wrong(f"`{of}` is no dimension of usage", f"Choose from: {known}; or write attributes.NAME.", key="of")
        return None
    return of
