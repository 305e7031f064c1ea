"""The schema on a cluster of ClickHouse servers: the statements of the .sql files, rewritten.

Every table that stores rows becomes two: `NAME_local` on each node, replicated within its shard, and `NAME`, a
Distributed table over them, which everything reads and writes. All copies of a row have the same shard, because a
shard is chosen by columns of the sorting key (the customer, where the table has one): FINAL, which works shard by
shard, sees them together. `inbox` and `explode` are on each node and write to the Distributed `events`. Views stay as
they are, and run where they are asked.

Sources: ClickHouse's documentation of the Distributed engine, of data replication (without arguments a replicated
table gets the path /clickhouse/tables/{uuid}/{shard} and the replica {replica}; ON CLUSTER gives all nodes the same
uuid), and of `distributed_product_mode` and `optimize_skip_unused_shards`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

LOCAL: Final = "_local"
"""What is added to the name of a table where it stores its rows."""

# global: a subquery in a view is asked once and its answer sent to all shards. Under `local` a shard would look in its
# own rows only, which gives another answer whenever what is looked for is filed under another customer; ClickHouse's
# default refuses such views.
# optimize_skip_unused_shards: a question about one customer is asked of that customer's shard alone.
VIEW_SETTINGS: Final = "distributed_product_mode = 'global', optimize_skip_unused_shards = 1"

PROFILE: Final = {
    "distributed_foreground_insert": "1",
    "distributed_product_mode": "global",
    "insert_quorum": "auto",
    "load_balancing": "in_order",
    "prefer_localhost_replica": "0",
}
"""The settings that the user's profile must have on a cluster (docs/operations.md says why)."""

_HEAD: Final = re.compile(
    r"(?P<comments>(?:\s*--[^\n]*\n)*)\s*"
    r"(?P<verb>CREATE TABLE IF NOT EXISTS|CREATE OR REPLACE VIEW|CREATE MATERIALIZED VIEW IF NOT EXISTS|ALTER TABLE"
    r"|DROP TABLE IF EXISTS|DROP VIEW IF EXISTS|INSERT INTO) "
    r"(?P<name>\w+\.\w+)(?P<rest>.*)",
    re.DOTALL,
)
_STORED: Final = re.compile(r"\bENGINE = (\w*MergeTree)\b")
_SORTED: Final = re.compile(r"\bORDER BY (?:\((?P<several>[\w, ]+)\)|(?P<one>\w+))")
_COLUMNS_CHANGE: Final = re.compile(r"\b(ADD|DROP|MODIFY|RENAME|CLEAR|COMMENT) COLUMN\b")
_CUSTOMER: Final = ("namespace", "customer_id")


def on_cluster(cluster: str) -> str:
    """The clause, with a blank before it; '' where no cluster is named."""
    return f" ON CLUSTER {cluster}" if cluster else ""


def render(statements: Iterable[str], database: str, cluster: str, stored: set[str]) -> list[str]:
    """The statements of one script for a cluster.

    `stored` has the names (with their database) of tables that scripts before this one store rows in; those of this one
    are added. Raises ValueError for a statement that it has no rule for.
    """
    return [made for statement in statements for made in _rendered(statement, database, cluster, stored)]


def _rendered(statement: str, database: str, cluster: str, stored: set[str]) -> Iterator[str]:
    found = _HEAD.fullmatch(statement)
    if found is None:
        raise ValueError(f"schema/cluster.py has no rule for the statement {statement[:100]!r}")
    verb, name, rest = found["verb"], found["name"], found["rest"]
    head, clause = f"{found['comments'].lstrip()}{verb} ", on_cluster(cluster)
    if verb == "INSERT INTO":  # what the Distributed tables are given and asked goes to all shards
        yield statement.lstrip()
    elif verb.endswith("VIEW"):
        yield f"{head}{name}{clause}{_with_settings(rest)}"
    elif verb == "CREATE TABLE IF NOT EXISTS" and _STORED.search(rest):
        stored.add(name)
        replicated = _STORED.sub(r"ENGINE = Replicated\1", rest)
        yield f"{head}{name}{LOCAL}{clause}{replicated}"
        place = f"'{cluster}', '{database}', '{name.partition('.')[2]}{LOCAL}', {_sharding_key(name, rest)}"
        yield f"{verb} {name}{clause} AS {name}{LOCAL}\nENGINE = Distributed({place})"
    elif name in stored:
        yield f"{head}{name}{LOCAL}{clause}{rest}"
        if verb != "ALTER TABLE" or _COLUMNS_CHANGE.search(rest):
            yield f"{verb} {name}{clause}{rest}"
    else:  # what stores nothing: the inbox, and the exploding view, of which one is on each node
        yield f"{head}{name}{clause}{rest}"


def _with_settings(rest: str) -> str:
    # A settings clause of the view itself stands in a line of its own, at the end.
    joined = "," if re.search(r"\nSETTINGS [^()\n]*\s*$", rest) else "\nSETTINGS"
    return f"{rest.rstrip()}{joined} {VIEW_SETTINGS}"


def _sharding_key(name: str, rest: str) -> str:
    found = _SORTED.search(rest)
    if found is None:
        raise ValueError(f"schema/cluster.py cannot read what {name} is ordered by")
    columns = [column.strip() for column in (found["several"] or found["one"]).split(",")]
    chosen = _CUSTOMER if set(_CUSTOMER) <= set(columns) else columns
    return f"cityHash64({', '.join(chosen)})"
