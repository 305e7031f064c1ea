"""Stripe, as far as its meters need it: events, and what they come to."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import stripe

from meterhouse_billing.gateway import ATTEMPTS, Gateway, StripeRefused, StripeUnavailable, may_pass, sentence
from meterhouse_billing.meter_records import Event
from meterhouse_billing.pace import EVENTS_PER_S, OTHERS_PER_S, Pace
from meterhouse_rating.periods import Period
from meterhouse_store.numbers import D

KEY_PREFIX: Final = "mh-"
_DUPLICATE: Final = "already exists with identifier"
_SERVER_ERROR: Final = 500


@dataclass
class MeterGateway:
    """Every method raises StripeUnavailable or StripeRefused."""

    gateway: Gateway
    events: Pace = field(default_factory=lambda: Pace(EVENTS_PER_S))
    others: Pace = field(default_factory=lambda: Pace(OTHERS_PER_S))

    def send(self, event: Event, attempts: int) -> None:
        """Deliver an event. `attempts` are the runs that tried to, this one included.

        That an event of this identifier exists means that it was delivered: the identifier is a hash of all that the
        event says. After a 500 the key is another one, for Stripe keeps a 500 under the key for a day.
        """
        params = {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "timestamp": stamp(event),
            "payload": {"stripe_customer_id": event.stripe_customer_id, "value": str(event.total)},
        }
        saved = 0
        for attempt in range(1, ATTEMPTS + 1):
            key = f"{KEY_PREFIX}{event.identifier}-{attempts}.{saved}"
            self.events.wait()
            try:
                self._create(params, key)
            except stripe.StripeError as problem:
                if _DUPLICATE in str(problem):
                    return
                if not may_pass(problem):
                    raise StripeRefused(sentence(problem), code=problem.code, status=problem.http_status) from problem
                if attempt == ATTEMPTS:
                    raise StripeUnavailable(f"Stripe gave no answer in {ATTEMPTS} attempts: {problem}") from problem
                saved += (problem.http_status or 0) >= _SERVER_ERROR
                self.gateway.pause(attempt)
            else:
                return

    def _create(self, params: Any, key: str) -> None:
        path = "/v1/billing/meter_events"
        self.gateway.once(lambda client: client.raw_request("post", path, **params, idempotency_key=key))

    def total(self, meter_id: str, stripe_customer_id: str, period: Period) -> Decimal:
        """What the customer's events of [start, end) come to; 0 without any."""
        found = self._summaries(meter_id, stripe_customer_id, period, {})
        return sum(found.values(), Decimal(0))

    def by_hour(self, meter_id: str, stripe_customer_id: str, period: Period) -> dict[datetime, Decimal]:
        """Hour -> what its events come to, of the hours with events."""
        return self._summaries(meter_id, stripe_customer_id, period, {"value_grouping_window": "hour"})

    def report(self, event_id: str) -> dict[str, Any]:
        """The whole of a thin event: https://docs.stripe.com/event-destinations#thin-payload"""
        self.others.wait()
        found: dict[str, Any] = self.gateway.call(lambda client: client.v2.core.events.retrieve(event_id)).to_dict()
        return found

    def _summaries(
        self, meter_id: str, stripe_customer_id: str, period: Period, grouping: dict[str, str]
    ) -> dict[datetime, Decimal]:
        params: Any = {
            "customer": stripe_customer_id,
            "start_time": int(period.start.timestamp()),
            "end_time": int(period.end.timestamp()),
            "limit": 100,
            **grouping,
        }
        found: dict[datetime, Decimal] = {}
        while True:
            page = self._page(meter_id, params)
            for summary in page.data:
                # A float in JSON: exact for whole numbers of up to 15 digits, and Stripe takes no longer ones.
                found[datetime.fromtimestamp(summary.start_time, UTC)] = D(str(summary.aggregated_value))
            if not page.has_more:
                return found
            params["starting_after"] = page.data[-1].id

    def _page(self, meter_id: str, params: Any) -> Any:
        self.others.wait()
        return self.gateway.call(lambda client: client.v1.billing.meters.event_summaries.list(meter_id, params))


def stamp(event: Event) -> int:
    """The event's time: within its hour whenever it is sent, and later for a newer version, as its start and on."""
    return int(event.hour.timestamp()) + min(event.version - 1, 3599)


def identifier_of(key: str) -> str | None:
    """The identifier of the event that was sent under an idempotency key; None for a key that is none of ours."""
    if not key.startswith(KEY_PREFIX) or "-" not in key[len(KEY_PREFIX) :]:
        return None
    return key[len(KEY_PREFIX) :].partition("-")[0]
