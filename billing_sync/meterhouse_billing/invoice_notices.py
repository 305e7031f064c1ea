"""What people are told about invoices: before they are charged, when they are, around the day they are due, when paid.

Found from the invoices as they stand, again and again: the ids say what was told. What happened longer ago than RECENT
is not told any more, so that nobody gets the mail of years when notices are turned on.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, Engine, func, select

from meterhouse_billing import policies
from meterhouse_billing.notices import Notice
from meterhouse_billing.states import FAILED, FINALISED, PAID, PENDING
from meterhouse_rating.money import show
from meterhouse_store.tables import customers, invoice_lines, invoice_transitions, invoices

RECENT: Final = timedelta(days=7)
SOON: Final = timedelta(days=3)
REMINDERS: Final = tuple(timedelta(days=it) for it in (1, 7, 14))
"""So long after an invoice was due people are reminded of it."""
MAX_LINES: Final = 40


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
    open_or_recent = invoices.c.state.in_((*PENDING, FINALISED, FAILED)) | (invoices.c.paid_at >= now - RECENT)
    same = (customers.c.namespace == invoices.c.namespace) & (customers.c.customer_id == invoices.c.customer_id)
    query = select(invoices, func.coalesce(customers.c.time_zone, "UTC").label("time_zone")).outerjoin(customers, same)
    query = query.where(invoices.c.namespace == namespace, open_or_recent)

    @cache
    def due_days(customer_id: str) -> int:
        return policies.load(engine, namespace, customer_id).days_until_due

    found = []
    with engine.connect() as connection:
        for each in connection.execute(query.order_by(invoices.c.invoice_id)).mappings().all():
            row = dict(each)
            customer_id = row["customer_id"]
            for kind, cause in _kinds(connection, row, due_days(customer_id), now):
                facts = _facts(connection, row, settings, due_days(customer_id))
                subject = f"{customer_id}: {kind.replace('_', ' ')}, {facts['total']} {row['currency']}"
                found.append(Notice(namespace, customer_id, kind, (row["invoice_id"], *cause), subject, facts))
    return found


def _kinds(
    connection: Connection, row: Mapping[str, Any], due_days: int, now: datetime
) -> Iterator[tuple[str, tuple[str, ...]]]:
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
    if row["state"] == PAID and row["paid_at"] is not None and row["paid_at"] >= since and row["total_minor"] > 0:
        yield "receipt", ()
    if row["state"] == FAILED and _failed_at(connection, row["invoice_id"]) >= since:
        yield "payment_failed", ()
    if row["state"] in (FINALISED, FAILED) and row["total_minor"] > 0:
        due = row["finalised_at"] + timedelta(days=due_days)
        if due - SOON <= now < due:
            yield "payment_due", ()
        for wait in REMINDERS:
            if due + wait <= now < due + wait + RECENT:
                yield "overdue", (str(wait.days),)


def _failed_at(connection: Connection, invoice_id: str) -> datetime:
    table = invoice_transitions
    query = select(table.c.changed_at).where(table.c.invoice_id == invoice_id, table.c.to_state == FAILED)
    moment: datetime = connection.execute(query.order_by(table.c.changed_at.desc()).limit(1)).scalar_one()
    return moment


def _facts(connection: Connection, row: Mapping[str, Any], settings: NoticeSettings, due_days: int) -> dict[str, Any]:
    lines = _lines(connection, row["invoice_id"])
    finalised_at, currency = row["finalised_at"], row["currency"]
    return {
        "invoice_id": row["invoice_id"],
        "number": row["number"] or row["invoice_id"][:12],
        "total": show(row["total_minor"], currency),
        "currency": currency,
        "period_start": row["period_start"].isoformat(),
        "period_end": row["period_end"].isoformat(),
        "time_zone": row["time_zone"],
        "url": row["hosted_url"] or "",
        "look_until": look_until(row["created_at"], settings).isoformat() if settings.days_to_look else "",
        "due_at": "" if finalised_at is None else (finalised_at + timedelta(days=due_days)).isoformat(),
        "lines": [
            {"description": it["description"], "amount": show(it["amount_minor"], currency)} for it in lines[:MAX_LINES]
        ],
        "more_lines": max(0, len(lines) - MAX_LINES),
    }


def _lines(connection: Connection, invoice_id: str) -> Sequence[Mapping[Any, Any]]:
    query = select(invoice_lines).where(invoice_lines.c.invoice_id == invoice_id).order_by(invoice_lines.c.position)
    return connection.execute(query).mappings().all()
