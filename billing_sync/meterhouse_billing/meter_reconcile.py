"""`bill reconcile` of months on Stripe's meters: rated = in the ledger = on Stripe's invoices of subscriptions = paid.

A line of Stripe's counts in the month that it is of: a fee is on the invoice before its month, usage on the one after.
What Stripe has of a month that is under way is billed ahead, and compared when the month is over. Months are those of
UTC, as set-up asks for.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select

from meterhouse_billing import meter_invoices, meter_records, postings, records, states
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import Draft, StripeInvoice, StripeLine
from meterhouse_billing.reconcile import POLL, Difference, Row
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.layout import money
from meterhouse_rating.periods import month_of
from meterhouse_store.tables import ledger_entries

UTC_ZONE = "UTC"
VOID = "void"


def reconcile(world: World, drafts: Sequence[Draft], customer_id: str | None = None, *, every: bool) -> list[Row]:
    """Compare each metered month of which a rating is closed (`drafts`); with `every`, those Stripe invoiced, too."""
    found: list[Row] = []
    subscriptions: dict[str, set[str]] = defaultdict(set)
    whose: dict[str, str] = {}
    for it in meter_records.subscriptions(world.engine, world.namespace):
        if customer_id in (None, it.customer_id):
            subscriptions[it.customer_id].add(it.stripe_subscription_id)
            whose[it.customer_id] = it.stripe_customer_id
    for name in sorted({draft.customer_id for draft in drafts} | set(whose)):
        mine = [draft for draft in drafts if draft.customer_id == name]
        if mine or every:
            shown = _invoices(world.of(name), whose[name], subscriptions[name]) if name in whose else []
            found += _months(world.of(name), name, mine, shown, every=every)
    return found


def _invoices(world: World, stripe_customer_id: str, subscriptions: set[str]) -> list[StripeInvoice]:
    """The customer's finalised invoices of subscriptions; the earliest first."""
    there = [it for it in world.gateway.invoices_of(stripe_customer_id) if it.subscription in subscriptions]
    return [it for it in reversed(there) if it.status != "draft"]


def _months(
    world: World, customer_id: str, drafts: Sequence[Draft], invoices: Sequence[StripeInvoice], *, every: bool
) -> Iterator[Row]:
    rated: dict[datetime, list[Draft]] = defaultdict(list)
    made: dict[datetime, list[StripeInvoice]] = defaultdict(list)
    lines: dict[datetime, list[StripeLine]] = defaultdict(list)
    for draft in drafts:
        rated[_month(draft.period_start)].append(draft)
    for shown in invoices:
        made[_month(shown.period_start)].append(shown)
        for line in world.gateway.lines(shown.stripe_invoice_id) if shown.status != VOID else ():
            lines[_month(line.period_start)].append(line)
    for month in sorted({*rated, *(made if every else ()), *(lines if every else ())}):
        row = _row(world, customer_id, month, rated[month], made[month], lines[month])
        if rated[month] or row.stripe_minor or row.stripe_paid_minor or row.remaining_minor:
            yield row


def _month(moment: datetime | None) -> datetime:
    assert moment is not None, "Stripe's invoices and lines have periods"
    return month_of(moment, UTC_ZONE).start


