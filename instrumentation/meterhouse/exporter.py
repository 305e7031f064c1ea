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

from meterhouse.adoption import BATCH, Drained, drain
from meterhouse.delivery import Delivery, Outcome
from meterhouse.events import UsageEvent
from meterhouse.journal import Journal
from meterhouse.pipeline import Pipeline
from meterhouse.runtime import warn_once
from meterhouse.settings import destination, journal_directory, why_nowhere

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
        self._kept: deque[list[UsageEvent]] = deque(maxlen=KEPT_BATCHES)
        self._only_copy = False
        self._failures = 0
        self._told = ""
        self._not_before = 0.0
        self._adopt_at = 0.0
        self._stopping = False

    def lagging(self) -> None:
        """Something was journalled without being counted: follow the journal."""
        self._behind = True

    def step(self) -> None:
        """Send what is due; never raises for what a network or a server does."""
        if self._pausing() or not self._connect():
            return
        self._send_counted()
        if self._behind and not self._pausing():
            self._follow_journal()
        if not self._pausing() and not self._stopping and time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_EVERY_S
            drain(journal_directory(), self.deliver)

    def _pausing(self) -> bool:
        """True for a while after a failure, including one in this very step."""
        return time.monotonic() < self._not_before

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

    def deliver(self, pipeline: Pipeline, events: Sequence[UsageEvent]) -> Outcome:
        """Send these events through `pipeline`, which must be empty; what is bad among them is set aside.

        Unless the outcome is `again`, nothing of them has to be sent again.
        """
        bad: list[tuple[UsageEvent, str]] = []
        outcome = self._send(pipeline, events, bad)
        # Only once all the rest is through: before, it would be set aside again by every new attempt.
        if bad and not outcome.again and not self._set_aside(bad):
            outcome = Outcome.RETRY
        self._note(outcome)
        return outcome

    def _send(self, pipeline: Pipeline, events: Sequence[UsageEvent], bad: list[tuple[UsageEvent, str]]) -> Outcome:
        """Send the events, in halves where they cannot go as one, down to the single event that is bad."""
        if self._delivery is None:
            return Outcome.UNREACHABLE
        outcome = Outcome.DIVIDE
        try:
            pipeline.add(events)
        except Exception as error:  # noqa: BLE001 - what the SDK raises for a name that no instrument can have
            self._delivery.why = f"it cannot be counted: {error!s:.200}"
            pipeline.collect()
        else:
            batch, _ = pipeline.collect()
            if batch is None:
                return Outcome.ACKNOWLEDGED
            outcome = self._delivery.attempt(batch)
        if outcome is Outcome.REFUSED or (outcome is Outcome.DIVIDE and len(events) == 1):
            bad.extend((event, self._delivery.why) for event in events)
            return Outcome.REFUSED
        if outcome is not Outcome.DIVIDE:
            return outcome
        middle = len(events) // 2
        first = self._send(pipeline, events[:middle], bad)
        return first if first.again else self._send(pipeline, events[middle:], bad)

    def _connect(self) -> bool:
        goal = destination()
        if goal is None:
            warn_once(
                "nowhere", "Meterhouse does not know where to send usage: %s. %s", why_nowhere(), self._kept_where()
            )
            return False
        if self._delivery is None or self._delivery.destination != goal:
            self._delivery = Delivery(goal)
        return True

    def _send_counted(self) -> None:
        if not self._send_kept():
            return
        batch, events = self._pipeline.collect()
        if batch is None or self._delivery is None or self._behind:  # behind: the journal has all of it
            return
        outcome = self._delivery.attempt(batch)
        if outcome is not Outcome.DIVIDE:
            self._note(outcome)
        if outcome is Outcome.ACKNOWLEDGED:
            self._acknowledge([event.event_id for event in events])
        elif self._journal is not None:
            # Bad ones too: they are sent again from the journal, and set aside there.
            self._behind = True
        elif outcome.again or self._deliver_own(events).again:
            self._keep(events)

    def _keep(self, events: list[UsageEvent]) -> None:
        if len(self._kept) == self._kept.maxlen:
            _log.error("Meterhouse has no journal and its memory is full: the oldest undelivered usage is lost.")
        self._kept.append(events)

    def _send_kept(self) -> bool:
        """Without a journal, failed batches wait in memory; True when none is left."""
        while self._kept:
            if self._deliver_own(self._kept[0]).again:
                return False
            self._kept.popleft()
        return True

    def _follow_journal(self) -> None:
        while self._journal is not None:
            self._behind = False  # before reading: `lagging` may say otherwise meanwhile
            events = self._journal.unacknowledged(BATCH)
            if events and self._deliver_own(events).again:
                self._behind = True
                return
            self._acknowledge([event.event_id for event in events])
            if len(events) < BATCH:
                return

    def _deliver_own(self, events: Sequence[UsageEvent]) -> Outcome:
        # A pipeline of its own, because the process's counters may be added to meanwhile.
        pipeline = Pipeline(self._pipeline.resource)
        self._only_copy = self._journal is None
        try:
            return self.deliver(pipeline, events)
        finally:
            self._only_copy = False
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
        if not outcome.again:
            if self._told:
                _log.warning("Meterhouse delivers usage again.")
            self._failures, self._not_before, self._told = 0, 0.0, ""
            return
        if why != self._told and self._delivery is not None:  # once per outage, and again when it turns out otherwise
            endpoint = self._delivery.destination.endpoint
            _log.warning("Meterhouse cannot deliver usage to %s (%s). %s", endpoint, why, self._kept_where())
            self._told = why
        self._failures += 1
        pause_s = min(2.0 ** min(self._failures - 1, 10), LONGEST_PAUSE_S) * random.uniform(0.8, 1.2)
        self._not_before = time.monotonic() + pause_s

    def _kept_where(self) -> str:
        if self._journal is None:
            return "It is kept until it can be sent."
        return f"It is kept in {self._journal.path} and sent later, at the latest by `meterhouse drain`."

    def _set_aside(self, bad: Sequence[tuple[UsageEvent, str]]) -> bool:
        """Keep what is bad where `meterhouse drain` names it; False when it has to stay where it is."""
        what = f"{len(bad)} usage event{'' if len(bad) == 1 else 's'}"
        why = bad[0][1]
        path = journal_directory() / f"{time.time_ns()}-{os.getpid()}{REFUSED_SUFFIX}"
        try:
            with open(path, "x", encoding="utf-8", errors="replace") as file:
                os.chmod(path, 0o600)
                for event, reason in bad:
                    file.write(json.dumps({"why": reason, "event": event.as_json()}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self._only_copy:
                _log.error("Meterhouse loses %s that cannot be delivered (%s): %s", what, why, error)
                return True
            if self._delivery is not None:
                self._delivery.why = f"{what} cannot be set aside: {error}"
            return False
        _log.error("Meterhouse: %s cannot be delivered (%s); kept in %s", what, why, path)
        return True


def drain_now() -> Drained | None:
    """Deliver the journals of dead processes once, now; None when it is not known where to."""
    if destination() is None:
        return None
    exporter = Exporter(None, Pipeline({}))
    exporter._connect()
    return drain(journal_directory(), exporter.deliver)
