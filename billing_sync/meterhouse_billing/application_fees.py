"""What a platform keeps of an invoice that a connected account issues: a part of its total, or a fixed amount. Pure.

https://docs.stripe.com/connect/direct-charges#collect-fees
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Final

from meterhouse_rating.money import chargeable, quantum, show, to_minor
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.numbers import D, plain

HUNDRED: Final = Decimal(100)


@dataclass(frozen=True)
class Fee:
    """`percent` of the total, or `fixed` minor units by upper-case currency (of other currencies nothing)."""

    percent: Decimal = Decimal(0)
    fixed: Mapping[str, int] = field(default_factory=dict)

    def of(self, total_minor: int, currency: str) -> int:
        """The fee of an invoice of so much, half up once to what can be charged; never more than the invoice."""
        if total_minor <= 0:
            return 0
        part = _rounded(total_minor * self.percent / HUNDRED, currency)
        return min(total_minor, part + self.fixed.get(currency, 0))

    def canonical(self) -> str:
        """As it is typed and stored."""
        if self.percent:
            return f"{plain(self.percent)}%"
        return ",".join(f"{name}={show(amount, name)}" for name, amount in sorted(self.fixed.items())) or "none"

    def __str__(self) -> str:
        return self.canonical()


NO_FEE: Final = Fee()


def given_back(taken_minor: int, back_minor: int, total_minor: int, currency: str) -> int:
    """How much of a fee goes back once so much of the total did: in proportion, half up once, never more than it."""
    if total_minor <= 0:
        return 0
    part = _rounded(Decimal(taken_minor) * back_minor / total_minor, currency)
    return min(taken_minor, max(0, part))


def _rounded(minor: Decimal, currency: str) -> int:
    """Half up to what can be charged: a minor unit, ten of KWD."""
    step = quantum(currency)
    return int((minor / step).quantize(Decimal(1), ROUND_HALF_UP)) * step


def read_fee(text: Any) -> Fee:
    """`2.5%`, `USD=1.00,EUR=0.90` or `none`. Raises ValueError."""
    said = str(text).strip()
    if said == "none":
        return NO_FEE
    try:
        if said.endswith("%"):
            percent = D(said[:-1])
            if not 0 < percent <= HUNDRED:
                raise ValueError("is a percentage above 0 and up to 100")
            return Fee(percent)
        return Fee(fixed=dict(_fixed(part) for part in said.split(",")))
    except InvalidOperation:
        raise ValueError("is 2.5%, a list such as USD=1,EUR=0.90, or none") from None


def _fixed(part: str) -> tuple[str, int]:
    currency, _, amount = part.strip().partition("=")
    if currency not in MINOR_DIGITS or not amount:
        raise ValueError("is 2.5%, a list such as USD=1,EUR=0.90, or none")
    value = D(amount)
    if value <= 0 or not chargeable(value, currency):
        raise ValueError(f"{amount} {currency} is no amount that can be charged")
    return currency, to_minor(value, currency, "half_even")
