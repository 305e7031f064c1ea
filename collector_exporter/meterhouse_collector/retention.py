"""Removes old segments, where the operator wants that; by default the journal is kept for ever.

A segment goes when it is sealed, compressed, in the warehouse, older than the setting (its records and its file) and,
where there is an object store, the same to the byte there. The oldest goes first, so what is left has no holes.
`removed.json` says what went and when.
"""

import hashlib
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meterhouse_collector import archive, sealing, segments
from meterhouse_collector.archive import Archive, ArchiveFailed
from meterhouse_collector.records import decode, frames
from meterhouse_collector.segments import COMPRESSED, Position

log = logging.getLogger(__name__)


def remove_old(
    directory: Path, projected: Position, keep: timedelta, now: datetime, *, archive_to: Archive | None
) -> list[str]:
    """Remove what is older than `keep`; returns the names. Hold the `upkeep_lock`.

    `archive_to`: where copies are made, if they are; each is read back before its segment goes. Raises ArchiveFailed
    where one cannot be, OSError.
    """
    gone = []
    known = archive.copies(directory)
    for name in sealing.sealed(directory):
        if name >= projected.segment or not sealing.is_compressed(directory, name):
            break
        received_at = last_received_at(directory, name)
        file = directory / (name + COMPRESSED)
        # The file's own time, too: what was fetched back for a rebuild is not taken away again at once.
        if max(received_at.timestamp() if received_at else 0, file.stat().st_mtime) > (now - keep).timestamp():
            break
        copy = known.get(name)
        if archive_to is not None and not _is_copied(directory, name, copy, archive_to):
            break
        _note(directory, name, received_at, now, copy.key if copy else None)
        file.unlink()
        segments.sync_directory(directory)
        log.warning("%s was removed: what it holds was received up to %s, %s are kept", name, received_at, keep)
        gone.append(name)
    return gone


def removed(directory: Path) -> list[dict[str, Any]]:
    """What was removed, in order: segment, received_up_to, removed_at, copy (the key in the object store, or None)."""
    try:
        told: list[dict[str, Any]] = json.loads((directory / "removed.json").read_bytes())
    except FileNotFoundError:
        return []
    return told


def last_received_at(directory: Path, name: str) -> datetime | None:
    """When the last record of a segment was received; None where it has none."""
    data = segments.content(directory, name)
    intact = [frame for frame in frames(data, name) if frame.intact]
    if not intact:
        return None
    record = decode(data[intact[-1].body : intact[-1].end])
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=record.received_at_ns // 1000)


def _is_copied(directory: Path, name: str, copy: archive.Copy | None, archive_to: Archive) -> bool:
    # Its bytes here and there, not sizes and times: after this there is only the copy.
    data = (directory / (name + COMPRESSED)).read_bytes()
    if copy is None or hashlib.sha256(data).hexdigest() != copy.sha256:
        return False
    try:
        found = archive_to.sha256(name)
    except ArchiveFailed:
        archive.forget(directory, name)
        raise
    if found != copy.sha256:
        log.error("the copy of %s is not what was copied: it was changed or damaged there, and is made again", name)
        archive.forget(directory, name)
    return found == copy.sha256


def _note(directory: Path, name: str, received_at: datetime | None, now: datetime, copy: str | None) -> None:
    one = {
        "segment": name,
        "received_up_to": received_at.isoformat() if received_at else None,
        "removed_at": now.isoformat(),
        "copy": copy,
    }
    told = [other for other in removed(directory) if other["segment"] != name]
    segments.write_durably(directory / "removed.json", json.dumps([*told, one], indent=1).encode())
