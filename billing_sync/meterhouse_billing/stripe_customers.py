"""Our customers in Stripe: found by their metadata, or made, once."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, update

from meterhouse_billing.documents import CUSTOMER_ID, NAMESPACE
from meterhouse_billing.gateway import BillingError
from meterhouse_billing.outbox import Outbox
from meterhouse_billing.world import World
from meterhouse_rating.ids import digest
from meterhouse_store.tables import customers

_REGISTERED: Final = select(customers).where(
    customers.c.namespace == bindparam("namespace"), customers.c.customer_id == bindparam("customer")
)
"""Built once: it is asked for with each invoice."""


def registered(world: World, customer_id: str) -> Mapping[str, Any]:
    """The customer's row. Raises BillingError where there is none."""
    with world.engine.connect() as connection:
        named = {"namespace": world.namespace, "customer": customer_id}
        row = connection.execute(_REGISTERED, named).mappings().one_or_none()
    if row is None:
        raise BillingError("is not registered: `meterhouse customers add`")
    return dict(row)


def ensure(world: World, customer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its `stripe_customer_id`; whoever is not in Stripe yet is put there."""
    if customer["stripe_customer_id"] is not None:
        return customer
    name = customer["customer_id"]
    metadata = {NAMESPACE: world.namespace, CUSTOMER_ID: name}
    params = {"name": customer["name"], "metadata": metadata}
    if customer["email"]:
        params["email"] = customer["email"]

    def keep(connection: Connection, _request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        is_it = (customers.c.namespace == world.namespace) & (customers.c.customer_id == name)
        connection.execute(update(customers).where(is_it).values(stripe_customer_id=answer["id"]))

    answer = Outbox(world.engine, world.gateway, world.namespace, world.now).call(
        "customer.create",
        digest(["customer", world.namespace, name]),
        {"params": params},
        lambda: world.gateway.find_customer(metadata),
        then=keep,
    )
    return {**customer, "stripe_customer_id": answer["id"]}
