"""What the platform gives back of its fees when money of a payment goes back, or less is owed of an invoice.

The part of the fee that goes back is the part of the invoice that was credited, refunded or lost in disputes, of all of
it at once and rounded half up once: so many small refunds give back what one large one does, and a whole one the whole
fee. Stripe's fee and charge say what was given back so far, so any order and any repetition end the same, a fee that
somebody gave back by hand included. https://docs.stripe.com/api/fee_refunds/create

Stripe gives nothing of a fee back by itself, neither for a refund nor for a dispute: a bank takes the money from the
connected account (https://docs.stripe.com/disputes/connect). While that is not decided nothing is given back.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import stripe
from sqlalchemy import Connection, Engine, RowMapping, func, select

from meterhouse_billing import application_fees, disputes, fee_records, policies, records, refunds
from meterhouse_billing.amounts import from_stripe, to_stripe
from meterhouse_billing.credit_records import ISSUED
from meterhouse_billing.gateway import BillingError, StripeUnavailable
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.world import World
from meterhouse_rating import ledger
from meterhouse_rating.ids import digest
from meterhouse_rating.ledger import APPLICATION_FEES, CASH, Entry, Posting
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import application_fees as fees
from meterhouse_store.tables import credit_note_issues, invoices, ledger_entries, ledger_transactions

KIND: Final = "application_fee_refund"
NAME: Final = "meterhouse_fee_refund"
"""Metadata by which what was given back is found again."""


def poll(world: World) -> Iterator[str]:
    """`collect` for all payments of which Stripe lists a refund."""
    accounts = policies.accounts(world.engine, world.namespace) if _rows(world.engine, world.namespace) else []
    since = world.now() - refunds.LOOKED_BACK
    yield from collect(
        world, {one["payment_intent"] for account in accounts for one in world.on(account).gateway.refunds(since)}
    )


def collect(world: World, refunded: Collection[str]) -> Iterator[str]:
    """Give back, and post, what is to be given back of invoices' fees; says which. Repeatable.

    Looks at the payments that were `refunded`, and at those of which credit notes or disputes ask for more.
    """
    for row in _rows(world.engine, world.namespace):
        if row["payment_intent"] not in refunded and not behind(world.engine, world.namespace, row):
            continue
        at = world.on(row["stripe_account"])
        payment = at.gateway.payment(row["payment_intent"])
        beside = row["credited_minor"] - row["refunded_minor"]
        for said in settle(at, row["customer_id"], row["currency"], payment, beside, row["total_minor"]):
            yield f"{row['customer_id']}: {said}"


def settle(
    world: World, customer_id: str, currency: str, payment: Mapping[str, Any], beside_minor: int, total_minor: int
) -> Iterator[str]:
    """Bring the fee of a payment to what went back of it; says what changed.

    `payment` is Stripe's with its `latest_charge`; `beside_minor` credit notes took off the total without a refund.
    """
    fee_id, intent = payment["latest_charge"].get("application_fee"), payment["id"]
    if fee_id is None:
        return
    platform = world.on("")
    fee = platform.gateway.call(partial(_fee, name=fee_id))
    taken, returned = (from_stripe(fee[name], currency) for name in ("amount", "amount_refunded"))
    lost = disputes.lost_minor(world.engine, world.namespace, intent)
    back = beside_minor + lost + from_stripe(payment["latest_charge"]["amount_refunded"], currency)
    wanted = application_fees.given_back(taken, back, total_minor, currency)
    if wanted > returned:
        try:
            _give_back(platform, fee_id, returned, wanted, currency)
        except StripeUnavailable:
            raise
        except BillingError as problem:
            yield f"EXCEPTION: {show(wanted - returned, currency)} {currency} of {fee_id}: {problem}"
        else:
            returned = wanted
    if (posted := _post(world, customer_id, currency, intent, returned)) > 0:
        yield f"the platform gave {show(posted, currency)} {currency} of its fee back"


def behind(engine: Engine, namespace: str, row: Mapping[Any, Any]) -> bool:
    """Whether less of a fee (a row of `of_invoice`) was given back than credit notes and lost disputes ask for."""
    back = row["credited_minor"] + disputes.lost_minor(engine, namespace, row["payment_intent"])
    wanted = application_fees.given_back(row["taken_minor"], back, row["total_minor"], row["currency"])
    with engine.connect() as connection:
        return _posted(connection, namespace, row["payment_intent"]) < wanted


def of_invoice(engine: Engine, namespace: str, stripe_invoice_id: str) -> RowMapping | None:
    """The fee that was taken of an invoice with what credit notes took off it; None where none was."""
    return next(iter(_rows(engine, namespace, stripe_invoice_id)), None)


def _rows(engine: Engine, namespace: str, stripe_invoice_id: str | None = None) -> Sequence[RowMapping]:
    """The fees that were taken; `credited_minor` is off the invoice's total, `refunded_minor` the part paid back."""
    notes = credit_note_issues
    credited = (
        select(
            notes.c.invoice_id,
            func.sum(notes.c.amount_minor + func.coalesce(notes.c.tax_minor, 0)).label("credited_minor"),
            func.sum(notes.c.refunded_minor).label("refunded_minor"),
        )
        .where(notes.c.state == ISSUED)
        .group_by(notes.c.invoice_id)
        .subquery()
    )
    query = (
        select(
            fees,
            invoices.c.stripe_total_minor.label("total_minor"),
            func.coalesce(credited.c.credited_minor, 0).label("credited_minor"),
            func.coalesce(credited.c.refunded_minor, 0).label("refunded_minor"),
        )
        .join(invoices, invoices.c.stripe_invoice_id == fees.c.stripe_invoice_id)
        .outerjoin(credited, credited.c.invoice_id == fees.c.invoice_id)
        .where(fees.c.namespace == namespace, fees.c.taken_minor > 0, fees.c.payment_intent.is_not(None))
        .order_by(fees.c.stripe_invoice_id)
    )
    if stripe_invoice_id is not None:
        query = query.where(fees.c.stripe_invoice_id == stripe_invoice_id)
    with engine.connect() as connection:
        return connection.execute(query).mappings().all()


