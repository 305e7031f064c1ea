"""The routes of metered billing: meters, their events, products, prices, subscriptions, thin events."""

from typing import Any, Final

from meterhouse_sandbox import stripe_catalogue as catalogue
from meterhouse_sandbox import stripe_meters as meters
from meterhouse_sandbox import stripe_subscriptions as subscriptions
from meterhouse_sandbox.stripe_calls import Given, call, new, page, retrieve
from meterhouse_sandbox.stripe_invoices import Context


def _list(kind: str, url: str, *filters: str) -> Any:
    def handle(context: Context, _name: str, given: Given) -> Given:
        found = context.state.newest_first(
            kind, lambda one: all(given.get(name) in (None, one[name]) for name in filters)
        )
        return page(found, given, url)

    return handle


def _summaries(context: Context, name: str, given: Given) -> Given:
    return page(meters.summaries(context, name, given), given, f"/v1/billing/meters/{name}/event_summaries")


def _list_prices(context: Context, _name: str, given: Given) -> Given:
    return page(catalogue.list_prices(context, given), given, "/v1/prices")


def _price(context: Context, name: str, given: Given) -> Given:
    return catalogue.show_price(context.find("price", name), given)


def _list_subscriptions(context: Context, _name: str, given: Given) -> Given:
    status = given.get("status")
    found = context.state.newest_first(
        "subscription",
        lambda one: (
            given.get("customer") in (None, one["customer"])
            and (status in ("all", one["status"]) if status else one["status"] != "canceled")
        ),
    )
    return page(found, given, "/v1/subscriptions")


def _deactivate(context: Context, name: str, _given: Given) -> Given:
    return meters.deactivate(context, name)


METER_ROUTES: Final = (
    call(
        "POST", "/v1/billing/meter_events", "billing.MeterEventCreateParams", new(meters.record),
        "event_name identifier payload timestamp",
    ),
    call(
        "POST", "/v1/billing/meter_event_adjustments", "billing.MeterEventAdjustmentCreateParams", new(meters.cancel),
        "event_name type cancel.identifier", "cancel",
    ),
    call(
        "POST", "/v1/billing/meters", "billing.MeterCreateParams", new(meters.create),
        "customer_mapping default_aggregation display_name event_name event_time_window value_settings",
    ),
    call(
        "GET", "/v1/billing/meters", "billing.MeterListParams", _list("billing.meter", "/v1/billing/meters", "status"),
        "limit starting_after status",
    ),
    call("GET", "/v1/billing/meters/{id}", "billing.MeterRetrieveParams", retrieve("billing.meter")),
    call("POST", "/v1/billing/meters/{id}/deactivate", "billing.MeterDeactivateParams", _deactivate),
    call(
        "GET", "/v1/billing/meters/{id}/event_summaries", "billing.MeterListEventSummariesParams", _summaries,
        "customer start_time end_time value_grouping_window limit starting_after",
    ),
    call(
        "POST", "/v1/products", "ProductCreateParams", new(catalogue.create_product),
        "id name description metadata tax_code unit_label",
    ),
    call("GET", "/v1/products/{id}", "ProductRetrieveParams", retrieve("product")),
    call(
        "POST", "/v1/prices", "PriceCreateParams", new(catalogue.create_price),
        "product currency recurring unit_amount unit_amount_decimal billing_scheme tiers tiers_mode lookup_key "
        "nickname metadata tax_behavior expand",
        "product",
    ),
    call(
        "GET", "/v1/prices", "PriceListParams", _list_prices,
        "limit starting_after lookup_keys product active expand",
    ),
    call("GET", "/v1/prices/{id}", "PriceRetrieveParams", _price, "expand"),
    call(
        "POST", "/v1/subscriptions", "SubscriptionCreateParams", new(subscriptions.create),
        "customer items.price items.quantity items.metadata billing_cycle_anchor backdate_start_date "
        "proration_behavior collection_method days_until_due description metadata",
    ),
    call(
        "GET", "/v1/subscriptions", "SubscriptionListParams", _list_subscriptions,
        "limit starting_after customer status",
    ),
    call("GET", "/v1/subscriptions/{id}", "SubscriptionRetrieveParams", retrieve("subscription")),
    call(
        "POST", "/v1/subscriptions/{id}", "SubscriptionUpdateParams", subscriptions.update,
        "cancel_at proration_behavior",
    ),
    call(
        "DELETE", "/v1/subscriptions/{id}", "SubscriptionCancelParams", subscriptions.cancel, "invoice_now prorate"
    ),
    call(
        "POST", "/v1/invoices/create_preview", "InvoiceCreatePreviewParams", new(subscriptions.preview),
        "subscription", "subscription",
    ),
    call("GET", "/v2/core/events/{id}", "v2.core.EventRetrieveParams", retrieve("thin_event")),
)  # fmt: skip
