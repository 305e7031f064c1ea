"""Credit notes and refunds of the sandbox's Stripe.

Rules from https://docs.stripe.com/api/credit_notes/create: only what was finalised is credited; a note first reduces
what remains to be paid, and what is beyond that has to be refunded, put on the customer's balance, or given back
outside of Stripe, to the cent; no line and no invoice is credited beyond what it came to.
"""

from typing import Any, Final

from meterhouse_sandbox import stripe_invoices as invoices
from meterhouse_sandbox import stripe_payments as payments
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

_AFTER_PAYMENT: Final = ("refund_amount", "credit_amount", "out_of_band_amount")
_CREDITED: Final = ("open", "paid", "uncollectible")


def create(context: Context, given: dict[str, Any]) -> dict[str, Any]:
    invoice = context.find("invoice", given["invoice"], "invoice")
    items, note = _draft(context, invoice, given)
    total, before = note["total"], note["pre_payment_amount"]
    after = {name: given.get(name, 0) for name in _AFTER_PAYMENT}
    if min(after.values()) < 0 or sum(after.values()) != total - before:
        raise StripeRefusal(
            "The sum of refund_amount, credit_amount and out_of_band_amount must equal the post payment amount "
            f"({total - before}), it is {sum(after.values())}."
        )
    note["refunds"] = _refund(context, invoice, after["refund_amount"])
    for line in _note_lines(items, given["lines"]):
        context.state.put("credit_note_line_item", line, owner=note["id"])
    context.state.put("credit_note", note)
    _balance(context, note["customer"], -after["credit_amount"])
    for name, amount in (("pre_payment", before), ("post_payment", total - before)):
        invoice[f"{name}_credit_notes_amount"] = invoice.get(f"{name}_credit_notes_amount", 0) + amount
    _owe(context, invoice, -before)
    context.emit("credit_note.created", show(context, note))
    return show(context, note)


def preview(context: Context, given: dict[str, Any]) -> dict[str, Any]:
    """What a note would come to, tax included; nothing is kept."""
    invoice = context.find("invoice", given["invoice"], "invoice")
    return _draft(context, invoice, given)[1]


def _draft(
    context: Context, invoice: dict[str, Any], given: dict[str, Any]
) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """What is credited of which line, and the note. Raises StripeRefusal for what cannot be credited."""
    if invoice["status"] not in _CREDITED:
        raise StripeRefusal(f"A credit note needs a finalized invoice, this one is {invoice['status']}.")
    items = _lines(context, invoice, given["lines"])
    tax = _taxes(context, invoice, items)
    total = sum(amount for _, amount in items) + sum(one["amount"] for one in tax)  # amounts are before all tax
    earlier = sum(note["total"] for note in _notes(context, invoice["id"]))
    if total > invoice["total"] - earlier:
        raise StripeRefusal(
            f"The sum of credit notes ({earlier + total}) exceeds the invoice's total ({invoice['total']})."
        )
    before = min(total, invoice["amount_remaining"])
    return items, _note(context, invoice, given, total, before) | {"total_taxes": tax}