def _give_back(platform: World, fee_id: str, returned: int, wanted: int, currency: str) -> None:
    # Named by what it begins from, too: what somebody gave back by hand meanwhile makes it another call.
    name = digest(["fee refund", fee_id, returned, wanted])
    params = {"amount": to_stripe(wanted - returned, currency), "metadata": {NAME: name}}
    outbox = Outbox(platform.engine, platform.gateway, platform.namespace, platform.now)

    def find() -> Mapping[str, Any] | None:
        there = platform.gateway.call(partial(_given_back, name=fee_id))
        return next((one for one in there if (one["metadata"] or {}).get(NAME) == name), None)

    outbox.call("application_fee.refund", name, {"on": fee_id, "params": params}, find, unique=True)


def _post(world: World, customer_id: str, currency: str, intent: str, returned: int) -> int:
    """Post what the ledger lacks of what was given back; how much that was."""
    now = world.now()
    with begin_write(world.engine) as connection:
        records.alone(connection, world.namespace)
        amount = returned - _posted(connection, world.namespace, intent)
        if amount <= 0:
            return 0
        sides = (Entry(CASH, amount, currency), Entry(APPLICATION_FEES, -amount, currency))
        corrects = _kept(world.namespace, intent)
        posting = Posting(
            KIND, digest([KIND, intent, returned]), f"application fee of {intent}, given back", sides, corrects
        )
        ledger.post(connection, world.namespace, customer_id, [posting], effective_at=now, recorded_at=now)
    return amount


def _posted(connection: Connection, namespace: str, intent: str) -> int:
    entries, transactions = ledger_entries, ledger_transactions
    query = (
        select(func.coalesce(func.sum(entries.c.amount_minor), 0))
        .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
        .where(
            transactions.c.kind == KIND,
            transactions.c.corrects == _kept(namespace, intent),
            entries.c.account == APPLICATION_FEES,
        )
    )
    return -int(connection.execute(query).scalar_one())


def _kept(namespace: str, intent: str) -> str:
    return ledger.transaction_id(namespace, fee_records.KIND, fee_records.source(intent))


def _fee(client: stripe.StripeClient, name: str) -> dict[str, Any]:
    return client.v1.application_fees.retrieve(name).to_dict()


def _given_back(client: stripe.StripeClient, name: str) -> list[dict[str, Any]]:
    page = client.v1.application_fees.refunds.list(name, {"limit": 100})
    return [it.to_dict() for it in page.auto_paging_iter()]
