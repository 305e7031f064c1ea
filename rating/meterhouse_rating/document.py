"""Reads YAML into a tree that knows its lines, and hands it out typed while collecting every mistake.

Scalars stay text: a price of 0.1 is exactly a tenth and never passes through a float. The text is bounded before it is
read (size, depth, number of nodes) and aliases are refused, so no file can unfold into more than it shows.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import yaml

from meterhouse_store.numbers import D, plain

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 12
MAX_NODES: Final = 100_000

_NUMBER = re.compile(r"-?[0-9]+(_[0-9]{3})*(\.[0-9]+)?\Z")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")
_MAX_DIGITS: Final = 24
_MAX_DECIMALS: Final = 12
_SUGGESTIONS: Final = 8
_EMPTY: Final = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing wrong in a file: line (from 1), path such as `plans.team.components.fee`, what, and what to do."""

    line: int
    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.path}: {self.what}. {self.remedy}"


@dataclass
class Scalar:
    line: int
    text: str
    quoted: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands there."""
        return not self.quoted and self.text in _EMPTY


@dataclass
class Sequence:
    line: int
    items: list["Node"] = field(default_factory=list)


@dataclass
class Mapping:
    line: int
    entries: dict[str, "Node"] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)


Node = Scalar | Sequence | Mapping


class _Refused(Exception):
    def __init__(self, mistake: Mistake) -> None:
        super().__init__(str(mistake))
        self.mistake = mistake


def number_of(text: str) -> str | None:
    """The digits of a number as they are written, without separators; None for what is no number."""
    return text.replace("_", "") if _NUMBER.match(text) else None


def read(text: str, mistakes: list[Mistake]) -> Mapping | None:
    """The document's top mapping, or None when it cannot be read at all; what is wrong is added to `mistakes`."""
    if len(text.encode()) > MAX_BYTES:
        mistakes.append(Mistake(1, "(file)", f"longer than {MAX_BYTES} bytes", "Split it or shorten it."))
        return None
    try:
        events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        root = _Builder(events, mistakes).document()
    except _Refused as refused:
        mistakes.append(refused.mistake)
        return None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        line = mark.line + 1 if mark else 1
        mistakes.append(Mistake(line, "(file)", f"not YAML: {problem}", "Mind the indentation, quotes and colons."))
        return None
    if not isinstance(root, Mapping):
        mistakes.append(Mistake(1, "(file)", "not a mapping", "Start with `book: NAME`."))
        return None
    return root


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Builder:
    def __init__(self, events: Iterator[yaml.Event], mistakes: list[Mistake]) -> None:
        self._events = events
        self._mistakes = mistakes
        self._nodes = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    line = _line(event)
                    raise _Refused(Mistake(line, "(file)", "a second document begins", "Keep one document per file."))
                root = self._node(next(self._events), "", 0)
        return root

    def _node(self, event: yaml.Event, path: str, depth: int) -> Node:
        line = _line(event)
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise _Refused(Mistake(line, path or "(file)", "nested too deep or too many values", "Write less."))
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(Mistake(line, path, f"the alias *{event.anchor}", "Write the values out."))
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, event.style is not None)
        if isinstance(event, yaml.SequenceStartEvent):
            sequence = Sequence(line)
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                sequence.items.append(self._node(event, f"{path}[{len(sequence.items)}]", depth + 1))
            return sequence
        return self._mapping(line, path, depth)

    def _mapping(self, line: int, path: str, depth: int) -> Mapping:
        mapping = Mapping(line)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key_line = _line(event)
            key = self._node(event, path, depth + 1)
            if not isinstance(key, Scalar):
                raise _Refused(Mistake(key_line, path or "(file)", "a key that is no plain text", "Use a name as key."))
            inner = f"{path}.{key.text}" if path else key.text
            value = self._node(next(self._events), inner, depth + 1)
            if key.text in mapping.entries:
                first = mapping.key_lines[key.text]
                self._mistakes.append(
                    Mistake(key_line, inner, f"written twice, first on line {first}", "Keep one of the two.")
                )
                continue
            mapping.entries[key.text] = value
            mapping.key_lines[key.text] = key_line
        return mapping


def _to_choose(text: str, choices: tuple[str, ...], remedy: str) -> str:
    near = difflib.get_close_matches(text, choices, n=_SUGGESTIONS)
    if len(choices) > _SUGGESTIONS and not near and remedy:
        return remedy
    named = near if len(choices) > _SUGGESTIONS and near else choices
    more = f" and {len(named) - _SUGGESTIONS} more" if len(named) > _SUGGESTIONS else ""
    return f"Choose one of: {', '.join(named[:_SUGGESTIONS])}{more}."


