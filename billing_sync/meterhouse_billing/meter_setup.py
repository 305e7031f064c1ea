"""`bill setup`: what the meter driver needs in Stripe: products, meters, prices, customers, subscriptions.

Each object is looked for in Stripe before it is made: a product by its id, a meter by its event name, a price by its
lookup key, a customer and a subscription by metadata. So a run that was stopped anywhere is repeated, and one that has
nothing to do makes nothing. What is made is a row in the outbox first.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import stripe
from sqlalchemy import select, update

from meterhouse_billing import meter_records as records
from meterhouse_billing import policies
from meterhouse_billing.documents import CUSTOMER_ID, NAMESPACE
from meterhouse_billing.drivers import drivers, on_meters_since
from meterhouse_billing.gateway import BillingError, StripeRefused, StripeUnavailable
from meterhouse_billing.meter_prices import Item
from meterhouse_billing.meter_records import Subscription
from meterhouse_billing.meter_terms import refuse_start, terms
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.pace import Pace
from meterhouse_billing.world import World
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import month_of, short
from meterhouse_store import registry
from meterhouse_store.meters import Meter
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import customers

CALLS_PER_S: Final = 20
"""Of all endpoints together; each takes 25, the search for customers 20: https://docs.stripe.com/rate-limits"""
VALID_FROM: Final = "meterhouse_valid_from"

Found = Mapping[str, Any] | None


@dataclass(frozen=True)
class Step:
    """Something that is in Stripe now, or (`request`) would be made; or (`failed`) what keeps a customer from it."""

    customer_id: str
    text: str
    request: Mapping[str, Any] | None = None
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.customer_id}: {'EXCEPTION: ' if self.failed else ''}{self.text}"


@dataclass(frozen=True)
class Choice:
    """What the operator says about customers who are in Stripe already.

    `mapped`: our customer -> the Stripe customer to adopt. `new`: make another one although the e-mail is known there.
    """

    mapped: Mapping[str, str]
    new: frozenset[str] = frozenset()


def setup(
    world: World,
    declared: Mapping[str, Meter],
    choice: Choice,
    *,
    only: str | None = None,
    dry_run: bool = False,
    pace: Pace | None = None,
) -> Iterator[Step]:
    """Set up every customer whose latest driver is the meters. An exception with one does not stop the others.

    Raises StripeUnavailable: everything done stays done. Raises BillingError for a customer that is not on the meters.
    """
    known = drivers(world.engine, world.namespace)
    starts = {name: since for name, found in known.items() if (since := on_meters_since(found)) is not None}
    strangers = {*choice.mapped, *choice.new, *([only] if only else [])} - starts.keys()
    if strangers:
        name = min(strangers)
        raise BillingError(f"{name} is not billed by Stripe's meters: `meterhouse bill driver {name} meters` first")
    made = {it.customer_id: it for it in records.subscriptions(world.engine, world.namespace)}
    pace = pace or Pace(CALLS_PER_S)
    for name, start in sorted(starts.items()):
        if only not in (None, name):
            continue
        one = _Customer(world, declared, choice, name, start, made.get(name), dry_run, pace)
        try:
            yield from one.steps()
        except StripeUnavailable:
            raise
        except BillingError as problem:
            yield Step(name, str(problem), failed=True)


