"""The exporting loop: a thread that sends what was counted, and after a failure what the journal still holds.

What failed is in the journal under the same ids and times and is not kept in memory as well (unless the process has no
journal), so after a failure the loop follows the journal until it has caught up, and then goes back to the counters.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from meterhouse import refused
from meterhouse.adoption import BATCH, Drained, drain
from meterhouse.delivery import Delivery, Outcome
from meterhouse.events import UsageEvent
from meterhouse.journal import Journal
from meterhouse.journal_records import name_of
from meterhouse.settings import destination, journal_directory, why_nowhere
from meterhouse.trouble import warn_once

INTERVAL_S = 5.0
LONGEST_PAUSE_S = 60.0
ADOPT_EVERY_S = 60.0
SENT_AT_ONCE = 500
"""Events of one request: encoded they take about a kilobyte each for a moment."""
KEPT_BATCHES = 20
COUNTED_AT_MOST = 10_000
"""Events that wait in memory while nothing can be sent, where there is no journal."""
ADOPT_AT_MOST_S = 2.0
"""So long may a pass over the journals of dead processes hold up the own usage; it goes on at the next step."""
ADOPT_AT_END_S = 1.0
"""The same for a process that ends before its first pass, and holds up its end."""
DIVIDED_AT_MOST = 50
"""Refusals that finding the bad events of one batch may take: then, what is refused together is set aside together. One
bad event among 500 takes 10 of them."""

_log = logging.getLogger("meterhouse")


class Exporter:
    """Owns the way out of one process. `step` is the whole loop body, so that a test can drive it without a thread."""

    def __init__(self, journal: Journal | None, resource: Mapping[str, str]) -> None:
        self.lost = 0
        """Events that there was no room for in memory, where there is no journal."""
        self.refused = 0
        """Events that were bad and were set aside."""
        self._journal = journal
        self._resource = resource
        self._counted: list[UsageEvent] = []
        self._delivery: Delivery | None = None
        self._behind = False
        self._kept: deque[list[UsageEvent]] = deque(maxlen=KEPT_BATCHES)
        self._only_copy = False
        self._divided = 0
        self._failures = 0
        self._told = ""
        self._not_before = 0.0
        self._adopt_at = 0.0
        self._stopping = False

    def add(self, events: Sequence[UsageEvent]) -> None:
        """Events for the next step; they are in the journal already, if there is one."""
        self._counted.extend(events)

    def lagging(self) -> None:
        """Something was journalled without being counted: follow the journal."""
        self._behind = True

    def stop(self) -> None:
        """The process ends: its own usage comes first now."""
        self._stopping = True

    def step(self) -> None:
        """Send what is due; never raises for what a network or a server does."""
        self._tend()
        if self._pausing() or not self._connect():
            self._let_wait()
            return
        self._send_counted()
        if self._behind and not self._pausing():
            self._follow_journal()
        if not self._pausing() and not self._stopping and time.monotonic() >= self._adopt_at:
            self._adopt(ADOPT_AT_MOST_S, lambda: not self._stopping)

    def _let_wait(self) -> None:
        """Nothing can be sent now: what was counted waits in the journal; without one in memory, as far as it goes."""
        if self._journal is not None:
            self._behind = self._behind or bool(self._counted)
            self._counted = []
        elif len(self._counted) > COUNTED_AT_MOST:
            self.lost += len(self._counted) - COUNTED_AT_MOST
            warn_once("lost", "Meterhouse has no journal, and its memory is full: the oldest usage is lost.")
            self._counted = self._counted[-COUNTED_AT_MOST:]

    def _tend(self) -> None:
        if self._journal is not None:
            try:
                self._journal.tend()
            except OSError as error:
                warn_once("journal", "Meterhouse cannot write its journal (%s): a crash loses usage now.", error)

    def adopt_at_end(self) -> None:
        """For processes of a moment, which would never come to it: all that a machine runs may be such."""
        if self._adopt_at == 0.0:
            self._adopt(ADOPT_AT_END_S, lambda: True)

    def _adopt(self, at_most_s: float, go_on: Callable[[], bool]) -> None:
        until = time.monotonic() + at_most_s
        try:
            directory = self._directory()
        except OSError:  # no home: this process has no journal either, and has said so
            return
        found = drain(
            directory,
            self.deliver,
            mark=self._delivery.destination.mark if self._delivery is not None else None,
            go_on=lambda: go_on() and time.monotonic() < until,
            count_rest=False,
        )
        if found.elsewhere:
            warn_once(
                "elsewhere",
                "Meterhouse leaves %s in %s to processes with the key that they were written under: see "
                "`meterhouse drain`.",
                "1 journal" if found.elsewhere == 1 else f"{found.elsewhere} journals",
                directory,
            )
        self._adopt_at = time.monotonic() + (0 if time.monotonic() >= until else ADOPT_EVERY_S)

    def _directory(self) -> Path:
        return journal_directory() if self._journal is None else self._journal.directory

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

    def deliver(self, resource: Mapping[str, str], events: Sequence[UsageEvent]) -> Outcome:
        """Send these events of the process that `resource` describes; what is bad among them is set aside.

        Unless the outcome is `again`, nothing of them has to be sent again.
        """
        bad: list[tuple[UsageEvent, str]] = []
        self._divided = 0
        outcome = self._send(resource, events, bad)
        # Only once all the rest is through: before, it would be set aside again by every new attempt.
        if bad and not outcome.again and not self._set_aside(resource, bad):
            outcome = Outcome.RETRY
        self._note(outcome)
        return outcome

    def _send(
        self, resource: Mapping[str, str], events: Sequence[UsageEvent], bad: list[tuple[UsageEvent, str]]
    ) -> Outcome:
        """Send the events, in halves where they cannot go as one, down to the single event that is bad."""
        if self._delivery is None:
            return Outcome.UNREACHABLE
        if not events:
            return Outcome.ACKNOWLEDGED
        outcome = self._delivery.attempt(resource, events)
        if outcome not in (Outcome.REFUSED, Outcome.DIVIDE):
            return outcome
        self._divided += 1
        if len(events) == 1 or (outcome is Outcome.REFUSED and self._divided > DIVIDED_AT_MOST):
            bad.extend((event, self._delivery.why) for event in events)
            return Outcome.REFUSED
        middle = len(events) // 2
        first = self._send(resource, events[:middle], bad)
        return first if first.again else self._send(resource, events[middle:], bad)

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
        events, self._counted = self._counted, []
        for start in range(0, len(events), SENT_AT_ONCE):
            some = events[start : start + SENT_AT_ONCE]
            if self._delivery is None or self._behind:  # behind: the journal has all of it
                return
            if self._pausing():  # what came before could not be sent, and there is no journal
                self._keep(some)
            else:
                self._send_some(self._delivery, some)

    def _send_some(self, delivery: Delivery, events: list[UsageEvent]) -> None:
        outcome = delivery.attempt(self._resource, events)
        if outcome is not Outcome.DIVIDE:
            self._note(outcome)
        if outcome is Outcome.ACKNOWLEDGED:
            self._acknowledge(events)
        elif self._journal is not None:
            # Bad ones too: they are sent again from the journal, and set aside there.
            self._behind = True
        elif outcome.again or self._deliver_own(events).again:
            self._keep(events)

    def _keep(self, events: list[UsageEvent]) -> None:
        if len(self._kept) == self._kept.maxlen:
            self.lost += len(self._kept[0])
            warn_once("lost", "Meterhouse has no journal, and its memory is full: the oldest usage is lost.")
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
            self._acknowledge(events)
            if len(events) < BATCH:
                return

    def _deliver_own(self, events: Sequence[UsageEvent]) -> Outcome:
        self._only_copy = self._journal is None
        try:
            return self.deliver(self._resource, events)
        finally:
            self._only_copy = False

    def _acknowledge(self, events: Sequence[UsageEvent]) -> None:
        if self._journal is None or not events:
            return
        try:
            self._journal.acknowledge([name_of(event) for event in events])
        except OSError as error:  # sent again by whoever reads the journal; the id makes twice equal once
            warn_once("note", "Meterhouse could not note in its journal what was delivered: %s", error)

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

    def _set_aside(self, resource: Mapping[str, str], bad: Sequence[tuple[UsageEvent, str]]) -> bool:
        """Keep what is bad where `meterhouse drain` names it; False when it has to stay where it is."""
        what = f"{len(bad)} usage event{'' if len(bad) == 1 else 's'}"
        why = bad[0][1]
        try:
            mark = self._delivery.destination.mark if self._delivery is not None else ""
            path = refused.keep(self._directory(), resource, bad, mark)
        except OSError as error:
            if self._only_copy:
                self.lost += len(bad)
                _log.error("Meterhouse loses %s that cannot be delivered (%s): %s", what, why, error)
                return True
            if self._delivery is not None:
                self._delivery.why = f"{what} cannot be set aside: {error}"
            return False
        self.refused += len(bad)
        _log.error("Meterhouse: %s cannot be delivered (%s); kept in %s", what, why, path)
        return True


def drain_now(directory: Path, *, refused_too: bool = False, any_key: bool = False) -> Drained | None:
    """Deliver the journals of dead processes once, now; None when it is not known where to.

    `refused_too`: first what was refused before, because its cause was mended. `any_key`: also what was written under
    another key.
    """
    goal = destination()
    if goal is None:
        return None
    exporter = Exporter(None, {})
    exporter._connect()
    mark = None if any_key else goal.mark
    before = refused.send_again(directory, exporter.deliver, mark) if refused_too else Drained()
    total = before + drain(directory, exporter.deliver, mark=mark)
    # A pass is done with what was set aside; delivered it is not.
    return replace(total, events=total.events - exporter.refused, refused=exporter.refused)
