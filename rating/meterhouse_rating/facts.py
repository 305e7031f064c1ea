"""Dated quantities over time: how many there are at a moment, and how a monthly price is shared out by them.

Shares of a month are fractions (10 of 31 days), which have no exact decimal value. So amounts are rounded here, half to
even at the twelfth digit after the point, from the sum onwards: what the parts come to adds up to the whole exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

from meterhouse_rating.charges import Fact
from meterhouse_rating.money import decimal_of
from meterhouse_rating.periods import Period

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Piece:
    """A part of a month in which there are `quantity`; `used` and `whole` in days or seconds."""

    start: datetime
    end: datetime
    quantity: Decimal
    used: int
    whole: int


def at(facts: Sequence[Fact], moment: datetime) -> Decimal:
    """How many there are just before the moment; none before the first fact."""
    known = [fact for fact in facts if fact.valid_from < moment]
    return max(known, key=lambda fact: fact.valid_from).quantity if known else Decimal(0)


def pieces(facts: Sequence[Fact], span: Period, month: Period, zone: str, by: str) -> list[Piece]:
    """The span cut where the quantity changes, each piece measured against the month, by `day`, `second` or `none`.

    A day belongs to what holds at its end in the customer's time zone: who adds a seat on a day pays for that day, and
    who removes one on a day does not. With `none` the last quantity counts for the whole month.
    """
    if span.start >= span.end:
        return []
    if by == "none":
        return [Piece(month.start, month.end, at(facts, span.end), 1, 1)]
    edges = sorted({span.start, *(it.valid_from for it in facts if span.start < it.valid_from < span.end), span.end})
    found = []
    for start, end in pairwise(edges):
        quantity = max((it for it in facts if it.valid_from <= start), key=lambda it: it.valid_from, default=None)
        used = _units(start, end, zone, by)
        if quantity is not None and quantity.quantity and used:
            found.append(Piece(start, end, quantity.quantity, used, _units(month.start, month.end, zone, by)))
    return found


def apportion(price: Decimal, parts: Iterable[Piece]) -> list[Decimal]:
    """What each piece costs of a monthly price; the amounts add up to the rounded whole."""
    amounts, reached, rounded = [], Fraction(0), Decimal(0)
    for part in parts:
        reached += Fraction(price) * Fraction(part.quantity) * Fraction(part.used, part.whole)
        so_far = decimal_of(reached)
        amounts.append(so_far - rounded)
        rounded = so_far
    return amounts


def _units(start: datetime, end: datetime, zone: str, by: str) -> int:
    if by == "second":
        return _second(end) - _second(start)
    return (_day(end, zone) - _day(start, zone)).days


def _second(moment: datetime) -> int:
    """Whole seconds since 1970, so that the parts of a month have as many as the month."""
    return (moment - _EPOCH) // timedelta(seconds=1)


def _day(moment: datetime, zone: str) -> datetime:
    """The local day that begins at or before the moment, as a naive midnight."""
    return moment.astimezone(ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
