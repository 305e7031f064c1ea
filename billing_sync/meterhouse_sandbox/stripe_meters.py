"""What the sandbox's Stripe knows about billing meters: events, their aggregation, summaries, error reports.

Rules from https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage and
https://docs.stripe.com/api/billing/meter-event: a reply says that an event was received; whether it counts is found
out afterwards and reported by a thin event that names the HTTP idempotency key.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

MAX_NAME: Final = 100
UNIQUE_FOR_S: Final = 24 * 3600
CANCELLED_WITHIN_S: Final = 24 * 3600
OLDEST_S: Final = 35 * 24 * 3600
NEWEST_S: Final = 5 * 60
MAX_DIGITS: Final = 15
WINDOW_S: Final = {"hour": 3600, "day": 86400}

Given = dict[str, Any]


def create(context: Context, given: Given) -> Given:
    """A meter. Its event name is that of one active meter."""
    _short("event_name", given["event_name"])
    if _meter_of(context, given["event_name"]) is not None:
        raise StripeRefusal(f"There is already an active meter with event name {given['event_name']}.")
    if given["default_aggregation"]["formula"] not in ("sum", "count", "last"):
        raise StripeRefusal("Invalid formula: must be one of sum, count, last", param="default_aggregation[formula]")
    if given.get("event_time_window") not in (None, *WINDOW_S):
        raise StripeRefusal("Invalid event_time_window: must be one of day, hour", param="event_time_window")
    mapping = {"event_payload_key": "stripe_customer_id", "type": "by_id"}
    meter = {
        "id": new_id("mtr_test"),
        "object": "billing.meter",
        "created": context.now(),
        "customer_mapping": given.get("customer_mapping") or mapping,
        "default_aggregation": given["default_aggregation"],
        "display_name": given["display_name"],
        "event_name": given["event_name"],
        "event_time_window": given.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": context.now(),
        "value_settings": given.get("value_settings") or {"event_payload_key": "value"},
    }
    context.state.put("billing.meter", meter)
    return meter


def deactivate(context: Context, name: str) -> Given:
    meter = context.find("billing.meter", name)
    meter |= {"status": "inactive", "status_transitions": {"deactivated_at": context.now()}}
    context.state.put("billing.meter", meter)
    return meter


def record(context: Context, given: Given) -> Given:
    """Receive an event. What can be seen at once is refused at once; the rest becomes an error report."""
    identifier = given.get("identifier") or new_id("evt")
    _short("identifier", identifier)
    _short("event_name", given["event_name"])
    now = context.now()
    at = given.get("timestamp", now)
    if not now - OLDEST_S <= at <= now + NEWEST_S:
        message = "The timestamp must be within the past 35 calendar days or up to 5 minutes in the future."
        raise StripeRefusal(message, param="timestamp")
    if context.state.meter_event_since(identifier, now - UNIQUE_FOR_S):
        raise StripeRefusal(f"An event already exists with identifier {identifier}.", param="identifier")
    meter = _meter_of(context, given["event_name"])
    customer, value, problem = _reading(context, meter, given)
    context.state.add_meter_event(identifier, given["event_name"], customer, at, value, counts=problem is None)
    if problem is not None:
        _report(context, meter, *problem)
    return {
        "object": "billing.meter_event",
        "created": now,
        "event_name": given["event_name"],
        "identifier": identifier,
        "livemode": False,
        "payload": given["payload"],
        "timestamp": at,
    }


def take(context: Context, given: Given) -> None:
    """Receive an event of the stream: whatever is wrong with it becomes a report, and what is known is passed over."""
    now, at = context.now(), given["timestamp"]
    if context.state.meter_event_since(given.get("identifier") or "", now - UNIQUE_FOR_S):
        return
    if now - OLDEST_S <= at <= now + NEWEST_S:
        record(context, given)
        return
    code = "timestamp_in_future" if at > now else "timestamp_too_far_in_past"
    _report(context, _meter_of(context, given["event_name"]), code, "The timestamp is out of bounds.")


def cancel(context: Context, given: Given) -> Given:
    """An adjustment: the event of that identifier does not count any more."""
    _short("event_name", given["event_name"])
    identifier = given.get("cancel", {}).get("identifier")
    if not identifier:
        raise StripeRefusal("Missing required param: cancel[identifier].", param="cancel[identifier]")
    if not context.state.cancel_meter_event(identifier, given["event_name"], context.now() - CANCELLED_WITHIN_S):
        message = f"There is no event with identifier {identifier} that was received in the past 24 hours."
        raise StripeRefusal(message, code="resource_missing", param="cancel[identifier]")
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": given["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


def summaries(context: Context, name: str, given: Given) -> list[Given]:
    """What a customer's events come to in [start, end), in one piece or by windows; empty ones are left out."""
    meter = context.find("billing.meter", name)
    context.find("customer", given["customer"], "customer")
    start, end = given["start_time"], given["end_time"]
    grouping = given.get("value_grouping_window")
    step = WINDOW_S[grouping] if grouping else 60
    if start % step or end % step or end <= start:
        message = f"start_time and end_time must be aligned with {grouping or 'minute'} boundaries, in this order."
        raise StripeRefusal(message, param="start_time")
    windows = [(start, end)]
    if grouping:
        windows = [(at, at + step) for at in range(start, end, step)]
    found = []
    for first, last in windows:
        value = total(context, meter, given["customer"], first, last)
        if value is not None:
            found.append(
                {
                    "id": f"mtrusg_{meter['id']}_{given['customer']}_{first}_{last}",
                    "object": "billing.meter_event_summary",
                    "aggregated_value": float(value),
                    "end_time": last,
                    "livemode": False,
                    "meter": meter["id"],
                    "start_time": first,
                }
            )
    return found[::-1]


