"""Text for people: tables that line up, thousands in groups, and words in the right number."""

from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Final

from meterhouse_rating.money import show
from meterhouse_store.language import ENGLISH, Language
from meterhouse_store.numbers import plain
from meterhouse_store.terminal import visible

_SHORTEST_WORD: Final = 4
"""Shorter units (s, GB, min) are symbols: those have no plural."""
UNITS: Final = {
    it: f"{it}s" for it in ("call", "conversation", "execution", "image", "month", "page", "request", "task", "token")
} | {"search": "searches"}
"""The units of Meterhouse's own meters and fees that have words in each language, one and many."""


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """The rows as indented lines whose columns line up; the columns in `right` are flush right. No trailing spaces.

    A row is one line and steers no terminal, whatever agents called their models.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: Decimal) -> str:
    """1234567.50 is `1,234,567.5`."""
    whole, point, rest = plain(value).partition(".")
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}{abs(int(whole)):,}{point}{rest}"


def money(amount_minor: int, currency: str) -> str:
    """123456 of USD is `1,234.56`."""
    return f"{Decimal(show(amount_minor, currency)):,f}"


def unit(name: str, quantity: Decimal) -> str:
    """The unit of so many: 1 call, 11 calls, 11 GB."""
    is_word = name.isalpha() and name.islower() and len(name) >= _SHORTEST_WORD
    return _plural(name) if is_word and quantity != 1 else name


def unit_in(language: Language, name: str, quantity: Decimal) -> str:
    """The unit of so many for people: in German 11 Aufrufe; a price book's own words as they are written."""
    word = name.strip("{}")
    if language.code == ENGLISH:
        return unit(word, quantity)
    return language.plural(word, UNITS[word], 1 if quantity == 1 else 2) if word in UNITS else word


def counted(count: int, word: str) -> str:
    """`1 event`, `2,000 events`."""
    return f"{count:,} {word if count == 1 else _plural(word)}"


def _plural(word: str) -> str:
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word  # what a price book calls seats is more than one already
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
