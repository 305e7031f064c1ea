"""The process journal: what a call meant to use and what it used, on disk before it is counted.

One append-only file per process (`journal_records` has its format), each record written by one `os.write`, so that a
SIGKILL loses nothing that was written and can tear at most the last line. With `fsync` it survives a power cut, too.

What the disk has no room for waits in memory. The journals of a directory share `Limits.max_bytes`: near it intents are
no longer written, at it usage waits in memory until delivered usage was cleared away. Nothing is lost without a count.
"""

import errno
import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from meterhouse.events import Recorded, UsageEvent, from_line
from meterhouse.journal_records import (
    DRAFT_SUFFIX,
    SUFFIX,
    begun,
    encoded,
    event_lines,
    forget,
    line,
    lock,
    name_of,
    reading,
    records,
    unlock,
)
from meterhouse.settings import Limits
from meterhouse.vocabulary import CALL_ID

ROTATE_BYTES = 8 * 1024 * 1024
HELD_EVENTS = 10_000
"""Unacknowledged events kept in memory; while there are more, the rest is read from the file. As many more may wait in
memory for room on the disk."""
INTENTS_SHARE = 7 / 8
"""Beyond this share of the room, only usage is written."""
LOOK_EVERY_S = 60.0
_COPIED_AT_ONCE = 1024 * 1024


class MemoryFull(OSError):
    """Neither the disk nor the memory has room: the events are lost, and counted as such."""


