"""The amounts in the text of a price book, each at its place, and the text with others: all else stays as it is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import yaml

from meterhouse_rating.document import MAX_BYTES

KEYS: Final = frozenset(
    {"price", "default", "flat", "fee", "fixed", "markup", "percent", "min", "max", "included", "free", "credits"}
)
"""What an amount of a component is called."""
_NUMBER: Final = re.compile(r"[0-9][0-9_]{0,30}(\.[0-9]{1,24})?")
_ROOTS: Final = {"plans": "plan", "addons": "add-on"}
_TOLD: Final = frozenset({"up_to"})
_MOST: Final = 1000


class NoAmount(ValueError):
    """The text cannot be read, or what was written is no amount; the text says which."""


@dataclass(frozen=True)
class Amount:
    """An amount: `name` is for forms, `place` for people, `start` and `end` are characters of the text."""

    name: str
    place: str
    written: str
    start: int
    end: int


def amounts(text: str) -> list[Amount]:
    """The amounts of plans and add-ons, at most the first thousand, in the order of the text. Raises NoAmount."""
    if len(text.encode()) > MAX_BYTES:
        raise NoAmount(f"a price book has at most {MAX_BYTES:,} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = sorted(set(_in(root, "", set())))
    except (yaml.YAMLError, RecursionError):
        raise NoAmount("the text is no YAML that can be read") from None
    return [Amount(f"amount-{n}", place, text[a:b], a, b) for n, (a, b, place) in enumerate(found[:_MOST])]


def changed(text: str, wanted: Mapping[str, str]) -> str:
    """The text with the amounts that are `wanted` (name -> what was typed). Raises NoAmount."""
    made = text
    for it in reversed(amounts(text)):
        typed = wanted.get(it.name, "").strip() or it.written
        if not _NUMBER.fullmatch(typed):
            raise NoAmount(f"{it.place}: {typed[:40]!r} is no amount. Write digits and a point, such as 12.50.")
        made = f"{made[: it.start]}{typed}{made[it.end :]}"
    return made


def _in(node: yaml.Node | None, place: str, seen: set[int]) -> Iterator[tuple[int, int, str]]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value, 1):
            yield from _in(entry, f"{place} {_called(entry) or f'no. {number}'}", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = str(key.value)
        if not place and name not in _ROOTS:
            continue
        inner = _ROOTS[name] if not place else place if name == "components" else f"{place}, {name}"
        if isinstance(value, yaml.ScalarNode):
            if name in KEYS and value.style is None and _NUMBER.fullmatch(value.value):
                yield value.start_mark.index, value.end_mark.index, inner
        else:
            yield from _in(value, inner, seen)


def _called(entry: yaml.Node) -> str:
    """What tells an entry of a list from the others: `model gpt-5*`, `up to 1000`."""
    if not isinstance(entry, yaml.MappingNode):
        return ""
    said = [(str(key.value), value) for key, value in entry.value if isinstance(value, yaml.ScalarNode)]
    told = [f"{name.replace('_', ' ')} {value.value}" for name, value in said if name in _TOLD or name not in KEYS]
    return ", ".join(told)
