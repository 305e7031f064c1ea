"""What the sandbox's Stripe knows about invoices: their lines, totals, states and the customer's balance.

Rules from https://docs.stripe.com/invoicing/overview and https://docs.stripe.com/api/invoices/object: only drafts can
be changed; an amount due of zero, or below the least amount that can be charged, makes a finalised invoice `paid` at
once and moves to the customer's balance, which the next finalised invoice takes up.
"""

from dataclasses import dataclass
from typing import Any, Final

from meterhouse_sandbox import stripe_taxes as taxes
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_state import State, new_id

MAX_ITEMS: Final = 250
LINES_IN_INVOICE: Final = 10  # an invoice object carries this many of its lines; the rest is listed page by page

# The least amount per charge, in minor units: https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts
LEAST_CHARGE: Final = {
    "aed": 200, "aud": 50, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50, "gbp": 30, "hkd": 400,
    "huf": 17500, "inr": 50, "jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50, "pln": 200, "ron": 200,
    "sek": 300, "sgd": 50, "thb": 1000, "usd": 50,
}  # fmt: skip
_DECLINED: Final = "pm_card_chargeDeclined"


@dataclass(frozen=True)
class Context:
    """One request: the state it works in, what its events say about it, and where the sandbox is reached."""

    state: State
    request: dict[str, str | None]
    base_url: str

    def now(self) -> int:
        """Seconds since 1970 by the sandbox's clock."""
        return int(self.state.now())

    def account_query(self) -> str:
        """What names the connected account in the address of a page; '' for none."""
        return f"?account={self.state.account}" if self.state.account else ""

    def emit(self, kind: str, body: dict[str, Any]) -> None:
        self.state.emit(kind, body, self.request)

    def find(self, kind: str, name: str, param: str = "id") -> dict[str, Any]:
        """The object, or Stripe's 404."""
        found = self.state.get(kind, name)
        if found is None:
            message = f"No such {kind}: '{name}'"
            raise StripeRefusal(message, status=404 if param == "id" else 400, code="resource_missing", param=param)
        return found


# ---- drafts


def create(context: Context, given: dict[str, Any]) -> dict[str, Any]:
    """A draft without lines."""
    customer = context.find("customer", given["customer"], "customer")
    method = given.get("collection_method", "charge_automatically")
    if method == "send_invoice":
        if not customer["email"]:
            raise StripeRefusal(
                "Missing email. In order to create invoices that are sent to the customer, the customer must have a "
                "valid email.",
                code="missing_email",
            )
        if "days_until_due" not in given and "due_date" not in given:
            raise StripeRefusal("Due date or days until due is required for send_invoice.", param="days_until_due")
    elif "days_until_due" in given or "due_date" in given:
        raise StripeRefusal("A due date goes with collection_method=send_invoice only.", param="days_until_due")
    if "application_fee_amount" in given and not context.state.account:
        message = "You can only apply an application_fee_amount on behalf of a connected account."
        raise StripeRefusal(message, param="application_fee_amount")
    now = context.now()
    due = given.get("due_date", now + 86400 * given["days_until_due"] if "days_until_due" in given else None)
    invoice = {
        "id": new_id("in"),
        "object": "invoice",
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": given.get("auto_advance", False),
        "automatic_tax": {
            "enabled": given.get("automatic_tax", {}).get("enabled", False),
            "liability": None,
            "status": None,
        },
        "billing_reason": "manual",
        "collection_method": method,
        "created": now,
        "currency": given.get("currency", customer["currency"] or "usd").lower(),
        "customer": customer["id"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "description": given.get("description"),
        "discounts": [],
        "due_date": due,
        "ending_balance": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "number": None,
        "period_end": now,
        "period_start": now,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": dict.fromkeys(
            ["finalized_at", "marked_uncollectible_at", "paid_at", "voided_at"],
        ),
        "subtotal": 0,
        "total": 0,
        "total_excluding_tax": 0,
        "total_taxes": [],
        "_application_fee_amount": given.get("application_fee_amount"),
    }
    if invoice["automatic_tax"]["enabled"]:
        taxes.compute(invoice, [], customer)
    _save(context, invoice)
    context.emit("invoice.created", show(context, invoice))
    return show(context, invoice)


