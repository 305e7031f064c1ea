"""Currencies' minor units and rounding, written a second time."""

import re
from fractions import Fraction
from typing import Final

from .findings import Refused

# ISO 4217 (list one, 2026-01) has two digits after the point but for these.
_NO_DIGITS: Final = re.findall("...", "BIFCLPDJFGNFISKJPYKMFKRWPYGRWFUGXVNDVUVXAFXOFXPF")
_THREE_DIGITS: Final = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
# What can be charged is coarser in a few (https://docs.stripe.com/currencies).
_CHARGED: Final = {**dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 2), "MGA": 0}


def digits(currency: str) -> int:
    return 0 if currency in _NO_DIGITS else 3 if currency in _THREE_DIGITS else 2


def unit(currency: str) -> int:
    """The smallest amount that can be charged, in minor units."""
    return int(10 ** (digits(currency) - _CHARGED.get(currency, digits(currency))))


def major(minor: int, currency: str) -> Fraction:
    return Fraction(minor, 10 ** digits(currency))


def show(minor: int, currency: str) -> str:
    """1234 of USD is 12.34."""
    places = digits(currency)
    text = f"{abs(minor):0{places + 1}d}"
    sign = "-" if minor < 0 else ""
    return f"{sign}{text[:-places]}.{text[-places:]}" if places else f"{sign}{text}"


def minor(amount: Fraction, currency: str, mode: str) -> int:
    """The amount in minor units, rounded once to what can be charged. Raises Refused for a strange mode."""
    scaled = amount * 10 ** digits(currency) / unit(currency)
    low = scaled.numerator // scaled.denominator
    rest, half = scaled - low, Fraction(1, 2)
    up = {
        "half_even": rest > half or (rest == half and low % 2 == 1),
        "half_up": rest > half or (rest == half and low >= 0),
        "up": rest > 0 and low >= 0,
        "down": rest > 0 and low < 0,
    }
    if mode not in up:
        raise Refused(f"the price book rounds {mode!r}, which is no way of rounding")
    return int(low + up[mode]) * unit(currency)


def share_out(total: int, weights: list[int], currency: str, percent: Fraction | None = None) -> list[int]:
    """The total in proportion to the weights, none above its weight, by largest remainder.

    Weights below zero give back: of these the total has taken its percentage back.
    """
    off, back = [max(0, it) for it in weights], [max(0, -it) for it in weights]
    taken_back = 0 if percent is None else minor(major(sum(back), currency) * percent / 100, currency, "half_even")
    taken = min(sum(off), max(0, total + taken_back))
    both = shares(taken, off, unit(currency)), shares(taken - total, back, unit(currency))
    return [one - other for one, other in zip(*both, strict=True)]


def shares(total: int, weights: list[int], step: int) -> list[int]:
    """The same of whole steps of anything, without a percentage."""
    if not total:
        return [0] * len(weights)
    whole = sum(weights)
    found = [total * weight // whole // step * step for weight in weights]
    rest = total - sum(found)
    order = sorted(range(len(weights)), key=lambda at: (found[at] * whole - total * weights[at], at))
    while rest > 0:
        before = rest
        for at in order:
            more = min(step, rest, weights[at] - found[at])
            found[at] += more
            rest -= more
        if rest == before:
            raise Refused("a discount is larger than what it is off")
    return found