def total(context: Context, meter: Given, customer: str, start: int, end: int) -> Decimal | None:
    """The aggregate of the events in [start, end); None for no event. Of a pre-aggregated window the newest counts."""
    events = context.state.meter_events(meter["event_name"], customer, start, end)
    if not events:
        return None
    if meter["event_time_window"]:
        length = WINDOW_S[meter["event_time_window"]]
        events = list({at // length: (at, value) for at, value in events}.values())
    values = [Decimal(value) for _, value in events]
    formula = meter["default_aggregation"]["formula"]
    return sum(values, Decimal(0)) if formula == "sum" else Decimal(len(values)) if formula == "count" else values[-1]


def _reading(context: Context, meter: Given | None, given: Given) -> tuple[str, str, tuple[str, str] | None]:
    """The customer and value of an event, and the code and words of what keeps it from counting."""
    if meter is None:
        return "", "0", ("no_meter", f"No active meter found for event name {given['event_name']}.")
    payload = given["payload"]
    customer = payload.get(meter["customer_mapping"]["event_payload_key"], "")
    value = payload.get(meter["value_settings"]["event_payload_key"], "")
    if not customer:
        return "", "0", ("meter_event_no_customer_defined", "The payload names no customer.")
    if context.state.get("customer", customer) is None:
        return customer, "0", ("meter_event_customer_not_found", f"No such customer: '{customer}'")
    if not re.fullmatch(r"-?\d+", value):
        return customer, "0", ("meter_event_invalid_value", f"The value must be a whole number, not {value!r}.")
    if len(value.lstrip("-")) > MAX_DIGITS:
        return customer, "0", ("meter_event_value_too_many_digits", f"A value has at most {MAX_DIGITS} digits.")
    return customer, value, None


def _report(context: Context, meter: Given | None, code: str, words: str) -> None:
    """The thin event about an event that does not count; the request is named by its idempotency key."""
    sample = {"error_message": words, "request": {"identifier": context.request.get("idempotency_key") or ""}}
    kind = "no_meter_found" if meter is None else "error_report_triggered"
    moment = datetime.fromtimestamp(context.now(), UTC).isoformat().replace("+00:00", "Z")
    event: Given = {
        "id": new_id("evt_test"),
        "object": "v2.core.event",
        "changes": None,
        "context": None,
        "created": moment,
        "data": {
            "developer_message_summary": "There is 1 invalid event.",
            "reason": {
                "error_count": 1,
                "error_types": [{"code": code, "error_count": 1, "sample_errors": [sample]}],
            },
            "validation_end": moment,
            "validation_start": moment,
        },
        "livemode": False,
        "reason": None,
        "related_object": None,
        "type": f"v1.billing.meter.{kind}",
    }
    if meter is not None:
        event["related_object"] = {
            "id": meter["id"],
            "type": "billing.meter",
            "url": f"/v1/billing/meters/{meter['id']}",
        }
    context.state.put("thin_event", event)
    context.state.deliver(event["id"])


def _meter_of(context: Context, event_name: str) -> Given | None:
    active = context.state.newest_first(
        "billing.meter", lambda one: one["event_name"] == event_name and one["status"] == "active"
    )
    return active[0] if active else None


def _short(name: str, value: str) -> None:
    if len(value) > MAX_NAME:
        raise StripeRefusal(f"Invalid string: {name} must be at most {MAX_NAME} characters", param=name)
