"""Who may sign in for a customer, the links that are mailed to them, and their sessions.

A link signs in once, within a quarter of an hour; a session lasts a week, or until the member is removed. Of both only
hashes are kept. Everything is of one namespace.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, insert, select, update

from meterhouse_store.persons import is_email
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import customers, portal_links, portal_members, portal_operators, portal_sessions

VIEWER, BILLING, OWNER = "viewer", "billing", "owner"
ROLES: Final = (VIEWER, BILLING, OWNER)
"""What a member may do; each one includes those before it. viewer: usage; billing: invoices, credits, questions;
owner: members and keys."""

LINK_LIFE: Final = timedelta(minutes=15)
SESSION_LIFE: Final = timedelta(days=7)
MAX_LINKS: Final = 5
"""So many links that were not used may be under way to one address."""


@dataclass(frozen=True)
class Member:
    """Somebody who may sign in for a customer; since when in that role, and who said so."""

    customer_id: str
    email: str
    role: str
    changed_at: datetime
    who: str


@dataclass(frozen=True)
class Visitor:
    """Who is signed in. `customer_id` and `role` are None until one of several customers was chosen."""

    session: str
    email: str
    memberships: tuple[Member, ...]
    customer_id: str | None
    expires_at: datetime
    operator: bool = False
    embedded: bool = False
    """In a frame of another application, without a name: it reads, and changes nothing."""

    @property
    def role(self) -> str | None:
        return next((it.role for it in self.memberships if it.customer_id == self.customer_id), None)

    def may(self, needed: str) -> bool:
        """Whether the role that it has for the chosen customer is enough."""
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(needed)

    @property
    def form_token(self) -> str:
        """What a form of this session carries, so that no other site can send it."""
        return hmac.new(self.session.encode(), b"meterhouse portal form", hashlib.sha256).hexdigest()


def set_role(
    engine: Engine, namespace: str, customer_id: str, email: str, role: str | None, *, who: str, now: datetime
) -> Member | None:
    """Give somebody a role for a customer, or None: take it away. Raises RegistryError.

    The last owner stays one while there are any members: somebody has to be able to add one.
    """
    address = normalised(email)
    if role not in (*ROLES, None):
        raise RegistryError(f"{role!r} is no role: {', '.join(ROLES)}")
    with begin_write(engine) as connection:
        is_it = (customers.c.namespace == namespace) & (customers.c.customer_id == customer_id)
        if connection.execute(select(customers.c.customer_id).where(is_it).with_for_update()).first() is None:
            raise RegistryError(f"there is no customer {customer_id!r} in {namespace}: `meterhouse customers list`")
        known = {it.email: it.role for it in _members(connection, namespace, customer_id)}
        is_last_owner = known.get(address) == OWNER and [*known.values()].count(OWNER) == 1
        if is_last_owner and role != OWNER and (role or len(known) > 1):
            raise RegistryError(f"{address} is the last owner of {customer_id}: make another one first")
        values = {"namespace": namespace, "customer_id": customer_id, "email": address}
        last = connection.execute(
            select(func.max(portal_members.c.changed_at)).where(*(portal_members.c[it] == values[it] for it in values))
        ).scalar()
        if last is not None and last >= now:
            now = last + timedelta(microseconds=1)
        connection.execute(insert(portal_members).values(**values, changed_at=now, role=role, who=who))
        if role is None:
            _end_all(connection, namespace, address, now, customer_id)
    return None if role is None else Member(customer_id, address, role, now, who)


def set_operator(engine: Engine, namespace: str, email: str, active: bool, *, who: str, now: datetime) -> str:
    """Let somebody sign in as operator, or not any more; the address as it is kept. Raises RegistryError."""
    address, table = normalised(email), portal_operators
    with begin_write(engine) as connection:
        mine = (table.c.namespace == namespace) & (table.c.email == address)
        last = connection.execute(select(func.max(table.c.changed_at)).where(mine)).scalar()
        if last is not None and last >= now:
            now = last + timedelta(microseconds=1)
        row = {"namespace": namespace, "email": address, "changed_at": now, "active": int(active), "who": who}
        connection.execute(insert(table).values(**row))
        if not active:
            _end_all(connection, namespace, address, now)
    return address


def operators(engine: Engine, namespace: str) -> list[str]:
    """The addresses of those who may sign in as operators."""
    with engine.connect() as connection:
        query = select(portal_operators.c.email).where(portal_operators.c.namespace == namespace).distinct()
        every = sorted(connection.execute(query).scalars())
        return [email for email in every if _is_operator(connection, namespace, email)]


def members(engine: Engine, namespace: str, customer_id: str) -> list[Member]:
    """The members of a customer, by address."""
    with engine.connect() as connection:
        return _members(connection, namespace, customer_id)


def request_link(engine: Engine, namespace: str, email: str, now: datetime) -> str | None:
    """A new link's token for a member; None for anybody else, and where enough links are under way already."""
    try:
        address = normalised(email)
    except RegistryError:
        return None
    with begin_write(engine) as connection:
        if not _memberships(connection, namespace, address) and not _is_operator(connection, namespace, address):
            return None
        open_links = select(func.count()).where(
            portal_links.c.namespace == namespace,
            portal_links.c.email == address,
            portal_links.c.used_at.is_(None),
            portal_links.c.expires_at > now,
        )
        if connection.execute(open_links).scalar_one() >= MAX_LINKS:
            return None
        token = secrets.token_urlsafe(32)
        connection.execute(
            insert(portal_links).values(
                token_sha256=_hash(token), namespace=namespace, email=address, created_at=now,
                expires_at=now + LINK_LIFE,
            )
        )  # fmt: skip
    return token


