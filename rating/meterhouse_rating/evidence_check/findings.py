"""What a verification finds: what differs, what was recomputed, what is only carried; and strict numbers and JSON."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

MAX_PROBLEMS: Final = 100
"""So many are told; who finds that many needs no more."""

_NUMBER: Final = re.compile(r"-?[0-9]{1,60}(\.[0-9]{1,60})?")


class Refused(ValueError):
    """A pack that is not read any further; the text says why."""


class NotReadable(Exception):
    """There is no file to verify, which says nothing about any pack; the text says why."""


@dataclass
class Findings:
    """`problems` differ from what the pack claims; `recomputed` and `carried` are sentences with how often."""

    problems: list[str] = field(default_factory=list)
    recomputed: dict[str, int] = field(default_factory=dict)
    carried: dict[str, int] = field(default_factory=dict)

    def wrong(self, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS and text not in self.problems:
            self.problems.append(text)

    def equal(self, what: str, claimed: object, found: object) -> bool:
        """Whether both are the same; if not, that is a problem."""
        if claimed != found:
            self.wrong(f"{what}: it says {shown(claimed)}, recomputed it is {shown(found)}")
        return claimed == found

    def done(self, what: str, count: int = 1) -> None:
        self.recomputed[what] = self.recomputed.get(what, 0) + count

    def carry(self, what: str, count: int = 1) -> None:
        self.carried[what] = self.carried.get(what, 0) + count


def number(text: object) -> Fraction:
    """A decimal number from text, exactly. Raises Refused: for NaN, exponents and JSON's own numbers, too."""
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise Refused(f"{text!r:.80} is no decimal number")
    return Fraction(text)


def whole(value: object) -> int:
    """A whole number of JSON. Raises Refused."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f"{value!r:.80} is no whole number")
    return value


def shown(value: object) -> str:
    """A value for people: fractions as decimals where they are some."""
    if not isinstance(value, Fraction):
        return str(value)
    digits = 0
    while digits < 24 and (value * 10**digits).denominator != 1:
        digits += 1
    scaled = round(value * 10**digits)
    text = f"{abs(scaled):0{digits + 1}d}"
    sign = "-" if scaled < 0 else ""
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else f"{sign}{text}"


def sha256(value: object) -> str:
    """The name of something: the hash of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_json(data: bytes, name: str) -> Any:
    """A JSON document of objects, lists, texts, whole numbers, true, false and null. Raises Refused."""
    try:
        return json.loads(data.decode(), parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_once)
    except (ValueError, RecursionError) as broken:
        raise Refused(f"{name} is no JSON that is read here: {broken}") from None


def _no_float(text: str) -> Any:
    raise ValueError(f"{text} is no number that is let in")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is written twice")
    return found
