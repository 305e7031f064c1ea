"""The exporting loop: a thread that sends what was counted, and after a failure what the journal still holds.

What failed is in the journal under the same ids and times and is not kept in memory as well (unless the process has no
journal), so after a failure the loop follows the journal until it has caught up, and then goes back to the counters.
"""

import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence

from opentelemetry.sdk.metrics.export import MetricsData

from meterhouse.adoption import BATCH, Drained, drain
from meterhouse.delivery import Delivery, Outcome
from meterhouse.events import UsageEvent
from meterhouse.journal import Journal
from meterhouse.pipeline import Pipeline
from meterhouse.settings import destination, journal_directory

INTERVAL_S = 5.0
LONGEST_PAUSE_S = 60.0
ADOPT_EVERY_S = 60.0
KEPT_BATCHES = 20
REFUSED_SUFFIX = ".refused"

_log = logging.getLogger("meterhouse")


class Exporter:
    """Owns the way out of one process. `step` is the whole loop body, so that a test can drive it without a thread."""

    def __init__(self, journal: Journal | None, pipeline: Pipeline) -> None:
        self._journal = journal
        self._pipeline = pipeline
        self._delivery: Delivery | None = None
        self._behind = False
        self._kept: deque[MetricsData] = deque(maxlen=KEPT_BATCHES)
        self._failures = 0
        self._not_before = 0.0
        self._adopt_at = 0.0
        self._stopping = False

    def lagging(self) -> None:
        """Something was journalled without being counted: follow the journal."""
        self._behind = True

    def step(self) -> None:
        """Send what is due; never raises for what a network or a server does."""
        if time.monotonic() < self._not_before or not self._connect():
            return
        self._send_counted()
        if self._behind and not self._failures:
            self._follow_journal()
        if not self._failures and not self._stopping and time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_EVERY_S
            drain(journal_directory(), self.deliver)

    def flush(self) -> bool:
        """Send now, whatever pause a failure asked for; True when nothing is left to send."""
        self._stopping = True
        self._not_before = 0.0
        self._failures = 0
        self.step()
        return not self._behind and not self._kept and not self._failures and self._delivery is not None

    def interrupt(self) -> None:
        """End a wait inside the stock exporter."""
        if self._delivery is not None:
            self._delivery.stop()

    def deliver(self, pipeline: Pipeline, events: Sequence[UsageEvent]) -> bool:
        """Send these events through `pipeline`, which must be empty."""
        pipeline.add(events)
        batch, _ = pipeline.collect()
        if batch is None or self._delivery is None:
            return batch is None
        outcome = self._delivery.attempt(batch)
        if outcome is Outcome.REFUSED:
            self._set_aside(events)
        self._note(outcome)
        return outcome is not Outcome.RETRY

    def _connect(self) -> bool:
        goal = destination()
        if goal is None:
            return False
        if self._delivery is None or self._delivery.destination != goal:
            self._delivery = Delivery(goal)
        return True

    def _send_counted(self) -> None:
        if not self._send_kept():
            return
        batch, event_ids = self._pipeline.collect()
        if batch is None or self._delivery is None or self._behind:  # behind: the journal has all of it
            return
        outcome = self._delivery.attempt(batch)
        self._note(outcome)
        if outcome is Outcome.ACKNOWLEDGED:
            self._acknowledge(event_ids)
        elif self._journal is None:
            if len(self._kept) == self._kept.maxlen:
                _log.error("Meterhouse has no journal and its memory is full: the oldest undelivered usage is lost.")
            self._kept.append(batch)
        else:
            # Refused ones too: they are sent again from the journal, and set aside there.
            self._behind = True

    def _send_kept(self) -> bool:
        """Without a journal, failed batches wait in memory; True when none is left."""
        while self._kept and self._delivery is not None:
            outcome = self._delivery.attempt(self._kept[0])
            self._note(outcome)
            if outcome is Outcome.RETRY:
                return False
            if outcome is Outcome.REFUSED:
                _log.error("Meterhouse: the collector refused usage (%s), and there is no journal.", self._delivery.why)
            self._kept.popleft()
        return True

    def _follow_journal(self) -> None:
        while self._journal is not None:
            self._behind = False  # before reading: `lagging` may say otherwise meanwhile
            events = self._journal.unacknowledged(BATCH)
            if events and not self._deliver_own(events):
                self._behind = True
                return
            self._acknowledge([event.event_id for event in events])
            if len(events) < BATCH:
                return

    def _deliver_own(self, events: Sequence[UsageEvent]) -> bool:
        # A pipeline of its own, because the process's counters may be added to meanwhile.
        pipeline = Pipeline(self._pipeline.resource)
        try:
            return self.deliver(pipeline, events)
        finally:
            pipeline.close()

    def _acknowledge(self, event_ids: Sequence[str]) -> None:
        if self._journal is None or not event_ids:
            return
        try:
            self._journal.acknowledge(event_ids)
        except OSError as error:  # sent again by whoever reads the journal; the id makes twice equal once
            _log.warning("Meterhouse could not note in its journal what was delivered: %s", error)

    def _note(self, outcome: Outcome) -> None:
        why = self._delivery.why if self._delivery else ""
        if outcome is not Outcome.RETRY:
            if self._failures:
                _log.warning("Meterhouse delivers usage again.")
            self._failures, self._not_before = 0, 0.0
            return
        if self._failures == 0:
            _log.warning("Meterhouse cannot deliver usage (%s). It is kept in the journal and sent later.", why)
        self._failures += 1
        pause_s = min(2.0 ** min(self._failures - 1, 10), LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)
        self._not_before = time.monotonic() + pause_s

    def _set_aside(self, events: Sequence[UsageEvent]) -> None:
        why = self._delivery.why if self._delivery else ""
        path = journal_directory() / f"{time.time_ns()}-{os.getpid()}{REFUSED_SUFFIX}"
        with open(path, "x", encoding="utf-8") as file:
            os.chmod(path, 0o600)
            for event in events:
                file.write(json.dumps({"why": why, "event": event.as_json()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _log.error("Meterhouse: the collector refused %d usage events (%s); kept in %s", len(events), why, path)


def drain_now() -> Drained | None:
    """Deliver the journals of dead processes once, now; None when it is not known where to."""
    exporter = Exporter(None, Pipeline({}))
    if not exporter._connect():
        return None
    return drain(journal_directory(), exporter.deliver)
