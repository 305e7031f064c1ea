"""The routes of payments that are not of invoices: Checkout, payment intents, disputes."""

from typing import Final

from meterhouse_sandbox import stripe_payments as payments
from meterhouse_sandbox.stripe_calls import Given, call, new, page, retrieve
from meterhouse_sandbox.stripe_invoices import Context


def _sessions(context: Context, _name: str, given: Given) -> Given:
    return page(payments.list_sessions(context, given), given, "/v1/checkout/sessions")


def _payments(context: Context, _name: str, given: Given) -> Given:
    found = context.state.newest_first("payment_intent", lambda one: given.get("customer") in (None, one["customer"]))
    return page(found, given, "/v1/payment_intents")


def _disputes(context: Context, _name: str, given: Given) -> Given:
    return page(payments.by_intent(context, "dispute", given), given, "/v1/disputes")


PAYMENT_ROUTES: Final = (
    call(
        "POST", "/v1/checkout/sessions", "checkout.SessionCreateParams", new(payments.create_session),
        "customer mode currency success_url metadata line_items.quantity line_items.price_data.currency "
        "line_items.price_data.unit_amount line_items.price_data.product_data.name payment_intent_data.description "
        "payment_intent_data.metadata payment_intent_data.application_fee_amount", "customer mode success_url",
    ),
    call("GET", "/v1/checkout/sessions", "checkout.SessionListParams", _sessions, "limit starting_after customer"),
    call("GET", "/v1/checkout/sessions/{id}", "checkout.SessionRetrieveParams", payments.show_session),
    call(
        "POST", "/v1/payment_intents", "PaymentIntentCreateParams", new(payments.create),
        "amount currency customer payment_method confirm off_session description metadata application_fee_amount",
    ),
    call("GET", "/v1/payment_intents", "PaymentIntentListParams", _payments, "limit starting_after customer"),
    call("GET", "/v1/payment_intents/{id}", "PaymentIntentRetrieveParams", payments.show, "expand"),
    call("GET", "/v1/charges/{id}", "ChargeRetrieveParams", retrieve("charge")),
    call("GET", "/v1/disputes", "DisputeListParams", _disputes, "limit starting_after payment_intent created.gte"),
    call("GET", "/v1/disputes/{id}", "DisputeRetrieveParams", retrieve("dispute")),
)  # fmt: skip
