"""A backup as files: a directory, or one `.tar`, with a manifest that has the size and SHA-256 of each.

It is written under another name and gets its own when all of it is on disk: what has a manifest is complete.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_PIECE: Final = 1024 * 1024

Progress = Callable[[int], None]
"""Told the bytes that were copied or read since the last time."""


class BackupRefused(RuntimeError):
    """A backup that cannot be written there, or is damaged, or not readable here; the text says what and why."""


class Writer:
    """A backup that is being written; `close` completes it, `discard` removes what there is."""

    def __init__(self, target: Path, progress: Progress = lambda _bytes: None) -> None:
        """`target` ends in .tar for one file, else it is a directory. Raises BackupRefused where something is there."""
        if target.exists():
            raise BackupRefused(f"{target} exists already: name another place, a backup is never overwritten")
        self._target, self._partial = target, target.with_name(target.name + ".partial")
        self._files: dict[str, dict[str, Any]] = {}
        self._progress = progress
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._partial.exists():
            raise BackupRefused(f"{self._partial} is in the way: another backup runs, or was interrupted; remove it")
        self._tar: tarfile.TarFile | None = None
        if target.suffix == ".tar":
            stream = open(self._partial, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))  # noqa: SIM115
            self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        else:
            self._partial.mkdir(mode=0o700)

    @property
    def folder(self) -> Path:
        """Where it is being written, for files that it is put together from."""
        return self._target.parent

    def add(self, name: str, source: IO[bytes], size: int) -> None:
        """Add `size` bytes of `source` as a file. Raises BackupRefused where it has less."""
        reader = _Hashing(source, size, self._progress)
        if self._tar is not None:
            head = tarfile.TarInfo(name)
            head.size, head.mode = size, 0o600
            self._tar.addfile(head, reader)
        else:
            file = self._partial / name
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
                shutil.copyfileobj(reader, out, _PIECE)
                _sync(out)
            _sync_directory(file.parent)
        if reader.left:
            raise BackupRefused(f"{name} is {reader.left} bytes shorter than it was a moment ago: try again")
        self._files[name] = {"bytes": size, "sha256": reader.digest.hexdigest()}

    def close(self, about: dict[str, Any]) -> dict[str, Any]:
        """Add the manifest with `about` in it, and give the backup its name; returns the manifest."""
        manifest = {"format": FORMAT, **about, "files": self._files}
        manifest["sha256"] = _seal(manifest)
        text = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
        self.add(MANIFEST, io.BytesIO(text), len(text))
        if self._tar is not None:
            self._tar.close()
            stream: IO[bytes] = self._tar.fileobj  # type: ignore[assignment]
            _sync(stream)
            stream.close()
        else:
            _sync_directory(self._partial)
        self._partial.rename(self._target)
        _sync_directory(self._target.parent)
        return manifest

    def discard(self) -> None:
        """Remove what was written."""
        if self._tar is not None:
            if self._tar.fileobj is not None:
                self._tar.fileobj.close()
            self._partial.unlink(missing_ok=True)
        else:
            shutil.rmtree(self._partial, ignore_errors=True)


class Reader:
    """A complete backup. Raises BackupRefused where it is none, or one of a newer Meterhouse."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tar: tarfile.TarFile | None = None
        try:
            if path.is_file():
                self._tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed by close
            with self.stream(MANIFEST) as source:
                self.manifest: dict[str, Any] = json.load(source)
        except (tarfile.TarError, OSError, KeyError, ValueError) as problem:
            self.close()
            raise BackupRefused(f"{path} is no complete backup: its {MANIFEST} cannot be read ({problem})") from None
        if self.manifest.get("format") != FORMAT:
            self.close()
            raise BackupRefused(
                f"{path} has the format {self.manifest.get('format')!r}, this Meterhouse reads {FORMAT}: use the "
                "Meterhouse that wrote it"
            )

    def close(self) -> None:
        """Close the file."""
        if self._tar is not None:
            self._tar.close()

    @contextmanager
    def stream(self, name: str) -> "Iterator[IO[bytes]]":
        """A file of the backup, to be read. Raises KeyError or OSError where it is missing."""
        if self._tar is None:
            with open(self._path / name, "rb") as source:
                yield source
            return
        member = self._tar.extractfile(name)
        if member is None:
            raise KeyError(name)
        with member:
            yield member

    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def names(self, folder: str) -> list[str]:
        """The files in a folder of the backup, with it."""
        return sorted(name for name in self.manifest["files"] if name.startswith(f"{folder}/"))

    def verify(self, progress: Progress = lambda _bytes: None) -> None:
        """Read everything. Raises BackupRefused with all that is missing or not what the manifest says."""
        problems = []
        unsealed = {name: value for name, value in self.manifest.items() if name != "sha256"}
        if _seal(unsealed) != self.manifest.get("sha256"):
            problems.append(f"{MANIFEST} was changed")
        for name, file in self.manifest["files"].items():
            try:
                with self.stream(name) as source:
                    reader = _Hashing(source, file["bytes"], progress)
                    while reader.read(_PIECE):
                        pass
                    more = source.read(1)
            except (KeyError, OSError, tarfile.TarError):
                problems.append(f"{name} is missing")
                continue
            if reader.left or more:
                problems.append(f"{name} does not have its {file['bytes']} bytes")
            elif reader.digest.hexdigest() != file["sha256"]:
                problems.append(f"{name} is damaged")
        if problems:
            raise BackupRefused(f"{self._path} is damaged: {'; '.join(problems)}")


class _Hashing:
    """The first `left` bytes of a stream, hashed while they are read."""

    def __init__(self, source: IO[bytes], size: int, progress: Progress) -> None:
        self._source, self.left, self._progress = source, size, progress
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        wanted = self.left if size < 0 else min(size, self.left)
        data = self._source.read(wanted) if wanted else b""
        self.left -= len(data)
        self.digest.update(data)
        self._progress(len(data))
        return data


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
