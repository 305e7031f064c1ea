"""Lists of prices by dimensions: the first line whose patterns match counts, and none may be out of reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from meterhouse_rating.document import Block


@dataclass(frozen=True)
class Match:
    """Patterns for the values of the dimensions, in their order; a * at the end matches any rest."""

    patterns: tuple[str, ...]
    line: int

    def matches(self, values: Sequence[str]) -> bool:
        return all(_matches(pattern, value) for pattern, value in zip(self.patterns, values, strict=True))

    def covers(self, other: "Match") -> bool:
        """Whether everything that `other` matches is matched by this one too."""
        return all(_covers(mine, its) for mine, its in zip(self.patterns, other.patterns, strict=True))


class Matched(Protocol):
    @property
    def match(self) -> Match: ...


Entry = TypeVar("Entry", bound=Matched)


def read_match(entry: Block, dimensions: Sequence[str]) -> Match:
    """The patterns of one line; a dimension that is left out matches everything."""
    patterns = tuple(entry.text(dimension, default="*") or "*" for dimension in dimensions)
    if any("*" in pattern[:-1] for pattern in patterns):
        entry.wrong("a * that is not at the end", "Write the beginning of the name and then *.")
    return Match(patterns, entry.line)


def everything(dimensions: Sequence[str], line: int) -> Match:
    return Match(("*",) * len(dimensions), line)


def check_reached(entry: Block, match: Match, earlier: Sequence[Match]) -> None:
    """A line that an earlier one hides is a mistake."""
    hiding = next((it for it in earlier if it.covers(match)), None)
    if hiding:
        entry.wrong(f"never reached: line {hiding.line} matches first", "Move it above that line, or remove it.")


def first(entries: Sequence[Entry], values: Sequence[str]) -> Entry | None:
    return next((entry for entry in entries if entry.match.matches(values)), None)


def line_to_add(name: str, line: int, key: str, dimensions: Sequence[str], values: Sequence[str], rest: str) -> str:
    """The hint for values that no line matches."""
    pairs = ", ".join(f"{dimension}: {value!r}" for dimension, value in zip(dimensions, values, strict=True))
    return f"below `{key}` of the component `{name}` (line {line}) add: - {{{pairs}, {rest}: ...}}"


def named(dimensions: Sequence[str], values: Sequence[str]) -> str:
    """The values for people: `gpt-5, no region`."""
    shown = (name.removeprefix("attributes.") for name in dimensions)
    return ", ".join(value or f"no {name}" for name, value in zip(shown, values, strict=True))


def _matches(pattern: str, value: str) -> bool:
    return value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern


def _covers(pattern: str, other: str) -> bool:
    if pattern.endswith("*"):
        return other.rstrip("*").startswith(pattern[:-1])
    return pattern == other
