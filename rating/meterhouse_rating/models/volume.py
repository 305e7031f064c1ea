"""Volume tiers: all of the month's units at the price of the tier that the last of them reaches.

model: volume
metric: output_tokens
per: 1_000_000
tiers:
  - {up_to: 1_000_000, price: 10.00}             # the edge itself belongs to this tier
  - {price: 8.00, flat: 5.00}                    # flat: due once, when the month ends in the tier

The total may fall when a unit more reaches a cheaper tier: that is what volume prices are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import Before, Charged, Portion, Setting, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_metric
from meterhouse_rating.tiers import Tier, by_volume, read_per, read_tiers
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Volume:
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
        """One charge: the month so far, less what its earlier part comes to at these prices."""
        if not portions:
            return Charged(())
        start = before.quantities.get(self.metric, Decimal(0))
        amount, steps = by_volume(start + total(portions), self.tiers, self.per)
        earlier, _ = by_volume(start, self.tiers, self.per)
        if start:
            steps = [*steps, taken_off(start, earlier)]
        return Charged((usage_charge(self.name, self.metric, portions, amount - earlier, steps, self.line),))


def taken_off(start: Decimal, amount: Decimal) -> Mapping[str, Any]:
    """The step that takes off what the month's earlier part came to."""
    return {"earlier_this_month": plain(start), "amount": plain(-amount)}


def read(name: str, block: Block, scope: Scope) -> Volume | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = read_metric(block, scope)
    per, tiers = read_per(block), read_tiers(block)
    return None if metric is None or not tiers else Volume(name, block.line, metric, per, tiers)
