"""`bill reconcile`: rated = in the ledger = invoiced = in Stripe, both ways, to the minor unit and the unit.

Per invoice: lines, units and totals, its state, its credit notes and what was paid of it. What customers owe, and what
Stripe has that is not known here, is in `accounts`. Reads only; each difference has a cause and a next step.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import RowMapping

from meterhouse_billing import credit_records, fee_records, fee_refunds, records, states, tax_records
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.credit_documents import Shown
from meterhouse_billing.crediting import NOTE_ID
from meterhouse_billing.crediting import differences as note_differences
from meterhouse_billing.documents import KIND, METRIC, QUANTITY, Draft, StripeInvoice, StripeLine, differences
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.world import World
from meterhouse_rating.layout import money
from meterhouse_store.numbers import D, plain

RUN: Final = "`meterhouse bill run --due`"
POLL: Final = "`meterhouse bill poll`"


@dataclass(frozen=True)
class Difference:
    """Something that is not equal: what, why it may be, and what to do. `waits`: a run or a poll settles it."""

    code: str
    cause: str
    next_step: str
    waits: bool = False

    def __str__(self) -> str:
        return f"{self.cause}; {self.next_step}"


@dataclass(frozen=True)
class Row:
    """One rating. Amounts in minor units, None where there is nothing to compare; units per billable metric."""

    customer_id: str
    invoice_id: str
    stripe_invoice_id: str | None
    state: str
    currency: str
    rated_minor: int
    ledger_minor: int
    stripe_minor: int | None
    credited_minor: int
    paid_minor: int
    stripe_paid_minor: int | None
    remaining_minor: int
    rated_units: dict[str, Decimal]
    stripe_units: dict[str, Decimal]
    differences: tuple[Difference, ...]
    ahead_minor: int = 0
    """What Stripe billed ahead of a month that is under way, and that is in no ledger before the month is closed."""


def reconcile(world: World, drafts: Iterable[Draft]) -> list[Row]:
    """Compare every closed rating with its invoice, with Stripe's, and with what it posted to the ledger."""
    return [_row(world.of(draft.customer_id), draft) for draft in drafts]


def _row(world: World, draft: Draft) -> Row:
    found = []
    posted = records.receivable(world.engine, draft)
    if posted != draft.total_minor:
        shown_posted, rated = money(posted, draft.currency), money(draft.total_minor, draft.currency)
        cause = f"the ledger's receivable is {shown_posted}, rated {rated}"
        found.append(Difference("ledger_differs", cause, "`meterhouse ledger verify` names the posting"))
    row = records.invoice(world.engine, draft.invoice_id)
    stripe_id = row["stripe_invoice_id"] if row else None
    shown: StripeInvoice | None = None
    lines: Sequence[StripeLine] = ()
    if row is None or stripe_id is None:
        found.append(Difference("not_invoiced", "not invoiced yet", RUN, waits=True))
    else:
        try:
            shown, lines = world.gateway.invoice(stripe_id), world.gateway.lines(stripe_id)
        except StripeRefused as refused:
            if not refused.missing:
                raise
            found.append(_gone(row))
        else:
            found += _of_invoice(world, draft, row, shown, lines)
    return Row(
        customer_id=draft.customer_id,
        invoice_id=draft.invoice_id,
        stripe_invoice_id=stripe_id,
        state=row["state"] if row else states.OPEN,
        currency=draft.currency,
        rated_minor=draft.total_minor,
        ledger_minor=posted,
        stripe_minor=from_stripe(shown.total - shown.tax.added, draft.currency) if shown else None,
        credited_minor=from_stripe(shown.credited, draft.currency) if shown else 0,
        paid_minor=records.paid(world.engine, draft.invoice_id),
        stripe_paid_minor=from_stripe(shown.amount_paid, draft.currency) if shown else None,
        remaining_minor=_remaining(shown, draft.currency),
        rated_units=_sums((item.metric, item.quantity) for item in draft.items if item.kind == "usage"),
        stripe_units=_sums(
            (line.metadata.get(METRIC, ""), D(line.metadata.get(QUANTITY, "0")))
            for line in lines
            if line.metadata.get(KIND) == "usage"
        ),
        differences=tuple(found),
    )


def _gone(row: RowMapping) -> Difference:
    cause = f"{row['stripe_invoice_id']} is not in Stripe (any more)"
    if row["state"] in states.PENDING:
        return Difference("draft_deleted", f"{cause}: the draft was deleted there", RUN, waits=True)
    step = "a finalised invoice cannot be deleted: is this the key of the account that it was made in?"
    return Difference("invoice_gone", cause, step)


