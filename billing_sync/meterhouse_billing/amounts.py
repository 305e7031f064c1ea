"""Amounts on their way to Stripe and back: its smallest unit is not always the ISO 4217 minor unit that ratings use.

https://docs.stripe.com/currencies#special-cases and #zero-decimal, #three-decimal.
"""

from typing import Final

_TIMES_HUNDRED: Final = frozenset({"ISK", "UGX"})
"""No decimals in ISO 4217, two in Stripe's API, and those have to be 00."""

_WHOLE_UNITS: Final = frozenset({"MGA"})
"""Two decimals in ISO 4217, none in Stripe's API."""

_ENDS_IN_ZERO: Final = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})
"""Three decimals, of which Stripe takes two."""


class NotPayable(ValueError):
    """An amount that Stripe cannot express in its currency."""


def to_stripe(amount_minor: int, currency: str) -> int:
    """The amount (ISO 4217 minor units, upper-case currency) as Stripe counts it. Raises NotPayable."""
    if currency in _TIMES_HUNDRED:
        return amount_minor * 100
    if currency in _WHOLE_UNITS:
        if amount_minor % 100:
            raise NotPayable(
                f"Stripe takes {currency} in whole units, {amount_minor} minor units are not: round to them"
            )
        return amount_minor // 100
    if currency in _ENDS_IN_ZERO and amount_minor % 10:
        raise NotPayable(f"Stripe takes {currency} in tens of minor units, {amount_minor} is not: round to them")
    return amount_minor


def from_stripe(amount: int, currency: str) -> int:
    """What Stripe answered, in ISO 4217 minor units. Raises NotPayable for a fraction of them."""
    if currency in _TIMES_HUNDRED:
        if amount % 100:
            raise NotPayable(f"Stripe shows {amount} of {currency}, which is a fraction of its smallest unit")
        return amount // 100
    return amount * 100 if currency in _WHOLE_UNITS else amount
