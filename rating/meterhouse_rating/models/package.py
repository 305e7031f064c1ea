"""Packages: a price for every started package of the month's quantity, after the free units.

model: package
metric: api_calls
size: 100
price: 5.00
free: 100             # units of the month that are in no package; default 0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from meterhouse_rating.charges import Before, Charged, Portion, Setting, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_metric
from meterhouse_rating.models.volume import taken_off
from meterhouse_store.numbers import plain

_WIDE = Context(prec=120)


@dataclass(frozen=True)
class Package:
    name: str
    line: int
    metric: str
    size: Decimal
    price: Decimal
    free: Decimal = Decimal(0)
    dimensions: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge: the packages that the month has started, less those that its earlier part had."""
        if not portions:
            return Charged(())
        start = before.quantities.get(self.metric, Decimal(0))
        amount, steps = self._of(start + total(portions))
        earlier, _ = self._of(start)
        if start:
            steps.append(taken_off(start, earlier))
        return Charged((usage_charge(self.name, self.metric, portions, amount - earlier, steps, self.line),))

    def _of(self, quantity: Decimal) -> tuple[Decimal, list[Mapping[str, Any]]]:
        free = min(quantity, self.free)
        packages = _started(quantity - free, self.size)
        amount = packages * self.price
        steps: list[Mapping[str, Any]] = []
        if free:
            steps.append({"included": plain(self.free), "quantity": plain(free), "amount": "0"})
        steps.append(
            {
                "quantity": plain(quantity - free),
                "packages": plain(packages),
                "size": plain(self.size),
                "price": plain(self.price),
                "amount": plain(amount),
                "book_line": self.line,
            }
        )
        return amount, steps


def _started(quantity: Decimal, size: Decimal) -> Decimal:
    """How many packages of the size the quantity has begun."""
    whole, rest = _WIDE.divmod(quantity, size)
    return (whole + (1 if rest else 0)).quantize(Decimal(1), rounding=ROUND_CEILING)


def read(name: str, block: Block, scope: Scope) -> Package | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = read_metric(block, scope)
    size, price = block.number("size", positive=True), block.number("price")
    free = block.number("free", default=Decimal(0))
    if metric is None or size is None or price is None or free is None:
        return None
    return Package(name, block.line, metric, size, price, free)
