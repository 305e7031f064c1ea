"""Credentials: the keys that agents report usage with and that readers of prices read with.

Everything here may be called twice with the same arguments. The text of a key is shown once and only its hash is kept.
"""

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from meterhouse.grants import Key
from meterhouse_store import tables
from meterhouse_store.registry import RegistryError, id_mistakes, refuse
from meterhouse_store.sql import begin_write

CREDENTIAL = "cred_"
"""What a credential's id begins with; then come 24 hex digits of the SHA-256 of its first key (docs/contracts.md)."""
METERING = "metering"
PRICING = "pricing"
ROLES = (METERING, PRICING)
"""What a key is for: to report usage, or to read prices. None does both."""


@dataclass(frozen=True)
class Credential:
    """A key, without its text; `customers` None: it may report, or read prices, for any customer.

    `grant_keys` None: it needs no grants; else the keys, not revoked, that verify the grants it needs. `retired`: the
    hashes of keys that were rotated away, with the time until which each is taken.
    """

    credential_id: str
    namespace: str
    name: str
    key_sha256: str
    customers: tuple[str, ...] | None
    valid_from: datetime
    revoked_at: datetime | None
    grant_keys: tuple[str, ...] | None = field(default=None, repr=False)
    retired: tuple[tuple[str, datetime], ...] = ()
    role: str = METERING


