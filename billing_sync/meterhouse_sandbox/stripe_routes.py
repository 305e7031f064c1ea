"""The routes of the sandbox's Stripe: path, parameters and what is done. A route is one entry of `ROUTES`."""

import re
from collections.abc import Callable
from typing import Any, Final

from meterhouse_sandbox import stripe_credit_notes as credit_notes
from meterhouse_sandbox import stripe_invoices as invoices
from meterhouse_sandbox.stripe_calls import Call, Given, Handler
from meterhouse_sandbox.stripe_calls import call as _call
from meterhouse_sandbox.stripe_calls import new as _new
from meterhouse_sandbox.stripe_calls import page as _page
from meterhouse_sandbox.stripe_calls import retrieve as _retrieve
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_fees import FEE_ROUTES
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_meter_routes import METER_ROUTES
from meterhouse_sandbox.stripe_payment_routes import PAYMENT_ROUTES
from meterhouse_sandbox.stripe_state import new_id
from meterhouse_sandbox.stripe_stream import STREAM_ROUTES


def _create_customer(context: Context, _name: str, given: Given) -> dict[str, Any]:
    customer = {
        "id": new_id("cus"),
        "object": "customer",
        "balance": 0,
        "created": context.now(),
        "currency": None,
        "delinquent": False,
        "description": given.get("description"),
        "email": given.get("email"),
        "invoice_prefix": None,
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "name": given.get("name"),
        "phone": None,
        "address": given.get("address"),
        "invoice_settings": {"default_payment_method": None},
    }
    context.state.put("customer", customer)
    context.emit("customer.created", customer)
    return customer


def _update_customer(context: Context, name: str, given: Given) -> dict[str, Any]:
    customer = context.find("customer", name)
    metadata = customer["metadata"] | given.pop("metadata", {})
    customer |= given | {"metadata": {key: value for key, value in metadata.items() if value != ""}}
    context.state.put("customer", customer)
    context.emit("customer.updated", customer)
    return customer


def _on_invoice(change: Callable[[Context, str], dict[str, Any]]) -> Handler:
    return lambda context, name, _given: change(context, name)


def _retrieve_invoice(context: Context, name: str, _given: Given) -> dict[str, Any]:
    return invoices.show(context, context.find("invoice", name))


def _list_customers(context: Context, _name: str, given: Given) -> dict[str, Any]:
    found = context.state.newest_first("customer", lambda one: given.get("email") in (None, one["email"]))
    return _page(found, given, "/v1/customers")


def _search_customers(context: Context, _name: str, given: Given) -> dict[str, Any]:
    wanted = _metadata_query(given["query"])
    found = context.state.newest_first("customer", lambda one: wanted.items() <= one["metadata"].items())
    page = _page(found, given, "/v1/customers/search")
    return page | {"object": "search_result", "next_page": None}


def _list_invoices(context: Context, _name: str, given: Given) -> dict[str, Any]:
    def fits(one: dict[str, Any]) -> bool:
        return all(given.get(key) in (None, one[key]) for key in ("customer", "status"))

    page = _page(context.state.newest_first("invoice", fits), given, "/v1/invoices")
    return page | {"data": [invoices.show(context, one) for one in page["data"]]}


def _list_lines(context: Context, name: str, given: Given) -> dict[str, Any]:
    context.find("invoice", name)
    return _page(invoices.lines(context, name), given, f"/v1/invoices/{name}/lines")


def _retrieve_note(context: Context, name: str, _given: Given) -> dict[str, Any]:
    return credit_notes.show(context, context.find("credit_note", name))


def _list_notes(context: Context, _name: str, given: Given) -> dict[str, Any]:
    def fits(one: dict[str, Any]) -> bool:
        return all(given.get(key) in (None, one[key]) for key in ("invoice", "customer"))

    page = _page(context.state.newest_first("credit_note", fits), given, "/v1/credit_notes")
    return page | {"data": [credit_notes.show(context, one) for one in page["data"]]}


def _list_note_lines(context: Context, name: str, given: Given) -> dict[str, Any]:
    context.find("credit_note", name)
    return _page(credit_notes.lines(context, name), given, f"/v1/credit_notes/{name}/lines")


def _list_refunds(context: Context, _name: str, given: Given) -> dict[str, Any]:
    since = given.get("created", {}).get("gte", 0)
    found = context.state.newest_first(
        "refund",
        lambda one: (
            given.get("charge") in (None, one["charge"])
            and given.get("payment_intent") in (None, one["payment_intent"])
            and one["created"] >= since
        ),
    )
    return _page(found, given, "/v1/refunds")


def _list_payments(context: Context, _name: str, given: Given) -> dict[str, Any]:
    intent = given.get("payment", {}).get("payment_intent")

    def fits(one: dict[str, Any]) -> bool:
        wanted = all(given.get(name) in (None, one[name]) for name in ("invoice", "status"))
        return wanted and intent in (None, one["payment"]["payment_intent"])

    return _page(context.state.newest_first("invoice_payment", fits), given, "/v1/invoice_payments")


def _list_items(context: Context, _name: str, given: Given) -> dict[str, Any]:
    """Those that are on no invoice; the others are their invoices' lines."""
    if given["pending"] is not True:
        raise StripeRefusal("The sandbox lists pending invoice items only.", param="pending")
    found = context.state.newest_first("invoiceitem", lambda one: given.get("customer") in (None, one["customer"]))
    return _page(found, given, "/v1/invoiceitems")


def _list_events(context: Context, _name: str, given: Given) -> dict[str, Any]:
    found = context.state.newest_first("event", lambda one: given.get("type") in (None, one["type"]))
    return _page(found, given, "/v1/events")


