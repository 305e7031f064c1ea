"""Decisions about rows that are called otherwise since a customer was erased: the same records, of the new names.

A decision names its row by the row's key, and itself by a hash of that. Both are made anew, in the order in which was
decided, so that each decision still follows the one it followed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from meterhouse_store.decisions import Draft, Key, split_event_id
from meterhouse_store.tables import decisions

Renamed = Mapping[tuple[str, str], tuple[str, ...]]
"""Rows as (customer as claimed, event id): old -> new."""


def rename(connection: Connection, namespace: str, former: str, pseudonym: str, renamed: Renamed) -> None:
    """Take the customer `former` out of the namespace's decisions."""
    ids: dict[str, str] = {}
    for row in _affected(connection, namespace, former, renamed):
        customer_id, event_id = _new_name(row, former, pseudonym, renamed)
        key = Key(namespace, customer_id, row["meter"], row["event_time_ns"], event_id, row["quantity"])
        billed = pseudonym if row["billed_customer_id"] == former else row["billed_customer_id"]
        follows = ids.get(row["follows"], row["follows"])
        draft = Draft(row["kind"], key, row["reason"], billed, row["original_reason"], follows)
        ids[row["decision_id"]] = draft.decision_id
        values = {
            "decision_id": draft.decision_id, "row_id": key.row_id, "customer_id": customer_id, "event_id": event_id,
            "billed_customer_id": billed, "follows": follows,
        }  # fmt: skip
        is_it = decisions.c.decision_id == row["decision_id"]
        connection.execute(update(decisions).where(is_it).values(**values))


def _affected(connection: Connection, namespace: str, former: str, renamed: Renamed) -> Iterator[Any]:
    """All decisions about rows of which any names the customer or a row that has another name, in their order."""
    query = select(decisions).where(decisions.c.namespace == namespace)
    rows = connection.execute(query.order_by(decisions.c.decided_at, decisions.c.decision_id)).mappings().all()
    affected = {
        row["row_id"]
        for row in rows
        if former in (row["customer_id"], row["billed_customer_id"])
        or (row["customer_id"], split_event_id(row["event_id"])[0]) in renamed
    }
    return (row for row in rows if row["row_id"] in affected)


def _new_name(row: Any, former: str, pseudonym: str, renamed: Renamed) -> tuple[str, str]:
    base, added = split_event_id(row["event_id"])
    new = renamed.get((row["customer_id"], base))
    if new is not None:
        return new[0], new[1] + added
    return pseudonym if row["customer_id"] == former else row["customer_id"], row["event_id"]
