"""`meterhouse warehouse rebuild`: the journal replayed into a shadow database, compared and exchanged.

The collector goes on: it acknowledges as ever, and its projector waits only for the last part (catch up, compare,
exchange), during which the two positions are equal.
"""

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from meterhouse_collector import segments
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Horizon
from meterhouse_collector.projection import projection_lock
from meterhouse_collector.projector import Projector
from meterhouse_collector.segments import START
from meterhouse_store import mirror, schema
from meterhouse_store.numbers import plain

_TOTALS: Final = """
    SELECT namespace, customer_id, meter, reason, count() AS events, sum(quantity) AS quantity
    FROM (
        SELECT namespace, customer_id, meter, '' AS reason, quantity FROM {database:Identifier}.usage
        UNION ALL
        SELECT namespace, customer_id, meter, reason, quantity FROM {database:Identifier}.suspense
    )
    GROUP BY namespace, customer_id, meter, reason ORDER BY namespace, customer_id, meter, reason
"""
_USAGE: Final = """
    SELECT namespace, customer_id, meter, event_id, toUnixTimestamp64Nano(event_time), toString(quantity), record_id
    FROM {database:Identifier}.usage ORDER BY namespace, customer_id, meter, event_time, event_id
"""
# Those that store rows: neither views nor the inbox have a sorting key.
_TABLES: Final = "SELECT name FROM system.tables WHERE database = {database:String} AND sorting_key != ''"


class CannotRebuild(RuntimeError):
    """The journal here is not all that the live database was made of."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it; `differences` has a sentence for each total that is not the same.

    `lower`: a total of the rebuilt tables is lower than the live one; `kept_as`: the database with the tables that are
    not live now, the old ones if they were exchanged, else the rebuilt ones.
    """

    live_sha256: str
    rebuilt_sha256: str
    events: int
    suspended: int
    differences: tuple[str, ...]
    lower: bool
    exchanged: bool
    kept_as: str | None


def rebuild(
    directory: Path,
    connect: Callable[[str], Client],
    engine: Engine,
    database: str,
    say: Callable[[str], None],
    *,
    force: bool = False,
) -> Rebuilt:
    """Rebuild `database` from the journal in `directory`, by way of the database `<database>_rebuild`.

    `connect` gives a client of the database of that name. Raises CannotRebuild before anything is changed, and
    clickhouse-connect's errors; in either case the live database is as it was, and it may be run again. A journal that
    gives lower totals lacks something: without `force` the live tables stay.
    """
    shadow = f"{database}_rebuild"
    with closing(connect("default")) as admin:
        schema.migrate(admin, database)
        with closing(connect(database)) as client:
            collector_id = _check_journal(directory, client)
            admin.command(f"DROP DATABASE IF EXISTS {shadow} SYNC")
            schema.migrate(admin, shadow)
            with closing(connect(shadow)) as shadow_client:
                return _rebuild(directory, collector_id, client, shadow_client, engine, say, force)


def _rebuild(
    directory: Path,
    collector_id: str,
    client: Client,
    shadow_client: Client,
    engine: Engine,
    say: Callable[[str], None],
    force: bool,
) -> Rebuilt:
    database, shadow = str(client.database), str(shadow_client.database)
    live, store = Inbox(client), Inbox(shadow_client)
    goal = Horizon(START, 0)
    projector = Projector(
        collector_id,
        store,
        horizon=lambda: goal,
        read=lambda position, until, limit: segments.read(directory, position, until, limit),
    )

    def catch_up() -> None:
        nonlocal goal
        found = live.checkpoint(collector_id)
        if found and not segments.holds(directory, found.position):
            raise CannotRebuild(
                f"the live database was made from a journal up to {found.position.segment}:{found.position.offset}, "
                f"which {directory} does not have: it is an older copy or damaged. Let a collector run on it, which "
                "projects it anew, and rebuild after that"
            )
        # Without a checkpoint nothing of this journal is in the live database, so nothing is known to be durable.
        goal = Horizon(found.position, found.through_ns) if found else Horizon(segments.end(directory), 0)
        while projector.step():
            if projector.done:
                say(f"replayed up to {projector.done.position.segment}:{projector.done.position.offset}")

    catch_up()
    say("copying ratings, ledger, invoices and payments from SQL")
    mirror.push_all(engine, shadow_client)
    with projection_lock(directory, wait=True):
        catch_up()
        result = _compare(client, database, shadow)
        if result.lower and not force:
            return replace(result, exchanged=False)
        _exchange(client, database, shadow)
    mirror.push_all(engine, client)  # what was rated or billed since the first copy
    if result.kept_as is None:
        client.command(f"DROP DATABASE {shadow} SYNC")
    return result


