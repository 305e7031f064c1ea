"""Credit notes in SQL: which wait, what was decided about them, and what Stripe made of them. Histories only grow."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, func, insert, select, update

from meterhouse_billing import postings
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.credit_documents import Shown
from meterhouse_billing.crediting import Note
from meterhouse_billing.states import NotNow
from meterhouse_billing.taxes import in_minor
from meterhouse_rating import ledger
from meterhouse_rating.ids import digest
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import credit_note_issues as table
from meterhouse_store.tables import credit_note_transitions as transitions
from meterhouse_store.tables import credit_notes, invoice_lines, invoices

WAITING: Final = "waiting"
APPROVED: Final = "approved"
ISSUED: Final = "issued"

_NEXT: Final = {WAITING: (APPROVED,), APPROVED: (ISSUED, APPROVED, WAITING), ISSUED: ()}


def notes(
    engine: Engine,
    namespace: str,
    customer_id: str | None = None,
    rating_id: str | None = None,
    *,
    only_open: bool = False,
) -> list[Note]:
    """The credit notes that rating made, by customer and time; `only_open`: those that are not in Stripe yet."""
    query = select(credit_notes).where(credit_notes.c.namespace == namespace)
    if only_open:
        query = query.outerjoin(table, table.c.credit_note_id == credit_notes.c.credit_note_id)
        query = query.where(table.c.state.is_(None) | (table.c.state != ISSUED))
    if customer_id is not None:
        query = query.where(credit_notes.c.customer_id == customer_id)
    if rating_id is not None:
        query = query.where(credit_notes.c.rating_id == rating_id)
    order = (credit_notes.c.customer_id, credit_notes.c.recorded_at, credit_notes.c.credit_note_id)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(*order)).mappings().all()
    return [
        Note(
            note_id=row["credit_note_id"],
            namespace=namespace,
            customer_id=row["customer_id"],
            rating_id=row["rating_id"],
            currency=row["currency"],
            total_minor=-row["total_minor"],
            lines=tuple((line["explanation"]["corrects"]["line"], line["amount_minor"]) for line in row["lines"]),
        )
        for row in rows
    ]


def issue_of(engine: Engine, note_id: str) -> RowMapping | None:
    """What became of a note so far."""
    with engine.connect() as connection:
        return connection.execute(select(table).where(table.c.credit_note_id == note_id)).mappings().one_or_none()


def issued(engine: Engine, invoice_id: str) -> Sequence[RowMapping]:
    """The notes of an invoice that are in Stripe."""
    query = select(table).where(table.c.invoice_id == invoice_id, table.c.state == ISSUED)
    with engine.connect() as connection:
        return connection.execute(query.order_by(table.c.issued_at)).mappings().all()


def off_what_remained(engine: Engine, namespace: str) -> dict[str, int]:
    """Invoice -> what credit notes took off it before it was paid, in minor units."""
    query = select(table.c.invoice_id, func.sum(table.c.pre_payment_minor)).where(table.c.state == ISSUED)
    named = query.join(invoices, invoices.c.invoice_id == table.c.invoice_id).where(invoices.c.namespace == namespace)
    with engine.connect() as connection:
        return {str(name): int(amount) for name, amount in connection.execute(named.group_by(table.c.invoice_id))}


def invoice_of(engine: Engine, rating_id: str) -> RowMapping | None:
    """The invoice of the rating that a note corrects."""
    with engine.connect() as connection:
        return connection.execute(select(invoices).where(invoices.c.rating_id == rating_id)).mappings().one_or_none()


def places(engine: Engine, invoice_id: str) -> dict[str, str]:
    """Rated line -> the line in Stripe that it is on, in the order of the lines."""
    query = select(invoice_lines).where(invoice_lines.c.invoice_id == invoice_id)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(invoice_lines.c.position)).mappings().all()
    return {row["line_id"]: row["stripe_item_id"] for row in rows}


def record(engine: Engine, note: Note, invoice_id: str, *, who: str, now: datetime) -> bool:
    """A note waits; False when it was there."""
    with begin_write(engine) as connection:
        is_it = table.c.credit_note_id == note.note_id
        if connection.execute(select(table.c.state).where(is_it)).first() is not None:
            return False
        row = {"credit_note_id": note.note_id, "invoice_id": invoice_id, "state": WAITING}
        connection.execute(
            insert(table).values(**row, currency=note.currency, amount_minor=note.total_minor, created_at=now)
        )
        _add(connection, note.note_id, "", WAITING, who=who, why="usage of a closed period changed", now=now)
    return True


def decide(engine: Engine, note_id: str, wanted: str, *, who: str, why: str, now: datetime) -> None:
    """Take a note to another state. Raises NotNow."""
    with begin_write(engine) as connection:
        _move(connection, note_id, wanted, who=who, why=why, now=now)


def issue(
    engine: Engine, note: Note, shown: Shown, lines: Mapping[str, int], stripe_invoice_id: str, *, who: str,
    now: datetime,
) -> None:  # fmt: skip
    """A note is in Stripe as it is here: remember it, and post what went back to the customer, all at once."""
    currency = note.currency
    with begin_write(engine) as connection:
        _move(connection, note.note_id, ISSUED, who=who, why=f"issued as {shown.number}", now=now)
        values = {
            "stripe_invoice_id": stripe_invoice_id,
            "stripe_credit_note_id": shown.stripe_credit_note_id,
            "number": shown.number,
            "lines": dict(lines),
            "tax_minor": from_stripe(shown.tax.added, currency),
            "pre_payment_minor": from_stripe(shown.pre_payment, currency),
            "balance_minor": from_stripe(shown.balance, currency),
            "refunded_minor": from_stripe(shown.refunded, currency),
            "outside_minor": from_stripe(shown.outside, currency),
            "issued_at": now,
        }
        connection.execute(update(table).where(table.c.credit_note_id == note.note_id).values(**values))
        posting = postings.credited_tax(note.note_id, shown.number, *in_minor(shown.tax, currency), currency)
        if posting is not None:
            ledger.post(connection, note.namespace, note.customer_id, [posting], effective_at=now, recorded_at=now)
        back = from_stripe(shown.refunded + shown.outside, currency)
        if back:
            posting = postings.refund(note.note_id, shown.number, back, currency)
            ledger.post(connection, note.namespace, note.customer_id, [posting], effective_at=now, recorded_at=now)


def history(engine: Engine, note_id: str) -> Sequence[RowMapping]:
    """Who took the note from which state to which, when and why, in order."""
    query = select(transitions).where(transitions.c.credit_note_id == note_id).order_by(transitions.c.changed_at)
    with engine.connect() as connection:
        return connection.execute(query).mappings().all()


def approver(engine: Engine, note_id: str) -> str:
    """Who approved it last."""
    return str(next(row["who"] for row in reversed(history(engine, note_id)) if row["to_state"] == APPROVED))


def _move(connection: Connection, note_id: str, wanted: str, *, who: str, why: str, now: datetime) -> None:
    is_it = table.c.credit_note_id == note_id
    current = connection.execute(select(table.c.state).where(is_it).with_for_update()).scalar_one()
    if wanted not in _NEXT[current]:
        raise NotNow(f"the credit note is {current}, and cannot become {wanted}")
    _add(connection, note_id, current, wanted, who=who, why=why, now=now)
    connection.execute(update(table).where(is_it).values(state=wanted))


def _add(connection: Connection, note_id: str, before: str, after: str, **told: Any) -> None:
    is_it = transitions.c.credit_note_id == note_id
    query = select(func.count(), func.max(transitions.c.changed_at)).where(is_it)
    count, latest = connection.execute(query).one()
    now = told["now"] if latest is None else max(told["now"], latest + timedelta(microseconds=1))
    row = {"transition_id": digest([note_id, count, before, after]), "credit_note_id": note_id}
    values = {"from_state": before, "to_state": after, "who": told["who"][:128], "why": told["why"][:500]}
    connection.execute(insert(transitions).values(**row, **values, changed_at=now))