def sign_in(engine: Engine, namespace: str, token: str, now: datetime) -> str | None:
    """A session's token in exchange for a link's, once; None for a link that is used up, too old or none."""
    with begin_write(engine) as connection:
        is_it = (
            (portal_links.c.token_sha256 == _hash(token))
            & (portal_links.c.namespace == namespace)
            & portal_links.c.used_at.is_(None)
            & (portal_links.c.expires_at > now)
        )
        email = connection.execute(select(portal_links.c.email).where(is_it)).scalar()
        # Of two that come at once, one changes the row.
        if email is None or connection.execute(update(portal_links).where(is_it).values(used_at=now)).rowcount != 1:
            return None
        return _new_session(connection, namespace, email, now)


def sign_in_as(engine: Engine, namespace: str, email: str, once: str, now: datetime) -> str | None:
    """A session's token for an address that a provider of identities vouches for; None for whom nobody invited.

    `once`: what the provider's answer was made for, of which there is one. Raises RegistryError the second time.
    """
    try:
        address = normalised(email)
    except RegistryError:
        return None
    with begin_write(engine) as connection:
        is_it = portal_links.c.token_sha256 == _hash(once)
        if connection.execute(select(portal_links.c.used_at).where(is_it)).first() is not None:
            raise RegistryError("that sign-in was used already")
        session = _new_session(connection, namespace, address, now)
        if session is not None:
            connection.execute(
                insert(portal_links).values(
                    token_sha256=_hash(once), namespace=namespace, email=address, created_at=now, expires_at=now,
                    used_at=now,
                )
            )  # fmt: skip
    return session


def visitor(engine: Engine, namespace: str, session: str, now: datetime) -> Visitor | None:
    """Who has the session; None where it has ended, or nothing is left to look at."""
    if not session:
        return None
    with engine.connect() as connection:
        query = select(portal_sessions).where(*_is_session(namespace, session), portal_sessions.c.expires_at > now)
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        mine = tuple(_memberships(connection, namespace, row["email"]))
        operator = _is_operator(connection, namespace, row["email"])
    if not mine and not operator:
        return None
    chosen = row["customer_id"] if any(it.customer_id == row["customer_id"] for it in mine) else None
    return Visitor(session, row["email"], mine, chosen, row["expires_at"], operator)


def choose(engine: Engine, namespace: str, who: Visitor, customer_id: str) -> bool:
    """Look at another of one's customers; False where it is none of them."""
    if not any(it.customer_id == customer_id for it in who.memberships):
        return False
    with begin_write(engine) as connection:
        changed = update(portal_sessions).where(*_is_session(namespace, who.session))
        connection.execute(changed.values(customer_id=customer_id))
    return True


def sign_out(engine: Engine, namespace: str, session: str, now: datetime) -> None:
    """End the session, wherever its token is."""
    with begin_write(engine) as connection:
        connection.execute(update(portal_sessions).where(*_is_session(namespace, session)).values(ended_at=now))


def normalised(email: str) -> str:
    """The address in lower case. Raises RegistryError for what is none."""
    address = email.strip().lower()
    if not is_email(address):
        raise RegistryError(f"{email[:80]!r} is no e-mail address: write it as name@example.com")
    return address


def _new_session(connection: Connection, namespace: str, email: str, now: datetime) -> str | None:
    mine = _memberships(connection, namespace, email)
    if not mine and not _is_operator(connection, namespace, email):
        return None
    session = secrets.token_urlsafe(32)
    connection.execute(
        insert(portal_sessions).values(
            session_sha256=_hash(session), namespace=namespace, email=email,
            customer_id=mine[0].customer_id if len(mine) == 1 else None, created_at=now,
            expires_at=now + SESSION_LIFE,
        )
    )  # fmt: skip
    return session


def _end_all(connection: Connection, namespace: str, email: str, now: datetime, customer_id: str | None = None) -> None:
    """End the sessions of an address (those that look at a customer, or at none yet), and links under way to it."""
    columns = portal_sessions.c
    mine = (columns.namespace == namespace) & (columns.email == email) & columns.ended_at.is_(None)
    if customer_id is not None:
        mine = mine & ((columns.customer_id == customer_id) | columns.customer_id.is_(None))
    connection.execute(update(portal_sessions).where(mine).values(ended_at=now))
    links = (portal_links.c.namespace == namespace) & (portal_links.c.email == email) & portal_links.c.used_at.is_(None)
    connection.execute(update(portal_links).where(links).values(used_at=now))


def _is_session(namespace: str, session: str) -> tuple[Any, ...]:
    columns = portal_sessions.c
    return columns.session_sha256 == _hash(session), columns.namespace == namespace, columns.ended_at.is_(None)


def _members(connection: Connection, namespace: str, customer_id: str) -> list[Member]:
    return _standing(connection, namespace, portal_members.c.customer_id == customer_id)


def _memberships(connection: Connection, namespace: str, email: str) -> list[Member]:
    return _standing(connection, namespace, portal_members.c.email == email)


def _is_operator(connection: Connection, namespace: str, email: str) -> bool:
    table = portal_operators
    query = select(table.c.active).where(table.c.namespace == namespace, table.c.email == email)
    return connection.execute(query.order_by(table.c.changed_at.desc()).limit(1)).scalar() == 1


def _standing(connection: Connection, namespace: str, where: Any) -> list[Member]:
    query = (
        select(*(portal_members.c[name] for name in ("customer_id", "email", "role", "changed_at", "who")))
        .where(portal_members.c.namespace == namespace, where)
        .order_by(portal_members.c.changed_at)
    )
    latest = {(row["customer_id"], row["email"]): row for row in connection.execute(query).mappings()}
    return [Member(**latest[key]) for key in sorted(latest) if latest[key]["role"] is not None]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
