"""Applies decisions to ClickHouse: what a decision makes of a row is a further version of it, which supersedes it.

SQL is the record; `mirror_decisions` says which are applied. Every step may be repeated and may be done by several
processes at once, so whatever stops it, the next call brings it to its end. A decision whose row is not there (a
warehouse that is being projected anew) waits for it.
"""

from dataclasses import dataclass
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from meterhouse_store import conflicts, mirror
from meterhouse_store.decisions import POINT

_KEY: Final = f"{conflicts.IDENTITY}, quantity"
_PART_ROWS: Final = 50_000
"""Decisions that are joined with their rows in one statement."""

_FINAL: Final[dict[str, Any]] = {"do_not_merge_across_partitions_select_final": 1}
_DURABLE: Final[dict[str, Any]] = _FINAL | {
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "max_partitions_per_insert_block": 0,
}

_PENDING: Final = (
    "SELECT *, 17293822569102704640 + toUInt64(toUnixTimestamp64Micro(decided_at)) * 256 AS rank "
    "FROM mirror_decisions FINAL WHERE modulo(version, 2) = 0 "
    "AND modulo(sipHash64(row_id), {parts:UInt32}) = {part:UInt32}"
)
_MATCH: Final = " AND ".join(f"found.{name} = decision.{name}" for name in _KEY.split(", "))
_FOUND: Final = f"SELECT %s FROM events FINAL WHERE ({_KEY}) IN (SELECT {_KEY} FROM ({_PENDING}))"  # noqa: S608 - fixed parts
# Points that came after the decision may have made another increase of it, or none. What was decided about is what
# people saw: that quantity is written down.
_SAME_EVENT: Final = " AND ".join(f"point.{name} = wanted.{name}" for name in conflicts.IDENTITY.split(", "))
_INCREASES: Final = f"""
    SELECT point.* EXCEPT (is_row) REPLACE (wanted.quantity AS quantity) FROM (
        SELECT * EXCEPT (version) FROM counted_increases FINAL
        WHERE ({conflicts.IDENTITY}) IN (SELECT {conflicts.IDENTITY} FROM ({_PENDING}))
            AND ({conflicts.IDENTITY}) NOT IN (SELECT {conflicts.IDENTITY} FROM decided_increases)
    ) AS point
    INNER JOIN (SELECT DISTINCT {_KEY} FROM ({_PENDING})) AS wanted ON {_SAME_EVENT}
"""  # noqa: S608 - fixed parts
# Points of running totals, and no other rows: of those nothing else is shown.
_DECIDED_INCREASES: Final = f"""
    INSERT INTO decided_increases
    SELECT {conflicts.IDENTITY} FROM events
    WHERE ({_KEY}) IN (SELECT {_KEY} FROM ({_PENDING}) WHERE startsWith(event_id, '{POINT}'))
        AND (namespace, customer_id, meter, event_time, substring(event_id, 1, 37)) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM cumulative_points)
"""  # noqa: S608 - fixed parts

# Whom a query of `usage` has to look through for assigned rows comes first: no row may be there and not be found.
_CLAIMS: Final = f"""
    INSERT INTO assigned_claims (namespace, customer_id)
    SELECT DISTINCT namespace, customer_id FROM ({_PENDING}) WHERE billed_customer_id != ''
"""  # noqa: S608 - fixed parts
_VERSIONS: Final = f"""
    INSERT INTO events
    SELECT found.* REPLACE (
        decision.reason AS reason, decision.billed_customer_id AS billed_customer_id,
        decision.decision_id AS decision_id, decision.decided_at AS decided_at,
        decision.original_reason AS original_reason, decision.rank AS first)
    FROM (ROWS_FOUND) AS found INNER JOIN ({_PENDING}) AS decision ON {_MATCH}
"""  # noqa: S608 - fixed parts
_APPLIED: Final = f"""
    INSERT INTO mirror_decisions
    SELECT decision.* EXCEPT (rank) REPLACE (toUInt8(version + 1) AS version)
    FROM ({_PENDING}) AS decision INNER JOIN ({_FOUND % f"{_KEY}, first"}) AS found ON {_MATCH}
    WHERE found.first >= decision.rank
"""  # noqa: S608 - fixed parts
_WAITING: Final = f"""
    SELECT count(), countIf(startsWith(event_id, '{POINT}'))
    FROM mirror_decisions FINAL WHERE modulo(version, 2) = 0
"""  # noqa: S608 - fixed parts


# Decisions that were applied and whose rows do not have them.
_LOST: Final = f"""
    SELECT decision.* EXCEPT (rank) FROM (
        SELECT *, 17293822569102704640 + toUInt64(toUnixTimestamp64Micro(decided_at)) * 256 AS rank
        FROM mirror_decisions FINAL WHERE modulo(version, 2) = 1
    ) AS decision
    LEFT JOIN (
        SELECT {_KEY}, first FROM events FINAL WHERE ({_KEY}) IN (SELECT {_KEY} FROM mirror_decisions)
    ) AS found ON {_MATCH}
    WHERE found.first < decision.rank
"""  # noqa: S608 - fixed parts


@dataclass(frozen=True, slots=True)
class Applied:
    """How many decisions were applied now, and how many wait for their rows."""

    applied: int
    waiting: int


def apply(engine: Engine, client: Client) -> Applied:
    """Bring what SQL has decided into the database of the client."""
    mirror.push_decisions(engine, client)
    return apply_mirrored(client)


def apply_mirrored(client: Client) -> Applied:
    """Apply the decisions that are mirrored and not applied yet, as far as their rows are there."""
    pending, of_points = client.query(_WAITING).result_rows[0]
    if not pending:
        return Applied(0, 0)
    found = f"{_FOUND % '*'} UNION ALL {_INCREASES}" if of_points else _FOUND % "*"
    parts = -(-pending // _PART_ROWS)
    for part in range(parts):
        parameters = {"parts": parts, "part": part}
        client.command(_CLAIMS, parameters=parameters, settings=_DURABLE)
        client.command(_VERSIONS.replace("ROWS_FOUND", found), parameters=parameters, settings=_DURABLE)
        if of_points:
            client.command(_DECIDED_INCREASES, parameters=parameters, settings=_DURABLE)
        touched = f"SELECT {conflicts.IDENTITY} FROM ({_PENDING})"  # noqa: S608 - fixed parts
        conflicts.mark(client, touched, parameters=parameters, settings=_DURABLE)
        client.command(_APPLIED, parameters=parameters, settings=_DURABLE)
    waiting = int(client.query(_WAITING).result_rows[0][0])
    return Applied(max(0, pending - waiting), waiting)


def lost(client: Client) -> int:
    """How many decisions were applied whose rows do not have them any more."""
    return int(client.query(f"SELECT count() FROM ({_LOST})", settings=_FINAL).result_rows[0][0])  # noqa: S608


def apply_lost(client: Client) -> Applied:
    """Apply those again."""
    client.command(
        f"INSERT INTO mirror_decisions SELECT * REPLACE (toUInt8(version + 1) AS version) FROM ({_LOST})",  # noqa: S608
        settings=_DURABLE,
    )
    return apply_mirrored(client)
