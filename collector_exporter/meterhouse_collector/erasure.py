"""Erases a customer from the journal: the one rewrite of the book of record that there is.

    found = erasure.erase(journal, "acme", "live", who="jane", why="ticket 17", at=now, is_taken=registry_has)
    ...                                    # wait until the watermark's position has reached found.through
    ...                                    # delete the rows of acme in the warehouse
    erasure.replay(journal, found, Inbox(client))   # the same rows come back under found.pseudonym

Values are overwritten in place (scrubbing.py): record ids, times, quantities, point and row numbers, positions and
everything of other customers stay to the byte. A signed tombstone says who, when, why and what became what; it does not
name the customer. Trace and span ids stay, because which spans count twice hangs on them.

After a crash the same call goes on where it stopped. Copies elsewhere (an object store, backups) need it too: the
upkeep copies rewritten segments again; what a bucket keeps of older versions is up to its rules.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from meterhouse_collector import retention, sealing, segments
from meterhouse_collector.foreign import is_foreign, rows_of
from meterhouse_collector.projector import Store
from meterhouse_collector.pseudonyms import Pseudonyms
from meterhouse_collector.records import decode, frames
from meterhouse_collector.renamed import Name, renamed
from meterhouse_collector.scrubbing import may_speak_of, without_customer
from meterhouse_collector.seekable import NotSeekable
from meterhouse_collector.segments import COMPRESSED, START, Position
from meterhouse_collector.upkeep import request_of_rotation

ROTATION_S: Final = 30.0
_TRIES: Final = 1000
_BATCH_BYTES: Final = 4 * 2**20


class CannotErase(RuntimeError):
    """Nothing was rewritten, or not everything yet; the text says why and what to do. It may be repeated."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A segment before and after (sha256 of the content), with the (record id, offset) of what was rewritten in it."""

    segment: str
    before_sha256: str
    after_sha256: str
    records: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Erased:
    """What came of it. `left` has a sentence for each place that may still name the customer and cannot be read."""

    erasure_id: str
    pseudonym: str
    segments: tuple[Rewritten, ...]
    through: Position
    """Everything before this was looked into: wait until the watermark's position is not less."""
    left: tuple[str, ...]
    tombstone: Path
    renamed: dict[Name, Name]
    """Rows that were decided about, by their old names, with the new ones. `forget_names` when they were taken over."""

    @property
    def records(self) -> int:
        """How many records were rewritten."""
        return sum(len(one.records) for one in self.segments)


def erase(
    directory: Path,
    customer_id: str,
    namespace: str,
    *,
    who: str,
    why: str,
    at: datetime,
    is_taken: Callable[[str], bool],
    decided: Collection[str] = (),
    say: Callable[[str], None] = lambda _text: None,
) -> Erased:
    """Overwrite a customer in everything that the journal has received so far, beside a running collector or without.

    `is_taken(id)`: whether a customer of this id exists; the pseudonym is none of them. `decided`: the event ids that
    decisions speak of. The customer's keys have to be revoked or restricted before, or new usage arrives under the old
    id. Raises CannotErase, OSError.
    """
    _check_id(customer_id)
    with _sealed_segments(directory) as names, sealing.upkeep_lock(directory):
        intent = _intent(directory, customer_id, namespace, who, why, at, is_taken)
        pseudonyms = Pseudonyms(bytes.fromhex(intent["secret"]))
        left: list[str] = []
        for name in names:
            changed = _rewritten(directory, name, customer_id, namespace, pseudonyms, decided, left)
            if changed is not None:
                data, of_segment = changed
                intent["segments"].append(of_segment)
                _write_json(_intent_file(directory, intent), intent)  # before the rewrite: after a crash it is known
                _replace(directory, name, data)
                say(f"{name}: {len(of_segment['records'])} records rewritten")
        left += [f"{file} was set aside at a start and is no record" for file in _torn(directory, customer_id)]
        left += [
            f"{one['segment']} was removed, and its copy {one['copy']} was not looked into: fetch it and repeat"
            for one in retention.removed(directory)
            if one["copy"] and one["segment"] not in names
        ]
        return _finish(directory, intent, _end(directory, names), left)


