"""A customer's plan as it is in force in a period: with the customer's own prices and add-ons in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from meterhouse_rating.agreements import AddOn, Agreement
from meterhouse_rating.book import Book, BookRefused, Options, Plan, check_component
from meterhouse_rating.charges import Component, Fact
from meterhouse_rating.facts import at
from meterhouse_rating.models.credit_pack import CreditPack
from meterhouse_rating.models.flat import Flat
from meterhouse_rating.models.included import Included
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.models.percentage import Percentage
from meterhouse_rating.models.recurring import Recurring
from meterhouse_rating.periods import Period

_SHORT_ID: Final = 8


class AgreementRefused(ValueError):
    """An add-on or a price of a customer's own that does not fit; the text says what to do."""


@dataclass(frozen=True)
class Effective:
    """The plan; for components at prices of the customer's own the record that says so; and all dated quantities."""

    plan: Plan
    overrides: Mapping[str, str]
    facts: Mapping[str, tuple[Fact, ...]]


def effective(book: Book, plan: Plan, agreement: Agreement, period: Period) -> Effective:
    """The customer's plan in the period. Raises AgreementRefused."""
    components = {component.name: component for component in plan.components}
    options = dict(plan.options)
    overrides: dict[str, str] = {}
    for override in sorted(agreement.overrides, key=lambda it: it.valid_from):
        if not override.holds(period):
            continue
        if override.component not in components:
            raise AgreementRefused(
                f"the customer has a price of its own for {override.component}, which the plan {plan.name} does not "
                f"have (it has {', '.join(components)}): meterhouse contracts end {override.agreement_id[:12]}"
            )
        component, said = own_price(override.component, override.text, book, plan)
        components[override.component] = component
        options[override.component] = said
        overrides[override.component] = override.agreement_id
    facts = dict(agreement.quantities)
    parts = list(components.values())
    for name in sorted({it.name for it in agreement.addons}):
        rows = [it for it in agreement.addons if it.name == name and it.valid_from < period.end and not it.withdrawn]
        addon = book.addons.get(name)
        if not rows or (addon is not None and not _matters(addon, rows, period)):
            continue
        if addon is None:
            raise AgreementRefused(f"the customer has the add-on {name}, which the price book does not have: add it")
        facts[name] = facts_of(rows)
        for component in addon.components:
            for added in _added(component, name, rows, facts[name], period):
                parts.append(added)
                said = addon.options.get(component.name, Options(component.name))
                title = addon.title if len(addon.components) == 1 else f"{addon.title}: {said.title}"
                options[added.name] = replace(said, title=title)
    _check_once(book, plan, parts)
    return Effective(replace(plan, components=tuple(parts), options=options), overrides, facts)


def own_price(name: str, text: str, book: Book, plan: Plan) -> tuple[Component, Options]:
    """The component of an override. Raises AgreementRefused."""
    try:
        return check_component(name, text, book, plan)
    except BookRefused as refused:
        what = f"the customer's own price of {name} does not fit price book {book.name}: {refused}"
        raise AgreementRefused(what) from None


def facts_of(rows: Iterable[AddOn]) -> tuple[Fact, ...]:
    """How many of an add-on there are over time: rows add up while they hold."""
    changes: dict[datetime, Decimal] = {}
    for row in rows:
        changes[row.valid_from] = changes.get(row.valid_from, Decimal(0)) + row.quantity
        if row.until is not None:
            changes[row.until] = changes.get(row.until, Decimal(0)) - row.quantity
    found, number = [], Decimal(0)
    for moment, change in sorted(changes.items()):
        number += change
        found.append(Fact(moment, number))
    return tuple(found)


def _matters(addon: Plan, rows: Sequence[AddOn], period: Period) -> bool:
    """Whether it has anything to charge: what was bought once stays bought, the rest ends with the add-on."""
    buys = any(isinstance(component, CreditPack) for component in addon.components)
    in_arrears = any(isinstance(component, Recurring) and component.advance for component in addon.components)
    return buys or in_arrears or any(row.touches(period) for row in rows)


def _added(
    component: Component, addon: str, rows: Sequence[AddOn], facts: Sequence[Fact], period: Period
) -> list[Component]:
    """The component as often as the add-on is there; a credit pack once for each time that it was added."""
    name = f"{addon}.{component.name}"
    if isinstance(component, CreditPack):
        return [
            replace(
                component,
                name=f"{name}.{row.agreement_id[:_SHORT_ID]}",
                price=component.price * row.quantity,
                credits=component.credits * row.quantity,
            )
            for row in rows
        ]
    number = at(facts, period.end)
    if isinstance(component, Recurring):
        counted = addon if component.quantity == 1 else component.quantity
        return [replace(component, name=name, quantity=counted, unit=component.unit)]
    if not any(row.touches(period) for row in rows):
        return []
    if isinstance(component, Flat):
        return [replace(component, name=name, price=component.price * max(number, Decimal(1)))]
    if isinstance(component, Included):
        return [replace(component, name=name, included=component.included * max(number, Decimal(1)))]
    if isinstance(component, Percentage | Minimum) and component.depends_on:
        of = tuple(f"{addon}.{it}" for it in component.depends_on)
        return [replace(component, name=name, of=of)]
    return [replace(component, name=name)]  # type: ignore[type-var]  # every model is a dataclass


def _check_once(book: Book, plan: Plan, parts: Sequence[Component]) -> None:
    charged: dict[str, str] = {}
    for component in parts:
        for metric in component.metrics:
            for meter in book.metrics[metric].meters:
                if meter in charged or meter in plan.unbilled:
                    other = charged.get(meter, f"`unbilled` of {plan.name}")
                    raise AgreementRefused(
                        f"{component.name} charges {meter}, and so does {other}: leave one of the two out"
                    )
                charged[meter] = component.name
