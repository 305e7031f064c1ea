"""Invoices in SQL: which ratings are to be invoiced, and the rows that drafts, transitions and payments leave."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, Select, bindparam, delete, func, insert, select, update

from meterhouse_billing import drivers, history, issues, policies, postings, states, tax_records, taxes
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import INVOICE_ID, LINE_ID, NAMESPACE, Draft, StripeInvoice, StripeLine, text
from meterhouse_billing.lines import Line
from meterhouse_rating import ledger, periods
from meterhouse_rating.ledger import Posting
from meterhouse_store import tables
from meterhouse_store.registry import customers
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import (
    invoice_issues,
    invoice_lines,
    invoices,
    ledger_entries,
    namespaces,
    payments,
    rated_lines,
    rating_statements,
    ratings,
)

_CHUNK = 500

# Built once: these run for each invoice, some between all steps.
_IS_IT: Final = invoices.c.invoice_id == bindparam("invoice")
_INVOICE: Final = select(invoices).where(_IS_IT)
_OF_STRIPE: Final = select(invoices).where(
    invoices.c.stripe_invoice_id == bindparam("stripe_invoice"), invoices.c.namespace == bindparam("namespace")
)
_ADD: Final = insert(invoices)
_ADD_LINES: Final = insert(invoice_lines)
_CHANGE: Final = update(invoices).where(_IS_IT)
_NAME_LINE: Final = update(invoice_lines).where(
    invoice_lines.c.invoice_id == bindparam("invoice"), invoice_lines.c.line_id == bindparam("line")
)
_RATED_LINES: Final = (
    select(rated_lines).where(rated_lines.c.rating_id == bindparam("rating")).order_by(rated_lines.c.position)
)
_VERDICT: Final = select(rating_statements.c.verdict).where(rating_statements.c.rating_id == bindparam("rating"))
_POSTED: Final = select(func.coalesce(func.sum(ledger_entries.c.amount_minor), 0)).where(
    ledger_entries.c.account == ledger.RECEIVABLE,
    ledger_entries.c.currency == bindparam("currency"),
    ledger_entries.c.transaction_id.in_(bindparam("transactions", expanding=True)),
)

# ---- what is to be invoiced


def drafts(
    engine: Engine,
    namespace: str,
    *,
    period: str | None = None,
    customer_id: str | None = None,
    every: bool = False,
    driver: str = drivers.INVOICES,
) -> list[Draft]:
    """The closed ratings with lines, by customer and period, of the months that the driver bills.

    `period` is read in each customer's time zone; None stands for all that is not finalised yet, with `every` for all.

    A rating without lines is no invoice: there is nothing to say to the customer. Raises PeriodError.
    """
    zones = {customer.customer_id: customer.time_zone for customer in customers(engine, namespace)}
    query = select(ratings).where(ratings.c.namespace == namespace, ratings.c.state == "closed")
    if customer_id is not None:
        query = query.where(ratings.c.customer_id == customer_id)
    if period is None and not every:
        unfinished = invoices.c.state.is_(None) | invoices.c.state.in_(states.PENDING)
        query = query.outerjoin(invoices, invoices.c.rating_id == ratings.c.rating_id).where(unfinished)
    elif period is not None:
        periods.parse(period, "UTC")  # a mistake in it is a mistake also where there are no ratings
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(ratings.c.customer_id, ratings.c.period_start)).mappings().all()
        chosen = [row for row in rows if period is None or _within(row, period, zones.get(row["customer_id"], "UTC"))]
        known = drivers.drivers(engine, namespace)
        mine = [row for row in chosen if drivers.driver_at(known, row["customer_id"], row["period_start"]) == driver]
        found = [_draft(connection, row) for row in mine]
        went_out = tax_records.went_out(connection, namespace)
    taxed = policies.taxed(engine, namespace)
    return [
        replace(
            draft,
            automatic_tax=went_out.get(draft.invoice_id, taxed(draft.customer_id)),
            time_zone=zones.get(draft.customer_id, "UTC"),
        )
        for draft in found
        if draft.lines
    ]


def _within(rating: RowMapping, period: str, time_zone: str) -> bool:
    wanted = periods.parse(period, time_zone)
    return bool(wanted.start <= rating["period_start"] and rating["period_end"] <= wanted.end)


def _draft(connection: Connection, rating: RowMapping) -> Draft:
    named = {"rating": rating["rating_id"]}
    lines = tuple(
        Line(
            line_id=row["line_id"],
            position=row["position"],
            kind=row["kind"],
            component=row["component"],
            metric=row["metric"] or "",
            description=row["description"],
            quantity=row["quantity"],
            unit=row["unit"],
            amount_minor=row["amount_minor"],
            amount_exact=row["amount_exact"],
            included=any("included" in step for step in row["explanation"].get("steps", ())),
            tax=taxes.of_line(row["explanation"]),
            off=taxes.taken_off(row["explanation"], row["currency"]),
        )
        for row in connection.execute(_RATED_LINES, named).mappings()
    )
    return Draft(
        rating_id=rating["rating_id"],
        namespace=rating["namespace"],
        customer_id=rating["customer_id"],
        period_start=rating["period_start"],
        period_end=rating["period_end"],
        currency=rating["currency"],
        total_minor=rating["total_minor"],
        result_sha256=rating["result_sha256"],
        lines=lines,
        completeness=connection.execute(_VERDICT, named).scalar_one_or_none() or "",
    )


# ---- invoices


def invoice(engine: Engine, invoice_id: str) -> RowMapping | None:
    """The row of one invoice."""
    with engine.connect() as connection:
        return connection.execute(_INVOICE, {"invoice": invoice_id}).mappings().one_or_none()


def by_stripe_id(engine: Engine, namespace: str, stripe_invoice_id: str) -> RowMapping | None:
    """The row of one of Stripe's invoices."""
    with engine.connect() as connection:
        named = {"namespace": namespace, "stripe_invoice": stripe_invoice_id}
        return connection.execute(_OF_STRIPE, named).mappings().one_or_none()


