"""All rows of the SQL database as lines of JSON, and back: for SQLite and PostgreSQL, and from one to the other.

First a line for the whole, then one for each table with its columns, followed by a line for each of its rows.
"""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import IO, Any, Final

from sqlalchemy import JSON, Column, Connection, Engine, LargeBinary, Table, insert, null, select

from meterhouse_store import audit, sql_migrations
from meterhouse_store.archive import BackupRefused
from meterhouse_store.sql import begin_write, snapshot
from meterhouse_store.tables import Exact, UtcTime, metadata
from meterhouse_store.tables.columns import MADE_AGAIN

_CHUNK: Final = 1000


def dump(engine: Engine, out: IO[bytes]) -> dict[str, int]:
    """Write all rows as they are at one moment, while others go on writing; returns the rows of each table.

    But for tables that are made of others (MADE_AGAIN).
    """
    counts: dict[str, int] = {}
    with snapshot(engine) as connection:
        _write(out, {"schema_version": sql_migrations.VERSION})
        for table in metadata.sorted_tables:
            if table.info == MADE_AGAIN:
                continue
            _write(out, {"table": table.name, "columns": [column.name for column in table.columns]})
            counts[table.name] = 0
            for row in connection.execution_options(yield_per=_CHUNK).execute(_ordered(table)):
                _write(out, [_plain(value) for value in row])
                counts[table.name] += 1
    return counts


def load(engine: Engine, source: IO[bytes], expected: dict[str, int], at_end: Callable[[Connection], None]) -> None:
    """Insert what `dump` wrote into an empty database, all or nothing; `expected` is what it returned.

    `at_end` is called with the connection, in the same transaction. Raises BackupRefused for a database that has rows,
    for a dump of a newer schema and for other numbers of rows. A column that is younger than the dump stays empty.
    """
    lines: Iterator[Any] = map(json.loads, source)
    version = next(lines)["schema_version"]
    if version > sql_migrations.VERSION:
        raise BackupRefused(
            f"the backup has SQL schema version {version}, this Meterhouse knows versions up to "
            f"{sql_migrations.VERSION}: restore it with the Meterhouse that wrote it"
        )
    with begin_write(engine) as connection:
        _refuse_rows(connection)
        with audit.paused(connection):
            counts = _insert_all(connection, lines)
        if counts != expected:
            raise BackupRefused("the SQL rows of the backup are not as many as its manifest says")
        sql_migrations.fill(connection, version)
        at_end(connection)


def _insert_all(connection: Connection, lines: Iterator[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for head, rows in _chunks(lines):
        table = metadata.tables.get(head["table"])
        if table is None and head["table"] in sql_migrations.FORMER:
            table = sql_migrations.FORMER[head["table"]]
            table.create(connection, checkfirst=True)
        if table is None or not set(head["columns"]) <= set(table.columns.keys()):
            raise BackupRefused(f"the backup's table {head['table']} is not one that this Meterhouse has")
        columns = [table.columns[name] for name in head["columns"]]
        if rows:
            connection.execute(insert(table), [_values(columns, row) for row in rows])
        counts[table.name] = counts.get(table.name, 0) + len(rows)
    return counts


def _chunks(lines: Iterator[Any]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """The head of a table with some of its rows, again and again; every table at least once."""
    head: dict[str, Any] | None = None
    rows: list[Any] = []
    for line in lines:
        if isinstance(line, list) and len(rows) < _CHUNK:
            rows.append(line)
            continue
        if head is not None:
            yield head, rows
        head, rows = (line, []) if isinstance(line, dict) else (head, [line])
    if head is not None:
        yield head, rows


def _refuse_rows(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise BackupRefused(
                f"the SQL database is not empty (it has {table.name}): restore into an empty one, with another --data "
                "or METERHOUSE_SQL_URL"
            )


def _ordered(table: Table) -> Any:
    return select(table).order_by(*table.primary_key.columns)


def _plain(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _values(columns: list[Column[Any]], row: list[Any]) -> dict[str, Any]:
    return {column.name: _typed(column, value) for column, value in zip(columns, row, strict=True)}


def _typed(column: Column[Any], value: Any) -> Any:
    if value is None:
        # None in a JSON column would become JSON's null, which is not the same as no value.
        return null() if isinstance(column.type, JSON) else None
    if isinstance(column.type, UtcTime):
        return datetime.fromisoformat(value)
    if isinstance(column.type, Exact):
        return Decimal(value)
    return base64.b64decode(value) if isinstance(column.type, LargeBinary) else value


def _write(out: IO[bytes], line: Any) -> None:
    out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
