"""Opens a pack: a zip of few, uncompressed files, each with its hash in the manifest, and nothing beside them."""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .findings import Findings, NotReadable, Refused, parse_json, whole

FORMAT: Final = "meterhouse-evidence-1"
MANIFEST: Final = "manifest.json"
EVENTS: Final = "events.jsonl.gz"

_MAX_FILES: Final = 200
_MAX_BYTES: Final = 64 << 20
_MAX_EVENT_BYTES: Final = 64 << 10
_MAX_UNPACKED: Final = 64 << 30
_MAX_RATIO: Final = 250
_READ: Final = 1 << 20

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


class Pack:
    """An open pack whose files are what its manifest says. Raises Refused; NotReadable where there is no file."""

    def __init__(self, path: Path, findings: Findings) -> None:
        try:
            path.open("rb").close()
        except OSError as broken:
            raise NotReadable(f"{path} cannot be read: {broken.strerror or broken}") from None
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as broken:
            raise Refused(f"{path} cannot be read: {broken.strerror or broken}") from None
        except zipfile.BadZipFile:
            raise Refused(f"{path} is no zip file, so it is no evidence pack") from None
        self._findings = findings
        members = _checked(self._zip, path.stat().st_size)
        if MANIFEST not in members:
            raise Refused("there is no manifest.json: this is no evidence pack")
        manifest = self._bytes(MANIFEST)
        self.id = hashlib.sha256(manifest).hexdigest()
        self.manifest = parse_json(manifest, MANIFEST)
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise Refused(f"the format is not {FORMAT}: verify it with the version of Meterhouse that made it")
        self.files: dict[str, Any] = self.manifest["files"]
        if unnamed := sorted(members - self.files.keys() - {MANIFEST}):
            raise Refused(f"the manifest does not name {', '.join(unnamed)}: somebody added it")
        if missing := sorted(self.files.keys() - members):
            raise Refused(f"the manifest names {', '.join(missing)}, and it is not there")

    def check_hashes(self) -> None:
        """Compare every file with the manifest."""
        for name, said in self.files.items():
            found = hashlib.sha256()
            with self._open(name) as stream:
                while block := stream.read(_READ):
                    found.update(block)
            if said["sha256"] != found.hexdigest():
                self._findings.wrong(f"{name} is not the file that the manifest names: its SHA-256 differs")
            self._findings.done("files by their SHA-256")

    def names(self) -> list[str]:
        return sorted(self.files)

    def text(self, name: str) -> str:
        try:
            return self._bytes(name).decode()
        except UnicodeDecodeError:
            raise Refused(f"{name} is no text") from None

    def json(self, name: str) -> Any:
        if name not in self.files:
            raise Refused(f"{name} is not in the pack")
        return parse_json(self._bytes(name), name)

    def events(self) -> Iterator[dict[str, Any]]:
        """The events, one after the other; the gzip file is unpacked piece by piece, no further than it may be."""
        size = self._zip.getinfo(EVENTS).file_size
        said = whole(self.files[EVENTS]["unpacked"])
        if said > min(_MAX_UNPACKED, size * _MAX_RATIO + _READ):
            raise Refused(f"{EVENTS} would unpack to {said} bytes from {size}: that is no list of events")
        unpack, rest, done = zlib.decompressobj(wbits=31), b"", 0
        try:
            with self._open(EVENTS) as stream:
                while packed := unpack.unconsumed_tail or stream.read(_READ):
                    block = unpack.decompress(packed, _READ)
                    done += len(block)
                    if done > said:
                        raise Refused(f"{EVENTS} unpacks to more than the {said} bytes that the manifest says")
                    *lines, rest = (rest + block).split(b"\n")
                    if len(rest) > _MAX_EVENT_BYTES:
                        raise Refused(f"{EVENTS} has a line of more than {_MAX_EVENT_BYTES} bytes")
                    for line in lines:
                        yield _event(line)
        except zlib.error as broken:
            raise Refused(f"{EVENTS} cannot be unpacked: {broken}") from None
        if rest or done != said or not unpack.eof or unpack.unused_data:
            raise Refused(f"{EVENTS} does not end where it should")

    def close(self) -> None:
        self._zip.close()

    def _open(self, name: str) -> Any:
        return self._zip.open(name)

    def _bytes(self, name: str) -> bytes:
        if self._zip.getinfo(name).file_size > _MAX_BYTES:
            raise Refused(f"{name} is larger than {_MAX_BYTES} bytes")
        try:
            return self._zip.read(name)
        except zipfile.BadZipFile as broken:
            raise Refused(f"{name} cannot be read: {broken}") from None


def _event(line: bytes) -> dict[str, Any]:
    event = parse_json(line, EVENTS)
    if not isinstance(event, dict):
        raise Refused(f"{EVENTS} has a line that is no event")
    return event


def _checked(archive: zipfile.ZipFile, size: int) -> set[str]:
    """The names in the zip. Nothing is unpacked by it, so that no name can lead out and no content can swell."""
    members = archive.infolist()
    if len(members) > _MAX_FILES:
        raise Refused(f"{len(members)} files are more than a pack has")
    names = [it.filename for it in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"{', '.join(twice)} is in it twice: readers would disagree about which counts")
    for it in members:
        if not _NAME.fullmatch(it.orig_filename) or it.filename != it.orig_filename:
            raise Refused(f"{it.orig_filename!r} is no name of a file in a pack")
        if it.compress_type != zipfile.ZIP_STORED or it.file_size != it.compress_size or it.flag_bits & 1:
            raise Refused(f"{it.filename} is compressed or encrypted: a pack's files are stored as they are")
        if it.external_attr >> 28 not in (0, 8):
            raise Refused(f"{it.filename} is no ordinary file")
    if sum(it.file_size for it in members) > size:
        raise Refused("its files are larger than itself")
    if archive.comment or (members and min(it.header_offset for it in members) != 0):
        raise Refused("there is something before or behind the files")
    return set(names)
