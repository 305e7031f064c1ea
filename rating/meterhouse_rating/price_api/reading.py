"""What the price API reads from SQL: versions page by page, and all that one customer's price list depends on."""

from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from meterhouse_rating import publishing, versions
from meterhouse_rating.agreed import agreed_in
from meterhouse_rating.price_api import books
from meterhouse_rating.price_api.price_list import PriceList, price_list
from meterhouse_rating.settled import CLOSED, standings
from meterhouse_rating.terms import Terms
from meterhouse_rating.versions import Version
from meterhouse_store import registry


def page(engine: Engine, namespace: str, after: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """The heads of so many versions after one, and the last one's number where there are more."""
    with engine.connect() as connection:
        found = versions.of(connection, namespace, after=after, limit=limit + 1)
    approved = publishing.approvers(engine, namespace)
    heads = [books.head(it, approved.get(it.version)) for it in found[:limit]]
    return heads, found[limit - 1].version if len(found) > limit else None


def one(engine: Engine, namespace: str, number: int) -> Version | None:
    """The version of that number."""
    with engine.connect() as connection:
        return next(iter(versions.of(connection, namespace, after=number - 1, limit=1)), None)


def approver(engine: Engine, namespace: str, version: Version) -> str | None:
    """Who approved the version, where it took two persons."""
    return publishing.approvers(engine, namespace).get(version.version)


def prices_of(engine: Engine, namespace: str, customer_id: str, at: datetime) -> PriceList | None:
    """The customer's price list; None for one that is not registered. Raises NotPriced."""
    customer = registry.customer(engine, namespace, customer_id)
    if customer is None:
        return None
    published = versions.versions(engine, namespace)
    terms = Terms(
        namespace,
        {customer_id: customer},
        {customer_id: registry.contracts(engine, namespace, customer_id)},
        published,
        {it.version: it.book for it in published},
        frozenset(),
        agreed_in(engine, namespace, customer_id=customer_id),
    )
    with engine.connect() as connection:
        closed = [it for it in standings(connection, namespace, customer_id) if it.state == CLOSED]
    return price_list(terms, customer, closed, at)