def all_invoices(engine: Engine, namespace: str) -> Sequence[RowMapping]:
    """The invoices of a namespace, by customer and period, with the customer's time zone."""
    known = tables.customers
    same = (known.c.namespace == invoices.c.namespace) & (known.c.customer_id == invoices.c.customer_id)
    query = select(invoices, func.coalesce(known.c.time_zone, "UTC").label("time_zone")).outerjoin(known, same)
    query = query.where(invoices.c.namespace == namespace)
    return _rows(engine, query.order_by(invoices.c.customer_id, invoices.c.period_start))


def latest(engine: Engine, namespace: str, limit: int) -> Sequence[RowMapping]:
    """The invoices of a namespace that went out last, the latest first."""
    query = select(invoices).where(invoices.c.namespace == namespace, invoices.c.finalised_at.is_not(None))
    return _rows(engine, query.order_by(invoices.c.finalised_at.desc(), invoices.c.invoice_id).limit(limit))


def statements(engine: Engine, namespace: str) -> dict[str, RowMapping]:
    """Rating id -> verdict and statement of its usage's completeness, for the invoices of a namespace."""
    query = select(rating_statements).join(invoices, invoices.c.rating_id == rating_statements.c.rating_id)
    return {row["rating_id"]: row for row in _rows(engine, query.where(invoices.c.namespace == namespace))}


def unsettled(engine: Engine, namespace: str) -> Sequence[RowMapping]:
    """The invoices that are in Stripe and may still change there."""
    return _rows(
        engine,
        select(invoices).where(
            invoices.c.namespace == namespace,
            invoices.c.state.in_(states.UNSETTLED),
            invoices.c.stripe_invoice_id.is_not(None),
        ),
    )


def record(engine: Engine, draft: Draft, *, who: str, now: datetime) -> bool:
    """Write the invoice, its lines and its first issue; False when it was there."""
    with begin_write(engine) as connection:
        if connection.execute(_INVOICE, {"invoice": draft.invoice_id}).first() is not None:
            return False
        row = {
            "invoice_id": draft.invoice_id,
            "namespace": draft.namespace,
            "customer_id": draft.customer_id,
            "rating_id": draft.rating_id,
            "period_start": draft.period_start,
            "period_end": draft.period_end,
            "state": states.DRAFT,
            "currency": draft.currency,
            "total_minor": draft.total_minor,
            "created_at": now,
        }
        connection.execute(_ADD, row)
        _write_lines(connection, draft)
        issues.begin(connection, draft, 1, now)
        history.begin(connection, draft.invoice_id, who=who, why="the period was closed", now=now)
    return True