def hash_key(key_text: str) -> str:
    """What is kept of a key: its SHA-256, in hex. A key has 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(key_text.encode()).hexdigest()


def create_key(
    engine: Engine,
    namespace: str,
    name: str,
    *,
    customers: list[str] | None = None,
    key_text: str | None = None,
    grant_key: Key | None = None,
    role: str = METERING,
    now: datetime | None = None,
) -> tuple[Credential, str]:
    """A new key, with its text, which cannot be shown again; `customers` None: for any customer.

    With `grant_key` it may report only for customers of grants that this key signed. With `key_text` (a key made
    elsewhere) the call can be repeated: the credential that is there is returned.
    """
    key_text = key_text or "mh_" + secrets.token_urlsafe(32)
    digest = hash_key(key_text)
    mistakes = [] if name.strip() and len(name) <= 128 else ["a key needs a name of 1 to 128 characters"]
    if customers is not None and not customers:
        mistakes.append("an empty list of customers would let the key report for nobody: name some, or none for any")
    for customer_id in customers or []:
        mistakes += id_mistakes(customer_id)
    if len(key_text) < 32:
        mistakes.append("a key has at least 32 characters")
    if role not in ROLES:
        mistakes.append(f"{role!r} is no role of a key: {' or '.join(ROLES)}")
    if role != METERING and grant_key is not None:
        mistakes.append("grants are for keys that report usage")
    refuse(mistakes)
    table = tables.credentials
    with begin_write(engine) as connection:
        old = tables.retired_keys
        rotated = select(old.c.credential_id).where(old.c.key_sha256 == digest)
        is_it = (table.c.key_sha256 == digest) | table.c.credential_id.in_(rotated)
        row = connection.execute(select(table).where(is_it)).mappings().one_or_none()
        if row is not None:
            return _credential(row, _Keys(connection)), key_text
        made = Credential(
            credential_id=CREDENTIAL + digest[:24],
            namespace=namespace,
            name=name,
            key_sha256=digest,
            customers=None if customers is None else tuple(sorted(set(customers))),
            valid_from=now or datetime.now(UTC),
            revoked_at=None,
            role=role,
        )
        kept = None if made.customers is None else list(made.customers)
        values = {column.name: getattr(made, column.name) for column in table.columns}
        connection.execute(insert(table).values(**(values | {"customers": kept})))
        if grant_key is not None:
            _insert_grant_key(connection, made.credential_id, grant_key, made.valid_from)
            made = replace(made, grant_keys=(str(grant_key.verifying()),))
    return made, key_text


def credential_of(engine: Engine, key_text: str, now: datetime) -> Credential | None:
    """The credential that this key is valid for now, read anew; None for an unknown, revoked or outdated key."""
    digest, table, old = hash_key(key_text), tables.credentials, tables.retired_keys
    rotated = select(old.c.credential_id).where(old.c.key_sha256 == digest, old.c.valid_until > now)
    is_it = (table.c.key_sha256 == digest) | table.c.credential_id.in_(rotated)
    with engine.connect() as connection:
        row = connection.execute(select(table).where(is_it)).mappings().one_or_none()
        if row is None or row["valid_from"] > now or (row["revoked_at"] is not None and row["revoked_at"] <= now):
            return None
        return _credential(row, _Keys(connection))


def add_grant_key(engine: Engine, credential_id: str, key: Key, *, now: datetime | None = None) -> Credential:
    """From now on grants that `key` signed let this key report, and without a grant it reports for nobody.

    Of an Ed25519 key only the public part is kept. Raises RegistryError where there is no such credential.
    """
    with begin_write(engine) as connection:
        _existing_credential(connection, credential_id)
        table = tables.grant_keys
        is_it = (table.c.credential_id == credential_id) & (table.c.key_id == key.key_id)
        if connection.execute(select(table).where(is_it)).first() is None:
            _insert_grant_key(connection, credential_id, key, now or datetime.now(UTC))
        return _existing_credential(connection, credential_id)


def revoke_grant_key(engine: Engine, credential_id: str, key_id: str, *, now: datetime | None = None) -> Credential:
    """What this key signed is worth nothing from now on; the credential goes on to need grants.

    Raises RegistryError where there is no such key.
    """
    table = tables.grant_keys
    is_it = (table.c.credential_id == credential_id) & (table.c.key_id == key_id)
    with begin_write(engine) as connection:
        if connection.execute(select(table).where(is_it)).first() is None:
            raise RegistryError(f"{credential_id} has no grant key {key_id!r}: `meterhouse keys list` shows them")
        changed = update(table).where(is_it, table.c.revoked_at.is_(None))
        connection.execute(changed.values(revoked_at=now or datetime.now(UTC)))
        return _existing_credential(connection, credential_id)


def credentials(engine: Engine, namespace: str | None = None) -> list[Credential]:
    """All keys, the revoked ones too, oldest first; of one namespace where it is given."""
    table = tables.credentials
    query = select(table).order_by(table.c.valid_from, table.c.credential_id)
    if namespace is not None:
        query = query.where(table.c.namespace == namespace)
    with engine.connect() as connection:
        found = list(connection.execute(query).mappings())
        # Read after the credentials: none is taken for one that needs no grants because its key came in between.
        keys = _Keys(connection)
    return [_credential(row, keys) for row in found]


def rotate_key(
    engine: Engine, credential_id: str, overlap: timedelta, *, now: datetime | None = None
) -> tuple[Credential, str]:
    """A new key for a credential, with its text; the one it has is taken for `overlap` more, and then no longer.

    The new text tells the credential's id, so that agents know it for the same one: what they journalled under the old
    key is delivered under the new one.

    All else stays: id, name, customers, grants, and from when it is valid. Raises RegistryError where there is no such
    credential, where it is revoked, and for an overlap below 0 or above 90 days.
    """
    if not timedelta(0) <= overlap <= timedelta(days=90):
        raise RegistryError("the old key goes on for 0 to 90 days")
    now = now or datetime.now(UTC)
    text = f"mh_{credential_id.removeprefix(CREDENTIAL)}.{secrets.token_urlsafe(32)}"
    table = tables.credentials
    with begin_write(engine) as connection:
        found = _existing_credential(connection, credential_id)
        if found.revoked_at is not None:
            raise RegistryError(f"{credential_id} was revoked: `meterhouse keys create NAME` makes another one")
        old = {"key_sha256": found.key_sha256, "credential_id": credential_id, "valid_until": now + overlap}
        connection.execute(insert(tables.retired_keys).values(**old))
        changed = update(table).where(table.c.credential_id == credential_id)
        connection.execute(changed.values(key_sha256=hash_key(text)))
        return _existing_credential(connection, credential_id), text


def revoke_key(engine: Engine, credential_id: str, *, now: datetime | None = None) -> Credential:
    """Revoke a key from now on; the first revocation stands. Raises RegistryError where there is no such key."""
    table = tables.credentials
    is_it = table.c.credential_id == credential_id
    with begin_write(engine) as connection:
        connection.execute(
            update(table).where(is_it, table.c.revoked_at.is_(None)).values(revoked_at=now or datetime.now(UTC))
        )
        return _existing_credential(connection, credential_id)


class _Keys:
    """What belongs to credentials, by their ids: grant keys, as `_grant_keys` says, and keys that were rotated away."""

    def __init__(self, connection: Connection) -> None:
        self.grant_keys = _grant_keys(connection)
        self.retired: dict[str, tuple[tuple[str, datetime], ...]] = {}
        table = tables.retired_keys
        for row in connection.execute(select(table).order_by(table.c.valid_until, table.c.key_sha256)).mappings():
            known = self.retired.get(row["credential_id"], ())
            self.retired[row["credential_id"]] = (*known, (row["key_sha256"], row["valid_until"]))


def _credential(row: Any, keys: _Keys) -> Credential:
    values = dict(row)
    allowed, name = values["customers"], values["credential_id"]
    more = {"grant_keys": keys.grant_keys.get(name), "retired": keys.retired.get(name, ())}
    return Credential(**(values | {"customers": None if allowed is None else tuple(allowed)} | more))


def _existing_credential(connection: Connection, credential_id: str) -> Credential:
    table = tables.credentials
    row = connection.execute(select(table).where(table.c.credential_id == credential_id)).mappings().one_or_none()
    if row is None:
        raise RegistryError(f"there is no key {credential_id!r}: `meterhouse keys list` shows them")
    return _credential(row, _Keys(connection))


def _grant_keys(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Credential id -> its grant keys that are not revoked; a credential that needs no grants is not in it."""
    table = tables.grant_keys
    found: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(select(table).order_by(table.c.valid_from, table.c.key_id)).mappings():
        known = found.get(row["credential_id"], ())
        found[row["credential_id"]] = known if row["revoked_at"] is not None else (*known, row["key"])
    return found


def _insert_grant_key(connection: Connection, credential_id: str, key: Key, now: datetime) -> None:
    values = {"credential_id": credential_id, "key_id": key.key_id, "key": str(key.verifying()), "valid_from": now}
    connection.execute(insert(tables.grant_keys).values(**values, revoked_at=None))
