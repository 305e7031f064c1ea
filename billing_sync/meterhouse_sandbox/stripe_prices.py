"""What a price comes to for a quantity: Stripe's formulas, written out from its documentation.

https://docs.stripe.com/subscriptions/pricing-models/tiered-pricing and
https://docs.stripe.com/billing/subscriptions/decimal-amounts: each line is rounded by itself to the smallest unit, a
half upwards. A tier is a line of its own, and so is its flat amount. The first tier's flat amount is due without usage.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

Price = dict[str, Any]


def lines(price: Price, quantity: Decimal) -> list[tuple[str, Decimal, int]]:
    """Text, quantity and amount (smallest unit) of each line. A negative quantity bills nothing."""
    quantity = max(quantity, Decimal(0))
    if price["billing_scheme"] == "per_unit":
        return [("usage", quantity, _rounded(quantity * Decimal(price["unit_amount_decimal"])))]
    if price["tiers_mode"] == "volume":
        for tier in price["tiers"]:
            if tier["up_to"] is None or quantity <= tier["up_to"]:
                return _tier("all units", tier, quantity)
    found, below = [], Decimal(0)
    for number, tier in enumerate(price["tiers"], 1):
        inside = quantity - below if tier["up_to"] is None else min(quantity, Decimal(tier["up_to"])) - below
        if inside > 0 or number == 1:
            found += _tier(f"tier {number}", tier, max(inside, Decimal(0)))
        below = quantity if tier["up_to"] is None else Decimal(tier["up_to"])
    return found


def _tier(text: str, tier: Price, quantity: Decimal) -> list[tuple[str, Decimal, int]]:
    found = []
    if tier["unit_amount_decimal"] is not None:
        found.append((text, quantity, _rounded(quantity * Decimal(tier["unit_amount_decimal"]))))
    if tier["flat_amount"]:
        found.append((f"{text}, flat", Decimal(1), tier["flat_amount"]))
    return found


def _rounded(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))
