"""What a customer agrees to beside its plan: checked against the price book and its plan, then recorded.

The commands (`meterhouse contracts`) and the operators' pages record through here. All raise RegistryError for what
does not fit, NotThere without a price book.
"""

import textwrap
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import yaml
from sqlalchemy import Engine

from meterhouse_rating.book import Book, Plan, check_component
from meterhouse_rating.layout import money
from meterhouse_rating.models.included import Included
from meterhouse_rating.models.recurring import Recurring
from meterhouse_rating.money import chargeable, largest, smallest, to_minor
from meterhouse_rating.periods import Period, short
from meterhouse_rating.settled import contract_in_force
from meterhouse_rating.versions import NotThere, in_force, versions
from meterhouse_store import agreements, registry
from meterhouse_store.agreements import AddOn, Discount, Override, Quantity
from meterhouse_store.numbers import plain
from meterhouse_store.registry import RegistryError

_COUNTING: Final = (Recurring, Included)
"""The price models that a dated quantity may be named in."""


def terms_at(engine: Engine, namespace: str, customer_id: str, moment: datetime) -> tuple[Book, Plan, str]:
    """The price book, the customer's plan in the month that begins then, or is under way, and the book's text."""
    period = Period(moment, moment + timedelta(days=31))
    version = in_force(versions(engine, namespace), period)
    if version is None:
        raise NotThere("no price book is published: `meterhouse prices publish FILE`")
    contract = contract_in_force(registry.contracts(engine, namespace, customer_id), period)
    if contract is None:
        raise RegistryError(f"{customer_id} has no plan: `meterhouse customers add {customer_id} --plan PLAN`")
    if contract.plan == registry.ENDED:
        began = short(contract.valid_from.replace(microsecond=0))
        raise RegistryError(f"the contract of {customer_id} ended at {began}: `meterhouse customers add` begins anew")
    plan = version.book.plans.get(contract.plan)
    if plan is None:
        raise RegistryError(
            f"{customer_id} is on the plan {contract.plan}, which price book version {version.version} does not have."
        )
    return version.book, plan, version.source


def add_on(
    engine: Engine,
    namespace: str,
    customer_id: str,
    name: str,
    quantity: Decimal,
    *,
    valid_from: datetime,
    valid_until: datetime | None,
    now: datetime | None = None,
) -> AddOn:
    """So many of an add-on of the price book."""
    book, _, _ = terms_at(engine, namespace, customer_id, valid_from)
    if name not in book.addons:
        raise RegistryError(f"The price book has no add-on {name} (it has {', '.join(book.addons) or 'none'}).")
    return agreements.add_addon(
        engine, namespace, customer_id, name, quantity=quantity, valid_from=valid_from, valid_until=valid_until, now=now
    )


def check_own_price(
    engine: Engine, namespace: str, customer_id: str, component: str, text: str, valid_from: datetime
) -> None:
    """Whether the text can be the customer's own price of a component. Raises BookRefused with all mistakes, too."""
    book, plan, _ = terms_at(engine, namespace, customer_id, valid_from)
    if component not in {part.name for part in plan.components}:
        known = ", ".join(part.name for part in plan.components)
        raise RegistryError(f"The plan {plan.name} of {customer_id} has no component {component} (it has {known}).")
    check_component(component, text, book, plan)


def own_price(
    engine: Engine,
    namespace: str,
    customer_id: str,
    component: str,
    text: str,
    *,
    valid_from: datetime,
    valid_until: datetime | None,
    now: datetime | None = None,
) -> Override:
    """A price of the customer's own for one component of its plan. Raises BookRefused, too."""
    check_own_price(engine, namespace, customer_id, component, text, valid_from)
    return agreements.add_override(
        engine, namespace, customer_id, component, text, valid_from=valid_from, valid_until=valid_until, now=now
    )


