"""What becomes of top-ups: a customer has the credits when, and only when, Stripe has the money.

Whichever webhook or poll says that there is something to see, the payment is looked at as Stripe shows it now, so any
order and any repetition end the same:

- a payment that succeeded is one grant of bought credits, whose id follows from the purchase;
- a refund, or a dispute that took the money, takes the credits back, as far as they are there. What was used of them
  goes to `adjustments`, for the usage that they paid is on closed invoices. A dispute that is won, or a refund that
  fails, gives them back.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe
from sqlalchemy import Connection, RowMapping, select

from meterhouse_billing import charge_rules, disputes, fee_records, fee_refunds, notices, purchases
from meterhouse_billing.amounts import NotPayable, from_stripe
from meterhouse_billing.documents import NAMESPACE
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.notices import Notice
from meterhouse_billing.purchases import EXPIRED, FAILED, OPEN, PAGE, PAID, RULE
from meterhouse_billing.top_ups import PURCHASE_ID
from meterhouse_billing.world import World
from meterhouse_rating import credit_changes, ledger
from meterhouse_rating.credit_book import GRANTED
from meterhouse_rating.credit_changes import BOUGHT, CreditsRefused
from meterhouse_rating.credits import Grant
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import Entry, Posting
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import ledger_entries

LOOKED_BACK: Final = timedelta(days=35)
"""How old payments a poll looks at again; disputes that go on are looked at until they are decided."""

REFUNDED, DISPUTED, REINSTATED = "credit_refunded", "credit_disputed", "credit_reinstated"
"""Kinds of transactions: money that went back, that a bank took, that came again."""

EVENTS: Final = ("checkout.session.", "payment_intent.", "charge.", "refund.")
"""Types of events that may be about a top-up."""

_WHO: Final = "stripe"
_NOT_PAID: Final = ("requires_payment_method", "requires_action", "requires_confirmation", "canceled")


def look(world: World, payload: Mapping[str, Any]) -> str | None:
    """Settle the purchase that an event's object is about; says what that led to, None for none of ours.

    Raises StripeUnavailable and StripeRefused.
    """
    names = [it for it in (payload.get("id"), payload.get("payment_intent")) if isinstance(it, str)]
    for name in names:
        row = purchases.by_stripe_id(world.engine, world.namespace, name)
        if row is not None:
            return settle(world, row)
    intent = next((name for name in names if name.startswith("pi_")), None)
    return None if intent is None else _of_unknown(world, intent)


def _of_unknown(world: World, intent: str) -> str | None:
    """A payment whose page did not tell of it yet, or that was made before a crash."""
    try:
        payment = world.gateway.call(lambda client: client.v1.payment_intents.retrieve(intent)).to_dict()
    except StripeRefused as refused:
        if refused.missing:
            return None
        raise
    metadata = payment.get("metadata") or {}
    if metadata.get(NAMESPACE) != world.namespace or PURCHASE_ID not in metadata:
        return None
    row = purchases.find(world.engine, world.namespace, metadata[PURCHASE_ID])
    if row is None:
        return f"a top-up that is not known here ({metadata[PURCHASE_ID][:12]}): made after the backup?"
    purchases.change(world.engine, row["purchase_id"], payment_intent=intent)
    return settle(world, purchases.one(world.engine, row["purchase_id"]))


def poll(world: World) -> Iterator[str]:
    """Look at every purchase that may still change; says what did."""
    for row in purchases.unsettled(world.engine, world.namespace, world.now() - LOOKED_BACK):
        outcome = settle(world.of(row["customer_id"]), row)
        if outcome != "nothing new":
            yield f"{row['customer_id']}: {outcome}"


def settle(world: World, row: RowMapping) -> str:
    """Bring a purchase to what Stripe shows; says what changed. Raises StripeUnavailable, and StripeRefused."""
    try:
        return _settle(world, row)
    except StripeRefused as refused:
        if refused.missing:
            return f"a top-up of {amount_of(row)} is not in Stripe (any more): is this the key of its account?"
        raise


def _settle(world: World, row: RowMapping) -> str:
    intent = row["payment_intent"]
    if intent is None and row["how"] == PAGE:
        session = world.gateway.call(lambda client: client.v1.checkout.sessions.retrieve(row["stripe_id"])).to_dict()
        intent = session["payment_intent"]
        if intent is None:
            if session["status"] != "expired" or row["state"] == EXPIRED:
                return "nothing new"
            purchases.change(world.engine, row["purchase_id"], state=EXPIRED, settled_at=world.now())
            return f"{amount_of(row)} of credits were not paid in time"
        purchases.change(world.engine, row["purchase_id"], payment_intent=intent)
    if intent is None:
        return "nothing new"  # a charge that nobody sent yet
    payment = world.gateway.payment(intent)
    if payment["status"] == "succeeded":
        steps = [*_paid(world, row, payment), *_taken_back(world, row["purchase_id"], payment)]
        return "; ".join(steps) or "nothing new"
    if row["how"] == RULE and row["state"] == OPEN and payment["status"] in _NOT_PAID:
        problem = payment.get("last_payment_error") or {}
        return fail(world, row, problem.get("message") or f"Stripe shows the payment as {payment['status']}")
    return "nothing new"


def fail(world: World, row: Mapping[Any, Any], why: str) -> str:
    """A charge that did not succeed: the customer's rule ends with it, and it is told."""
    now = world.now()
    with begin_write(world.engine) as connection:
        charge_rules.end(connection, world.namespace, row["customer_id"], why=why, now=now)
        notices.keep(connection, [_notice(row, "top_up_failed", why)], now)
        settled = {"state": FAILED, "problem": why[:500], "settled_at": now}
        purchases.change_in(connection, row["purchase_id"], **settled)
    return f"{amount_of(row)} of credits could not be charged, and the rule is off: {why}"


