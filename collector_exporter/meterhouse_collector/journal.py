"""The collector's journal: segment files that hold every acknowledged request, the book of record.

One writer thread takes whatever waits, writes it and calls fdatasync; meanwhile the next batch forms. There is no
timer: an idle journal answers after one fdatasync, a busy one shares it. A position is (segment, byte offset).

Layout of the directory: `lock`, `collector_id`, `clock`, segments `<8 of collector_id>-<8 digits>-<8 by chance>.seg`.
"""

import fcntl
import io
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meterhouse_collector import segments
from meterhouse_collector.records import Granted, Record, encode
from meterhouse_collector.segments import START, Position

SEGMENT_BYTES: Final = 32 * 2**20
SEGMENT_SECONDS: Final = 3600
WAITING_BYTES: Final = 64 * 2**20
"""Accepted by a door and not yet on disk: beyond that the doors answer that they are overloaded."""
BATCH_BYTES: Final = 8 * 2**20
DISK_RESERVE_BYTES: Final = 256 * 2**20
"""Free space that is left to the file system: an fdatasync that fails for lack of it would end the process."""


class Overloaded(RuntimeError):
    """Nothing was written: the request may be repeated after a second."""


class JournalInUse(RuntimeError):
    """Another collector owns the directory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A request to be journalled; the journal adds the time, the record's id and the segment."""

    credential_id: str
    namespace: str
    allowed_customers: tuple[str, ...]
    metrics: bytes
    grants: tuple[Granted, ...] = ()
    customers_from: str = ""
    traces: bytes = b""
    mapping: str = ""
    valid_from_ns: int = 0

    @property
    def size(self) -> int:
        """Bytes of the request."""
        return len(self.metrics) + len(self.traces)


@dataclass(frozen=True, slots=True)
class Horizon:
    """Everything received up to `through_ns` lies before `position`, on disk; what comes later is received later."""

    position: Position
    through_ns: int


