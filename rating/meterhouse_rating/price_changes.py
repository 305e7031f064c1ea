"""Two price books side by side: every value that is another one, by its place in the book."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from meterhouse_rating.price_api.written import tree

_NAMED: Final = ("model", "up_to")
"""What tells the entries of a list apart in a place, where they have it."""


@dataclass(frozen=True)
class Change:
    """A value at a place such as `plans.pay.components.in.price`; None on the side where there is none."""

    place: str
    before: str | None
    after: str | None


def changes(before: str, after: str) -> list[Change]:
    """What differs between the texts of two books, in the order of the first; how they are laid out does not count."""
    old, new = dict(_values(tree(before), "")), dict(_values(tree(after), ""))
    places = [*old, *(place for place in new if place not in old)]
    return [Change(it, old.get(it), new.get(it)) for it in places if old.get(it) != new.get(it)]


def _values(node: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from _values(inner, f"{place}.{name}" if place else name)
    elif isinstance(node, list):
        if all(isinstance(it, str) for it in node):
            yield place, ", ".join(node)
        else:
            for index, inner in enumerate(node):
                yield from _values(inner, f"{place}[{_called(inner, index)}]")
    else:
        yield place, "" if node is None else node


def _called(entry: Any, index: int) -> str:
    """An entry by what tells it apart, so that one that is put before it does not make all the rest differ."""
    if isinstance(entry, dict):
        named = [f"{name}={entry[name]}" for name in _NAMED if isinstance(entry.get(name), str)]
        if named:
            return named[0]
    return str(index + 1)
