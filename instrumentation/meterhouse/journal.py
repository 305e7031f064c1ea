"""The process journal: what a call meant to use and what it used, on disk before it is counted.

One append-only file per process, held under `flock` while the process lives: a file whose lock is free belongs to a
dead process and may be adopted. One JSON line per record, each written by one `os.write`, so that a SIGKILL loses
nothing that was written and can tear at most the last line. Not fsynced: a power cut may lose the last seconds.

    {"process": {resource attributes}}                         first line
    {"intent": call id, "at": ns, "attributes": {...}}         a provider call starts
    {"call": call id or null, "events": [...]}                 its events: the call is finished
    {"acknowledged": [event ids]}                              the collector has them on disk
"""

import fcntl
import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from meterhouse.events import UsageEvent, unfinished

SUFFIX = ".journal"
ROTATE_BYTES = 8 * 1024 * 1024
HELD_EVENTS = 10_000
"""Unacknowledged events kept in memory; while there are more, the rest is read from the file, which is not replaced."""
LONGEST_LINE_BYTES = 4 * 1024 * 1024


class Journal:
    """The journal of this process; safe for threads. Methods that write may raise OSError (disk full)."""

    def __init__(self, directory: Path, process_id: str, resource: Mapping[str, str]) -> None:
        self._directory = directory
        self._process_id = process_id
        self._header = _line({"process": dict(resource)})
        self._lock = threading.Lock()
        self._intents: dict[str, bytes] = {}
        # The unacknowledged events are those held here and, once there were too many, those from this offset on.
        self._held: dict[str, UsageEvent] = {}
        self._spilled_from: int | None = None
        self._torn = False
        self._part = 0
        self._size = 0
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self._fd = self._create()

    def intent(self, call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> None:
        """A provider call is about to start."""
        line = _line({"intent": call_id, "at": started_at_ns, "attributes": dict(attributes)})
        with self._lock:
            self._intents[call_id] = line
            self._write(line)

    def events(self, call_id: str | None, events: Sequence[UsageEvent]) -> None:
        """A call finished, or events without a call happened."""
        line = _line({"call": call_id, "events": [event.as_json() for event in events]})
        with self._lock:
            if call_id is not None:
                self._intents.pop(call_id, None)
            if self._spilled_from is None and len(self._held) >= HELD_EVENTS:
                self._spilled_from = self._size
            if self._spilled_from is None:
                self._held.update((event.event_id, event) for event in events)
            self._write(line)

    def acknowledge(self, event_ids: Sequence[str]) -> None:
        """The collector has these events on disk. Replaces a large file by what is still open in it."""
        with self._lock:
            for event_id in event_ids:
                self._held.pop(event_id, None)
            self._write(_line({"acknowledged": list(event_ids)}))
            if self._size > ROTATE_BYTES and self._spilled_from is None:
                self._replace()

    def unacknowledged(self, limit: int) -> list[UsageEvent]:
        """The oldest unacknowledged events; fewer than `limit` only when there are no more."""
        with self._lock:
            while len(self._held) < limit and self._spilled_from is not None:
                self._read_spilled(self._spilled_from, limit)
            return list(itertools.islice(self._held.values(), limit))

    def waiting(self) -> tuple[int, bool]:
        """How many events are unacknowledged, and whether there are more that only the file has."""
        with self._lock:
            return len(self._held), self._spilled_from is not None

    def close(self) -> None:
        """Let go of the file, and remove it when nothing in it is open."""
        with self._lock:
            if not self._intents and not self._held and self._spilled_from is None:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)

    def abandon_after_fork(self) -> None:
        """In a forked child: close the inherited descriptor, or the parent's lock would outlive the parent."""
        os.close(self._fd)

    def _create(self) -> tuple[Path, int]:
        # Locked before it gets the name under which adopters look for journals, so that none sees it unlocked.
        path = self._directory / f"{self._process_id}-{self._part}{SUFFIX}"
        draft = path.with_suffix(".new")
        fd = os.open(draft, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._size = os.write(fd, self._header)
        os.rename(draft, path)
        return path, fd

    def _read_spilled(self, offset: int, limit: int) -> None:
        with open(self.path, "rb") as file:
            file.seek(offset)
            for record, end in _records(file):
                offset = end
                if isinstance(record, dict) and "events" in record:
                    rows = [UsageEvent.from_json(row) for row in record["events"]]
                    self._held.update((event.event_id, event) for event in rows)
                elif isinstance(record, dict):
                    for event_id in record.get("acknowledged", ()):
                        self._held.pop(event_id, None)
                if len(self._held) >= limit:
                    self._spilled_from = offset
                    return
        self._spilled_from = None

    def _replace(self) -> None:
        old_path, old_fd = self.path, self._fd
        self._part += 1
        self.path, self._fd = self._create()
        self._torn = False
        # Until the old file is gone both name the same calls and events: adopting both sends the same ids twice.
        for line in self._intents.values():
            self._write(line)
        if self._held:
            self._write(_line({"call": None, "events": [event.as_json() for event in self._held.values()]}))
        old_path.unlink(missing_ok=True)
        os.close(old_fd)

    def _write(self, line: bytes) -> None:
        data = b"\n" + line if self._torn else line
        self._torn = True  # until all of it is written
        while data:
            written = os.write(self._fd, data)
            self._size += written
            data = data[written:]
        self._torn = False


@dataclass
class Contents:
    """What a whole journal says: its process, and what is open in it."""

    resource: dict[str, str] = field(default_factory=dict)
    intents: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    events: dict[str, UsageEvent] = field(default_factory=dict)
    unreadable_lines: int = 0

    def to_send(self) -> list[UsageEvent]:
        """The unacknowledged events, and one `unfinished` request for every call that never finished."""
        left = [unfinished(call, at, attributes) for call, (at, attributes) in self.intents.items()]
        return [*self.events.values(), *left]


def read(file: BinaryIO) -> Contents:
    """Read a journal; a torn or damaged line is counted and passed over."""
    contents = Contents()
    acknowledged: set[str] = set()
    finished: set[str] = set()
    for record, _ in _records(file):
        try:
            _take(record, contents, finished, acknowledged)
        except (TypeError, ValueError, KeyError, AttributeError):  # valid JSON of another shape: damaged
            contents.unreadable_lines += 1
    for call in finished:
        contents.intents.pop(call, None)
    for event_id in acknowledged:
        contents.events.pop(event_id, None)
    for call, (at, attributes) in list(contents.intents.items()):
        # An adopter that died after sending left its acknowledgement under the name the event would get again.
        if unfinished(call, at, attributes).event_id in acknowledged:
            del contents.intents[call]
    return contents


def _take(record: Any, contents: Contents, finished: set[str], acknowledged: set[str]) -> None:
    if "events" in record:
        events = [UsageEvent.from_json(row) for row in record["events"]]
        contents.events.update((event.event_id, event) for event in events)
        if record["call"] is not None:
            finished.add(record["call"])
    elif "intent" in record:
        contents.intents[record["intent"]] = (int(record["at"]), dict(record["attributes"]))
    elif "acknowledged" in record:
        acknowledged.update(record["acknowledged"])
    else:
        contents.resource = dict(record["process"])


class Adopted:
    """The journal of a dead process, locked by us: a context manager; `remove` when all of it was delivered."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self.contents = read(file)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """None when its process lives, another adopter has it, or it is gone."""
        try:
            file = open(path, "r+b")  # noqa: SIM115 - kept open: the lock lives with the descriptor
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return cls(path, file)
        except BlockingIOError:
            pass
        file.close()
        return None

    def acknowledge(self, event_ids: Iterable[str]) -> None:
        """Remember what was delivered, for whoever adopts it next should we die."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(b"\n" + _line({"acknowledged": list(event_ids)}))  # the last line may be torn
        self._file.flush()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def journals(directory: Path) -> list[Path]:
    """The journals of all processes, living and dead, by name."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def _records(file: BinaryIO) -> Iterator[tuple[Any, int]]:
    """The records that can be read, each with the offset behind it; a line without its newline is not a record."""
    while line := file.readline(LONGEST_LINE_BYTES):
        if not line.endswith(b"\n"):
            continue
        try:
            yield json.loads(line), file.tell()
        except ValueError:
            if line.strip():
                yield None, file.tell()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"
