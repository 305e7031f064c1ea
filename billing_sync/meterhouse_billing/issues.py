"""The issues of an invoice in SQL: the invoices in Stripe that stood for it; the one that has not ended counts.

A draft that was deleted in Stripe, or whose period was rated anew, ends its issue and begins the next; so does an
invoice that was voided and is issued again. Names of calls to Stripe follow from invoice and issue.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, RowMapping, bindparam, insert, select, update

from meterhouse_billing.documents import Draft
from meterhouse_rating.ids import digest
from meterhouse_store.tables import invoice_issues as table
from meterhouse_store.tables import invoices

# Built once: these run for each invoice.
_CURRENT: Final = (
    select(table).where(table.c.invoice_id == bindparam("invoice")).order_by(table.c.issue.desc()).limit(1)
)
_ADD: Final = insert(table)
_COUNTING: Final = update(table).where(table.c.invoice_id == bindparam("invoice"), table.c.ended.is_(None))
_ENDED: Final = select(table.c.issue).where(
    table.c.stripe_invoice_id == bindparam("stripe_invoice"), table.c.ended.is_not(None)
)

DELETED: Final = "deleted"
REPLACED: Final = "replaced"
VOIDED: Final = "void"


def subject(invoice_id: str, issue: int) -> str:
    """What calls about an issue are named by."""
    return invoice_id if issue == 1 else digest([invoice_id, "issue", issue])


def begin(connection: Connection, draft: Draft, issue: int, now: datetime) -> None:
    """The next issue of an invoice, with the lines that it has now."""
    row = {"invoice_id": draft.invoice_id, "issue": issue, "content_sha256": draft.content_sha256, "begun_at": now}
    connection.execute(_ADD, row)


def current(engine: Engine, invoice_id: str) -> RowMapping:
    """The issue that counts."""
    with engine.connect() as connection:
        return connection.execute(_CURRENT, {"invoice": invoice_id}).mappings().one()


def name(connection: Connection, invoice_id: str, stripe_invoice_id: str) -> None:
    """Remember which of Stripe's invoices the issue that counts is."""
    connection.execute(_COUNTING, {"invoice": invoice_id, "stripe_invoice_id": stripe_invoice_id})


def end(connection: Connection, invoice_id: str, how: str, now: datetime) -> None:
    """The issue that counts has come to its end."""
    connection.execute(_COUNTING, {"invoice": invoice_id, "ended": how, "ended_at": now})


def stripe_ids(engine: Engine, namespace: str) -> set[str]:
    """Every Stripe invoice that stands or stood for one of the namespace's."""
    query = select(table.c.stripe_invoice_id).join(invoices, invoices.c.invoice_id == table.c.invoice_id)
    with engine.connect() as connection:
        found = connection.execute(query.where(invoices.c.namespace == namespace)).scalars().all()
    return {name for name in found if name is not None}


def has_ended(connection: Connection, stripe_invoice_id: str) -> bool:
    """Whether a Stripe invoice stood for one of ours and does so no more."""
    return connection.execute(_ENDED, {"stripe_invoice": stripe_invoice_id}).first() is not None
