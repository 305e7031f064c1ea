"""Pages of one customer in a frame of the operator's own application: keys, signed addresses, and their sessions.

The host application's server signs a JWT (RFC 7519, HS256) that names one customer. It is good once and for minutes,
and opens a session in which that customer's usage can be read and nothing be changed.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.jws import CompactSignature
from joserfc.jwt import JWTClaimsRegistry
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Engine, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from meterhouse_portal.addresses import is_safe
from meterhouse_portal.members import VIEWER, Member, Visitor
from meterhouse_store.registry import RegistryError
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import customers, portal_embed_keys, portal_embed_sessions

AUDIENCE: Final = "meterhouse-embed"
TOKEN_LIFE: Final = timedelta(minutes=5)
"""No token is good for longer, whatever it says."""
SESSION_LIFE: Final = timedelta(hours=1)
LEEWAY_S: Final = 60
"""So far the host's clock may be off."""
MAX_TOKEN: Final = 4096


class EmbedSettings(BaseSettings):
    """Who may show the pages in a frame; read from `METERHOUSE_EMBED_ORIGINS`. Nobody, where it is not set."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_EMBED_", frozen=True, extra="forbid")

    origins: str = ""
    """Separated by commas: `https://app.acme.example, https://console.acme.example:8443`."""

    def checked(self, public_url: str) -> tuple[str, ...]:
        """The origins, each as browsers write it. Raises ValueError: for what is none, and without TLS."""
        found = tuple(it.strip() for it in self.origins.split(",") if it.strip())
        for origin in found:
            if not _is_origin(origin):
                raise ValueError(
                    f"METERHOUSE_EMBED_ORIGINS has {origin!r}: an origin is https:// and a host, with a port where it "
                    "has one, and nothing else"
                )
        if found and not is_safe(public_url):
            raise ValueError(
                "METERHOUSE_EMBED_ORIGINS needs https:// in METERHOUSE_PUBLIC_URL: browsers keep no cookie of a page "
                "in a frame without it"
            )
        return found


class EmbedRefused(ValueError):
    """The signed address is not taken; the text is for whoever writes the host application."""


@dataclass(frozen=True)
class EmbedKey:
    """A key without its text. `customer_id` None: it can show every customer of the namespace."""

    key_id: str
    namespace: str
    customer_id: str | None
    name: str
    who: str
    created_at: datetime
    revoked_at: datetime | None


def create_key(
    engine: Engine, namespace: str, name: str, customer_id: str | None, *, who: str, now: datetime
) -> tuple[EmbedKey, str]:
    """A new key and its text, `ek_...` with a dot and the secret. Others go on: that is the overlap of a rotation.

    Raises RegistryError.
    """
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise RegistryError("give the key a name of at most 128 characters that says which application has it")
    made = EmbedKey("ek_" + secrets.token_hex(8), namespace, customer_id, name, who, now, None)
    text = f"{made.key_id}.{secrets.token_urlsafe(32)}"
    with begin_write(engine) as connection:
        is_it = (customers.c.namespace == namespace) & (customers.c.customer_id == customer_id)
        if customer_id is not None and connection.execute(select(customers.c.customer_id).where(is_it)).first() is None:
            raise RegistryError(f"there is no customer {customer_id!r} in {namespace}: `meterhouse customers list`")
        connection.execute(insert(portal_embed_keys).values(**vars(made), key=text))
    return made, text


def revoke_key(engine: Engine, namespace: str, key_id: str, now: datetime) -> None:
    """End a key, and what is open by it, at once. Raises RegistryError."""
    table = portal_embed_keys
    with begin_write(engine) as connection:
        is_it = (table.c.namespace == namespace) & (table.c.key_id == key_id) & table.c.revoked_at.is_(None)
        if connection.execute(update(table).where(is_it).values(revoked_at=now)).rowcount != 1:
            raise RegistryError(f"there is no key {key_id!r} in use: `meterhouse portal embed-keys`")


def keys(engine: Engine, namespace: str) -> list[EmbedKey]:
    """The keys in use, latest first."""
    table = portal_embed_keys
    columns = [table.c[name] for name in EmbedKey.__dataclass_fields__]
    query = select(*columns).where(table.c.namespace == namespace, table.c.revoked_at.is_(None))
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(table.c.created_at.desc(), table.c.key_id)).mappings()
        return [EmbedKey(**row) for row in rows]


def begin(engine: Engine, namespace: str, token: str, now: datetime) -> str:
    """A session's token in exchange for the signed one, once. Raises EmbedRefused."""
    key_id, claims = _verified(engine, namespace, token, now)
    session = secrets.token_urlsafe(32)
    key, customer = portal_embed_keys, claims["sub"]
    try:
        with begin_write(engine) as connection:
            may = select(key.c.key_id).where(
                key.c.key_id == key_id, or_(key.c.customer_id.is_(None), key.c.customer_id == customer)
            )
            is_it = (customers.c.namespace == namespace) & (customers.c.customer_id == customer)
            if (
                connection.execute(may).first() is None
                or connection.execute(select(customers.c.customer_id).where(is_it)).first() is None
            ):
                raise EmbedRefused(f"the key cannot show a customer {customer!r}")
            connection.execute(
                insert(portal_embed_sessions).values(
                    token_sha256=_hash(f"{key_id} {claims['jti']}"), session_sha256=_hash(session),
                    namespace=namespace, customer_id=customer, key_id=key_id, created_at=now,
                    expires_at=now + SESSION_LIFE,
                )
            )  # fmt: skip
    except IntegrityError:
        raise EmbedRefused("the token was used: make one for each time the frame is shown") from None
    return session