def _write_lines(connection: Connection, draft: Draft) -> None:
    rows = [
        {
            "invoice_id": draft.invoice_id,
            "position": line.position,
            "line_id": line.line_id,
            "description": text(line),
            "quantity": line.quantity,
            "amount_minor": line.amount_minor,
        }
        for line in draft.lines
    ]
    connection.execute(_ADD_LINES, rows)


def start_again(connection: Connection, draft: Draft, how: str, *, who: str, why: str, now: datetime) -> None:
    """End the issue that counts and begin the next one, as a draft with the lines as they are rated now."""
    latest = select(func.max(invoice_issues.c.issue)).where(invoice_issues.c.invoice_id == draft.invoice_id)
    issue = connection.execute(latest).scalar_one()
    history.decide(connection, draft.invoice_id, states.DRAFT, who=who, why=why, now=now)
    if how == issues.VOIDED:
        row = connection.execute(select(invoices).where(invoices.c.invoice_id == draft.invoice_id)).mappings().one()
        posting = postings.reissue(draft.invoice_id, issue + 1, row["total_minor"], row["currency"])
        _post(connection, row, posting, now, now)
    issues.end(connection, draft.invoice_id, how, now)
    issues.begin(connection, draft, issue + 1, now)
    shown = ("stripe_total_minor", "remaining_minor", "number", "hosted_url", "finalised_at", "paid_at")
    blank = dict.fromkeys(("stripe_invoice_id", *shown))
    _update(connection, draft.invoice_id, total_minor=draft.total_minor, **blank)
    connection.execute(delete(invoice_lines).where(invoice_lines.c.invoice_id == draft.invoice_id))
    _write_lines(connection, draft)


def set_stripe_id(connection: Connection, draft: Draft, stripe_invoice_id: str, now: datetime) -> None:
    """Remember which of Stripe's invoices this is, and whether tax is computed on it; repeatable."""
    _update(connection, draft.invoice_id, stripe_invoice_id=stripe_invoice_id)
    issues.name(connection, draft.invoice_id, stripe_invoice_id)
    tax_records.begin(connection, draft, stripe_invoice_id, now)


def compared(engine: Engine, draft: Draft, shown: StripeInvoice, lines: Sequence[StripeLine]) -> None:
    """Remember Stripe's total and, for credit notes, the names of its lines."""
    names = {line.metadata[LINE_ID]: line.line_item_id for line in lines}
    named = [
        {"invoice": draft.invoice_id, "line": it, "stripe_item_id": names[item.item_id]}
        for item in draft.items
        for it in item.line_ids
    ]
    with begin_write(engine) as connection:
        _update(connection, draft.invoice_id, stripe_total_minor=from_stripe(shown.total, draft.currency))
        connection.execute(_NAME_LINE, named)


def take_over(engine: Engine, namespace: str, shown: StripeInvoice, *, who: str, why: str, now: datetime) -> str:
    """Bring the invoice to what Stripe shows, its payment included; says what changed. Repeatable, in any order.

    Raises Contradiction when Stripe shows what cannot follow from what is recorded.
    """
    with begin_write(engine) as connection:
        row = _ours(connection, namespace, shown)
        if row is None:
            return "not an invoice of ours"
        if issues.has_ended(connection, shown.stripe_invoice_id):
            return "an invoice that no longer counts"
        if row["stripe_invoice_id"] not in (None, shown.stripe_invoice_id):
            return f"a second Stripe invoice for {row['invoice_id']}: delete or void it in Stripe"
        wanted = states.of(shown)
        if wanted is None:
            return "still a draft"
        if states.is_old(row["state"], wanted):
            return "nothing new"
        _update(
            connection,
            row["invoice_id"],
            stripe_invoice_id=shown.stripe_invoice_id,
            stripe_total_minor=from_stripe(shown.total, row["currency"]),
            remaining_minor=from_stripe(shown.amount_remaining, row["currency"]),
            number=shown.number,
            hosted_url=shown.hosted_url,
            finalised_at=shown.finalised_at,
            paid_at=shown.paid_at,
        )
        if row["stripe_invoice_id"] is None:
            issues.name(connection, row["invoice_id"], shown.stripe_invoice_id)
        moved = history.follow(connection, row["invoice_id"], wanted, who=who, why=why, now=now)
        if wanted == states.PAID:
            _pay(connection, row, shown, now)
        tax = tax_records.take_over(connection, row, shown, now)
        if wanted != states.VOID:
            _post(connection, row, tax, shown.finalised_at or now, now)
        if moved and wanted == states.VOID:
            _void(connection, row, shown, now)
            if tax is not None and ledger.posted(connection, namespace, tax.kind, tax.source_id):
                _post(connection, row, postings.untax(namespace, tax), now, now)
        return f"{row['state']} -> {wanted}" if moved else "nothing new"


