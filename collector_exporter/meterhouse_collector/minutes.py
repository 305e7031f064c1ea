"""How the collector does, a row a minute, in the warehouse: what dashboards show of it and its objectives are kept by.

`/metrics` says the same to who scrapes it. What is over and not written yet waits in a file beside the journal, so that
the next process writes it: one that is killed takes along some ten seconds, or a minute while the warehouse is down.
"""

import json
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from clickhouse_connect.driver.client import Client

from meterhouse_collector.left_rows import INSTANT_BOUND_S, fits
from meterhouse_collector.telemetry import BOUNDS_S, Figures

LOOK_S: Final = 1.0
"""How often `look` is to be called."""
TELL_S: Final = 10.0
"""How often the minute under way is written: who watches sees it before it is over."""
KEPT: Final = 10_000
"""Rows that wait for a warehouse that is down, a week of them; what is older is forgotten."""
_COLUMNS: Final = [
    "collector_id", "minute", "process_run_id", "accepted", "refused", "failed", "bounds_s", "acknowledged", "synced",
    "waiting_bytes", "lag_s", "edition",
]  # fmt: skip
_KINDS: Final = (
    "text", "minute", "text", "uint64", "uint64", "uint64", "float64s", "uint64s", "uint64s", "uint64", "float64",
    "uint32",
)  # fmt: skip
_BOUNDS_S: Final = [*BOUNDS_S, math.inf]

log = logging.getLogger(__name__)


class _Counted(NamedTuple):
    """Since the process began."""

    accepted: int
    refused: int
    failed: int
    acknowledged: list[int]
    synced: list[int]


class Minutes:
    """`waiting_bytes` and `lag_s` are asked each second. One thread looks, another one writes.

    `file` keeps the minutes that are over until they are written, also those of the process before.
    """

    def __init__(
        self,
        collector_id: str,
        figures: Figures,
        *,
        file: Path,
        waiting_bytes: Callable[[], int],
        lag_s: Callable[[], float],
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._collector_id, self._figures, self._clock_s = collector_id, figures, clock_s
        self._ask_waiting_bytes, self._ask_lag_s = waiting_bytes, lag_s
        self._run_id = uuid.uuid4().hex
        self._before = self._counted()
        self._minute = self._minute_now()
        self._waiting_bytes, self._lag_s, self._edition = 0, 0.0, 0
        self._under_way = False
        self._waiting = _WaitingRows(file)
        self._rows: deque[list[Any]] = deque(self._waiting.read(), maxlen=KEPT)
        self._told_at_s = float("-inf")
        self._lock = threading.Lock()

    def look(self) -> None:
        """See what waits, and end the minute where it is over.

        A clock that is put back by seconds makes it a longer one. Put back further, the minute ends: one that a clock
        far ahead began would not be over for years.
        """
        minute = self._minute_now()
        put_back = minute < self._minute - 1
        if minute > self._minute or put_back:
            self.end()
            self._minute = minute
        if put_back:  # minutes come a second time, and count beside what they were
            self._run_id = uuid.uuid4().hex
        with self._lock:
            self._under_way = True
            self._waiting_bytes = max(self._waiting_bytes, self._ask_waiting_bytes())
            self._lag_s = max(self._lag_s, self._ask_lag_s())

    def end(self) -> None:
        """End the minute under way, as when the collector stops."""
        with self._lock:
            now = self._counted()
            row = self._row(now)
            self._rows.append(row)
            self._waiting.append(row, self._rows)
            self._before, self._waiting_bytes, self._lag_s = now, 0, 0.0
            self._under_way = False

    def write(self, client: Client) -> None:
        """Write the minutes that are over, and now and then the one under way; may be repeated.

        Raises clickhouse-connect's errors.
        """
        now_s = self._clock_s()
        with self._lock:
            over = list(self._rows)
            due = self._under_way and abs(now_s - self._told_at_s) >= TELL_S
            under_way = [self._row(self._counted())] if due else []
        if not over and not under_way:
            return
        rows = [[row[0], datetime.fromtimestamp(row[1] * 60, UTC), *row[2:]] for row in over + under_way]
        client.insert("collector_minutes", rows, column_names=_COLUMNS, settings={"async_insert": 0})
        with self._lock:
            if under_way:
                self._told_at_s = now_s
            while over and self._rows and self._rows.popleft() is not over[-1]:
                pass
            if over:
                self._waiting.replace(self._rows)

    def _minute_now(self) -> int:
        return min(max(int(self._clock_s() // 60), 0), INSTANT_BOUND_S // 60 - 1)

    def _row(self, now: _Counted) -> list[Any]:
        """The minute so far; each time a later edition."""
        self._edition += 1
        before = self._before
        return [
            self._collector_id,
            self._minute,
            self._run_id,
            now.accepted - before.accepted,
            now.refused - before.refused,
            now.failed - before.failed,
            _BOUNDS_S,
            _less(now.acknowledged, before.acknowledged),
            _less(now.synced, before.synced),
            self._waiting_bytes,
            self._lag_s,
            self._edition,
        ]

    def _counted(self) -> _Counted:
        seen = self._figures
        return _Counted(
            seen.accepted, seen.refused, seen.failed, list(seen.acknowledged_s.counts), list(seen.fsync_s.counts)
        )


class _WaitingRows:
    """Rows in a file, a line each: what a process that is killed leaves to the next one.

    Without fsync, and a disk that is full only costs what the file is for. A line that was torn is passed over.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lines = file, 0

    def read(self) -> list[list[Any]]:
        """The rows, oldest first."""
        try:
            lines = self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        self._lines = len(lines)
        rows = [row for row in map(_row_of, lines) if row is not None]
        if len(rows) < len(lines):
            log.warning("%s: %d lines cannot be read and are passed over", self._file, len(lines) - len(rows))
            self.replace(rows)
        return rows

    def append(self, row: list[Any], rows: Iterable[list[Any]]) -> None:
        """Add a row; where the file has grown long it is made anew of the `rows` that still wait."""
        if self._lines >= 2 * KEPT:
            self.replace(rows)
            return
        self._write([row], os.O_APPEND)
        self._lines += 1

    def replace(self, rows: Iterable[list[Any]]) -> None:
        """Let the file have these rows."""
        kept = list(rows)
        self._write(kept, os.O_TRUNC)
        self._lines = len(kept)

    def _write(self, rows: list[list[Any]], how: int) -> None:
        told = "".join(json.dumps(row) + "\n" for row in rows).encode()
        flags = os.O_WRONLY | os.O_CREAT | how
        try:
            with open(self._file, "wb", opener=lambda path, _: os.open(path, flags, 0o600)) as file:
                file.write(told)
        except OSError as problem:
            log.warning("minutes that wait for the warehouse cannot be kept in %s: %s", self._file, problem)


def _row_of(line: bytes) -> list[Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not fits(row, _KINDS):
        return None
    bounds, *histograms = row[6:9]
    return row if all(len(counts) == len(bounds) for counts in histograms) else None


def _less(counts: list[int], before: list[int]) -> list[int]:
    return [count - earlier for count, earlier in zip(counts, before, strict=True)]
