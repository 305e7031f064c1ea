"""What customers agreed to beside their plans: add-ons, prices of their own, discounts, dated quantities.

Everything here may be called twice with the same arguments. A record may begin or end in the past only as far as
nothing that is closed depends on it; it is ended, never changed.
"""

import hashlib
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Table, insert, select, update

from meterhouse_store import tables
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write

MAX_PER_CUSTOMER: Final = 1000
"""So many records of one kind a customer may have."""


@dataclass(frozen=True)
class AddOn:
    """So many of an add-on of the price book."""

    agreement_id: str
    namespace: str
    customer_id: str
    addon: str
    quantity: Decimal
    valid_from: datetime
    valid_until: datetime | None
    recorded_at: datetime


@dataclass(frozen=True)
class Override:
    """A component of the customer's plan at a price of its own; `source` is YAML as in a price book."""

    agreement_id: str
    namespace: str
    customer_id: str
    component: str
    source: str
    valid_from: datetime
    valid_until: datetime | None
    recorded_at: datetime


@dataclass(frozen=True)
class Discount:
    """A percentage, or an amount in major units of the customer's currency, off all components or those named."""

    agreement_id: str
    namespace: str
    customer_id: str
    name: str
    percent: Decimal | None
    amount: Decimal | None
    components: list[str]
    months: int | None
    before_minimum: bool
    valid_from: datetime
    valid_until: datetime | None
    recorded_at: datetime


@dataclass(frozen=True)
class Quantity:
    """From a moment on the customer has so many (seats), until the next record of the name."""

    agreement_id: str
    namespace: str
    customer_id: str
    name: str
    quantity: Decimal
    valid_from: datetime
    recorded_at: datetime


Record = TypeVar("Record", AddOn, Override, Discount, Quantity)

_TABLES: Final[dict[type[Any], Table]] = {
    AddOn: tables.customer_addons,
    Override: tables.price_overrides,
    Discount: tables.customer_discounts,
    Quantity: tables.customer_quantities,
}

_MOST_DIGITS: Final = 24
"""As many as a number in a price book has at most."""


def add_addon(
    engine: Engine,
    namespace: str,
    customer_id: str,
    addon: str,
    *,
    quantity: Decimal = Decimal(1),
    valid_from: datetime,
    valid_until: datetime | None = None,
    now: datetime | None = None,
) -> AddOn:
    """Add an add-on to the customer's plan. Raises RegistryError."""
    _refuse([] if quantity > 0 else [f"a quantity of {quantity}: an add-on is there at least once"])
    _refuse(_too_long(quantity))
    made = {"addon": addon, "quantity": quantity, "valid_until": valid_until}
    return _add(engine, AddOn, namespace, customer_id, addon, valid_from, made, now)


def add_override(
    engine: Engine,
    namespace: str,
    customer_id: str,
    component: str,
    source: str,
    *,
    valid_from: datetime,
    valid_until: datetime | None = None,
    now: datetime | None = None,
) -> Override:
    """Give the customer a price of its own. Raises RegistryError."""
    made = {"component": component, "source": source, "valid_until": valid_until}
    return _add(engine, Override, namespace, customer_id, component, valid_from, made, now)


def add_discount(
    engine: Engine,
    namespace: str,
    customer_id: str,
    name: str,
    *,
    percent: Decimal | None = None,
    amount: Decimal | None = None,
    components: list[str] | None = None,
    months: int | None = None,
    before_minimum: bool = False,
    valid_from: datetime,
    valid_until: datetime | None = None,
    now: datetime | None = None,
) -> Discount:
    """Give the customer a discount. Raises RegistryError."""
    mistakes = []
    if (percent is None) == (amount is None):
        mistakes.append("a discount is a percentage or an amount: give one of the two")
    if percent is not None and not 0 < percent <= 100:
        mistakes.append(f"{percent} percent: write a number above 0, up to 100")
    if amount is not None and amount <= 0:
        mistakes.append(f"an amount of {amount}: write one above 0")
    mistakes += _too_long(*(it for it in (percent, amount) if it is not None))
    if months is not None and months < 1:
        mistakes.append(f"{months} months: write at least 1")
    if not name.strip() or len(name) > 128:
        mistakes.append("a discount needs a name of 1 to 128 characters, which stands on invoices")
    _refuse(mistakes)
    made = {
        "name": name,
        "percent": percent,
        "amount": amount,
        "components": sorted(set(components or ())),
        "months": months,
        "before_minimum": before_minimum,
        "valid_until": valid_until,
    }
    return _add(engine, Discount, namespace, customer_id, name, valid_from, made, now)


def add_quantity(
    engine: Engine,
    namespace: str,
    customer_id: str,
    name: str,
    quantity: Decimal,
    *,
    valid_from: datetime,
    now: datetime | None = None,
) -> Quantity:
    """Say how many the customer has from a moment on. Raises RegistryError."""
    _refuse([] if quantity >= 0 else [f"a quantity of {quantity}: write 0 or more"])
    _refuse(_too_long(quantity))
    return _add(engine, Quantity, namespace, customer_id, name, valid_from, {"name": name, "quantity": quantity}, now)


