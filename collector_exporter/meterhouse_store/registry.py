"""The registry: namespaces, customers and their contracts; the keys that they report with are in access.py.

Everything here may be called twice with the same arguments. A contract that has begun is never changed, a later one
follows it.
"""

import hashlib
import re
import secrets
from contextlib import nullcontext
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update

from meterhouse_store import audit, tables
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.persons import is_email
from meterhouse_store.sql import begin_write

ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
"""valid_from of a customer's first contract: usage replayed from before the registration is covered by it."""

OPERATOR = "operator"
AUTO = "auto"

ENDED = ""
"""The plan of a contract that says that there is none any more."""


class RegistryError(ValueError):
    """Something cannot be registered; the text lists everything that is wrong with it."""


@dataclass(frozen=True)
class Namespace:
    """A separate world of customers, prices and money; `kind` is test or live."""

    namespace: str
    kind: str
    default_plan: str | None
    default_currency: str
    created_at: datetime


@dataclass(frozen=True)
class Customer:
    """Who is billed; `origin` is operator, or auto for one that was first seen in usage."""

    namespace: str
    customer_id: str
    name: str
    currency: str
    time_zone: str
    email: str | None
    stripe_customer_id: str | None
    origin: str
    registered_at: datetime
    reference: str | None = None
    """What the operator calls the customer elsewhere, where the id is a pseudonym."""


@dataclass(frozen=True)
class Contract:
    """The plan of a customer from `valid_from` until its next contract; ENDED where there is none from then on."""

    contract_id: str
    namespace: str
    customer_id: str
    plan: str
    valid_from: datetime
    recorded_at: datetime