@dataclass
class _Customer:
    world: World
    declared: Mapping[str, Meter]
    choice: Choice
    name: str
    start: datetime
    made: Subscription | None
    dry_run: bool
    pace: Pace

    def __post_init__(self) -> None:
        world = self.world
        self._outbox = Outbox(world.engine, world.gateway, world.namespace, world.now)
        self._steps: list[Step] = []

    def steps(self) -> Iterator[Step]:
        """Make what is missing, in the order in which it needs each other."""
        own, common = (policies.load(self.world.engine, self.world.namespace, it) for it in (self.name, ""))
        if own.stripe_account != common.stripe_account:
            raise BillingError("it has a Stripe account of its own, where only invoices are made: bill it by invoices")
        found = terms(self.world, self.declared, self.name, self.start)
        if self.made is None:
            refuse_start(self.name, self.start, self.world.now(), found.items)
        described = []
        for item in found.items:
            described.append(self._item(found.plan, item))
            yield from self._told()
        stripe_customer = self._customer(found.customer)
        yield from self._told()
        prices = tuple(it["stripe_price_id"] for it in described)
        if self.made is not None and self.made.valid_from >= self.start:
            if self.made.price_ids != prices and not self.dry_run:
                raise BillingError(
                    f"its plan or the price book has changed since the subscription {self.made.stripe_subscription_id} "
                    "was made, and a subscription's prices are not changed within its month: bill by invoices from the "
                    f"next month on (`meterhouse bill driver {self.name} invoices`), or change it in Stripe"
                )
            return
        subscription = self._subscription(found.customer, stripe_customer, prices)
        yield from self._told()
        if not self.dry_run:
            row = Subscription(
                self.name, self.start, stripe_customer, subscription, found.plan, found.version, (), prices
            )
            records.keep_subscription(self.world.engine, self.world.namespace, row, described, self.world.now())

    # ---- one object after the other

    def _item(self, plan: str, item: Item) -> dict[str, Any]:
        namespace = self.world.namespace
        product_id = f"mh_{digest([namespace, plan, item.name])[:32]}"
        product: dict[str, Any] = {
            "id": product_id,
            "name": item.title if not item.metric else f"{item.title} ({item.metric})",
            "metadata": {NAMESPACE: namespace, "meterhouse_plan": plan, "meterhouse_component": item.name},
        }
        if item.tax_code:
            product["tax_code"] = item.tax_code
        self._ensure("product.create", item.name, product, lambda: self._by_id(product_id))
        meter_id = None
        if item.event_name is not None:
            meter_id = self._meter(item.event_name, item.metric)
        price = {**item.price, "product": product_id}
        if meter_id is not None:
            price["recurring"] = {**price["recurring"], "meter": meter_id}
        # The key names what the price says, so that a changed price is another one: Stripe's prices never change.
        key = f"mh_{digest([namespace, plan, item.name, item.event_name, dict(item.price)])[:40]}"
        price |= {"lookup_key": key, "metadata": {NAMESPACE: namespace, "meterhouse_component": item.name}}
        price_id = self._ensure("price.create", item.name, price, lambda: self._price(key))
        return {
            "component": item.component,
            "metric": item.metric,
            "aggregate": item.aggregate,
            "meters": list(item.meters),
            "free_statuses": list(item.free_statuses),
            "event_name": item.event_name,
            "stripe_meter_id": meter_id,
            "stripe_price_id": price_id,
        }

    def _meter(self, event_name: str, metric: str) -> str:
        params = {
            "display_name": f"{metric} ({self.world.namespace})",
            "event_name": event_name,
            "default_aggregation": {"formula": "sum"},
            "event_time_window": "hour",
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }

        def find() -> Found:
            def every(client: stripe.StripeClient) -> list[Any]:
                page = client.v1.billing.meters.list({"limit": 100, "status": "active"})
                return [it for it in page.auto_paging_iter() if it.event_name == event_name]

            found = self._ask(every)
            if found and found[0].event_time_window != "hour":
                raise BillingError(
                    f"the meter {found[0].id} in Stripe has the event name {event_name} and is not one of hourly "
                    "totals: deactivate it there"
                )
            return found[0].to_dict() if found else None

        return self._ensure("meter.create", metric, params, find)

    def _customer(self, customer: registry.Customer) -> str:
        metadata = {NAMESPACE: self.world.namespace, CUSTOMER_ID: self.name}
        wanted = self.choice.mapped.get(self.name)
        if customer.stripe_customer_id is not None:
            if wanted not in (None, customer.stripe_customer_id):
                raise BillingError(f"is {customer.stripe_customer_id} in Stripe already, and cannot become {wanted}")
            return customer.stripe_customer_id
        if wanted is not None:
            return self._adopt(wanted, metadata)
        found = self._known(metadata)
        if found is not None:
            self._say(f"customer {found['id']} found in Stripe by its metadata")
            return self._is(str(found["id"]))
        if customer.email and self.name not in self.choice.new:
            same = self._ask(lambda client: client.v1.customers.list({"email": customer.email or "", "limit": 10})).data
            if same:
                one = same[0].id
                raise BillingError(
                    f"Stripe has {', '.join(it.id for it in same)} with the address {customer.email}: say whether "
                    f"that is this customer (`--map {self.name}={one}`) or not (`--new {self.name}`)"
                )
        params: dict[str, Any] = {"name": customer.name, "metadata": metadata}
        if customer.email:
            params["email"] = customer.email
        subject = digest(["customer", self.world.namespace, self.name])
        made = self._ensure("customer.create", "", params, lambda: self._known(metadata), subject=subject)
        return self._is(made)

    def _known(self, metadata: Mapping[str, str]) -> Found:
        self.pace.wait()
        return self.world.gateway.find_customer(metadata)

    def _adopt(self, wanted: str, metadata: Mapping[str, str]) -> str:
        shown = self._ask(lambda client: client.v1.customers.retrieve(wanted)).to_dict()
        theirs = shown.get("metadata") or {}
        if shown.get("deleted"):
            raise BillingError(f"{wanted} is deleted in Stripe")
        if theirs.get(CUSTOMER_ID, self.name) != self.name or theirs.get(NAMESPACE, self.world.namespace) != (
            self.world.namespace
        ):
            raise BillingError(f"{wanted} is the customer {theirs.get(CUSTOMER_ID)} of {theirs.get(NAMESPACE)} already")
        taken = select(customers.c.customer_id).where(
            customers.c.namespace == self.world.namespace, customers.c.stripe_customer_id == wanted
        )
        with self.world.engine.connect() as connection:
            other = connection.execute(taken).scalars().first()
        if other is not None:
            raise BillingError(f"{wanted} is the customer {other} here already")
        self._change("customer.update", wanted, {"metadata": dict(metadata)})
        self._say(f"customer {wanted} adopted" if not self.dry_run else f"would adopt {wanted}")
        return self._is(wanted)

    def _is(self, stripe_customer_id: str) -> str:
        if not self.dry_run:
            is_it = (customers.c.namespace == self.world.namespace) & (customers.c.customer_id == self.name)
            with begin_write(self.world.engine) as connection:
                change = update(customers).where(is_it).values(stripe_customer_id=stripe_customer_id)
                connection.execute(change)
        return stripe_customer_id

    def _subscription(self, customer: registry.Customer, stripe_customer: str, prices: tuple[str, ...]) -> str:
        now = self.world.now()
        metadata = {
            NAMESPACE: self.world.namespace,
            CUSTOMER_ID: self.name,
            VALID_FROM: short(self.start),
        }
        params: dict[str, Any] = {
            "customer": stripe_customer,
            "items": [{"price": price} for price in prices],
            # Usage of a month begun counts from its start; one to come begins with its first instant.
            "billing_cycle_anchor": int((self.start if self.start > now else month_of(now, "UTC").end).timestamp()),
            "proration_behavior": "none",
            "metadata": metadata,
        }
        if self.start <= now:
            params["backdate_start_date"] = int(self.start.timestamp())
        if self._has_address(customer, stripe_customer):
            days = policies.load(self.world.engine, self.world.namespace, self.name).days_until_due
            params |= {"collection_method": "send_invoice", "days_until_due": days}
        else:
            params |= {"collection_method": "charge_automatically"}

        def find() -> Found:
            def every(client: stripe.StripeClient) -> list[Any]:
                page = client.v1.subscriptions.list({"customer": stripe_customer, "limit": 100})
                return [it.to_dict() for it in page.auto_paging_iter()]

            return next((it for it in self._ask(every) if metadata.items() <= (it["metadata"] or {}).items()), None)

        subject = digest(["subscription", self.world.namespace, self.name, self.start.isoformat()])
        return self._ensure("subscription.create", "", params, find, subject=subject)

    def _has_address(self, customer: registry.Customer, stripe_customer: str) -> bool:
        """Whether Stripe can send the customer invoices: of one that was adopted, Stripe's own address counts."""
        if not stripe_customer.startswith("cus_"):  # one that would be made
            return customer.email is not None
        return bool(self._ask(lambda client: client.v1.customers.retrieve(stripe_customer)).email)

    # ---- the way to Stripe

    def _ensure(
        self,
        operation: str,
        what: str,
        params: Mapping[str, Any],
        find: Callable[[], Found],
        subject: str | None = None,
    ) -> str:
        """The id of what is there, or is made now; in a dry run a placeholder for what would be."""
        kind = operation.partition(".")[0]
        asks_for_nothing_yet = any(str(value).startswith("(new ") for value in params.values())
        found = None if asks_for_nothing_yet else find()
        if found is not None:
            return str(found["id"])
        named = f"{kind} {what}".rstrip()
        if self.dry_run:
            self._steps.append(Step(self.name, f"would make {named}", {"operation": operation, "params": dict(params)}))
            return f"(new {named})"
        name = subject or digest([operation, self.world.namespace, dict(params)])
        self.pace.wait()
        # Stripe's search finds a customer only a minute after it was made, its lists everything at once.
        unique = operation != "customer.create"
        made = str(self._outbox.call(operation, name, {"params": dict(params)}, find, unique=unique)["id"])
        self._say(f"{named}: {made}")
        return made

    def _change(self, operation: str, on: str, params: Mapping[str, Any]) -> None:
        if self.dry_run:
            request = {"operation": operation, "on": on, "params": dict(params)}
            self._steps.append(Step(self.name, f"would change {on}", request))
            return
        subject = digest([operation, self.world.namespace, on, dict(params)])
        self.pace.wait()
        self._outbox.call(operation, subject, {"on": on, "params": dict(params)}, lambda: None)

    def _by_id(self, product_id: str) -> Found:
        try:
            found: Found = self._ask(lambda client: client.v1.products.retrieve(product_id)).to_dict()
            return found
        except StripeRefused as refused:
            if refused.missing:
                return None
            raise

    def _price(self, key: str) -> Found:
        found = self._ask(lambda client: client.v1.prices.list({"lookup_keys": [key], "limit": 1})).data
        return found[0].to_dict() if found else None

    def _ask(self, ask: Callable[[stripe.StripeClient], Any]) -> Any:
        self.pace.wait()
        return self.world.gateway.call(ask)

    def _say(self, text: str) -> None:
        self._steps.append(Step(self.name, text))

    def _told(self) -> Iterator[Step]:
        yield from self._steps
        self._steps.clear()


def payment_link(world: World, customer_id: str, return_url: str) -> str:
    """The address of a page of Stripe on which the customer leaves a way to pay; good for a day.

    Raises BillingError for a customer that is not in Stripe yet.
    """
    found = registry.customer(world.engine, world.namespace, customer_id)
    if found is None or found.stripe_customer_id is None:
        raise BillingError(f"{customer_id} is not in Stripe yet: `meterhouse bill setup --customer {customer_id}`")
    world = world.of(customer_id)
    params = {
        "mode": "setup",
        "customer": found.stripe_customer_id,
        "currency": found.currency.lower(),
        "success_url": return_url,
        "metadata": {NAMESPACE: world.namespace, CUSTOMER_ID: customer_id},
    }
    now = world.now()
    subject = digest(["payment link", world.namespace, customer_id, now.isoformat()])
    outbox = Outbox(world.engine, world.gateway, world.namespace, world.now)
    made = outbox.call("checkout.create", subject, {"params": params}, lambda: None)
    return str(made["url"])
