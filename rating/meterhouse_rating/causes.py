"""Unrated usage by cause: what one remedy mends stands together, however many customers and meters it is."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from meterhouse_rating.layout import counted, number
from meterhouse_rating.results import Row

_NAMED: Final = 5
"""So many customers of a cause are named, the rest counted."""


@dataclass
class Cause:
    """One reason and remedy; a name that differs between its rows stands in `hint` as CUSTOMER or METER."""

    reason: str
    hint: str
    events: int = 0
    customers: set[str] = field(default_factory=set)
    meters: dict[str, Decimal] = field(default_factory=dict)

    def __str__(self) -> str:
        names = sorted(self.customers)
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        used = "; ".join(f"{meter} {number(quantity)}" for meter, quantity in sorted(self.meters.items()))
        who = f"{counted(self.events, 'event')} of {', '.join(names[:_NAMED])}{more}"
        return f"  {self.reason}: {who}\n    {used}\n    -> {self.hint}"


def causes(rows: Iterable[Row]) -> list[Cause]:
    """Rows of `unrated_usage`, grouped; sorted by reason, then the most events first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["reason"], _general(row, customer=True, meter=True)), []).append(row)
    found = [_cause(reason, group) for (reason, _), group in groups.items()]
    return sorted(found, key=lambda cause: (cause.reason, -cause.events, cause.hint))


def _cause(reason: str, rows: list[Row]) -> Cause:
    several = {name: len({row[name] for row in rows}) > 1 for name in ("customer_id", "meter")}
    cause = Cause(reason, _general(rows[0], customer=several["customer_id"], meter=several["meter"]))
    for row in rows:
        cause.events += row["events"]
        cause.customers.add(row["customer_id"])
        cause.meters[row["meter"]] = cause.meters.get(row["meter"], Decimal(0)) + row["quantity"]
    return cause


def _general(row: Row, *, customer: bool, meter: bool) -> str:
    hint = str(row["hint"])
    if customer:
        hint = hint.replace(f"customers add {shlex.quote(row['customer_id'])} ", "customers add CUSTOMER ")
    if meter:
        hint = re.sub(rf"(?<![\w.]){re.escape(row['meter'])}(?![\w.])", "METER", hint)
    return hint
