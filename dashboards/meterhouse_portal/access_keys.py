"""A customer's keys for the API of its own figures. The text is shown once, only its hash is kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, insert, select, update

from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import portal_keys

PREFIX: Final = "mhc_"
MAX_KEYS: Final = 20


@dataclass(frozen=True)
class AccessKey:
    """A key without its text; it reads the figures of this customer alone."""

    key_id: str
    namespace: str
    customer_id: str
    name: str
    who: str
    created_at: datetime
    revoked_at: datetime | None


def create(
    engine: Engine, namespace: str, customer_id: str, name: str, *, who: str, now: datetime
) -> tuple[AccessKey, str]:
    """A new key and its text. Raises RegistryError."""
    name = name.strip()
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise RegistryError("Give the key a name of at most 128 characters that says what it is for.")
    text = PREFIX + secrets.token_urlsafe(32)
    made = AccessKey("ck_" + secrets.token_hex(8), namespace, customer_id, name, who, now, None)
    with begin_write(engine) as connection:
        mine = (portal_keys.c.namespace == namespace) & (portal_keys.c.customer_id == customer_id)
        standing = connection.execute(select(portal_keys.c.key_id).where(mine, portal_keys.c.revoked_at.is_(None)))
        if len(standing.all()) >= MAX_KEYS:
            raise RegistryError(f"There are {MAX_KEYS} keys already: revoke one that is not needed any more.")
        connection.execute(insert(portal_keys).values(**vars(made), key_sha256=_hash(text)))
    return made, text


def revoke(engine: Engine, namespace: str, customer_id: str, key_id: str, now: datetime) -> bool:
    """End a key at once; False where the customer has no such key that is in use."""
    with begin_write(engine) as connection:
        is_it = (
            (portal_keys.c.namespace == namespace)
            & (portal_keys.c.customer_id == customer_id)
            & (portal_keys.c.key_id == key_id)
            & portal_keys.c.revoked_at.is_(None)
        )
        return connection.execute(update(portal_keys).where(is_it).values(revoked_at=now)).rowcount == 1


def of_customer(engine: Engine, namespace: str, customer_id: str) -> list[AccessKey]:
    """A customer's keys, those that were revoked too, latest first."""
    columns = [portal_keys.c[name] for name in AccessKey.__dataclass_fields__]
    mine = (portal_keys.c.namespace == namespace) & (portal_keys.c.customer_id == customer_id)
    with engine.connect() as connection:
        query = select(*columns).where(mine).order_by(portal_keys.c.created_at.desc())
        return [AccessKey(**row) for row in connection.execute(query).mappings()]


def customer_of(engine: Engine, namespace: str, text: str) -> str | None:
    """Whose key it is; None for none, one of another namespace, and one that was revoked."""
    with engine.connect() as connection:
        query = select(portal_keys.c.customer_id).where(
            portal_keys.c.key_sha256 == _hash(text),
            portal_keys.c.namespace == namespace,
            portal_keys.c.revoked_at.is_(None),
        )
        return connection.execute(query).scalar()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
