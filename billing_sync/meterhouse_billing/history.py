"""The history of invoices in SQL: who took one from which state to which, when and why. Rows are only ever added."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, RowMapping, bindparam, func, insert, select, update

from meterhouse_billing import states
from meterhouse_rating.ids import digest
from meterhouse_store.tables import invoice_transitions as table
from meterhouse_store.tables import invoices

# Built once, like the outbox's: these run for each step of each invoice.
_OF: Final = table.c.invoice_id == bindparam("invoice")
_STATE: Final = select(invoices.c.state).where(invoices.c.invoice_id == bindparam("invoice")).with_for_update()
_ROWS: Final = select(table).where(_OF).order_by(table.c.changed_at)
_SO_FAR: Final = select(func.count(), func.max(table.c.changed_at)).where(_OF)
_ADD: Final = insert(table)
_MOVE: Final = update(invoices).where(invoices.c.invoice_id == bindparam("invoice"))

RULE: Final = "rule"
"""Who it was where nobody decided: the namespace's settings did."""

STRIPE: Final = "stripe"
"""Who it was where Stripe showed it, whoever did it there."""


def follow(connection: Connection, invoice_id: str, wanted: str, *, who: str, why: str, now: datetime) -> bool:
    """Go where Stripe's invoice is already; False where that is old news. Raises Contradiction."""
    steps = states.path(_state(connection, invoice_id), wanted)
    for before, after in steps:
        _add(connection, invoice_id, before, after, who=who, why=why, now=now)
    return bool(steps)


def decide(connection: Connection, invoice_id: str, wanted: str, *, who: str, why: str, now: datetime) -> None:
    """Take the invoice to a state, as somebody or a rule decided. Raises NotNow where its state does not allow it."""
    current = _state(connection, invoice_id)
    states.check(current, wanted)
    _add(connection, invoice_id, current, wanted, who=who, why=why, now=now)


def begin(connection: Connection, invoice_id: str, *, who: str, why: str, now: datetime) -> None:
    """The first row of an invoice that was just made: the period is closed, there is a draft."""
    _insert(connection, invoice_id, 0, states.OPEN, states.DRAFT, who=who, why=why, now=now)


def of(engine: Engine, invoice_id: str) -> Sequence[RowMapping]:
    """All of an invoice's rows, in their order."""
    with engine.connect() as connection:
        return connection.execute(_ROWS, {"invoice": invoice_id}).mappings().all()


def last(engine: Engine, invoice_id: str, to_state: str) -> RowMapping | None:
    """How the invoice came into a state the last time."""
    return next((row for row in reversed(of(engine, invoice_id)) if row["to_state"] == to_state), None)


def _state(connection: Connection, invoice_id: str) -> str:
    return str(connection.execute(_STATE, {"invoice": invoice_id}).scalar_one())


def _add(
    connection: Connection, invoice_id: str, before: str, after: str, *, who: str, why: str, now: datetime
) -> None:
    count, latest = connection.execute(_SO_FAR, {"invoice": invoice_id}).one()
    if latest is not None:  # in their order, whatever the clock does
        now = max(now, latest + timedelta(microseconds=1))
    _insert(connection, invoice_id, count, before, after, who=who, why=why, now=now)
    connection.execute(_MOVE, {"invoice": invoice_id, "state": after})


def _insert(
    connection: Connection, invoice_id: str, count: int, before: str, after: str, *, who: str, why: str, now: datetime
) -> None:
    row = {
        "transition_id": digest([invoice_id, count, before, after]),
        "invoice_id": invoice_id,
        "from_state": before,
        "to_state": after,
        "who": who[:128],
        "why": why[:500],
        "changed_at": now,
    }
    connection.execute(_ADD, row)
