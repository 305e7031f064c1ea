"""What became of the rows that were received, for the collector's metrics: asked of the warehouse where somebody looks.

The question costs as much as reading the warehouse once, so it is asked in a thread of its own, with one thread of the
warehouse, only after the metrics were read, and so seldom that it takes a fiftieth of the time at most.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from clickhouse_connect.driver.client import Client

from meterhouse_collector.telemetry import Metric, gauge

FRESH_S: Final = 60.0
SHARE: Final = 50
_SETTINGS: Final = {"max_threads": 1, "max_execution_time": 300}
_ROWS: Final = "SELECT sum(received), sum(counted), sum(set_aside), sum(duplicates) FROM conservation"
_SUSPENDED: Final = "SELECT reason, count() FROM suspense GROUP BY reason ORDER BY reason"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of all namespaces, since the beginning; `suspended` by reason, as they wait now."""

    received: int
    counted: int
    set_aside: int
    duplicates: int
    suspended: tuple[tuple[str, int], ...]

    def metrics(self) -> list[Metric]:
        """As they stand."""
        by_reason = tuple(({"reason": reason}, float(rows)) for reason, rows in self.suspended)
        return [
            gauge("rows_received", "rows received, in the warehouse's control totals", self.received),
            gauge("rows_counted", "of them, rows that are usage", self.counted),
            gauge("rows_duplicate", "of them, copies of rows that were there", self.duplicates),
            gauge("rows_set_aside", "of them, span twins, discarded and retracted rows", self.set_aside),
            Metric("rows_suspended", "gauge", "of them, rows that wait in suspense, by reason", by_reason),
        ]


def ask(client: Client) -> Rows:
    """The rows as the warehouse has them. Raises clickhouse-connect's errors."""
    received, counted, set_aside, duplicates = client.query(_ROWS, settings=_SETTINGS).result_rows[0]
    waiting = client.query(_SUSPENDED, settings=_SETTINGS).result_rows
    return Rows(received, counted, set_aside, duplicates, tuple((str(reason), int(rows)) for reason, rows in waiting))


class WarehouseCounts:
    """The last answer, asked anew behind whoever reads it where it is no longer fresh."""

    def __init__(self, connect: Callable[[], Client], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._connect, self._clock_s = connect, clock_s
        self._lock = threading.Lock()
        self._rows: Rows | None = None
        self._answered_at = self._due_at = float("-inf")
        self._asking = False

    def metrics(self) -> list[Metric]:
        """What is known, and how old it is; nothing before the first answer."""
        with self._lock:
            rows, now = self._rows, self._clock_s()
            if now >= self._due_at and not self._asking:
                self._asking = True
                threading.Thread(target=self._ask, name="warehouse-counts", daemon=True).start()
        if rows is None:
            return []
        return [*rows.metrics(), gauge("rows_age_seconds", "since these rows were counted", now - self._answered_at)]

    def _ask(self) -> None:
        started = self._clock_s()
        rows = None
        try:
            client = self._connect()
            try:
                rows = ask(client)
            finally:
                client.close()
        # Whatever it is: the age of the last answer says it, and the next look asks again.
        except Exception as problem:  # noqa: BLE001
            log.warning("what became of the rows cannot be counted yet: %s", type(problem).__name__)
        with self._lock:
            ended = self._clock_s()
            self._due_at = ended + max(FRESH_S, SHARE * (ended - started))
            if rows is not None:
                self._rows, self._answered_at = rows, ended
            self._asking = False
