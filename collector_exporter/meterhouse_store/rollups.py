"""Sums days of usage for the views `usage_by_day` and others (schema/06_rollups.sql says how they stay exact).

A day is summed as a whole, from the view `usage`, when nothing was inserted for it for a quarter of an hour. The mark
of what was inserted is read before and stored with the sums: an insert that comes meanwhile, or ever after, makes it
another one, and the day is read from `usage` until it is summed again. Every step may be repeated, and done by several
processes at once: each writes sums of its own.
"""

import secrets
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse_store import schema
from meterhouse_store.schema.cluster import LOCAL

SETTLED_S: Final = 900
"""An insert writes its rows and its mark at nearly the same time, in either order: within this it is over."""
UNREAD_S: Final = 6 * 3600
"""Sums that do not count are kept for so long: a query may be reading them, or a run that goes on be writing them."""
DAYS: Final = 8
"""Days that are summed in one statement, so that it is over before a client would give up."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """How a table of sums is made: the view of the rows, and of each column that they are not grouped by its sum."""

    rows: str
    made: dict[str, str]

    @property
    def columns(self) -> str:
        return ", ".join(self.made)

    @property
    def selected(self) -> str:
        return ", ".join(f"{function}({column})" for column, function in self.made.items())


# The columns before these are grouped by; all are in the order of the table.
_TABLES: Final = {
    "usage_days": _Sums("usage_day_rows", {"events": "sum", "moving": "sum", "quantity": "sum"}),
    "usage_hours": _Sums("usage_hour_rows", {"events": "sum", "quantity": "sum"}),
    "usage_conversations": _Sums(
        "usage_conversation_rows",
        {"customer_id": "min", "calls": "sum", "tokens": "sum", "last_event": "max", "events": "sum"},
    ),
    "usage_delays": _Sums("usage_delay_rows", {"events": "sum"}),
    "usage_receipts": _Sums("usage_receipt_rows", {"counted": "sum", "suspended": "sum", "set_aside": "sum"}),
}
_LARGE: Final[dict[str, Any]] = {
    "async_insert": 0,
    "distributed_foreground_insert": 1,
    "max_bytes_before_external_group_by": 2_000_000_000,
}

# 1970 is the day of events that count once, whenever they are told: they are few, and are always looked up.
_DUE: Final = """
    SELECT namespace, day, mark FROM usage_day_states
    WHERE NOT is_rolled AND day > toDate(0) AND touched_at <= now() - {settled:UInt32} ORDER BY day, namespace
"""
_LEFT: Final = "SELECT count() FROM usage_day_states WHERE NOT is_rolled AND day > toDate(0)"
# `day` is `key_day` here: they differ in 1970 alone.
_SUMMED: Final = "SELECT * EXCEPT (key_day, {columns}), {selected} FROM {rows} WHERE {where} GROUP BY ALL"
_ROLL: Final = """
    INSERT INTO {table} SELECT
        namespace, day, {{base:UInt64}} + toUInt16(day) - {{first_day:UInt16}}, * EXCEPT (namespace, day)
    FROM ({summed})
"""
_DUE_DAYS: Final = "namespace = {namespace:String} AND key_day IN {days:Array(Date)}"
_UNREAD: Final = """
    SELECT DISTINCT version FROM {table}
    WHERE version < toUInt64(toUnixTimestamp64Nano(now64(9)) - {{unread_ns:UInt64}})
        AND (namespace, day, version) NOT IN (SELECT namespace, day, version FROM usage_rolled FINAL)
"""
# Days whose sums count and are not those of `usage`: each is there twice.
_WRONG: Final = """
    WITH (SELECT summed FROM usage_day_choice) AS days
    SELECT DISTINCT namespace, day FROM (
        SELECT *, count() AS times FROM (
            SELECT * EXCEPT (version) FROM {table}
            WHERE (namespace, day, version) IN (SELECT arrayJoin(days))
            UNION ALL
            {summed}
        )
        GROUP BY ALL HAVING times != 2
    )
