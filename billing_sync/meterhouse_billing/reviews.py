"""Reviews in SQL: the evidence about an invoice, what was found, and what a person or a rule decided about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, RowMapping, bindparam, func, insert, select

from meterhouse_billing import credit_records, history, policies, records, states
from meterhouse_billing.crediting import Note
from meterhouse_billing.documents import Draft
from meterhouse_billing.findings import HISTORY, Evidence, Finding, assess
from meterhouse_billing.policies import Policy
from meterhouse_billing.world import Desk, World
from meterhouse_store import persons
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import invoice_findings, invoices, rating_statements, unrated_usage

BY_CHOICE = "unbilled_"
"""How the reasons begin for which usage is free on purpose."""

# Built once: these run for each invoice.
_STATED: Final = select(rating_statements.c.statement).where(rating_statements.c.rating_id == bindparam("rating"))
_UNRATED: Final = (
    select(unrated_usage)
    .where(
        unrated_usage.c.namespace == bindparam("namespace"),
        unrated_usage.c.customer_id == bindparam("customer"),
        unrated_usage.c.period_start < bindparam("end"),
        unrated_usage.c.period_end > bindparam("begin"),
    )
    .order_by(unrated_usage.c.unrated_id)
)
_EARLIER: Final = (
    select(invoices.c.total_minor)
    .where(
        invoices.c.namespace == bindparam("namespace"),
        invoices.c.customer_id == bindparam("customer"),
        invoices.c.currency == bindparam("currency"),
        invoices.c.period_end <= bindparam("begin"),
        invoices.c.state != states.VOID,
    )
    .order_by(invoices.c.period_start.desc())
    .limit(HISTORY)
)
_LATEST: Final = (
    select(invoice_findings.c.findings)
    .where(invoice_findings.c.invoice_id == bindparam("invoice"))
    .order_by(invoice_findings.c.recorded_at.desc())
    .limit(1)
)


@dataclass(frozen=True)
class Review:
    """An invoice that waits: its row, what was found, and the transition that made it wait."""

    invoice: RowMapping
    findings: tuple[Finding, ...]
    since: RowMapping

    @property
    def on_hold(self) -> bool:
        """Whether a person put it there: then only a person takes it out."""
        return bool(self.invoice["state"] == states.IN_REVIEW and self.since["who"] != history.RULE)

    @property
    def for_a_person(self) -> bool:
        """Whether no run goes on with it by itself."""
        return bool(self.invoice["state"] == states.IN_REVIEW)


def look(world: World, draft: Draft, policy: Policy, in_stripe: Sequence[str] = ()) -> list[Finding]:
    """What there is to look at before the invoice goes out; kept where it differs from what was found last."""
    with world.engine.connect() as connection:
        evidence = _evidence(connection, draft, policy, in_stripe)
        before = _latest(connection, draft.invoice_id)
    found = assess(evidence)
    if found != before:
        table, now = invoice_findings, world.now()
        with begin_write(world.engine) as connection:
            last = select(func.max(table.c.recorded_at)).where(table.c.invoice_id == draft.invoice_id)
            latest_at = connection.execute(last).scalar_one()
            if latest_at is not None:  # in their order, whatever the clock does
                now = max(now, latest_at + timedelta(microseconds=1))
            row = {"invoice_id": draft.invoice_id, "recorded_at": now, "findings": [vars(one) for one in found]}
            connection.execute(insert(table).values(**row))
    return found


def latest(engine: Engine, invoice_id: str) -> list[Finding]:
    """What was found last."""
    with engine.connect() as connection:
        return _latest(connection, invoice_id)


def _latest(connection: Connection, invoice_id: str) -> list[Finding]:
    found: list[dict[str, str]] | None = connection.execute(_LATEST, {"invoice": invoice_id}).scalar_one_or_none()
    return [Finding(**one) for one in found or ()]


def waiting(engine: Engine, namespace: str) -> list[Review]:
    """The invoices that wait for a person or for `bill run`, by customer and period."""
    found = []
    for row in records.all_invoices(engine, namespace):
        if row["state"] in states.PENDING:
            since = history.of(engine, row["invoice_id"])[-1]
            found.append(Review(row, tuple(latest(engine, row["invoice_id"])), since))
    return found


def notes_waiting(engine: Engine, namespace: str) -> list[tuple[Note, str]]:
    """The credit notes that are not in Stripe yet, each with its state."""
    found = []
    for note in credit_records.notes(engine, namespace, only_open=True):
        row = credit_records.issue_of(engine, note.note_id)
        found.append((note, row["state"] if row else credit_records.WAITING))
    return found


def on_hold(world: World, invoice_id: str) -> RowMapping | None:
    """The transition with which a person put an invoice on hold, where that still holds."""
    last = history.of(world.engine, invoice_id)[-1]
    return last if last["to_state"] == states.IN_REVIEW and last["who"] != history.RULE else None


def decide(world: World | Desk, invoice_id: str, wanted: str, *, who: str, why: str) -> None:
    """Record a decision. Raises NotNow."""
    with begin_write(world.engine) as connection:
        history.decide(connection, invoice_id, wanted, who=who, why=why, now=world.now())


def second_person(world: World, row: RowMapping, policy: Policy) -> str | None:
    """Why `world.who` may not finalise the invoice, None where that is allowed: the two-person rule."""
    if not policy.needs_two(row["total_minor"], row["currency"]):
        return None
    approved = history.last(world.engine, row["invoice_id"], states.APPROVED)
    assert approved is not None, "only what is approved is finalised"
    return another_person(approved["who"], world.who, policy.limit(row["currency"]), "finalises")


def another_person(approver: str, who: str, limit: str, does: str) -> str | None:
    """Why `who` may not do what another than the approver `does` above a limit; None where that is allowed."""
    if approver == history.RULE:
        return f"above {limit} a person approves, not the rule: `meterhouse bill approve`"
    if not persons.may_be_one(approver, who):
        return None
    unclear = "" if persons.spelt(approver) == persons.spelt(who) else f" ({persons.UNCLEAR})"
    return (
        f"{approver} approved it, and above {limit} another person {does}: `meterhouse bill finalise` by somebody else"
        + unclear
    )


def waits_for_a_person(world: World, row: RowMapping, policy: Policy) -> bool:
    """Whether the rule approved an invoice that is above the limit now."""
    approved = history.last(world.engine, row["invoice_id"], states.APPROVED)
    by_rule = approved is not None and approved["who"] == history.RULE
    return by_rule and policy.needs_two(row["total_minor"], row["currency"])


def _evidence(connection: Connection, draft: Draft, policy: Policy, in_stripe: Sequence[str]) -> Evidence:
    about = {
        "rating": draft.rating_id,
        "namespace": draft.namespace,
        "customer": draft.customer_id,
        "currency": draft.currency,
        "begin": draft.period_start,
        "end": draft.period_end,
    }
    statement: dict[str, Any] | None = connection.execute(_STATED, about).scalar_one_or_none()
    rows = [dict(row) for row in connection.execute(_UNRATED, about).mappings()]
    totals = [int(amount) for amount in connection.execute(_EARLIER, about).scalars()]
    return Evidence(
        draft=draft,
        policy=policy,
        statement=statement,
        unrated=[row for row in rows if not row["reason"].startswith(BY_CHOICE)],
        posted_minor=records.receivable_in(connection, draft),
        earlier_minor=totals,
        in_stripe=in_stripe,
    )


def policy_of(world: World, customer_id: str) -> Policy:
    """The settings that hold for a customer."""
    return policies.load(world.engine, world.namespace, customer_id)
