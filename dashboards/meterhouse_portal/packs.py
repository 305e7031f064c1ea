"""Evidence packs for customers: asked for on a page, made by a job, and kept for a week.

No page makes one: it reads what was known before, which the portal's user of the warehouse may not, and takes seconds
to minutes. Packs are kept in the SQL database, in blocks, because jobs and portal may run on machines that share no
folder. Made again a pack is the same file, so backups have none, and nothing is lost with one.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from sqlalchemy import ColumnElement, Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from meterhouse_rating import evidence
from meterhouse_rating.periods import Period
from meterhouse_rating.world import World
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import evidence_blocks, evidence_packs, ratings
from meterhouse_store.terminal import told
from meterhouse_store.warehouse import WarehouseUnavailable, said

ASKED, MADE, FAILED = "asked", "made", "failed"
DIFFERS, NOTHING, TOO_LARGE, GIVEN_UP = "differs", "nothing", "too_large", "given_up"
KEPT: Final = timedelta(days=7)
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of a pack that is kept for downloading: some two million events."""
TRIES: Final = 8
ROUND_S: Final = 300.0
"""No pack is begun later in a round of jobs: what else they do has to go on."""
_BLOCK: Final = 1024 * 1024
_TOLD_LONGEST: Final = 500
_NOT_NOW = (ClickHouseError, SQLAlchemyError, WarehouseUnavailable, OSError)
"""What a store that is down raises: the pack is tried again."""


@dataclass(frozen=True)
class Pack:
    """A pack that was asked for. What is known of the one that is there stays while it is made anew.

    `problem` is set where it failed, and `told`, why for the operator, where it is not made.
    """

    rating_id: str
    namespace: str
    customer_id: str
    period_start: datetime
    period_end: datetime
    state: str
    asked_at: datetime
    tries: int = 0
    tried_at: datetime | None = None
    problem: str | None = None
    told: str | None = None
    made_at: datetime | None = None
    manifest_sha256: str | None = None
    bytes: int | None = None

    @property
    def kept_until(self) -> datetime | None:
        """When it goes."""
        return None if self.made_at is None else self.made_at + KEPT


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
        if before := next((it for it in there if it.rating_id == wanted.rating_id), None):
            wanted = replace(wanted, made_at=before.made_at, manifest_sha256=before.manifest_sha256, bytes=before.bytes)
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


def not_made(engine: Engine, namespace: str) -> list[Pack]:
    """Those that wait or failed, of all customers, by when they were asked for."""
    table = evidence_packs
    is_it = (table.c.namespace == namespace) & (table.c.state != MADE)
    with engine.connect() as connection:
        return sorted(_read(connection, is_it), key=lambda it: (it.asked_at, it.rating_id))


def blocks(engine: Engine, pack: Pack) -> Iterator[bytes]:
    """The bytes of the pack that is there. Raises LookupError where it went meanwhile."""
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


@contextmanager
def alone(folder: Path) -> Iterator[Path | None]:
    """A folder to make packs in, for one process at a time; None while another one makes some.

    What a killed one left of a customer's events there is cleared away.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
        yield folder


def make_asked(world: World, scratch: Path, longest_s: float = ROUND_S) -> Iterator[Pack]:
    """Make the packs that are asked for, one after the other, in `scratch`; those whose time is over go first.

    None is begun after `longest_s`. May be repeated, and run twice at once. One that cannot be made now is tried again
    after 2, 4, 8 … minutes, TRIES times in all, also where making it kills this process. One that nobody wants any more
    when it is made, such as after an erasure, is not kept and not told.
    """
    began, now = time.monotonic(), world.now()
    _let_go(world.engine, world.namespace, now - KEPT)
    waiting = [it for it in not_made(world.engine, world.namespace) if it.state == ASKED]
    due = [it for it in waiting if it.tried_at is None or it.tried_at + timedelta(minutes=2**it.tries) <= now]
    for pack in sorted(due, key=lambda it: (it.tries, it.asked_at)):
        if time.monotonic() - began > longest_s:
            return
        outcome = _make(world, pack, scratch)
        if outcome is not None:
            yield outcome


def _make(world: World, pack: Pack, scratch: Path) -> Pack | None:
    if pack.tries >= TRIES:
        return _settled(world, pack, GIVEN_UP, f"tried {TRIES} times; the last time: {pack.told or 'it was killed'}")
    tried = replace(pack, tries=pack.tries + 1, tried_at=world.now(), told=None)
    _record(world.engine, tried)
    period = Period(pack.period_start, pack.period_end)
    try:
        with TemporaryDirectory(dir=scratch) as folder:
            file = Path(folder) / "pack.zip"
            result = evidence.make(world, pack.customer_id, period, file)
            if not result.verified:
                return _settled(world, tried, DIFFERS, _differences(result.findings.problems))
            size = file.stat().st_size
            if size > LARGEST:
                why = f"it has {size:,} bytes, above {LARGEST:,}: make it with `meterhouse evidence`, hand it over"
                return _settled(world, tried, TOO_LARGE, why)
            made = replace(tried, state=MADE, made_at=world.now(), manifest_sha256=result.id, bytes=size)
            return made if _keep(world.engine, made, file) else None
    except evidence.NoEvidence as refused:
        return _settled(world, tried, NOTHING, str(refused))
    except _NOT_NOW as problem:
        waiting = replace(tried, told=_in_words(problem)[:_TOLD_LONGEST])
        _record(world.engine, waiting)
        return waiting


def _differences(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - 1:,} more" if len(problems) > 1 else ""
    return f"what is stored does not agree with itself: {problems[0]}{more} (`meterhouse evidence` says all)"


def _in_words(problem: Exception) -> str:
    if isinstance(problem, Error):
        return said(problem)
    if isinstance(problem, DBAPIError):
        return f"the SQL database cannot be used: {problem.orig}"
    return told(problem) if isinstance(problem, OSError) else str(problem)


def _settled(world: World, pack: Pack, problem: str, why: str) -> Pack:
    settled = replace(pack, state=FAILED, problem=problem, told=why[:_TOLD_LONGEST])
    _record(world.engine, settled)
    return settled


def _record(engine: Engine, pack: Pack) -> None:
    with begin_write(engine) as connection:
        connection.execute(update(evidence_packs).where(_still(pack)).values(**vars(pack)))


def _keep(engine: Engine, pack: Pack, file: Path) -> bool:
    """Put a pack in the place of the one before; not where it is not wanted any more, such as after an erasure."""
    blocks_of = {"rating_id": pack.rating_id, "manifest_sha256": pack.manifest_sha256, "namespace": pack.namespace}
    with begin_write(engine) as connection, file.open("rb") as source:
        if not connection.execute(update(evidence_packs).where(_still(pack)).values(**vars(pack))).rowcount:
            return False
        connection.execute(delete(evidence_blocks).where(evidence_blocks.c.rating_id == pack.rating_id))
        for number, block in enumerate(iter(lambda: source.read(_BLOCK), b"")):
            row = blocks_of | {"customer_id": pack.customer_id, "number": number, "block": block}
            connection.execute(insert(evidence_blocks).values(**row))
    return True


def _let_go(engine: Engine, namespace: str, tried_before: datetime) -> None:
    packs, of_packs = evidence_packs, evidence_blocks
    old = (packs.c.namespace == namespace) & (packs.c.state != ASKED) & (packs.c.tried_at < tried_before)
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
