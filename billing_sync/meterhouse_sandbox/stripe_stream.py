"""The v2 stream of meter events: a session whose token is the key for 15 minutes, and up to 100 events in a request.

https://docs.stripe.com/api/v2/billing-meter-stream. All validation comes after the answer: what does not count is
reported, and an event whose identifier is known is passed over.
"""

import secrets
from datetime import UTC, datetime
from typing import Any, Final

from meterhouse_sandbox import stripe_meters as meters
from meterhouse_sandbox.stripe_calls import call, new
from meterhouse_sandbox.stripe_contract import StripeRefusal
from meterhouse_sandbox.stripe_invoices import Context
from meterhouse_sandbox.stripe_state import new_id

PATH: Final = "/v2/billing/meter_event_stream"
LASTS_S: Final = 15 * 60
MOST: Final = 100
_PREFIX: Final = "mes_test_"

Given = dict[str, Any]


def open_session(context: Context, _given: Given) -> Given:
    name = new_id("mes")
    session = {
        "id": name,
        "object": "v2.billing.meter_event_session",
        "authentication_token": _PREFIX + secrets.token_hex(24),
        "created": _moment(context.now()),
        "expires_at": _moment(context.now() + LASTS_S),
        "livemode": False,
    }
    context.state.put("meter_event_session", session)
    return session


def authenticate(context: Context, token: str) -> None:
    """Raises StripeRefusal for a token of no session, and of one that is over."""
    found = context.state.newest_first("meter_event_session", lambda one: one["authentication_token"] == token)
    if not found:
        raise StripeRefusal("This endpoint takes the token of a meter event session.", status=401)
    if datetime.fromisoformat(found[0]["expires_at"]).timestamp() <= context.now():
        raise StripeRefusal("The session has expired.", kind="temporary_session_expired", code="billing_meter_expired")


def stream(context: Context, given: Given) -> Given:
    if not 0 < len(given["events"]) <= MOST:
        raise StripeRefusal(f"A request has 1 to {MOST} events.", param="events")
    for event in given["events"]:
        at = datetime.fromisoformat(event["timestamp"]).timestamp() if "timestamp" in event else context.now()
        meters.take(context, {**event, "timestamp": int(at)})
    return {}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


STREAM_ROUTES: Final = (
    call("POST", "/v2/billing/meter_event_session", "v2.billing.MeterEventSessionCreateParams", new(open_session)),
    call(
        "POST", PATH, "v2.billing.MeterEventStreamCreateParams", new(stream),
        "events.event_name events.identifier events.payload events.timestamp",
    ),
)  # fmt: skip
