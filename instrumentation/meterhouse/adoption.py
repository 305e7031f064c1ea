"""Delivering the journals that dead processes left, under their own resource, ids and times."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meterhouse.events import UsageEvent
from meterhouse.journal import Adopted, adoptable
from meterhouse.pipeline import Pipeline
from meterhouse.vocabulary import STATUS, UNFINISHED

BATCH = 500

Deliver = Callable[[Pipeline, Sequence[UsageEvent]], bool]
"""Sends one batch; True when nothing of it has to be sent again."""


@dataclass
class Drained:
    """What a pass over the journals of dead processes came to."""

    journals: int = 0
    events: int = 0
    unfinished: int = 0
    left: int = 0
    """Events that could not be delivered; they are still in their journals."""
    unreadable_lines: int = 0


def drain(directory: Path, deliver: Deliver) -> Drained:
    """Deliver every journal whose process is dead; stops sending at the first batch that fails."""
    total = Drained()
    reachable = True
    for adopted in adoptable(directory):
        total.journals += 1
        total.unreadable_lines += adopted.contents.unreadable_lines
        open_events = adopted.contents.to_send()
        sent = _send(adopted, open_events, deliver) if reachable else 0
        total.events += sent
        total.unfinished += sum(event.attributes.get(STATUS) == UNFINISHED for event in open_events[:sent])
        total.left += len(open_events) - sent
        reachable = reachable and sent == len(open_events)
    return total


def _send(adopted: Adopted, events: Sequence[UsageEvent], deliver: Deliver) -> int:
    pipeline = Pipeline(adopted.contents.resource)
    sent = 0
    try:
        for batch in _batches(events):
            if not deliver(pipeline, batch):
                return sent
            adopted.acknowledge(event.event_id for event in batch)
            sent += len(batch)
    finally:
        pipeline.close()
    adopted.remove()
    return sent


def _batches(events: Sequence[UsageEvent]) -> Iterator[Sequence[UsageEvent]]:
    for start in range(0, len(events), BATCH):
        yield events[start : start + BATCH]
