"""Discounts on rated lines: what each takes off which line, in minor units.

The order is stated: discounts marked `before_minimum` come first, then the true-up of a minimum commitment, then the
other discounts (of the true-up, too), then credits. Several discounts apply one after the other, in the order in which
they begin, each to what the earlier ones left. None takes a line below zero. A percentage is of what a month comes to:
of a line that gives back what an earlier part of the month had too much (a cheaper tier of volume) it takes its share
of that back. An amount is of what the lines come to together in the month: where a later part of it gives back, so does
the discount, of what it took off too much. A discount is rounded once; what it takes off is shared out over its lines
by largest remainder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.agreements import Discount
from meterhouse_rating.money import of_minor, quantum, show, to_minor
from meterhouse_rating.periods import Period, month_of
from meterhouse_store.numbers import D, plain

BEFORE_MINIMUM: Final = "before the minimum commitment"
AFTER_MINIMUM: Final = "after the minimum commitment"
"""When a discount is taken off, as its line says it."""


@dataclass(frozen=True)
class Open:
    """A line that discounts may reduce, and what is left of it; less than nothing of what it gives back."""

    component: str
    description: str
    left: int


@dataclass(frozen=True)
class Taken:
    """What a discount takes off: in all (negative, exactly and rounded), and of each open line; and how.

    Where it takes more back than off, the signs are the other way round.
    """

    exact: Decimal
    total: int
    of_lines: tuple[int, ...]
    steps: tuple[dict[str, str], ...]


def applies(discount: Discount, period: Period, zone: str) -> bool:
    """Whether the discount holds for the period: from the month in which it begins, for so many calendar months."""
    first = month_of(discount.valid_from, zone)
    if period.end <= first.start:
        return False
    if discount.until is not None and discount.until <= max(period.start, discount.valid_from):
        return False  # one that ends where it begins was taken back
    if discount.months is None:
        return True
    months = first
    for _ in range(discount.months - 1):
        months = month_of(months.end, zone)
    return period.start < months.end


def take(
    discount: Discount,
    lines: Sequence[Open],
    currency: str,
    rounding: str,
    earlier: Decimal = Decimal(0),
    earlier_left: Decimal = Decimal(0),
) -> Taken | None:
    """What the discount takes off the lines; None where there is nothing to take.

    `earlier`: what of an amount per month other ratings of the month took off, and `earlier_left` what that left there.
    """
    base = [line.left if _covers(discount, line.component) else 0 for line in lines]
    if discount.percent is not None:
        return _percentage(discount, lines, base, currency, rounding)
    room = to_minor((discount.amount or Decimal(0)) - earlier, currency, rounding)
    whole = sum(base)
    taken, left = (to_minor(it, currency, "half_even") for it in (earlier, earlier_left))
    total = within(min(room, max(-taken, left + whole)), whole)
    if not total:
        return None
    unit = quantum(currency)
    if total > 0:
        shares = share_out(total, [max(0, left) for left in base], unit)
    else:
        shares = [-it for it in share_out(-total, [max(0, -left) for left in base], unit)]
    steps = tuple(
        {"off": line.description, "amount": show(-share, currency)}
        for line, share in zip(lines, shares, strict=True)
        if share
    )
    return Taken(-of_minor(total, currency), -total, tuple(shares), steps)


def within(amount: int, whole: int) -> int:
    """What of an amount lines can take that come to `whole`: no more than that, and nothing of the other sign."""
    return max(min(amount, max(0, whole)), min(0, whole))


def in_order(found: Iterable[Discount]) -> list[Discount]:
    """The discounts as they are applied, those before the minimum first; of caps each goes on from those before it."""
    return sorted(found, key=lambda it: (not it.before_minimum, it.valid_from, "" if it.budget else it.agreement_id))


def _percentage(
    discount: Discount, lines: Sequence[Open], base: Sequence[int], currency: str, rounding: str
) -> Taken | None:
    percent, whole = discount.percent or Decimal(0), sum(base)
    exact = of_minor(whole, currency) * percent / 100
    total = min(max(whole, 0), to_minor(exact, currency, rounding))
    shares = tuple(_percent_of_each(total, base, percent, currency))
    if not any(shares):
        return None
    steps = tuple(_step(discount, line, left, currency) for line, left in zip(lines, base, strict=True) if left)
    return Taken(-exact, -total, shares, steps)


def _percent_of_each(total: int, base: Sequence[int], percent: Decimal, currency: str) -> list[int]:
    """What a percentage that comes to the total is of each line; less than nothing of what gives back."""
    off, back = [max(0, it) for it in base], [max(0, -it) for it in base]
    taken_back = to_minor(of_minor(sum(back), currency) * percent / 100, currency, "half_even")
    taken_off = min(sum(off), max(0, total + taken_back))
    unit = quantum(currency)
    shares = zip(share_out(taken_off, off, unit), share_out(taken_off - total, back, unit), strict=True)
    return [one - other for one, other in shares]


def shares_told(line: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What a discount's line (of `rated_lines`) took off each line, by its description, in minor units."""
    currency, steps = line["currency"], line["explanation"]["steps"]
    named = [step["off"] for step in steps]
    if all("percent" in step for step in steps):
        base = [to_minor(D(step["money"]), currency, "half_even") for step in steps]
        percent = D(steps[0]["percent"]) if steps else Decimal(0)
        return list(zip(named, _percent_of_each(-line["amount_minor"], base, percent, currency), strict=True))
    return [(step["off"], to_minor(-D(step["amount"]), currency, "half_even")) for step in steps]


def share_out(total: int, weights: Sequence[int], unit: int) -> list[int]:
    """The total in whole units, in proportion to the weights, none above its weight: by largest remainder."""
    if not total:
        return [0] * len(weights)
    whole = sum(weights)
    shares = [total * weight // whole // unit * unit for weight in weights]
    rest = total - sum(shares)
    order = sorted(range(len(weights)), key=lambda at: (-(total * weights[at] - shares[at] * whole), at))
    while rest > 0:
        before = rest
        for at in order:
            step = min(unit, rest, weights[at] - shares[at])
            shares[at] += step
            rest -= step
            if rest <= 0:
                break
        if rest == before:
            raise AssertionError("the weights are at least the total")
    return shares


def _covers(discount: Discount, component: str) -> bool:
    return not discount.components or component in discount.components


def _step(discount: Discount, line: Open, left: int, currency: str) -> dict[str, str]:
    percent = discount.percent or Decimal(0)
    amount = of_minor(left, currency) * percent / 100
    return {"off": line.description, "percent": plain(percent), "money": show(left, currency), "amount": plain(-amount)}
