"""Products and prices of the sandbox's Stripe: https://docs.stripe.com/api/products and /prices."""

from decimal import Decimal
from typing import Any, Final

from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

MAX_DECIMALS: Final = 12
MAX_LOOKUP_KEY: Final = 200

Given = dict[str, Any]


def create_product(context: Context, given: Given) -> Given:
    name = given.get("id") or new_id("prod")
    if context.state.get("product", name) is not None:
        raise StripeRefusal(f"Product already exists: {name}", code="resource_already_exists", param="id")
    product = {
        "id": name,
        "object": "product",
        "active": True,
        "created": context.now(),
        "description": given.get("description"),
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "name": given["name"],
        "tax_code": given.get("tax_code"),
        "type": "service",
        "unit_label": given.get("unit_label"),
    }
    context.state.put("product", product)
    return product


def create_price(context: Context, given: Given) -> Given:
    """A recurring price by the month: licensed or metered, per unit or in tiers."""
    context.find("product", given["product"], "product")
    recurring = given.get("recurring")
    if recurring is None or recurring["interval"] != "month" or recurring.get("interval_count", 1) != 1:
        raise StripeRefusal("The sandbox has monthly recurring prices only; Stripe has others.", param="recurring")
    metered = recurring.get("usage_type", "licensed") == "metered"
    if metered and "meter" not in recurring:
        raise StripeRefusal("A metered price needs a meter.", param="recurring[meter]")
    if metered:
        meter = context.find("billing.meter", recurring["meter"], "recurring[meter]")
        if meter["status"] != "active":
            raise StripeRefusal("The meter is inactive.", param="recurring[meter]")
    elif "meter" in recurring:
        raise StripeRefusal("A meter goes with usage_type=metered only.", param="recurring[meter]")
    key = given.get("lookup_key")
    if key is not None:
        if len(key) > MAX_LOOKUP_KEY:
            raise StripeRefusal(f"A lookup key has at most {MAX_LOOKUP_KEY} characters.", param="lookup_key")
        taken = context.state.newest_first("price", lambda one: one["lookup_key"] == key)
        if taken:
            message = f"A price (`{taken[0]['id']}`) already uses that lookup key."
            raise StripeRefusal(message, param="lookup_key")
    price = {
        "id": new_id("price"),
        "object": "price",
        "active": True,
        "billing_scheme": given.get("billing_scheme", "per_unit"),
        "created": context.now(),
        "currency": given["currency"].lower(),
        "livemode": False,
        "lookup_key": key,
        "metadata": given.get("metadata") or {},
        "nickname": given.get("nickname"),
        "product": given["product"],
        "recurring": {
            "interval": "month",
            "interval_count": 1,
            "meter": recurring.get("meter"),
            "usage_type": "metered" if metered else "licensed",
        },
        "tax_behavior": given.get("tax_behavior", "unspecified"),
        "tiers_mode": None,
        "type": "recurring",
        "unit_amount": None,
        "unit_amount_decimal": None,
    }
    price |= _tiered(given) if price["billing_scheme"] == "tiered" else _per_unit(given)
    context.state.put("price", price)
    return show_price(price, given)


def show_price(price: Given, given: Given, prefix: str = "") -> Given:
    """The price as it is answered: tiers only where they are asked for."""
    wanted = f"{prefix}tiers" in given.get("expand", ())
    return {name: value for name, value in price.items() if name != "tiers" or wanted}


def list_prices(context: Context, given: Given) -> list[Given]:
    keys = given.get("lookup_keys")
    found = context.state.newest_first(
        "price",
        lambda one: (
            (keys is None or one["lookup_key"] in keys)
            and all(given.get(name) in (None, one[name]) for name in ("product", "active"))
        ),
    )
    return [show_price(price, given, "data.") for price in found]


def _per_unit(given: Given) -> Given:
    if ("unit_amount" in given) == ("unit_amount_decimal" in given):
        raise StripeRefusal("Give one of unit_amount and unit_amount_decimal.", param="unit_amount")
    if "tiers" in given or "tiers_mode" in given:
        raise StripeRefusal("tiers go with billing_scheme=tiered.", param="tiers")
    amount = _decimal(given, "unit_amount", "unit_amount")
    return {"unit_amount": _whole(amount), "unit_amount_decimal": format(amount, "f")}


def _tiered(given: Given) -> Given:
    if given.get("tiers_mode") not in ("graduated", "volume"):
        raise StripeRefusal("tiers_mode must be one of graduated, volume", param="tiers_mode")
    if "unit_amount" in given or "unit_amount_decimal" in given or not given.get("tiers"):
        raise StripeRefusal("billing_scheme=tiered takes tiers, and no unit_amount.", param="tiers")
    tiers, below = [], 0
    for number, tier in enumerate(given["tiers"]):
        up_to = None if tier["up_to"] == "inf" else tier["up_to"]
        is_last = number == len(given["tiers"]) - 1
        if (up_to is None) != is_last or (up_to is not None and up_to <= below):
            raise StripeRefusal("Tiers rise, and the last one, no other, has up_to=inf.", param=f"tiers[{number}]")
        below = up_to or below
        names = [f"{kind}{end}" for kind in ("unit_amount", "flat_amount") for end in ("", "_decimal")]
        if not any(name in tier for name in names):
            raise StripeRefusal("A tier needs a unit or a flat amount.", param=f"tiers[{number}]")
        unit = flat = None
        if "unit_amount" in tier or "unit_amount_decimal" in tier:
            unit = _decimal(tier, "unit_amount", f"tiers[{number}][unit_amount]")
        if "flat_amount" in tier or "flat_amount_decimal" in tier:
            flat = _decimal(tier, "flat_amount", f"tiers[{number}][flat_amount]")
            if _whole(flat) is None:
                raise StripeRefusal("A flat amount is a whole number of minor units.", param="flat_amount_decimal")
        tiers.append(
            {
                "flat_amount": None if flat is None else _whole(flat),
                "flat_amount_decimal": None if flat is None else format(flat, "f"),
                "unit_amount": None if unit is None else _whole(unit),
                "unit_amount_decimal": None if unit is None else format(unit, "f"),
                "up_to": up_to,
            }
        )
    return {"tiers": tiers, "tiers_mode": given["tiers_mode"]}


def _decimal(given: Given, name: str, param: str) -> Decimal:
    if name in given and f"{name}_decimal" in given:
        raise StripeRefusal(f"Give one of {name} and {name}_decimal.", param=param)
    value = Decimal(given[name] if name in given else given[f"{name}_decimal"])
    exponent = value.as_tuple().exponent
    if not value.is_finite() or value < 0 or not isinstance(exponent, int) or -exponent > MAX_DECIMALS:
        raise StripeRefusal(f"Invalid decimal: {value} (at most {MAX_DECIMALS} decimal places)", param=param)
    return value


def _whole(value: Decimal) -> int | None:
    return int(value) if value == value.to_integral_value() else None
