"""Rate limiters of our own: never more calls in any second than Stripe publishes, whoever in this process asks.

Each call is counted for its endpoint and, but for meter events in live mode, for the account. Stripe counts every named
operation by itself: `GET /v1/invoices/{id}` is one endpoint, whichever invoice is asked for.
"""

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

EVENTS_PER_S: Final = 1000
"""Meter events of v1, live mode: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api"""
STREAM_PER_S: Final = 100
"""Requests of the v2 stream: 10,000 events a second, 100 in each. The SDK says requests, which would be more."""
OTHERS_PER_S: Final = 25
"""Of each other endpoint: https://docs.stripe.com/rate-limits"""
SEARCHES_PER_S: Final = 20
LIVE_PER_S: Final = 100
"""Of an account in live mode, all endpoints together."""
TEST_PER_S: Final = 25
"""The same in test mode, where meter events count, too."""

WINDOW_S: Final = 1.05
"""A little more than the second that is counted in: calls do not take equally long on their way."""

_EVENTS: Final = "POST /v1/billing/meter_events"
_STREAM: Final = "POST /v2/billing/meter_event_stream"
_ID: Final = re.compile(r"[a-z]+(_[a-z]+)*_(?=[a-z]*[0-9A-Z])[0-9A-Za-z]{8,}")
"""An object's name in a path: `in_1MtHbELkdIwHu7ixl4OzzPMv`; no name of an operation has capitals or digits."""


class Pace:
    """Lets at most `limit` calls through in any WINDOW_S; may be shared by threads."""

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit, self._clock, self._sleep = limit, clock, sleep
        self._begun: deque[float] = deque()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next call may begin."""
        with self._lock:  # held while waiting: whoever comes later begins later
            while (now := self._clock()) < (due := self.due()):
                self._sleep(due - now)
            self.take(now)

    def due(self) -> float:
        """From when on one more call is within the limit, on the clock."""
        return self._begun[0] + WINDOW_S if len(self._begun) == self._limit else 0.0

    def take(self, now: float) -> None:
        """Count a call that begins now."""
        if len(self._begun) == self._limit:
            self._begun.popleft()
        self._begun.append(now)


@dataclass(frozen=True)
class Limits:
    """Calls a second: of all endpoints together, of the meter events' and of each other one.

    `events_apart`: meter events do not count for all together.
    """

    overall: int = LIVE_PER_S
    events: int = EVENTS_PER_S
    events_apart: bool = True
    stream: int = STREAM_PER_S

    def of(self, endpoint: str) -> int:
        """Of one endpoint, such as `GET /v1/invoices/{id}`."""
        if endpoint == _EVENTS:
            return self.events
        if endpoint == _STREAM:
            return self.stream
        return SEARCHES_PER_S if endpoint.endswith("/search") else OTHERS_PER_S


TEST: Final = Limits(overall=TEST_PER_S, events=TEST_PER_S, events_apart=False, stream=TEST_PER_S)


class Pacer:
    """Holds all limits at once; shared by all threads of a process that talk to one account."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits, self._clock, self._sleep = limits, clock, sleep
        self._lock = threading.Lock()
        self._all = Pace(limits.overall)
        self._paces: dict[str, Pace] = {}

    def wait(self, method: str, path: str) -> None:
        """Return when a call of the endpoint may begin; it is counted from then on."""
        endpoint = endpoint_of(method, path)
        apart = endpoint in (_EVENTS, _STREAM) and self._limits.events_apart
        while True:
            with self._lock:
                pace = self._paces.setdefault(endpoint, Pace(self._limits.of(endpoint)))
                paces = [pace] if apart else [pace, self._all]
                now, due = self._clock(), max(it.due() for it in paces)
                if now >= due:
                    for it in paces:
                        it.take(now)
                    return
            self._sleep(due - now)  # not under the lock: calls of other endpoints go on


def endpoint_of(method: str, path: str) -> str:
    """The operation that a call is: its method, and its path without the names of objects."""
    parts = ["{id}" if _ID.fullmatch(part) else part for part in path.split("/")]
    return f"{method.upper()} {'/'.join(parts)}"
