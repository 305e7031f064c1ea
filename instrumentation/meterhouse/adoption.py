"""Delivering the journals that dead processes left, under their own resource, ids and times."""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from meterhouse.dead_journal import DeadJournal
from meterhouse.delivery import Outcome
from meterhouse.events import UsageEvent
from meterhouse.journal_records import DAMAGED_SUFFIX, DRAFT_SUFFIX, journals
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import STATUS, UNFINISHED

BATCH = 500
STUCK_AT_MOST = 5
"""After so many journals in a row that the collector answers and does not take, it is the collector: a pass ends."""
DRAFT_AGE_S = 60.0
"""A draft that is older and that nobody holds was left by a process that died while it made its journal."""

Deliver = Callable[[Mapping[str, str], Sequence[UsageEvent]], Outcome]
"""Sends one batch of the process that the mapping describes; unless the outcome is `again`, it is done with."""


@dataclass
class Drained:
    """What a pass over the journals of dead processes came to."""

    journals: int = 0
    events: int = 0
    unfinished: int = 0
    """Of the events, the requests of calls that never ended."""
    refused: int = 0
    """Events that the collector said are bad: set aside, not among `events`."""
    left: int = 0
    """Events that could not be delivered; they are still in their journals."""
    lost: int = 0
    """Events that their process had room for neither on disk nor in memory: counted there, gone."""
    unreadable_lines: int = 0
    elsewhere: int = 0
    """Files of journals, and of what was refused, of another credential: of another collector or namespace."""
    failed: int = 0
    """Journals that could not be opened, read or sent for a reason of their own; they are kept as they are."""

    def __add__(self, other: "Drained") -> "Drained":
        return Drained(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


def drain(
    directory: Path,
    deliver: Deliver,
    *,
    mark: str | None = None,
    go_on: Callable[[], bool] = lambda: True,
    count_rest: bool = True,
) -> Drained:
    """Deliver every journal whose process is dead, while `go_on`; `count_rest`: count what could not be delivered.

    `mark`: those with another are left alone, because their usage is billed elsewhere; empty: of a process without a
    key, that reports through something that has one; None: whatever theirs is.
    One that cannot be delivered holds up itself only. Sending stops when nobody answers or the key is not known.
    """
    total = Drained()
    stuck = 0
    paths = journals(directory)
    if len(paths) > STUCK_AT_MOST:
        random.shuffle(paths)  # those that are stuck must not keep all others from their turn
    for path in paths:
        if not go_on() or (stuck >= STUCK_AT_MOST and not count_rest):
            break
        try:
            dead = DeadJournal.take(path)
            if dead is None:
                continue
            with dead:
                if mark is not None and dead.mark and dead.mark != mark:
                    total.elsewhere += 1
                    continue
                outcome = _deliver(dead, deliver if stuck < STUCK_AT_MOST else None, total, go_on, count_rest)
        except PermissionError:
            total.failed += 1
            warn_once(
                f"{directory} forbidden", "Meterhouse may not open %s: another user's process left it there.", path
            )
            continue
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
    _clear_drafts(directory)
    return total


def _deliver(
    dead: DeadJournal, deliver: Deliver | None, total: Drained, go_on: Callable[[], bool], count_rest: bool
) -> Outcome | None:
    """Send what is open in the journal and remove it; None where nothing was sent. Without `deliver`, only count."""
    total.journals += 1
    outcome = None
    failure = None
    done = True
    for batch in dead.batches(BATCH):
        if done and deliver is not None and go_on():
            try:
                outcome = deliver(dead.resource, batch)
                done = not outcome.again
            except Exception as error:  # noqa: BLE001 - raised below, when the rest is counted
                failure, done = error, False
        else:
            done = False
        if done:
            total.events += len(batch)
            total.unfinished += sum(event.attributes.get(STATUS) == UNFINISHED for event in batch)
            # No room for the note: the next adopter sends these again, and the same events count once. What follows
            # goes on, because a full disk gets room again when the journal is delivered and removed.
            with suppress(OSError):
                dead.acknowledge(batch)
        elif count_rest:
            total.left += len(batch)
        else:
            break
    if failure is not None:
        raise failure
    total.unreadable_lines += dead.unreadable_lines
    if done:
        total.lost += dead.lost
        if dead.lost:
            warn_once(str(dead.path), "Meterhouse: %d usage events were lost, says %s.", dead.lost, dead.path)
        dead.remove()
        if dead.unreadable_lines:
            warn_once(
                f"{dead.path} damaged",
                "Meterhouse cannot read %d lines of %s: it is kept as *%s.",
                dead.unreadable_lines,
                dead.path,
                DAMAGED_SUFFIX,
            )
    return outcome


def damaged(directory: Path) -> list[Path]:
    """The files that were delivered as far as they could be read."""
    return sorted(directory.glob(f"*{DAMAGED_SUFFIX}"))


def _clear_drafts(directory: Path) -> None:
    for draft in directory.glob(f"*{DRAFT_SUFFIX}"):
        try:
            if time.time() - os.stat(draft).st_mtime < DRAFT_AGE_S:
                continue
            left = DeadJournal.take(draft)
            if left is not None:
                with left:
                    draft.unlink(missing_ok=True)
        except OSError:  # gone meanwhile, or another user's
            continue
