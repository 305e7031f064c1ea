"""Application fees of the sandbox's Stripe: objects of the platform, and what it gives back of them.

https://docs.stripe.com/api/application_fees: a fee is there with the charge that it is kept of, and is given back in
parts, never more than it was.
"""

from typing import Any, Final

from meterhouse_sandbox.stripe_calls import call, page, retrieve
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

Given = dict[str, Any]


def refund(context: Context, name: str, given: Given) -> Given:
    """Give a part of a fee back, or all that is left of it."""
    fee = context.find("application_fee", name)
    left = fee["amount"] - fee["amount_refunded"]
    amount = given.get("amount", left)
    if not 0 < amount <= left:
        raise StripeRefusal(
            f"Refund amount ({amount}) is greater than what is left of the fee ({left}).", param="amount"
        )
    fee["amount_refunded"] += amount
    context.state.put("application_fee", fee | {"refunded": fee["amount_refunded"] == fee["amount"]})
    made = {
        "id": new_id("fr"),
        "object": "fee_refund",
        "amount": amount,
        "created": context.now(),
        "currency": fee["currency"],
        "fee": name,
        "metadata": given.get("metadata") or {},
    }
    context.state.put("fee_refund", made, owner=name)
    context.emit("application_fee.refunded", fee)
    return made


def _refunds(context: Context, name: str, given: Given) -> Given:
    context.find("application_fee", name)
    return page(context.state.newest_first("fee_refund", owner=name), given, f"/v1/application_fees/{name}/refunds")


FEE_ROUTES: Final = (
    call("GET", "/v1/application_fees/{id}", "ApplicationFeeRetrieveParams", retrieve("application_fee")),
    call("POST", "/v1/application_fees/{id}/refunds", "ApplicationFeeRefundCreateParams", refund, "amount metadata"),
    call(
        "GET", "/v1/application_fees/{id}/refunds", "ApplicationFeeRefundListParams", _refunds, "limit starting_after"
    ),
)  # fmt: skip
