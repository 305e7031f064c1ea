"""Tax in SQL: which invoices in Stripe tax is computed on, and what it came to."""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, RowMapping, bindparam, func, insert, select, update

from meterhouse_billing import postings, states, taxes
from meterhouse_billing.documents import Draft, StripeInvoice
from meterhouse_rating import ledger
from meterhouse_rating.ledger import Posting
from meterhouse_store.tables import invoice_taxes as table
from meterhouse_store.tables import invoices, ledger_entries

_ROW: Final = select(table).where(table.c.stripe_invoice_id == bindparam("stripe_invoice"))
"""Built once: it is asked for with each invoice."""


def begin(connection: Connection, draft: Draft, stripe_invoice_id: str, now: datetime) -> None:
    """A draft with automatic tax is in Stripe; repeatable."""
    if draft.automatic_tax and _row(connection, stripe_invoice_id) is None:
        _insert(connection, draft.namespace, draft.invoice_id, draft.currency, stripe_invoice_id, 1, now)


def went_out(connection: Connection, namespace: str) -> dict[str, bool]:
    """Of invoices that can be changed no more, whether tax was computed on them: the setting of now is not theirs."""
    query = (
        select(invoices.c.invoice_id, func.coalesce(table.c.automatic, 0).label("automatic"))
        .outerjoin(table, table.c.stripe_invoice_id == invoices.c.stripe_invoice_id)
        .where(invoices.c.namespace == namespace, invoices.c.state.not_in(states.PENDING))
    )
    return {row.invoice_id: bool(row.automatic) for row in connection.execute(query)}


def take_over(connection: Connection, invoice: RowMapping, shown: StripeInvoice, now: datetime) -> Posting | None:
    """Keep what Stripe shows of a finalised invoice; what that posts, None where there is no tax. Repeatable."""
    currency, stripe_id = invoice["currency"], shown.stripe_invoice_id
    added, contained = taxes.in_minor(shown.tax, currency)
    row = _row(connection, stripe_id)
    if row is None and not (added or contained):
        return None
    if row is None:
        _insert(connection, invoice["namespace"], invoice["invoice_id"], currency, stripe_id, 0, now)
    is_it = table.c.stripe_invoice_id == stripe_id
    connection.execute(update(table).where(is_it).values(added_minor=added, contained_minor=contained))
    return postings.tax(stripe_id, shown.number or stripe_id, added, contained, currency)


def of_invoices(engine: Engine, namespace: str) -> dict[str, tuple[int, int]]:
    """Stripe invoice -> tax on top of its lines and within them, in minor units, of those that were finalised."""
    query = select(table).where(table.c.namespace == namespace, table.c.added_minor.is_not(None))
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return {row["stripe_invoice_id"]: (row["added_minor"], row["contained_minor"]) for row in rows}


def differences(engine: Engine, draft: Draft, shown: StripeInvoice) -> list[str]:
    """In which the ledger's tax is not that of Stripe's invoice; a draft and a void invoice owe none."""
    if shown.status == "draft":
        return []
    due = 0 if shown.status == "void" else sum(taxes.in_minor(shown.tax, draft.currency))
    charge = postings.tax(shown.stripe_invoice_id, "", 1, 0, draft.currency)
    assert charge is not None
    names = [ledger.transaction_id(draft.namespace, kind, charge.source_id) for kind in ("tax", "void_tax")]
    query = select(func.coalesce(func.sum(ledger_entries.c.amount_minor), 0)).where(
        ledger_entries.c.transaction_id.in_(names), ledger_entries.c.account == ledger.TAX
    )
    with engine.connect() as connection:
        posted = -int(connection.execute(query).scalar_one())
    return [] if posted == due else [f"the ledger's tax is {posted}, Stripe's {due}"]


def _row(connection: Connection, stripe_invoice_id: str) -> RowMapping | None:
    return connection.execute(_ROW, {"stripe_invoice": stripe_invoice_id}).mappings().one_or_none()


def _insert(
    connection: Connection,
    namespace: str,
    invoice_id: str,
    currency: str,
    stripe_invoice_id: str,
    automatic: int,
    now: datetime,
) -> None:
    connection.execute(
        insert(table).values(
            stripe_invoice_id=stripe_invoice_id,
            namespace=namespace,
            invoice_id=invoice_id,
            currency=currency,
            automatic=automatic,
            recorded_at=now,
        )
    )
