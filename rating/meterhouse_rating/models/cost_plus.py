"""What the provider asks, plus a markup.

model: cost_plus
metric: output_tokens
markup: 200               # percent on top: 200 makes three times the cost
fee: 0.50                 # on top per `per` units of the metric; default 0
cost: known               # (default) what usage cost by the pinned price list and one's own costs (docs/costs.md); or
cost:                     # a list of one's own, read as the prices of per_unit
  by: [model]
  per: 1_000_000
  prices:
    - {model: gpt-5*, price: 10.00}
  default: none

Usage whose cost is not known is left unrated, with the reason `cost_unknown`; it never costs 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

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
from meterhouse_rating.costs_asked import Cost, no_rate, remedy
from meterhouse_rating.document import Block
from meterhouse_rating.models import patterns
from meterhouse_rating.models.per_unit import Price, read_prices
from meterhouse_rating.models.reading import Scope, read_dimensions, read_metric
from meterhouse_rating.tiers import read_per
from meterhouse_store.numbers import D, plain


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
            if self.costs is None:
                hints = [self._unknown(it, setting) for it in group]
                known = [it for it, hint in zip(group, hints, strict=True) if not hint]
                unpriced += [Unpriced(it, hint, COST_UNKNOWN) for it, hint in zip(group, hints, strict=True) if hint]
                steps = _asked(known, setting)
            else:
                price = patterns.first(self.costs.prices, values)
                known = [] if price is None else group
                if price is None:
                    hint = patterns.line_to_add(
                        f"{self.name}.cost", self.line, "prices", self.dimensions, values, "price"
                    )
                    unpriced += [Unpriced(it, hint, COST_UNKNOWN) for it in group]
                else:
                    listed = step(total(known), price.price, self.costs.per, price.match.line)
                    steps = [{"cost": listed["amount"]} | listed]
            if known:
                charges.append(self._charge(values, known, steps))
        return Charged(tuple(charges), tuple(unpriced))

    def _charge(self, values: tuple[str, ...], group: Sequence[Portion], steps: list[dict[str, Any]]) -> Charge:
        """The charge of usage for which the provider asks what the steps come to."""
        quantity, named = total(group), patterns.named(self.dimensions, values)
        cost = sum((D(it["amount"]) for it in steps), Decimal(0))
        amount = cost * self.markup / 100
        steps = [*steps, {"percent": plain(self.markup), "money": plain(cost), "amount": plain(amount)}]
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

    def _unknown(self, it: Portion, setting: Setting) -> str:
        """What to do where the cost is not known, or in a currency that no rate converts; empty where it is known."""
        if it.cost is None or it.cost.reason:
            return remedy(it.cost, self.name, self.line)
        if it.cost.currency != setting.currency and it.cost.currency not in setting.rates:
            return no_rate(it.cost, setting.currency)
        return ""


def _asked(group: Sequence[Portion], setting: Setting) -> list[dict[str, Any]]:
    """What the provider asks, a step for each of its prices, in the plan's currency."""
    quantities: dict[Cost, Decimal] = {}
    for it in group:
        assert it.cost is not None, "what is known has a cost"
        price = replace(it.cost, quantity=Decimal(0))
        quantities[price] = quantities.get(price, Decimal(0)) + it.cost.quantity
    steps = []
    for price in sorted(quantities, key=lambda it: (it.entry, it.price)):
        cost = replace(price, quantity=quantities[price])
        told: dict[str, Any] = {"asked_by": cost.entry, "quantity": plain(cost.quantity), "price": plain(cost.price)}
        told["per"] = plain(Decimal(cost.per))
        amount = cost.amount
        if cost.currency != setting.currency:
            rate = setting.rates[cost.currency]
            told |= {"cost": plain(amount), "currency": cost.currency, "rate": plain(rate.rate), "rate_line": rate.line}
            amount *= rate.rate
        steps.append(told | {"amount": plain(amount)})
    return steps


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
        if scope.metrics.get(metric or "", "sum") not in ("sum", "count"):
            told = "Use a metric that sums or counts, or write a `cost` list."
            block.wrong("a maximum, a level or a number of different values has no cost", told, key="metric")
    if metric is None or markup is None or fee is None:
        return None
    return CostPlus(name, block.line, metric, markup, fee, per, costs, by)
