"""What is wrong after two random months of invoices: Stripe, asked with the real SDK, against truth and ledger."""

from fractions import Fraction
from typing import Any

import stripe
from invoice_truth import CUSTOMERS, PERCENT, PREPAID, fee, rounded

from meterhouse_billing import accounts, records
from meterhouse_billing.reconcile import reconcile
from meterhouse_store import tables


def wrong(month: Any) -> list[str]:
    """Every difference of a `Month` that was lived through, in words."""
    found, differing, known = [], 0, []
    for account, client in month.clients():
        for customer in client.v1.customers.list({"limit": 100}).data:
            name = customer.metadata["meterhouse_customer_id"]
            known.append(name)
            if bool(account) != (name in month.fees):
                found.append(f"{name} is in the account {account!r}")
            told, few = _of_customer(month, client, customer, name)
            found += [f"{name}: {text}" for text in told]
            differing += few
    if sorted(known) != sorted(CUSTOMERS):
        found.append(f"customers in Stripe: {known}")
    rows = reconcile(month.world, records.drafts(month.world.engine, "test", every=True))
    said = [one for row in rows for one in row.differences]
    said += [one for account in accounts.compare(month.world, rows) for one in account.differences]
    fees = [one for one in said if one.code == "fee_differs"]
    if len(fees) != differing:
        found.append(f"reconcile: {len(fees)} fees that differ, {differing} do: {[str(one) for one in fees]}")
    return found + [f"reconcile: {one.code}: {one}" for one in said if one not in fees]


