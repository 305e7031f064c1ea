"""The plans that customers can be put on: those of the price book that is in force.

Only names and currencies are read here. What a plan costs, and whether the book is right, is the rating's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from sqlalchemy import Engine, select

from meterhouse_store.tables import price_books


@dataclass(frozen=True)
class Offer:
    """The plans of price book `version`, each with its currency; `rates` are the pairs that the book converts."""

    version: int
    currencies: dict[str, str]
    rates: frozenset[tuple[str, str]] = frozenset()


class PlanRefused(ValueError):
    """A plan or currency that the price book in force does not have; the text says what it has."""


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
        raise PlanRefused(
            f"plan {plan} is in {own}, {customer_id} in {currency}: `meterhouse customers add {customer_id} "
            f"--plan {plan} --currency {own}`, or name another plan (version {offer.version} has {_listed(offer)})"
        )
    return own


def _listed(offer: Offer) -> str:
    return ", ".join(f"{name} in {currency}" for name, currency in offer.currencies.items())


def _in_force(known: Sequence[Any], at: datetime) -> Any:
    begun = [row for row in known if row.valid_from <= at]
    if begun:
        return max(begun, key=lambda row: (row.valid_from, row.version))
    return min(known, key=lambda row: (row.valid_from, -row.version), default=None)
