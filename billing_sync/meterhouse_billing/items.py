"""The items of an invoice in Stripe: one per rated line or, where those are too many, one per group of lines.

With automatic tax no item is below zero: what is negative is taken off the others (taxes.py), and each negative line is
in the first item that it is taken off.

Stripe takes 250 items; above GROUP_ABOVE lines are put together, first those of one component, then those of one
metric, then those of one kind, until few enough are left. Each rated line is in exactly one item, in the order of the
first line of each. Which line is in which item is kept beside the lines; the statement shows each by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from meterhouse_billing.lines import UNSAID, Line, Tax
from meterhouse_billing.taxes import Netted
from meterhouse_rating.ids import digest
from meterhouse_rating.layout import money, number, unit

GROUP_ABOVE: Final = 200


@dataclass(frozen=True)
class Item:
    """What becomes one line in Stripe: a rated line, or several with their sums. `amount_minor` in minor units.

    `metric` and `unit` are '' and the quantity 1 where lines of several metrics are together.
    """

    item_id: str
    kind: str
    metric: str
    unit: str
    description: str
    quantity: Decimal
    amount_minor: int
    line_ids: tuple[str, ...]
    tax: Tax = UNSAID
    lines: int = 1
    """So many rated lines are put together, beside those that are taken off."""
    taken_off: str = ""
    """What is taken off with automatic tax, with its currency; '' for nothing."""

    @property
    def text(self) -> str:
        """What the customer reads: `Output tokens (model gpt-5-mini): 1,234 tokens`."""
        said = self.description
        if self.kind == "usage" and self.metric:
            said = f"{said}: {number(self.quantity)} {unit(self.unit.strip('{}'), self.quantity)}"
        if self.taken_off:
            said = f"{said}, less {self.taken_off} in discounts, credits and corrections"
        return said if self.lines == 1 else f"{said} ({self.lines} lines, see the statement)"


_KEYS: Final[tuple[Callable[[Line], tuple[Any, ...]], ...]] = (
    lambda line: (line.line_id,),
    lambda line: (line.kind, line.tax, line.component, line.metric, line.unit),
    lambda line: (line.kind, line.tax, line.metric, line.unit),
    lambda line: (line.kind, line.tax),
)


def items(lines: Sequence[Line], currency: str = "", netted: Netted | None = None) -> tuple[Item, ...]:
    """The lines as few enough items, which are the lines' sums; `netted`: with what is negative taken off."""
    shown = [line for line in lines if netted is None or line.line_id in netted.left]
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for key in _KEYS:
        groups = {}
        for line in shown:
            groups.setdefault(key(line), []).append(line)
        if len(groups) <= GROUP_ABOVE:
            break
    return tuple(_item(group, currency, netted) for group in groups.values())


def _item(group: Sequence[Line], currency: str, netted: Netted | None) -> Item:
    first = group[0]
    ids = tuple(line.line_id for line in group)
    if len(group) == 1:
        name, description = first.line_id, first.description
    else:
        name, description = digest(["lines", *ids]), first.description.partition(" (")[0]
    of_one = len({(line.metric, line.unit) for line in group}) == 1
    amount = whole = sum(line.amount_minor for line in group)
    if netted is not None:
        amount = sum(netted.left[line_id] for line_id in ids)
        ids += tuple(line_id for line_id, host in netted.hosts.items() if host in ids)
    return Item(
        item_id=name,
        kind=first.kind,
        metric=first.metric if of_one else "",
        unit=first.unit if of_one else "",
        description=description if of_one else first.kind.replace("_", " "),
        quantity=sum((line.quantity for line in group), Decimal(0)) if of_one else Decimal(1),
        amount_minor=amount,
        line_ids=ids,
        tax=first.tax,
        lines=len(group),
        taken_off=f"{money(whole - amount, currency)} {currency}" if whole != amount else "",
    )