def visitor(engine: Engine, namespace: str, session: str, now: datetime) -> Visitor | None:
    """Who has the session: a viewer of one customer; None where it has ended, and the key with it."""
    table, key = portal_embed_sessions, portal_embed_keys
    query = (
        select(table.c.customer_id, table.c.created_at, table.c.expires_at, table.c.key_id)
        .join(key, key.c.key_id == table.c.key_id)
        .where(
            table.c.session_sha256 == _hash(session),
            table.c.namespace == namespace,
            table.c.expires_at > now,
            key.c.revoked_at.is_(None),
        )
    )
    with engine.connect() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    member = Member(row.customer_id, "", VIEWER, row.created_at, row.key_id)
    return Visitor(session, "", (member,), row.customer_id, row.expires_at, embedded=True)


def _verified(engine: Engine, namespace: str, token: str, now: datetime) -> tuple[str, dict[str, Any]]:
    """The key's id and the claims. Raises EmbedRefused."""
    if len(token) > MAX_TOKEN:
        raise EmbedRefused("the token is too long")
    table = portal_embed_keys

    def key_of(signed: CompactSignature) -> OctKey:
        key_id = signed.headers().get("kid")
        if not isinstance(key_id, str) or not key_id.isprintable():
            raise EmbedRefused("the token has no `kid`")
        is_it = (table.c.namespace == namespace) & (table.c.key_id == key_id) & table.c.revoked_at.is_(None)
        with engine.connect() as connection:
            text = connection.execute(select(table.c.key).where(is_it)).scalar()
        if text is None:
            raise EmbedRefused("no key in use has the `kid` of the token")
        return OctKey.import_key(text.encode())

    registry = JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=LEEWAY_S,
        aud={"essential": True, "value": AUDIENCE},
        sub={"essential": True},
        jti={"essential": True},
        iat={"essential": True},
        exp={"essential": True},
        role={"value": VIEWER},
    )
    try:
        found = jwt.decode(token, key_of, algorithms=["HS256"])  # type: ignore[arg-type]
        registry.validate(found.claims)
    except EmbedRefused:
        raise
    except (JoseError, ValueError, TypeError, RecursionError) as wrong:
        # The last two: joserfc takes a `crit` for a list, and reads JSON as deep as it comes.
        raise EmbedRefused(f"the token: {wrong}") from None
    claims = found.claims
    if claims["exp"] > claims["iat"] + TOKEN_LIFE.total_seconds():
        raise EmbedRefused(f"the token is good for longer than {TOKEN_LIFE.seconds} seconds")
    if not 16 <= len(claims["jti"]) <= 128 or not (claims["jti"] + claims["sub"]).isprintable():
        raise EmbedRefused("the token's `jti` has 16 to 128 printable characters, its `sub` is a customer's id")
    return str(found.header["kid"]), claims


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        written = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return False
    host = parts.hostname or ""
    plain = all(it.isascii() and (it.isalnum() or it in ".-") for it in host) and host != ""
    return text == written and plain and is_safe(text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
