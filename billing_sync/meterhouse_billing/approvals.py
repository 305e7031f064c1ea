"""What persons decide about one invoice: approve, hold, finalise, void, issue again.

Each raises BillingError or NotNow with a sentence where that may not be.
"""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import RowMapping

from meterhouse_billing import credit_records as kept
from meterhouse_billing import credit_run, history, issues, records, reviews, states
from meterhouse_billing.crediting import Note
from meterhouse_billing.documents import Draft
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.run import Step, finalise, outbox_of, prepare
from meterhouse_billing.world import Desk, World
from meterhouse_store.sql import begin_write

LOOKED_AT: Final = "looked at"
"""Why something is approved about which there is nothing to say."""


def approve(world: World, draft: Draft, why: str) -> Iterator[Step]:
    """Compare what is in Stripe now, and approve it in spite of what there is to look at, which is kept with it.

    Of a finalised invoice, its credit notes that wait. Without `why` only what nobody holds and about
    which nothing was found.
    """
    if notes := _notes(world, draft):
        yield from credit_run.approve_waiting(world, notes, why or LOOKED_AT)
        return
    _state(world, draft, states.PENDING, "approve")
    if not why and (held := reviews.on_hold(world, draft.invoice_id)) is not None:
        raise BillingError(f"it is on hold ({held['why']}): say --why it goes out, which is kept with the approval")
    policy = reviews.policy_of(world, draft.customer_id)
    yield from prepare(world, draft, policy)
    row = _state(world, draft, states.PENDING, "approve")
    by_rule = row["state"] == states.APPROVED and reviews.waits_for_a_person(world, row, policy)
    if row["state"] == states.APPROVED and not by_rule:
        yield Step(draft.customer_id, "is approved already")
        return
    found = reviews.look(world, draft, policy)
    told = "; ".join(one.sentence for one in found)
    if told and not why:
        raise BillingError(f"there is something to look at ({told}): say --why it goes out all the same")
    if by_rule:
        above = "above the limit, where a person approves"
        reviews.decide(world, draft.invoice_id, states.IN_REVIEW, who=history.RULE, why=above)
    why = (why or LOOKED_AT) + (f" (in spite of: {told})" if told else "")
    reviews.decide(world, draft.invoice_id, states.APPROVED, who=world.who, why=why)
    yield Step(draft.customer_id, "approved" + (f", in spite of: {told}" if told else ""))


def hold(world: World | Desk, draft: Draft, why: str) -> Iterator[Step]:
    """Have the invoice wait until a person approves it."""
    _state(world, draft, states.PENDING, "hold")
    reviews.decide(world, draft.invoice_id, states.IN_REVIEW, who=world.who, why=why)
    yield Step(draft.customer_id, f"on hold: {why}")


def finalise_approved(world: World, draft: Draft, why: str) -> Iterator[Step]:
    """Finalise what is approved, once more compared; above the limit another person than the one who approved.

    Of a finalised invoice, its approved credit notes are issued.
    """
    if notes := _notes(world, draft):
        yield from credit_run.issue_approved(world, notes)
        return
    row = _state(world, draft, (states.APPROVED,), "finalise")
    policy = reviews.policy_of(world, draft.customer_id)
    if (refusal := reviews.second_person(world, row, policy)) is not None:
        raise BillingError(refusal)
    yield from prepare(world, draft, policy)
    row = _row(world, draft)
    if row["state"] in (states.FINALISED, states.PAID):
        return
    if row["state"] != states.APPROVED:
        raise BillingError(f"its draft was made again and is {row['state']} now: look at it, and approve it")
    yield finalise(world, draft, policy, row["stripe_invoice_id"], why=why)


def void(world: World, draft: Draft, why: str, *, reissue: bool) -> Iterator[Step]:
    """Void the finalised invoice; with `reissue` it becomes a draft again, a new invoice in Stripe."""
    world = world.of(draft.customer_id)
    row = _state(world, draft, (states.FINALISED, states.FAILED, states.VOID), "void")
    if row["state"] != states.VOID:
        if kept.issued(world.engine, draft.invoice_id) or _notes(world, draft):
            raise BillingError("it has credit notes: Stripe credits the rest of it instead of voiding it")
        stripe_id = row["stripe_invoice_id"]
        issue = issues.current(world.engine, draft.invoice_id)["issue"]

        def find() -> dict[str, str] | None:
            shown = world.gateway.invoice(stripe_id)
            return {"id": stripe_id, "status": shown.status} if shown.status == "void" else None

        subject = issues.subject(draft.invoice_id, issue)
        outbox_of(world).call("invoice.void", subject, {"on": stripe_id, "params": {}}, find, unique=True)
        shown = world.gateway.invoice(stripe_id)
        outcome = records.take_over(world.engine, world.namespace, shown, who=world.who, why=why, now=world.now())
        yield Step(draft.customer_id, f"voided {shown.number or stripe_id}: {outcome}")
    elif not reissue:
        raise BillingError("it is void already; --reissue makes a new draft of it")
    if reissue:
        with begin_write(world.engine) as connection:
            records.start_again(connection, draft, issues.VOIDED, who=world.who, why=why, now=world.now())
        yield Step(draft.customer_id, "is a draft again: `meterhouse bill run` makes a new invoice of it in Stripe")


def _notes(world: World, draft: Draft) -> list[Note]:
    """The credit notes on a finalised invoice that are not in Stripe yet."""
    row = records.invoice(world.engine, draft.invoice_id)
    if row is None or row["state"] in (*states.PENDING, states.VOID):
        return []
    return kept.notes(world.engine, draft.namespace, draft.customer_id, draft.rating_id, only_open=True)


def _state(world: World | Desk, draft: Draft, allowed: tuple[str, ...], verb: str) -> RowMapping:
    row = records.invoice(world.engine, draft.invoice_id)
    if row is None:
        raise BillingError("there is no draft yet: `meterhouse bill run --period P` makes it")
    if row["state"] not in allowed:
        since = history.of(world.engine, draft.invoice_id)[-1]
        raise states.NotNow(
            f"there is nothing to {verb}: the invoice is {row['state']} since {since['changed_at']:%Y-%m-%d %H:%M} UTC "
            f"(by {since['who']}: {since['why']})"
        )
    return row


def _row(world: World, draft: Draft) -> RowMapping:
    row = records.invoice(world.engine, draft.invoice_id)
    assert row is not None, "it was there before"
    return row
