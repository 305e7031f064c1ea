"""A minimum commitment per calendar month: what the other components fall short of it is charged as a true-up.

model: minimum
amount: 1000.00
of: [input, output]       # default: all other components of the plan
prorate: day              # of a month that the contract or a trial covers in part: day (default), second or none

It compares what stands on the lines, rounded, so that an invoice that is trued up comes to the minimum exactly. Of a
month that is rated in parts, the last part that the contract reaches is trued up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from meterhouse_rating.charges import Before, Charge, Charged, Fact, Portion, Setting
from meterhouse_rating.document import Block
from meterhouse_rating.facts import apportion, pieces
from meterhouse_rating.models.reading import Scope, read_amount, read_of, read_proration
from meterhouse_rating.periods import Period
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Minimum:
    name: str
    line: int
    amount: Decimal
    of: tuple[str, ...] | None
    prorate: str
    metrics: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    memory: str = "month"

    @property
    def depends_on(self) -> tuple[str, ...] | None:
        return self.of

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """The true-up, with the month's last part; nothing where the minimum is reached.

        Where the last part was billed first, an earlier one gives back what that trued up too much, or trues up what
        falls short by what it gives back itself.
        """
        month = setting.month
        end = month.end if setting.until is None else min(month.end, setting.until)
        billed = setting.earlier.get(self.name, Decimal(0))
        through = max(setting.period.end, setting.settled_until or setting.period.end)
        last = through >= end and (end == month.end or setting.period.start < end)
        if not last and not billed:
            return Charged(())
        span = Period(max(month.start, setting.since), end)
        parts = pieces([Fact(span.start, Decimal(1))], span, month, setting.zone, self.prorate)
        committed = sum(apportion(self.amount, parts), Decimal(0))
        spent = sum((*self._counted(setting.amounts), *self._counted(setting.earlier)), Decimal(0))
        spent -= sum(self._counted(setting.earlier_off), Decimal(0))
        missing = max(committed - spent, Decimal(0))
        if missing == billed:
            return Charged(())
        steps: list[dict[str, Any]] = []
        if missing:
            first: dict[str, Any] = {"minimum": plain(self.amount), "amount": plain(committed)}
            if committed != self.amount:
                first["share"] = f"{parts[0].used}/{parts[0].whole} {self.prorate}s"
            steps = [first, {"spent": plain(spent), "amount": plain(-spent)}]
        if billed:
            steps.append({"billed_before": str(month), "amount": plain(-billed)})
        return Charged((Charge("minimum", self.name, Decimal(1), "month", missing - billed, tuple(steps), self.line),))

    def _counted(self, amounts: Any) -> list[Decimal]:
        of = self.of
        return [it for name, it in sorted(amounts.items()) if name != self.name and (of is None or name in of)]


def read(name: str, block: Block, scope: Scope) -> Minimum | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    amount = read_amount(block, "amount", scope, positive=True)
    of = read_of(block, scope)
    prorate = read_proration(block)
    return None if amount is None else Minimum(name, block.line, amount, of, prorate)
