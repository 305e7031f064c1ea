"""How a process journal looks on disk, and who holds it.

One JSON line per record:

    {"process": {resource attributes}, "for": mark}            first line; see Destination.mark
    {"intent": call id, "at": ns, "attributes": {...}}         a provider call starts
    {"call": call id or null, "events": [...]}                 its events: the call is finished
    {"acknowledged": [names of events]}                        the collector has them on disk; see `name_of`
    {"delivered_before": offset}                               by an adopter: and all events on lines before that byte
    {"lost": count}                                            events that neither the disk nor the memory had room for

A file whose lock (flock) is free belongs to a dead process and may be adopted.
"""

import errno
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from meterhouse import json_text
from meterhouse.events import Recorded, UsageEvent
from meterhouse.vocabulary import CUSTOMER_ID, ONCE

SUFFIX = ".journal"
DRAFT_SUFFIX = ".new"
DAMAGED_SUFFIX = ".damaged"
"""Of a file that was delivered as far as it could be read: a person may read more."""
LONGEST_LINE_BYTES = 4 * 1024 * 1024
"""Longer lines are not read, and none is written."""
EVENTS_PER_LINE = 100
FULL_LINE_BYTES = 256 * 1024
"""No further event is put on a line that is so long."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

_locked: set[int] = set()


def encoded(record: Mapping[str, Any]) -> bytes:
    """The record as a line."""
    return _json(record) + b"\n"


def begun(call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> bytes:
    """The line of a provider call that starts."""
    known = json_text.of_texts(attributes)
    return _bytes(f'{{"intent":{json_text.quoted(call_id)},"at":{started_at_ns},"attributes":{known}}}\n')


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def _json(value: Any) -> bytes:
    return _bytes(json_text.compact(value))


def name_of(event: UsageEvent) -> str:
    """What tells this event from the others of a process: its id, unless the host gave that, perhaps to several."""
    if ONCE not in event.attributes:
        return event.event_id
    return " ".join((event.event_id, event.meter, str(event.quantity), event.attributes.get(CUSTOMER_ID, "")))


def event_lines(events: Iterable[UsageEvent]) -> Iterator[tuple[list[UsageEvent], bytes]]:
    """Lines that belong to no call, each with its events: many on a line, and no line too long to be read."""
    some: list[UsageEvent] = []
    pieces: list[bytes] = []
    size = 0
    for event in events:
        piece = _json(event.as_json())
        if some and (len(some) == EVENTS_PER_LINE or size + len(piece) > FULL_LINE_BYTES):
            yield some, _line_of(pieces)
            some, pieces, size = [], [], 0
        some.append(event)
        pieces.append(piece)
        size += len(piece)
    if some:
        yield some, _line_of(pieces)


def line(recorded: Recorded) -> bytes:
    """The line, or, where it would be too long to be read, the lines of what was recorded."""
    whole = _bytes(recorded.as_line() + "\n")
    if len(whole) <= LONGEST_LINE_BYTES:
        return whole
    return b"".join(some for _, some in event_lines(recorded.events()))


def _line_of(pieces: list[bytes]) -> bytes:
    return b'{"call":null,"events":[' + b",".join(pieces) + b"]}\n"


class Reading(io.RawIOBase):
    """Reads an open file from an offset of its own, whatever became of its name; others may write to it meanwhile."""

    def __init__(self, fd: int, offset: int) -> None:
        super().__init__()
        self._fd = fd
        self._offset = offset

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


def reading(fd: int, offset: int) -> BinaryIO:
    """The open file from this offset on."""
    return io.BufferedReader(Reading(fd, offset))


def records(file: BinaryIO) -> Iterator[tuple[Any, int]]:
    """The records that can be read, each with the offset behind it; None for a damaged line. A line without its newline
    is torn, and no record."""
    while line := file.readline(LONGEST_LINE_BYTES):
        if not line.endswith(b"\n"):
            continue
        try:
            yield json.loads(line), file.tell()
        except (ValueError, RecursionError):
            if line.strip():
                yield None, file.tell()


def journals(directory: Path) -> list[Path]:
    """The journals of all processes, living and dead, by name."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def lock(fd: int) -> None:
    """Take the file for this process; BlockingIOError where another one has it, OSError where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise OSError(error.errno, "its file system has no file locks (flock)") from error
        raise
    _locked.add(fd)


def unlock(fd: int) -> None:
    """Give the file back and close it, also where a forked child still has the descriptor."""
    _locked.discard(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def forget(fd: int) -> None:
    """The host closed it: neither it nor what has its number now is ours."""
    _locked.discard(fd)


def close_inherited() -> None:
    """In a forked child: close what is the parent's, or the parent's locks would outlive it."""
    for fd in _locked:
        with suppress(OSError):  # the host closed it itself
            os.close(fd)
    _locked.clear()
