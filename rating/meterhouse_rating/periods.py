"""Periods: half-open intervals, cut at calendar months of the customer's time zone, stored in UTC."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

MAX_LENGTH: Final = timedelta(days=31, hours=1)
"""The longest period: a month of 31 days in which a clock was set back."""


FIRST_YEAR, LAST_YEAR = 1969, 2200
"""A month of 1970 begins in 1969 east of Greenwich."""


class PeriodError(ValueError):
    """A period that cannot be read or used; the message says what to write instead."""


@dataclass(frozen=True, order=True)
class Period:
    """[start, end) in aware UTC."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return f"{short(self.start)}..{short(self.end)}"


def parse(text: str, time_zone: str) -> Period:
    """`2026-10` (the month in the time zone) or `START..END` (dates or instants; UTC where no offset is written).

    Raises PeriodError.
    """
    try:
        period = _parse(text, time_zone)
    except OverflowError:
        raise PeriodError(f"{text[:40]} is beyond the calendar.") from None
    if not FIRST_YEAR <= period.start.year <= period.end.year <= LAST_YEAR:
        raise PeriodError(f"{text[:40]} is not within the years {FIRST_YEAR} to {LAST_YEAR}.")
    return period


def _parse(text: str, time_zone: str) -> Period:
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
        try:
            first = date(int(text[:4]), int(text[5:]), 1)
        except ValueError:
            raise PeriodError(f"{text} is no month. Write it as 2026-10.") from None
        return month_of(datetime(first.year, first.month, 1, 12, tzinfo=ZoneInfo(time_zone)), time_zone)
    start, dots, end = text.partition("..")
    if not dots:
        raise PeriodError(f"{text!r} is no period. Write a month (2026-10) or START..END (2026-10-01..2026-10-15).")
    if any(re.fullmatch(r"[0-9]{4}-[0-9]{2}", it) for it in (start, end)):
        raise PeriodError(f"{text} is no period. Write one month (2026-10), or days: 2026-10-01..2026-10-15.")
    period = Period(instant(start), instant(end))
    if period.end <= period.start:
        raise PeriodError(f"{text} ends before it begins.")
    if period.end - period.start > MAX_LENGTH:
        raise PeriodError(f"{text} is longer than a month: rate it month by month.")
    return period


def instant(text: str) -> datetime:
    """An ISO date or instant in UTC; one without an offset is UTC. Raises PeriodError."""
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise PeriodError(f"{text!r} is no date or instant. Write 2026-10-01 or 2026-10-01T12:00:00Z.") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def beginning(text: str) -> datetime:
    """An instant that months can begin after, as `instant` reads it. Raises PeriodError."""
    moment = instant(text)
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise PeriodError(f"{text[:40]} is not within the years {FIRST_YEAR} to {LAST_YEAR}.")
    return moment


def month_of(moment: datetime, time_zone: str) -> Period:
    """The calendar month of the time zone that the moment falls in."""
    # In UTC: two moments an hour apart are equal in Python where a clock was set back.
    return _month_of(moment.astimezone(UTC), time_zone)


@lru_cache(4096)  # asked for of every customer again
def _month_of(moment: datetime, time_zone: str) -> Period:
    zone = ZoneInfo(time_zone)
    local = moment.astimezone(zone)
    first = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)
    # 32 days on is always the next month.
    following = (first.replace(tzinfo=None) + timedelta(days=32)).replace(day=1, tzinfo=zone)
    return Period(first.astimezone(UTC), following.astimezone(UTC))


def next_month(moment: datetime, time_zone: str) -> datetime:
    """The start of the first month that begins at or after the moment."""
    month = month_of(moment, time_zone)
    return moment if moment == month.start else month.end


def months(since: datetime, until: datetime, time_zone: str) -> Iterator[Period]:
    """The calendar months that touch [since, until]."""
    month = month_of(since, time_zone)
    while month.start <= until:
        yield month
        month = month_of(month.end, time_zone)


def without(period: Period, settled: Iterable[Period]) -> list[Period]:
    """What is left of the period outside the settled ones: in order, none empty."""
    rest = [period]
    for closed in sorted(settled):
        rest = [
            part
            for piece in rest
            for part in (
                Period(piece.start, min(piece.end, closed.start)),
                Period(max(piece.start, closed.end), piece.end),
            )
            if part.start < part.end
        ]
    return rest


def overlaps(one: Period, other: Period) -> bool:
    return one.start < other.end and other.start < one.end


def shown(period: Period, time_zone: str) -> str:
    """The period on the clocks of the time zone, which is named: `2026-11-01..2026-12-01 Asia/Tokyo`.

    That of UTC is written as on the command line, without a name.
    """
    if time_zone == "UTC":
        return str(period)
    first, after = (it.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None) for it in (period.start, period.end))
    return f"{first.isoformat().removesuffix('T00:00:00')}..{after.isoformat().removesuffix('T00:00:00')} {time_zone}"


def asked(period: Period, time_zone: str) -> str:
    """What `--period` takes for it: the month where it is one of the time zone, else both instants."""
    if period == month_of(period.start, time_zone):
        return f"{period.start.astimezone(ZoneInfo(time_zone)):%Y-%m}"
    return str(period)


def local(moment: datetime, time_zone: str) -> str:
    """A moment on the clocks of the time zone, which is named: `2026-11-01 09:00 Asia/Tokyo`."""
    return f"{moment.astimezone(ZoneInfo(time_zone)):%Y-%m-%d %H:%M} {time_zone}"


def short(moment: datetime) -> str:
    """The moment as it is written on the command line: `2026-10-01`, `2026-10-01T12:00:00Z`."""
    text = moment.isoformat(timespec="auto").replace("+00:00", "Z")
    return text.removesuffix("T00:00:00Z")
