"""Roles of people: who may change what has to do with metering, with pricing, with invoicing.

A role that nobody was given is everybody's, as long as a namespace is one person's or a team's who trust each other.
Once somebody has it, it is theirs alone. What a change needs is said per table (audit_rules.py) and held where every
change passes (audit.py): commands, pages and jobs alike. A name is what changes are recorded under: of commands the
account, of the portal the e-mail address.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, bindparam, func, insert, select

from meterhouse_store.persons import spelt
from meterhouse_store.tables import operator_roles as table

METERING: Final = "metering"
PRICING: Final = "pricing"
INVOICING: Final = "invoicing"
ADMINISTRATION: Final = "administration"
ROLES: Final = {
    METERING: "keys, grant keys, decisions about usage",
    PRICING: "price books, costs, contracts, own prices, discounts",
    INVOICING: "invoices, credit notes, answers to questions, billing's settings and drivers",
    ADMINISTRATION: "roles, operators of the portal",
}

MACHINES: Final = frozenset({"rule", "stripe"})
"""Names under which nobody decides: what was decided before, and what is so in Stripe already."""


# Built once: every change that needs a role asks it, in its own transaction.
_OF_NAMESPACE: Final = select(table).where(table.c.namespace == bindparam("namespace")).order_by(table.c.recorded_at)
_OF_ROLE: Final = _OF_NAMESPACE.where(table.c.role == bindparam("role"))


class NotAllowed(PermissionError):
    """Somebody changes what others have the role for; the text says who."""


@dataclass(frozen=True)
class Holder:
    """Who has a role since when, by whose word and why."""

    role: str
    person: str
    since: datetime
    who: str
    why: str


def holders(connection: Connection, namespace: str, role: str | None = None) -> list[Holder]:
    """Who has which role now, in the order in which they got it."""
    query, named = (_OF_NAMESPACE, {}) if role is None else (_OF_ROLE, {"role": role})
    rows = connection.execute(query, {"namespace": namespace, **named}).mappings()
    latest = {(row["role"], row["person"]): row for row in rows}
    return [
        Holder(row["role"], row["person"], row["recorded_at"], row["who"], row["why"])
        for row in latest.values()
        if row["granted"]
    ]


def require(connection: Connection, namespace: str, role: str, who: str) -> None:
    """Raise NotAllowed where others have the role."""
    found = [it.person for it in holders(connection, namespace, role)]
    if found and who not in MACHINES and spelt(who) not in found:
        raise NotAllowed(
            f"{who} may not change this: {role} of {namespace} ({ROLES[role]}) is with {', '.join(found)} "
            "(`meterhouse namespaces roles`)"
        )


def change(
    connection: Connection, namespace: str, role: str, person: str, *, granted: bool, who: str, why: str, now: datetime
) -> None:
    """Give somebody a role, or take it, in a `sql.begin_write`. Raises NotAllowed, and ValueError for what is none."""
    person = spelt(person)
    if role not in ROLES:
        raise ValueError(f"{role!r} is no role: choose from {', '.join(ROLES)}")
    if not person or not why.strip():
        raise ValueError("say whom, and why: it is kept with the change")
    if not granted and person not in [it.person for it in holders(connection, namespace, role)]:
        raise ValueError(f"{person} does not have the role {role}")
    require(connection, namespace, ADMINISTRATION, who)
    query = select(func.max(table.c.recorded_at)).where(table.c.namespace == namespace)
    latest = connection.execute(query).scalar_one()
    if latest is not None:  # in their order, whatever the clock does
        now = max(now, latest + timedelta(microseconds=1))
    row = {"namespace": namespace, "role": role, "person": person, "recorded_at": now, "granted": int(granted)}
    connection.execute(insert(table).values(**row, who=who[:320], why=why[:500]))