class Block:
    """One mapping being read: typed access by key, unknown keys found by `done`, mistakes collected for all blocks."""

    def __init__(self, node: Mapping, path: str, mistakes: list[Mistake], line: int | None = None) -> None:
        self.line = node.line if line is None else line
        self.path = path
        self.mistakes = mistakes
        self._node = node
        self._asked: set[str] = set()

    def wrong(self, what: str, remedy: str, *, key: str | None = None, line: int | None = None) -> None:
        """Note a mistake at the block, at one of its keys, or at a line inside it."""
        at = line or (self._node.key_lines.get(key, self.line) if key else self.line)
        self.mistakes.append(Mistake(at, self._at(key) if key else self.path or "(file)", what, remedy))

    def line_of(self, key: str) -> int:
        return self._node.key_lines.get(key, self.line)

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._node.entries

    def text(
        self, key: str, *, choices: tuple[str, ...] | None = None, default: str | None = None, remedy: str = ""
    ) -> str | None:
        """The text at `key`; with a default it may be left out, with choices it must be one of them.

        `remedy`: what to do where no choice is near what is written; without it they are listed.
        """
        node = self._get(key, required=default is None)
        if node is None:
            return default
        if not isinstance(node, Scalar) or node.text in _EMPTY:
            self.wrong("not a text", "Write one value after the colon.", key=key)
            return default
        if choices and node.text not in choices:
            self.wrong(f"`{node.text}` is not known", _to_choose(node.text, choices, remedy), key=key)
            return default
        return node.text

    def number(self, key: str, *, default: Decimal | None = None, positive: bool = False) -> Decimal | None:
        """The number at `key`, not negative (or above zero), exactly as written."""
        node = self._get(key, required=default is None)
        return default if node is None else self._number(node, key, positive)

    def number_or_name(self, key: str, *, default: Decimal | None = None) -> Decimal | str | None:
        """The number at `key`, or a name that stands for one."""
        node = self._get(key, required=default is None)
        if node is None:
            return default
        if isinstance(node, Scalar) and _NAME.match(node.text):
            return node.text
        return self._number(node, key, True)

    def mapping(self, key: str) -> dict[str, str]:
        """The mapping name -> text at `key`."""
        inner = self.block(key)
        if inner is None:
            return {}
        if not inner._node.entries:
            self.wrong("empty", "Name at least one.", key=key)
        found = {name: inner.text(name) for name in inner._node.entries}
        return {name: text for name, text in found.items() if text is not None}

    def is_text(self, key: str) -> bool:
        """Whether there is one value at `key`, not a mapping or list."""
        return isinstance(self._node.entries.get(key), Scalar)

    def texts(self, key: str, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The list of texts at `key`; a single text counts as a list of one."""
        node = self._get(key, required=default is None)
        if node is None:
            return default or ()
        items: list[Node] = node.items if isinstance(node, Sequence) else [node]
        found: list[str] = []
        for item in items:
            if not isinstance(item, Scalar) or item.text in _EMPTY:
                self.wrong("not a list of texts", "Write [a, b] or one `- a` per line.", key=key, line=item.line)
            elif item.text in found:
                self.wrong(f"`{item.text}` is listed twice", "Keep one of the two.", key=key, line=item.line)
            else:
                found.append(item.text)
        return tuple(found)

    def block(self, key: str, *, required: bool = True) -> "Block | None":
        node = self._get(key, required=required)
        if node is None:
            return None
        if not isinstance(node, Mapping):
            self.wrong("not a mapping", "Indent `key: value` lines below it.", key=key)
            return None
        return Block(node, self._at(key), self.mistakes, self.line_of(key))

    def named_blocks(self, key: str, *, required: bool = True) -> list[tuple[str, "Block"]]:
        """The mappings below `key`, each with its name: metrics, plans, components."""
        outer = self.block(key, required=required)
        if outer is None:
            return []
        names = list(outer._node.entries)
        blocks = [(name, outer.block(name)) for name in names]
        if required and not names:
            self.wrong("empty", "Name at least one.", key=key)
        return [(name, block) for name, block in blocks if block is not None]

    def list_of_blocks(self, key: str) -> list["Block"]:
        node = self._get(key, required=True)
        if node is None:
            return []
        if not isinstance(node, Sequence) or not node.items:
            self.wrong("not a list", "Write one `- {...}` per line.", key=key)
            return []
        blocks = []
        for index, item in enumerate(node.items):
            path = f"{self._at(key)}[{index}]"
            if isinstance(item, Mapping):
                blocks.append(Block(item, path, self.mistakes))
            else:
                self.mistakes.append(Mistake(item.line, path, "not a mapping", "Write {key: value, ...}."))
        return blocks

    def numbers(self, key: str) -> dict[str, Decimal]:
        """The mapping name -> number at `key`; empty when left out."""
        inner = self.block(key, required=False)
        if inner is None:
            return {}
        found = {name: inner._number(node, name, False) for name, node in inner._node.entries.items()}
        return {name: number for name, number in found.items() if number is not None}

    def done(self) -> None:
        """Report the keys that nobody asked for."""
        for key in self._node.entries:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, n=1)
                known = ", ".join(sorted(self._asked))
                remedy = f"Did you mean {near[0]}?" if near else f"Known here: {known}."
                self.wrong("not a known key", remedy, key=key)

    def _get(self, key: str, *, required: bool) -> Node | None:
        self._asked.add(key)
        node = self._node.entries.get(key)
        if node is None and required:
            self.wrong(f"`{key}` is missing", f"Add `{key}: ...`.")
        return node

    def _number(self, node: Node, key: str, positive: bool) -> Decimal | None:
        if not isinstance(node, Scalar) or not _NUMBER.match(node.text):
            shown = f"`{node.text}`" if isinstance(node, Scalar) else "a list or mapping"
            self.wrong(f"{shown} is not a number", "Write digits and a point, such as 0.25 or 1_000_000.", key=key)
            return None
        number = D(node.text)
        if len(number.as_tuple().digits) > _MAX_DIGITS:
            self.wrong(f"more than {_MAX_DIGITS} digits", "Write a shorter number.", key=key)
        elif len(node.text.partition(".")[2]) > _MAX_DECIMALS:
            self.wrong(
                f"more than {_MAX_DECIMALS} digits after the point", "Price a larger number of units by `per`.", key=key
            )
        elif number < 0 or (positive and number == 0):
            self.wrong(
                f"{plain(number)} is too small", f"Write a number {'above' if positive else 'of at least'} 0.", key=key
            )
        else:
            return number
        return None

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key
