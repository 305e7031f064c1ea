"""Automatic tax of the sandbox's Stripe, with one rate per country: enough to see where tax goes, no tax advice.

Rules from https://docs.stripe.com/tax/invoicing and the SDK's own documentation of `automatic_tax`: an invoice with it
takes no item below zero and none whose price does not say whether tax is in it; without the customer's country nothing
is computed and the invoice cannot be finalised. Tax is computed and rounded per line.
"""

from typing import Any, Final

from meterhouse_sandbox.stripe_contract import StripeRefusal

PERCENT: Final = {"DE": 19, "FR": 20, "GB": 20, "JP": 10}
"""Elsewhere nothing is collected."""

Given = dict[str, Any]


def priced(given: Given, invoice: Given) -> tuple[int, Given | None]:
    """The amount of a line, and how it is priced where that is by `price_data`. Raises StripeRefusal."""
    price = given.get("price_data")
    if ("amount" in given) == (price is not None):
        raise StripeRefusal("Give one of amount and price_data.", code="parameter_missing", param="amount")
    behaviour = "unspecified" if price is None else price.get("tax_behavior", "unspecified")
    amount = given["amount"] if price is None else price["unit_amount"] * given.get("quantity", 1)
    if price is not None and (price["currency"].lower() != invoice["currency"] or price["unit_amount"] < 0):
        raise StripeRefusal("The price is in another currency, or below zero.", param="price_data")
    if invoice["automatic_tax"]["enabled"]:
        if amount < 0:
            raise StripeRefusal("An invoice with automatic tax takes no negative amounts.", param="amount")
        if behaviour == "unspecified":
            raise StripeRefusal("With automatic tax a price needs a tax behavior.", param="price_data[tax_behavior]")
    if price is None:
        return amount, None
    details = {"product": price["product"], "price": None}
    return amount, {"price_details": details, "tax_behavior": behaviour, "type": "price_details"}


def compute(invoice: Given, lines: list[Given], customer: Given) -> None:
    """Put the tax on lines and invoice; without a country there is none, and the status says so."""
    country = (customer.get("address") or {}).get("country")
    invoice["automatic_tax"]["status"] = "requires_location_inputs" if country is None else "complete"
    sums = {"exclusive": 0, "inclusive": 0}
    taxable = dict(sums)
    for line in lines:
        line["taxes"] = []
        if country is None or not line["pricing"]:
            continue
        behaviour, percent = line["pricing"]["tax_behavior"], PERCENT.get(country, 0)
        amount = _rounded(line["amount"] * percent, 100 + (percent if behaviour == "inclusive" else 0))
        base = line["amount"] - (amount if behaviour == "inclusive" else 0)
        line["taxes"] = [_tax(behaviour, amount, base, percent)]
        sums[behaviour] += amount
        taxable[behaviour] += base
    invoice["total_taxes"] = [
        _tax(behaviour, sums[behaviour], taxable[behaviour], PERCENT.get(country or "", 0))
        for behaviour in sums
        if taxable[behaviour]
    ]
    invoice["total"] = invoice["subtotal"] + sums["exclusive"]
    invoice["total_excluding_tax"] = invoice["subtotal"] - sums["inclusive"]


def require(invoice: Given) -> None:
    """Refuse to finalise an invoice whose tax is not known."""
    if invoice["automatic_tax"]["status"] != "complete":
        raise StripeRefusal(
            "The customer's location isn't recognized. Set a valid customer address in order to automatically "
            "calculate tax.",
            code="customer_tax_location_invalid",
        )


def _tax(behaviour: str, amount: int, taxable: int, percent: int) -> Given:
    return {
        "amount": amount,
        "tax_behavior": behaviour,
        "tax_rate_details": None,
        "taxability_reason": "standard_rated" if percent else "not_collecting",
        "taxable_amount": taxable,
        "type": "tax_rate_details",
    }


def _rounded(numerator: int, denominator: int) -> int:
    """Half up; amounts are not negative here."""
    return (2 * numerator + denominator) // (2 * denominator)