def count(directory: Path, customer_id: str, namespace: str) -> tuple[int, int]:
    """How many records of the journal speak of a customer, and in how many segments; nothing is changed.

    Raises CannotErase where a segment cannot be read, or the id cannot be erased.
    """
    _check_id(customer_id)
    _check_journal(directory)
    names = Pseudonyms(secrets.token_bytes(32))
    records = of_segments = 0
    for name in segments.names(directory):
        changed = _rewritten(directory, name, customer_id, namespace, names, (), [])
        if changed is not None:
            records += len(changed[1]["records"])
            of_segments += 1
    return records, of_segments


def check_free(customer_id: str, is_taken: Callable[[str], bool]) -> None:
    """Raises CannotErase where there is no pseudonym for the customer; `is_taken` as `erase` has it."""
    _secret(customer_id, is_taken)


def replay(directory: Path, erased: Erased, store: Store) -> None:
    """Bring the rewritten records into the warehouse, from which the customer's rows were deleted. May be repeated."""
    times: list[int] = []
    for one in erased.segments:
        data = segments.content(directory, one.segment)
        batch: list[bytes] = []
        wanted = {offset for _, offset in one.records}
        for frame in frames(data, one.segment):
            if frame.start in wanted:
                record = decode(data[frame.body : frame.end])
                times.append(record.received_at_ns)
                if is_foreign(record):
                    store.add(rows_of(record))
                batch.append(data[frame.start : frame.end])
            if sum(map(len, batch)) > _BATCH_BYTES:
                store.post(b"".join(batch))
                batch = []
        if batch:
            store.post(b"".join(batch))
    if times:
        store.mark_conflicts(min(times), max(times))
        store.settle_spans(min(times), max(times))


def new_names(directory: Path, erasure_id: str) -> dict[Name, Name]:
    """Old -> new names of the rows that were decided about, until they are forgotten."""
    try:
        found = json.loads(_names_file(directory, erasure_id).read_bytes())
    except FileNotFoundError:
        return {}
    return {(customer_id, event_id): (*new,) for customer_id, event_id, *new in found}


def forget_names(directory: Path, erasure_id: str) -> None:
    """Remove the old names: the decisions have the new ones."""
    file = _names_file(directory, erasure_id)
    file.unlink(missing_ok=True)
    segments.sync_directory(file.parent)


def tombstones(directory: Path) -> list[dict[str, Any]]:
    """The tombstones of a journal in the order of their times, as they stand there."""
    found = [json.loads(file.read_bytes()) for file in (directory / "tombstones").glob("*.json")]
    return sorted(found, key=lambda told: (told["at"], told["erasure_id"]))


def mistakes(directory: Path) -> list[str]:
    """What is wrong with the tombstones, or with the segments that they speak of: a sentence each."""
    found: list[str] = []
    after: dict[str, tuple[str, str]] = {}
    for told in tombstones(directory):
        if not hmac.compare_digest(told["signature"], _signature(directory, told)):
            found.append(f"the tombstone {told['erasure_id']} was changed after it was signed, or by another key")
        after |= {one["segment"]: (one["after_sha256"], told["erasure_id"]) for one in told["segments"]}
    for name in sorted(after.keys() & set(segments.names(directory))):
        expected, erasure_id = after[name]
        try:
            content = segments.content(directory, name)
        except NotSeekable:
            continue  # whoever reads the journal is told
        if hashlib.sha256(content).hexdigest() != expected:
            found.append(f"{name} is not what the erasure {erasure_id} left: an older copy, or changed since")
    return found


