"""Shares of months and moments, as lines tell them."""

from datetime import date, datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

from .findings import Refused, number


def share_of(text: str) -> Fraction:
    """`21/31 days` as a fraction."""
    used, _, rest = text.partition("/")
    parts = number(used), number(rest.partition(" ")[0])
    if not parts[1] or parts[0] > parts[1]:
        raise Refused(f"{text!r:.40} is no share of a month")
    return parts[0] / parts[1]


def instant(text: str) -> str:
    """A moment as lines tell it, as the pack's times are written."""
    return f"{datetime.fromisoformat(text.replace('Z', '+00:00')):%Y-%m-%dT%H:%M:%S}.000000000Z"


def moment(text: str) -> datetime:
    """A time of the pack, which is UTC with nine digits after the point."""
    return datetime.fromisoformat(f"{text[:26]}+00:00")


def period_in(start: str, end: str, zone: str) -> str:
    """A period for people on the clocks of the zone, which is named where it is not UTC: 2026-10-01..2026-11-01."""
    clocks = [datetime.fromisoformat(it).astimezone(ZoneInfo(zone)).replace(tzinfo=None) for it in (start, end)]
    told = "..".join(it.isoformat().removesuffix("T00:00:00") for it in clocks)
    return told if zone == "UTC" else f"{told} {zone}"


def month_in(moment: str, zone: str) -> str:
    """The month of the zone's calendar that a moment falls in, as lines tell it: 2026-10."""
    return f"{_day(moment, zone):%Y-%m}"


def days(start: str, end: str, zone: str) -> int:
    """The days of the customer's calendar between two moments."""
    first, last = (_day(it, zone) for it in (start, end))
    return (last - first).days


def _day(text: str, zone: str) -> date:
    moment = datetime.fromisoformat(text if "T" in text else f"{text}T00:00:00Z")
    return moment.astimezone(ZoneInfo(zone)).date()
