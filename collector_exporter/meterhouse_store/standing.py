"""Copies what stands now into the warehouse: rows that hold for as long as they are found, for Grafana to read.

Where mirror.py copies records, this copies a state that is worked out again and again. Only what changed is written,
and what has not been for half a minute, so that `looked_at` says whether anybody still looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from clickhouse_connect.driver.client import Client

_AGAIN: Final = timedelta(seconds=30)
_TIME: Final = "DateTime64(6, 'UTC')"
_NAME: Final = "LowCardinality(String)"
_HEAD: Final = {"namespace": _NAME, "customer_id": "String"}
_TAIL: Final = {"is_there": "Bool", "looked_at": _TIME, "version": "UInt64"}


@dataclass(frozen=True)
class Standing:
    """A table of schema/budgets.sql: `columns` and their types between the namespace and customer and what all have;
    `key`: those of them that name a row of the customer."""

    table: str
    columns: Mapping[str, str]
    key: Sequence[str]

    @property
    def types(self) -> dict[str, str]:
        return {**_HEAD, **self.columns, **_TAIL}


BUDGETS: Final = Standing(
    "mirror_budgets",
    {
        "budget": "String", "agent_id": "String", "measure": _NAME, "unit": _NAME, "per": _NAME, "is_hard": "Bool",
        "cap": "Decimal(38, 9)", "used": "Decimal(38, 9)", "reserved": "Decimal(38, 9)", "state": _NAME,
        "trouble": "String", "period_start": _TIME, "period_end": _TIME,
    },
    ("budget",),
)  # fmt: skip
PAUSES: Final = Standing(
    "mirror_pauses",
    {"agent_id": "String", "reason": _NAME, "since": _TIME, "who": "String", "why": "String"},
    ("agent_id", "reason"),
)
NOTICES_DUE: Final = Standing(
    "mirror_notices_due",
    {
        "kind": _NAME, "channel": _NAME, "state": _NAME, "deliveries": "UInt64", "oldest_at": _TIME,
        "next_attempt_at": _TIME,
    },
    ("kind", "channel", "state"),
)  # fmt: skip


def keep(client: Client, what: Standing, namespace: str, rows: Iterable[Mapping[str, Any]], now: datetime) -> int:
    """Make these, each with a customer_id, the rows that stand in the namespace; returns how many were written.

    May be repeated, and overtaken by a later moment's: of a row the latest moment's counts.
    """
    wanted = {_name(what, row): row for row in rows}
    asked = client.query(
        f"SELECT * FROM {what.table} FINAL WHERE namespace = {{namespace:String}} AND is_there",  # noqa: S608
        parameters={"namespace": namespace},
    )
    there = {_name(what, row): row for row in asked.named_results()}
    written = [
        {**row, "is_there": True} for name, row in wanted.items() if not _stands(what, there.get(name), row, now)
    ]
    written += [{**row, "is_there": False} for name, row in there.items() if name not in wanted]
    if written:
        version = int(now.timestamp()) * 1_000_000 + now.microsecond
        same = {"namespace": namespace, "looked_at": now, "version": version}
        client.insert(
            what.table,
            [[{**row, **same}[name] for name in what.types] for row in written],
            column_names=list(what.types),
            column_type_names=list(what.types.values()),
            settings={"async_insert": 0, "distributed_foreground_insert": 1},
        )
    return len(written)


def _name(what: Standing, row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["customer_id"], *(row[name] for name in what.key)


def _stands(what: Standing, there: Mapping[str, Any] | None, row: Mapping[str, Any], now: datetime) -> bool:
    """Whether the warehouse says the same of it, and has been told lately."""
    if there is None or now - _aware(there["looked_at"]) >= _AGAIN:
        return False
    return all(_aware(there[name]) == row[name] for name in what.columns)


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
