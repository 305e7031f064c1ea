"""The plans that customers can be put on: those of the price book that is in force.

Only names and currencies are read here. What a plan costs, and whether the book is right, is the rating's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml
from sqlalchemy import Engine, select

from meterhouse_store import registry
from meterhouse_store.tables import price_books


@dataclass(frozen=True)
class Offer:
    """The plans of price book `version`, each with its currency; `rates` are the pairs that the book converts."""

    version: int
    currencies: dict[str, str]
    rates: frozenset[tuple[str, str]] = frozenset()


class PlanRefused(ValueError):
    """A plan or currency that the price book in force does not have; the text says what it has."""


class CurrencyRefused(PlanRefused):
    """A customer's currency that is not its plan's; `plain` says it without a command."""

    def __init__(self, customer_id: str, plan: str, own: str, currency: str, offer: Offer) -> None:
        has = f"version {offer.version} has {_listed(offer)}"
        super().__init__(
            f"plan {plan} is in {own}, {customer_id} in {currency}: `meterhouse customers add {customer_id} "
            f"--plan {plan} --currency {own}`, or name another plan ({has})"
        )
        self.plain = (
            f"The plan {plan} is in {own}, and the price book has no rate from {own} to {currency}. Write {own}, "
            f"choose a plan in {currency} (price book {has}), or publish a price book with that rate first."
        )


def offered(engine: Engine, namespace: str, at: datetime) -> Offer | None:
    """What the price book in force at `at` offers, or else the first one to come; None before any was published."""
    table = price_books
    query = select(table.c.version, table.c.source, table.c.valid_from).where(table.c.namespace == namespace)
    with engine.connect() as connection:
        known = connection.execute(query).all()
    row = _in_force(known, at)
    if row is None:
        return None
    book = yaml.safe_load(row.source)  # checked when it was published
    currency = book.get("currency", "USD")
    rates = frozenset((str(it["from"]), str(it["to"])) for it in book.get("rates") or ())
    currencies = {name: (plan or {}).get("currency", currency) for name, plan in book["plans"].items()}
    return Offer(row.version, currencies, rates)


def check(offer: Offer, customer_id: str, plan: str, currency: str | None) -> str:
    """The currency of a customer on `plan`: the plan's own, or one that the price book converts it to.

    Raises PlanRefused for a plan that is not offered, and for a `currency` that is not the plan's.
    """
    if plan not in offer.currencies:
        raise PlanRefused(
            f"there is no plan {plan!r} in price book version {offer.version} (it has {', '.join(offer.currencies)}): "
            "name one of these, or publish a book that has it first"
        )
    own = offer.currencies[plan]
    if currency is not None and (own, currency) in offer.rates:
        return currency
    if currency not in (None, own):
        raise CurrencyRefused(customer_id, plan, own, str(currency), offer)
    return own


def currency_on(
    engine: Engine,
    namespace: str,
    customer_id: str,
    plan: str | None,
    currency: str | None,
    valid_from: datetime | None,
) -> str | None:
    """The currency that the customer has on its plan; `currency` as it is where there is nothing to compare with.

    The plan is the one given, else the one that the customer is on. Raises PlanRefused where it does not fit.
    """
    at = valid_from or datetime.now(UTC)
    offer = offered(engine, namespace, at)
    if offer is None or (plan is None and currency is None):
        return currency
    if plan is None:
        known = registry.contracts(engine, namespace, customer_id)
        begun = [contract.plan for contract in known if contract.valid_from <= at]
        if not begun or begun[-1] not in offer.currencies:
            return currency
        plan = begun[-1]
    if currency is None:
        found = registry.customer(engine, namespace, customer_id)
        currency = None if found is None else found.currency
    return check(offer, customer_id, plan, currency)


def _listed(offer: Offer) -> str:
    """`pro in USD, big in EUR`"""
    return ", ".join(f"{name} in {currency}" for name, currency in offer.currencies.items())


def _in_force(known: Sequence[Any], at: datetime) -> Any:
    begun = [row for row in known if row.valid_from <= at]
    if begun:
        return max(begun, key=lambda row: (row.valid_from, row.version))
    return min(known, key=lambda row: (row.valid_from, -row.version), default=None)
