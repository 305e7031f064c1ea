"""Carries credit notes to Stripe: recorded -> approved -> issued on the finalised invoice, read back, compared.

Each step is committed, so that a run that is stopped anywhere is continued by the next one with the same note.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import RowMapping

from meterhouse_billing import credit_records as kept
from meterhouse_billing import crediting, disputes, history, records, reviews, states
from meterhouse_billing.amounts import NotPayable, from_stripe, to_stripe
from meterhouse_billing.crediting import NOTE_ID, Note
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_billing.policies import REFUND
from meterhouse_billing.run import NotAsRated, Step, outbox_of
from meterhouse_billing.world import World
from meterhouse_rating.money import show

CREATE: Final = "credit_note.create"


def credit(world: World, notes: list[Note], *, approve: bool) -> Iterator[Step]:
    """Issue the notes that are not in Stripe yet; without `approve` those wait that no rule approves.

    An exception with one note does not stop the others. Raises StripeUnavailable: everything done stays done.
    """
    for note in notes:
        try:
            yield from _one(world, note, approve=approve)
        except StripeUnavailable:
            raise
        except (BillingError, NotPayable, states.Contradiction, states.NotNow) as problem:
            yield Step(note.customer_id, f"credit note {_amount(note)}: {problem}", failed=True)


def approve_waiting(world: World, notes: list[Note], why: str) -> Iterator[Step]:
    """A person approves the notes that wait."""
    for note in notes:
        row = _recorded(world, note)
        if row is not None and (row["state"] == kept.WAITING or _waits_for_a_person(world, note, row)):
            kept.decide(world.engine, note.note_id, kept.APPROVED, who=world.who, why=why, now=world.now())
            yield Step(note.customer_id, f"credit note of {_amount(note)} approved")


def _waits_for_a_person(world: World, note: Note, row: RowMapping) -> bool:
    """Whether the rule approved a note that is above the limit now."""
    by_rule = row["state"] == kept.APPROVED and kept.approver(world.engine, note.note_id) == history.RULE
    return by_rule and reviews.policy_of(world, note.customer_id).needs_two(note.total_minor, note.currency)


def issue_approved(world: World, notes: list[Note]) -> Iterator[Step]:
    """Issue the notes that are approved. Raises BillingError, also where the two-person rule asks for somebody else."""
    for note in notes:
        row = kept.issue_of(world.engine, note.note_id)
        if row is not None and row["state"] == kept.APPROVED:
            if (refusal := _second_person(world, note)) is not None:
                raise BillingError(f"credit note of {_amount(note)}: {refusal}")
            yield _issue(world, note)


def _one(world: World, note: Note, *, approve: bool) -> Iterator[Step]:
    row = _recorded(world, note)
    if row is None:
        yield Step(note.customer_id, f"credit note of {_amount(note)} waits until its invoice is finalised")
        return
    if row["state"] == kept.ISSUED:
        return
    policy = reviews.policy_of(world, note.customer_id)
    if row["state"] == kept.WAITING:
        two = policy.needs_two(note.total_minor, note.currency)
        if not approve and (not policy.automatic or two):
            why = f", above {policy.limit(note.currency)} by one and issued by another" if two else ""
            text = f"credit note of {_amount(note)} waits to be approved{why}: `meterhouse bill approve`"
            yield Step(note.customer_id, text, failed=True)
            return
        who, why = (world.who, "bill run --approve") if approve else (history.RULE, "approved by rule")
        kept.decide(world.engine, note.note_id, kept.APPROVED, who=who, why=why, now=world.now())
        yield Step(note.customer_id, f"credit note of {_amount(note)} approved")
    if (refusal := _second_person(world, note)) is not None:
        yield Step(note.customer_id, f"credit note of {_amount(note)} is approved, and waits: {refusal}")
        return
    yield _issue(world, note)


def _recorded(world: World, note: Note) -> RowMapping | None:
    """The note's row; None while its invoice is not finalised. Raises BillingError where there is none to credit."""
    invoice = kept.invoice_of(world.engine, note.rating_id)
    if invoice is None or invoice["state"] in states.PENDING:
        return None
    row = kept.issue_of(world.engine, note.note_id)
    if row is None or row["state"] != kept.ISSUED:
        if invoice["state"] == states.VOID:
            raise BillingError("its invoice is void: issue that again (`meterhouse bill void --reissue`), or adjust")
        kept.record(world.engine, note, invoice["invoice_id"], who=world.who, now=world.now())
        row = kept.issue_of(world.engine, note.note_id)
    return row