def _of_invoice(
    world: World, draft: Draft, row: RowMapping, shown: StripeInvoice, lines: Sequence[StripeLine]
) -> Iterator[Difference]:
    for sentence in differences(draft, shown, lines):
        if row["state"] in states.PENDING and shown.status == "draft":
            step = f"{RUN} makes the draft again where the rating changed; else delete or mend it in Stripe"
        else:
            step = "void it with `meterhouse bill void --reissue`, or adjust by hand (`meterhouse ledger adjust`)"
        yield Difference("invoice_differs", sentence, step)
    if row["state"] not in states.PENDING:
        for sentence in tax_records.differences(world.engine, draft, shown):
            yield Difference("tax_differs", sentence, POLL, waits=True)
    wanted = states.of(shown)
    if (wanted or states.DRAFT) != row["state"] and not (wanted is None and row["state"] in states.PENDING):
        cause = f"it is {row['state']} here and {shown.status} in Stripe: the news did not come"
        yield Difference("state_behind", cause, POLL, waits=True)
    paid, there = records.paid(world.engine, draft.invoice_id), from_stripe(shown.amount_paid, draft.currency)
    if paid != there:
        cause = f"{money(there, draft.currency)} are paid in Stripe, {money(paid, draft.currency)} are recorded here"
        known = there > paid and not paid
        yield Difference("payment_differs", cause, POLL if known else "`meterhouse ledger entries` shows ours", known)
    yield from _of_fee(world, row)
    yield from _of_notes(world, row, shown)


def _of_fee(world: World, row: RowMapping) -> Iterator[Difference]:
    fee = fee_records.of_invoice(world.engine, row["stripe_invoice_id"])
    if fee is None or row["state"] != states.PAID:
        return
    if fee["taken_minor"] is None:
        yield Difference("fee_behind", "what the platform kept of the payment is not posted yet", POLL, waits=True)
    # No fee is above what was charged: the customer's balance in Stripe may have paid some of the invoice, or all.
    elif fee["taken_minor"] != (due := min(fee["asked_minor"], records.paid(world.engine, row["invoice_id"]))):
        shown = [money(amount, fee["currency"]) for amount in (due, fee["taken_minor"])]
        cause = f"the application fee was to be {shown[0]} {fee['currency']}, {shown[1]} were kept"
        step = "paid outside of Stripe there is none: collect it from the connected account"
        yield Difference("fee_differs", cause, step)
    kept = fee_refunds.of_invoice(world.engine, world.namespace, row["stripe_invoice_id"])
    if kept is not None and fee_refunds.behind(world.engine, world.namespace, kept):
        cause = "what credit notes or lost disputes ask the platform to give back of its fee is not given back yet"
        yield Difference("fee_refund_behind", cause, POLL, waits=True)


def _of_notes(world: World, row: RowMapping, shown: StripeInvoice) -> Iterator[Difference]:
    ours = {one["stripe_credit_note_id"]: one for one in credit_records.issued(world.engine, row["invoice_id"])}
    there: list[Shown] = []
    if shown.credited or ours:
        there = [one for one in world.gateway.credit_notes(shown.stripe_invoice_id) if one.status != "void"]
    notes = {
        note.note_id: note
        for note in credit_records.notes(world.engine, world.namespace, row["customer_id"], row["rating_id"])
    }
    for one in there:
        mine = ours.pop(one.stripe_credit_note_id, None)
        named = one.metadata.get(NOTE_ID)
        if mine is None:
            amount = f"{money(from_stripe(one.total, one.currency), one.currency)} {one.currency}"
            if named in notes:
                yield Difference("credit_note_behind", f"{one.number} over {amount} is not recorded here", RUN, True)
            else:
                step = "post it with `meterhouse ledger adjust`, or void it in Stripe"
                yield Difference("credit_note_unknown", f"{one.number} over {amount} was made by hand in Stripe", step)
            continue
        for sentence in note_differences(notes[mine["credit_note_id"]], one, mine["lines"]):
            yield Difference("credit_note_differs", sentence, "void it in Stripe, and adjust by hand")
    for mine in ours.values():
        cause = f"{mine['number']} is issued here, and void or missing in Stripe"
        yield Difference("credit_note_gone", cause, "make it again in Stripe by hand, or adjust (`ledger adjust`)")
    for note in notes.values():
        issue = credit_records.issue_of(world.engine, note.note_id)
        behind = any(one.metadata.get(NOTE_ID) == note.note_id for one in there)
        if (issue is None or issue["state"] != credit_records.ISSUED) and not behind:
            cause = f"a credit note of {money(note.total_minor, note.currency)} {note.currency} is not in Stripe yet"
            yield Difference("credit_note_waits", cause, f"`meterhouse bill review`, then {RUN}", waits=True)


def _remaining(shown: StripeInvoice | None, currency: str) -> int:
    owed = shown is not None and shown.status in ("open", "uncollectible")
    return from_stripe(shown.amount_remaining, currency) if shown is not None and owed else 0


def _sums(pairs: Iterable[tuple[str, Decimal]]) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for name, quantity in pairs:
        sums[name] += quantity
    return dict(sums)


def as_json(row: Row) -> dict[str, Any]:
    """For machines: quantities as text."""
    return {
        **vars(row),
        "rated_units": {name: plain(quantity) for name, quantity in row.rated_units.items()},
        "stripe_units": {name: plain(quantity) for name, quantity in row.stripe_units.items()},
        "differences": [vars(one) for one in row.differences],
    }
