"""Graduated tiers on the metric's whole quantity in the calendar month.

model: graduated
metric: output_tokens
per: 1_000_000
tiers:
  - {up_to: 1_000_000, price: 10.00}      # the edge itself belongs to this tier
  - {price: 8.00}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from meterhouse_rating.charges import Before, Charge, Charged, Portion, by_meter, total
from meterhouse_rating.document import Block
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

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before) -> Charged:
        """One charge; the tiers go on where an earlier rating of the month ended."""
        if not portions:
            return Charged(())
        quantity, start = total(portions), before.quantities.get(self.metric, Decimal(0))
        amount, steps = graduate(start, quantity, self.tiers, self.per)
        if start:
            steps.insert(0, {"already_rated_this_month": plain(start)})
        return Charged(
            (
                Charge(
                    kind="usage",
                    description=self.name,
                    quantity=quantity,
                    unit=portions[0].unit,
                    amount=amount,
                    steps=tuple(steps),
                    book_line=self.line,
                    metric=self.metric,
                    meters=by_meter(portions),
                ),
            )
        )


def read(name: str, block: Block, metrics: Sequence[str], currency: str) -> Graduated | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = block.text("metric", choices=tuple(metrics))
    per, tiers = read_per(block), read_tiers(block)
    return None if metric is None else Graduated(name, block.line, metric, per, tiers)
