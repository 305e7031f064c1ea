"""A percentage of an amount of money: of a metric that counts money, or of what other components come to.

model: percentage
metric: payments          # a metric whose quantity is money in the plan's currency; or
of: [input, output]       # components above this one, as their lines are rounded
percent: 2.9
fixed: 0.30               # for each event of the metric; of components: once per calendar month
free: 500                 # so much money of the calendar month is not charged; with `metric` only
min: 1.00                 # the least and the most that it comes to, in a calendar month in which there is anything
max: 100.00
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import Before, Charge, Charged, Portion, Setting, events, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.models.reading import Scope, read_amount, read_metric, read_of
from meterhouse_rating.models.volume import taken_off
from meterhouse_store.numbers import plain

_ZERO = Decimal(0)


@dataclass(frozen=True)
class Percentage:
    name: str
    line: int
    metric: str | None
    of: tuple[str, ...]
    percent: Decimal
    fixed: Decimal = _ZERO
    free: Decimal = _ZERO
    least: Decimal = _ZERO
    most: Decimal | None = None
    dimensions: tuple[str, ...] = ()
    memory: str = "month"

    @property
    def metrics(self) -> tuple[str, ...]:
        return () if self.metric is None else (self.metric,)

    @property
    def depends_on(self) -> tuple[str, ...] | None:
        return self.of

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge: the month so far, less what its earlier part comes to."""
        if self.metric is None:
            return self._of_components(setting)
        if not portions:
            return Charged(())
        start, counted = before.quantities.get(self.metric, _ZERO), before.events.get(self.metric, 0)
        amount, steps = self._come_to(start + total(portions), counted + events(portions))
        earlier, _ = self._come_to(start, counted)
        if counted:
            steps.append(taken_off(start, earlier))
        charge = usage_charge(self.name, self.metric, portions, amount - earlier, steps, self.line)
        return Charged((replace(charge, events=events(portions)),))

    def _of_components(self, setting: Setting) -> Charged:
        now = sum((setting.amounts.get(name, _ZERO) for name in self.of), _ZERO)
        before = sum((setting.earlier.get(name, _ZERO) for name in self.of), _ZERO)
        amount, steps = self._come_to(before + now, 1 if before + now else 0)
        earlier, _ = self._come_to(before, 1 if before else 0)
        if before:
            steps.append(taken_off(before, earlier))
        if not now:
            return Charged(())
        charge = Charge("flat", self.name, Decimal(1), "", amount - earlier, tuple(steps), self.line)
        return Charged((charge,))

    def _come_to(self, money: Decimal, times: int) -> tuple[Decimal, list[Mapping[str, Any]]]:
        """The charge for so much money in so many events, with its arithmetic; nothing for no events."""
        if not times:
            return _ZERO, []
        charged = max(_ZERO, money - self.free)
        share = charged * self.percent / 100
        steps: list[Mapping[str, Any]] = []
        if self.free:
            steps.append({"included": plain(self.free), "quantity": plain(money - charged), "amount": "0"})
        steps.append(
            {"percent": plain(self.percent), "money": plain(charged), "amount": plain(share), "book_line": self.line}
        )
        if self.fixed:
            steps.append({"fixed": plain(self.fixed), "times": times, "amount": plain(self.fixed * times)})
        amount = share + self.fixed * times
        bounded = max(amount, self.least) if self.most is None else min(max(amount, self.least), self.most)
        if bounded != amount:
            bound = "at_least" if bounded > amount else "at_most"
            steps.append({bound: plain(bounded), "amount": plain(bounded - amount)})
        return bounded, steps


def read(name: str, block: Block, scope: Scope) -> Percentage | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    of = read_of(block, scope)
    metric = read_metric(block, scope) if of is None or block.has("metric") else None
    percent = block.number("percent")
    fixed, free = block.number("fixed", default=_ZERO), block.number("free", default=_ZERO)
    least = read_amount(block, "min", scope, default=_ZERO)
    most = read_amount(block, "max", scope) if block.has("max") else None
    if of is not None and block.has("metric"):
        block.wrong("is of a metric and of components", "Keep one of `metric` and `of`.", key="of")
    if of is not None and free:
        block.wrong("is free only of a metric", "Leave `free` out, or name a `metric`.", key="free")
    if least is not None and most is not None and most < least:
        block.wrong("less than `min`", "Write a larger number.", key="max")
    if (metric is None and of is None) or percent is None or fixed is None or free is None or least is None:
        return None
    return Percentage(name, block.line, metric, of or (), percent, fixed, free, least, most)
