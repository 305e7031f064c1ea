"""The declared meters: the built-in ones of meters.yaml and those of an own file in the same format."""

from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from importlib.resources import files
from typing import Literal, cast

import yaml

from meterhouse_store.numbers import D
from meterhouse_store.settings import Settings

MAX_BYTES = 1_000_000
MAX_METERS = 10_000
_FIELDS = ("unit", "counts", "values", "step")


@dataclass(frozen=True)
class Meter:
    """What one unit of a meter is: `unit` in UCUM, `counts` in a sentence, `step` what reports round to."""

    name: str
    unit: str
    counts: str
    values: Literal["integer", "decimal"]
    step: Decimal


class MetersError(ValueError):
    """A file of meters has mistakes; the text lists all of them, each with its line."""


def built_in() -> dict[str, Meter]:
    """The meters of meters.yaml by name."""
    return parse((files("meterhouse_store") / "meters.yaml").read_text(encoding="utf-8"), "meters.yaml")


@cache
def counted_whole() -> frozenset[str]:
    """The built-in meters of integers: a part of a unit is suspended. Own ones may be declared otherwise tomorrow, and
    what is decided of a record has to be the same then."""
    return frozenset(meter.name for meter in built_in().values() if meter.values == "integer")


def declared(settings: Settings) -> dict[str, Meter]:
    """All declared meters by name. Raises MetersError for mistakes in the own file, OSError if it cannot be read."""
    found = built_in()
    if settings.meters_file is None:
        return found
    file = settings.meters_file
    try:
        if file.stat().st_size > MAX_BYTES:
            raise MetersError(f"{file}: a file of meters has at most {MAX_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise MetersError(f"{file}: the file that METERHOUSE_METERS names is no text in UTF-8: {problem}") from None
    except OSError as problem:
        raise OSError(problem.errno, f"{problem.strerror} (METERHOUSE_METERS names it)", str(file)) from None
    own = parse(text, str(file))
    taken = sorted(set(own) & set(found))
    if taken:
        raise MetersError("\n".join(f"{file}: {name} is a built-in meter: choose another name" for name in taken))
    return found | own


def how_to_declare(meter: str) -> str:
    """What to do about a meter that is not declared."""
    return (
        "mind its spelling, or declare it in a file of yours that METERHOUSE_METERS names wherever Meterhouse runs: "
        f'below `meters:` the line {meter}: {{unit: "1", counts: what one of it is, values: integer, step: 1}}'
    )


def parse(text: str, source: str) -> dict[str, Meter]:
    """The meters of a YAML text; `source` is what mistakes are reported under. Raises MetersError with all of them."""
    return dict(_parsed(text, source))


@lru_cache(maxsize=16)
def _parsed(text: str, source: str) -> dict[str, Meter]:
    # Every page and every request asks for the same texts, and reading YAML takes longer than all else of a page.
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        raise MetersError(f"{source}: not YAML: {problem}") from None
    mistakes: list[str] = []
    found: dict[str, Meter] = {}
    top = _mapping(root, "the file", mistakes)
    for name, (_, node) in top.items():
        if name != "meters":
            _say(mistakes, node, f"{name!r} is not known here; the only key is `meters`")
    if "meters" not in top:
        mistakes.append("line 1: the key `meters` is missing")
    else:
        entries = _mapping(top["meters"][1], "meters", mistakes)
        if len(entries) > MAX_METERS:
            mistakes.append(f"line 1: at most {MAX_METERS} meters")
        for name, (key, node) in entries.items():
            meter = _meter(name, key, node, mistakes)
            if meter is not None:
                found[name] = meter
    if mistakes:
        raise MetersError("\n".join(f"{source}: {mistake}" for mistake in mistakes))
    return found


def _meter(name: str, key: yaml.Node, node: yaml.Node, mistakes: list[str]) -> Meter | None:
    before = len(mistakes)
    if not 1 <= len(name) <= 128 or not all(part.isidentifier() for part in name.split(".")) or not name.isascii():
        _say(mistakes, key, f"meter {name!r}: names separated by dots, such as pages.read, at most 128 characters")
    fields = _mapping(node, f"meter {name}", mistakes)
    for field, (at, _) in fields.items():
        if field not in _FIELDS:
            _say(mistakes, at, f"meter {name}: {field!r} is not known; a meter has {', '.join(_FIELDS)}")
    texts = {}
    for field in _FIELDS:
        value = fields.get(field, (None, None))[1]
        if not isinstance(value, yaml.ScalarNode) or not value.value.strip():
            _say(mistakes, value or key, f"meter {name}: `{field}` is missing")
        else:
            texts[field] = value.value.strip()
    values = texts.get("values", "integer")
    if values not in ("integer", "decimal"):
        _say(mistakes, fields["values"][1], f"meter {name}: `values` is integer or decimal, not {values!r}")
    try:
        step = D(texts.get("step", "1"))
    except ValueError:
        step = Decimal(0)
    if step <= 0:
        _say(mistakes, fields["step"][1], f"meter {name}: `step` is a number above 0, not {texts['step']!r}")
    elif values == "integer" and step != step.to_integral_value():
        _say(mistakes, fields["step"][1], f"meter {name}: `step` of a meter of integers is an integer")
    if len(mistakes) > before:
        return None
    return Meter(name, texts["unit"], texts["counts"], cast(Literal["integer", "decimal"], values), step)


def _mapping(node: yaml.Node | None, what: str, mistakes: list[str]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        _say(mistakes, node, f"{what} must be a mapping (name: value)")
        return {}
    entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else repr(key.value)
        if name in entries:
            _say(mistakes, key, f"{name!r} stands twice in {what}")  # YAML itself would take the last
        entries[name] = (key, value)
    return entries


def _say(mistakes: list[str], node: yaml.Node | None, mistake: str) -> None:
    line = 1 if node is None else node.start_mark.line + 1
    mistakes.append(f"line {line}: {mistake}")
