"""`meterhouse customers erase --bytes`: a customer taken out of journal, SQL and warehouse, in an order that can go on.

The journal is rewritten first, record by record in place, under a pseudonym of its own choice (erasure.py). Then SQL
takes the same pseudonym, in one transaction. Last the warehouse is rebuilt from both, and exchanged only where every
total is what it was. Each step may be repeated: the erasure's id, in the tombstone, says which were done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select

from meterhouse_collector import erasure, rebuild, segments
from meterhouse_collector.segments import Position
from meterhouse_store import decisions, privacy, tables

BEHIND_S: Final = 120

_IS_IT: Final = "WHERE namespace = {namespace:String} AND customer_id = {customer:String}"
_SEEN: Final = " UNION ALL ".join(
    f"(SELECT 1 FROM {table} {_IS_IT} LIMIT 1)"  # noqa: S608 - fixed parts
    for table in ("events", "cumulative_points", "spans")
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What came of it; `left` has a sentence for each place in the journal that could not be read."""

    pseudonym: str
    left: tuple[str, ...]
    rebuilt: rebuild.Rebuilt


def forget_bytes(
    journal: Path,
    engine: Engine,
    connect: Callable[[str], Client],
    database: str,
    own: privacy.Erasure,
    say: Say,
    *,
    now: datetime,
) -> Forgotten:
    """Erase what `privacy.begin` began, or go on with it. Raises CannotErase, CannotRebuild; then repeat it."""
    client = connect(database)
    try:
        told = _rewrite(journal, engine, client, own, say)
        _wait(client, journal, told.through)
    finally:
        client.close()
    say("SQL")
    pseudonym = told.pseudonym
    privacy.rename(engine, own, pseudonym, erasure.new_names(journal, told.erasure_id))
    erasure.forget_names(journal, told.erasure_id)
    say("warehouse")
    renamed = {(own.namespace, own.customer_id): pseudonym}
    rebuilt = rebuild.rebuild(journal, connect, engine, database, say, renamed=renamed)
    if not rebuilt.exchanged:
        raise erasure.CannotErase(f"the warehouse would not be what it was: {'; '.join(rebuilt.differences)}")
    privacy.finish(engine, own, pseudonym, now)
    return Forgotten(pseudonym, told.left, rebuilt)


def check_free(engine: Engine, client: Client, namespace: str, customer_id: str) -> None:
    """Raises CannotErase where there is no pseudonym for the customer: before an erasure of it is begun."""
    erasure.check_free(customer_id, lambda name: _is_taken(engine, client, namespace, name))


@dataclass(frozen=True, slots=True)
class _Rewritten:
    erasure_id: str
    """The journal's own, of its tombstone."""
    pseudonym: str
    through: Position
    left: tuple[str, ...]


def _rewrite(journal: Path, engine: Engine, client: Client, own: privacy.Erasure, say: Say) -> _Rewritten:
    mark = f"[{own.erasure_id}]"
    for told in erasure.tombstones(journal):
        if mark in told["why"]:  # done by a run that was interrupted after it
            return _Rewritten(told["erasure_id"], told["pseudonym"], segments.end(journal), tuple(told["left"]))
    done = erasure.erase(
        journal,
        own.customer_id,
        own.namespace,
        who=own.who,
        why=f"{own.why} {mark}",
        at=own.begun_at,
        is_taken=lambda name: _is_taken(engine, client, own.namespace, name),
        decided=decisions.event_ids(engine, own.namespace),
        say=say,
    )
    return _Rewritten(done.tombstone.stem, done.pseudonym, done.through, done.left)


def _is_taken(engine: Engine, client: Client, namespace: str, customer_id: str) -> bool:
    """Whether a customer of this id is registered, or has usage."""
    parameters = {"namespace": namespace, "customer": customer_id}
    if client.query(_SEEN, parameters=parameters).result_rows:
        return True
    table = tables.customers
    query = select(table.c.name).where(table.c.namespace == namespace, table.c.customer_id == customer_id)
    with engine.connect() as connection:
        return connection.execute(query).first() is not None


def _wait(client: Client, journal: Path, through: Position) -> None:
    """Until what was rewritten is projected: a rebuild compares with all of it."""
    own = (journal / "collector_id").read_text(encoding="ascii").strip()
    query = "SELECT segment, position FROM watermark WHERE collector_id = {own:String}"
    deadline = time.monotonic() + BEHIND_S
    while True:
        rows = client.query(query, parameters={"own": own}).result_rows
        if not rows or Position(*rows[0]) >= through:
            return
        if time.monotonic() > deadline:
            raise erasure.CannotErase(
                "the warehouse is behind (`meterhouse warehouse status`): start the collector, and repeat the command"
            )
        time.sleep(0.2)