def amount_of(row: Mapping[Any, Any]) -> str:
    """For people."""
    return f"{show(row['amount_minor'], row['currency'])} {row['currency']}"


def _paid(world: World, row: RowMapping, payment: Mapping[str, Any]) -> Iterator[str]:
    """Grant what was paid, once."""
    if row["state"] == PAID:
        return
    currency, now = payment["currency"].upper(), world.now()
    # Stripe's clock may be ahead of ours, and what is paid counts now: else a rule would charge for it again.
    paid_at = min(datetime.fromtimestamp(payment["latest_charge"]["created"], UTC), now)
    try:
        paid = from_stripe(payment["amount_received"], currency)
        if (paid, currency) != (row["amount_minor"], row["currency"]):
            raise CreditsRefused(f"{show(paid, currency)} {currency} were paid, {amount_of(row)} asked for")
        made = credit_changes.grant(
            world.engine, world.namespace, row["customer_id"], Grant("", BOUGHT, paid, paid_at), currency,
            reference=row["purchase_id"], who=_WHO, why=f"top-up, {payment['id']}", now=now,
        )  # fmt: skip
    except (CreditsRefused, NotPayable) as refused:
        problem = f"{payment['id']}: {refused}"[:500]
        if row["problem"] != problem:
            purchases.change(world.engine, row["purchase_id"], problem=problem)
            yield f"CONTRADICTION: {problem}"
        return
    fee = from_stripe(payment.get("application_fee_amount") or 0, currency)
    fee_records.post(world, row["customer_id"], currency, payment["id"], fee)
    with begin_write(world.engine) as connection:
        notices.keep(connection, [_notice(row, "top_up", "")], now)
    settled = {"state": PAID, "grant_id": made.grant_id, "settled_at": now, "problem": None}
    purchases.change(world.engine, row["purchase_id"], **settled)
    yield f"{amount_of(row)} of credits bought"


