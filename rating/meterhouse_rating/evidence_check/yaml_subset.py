"""Reads the YAML that price books are written in, with line numbers; scalars stay text.

Block and flow mappings and lists, plain and quoted scalars on one line, comments. What else YAML has (anchors, tags,
folded texts) raises Unreadable, and is never guessed.
"""

import re
from dataclasses import dataclass, field
from typing import Final

_MAX_DEPTH: Final = 20
_PLAIN_END: Final = re.compile(r"[,\]}\n]|:(?=[\s,\]}])|\s#")
_KEY: Final = re.compile(r"(\"[^\"\\]*\"|'(?:[^']|'')*'|[^\s\"'&*!|>%@`{\[?#,\]}-][^#]*?|-[^\s#][^#]*?)\s*:(?=\s|$)")


class Unreadable(ValueError):
    """YAML beyond what is read here; the text says where."""


@dataclass(frozen=True)
class Node:
    """A value and the line it begins on: a text, a list, or a mapping, whose keys' lines are in `keys`."""

    line: int
    value: str | list["Node"] | dict[str, "Node"]
    keys: dict[str, int] = field(default_factory=dict, compare=False)

    def get(self, key: str) -> "Node | None":
        return self.value.get(key) if isinstance(self.value, dict) else None

    def text(self, key: str, default: str = "") -> str:
        found = self.get(key)
        return found.value if found is not None and isinstance(found.value, str) else default

    def items(self) -> dict[str, "Node"]:
        return self.value if isinstance(self.value, dict) else {}

    def entries(self, key: str) -> list["Node"]:
        """The list at the key; empty where there is none."""
        found = self.get(key)
        return found.value if found is not None and isinstance(found.value, list) else []

    def texts(self, key: str) -> list[str]:
        """The texts of the list at the key."""
        return [it.value for it in self.entries(key) if isinstance(it.value, str)]

    def last_line(self) -> int:
        """The last line on which something of it begins."""
        parts = self.value.values() if isinstance(self.value, dict) else self.value
        return self.line if isinstance(parts, str) else max([self.line, *(it.last_line() for it in parts)])


@dataclass
class _Line:
    number: int
    indent: int
    text: str


def read(text: str) -> Node:
    """The document's value. Raises Unreadable."""
    raw = text.split("\n")
    if any("\t" in line or "\r" in line for line in raw):
        raise Unreadable("a tab or a carriage return")
    reader = _Reader(raw)
    if not reader.lines:
        raise Unreadable("nothing is in it")
    node = reader.block(reader.lines[0].indent, 0)
    if reader.at < len(reader.lines):
        raise Unreadable(f"line {reader.lines[reader.at].number}: not indented as the lines above it")
    return node


class _Reader:
    def __init__(self, raw: list[str]) -> None:
        self.raw = raw
        stripped = [(index, line.lstrip(" ")) for index, line in enumerate(raw, 1)]
        self.lines = [
            _Line(index, len(raw[index - 1]) - len(rest), rest.rstrip())
            for index, rest in stripped
            if rest.strip() and not rest.startswith("#")
        ]
        self.at = 0
        if self.lines and self.lines[0].text == "---":
            del self.lines[0]

    def block(self, indent: int, depth: int) -> Node:
        """The block that begins with the line at hand."""
        if depth > _MAX_DEPTH:
            raise Unreadable(f"line {self.lines[self.at].number}: nested too deep")
        first = self.lines[self.at]
        if first.text == "-" or first.text.startswith("- "):
            return self._sequence(indent, depth)
        if _KEY.match(first.text):
            return self._mapping(indent, depth)
        self.at += 1
        return self._value(first, first.text, indent, depth)

    def _sequence(self, indent: int, depth: int) -> Node:
        start, items = self.lines[self.at].number, list[Node]()
        while (line := self._here(indent)) is not None and (line.text == "-" or line.text.startswith("- ")):
            rest = line.text[1:].lstrip(" ")
            if not rest or rest.startswith("#"):
                self.at += 1
                items.append(self._nested(line, indent, depth))
                continue
            column = indent + len(line.text) - len(rest)
            self.lines[self.at] = _Line(line.number, column, rest)
            items.append(self.block(column, depth + 1))
        return Node(start, items)

    def _mapping(self, indent: int, depth: int) -> Node:
        start, entries, keys = self.lines[self.at].number, dict[str, Node](), dict[str, int]()
        while (line := self._here(indent)) is not None:
            found = _KEY.match(line.text)
            if not found:
                raise Unreadable(f"line {line.number}: no `key: value`")
            key, rest = _unquoted(found[1], line.number), line.text[found.end() :].lstrip(" ")
            self.at += 1
            if not rest or rest.startswith("#"):
                value = self._nested(line, indent, depth, in_mapping=True)
            else:
                value = self._value(line, rest, indent, depth)
            if key in entries:
                raise Unreadable(f"line {line.number}: {key} is written twice")
            entries[key], keys[key] = value, line.number
        return Node(start, entries, keys)

    def _here(self, indent: int) -> "_Line | None":
        if self.at >= len(self.lines) or self.lines[self.at].indent < indent:
            return None
        if self.lines[self.at].indent > indent:
            raise Unreadable(f"line {self.lines[self.at].number}: further in than the lines above it")
        return self.lines[self.at]

    def _nested(self, line: _Line, indent: int, depth: int, *, in_mapping: bool = False) -> Node:
        """What stands below a key or a dash."""
        if self.at < len(self.lines):
            following = self.lines[self.at]
            dashed = in_mapping and following.indent == indent and following.text.startswith("-")
            if following.indent > indent or dashed:
                return self.block(following.indent, depth + 1)
        return Node(line.number, "")

    def _value(self, line: _Line, rest: str, indent: int, depth: int) -> Node:
        """A value that begins on the line of its key or dash."""
        if rest[0] in "{[":
            return self._flow(line, len(self.raw[line.number - 1].rstrip()) - len(rest))
        if rest[0] in "&*!|>%@`?":
            raise Unreadable(f"line {line.number}: {rest[0]} begins something that is not read here")
        if self.at < len(self.lines) and self.lines[self.at].indent > indent:
            raise Unreadable(f"line {line.number}: a value over several lines")
        if rest[0] in "\"'":
            end = _quote_end(rest, 0, line.number)
            if rest[end:].strip() and not rest[end:].lstrip().startswith("#"):
                raise Unreadable(f"line {line.number}: something behind a quoted value")
            return Node(line.number, _unquoted(rest[:end], line.number))
        plain = re.split(r"\s#", rest, maxsplit=1)[0].rstrip()
        if re.search(r":(\s|$)", plain):
            raise Unreadable(f"line {line.number}: two values on one line")
        return Node(line.number, plain)

    def _flow(self, line: _Line, column: int) -> Node:
        """A flow collection, which may go on over further lines; what stands behind it is a comment or nothing."""
        flow = _Flow("\n".join(self.raw[line.number - 1 :]), column, line.number)
        node = flow.value(0)
        rest = flow.text[flow.at :].partition("\n")[0].strip()
        if rest and not rest.startswith("#"):
            raise Unreadable(f"line {flow.line}: something behind a list or mapping")
        while self.at < len(self.lines) and self.lines[self.at].number <= flow.line:
            self.at += 1
        return node


