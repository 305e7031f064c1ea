"""Failed payments pause customers, and payment lifts that: where the operator wants it, and after the days it says."""

from datetime import datetime, timedelta

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Engine, func, select, union_all

from meterhouse_billing.states import FAILED
from meterhouse_store import budgets
from meterhouse_store.budgets import PAYMENT_FAILED
from meterhouse_store.tables import invoice_transitions, invoices, metered_invoices

WHO = "meterhouse"


class PauseSettings(BaseSettings):
    """Read from `METERHOUSE_PAUSE_AFTER_FAILED_PAYMENT_DAYS`; empty: failed payments pause nobody."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_", frozen=True, extra="ignore", env_ignore_empty=True)

    pause_after_failed_payment_days: int | None = Field(default=None, ge=0, le=365)


def follow(engine: Engine, namespace: str, settings: PauseSettings, now: datetime) -> list[str]:
    """Pause whose payment failed so long ago, lift the pause of who owes no failed payment; what was done, in words."""
    failed = _failed(engine, namespace)
    paused = {
        it.customer_id for it in budgets.pauses(engine, namespace) if (it.reason, it.agent_id) == (PAYMENT_FAILED, "")
    }
    said = []
    if settings.pause_after_failed_payment_days is not None:
        since = now - timedelta(days=settings.pause_after_failed_payment_days)
        for name in sorted(name for name, failed_at in failed.items() if failed_at <= since and name not in paused):
            why = f"a payment failed on {failed[name]:%Y-%m-%d}"
            if budgets.pause(engine, namespace, name, PAYMENT_FAILED, who=WHO, why=why, now=now):
                said.append(f"{name} is paused: {why}")
    for name in sorted(paused - set(failed)):
        if budgets.lift(engine, namespace, name, PAYMENT_FAILED, who=WHO, why="it was paid, or let off", now=now):
            said.append(f"{name} goes on: no payment of it stands as failed")
    return said


def _failed(engine: Engine, namespace: str) -> dict[str, datetime]:
    """Who has invoices whose payment failed, those that Stripe makes included; since when the first stands so."""
    changed, metered = invoice_transitions, metered_invoices
    ours = (
        select(invoices.c.customer_id, func.max(changed.c.changed_at).label("failed_at"))
        .join(changed, (changed.c.invoice_id == invoices.c.invoice_id) & (changed.c.to_state == FAILED))
        .where(invoices.c.namespace == namespace, invoices.c.state == FAILED)
        .group_by(invoices.c.customer_id, invoices.c.invoice_id)
    )
    is_it = (metered.c.namespace == namespace) & (metered.c.state == FAILED)
    query = union_all(ours, select(metered.c.customer_id, metered.c.failed_at).where(is_it))
    found: dict[str, datetime] = {}
    with engine.connect() as connection:
        for row in connection.execute(query):
            found[row.customer_id] = min(row.failed_at, found.get(row.customer_id, row.failed_at))
    return found