def _metadata_query(query: str) -> dict[str, str]:
    """`metadata['a']:'x' AND metadata['b']:'y'`, the part of Stripe's query language that the sandbox reads."""
    wanted = {}
    for clause in query.split(" AND "):
        matched = re.fullmatch(r"metadata\[(['\"])(.+)\1\]:(['\"])(.*)\3", clause.strip())
        if matched is None:
            raise StripeRefusal(f"The sandbox searches by metadata['key']:'value' only, not {clause!r}", param="query")
        wanted[matched[2]] = matched[4]
    return wanted


ROUTES: Final = (
    _call("POST", "/v1/customers", "CustomerCreateParams", _create_customer, "email name description metadata address"),
    _call("GET", "/v1/customers", "CustomerListParams", _list_customers, "limit starting_after email"),
    _call("GET", "/v1/customers/search", "CustomerSearchParams", _search_customers, "query limit"),
    _call("GET", "/v1/customers/{id}", "CustomerRetrieveParams", _retrieve("customer")),
    _call(
        "POST", "/v1/customers/{id}", "CustomerUpdateParams", _update_customer,
        "email name description metadata address invoice_settings.default_payment_method",
    ),
    _call(
        "POST", "/v1/invoices", "InvoiceCreateParams", _new(invoices.create),
        "customer application_fee_amount auto_advance automatic_tax.enabled collection_method currency days_until_due "
        "due_date description metadata", "customer",
    ),
    _call("GET", "/v1/invoices", "InvoiceListParams", _list_invoices, "limit starting_after customer status"),
    _call("GET", "/v1/invoices/{id}", "InvoiceRetrieveParams", _retrieve_invoice),
    _call("POST", "/v1/invoices/{id}", "InvoiceUpdateParams", invoices.change, "automatic_tax.enabled"),
    _call("DELETE", "/v1/invoices/{id}", "InvoiceDeleteParams", _on_invoice(invoices.delete)),
    _call(
        "POST", "/v1/invoices/{id}/add_lines", "InvoiceAddLinesParams", invoices.add_lines,
        "lines.amount lines.description lines.discountable lines.metadata lines.period lines.quantity "
        "lines.price_data.currency lines.price_data.product lines.price_data.tax_behavior lines.price_data.unit_amount",
    ),
    _call("GET", "/v1/invoices/{id}/lines", "InvoiceLineItemListParams", _list_lines, "limit starting_after"),
    _call("POST", "/v1/invoices/{id}/finalize", "InvoiceFinalizeInvoiceParams", invoices.finalize, "auto_advance"),
    _call("POST", "/v1/invoices/{id}/pay", "InvoicePayParams", invoices.pay, "paid_out_of_band payment_method"),
    _call("POST", "/v1/invoices/{id}/void", "InvoiceVoidInvoiceParams", _on_invoice(invoices.void)),
    _call(
        "POST", "/v1/invoices/{id}/mark_uncollectible", "InvoiceMarkUncollectibleParams",
        _on_invoice(invoices.mark_uncollectible),
    ),
    _call(
        "POST", "/v1/invoiceitems", "InvoiceItemCreateParams", _new(invoices.create_item),
        "customer invoice amount currency description discountable metadata period", "customer amount",
    ),
    _call(
        "POST", "/v1/credit_notes", "CreditNoteCreateParams", _new(credit_notes.create),
        "invoice lines.type lines.invoice_line_item lines.amount lines.metadata memo metadata reason email_type "
        "refund_amount credit_amount out_of_band_amount", "invoice lines",
    ),
    _call("GET", "/v1/credit_notes", "CreditNoteListParams", _list_notes, "limit starting_after invoice customer"),
    _call(
        "GET", "/v1/credit_notes/preview", "CreditNotePreviewParams", _new(credit_notes.preview),
        "invoice lines.type lines.invoice_line_item lines.amount", "invoice lines",
    ),
    _call("GET", "/v1/credit_notes/{id}", "CreditNoteRetrieveParams", _retrieve_note),
    _call("GET", "/v1/credit_notes/{id}/lines", "CreditNoteLineItemListParams", _list_note_lines,
          "limit starting_after"),
    _call("POST", "/v1/credit_notes/{id}/void", "CreditNoteVoidCreditNoteParams", _on_invoice(credit_notes.void)),
    _call("GET", "/v1/refunds", "RefundListParams", _list_refunds,
          "limit starting_after charge payment_intent created.gte"),
    _call("POST", "/v1/refunds", "RefundCreateParams", _new(credit_notes.refund_by_hand),
          "payment_intent amount metadata", "payment_intent"),
    _call("GET", "/v1/invoice_payments", "InvoicePaymentListParams", _list_payments,
          "limit starting_after invoice status payment.type payment.payment_intent"),
    _call("GET", "/v1/refunds/{id}", "RefundRetrieveParams", _retrieve("refund")),
    _call("GET", "/v1/invoiceitems", "InvoiceItemListParams", _list_items, "limit starting_after customer pending",
          "pending"),
    _call("GET", "/v1/events", "EventListParams", _list_events, "limit starting_after type"),
    _call("GET", "/v1/events/{id}", "EventRetrieveParams", _retrieve("event")),
)  # fmt: skip


def match(method: str, path: str) -> tuple[Call, str]:
    """The route of a request and the name in its path. Raises StripeRefusal (404)."""
    for route in (*METER_ROUTES, *STREAM_ROUTES, *PAYMENT_ROUTES, *FEE_ROUTES, *ROUTES):
        pattern = re.escape(route.path).replace(r"\{id\}", "([A-Za-z0-9_]+)")
        found = re.fullmatch(pattern, path)
        if found and route.method == method:
            return route, found[1] if found.groups() else ""
    raise StripeRefusal(f"Unrecognized request URL ({method}: {path}). The sandbox does not have it.", status=404)
