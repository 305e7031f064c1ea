"""What the collector said is bad: kept beside the journals in files of its own, and sent again when asked to.

One JSON line per event: {"why": ..., "process": {resource attributes}, "event": [...]}. A file's name ends in the mark
of the key that it was refused under (see Destination.mark).
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meterhouse.adoption import BATCH, Deliver, Drained
from meterhouse.events import UsageEvent
from meterhouse.journal_records import DAMAGED_SUFFIX, DRAFT_SUFFIX, lock, records, unlock

SUFFIX = ".refused"


def keep(directory: Path, resource: Mapping[str, str], bad: Sequence[tuple[UsageEvent, str]], mark: str = "") -> Path:
    """Write the events and why each was refused to a new file, on disk when this returns. Raises OSError."""
    path = directory / f"{time.time_ns()}-{os.getpid()}-{mark}{SUFFIX}"
    draft = path.with_suffix(DRAFT_SUFFIX)
    process = dict(resource)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        lock(fd)  # or it might be cleared away as a draft that a dead process left
        with open(fd, "w", encoding="utf-8", errors="replace", closefd=False) as file:
            for event, why in bad:
                file.write(json.dumps({"why": why, "process": process, "event": event.as_json()}) + "\n")
            file.flush()
            os.fsync(fd)
        os.rename(draft, path)  # whoever sends it again finds it whole
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        unlock(fd)
    return path


def files(directory: Path) -> list[Path]:
    """The files of what was refused, oldest first."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def send_again(directory: Path, deliver: Deliver, mark: str | None = None) -> Drained:
    """Send all that was refused under its own ids and times; what is refused once more is in a new file afterwards.

    `mark`: what has another one stays where it is; None: nothing does.
    """
    total = Drained()
    for path in files(directory):
        theirs = path.stem.rpartition("-")[2]
        if mark is not None and theirs and theirs != mark:
            total.elsewhere += 1
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # another one sends it again
            continue
        except OSError:
            total.failed += 1
            continue
        try:
            lock(fd)
        except OSError:  # another one sends it again at this moment
            os.close(fd)
            continue
        try:
            if os.fstat(fd).st_nlink:  # else another one has sent it again meanwhile
                _send_file(path, fd, deliver, total)
        finally:
            unlock(fd)
    return total


def _send_file(path: Path, fd: int, deliver: Deliver, total: Drained) -> None:
    of_process: dict[str, tuple[dict[str, str], list[UsageEvent]]] = {}
    unreadable = 0
    with open(fd, "rb", closefd=False) as file:
        for record, _ in records(file):
            try:
                resource, event = _read(record)
            except (TypeError, ValueError, KeyError, AttributeError):
                unreadable += 1
                continue
            of_process.setdefault(json.dumps(resource), (resource, []))[1].append(event)
    left = 0
    for resource, events in of_process.values():
        for first in range(0, len(events), BATCH):
            batch = events[first : first + BATCH]
            if left or deliver(resource, batch).again:
                left += len(batch)
            else:
                total.events += len(batch)
    total.left += left
    total.unreadable_lines += unreadable
    if not left and unreadable:
        path.rename(path.with_suffix(DAMAGED_SUFFIX))
    elif not left:
        path.unlink(missing_ok=True)


def _read(record: Any) -> tuple[dict[str, str], UsageEvent]:
    process = record.get("process") or {"service.name": "unknown_service"}
    return {str(key): str(value) for key, value in process.items()}, UsageEvent.from_json(record["event"])
