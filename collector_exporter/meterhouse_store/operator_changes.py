"""What operators change about customers, with who and why; a change that takes two persons waits for the second one."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Engine, insert, select, update

from meterhouse_store import persons
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import operator_changes

REJECTED = "rejected"


@dataclass(frozen=True)
class Change:
    """A change of a customer as it was asked for; `outcome` None: it waits for another person."""

    change_id: str
    namespace: str
    customer_id: str
    what: str
    form: Mapping[str, str]
    who: str
    why: str
    asked_at: datetime
    outcome: str | None = None
    decided_by: str | None = None
    decided_why: str | None = None
    decided_at: datetime | None = None


def keep(
    engine: Engine,
    namespace: str,
    customer_id: str,
    what: str,
    form: Mapping[str, str],
    *,
    who: str,
    why: str,
    now: datetime,
    outcome: str | None = None,
) -> Change:
    """Note a change that was made (`outcome`), or one that waits. The same change that waits already is that one."""
    name = [namespace, customer_id, what, dict(sorted(form.items())), who, now.isoformat()]
    change_id = hashlib.sha256(json.dumps(name).encode()).hexdigest()
    made = Change(change_id, namespace, customer_id, what, dict(form), who, why[:500], now)
    if outcome is not None:
        made = replace(made, outcome=outcome[:500], decided_by=who, decided_at=now)
    table = operator_changes
    with begin_write(engine) as connection:
        is_same = (table.c.namespace == namespace) & (table.c.customer_id == customer_id) & (table.c.what == what)
        waiting = connection.execute(select(table).where(is_same, table.c.outcome.is_(None))).mappings().all()
        same = next((Change(**row) for row in waiting if dict(row["form"]) == dict(form)), None)
        if outcome is None and same is not None:
            return same
        if connection.execute(select(table.c.what).where(table.c.change_id == change_id)).first() is None:
            connection.execute(insert(table).values(**vars(made)))
    return made


def to_decide(engine: Engine, namespace: str, change_id: str, *, who: str, reject: bool) -> Change:
    """The change that waits. Raises RegistryError where none does, and where its author would approve it."""
    table = operator_changes
    with engine.connect() as connection:
        is_it = (table.c.namespace == namespace) & (table.c.change_id == change_id)
        row = connection.execute(select(table).where(is_it)).mappings().first()
    found = None if row is None else Change(**row)
    if found is None:
        raise RegistryError("There is no such change.")
    if found.outcome is not None:
        raise RegistryError(f"{found.decided_by} decided about that already: {found.outcome}")
    if not reject and persons.may_be_one(found.who, who):
        raise RegistryError(f"{found.who} asked for it: another person has to approve it.")
    return found


def decide(engine: Engine, change: Change, outcome: str, *, who: str, why: str, now: datetime) -> None:
    """Note what came of a change that waited; the first decision stands."""
    table = operator_changes
    with begin_write(engine) as connection:
        is_it = (table.c.change_id == change.change_id) & table.c.outcome.is_(None)
        values = {"outcome": outcome[:500], "decided_by": who, "decided_why": why[:500], "decided_at": now}
        connection.execute(update(table).where(is_it).values(**values))


def latest(
    engine: Engine, namespace: str, limit: int, *, customer_id: str | None = None, waiting: bool = False
) -> list[Change]:
    """The latest changes, of one customer or all; only those that wait, or all."""
    table = operator_changes
    query = select(table).where(table.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    if waiting:
        query = query.where(table.c.outcome.is_(None))
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.asked_at.desc(), table.c.change_id).limit(limit)).mappings()
        return [Change(**row) for row in rows]
