"""Payments of the sandbox's Stripe that are not of invoices: Checkout, payment intents, refunds and disputes of them.

Rules from https://docs.stripe.com/api/{payment_intents,checkout/sessions,disputes}: a session's payment exists once the
customer has paid; a payment that is confirmed off-session and declined answers 402, and is there all the same.
"""

from typing import Any, Final

from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import LEAST_CHARGE, Context, kept_fee
from meterhouse_sandbox.stripe_state import new_id

Given = dict[str, Any]

LINK_LASTS_S: Final = 24 * 3600
DECLINES: Final = {
    "pm_card_chargeDeclined": ("card_declined", "Your card was declined."),
    "pm_card_authenticationRequired": ("authentication_required", "This payment requires authentication."),
}
"""Stripe's test cards that fail, with the code and words of the error."""
DISPUTED: Final = "needs_response"


# ---- Checkout


def create_session(context: Context, given: Given) -> Given:
    """A page that Stripe hosts: on which the customer leaves a card for later, or pays."""
    context.find("customer", given["customer"], "customer")
    mode = given["mode"]
    if mode not in ("setup", "payment"):
        raise StripeRefusal("The sandbox has Checkout in the modes setup and payment; Stripe has others.", param="mode")
    amount = currency = None
    if mode == "payment":
        amount, currency = _priced(given)
    elif "line_items" in given or "payment_intent_data" in given:
        raise StripeRefusal("line_items and payment_intent_data go with mode=payment.", param="line_items")
    elif "currency" not in given:
        raise StripeRefusal("currency is required in setup mode.", code="parameter_missing", param="currency")
    name = new_id("cs_test")
    session = {
        "id": name,
        "object": "checkout.session",
        "amount_subtotal": amount,
        "amount_total": amount,
        "created": context.now(),
        "currency": currency or given["currency"],
        "customer": given["customer"],
        "expires_at": context.now() + LINK_LASTS_S,
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "mode": mode,
        "payment_intent": None,
        "payment_status": "unpaid" if mode == "payment" else "no_payment_required",
        "status": "open",
        "success_url": given["success_url"],
        "url": f"{context.base_url}/_sandbox/checkout/{name}{context.account_query()}",
    }
    # What the payment will say is no part of the object that Stripe shows.
    context.state.put("checkout.session", session | {"_payment": given.get("payment_intent_data") or {}})
    return session


def _priced(given: Given) -> tuple[int, str]:
    items = given.get("line_items") or []
    if not items:
        raise StripeRefusal("line_items is required in payment mode.", code="parameter_missing", param="line_items")
    prices = [item.get("price_data") for item in items]
    if not all(price and "unit_amount" in price and "product_data" in price for price in prices):
        raise StripeRefusal("The sandbox takes price_data with product_data and unit_amount.", param="line_items")
    currencies = {price["currency"].lower() for price in prices}
    if len(currencies) != 1:
        raise StripeRefusal("All items have one currency.", param="line_items")
    currency = currencies.pop()
    amount = sum(item["price_data"]["unit_amount"] * item.get("quantity", 1) for item in items)
    _least(amount, currency)
    return amount, currency


def show_session(context: Context, name: str, _given: Given) -> Given:
    return _shown(_expired(context, context.find("checkout.session", name)))


def list_sessions(context: Context, given: Given) -> list[Given]:
    found = context.state.newest_first("checkout.session", lambda one: given.get("customer") in (None, one["customer"]))
    return [_shown(_expired(context, one)) for one in found]


def _expired(context: Context, session: Given) -> Given:
    if session["status"] == "open" and context.now() >= session["expires_at"]:
        session |= {"status": "expired", "url": None}
        context.state.put("checkout.session", session)
        context.emit("checkout.session.expired", _shown(session))
    return session


def _shown(session: Given) -> Given:
    return {name: value for name, value in session.items() if not name.startswith("_")}


def complete(context: Context, session: Given) -> Given:
    """What the customer does on the page: leaves the test card, or pays with it."""
    if session["mode"] == "setup":
        customer = context.find("customer", session["customer"])
        method = {"invoice_settings": {"default_payment_method": "pm_card_visa"}}
        context.state.put("customer", customer | method)
        session |= {"status": "complete"}
        context.state.put("checkout.session", session)
        return session
    if _expired(context, session)["status"] != "open":
        return session
    said = {"amount": session["amount_total"], "currency": session["currency"], "customer": session["customer"]}
    payment = _confirm(context, _payment(context, said | session["_payment"]), "pm_card_visa")
    session |= {"status": "complete", "payment_status": "paid", "payment_intent": payment["id"]}
    context.state.put("checkout.session", session)
    context.emit("checkout.session.completed", _shown(session))
    return session


# ---- payment intents


def create(context: Context, given: Given) -> Given:
    """A payment; with `confirm` it is made at once."""
    if "customer" in given:
        context.find("customer", given["customer"], "customer")
    _least(given["amount"], given["currency"].lower())
    if given.get("off_session") and not given.get("confirm"):
        raise StripeRefusal("off_session goes with confirm=true.", param="off_session")
    if given.get("confirm") and "payment_method" not in given:
        raise StripeRefusal("You cannot confirm a payment without a payment method.", param="payment_method")
    payment = _payment(context, given)
    return _confirm(context, payment, given["payment_method"]) if given.get("confirm") else payment


