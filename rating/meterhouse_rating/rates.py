"""Conversion rates between currencies: dated facts of the price book."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from meterhouse_rating.document import Block
from meterhouse_rating.periods import PeriodError, instant
from meterhouse_store.currencies import MINOR_DIGITS

_REMEDY: Final = "Write the three letters of ISO 4217, such as USD, EUR or JPY."


@dataclass(frozen=True)
class Rate:
    """One unit of `source` is worth `rate` of `target` from a moment on, until the pair's next rate."""

    source: str
    target: str
    rate: Decimal
    valid_from: datetime
    line: int


def rate_at(rates: Sequence[Rate], source: str, target: str, moment: datetime) -> Rate | None:
    """The pair's rate at the moment; only as it is written, never turned round or chained."""
    known = [it for it in rates if (it.source, it.target) == (source, target) and it.valid_from <= moment]
    return max(known, key=lambda it: it.valid_from, default=None)


def read_rates(top: Block) -> tuple[Rate, ...]:
    """The list `rates` of a book: `- {from: USD, to: EUR, rate: 0.92, valid_from: 2026-10-01}`."""
    if not top.has("rates"):
        return ()
    found: list[Rate] = []
    for entry in top.list_of_blocks("rates"):
        source = entry.text("from", choices=tuple(MINOR_DIGITS), remedy=_REMEDY)
        target = entry.text("to", choices=tuple(MINOR_DIGITS), remedy=_REMEDY)
        rate = entry.number("rate", positive=True)
        valid_from = read_moment(entry, "valid_from")
        entry.done()
        if source is None or target is None or rate is None or valid_from is None:
            continue
        if source == target:
            entry.wrong("a currency is converted to itself", "Name two currencies.")
        if any((it.source, it.target, it.valid_from) == (source, target, valid_from) for it in found):
            entry.wrong("a second rate of the pair from the same moment", "Keep one of the two.")
        found.append(Rate(source, target, rate, valid_from, entry.line))
    return tuple(found)


def read_moment(block: Block, key: str) -> datetime | None:
    """An ISO date or instant; UTC where it names no zone."""
    text = block.text(key)
    try:
        return None if text is None else instant(text)
    except PeriodError as wrong:
        block.wrong(f"`{text}` is no date", str(wrong), key=key)
        return None