def discount(
    engine: Engine,
    namespace: str,
    customer_id: str,
    name: str,
    *,
    percent: Decimal | None,
    amount: Decimal | None,
    components: Sequence[str],
    months: int | None,
    before_minimum: bool,
    valid_from: datetime,
    valid_until: datetime | None,
    now: datetime | None = None,
) -> Discount:
    """A coupon, a promotion, or what the customer gets for a commitment."""
    book, plan, _ = terms_at(engine, namespace, customer_id, valid_from)
    known = [part.name for part in plan.components]
    known += [f"{addon}.{part.name}" for addon, its in book.addons.items() for part in its.components]
    for one in components:
        if one not in known:
            raise RegistryError(
                f"The plan {plan.name} of {customer_id} has no component {one}, nor has an add-on "
                f"(there are {', '.join(known)})."
            )
    currency = registry.customers(engine, namespace, customer_id)[0].currency
    if amount is not None and not chargeable(amount, currency):
        span = f"{smallest(currency)} to {largest(currency)}"
        raise RegistryError(f"{plain(amount)} {currency} is no amount that can be charged: {span}")
    return agreements.add_discount(
        engine, namespace, customer_id, name, percent=percent, amount=amount, components=list(components),
        months=months, before_minimum=before_minimum, valid_from=valid_from, valid_until=valid_until, now=now,
    )  # fmt: skip


def counted(
    engine: Engine, namespace: str, customer_id: str, book: Book, plan: Plan, moment: datetime
) -> tuple[str, ...]:
    """The dated quantities, such as seats, that the plan counts at the moment: by its own prices, those of the
    customer's own, or those of an add-on that it may have.
    """
    parts = [*plan.components, *(part for it in book.addons.values() for part in it.components)]
    for own in agreements.overrides(engine, namespace, customer_id):
        if own.valid_until is None or own.valid_until > moment:
            parts.append(check_component(own.component, own.source, book, plan)[0])
    names = [it.quantity if isinstance(it, Recurring) else it.each for it in parts if isinstance(it, _COUNTING)]
    return tuple(sorted({it for it in names if isinstance(it, str)}))


def quantity(
    engine: Engine,
    namespace: str,
    customer_id: str,
    name: str,
    number: Decimal,
    *,
    valid_from: datetime,
    now: datetime | None = None,
) -> Quantity:
    """So many of something that the customer's plan counts, from a moment on."""
    book, plan, _ = terms_at(engine, namespace, customer_id, valid_from)
    known = counted(engine, namespace, customer_id, book, plan, valid_from)
    if name not in known:
        raise RegistryError(
            f"The plan {plan.name} of {customer_id} counts no {name} (it counts {', '.join(known) or 'nothing'}), so "
            "that the number would change nothing."
        )
    return agreements.add_quantity(engine, namespace, customer_id, name, number, valid_from=valid_from, now=now)


def written(source: str, plan: str, component: str) -> str:
    """A component of a plan as it is written in the text of a published book; empty where it is not there."""
    node: yaml.Node | None = yaml.compose(source, Loader=yaml.SafeLoader)
    for key in ("plans", plan, "components", component):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
    if node is None:
        return ""
    # What is before the first line of the block is as far in as its other lines.
    block = " " * node.start_mark.column + source[node.start_mark.index : node.end_mark.index]
    return textwrap.dedent(block).strip() + "\n"


def words(record: Any, currency: str) -> tuple[str, str, str]:
    """What was agreed, as people say it: its kind, its name, its terms; `currency` is the customer's."""
    if isinstance(record, AddOn):
        return "add-on", record.addon, plain(record.quantity)
    if isinstance(record, Override):
        return "price", record.component, record.source.strip().partition("\n")[0]
    if isinstance(record, Discount):
        off = f"{plain(record.percent or Decimal(0))} %"
        if record.amount is not None:
            off = f"{money(to_minor(record.amount, currency, 'half_even'), currency)} {currency} a month"
        of = f" of {', '.join(record.components)}" if record.components else ""
        months = "" if record.months is None else f", {record.months} months"
        return "discount", record.name, f"{off}{of}{months}{', before the minimum' if record.before_minimum else ''}"
    return "quantity", record.name, plain(record.quantity)
