"""Money: currencies, their minor units, and the one place where an amount is rounded."""

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, ROUND_UP, Decimal
from fractions import Fraction
from typing import Final

from meterhouse_store.currencies import MINOR_DIGITS

# What can be charged is coarser than ISO 4217 in a few currencies: Stripe takes three-decimal amounts only in tens of
# the minor unit, and the ariary only whole (https://docs.stripe.com/currencies, three- and zero-decimal). Rounding to
# anything finer would close a period whose invoice nobody can pay.
_CHARGED_DIGITS: Final[dict[str, int]] = {
    **MINOR_DIGITS,
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 2),
    "MGA": 0,
}

ROUNDING: Final[dict[str, str]] = {
    "half_even": ROUND_HALF_EVEN,
    "half_up": ROUND_HALF_UP,
    "up": ROUND_UP,
    "down": ROUND_DOWN,
}
"""The rounding modes a price book may choose; half_even is the default. `up` and `down`: away from zero, towards it."""


LARGEST_MINOR: Final = 10**15
"""The largest amount that is taken from people, in minor units: the sum of thousands is still a 64-bit integer."""

_ONE: Final = Decimal(1)
_QUOTIENT: Final = Decimal("1e-12")
_WIDE: Final = decimal.Context(prec=120, rounding=ROUND_HALF_EVEN)


@contextmanager
def exact() -> Iterator[None]:
    """Decimal arithmetic that refuses to lose a digit: an inexact result raises instead of being rounded.

    A quantity has at most 38 digits and a price at most 24, so products and their sums stay far below 120 digits.
    """
    context = decimal.Context(prec=120, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.DivisionByZero])
    with decimal.localcontext(context):
        yield


def to_minor(amount: Decimal, currency: str, rounding: str) -> int:
    """The amount (major units) in minor units, rounded once to what can be charged; KeyError for a strange currency."""
    charged = _CHARGED_DIGITS[currency]
    units = int(amount.scaleb(charged, _WIDE).quantize(_ONE, rounding=ROUNDING[rounding], context=_WIDE))
    return units * quantum(currency)


def quantum(currency: str) -> int:
    """The smallest amount that can be charged, in minor units: 1, and 10 for KWD."""
    return int(10 ** (MINOR_DIGITS[currency] - _CHARGED_DIGITS[currency]))


def of_minor(amount_minor: int, currency: str) -> Decimal:
    """The amount in major units: 1234 of USD is 12.34."""
    return Decimal(amount_minor).scaleb(-MINOR_DIGITS[currency])


def chargeable(amount: Decimal, currency: str) -> bool:
    """True when the amount (major units) needs no rounding and is not beyond LARGEST_MINOR.

    So it is, too, for a currency that is not known.
    """
    digits = _CHARGED_DIGITS.get(currency)
    if digits is None:
        return True
    return abs(amount) <= of_minor(LARGEST_MINOR, currency) and amount == round(amount, digits)


def show(amount_minor: int, currency: str) -> str:
    """The amount for people: 1234 of USD is `12.34`, 1234 of JPY is `1234`."""
    return format(of_minor(amount_minor, currency), "f")


def smallest(currency: str) -> str:
    """The smallest amount of the currency that can be charged: `0.01`, `1`; for KWD `0.01`, although it has fils."""
    return format(Decimal(1).scaleb(-_CHARGED_DIGITS[currency]), "f")


def largest(currency: str) -> str:
    """The largest amount of the currency that can be charged: `10,000,000,000,000`."""
    return f"{of_minor(LARGEST_MINOR, currency):,.0f}"


def decimal_of(value: Fraction) -> Decimal:
    """The fraction as a Decimal of at most twelve digits after the point."""
    return _WIDE.divide(Decimal(value.numerator), Decimal(value.denominator)).quantize(_QUOTIENT, context=_WIDE)