class Journal:
    """The one writer of a journal directory. `append` may be called from any thread.

    `on_fatal` is called once, from the writer thread, when an fdatasync failed (or anything else but a write): what the
    page cache holds then is not what the disk holds, and only a new start, which copies and syncs the last segment, may
    go on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        on_fatal: Callable[[Exception], None],
        clock_ns: Callable[[], int] = time.time_ns,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = SEGMENT_SECONDS,
        waiting_bytes: int = WAITING_BYTES,
        reserve_bytes: int = DISK_RESERVE_BYTES,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self._lock_file = _take_lock(directory)
        try:
            self.collector_id = _collector_id(directory)
            number, self._last_ns = segments.recover(directory, self.collector_id[:8])
        except BaseException:
            self._lock_file.close()
            raise
        self._on_fatal, self._clock_ns, self._sync = on_fatal, clock_ns, sync
        self._segment_bytes, self._segment_seconds = segment_bytes, segment_seconds
        self._waiting_limit, self._reserve_bytes = waiting_bytes, reserve_bytes
        self._changed = threading.Condition()
        self._waiting: list[tuple[Entry, Future[None]]] = []
        self._waiting_size = 0
        self._writing = self._closed = self._rotating = False
        self.appended = threading.Event()
        """Set whenever something new is on disk; whoever waits for that clears it."""
        self._failure: Exception | None = None
        self._number = number
        self._durable, self._durable_ns, self._opened_at = START, self._last_ns, 0.0
        self._open_segment()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # ---- for the doors ----------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> Future[None]:
        """Write an entry; the future is done when the fdatasync that covers it returned.

        Raises Overloaded, also through the future, when nothing was kept and the request may be repeated.
        """
        done: Future[None] = Future()
        with self._changed:
            if self._failure is not None or self._closed:
                raise Overloaded("the collector is stopping")
            if self._waiting_size + entry.size > self._waiting_limit:
                raise Overloaded("more requests wait for the disk than the collector takes on")
            self._waiting.append((entry, done))
            self._waiting_size += entry.size
            self._changed.notify()
        return done

    @property
    def waiting_bytes(self) -> int:
        """Bytes of requests that wait for the disk."""
        return self._waiting_size

    @property
    def failed(self) -> bool:
        """An fdatasync failed: nothing is accepted any more."""
        return self._failure is not None

    def horizon(self) -> Horizon:
        """Up to where, and up to which time, the journal is complete on disk."""
        with self._changed:
            if not self._writing and not self._waiting and self._failure is None:
                # Whoever comes next gets a later time than this one, whatever the clock does.
                self._last_ns = max(self._last_ns, self._clock_ns())
                segments.write_clock(self.directory, self._last_ns)
                self._durable_ns = self._last_ns
            return Horizon(self._durable, self._durable_ns)

    @property
    def segment(self) -> str:
        """The name of the segment that is written to."""
        return self._durable.segment

    def rotate(self) -> None:
        """Go on in a new segment soon, so that the present one is sealed; not where that is empty."""
        with self._changed:
            self._rotating = True
            self._changed.notify()

    @property
    def segment_is_due(self) -> bool:
        """The present segment holds something and has been written to for an hour."""
        return self._durable.offset > 0 and time.monotonic() - self._opened_at >= self._segment_seconds

    def close(self) -> None:
        """Write what waits, stop the thread and release the directory."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        os.close(self._descriptor)
        self._lock_file.close()

    # ---- the writer thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                while not self._waiting and not self._closed and not self._rotating:
                    self._changed.wait()
                if not self._waiting and not self._rotating:
                    return
                batch = self._take_batch()
                rotating, self._rotating, self._writing = self._rotating, False, True
            try:
                self._check_space(batch)
                self._rotate(rotating)
                if batch:
                    self._write_batch(batch)
            # Whatever it is: a writer that ended in silence would leave every request waiting.
            except Exception as problem:  # noqa: BLE001
                if self._fail(problem, batch):
                    return

    def _take_batch(self) -> list[tuple[Entry, Future[None]]]:
        size = count = 0
        for entry, _ in self._waiting:
            if count and size + entry.size > BATCH_BYTES:
                break
            size, count = size + entry.size, count + 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_size -= size
        return batch

    def _check_space(self, batch: list[tuple[Entry, Future[None]]]) -> None:
        space = os.statvfs(self.directory)
        if space.f_bavail * space.f_frsize < self._reserve_bytes + sum(entry.size for entry, _ in batch):
            raise _NothingWritten("the disk is nearly full")

    def _rotate(self, asked: bool) -> None:
        due = self._durable.offset >= self._segment_bytes or self.segment_is_due
        if due or (asked and self._durable.offset):
            os.close(self._descriptor)
            self._open_segment()

    def _write_batch(self, batch: list[tuple[Entry, Future[None]]]) -> None:
        data = b"".join(self._frame(entry) for entry, _ in batch)
        self._write(data)
        try:
            self._sync(self._descriptor)
        except OSError as problem:
            raise _SyncFailed(problem.errno, f"fdatasync of the journal failed: {problem}") from problem
        with self._changed:
            self._durable = Position(self._durable.segment, self._durable.offset + len(data))
            self._durable_ns = self._last_ns
        for _, done in batch:
            done.set_result(None)
        self.appended.set()

    def _frame(self, entry: Entry) -> bytes:
        self._last_ns = max(self._last_ns + 1, self._clock_ns())
        return encode(
            Record(
                credential_id=entry.credential_id,
                namespace=entry.namespace,
                allowed_customers=entry.allowed_customers,
                received_at_ns=self._last_ns,
                record_id=os.urandom(16).hex(),
                segment=self._durable.segment,
                metrics=entry.metrics,
                grants=entry.grants,
                customers_from=entry.customers_from,
                traces=entry.traces,
                mapping=entry.mapping,
                valid_from_ns=entry.valid_from_ns,
            )
        )

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as problem:
            # Part of it may be there: cut it off, or the next batch would stand behind a torn frame.
            os.ftruncate(self._descriptor, self._durable.offset)
            raise _NothingWritten(str(problem)) from problem

    def _fail(self, problem: Exception, batch: list[tuple[Entry, Future[None]]]) -> bool:
        """Answer the waiting requests; True when the journal can no longer be trusted."""
        fatal = not isinstance(problem, _NothingWritten)
        if fatal:
            with self._changed:
                self._failure = problem
                batch = batch + self._waiting
                self._waiting, self._waiting_size = [], 0
        for _, done in batch:
            done.set_exception(Overloaded(f"the journal did not take the request: {problem}"))
        if fatal:
            self._on_fatal(problem)
        return fatal

    def _open_segment(self) -> None:
        self._number += 1
        name = segments.name(self.collector_id[:8], self._number, uuid.uuid4().hex[:8])
        self._descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        segments.sync_directory(self.directory)
        with self._changed:
            self._durable = Position(name, 0)
            self._durable_ns = self._last_ns
        self._opened_at = time.monotonic()


class _NothingWritten(OSError):
    """The batch is not in the file; the journal goes on."""


class _SyncFailed(OSError):
    """The batch may or may not be on disk."""


def _take_lock(directory: Path) -> io.FileIO:
    file = io.FileIO(directory / "lock", "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise JournalInUse(
            f"another collector writes to {directory}: one journal directory has one collector"
        ) from None
    return file


def _collector_id(directory: Path) -> str:
    file = directory / "collector_id"
    if not file.exists():
        segments.write_durably(file, uuid.uuid4().hex.encode())
    return file.read_text(encoding="ascii").strip()
