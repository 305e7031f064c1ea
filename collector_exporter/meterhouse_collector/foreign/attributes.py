"""Attributes of OTLP as text, and the bytes by which a series is known again."""

import hashlib
import re
from collections.abc import Container, Iterable, Iterator
from typing import Any, Final

from meterhouse.vocabulary import GRANTS

MAX_BYTES: Final = 256
"""Of an identifier; what is longer is bad, and its first 64 characters are kept to be recognised."""
_KEPT_CHARACTERS: Final = 64
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_OTHERS: Final = 32
_OTHER_CHARACTERS: Final = 1024


class Attributes:
    """The attributes of a resource, point or span. Of a key that is given twice the first value is taken."""

    __slots__ = ("_found", "has_duplicates")

    def __init__(self, pairs: Any) -> None:
        self._found: dict[str, Any] = {}
        for pair in pairs:
            self._found.setdefault(pair.key, pair.value)
        self.has_duplicates = len(self._found) != len(pairs)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def text(self, key: str) -> str:
        """As text, whatever its type, cut to what is kept; '' when it is absent, a list, a map or bytes."""
        value = self._found.get(key)
        return "" if value is None else cut(as_text(value))

    def is_bad(self, key: str, *, or_integer: bool = False) -> bool:
        """It is there, and not a text of at most 256 bytes."""
        value = self._found.get(key)
        if value is None or (or_integer and value.WhichOneof("value") == "int_value"):
            return False
        return value.WhichOneof("value") != "string_value" or len(value.string_value.encode()) > MAX_BYTES

    def number(self, key: str) -> int | float | str | None:
        """A number, or what stands in its place; None when it is absent."""
        value = self._found.get(key)
        if value is None:
            return None
        kind = value.WhichOneof("value")
        return getattr(value, kind) if kind in ("int_value", "double_value") else as_text(value)

    def others(self, named: Container[str]) -> dict[str, str]:
        """At most 32 of those that are not named, as text; lists, maps and bytes are left out."""
        found: dict[str, str] = {}
        for key, value in self._found.items():
            if key not in named and len(found) < _OTHERS and value.WhichOneof("value") in _SCALARS:
                found[printed(key[:_OTHER_CHARACTERS])] = printed(as_text(value)[:_OTHER_CHARACTERS])
        return found


_SCALARS: Final = frozenset({"string_value", "bool_value", "int_value", "double_value"})


def as_text(value: Any) -> str:
    """An AnyValue as text; '' for what is no scalar."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return str(value.string_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    return str(getattr(value, kind)) if kind in _SCALARS else ""


def cut(text: str) -> str:
    """What is kept of an identifier."""
    return printed(text if len(text.encode()) <= MAX_BYTES else text[:_KEPT_CHARACTERS])


def printed(text: str) -> str:
    """With U+FFFD for what breaks lines, steers terminals or turns the order of what is beside it; PostgreSQL takes no
    NUL. schema/02_inbox.sql does the same with Meterhouse's own events.
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def canonical(pairs: Iterable[Any]) -> bytes:
    """The same bytes for the same attributes, whatever their order. Grants are renewed and name no series."""
    encoded = sorted(pair.SerializeToString(deterministic=True) for pair in pairs if pair.key != GRANTS)
    return b"".join(len(one).to_bytes(4) + one for one in encoded)


def digest(*parts: bytes) -> str:
    """32 hex digits that stand for these parts, in this order."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(4) + part)
    return found.hexdigest()