def _issue(world: World, note: Note) -> Step:
    world = world.of(note.customer_id)
    outbox, invoice = outbox_of(world), kept.invoice_of(world.engine, note.rating_id)
    assert invoice is not None, "recorded with its invoice"
    stripe_id, currency = invoice["stripe_invoice_id"], note.currency

    def find() -> Mapping[str, Any] | None:
        there = world.gateway.credit_notes(stripe_id)
        mine = (one for one in there if one.metadata.get(NOTE_ID) == note.note_id and one.status == "issued")
        return next(({"id": one.stripe_credit_note_id} for one in mine), None)

    shown = world.gateway.invoice(stripe_id)
    lines = _allocated(world, note, invoice["invoice_id"], stripe_id)
    remaining = from_stripe(shown.amount_remaining, currency)
    policy = reviews.policy_of(world, note.customer_id).paid_credit
    total = note.total_minor
    taxed = shown.tax.added or shown.tax.contained  # goes back with what it was computed on, as Stripe rounds it
    # What may be in Stripe already is as it was sent: Stripe previews no second one where too little is left.
    if taxed and outbox.request_of(CREATE, note.note_id) is None and find() is None:
        previewed = world.gateway.credited_with_tax(crediting.params(note, stripe_id, lines, {}))
        total = from_stripe(previewed, currency)
        if shown.tax.contained and total != note.total_minor:
            raise BillingError(
                f"{stripe_id} has tax in its prices, and Stripe would credit {show(total, currency)} with it: credit "
                "it by hand, or let this customer's corrections be lines of the next invoice "
                "(`meterhouse contracts corrections`)"
            )
    paid = max(0, total - remaining)
    refundable = _refundable(world, stripe_id, currency) if paid and policy == REFUND else 0
    parts = crediting.split(paid, policy, refundable)

    request = {"params": crediting.params(note, stripe_id, lines, parts)}
    answer = outbox.call(CREATE, note.note_id, request, find, unique=True)
    made = world.gateway.credit_note(answer["id"])
    if found := crediting.differences(note, made, lines):
        raise NotAsRated(
            f"{made.stripe_credit_note_id} is not what was corrected, void it in Stripe: {'; '.join(found)}"
        )
    kept.issue(world.engine, note, made, lines, stripe_id, who=world.who, now=world.now())
    # A note may leave nothing to be paid: the invoice's state is Stripe's.
    after = world.gateway.invoice(stripe_id)
    records.take_over(world.engine, world.namespace, after, who=history.STRIPE, why=made.number, now=world.now())
    gone = {"refunded": made.refunded, "given back outside": made.outside, "on the customer's balance": made.balance}
    told = [f"{show(from_stripe(amount, currency), currency)} {name}" for name, amount in gone.items() if amount]
    return Step(note.customer_id, f"credit note {made.number}: {_amount(note)}" + "".join(f", {it}" for it in told))


def _refundable(world: World, stripe_id: str, currency: str) -> int:
    """What Stripe can still refund of an invoice's payment: nothing without a charge, or while a bank has it."""
    payment = world.gateway.payment_of(stripe_id)
    if payment is None or any(map(disputes.takes, world.gateway.disputes_of(payment["id"]))):
        return 0
    charge = payment["latest_charge"]
    return from_stripe(charge["amount"] - charge["amount_refunded"], currency)


def _allocated(world: World, note: Note, invoice_id: str, stripe_id: str) -> dict[str, int]:
    """What is credited of which line in Stripe: as it was sent, else as what is left of the lines allows.

    Before tax, where tax is in a line's price. Raises NotCreditable.
    """
    sent = outbox_of(world).request_of(CREATE, note.note_id)
    if sent is not None:
        credited = {line["invoice_line_item"]: line["amount"] for line in sent["params"]["lines"]}
        return {item: from_stripe(amount, note.currency) for item, amount in credited.items()}
    there = {line.line_item_id: line for line in world.gateway.lines(stripe_id)}

    def gross(item: str, net: int) -> int:
        line = there[item]
        return from_stripe(
            crediting.with_tax(to_stripe(net, note.currency), line.amount, line.contained), note.currency
        )

    so_far: dict[str, int] = {}
    for row in kept.issued(world.engine, invoice_id):
        for item, amount in row["lines"].items():
            so_far[item] = so_far.get(item, 0) + gross(item, amount)
    place = kept.places(world.engine, invoice_id)
    items = [(item, from_stripe(there[item].amount, note.currency)) for item in dict.fromkeys(place.values())]
    lines = {}
    for item, amount in crediting.allocate(note, items, place, so_far).items():
        line = there[item]
        wanted = to_stripe(amount, note.currency)  # before anything is written: what Stripe cannot take stops here
        if line.contained:
            wanted = crediting.before_tax(wanted, line.amount, line.contained)
        lines[item] = from_stripe(wanted, note.currency)
    return lines


def _second_person(world: World, note: Note) -> str | None:
    policy = reviews.policy_of(world, note.customer_id)
    if not policy.needs_two(note.total_minor, note.currency):
        return None
    approver = kept.approver(world.engine, note.note_id)
    return reviews.another_person(approver, world.who, policy.limit(note.currency), "issues it")


def _amount(note: Note) -> str:
    return f"{show(note.total_minor, note.currency)} {note.currency}"
