"""What the provider asks, plus a markup.

model: cost_plus
metric: output_tokens
markup: 200               # percent on top: 200 makes three times the cost
fee: 0.50                 # on top per `per` units of the metric; default 0
cost: known               # (default) the cost that is known of each usage row, from the cost catalogue; or
cost:                     # a list of one's own, read as the prices of per_unit
  by: [model]
  per: 1_000_000
  prices:
    - {model: gpt-5*, price: 10.00}
  default: none

Usage whose cost is not known is left unrated, with the reason `cost_unknown`; it never costs 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import (
    COST_UNKNOWN,
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
from meterhouse_rating.models.per_unit import Price, read_prices
from meterhouse_rating.models.reading import Scope, read_dimensions, read_metric
from meterhouse_rating.tiers import read_per
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Costs:
    """The book's own list of costs."""

    per: Decimal
    dimensions: tuple[str, ...]
    prices: tuple[Price, ...]


@dataclass(frozen=True)
class CostPlus:
    name: str
    line: int
    metric: str
    markup: Decimal
    fee: Decimal
    per: Decimal
    costs: Costs | None
    by: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.by if self.costs is None else self.costs.dimensions

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge per combination of the dimensions, of the usage whose cost is known."""
        charges: list[Charge] = []
        unpriced: list[Unpriced] = []
        for values, group in grouped(portions, self.dimensions):
            hint = self._hint(values)
            price = None if self.costs is None else patterns.first(self.costs.prices, values)
            known = [it for it in group if (it.cost if self.costs is None else price) is not None]
            unpriced += [Unpriced(it, hint, COST_UNKNOWN) for it in group if it not in known]
            if known:
                charges.append(self._charge(values, known, price))
        return Charged(tuple(charges), tuple(unpriced))

    def _charge(self, values: tuple[str, ...], group: Sequence[Portion], price: Price | None) -> Charge:
        quantity, named = total(group), patterns.named(self.dimensions, values)
        if price is None or self.costs is None:
            cost = sum((it.cost for it in group if it.cost is not None), Decimal(0))
            steps = [{"cost": plain(cost), "amount": plain(cost)}]
        else:
            cost = quantity * price.price / self.costs.per
            steps = [{"cost": plain(cost)} | step(quantity, price.price, self.costs.per, price.match.line)]
        amount = cost * self.markup / 100
        steps.append({"percent": plain(self.markup), "money": plain(cost), "amount": plain(amount)})
        if self.fee:
            steps.append(step(quantity, self.fee, self.per, self.line))
        return usage_charge(
            f"{self.name} ({named})" if named else self.name,
            self.metric,
            group,
            cost + amount + quantity * self.fee / self.per,
            steps,
            self.line,
            tuple(zip(self.dimensions, values, strict=True)),
        )

    def _hint(self, values: tuple[str, ...]) -> str:
        if self.costs is None:
            return (
                f"what the provider asks for it is not known: add its cost to the catalogue, or give the component "
                f"`{self.name}` (line {self.line}) a `cost` list of its own"
            )
        return patterns.line_to_add(f"{self.name}.cost", self.line, "prices", self.dimensions, values, "price")


def read(name: str, block: Block, scope: Scope) -> CostPlus | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric, markup = read_metric(block, scope), block.number("markup")
    fee, per = block.number("fee", default=Decimal(0)), read_per(block)
    costs, by = None, read_dimensions(block)
    if block.has("cost") and not block.is_text("cost"):
        inner = block.block("cost")
        if inner is not None:
            own_per, dimensions = read_per(inner), read_dimensions(inner)
            costs = Costs(own_per, dimensions, read_prices(inner, dimensions))
            inner.done()
        if by:
            block.wrong("is grouped by the dimensions of `cost`", "Leave `by` out here.", key="by")
    else:
        block.text("cost", choices=("known",), default="known")
    if metric is None or markup is None or fee is None:
        return None
    return CostPlus(name, block.line, metric, markup, fee, per, costs, by)
