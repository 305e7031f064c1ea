"""Metrics that read events as levels: the last of each series, or for how long each level held."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, order=True)
class Level:
    """From an event's time (text with nine digits) on its series is at a quantity."""

    series: tuple[str, str]
    time: str
    event: str
    quantity: Fraction


def latest(levels: Iterable[Level]) -> Fraction:
    """The levels at the end, of each series."""
    return sum({it.series: it.quantity for it in sorted(levels)}.values(), Fraction(0))


def time_weighted(levels: Iterable[Level], start: str, until: str, per: str) -> Fraction:
    """Levels times how long they held, in `per`, rounded half to even at the twelfth digit."""
    first, last, held = _nanoseconds(start), _nanoseconds(until), Fraction(0)
    ordered = sorted(levels)
    for at, it in enumerate(ordered):
        following = ordered[at + 1] if at + 1 < len(ordered) else None
        next_ns = last if following is None or following.series != it.series else _nanoseconds(following.time)
        held += it.quantity * max(0, min(next_ns, last) - max(_nanoseconds(it.time), first))
    return Fraction(round(held / (_SECONDS[per] * 10**9) * 10**12), 10**12)


def until(rating: Mapping[str, Any]) -> str:
    """Up to when levels hold: the period's end, of one under way what is known of it."""
    return min(str(rating["period_end"]), max(str(rating["as_of"]), str(rating["period_start"])))


def _nanoseconds(text: str) -> int:
    whole = datetime.fromisoformat(f"{text[:19]}+00:00") - _EPOCH
    return (whole.days * 86_400 + whole.seconds) * 10**9 + int(text[20:29])