def alone(connection: Connection, namespace: str) -> None:
    """News of a namespace's money come one after the other: a webhook and a poll may tell of the same at once."""
    connection.execute(select(namespaces.c.namespace).where(namespaces.c.namespace == namespace).with_for_update())


def _ours(connection: Connection, namespace: str, shown: StripeInvoice) -> RowMapping | None:
    """The row of a Stripe invoice; by its metadata where the id was not stored yet."""
    known = {"namespace": namespace, "stripe_invoice": shown.stripe_invoice_id}
    row = connection.execute(_OF_STRIPE, known).mappings().one_or_none()
    if row is not None or shown.metadata.get(NAMESPACE) != namespace:
        return row
    named = select(invoices).where(invoices.c.invoice_id == shown.metadata.get(INVOICE_ID))
    return connection.execute(named.where(invoices.c.namespace == namespace)).mappings().one_or_none()


def _pay(connection: Connection, row: RowMapping, shown: StripeInvoice, now: datetime) -> None:
    """Record what was really paid, once: an invoice is also `paid` when Stripe moved its amount to the balance."""
    amount = from_stripe(shown.amount_paid, row["currency"])
    payment_id = postings.payment_id(row["namespace"], shown.stripe_invoice_id)
    known = select(payments.c.payment_id).where(payments.c.payment_id == payment_id)
    if not amount or connection.execute(known).first() is not None:
        return
    paid_at = shown.paid_at or now
    connection.execute(
        insert(payments).values(
            payment_id=payment_id,
            namespace=row["namespace"],
            invoice_id=row["invoice_id"],
            customer_id=row["customer_id"],
            amount_minor=amount,
            currency=row["currency"],
            paid_at=paid_at,
        )
    )
    posting = postings.payment(payment_id, shown.number or shown.stripe_invoice_id, amount, row["currency"])
    _post(connection, row, posting, paid_at, now)


def _void(connection: Connection, row: RowMapping, shown: StripeInvoice, now: datetime) -> None:
    posting = postings.void(
        shown.stripe_invoice_id, shown.number or shown.stripe_invoice_id, row["total_minor"], row["currency"]
    )
    _post(connection, row, posting, now, now)


def _post(
    connection: Connection, row: RowMapping, posting: Posting | None, effective_at: datetime, now: datetime
) -> None:
    """Post once, and nothing where nothing is moved."""
    namespace = row["namespace"]
    if (
        posting is not None
        and posting.entries[0].amount_minor
        and not ledger.posted(connection, namespace, posting.kind, posting.source_id)
    ):
        ledger.post(connection, namespace, row["customer_id"], [posting], effective_at=effective_at, recorded_at=now)


def receivable(engine: Engine, draft: Draft) -> int:
    """What the rated lines of a draft posted to `receivable`, in minor units."""
    with engine.connect() as connection:
        return receivable_in(connection, draft)


def receivable_in(connection: Connection, draft: Draft) -> int:
    """`receivable` within a transaction."""
    names = [ledger.transaction_id(draft.namespace, line.kind, line.line_id) for line in draft.lines]
    posted = 0
    for start in range(0, len(names), _CHUNK):
        chunk = {"currency": draft.currency, "transactions": names[start : start + _CHUNK]}
        posted += int(connection.execute(_POSTED, chunk).scalar_one())
    return posted


def paid(engine: Engine, invoice_id: str) -> int:
    """What was recorded as paid of an invoice, in minor units."""
    query = select(func.coalesce(func.sum(payments.c.amount_minor), 0)).where(payments.c.invoice_id == invoice_id)
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def _update(connection: Connection, invoice_id: str, **values: Any) -> None:
    connection.execute(_CHANGE, {"invoice": invoice_id, **values})


def _rows(engine: Engine, query: Select[Any]) -> Sequence[RowMapping]:
    with engine.connect() as connection:
        return connection.execute(query).mappings().all()
