"""How many requests were turned away, by credential, hour and reason: in the warehouse, so that a restart keeps them.

Together with the rows of `events`: received = counted + duplicate + suspended, plus this. Nothing of a request is kept
but its size. What is not written yet is kept in a file beside the journal every KEEP_S, and the next process writes it:
a crash takes along what was counted since.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from clickhouse_connect.driver.client import Client

from meterhouse_collector.left_rows import INSTANT_BOUND_S, fits
from meterhouse_collector.segments import write_durably

KEYS: Final = 10_000
"""Of one process, in memory. What is beyond is counted under the credential ''."""
KEEP_S: Final = 10.0
"""How often `keep` is to be called."""
_COLUMNS: Final = ["namespace", "credential_id", "hour", "code", "process_run_id", "requests", "bytes"]
_KINDS: Final = ("text", "text", "hour", "text", "text", "uint64", "uint64")

log = logging.getLogger(__name__)


class _Key(NamedTuple):
    namespace: str
    credential_id: str
    hour: int
    code: str


class RefusalCounts:
    """Counted by the doors, written by whoever has a client, kept in `file` meanwhile. Used by several threads."""

    def __init__(self, file: Path, clock_s: Callable[[], float] = time.time) -> None:
        self._file, self._clock_s = file, clock_s
        self._run_id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._counts: dict[_Key, tuple[int, int]] = {}
        self._changed: set[_Key] = set()
        self._earlier = _read(file)
        self._file_lock = threading.Lock()
        self._is_kept = file.exists()  # also what is damaged is told of once, not at each start

    def add(self, namespace: str, credential_id: str, code: str, size: int) -> None:
        """One more request; both ids '' where the sender is not known."""
        hour = min(max(int(self._clock_s() // 3600), 0), INSTANT_BOUND_S // 3600 - 1)
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
            rows = [*self._earlier, *self._rows_of(self._changed)]
            changed, self._changed = self._changed, set()
        try:
            if rows:
                client.insert(
                    "refusals",
                    [[*row[:2], datetime.fromtimestamp(row[2] * 3600, UTC), *row[3:]] for row in rows],
                    column_names=_COLUMNS,
                    settings={"async_insert": 0, "optimize_on_insert": 0},
                )
        except BaseException:
            with self._lock:
                self._changed |= changed
            raise
        with self._lock:
            self._earlier = []
        self._forget(int(self._clock_s() // 3600))
        if self._is_kept:
            self.keep()

    def keep(self) -> None:
        """Let the file have what is not written yet."""
        with self._file_lock:
            with self._lock:
                rows = [*self._earlier, *self._rows_of(self._changed)]
            if not rows and not self._is_kept:
                return
            try:
                write_durably(self._file, json.dumps(rows).encode())
            except OSError as problem:
                log.warning("refusals that wait for the warehouse cannot be kept in %s: %s", self._file, problem)
            else:
                self._is_kept = bool(rows)

    def _rows_of(self, keys: Iterable[_Key]) -> list[list[Any]]:
        return [[*key, self._run_id, *self._counts[key]] for key in keys]

    def _forget(self, hour: int) -> None:
        with self._lock:
            for key in [key for key in self._counts if key.hour < hour and key not in self._changed]:
                del self._counts[key]


def _read(file: Path) -> list[list[Any]]:
    """What the process before left."""
    try:
        rows = json.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError:
        rows = None
    found = rows if isinstance(rows, list) else [rows]
    kept = [row for row in found if fits(row, _KINDS)]
    if len(kept) < len(found):
        log.warning("%s is damaged: refusals of the process before are missing, %d could be read", file, len(kept))
    return kept
