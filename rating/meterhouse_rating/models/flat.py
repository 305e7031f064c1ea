"""A recurring fee per calendar month with included usage; what goes beyond it is priced by graduated tiers.

model: flat
price: 49.00
included:
  output_tokens: 2_000_000
overage:
  output_tokens:
    per: 1_000_000
    tiers:
      - {price: 9.00}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import Before, Charge, Charged, Portion, Setting, step, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_amount
from meterhouse_rating.tiers import Tier, graduate, read_per, read_tiers
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Allowance:
    """A metric of the subscription: so much is included, the rest costs by tiers that count from there."""

    metric: str
    included: Decimal
    per: Decimal
    tiers: tuple[Tier, ...]
    line: int


@dataclass(frozen=True)
class Flat:
    name: str
    line: int
    price: Decimal
    allowances: tuple[Allowance, ...]
    dimensions: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(allowance.metric for allowance in self.allowances)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """The fee, unless the month has paid it or is all trial, and one charge per metric that was used."""
        free = before.charged or setting.since >= setting.period.end
        charges = [] if free else [self._fee()]
        for allowance in self.allowances:
            used = [portion for portion in portions if portion.metric == allowance.metric]
            if used:
                charges.append(self._usage(allowance, used, before.quantities.get(allowance.metric, Decimal(0))))
        return Charged(tuple(charges))

    def _fee(self) -> Charge:
        one = step(Decimal(1), self.price, Decimal(1))
        return Charge("flat", self.name, Decimal(1), "month", self.price, (one,), self.line)

    def _usage(self, allowance: Allowance, used: Sequence[Portion], start: Decimal) -> Charge:
        quantity = total(used)
        free = min(quantity, max(Decimal(0), allowance.included - start))
        beyond = max(Decimal(0), start - allowance.included)
        amount, steps = graduate(beyond, quantity - free, allowance.tiers, allowance.per)
        if free:
            steps.insert(0, {"included": plain(allowance.included), "quantity": plain(free), "amount": "0"})
        if start:
            steps.insert(0, {"already_rated_this_month": plain(start)})
        return usage_charge(f"{self.name}: {allowance.metric}", allowance.metric, used, amount, steps, allowance.line)


def read(name: str, block: Block, scope: Scope) -> Flat | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metrics = scope.metrics
    price = read_amount(block, "price", scope)
    included = block.numbers("included")
    allowances = []
    for metric, inner in block.named_blocks("overage", required=False):
        if metric not in metrics:
            inner.wrong(f"`{metric}` is no metric", f"Choose from: {', '.join(metrics)}.")
        per, tiers = read_per(inner), read_tiers(inner)
        inner.done()
        allowances.append(Allowance(metric, included.get(metric, Decimal(0)), per, tiers, inner.line))
    for metric in included:
        if metric not in metrics:
            block.wrong(f"`{metric}` is no metric", f"Choose from: {', '.join(metrics)}.", key="included")
        elif metric not in {allowance.metric for allowance in allowances}:
            block.wrong(
                f"`{metric}` is included, but what goes beyond it has no price",
                f"Add `{metric}` below `overage` (a price of 0 makes it free).",
                key="included",
            )
    return None if price is None else Flat(name, block.line, price, tuple(allowances))
