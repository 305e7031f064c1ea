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
    """The amount (major units) rounded once to whole minor units of the currency; raises KeyError for a strange one."""
    with decimal.localcontext(decimal.Context(prec=120)):
        return int(amount.scaleb(MINOR_DIGITS[currency]).quantize(Decimal(1), rounding=ROUNDING[rounding]))


def show(amount_minor: int, currency: str) -> str:
    """The amount for people: 1234 of USD is `12.34`, 1234 of JPY is `1234`."""
    return format(Decimal(amount_minor).scaleb(-MINOR_DIGITS[currency]), "f")


def smallest(currency: str) -> str:
    """The smallest amount of the currency: `0.01`, `1`, `0.001`."""
    return format(Decimal(1).scaleb(-MINOR_DIGITS[currency]), "f")
