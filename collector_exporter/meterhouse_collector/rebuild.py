"""`meterhouse warehouse rebuild`: the journal replayed into a shadow database, compared and exchanged.

The collector goes on: it acknowledges as ever, and its projector waits only for the last part (catch up, compare,
exchange), during which the two positions are equal.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
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
from meterhouse_collector.seekable import NotSeekable
from meterhouse_collector.segments import START
from meterhouse_store import decided, mirror, schema
from meterhouse_store.numbers import plain

_TOTALS: Final = """
    SELECT namespace, customer_id, meter, reason, count() AS events, sum(quantity) AS quantity
    FROM (
        SELECT namespace, billed_customer_id AS customer_id, meter, '' AS reason, quantity
        FROM {database:Identifier}.usage
        UNION ALL
        SELECT namespace, customer_id, meter, reason, quantity FROM {database:Identifier}.suspense
        UNION ALL
        SELECT namespace, customer_id, meter, reason, quantity FROM {database:Identifier}.set_aside
    )
    GROUP BY namespace, customer_id, meter, reason ORDER BY namespace, customer_id, meter, reason
"""
_USAGE: Final = """
    SELECT namespace, customer_id, meter, event_id, toUnixTimestamp64Nano(event_time), toString(quantity), record_id,
        billed_customer_id, decision_id
    FROM {database:Identifier}.usage WHERE known_at <= toDateTime64({through:String}, 9, 'UTC')
    ORDER BY namespace, customer_id, meter, event_time, event_id
"""
_USAGE_TOTALS: Final = """
    SELECT namespace, meter, count(), toString(sum(quantity)) FROM {database:Identifier}.usage
    WHERE known_at <= toDateTime64({through:String}, 9, 'UTC') GROUP BY 1, 2 ORDER BY 1, 2
