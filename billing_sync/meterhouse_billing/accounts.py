"""What each customer owes, here and in Stripe, and what Stripe has of a customer that nothing here accounts for.

ledger's receivable = open in Stripe + Stripe's balance + closed, not finalised - credit notes not there yet
                      + adjusted by hand + taken back by banks (disputes) - billed ahead of a month under way
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from meterhouse_billing import (
    credit_records,
    invoice_disputes,
    issues,
    meter_payments,
    policies,
    postings,
    records,
    refunds,
    states,
)
from meterhouse_billing.amounts import from_stripe
from meterhouse_billing.documents import INVOICE_ID, NAMESPACE, StripeInvoice
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.invoice_disputes import Dispute
from meterhouse_billing.reconcile import POLL, RUN, Difference, Row
from meterhouse_billing.refunds import Refund
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.layout import money
from meterhouse_store.tables import customers, ledger_entries, ledger_transactions

ADJUSTMENT = "adjustment"
"""The kind of `ledger adjust`: between operator and customer, no invoice is changed by it."""


@dataclass(frozen=True)
class Account:
    """One customer in its currency, in minor units; `ledger_minor` is the sum of the others when all is equal."""

    customer_id: str
    currency: str
    ledger_minor: int
    open_minor: int
    balance_minor: int
    not_finalised_minor: int
    notes_waiting_minor: int
    adjusted_minor: int
    disputed_minor: int
    ahead_minor: int
    differences: tuple[Difference, ...]


def compare(world: World, rows: Sequence[Row], customer_id: str | None = None) -> list[Account]:
    """The accounts of the customers; `rows` are all of their months as compared before, those on meters included."""
    query = select(customers).where(customers.c.namespace == world.namespace).order_by(customers.c.customer_id)
    if customer_id is not None:
        query = query.where(customers.c.customer_id == customer_id)
    with world.engine.connect() as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    sellers = policies.accounts(world.engine, world.namespace)
    gone: list[Refund | Dispute] = [one for account in sellers for one in refunds.unrecorded(world.on(account))]
    gone += [one for account in sellers for one in invoice_disputes.unrecorded(world.on(account))]
    known = issues.stripe_ids(world.engine, world.namespace)
    return [
        _account(
            world.of(customer["customer_id"]),
            customer,
            known,
            gone,
            [row for row in rows if row.customer_id == customer["customer_id"]],
        )
        for customer in found
    ]


def _account(
    world: World, customer: dict[str, Any], known: set[str], gone: Sequence[Refund | Dispute], every: Sequence[Row]
) -> Account:
    name, currency, stripe_id = customer["customer_id"], customer["currency"], customer["stripe_customer_id"]
    rows = [row for row in every if row.customer_id == name]
    sums = _receivable(world, name, currency)
    notes = credit_records.notes(world.engine, world.namespace, name, only_open=True)
    account = {
        "ledger_minor": sum(sums.values()),
        "open_minor": sum(row.remaining_minor for row in rows),
        "balance_minor": 0,
        "not_finalised_minor": sum(
            row.rated_minor for row in rows if row.state in (states.OPEN, *states.PENDING) and not row.remaining_minor
        ),
        "notes_waiting_minor": sum(note.total_minor for note in notes if note.currency == currency),
        "adjusted_minor": sums.get(ADJUSTMENT, 0),
        "disputed_minor": sums.get(postings.DISPUTE, 0) + sums.get(postings.DISPUTE_WON, 0),
        "ahead_minor": sum(row.ahead_minor for row in rows),
    }
    found: list[Difference] = [
        Difference(f"{'refund' if isinstance(one, Refund) else 'dispute'}_behind", str(one), POLL, waits=True)
        for one in gone
        if one.invoice["customer_id"] == name
    ]
    if stripe_id is not None:
        try:
            account["balance_minor"] = from_stripe(world.gateway.balance(stripe_id), currency)
            found += _only_in_stripe(world, stripe_id, known)
        except StripeRefused as refused:
            if not refused.missing:
                raise
            step = "`meterhouse customers add` names another, or none"
            found.append(Difference("customer_gone", f"{stripe_id} is not in Stripe (any more)", step))
    expected = (
        account["open_minor"]
        + account["balance_minor"]
        + account["not_finalised_minor"]
        - account["notes_waiting_minor"]
        + account["adjusted_minor"]
        + account["disputed_minor"]
        - account["ahead_minor"]
    )
    if account["ledger_minor"] != expected:
        found.append(_unequal(account["ledger_minor"], expected, currency, rows))
    return Account(customer_id=name, currency=currency, **account, differences=tuple(found))


def _unequal(here: int, expected: int, currency: str, rows: Sequence[Row]) -> Difference:
    cause = (
        f"{money(here, currency)} {currency} are owed by the ledger, {money(expected, currency)} by what is in Stripe"
    )
    if any(one.code != "credit_note_waits" for row in rows for one in row.differences):
        return Difference("account_differs", f"{cause}: see the customer's invoices above", "settle those first", True)
    step = "somebody changed the customer's balance in Stripe: look at its transactions, and `meterhouse ledger adjust`"
    return Difference("account_differs", cause, step)


def _only_in_stripe(world: World, stripe_customer_id: str, known: set[str]) -> Iterator[Difference]:
    subscriptions = meter_payments.owners(world)
    for shown in world.gateway.invoices_of(stripe_customer_id):
        if shown.stripe_invoice_id in known or shown.subscription in subscriptions or shown.status == "void":
            continue
        yield _unknown(world, shown)
    for item in world.gateway.pending_items(stripe_customer_id):
        cause = (
            f"{item['id']} ({item['amount']} {item['currency']}) belongs to no invoice, the next one would take it up"
        )
        yield Difference("orphan_item", cause, "delete it in Stripe")


def _unknown(world: World, shown: StripeInvoice) -> Difference:
    name, ours = shown.stripe_invoice_id, shown.metadata.get(INVOICE_ID)
    if shown.metadata.get(NAMESPACE) != world.namespace or ours is None:
        step = "if Meterhouse should count it, `meterhouse ledger adjust`; it is left alone"
        return Difference("foreign_invoice", f"{name} ({shown.status}) was not made by Meterhouse", step, waits=True)
    row = records.invoice(world.engine, ours)
    if row is None:
        cause = f"{name} ({shown.status}) is of a period that is not invoiced here: made after the backup?"
        return Difference("invoice_behind", cause, f"close the period; {RUN} takes it over", waits=True)
    if row["stripe_invoice_id"] is None:
        return Difference("invoice_behind", f"{name} ({shown.status}) is not known here yet", f"{RUN} or {POLL}", True)
    cause = f"{name} ({shown.status}) is a second invoice for the period of {row['stripe_invoice_id']}"
    return Difference("invoice_twice", cause, "delete or void one of the two in Stripe")


def _receivable(world: World, customer_id: str, currency: str) -> dict[str, int]:
    """Kind of transaction -> what it posted to the customer's receivable."""
    transactions, entries = ledger_transactions, ledger_entries
    query = (
        select(transactions.c.kind, func.sum(entries.c.amount_minor))
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(
            transactions.c.namespace == world.namespace,
            transactions.c.customer_id == customer_id,
            entries.c.account == ledger.RECEIVABLE,
            entries.c.currency == currency,
        )
        .group_by(transactions.c.kind)
    )
    with world.engine.connect() as connection:
        return {str(kind): int(amount) for kind, amount in connection.execute(query)}
