"""Graduated tiers on the metric's whole quantity in the calendar month.

model: graduated
metric: output_tokens
per: 1_000_000
tiers:
  - {up_to: 1_000_000, price: 10.00}             # the edge itself belongs to this tier
  - {price: 8.00, flat: 5.00}                    # flat: due once, with the first unit of the tier
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import Before, Charged, Portion, Setting, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_metric
from meterhouse_rating.tiers import Tier, graduate, read_per, read_tiers
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Graduated:
    name: str
    line: int
    metric: str
    per: Decimal
    tiers: tuple[Tier, ...]
    dimensions: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge; the tiers go on where an earlier rating of the month ended."""
        if not portions:
            return Charged(())
        start = before.quantities.get(self.metric, Decimal(0))
        amount, steps = graduate(start, total(portions), self.tiers, self.per)
        if start:
            steps.insert(0, {"already_rated_this_month": plain(start)})
        return Charged((usage_charge(self.name, self.metric, portions, amount, steps, self.line),))


def read(name: str, block: Block, scope: Scope) -> Graduated | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = read_metric(block, scope)
    per, tiers = read_per(block), read_tiers(block)
    return None if metric is None or not tiers else Graduated(name, block.line, metric, per, tiers)