def _row(
    world: World,
    customer_id: str,
    month: datetime,
    drafts: Sequence[Draft],
    invoices: Sequence[StripeInvoice],
    lines: Sequence[StripeLine],
) -> Row:
    currency = next(it.currency for group in (drafts, invoices, lines) for it in group)
    lines_minor = sum(from_stripe(line.amount, line.currency) for line in lines) if lines else None
    rated = sum(draft.total_minor for draft in drafts)
    posted = sum(records.receivable(world.engine, draft) for draft in drafts)
    paid = sum(_paid(world, shown) for shown in invoices)
    paid_there = sum(from_stripe(it.amount_paid, currency) for it in invoices if it.status == "paid")
    owed = [it for it in invoices if it.status in ("open", "uncollectible")]
    last = next((it for it in reversed(invoices) if it.status != VOID), invoices[-1] if invoices else None)
    is_over = world.now() >= month_of(month, UTC_ZONE).end
    ahead = 0 if drafts or is_over else lines_minor or 0
    units: dict[str, Decimal] = defaultdict(Decimal)
    for draft in drafts:
        for item in draft.items:
            if item.kind == "usage":
                units[item.metric] += item.quantity
    found = [] if ahead else list(_of_month(month, currency, bool(drafts), rated, posted, lines_minor, last))
    found += _of_states(world, invoices)
    if paid != paid_there:
        cause = f"{money(paid_there, currency)} are paid in Stripe, {money(paid, currency)} are recorded here"
        step = POLL if paid < paid_there else "`meterhouse ledger entries` shows ours"
        found.append(Difference("payment_differs", cause, step, waits=paid < paid_there))
    return Row(
        customer_id=customer_id,
        invoice_id=drafts[0].invoice_id if drafts else "",
        stripe_invoice_id=last.stripe_invoice_id if last else None,
        state=(states.of(last) if last else None) or states.OPEN,
        currency=currency,
        rated_minor=rated,
        ledger_minor=posted,
        stripe_minor=lines_minor,
        credited_minor=sum(from_stripe(it.credited, currency) for it in invoices),
        paid_minor=paid,
        stripe_paid_minor=paid_there if invoices else None,
        remaining_minor=sum(from_stripe(it.amount_remaining, currency) for it in owed),
        rated_units=dict(units),
        stripe_units={},
        differences=tuple(found),
        ahead_minor=ahead,
    )


def _of_month(
    month: datetime,
    currency: str,
    is_closed: bool,
    rated: int,
    posted: int,
    lines_minor: int | None,
    last: StripeInvoice | None,
) -> Iterator[Difference]:
    asked = f"{month:%Y-%m}"
    if posted != rated:
        cause = f"the ledger's receivable is {money(posted, currency)}, rated {money(rated, currency)}"
        yield Difference("ledger_differs", cause, "`meterhouse ledger verify` names the posting")
    if last is not None and last.status == VOID and rated:
        name = last.number or last.stripe_invoice_id
        cause = f"{name} of {asked} is void in Stripe, rated are {money(rated, currency)} {currency}"
        step = "make another one in Stripe by hand, or take it off what is owed (`meterhouse ledger adjust`)"
        yield Difference("metered_void", cause, step)
    elif lines_minor is None and rated:
        cause = f"Stripe has no invoice of {asked} yet, rated are {money(rated, currency)} {currency}"
        yield Difference("not_invoiced", cause, "Stripe makes it in the hours after the month; look again then", True)
    elif not is_closed and lines_minor:
        cause = f"Stripe invoiced {money(lines_minor, currency)} {currency} for {asked}, which is over and not closed"
        yield Difference("not_closed", cause, f"`meterhouse rate close --period {asked}`", waits=True)
    elif (lines_minor or 0) != rated:
        cause = (
            f"Stripe invoiced {money(lines_minor or 0, currency)} {currency} for {asked}, rated are "
            f"{money(rated, currency)}: usage that came after the month was frozen, or that Stripe did not count"
        )
        step = "`meterhouse bill meters` names it; credit or charge it in Stripe, or `meterhouse ledger adjust`"
        yield Difference("metered_differs", cause, step)


def _of_states(world: World, invoices: Sequence[StripeInvoice]) -> Iterator[Difference]:
    with world.engine.connect() as connection:
        kept = {it.stripe_invoice_id: meter_invoices.state(connection, it.stripe_invoice_id) for it in invoices}
    for shown in invoices:
        if kept[shown.stripe_invoice_id] != states.of(shown):
            here = kept[shown.stripe_invoice_id] or "not known"
            cause = f"{shown.number or shown.stripe_invoice_id} is {here} here and {shown.status} in Stripe"
            yield Difference("state_behind", f"{cause}: the news did not come", POLL, waits=True)


def _paid(world: World, shown: StripeInvoice) -> int:
    """What was posted as paid of an invoice."""
    entries = ledger_entries
    payment = postings.payment_id(world.namespace, shown.stripe_invoice_id)
    name = ledger.transaction_id(world.namespace, "payment", payment)
    query = select(entries.c.amount_minor).where(entries.c.transaction_id == name, entries.c.account == ledger.CASH)
    with world.engine.connect() as connection:
        return int(connection.execute(query).scalar_one_or_none() or 0)