def _of_customer(
    month: Any, client: stripe.StripeClient, customer: stripe.Customer, name: str
) -> tuple[list[str], int]:
    """What is wrong of one customer, and of how many invoices that were paid in cash a fee was asked for."""
    found, currency = [], CUSTOMERS[name]
    invoices = [it for it in client.v1.invoices.list({"limit": 100}).data if it.customer == customer.id]
    notes = [it for it in client.v1.credit_notes.list({"limit": 100}).data if it.customer == customer.id]
    payments = [it for it in succeeded(client) if it.customer == customer.id]
    disputes = client.v1.disputes.list({"limit": 100}).data
    paid_by = {it.payment.payment_intent: it.invoice for it in client.v1.invoice_payments.list({"limit": 100}).data}
    real = sorted((one.total, *_taxes(one)) for one in invoices if one.status != "void")
    wanted = sorted(due.told for due in month.due[name])
    if real != wanted:
        found.append(f"invoices (total, tax on top, tax within) {real}, rated {wanted}")
    credited = sorted(one.total - _taxes(one)[0] for one in notes)
    if credited != sorted(month.credited[name]):
        found.append(f"credit notes {credited}, corrected {sorted(month.credited[name])}")
    taxed = sum(sum(due.taxes) for due in month.due[name]) - sum(sum(_taxes(one)) for one in notes)
    for one in notes:
        october, (added, contained) = month.due[name][0], _taxes(one)
        percent = PERCENT[october.country] if october.behaviour else 0
        exact = Fraction((one.total - added - contained) * percent, 100)
        if abs(added + contained - exact) > len(one.lines.data):  # each line is rounded, and so was its tax
            found.append(f"{added + contained} of tax went back with a note of {one.total}, of {percent} %")
    # What the platform kept, and of that gave back, of each payment.
    kept, taken = 0, {}
    for payment in payments:
        charge, invoice = payment.latest_charge, paid_by.get(payment.id)
        total, before_tax = next(
            ((it.total, _before_tax(it)) for it in invoices if it.id == invoice), (payment.amount,) * 2
        )
        of_notes = [it for it in notes if it.invoice == invoice]
        by_notes = sum(refund.amount_refunded for it in of_notes for refund in it.refunds)
        back = sum(it.total for it in of_notes) + charge.amount_refunded - by_notes
        back += sum(it.amount for it in disputes if it.payment_intent == payment.id and it.status == "lost")
        wanted_fee = min(fee(month.fees.get(name, "0%"), before_tax, currency), charge.amount)
        given_back = rounded(Fraction(wanted_fee * min(back, total), total), currency)
        taken[invoice], kept = wanted_fee, kept + wanted_fee - given_back
        there = charge.to_dict().get("application_fee")
        shown = month.clients()[0][1].v1.application_fees.retrieve(there) if there else None
        seen = (shown.amount, shown.amount_refunded) if shown else (0, 0)
        if seen != (wanted_fee, given_back):
            found.append(f"fee of {payment.id}: {seen} in Stripe, {(wanted_fee, given_back)} it should be")
    asked = {
        it.id: min(fee(month.fees.get(name, "0%"), _before_tax(it), currency), it.amount_paid)
        for it in invoices
        if it.status == "paid"
    }
    # Cash and what is owed.
    held = [it for it in disputes if it.status != "won" and it.payment_intent in {one.id for one in payments}]
    on_invoices = sum(it.amount for it in held if it.payment_intent in paid_by)
    owed = sum(one.amount_remaining for one in invoices if one.status == "open") + customer.balance + on_invoices
    cash = sum(one.amount_paid for one in invoices) + sum(it.amount for it in payments if it.id not in paid_by)
    cash -= sum(it.latest_charge.amount_refunded for it in payments) + sum(it.amount for it in held)
    cash -= sum(one.out_of_band_amount or 0 for one in notes) + kept
    # Credits that are there: bought, not used, nor refunded or with a bank. What other lines use was never granted.
    if name == PREPAID:
        deferred = -sum(month.left_of_grants().values())
        mine = [it for it in month.books.rows(tables.credit_purchases) if it["customer_id"] == name]
        known = sorted((it["payment_intent"], it["state"]) for it in mine)
        charged = sorted((it, "paid" if came else "failed") for it, _, came in month.charges())
        if known != charged:
            found.append(f"charges of the rule are {known}, in Stripe {charged}")
    else:
        bought = [payment for payment in payments if payment.id not in paid_by]
        deferred = sum(due.credit for due in month.due[name]) - sum(it.amount - gone(client, it) for it in bought)
    grants = [it for it in month.books.rows(tables.credit_purchases) if it["customer_id"] == name and it["grant_id"]]
    if sorted(it["payment_intent"] for it in grants) != sorted(it.id for it in payments if it.id not in paid_by):
        found.append("the credits that were bought are not the payments of them")
    entries = month.books.rows(tables.ledger_entries)
    of = {row["transaction_id"]: row["customer_id"] for row in month.books.rows(tables.ledger_transactions)}
    sums = {
        account: sum(
            row["amount_minor"] for row in entries if row["account"] == account and of[row["transaction_id"]] == name
        )
        for account in ("receivable", "cash", "application_fees", "tax", "deferred_credits")
    }
    wanted_sums = {"receivable": owed, "cash": cash, "application_fees": kept, "tax": -taxed}
    if sums != wanted_sums | {"deferred_credits": deferred}:
        found.append(f"ledger {sums}, Stripe: {wanted_sums}, credits {deferred}")
    return found, sum(asked[it] != taken.get(it, 0) for it in asked)


def succeeded(client: stripe.StripeClient) -> list[stripe.PaymentIntent]:
    """Those that succeeded, each with its charge."""
    found = client.v1.payment_intents.list({"limit": 100}).data
    expanded = {"expand": ["latest_charge"]}
    return [client.v1.payment_intents.retrieve(it.id, expanded) for it in found if it.status == "succeeded"]


def is_of(payment: stripe.PaymentIntent, name: str) -> bool:
    """Whether it is a top-up of that customer's: payments of invoices say nothing."""
    return "meterhouse_customer_id" in payment.metadata and payment.metadata["meterhouse_customer_id"] == name


def gone(client: stripe.StripeClient, payment: stripe.PaymentIntent) -> int:
    """What of a payment was refunded, or is held by a bank."""
    disputes = client.v1.disputes.list({"payment_intent": payment.id}).data
    return payment.latest_charge.amount_refunded + sum(it.amount for it in disputes if it.status != "won")


def _taxes(shown: Any) -> tuple[int, int]:
    """Tax on top of an invoice or a credit note of Stripe's, and within it."""
    taxes = shown.total_taxes or []
    added, contained = (
        sum(it.amount for it in taxes if it.tax_behavior == behaviour) for behaviour in ("exclusive", "inclusive")
    )
    return added, contained


def _before_tax(invoice: stripe.Invoice) -> int:
    return invoice.total - _taxes(invoice)[0]