def create_item(context: Context, given: dict[str, Any]) -> dict[str, Any]:
    """An invoice item on a draft; without an invoice it waits for one that takes it up."""
    customer = context.find("customer", given["customer"], "customer")
    if "invoice" not in given:
        item = _item(
            context, new_id("ii"), given, customer, given.get("currency", customer["currency"] or "usd").lower()
        )
        context.state.put("invoiceitem", item)
        return item
    invoice = _draft(context, given["invoice"], "invoice")
    if invoice["customer"] != customer["id"]:
        raise StripeRefusal("The invoice belongs to another customer.", param="invoice")
    line = _add(context, invoice, given, given.get("currency", invoice["currency"]))
    _retotal(context, invoice)
    name = line["parent"]["invoice_item_details"]["invoice_item"]
    return _item(context, name, line, customer, line["currency"]) | {"invoice": invoice["id"]}


def _item(context: Context, name: str, line: dict[str, Any], customer: dict[str, Any], currency: str) -> dict[str, Any]:
    now = context.now()
    return {
        "id": name,
        "object": "invoiceitem",
        "amount": line["amount"],
        "currency": currency,
        "customer": customer["id"],
        "date": now,
        "description": line.get("description"),
        "discountable": line.get("discountable", line["amount"] >= 0),
        "invoice": None,
        "livemode": False,
        "metadata": line.get("metadata") or {},
        "period": line.get("period", {"start": now, "end": now}),
        "proration": False,
        "quantity": 1,
    }