def ensure_namespace(
    engine: Engine,
    namespace: str,
    *,
    default_plan: str | None = None,
    default_currency: str = "USD",
    now: datetime | None = None,
) -> Namespace:
    """The namespace, created with these defaults where it does not exist, and given them where it does."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", namespace):
        raise RegistryError(f"namespace {namespace!r}: 1 to 64 of a-z, 0-9, _ and -, the first a letter or digit")
    refuse(_currency_mistakes(default_currency))
    with begin_write(engine) as connection:
        table = tables.namespaces
        found = _one(connection, Namespace, table, table.c.namespace == namespace)
        if found is None:
            kind = "test" if namespace == "test" or namespace.startswith("test-") else "live"
            found = Namespace(namespace, kind, default_plan, default_currency, now or datetime.now(UTC))
            connection.execute(insert(table).values(**vars(found)))
        elif (found.default_plan, found.default_currency) != (default_plan, default_currency):
            connection.execute(
                update(table)
                .where(table.c.namespace == namespace)
                .values(default_plan=default_plan, default_currency=default_currency)
            )
            found = Namespace(namespace, found.kind, default_plan, default_currency, found.created_at)
    return found


def namespace(engine: Engine, name: str) -> Namespace | None:
    """The namespace of that name."""
    with engine.connect() as connection:
        return _one(connection, Namespace, tables.namespaces, tables.namespaces.c.namespace == name)


def namespaces(engine: Engine) -> list[Namespace]:
    """All namespaces, by name."""
    table = tables.namespaces
    return _all(engine, Namespace, table, table.c.namespace.is_not(None), table.c.namespace)


def add_customer(
    engine: Engine,
    namespace: str,
    customer_id: str,
    *,
    name: str | None = None,
    currency: str | None = None,
    time_zone: str | None = None,
    email: str | None = None,
    stripe_customer_id: str | None = None,
    reference: str | None = None,
    plan: str | None = None,
    valid_from: datetime | None = None,
    origin: str = OPERATOR,
    now: datetime | None = None,
) -> Customer:
    """Register a customer, or change what is given of one that is there; with `plan`, also its contract.

    Without `valid_from` a first contract holds from the beginning, a later one (another plan) from now; one that has
    not begun yet is replaced by another plan from the same moment. An `auto` registration changes nothing of a customer
    that exists. Raises RegistryError with all that is wrong: a bad currency or time zone, a change of either after a
    period was closed, two plans from the same past moment, an id with a space in it that no agent has reported.
    """
    now = now or datetime.now(UTC)
    refuse(_customer_mistakes(customer_id, currency, time_zone, email, valid_from, plan))
    given = {
        "name": name,
        "currency": currency,
        "time_zone": time_zone,
        "email": email,
        "stripe_customer_id": stripe_customer_id,
        "reference": reference,
    }
    table = tables.customers
    is_it = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    # What registers itself does so by the namespace's rule for it, not by whom the process runs as.
    with audit.acting(audit.RULE) if origin == AUTO else nullcontext(), begin_write(engine) as connection:
        world = _one(connection, Namespace, tables.namespaces, tables.namespaces.c.namespace == namespace)
        if world is None:
            raise RegistryError(f"there is no namespace {namespace!r}: `meterhouse up` creates it")
        found = _one(connection, Customer, table, is_it)
        if found is None:
            if origin == OPERATOR:
                refuse(_typing_mistakes(connection, namespace, customer_id))
            values = {key: value for key, value in given.items() if value is not None}
            defaults: dict[str, Any] = {
                "name": customer_id,
                "currency": world.default_currency,
                "time_zone": "UTC",
                "email": None,
                "stripe_customer_id": None,
                "reference": None,
            }
            found = Customer(
                namespace=namespace, customer_id=customer_id, origin=origin, registered_at=now, **(defaults | values)
            )
            connection.execute(insert(table).values(**vars(found)))
        elif origin == AUTO:
            return found
        else:
            changes = _changes(connection, found, given | {"origin": origin})
            if changes:
                connection.execute(update(table).where(is_it).values(**changes))
                found = Customer(**(vars(found) | changes))
        if plan is not None:
            _add_contract(connection, found, plan, valid_from, now)
    return found


def new_pseudonym() -> str:
    """A customer id that says nothing about anybody: whom it stands for is known to the registry alone."""
    return f"cus_{secrets.token_hex(10)}"


def end_contract(
    engine: Engine, namespace: str, customer_id: str, at: datetime, *, who: str, why: str, now: datetime
) -> tuple[Contract, bool]:
    """End a customer's contract; the one that ends, and whether that is new. May be repeated.

    Until then `withdraw_contract` takes it back, and a later contract begins anew. Raises RegistryError where no
    contract holds then, where another one begins later, into a closed period, and for a reason that says nothing.
    """
    if not why.strip():
        raise RegistryError("say why: it is kept with the record")
    at, table = at.astimezone(UTC), tables.contracts
    of_customer = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    with begin_write(engine) as connection:
        is_it = (tables.customers.c.namespace == namespace) & (tables.customers.c.customer_id == customer_id)
        found = _one(connection, Customer, tables.customers, is_it)
        if found is None:
            raise RegistryError(f"{customer_id} is not registered: `meterhouse customers list` shows who is")
        known = [
            Contract(**row)
            for row in connection.execute(select(table).where(of_customer).order_by(table.c.valid_from)).mappings()
        ]
        before = [it for it in known if it.valid_from < at]
        later = [it for it in known if it.valid_from >= at]
        if before and [(it.plan, it.valid_from) for it in later] == [(ENDED, at)]:
            return before[-1], False
        if not before or before[-1].plan == ENDED:
            raise RegistryError(f"{customer_id} has no contract that could end at {at.isoformat()}")
        if later:
            raise RegistryError(
                f"another contract of {customer_id} begins at {later[0].valid_from.isoformat()}: take that back first, "
                f"`meterhouse customers withdraw {customer_id} --valid-from {later[0].valid_from.isoformat()}`"
            )
        _refuse_closed(connection, found, at)
        made = _new_contract(found, ENDED, at, now)
        connection.execute(insert(table).values(**vars(made)))
        connection.execute(
            insert(tables.contract_ends).values(
                contract_id=made.contract_id,
                namespace=namespace,
                customer_id=customer_id,
                who=who[:128],
                why=why[:500],
                recorded_at=now,
            )
        )
    return before[-1], True


def _new_contract(customer: Customer, plan: str, valid_from: datetime, now: datetime) -> Contract:
    identity = "\n".join((customer.namespace, customer.customer_id, valid_from.isoformat(timespec="microseconds")))
    name = hashlib.sha256(identity.encode()).hexdigest()
    return Contract(name, customer.namespace, customer.customer_id, plan, valid_from, now)


def withdraw_contract(
    engine: Engine, namespace: str, customer_id: str, valid_from: datetime, *, now: datetime | None = None
) -> Contract:
    """Take back a contract that has not begun yet; returns it. The one before it goes on.

    Raises RegistryError where there is none from that moment, and for one that has begun.
    """
    now = now or datetime.now(UTC)
    table = tables.contracts
    of_customer = (table.c.namespace == namespace) & (table.c.customer_id == customer_id)
    with begin_write(engine) as connection:
        found = _one(connection, Contract, table, of_customer & (table.c.valid_from == valid_from))
        if found is None:
            raise RegistryError(
                f"{customer_id} has no contract from {valid_from.isoformat()}: `meterhouse customers list` shows them"
            )
        if found.valid_from <= now:
            raise RegistryError(
                f"the contract of {customer_id} on plan {found.plan or 'none'} began at "
                f"{found.valid_from.isoformat()} and is not changed: end it with another plan, "
                f"`meterhouse customers add {customer_id} --plan PLAN`, or `meterhouse contracts cancel {customer_id}`"
            )
        ends = tables.contract_ends
        connection.execute(delete(ends).where(ends.c.contract_id == found.contract_id))
        connection.execute(delete(table).where(table.c.contract_id == found.contract_id))
    return found


def customer(engine: Engine, namespace: str, customer_id: str) -> Customer | None:
    """The customer, if it is registered."""
    of = tables.customers.c
    with engine.connect() as connection:
        return _one(
            connection, Customer, tables.customers, (of.namespace == namespace) & (of.customer_id == customer_id)
        )


def customers(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Customer]:
    """The customers of a namespace, or the one, by id."""
    table = tables.customers
    found = table.c.namespace == namespace
    if customer_id is not None:
        found &= table.c.customer_id == customer_id
    return _all(engine, Customer, table, found, table.c.customer_id)


def contracts(engine: Engine, namespace: str, customer_id: str | None = None) -> list[Contract]:
    """All contracts of a namespace, or of one customer, by customer and valid_from."""
    table = tables.contracts
    found = table.c.namespace == namespace
    if customer_id is not None:
        found &= table.c.customer_id == customer_id
    return _all(engine, Contract, table, found, table.c.customer_id, table.c.valid_from)


def _add_contract(
    connection: Connection, customer: Customer, plan: str, valid_from: datetime | None, now: datetime
) -> None:
    table = tables.contracts
    of_customer = (table.c.namespace == customer.namespace) & (table.c.customer_id == customer.customer_id)
    known = [
        Contract(**row)
        for row in connection.execute(select(table).where(of_customer).order_by(table.c.valid_from)).mappings()
    ]
    if valid_from is None:
        in_force = [contract for contract in known if contract.valid_from <= now]
        if in_force and in_force[-1].plan == plan:
            return
        valid_from = now if known else ALWAYS
    valid_from = valid_from.astimezone(UTC)
    same = next((contract for contract in known if contract.valid_from == valid_from), None)
    if same is not None:
        if same.plan == plan:
            return
        if valid_from <= now:
            raise RegistryError(
                f"{customer.customer_id} is on plan {same.plan or 'none'} from {valid_from.isoformat()}; a contract "
                f"that has begun is not changed: give {plan!r} a later --valid-from"
            )
        _refuse_closed(connection, customer, valid_from)
        is_same = table.c.contract_id == same.contract_id
        connection.execute(update(table).where(is_same).values(plan=plan, recorded_at=now))
        return
    _refuse_closed(connection, customer, valid_from)
    connection.execute(insert(table).values(**vars(_new_contract(customer, plan, valid_from, now))))


def _refuse_closed(connection: Connection, customer: Customer, valid_from: datetime) -> None:
    """A closed period stays on the plan that it was rated by: its fees would be neither billed anew nor given back."""
    ratings = tables.ratings
    ends = select(ratings.c.period_end).where(
        ratings.c.namespace == customer.namespace,
        ratings.c.customer_id == customer.customer_id,
        ratings.c.state == "closed",
    )
    closed = max(connection.execute(ends).scalars(), default=None)
    if closed is not None and valid_from < closed:
        raise RegistryError(
            f"a period of {customer.customer_id} up to {closed.isoformat()} is closed: let the plan begin then or "
            "later, --valid-from"
        )


def _changes(connection: Connection, found: Customer, given: dict[str, str | None]) -> dict[str, str]:
    changes = {key: value for key, value in given.items() if value is not None and value != getattr(found, key)}
    fixed = [key for key in ("currency", "time_zone") if key in changes]
    if fixed:
        ratings = tables.ratings
        closed = connection.execute(
            select(ratings.c.rating_id)
            .where(
                ratings.c.namespace == found.namespace,
                ratings.c.customer_id == found.customer_id,
                ratings.c.state == "closed",
            )
            .limit(1)
        ).first()
        if closed is not None:
            what = f"of {found.customer_id} cannot change: a period was closed with it; what is to be of another one"
            refuse([f"{key} {what} needs a customer of another id" for key in fixed])
    return changes


def _typing_mistakes(connection: Connection, namespace: str, customer_id: str) -> list[str]:
    """A space is a slip of the hand, unless usage came with it: then only that id can be billed."""
    if not any(character.isspace() for character in customer_id):
        return []
    table = tables.unrated_usage
    reported = select(table.c.unrated_id).where(table.c.namespace == namespace, table.c.customer_id == customer_id)
    if connection.execute(reported.limit(1)).first() is not None:
        return []
    return [f"customer id {customer_id!r} has a space in it: write it without, as agents report it in customer.id"]


def id_mistakes(customer_id: str) -> list[str]:
    """What is wrong with a customer's id."""
    if customer_id and len(customer_id.encode()) <= 256 and customer_id.isprintable():
        return []
    return [f"customer id {customer_id!r}: 1 to 256 bytes of printable characters"]


