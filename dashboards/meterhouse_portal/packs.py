"""Evidence packs for customers: asked for on a page, made by a job, and kept for a week.

No page makes one: it reads what was known before, which the portal's user of the warehouse may not, and takes seconds
to minutes. Packs are kept in the SQL database, in blocks, because jobs and portal may run on machines that share no
folder. Made again a pack is the same file, so backups have none, and nothing is lost with one.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_rating import evidence
from meterhouse_rating.periods import Period
from meterhouse_rating.world import World
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import evidence_blocks, evidence_packs, ratings
from meterhouse_store.warehouse import WarehouseUnavailable

ASKED, MADE, FAILED = "asked", "made", "failed"
DIFFERS, NOTHING, TOO_LARGE, GIVEN_UP = "differs", "nothing", "too_large", "given_up"
KEPT: Final = timedelta(days=7)
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a pack that is kept for downloading: some two million events."""
TRIES: Final = 8
AT_ONCE: Final = 100
"""Packs of one round of jobs: what else they do goes on between."""
_BLOCK: Final = 1024 * 1024
_PREFIX: Final = ".evidence."
_LEFT_OVER_S: Final = 2 * 3600
"""A round of jobs is stopped before that: what is older in the scratch folder is a killed one's."""
_NOT_NOW = (ClickHouseError, SQLAlchemyError, WarehouseUnavailable, OSError)
"""What a store that is down raises: the pack is tried again."""


@dataclass(frozen=True)
class Pack:
    """A pack that was asked for. `problem` is set where it failed; what it is of, and its size, where it is made."""

    rating_id: str
    namespace: str
    customer_id: str
    period_start: datetime
    period_end: datetime
    state: str
    asked_at: datetime
    tries: int = 0
    tried_at: datetime | None = None
    made_at: datetime | None = None
    problem: str | None = None
    manifest_sha256: str | None = None
    bytes: int | None = None

    @property
    def kept_until(self) -> datetime | None:
        """When it goes."""
        return None if self.made_at is None else self.made_at + KEPT


@dataclass(frozen=True)
class Outcome:
    """What came of making a pack; `why`: for the operator, where it is not made."""

    pack: Pack
    why: str = ""


def ask(engine: Engine, namespace: str, customer_id: str, rating: Mapping[str, Any], now: datetime) -> Pack:
    """Have the pack of one of the customer's closed ratings made, or made anew; asking again changes nothing.

    Raises RegistryError for a period that is not closed, and while another one of the customer's is being made.
    """
    if rating["state"] != "closed":
        raise RegistryError("There is a pack of a period once it is closed.")
    start, end = rating["period_start"], rating["period_end"]
    wanted = Pack(rating["rating_id"], namespace, customer_id, start, end, ASKED, now)
    with begin_write(engine) as connection:
        # On PostgreSQL two who ask at once come one after the other: all of a customer's ratings are there.
        mine = (ratings.c.namespace == namespace) & (ratings.c.customer_id == customer_id)
        connection.execute(select(ratings.c.rating_id).where(mine).order_by(ratings.c.rating_id).with_for_update())
        there = _read(connection, _of_customer(namespace, customer_id))
        if waiting := [it for it in there if it.state == ASKED]:
            if waiting[0].rating_id == wanted.rating_id:
                return waiting[0]
            raise RegistryError("Another evidence pack of yours is being made: ask again when it is there.")
        if any(it.rating_id == wanted.rating_id for it in there):
            is_it = evidence_packs.c.rating_id == wanted.rating_id
            connection.execute(update(evidence_packs).where(is_it).values(**vars(wanted)))
        else:
            connection.execute(insert(evidence_packs).values(**vars(wanted)))
    return wanted


def of_rating(engine: Engine, namespace: str, customer_id: str, rating_id: str) -> Pack | None:
    """The customer's pack of a rating, if one was asked for."""
    with engine.connect() as connection:
        is_it = _of_customer(namespace, customer_id) & (evidence_packs.c.rating_id == rating_id)
        return next(iter(_read(connection, is_it)), None)


def blocks(engine: Engine, pack: Pack) -> Iterator[bytes]:
    """The bytes of a pack that is made. Raises LookupError where it went meanwhile."""
    table, left = evidence_blocks, pack.bytes or 0
    is_it = (table.c.rating_id == pack.rating_id) & (table.c.manifest_sha256 == pack.manifest_sha256)
    number = 0
    while left:
        with engine.connect() as connection:
            block = connection.execute(select(table.c.block).where(is_it, table.c.number == number)).scalar()
        if block is None:
            raise LookupError(f"block {number} of the pack {pack.manifest_sha256} is not there any more")
        yield block
        number, left = number + 1, left - len(block)


