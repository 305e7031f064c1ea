"""Top-ups: a customer buys credits on a page of Stripe. `top_up_news` says what becomes of it.

What a portal or a command needs is `offer` (what may be bought) and `start` (the page).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import stripe

from meterhouse_billing import drivers, policies, purchases, stripe_customers
from meterhouse_billing.amounts import to_stripe
from meterhouse_billing.documents import CUSTOMER_ID, NAMESPACE
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.purchases import PAGE
from meterhouse_billing.world import World
from meterhouse_rating.ids import digest
from meterhouse_rating.money import show
from meterhouse_store.sql import begin_write

PURCHASE_ID: Final = "meterhouse_purchase_id"
PAGE_LIFE: Final = timedelta(hours=24)
"""So long a page of Stripe takes a payment."""


class TopUpRefused(BillingError):
    """A top-up that cannot be; the text says why, and what to do."""


@dataclass(frozen=True)
class Offer:
    """What a customer may buy at once, in minor units of its currency; `refusal` says why nothing."""

    currency: str
    amounts_minor: tuple[int, ...]
    refusal: str = ""


@dataclass(frozen=True)
class Started:
    """A page of Stripe on which a top-up is paid; good for a day."""

    purchase_id: str
    url: str


def offer(world: World, customer_id: str) -> Offer:
    """What the customer may buy; asks nobody but our own records. For the portal's top-up page. Raises BillingError."""
    currency = str(stripe_customers.registered(world, customer_id)["currency"])
    amounts = policies.load(world.engine, world.namespace, customer_id).top_up_amounts.get(currency, ())
    refusal = refusal_of(world, customer_id)
    if not refusal and not amounts:
        refusal = (
            f"nothing is offered in {currency}: `meterhouse bill settings --top-up-amounts {currency}=10/50 --why TEXT`"
        )
    return Offer(currency, () if refusal else amounts, refusal)


def refusal_of(world: World, customer_id: str) -> str:
    """Why the customer can buy no credits through Stripe; '' where it can."""
    known = drivers.drivers(world.engine, world.namespace)
    if drivers.driver_at(known, customer_id, world.now()) == drivers.METERS:
        return f"{customer_id} is billed by Stripe's meters, where credits do not pay"
    if policies.load(world.engine, world.namespace, customer_id).automatic_tax:
        return "with automatic tax credits are sold on invoices: a credit pack, or `credits top-up-on-invoice`"
    return ""


def start(
    world: World, customer_id: str, amount_minor: int, return_url: str, *, who: str, reference: str = ""
) -> Started:
    """A page of Stripe on which the customer pays for credits; for the portal's top-up page and `credits top-up`.

    `amount_minor` is one of `offer`'s, `return_url` where Stripe sends the customer afterwards. With the same
    `reference` (a form that is sent twice) it is the same page, and none when that is over. Raises TopUpRefused,
    BillingError, StripeUnavailable.
    """
    world = world.of(customer_id)
    row, params = request(world, customer_id, amount_minor, return_url, who=who, reference=reference)
    customer = stripe_customers.ensure(world, stripe_customers.registered(world, customer_id))
    with begin_write(world.engine) as connection:
        purchases.ask(connection, row)
    params["customer"] = customer["stripe_customer_id"]

    def find() -> Mapping[str, Any] | None:
        pages = world.gateway.call(lambda client: _sessions(client, params["customer"]))
        return next((it for it in pages if (it["metadata"] or {}).get(PURCHASE_ID) == row["purchase_id"]), None)

    outbox = Outbox(world.engine, world.gateway, world.namespace, world.now)
    made = outbox.call("checkout.create", row["purchase_id"], {"params": params}, find, unique=True)
    purchases.change(world.engine, row["purchase_id"], stripe_id=made["id"], url=made["url"])
    begun_at = purchases.one(world.engine, row["purchase_id"])["created_at"]
    if made["url"] is None or world.now() >= begun_at + PAGE_LIFE:  # Stripe shows no address of one that is over
        raise TopUpRefused("the page is over: begin again")
    return Started(row["purchase_id"], str(made["url"]))


def request(
    world: World, customer_id: str, amount_minor: int, return_url: str, *, who: str, reference: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a purchase, and exactly what Stripe would be sent; writes nothing. Raises TopUpRefused."""
    found = offer(world, customer_id)
    if found.refusal:
        raise TopUpRefused(found.refusal)
    if amount_minor not in found.amounts_minor:
        amounts = ", ".join(show(it, found.currency) for it in found.amounts_minor)
        raise TopUpRefused(f"{show(amount_minor, found.currency)} is not offered: {amounts} {found.currency} are")
    now = world.now()
    row = row_of(world, customer_id, PAGE, amount_minor, found.currency, [reference or now.isoformat()], who)
    metadata = metadata_of(row)
    price = {
        "currency": found.currency.lower(),
        "unit_amount": to_stripe(amount_minor, found.currency),
        "product_data": {"name": "Credits"},
    }
    params = {
        "mode": "payment",
        "customer": stripe_customers.registered(world, customer_id)["stripe_customer_id"] or "(new customer)",
        "line_items": [{"price_data": price, "quantity": 1}],
        "payment_intent_data": {"description": "Credits", "metadata": metadata, **fee_of(world, row)},
        "success_url": return_url,
        "metadata": metadata,
    }
    return row, params


def row_of(
    world: World, customer_id: str, how: str, amount_minor: int, currency: str, asked: list[Any], who: str
) -> dict[str, Any]:
    """A purchase as it begins; `asked` makes its id, with namespace, customer and `how`."""
    return {
        "purchase_id": digest(["purchase", world.namespace, customer_id, how, *asked]),
        "namespace": world.namespace,
        "customer_id": customer_id,
        "how": how,
        "amount_minor": amount_minor,
        "currency": currency,
        "who": who[:128],
        "created_at": world.now(),
    }


def fee_of(world: World, row: Mapping[str, Any]) -> dict[str, int]:
    """What the platform keeps of a payment to a connected account, as a parameter of it."""
    policy = policies.load(world.engine, world.namespace, row["customer_id"])
    fee = policy.fee.of(row["amount_minor"], row["currency"]) if policy.stripe_account else 0
    return {"application_fee_amount": to_stripe(fee, row["currency"])} if fee else {}


def metadata_of(row: Mapping[Any, Any]) -> dict[str, str]:
    """What leads from Stripe's objects back to a purchase."""
    named = {NAMESPACE: row["namespace"], CUSTOMER_ID: row["customer_id"]}
    return named | {PURCHASE_ID: row["purchase_id"]}


def _sessions(client: stripe.StripeClient, stripe_customer_id: str) -> list[dict[str, Any]]:
    page = client.v1.checkout.sessions.list({"customer": stripe_customer_id, "limit": 100})
    return [it.to_dict() for it in page.auto_paging_iter()]
