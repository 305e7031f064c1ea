"""What people are told about invoices: before they are charged, when they are, around the day they are due, when paid.

Of invoices made here, and of those that Stripe makes of customers on its meters, which are known once they are final.
Found from the invoices as they stand, again and again: the ids say what was told. What happened longer ago than RECENT
is not told any more, so that nobody gets the mail of years when notices are turned on.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, func, null, select

from meterhouse_billing import policies
from meterhouse_billing.notices import Notice
from meterhouse_billing.states import FAILED, FINALISED, PAID, PENDING
from meterhouse_rating.money import show
from meterhouse_store.tables import (
    customers,
    invoice_lines,
    invoice_transitions,
    invoices,
    metered_invoices,
    payments,
)

RECENT: Final = timedelta(days=7)
SOON: Final = timedelta(days=3)
REMINDERS: Final = tuple(timedelta(days=it) for it in (1, 7, 14))
"""So long after an invoice was due people are reminded of it."""
MAX_LINES: Final = 40
_TO_PAY: Final = ("payment_failed", "payment_due", "overdue")


class NoticeSettings(BaseSettings):
    """Read from `METERHOUSE_DAYS_TO_LOOK`: so long customers have to look at what they will be charged.

    So long no invoice is approved by rule; a person may do it before.
    """

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_", frozen=True, extra="ignore", env_ignore_empty=True)

    days_to_look: int = Field(default=0, ge=0, le=60)


def look_until(created_at: datetime, settings: NoticeSettings) -> datetime:
    """Until when a customer may look at an invoice before it is charged."""
    return created_at + timedelta(days=settings.days_to_look)


def of_invoices(engine: Engine, namespace: str, settings: NoticeSettings, now: datetime) -> list[Notice]:
    """The notices that invoices ask for now; most of them are known already (`notices.keep`)."""

    @cache
    def due_days(customer_id: str) -> int:
        return policies.load(engine, namespace, customer_id).days_until_due

    found = []
    with engine.connect() as connection:
        for row in [*_made_here(connection, namespace, now), *_of_subscriptions(connection, namespace, now)]:
            customer_id = row["customer_id"]
            if row["finalised_at"] is not None and row["due_at"] is None:
                row["due_at"] = row["finalised_at"] + timedelta(days=due_days(customer_id))
            for kind, cause in _kinds(connection, row, now):
                facts = _facts(connection, row, _amount(kind, row), settings)
                if kind == "invoice":
                    facts["to_pay"] = show(_to_pay(row), row["currency"])
                subject = f"{customer_id}: {kind.replace('_', ' ')}, {facts['total']} {row['currency']}"
                found.append(Notice(namespace, customer_id, kind, (row["invoice_id"], *cause), subject, facts))
    return found


def _made_here(connection: Connection, namespace: str, now: datetime) -> list[dict[str, Any]]:
    """The invoices with what they come to in Stripe (`asked_minor`) and what arrived."""
    arrived = select(func.sum(payments.c.amount_minor)).where(payments.c.invoice_id == invoices.c.invoice_id)
    asked = func.coalesce(invoices.c.stripe_total_minor, invoices.c.total_minor)
    query = select(
        invoices,
        null().label("due_at"),
        asked.label("asked_minor"),
        func.coalesce(arrived.scalar_subquery(), 0).label("arrived_minor"),
    )
    wanted = invoices.c.state.in_((*PENDING, FINALISED, FAILED)) | (invoices.c.paid_at >= now - RECENT)
    return _rows(connection, query, invoices, namespace, wanted)


def _of_subscriptions(connection: Connection, namespace: str, now: datetime) -> list[dict[str, Any]]:
    table = metered_invoices
    query = select(
        table,
        table.c.stripe_invoice_id.label("invoice_id"),
        table.c.finalised_at.label("created_at"),
        table.c.total_minor.label("asked_minor"),  # with tax
        func.coalesce(table.c.paid_minor, 0).label("arrived_minor"),
    )
    wanted = table.c.state.in_((FINALISED, FAILED)) | (table.c.paid_at >= now - RECENT)
    return _rows(connection, query, table, namespace, wanted)


def _rows(
    connection: Connection, query: Select[Any], table: Table, namespace: str, wanted: ColumnElement[bool]
) -> list[dict[str, Any]]:
    same = (customers.c.namespace == table.c.namespace) & (customers.c.customer_id == table.c.customer_id)
    query = query.add_columns(func.coalesce(customers.c.time_zone, "UTC").label("time_zone"))
    query = query.outerjoin(customers, same).where(table.c.namespace == namespace, wanted)
    return [dict(row) for row in connection.execute(query.order_by(*table.primary_key.columns)).mappings()]


def _kinds(connection: Connection, row: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, tuple[str, ...]]]:
    since = now - RECENT
    if row["state"] in PENDING:
        if row["created_at"] >= since and row["total_minor"] > 0:
            # Made again over another amount, it is another thing to look at.
            yield "pre_charge", (str(row["total_minor"]),)
        return
    if row["finalised_at"] is None:
        return
    if row["finalised_at"] >= since and row["state"] in (FINALISED, FAILED, PAID):
        yield "invoice", ()
    if row["state"] == PAID and row["paid_at"] is not None and row["paid_at"] >= since and row["arrived_minor"] > 0:
        yield "receipt", ()
    if row["state"] == FAILED and _failed_at(connection, row) >= since:
        yield "payment_failed", ()
    if row["state"] in (FINALISED, FAILED) and row["total_minor"] > 0:
        due = row["due_at"]
        if due - SOON <= now < due:
            yield "payment_due", ()
        for wait in REMINDERS:
            if due + wait <= now < due + wait + RECENT:
                yield "overdue", (str(wait.days),)


def _failed_at(connection: Connection, row: Mapping[str, Any]) -> datetime:
    if "failed_at" in row:
        found: datetime = row["failed_at"]
        return found
    table = invoice_transitions
    query = select(table.c.changed_at).where(table.c.invoice_id == row["invoice_id"], table.c.to_state == FAILED)
    moment: datetime = connection.execute(query.order_by(table.c.changed_at.desc()).limit(1)).scalar_one()
    return moment


def _amount(kind: str, row: Mapping[str, Any]) -> int:
    """What a notice is over: what arrived, what Stripe still asks for, else what the invoice comes to."""
    if kind == "receipt":
        return int(row["arrived_minor"])
    return int(row["remaining_minor"] if kind in _TO_PAY else row["asked_minor"])


def _to_pay(row: Mapping[str, Any]) -> int:
    """What is left to pay of an invoice: a balance or a charge may have paid it when it was finalised."""
    if row["state"] == PAID:
        return 0
    left = row["remaining_minor"]
    return int(row["asked_minor"] if left is None else left)


def _facts(connection: Connection, row: Mapping[str, Any], amount: int, settings: NoticeSettings) -> dict[str, Any]:
    lines = row["lines"] if "lines" in row else _lines(connection, row["invoice_id"])
    due_at, currency = row["due_at"], row["currency"]
    return {
        "invoice_id": row["invoice_id"],
        "number": row["number"] or row["invoice_id"][:12],
        "total": show(amount, currency),
        "currency": currency,
        "period_start": row["period_start"].isoformat(),
        "period_end": row["period_end"].isoformat(),
        "time_zone": row["time_zone"],
        "url": row["hosted_url"] or "",
        "look_until": look_until(row["created_at"], settings).isoformat() if settings.days_to_look else "",
        "due_at": "" if due_at is None else due_at.isoformat(),
        "lines": [
            {"description": it["description"], "amount": show(it["amount_minor"], currency)} for it in lines[:MAX_LINES]
        ],
        "more_lines": max(0, len(lines) - MAX_LINES),
        "tax": show(tax, currency) if (tax := row["asked_minor"] - row["total_minor"]) else "",
    }


def _lines(connection: Connection, invoice_id: str) -> Sequence[Mapping[Any, Any]]:
    query = select(invoice_lines).where(invoice_lines.c.invoice_id == invoice_id).order_by(invoice_lines.c.position)
    return connection.execute(query).mappings().all()