def _check_journal(directory: Path, client: Client) -> str:
    file = directory / "collector_id"
    if not file.exists():
        raise CannotRebuild(f"there is no journal in {directory}: nothing to rebuild from")
    own = file.read_text(encoding="ascii").strip()
    others = [row[0] for row in client.query("SELECT collector_id FROM watermark").result_rows if row[0] != own]
    if others:
        raise CannotRebuild(
            f"the database also holds the usage of other collectors ({', '.join(sorted(others))}), whose journals are "
            f"not in {directory}: a rebuild from here would lose it"
        )
    return own


def _compare(client: Client, live: str, shadow: str) -> Rebuilt:
    before, after = _totals(client, live), _totals(client, shadow)
    differences = tuple(
        f"{' '.join(part or '-' for part in key)}: live {_words(before.get(key))}, rebuilt {_words(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )
    hashes = _usage_sha256(client, live), _usage_sha256(client, shadow)
    if hashes[0] != hashes[1] and not differences:
        differences = ("the totals are equal, the rows behind them are not",)
    return Rebuilt(
        live_sha256=hashes[0],
        rebuilt_sha256=hashes[1],
        events=sum(count for (*_, reason), (count, _) in after.items() if not reason),
        suspended=sum(count for (*_, reason), (count, _) in after.items() if reason),
        differences=differences,
        lower=any(_is_lower(after.get(key), total) for key, total in before.items()),
        exchanged=True,
        kept_as=shadow if differences else None,
    )


def _is_lower(rebuilt: tuple[int, Any] | None, live: tuple[int, Any]) -> bool:
    return rebuilt is None or rebuilt[0] < live[0] or rebuilt[1] < live[1]


def _totals(client: Client, database: str) -> dict[tuple[str, ...], tuple[int, Any]]:
    rows = client.query(_TOTALS, parameters={"database": database}).result_rows
    return {tuple(row[:4]): (row[4], row[5]) for row in rows}


def _words(total: tuple[int, Any] | None) -> str:
    return f"{total[0]} events, {plain(total[1])}" if total else "nothing"


def _usage_sha256(client: Client, database: str) -> str:
    """The hash of the usage rows in the order of their key, one line each: equal rows, equal hash."""
    digest = hashlib.sha256()
    with client.query_row_block_stream(_USAGE, parameters={"database": database}) as stream:
        for block in stream:
            for row in block:
                digest.update("\t".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()


def _exchange(client: Client, live: str, shadow: str) -> None:
    """Table by table: both have the same position, so that a reader in between, or a crash, sees nothing else."""
    names = [row[0] for row in client.query(_TABLES, parameters={"database": shadow}).result_rows]
    for name in sorted(names):
        client.command(f"EXCHANGE TABLES {live}.{name} AND {shadow}.{name}")
    # The exploding view follows this version's schema. No record is lost in between: the projector waits.
    client.command(f"DROP VIEW IF EXISTS {live}.explode SYNC")
    client.command(f"DROP TABLE IF EXISTS {live}.inbox SYNC")
    schema.migrate(client, live)
