"""A chart of stacked bars as SVG: drawn here, without a script, with the figures in a table beside it for everybody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from math import ceil, log10
from typing import Final

from markupsafe import Markup

from meterhouse_rating.layout import unit_in
from meterhouse_store.language import Language

WIDTH, HEIGHT = 720, 220
_LEFT, _BOTTOM, _TOP = 72, 28, 16
SERIES: Final = 7
"""So many series have a colour of their own; what is beyond them is `other`."""


@dataclass(frozen=True)
class Bars:
    """`columns` are the days of the bars; each series has a name and one value, 0 or more, per column."""

    columns: Sequence[date]
    series: Sequence[tuple[str, Sequence[Decimal]]]

    @cached_property
    def totals(self) -> list[Decimal]:
        """The height of each bar."""
        return [sum((values[at] for _, values in self.series), Decimal(0)) for at in range(len(self.columns))]


def joined(bars: Bars, other: str = "other") -> Bars:
    """The same with at most SERIES series: the largest, and the sum of all others."""
    ranked = sorted(bars.series, key=lambda it: (-sum(it[1], Decimal(0)), it[0]))
    if len(ranked) <= SERIES:
        return Bars(bars.columns, ranked)
    rest = [sum((values[at] for _, values in ranked[SERIES - 1 :]), Decimal(0)) for at in range(len(bars.columns))]
    return Bars(bars.columns, [*ranked[: SERIES - 1], (other, rest)])


def draw(bars: Bars, title: str, measure: str, language: Language) -> Markup:
    """The SVG element, of quantities in the unit `measure`. Colours come from the page's style, by class: s0, s1."""
    top = nice(max(bars.totals, default=Decimal(0)))
    high = HEIGHT - _TOP - _BOTTOM
    step = Decimal(WIDTH - _LEFT) / max(len(bars.columns), 1)
    width = step * Decimal("0.8")
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title),
    ]
    for share in (Decimal(0), Decimal("0.5"), Decimal(1)):
        y = _TOP + high * (1 - share)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" class="y">{}</text>'
            ).format(_LEFT, WIDTH, _at(y), _at(y), _LEFT - 8, _at(y + 4), short(top * share, language))
        )
    every = max(1, ceil(len(bars.columns) / 8))
    for at, day in enumerate(bars.columns):
        x, y = _LEFT + step * at + (step - width) / 2, Decimal(_TOP + high)
        for index, (name, values) in enumerate(bars.series):
            if not values[at]:
                continue
            height = high * values[at] / top
            y -= height
            used = f"{language.number(values[at])} {unit_in(language, measure, values[at])}"
            told = f"{language.calendar_day(day)}, {name}: {used}"
            parts.append(
                Markup('<rect class="s{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                    index, _at(x), _at(y), _at(width), _at(height), told
                )
            )
        if at % every == 0:
            parts.append(
                Markup('<text class="x" x="{}" y="{}">{}</text>').format(
                    _at(x + width / 2), HEIGHT - 6, language.short_day(day)
                )
            )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def nice(value: Decimal) -> Decimal:
    """The next of 1, 2, 5, 10, 20, ... that is not below the value; 1 for nothing."""
    if value <= 0:
        return Decimal(1)
    base = Decimal(10) ** int(Decimal(log10(value)).to_integral_value(rounding="ROUND_FLOOR"))
    return next(base * step for step in (1, 2, 5, 10, 20) if base * step >= value)


def short(value: Decimal, language: Language) -> str:
    """1,500,000 as 1.5 M: three digits at most, for an axis."""
    for size, letter in ((Decimal(10) ** 9, "G"), (Decimal(10) ** 6, "M"), (Decimal(10) ** 3, "k")):
        if value >= size:
            return f"{language.number((value / size).quantize(Decimal('0.1')).normalize())} {letter}"
    return language.number(value.normalize())


def _at(value: Decimal | float) -> str:
    return f"{value:.1f}"
