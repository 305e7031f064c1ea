"""Stripe's stream for many meter events (v2): up to 100 events in a request, under a token that lasts for 15 minutes.

https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#configure-high-throughput. An answer says
that the events arrived. Whether they count Stripe finds out afterwards, and reports by the request's idempotency key,
which leads back to the batch (`records.batch`). The events have the identifiers that they have in v1.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from meterhouse_billing.gateway import ATTEMPTS, Gateway, StripeRefused, StripeUnavailable, may_pass, sentence
from meterhouse_billing.meter_gateway import stamp
from meterhouse_billing.meter_records import Event
from meterhouse_rating.ids import digest

BATCH: Final = 100
"""Events in a request, at most."""
BATCH_PREFIX: Final = "mhb-"
RENEWED_BEFORE: Final = timedelta(minutes=1)
_SERVER_ERROR: Final = 500
_NOT_KNOWN: Final = 401


@dataclass
class MeterStream:
    """Shared by threads. Every method raises StripeUnavailable, or StripeRefused: then v1 is what is left."""

    gateway: Gateway
    now: Callable[[], datetime]
    _token: str = ""
    _until: datetime | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, events: Sequence[Event], batch_id: str) -> None:
        """Deliver events, which `batch_id` names. After a 500 the key is another one: Stripe keeps a 500 under it."""
        params: Any = {"events": [_wire(event) for event in events]}
        saved = renewed = 0
        for attempt in range(1, ATTEMPTS + 1):
            options: stripe.RequestOptions = {
                "api_key": self.token(),
                "idempotency_key": f"{BATCH_PREFIX}{batch_id}-{saved}",
            }
            try:
                self._create(params, options)
            except stripe.StripeError as problem:
                if _is_over(problem) and not renewed:
                    renewed = 1
                    self._forget(str(options["api_key"]))
                    continue
                if not may_pass(problem):
                    raise StripeRefused(sentence(problem), code=problem.code, status=problem.http_status) from problem
                if attempt == ATTEMPTS:
                    raise StripeUnavailable(f"Stripe gave no answer in {ATTEMPTS} attempts: {problem}") from problem
                saved += (problem.http_status or 0) >= _SERVER_ERROR
                self.gateway.pause(attempt)
            else:
                return

    def token(self) -> str:
        """A session's token that is good for a minute more; a new session where the last one is not."""
        with self._lock:
            if self._until is None or self._until - RENEWED_BEFORE <= self.now():
                made = self.gateway.call(lambda client: client.v2.billing.meter_event_session.create())
                self._token = made.authentication_token
                self._until = datetime.fromisoformat(str(made.expires_at))
            return self._token

    def _forget(self, token: str) -> None:
        with self._lock:
            if self._token == token:  # else another thread has a newer one already
                self._until = None

    def _create(self, params: Any, options: stripe.RequestOptions) -> None:
        self.gateway.once(lambda client: client.v2.billing.meter_event_stream.create(params, options))


def batch_id(events: Sequence[Event]) -> str:
    """The name of a batch: of its events and the attempts before, so that it is another one when it is sent anew."""
    return digest(["batch", *([event.identifier, event.attempts] for event in events)])


def batch_of(key: str) -> str | None:
    """The batch that was sent under an idempotency key; None for a key that is none of a batch."""
    return key.removeprefix(BATCH_PREFIX).rpartition("-")[0] if key.startswith(BATCH_PREFIX) else None


def _is_over(problem: stripe.StripeError) -> bool:
    return isinstance(problem, stripe.TemporarySessionExpiredError) or problem.http_status == _NOT_KNOWN


def _wire(event: Event) -> dict[str, Any]:
    at = datetime.fromtimestamp(stamp(event), UTC)
    return {
        "event_name": event.event_name,
        "identifier": event.identifier,
        "timestamp": at.isoformat().replace("+00:00", "Z"),
        "payload": {"stripe_customer_id": event.stripe_customer_id, "value": str(event.total)},
    }
