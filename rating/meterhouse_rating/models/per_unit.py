"""A price per unit, optionally by dimension values such as the model.

model: per_unit
metric: output_tokens
per: 1_000_000
price: 10.00                    # one price for all, or:
by: [model]
prices:                         # the first line that matches counts; a * at the end matches any rest
  - {model: gpt-4o-mini*, price: 0.60}
default: 12.00                  # for everything else; `none` leaves it unrated
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
    step,
    total,
    usage_charge,
)
from meterhouse_rating.document import Block
from meterhouse_rating.models import patterns
from meterhouse_rating.models.patterns import Match
from meterhouse_rating.models.reading import Scope, read_dimensions, read_metric
from meterhouse_rating.tiers import read_per


@dataclass(frozen=True)
class Price:
    """A price for the usage that matches."""

    match: Match
    price: Decimal


@dataclass(frozen=True)
class PerUnit:
    name: str
    line: int
    metric: str
    per: Decimal
    dimensions: tuple[str, ...]
    prices: tuple[Price, ...]
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge per combination of the dimensions; a unit costs the same whatever came before."""
        charges: list[Charge] = []
        unpriced: list[Unpriced] = []
        for values, group in grouped(portions, self.dimensions):
            price = patterns.first(self.prices, values)
            if price is None:
                hint = patterns.line_to_add(self.name, self.line, "prices", self.dimensions, values, "price")
                unpriced += [Unpriced(portion, hint) for portion in group]
            else:
                charges.append(self._charge(values, group, price))
        return Charged(tuple(charges), tuple(unpriced))

    def _charge(self, values: tuple[str, ...], group: Sequence[Portion], price: Price) -> Charge:
        quantity, named = total(group), patterns.named(self.dimensions, values)
        return usage_charge(
            f"{self.name} ({named})" if named else self.name,
            self.metric,
            group,
            quantity * price.price / self.per,
            (step(quantity, price.price, self.per, price.match.line),),
            price.match.line,
            tuple(zip(self.dimensions, values, strict=True)),
        )


def read(name: str, block: Block, scope: Scope) -> PerUnit | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = read_metric(block, scope)
    per = read_per(block)
    dimensions = read_dimensions(block)
    prices = read_prices(block, dimensions)
    return None if metric is None else PerUnit(name, block.line, metric, per, dimensions, prices)


def read_prices(block: Block, dimensions: tuple[str, ...]) -> tuple[Price, ...]:
    """One `price`, or with dimensions the list `prices` and the `default` for all the rest."""
    return _prices_by(block, dimensions) if dimensions else _one_price(block)


def _one_price(block: Block) -> tuple[Price, ...]:
    price = block.number("price")
    return () if price is None else (Price(Match((), block.line_of("price")), price),)


def _prices_by(block: Block, dimensions: tuple[str, ...]) -> tuple[Price, ...]:
    prices: list[Price] = []
    for entry in block.list_of_blocks("prices"):
        match = patterns.read_match(entry, dimensions)
        amount = entry.number("price")
        entry.done()
        if amount is None:
            continue
        patterns.check_reached(entry, match, [price.match for price in prices])
        prices.append(Price(match, amount))
    if block.text("default") != "none":
        rest = block.number("default", default=Decimal(0))
        if rest is not None and block.has("default"):
            prices.append(Price(patterns.everything(dimensions, block.line_of("default")), rest))
    return tuple(prices)
