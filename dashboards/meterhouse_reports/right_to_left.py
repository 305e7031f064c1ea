"""Hebrew and Arabic in a line that goes from left to right: letters joined, and in the order in which they are seen.

Enough for names: one level of the Unicode bidirectional algorithm (UAX #9), with numbers and brackets, and Arabic's
joining forms (Unicode, chapter 9.2) as the presentation forms that fonts have. Texts without such letters stay as
they are.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Final

_FORMS: Final = ("isolated", "final", "initial", "medial")
_STRONG: Final = ("R", "AL")
_RUN: Final = (*_STRONG, "NSM", "EN", "AN")
"""What a run of these scripts ends with: letters, their marks, and numbers."""

_PAIRS: Final = dict(zip("()[]{}<>\u00ab\u00bb", ")(][}{><\u00bb\u00ab", strict=True))
_NUMBER: Final = re.compile(r"[0-9\u0660-\u0669\u06f0-\u06f9]+(?:[.,:/+-][0-9\u0660-\u0669\u06f0-\u06f9]+)*")


def visual(line: str) -> str:
    """The line's characters from left to right as they are seen."""
    kinds = [unicodedata.bidirectional(it) for it in line]
    if not any(kind in _STRONG for kind in kinds):
        return line
    seen, at = [], 0
    while at < len(line):
        if kinds[at] not in _STRONG:
            seen.append(line[at])
            at += 1
            continue
        # From a letter of these scripts on, until a letter of another; spaces at the end belong to what follows.
        until = next((n for n in range(at, len(line)) if kinds[n] == "L"), len(line))
        last = max(n for n in range(at, until) if kinds[n] in _RUN or line[n] in _PAIRS)
        seen.append(_reversed(_joined(line[at : last + 1])))
        at = last + 1
    return "".join(seen)


def _reversed(part: str) -> str:
    """The part from its end, with numbers and marks above letters as they were, and brackets turned around."""
    pieces = re.findall(rf"{_NUMBER.pattern}|.[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670]*", part)
    return "".join(_PAIRS.get(piece, piece) for piece in reversed(pieces))


def _joined(part: str) -> str:
    """Arabic letters in the forms in which they join their neighbours; lam and alef as one."""
    forms, lam_alef = _tables()
    letters: list[str] = []
    for it in part:
        if letters and letters[-1] + it in lam_alef:
            letters[-1] += it
        else:
            letters.append(it)
    found = []
    for at, it in enumerate(letters):
        own = forms.get(it, {})
        before = forms.get(letters[at - 1], {}) if at else {}
        after = forms.get(letters[at + 1], {}) if at + 1 < len(letters) else {}
        joins_before = "initial" in before and "final" in own
        joins_after = "initial" in own and "final" in after
        form = _FORMS[joins_before + 2 * joins_after]
        found.append(own.get(form, it))
    return "".join(found)


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, dict[str, str]], frozenset[str]]:
    """Letter (or lam with alef) -> form -> the character of that form; and which are lam with alef."""
    forms: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFC00), *range(0xFE80, 0xFEFD)):
        tag, _, bases = unicodedata.decomposition(chr(code)).partition("> ")
        letters = "".join(chr(int(base, 16)) for base in bases.split())
        if tag.strip("<") in _FORMS and letters:
            forms.setdefault(letters, {})[tag.strip("<")] = chr(code)
    return forms, frozenset(letters for letters in forms if len(letters) == 2 and letters[0] == "\u0644")
