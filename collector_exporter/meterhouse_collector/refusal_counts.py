"""How many requests were turned away, by credential, hour and reason: in the warehouse, so that a restart keeps them.

Together with the rows of `events`: received = counted + duplicate + suspended, plus this. Nothing of a request is kept
but its size. What was counted in the last seconds before a crash is not written.
"""

import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from clickhouse_connect.driver.client import Client

KEYS: Final = 10_000
"""Of one process, in memory. What is beyond is counted under the credential ''."""
_COLUMNS: Final = ["namespace", "credential_id", "hour", "code", "process_run_id", "requests", "bytes"]


class _Key(NamedTuple):
    namespace: str
    credential_id: str
    hour: int
    code: str


class RefusalCounts:
    """Counted by the doors, written by whoever has a client. Used by several threads."""

    def __init__(self, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._run_id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._counts: dict[_Key, tuple[int, int]] = {}
        self._changed: set[_Key] = set()

    def add(self, namespace: str, credential_id: str, code: str, size: int) -> None:
        """One more request; both ids '' where the sender is not known."""
        hour = int(self._clock_s() // 3600)
        with self._lock:
            key = _Key(namespace, credential_id, hour, code)
            if key not in self._counts and len(self._counts) >= KEYS:
                key = _Key("", "", hour, code)
            requests, total = self._counts.get(key, (0, 0))
            self._counts[key] = requests + 1, total + size
            self._changed.add(key)

    def write(self, client: Client) -> None:
        """Write what changed; may be repeated, the larger count stands. Raises clickhouse-connect's errors."""
        with self._lock:
            rows = {key: self._counts[key] for key in self._changed}
            self._changed = set()
        try:
            if rows:
                client.insert(
                    "refusals",
                    [
                        [*key[:2], datetime.fromtimestamp(key.hour * 3600, UTC), key.code, self._run_id, *counted]
                        for key, counted in rows.items()
                    ],
                    column_names=_COLUMNS,
                    settings={"async_insert": 0, "optimize_on_insert": 0},
                )
        except BaseException:
            with self._lock:
                self._changed |= rows.keys()
            raise
        self._forget(int(self._clock_s() // 3600))

    def _forget(self, hour: int) -> None:
        with self._lock:
            for key in [key for key in self._counts if key.hour < hour and key not in self._changed]:
                del self._counts[key]