def make_asked(world: World, scratch: Path, at_most: int = AT_ONCE) -> Iterator[Outcome]:
    """Make the packs that are asked for, one after the other, in `scratch`; those whose time is over go first.

    May be repeated, and run twice at once. One that cannot be made now is tried again after 2, 4, 8 … minutes, TRIES
    times in all, also where making it kills this process.
    """
    now = world.now()
    _let_go(world.engine, world.namespace, now - KEPT)
    for left in scratch.glob(f"{_PREFIX}*"):
        if left.stat().st_mtime < time.time() - _LEFT_OVER_S:
            shutil.rmtree(left, ignore_errors=True)
    with world.engine.connect() as connection:
        table = evidence_packs
        waiting = _read(connection, (table.c.namespace == world.namespace) & (table.c.state == ASKED))
    due = [it for it in waiting if it.tried_at is None or it.tried_at + timedelta(minutes=2**it.tries) <= now]
    for pack in sorted(due, key=lambda it: (it.tries, it.asked_at))[:at_most]:
        yield _make(world, pack, scratch)


def _make(world: World, pack: Pack, scratch: Path) -> Outcome:
    if pack.tries >= TRIES:
        return _settled(world, pack, FAILED, GIVEN_UP, f"it was tried {TRIES} times")
    tried = replace(pack, tries=pack.tries + 1, tried_at=world.now())
    _record(world.engine, tried)
    period = Period(pack.period_start, pack.period_end)
    try:
        with TemporaryDirectory(dir=scratch, prefix=_PREFIX) as folder:
            file = Path(folder) / "pack.zip"
            result = evidence.make(world, pack.customer_id, period, file)
            if not result.verified:
                return _settled(world, tried, FAILED, DIFFERS, result.as_text())
            size = file.stat().st_size
            if size > LARGEST:
                told = f"it has {size:,} bytes, above {LARGEST:,}: make it with `meterhouse evidence`, hand it over"
                return _settled(world, tried, FAILED, TOO_LARGE, told)
            made = replace(tried, state=MADE, made_at=world.now(), manifest_sha256=result.id, bytes=size)
            _keep(world.engine, made, file)
            return Outcome(made)
    except evidence.NoEvidence as refused:
        return _settled(world, tried, FAILED, NOTHING, str(refused))
    except _NOT_NOW as problem:
        return Outcome(tried, str(problem))


def _settled(world: World, pack: Pack, state: str, problem: str, why: str) -> Outcome:
    settled = replace(pack, state=state, problem=problem, made_at=world.now())
    _record(world.engine, settled)
    return Outcome(settled, why)


def _record(engine: Engine, pack: Pack) -> None:
    with begin_write(engine) as connection:
        connection.execute(update(evidence_packs).where(_still(pack)).values(**vars(pack)))


def _keep(engine: Engine, pack: Pack, file: Path) -> None:
    """Put a pack in the place of the one before; not where it is not wanted any more, such as after an erasure."""
    blocks_of = {"rating_id": pack.rating_id, "manifest_sha256": pack.manifest_sha256, "namespace": pack.namespace}
    with begin_write(engine) as connection, file.open("rb") as source:
        if not connection.execute(update(evidence_packs).where(_still(pack)).values(**vars(pack))).rowcount:
            return
        connection.execute(delete(evidence_blocks).where(evidence_blocks.c.rating_id == pack.rating_id))
        for number, block in enumerate(iter(lambda: source.read(_BLOCK), b"")):
            row = blocks_of | {"customer_id": pack.customer_id, "number": number, "block": block}
            connection.execute(insert(evidence_blocks).values(**row))


def _let_go(engine: Engine, namespace: str, made_before: datetime) -> None:
    packs, of_packs = evidence_packs, evidence_blocks
    old = (packs.c.namespace == namespace) & (packs.c.state != ASKED) & (packs.c.made_at < made_before)
    with begin_write(engine) as connection:
        names = select(packs.c.rating_id).where(old)
        connection.execute(delete(of_packs).where(of_packs.c.rating_id.in_(names)))
        connection.execute(delete(packs).where(old))


def _still(pack: Pack) -> ColumnElement[bool]:
    """Whether it waits, as it was asked for."""
    table = evidence_packs
    return (table.c.rating_id == pack.rating_id) & (table.c.state == ASKED) & (table.c.asked_at == pack.asked_at)


def _of_customer(namespace: str, customer_id: str) -> ColumnElement[bool]:
    return (evidence_packs.c.namespace == namespace) & (evidence_packs.c.customer_id == customer_id)


def _read(connection: Connection, condition: ColumnElement[bool]) -> list[Pack]:
    return [Pack(**row) for row in connection.execute(select(evidence_packs).where(condition)).mappings()]