def end(
    engine: Engine, namespace: str, beginning: str, valid_until: datetime, *, now: datetime | None = None
) -> AddOn | Override | Discount:
    """End an add-on, a price or a discount; `beginning` of its id. One that ends where it begins never held.

    Raises RegistryError where there is none, or several, or it has ended, or a closed period depends on it.
    """
    del now
    with begin_write(engine) as connection:
        found: list[tuple[type[Any], Any]] = []
        for record in (AddOn, Override, Discount):
            table = _TABLES[record]
            matches = table.c.agreement_id.startswith(beginning, autoescape=True)
            query = select(table).where(table.c.namespace == namespace, matches)
            found += [(record, row) for row in connection.execute(query).mappings()]
        if len(found) != 1:
            many = "several agreements begin" if found else "no agreement begins"
            raise RegistryError(f"{many} with {beginning!r}: `meterhouse contracts show CUSTOMER` lists them")
        record, row = found[0]
        valid_until = valid_until.astimezone(UTC)
        mistakes = []
        if row["valid_until"] is not None and row["valid_until"] != valid_until:
            mistakes.append(f"it ends on {row['valid_until'].isoformat()} already")
        if valid_until < row["valid_from"]:
            mistakes.append(f"it begins on {row['valid_from'].isoformat()}: it cannot end before")
        closed = _closed_through(connection, namespace, row["customer_id"])
        if closed is not None and valid_until < closed:
            mistakes.append(f"a period up to {closed.isoformat()} is closed: end it then or later")
        _refuse(mistakes)
        table = _TABLES[record]
        is_it = table.c.agreement_id == row["agreement_id"]
        connection.execute(update(table).where(is_it).values(valid_until=valid_until))
        return _made(record, {**row, "valid_until": valid_until})  # type: ignore[no-any-return]


def addons(engine: Engine, namespace: str, customer_id: str | None = None) -> list[AddOn]:
    """All add-ons of a namespace, or of one customer, by customer and valid_from."""
    return _all(engine, AddOn, namespace, customer_id)


def overrides(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Override]:
    """All prices of customers' own, or of one customer, by customer and valid_from."""
    return _all(engine, Override, namespace, customer_id)


def discounts(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Discount]:
    """All discounts, or of one customer, by customer and valid_from."""
    return _all(engine, Discount, namespace, customer_id)


def quantities(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Quantity]:
    """All dated quantities, or of one customer, by customer and valid_from."""
    return _all(engine, Quantity, namespace, customer_id)


def _add(
    engine: Engine,
    record: type[Record],
    namespace: str,
    customer_id: str,
    name: str,
    valid_from: datetime,
    values: dict[str, Any],
    now: datetime | None,
) -> Record:
    now, valid_from = now or datetime.now(UTC), valid_from.astimezone(UTC)
    until = values.get("valid_until")
    if until is not None and until <= valid_from:
        raise RegistryError(f"it ends on {until.isoformat()}, before it begins")
    identity = "\n".join((record.__name__, namespace, customer_id, name, valid_from.isoformat()))
    whole = {
        "agreement_id": hashlib.sha256(identity.encode()).hexdigest(),
        "namespace": namespace,
        "customer_id": customer_id,
        "valid_from": valid_from,
        **values,
    }
    table = _TABLES[record]
    with begin_write(engine) as connection:
        customers = tables.customers
        is_it = (customers.c.namespace == namespace) & (customers.c.customer_id == customer_id)
        if connection.execute(select(customers.c.customer_id).where(is_it).with_for_update()).first() is None:
            add = f"`meterhouse customers add {customer_id} --plan PLAN`"
            raise RegistryError(f"{customer_id} is not registered: {add}")
        same = table.c.agreement_id == whole["agreement_id"]
        row = connection.execute(select(table).where(same)).mappings().one_or_none()
        if row is not None:
            standing = _made(record, dict(row))
            if all(getattr(standing, key) == value for key, value in whole.items() if key != "valid_until"):
                return standing
            raise RegistryError(
                f"{customer_id} has another agreement on {name} from {valid_from.isoformat()}: end that one, or give "
                "another --from"
            )
        closed = _closed_through(connection, namespace, customer_id)
        if closed is not None and valid_from < closed:
            raise RegistryError(f"a period of {customer_id} up to {closed.isoformat()} is closed: begin then or later")
        of_customer = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
        if len(connection.execute(select(table.c.agreement_id).where(of_customer)).all()) >= MAX_PER_CUSTOMER:
            raise RegistryError(f"{customer_id} has {MAX_PER_CUSTOMER} records of this kind; more are not kept")
        connection.execute(insert(table).values(**whole, recorded_at=now))
        return _made(record, {**whole, "recorded_at": now})


def _closed_through(connection: Connection, namespace: str, customer_id: str) -> datetime | None:
    """The end of the customer's last closed period: what was agreed up to there stays as it is."""
    ratings = tables.ratings
    query = select(ratings.c.period_end).where(
        ratings.c.namespace == namespace, ratings.c.customer_id == customer_id, ratings.c.state == "closed"
    )
    return max(connection.execute(query).scalars(), default=None)


def _made(record: type[Record], row: Any) -> Record:
    values = {field.name: row[field.name] for field in fields(record)}
    if record is Discount:
        values["before_minimum"] = bool(values["before_minimum"])
    return record(**values)


def _all(engine: Engine, record: type[Record], namespace: str, customer_id: str | None) -> list[Record]:
    table = _TABLES[record]
    query = select(table).where(table.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(table.c.customer_id == customer_id)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.customer_id, table.c.valid_from, table.c.agreement_id))
        return [_made(record, row) for row in rows.mappings()]


def _too_long(*numbers: Decimal) -> list[str]:
    """What is wrong with numbers that rating could not multiply without losing a digit."""
    digits = [max(it.adjusted(), 0) + 1 + max(-int(it.as_tuple().exponent), 0) for it in numbers]
    return [f"a number of {it} digits: write one of at most {_MOST_DIGITS}" for it in digits if it > _MOST_DIGITS]


def _refuse(mistakes: list[str]) -> None:
    if mistakes:
        raise RegistryError("; ".join(mistakes))
