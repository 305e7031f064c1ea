"""`bill run`: turns closed ratings into Stripe invoices, one committed step after the other.

draft recorded -> Stripe customer -> Stripe draft -> lines -> read back and compared -> in review or approved ->
finalised. A run that is stopped after any step, or between two, is continued by the next one and ends with the same
invoice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping

from meterhouse_billing import fee_records, history, issues, records, reviews, states, stripe_customers
from meterhouse_billing.amounts import NotPayable, to_stripe
from meterhouse_billing.documents import LINE_ID, Draft, StripeInvoice, StripeLine, differences
from meterhouse_billing.gateway import BillingError, StripeRefused, StripeUnavailable
from meterhouse_billing.invoice_notices import NoticeSettings, look_until
from meterhouse_billing.lines import Tax
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.policies import Policy
from meterhouse_billing.world import World
from meterhouse_rating.ids import digest
from meterhouse_rating.layout import counted
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write

CHUNK: Final = 100
"""Lines per request; a request of this size stays small enough to be answered quickly."""

MAX_ISSUES_A_RUN: Final = 3
"""How often a draft that is gone is made again before a person is asked."""


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
    settings = NoticeSettings()  # what is wrong with them is told before anything is made
    for draft in drafts:
        try:
            yield from _one(world, draft, settings, approve=approve)
        except StripeUnavailable:
            raise
        except (BillingError, NotPayable, states.Contradiction, states.NotNow) as problem:
            yield Step(draft.customer_id, str(problem), failed=True)


def prepare(world: World, draft: Draft, policy: Policy) -> Iterator[Step]:
    """Make the draft in Stripe as it is rated now, and compare it; what is found decides whether it waits in review.

    `policy` is the customer's. Raises NotAsRated where Stripe's draft is another one, and leaves that in review.
    """
    world = world.on(policy.stripe_account)
    period, shown_total = draft.period, f"{show(draft.total_minor, draft.currency)} {draft.currency}"
    lines = draft.stripe_lines()  # before anything is written: amounts that Stripe cannot take stop here
    if records.record(world.engine, draft, who=world.who, now=world.now()):
        yield Step(
            draft.customer_id, f"draft recorded for {period}: {counted(len(draft.lines), 'line')}, {shown_total}"
        )
    for _ in range(MAX_ISSUES_A_RUN):
        row = _invoice(world, draft)
        if row["state"] not in states.PENDING:
            return
        issue = issues.current(world.engine, draft.invoice_id)
        customer = stripe_customers.registered(world, draft.customer_id)
        if customer["stripe_customer_id"] is None:
            customer = stripe_customers.ensure(world, customer)
            yield Step(draft.customer_id, f"customer {customer['stripe_customer_id']} in Stripe")
        stripe_id = row["stripe_invoice_id"]
        if stripe_id is None:
            stripe_id = _create(world, draft, policy, customer, issue["issue"])
            yield Step(draft.customer_id, f"draft {stripe_id} in Stripe")
        if issue["content_sha256"] != draft.content_sha256:
            yield _replace(world, draft, stripe_id, issue["issue"])
            continue
        try:
            if row["stripe_total_minor"] is None:
                yield from _fill(world, draft, policy, stripe_id, lines, issue["issue"])
            # Also where an earlier run approved it and was stopped: somebody may have changed the draft since.
            shown = _compare(world, draft, policy, stripe_id)
        except StripeRefused as refused:
            if not refused.missing or _is_there(world, stripe_id):  # else it is something else that is missing
                raise
            why = f"the draft {stripe_id} was deleted in Stripe"
            _again(world, draft, issues.DELETED, who=history.STRIPE, why=why)
            yield Step(draft.customer_id, f"{why}, it is made again")
            continue
        yield Step(
            draft.customer_id, f"compared: {counted(len(draft.items), 'line')}, {shown_total} in Stripe as rated"
        )
        named = issues.subject(draft.invoice_id, issue["issue"])
        if shown.status != "draft" and not outbox_of(world).begun("invoice.finalise", named):
            why = "found finalised in Stripe"
            outcome = records.take_over(
                world.engine, world.namespace, shown, who=history.STRIPE, why=why, now=world.now()
            )
            yield Step(draft.customer_id, f"{why}: {outcome}")
        return
    raise BillingError(f"{period}: the draft was gone {MAX_ISSUES_A_RUN} times in one run; who deletes it in Stripe?")


def _one(world: World, draft: Draft, settings: NoticeSettings, *, approve: bool) -> Iterator[Step]:
    policy = reviews.policy_of(world, draft.customer_id)
    yield from prepare(world, draft, policy)
    row = _invoice(world, draft)
    if row["state"] not in states.PENDING:
        return
    if row["state"] != states.APPROVED:
        yield from _judge(world, draft, row, policy, settings, approve=approve)
        row = _invoice(world, draft)  # a person may have put it on hold meanwhile
    if row["state"] == states.APPROVED:
        if (refusal := reviews.second_person(world, row, policy)) is not None:
            yield Step(draft.customer_id, f"approved, and waits: {refusal}")
        else:
            yield finalise(world, draft, policy, row["stripe_invoice_id"], why="bill run")


def _judge(
    world: World, draft: Draft, row: RowMapping, policy: Policy, settings: NoticeSettings, *, approve: bool
) -> Iterator[Step]:
    """Draft or in review: approve it, or have it wait for a person."""
    hold = reviews.on_hold(world, draft.invoice_id)
    if hold is not None:
        yield Step(draft.customer_id, f"on hold since {hold['changed_at']:%Y-%m-%d} by {hold['who']}: {hold['why']}")
        return
    found = reviews.look(world, draft, policy)
    told = "; ".join(one.sentence for one in found)
    if approve:
        if draft.total_minor < 0:
            raise BillingError(
                f"{show(draft.total_minor, draft.currency)} {draft.currency} is a credit, which no run approves: look "
                f"at it, then `meterhouse bill approve {draft.customer_id} --period {draft.asked}`"
            )
        why = "bill run --approve" + (f", in spite of: {told}" if told else "")
        reviews.decide(world, draft.invoice_id, states.APPROVED, who=world.who, why=why)
        yield Step(draft.customer_id, "approved")
    elif not found and policy.automatic and world.now() < (until := look_until(row["created_at"], settings)):
        yield Step(draft.customer_id, f"the customer may look at it until {until:%Y-%m-%d %H:%M} UTC")
    elif not found and policy.automatic:
        why = "nothing to look at, and the namespace's invoices are approved by rule"
        reviews.decide(world, draft.invoice_id, states.APPROVED, who=history.RULE, why=why)
        yield Step(draft.customer_id, "approved by rule")
    elif found and row["state"] == states.DRAFT:
        reviews.decide(world, draft.invoice_id, states.IN_REVIEW, who=history.RULE, why=told)
        yield Step(draft.customer_id, f"in review: {told}", failed=True)
    elif row["state"] == states.IN_REVIEW:
        yield Step(draft.customer_id, f"in review: {told or 'what was found is gone, a person decides'}", failed=True)


def _replace(world: World, draft: Draft, stripe_id: str, issue: int) -> Step:
    """The period was rated anew: the draft with the old lines is deleted in Stripe, to be made with the new ones."""

    def find() -> Mapping[str, Any] | None:
        return None  # deleting twice does no harm

    try:
        shown = world.gateway.invoice(stripe_id)
        if shown.status != "draft":
            records.take_over(
                world.engine, world.namespace, shown, who=history.STRIPE, why="found finalised", now=world.now()
            )
            raise NotAsRated(
                f"{stripe_id} was finalised in Stripe with lines of an earlier rating: "
                f"`meterhouse bill void {draft.customer_id} --period {draft.asked} --reissue --why ...`"
            )
        outbox_of(world).call(
            "invoice.delete", issues.subject(draft.invoice_id, issue), {"on": stripe_id, "params": {}}, find
        )
    except StripeRefused as refused:
        if not refused.missing:
            raise
    why = "the period was rated anew: the draft had the lines of an earlier rating"
    _again(world, draft, issues.REPLACED, who=history.RULE, why=why)
    return Step(draft.customer_id, f"{why}; {stripe_id} is deleted in Stripe and made again")


def _again(world: World, draft: Draft, how: str, *, who: str, why: str) -> None:
    hold = reviews.on_hold(world, draft.invoice_id)
    with begin_write(world.engine) as connection:
        records.start_again(connection, draft, how, who=who, why=why, now=world.now())
        if hold is not None:  # a person's hold outlasts the draft that it was put on
            held = (connection, draft.invoice_id, states.IN_REVIEW)
            history.decide(*held, who=hold["who"], why=hold["why"], now=world.now())


def _invoice(world: World, draft: Draft) -> RowMapping:
    row = records.invoice(world.engine, draft.invoice_id)
    assert row is not None, "recorded by the step before"
    return row


def _create(world: World, draft: Draft, policy: Policy, customer: Mapping[str, Any], issue: int) -> str:
    params: dict[str, Any] = {
        "customer": customer["stripe_customer_id"],
        "currency": draft.currency.lower(),
        "auto_advance": False,  # Stripe finalises other drafts by itself after an hour
        "description": f"Usage {draft.period.replace('..', ' to ', 1)} (end not included)",
        "metadata": draft.described(issue),
    }
    if draft.automatic_tax:
        params["automatic_tax"] = {"enabled": True}
    if fee := fee_records.of_draft(draft, policy):
        params["application_fee_amount"] = to_stripe(fee, draft.currency)
    # Stripe refuses to make an invoice for sending where the customer has no e-mail address. The other method does not
    # charge anybody by itself either, as long as auto_advance is off; the customer pays on the invoice's page.
    if customer["email"]:
        params |= {"collection_method": "send_invoice", "days_until_due": policy.days_until_due}
    else:
        params |= {"collection_method": "charge_automatically"}
    subject = issues.subject(draft.invoice_id, issue)

    def keep(connection: Connection, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        stripe_id = str(answer["id"])
        records.set_stripe_id(connection, draft, stripe_id, world.now())
        fee_records.asked(connection, draft, policy, stripe_id, request, world.now())

    answer = outbox_of(world).call(
        "invoice.create",
        subject,
        {"params": params},
        lambda: world.gateway.find_invoice(customer["stripe_customer_id"], draft.metadata(issue)),
        unique=True,
        then=keep,
    )
    return str(answer["id"])


def _is_there(world: World, stripe_id: str) -> bool:
    try:
        world.gateway.invoice(stripe_id)
    except StripeRefused as refused:
        if refused.missing:
            return False
        raise
    return True


def _fill(
    world: World, draft: Draft, policy: Policy, stripe_id: str, lines: list[dict[str, Any]], issue: int
) -> Iterator[Step]:
    outbox, named = outbox_of(world), issues.subject(draft.invoice_id, issue)
    for tax in draft.products:
        _ensure_product(outbox, tax, policy.stripe_account)
    for start in range(0, len(lines), CHUNK):
        subject, chunk = digest([named, start]), lines[start : start + CHUNK]
        if outbox.answered("invoice.add_lines", subject):
            continue
        wanted = {line["metadata"][LINE_ID] for line in chunk}

        def find(wanted: set[str] = wanted) -> Mapping[str, Any] | None:
            there = {line.metadata.get(LINE_ID) for line in world.gateway.lines(stripe_id)}
            return {"id": stripe_id} if wanted <= there else None

        outbox.call("invoice.add_lines", subject, {"on": stripe_id, "params": {"lines": chunk}}, find, unique=True)
        yield Step(draft.customer_id, f"lines {start + 1} to {start + len(chunk)} in Stripe")


def _ensure_product(outbox: Outbox, tax: Tax, account: str) -> None:
    """The product that carries a tax code, made once in each account; another namespace may have made it there."""
    params = {"id": tax.product, "name": "Usage"} | ({"tax_code": tax.code} if tax.code else {})
    subject = digest([account, tax.product]) if account else tax.product
    if outbox.answered("product.create", subject):
        return
    try:
        outbox.call("product.create", subject, {"params": params}, lambda: None)
    except StripeRefused as refused:
        if not refused.exists:
            raise


def _compare(world: World, draft: Draft, policy: Policy, stripe_id: str) -> StripeInvoice:
    """Read everything back; nothing is approved that differs in any line. Raises NotAsRated, StripeRefused."""
    shown, lines = _with_tax(world, draft, stripe_id)
    found = differences(draft, shown, lines)
    if not found:
        records.compared(world.engine, draft, shown, lines)
        return shown
    reviews.look(world, draft, policy, found)
    if shown.status != "draft":
        why = "found finalised in Stripe"
        records.take_over(world.engine, world.namespace, shown, who=history.STRIPE, why=why, now=world.now())
        raise NotAsRated(f"{stripe_id} was finalised in Stripe and is not what was rated, void it: " + "; ".join(found))
    if reviews.on_hold(world, draft.invoice_id) is None:
        why = "Stripe's draft is not what was rated: " + "; ".join(found)
        if history.of(world.engine, draft.invoice_id)[-1]["why"] != why[:500]:
            reviews.decide(world, draft.invoice_id, states.IN_REVIEW, who=history.RULE, why=why)
    raise NotAsRated(f"{stripe_id} is not what was rated, and stays a draft: " + "; ".join(found))


def _with_tax(world: World, draft: Draft, stripe_id: str) -> tuple[StripeInvoice, list[StripeLine]]:
    """The invoice and its lines as Stripe shows it; a draft without its tax is computed anew, once an hour at most.

    The customer's address may have been put into Stripe since, which by itself changes no draft.
    """
    shown, lines = world.gateway.whole(stripe_id)
    if not draft.automatic_tax or shown.status != "draft" or shown.tax_status == "complete":
        return shown, lines
    subject = digest([stripe_id, "tax", f"{world.now():%Y-%m-%dT%H}"])
    params = {"automatic_tax": {"enabled": True}}
    outbox_of(world).call("invoice.update", subject, {"on": stripe_id, "params": params}, lambda: {"id": stripe_id})
    return world.gateway.whole(stripe_id)


def finalise(world: World, draft: Draft, policy: Policy, stripe_id: str, *, why: str) -> Step:
    """Finalise what is approved and was compared. Raises NotAsRated where it was changed in between."""

    def find() -> Mapping[str, Any] | None:
        shown = world.gateway.invoice(stripe_id)
        return None if shown.status == "draft" else {"id": stripe_id, "status": shown.status}

    world = world.on(policy.stripe_account)
    subject = issues.subject(draft.invoice_id, issues.current(world.engine, draft.invoice_id)["issue"])
    request = {"on": stripe_id, "params": {"auto_advance": False}}
    answer = outbox_of(world).call("invoice.finalise", subject, request, find, unique=True)
    shown, lines = world.gateway.whole(stripe_id, answer)
    records.take_over(world.engine, world.namespace, shown, who=world.who, why=why, now=world.now())
    found = differences(draft, shown, lines)
    if found:
        raise NotAsRated(f"{stripe_id} was changed while it was finalised, void it: " + "; ".join(found))
    amount = f"{show(draft.total_minor, draft.currency)} {draft.currency}"
    page = f"; the customer's page: {shown.hosted_url}" if shown.hosted_url else ""
    return Step(draft.customer_id, f"finalised: {shown.number}, {amount}, {shown.status}{page}")


def outbox_of(world: World) -> Outbox:
    """The outbox of the world's namespace."""
    return Outbox(world.engine, world.gateway, world.namespace, world.now)
