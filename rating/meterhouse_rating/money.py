"""Money: currencies, their minor units, and the one place where an amount is rounded."""

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import Final

# ISO 4217 (list one, 2026-01): the digits after the point of each active currency that is not a fund or a metal.
_NO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_TWO_DIGITS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE
CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR
KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB
PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY
TTD TWD TZS UAH USD UYU UZS VES WST XCD YER ZAR ZMW
"""
MINOR_DIGITS: Final[dict[str, int]] = {
    **dict.fromkeys(_NO_DIGITS.split(), 0),
    **dict.fromkeys(_TWO_DIGITS.split(), 2),
    **dict.fromkeys(_THREE_DIGITS.split(), 3),
}

# What can be charged is coarser than ISO 4217 in a few currencies: Stripe takes three-decimal amounts only in tens of
# the minor unit, and the ariary only whole (https://docs.stripe.com/currencies, three- and zero-decimal). Rounding to
# anything finer would close a period whose invoice nobody can pay.
_CHARGED_DIGITS: Final[dict[str, int]] = {
    **MINOR_DIGITS,
    **dict.fromkeys(("BHD", "JOD", "KWD", "OMR", "TND"), 2),
    "MGA": 0,
}

ROUNDING: Final[dict[str, str]] = {"half_even": ROUND_HALF_EVEN, "half_up": ROUND_HALF_UP}
"""The rounding modes a price book may choose; half_even is the default."""


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
    with decimal.localcontext(decimal.Context(prec=120)):
        units = int(amount.scaleb(charged).quantize(Decimal(1), rounding=ROUNDING[rounding]))
    return int(units * 10 ** (MINOR_DIGITS[currency] - charged))


def chargeable(amount: Decimal, currency: str) -> bool:
    """True when the amount (major units) needs no rounding; so it is, too, for a currency that is not known."""
    digits = _CHARGED_DIGITS.get(currency)
    return digits is None or amount == round(amount, digits)


def show(amount_minor: int, currency: str) -> str:
    """The amount for people: 1234 of USD is `12.34`, 1234 of JPY is `1234`."""
    return format(Decimal(amount_minor).scaleb(-MINOR_DIGITS[currency]), "f")


def smallest(currency: str) -> str:
    """The smallest amount of the currency that can be charged: `0.01`, `1`; for KWD `0.01`, although it has fils."""
    return format(Decimal(1).scaleb(-_CHARGED_DIGITS[currency]), "f")
