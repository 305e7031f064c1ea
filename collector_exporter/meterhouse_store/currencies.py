"""Currencies and their minor units."""

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
"""Digits after the point, by currency: 2 for USD, whose minor unit is the cent."""


def minor_units(currency: str) -> str:
    """As ClickHouse works it out: how many minor units one of the currency has, for an expression that names it."""
    of = {digits: ", ".join(f"'{name}'" for name, it in MINOR_DIGITS.items() if it == digits) for digits in (0, 3)}
    return f"multiIf({currency} IN ({of[0]}), 1, {currency} IN ({of[3]}), 1000, 100)"
