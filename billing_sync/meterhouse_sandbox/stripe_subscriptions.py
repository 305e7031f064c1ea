"""Subscriptions of the sandbox's Stripe, and the invoices that they make of usage as the clock passes their months.

As far as metered billing needs them: monthly, anchored at an instant in UTC, without proration, trials or discounts.
https://docs.stripe.com/billing/subscriptions/billing-cycle. An invoice is made when a period is over, and takes up what
the meters received until it is finalised an hour later; what comes for that period afterwards is on no invoice.
Fees are billed ahead: of the period that begins, and none of the one that a subscription begins within.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_sandbox import stripe_invoices as invoices
from meterhouse_sandbox import stripe_meters as meters
from meterhouse_sandbox import stripe_prices as prices
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

DRAFT_FOR_S: Final = 3600
LONGEST_S: Final = 31 * 86400

Given = dict[str, Any]


def create(context: Context, given: Given) -> Given:
    customer = context.find("customer", given["customer"], "customer")
    if given.get("proration_behavior") != "none":
        raise StripeRefusal("The sandbox knows proration_behavior=none only.", param="proration_behavior")
    if not given.get("items"):
        raise StripeRefusal("Missing required param: items.", code="parameter_missing", param="items")
    now = context.now()
    anchor = given.get("billing_cycle_anchor", now)
    if "billing_cycle_anchor" in given and not now < anchor <= now + LONGEST_S:
        message = "billing_cycle_anchor must be a future timestamp within the next billing period."
        raise StripeRefusal(message, param="billing_cycle_anchor")
    start = given.get("backdate_start_date", now)
    if start > now:
        raise StripeRefusal("backdate_start_date must be in the past.", param="backdate_start_date")
    period_end = anchor if "billing_cycle_anchor" in given else _month_later(anchor)
    method = given.get("collection_method", "charge_automatically")
    if method == "send_invoice" and not customer["email"]:
        raise StripeRefusal("Missing email: invoices that are sent need one.", code="missing_email")
    items = [_item(context, item, start, period_end) for item in given["items"]]
    currencies = {item["price"]["currency"] for item in items}
    if len(currencies) > 1 or customer["currency"] not in (None, *currencies):
        raise StripeRefusal("All prices have the currency of the customer's other objects.", param="items")
    customer["currency"] = currencies.pop()
    context.state.put("customer", customer)
    subscription = {
        "id": new_id("sub"),
        "object": "subscription",
        "billing_cycle_anchor": anchor,
        "collection_method": method,
        "created": now,
        "currency": customer["currency"],
        "customer": customer["id"],
        "days_until_due": given.get("days_until_due"),
        "description": given.get("description"),
        "items": {"object": "list", "data": items, "has_more": False, "url": "/v1/subscription_items"},
        "livemode": False,
        "metadata": given.get("metadata") or {},
        "start_date": start,
        "status": "active",
    }
    context.state.put("subscription", subscription)
    context.state.next_period_end = 0
    context.emit("customer.subscription.created", subscription)
    return subscription


def update(context: Context, name: str, given: Given) -> Given:
    """When it ends: `cancel_at`, in the future, or '' for not."""
    subscription = context.find("subscription", name)
    if subscription["status"] == "canceled":
        raise StripeRefusal("A canceled subscription can only update its cancellation_details and metadata.")
    if given.get("proration_behavior") != "none":
        raise StripeRefusal("The sandbox knows proration_behavior=none only.", param="proration_behavior")
    at = given.get("cancel_at") or None
    if at is not None and (not isinstance(at, int) or at <= context.now()):
        raise StripeRefusal("cancel_at must be in the future.", param="cancel_at")
    subscription |= {"cancel_at": at}
    context.state.put("subscription", subscription)
    context.emit("customer.subscription.updated", subscription)
    return subscription


def cancel(context: Context, name: str, _given: Given) -> Given:
    subscription = context.find("subscription", name)
    if subscription["status"] == "canceled":
        raise StripeRefusal(f"No such subscription: '{name}'", code="resource_missing", status=404)
    subscription |= {"status": "canceled", "canceled_at": context.now()}
    context.state.put("subscription", subscription)
    context.emit("customer.subscription.deleted", subscription)
    return subscription


def preview(context: Context, given: Given) -> Given:
    """What the invoice of the period under way would be now: it is saved nowhere."""
    subscription = context.find("subscription", given["subscription"], "subscription")
    start, end = _period(subscription)
    found = [_line(*it) for it in _billed(context, subscription, start, end)]
    total = sum(line["amount"] for line in found)
    return {
        "id": new_id("upcoming_in"),
        "object": "invoice",
        "amount_due": total,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "lines": {"object": "list", "data": found, "has_more": False, "url": "/v1/invoices/upcoming/lines"},
        "metadata": {},
        "period_end": end,
        "period_start": start,
        "status": "draft",
        "total": total,
    }


def roll(context: Context) -> None:
    """Make the invoices of all periods whose hour as a draft is over by now."""
    if context.now() < context.state.next_period_end + DRAFT_FOR_S:
        return
    ends = [context.now() + LONGEST_S]
    for subscription in context.state.newest_first("subscription", lambda one: one["status"] == "active"):
        start, end = _period(subscription)
        while end + DRAFT_FOR_S <= context.now():
            _invoice(context, subscription, start, end)
            if subscription.get("cancel_at") and end >= subscription["cancel_at"]:
                cancel(context, subscription["id"], {})
                break
            start, end = end, _month_later(end)
            for item in subscription["items"]["data"]:
                item |= {"current_period_start": start, "current_period_end": end}
            context.state.put("subscription", subscription)
        else:
            ends.append(end)
    context.state.next_period_end = min(ends)


def _item(context: Context, item: Given, start: int, end: int) -> Given:
    price = context.find("price", item["price"], "items[price]")
    metered = price["recurring"]["usage_type"] == "metered"
    if metered and "quantity" in item:
        raise StripeRefusal("A metered price takes no quantity.", param="items[quantity]")
    return {
        "id": new_id("si"),
        "object": "subscription_item",
        "current_period_end": end,
        "current_period_start": start,
        "metadata": item.get("metadata") or {},
        "price": price,
        **({} if metered else {"quantity": item.get("quantity", 1)}),
    }


def _period(subscription: Given) -> tuple[int, int]:
    item = subscription["items"]["data"][0]
    return item["current_period_start"], item["current_period_end"]


def _billed(
    context: Context, subscription: Given, start: int, end: int
) -> list[tuple[Given, str, Decimal, int, int, int]]:
    found = []
    is_last = bool(subscription.get("cancel_at")) and end >= subscription["cancel_at"]
    for item in subscription["items"]["data"]:
        price = item["price"]
        if price["recurring"]["usage_type"] == "metered":
            meter = context.find("billing.meter", price["recurring"]["meter"])
            quantity = meters.total(context, meter, subscription["customer"], start, end) or Decimal(0)
            found += [(price, *line, start, end) for line in prices.lines(price, quantity)]
        elif not is_last:
            ahead = prices.lines(price, Decimal(item["quantity"]))
            found += [(price, *line, end, _month_later(end)) for line in ahead]
    return found


def _line(price: Given, text: str, quantity: Decimal, amount: int, start: int, end: int) -> Given:
    return {
        "id": new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": f"{int(quantity)} x {price['nickname'] or price['id']} ({text})",
        "metadata": {},
        "period": {"start": start, "end": end},
        "pricing": {"type": "price_details", "price_details": {"price": price["id"], "product": price["product"]}},
        "quantity": int(quantity),
    }


def _invoice(context: Context, subscription: Given, start: int, end: int) -> None:
    method = {"collection_method": subscription["collection_method"]}
    if method["collection_method"] == "send_invoice":
        method["days_until_due"] = subscription["days_until_due"] or 30
    wanted = {"customer": subscription["customer"], "currency": subscription["currency"], **method}
    made = context.find("invoice", invoices.create(context, wanted)["id"])
    made |= {
        "billing_reason": "subscription_cycle",
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription["id"]}},
        "period_start": start,
        "period_end": end,
    }
    context.state.put("invoice", made)
    lines = [_line(*it) for it in _billed(context, subscription, start, end)]
    given = [{name: line[name] for name in ("amount", "description", "period")} for line in lines]
    invoices.add_lines(context, made["id"], {"lines": given})
    invoices.finalize(context, made["id"], {"auto_advance": False})


def _month_later(at: int) -> int:
    moment = datetime.fromtimestamp(at, UTC)
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    for day in range(moment.day, 27, -1):
        try:
            return int(moment.replace(year=year, month=month, day=day).timestamp())
        except ValueError:
            continue  # the month has no such day
    return int(moment.replace(year=year, month=month).timestamp())
