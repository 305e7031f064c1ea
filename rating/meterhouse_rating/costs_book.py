"""Costs in SQL: catalogues, entries and retractions. Rows are only added; everything may be called twice."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select

from meterhouse_rating import costs_catalogue
from meterhouse_rating.costs_catalogue import Catalogue
from meterhouse_rating.costs_entries import Entry, mistakes
from meterhouse_rating.ids import digest
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.registry import ALWAYS
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import cost_catalogues, cost_entries, cost_retractions

MAX_SNAPSHOT: Final = 64 * 2**20
SHORT: Final = 12


class CostsRefused(ValueError):
    """Costs that cannot be recorded; the text says all that is wrong, and what to do."""


@dataclass(frozen=True)
class Pinned:
    """A catalogue that was imported: from when on it prices usage, and its text."""

    catalogue_id: str
    package: str
    version: str
    sha256: str
    valid_from: datetime
    recorded_at: datetime
    who: str
    why: str
    snapshot: bytes

    @property
    def name(self) -> str:
        return f"{self.package}-{self.version}:{self.sha256[:SHORT]}"

    @property
    def text(self) -> str:
        """Its words, as they were imported."""
        return zlib.decompress(self.snapshot).decode()

    def read(self) -> Catalogue:
        """What it says. Raises ValueError where its text is not what was imported."""
        return _read(self.name, self.sha256, self.snapshot)


@dataclass(frozen=True)
class CostBook:
    """All costs of a namespace that were not taken back, as they were known at a moment."""

    entries: tuple[Entry, ...] = ()
    catalogues: tuple[Pinned, ...] = ()


def read(engine: Engine, namespace: str, known_at: datetime | None = None) -> CostBook:
    """The costs of a namespace; with `known_at`, what had been recorded by then."""
    with engine.connect() as connection:
        taken_back = _retracted(connection, namespace, known_at)
        entries = _known(connection, cost_entries, namespace, known_at)
        catalogues = _known(connection, cost_catalogues, namespace, known_at)
    return CostBook(
        tuple(_entry(row) for row in entries if row["entry_id"] not in taken_back),
        tuple(_pinned(row) for row in catalogues if row["catalogue_id"] not in taken_back),
    )


def add(engine: Engine, namespace: str, wanted: Sequence[Entry], now: datetime, *, write: bool = True) -> list[
    tuple[Entry, bool]
]:  # fmt: skip
    """Record entries, all or none; returns each as it stands, and whether it is new. The same again changes nothing.

    Raises CostsRefused with all that is wrong with them.
    """
    wrong = [f"{it.meter or 'entry'}: {text}" for it in wanted for text in mistakes(it, frozenset(MINOR_DIGITS))]
    if wrong:
        raise CostsRefused("\n".join(dict.fromkeys(wrong)))
    made: list[tuple[Entry, bool]] = []
    with begin_write(engine) as connection:
        taken_back = _retracted(connection, namespace, None)
        for it in wanted:
            times = 0
            while (name := it.name(namespace, times)) in taken_back:
                times += 1
            there = connection.execute(select(cost_entries).where(cost_entries.c.entry_id == name)).mappings().first()
            if there is not None:
                made.append((_entry(there), False))
                continue
            new = replace(it, entry_id=name, recorded_at=now)
            made.append((new, True))
            if write:
                connection.execute(insert(cost_entries).values(namespace=namespace, **vars(new)))
    return made


def pin(
    engine: Engine, namespace: str, text: str, *, valid_from: datetime | None, now: datetime, who: str, why: str
) -> tuple[Pinned, bool]:
    """Keep a catalogue; returns it, and whether it is new.

    Without `valid_from` the first one prices all usage, a later one what happens from now on: what was worked out
    before stays. Raises CostsRefused for a text that is no catalogue.
    """
    if len(text.encode()) > MAX_SNAPSHOT:
        raise CostsRefused(f"a catalogue has at most {MAX_SNAPSHOT // 2**20} MB")
    try:
        catalogue = costs_catalogue.read("", text)
    except ValueError as wrong:
        raise CostsRefused(str(wrong)) from None
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with begin_write(engine) as connection:
        taken_back = _retracted(connection, namespace, None)
        there = [_pinned(it) for it in _known(connection, cost_catalogues, namespace, None)]
        standing = [it for it in there if it.catalogue_id not in taken_back]
        same = next((it for it in standing if it.sha256 == sha256 and valid_from in (None, it.valid_from)), None)
        if same is not None:
            return same, False
        moment = valid_from or (now if standing else ALWAYS)
        times = sum(it.catalogue_id in taken_back and it.sha256 == sha256 for it in there)
        made = Pinned(
            digest(["cost catalogue", namespace, sha256, moment.isoformat(), times]),
            catalogue.package,
            catalogue.version,
            sha256,
            moment,
            now,
            who,
            why,
            zlib.compress(text.encode(), 9),
        )
        connection.execute(insert(cost_catalogues).values(namespace=namespace, **vars(made)))
    return made, True


def retract(engine: Engine, namespace: str, beginning: str, *, now: datetime, who: str, why: str) -> tuple[str, bool]:
    """Take back the one entry or catalogue whose id begins so; returns its id, and whether that is new.

    Raises CostsRefused where none or several begin so, and without a reason.
    """
    if not why.strip():
        raise CostsRefused("say why: it is kept with the retraction")
    with begin_write(engine) as connection:
        names = [
            str(row[0])
            for column in (cost_entries.c.entry_id, cost_catalogues.c.catalogue_id)
            for row in connection.execute(
                select(column).where(
                    column.table.c.namespace == namespace, column.startswith(beginning, autoescape=True)
                )
            )
        ]
        if len(names) != 1:
            many = "several costs begin" if names else "no cost begins"
            raise CostsRefused(f"{many} with {beginning!r}: `meterhouse costs list` shows their ids")
        if names[0] in _retracted(connection, namespace, None):
            return names[0], False
        connection.execute(
            insert(cost_retractions).values(
                retracted_id=names[0], namespace=namespace, recorded_at=now, who=who, why=why
            )
        )
    return names[0], True


def history(engine: Engine, namespace: str) -> tuple[list[Entry], list[Pinned], dict[str, dict[str, Any]]]:
    """All entries and catalogues that ever were, and of those taken back by id when, who and why."""
    with engine.connect() as connection:
        entries = [_entry(row) for row in _known(connection, cost_entries, namespace, None)]
        catalogues = [_pinned(row) for row in _known(connection, cost_catalogues, namespace, None)]
        query = select(cost_retractions).where(cost_retractions.c.namespace == namespace)
        back = {row["retracted_id"]: dict(row) for row in connection.execute(query).mappings()}
    return entries, catalogues, back


def _known(connection: Connection, table: Any, namespace: str, known_at: datetime | None) -> list[Any]:
    query = select(table).where(table.c.namespace == namespace)
    if known_at is not None:
        query = query.where(table.c.recorded_at <= known_at)
    key = next(iter(table.primary_key.columns))
    return list(connection.execute(query.order_by(table.c.recorded_at, key)).mappings())


def _retracted(connection: Connection, namespace: str, known_at: datetime | None) -> set[str]:
    query = select(cost_retractions.c.retracted_id).where(cost_retractions.c.namespace == namespace)
    if known_at is not None:
        query = query.where(cost_retractions.c.recorded_at <= known_at)
    return set(connection.execute(query).scalars())


def _entry(row: Any) -> Entry:
    return Entry(**{name: row[name] for name in Entry.__dataclass_fields__})


def _pinned(row: Any) -> Pinned:
    return Pinned(**{name: row[name] for name in Pinned.__dataclass_fields__})


@lru_cache(maxsize=8)
def _read(name: str, sha256: str, snapshot: bytes) -> Catalogue:
    text = zlib.decompress(snapshot)
    if hashlib.sha256(text).hexdigest() != sha256:
        raise ValueError(f"the catalogue {name} in SQL is not what was imported: restore it from a backup")
    return costs_catalogue.read(name, text.decode())
