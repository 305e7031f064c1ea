"""Credits that customers buy through Stripe, as rows: what was asked for, and what became of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, func, insert, or_, select, update

from meterhouse_billing.disputes import DECIDED
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import credit_purchases, disputes

PAGE, RULE = "page", "rule"
"""Paid on a page of Stripe, or charged by the customer's rule."""

OPEN, PAID, FAILED, EXPIRED = "open", "paid", "failed", "expired"
"""An expired page takes no payment any more. A failed charge may still be paid: Stripe keeps its payment."""


def ask(connection: Connection, row: Mapping[str, Any]) -> bool:
    """Write down what is asked for, before Stripe is; False where it was."""
    is_it = credit_purchases.c.purchase_id == row["purchase_id"]
    if connection.execute(select(credit_purchases.c.purchase_id).where(is_it)).first() is not None:
        return False
    connection.execute(insert(credit_purchases).values(state=OPEN, **row))
    return True


def one(engine: Engine, purchase_id: str) -> RowMapping:
    """The row of a purchase that is there."""
    query = select(credit_purchases).where(credit_purchases.c.purchase_id == purchase_id)
    with engine.connect() as connection:
        return connection.execute(query).mappings().one()


def find(engine: Engine, namespace: str, purchase_id: str) -> RowMapping | None:
    """The row of a purchase; None where there is none."""
    is_it = (credit_purchases.c.namespace == namespace) & (credit_purchases.c.purchase_id == purchase_id)
    with engine.connect() as connection:
        return connection.execute(select(credit_purchases).where(is_it)).mappings().one_or_none()


def change(engine: Engine, purchase_id: str, **values: Any) -> None:
    """Set columns of a purchase."""
    with begin_write(engine) as connection:
        change_in(connection, purchase_id, **values)


def change_in(connection: Connection, purchase_id: str, **values: Any) -> None:
    """`change` within a transaction."""
    is_it = credit_purchases.c.purchase_id == purchase_id
    connection.execute(update(credit_purchases).where(is_it).values(**values))


def listed(engine: Engine, namespace: str, customer_id: str | None = None) -> Sequence[RowMapping]:
    """All purchases, of one customer or of all, the latest first."""
    query = select(credit_purchases).where(credit_purchases.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(credit_purchases.c.customer_id == customer_id)
    with engine.connect() as connection:
        found = query.order_by(credit_purchases.c.created_at.desc(), credit_purchases.c.purchase_id)
        return connection.execute(found).mappings().all()


def unsettled(engine: Engine, namespace: str, since: datetime) -> Sequence[RowMapping]:
    """What a poll looks at: what is open or failed, and what was paid since then or has a dispute that goes on."""
    table = credit_purchases
    going_on = select(disputes.c.payment_intent).where(
        disputes.c.namespace == namespace, disputes.c.status.not_in(DECIDED)
    )
    wanted = or_(
        table.c.state == OPEN,
        (table.c.state.in_((PAID, FAILED))) & (table.c.created_at >= since),
        table.c.payment_intent.in_(going_on),
    )
    query = select(table).where(table.c.namespace == namespace, table.c.stripe_id.is_not(None), wanted)
    with engine.connect() as connection:
        return connection.execute(query.order_by(table.c.created_at, table.c.purchase_id)).mappings().all()


def by_stripe_id(engine: Engine, namespace: str, name: str) -> RowMapping | None:
    """The purchase of a Checkout session or a payment."""
    table = credit_purchases
    is_it = (table.c.stripe_id == name) | (table.c.payment_intent == name)
    with engine.connect() as connection:
        return connection.execute(select(table).where(table.c.namespace == namespace, is_it)).mappings().first()


def open_charge(connection: Connection, namespace: str, customer_id: str) -> RowMapping | None:
    """The charge of a customer's rule of which nobody knows yet what became."""
    table = credit_purchases
    query = select(table).where(
        table.c.namespace == namespace,
        table.c.customer_id == customer_id,
        table.c.how == RULE,
        table.c.state == OPEN,
    )
    return connection.execute(query).mappings().first()


def charges(connection: Connection, namespace: str, customer_id: str, since: datetime | None = None) -> int:
    """How often the customer's rule asked for a charge, since then or ever."""
    table = credit_purchases
    query = select(func.count()).where(
        table.c.namespace == namespace, table.c.customer_id == customer_id, table.c.how == RULE
    )
    if since is not None:
        query = query.where(table.c.created_at >= since)
    return int(connection.execute(query).scalar_one())