@contextmanager
def _sealed_segments(directory: Path) -> Iterator[list[str]]:
    """The segments that may be rewritten: without a collector all, beside one those that it has sealed by now."""
    _check_journal(directory)
    with open(directory / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _have_it_rotated(directory)
            yield sealing.sealed(directory)
        else:
            prefix = (directory / "collector_id").read_text(encoding="ascii")[:8]
            segments.recover(directory, prefix)
            yield segments.names(directory)


def _check_id(customer_id: str) -> None:
    if not customer_id:
        raise CannotErase("name the customer: an empty id is usage without a customer")
    if "\ufffd" in customer_id:
        raise CannotErase(
            "U+FFFD in an id stands for a character that is not stored as it came: the journal has no such id. "
            "Revoke the customer's keys; its records leave with METERHOUSE_JOURNAL_RETENTION_DAYS"
        )


def _check_journal(directory: Path) -> None:
    if not (directory / "collector_id").exists():
        raise CannotErase(f"there is no journal in {directory}: run this where the collector runs")


def _have_it_rotated(directory: Path) -> None:
    last = segments.end(directory)
    request_of_rotation(directory).touch()
    deadline = time.monotonic() + ROTATION_S
    while segments.names(directory)[-1] == last.segment and segments.end(directory).offset:
        if time.monotonic() > deadline:
            raise CannotErase(
                f"the collector did not begin a new segment within {ROTATION_S:.0f} s: see its log, or stop it and "
                "repeat the command"
            )
        time.sleep(0.05)


def _intent(
    directory: Path,
    customer_id: str,
    namespace: str,
    who: str,
    why: str,
    at: datetime,
    is_taken: Callable[[str], bool],
) -> dict[str, Any]:
    """What is to be done, on disk before anything is done: an interrupted erasure goes on with the same pseudonyms."""
    (directory / "tombstones").mkdir(mode=0o700, exist_ok=True)
    for file in (directory / "tombstones").glob("*.open"):
        found: dict[str, Any] = json.loads(file.read_bytes())
        if (found["customer_id"], found["namespace"]) == (customer_id, namespace):
            found["segments"] = [one for one in found["segments"] if _is_done(directory, one)]
            return found
    secret = _secret(customer_id, is_taken)
    intent = {
        "erasure_id": secrets.token_hex(8),
        "customer_id": customer_id,
        "secret": secret.hex(),
        "namespace": namespace,
        "pseudonym": Pseudonyms(secret).customer(customer_id),
        "who": who,
        "why": why,
        "at": at.isoformat(),
        "segments": [],
    }
    _write_json(_intent_file(directory, intent), intent)
    segments.sync_directory(directory)
    return intent


def _secret(customer_id: str, is_taken: Callable[[str], bool]) -> bytes:
    is_taken = cache(is_taken)  # of short ids the same few come up again and again
    for _ in range(_TRIES):
        secret = secrets.token_bytes(32)
        pseudonym = Pseudonyms(secret).customer(customer_id)
        if pseudonym != customer_id and not is_taken(pseudonym):
            return secret
    raise CannotErase(f"there is no free pseudonym of {len(customer_id)} characters: all are ids of other customers")


def _is_done(directory: Path, one: dict[str, Any]) -> bool:
    content = segments.content(directory, one["segment"])
    return bool(hashlib.sha256(content).hexdigest() == one["after_sha256"])


def _rewritten(
    directory: Path,
    name: str,
    customer_id: str,
    namespace: str,
    pseudonyms: Pseudonyms,
    decided: Collection[str],
    left: list[str],
) -> tuple[bytes, dict[str, Any]] | None:
    try:
        data = segments.content(directory, name)
    except NotSeekable as problem:
        raise CannotErase(
            f"{name} is damaged and cannot be read ({problem}): move it away and have its copy brought back with "
            "`meterhouse journal fetch`, or take it from a backup; then repeat the command"
        ) from None
    parts: list[bytes] = []
    records: list[tuple[str, int]] = []
    names: dict[Name, Name] = {}
    at = 0
    for frame in frames(data, name):
        if not may_speak_of(memoryview(data)[frame.body : frame.end], customer_id):
            continue
        if not frame.intact:
            left.append(f"{name} from {frame.start} to {frame.end} is damaged and cannot be read")
            continue
        changed = without_customer(data, frame, customer_id, namespace, pseudonyms)
        if changed is not None:
            parts += data[at : frame.start], changed
            record = decode(data[frame.body : frame.end])
            records.append((record.record_id, frame.start))
            at = frame.end
            if decided:
                names |= renamed(record, decode(changed[frame.body - frame.start :]), decided)
    if not records:
        return None
    after = b"".join([*parts, data[at:]])
    assert len(after) == len(data)
    before_sha256, after_sha256 = hashlib.sha256(data).hexdigest(), hashlib.sha256(after).hexdigest()
    return after, {
        "segment": name,
        "before_sha256": before_sha256,
        "after_sha256": after_sha256,
        "records": records,
        "renamed": [[*old, *new] for old, new in names.items()],
    }


def _replace(directory: Path, name: str, data: bytes) -> None:
    file, packed = directory / name, directory / (name + COMPRESSED)
    if not file.exists():
        sealing.replace_durably(packed, segments.InMemory(data))
        return
    if packed.exists():  # left by a crash: it would bring the customer back
        packed.unlink()
        segments.sync_directory(directory)
    segments.write_durably(file, data)


def _torn(directory: Path, customer_id: str) -> list[str]:
    return sorted(file.name for file in directory.glob("*.torn") if customer_id.encode() in file.read_bytes())


def _end(directory: Path, names: list[str]) -> Position:
    if not names:
        return START
    with segments.opened(directory, names[-1]) as content:
        return Position(names[-1], content.size)


def _finish(directory: Path, intent: dict[str, Any], through: Position, left: list[str]) -> Erased:
    told = {name: value for name, value in intent.items() if name not in ("customer_id", "secret")}
    names = [of_row for one in intent["segments"] for of_row in one.get("renamed", ())]
    told["segments"] = [{name: one[name] for name in one if name != "renamed"} for one in intent["segments"]]
    told["left"] = left
    told["signature"] = _signature(directory, told)
    tombstone = directory / "tombstones" / f"{intent['erasure_id']}.json"
    if names:
        _write_json(_names_file(directory, intent["erasure_id"]), names)
    _write_json(tombstone, told)
    _intent_file(directory, intent).unlink()  # with it the secret goes: from here on nobody can tell who it was
    segments.sync_directory(tombstone.parent)
    return Erased(
        intent["erasure_id"],
        intent["pseudonym"],
        tuple(
            Rewritten(
                one["segment"],
                one["before_sha256"],
                one["after_sha256"],
                tuple((record_id, offset) for record_id, offset in one["records"]),
            )
            for one in intent["segments"]
        ),
        through,
        tuple(left),
        tombstone,
        new_names(directory, intent["erasure_id"]),
    )


def _signature(directory: Path, told: dict[str, Any]) -> str:
    """HMAC-SHA256 with the journal's own key: whoever can write the journal can sign, nobody else can."""
    file = directory / "tombstone.key"
    if not file.exists():
        segments.write_durably(file, secrets.token_hex(32).encode())
    key = bytes.fromhex(file.read_text(encoding="ascii"))
    signed = {name: value for name, value in told.items() if name != "signature"}
    return hmac.digest(key, json.dumps(signed, sort_keys=True).encode(), "sha256").hex()


def _names_file(directory: Path, erasure_id: str) -> Path:
    return directory / "tombstones" / f"{erasure_id}.names"


def _intent_file(directory: Path, intent: dict[str, Any]) -> Path:
    return directory / "tombstones" / f"{intent['erasure_id']}.open"


def _write_json(file: Path, told: Any) -> None:
    segments.write_durably(file, json.dumps(told, indent=1).encode() + os.linesep.encode())
