"""How a process journal looks on disk, and who holds it.

One JSON line per record:

    {"process": {resource attributes}}                         first line
    {"intent": call id, "at": ns, "attributes": {...}}         a provider call starts
    {"call": call id or null, "events": [...]}                 its events: the call is finished
    {"acknowledged": [event ids]}                              the collector has them on disk
    {"delivered_before": offset}                               by an adopter: and all events on lines before that byte
    {"lost": count}                                            events that neither the disk nor the memory had room for

A file whose lock (flock) is free belongs to a dead process and may be adopted.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".journal"
DRAFT_SUFFIX = ".new"
LONGEST_LINE_BYTES = 4 * 1024 * 1024
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

_locked: set[int] = set()


def encoded(record: Mapping[str, Any]) -> bytes:
    """The record as a line."""
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"


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


def close_inherited() -> None:
    """In a forked child: close what is the parent's, or the parent's locks would outlive it."""
    for fd in _locked:
        with suppress(OSError):  # the host closed it itself
            os.close(fd)
    _locked.clear()
