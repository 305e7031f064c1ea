"""The ClickHouse schema: tables, views and the exploding of journal records, as .sql files that `migrate` applies.

Statements are repeatable (`IF NOT EXISTS`, `OR REPLACE`), run in the order of the file names, and name the database as
`{database}`. A statement ends with a semicolon at the end of a line.
"""

import re
from pathlib import Path
from typing import Final

from clickhouse_connect.driver.client import Client

_HERE: Final = Path(__file__).parent

RECORD_PROTO: Final = (_HERE / "rec.proto").read_text(encoding="utf-8")
"""The journal record as ClickHouse decodes it: the `format_schema` of an insert into `inbox`, message `Rec`."""

# `map<string, AnyValue>`: a key given twice is there twice, and of the four members one is set, or none.
_ATTRIBUTES: Final = (
    "Map(String, Tuple(string_value Nullable(String), bool_value Nullable(Bool), "
    "int_value Nullable(Int64), double_value Nullable(Float64)))"
)

_MATERIALIZED: Final = re.compile(r"\bCREATE MATERIALIZED VIEW IF NOT EXISTS (\S+) TO \S+ AS\s")


def migrate(client: Client, database: str) -> None:
    """Create the database and whatever is missing in it; views are brought up to date. Repeatable.

    Raises ValueError for a database name that is not a plain identifier, clickhouse_connect's errors otherwise.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", database):
        raise ValueError(f"a database is named by letters, digits and _, not {database!r}")
    # Atomic by name: chDB's own `default` is an overlay, and exchanging tables after a rebuild needs Atomic.
    client.command(f"CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic", use_database=False)
    for file in sorted(_HERE.glob("*.sql")):
        for statement in _statements(file.read_text(encoding="utf-8")):
            text = statement.replace("{database}", database).replace("{attributes}", _ATTRIBUTES)
            client.command(text, use_database=False)
            if made := _MATERIALIZED.search(text):
                # One that another version made goes on with what this version reads from the same records. Replacing it
                # would leave a moment without it, in which records would be lost.
                client.command(f"ALTER TABLE {made[1]} MODIFY QUERY {text[made.end() :]}", use_database=False)


def _statements(script: str) -> list[str]:
    return [part.strip() for part in re.split(r";[ \t]*(?:\n|$)", script) if part.strip()]
