"""Discounts on rated lines: what each takes off which line, in minor units.

The order is stated: discounts marked `before_minimum` come first, then the true-up of a minimum commitment, then the
other discounts (of the true-up, too), then credits. Several discounts apply one after the other, in the order in which
they begin, each to what the earlier ones left. None takes a line below zero. A discount is rounded once; what it takes
off is shared out over its lines by largest remainder.
"""

from collections.abc import Mapping, Sequence
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
    """A line that discounts may reduce, and what is left of it."""

    component: str
    description: str
    left: int


@dataclass(frozen=True)
class Taken:
    """What a discount takes off: in all (negative, exactly and rounded), and of each open line; and how."""

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
    discount: Discount, lines: Sequence[Open], currency: str, rounding: str, earlier: Decimal = Decimal(0)
) -> Taken | None:
    """What the discount takes off the lines; None where there is nothing to take.

    `earlier`: what of an amount per month other ratings of the month took off.
    """
    base = [line.left if line.left > 0 and _covers(discount, line.component) else 0 for line in lines]
    whole = sum(base)
    if whole <= 0:
        return None
    if discount.percent is not None:
        exact = of_minor(whole, currency) * discount.percent / 100
        total = min(whole, to_minor(exact, currency, rounding))
    else:
        total = min(whole, to_minor((discount.amount or Decimal(0)) - earlier, currency, rounding))
        exact = of_minor(total, currency)
    if total <= 0:
        return None
    shares = share_out(total, base, quantum(currency))
    steps = tuple(_step(discount, line, left, currency) for line, left in zip(lines, base, strict=True) if left)
    if discount.percent is None:
        steps = tuple(
            {"off": line.description, "amount": show(-share, currency)}
            for line, share in zip(lines, shares, strict=True)
            if share
        )
    return Taken(-exact, -total, tuple(shares), steps)


def shares_told(line: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What a discount's line (of `rated_lines`) took off each line, by its description, in minor units."""
    currency, steps = line["currency"], line["explanation"]["steps"]
    named = [step["off"] for step in steps]
    if all("percent" in step for step in steps):
        base = [to_minor(D(step["money"]), currency, "half_even") for step in steps]
        return list(zip(named, share_out(-line["amount_minor"], base, quantum(currency)), strict=True))
    return [(step["off"], to_minor(-D(step["amount"]), currency, "half_even")) for step in steps]


def share_out(total: int, weights: Sequence[int], unit: int) -> list[int]:
    """The total in whole units, in proportion to the weights, none above its weight: by largest remainder."""
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