class Journal:
    """The journal of this process; safe for threads. Methods that write may raise OSError (disk full).

    `tend`, `acknowledge` and `unacknowledged` are for one thread, the exporter's.
    """

    def __init__(
        self, directory: Path, process_id: str, resource: Mapping[str, str], limits: Limits, mark: str = ""
    ) -> None:
        self.lost = 0
        """Events that there was no room for, neither on disk nor in memory."""
        self.directory = directory = directory.absolute()  # the host may change its working directory
        self._process_id = process_id
        self._limits = limits
        self._header = encoded({"process": dict(resource), **({"for": mark} if mark else {})})
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._intents: dict[str, bytes] = {}
        # The unacknowledged events are those held here, and the fresh ones, which are yet to be spelled out; once there
        # were too many, those from this offset of the file on; and those that could not be written.
        self._held: dict[str, UsageEvent] = {}
        self._fresh: list[Recorded] = []
        self._fresh_events = 0
        self._spilled_from: int | None = None
        self._unwritten: dict[str, UsageEvent] = {}
        self._lost_written = 0
        self._torn = False
        self._part = 0
        self._size = 0
        self._synced = 0
        self._rewritten = 0
        self._look_at = 0.0
        self._damaged = False
        self._closed = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._others = _taken(directory)
        self.path, self._fd, self._size = self._create()

    def intent(self, call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> None:
        """A provider call is about to start."""
        intent = begun(call_id, started_at_ns, attributes)
        with self._lock:
            try:
                self._write(intent, INTENTS_SHARE)
            except OSError:
                self._intents[call_id] = intent  # written when there is room
                raise
            self._intents[call_id] = intent
            end = self._part, self._size
        self._sync(*end)

    def record(self, recorded: Recorded) -> None:
        """A call finished, or events without a call happened.

        OSError: they are not on disk, but kept here and written later. MemoryFull: they are lost.
        """
        written = line(recorded)
        with self._lock:
            offset = self._size
            try:
                self._write(written, 1)
            except OSError as error:
                self._wait_for_room(recorded.events(), error)
                raise
            if self._spilled_from is None and len(self._held) + self._fresh_events >= HELD_EVENTS:
                self._spilled_from = offset
            if self._spilled_from is None:
                self._fresh.append(recorded)
                self._fresh_events += recorded.size
            # Last: whatever strikes before (a signal handler may raise anywhere), the call is open or recorded.
            self._intents.pop(recorded.call_id or "", None)
            end = self._part, self._size
        self._sync(*end)

    def acknowledge(self, names: Sequence[str]) -> None:
        """The collector has the events of these names on disk. Replaces a large file by what is still open in it."""
        self._spell_out()
        with self._lock:
            for name in names:
                self._held.pop(name, None)
                self._pop_unwritten(name)
            # Small, and what makes room again: written whatever the limit says.
            self._write(encoded({"acknowledged": list(names)}))
        self._replace_if_worth_it()

    def unacknowledged(self, limit: int) -> list[UsageEvent]:
        """The oldest unacknowledged events; fewer than `limit` only when there are no more."""
        self._spell_out()
        with self._lock:
            while len(self._held) < limit and self._spilled_from is not None:
                self._read_spilled(self._spilled_from, limit)
            return list(itertools.islice(itertools.chain(self._held.values(), self._unwritten.values()), limit))

    def waiting(self) -> tuple[int, bool]:
        """How many events are unacknowledged, and whether there are more that only the file has."""
        with self._lock:
            held = len(self._held) + self._fresh_events + len(self._unwritten)
            return held, self._spilled_from is not None

    def tend(self) -> None:
        """Look at the room there is, and write what could not be written before."""
        if time.monotonic() >= self._look_at or self._unwritten:
            self._look_at = time.monotonic() + LOOK_EVERY_S
            if self._is_removed():
                self._replace()
            self._others = max(_taken(self.directory) - self._size, 0)
        if self._unwritten:
            self._replace_if_worth_it()
        with self._lock:
            if self.lost > self._lost_written:
                self._write(encoded({"lost": self.lost - self._lost_written}))
                self._lost_written = self.lost
            for some, written in event_lines(list(self._unwritten.values())):
                offset = self._size
                self._write(written, 1)
                if self._spilled_from is None and len(self._held) >= HELD_EVENTS:
                    self._spilled_from = offset
                for event in some:
                    self._pop_unwritten(name_of(event))
                    if self._spilled_from is None:
                        self._held[name_of(event)] = event

    def rescue(self) -> None:
        """The process ends: write what waits in memory beyond the limit; what the disk has no room for is lost."""
        if self._is_removed():
            with suppress(OSError):  # told below
                self._replace()
        with self._lock:
            for some, written in event_lines(list(self._unwritten.values())):
                try:
                    self._write(written)
                except OSError:
                    self.lost += len(self._unwritten)
                    self._unwritten.clear()
                    break
                for event in some:
                    self._pop_unwritten(name_of(event))
                    self._held[name_of(event)] = event
            if self.lost > self._lost_written:
                with suppress(OSError):  # where not even this fits, the log alone says it
                    self._write(encoded({"lost": self.lost - self._lost_written}))
                    self._lost_written = self.lost
            if self._is_removed():
                self.lost += len(self._held) + self._fresh_events
                self._held.clear()
                self._fresh, self._fresh_events, self._spilled_from = [], 0, None

    def close(self) -> None:
        """Let go of the file, and remove it when nothing in it is open. Who writes later opens another one.

        With calls under way it stays as it is, ours until the process is gone: they may still end, in this file.
        """
        with self._lock, self._sync_lock:
            if self._closed or self._intents:
                return
            if not self._is_ours():
                self._abandon()
                return
            waiting = self._held or self._fresh or self._unwritten or self._spilled_from is not None
            if not waiting and not self._damaged:
                self.path.unlink(missing_ok=True)
            self._closed = True
            unlock(self._fd)

    def _spell_out(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, []
        for recorded in fresh:
            self._held.update((name_of(event), event) for event in recorded.events())
        with self._lock:
            self._fresh_events = sum(one.size for one in self._fresh)

    def _wait_for_room(self, events: Sequence[UsageEvent], error: OSError) -> None:
        if len(self._unwritten) + len(events) > HELD_EVENTS:
            self.lost += len(events)
            self._intents.pop(events[0].attributes.get(CALL_ID, ""), None)
            raise MemoryFull(error.errno, error.strerror) from error
        self._unwritten.update((name_of(event), event) for event in events)

    def _pop_unwritten(self, name: str) -> None:
        event = self._unwritten.pop(name, None)
        if event is not None:  # its call's intent was kept, as the only trace of it on disk
            self._intents.pop(event.attributes.get(CALL_ID, ""), None)

    def _is_ours(self) -> bool:
        """False where the host closed our descriptor: its number may be that of a file of the host by now."""
        try:
            found = os.fstat(self._fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def _is_removed(self) -> bool:
        """True where somebody removed the file, as cleaners of directories do: the descriptor still has all of it."""
        return not self._closed and self._is_ours() and not os.fstat(self._fd).st_nlink

    def _abandon(self) -> None:
        """The file, whose lock went with its descriptor, is for the adopters; what is in memory is in it, too."""
        forget(self._fd)
        self._spilled_from, self._closed = None, True

    def _create(self) -> tuple[Path, int, int]:
        """A new file with its header: its path, descriptor and size."""
        # Locked before it gets the name under which adopters look for journals, so that none sees it unlocked.
        path = self.directory / f"{self._process_id}-{self._part}{SUFFIX}"
        draft, fd = self._draft(path)
        try:
            size = _write_all(fd, self._header)
            self._publish(draft, fd, path)
        except OSError:
            draft.unlink(missing_ok=True)
            unlock(fd)
            raise
        self._inode = _inode(fd)
        return path, fd, size

    def _draft(self, path: Path) -> tuple[Path, int]:
        draft = path.with_suffix(DRAFT_SUFFIX)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        fd = os.open(draft, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lock(fd)
        except OSError:
            draft.unlink(missing_ok=True)
            os.close(fd)
            raise
        return draft, fd

    def _publish(self, draft: Path, fd: int, path: Path) -> None:
        if self._limits.fsync:
            os.fsync(fd)
        os.rename(draft, path)
        if self._limits.fsync:
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _read_spilled(self, offset: int, limit: int) -> None:
        if not self._is_ours():
            self._abandon()
            return
        with reading(self._fd, offset) as file:
            for record, end in records(file):
                offset = end
                if isinstance(record, dict) and "call" in record:
                    self._held.update((name_of(event), event) for event in from_line(record).events())
                elif isinstance(record, dict):
                    for name in record.get("acknowledged", ()):
                        self._held.pop(name, None)
                else:
                    self._damaged = True  # by somebody else: kept, for `drain` to name
                if len(self._held) >= limit:
                    self._spilled_from = offset
                    return
        self._spilled_from = None

    def _replace_if_worth_it(self) -> None:
        with self._lock:
            # What comes before the part that only the file has is delivered, or held in memory.
            clearable = self._size if self._spilled_from is None else self._spilled_from
            enough = min(ROTATE_BYTES, self._limits.max_bytes // 4)
            ours = not self._closed and not self._damaged and self._is_ours()
            worth_it = ours and clearable > max(enough, 2 * self._rewritten, self._size // 2)
        if worth_it:
            self._replace()

    def _replace(self) -> None:
        """Replace the file by one with what is open in it. Only the last of the copying keeps the host waiting."""
        self._spell_out()
        with self._lock:
            start = self._size if self._spilled_from is None else self._spilled_from
            # At one moment: what comes in from now on is behind `start`, and all that came before is in these.
            intents, held, fresh = list(self._intents.values()), list(self._held.values()), list(self._fresh)
        path = self.directory / f"{self._process_id}-{self._part + 1}{SUFFIX}"
        draft, fd = self._draft(path)
        try:
            base = _write_all(fd, b"".join([self._header, *intents]))
            for _, written in event_lines(held):
                base += _write_all(fd, written)
            base += _write_all(fd, b"".join(map(line, fresh)))
            with reading(self._fd, start) as old:
                copied = _copy(old, fd)
                with self._lock, self._sync_lock:
                    copied += _copy(old, fd)  # what was written meanwhile
                    self._publish(draft, fd, path)
                    # The old one goes at once: while both are there, they have to say the same.
                    self.path.unlink(missing_ok=True)
                    unlock(self._fd)
                    self._part, self.path, self._fd, self._size = self._part + 1, path, fd, base + copied
                    self._inode = _inode(fd)
                    self._rewritten, self._synced = base, base + copied
                    if self._spilled_from is not None:
                        self._spilled_from += base - start
        except OSError:
            if fd != self._fd:
                draft.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                unlock(fd)
            raise

    def _write(self, written: bytes, share: float | None = None) -> None:
        """Append the line; `share`: only within that share of the room. Raises OSError."""
        if not self._closed and not self._is_ours():
            self._abandon()
        if self._closed:
            with self._sync_lock:
                self._part += 1
                self.path, self._fd, self._size = self._create()
                self._torn = self._closed = False
                self._synced = self._rewritten = 0
        data = b"\n" + written if self._torn else written
        if share is not None and self._others + self._size + len(data) > self._limits.max_bytes * share:
            raise OSError(errno.EDQUOT, f"the journals in {self.directory} have reached their limit")
        before = self._size
        self._torn = True  # until all of it is written
        try:
            while data:
                done = os.write(self._fd, data)
                self._size += done
                data = data[done:]
        except BaseException:  # no room for all of it, or a signal handler of the host raised
            with suppress(OSError):
                os.ftruncate(self._fd, before)
                self._size = before
            raise
        self._torn = False

    def _sync(self, part: int, end: int) -> None:
        """With fsync: return when the file is on disk up to `end`. One thread syncs for all that wrote before it."""
        if not self._limits.fsync:
            return
        with self._sync_lock:
            if self._synced >= end or self._part != part or self._closed:  # a replaced file was synced as a whole
                return
            size = self._size
            os.fdatasync(self._fd)
            self._synced = size


def _write_all(fd: int, data: bytes) -> int:
    size = len(data)
    while data:
        data = data[os.write(fd, data) :]
    return size


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _copy(file: BinaryIO, fd: int) -> int:
    """Copy the rest of the file; returns the bytes copied."""
    copied = 0
    while piece := file.read(_COPIED_AT_ONCE):
        copied += _write_all(fd, piece)
    return copied


def _taken(directory: Path) -> int:
    """The bytes of all files in the directory."""
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # delivered meanwhile
                continue
    return total
