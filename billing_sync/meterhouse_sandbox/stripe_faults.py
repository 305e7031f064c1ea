"""What goes wrong between a client and the sandbox: by a script, by chance from a seed, or for as long as it is told.

Set on the command line, or while it runs by POST /_sandbox/faults. Faults meet requests under /v1 and /v2 only.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

DROPPED_BEFORE: Final = "dropped_before"
DROPPED_AFTER: Final = "dropped_after"
CONFLICT: Final = "409"
TOO_MANY: Final = "429"
SAVED_500: Final = "saved_500"
SAVED_500_DONE: Final = "saved_500_done"
SLOW: Final = "slow"
KINDS: Final = (DROPPED_BEFORE, DROPPED_AFTER, CONFLICT, TOO_MANY, SAVED_500, SAVED_500_DONE, SLOW)
"""Nothing arrived; it was done, and no reply comes; busy; too many requests; a 500 that Stripe keeps under the
idempotency key, with nothing done and with all of it done; late."""

EVENTS_PER_S: Final = 1000
"""Meter events of v1 in live mode: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api"""
OTHERS_PER_S: Final = 25
"""Of each other endpoint: https://docs.stripe.com/rate-limits"""
SEARCHES_PER_S: Final = 20
OVERALL_PER_S: Final = 100
"""Of an account in live mode, meter events apart."""

METER_EVENTS: Final = "POST /v1/billing/meter_events"
METER_STREAM: Final = "POST /v2/billing/meter_event_stream"
STREAM_PER_S: Final = 100


class Faults:
    """The schedule. `script` is used up request by request; `rates` (kind -> share of requests) need a seed."""

    def __init__(self) -> None:
        self.change({})

    def change(self, said: dict[str, Any]) -> None:
        """Take over a schedule: script, rates, seed, down, slow_s, shuffle_webhooks, repeat_webhooks.

        What is not said is off. Raises ValueError.
        """
        known = {"script", "rates", "seed", "down", "slow_s", "shuffle_webhooks", "repeat_webhooks"}
        strange = [*(said.keys() - known), *({*said.get("script", ()), *said.get("rates", ())} - set(KINDS))]
        if strange:
            raise ValueError(f"{', '.join(map(repr, sorted(strange)))} not known; faults are {', '.join(KINDS)}")
        self.script: deque[str] = deque(said.get("script", ()))
        self.rates = {kind: float(rate) for kind, rate in said.get("rates", {}).items()}
        self.random = random.Random(said.get("seed", 1))
        self.down = bool(said.get("down", False))
        self.slow_s = float(said.get("slow_s", 0.05))
        self.shuffle_webhooks = bool(said.get("shuffle_webhooks", False))
        self.repeat_webhooks = bool(said.get("repeat_webhooks", False))

    def of(self, method: str) -> str | None:
        """What happens to the next request; only the loss of a reply and a 429 also happen to a GET."""
        if self.down:
            return DROPPED_BEFORE
        kind = None
        if self.script:
            if method == "POST":
                kind = self.script.popleft()
        elif self.rates:
            dice = self.random.random()
            for name, rate in self.rates.items():
                if dice < rate:
                    kind = name
                    break
                dice -= rate
        return kind if method == "POST" or kind in (None, DROPPED_BEFORE, DROPPED_AFTER, TOO_MANY, SLOW) else None

    def webhooks(self, events: list[tuple[dict[str, Any], int]]) -> Iterator[tuple[dict[str, Any], int]]:
        """The deliveries in the order, and as often, as they are made."""
        if self.shuffle_webhooks:
            self.random.shuffle(events)
        for event in events:
            yield event
            if self.repeat_webhooks:
                yield event


class Limits:
    """Stripe's rate limits of live mode, over any second; and one call at a time per customer and meter.

    Off: nothing is refused.
    """

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._seen: dict[str, deque[float]] = {}
        self._busy: set[tuple[str, str]] = set()
        self.refused = 0

    def refuses(self, endpoint: str) -> str | None:
        """Why one more request of the endpoint is too many (`endpoint-rate`, `global-rate`); counts it where it is not.

        The words are those of Stripe's header Stripe-Rate-Limited-Reason.
        """
        if not self._on:
            return None
        counted = {endpoint: ("endpoint-rate", _limit(endpoint))}
        if endpoint not in (METER_EVENTS, METER_STREAM):
            counted[""] = ("global-rate", OVERALL_PER_S)
        now = time.monotonic()
        for name, (why, most) in counted.items():
            seen = self._seen.setdefault(name, deque())
            while seen and seen[0] <= now - 1:
                seen.popleft()
            if len(seen) >= most:
                self.refused += 1
                return why
        for name in counted:
            self._seen[name].append(now)
        return None

    @contextmanager
    def one_at_a_time(self, key: tuple[str, str] | None) -> Iterator[bool]:
        """False while another call for the same meter and customer is being answered."""
        if key is None:
            yield True
        elif key in self._busy:
            yield False
        else:
            self._busy.add(key)
            try:
                yield True
            finally:
                self._busy.discard(key)


def _limit(endpoint: str) -> int:
    if endpoint == METER_EVENTS:
        return EVENTS_PER_S
    if endpoint == METER_STREAM:
        return STREAM_PER_S
    return SEARCHES_PER_S if endpoint.endswith("/search") else OTHERS_PER_S
