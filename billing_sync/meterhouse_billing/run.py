"""`bill run`: turns closed ratings into Stripe invoices, one committed step after the other.

draft recorded -> Stripe customer -> Stripe draft -> lines -> read back and compared -> approved -> finalised. A run
that is stopped after any step, or between two, is continued by the next one and ends with the same invoice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import RowMapping, select, update

from meterhouse_billing import records, states
from meterhouse_billing.amounts import NotPayable
from meterhouse_billing.documents import CUSTOMER_ID, LINE_ID, MAX_LINES, NAMESPACE, Draft, StripeInvoice, differences
from meterhouse_billing.gateway import BillingError, StripeRefused, StripeUnavailable
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.world import World
from meterhouse_rating.ids import digest
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import customers

CHUNK: Final = 100
"""Lines per request; a request of this size stays small enough to be answered quickly."""

DAYS_UNTIL_DUE: Final = 30


class NotAsRated(BillingError):
    """The draft in Stripe is not what was rated; it is left as a draft."""


@dataclass(frozen=True)
class Step:
    """Something that is done and committed, or (`failed`) an exception that a person has to look at."""

    customer_id: str
    text: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.customer_id}: {'EXCEPTION: ' if self.failed else ''}{self.text}"


def bill(world: World, drafts: list[Draft], *, approve: bool) -> Iterator[Step]:
    """Invoice the drafts; without `approve` they stay drafts in Stripe, for a person to look at.

    An exception with one invoice does not stop the others. Raises StripeUnavailable: everything done stays done.
    """
    for draft in drafts:
        try:
            yield from _one(world, draft, approve=approve)
        except StripeUnavailable:
            raise
        except (BillingError, NotPayable, states.Contradiction) as problem:
            yield Step(draft.customer_id, str(problem), failed=True)


def _one(world: World, draft: Draft, *, approve: bool) -> Iterator[Step]:
    amount = f"{show(draft.total_minor, draft.currency)} {draft.currency}"
    period = f"{draft.period_start:%Y-%m-%d}..{draft.period_end:%Y-%m-%d}"
    if len(draft.lines) > MAX_LINES:
        raise BillingError(f"{len(draft.lines)} lines for {period}, an invoice in Stripe has at most {MAX_LINES}")
    lines = draft.stripe_lines()  # before anything is written: amounts that Stripe cannot take stop here
    if records.record(world.engine, draft, world.now()):
        yield Step(draft.customer_id, f"draft recorded for {period}: {len(lines)} lines, {amount}")
    row = _invoice(world, draft)
    if row["state"] not in (states.DRAFT, states.APPROVED):
        return
    customer = _customer(world, draft)
    if customer["stripe_customer_id"] is None:
        customer = _ensure_customer(world, customer)
        yield Step(draft.customer_id, f"customer {customer['stripe_customer_id']} in Stripe")
    outbox = _outbox(world)
    stripe_id = row["stripe_invoice_id"]
    if stripe_id is None:
        stripe_id = _create(world, outbox, draft, customer)
        yield Step(draft.customer_id, f"draft {stripe_id} in Stripe")
    if row["stripe_total_minor"] is None:
        yield from _fill(world, outbox, draft, stripe_id, lines)
    # Also where an earlier run approved it and was stopped: somebody may have changed the draft since.
    shown = _compare(world, draft, stripe_id)
    yield Step(draft.customer_id, f"compared: {len(lines)} lines, {amount} in Stripe as rated")
    if row["state"] == states.DRAFT:
        if shown.status != "draft":
            why = "found finalised in Stripe"
            outcome = records.take_over(world.engine, world.namespace, shown, who="stripe", why=why, now=world.now())
            yield Step(draft.customer_id, f"{why}: {outcome}")
            return
        if not approve:
            return
        if draft.total_minor < 0:
            raise BillingError(f"{amount} is a credit, which no rule approves: finalise {stripe_id} in Stripe by hand")
        why = f"bill run --approve: {len(lines)} lines and {amount} are the same in Stripe"
        records.approve(world.engine, draft.invoice_id, who=world.who, why=why, now=world.now())
        yield Step(draft.customer_id, "approved")
    yield _finalise(world, outbox, draft, stripe_id, amount)


def _invoice(world: World, draft: Draft) -> RowMapping:
    row = records.invoice(world.engine, draft.invoice_id)
    assert row is not None, "recorded by the step before"
    return row


def _customer(world: World, draft: Draft) -> Mapping[str, Any]:
    query = select(customers).where(
        customers.c.namespace == world.namespace, customers.c.customer_id == draft.customer_id
    )
    with world.engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise BillingError("is not registered: `meterhouse customers add`")
    return dict(row)


def _ensure_customer(world: World, customer: Mapping[str, Any]) -> Mapping[str, Any]:
    name = customer["customer_id"]
    metadata = {NAMESPACE: world.namespace, CUSTOMER_ID: name}
    params = {"name": customer["name"], "metadata": metadata}
    if customer["email"]:
        params["email"] = customer["email"]
    answer = _outbox(world).call(
        "customer.create",
        digest(["customer", world.namespace, name]),
        {"params": params},
        lambda: world.gateway.find_customer(metadata),
    )
    is_it = (customers.c.namespace == world.namespace) & (customers.c.customer_id == name)
    with begin_write(world.engine) as connection:
        connection.execute(update(customers).where(is_it).values(stripe_customer_id=answer["id"]))
    return {**customer, "stripe_customer_id": answer["id"]}


def _create(world: World, outbox: Outbox, draft: Draft, customer: Mapping[str, Any]) -> str:
    params: dict[str, Any] = {
        "customer": customer["stripe_customer_id"],
        "currency": draft.currency.lower(),
        "auto_advance": False,  # Stripe finalises other drafts by itself after an hour
        "description": f"Usage {draft.period_start:%Y-%m-%d} to {draft.period_end:%Y-%m-%d} (end not included)",
        "metadata": draft.described(),
    }
    # Stripe refuses to make an invoice for sending where the customer has no e-mail address. The other method does not
    # charge anybody by itself either, as long as auto_advance is off; the customer pays on the invoice's page.
    if customer["email"]:
        params |= {"collection_method": "send_invoice", "days_until_due": DAYS_UNTIL_DUE}
    else:
        params |= {"collection_method": "charge_automatically"}
    answer = outbox.call(
        "invoice.create",
        draft.invoice_id,
        {"params": params},
        lambda: world.gateway.find_invoice(customer["stripe_customer_id"], draft.metadata()),
    )
    stripe_id = str(answer["id"])
    records.set_stripe_id(world.engine, draft.invoice_id, stripe_id)
    return stripe_id


def _fill(world: World, outbox: Outbox, draft: Draft, stripe_id: str, lines: list[dict[str, Any]]) -> Iterator[Step]:
    for start in range(0, len(lines), CHUNK):
        subject, chunk = digest([draft.invoice_id, start]), lines[start : start + CHUNK]
        if outbox.answered("invoice.add_lines", subject):
            continue
        wanted = {line["metadata"][LINE_ID] for line in chunk}

        def find(wanted: set[str] = wanted) -> Mapping[str, Any] | None:
            there = {line.metadata.get(LINE_ID) for line in world.gateway.lines(stripe_id)}
            return {"id": stripe_id} if wanted <= there else None

        outbox.call("invoice.add_lines", subject, {"on": stripe_id, "params": {"lines": chunk}}, find)
        yield Step(draft.customer_id, f"lines {start + 1} to {start + len(chunk)} in Stripe")


def _compare(world: World, draft: Draft, stripe_id: str) -> StripeInvoice:
    """Read everything back; nothing is approved that differs in any line."""
    try:
        shown, lines = world.gateway.invoice(stripe_id), world.gateway.lines(stripe_id)
    except StripeRefused as refused:
        if refused.missing:
            raise BillingError(f"the draft {stripe_id} was deleted in Stripe") from refused
        raise
    found = differences(draft, shown, lines)
    if found:
        raise NotAsRated(f"{stripe_id} is not what was rated, and stays a draft: " + "; ".join(found))
    records.compared(world.engine, draft, shown, lines)
    return shown


def _finalise(world: World, outbox: Outbox, draft: Draft, stripe_id: str, amount: str) -> Step:
    def find() -> Mapping[str, Any] | None:
        shown = world.gateway.invoice(stripe_id)
        return None if shown.status == "draft" else {"id": stripe_id, "status": shown.status}

    outbox.call("invoice.finalise", draft.invoice_id, {"on": stripe_id, "params": {"auto_advance": False}}, find)
    shown = world.gateway.invoice(stripe_id)
    records.take_over(world.engine, world.namespace, shown, who=world.who, why="bill run", now=world.now())
    found = differences(draft, shown, world.gateway.lines(stripe_id))
    if found:
        raise NotAsRated(f"{stripe_id} was changed while it was finalised, void it: " + "; ".join(found))
    return Step(draft.customer_id, f"finalised: {shown.number}, {amount}, {shown.status} at {shown.hosted_url}")


def _outbox(world: World) -> Outbox:
    return Outbox(world.engine, world.gateway, world.namespace, world.now)
