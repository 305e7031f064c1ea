"""Copies of sealed segments in an object store: S3 or what speaks its API, or a directory.

The key of a copy is `<collector id>/<segment>.seg.zst` below the prefix of the URL, so that copying twice is copying
once. A copy counts when it was read back and is the same, by SHA-256; `archive.json` in the journal directory notes it.
Needs the extra `archive` (obstore). Credentials, region and endpoint come from the usual AWS_* variables.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meterhouse_collector import segments
from meterhouse_collector.seekable import NotSeekable, SeekableFile
from meterhouse_collector.segments import COMPRESSED

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RETRIES: Final = 3
RETRY: Final = timedelta(seconds=30)
TIMEOUT: Final = timedelta(seconds=60)


class ArchiveFailed(RuntimeError):
    """The object store did not do what was asked; the text says what. It may be asked again."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A verified copy of a compressed segment's file, and the file it was made of: another one needs another copy."""

    key: str
    sha256: str
    size: int
    mtime_ns: int


class Archive:
    """The object store of a URL, `s3://bucket/prefix` or `file:///directory`. Raises ArchiveFailed."""

    def __init__(self, url: str, collector_id: str) -> None:
        self._store = _ask(lambda _obstore: _open(url))
        self._collector_id = collector_id

    def key(self, name: str) -> str:
        """Where the copy of a segment is."""
        return f"{self._collector_id}/{name}{COMPRESSED}"

    def put(self, directory: Path, name: str) -> Copy:
        """Copy a compressed segment and read the copy back."""
        file = directory / (name + COMPRESSED)
        stat, data = file.stat(), file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        _ask(lambda store: store.put(self._store, self.key(name), data))
        if (found := self.sha256(name)) != digest:
            raise ArchiveFailed(f"the copy of {name} reads back as {found} and is {digest}: it is made again")
        return Copy(self.key(name), digest, len(data), stat.st_mtime_ns)

    def sha256(self, name: str) -> str:
        """The hash of a copy's bytes, as they come back."""
        return hashlib.sha256(self._get(name)).hexdigest()

    def names(self) -> list[str]:
        """The names of the segments that have a copy."""
        pages = _ask(lambda store: list(store.list(self._store, prefix=f"{self._collector_id}/")))
        files = [str(found["path"]).rpartition("/")[2] for page in pages for found in page]
        return sorted(file.removesuffix(COMPRESSED) for file in files if file.endswith(f".seg{COMPRESSED}"))

    def fetch(self, directory: Path, name: str) -> None:
        """Put a segment's copy into the journal, in place of what is there; it is whole, or it is not put there."""
        data = self._get(name)
        noted = copies(directory).get(name)
        if noted is not None and hashlib.sha256(data).hexdigest() != noted.sha256:
            raise ArchiveFailed(f"the copy of {name} is not what was copied: it was changed or damaged there")
        fresh = directory / f"{name}{COMPRESSED}.fetched"
        fresh.write_bytes(data)
        try:
            _check(fresh)
        except NotSeekable as problem:
            fresh.unlink()
            raise ArchiveFailed(f"the copy of {name} is damaged: {problem}") from None
        fresh.unlink()
        segments.write_durably(directory / (name + COMPRESSED), data)
        if (directory / name).exists():  # what a crash has left, or what is damaged: it would be read first
            (directory / name).unlink()
            segments.sync_directory(directory)

    def _get(self, name: str) -> bytes:
        return bytes(_ask(lambda store: store.get(self._store, self.key(name)).bytes()))


def copies(directory: Path) -> dict[str, Copy]:
    """The verified copies, by segment."""
    try:
        told = json.loads((directory / "archive.json").read_bytes())
    except FileNotFoundError:
        return {}
    return {name: Copy(**copy) for name, copy in told.items()}


def note(directory: Path, name: str, copy: Copy) -> None:
    """Remember a verified copy."""
    known = copies(directory) | {name: copy}
    told = {name: asdict(copy) for name, copy in sorted(known.items())}
    segments.write_durably(directory / "archive.json", json.dumps(told, indent=1).encode())


def forget(directory: Path, name: str) -> None:
    """No copy is known any more: it is made again."""
    told = {one: asdict(copy) for one, copy in copies(directory).items() if one != name}
    segments.write_durably(directory / "archive.json", json.dumps(told, indent=1).encode())


def is_copied(directory: Path, name: str, copy: Copy | None) -> bool:
    """Whether the copy is one of the file that is there now: an erasure makes another file of it."""
    try:
        stat = (directory / (name + COMPRESSED)).stat()
    except FileNotFoundError:
        return False
    return copy is not None and (stat.st_size, stat.st_mtime_ns) == (copy.size, copy.mtime_ns)


def _check(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        content = SeekableFile(descriptor, str(file))
        content.read(0, content.size)
        if content.damaged:
            raise NotSeekable(f"{len(content.damaged)} blocks cannot be decompressed")
    finally:
        os.close(descriptor)


def _open(url: str) -> "ObjectStore":
    try:
        from obstore.store import from_url
    except ImportError:
        raise ArchiveFailed(
            "copies in an object store need the extra: pip install 'meterhouse[server,archive]'"
        ) from None
    if url.startswith("file://"):
        return from_url(url, mkdir=True)
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    retry: Any = {"max_retries": RETRIES, "retry_timeout": RETRY}
    return from_url(url, retry_config=retry, client_options={"allow_http": plain, "timeout": TIMEOUT})


def _ask(call: Any) -> Any:
    import obstore
    from obstore.exceptions import BaseError

    try:
        return call(obstore)
    except (BaseError, OSError) as problem:
        raise ArchiveFailed(str(problem).partition("\n")[0]) from problem
