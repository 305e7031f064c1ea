"""The segment files of a journal directory: what is in them, and making the last one trustworthy at a start.

A segment `NAME.seg` is a file of that name, or `NAME.seg.zst` once it was compressed (sealing.py). Its name and its
offsets are the same in both: they are those of the content. Where both files are there, either is good.

Reading needs no lock: a rebuild reads beside the collector that writes and compresses.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from meterhouse_collector.records import decode, frames
from meterhouse_collector.seekable import SeekableFile

COMPRESSED: Final = ".zst"
FIRST_BYTES: Final = 64 * 2**10
"""Read at once where the first record is looked for."""
_CLOCK: Final = struct.Struct("<QI")

log = logging.getLogger(__name__)


class Gone(RuntimeError):
    """The journal does not have this position: an older copy was put in its place, or a file was cut or removed."""


class ForeignSegments(RuntimeError):
    """The directory has segments of another collector: which one came first cannot be told."""


class Position(NamedTuple):
    """A place in the journal; `segment` is '' before the first one. Positions of one collector compare in order."""

    segment: str
    offset: int


START: Final = Position("", 0)


class Content(Protocol):
    """The content of a segment, whichever file it is in."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on; fewer at the end."""
        ...


class InMemory:
    """A content that was not read from a file."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def names(directory: Path) -> list[str]:
    """The names of the segments of a journal directory, in the order they were written."""
    found = {name.removesuffix(COMPRESSED) for name in os.listdir(directory)}
    return sorted(name for name in found if name.endswith(".seg"))


@contextmanager
def opened(directory: Path, name: str) -> Iterator[Content]:
    """The content of a segment; it stays readable when the files are replaced meanwhile. Raises Gone, NotSeekable."""
    descriptor, is_compressed = _open(directory, name)
    try:
        yield SeekableFile(descriptor, str(directory / name)) if is_compressed else _PlainFile(descriptor)
    finally:
        os.close(descriptor)


def content(directory: Path, name: str) -> bytes:
    """All bytes of a segment, about 32 MB. Raises Gone, NotSeekable."""
    with opened(directory, name) as segment:
        return segment.read(0, segment.size)


def missing(directory: Path) -> list[int]:
    """The numbers of the segments that a journal had and has no more: they are given out in order, from 1."""
    found = {_number(name) for name in names(directory)}
    return sorted(set(range(1, max(found, default=0))) - found)


def end(directory: Path) -> Position:
    """Where the journal of a directory ends."""
    found = names(directory)
    if not found:
        return START
    with opened(directory, found[-1]) as segment:
        return Position(found[-1], segment.size)


def holds(directory: Path, position: Position) -> bool:
    """Whether the journal of a directory has a position."""
    if position == START:
        return True
    try:
        with opened(directory, position.segment) as segment:
            return segment.size >= position.offset
    except Gone:
        return False


def first_after(directory: Path, position: Position) -> int | None:
    """When the first record behind a position was received, in Unix nanoseconds; None where there is none.

    Of what is damaged nothing is known, the record behind it counts. Raises Gone.
    """
    until = end(directory)
    while True:
        data, following = read(directory, position, until, FIRST_BYTES)
        for frame in frames(data, position.segment):
            if frame.intact:
                return decode(data[frame.body : frame.end]).received_at_ns
        if following == position:
            return None
        position = following


def read(directory: Path, position: Position, until: Position, limit_bytes: int) -> tuple[bytes, Position]:
    """Frames from `position` on, of one segment, not beyond `until`; and where they end. Raises Gone.

    At the end of a segment the result is b'' and the start of the next one; b'' and the same position where nothing
    follows. Damaged frames come together with the intact one behind them; where none follows in the segment, the rest
    of it comes as it is, so that it can be held up as unreadable. That, and a frame larger than the limit, is more
    than the limit.
    """
    if not position.segment:
        found = names(directory)
        return b"", Position(found[0], 0) if found else position
    with opened(directory, position.segment) as segment:
        last = until.offset if position.segment == until.segment else segment.size
        if position.offset > min(last, segment.size):
            raise Gone(f"{directory / position.segment} ends at {min(last, segment.size)}, before {position.offset}")
        data = segment.read(position.offset, min(limit_bytes, last - position.offset))
        length = _intact(data, position.segment)
        if data and not length:
            data += segment.read(position.offset + len(data), last - position.offset - len(data))
            length = next((frame.end for frame in frames(data, position.segment) if frame.intact), len(data))
    if length:
        return data[:length], Position(position.segment, position.offset + length)
    following = next((name for name in names(directory) if name > position.segment), None)
    if following and position.segment < until.segment:
        return b"", Position(following, 0)
    return b"", position


def recover(directory: Path, prefix: str) -> tuple[int, int]:
    """Make the last segment trustworthy; returns its number and the latest time that the journal has given out.

    What it holds may sit in the page cache only (a failed fdatasync marks pages clean), so its frames are copied to a
    new file, which is synced and takes its place under the same name. No frame changes its position: a damaged one
    stays where it is and is held in suspense by the projector. Only what follows the last frame is cut off, the torn
    write of a process that died; it was acknowledged to nobody, unless it is damage as well, so it is set aside as
    `*.torn`. Raises ForeignSegments.
    """
    found = names(directory)
    foreign = [name for name in found if not name.startswith(prefix)]
    if foreign:
        raise ForeignSegments(
            f"{directory} has segments of another collector ({foreign[0]}): restore its file collector_id together "
            "with them, or move them elsewhere"
        )
    latest_ns = read_clock(directory)
    for name in reversed(found):
        data = content(directory, name)
        whole = list(frames(data, name))
        if name == found[-1] and (directory / name).exists():  # what is compressed was whole and synced before
            _replace(directory / name, data, whole[-1].end if whole else 0)
        for frame in whole:
            if not frame.intact:
                log.warning(
                    "%s: %d bytes at offset %d are damaged; what stands around them is kept, they go into suspense",
                    directory / name,
                    frame.end - frame.start,
                    frame.start,
                )
        intact = [frame for frame in whole if frame.intact]
        if intact:
            latest_ns = max(latest_ns, decode(data[intact[-1].body : intact[-1].end]).received_at_ns)
            break
    return (_number(found[-1]) if found else 0), latest_ns


def name(prefix: str, number: int, chance: str) -> str:
    """The name of a new segment. By chance (8 digits) it is never one that stood for other bytes before.

    After an older copy of a journal was restored, the same numbers are given out again.
    """
    return f"{prefix}-{number:08d}-{chance}.seg"


def write_clock(directory: Path, latest_ns: int) -> None:
    """Note the latest time that was promised to be past; without fsync, it is for a clock that falls, not for power."""
    told = latest_ns.to_bytes(8, "little")
    descriptor = os.open(directory / "clock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, _CLOCK.pack(latest_ns, zlib.crc32(told)), 0)
    finally:
        os.close(descriptor)


def read_clock(directory: Path) -> int:
    """The time that `write_clock` noted; 0 when there is none."""
    try:
        latest_ns, checksum = _CLOCK.unpack((directory / "clock").read_bytes())
    except (FileNotFoundError, struct.error):
        return 0
    return int(latest_ns) if zlib.crc32(latest_ns.to_bytes(8, "little")) == checksum else 0


def write_durably(file: Path, data: bytes) -> None:
    """Put a file in place, readable by its owner only, so that a power cut leaves the old one or the new one."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a file's bytes are worth nothing after a power cut without its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _PlainFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.size = descriptor, os.fstat(descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(self._descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)


def _open(directory: Path, name: str) -> tuple[int, bool]:
    # In this order: when the one is removed, the other is there already.
    for suffix in ("", COMPRESSED):
        try:
            return os.open(directory / (name + suffix), os.O_RDONLY), bool(suffix)
        except FileNotFoundError:
            continue
    raise Gone(f"there is no segment {name} in {directory}")


def _replace(file: Path, data: bytes, length: int) -> None:
    if length < len(data):
        torn = file.with_suffix(".torn")
        log.warning("%s: %d bytes from offset %d on are no record; see %s", file, len(data) - length, length, torn)
        write_durably(torn, data[length:])
    write_durably(file, data[:length])


def _intact(data: bytes, segment: str) -> int:
    return max((frame.end for frame in frames(data, segment) if frame.intact), default=0)


def _number(segment: str) -> int:
    return int(segment.split("-")[1].removesuffix(".seg"))
