"""How often something may be done, per name: in this process's memory, for as many names as are bounded."""

import threading
from datetime import datetime, timedelta
from typing import Final

MAX_NAMES: Final = 10_000


class Bucket:
    """So many times within a span, for each name."""

    def __init__(self, times: int, span: timedelta) -> None:
        self._times, self._span = times, span
        self._lock = threading.Lock()
        self._taken: dict[str, list[datetime]] = {}

    def take(self, name: str, now: datetime) -> bool:
        """Whether it may be done once more now."""
        with self._lock:
            recent = [at for at in self._taken.pop(name, []) if now - at < self._span]
            allowed = len(recent) < self._times
            self._taken[name] = [*recent, now] if allowed else recent
            while len(self._taken) > MAX_NAMES:  # the name that was not seen for the longest time is first
                del self._taken[next(iter(self._taken))]
            return allowed
