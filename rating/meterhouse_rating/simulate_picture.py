"""A simulation as a picture: who would pay more and who less, as bars. The same simulation gives the same bytes."""

from decimal import Decimal
from typing import Final
from xml.sax.saxutils import escape

from meterhouse_rating.layout import money
from meterhouse_rating.simulate import Change, Simulation

BARS: Final = 15
"""At most so many customers at each end, per currency."""

_WIDTH, _ROW, _NAME, _AMOUNT, _TOP = 900, 24, 210, 120, 74
_MORE, _LESS, _INK, _GREY = "#1a7f5a", "#b3412e", "#1f2328", "#6e7781"


def as_svg(made: Simulation) -> str:
    """The picture; a currency below the other, each with a scale of its own."""
    parts, y = [], 0
    for currency, total in made.totals.items():
        mine = [it for it in made.ranked if it.currency == currency and it.minor]
        parts += _currency(made, total, mine, y)
        y += _TOP + _ROW * max(1, len(_shown(mine))) + 40
    if not parts:
        y = 60
        parts = [_text(20, 36, "No revenue on either side.", size=16)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" '
    font = 'font-family="system-ui, sans-serif" role="img">'
    title = f"<title>Revenue under price book {escape(made.book)}</title>"
    return "\n".join([head + font, title, f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>', *parts, "</svg>\n"])


def _currency(made: Simulation, total: Change, changes: list[Change], y: int) -> list[str]:
    currency = total.currency
    span = made.months[0] if len(made.months) == 1 else f"{made.months[0]} to {made.months[-1]}"
    more, less = sum(it.minor > 0 for it in changes), sum(it.minor < 0 for it in changes)
    amounts = f"{money(total.old_minor, currency)} → {money(total.new_minor, currency)} {currency}"
    parts = [
        _text(20, y + 30, f"Revenue {span}, price book {made.book}: {amounts}", size=16, weight="600"),
        _text(20, y + 52, f"change {_signed(total)} {currency}; {more} pay more, {less} pay less", size=13, fill=_GREY),
    ]
    shown = _shown(changes)
    if not shown:
        return [*parts, _text(20, y + _TOP + 16, "Nobody pays more or less.", size=13)]
    most = max(abs(it.minor) for it in shown)
    middle, room = _scale(more=any(it.minor > 0 for it in shown), less=any(it.minor < 0 for it in shown))
    for row, it in enumerate(shown):
        top = y + _TOP + row * _ROW
        # Rounded to hundredths of a pixel in Decimal, so that every machine writes the same.
        long = max((Decimal(abs(it.minor)) * room / most).quantize(Decimal("0.01")), Decimal("0.5"))
        up = it.minor > 0
        x = Decimal(middle) if up else middle - long
        name = it.customer_id if len(it.customer_id) <= 26 else f"{it.customer_id[:25]}…"
        parts += [
            _text(20, top + 15, name, size=13),
            f'<rect x="{x}" y="{top + 3}" width="{long}" height="{_ROW - 8}" fill="{_MORE if up else _LESS}"/>',
            _text(middle + long + 6 if up else x - 6, top + 15, _signed(it), size=12, anchor="start" if up else "end"),
        ]
    bottom = y + _TOP + len(shown) * _ROW
    axis = f'<line x1="{middle}" y1="{y + _TOP - 4}" x2="{middle}" y2="{bottom}" stroke="{_GREY}"/>'
    left_out = len(changes) - len(shown)
    note = [_text(20, bottom + 18, f"{left_out} with smaller changes are not shown", size=12, fill=_GREY)]
    return [*parts, axis, *(note if left_out else [])]


def _scale(*, more: bool, less: bool) -> tuple[int, int]:
    """Where nothing changes, and how long the longest bar is: to both sides of it, or to the one that there is."""
    if more and less:
        return (_NAME + _WIDTH) // 2, (_WIDTH - _NAME) // 2 - _AMOUNT
    return (_NAME if more else _WIDTH - 20), _WIDTH - _NAME - _AMOUNT - 20


def _shown(changes: list[Change]) -> list[Change]:
    """The largest at each end, who pays more first."""
    up, down = [it for it in changes if it.minor > 0], [it for it in changes if it.minor < 0]
    return [*up[:BARS], *down[-BARS:]]


def _signed(it: Change) -> str:
    return ("+" if it.minor > 0 else "") + money(it.minor, it.currency)


def _text(
    x: int | Decimal, y: int, text: str, *, size: int, fill: str = _INK, weight: str = "400", anchor: str = "start"
) -> str:
    how = f'font-size="{size}" fill="{fill}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {how}>{escape(text)}</text>'