def _least(amount: int, currency: str) -> None:
    if amount < LEAST_CHARGE.get(currency, 1):
        raise StripeRefusal("Amount must convert to at least 50 cents.", code="amount_too_small", param="amount")


def _payment(context: Context, given: Given) -> Given:
    payment = {
        "id": new_id("pi"),
        "object": "payment_intent",
        "amount": given["amount"],
        "amount_received": 0,
        "application_fee_amount": given.get("application_fee_amount"),
        "created": context.now(),
        "currency": given["currency"].lower(),
        "customer": given.get("customer"),
        "description": given.get("description"),
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "payment_method": given.get("payment_method"),
        "status": "requires_payment_method",
    }
    context.state.put("payment_intent", payment)
    return payment


def _confirm(context: Context, payment: Given, method: str) -> Given:
    if method in DECLINES:
        code, message = DECLINES[method]
        error = {"type": "card_error", "code": code, "message": message}
        payment |= {"status": "requires_payment_method", "last_payment_error": error}
        context.state.put("payment_intent", payment)
        context.emit("payment_intent.payment_failed", payment)
        return payment
    charge = {
        "id": new_id("ch"),
        "object": "charge",
        "amount": payment["amount"],
        "amount_refunded": 0,
        "created": context.now(),
        "currency": payment["currency"],
        "customer": payment["customer"],
        "disputed": False,
        "livemode": False,
        "payment_intent": payment["id"],
        "status": "succeeded",
    }
    fee = kept_fee(context, charge, payment["currency"], payment["application_fee_amount"])
    charge["application_fee"] = fee
    context.state.put("charge", charge, owner=payment["id"])
    payment |= {
        "amount_received": payment["amount"],
        "last_payment_error": None,
        "latest_charge": charge["id"],
        "payment_method": method,
        "status": "succeeded",
    }
    context.state.put("payment_intent", payment)
    context.emit("charge.succeeded", charge)
    context.emit("payment_intent.succeeded", payment)
    return payment


def show(context: Context, name: str, given: Given) -> Given:
    payment = context.find("payment_intent", name)
    wanted = given.get("expand", [])
    if strange := [it for it in wanted if it != "latest_charge"]:
        raise StripeRefusal(f"The sandbox expands latest_charge, not {strange[0]}.", param="expand")
    if wanted and payment["latest_charge"]:
        return payment | {"latest_charge": context.find("charge", payment["latest_charge"])}
    return payment


# ---- money that goes back


def undisputed(context: Context, charge: Given) -> None:
    """Raises StripeRefusal where a bank has the money of a charge: it cannot go back once more."""
    held = [it for it in context.state.newest_first("dispute") if it["charge"] == charge["id"] and _holds(it)]
    if held:
        message = f"Charge {charge['id']} has been charged back; cannot issue a refund."
        raise StripeRefusal(message, code="charge_disputed")


def _holds(dispute: Given) -> bool:
    return dispute["status"] not in ("won", "prevented") and not dispute["status"].startswith("warning_")


def refund(context: Context, payment: Given, amount: int | None, metadata: dict[str, str]) -> Given:
    """Money back for a payment that is no invoice's."""
    charge = context.find("charge", payment["latest_charge"] or "", "payment_intent")
    undisputed(context, charge)
    wanted = charge["amount"] - charge["amount_refunded"] if amount is None else amount
    if not 0 < wanted <= charge["amount"] - charge["amount_refunded"]:
        raise StripeRefusal(f"{wanted} cannot be refunded of {charge['id']}.", param="amount")
    charge["amount_refunded"] += wanted
    context.state.put("charge", charge)
    made = {
        "id": new_id("re"),
        "object": "refund",
        "amount": wanted,
        "charge": charge["id"],
        "created": context.now(),
        "currency": payment["currency"],
        "metadata": metadata,
        "payment_intent": payment["id"],
        "reason": None,
        "status": "succeeded",
    }
    context.state.put("refund", made)
    context.emit("refund.created", made)
    context.emit("charge.refunded", charge)
    return made


def dispute(context: Context, intent: str) -> Given:
    """The customer's bank takes the money."""
    payment = context.find("payment_intent", intent)
    charge = context.find("charge", payment["latest_charge"] or "", "payment_intent")
    context.state.put("charge", charge | {"disputed": True})
    made = {
        "id": new_id("dp"),
        "object": "dispute",
        "amount": charge["amount"] - charge["amount_refunded"],
        "charge": charge["id"],
        "created": context.now(),
        "currency": payment["currency"],
        "livemode": False,
        "metadata": {},
        "payment_intent": payment["id"],
        "reason": "fraudulent",
        "status": DISPUTED,
    }
    context.state.put("dispute", made)
    context.emit("charge.dispute.created", made)
    return made


def decide(context: Context, name: str, status: str) -> Given:
    """The bank decides: won (the money comes again) or lost."""
    found = context.find("dispute", name)
    found["status"] = status
    context.state.put("dispute", found)
    context.emit("charge.dispute.closed", found)
    return found


def by_intent(context: Context, kind: str, given: Given) -> list[Given]:
    """Disputes, or refunds, of a payment, or since a moment."""
    since = given.get("created", {}).get("gte", 0)
    return context.state.newest_first(
        kind, lambda one: given.get("payment_intent") in (None, one["payment_intent"]) and one["created"] >= since
    )