def _customer_mistakes(
    customer_id: str,
    currency: str | None,
    time_zone: str | None,
    email: str | None,
    valid_from: datetime | None,
    plan: str | None,
) -> list[str]:
    mistakes = id_mistakes(customer_id)
    if currency is not None:
        mistakes += _currency_mistakes(currency)
    if time_zone is not None and time_zone not in _zones():
        mistakes.append(f"time zone {time_zone!r} is not an IANA name such as Europe/Berlin")
    if email and not is_email(email):  # an empty one takes it away
        mistakes.append(f"{email[:80]!r} is no e-mail address: write it as name@example.com")
    if valid_from is not None and valid_from.tzinfo is None:
        mistakes.append(f"valid_from {valid_from.isoformat()} needs a zone")
    if valid_from is not None and plan is None:
        mistakes.append("valid_from belongs to a contract: name the plan too")
    if plan is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", plan):
        mistakes.append(f"plan {plan!r}: 1 to 64 letters, digits, _, . and -")
    return mistakes


@cache
def _zones() -> frozenset[str]:
    """The names of IANA's database, aliases included. A machine's own files have others, too: `right/...` counts leap
    seconds, `localtime` is whatever that machine is set to."""
    names = (files("tzdata") / "zones").read_text(encoding="utf-8").split()
    return frozenset(names) - {"Factory"}  # stands for "not set yet"


def _currency_mistakes(currency: str) -> list[str]:
    if currency in MINOR_DIGITS:
        return []
    return [f"currency {currency!r} is not an ISO 4217 code such as USD"]


def refuse(mistakes: list[str]) -> None:
    """Raise RegistryError with all of them, where there are any."""
    if mistakes:
        raise RegistryError("; ".join(mistakes))


Record = TypeVar("Record", Namespace, Customer, Contract)


def _one(connection: Connection, record: type[Record], table: Table, condition: Any) -> Record | None:
    columns = [table.c[field.name] for field in fields(record)]
    row = connection.execute(select(*columns).where(condition)).mappings().one_or_none()
    return None if row is None else record(**row)


def _all(engine: Engine, record: type[Record], table: Table, condition: Any, *order: Any) -> list[Record]:
    columns = [table.c[field.name] for field in fields(record)]
    with engine.connect() as connection:
        return [
            record(**row) for row in connection.execute(select(*columns).where(condition).order_by(*order)).mappings()
        ]
