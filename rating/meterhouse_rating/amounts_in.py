"""The amounts in the text of a price book, each at its place, and the text with others: all else stays as it is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
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
_SAID: Final = ("currency", "model", "metric", "per", "size")
_MOST: Final = 1000


class NoAmount(ValueError):
    """The text cannot be read, or what was written is no amount; the text says which."""


@dataclass(frozen=True)
class Amount:
    """An amount: `name` is for forms, `place` for people, `start` and `end` are characters of the text.

    `group` is the plan or add-on, `label` the place within it, `measure` what it is one of: `EUR per 1,000 calls`.
    """

    name: str
    place: str
    written: str
    start: int
    end: int
    group: str = ""
    label: str = ""
    measure: str = ""


@dataclass(frozen=True)
class _Around:
    """What the book, the plan and the component say of the amounts in them; `units`: metric -> its unit."""

    currency: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    prefix: str = ""
    model: str = ""
    metric: str = ""
    per: str = "1"
    size: str = ""

    def measure(self, key: str) -> str:
        """What an amount with this key is one of."""
        if key in ("markup", "percent"):
            return "percent"
        if key in ("included", "free") and self.model != "percentage":
            return f"{self.metric} per calendar month"
        return f"{self.currency} {self._per_what(key)}".strip()

    def _per_what(self, key: str) -> str:
        if key == "credits" or self.model == "credit_pack":
            return "once"
        if key == "flat":
            return "per calendar month that reaches the tier"
        if key == "fixed" and self.metric:
            return "per event"
        if key in ("price", "default", "fee") and self.model == "package":
            return f"per package of {_grouped(self.size)} {self.metric}"
        if key in ("price", "default", "fee") and self.metric:
            return f"per {self.units.get(self.metric, self.metric) if self.per == '1' else self._many()}"
        return "per calendar month, each" if self.model == "recurring" else "per calendar month"

    def _many(self) -> str:
        return f"{_grouped(self.per)} {self.metric}"


def amounts(text: str) -> list[Amount]:
    """The amounts of plans and add-ons, at most the first thousand, in the order of the text. Raises NoAmount."""
    if len(text.encode()) > MAX_BYTES:
        raise NoAmount(f"a price book has at most {MAX_BYTES:,} bytes")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = sorted(set(_in(root, "", set(), _Around())))
    except (yaml.YAMLError, RecursionError):
        raise NoAmount("the text is no YAML that can be read") from None
    return [Amount(f"amount-{n}", it[2], text[it[0] : it[1]], *it[:2], *it[3:]) for n, it in enumerate(found[:_MOST])]


def changed(text: str, wanted: Mapping[str, str]) -> str:
    """The text with the amounts that are `wanted` (name -> what was typed). Raises NoAmount."""
    made = text
    for it in reversed(amounts(text)):
        typed = wanted.get(it.name, "").strip() or it.written
        if not _NUMBER.fullmatch(typed):
            raise NoAmount(f"{it.place}: {typed[:40]!r} is no amount. Write digits and a point, such as 12.50.")
        made = f"{made[: it.start]}{typed}{made[it.end :]}"
    return made


def _in(
    node: yaml.Node | None, place: str, seen: set[int], around: _Around
) -> Iterator[tuple[int, int, str, str, str, str]]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value, 1):
            yield from _in(entry, f"{place} {_called(entry) or f'no. {number}'}", seen, around)
    if not isinstance(node, yaml.MappingNode):
        return
    around = _told_by(node, place, around)
    for key, value in node.value:
        name = str(key.value)
        if not place and name not in _ROOTS:
            continue
        inner = _ROOTS[name] if not place else place if name == "components" else f"{place}, {name}"
        if isinstance(value, yaml.ScalarNode):
            if name in KEYS and value.style is None and _NUMBER.fullmatch(value.value):
                label = inner.removeprefix(around.prefix)
                yield value.start_mark.index, value.end_mark.index, inner, around.group, label, around.measure(name)
        else:
            # What a subscription asks beyond what is included stands under the names of metrics.
            beneath = replace(around, metric=name) if name in around.units and place.endswith(", overage") else around
            yield from _in(value, inner, seen, beneath)


def _told_by(node: yaml.MappingNode, place: str, around: _Around) -> _Around:
    """With what a mapping says of the amounts in it."""
    said = {str(key.value): value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    if not place:
        metrics = next((value for key, value in node.value if key.value == "metrics"), None)
        return replace(around, currency=said.get("currency", ""), units=_units(metrics))
    told: dict[str, str] = {name: said[name] for name in _SAID if name in said}
    kind, comma, name = place.partition(", ")
    if comma and not around.group:
        title = said.get("title", name)
        group = f"{kind.capitalize()} {title}" if title == name else f"{kind.capitalize()} {title} ({name})"
        told |= {"group": group, "prefix": f"{place}, "}
    return _Around(**vars(around) | told)


def _units(metrics: yaml.Node | None) -> dict[str, str]:
    found = {}
    for key, value in metrics.value if isinstance(metrics, yaml.MappingNode) else ():
        for inner, unit in value.value if isinstance(value, yaml.MappingNode) else ():
            if inner.value == "unit" and isinstance(unit, yaml.ScalarNode):
                found[str(key.value)] = unit.value
    return found


def _grouped(number: str) -> str:
    """`1_000_000` as `1,000,000`."""
    return f"{Decimal(number.replace('_', '')):,}" if _NUMBER.fullmatch(number) else number


def _called(entry: yaml.Node) -> str:
    """What tells an entry of a list from the others: `model gpt-5*`, `up to 1,000`."""
    if not isinstance(entry, yaml.MappingNode):
        return ""
    said = [(str(key.value), value.value) for key, value in entry.value if isinstance(value, yaml.ScalarNode)]
    told = [
        f"{name.replace('_', ' ')} {_grouped(value) if name in _TOLD else value}"
        for name, value in said
        if name in _TOLD or name not in KEYS
    ]
    return ", ".join(told)
