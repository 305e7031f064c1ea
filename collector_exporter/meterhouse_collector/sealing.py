"""Sealed segments, to which nobody writes any more, and their compression.

Compressing replaces a file by another with the same content, so positions, names and what is read stay as they are. A
crash or a power cut at any point leaves the old file, the new one, or both.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meterhouse_collector import segments
from meterhouse_collector.seekable import BLOCK_BYTES, SeekableFile, compressed
from meterhouse_collector.segments import COMPRESSED, Content


class NotTheSame(RuntimeError):
    """What was read back of a compressed file is not what was written: memory or disk is not to be trusted."""


@contextmanager
def upkeep_lock(directory: Path) -> Iterator[None]:
    """Whoever replaces or removes files of sealed segments holds this; waits for it."""
    with open(directory / "upkeep.lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sealed(directory: Path) -> list[str]:
    """The names of the segments to which nothing is added any more: all but the last, in order."""
    return segments.names(directory)[:-1]


def is_compressed(directory: Path, name: str) -> bool:
    """Whether only the compressed file of a segment is left."""
    return not (directory / name).exists() and (directory / (name + COMPRESSED)).exists()


def compress(directory: Path, name: str, rest: Callable[[float], None] = lambda _worked_s: None) -> None:
    """Replace a sealed segment's file by a compressed one. May be repeated; hold the `upkeep_lock`.

    `rest` is called after each MiB with the seconds it took, and may wait. Raises NotTheSame, OSError; the file is
    there then as it was.
    """
    file = directory / name
    if not file.exists():
        return
    with segments.opened(directory, name) as plain:
        replace_durably(directory / (name + COMPRESSED), plain, rest)
    file.unlink()
    segments.sync_directory(directory)


def replace_durably(file: Path, content: Content, rest: Callable[[float], None] = lambda _worked_s: None) -> None:
    """Put a compressed file of this content in place of what stands there, after reading it back."""
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        started = time.thread_time()
        for part in compressed(_blocks(content)):
            os.write(descriptor, part)
            rest(time.thread_time() - started)
            started = time.thread_time()
        os.fsync(descriptor)
        _compare(descriptor, content, str(fresh), rest)
    finally:
        os.close(descriptor)
    fresh.replace(file)
    segments.sync_directory(file.parent)


def _blocks(content: Content) -> Iterator[bytes]:
    return (content.read(offset, BLOCK_BYTES) for offset in range(0, content.size, BLOCK_BYTES))


def _compare(descriptor: int, content: Content, name: str, rest: Callable[[float], None]) -> None:
    written = SeekableFile(descriptor, name)
    for offset in range(0, content.size, BLOCK_BYTES):
        started = time.thread_time()
        if written.read(offset, BLOCK_BYTES) != content.read(offset, BLOCK_BYTES):
            raise NotTheSame(f"{name} differs from what it was made of at offset {offset}: the old file stays")
        rest(time.thread_time() - started)
    if written.size != content.size:
        raise NotTheSame(f"{name} has {written.size} bytes of content instead of {content.size}: the old file stays")
