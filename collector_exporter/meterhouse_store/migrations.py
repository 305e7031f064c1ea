"""What `meterhouse warehouse migrate` prints: statements, what was done, what a cluster's user lacks."""

from collections.abc import Iterator

from clickhouse_connect.driver.client import Client

from meterhouse_store import schema
from meterhouse_store.schema import Migrated
from meterhouse_store.schema.cluster import PROFILE


def as_text(database: str, cluster: str = "") -> str:
    """All statements, each with its semicolon, under the names of their scripts. Raises ValueError for a bad name."""
    parts = [f"{schema.create_database(database, cluster)};"]
    for script in schema.scripts(database, cluster):
        parts += [f"-- {script.name}, sha256 {script.sha256}"]
        parts += [f"{statement.rstrip()};" for statement in script.statements]
    return "\n\n".join(parts)


def report(made: Migrated) -> Iterator[str]:
    """What a migration did, line by line."""
    where = f" on cluster {made.cluster}" if made.cluster else ""
    if made.created:
        yield f"made in {made.database}{where}: {', '.join(made.created)}"
    if made.before and made.before != schema.VERSION:
        yield f"schema version {made.before} is now {schema.VERSION}"
    if made.applied:
        yield f"applied, and noted in {made.database}.schema_migrations: {', '.join(made.applied)}"
    yield f"database {made.database}{where} is up to date, schema version {schema.VERSION}"


def missing_settings(client: Client) -> list[str]:
    """A sentence for each setting that a user on a cluster needs in its profile and has not."""
    query = "SELECT name, value FROM system.settings WHERE name IN {names:Array(String)}"
    rows = client.query(query, parameters={"names": list(PROFILE)}).result_rows
    found = {str(name): value for name, value in rows}
    return [
        f"note: the user's profile needs {name} = {value}, it has {found.get(name, 'none')} (docs/operations.md)"
        for name, value in PROFILE.items()
        if found.get(name) != value
    ]