class _Flow:
    def __init__(self, text: str, at: int, line: int) -> None:
        self.text, self.at, self.line = text, at, line

    def value(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise Unreadable(f"line {self.line}: nested too deep")
        self._space()
        here = self._peek()
        if here == "[":
            return self._list(depth)
        if here == "{":
            return self._mapping(depth)
        return Node(self.line, self._scalar())

    def _list(self, depth: int) -> Node:
        start, items = self.line, list[Node]()
        self.at += 1
        while True:
            self._space()
            if self._peek() == "]":
                self.at += 1
                return Node(start, items)
            items.append(self.value(depth + 1))
            self._separator("]")

    def _mapping(self, depth: int) -> Node:
        start, entries, keys = self.line, dict[str, Node](), dict[str, int]()
        self.at += 1
        while True:
            self._space()
            if self._peek() == "}":
                self.at += 1
                return Node(start, entries, keys)
            key, at = self._scalar(), self.line
            self._space()
            if self._peek() != ":":
                raise Unreadable(f"line {self.line}: {key} has no value")
            self.at += 1
            self._space()
            empty = self._peek() in ",}"
            value = Node(self.line, "") if empty else self.value(depth + 1)
            if key in entries:
                raise Unreadable(f"line {self.line}: {key} is written twice")
            entries[key], keys[key] = value, at
            self._separator("}")

    def _separator(self, end: str) -> None:
        self._space()
        if self._peek() == ",":
            self.at += 1
        elif self._peek() != end:
            raise Unreadable(f"line {self.line}: a , or {end} is missing")

    def _scalar(self) -> str:
        here = self._peek()
        if here in "\"'":
            end = _quote_end(self.text, self.at, self.line)
            quoted, self.at = self.text[self.at : end], end
            return _unquoted(quoted, self.line)
        if here in "&*!|>%@`?,]}{[#":
            raise Unreadable(f"line {self.line}: {here!r} begins something that is not read here")
        found = _PLAIN_END.search(self.text, self.at)
        end = found.start() if found else len(self.text)
        plain, self.at = self.text[self.at : end].strip(), end
        if not plain:
            raise Unreadable(f"line {self.line}: a value is missing")
        return plain

    def _space(self) -> None:
        while self.at < len(self.text) and (self.text[self.at] in " \n" or self.text[self.at] == "#"):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
                continue
            self.line += self.text[self.at] == "\n"
            self.at += 1

    def _peek(self) -> str:
        if self.at >= len(self.text):
            raise Unreadable(f"line {self.line}: a list or mapping does not end")
        return self.text[self.at]


def _quote_end(text: str, start: int, line: int) -> int:
    """Where a quoted text ends that begins at `start`."""
    quote, at = text[start], start + 1
    while at < len(text) and text[at] != "\n":
        if text[at] == quote:
            if quote == "'" and text[at + 1 : at + 2] == "'":
                at += 2
                continue
            return at + 1
        if text[at] == "\\" and quote == '"':
            break
        at += 1
    raise Unreadable(f"line {line}: a quoted text with a backslash or over several lines")


def _unquoted(text: str, line: int) -> str:
    if text[0] not in "\"'":
        return text
    if len(text) < 2 or text[-1] != text[0]:
        raise Unreadable(f"line {line}: a quote does not end")
    return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
