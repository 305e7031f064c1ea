"""The ClickHouse schema: tables, views and the exploding of journal records, as .sql files that `migrate` applies.

Statements are repeatable (`IF NOT EXISTS`, `OR REPLACE`), run in the order of the file names, and name the database as
`{database}`. A statement ends with a semicolon at the end of a line. What was applied stands in `schema_migrations`.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from clickhouse_connect.driver.client import Client

from meterhouse_store.currencies import minor_units
from meterhouse_store.meters import counted_whole
from meterhouse_store.schema import cluster as cluster_schema
from meterhouse_store.schema.cluster import on_cluster

__all__ = [
    "RECORD_PROTO",
    "VERSION",
    "Migrated",
    "SchemaRefused",
    "Script",
    "cluster_of",
    "create_database",
    "create_scratch",
    "ensure",
    "exchange",
    "migrate",
    "on_cluster",
    "scripts",
]

VERSION: Final = 6
"""Raised whenever an older Meterhouse must not write to the database any more: it refuses a higher one than its own.

1 was all that came before there was a table of migrations; since 3 increases of running totals are stored; since 4
what is inserted touches its day; since 5 delays and receipts are summed, too; since 6 it is
identified.
"""

_HERE: Final = Path(__file__).parent

RECORD_PROTO: Final = (_HERE / "rec.proto").read_text(encoding="utf-8")
"""The journal record as ClickHouse decodes it: the `format_schema` of an insert into `inbox`, message `Rec`."""

# `map<string, AnyValue>`: a key given twice is there twice, and of the four members one is set, or none.
# A view is analysed when it is made, and comparing whole subqueries for every AND is two thirds of that for `explode`.
_QUICK: Final = {"optimize_and_compare_chain": 0}

_ATTRIBUTES: Final = (
    "Map(String, Tuple(string_value Nullable(String), bool_value Nullable(Bool), "
    "int_value Nullable(Int64), double_value Nullable(Float64)))"
)

_MATERIALIZED: Final = re.compile(r"\bCREATE MATERIALIZED VIEW IF NOT EXISTS (\S+)( ON CLUSTER \S+)? TO \S+ AS\s")
_MADE: Final = re.compile(r"^CREATE (?:OR REPLACE )?(?:\w+ )*?(?:TABLE|VIEW) (?:IF NOT EXISTS )?\w+\.(\w+)", re.M)
_VIEW: Final = re.compile(r"^CREATE OR REPLACE VIEW ", re.M)
_CHANGED: Final = re.compile(r"ALTER TABLE (\S+)( ON CLUSTER \S+)? MODIFY QUERY\s")
_MINOR_UNITS: Final = re.compile(r"\{minor_units:([a-z_.]+)\}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_ONLY_BEFORE: Final = re.compile(r"^-- Only for a database of before version (\d+)\b")
_HISTORY: Final = "schema_migrations"
_SUMS: Final = (
    "usage_rolled",
    "usage_days",
    "usage_hours",
    "usage_conversations",
    "usage_delays",
    "usage_receipts",
)
"""Made of the others, in the order in which they are emptied: without the first nothing reads the others."""
_PROJECTED: Final = ("01_events.sql", "02_foreign.sql", "02_inbox.sql", "02_increases.sql", "mirrors.sql")
"""What a projector asks for and writes to; the last for decisions that wait for their rows."""
_KEPT: Final = (_HISTORY, "refusals", "collector_minutes", *_SUMS)
"""Tables that an exchange leaves where they are: no journal gives them again, or they are made anew."""


class SchemaRefused(RuntimeError):
    """The database was made by a newer Meterhouse, or otherwise than is asked for now; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Script:
    """One file of the schema: its statements as they are run, and the hash of the file with what is filled in."""

    name: str
    sha256: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: the tables and views that are new, and the scripts that were not applied before.

    `before` is the version that the database had, 0 where there was none.
    """

    database: str
    cluster: str
    before: int
    created: tuple[str, ...]
    applied: tuple[str, ...]


def scripts(database: str, cluster: str = "") -> list[Script]:
    """The scripts for a database of that name, on a cluster where one is named. Raises ValueError for a bad name."""
    _checked("database", database)
    if cluster:
        _checked("cluster", cluster)
    found = []
    stored: set[str] = set()
    for file in sorted(_HERE.glob("*.sql")):
        source = _filled(file.read_text(encoding="utf-8"))
        plain = [statement.replace("{database}", database) for statement in _split(source)]
        own = cluster_schema.render(plain, database, cluster, stored) if cluster else plain
        found.append(Script(file.name, hashlib.sha256(source.encode()).hexdigest(), tuple(_with_changes(own))))
    return found


def create_database(database: str, cluster: str = "") -> str:
    """The statement that comes before all scripts."""
    # Atomic by name: chDB's own `default` is an overlay, and exchanging tables after a rebuild needs Atomic.
    return f"CREATE DATABASE IF NOT EXISTS {database}{on_cluster(cluster)} ENGINE = Atomic"


def migrate(client: Client, database: str, *, cluster: str = "", now: datetime | None = None) -> Migrated:
    """Create the database and whatever is missing in it; views are brought up to date. Repeatable.

    A database that was made on a cluster stays on it, also where `cluster` is not given. Raises SchemaRefused before
    anything is changed, ValueError for a name that is not a plain identifier, clickhouse_connect's errors otherwise.
    """
    return _migrate(client, database, cluster, now or datetime.now(UTC), again=True)


def ensure(client: Client, database: str) -> None:
    """`migrate`, where this Meterhouse has not done it: of a database to which it has applied all, only the scripts are
    applied again whose tables or views are not all there. Raises as `migrate`.

    To do all of it again takes two seconds of a core, each time that a process starts.
    """
    _migrate(client, database, "", datetime.now(UTC), again=False)


def _migrate(client: Client, database: str, cluster: str, now: datetime, *, again: bool) -> Migrated:
    """`again`: also what has been applied and is there."""
    _checked("database", database)
    existing = _tables(client, database)
    known = _history(client, database, existing)
    before = max((row[1] for row in known.values()), default=0)
    if before > VERSION:
        written_by = max(known.values(), key=lambda row: row[1])[2]
        raise SchemaRefused(
            f"the warehouse database {database} has schema version {before}, written by Meterhouse {written_by}; this "
            f"Meterhouse knows versions up to {VERSION}: use the newer one, or another METERHOUSE_WAREHOUSE_DATABASE"
        )
    cluster = _same_cluster(database, cluster, {row[3] for row in known.values()}, bool(existing))
    own = scripts(database, cluster)
    new = [it for it in own if it.name not in known or known[it.name][:2] != (it.sha256, VERSION)]
    # Where one is new, views of others may read what it changed.
    due = own if again or new else [it for it in own if _made(it) - existing]
    if due:
        client.command(create_database(database, cluster), use_database=False)
    for script in due:
        for statement in script.statements:
            if _is_due(statement, before if existing else VERSION) and not _is_new(statement, database, existing):
                client.command(statement, use_database=False, settings=_QUICK)
    if new:
        _record(client, database, cluster, new, now)
    created = sorted(_tables(client, database) - existing) if due else []
    return Migrated(database, cluster, before or (1 if existing else 0), tuple(created), _names(new))


def _made(script: Script) -> set[str]:
    """The tables and views that a script makes."""
    return {name for statement in script.statements for name in _MADE.findall(statement)}


def create_scratch(client: Client, database: str) -> None:
    """Make a new, empty database that a projector can project into, on this server alone.

    It has none of the views: they are half of the work, and nobody reads it but who made it. Raises as `migrate`.
    """
    client.command(create_database(database), use_database=False)
    for script in scripts(database):
        if script.name in _PROJECTED:
            for statement in script.statements:
                if _is_due(statement, VERSION) and not (_CHANGED.match(statement) or _VIEW.search(statement)):
                    client.command(statement, use_database=False, settings=_QUICK)


def cluster_of(client: Client, database: str) -> str:
    """The cluster that a database was made on; '' where it is on none, or is not there."""
    return next((row[3] for row in _history(client, database, _tables(client, database)).values()), "")


def exchange(client: Client, live: str, shadow: str) -> None:
    """Exchange the tables of two databases of this schema.

    Table by table: whoever calls sees to it that both hold the same, so that a reader in between sees nothing else.
    """
    cluster = cluster_of(client, live)
    kept = [name + suffix for name in _KEPT for suffix in ("", cluster_schema.LOCAL)]
    names = client.query(
        # Those that store rows: neither views nor the inbox have a sorting key.
        "SELECT name FROM system.tables WHERE database = {shadow:String} AND sorting_key != '' AND name NOT IN "
        "{kept:Array(String)} ORDER BY name",
        parameters={"shadow": shadow, "kept": kept},
    ).result_rows
    # What follows an insert into a table that is exchanged is made anew, too; nothing is inserted meanwhile.
    for database in (live, shadow):
        for view in _followers():
            client.command(f"DROP VIEW IF EXISTS {database}.{view}{on_cluster(cluster)} SYNC")
    for (name,) in names:
        client.command(f"EXCHANGE TABLES {live}.{name} AND {shadow}.{name}{on_cluster(cluster)}")
    # The exploding view follows this version's schema. No record is lost in between: the projector waits.
    client.command(f"DROP VIEW IF EXISTS {live}.explode{on_cluster(cluster)} SYNC")
    client.command(f"DROP TABLE IF EXISTS {live}.inbox{on_cluster(cluster)} SYNC")
    ensure(client, live)
    # The marks of the exchanged days are others, so that no query reads these any more; they have names of before.
    for name in _SUMS:
        place = f"{name}{cluster_schema.LOCAL}" if cluster else name
        client.command(f"TRUNCATE TABLE {live}.{place}{on_cluster(cluster)} SYNC")


def _followers() -> list[str]:
    """The views that write further rows for each insert; but the exploding one, which reads what no table stores."""
    sources = [file.read_text(encoding="utf-8") for file in sorted(_HERE.glob("*.sql"))]
    names = [found[1].rpartition(".")[2] for source in sources for found in _MATERIALIZED.finditer(source)]
    return [name for name in names if name != "explode"]


def _checked(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a {what} is named by letters, digits and _, not {name!r}")


def _filled(source: str) -> str:
    filled = source.replace("{attributes}", _ATTRIBUTES)
    filled = filled.replace("{whole_meters}", ", ".join(f"'{meter}'" for meter in sorted(counted_whole())))
    return _MINOR_UNITS.sub(lambda found: minor_units(found[1]), filled)


def _split(script: str) -> list[str]:
    return [part.strip() for part in re.split(r";[ \t]*(?:\n|$)", script) if part.strip()]


def _is_due(statement: str, version: int) -> bool:
    only = _ONLY_BEFORE.match(statement)
    return only is None or version < int(only[1])


def _is_new(statement: str, database: str, existing: set[str]) -> bool:
    """A change of a view that this very migration made: it reads what it should (half a second of the large one)."""
    changed = _CHANGED.match(statement)
    return changed is not None and changed[1].removeprefix(f"{database}.") not in existing


def _with_changes(statements: Iterable[str]) -> Iterable[str]:
    for statement in statements:
        yield statement
        if made := _MATERIALIZED.search(statement):
            # One that another version made goes on with what this version reads from the same records. Replacing it
            # would leave a moment without it, in which records would be lost.
            yield f"ALTER TABLE {made[1]}{made[2] or ''} MODIFY QUERY {statement[made.end() :]}"


def _history(client: Client, database: str, existing: set[str]) -> dict[str, tuple[str, int, str, str]]:
    """Script -> the hash, version, Meterhouse and cluster of when it was applied last."""
    if _HISTORY not in existing:
        return {}
    rows = client.query(
        "SELECT script, argMax((sha256, version, meterhouse, cluster), applied_at) "
        "FROM {database:Identifier}.schema_migrations GROUP BY script",
        parameters={"database": database},
    ).result_rows
    return {script: tuple(latest) for script, latest in rows}


def _tables(client: Client, database: str) -> set[str]:
    query = "SELECT name FROM system.tables WHERE database = {database:String}"
    return {row[0] for row in client.query(query, parameters={"database": database}).result_rows}


def _same_cluster(database: str, asked: str, recorded: set[str], exists: bool) -> str:
    """The cluster to work on. Raises SchemaRefused for another one than the database was made on."""
    made_on = next(iter(recorded), "")
    if asked and exists and asked != made_on:
        where = f"on cluster {made_on}" if made_on else "on a single server"
        raise SchemaRefused(
            f"the warehouse database {database} was made {where} and cannot be moved to cluster {asked}: name another "
            "METERHOUSE_WAREHOUSE_DATABASE, migrate that, and the collector projects its journal into it"
        )
    return asked or made_on


def _record(client: Client, database: str, cluster: str, applied: list[Script], now: datetime) -> None:
    own = version("meterhouse")
    columns = {
        "script": "LowCardinality(String)",
        "sha256": "String",
        "version": "UInt32",
        "meterhouse": "LowCardinality(String)",
        "cluster": "LowCardinality(String)",
        "applied_at": "DateTime64(6, 'UTC')",
    }
    client.insert(
        _HISTORY,
        [[script.name, script.sha256, VERSION, own, cluster, now] for script in applied],
        database=database,
        column_names=list(columns),
        column_type_names=list(columns.values()),
        settings={"async_insert": 0, "distributed_foreground_insert": 1},
    )


def _names(applied: list[Script]) -> tuple[str, ...]:
    return tuple(script.name for script in applied)
