"""The languages that people are spoken to in: messages from a catalogue, numbers and dates as CLDR has them.

The English text of a message is its name; `languages/de.po` has the others (gettext's format, which translators' tools
read). What has no translation is shown in English. Machines' formats (APIs, CSV, ids) do not come here.
"""

import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_skeleton
from babel.messages.pofile import read_po
from babel.numbers import get_decimal_symbol, get_group_symbol

from meterhouse_store.numbers import D, plain

ENGLISH: Final = "en"
LANGUAGES: Final[Mapping[str, str]] = {ENGLISH: "English", "de": "Deutsch"}
"""Code -> name, in the language itself."""

Catalogue = Mapping[str, str | tuple[str, ...]]

_GROUPING: Final = dict.fromkeys(map(ord, "\u2019\u00a0\u202f "), "'")
"""Apostrophes and blanks that group thousands: they mean the same, and nothing else."""
_WRITTEN: Final = re.compile(
    r"(?P<whole>[1-9][0-9]{0,2}(?P<group>[.,'])[0-9]{3}(?:(?P=group)[0-9]{3})*|[0-9]+)"
    r"(?:(?P<point>[.,])(?P<rest>[0-9]+))?"
)


class Language:
    """One language, with the formats of its country where one is named: `de`, `de-AT`, `en`, `en-GB`.

    Plain `en` writes days as 2026-11-21: which of 11/12 is the month differs between those who read English.
    """

    def __init__(self, tag: str = ENGLISH) -> None:
        self.tag = tag
        self.code = tag.partition("-")[0]
        try:
            self._locale = Locale.parse(tag, sep="-")
        except (ValueError, UnknownLocaleError):
            raise ValueError(_wrong(tag)) from None
        if self.code not in LANGUAGES:
            raise ValueError(_wrong(tag))
        self._catalogue = catalogue(self.code)
        self._group, self._point = get_group_symbol(self._locale), get_decimal_symbol(self._locale)
        self._symbols = str.maketrans({",": self._group, ".": self._point})

    def say(self, message: str, /, **values: object) -> str:
        """The message in this language; with values, its placeholders are `%(name)s`, and `%%` is a per cent sign."""
        found = self.translated(message)
        return found % values if values else found

    def translated(self, message: str) -> str:
        """The message as the catalogue has it; itself, where it has none."""
        found = self._catalogue.get(message, message)
        return found if isinstance(found, str) else found[0]

    def plural(self, one: str, many: str, count: int) -> str:
        """One of two messages, by how many there are."""
        found = self._catalogue.get(one, (one, many))
        forms = (found, many) if isinstance(found, str) else found
        return forms[0 if count == 1 else 1]

    def number(self, value: Decimal | int) -> str:
        """1234567.50 is `1,234,567.5`, in German `1.234.567,5`: with all digits that it has."""
        exact = Decimal(value)
        return self.fixed(exact, len(plain(exact).partition(".")[2]))

    def fixed(self, value: Decimal, digits: int) -> str:
        """The value with so many digits after the point."""
        # Not by Babel's format_decimal: 2.19 takes Switzerland's group symbol, an apostrophe, for a quotation mark.
        return f"{value:,.{digits}f}".translate(self._symbols)

    def read(self, text: str, digits: int) -> Decimal:
        """What somebody typed, with at most so many digits after the point: 1.500,50 in German, 1,500.50 in English.

        What means one thing in every language is read in every one: 1500, 1500.50, 1.500,50. In 1.500 the point is what
        this language has it for. Raises ValueError for all else, such as 2,000 in German.
        """
        found = _WRITTEN.fullmatch(text.strip().translate(_GROUPING))
        if found is None:
            raise ValueError(f"{text[:40]!r} is no number")
        whole, group, point, rest = found["whole"], found["group"], found["point"], found["rest"] or ""
        either = group in (".", ",") and whole.count(group) == 1 and point is None
        if group == point is not None or len(rest) > digits or (either and group != self._group):
            raise ValueError(f"{text[:40]!r} is no number of at most {digits} digits after a {self._point!r}")
        return D(re.sub("[.,']", "", whole) + (f".{rest}" if rest else ""))

    def read_whole(self, text: str) -> list[int]:
        """Whole numbers with commas between: 50, 80. Raises ValueError for what may be one with decimals: 50,80."""
        parts = re.split(r",\s+" if self._point == "," else r",\s*", text.strip())
        if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
            raise ValueError(f"{text[:40]!r} are no whole numbers with commas between")
        return [int(part) for part in parts]

    def day(self, moment: datetime, zone: str) -> str:
        """The day of a moment in the zone: 2026-11-21, in German 21.11.2026."""
        return self.calendar_day(moment.astimezone(ZoneInfo(zone)).date())

    def calendar_day(self, day: date) -> str:
        """2026-11-21, in German 21.11.2026."""
        return day.isoformat() if self.tag == ENGLISH else format_date(day, locale=self._locale)

    def short_day(self, day: date) -> str:
        """A date without its year: 11-21, in German 21.11."""
        return f"{day:%m-%d}" if self.tag == ENGLISH else format_skeleton("MMdd", day, locale=self._locale)

    def long_day(self, moment: datetime, zone: str) -> str:
        """The day of a moment in the zone, its month in letters: 1 November 2026, in German 1. November 2026."""
        # Not the format of `en`, which is that of the United States.
        how = "d MMMM y" if self.code == ENGLISH else "long"
        return format_date(moment.astimezone(ZoneInfo(zone)), how, locale=self._locale)

    def time(self, moment: datetime, zone: str, *, seconds: bool = False) -> str:
        """The moment in the zone, labelled with it: 2026-11-21 03:30 UTC."""
        there = moment.astimezone(ZoneInfo(zone))
        return f"{self.day(moment, zone)} {there:{'%H:%M:%S' if seconds else '%H:%M'}} {there.tzname() or zone}"

    def month(self, moment: datetime, zone: str) -> str:
        """November 2026."""
        return format_date(moment.astimezone(ZoneInfo(zone)), "LLLL y", locale=self._locale)


def wanted(accepted: str) -> str | None:
    """The language of LANGUAGES that somebody's browser asks for most (Accept-Language, RFC 9110, 12.5.4)."""
    asked: list[tuple[float, str]] = []
    for part in accepted[:1000].split(","):
        name, _, weight = part.partition(";")
        code = name.strip().lower().partition("-")[0]
        try:
            quality = float(weight.strip().removeprefix("q=")) if weight.strip() else 1.0
        except ValueError:
            continue
        if code in LANGUAGES and quality > 0:
            asked.append((quality, code))
    return max(asked, key=lambda it: it[0])[1] if asked else None


@cache
def catalogue(code: str) -> Catalogue:
    """English -> the language's text, of all messages that have one; two texts where there is a plural."""
    if code == ENGLISH:
        return {}
    with (files("meterhouse_store") / "languages" / f"{code}.po").open("rb") as file:
        found = read_po(file, locale=code)
    return {_key(it.id): _text(it.string) for it in found if it.id and it.string and not it.fuzzy}


def _key(message: Any) -> str:
    return str(message if isinstance(message, str) else message[0])


def _text(text: Any) -> str | tuple[str, ...]:
    return text if isinstance(text, str) else tuple(text)


def _wrong(tag: str) -> str:
    return f"{tag[:40]!r} is no language: {', '.join(LANGUAGES)}, with a country where its formats are meant (de-AT)"