def _taken_back(world: World, purchase_id: str, payment: Mapping[str, Any]) -> Iterator[str]:
    """Follow refunds and disputes of a payment that was granted for."""
    row = purchases.one(world.engine, purchase_id)
    if row["grant_id"] is None:
        return
    for refund in world.gateway.call(lambda client: _refunds(client, row["payment_intent"])):
        holds = refund["status"] == "succeeded"
        yield from _move(world, row, REFUNDED, refund["id"], refund["amount"], "refunded", holds=holds)
    for dispute in world.gateway.disputes_of(row["payment_intent"]):
        with begin_write(world.engine) as connection:
            disputes.keep(connection, world.namespace, row["customer_id"], dispute, world.now())
        holds, what = disputes.takes(dispute), f"disputed ({dispute['reason']})"
        yield from _move(world, row, DISPUTED, dispute["id"], dispute["amount"], what, holds=holds)
    yield from fee_refunds.settle(world, row["customer_id"], row["currency"], payment, 0, row["amount_minor"])


def _refunds(client: stripe.StripeClient, intent: str) -> list[dict[str, Any]]:
    page = client.v1.refunds.list({"payment_intent": intent, "limit": 100})
    return [it.to_dict() for it in page.auto_paging_iter()]


def _move(
    world: World, row: RowMapping, kind: str, stripe_id: str, amount: int, what: str, *, holds: bool
) -> Iterator[str]:
    """Take credits back for money that is gone (`holds`), or give them back where it came again; each once."""
    source, currency, now = digest([kind, stripe_id]), row["currency"], world.now()
    with begin_write(world.engine) as connection:
        credit_changes.customer_currency(connection, world.namespace, row["customer_id"])  # the lock
        taken = ledger.posted(connection, world.namespace, kind, source)
        returned = ledger.posted(connection, world.namespace, REINSTATED, source)
        if holds and not taken:
            posting, rest = _taking(connection, world.namespace, row, kind, source, from_stripe(amount, currency))
            said = f"{show(from_stripe(amount, currency), currency)} {currency} of a top-up were {what}"
            said += f", {show(rest, currency)} of which were used already" if rest else ""
        elif not holds and taken and not returned:
            posting = _returning(connection, world.namespace, kind, source, stripe_id)
            said = f"{show(from_stripe(amount, currency), currency)} {currency} of a top-up came again"
        else:
            return
        where = (connection, world.namespace, row["customer_id"])
        ledger.post(*where, [posting], effective_at=now, recorded_at=now)
    yield said


def _taking(
    connection: Connection, namespace: str, row: RowMapping, kind: str, source: str, amount: int
) -> tuple[Posting, int]:
    """The posting, and how much of it was used already: what open ratings use of the grant counts as used."""
    customer_id, currency, grant_id = row["customer_id"], row["currency"], row["grant_id"]
    grants = credit_changes.grants_now(connection, namespace, customer_id, currency)
    left = next((it.left_minor for it in grants if it.grant_id == grant_id), 0)
    back = min(amount, max(0, left))
    sides = [
        Entry(ledger.DEFERRED_CREDITS, back, currency, grant_id),
        Entry(ledger.ADJUSTMENTS, amount - back, currency),
        Entry(ledger.CASH, -amount, currency),
    ]
    corrects = ledger.transaction_id(namespace, GRANTED, grant_id)
    memo = f"top-up {row['payment_intent']}: {kind.removeprefix('credit_')}"
    return Posting(kind, source, memo, tuple(it for it in sides if it.amount_minor), corrects), amount - back


def _returning(connection: Connection, namespace: str, kind: str, source: str, stripe_id: str) -> Posting:
    """The posting that took credits back, the other way round."""
    taken = ledger.transaction_id(namespace, kind, source)
    table = ledger_entries
    query = select(table).where(table.c.transaction_id == taken).order_by(table.c.position)
    sides = tuple(
        Entry(it["account"], -it["amount_minor"], it["currency"], it["grant_id"])
        for it in connection.execute(query).mappings()
    )
    return Posting(REINSTATED, source, f"{stripe_id} came again", sides, taken)


def _notice(row: Mapping[Any, Any], kind: str, why: str) -> Notice:
    facts = {
        "amount": show(row["amount_minor"], row["currency"]),
        "currency": row["currency"],
        "automatic": row["how"] == RULE,
        "why": why,
    }
    subject = f"{row['customer_id']}: {kind.replace('_', ' ')}, {amount_of(row)}"
    return Notice(row["namespace"], row["customer_id"], kind, (row["purchase_id"],), subject, facts)
