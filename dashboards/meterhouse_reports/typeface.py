"""The letters of documents: bundled fonts, the operator's own for what those lack, widths, and lines that fit.

A character that no font has is drawn as a box, so that it is seen to be missing; characters without a shape (controls,
direction marks) are left out.
"""

import hashlib
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Final

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFError, TTFont

from meterhouse_reports.right_to_left import visual

_FONTS: Final = Path(__file__).parent / "fonts"
BOX: Final = "\N{WHITE SQUARE}"


class FontRefused(ValueError):
    """The operator's font cannot be used; the text says why."""


class Typeface:
    """DejaVu Sans, regular and bold, and after it the operator's font; sizes and widths in points."""

    def __init__(self, own: Path | None = None) -> None:
        """Raises FontRefused for a file that is no TrueType font, OSError."""
        regular, bold = (_registered(_FONTS / f"DejaVuSans{weight}.ttf") for weight in ("", "-Bold"))
        more = [] if own is None else [_registered(own)]
        self._fonts = {False: [regular, *more], True: [bold, *more]}
        self._known: dict[tuple[str, bool], tuple[str, float] | None] = {}

    def clean(self, text: str) -> str:
        """The text as it is drawn: composed, in one line, and a box for each character that is in no font."""
        return "".join(BOX if self._of(it, False) is None else it for it in _shaped(text))

    def lacks(self, text: str) -> set[str]:
        """The characters of the text that will be boxes."""
        return {it for it in set(_shaped(text)) if self._of(it, False) is None}

    def runs(self, text: str, bold: bool) -> list[tuple[str, str]]:
        """(font's name, its part) from left to right; `text` is cleaned."""
        parts: list[tuple[str, str]] = []
        for it in visual(text):
            name, _ = self._of(it, bold) or self._box(bold)
            if parts and parts[-1][0] == name:
                parts[-1] = (name, parts[-1][1] + it)
            else:
                parts.append((name, it))
        return parts

    def width(self, text: str, size: float, bold: bool = False) -> float:
        """How wide a line is; `text` is cleaned."""
        return size * sum((self._of(it, bold) or self._box(bold))[1] for it in visual(text))

    def wrap(self, text: str, room: float, size: float, bold: bool = False) -> list[str]:
        """The cleaned text in lines of at most `room`; a word that is wider is cut. [''] for no text."""
        lines, filled = [""], 0.0
        space = self.width(" ", size, bold)
        for word in self.clean(text).split(" "):
            wide = self.width(word, size, bold)
            if lines[-1] and filled + space + wide <= room:
                lines[-1] += f" {word}"
                filled += space + wide
                continue
            if lines[-1]:
                lines.append("")
            *whole, rest = self._cut(word, room, size, bold) if wide > room else [word]
            lines[-1:] = [*whole, rest]
            filled = self.width(rest, size, bold)
        return lines

    def _cut(self, word: str, room: float, size: float, bold: bool) -> list[str]:
        parts, filled = [""], 0.0
        for it in word:
            wide = self.width(it, size, bold)
            if parts[-1] and filled + wide > room:
                parts.append("")
                filled = 0.0
            parts[-1] += it
            filled += wide
        return parts

    def _of(self, character: str, bold: bool) -> tuple[str, float] | None:
        """The font that has the character, and how wide that is at a size of 1; None where no font has it."""
        key = (character, bold)
        if key not in self._known:
            font = next((font for font in self._fonts[bold] if ord(character) in font.face.charToGlyph), None)
            self._known[key] = None if font is None else (str(font.fontName), font.stringWidth(character, 1))
        return self._known[key]

    def _box(self, bold: bool) -> tuple[str, float]:
        found = self._of(BOX, bold)
        assert found is not None, "DejaVu Sans has a box"
        return found


def _shaped(text: str) -> str:
    """The text in one line, composed (NFC), without characters that have no shape."""
    seen = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(it for it in seen if unicodedata.category(it) not in ("Cc", "Cf", "Cs"))


@lru_cache(maxsize=8)
def _registered(file: Path) -> TTFont:
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise FontRefused(f"METERHOUSE_BRAND_FONT: {file} cannot be read: {problem.strerror}") from None
    # Named by what is in it: a file that changes is another font.
    name = f"{file.stem[:40]}-{hashlib.sha256(content).hexdigest()[:8]}"
    try:
        font = TTFont(name, str(file))
    except (TTFError, ValueError, KeyError) as problem:
        raise FontRefused(f"{file} is no TrueType font that can be used: {problem}") from None
    pdfmetrics.registerFont(font)
    return font
