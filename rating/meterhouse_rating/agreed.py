"""Reads what customers agreed to beside their plans from SQL."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Engine

from meterhouse_rating.agreements import AddOn, Agreement, Discount, Override
from meterhouse_rating.caps import caps_of
from meterhouse_rating.charges import Fact
from meterhouse_store import agreements as store
from meterhouse_store import budgets

Record = TypeVar("Record", store.AddOn, store.Override, store.Discount, store.Quantity)


def agreed_in(
    engine: Engine, namespace: str, known_at: datetime | None = None, customer_id: str | None = None
) -> dict[str, Agreement]:
    """The agreements of a namespace or one customer (recorded up to `known_at`), by customer, where there are any."""
    addons: dict[str, list[AddOn]] = {}
    overrides: dict[str, list[Override]] = {}
    discounts: dict[str, list[Discount]] = {}
    quantities: dict[str, dict[str, list[Fact]]] = {}
    for addon in _known(store.addons(engine, namespace, customer_id), known_at):
        made = AddOn(addon.agreement_id, addon.addon, addon.quantity, addon.valid_from, addon.valid_until)
        addons.setdefault(addon.customer_id, []).append(made)
    for price in _known(store.overrides(engine, namespace, customer_id), known_at):
        own = Override(price.agreement_id, price.component, price.source, price.valid_from, price.valid_until)
        overrides.setdefault(price.customer_id, []).append(own)
    for it in _known(store.discounts(engine, namespace, customer_id), known_at):
        discounts.setdefault(it.customer_id, []).append(
            Discount(
                it.agreement_id,
                it.name,
                it.percent,
                it.amount,
                tuple(it.components),
                it.months,
                it.before_minimum,
                it.valid_from,
                it.valid_until,
            )
        )
    for fact in _known(store.quantities(engine, namespace, customer_id), known_at):
        of_customer = quantities.setdefault(fact.customer_id, {})
        of_customer.setdefault(fact.name, []).append(Fact(fact.valid_from, fact.quantity))
    caps = caps_of(budgets.changes(engine, namespace, customer_id), known_at)
    return {
        name: Agreement(
            tuple(addons.get(name, ())),
            tuple(overrides.get(name, ())),
            tuple(discounts.get(name, ())),
            _facts(quantities.get(name, {})),
            tuple(caps.get(name, ())),
        )
        for name in sorted({*addons, *overrides, *discounts, *quantities, *caps})
    }


def _known(records: list[Record], known_at: datetime | None) -> list[Record]:
    return records if known_at is None else [it for it in records if it.recorded_at <= known_at]


def _facts(found: Mapping[str, list[Fact]]) -> dict[str, tuple[Fact, ...]]:
    return {name: tuple(sorted(facts, key=lambda it: it.valid_from)) for name, facts in sorted(found.items())}
