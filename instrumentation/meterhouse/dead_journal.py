"""Reading and adopting the journal of a dead process, whatever its size: no more than a window of it is in memory."""

import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from meterhouse.events import UsageEvent, event_name, from_line, unfinished
from meterhouse.journal_records import DAMAGED_SUFFIX, LONGEST_LINE_BYTES, encoded, lock, name_of, records, unlock
from meterhouse.vocabulary import LLM_REQUESTS

WINDOW_EVENTS = 10_000
"""Events that are looked at together. An acknowledgement further behind than that is not seen in time, and the event is
sent again: its id makes twice equal once."""
_TAIL_BYTES = 256 * 1024


class DeadJournal:
    """The journal of a dead process, locked by us: a context manager; `remove` when all of it was delivered."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.resource: dict[str, str] = {}
        self.mark = ""
        """See settings.Destination.mark."""
        self.unreadable_lines = 0
        self.lost = 0
        self._fd = fd
        self._events: dict[str, tuple[UsageEvent, int]] = {}
        """Name -> the event, and the offset of its line."""
        self._whole = False
        self._open: dict[str, UsageEvent] = {}
        """The events of the calls that have not finished, by event id."""
        with open(self._fd, "rb", closefd=False) as file:
            self._delivered_before = _delivered_before(file)
            file.seek(0)
            for record, _ in itertools.islice(records(file), 1):
                if isinstance(record, dict) and isinstance(record.get("process"), dict):
                    self.resource = {str(key): str(value) for key, value in record["process"].items()}
                    self.mark = str(record.get("for", ""))

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """None when its process lives, another adopter has it, or it is gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            lock(fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        try:
            if os.fstat(fd).st_nlink:
                return cls(path, fd)
        except BaseException:
            unlock(fd)
            raise
        unlock(fd)
        return None

    def batches(self, size: int) -> Iterator[list[UsageEvent]]:
        """What is open: the unacknowledged events, then one `unfinished` request for every call that never finished."""
        start = 0
        # Opened anew: `acknowledge` moves the place in the file of our own descriptor.
        with open(self.path, "rb") as file:
            for record, end in records(file):
                try:
                    self._take(record, start)
                except (
                    TypeError,
                    ValueError,
                    KeyError,
                    AttributeError,
                    OverflowError,
                ):  # valid JSON of another shape: damaged
                    self.unreadable_lines += 1
                start = end
                if len(self._events) >= WINDOW_EVENTS:
                    yield self._next(size)
        while self._events:
            yield self._next(size)
        left = list(self._open.values())
        for first in range(0, len(left), size):
            yield left[first : first + size]

    def acknowledge(self, events: Sequence[UsageEvent]) -> None:
        """Remember what was delivered, for whoever adopts it next should we die. OSError: the disk has no room."""
        note = {"acknowledged": [name_of(event) for event in events]}
        oldest = next((offset for _, offset in self._events.values()), None)
        place = {} if oldest is None else {"delivered_before": oldest}
        if not self._whole:
            os.ftruncate(self._fd, self._torn_from())
            self._whole = True
        written = encoded({**note, **place})
        if os.write(self._fd, written) < len(written):  # the last room of a disk: half a line would be damage
            self._whole = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def remove(self) -> None:
        """All that could be read was delivered. With lines that could not be, the file is kept aside."""
        if self.unreadable_lines:
            self.path.rename(self.path.with_suffix(DAMAGED_SUFFIX))
        else:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        unlock(self._fd)

    def _next(self, size: int) -> list[UsageEvent]:
        batch = [event for event, _ in itertools.islice(self._events.values(), size)]
        for event in batch:
            del self._events[name_of(event)]
        return batch

    def _torn_from(self) -> int:
        """Where the last line begins, if its process died while it wrote it; else the end of the file."""
        end = os.fstat(self._fd).st_size
        while end:
            start = max(end - _TAIL_BYTES, 0)
            newline = os.pread(self._fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def _take(self, record: Any, start: int) -> None:
        if "call" in record:
            recorded = from_line(record)
            if start >= self._delivered_before:
                for event in recorded.events():
                    self._events.setdefault(name_of(event), (event, start))
            if record["call"] is not None:
                self._open.pop(event_name(record["call"], LLM_REQUESTS), None)
        elif "intent" in record:
            event = unfinished(record["intent"], int(record["at"]), dict(record["attributes"]))
            self._open[event.event_id] = event
        elif "acknowledged" in record:
            for name in record["acknowledged"]:
                self._events.pop(name, None)
                # Told of by an adopter that died, or by a process that could not write that the call had finished.
                self._open.pop(name, None)
        elif "lost" in record:
            self.lost += int(record["lost"])
        elif "process" not in record:
            raise ValueError("no record of a journal")


def _delivered_before(file: Any) -> int:
    """Up to which byte adopters have delivered all events; their last word is near the end of the file."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _TAIL_BYTES, 0))
    for line in reversed(file.read(LONGEST_LINE_BYTES).split(b"\n")):
        if line.startswith(b'{"acknowledged"') and b'"delivered_before"' in line:
            try:
                return int(json.loads(line)["delivered_before"])
            except (ValueError, KeyError, TypeError):  # torn: an older one stands further up
                continue
    return 0
