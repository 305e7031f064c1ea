"""The projector: brings the journal into ClickHouse, range by range, and says how far it is.

One step posts the next byte range unchanged, adds the rows of what ClickHouse does not decode, marks the conflicts and
settles the spans that the range brought, and writes the checkpoint, in that order:
whatever stops it, the next start posts from the last checkpoint again and rows are equal by their key. Nothing here
holds up the doors; a warehouse that is down is asked again.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from meterhouse_collector.foreign import Rows, is_foreign, rows_of
from meterhouse_collector.journal import Horizon
from meterhouse_collector.records import Damaged, Frame, Record, decode, frames
from meterhouse_collector.segments import START, Gone, Position

RANGE_BYTES: Final = 16 * 2**20
"""One insert. A quarter of its time does not depend on its size; twice the size is a tenth faster, for 400 MB more."""

GATHER_BYTES: Final = RANGE_BYTES // 2
"""Segments that are smaller are posted together: most of the time of a small insert does not depend on its size."""
ROWS: Final = 20_000
"""Rows that are decoded before they are inserted: some tens of megabytes."""

log = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """The warehouse does not answer or cannot store anything now: ask again later."""


class Rejected(RuntimeError):
    """The warehouse does not take these bytes."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before `position` is in `events` and checked for conflicts; so is what came up to `through_ns`."""

    position: Position
    through_ns: int
    step: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A frame that cannot be decoded, for suspense; `record` is None when not even Rec could be read."""

    record: Record | None
    position: Position
    data: bytes
    received_at_ns: int
    why: str


class Store(Protocol):
    """The warehouse, as far as the projector needs it. Every call may be repeated; raises Unavailable or Rejected."""

    def checkpoint(self, collector_id: str) -> Checkpoint | None: ...
    def post(self, data: bytes) -> None: ...
    def hold(self, records: list[Unreadable]) -> None: ...
    def add(self, rows: Rows) -> None: ...
    def mark_conflicts(self, from_ns: int, through_ns: int) -> None: ...
    def settle_spans(self, from_ns: int, through_ns: int) -> None: ...
    def write_checkpoint(self, collector_id: str, checkpoint: Checkpoint) -> None: ...


class Projector:
    """The state machine; `read(position, until, limit)` and `horizon()` are the journal's.

    A step takes on segments until it has `gather_bytes`; with 0 it stays within one.
    """

    def __init__(
        self,
        collector_id: str,
        store: Store,
        *,
        horizon: Callable[[], Horizon],
        read: Callable[[Position, Position, int], tuple[bytes, Position]],
        range_bytes: int = RANGE_BYTES,
        gather_bytes: int = GATHER_BYTES,
    ) -> None:
        self._collector_id, self._store = collector_id, store
        self._horizon, self._read, self._range_bytes = horizon, read, range_bytes
        self._gather_bytes = gather_bytes
        self._done: Checkpoint | None = None
        self.caught_up = False
        """The last step came to the end of what was on disk when it began."""

    @property
    def done(self) -> Checkpoint | None:
        """The last checkpoint; None before the first step."""
        return self._done

    def forget(self) -> None:
        """Read the checkpoint from the warehouse again: after an error it may be another one, or an older state."""
        self._done = None

    def step(self) -> bool:
        """Project the next range; False when nothing was left to do but the heartbeat. Raises Unavailable.

        A checkpoint that the journal does not have says nothing about the journal there is, an older copy for example:
        all of it is projected again, which adds only the rows that are missing.
        """
        done = self._done or self._store.checkpoint(self._collector_id) or Checkpoint(START, 0, 0)
        horizon = self._horizon()
        try:
            parts, position = self._gather(done.position, horizon.position)
        except Gone as problem:
            log.error("projected up to a place that the journal does not have, so it starts anew: %s", problem)
            done = Checkpoint(START, 0, done.step)
            parts, position = self._gather(START, horizon.position)
        through_ns = done.through_ns
        if parts:
            times = self._project(_Range(parts), done.through_ns)
            self._store.mark_conflicts(min(times), max(times))
            self._store.settle_spans(min(times), max(times))
            through_ns = max(through_ns, *times)
        if position == horizon.position:
            through_ns = max(through_ns, horizon.through_ns)
        self.caught_up = position == horizon.position
        self._done = Checkpoint(position, through_ns, done.step + 1)
        self._store.write_checkpoint(self._collector_id, self._done)
        return position != done.position

    def _gather(self, position: Position, until: Position) -> tuple[list[tuple[Position, bytes]], Position]:
        """What a step projects, in the order of the journal, and where it ends. Raises Gone."""
        parts: list[tuple[Position, bytes]] = []
        size = 0
        while True:
            try:
                data, following = self._read(position, until, self._range_bytes)
            except Gone:
                if parts:  # the next step begins there, and says so
                    return parts, position
                raise
            if data:
                parts.append((position, data))
                size += len(data)
            if following == position or size >= self._gather_bytes:
                return parts, following
            position = following

    def _project(self, found: "_Range", before_ns: int) -> list[int]:
        """Store a range; returns the times of its records."""
        held: list[Unreadable] = []
        times: list[int] = []
        run: list[Frame] = []
        foreign: set[int] = set()
        latest_ns = before_ns
        for frame in found.frames:
            record = _record(found.data, frame)
            if record is not None:
                latest_ns = record.received_at_ns
                run.append(frame)
                if is_foreign(record):
                    foreign.add(frame.start)
            else:
                self._post(found, run, foreign, held)
                run = []
                why = "not a record" if frame.body == frame.end else "damaged record"
                held.append(Unreadable(None, found.place(frame), found.bytes_of(frame), latest_ns, why))
            times.append(latest_ns)
        self._post(found, run, foreign, held)
        if held:
            log.error(
                "%d records of %s cannot be decoded; they are held in suspense",
                len(held),
                ", ".join(sorted({it.position.segment for it in held})),
            )
            self._store.hold(held)
        return times

    def _post(self, found: "_Range", run: list[Frame], foreign: set[int], held: list[Unreadable]) -> None:
        """Post a run of adjacent frames and add the rows of those that are foreign, which are named by their starts.

        Where it is rejected it is halved, down to the one record that is to blame.
        """
        if not run:
            return
        try:
            self._store.post(found.data[run[0].start : run[-1].end])
            self._add([frame for frame in run if frame.start in foreign], found, held)
        except Rejected as problem:
            if len(run) > 1:
                self._post(found, run[: len(run) // 2], foreign, held)
                self._post(found, run[len(run) // 2 :], foreign, held)
                return
            self._prove_that_the_warehouse_stores()
            held.append(_blamed(found, run[0], str(problem)))

    def _add(self, foreign: list[Frame], found: "_Range", held: list[Unreadable]) -> None:
        """Store the rows of records that ClickHouse does not decode, or not all of."""
        waiting = Rows()
        for frame in foreign:
            try:
                waiting.extend(rows_of(decode(found.data[frame.body : frame.end])))
            except (ArithmeticError, AttributeError, DecodeError, LookupError, TypeError, ValueError) as problem:
                # A mistake of ours in a function of the record: trying again would not help, and nothing waits for it.
                log.exception("a record cannot be decoded, it is held in suspense")
                held.append(_blamed(found, frame, f"{type(problem).__name__}: {problem}"))
            if len(waiting) >= ROWS:
                self._store.add(waiting)
                waiting = Rows()
        if len(waiting):
            self._store.add(waiting)

    def _prove_that_the_warehouse_stores(self) -> None:
        # A full disk or a missing table rejects every record: none of them is to blame then.
        try:
            self._store.post(b"")
            self._store.write_checkpoint(self._collector_id, self._done or Checkpoint(START, 0, 0))
        except Rejected as problem:
            raise Unavailable(f"the warehouse stores nothing at all: {problem}") from problem


class _Range:
    """Bytes of one or more segments after each other, and the frames in them, with offsets in `data`.

    What stands behind the last frame of a segment is a frame without a body, which is not intact.
    """

    def __init__(self, parts: list[tuple[Position, bytes]]) -> None:
        self.data = parts[0][1] if len(parts) == 1 else b"".join(data for _, data in parts)
        self.frames: list[Frame] = []
        self._parts: list[tuple[int, Position]] = []
        base = 0
        for position, data in parts:
            self._parts.append((base, position))
            end = 0
            for frame in frames(data, position.segment):
                end = frame.end
                self.frames.append(Frame(base + frame.start, base + frame.body, base + end, frame.intact))
            if end < len(data):
                self.frames.append(Frame(base + end, base + len(data), base + len(data), False))
            base += len(data)

    def place(self, frame: Frame) -> Position:
        """Where a frame stands in the journal."""
        base, position = self._parts[bisect_right(self._parts, frame.start, key=lambda part: part[0]) - 1]
        return Position(position.segment, position.offset + frame.start - base)

    def bytes_of(self, frame: Frame) -> bytes:
        """A frame, its head included."""
        return self.data[frame.start : frame.end]


def _record(data: bytes, frame: Frame) -> Record | None:
    if not frame.intact:
        return None
    try:
        return decode(data[frame.body : frame.end], intact=True)
    except Damaged:
        return None


def _blamed(found: _Range, frame: Frame, why: str) -> Unreadable:
    record = decode(found.data[frame.body : frame.end])
    return Unreadable(record, found.place(frame), found.bytes_of(frame), record.received_at_ns, why[:500])