"""
_WHERE_SUMMED: Final = """(namespace, key_day) IN (
    SELECT tupleElement(one, 1), tupleElement(one, 2) FROM (SELECT arrayJoin(days) AS one))"""
_ROLLED: Final = "SELECT namespace, day FROM usage_day_states WHERE is_rolled"
_TOUCH: Final = """
    INSERT INTO usage_touches (namespace, day, mark, touched_at)
    SELECT {namespace:String}, {day:Date}, rand64(), now()
"""

Day = tuple[str, date]
"""A namespace and a day (UTC)."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What was summed now, and how many days are read from `usage` event by event: touched of late, or just now."""

    days: tuple[Day, ...]
    unsettled: int


def roll_up(client: Client, *, settled_s: int = SETTLED_S) -> Rolled:
    """Sum the days that need it and of which nothing has come for `settled_s` seconds. May be repeated."""
    due: dict[tuple[str, int, int], list[tuple[date, int]]] = defaultdict(list)
    for namespace, day, mark in client.query(_DUE, parameters={"settled": settled_s}).result_rows:
        due[namespace, day.year, day.month].append((day, mark))  # a month is a partition
    done: list[Day] = []
    for (namespace, _, _), days in due.items():
        for at in range(0, len(days), DAYS):
            _roll(client, namespace, days[at : at + DAYS])
        done += [(namespace, day) for day, _ in days]
    _forget(client)
    ((left,),) = client.query(_LEFT).result_rows
    return Rolled(tuple(done), int(left))


def wrong_days(client: Client) -> list[Day]:
    """The days whose sums count and are not what `usage` gives. Reads all that is summed."""
    if not _rolled(client):
        return []
    found: set[Day] = set()
    for table, sums in _TABLES.items():
        query = _WRONG.format(table=table, summed=_summed(sums, _WHERE_SUMMED))
        found |= {(namespace, day) for namespace, day in client.query(query, settings=_LARGE).result_rows}
    # What was touched meanwhile is right to differ.
    return sorted(found & _rolled(client))


def distrust(client: Client, days: list[Day]) -> None:
    """Have the days read from `usage` until they are summed again."""
    for namespace, day in days:
        client.command(_TOUCH, parameters={"namespace": namespace, "day": day}, settings=_LARGE)


def _roll(client: Client, namespace: str, days: list[tuple[date, int]]) -> None:
    first = days[0][0]
    # In the order of the server's time, and another one for each day and each process: two of one would be added up.
    now_ns = int(client.query("SELECT toUnixTimestamp64Nano(now64(9))").result_rows[0][0])
    base = (now_ns >> 20 << 20) + (secrets.randbits(15) << 5)
    parameters = {
        "namespace": namespace,
        "days": [day for day, _ in days],
        "first_day": (first - date(1970, 1, 1)).days,
        "base": base,
    }
    for table, sums in _TABLES.items():
        statement = _ROLL.format(table=table, summed=_summed(sums, _DUE_DAYS))
        client.command(statement, parameters=parameters, settings=_LARGE)
    client.insert(
        "usage_rolled",
        [[namespace, day, base + (day - first).days, mark] for day, mark in days],
        column_names=["namespace", "day", "version", "mark"],
        column_type_names=["LowCardinality(String)", "Date", "UInt64", "UInt64"],
        settings={"async_insert": 0, "distributed_foreground_insert": 1},
    )


def _rolled(client: Client) -> set[Day]:
    return {(namespace, day) for namespace, day in client.query(_ROLLED).result_rows}


def _summed(sums: _Sums, where: str) -> str:
    return _SUMMED.format(columns=sums.columns, selected=sums.selected, rows=sums.rows, where=where)


def _forget(client: Client, *, unread_s: int = UNREAD_S) -> None:
    """Delete sums that count no more, those too that a run left which did not come to its end."""
    cluster = schema.cluster_of(client, str(client.database))
    for table in _TABLES:
        query = _UNREAD.format(table=table)
        rows = client.query(query, parameters={"unread_ns": unread_s * 10**9}).result_rows
        if rows:
            place = f"{table}{LOCAL}" if cluster else table
            versions = ", ".join(str(int(version)) for (version,) in rows)
            statement = f"ALTER TABLE {place}{schema.on_cluster(cluster)} DELETE WHERE version IN ({versions})"
            client.command(statement, settings={"mutations_sync": 1})
