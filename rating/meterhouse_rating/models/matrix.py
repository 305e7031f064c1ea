"""A matrix: by values of dimensions, each cell with a price or tiers of its own.

model: matrix
metric: output_tokens
by: [model, attributes.region]
per: 1_000_000            # for all cells; a cell may have its own
cells:                    # the first that matches counts; a * at the end matches any rest
  - {model: gpt-5*, attributes.region: eu, price: 22.00}
  - {model: gpt-5*, mode: volume, tiers: [{up_to: 1_000_000, price: 20.00}, {price: 18.00}]}
default: none             # a price for everything else; `none` leaves it unrated

All usage that a cell matches is one line, and fills that cell's tiers; `mode` is graduated (default) or volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import (
    Before,
    Charge,
    Charged,
    Portion,
    Setting,
    Unpriced,
    grouped,
    total,
    usage_charge,
)
from meterhouse_rating.document import Block
from meterhouse_rating.models import patterns
from meterhouse_rating.models.patterns import Match
from meterhouse_rating.models.reading import Scope, read_dimensions, read_metric
from meterhouse_rating.models.volume import taken_off
from meterhouse_rating.tiers import Tier, by_volume, graduate, read_per, read_price_or_tiers
from meterhouse_store.numbers import plain

_MODES = ("graduated", "volume")


@dataclass(frozen=True)
class Cell:
    """What the usage that matches costs."""

    match: Match
    per: Decimal
    tiers: tuple[Tier, ...]
    mode: str


@dataclass(frozen=True)
class Matrix:
    name: str
    line: int
    metric: str
    dimensions: tuple[str, ...]
    cells: tuple[Cell, ...]
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge per cell that has usage, in the order of the book."""
        filled: dict[int, list[Portion]] = {}
        unpriced: list[Unpriced] = []
        for values, group in grouped(portions, self.dimensions):
            cell = patterns.first(self.cells, values)
            if cell is None:
                hint = patterns.line_to_add(self.name, self.line, "cells", self.dimensions, values, "price")
                unpriced += [Unpriced(portion, hint) for portion in group]
            else:
                filled.setdefault(self.cells.index(cell), []).extend(group)
        charges = [self._charge(self.cells[index], group, before) for index, group in sorted(filled.items())]
        return Charged(tuple(charges), tuple(unpriced))

    def _charge(self, cell: Cell, group: Sequence[Portion], before: Before) -> Charge:
        key = tuple(zip(self.dimensions, cell.match.patterns, strict=True))
        quantity, start = total(group), before.cells.get((self.metric, key), Decimal(0))
        if cell.mode == "volume":
            reached, steps = by_volume(start + quantity, cell.tiers, cell.per)
            earlier, _ = by_volume(start, cell.tiers, cell.per)
            amount = reached - earlier
            steps = [*steps, taken_off(start, earlier)] if start else steps
        else:
            amount, steps = graduate(start, quantity, cell.tiers, cell.per)
            steps = [{"already_rated_this_month": plain(start)}, *steps] if start else steps
        named = ", ".join("any" if pattern == "*" else pattern for pattern in cell.match.patterns)
        return usage_charge(f"{self.name} ({named})", self.metric, group, amount, steps, cell.match.line, key)


def read(name: str, block: Block, scope: Scope) -> Matrix | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric, per = read_metric(block, scope), read_per(block)
    dimensions = read_dimensions(block)
    if not dimensions:
        block.wrong("`by` is missing", "Name the dimensions of the cells, such as [model].", key="by")
    cells: list[Cell] = []
    for entry in block.list_of_blocks("cells"):
        match = patterns.read_match(entry, dimensions)
        own = read_per(entry) if entry.has("per") else per
        mode = entry.text("mode", choices=_MODES, default="graduated") or "graduated"
        tiers = read_price_or_tiers(entry)
        entry.done()
        patterns.check_reached(entry, match, [cell.match for cell in cells])
        if tiers:
            cells.append(Cell(match, own, tiers, mode))
    if block.text("default") != "none":
        rest = block.number("default", default=Decimal(0))
        line = block.line_of("default")
        if rest is not None and block.has("default"):
            cells.append(Cell(patterns.everything(dimensions, line), per, (Tier(None, rest, line),), "graduated"))
    return None if metric is None or not dimensions else Matrix(name, block.line, metric, dimensions, tuple(cells))
