"""Delivering the journals that dead processes left, under their own resource, ids and times."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meterhouse.delivery import Outcome
from meterhouse.events import UsageEvent
from meterhouse.journal import Adopted, journals
from meterhouse.pipeline import Pipeline
from meterhouse.runtime import warn_once
from meterhouse.vocabulary import STATUS, UNFINISHED

BATCH = 500
STUCK_AT_MOST = 5
"""After so many journals in a row that the collector answers and does not take, it is the collector: a pass ends."""

Deliver = Callable[[Pipeline, Sequence[UsageEvent]], Outcome]
"""Sends one batch; unless the outcome is `again`, nothing of it has to be sent again."""


@dataclass
class Drained:
    """What a pass over the journals of dead processes came to."""

    journals: int = 0
    events: int = 0
    unfinished: int = 0
    left: int = 0
    """Events that could not be delivered; they are still in their journals."""
    unreadable_lines: int = 0
    failed: int = 0
    """Journals that could not be opened, read or sent for a reason of their own; they are kept as they are."""


def drain(directory: Path, deliver: Deliver) -> Drained:
    """Deliver every journal whose process is dead.

    One that cannot be delivered holds up itself only. Sending stops when nobody answers or the key is not known.
    """
    total = Drained()
    stuck = 0
    for path in journals(directory):
        try:
            adopted = Adopted.take(path)
            if adopted is None:
                continue
            with adopted:
                outcome = _deliver(adopted, deliver if stuck < STUCK_AT_MOST else None, total)
        except Exception:  # noqa: BLE001 - whatever ails this journal, the others are healthy
            total.failed += 1
            warn_once(str(path), "Meterhouse could not deliver %s; it is kept.", path, with_trace=True)
            continue
        if outcome is Outcome.UNREACHABLE:
            stuck = STUCK_AT_MOST
        elif outcome is Outcome.RETRY:
            stuck += 1
        elif outcome is not None:
            stuck = 0
    return total


def _deliver(adopted: Adopted, deliver: Deliver | None, total: Drained) -> Outcome | None:
    """Send what is open in the journal and remove it; None where nothing was sent. Without `deliver`, only count."""
    events = adopted.contents.to_send()
    total.journals += 1
    total.unreadable_lines += adopted.contents.unreadable_lines
    total.left += len(events)
    outcome = None
    if deliver is None:
        return outcome
    pipeline = Pipeline(adopted.contents.resource)
    try:
        for batch in _batches(events):
            outcome = deliver(pipeline, batch)
            if outcome.again:
                return outcome
            adopted.acknowledge(event.event_id for event in batch)
            total.left -= len(batch)
            total.events += len(batch)
            total.unfinished += sum(event.attributes.get(STATUS) == UNFINISHED for event in batch)
    finally:
        pipeline.close()
    adopted.remove()
    return outcome


def _batches(events: Sequence[UsageEvent]) -> Iterator[Sequence[UsageEvent]]:
    for start in range(0, len(events), BATCH):
        yield events[start : start + BATCH]