def _taxes(context: Context, invoice: dict[str, Any], items: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """The share of each line's tax that goes back with it, one sum of what is on top and one of what is within."""
    taxes = {line["id"]: line["taxes"] for line in invoices.lines(context, invoice["id"])}
    found = []
    for behaviour in ("exclusive", "inclusive"):
        shares = [
            (amount, (2 * tax["amount"] * amount + tax["taxable_amount"]) // (2 * tax["taxable_amount"]))  # half up
            for name, amount in items
            for tax in taxes[name]
            if tax["tax_behavior"] == behaviour and tax["taxable_amount"]
        ]
        if back := sum(share for _, share in shares):
            base = sum(amount for amount, _ in shares)
            found.append({"amount": back, "tax_behavior": behaviour, "taxable_amount": base})
    return found


def void(context: Context, name: str) -> dict[str, Any]:
    """Only a note that reduced what remains to be paid, while that is not paid."""
    note = context.find("credit_note", name)
    invoice = context.find("invoice", note["invoice"])
    if note["status"] == "void" or note["post_payment_amount"] or invoice["status"] != "open":
        raise StripeRefusal("Only a credit note on an open invoice can be voided, once.")
    note |= {"status": "void", "voided_at": context.now()}
    context.state.put("credit_note", note)
    invoice["pre_payment_credit_notes_amount"] -= note["pre_payment_amount"]
    _owe(context, invoice, note["pre_payment_amount"])
    context.emit("credit_note.voided", show(context, note))
    return show(context, note)


def show(context: Context, note: dict[str, Any]) -> dict[str, Any]:
    """The note as it is answered: with its first lines."""
    every = lines(context, note["id"])
    return note | {
        "lines": {
            "object": "list",
            "data": every[: invoices.LINES_IN_INVOICE],
            "has_more": len(every) > invoices.LINES_IN_INVOICE,
            "url": f"/v1/credit_notes/{note['id']}/lines",
        }
    }


def lines(context: Context, name: str) -> list[dict[str, Any]]:
    """All lines of a note, the newest first."""
    return context.state.newest_first("credit_note_line_item", owner=name)


def _notes(context: Context, invoice: str) -> list[dict[str, Any]]:
    return context.state.newest_first("credit_note", lambda one: one["invoice"] == invoice and one["status"] != "void")


def _lines(context: Context, invoice: dict[str, Any], given: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """What is credited of which line. Raises StripeRefusal."""
    left = {
        line["id"]: line["amount"] - sum(it["amount"] for it in line["taxes"] if it["tax_behavior"] == "inclusive")
        for line in invoices.lines(context, invoice["id"])
    }
    for note in _notes(context, invoice["id"]):
        for line in lines(context, note["id"]):
            left[line["invoice_line_item"]] -= line["amount"]
    found = []
    for number, line in enumerate(given):
        param = f"lines[{number}]"
        if line["type"] != "invoice_line_item" or "invoice_line_item" not in line or "amount" not in line:
            raise StripeRefusal("The sandbox credits invoice_line_item with an amount only.", param=param)
        name, amount = line["invoice_line_item"], line["amount"]
        if name not in left:
            raise StripeRefusal(f"No such line on the invoice: '{name}'", code="resource_missing", param=param)
        if not 0 < amount <= left[name]:
            raise StripeRefusal(f"{amount} cannot be credited of '{name}': {left[name]} are left.", param=param)
        left[name] -= amount
        found.append((name, amount))
    return found


def _note(context: Context, invoice: dict[str, Any], given: dict[str, Any], total: int, before: int) -> dict[str, Any]:
    number = 1 + len(context.state.newest_first("credit_note", lambda one: one["invoice"] == invoice["id"]))
    kinds = {(True, False): "pre_payment", (False, True): "post_payment"}
    return {
        "id": new_id("cn"),
        "object": "credit_note",
        "amount": total,
        "amount_shipping": 0,
        "created": context.now(),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "memo": given.get("memo"),
        "metadata": given.get("metadata") or {},
        "number": f"{invoice['number']}-CN-{number:02d}",
        "out_of_band_amount": given.get("out_of_band_amount"),
        "post_payment_amount": total - before,
        "pre_payment_amount": before,
        "reason": given.get("reason"),
        "refunds": [],
        "status": "issued",
        "subtotal": sum(line["amount"] for line in given["lines"]),
        "total": total,
        "type": kinds.get((before > 0, total > before), "mixed"),
        "voided_at": None,
    }


def _note_lines(items: list[tuple[str, int]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": new_id("cnli"),
            "object": "credit_note_line_item",
            "amount": amount,
            "description": None,
            "discount_amount": 0,
            "discount_amounts": [],
            "invoice_line_item": name,
            "livemode": False,
            "metadata": line.get("metadata") or {},
            "quantity": None,
            "tax_rates": [],
            "type": "invoice_line_item",
            "unit_amount": None,
        }
        for (name, amount), line in zip(items, given, strict=True)
    ]


def _refund(context: Context, invoice: dict[str, Any], amount: int) -> list[dict[str, Any]]:
    if not amount:
        return []
    refund = _give_back(context, invoice, amount, {})
    return [{"type": "refund", "refund": refund["id"], "amount_refunded": amount}]


def refund_by_hand(context: Context, given: dict[str, Any]) -> dict[str, Any]:
    """What an operator does in the dashboard: money back for a payment, without a credit note."""
    of_invoices = context.state.newest_first("invoice_payment")
    paid = [one for one in of_invoices if one["payment"]["payment_intent"] == given["payment_intent"]]
    if not paid:
        payment = context.find("payment_intent", given["payment_intent"], "payment_intent")
        return payments.refund(context, payment, given.get("amount"), given.get("metadata") or {})
    invoice = context.find("invoice", paid[0]["invoice"])
    return _give_back(context, invoice, given.get("amount", paid[0]["amount_paid"]), given.get("metadata") or {})


def _give_back(context: Context, invoice: dict[str, Any], amount: int, metadata: dict[str, str]) -> dict[str, Any]:
    charges = context.state.newest_first("charge", owner=invoice["id"])
    left = sum(charge["amount"] - charge["amount_refunded"] for charge in charges)
    if amount > left:
        raise StripeRefusal(f"{amount} cannot be refunded: {left} of the invoice's payment are left.")
    charge = charges[0]
    payments.undisputed(context, charge)
    charge["amount_refunded"] += amount
    context.state.put("charge", charge, owner=invoice["id"])
    refund = {
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "charge": charge["id"],
        "created": context.now(),
        "currency": invoice["currency"],
        "metadata": metadata,
        "payment_intent": charge["payment_intent"],
        "reason": None,
        "status": "succeeded",
    }
    context.state.put("refund", refund)
    context.emit("refund.created", refund)
    return refund


def _balance(context: Context, name: str, change: int) -> None:
    customer = context.find("customer", name)
    customer["balance"] += change
    context.state.put("customer", customer)


def _owe(context: Context, invoice: dict[str, Any], change: int) -> None:
    """What remains to be paid changes; nothing left of an open invoice makes it paid."""
    for name in ("amount_due", "amount_remaining"):
        invoice[name] += change
    context.state.put("invoice", invoice)
    if invoice["status"] == "open" and not invoice["amount_remaining"]:
        invoices.settle(context, invoice)