"""
_ALWAYS: Final = "2262-01-01 00:00:00"


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
    renamed: Mapping[tuple[str, str], str] | None = None,
) -> Rebuilt:
    """Rebuild `database` from the journal in `directory`, by way of the database `<database>_rebuild`.

    `connect` gives a client of the database of that name. Raises CannotRebuild before anything is changed, and
    clickhouse-connect's errors; in either case the live database is as it was, and it may be run again. A journal that
    gives lower totals lacks something: without `force` the live tables stay. `renamed` has the customers, as
    (namespace, id), that the journal knows by another id now: their totals are compared under that.
    """
    shadow = f"{database}_rebuild"
    with _alone(directory), closing(connect("default")) as admin:
        schema.ensure(admin, database)
        with closing(connect(database)) as client:
            collector_id = _check_journal(directory, client)
            cluster = schema.cluster_of(admin, database)
            admin.command(f"DROP DATABASE IF EXISTS {shadow}{schema.on_cluster(cluster)} SYNC")
            schema.migrate(admin, shadow, cluster=cluster)
            with closing(connect(shadow)) as shadow_client:
                return _rebuild(directory, collector_id, client, shadow_client, engine, say, force, renamed or {})


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two that rebuild take each other's tables away."""
    with open(directory / "rebuild.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRebuild("the warehouse is being rebuilt by another command: wait for that one") from None
        yield


def fill(directory: Path, client: Client, engine: Engine, say: Callable[[str], None]) -> None:
    """Project all of a journal that no collector has open into an empty database, and copy what SQL has for it."""
    collector_id = (directory / "collector_id").read_text(encoding="ascii").strip()
    goal = Horizon(segments.end(directory), 0)
    projector = Projector(
        collector_id,
        Inbox(client),
        horizon=lambda: goal,
        read=lambda position, until, limit: segments.read(directory, position, until, limit),
    )
    mirror.push_decisions(engine, client)  # they wait for their rows
    while projector.step():
        if projector.done:
            say(f"projected up to {projector.done.position.segment}:{projector.done.position.offset}")
    mirror.push_all(engine, client)
    decided.apply(engine, client)


def state(client: Client, database: str, through: str) -> dict[str, Any]:
    """What the usage that was known at a time (UTC, as text) comes to: its hash, and events and quantity per meter."""
    rows = client.query(_USAGE_TOTALS, parameters={"database": database, "through": through}).result_rows
    return {
        "through": through,
        "usage_sha256": _usage_sha256(client, database, through),
        "totals": [[namespace, meter, events, quantity] for namespace, meter, events, quantity in rows],
    }


def _rebuild(
    directory: Path,
    collector_id: str,
    client: Client,
    shadow_client: Client,
    engine: Engine,
    say: Callable[[str], None],
    force: bool,
    renamed: Mapping[tuple[str, str], str],
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
        if found and (lacking := segments.missing(directory)):
            raise CannotRebuild(
                f"{directory} lacks {len(lacking)} segments that the live database was made of, the first is number "
                f"{lacking[0]}: a rebuild would lose their usage. Fetch their copies with `meterhouse journal fetch`"
            )
        if found and not segments.holds(directory, found.position):
            raise CannotRebuild(
                f"the live database was made from a journal up to {found.position.segment}:{found.position.offset}, "
                f"which {directory} does not have: it is an older copy or damaged. Let a collector run on it, which "
                "projects it anew, and rebuild after that"
            )
        # Without a checkpoint nothing of this journal is in the live database, so nothing is known to be durable.
        goal = Horizon(found.position, found.through_ns) if found else Horizon(segments.end(directory), 0)
        while _step(projector):
            if projector.done:
                say(f"replayed up to {projector.done.position.segment}:{projector.done.position.offset}")

    mirror.push_decisions(engine, shadow_client)  # they wait for their rows
    catch_up()
    say("copying ratings, ledger, invoices and payments from SQL")
    mirror.push_all(engine, shadow_client)
    with projection_lock(directory, wait=True):
        catch_up()
        decided.apply(engine, client)
        decided.apply(engine, shadow_client)
        result = _compare(client, database, shadow, renamed)
        if result.lower and not force:
            return replace(result, exchanged=False)
        # Both have the same position, so that a reader in between, or a crash, sees nothing else.
        schema.exchange(client, database, shadow)
    mirror.push_all(engine, client)  # what was rated or billed since the first copy
    if result.kept_as is None:
        on_cluster = schema.on_cluster(schema.cluster_of(client, database))
        client.command(f"DROP DATABASE {shadow}{on_cluster} SYNC")
    return result


def _step(projector: Projector) -> bool:
    try:
        return projector.step()
    except NotSeekable as problem:
        raise CannotRebuild(
            f"a segment of the journal is damaged: {problem}. Move it away and have its copy brought back with "
            "`meterhouse journal fetch`, or take it from a backup"
        ) from None


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


def _compare(client: Client, live: str, shadow: str, renamed: Mapping[tuple[str, str], str]) -> Rebuilt:
    before, after = _totals(client, live), _totals(client, shadow)
    for namespace, customer_id, *rest in [key for key in before if key[:2] in renamed]:
        total = before.pop((namespace, customer_id, *rest))
        before[namespace, renamed[namespace, customer_id], *rest] = total
    differences = tuple(
        f"{' '.join(part or '-' for part in key)}: live {_words(before.get(key))}, rebuilt {_words(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )
    hashes = _usage_sha256(client, live), _usage_sha256(client, shadow)
    if hashes[0] != hashes[1] and not differences and not renamed:
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


def _usage_sha256(client: Client, database: str, through: str = _ALWAYS) -> str:
    """The hash of the usage rows in the order of their key, one line each: equal rows, equal hash."""
    digest = hashlib.sha256()
    with client.query_row_block_stream(_USAGE, parameters={"database": database, "through": through}) as stream:
        for block in stream:
            for row in block:
                digest.update("\t".join(map(str, row)).encode() + b"\n")
    return digest.hexdigest()
