"""Automatic top-ups: a customer whose credits fall below what its rule says is charged for more, without being there.

A charge is a row before Stripe is asked, and one call with an idempotency key made from the row: a run that is killed
anywhere is continued by the next one, and nobody is charged twice. While it is not known what became of a charge there
is no other one for the customer. A charge that fails turns the rule off.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import stripe
from sqlalchemy import RowMapping

from meterhouse_billing import charge_rules, purchases, stripe_customers, top_up_news
from meterhouse_billing.amounts import to_stripe
from meterhouse_billing.budget_periods import period_of
from meterhouse_billing.charge_rules import Rule
from meterhouse_billing.gateway import StripeRefused
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.purchases import RULE
from meterhouse_billing.top_ups import PURCHASE_ID, fee_of, metadata_of, refusal_of, row_of
from meterhouse_billing.world import World
from meterhouse_rating import credit_book, credit_changes
from meterhouse_rating.credits import Grant
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write

CREATE: Final = "payment_intent.create"


@dataclass(frozen=True)
class Step:
    """What was done, or would be; `failed`: a person has to look at it."""

    customer_id: str
    text: str
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.customer_id}: {'EXCEPTION: ' if self.failed else ''}{self.text}"


def charge_due(world: World, only: str | None = None, *, dry_run: bool = False) -> Iterator[Step]:
    """Charge every customer whose rule asks for it. Raises StripeUnavailable: everything done stays done."""
    for rule in charge_rules.rules(world.engine, world.namespace):
        if only not in (None, rule.customer_id):
            continue
        row, told = _due(world, rule, write=not dry_run)
        if told is not None:
            yield told
        elif row is not None and dry_run:
            yield Step(rule.customer_id, f"would be charged {top_up_news.amount_of(row)} for credits")
        elif row is not None:
            yield _charge(world.of(rule.customer_id), row, wanted=rule.is_on)


def _due(world: World, rule: Rule, *, write: bool) -> tuple[Mapping[Any, Any] | None, Step | None]:
    """The charge to be made, its row written; or what keeps it from being made, where that is worth saying."""
    name, now = rule.customer_id, world.now()
    customer = stripe_customers.registered(world, name)
    refusal = refusal_of(world, name) if rule.is_on else ""
    with begin_write(world.engine) as connection:
        credit_changes.customer_currency(connection, world.namespace, name)  # the lock
        waiting = purchases.open_charge(connection, world.namespace, name)
        if waiting is not None:
            return waiting, None  # also where the rule is off meanwhile: what became of it has to be known
        current = charge_rules.current(connection, world.namespace, name)
        if current is None or not current.is_on:
            return None, None
        if credit_book.top_up_in_force(connection, world.namespace, name, current.currency, now) is not None:
            refusal = "its rule that buys on invoices holds, too: end one of the two"
        if refusal:
            return None, Step(name, f"no credits are bought: {refusal}", failed=True)
        grants = credit_changes.grants_now(connection, world.namespace, name, current.currency)
        left = sum(it.left_minor for it in grants if _holds(it, now))
        if left >= current.below_minor:
            return None, None
        for per, most in (("day", current.per_day), ("month", current.per_month)):
            since = period_of(now, per, customer["time_zone"]).start
            if purchases.charges(connection, world.namespace, name, since) >= most:
                said = f"{show(left, current.currency)} {current.currency} are left, and it was charged {most} times"
                return None, Step(name, f"{said} this {per}, which is the most")
        number = purchases.charges(connection, world.namespace, name) + 1
        row = row_of(world, name, RULE, current.amount_minor, current.currency, [number], current.who)
        if write:
            purchases.ask(connection, row)
    return row, None


def _holds(grant: Grant, now: datetime) -> bool:
    return grant.granted_at <= now and (grant.expires_at is None or grant.expires_at > now)


def _charge(world: World, row: Mapping[Any, Any], *, wanted: bool) -> Step:
    """One attempt, or the continuation of one; `wanted`: the rule is still on."""
    name, subject = row["customer_id"], row["purchase_id"]
    customer = stripe_customers.ensure(world, stripe_customers.registered(world, name))
    outbox = Outbox(world.engine, world.gateway, world.namespace, world.now)

    def find() -> Mapping[str, Any] | None:
        payments = world.gateway.call(lambda client: _payments(client, customer["stripe_customer_id"]))
        return next((it for it in payments if (it["metadata"] or {}).get(PURCHASE_ID) == subject), None)

    method = None
    # After a refusal, or a 500 that Stripe keeps, the payment may be there although no call is under way.
    if not outbox.begun(CREATE, subject) and not outbox.answered(CREATE, subject) and find() is None:
        if not wanted:
            why = "the rule was turned off before Stripe was asked"
            purchases.change(world.engine, subject, state=purchases.EXPIRED, problem=why, settled_at=world.now())
            return Step(name, f"no credits are bought: {why}")
        method = world.gateway.call(lambda client: _default_method(client, customer["stripe_customer_id"]))
        if method is None:
            why = f"there is no default payment method: `meterhouse bill link {name}` asks the customer for one"
            return Step(name, top_up_news.fail(world, row, why), failed=True)
    params = {
        "amount": to_stripe(row["amount_minor"], row["currency"]),
        "currency": row["currency"].lower(),
        "customer": customer["stripe_customer_id"],
        "payment_method": method,
        "confirm": True,
        "off_session": True,
        "description": "Credits",
        "metadata": metadata_of(row),
        **fee_of(world, row),
    }

    try:
        made = outbox.call(CREATE, subject, {"params": params}, find, unique=True)
    except StripeRefused as refused:
        found = find()  # a payment that was declined is there all the same, and may be paid later
        if found is not None:
            purchases.change(world.engine, subject, stripe_id=found["id"], payment_intent=found["id"])
        return Step(name, top_up_news.fail(world, row, str(refused)), failed=True)
    purchases.change(world.engine, subject, stripe_id=made["id"], payment_intent=made["id"])
    settled: RowMapping = purchases.one(world.engine, subject)
    outcome = top_up_news.settle(world, settled)
    failed = purchases.one(world.engine, subject)["state"] == purchases.FAILED
    waits = f"a charge of {top_up_news.amount_of(row)} for credits is under way"
    return Step(name, waits if outcome == "nothing new" else outcome, failed)


def _default_method(client: stripe.StripeClient, stripe_customer_id: str) -> str | None:
    body = client.v1.customers.retrieve(stripe_customer_id).to_dict()
    method = (body.get("invoice_settings") or {}).get("default_payment_method")
    return None if method is None else str(method)


def _payments(client: stripe.StripeClient, stripe_customer_id: str) -> list[dict[str, Any]]:
    page = client.v1.payment_intents.list({"customer": stripe_customer_id, "limit": 100})
    return [it.to_dict() for it in page.auto_paging_iter()]
