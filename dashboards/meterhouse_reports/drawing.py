"""Draws a document as a PDF on A4, in its language: the same document, brand and fonts give the same bytes.

The pages are laid out first and then drawn, so that each can say of how many it is one. Whatever is written is wrapped
to its column before; nothing is drawn outside of the margins.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from reportlab.lib.colors import HexColor
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from meterhouse_reports.documents import Document, shown
from meterhouse_reports.typeface import Typeface
from meterhouse_store.brand import Brand

WIDTH: Final = 595.28
HEIGHT: Final = 841.89
MARGIN: Final = 48.0
RIGHT: Final = WIDTH - MARGIN
_BOTTOM: Final = 64.0
_FOOT: Final = 36.0
_INK, _SOFT, _LINE = "#16202c", "#56626f", "#d9dee4"
_TOGETHER: Final = 160.0
"""What stands below a line, in points, moves to the next page with it; of more than that the first sentences."""
_KEPT_TOGETHER: Final = 8
"""Lines of a row that move to the next page as one; of a longer row the lines part."""

_LOGO: Final = (170.0, 48.0)

Operation = Callable[[Canvas], None]


@dataclass(frozen=True)
class Column:
    """Where a column is, in points from the left; `right`: its text is flush right."""

    start: float
    end: float
    right: bool = False

    @property
    def room(self) -> float:
        return self.end - self.start


_ITEMS: Final = (Column(MARGIN, 258), Column(266, 352, True), Column(360, 446, True), Column(454, RIGHT, True))
_DETAIL: Final = Column(MARGIN + 10, 446)
_FREE: Final = (Column(MARGIN, 258), Column(266, 380, True), Column(400, RIGHT))
_SUMS: Final = (Column(266, 446), Column(454, RIGHT, True))


def draw(document: Document, brand: Brand) -> bytes:
    """The PDF. Raises ValueError for a logo or font that cannot be used (FontRefused), OSError for a missing one."""
    layout = _Layout(document, brand, Typeface(brand.font))
    layout.head()
    say = document.language.say
    amount = say("Amount (%(currency)s)", currency=document.currency)
    layout.table(_ITEMS, (say("Description"), say("Quantity"), say("Price"), amount), layout.items)
    layout.sums()
    if document.free:
        layout.table(_FREE, (say("Not charged"), say("Quantity"), say("Why")), layout.free)
    layout.notes()
    return layout.drawn()


def undrawable(document: Document, brand: Brand) -> str:
    """The characters of names and lines that no font has, in order; '' where all can be drawn."""
    texts = [document.customer_name, document.customer_id, brand.name, brand.address]
    texts += [text for item in document.items for text in (item.description, *item.details)]
    return "".join(sorted(Typeface(brand.font).lacks("".join(texts))))


@dataclass
class _Layout:
    document: Document
    brand: Brand
    face: Typeface
    pages: list[list[Operation]] = field(default_factory=lambda: [[]])
    y: float = HEIGHT - MARGIN
    """Where on the last page the next thing begins, in points from below."""

    repeated: Callable[[], None] | None = None
    """Draws what a table has at the top of each of its pages."""

    # ---- what stands where ------------------------------------------------------------------------------------------

    def head(self) -> None:
        """The operator, what it is, the customer, and the facts."""
        document, brand = self.document, self.brand
        self._rectangle(0, HEIGHT - 8, WIDTH, 8, brand.colour)
        top = self.y
        # The operator on the left, the title on the right.
        self._logo_or_name()
        for line in (*brand.address_lines, *([brand.support] if brand.support else [])):
            self._write(Column(MARGIN, 300), line, 8, _SOFT)
        left, self.y = self.y, top
        self._write(Column(310, RIGHT, True), document.title, 20, bold=True)
        if document.stamp:
            self._write(Column(310, RIGHT, True), document.stamp, 10, bold=True)
        self.y = min(left, self.y) - 20
        top = self.y
        self._write(Column(MARGIN, 300), document.language.say("Customer"), 8, _SOFT)
        self._write(Column(MARGIN, 250), document.customer_name, 11, bold=True)
        if document.customer_name != document.customer_id:
            self._write(Column(MARGIN, 250), document.customer_id, 8, _SOFT)
        left, self.y = self.y, top
        for label, value in document.facts:
            self._row([(Column(266, 372), label, 8.5, _SOFT, False), (Column(378, RIGHT), value, 8.5, _INK, False)], 3)
        self.y = min(left, self.y) - 14

    def items(self) -> None:
        """Each line of the rating, and below it where its amount comes from."""
        for item in self.document.items:
            amount = shown(item.amount_minor, self.document)
            texts = (item.description, item.quantity, item.price, amount)
            cells = [(column, text, 9.0, _INK, False) for column, text in zip(_ITEMS, texts, strict=True)]
            below = sum(len(self.face.wrap(sentence, _DETAIL.room, 7.5)) * 9.6 + 1 for sentence in item.details)
            self._row(cells, 3, more=below if below <= _TOGETHER else 60)
            for sentence in item.details:
                self._row([(_DETAIL, sentence, 7.5, _SOFT, False)], 1)
            self.y -= 3
            self._rule(MARGIN, RIGHT)
            self.y -= 5

    def sums(self) -> None:
        """What comes together by kind of line, and the total."""
        document = self.document
        self._room(16.0 * (len(document.sums) + 2))
        self.y -= 4
        if len(document.sums) > 1:
            for label, amount in document.sums:
                cells = zip(_SUMS, (label, shown(amount, document)), strict=True)
                self._row([(column, text, 9, _INK, False) for column, text in cells], 3)
        self._rule(_SUMS[0].start, RIGHT, self.brand.colour, 1.2)
        self.y -= 4
        label = document.language.say("Total in %(currency)s", currency=document.currency)
        cells = zip(_SUMS, (label, shown(document.total_minor, document)), strict=True)
        self._row([(column, text, 12, _INK, True) for column, text in cells], 3)
        self.y -= 16

    def free(self) -> None:
        """Usage that is on no line, and why."""
        for row in self.document.free:
            self._row([(column, text, 8.5, _INK, False) for column, text in zip(_FREE, row, strict=True)], 3)
        self.y -= 16

    def notes(self) -> None:
        """The sentences at the end."""
        for note in self.document.notes:
            self._row([(Column(MARGIN, RIGHT), note, 8, _SOFT, False)], 3)

    def table(self, columns: Sequence[Column], heads: Sequence[str], body: Callable[[], None]) -> None:
        """A table whose head stands again on each page that it comes to."""

        def head() -> None:
            self._rectangle(MARGIN - 4, self.y - 18, RIGHT - MARGIN + 8, 18, self.brand.colour)
            self.y -= 3.5
            cells = [
                (column, text, 8.5, self.brand.on_colour, True) for column, text in zip(columns, heads, strict=True)
            ]
            self._row(cells, 9)

        self._room(80)
        head()
        self.repeated = head
        body()
        self.repeated = None

    # ---- how it is put there ----------------------------------------------------------------------------------------

    def _logo_or_name(self) -> None:
        logo = self.brand.logo_image()
        if logo is None:
            self._write(Column(MARGIN, 300), self.brand.name, 16, bold=True)
            return
        image = ImageReader(io.BytesIO(logo[0]))
        wide, high = image.getSize()
        scale = min(_LOGO[0] / wide, _LOGO[1] / high)
        wide, high = wide * scale, high * scale
        below = self.y - high
        self._do(lambda it: it.drawImage(image, MARGIN, below, wide, high, mask="auto"))
        self.y = below - 8

    def _write(self, column: Column, text: str, size: float, colour: str = _INK, bold: bool = False) -> None:
        self._row([(column, text, size, colour, bold)], size * 0.2)

    def _row(self, cells: Sequence[tuple[Column, str, float, str, bool]], gap: float, more: float = 0) -> None:
        """Cells (column, text, size, colour, bold) side by side, wrapped; `gap` below, `more` points kept beneath."""
        cells = [
            (column, text, self._fitting(column, text, size, bold), colour, bold)
            for column, text, size, colour, bold in cells
        ]
        wrapped = [self.face.wrap(text, column.room, size, bold) for column, text, size, _, bold in cells]
        step = max(size for _, _, size, _, _ in cells) * 1.28
        count = max(map(len, wrapped))
        if count <= _KEPT_TOGETHER:
            self._room(step * count + more)
        for number in range(count):
            self._room(step)
            self.y -= step
            for (column, _, size, colour, bold), lines in zip(cells, wrapped, strict=True):
                if number < len(lines):
                    self._do(self._words(column, self.y + 0.3 * step, lines[number], size, colour, bold))
        self.y -= gap

    def _fitting(self, column: Column, text: str, size: float, bold: bool) -> float:
        """The size; in columns of numbers a smaller one where a number would have to be cut, down to a half."""
        if not column.right:
            return size
        widest = max((self.face.width(word, size, bold) for word in self.face.clean(text).split()), default=0)
        return size if widest <= column.room else max(size * 0.5, size * column.room / widest * 0.999)

    def _words(self, column: Column, y: float, text: str, size: float, colour: str, bold: bool = False) -> Operation:
        x = column.end - self.face.width(text, size, bold) if column.right else column.start
        runs = self.face.runs(text, bold)

        def write(canvas: Canvas) -> None:
            canvas.setFillColor(HexColor(colour))
            words = canvas.beginText(x, y)
            for name, part in runs:
                words.setFont(name, size)
                words.textOut(part)
            canvas.drawText(words)

        return write

    def _rectangle(self, x: float, y: float, wide: float, high: float, colour: str) -> None:
        def fill(canvas: Canvas) -> None:
            canvas.setFillColor(HexColor(colour))
            canvas.rect(x, y, wide, high, stroke=0, fill=1)

        self._do(fill)

    def _rule(self, start: float, end: float, colour: str = _LINE, thick: float = 0.5) -> None:
        y = self.y

        def rule(canvas: Canvas) -> None:
            canvas.setStrokeColor(HexColor(colour))
            canvas.setLineWidth(thick)
            canvas.line(start, y, end, y)

        self._do(rule)

    def _room(self, wanted: float) -> None:
        """A new page where less than that is left; a table's head stands on it again."""
        if self.y - wanted >= _BOTTOM:
            return
        self.pages.append([])
        self.y = HEIGHT - MARGIN
        of = f"{self.document.title} {self.document.reference}, {self.document.customer_name}"
        self._do(self._words(Column(MARGIN, RIGHT), self.y - 8, self._cut(of, RIGHT - MARGIN, 8), 8, _SOFT))
        self.y -= 24
        if self.repeated is not None:
            self.repeated()

    def _cut(self, text: str, room: float, size: float) -> str:
        """One line: what does not fit is left out, and seen to be."""
        shown = self.face.clean(text)
        if self.face.width(shown, size) <= room:
            return shown
        while self.face.width(f"{shown}…", size) > room:
            shown = shown[:-1]
        return f"{shown}…"

    def _do(self, operation: Operation) -> None:
        self.pages[-1].append(operation)

    def drawn(self) -> bytes:
        """All pages with their feet, as PDF."""
        document, file = self.document, io.BytesIO()
        canvas = Canvas(file, pagesize=(WIDTH, HEIGHT), invariant=1, pageCompression=1, lang=document.language.tag)
        canvas.setTitle(f"{document.title} {document.reference}")
        canvas.setAuthor(self.brand.name)
        canvas.setSubject(document.customer_id)
        canvas.setCreator("Meterhouse")
        stamp = f", {document.stamp}" if document.stamp else ""
        foot = self._cut(f"{self.brand.name}: {document.title} {document.reference}{stamp}", 400, 7.5)
        for number, operations in enumerate(self.pages, 1):
            count = document.language.say("Page %(number)s of %(pages)s", number=number, pages=len(self.pages))
            last = [
                self._words(Column(MARGIN, 450), _FOOT, foot, 7.5, _SOFT),
                self._words(Column(455, RIGHT, True), _FOOT, count, 7.5, _SOFT),
            ]
            for operation in (*operations, *last):
                operation(canvas)
            canvas.showPage()
        canvas.save()
        return file.getvalue()