def add_lines(context: Context, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All lines or, on a mistake in one of them, none: a request is one transaction."""
    invoice = _draft(context, name)
    for line in given["lines"]:
        _add(context, invoice, line, invoice["currency"])
    return _retotal(context, invoice)


def change(context: Context, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Turn automatic tax of a draft on or off; either way its tax is computed anew."""
    invoice = _draft(context, name)
    invoice["automatic_tax"] |= given.get("automatic_tax", {})
    return _retotal(context, invoice)


def delete(context: Context, name: str) -> dict[str, Any]:
    """Only a draft can be deleted; what was finalised is voided."""
    invoice = _draft(context, name)
    for line in lines(context, name):
        context.state.delete(line["id"])
    context.state.delete(name)
    context.emit("invoice.deleted", invoice)
    return {"id": name, "object": "invoice", "deleted": True}


# ---- from finalising on


def finalize(context: Context, name: str, given: dict[str, Any]) -> dict[str, Any]:
    invoice = _draft(context, name)
    customer = context.find("customer", invoice["customer"])
    if invoice["automatic_tax"]["enabled"]:
        _retotal(context, invoice)
        taxes.require(invoice)
    owed = invoice["total"] + customer["balance"]
    number = f"SANDBOX-{context.state.next_invoice_number():04d}"
    invoice |= {
        "status": "open",
        "number": number,
        "auto_advance": given.get("auto_advance", invoice["auto_advance"]),
        "hosted_invoice_url": f"{context.base_url}/_sandbox/invoices/{name}{context.account_query()}",
        "starting_balance": customer["balance"],
    }
    invoice["status_transitions"]["finalized_at"] = context.now()
    chargeable = owed >= LEAST_CHARGE.get(invoice["currency"], 1)
    customer["balance"] = 0 if chargeable else owed
    context.state.put("customer", customer)
    due = owed if chargeable else 0
    invoice |= {"ending_balance": customer["balance"], "amount_due": due, "amount_remaining": due}
    _save(context, invoice)
    context.emit("invoice.finalized", show(context, invoice))
    return show(context, invoice) if chargeable else settle(context, invoice)


def pay(context: Context, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Paid out of band, or with one of Stripe's test cards (`pm_card_visa`; `pm_card_chargeDeclined` fails)."""
    invoice = _open(context, name)
    if given.get("paid_out_of_band"):
        return settle(context, invoice)
    if "payment_method" not in given:
        message = "There is no payment method: give payment_method=pm_card_visa, or paid_out_of_band=true."
        raise StripeRefusal(message, code="invoice_payment_intent_requires_action", param="payment_method")
    invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    if given["payment_method"] != _DECLINED:
        _charge(context, invoice)
        return settle(context, invoice)
    _save(context, invoice)
    context.emit("invoice.payment_failed", show(context, invoice))
    return show(context, invoice)


def _charge(context: Context, invoice: dict[str, Any]) -> None:
    """The money, and which payment it was."""
    amount, intent = invoice["amount_remaining"], new_id("pi")
    charge = {"id": new_id("ch"), "object": "charge", "amount": amount, "amount_refunded": 0, "payment_intent": intent}
    fee = invoice.get("_application_fee_amount")
    charge["application_fee"] = kept_fee(context, charge, invoice["currency"], fee)
    context.state.put("charge", charge, owner=invoice["id"])
    about = {
        "id": intent,
        "object": "payment_intent",
        "amount": amount,
        "amount_received": amount,
        "application_fee_amount": min(fee, amount) if fee else None,
        "created": context.now(),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "latest_charge": charge["id"],
        "metadata": {},
        "status": "succeeded",
    }
    context.state.put("payment_intent", about)
    payment = {
        "id": new_id("inpay"),
        "object": "invoice_payment",
        "amount_paid": amount,
        "amount_requested": amount,
        "created": context.now(),
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"type": "payment_intent", "payment_intent": intent},
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": context.now()},
    }
    context.state.put("invoice_payment", payment)


def kept_fee(context: Context, charge: dict[str, Any], currency: str, amount: int | None) -> str | None:
    """What the platform keeps of a charge of a connected account: an object of the platform's; its id.

    Never more than the charge: https://docs.stripe.com/connect/direct-charges#collect-fees
    """
    if not amount:
        return None
    amount = min(amount, charge["amount"])
    fee = {
        "id": new_id("fee"),
        "object": "application_fee",
        "account": context.state.account,
        "amount": amount,
        "amount_refunded": 0,
        "charge": charge["id"],
        "created": context.now(),
        "currency": currency,
        "livemode": False,
        "refunded": False,
    }
    with context.state.platform():
        context.state.put("application_fee", fee)
    return str(fee["id"])


def declined(given: dict[str, Any]) -> bool:
    """Whether `pay` with these parameters ends in a card error."""
    return given.get("payment_method") == _DECLINED and not given.get("paid_out_of_band")


def void(context: Context, name: str) -> dict[str, Any]:
    """What it took of the customer's balance is there again (`unapplied_from_invoice`)."""
    invoice = _open(context, name)
    customer = context.find("customer", invoice["customer"])
    customer["balance"] += invoice["starting_balance"] - invoice["ending_balance"]
    context.state.put("customer", customer)
    return _close(context, invoice, "void", "voided_at", "invoice.voided")


def mark_uncollectible(context: Context, name: str) -> dict[str, Any]:
    return _close(
        context, _open(context, name), "uncollectible", "marked_uncollectible_at", "invoice.marked_uncollectible"
    )


# ---- reading


def lines(context: Context, name: str) -> list[dict[str, Any]]:
    """All lines of an invoice, the newest first as in all of Stripe's lists."""
    return context.state.newest_first("line_item", owner=name)


def show(context: Context, invoice: dict[str, Any]) -> dict[str, Any]:
    """The invoice as it is answered: with its first lines."""
    every = lines(context, invoice["id"])
    shown = {name: value for name, value in invoice.items() if not name.startswith("_")}
    return shown | {
        "lines": {
            "object": "list",
            "data": every[:LINES_IN_INVOICE],
            "has_more": len(every) > LINES_IN_INVOICE,
            "total_count": len(every),
            "url": f"/v1/invoices/{invoice['id']}/lines",
        }
    }


def _draft(context: Context, name: str, param: str = "id") -> dict[str, Any]:
    invoice = context.find("invoice", name, param)
    if invoice["status"] != "draft":
        raise StripeRefusal("This invoice is finalized and can no longer be changed.", code="invoice_not_editable")
    return invoice


def _open(context: Context, name: str) -> dict[str, Any]:
    invoice = context.find("invoice", name)
    if invoice["status"] == "paid":
        raise StripeRefusal("Invoice is already paid", code="invoice_already_paid")
    if invoice["status"] not in ("open", "uncollectible"):
        raise StripeRefusal(f"This invoice is {invoice['status']}, it has to be open.", code="invoice_not_open")
    return invoice


def _add(context: Context, invoice: dict[str, Any], given: dict[str, Any], currency: str) -> dict[str, Any]:
    if currency.lower() != invoice["currency"]:
        raise StripeRefusal(
            f"The currency of the item ({currency.lower()}) is not the invoice's ({invoice['currency']}).",
            param="currency",
        )
    if context.state.count("line_item", invoice["id"]) >= MAX_ITEMS:
        raise StripeRefusal(f"An invoice has at most {MAX_ITEMS} items.", code="invoice_too_many_items")
    amount, pricing = taxes.priced(given, invoice)
    if pricing is not None:
        context.find("product", pricing["price_details"]["product"], "price_data[product]")
    now = context.now()
    period = given.get("period", {"start": now, "end": now})
    if period["end"] < period["start"]:
        raise StripeRefusal("The period ends before it starts.", param="period")
    line: dict[str, Any] = {
        "id": new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": invoice["currency"],
        "description": given.get("description"),
        "discountable": given.get("discountable", amount >= 0),
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "parent": {
            "type": "invoice_item_details",
            "invoice_item_details": {"invoice_item": new_id("ii"), "proration": False, "subscription": None},
            "subscription_item_details": None,
        },
        "period": period,
        "pricing": pricing,
        "quantity": 1,
        "subtotal": amount,
        "taxes": [],
    }
    context.state.put("line_item", line, owner=invoice["id"])
    return line


def _retotal(context: Context, invoice: dict[str, Any]) -> dict[str, Any]:
    every = lines(context, invoice["id"])
    subtotal = sum(line["amount"] for line in every)
    invoice |= {"subtotal": subtotal, "total": subtotal, "total_excluding_tax": subtotal}
    if invoice["automatic_tax"]["enabled"]:
        taxes.compute(invoice, every, context.find("customer", invoice["customer"]))
        for line in every:
            context.state.put("line_item", line, owner=invoice["id"])
    due = max(invoice["total"], 0)
    invoice |= {"amount_due": due, "amount_remaining": due}
    _save(context, invoice)
    context.emit("invoice.updated", show(context, invoice))
    return show(context, invoice)


def settle(context: Context, invoice: dict[str, Any]) -> dict[str, Any]:
    """What is due is paid."""
    invoice |= {"amount_paid": invoice["amount_due"], "amount_remaining": 0}
    return _close(context, invoice, "paid", "paid_at", "invoice.paid")


def _close(context: Context, invoice: dict[str, Any], status: str, moment: str, event: str) -> dict[str, Any]:
    invoice["status"] = status
    invoice["status_transitions"][moment] = context.now()
    _save(context, invoice)
    context.emit(event, show(context, invoice))
    return show(context, invoice)


def _save(context: Context, invoice: dict[str, Any]) -> None:
    context.state.put("invoice", invoice)
