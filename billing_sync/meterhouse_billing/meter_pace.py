"""A rate limiter of our own: never more calls in any second than Stripe publishes, whoever asks."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

EVENTS_PER_S: Final = 1000
"""Meter events of v1, live mode: https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api"""
OTHERS_PER_S: Final = 25
"""Of each other endpoint: https://docs.stripe.com/rate-limits"""

WINDOW_S: Final = 1.05
"""A little more than the second that is counted in: calls do not take equally long on their way."""


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
            now = self._clock()
            if len(self._begun) == self._limit:
                due = self._begun.popleft() + WINDOW_S
                while now < due:
                    self._sleep(due - now)
                    now = self._clock()
            self._begun.append(now)
