"""Makes an evidence pack: what a customer's period was billed by, in one file that verifies itself.

A pack is a function of what is stored: made again, it is the same bytes. It is verified before it is handed out.
"""

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from meterhouse_rating import statements
from meterhouse_rating.costs_entries import MATCHED, Entry
from meterhouse_rating.evidence_check.container import EVENTS, FORMAT, MANIFEST
from meterhouse_rating.evidence_check.ledger import Anchor
from meterhouse_rating.evidence_check.main import Result, verify
from meterhouse_rating.evidence_ledger import ledger_of
from meterhouse_rating.evidence_readme import GERMAN_README, README, readmes
from meterhouse_rating.periods import Period
from meterhouse_rating.told import Told, events_of, moment, standing_in, tell
from meterhouse_rating.versions import versions
from meterhouse_rating.world import World
from meterhouse_store.numbers import plain

_CHECKER: Final = "evidence_check"
_RUN: Final = """\
import sys
from pathlib import Path

from evidence_check.main import main

sys.exit(main(sys.argv[1:], Path(__file__).parent))
"""
_FILE_MODE: Final = 0o100644 << 16
_OF_ALL: Final = frozenset({"received", "waiting_decisions"})
_READ: Final = 1 << 20
_RETRACTED_AT_MOST: Final = 1000


class NoEvidence(ValueError):
    """A pack that cannot be made; the text says what to do."""


def make(world: World, customer_id: str, period: Period, out: Path, anchors: Sequence[Anchor] = ()) -> Result:
    """Write the pack of a customer's period to `out`, and what verifying it found; not written where that differs.

    With `anchors` the whole chain of the ledger between them is in it. Raises NoEvidence where nothing is rated, or
    another file is at `out`.
    """
    with world.engine.connect() as connection:
        wanted, every = standing_in(connection, world.namespace, customer_id, period)
        if not wanted:
            raise NoEvidence(f"nothing of {customer_id} is rated in {period}: `meterhouse rate run --period P` first")
        told = [tell(world, connection, it, every) for it in wanted]
        ledger = ledger_of(connection, world.namespace, customer_id, told, anchors)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        made = Path(scratch) / "pack.zip"
        _write(world, customer_id, told, ledger, Path(scratch) / EVENTS, made)
        result = verify(made, anchors)
        if result.verified:
            _put(made, out)
    return result


def _put(made: Path, out: Path) -> None:
    """Put the pack where it belongs, whole or not at all; one that is there already, to the byte, stays."""
    if out.exists() and _sha256(out) != _sha256(made):
        raise NoEvidence(f"{out} is there already and is another file: name a new one")
    made.replace(out)


def _write(
    world: World, customer_id: str, told: Sequence[Told], ledger: Mapping[str, Any], events: Path, out: Path
) -> None:
    facts = [it.facts for it in told]
    about = {
        "namespace": world.namespace,
        "customer_id": customer_id,
        "period_start": facts[0]["period_start"],
        "period_end": facts[-1]["period_end"],
    }
    completeness = {it["rating_id"]: _stated(world, it["rating_id"]) for it in facts}
    used = {it["book_version"] for it in facts}
    books = [it for it in versions(world.engine, world.namespace) if it.version in used]
    contents = {
        "__main__.py": _RUN,
        **{f"{_CHECKER}/{name}": text for name, text in _checker()},
        "ratings.json": _json(facts),
        "completeness.json": _json(completeness),
        "ledger.json": _json(ledger),
        "books.json": _json(
            [
                {
                    "version": it.version,
                    "sha256": it.sha256,
                    "author": it.author,
                    "valid_from": moment(it.valid_from),
                    "recorded_at": moment(it.recorded_at),
                }
                for it in books
            ]
        ),
        **{f"books/{it.version}.yaml": it.source for it in books},
        **_costs(world.namespace, told),
    }
    unpacked, events_count = _write_events(world, customer_id, told, events)
    contents |= readmes(about, facts, events_count, completeness)
    hashes: dict[str, dict[str, Any]] = {
        name: {"sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in contents.items()
    }
    hashes[EVENTS] = {"sha256": _sha256(events), "unpacked": unpacked}
    manifest = {"format": FORMAT, "about": about, "files": dict(sorted(hashes.items()))}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as pack:
        # The READMEs come first: they are what people see, and what they should read before they run anything.
        first = (README, GERMAN_README)
        for name in (*first, MANIFEST, *sorted(contents.keys() - set(first))):
            pack.writestr(_member(name), contents.get(name) or _json(manifest))
        with events.open("rb") as source, pack.open(_member(EVENTS, events.stat().st_size), "w") as target:
            while block := source.read(_READ):
                target.write(block)


def _stated(world: World, rating_id: str) -> dict[str, Any] | None:
    """The statement of completeness, without what is of all customers of a key or of the namespace together."""
    stated = statements.of(world.engine, rating_id)
    return stated and {name: value for name, value in stated.items() if name not in _OF_ALL}


def _costs(namespace: str, told: Sequence[Told]) -> dict[str, str]:
    """The costs that the ratings name, where prices mark them up: one's own, and the price lists in their words."""
    books = [it.costs for it in told if it.costs is not None]
    if not books:
        return {}
    named = {rate["entry"] for it in told for rate in it.facts.get("costs", ()) if "entry" in rate}
    entries = {it.entry_id: it for book in books for it in book.entries if it.entry_id in named}
    lists = {
        it.sha256: it for book in books for it in book.catalogues if any(name.startswith(it.name) for name in named)
    }
    facts = {
        "namespace": namespace,
        "entries": [_entry(namespace, it) for _, it in sorted(entries.items())],
        "catalogues": [
            {"sha256": it.sha256, "valid_from": moment(it.valid_from), "recorded_at": moment(it.recorded_at)}
            for _, it in sorted(lists.items())
        ],
    }
    return {"costs.json": _json(facts)} | {f"catalogues/{name}.json": it.text for name, it in lists.items()}


def _entry(namespace: str, it: Entry) -> dict[str, Any]:
    """A cost of one's own as it is named: by a hash of what it says, and of how often it was taken back before."""
    said = {name: getattr(it, name) for name in (*MATCHED, "per", "currency", "source", "who", "why", "entry_id")}
    times = next((n for n in range(_RETRACTED_AT_MOST) if it.name(namespace, n) == it.entry_id), None)
    if times is None:
        raise NoEvidence(f"the cost {it.entry_id} is not what was recorded: restore the database from a backup")
    said |= {"price": plain(it.price), "valid_from": it.valid_from.isoformat(), "retracted_before": times}
    return said | {"valid_until": None if it.valid_until is None else it.valid_until.isoformat()}


def _member(name: str, size: int = 0) -> zipfile.ZipInfo:
    """A file without a time and an owner, so that a pack is the same whenever and by whomever it is made."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr, info.file_size = 3, _FILE_MODE, size
    return info


def _write_events(world: World, customer_id: str, told: Sequence[Told], out: Path) -> tuple[int, int]:
    """Write the events as JSON lines, gzipped; the size of the text in bytes, and how many there are."""
    size = written = 0
    with out.open("wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        buffered = io.BufferedWriter(packed, _READ)
        for it in told:
            for event in events_of(world, it):
                line = (_compact(event) + "\n").encode()
                buffered.write(line)
                size, written = size + len(line), written + 1
        buffered.flush()
    return size, written


def _checker() -> list[tuple[str, str]]:
    """The verifier's files."""
    folder = files("meterhouse_rating") / _CHECKER
    return sorted((it.name, it.read_text(encoding="utf-8")) for it in folder.iterdir() if it.name.endswith(".py"))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
