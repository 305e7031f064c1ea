"""Signed usage grants: a trusted front end says for whom an agent works, where one agent serves many customers.

    token = meterhouse.grants.sign("acme", expires_in_s=900)      # the front end, with METERHOUSE_GRANT_KEY
    with meterhouse.grant(token): ...                             # the agent, which has no key and can make no grant

The collector verifies it: usage that is reported with a key bound to grants counts only for a customer that a grant
names, up to its expiry. A token is `mhg.<payload>.<signature>`, both base64url without padding; the payload is JSON
`{"k": key id, "c": customer, "a": agent or absent, "e": expiry, seconds since 1970}`. HMAC-SHA256 (RFC 2104), or
Ed25519 (RFC 8032), which needs the package `cryptography` where it is signed and at the collector.
"""

import os
import re
import time
from dataclasses import dataclass
from typing import Any, Final

from meterhouse.attribution import identifier

ENV_GRANT_KEY: Final = "METERHOUSE_GRANT_KEY"
HMAC: Final = "hmac"
ED25519: Final = "ed25519"
ED25519_PUBLIC: Final = "ed25519-public"
LONGEST_BYTES: Final = 1024
_PREFIX = "mhg."
_KEY = re.compile(r"mhgk\.(hmac|ed25519|ed25519-public)\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})\Z")
_FAR_S = 2**33
_P = 2**255 - 19
_SMALL_Y = frozenset(
    {0, 1, _P - 1}
    | {
        int.from_bytes(bytes.fromhex(y), "little")
        for y in (
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        )
    }
)
"""The y of the points of Ed25519 whose order divides 8."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token says; `expires_at_s` in whole seconds since 1970. Not verified by reading it."""

    key_id: str
    customer: str
    agent: str | None
    expires_at_s: int


@dataclass(frozen=True, slots=True)
class Key:
    """A key of 32 bytes: signs and verifies (hmac), signs (ed25519) or verifies (ed25519-public)."""

    kind: str
    key_id: str
    material: bytes

    @classmethod
    def parse(cls, text: str) -> "Key":
        """The key that `mhgk.<kind>.<id>.<material>` spells. Raises ValueError, which does not show it."""
        found = _KEY.match(text.strip())
        if found is None:
            raise ValueError("this is no grant key: it begins with mhgk. and `meterhouse keys grant-key` makes one")
        return cls(found[1], found[2], _decoded(found[3]))

    def __str__(self) -> str:
        return f"mhgk.{self.kind}.{self.key_id}.{_encoded(self.material)}"

    def __repr__(self) -> str:
        return f"<grant key {self.key_id} ({self.kind})>"

    def verifying(self) -> "Key":
        """What the collector needs to verify: of an Ed25519 key the public part, of an HMAC key the key itself."""
        if self.kind != ED25519:
            return self
        public = _ed25519().Ed25519PrivateKey.from_private_bytes(self.material).public_key().public_bytes_raw()
        return Key(ED25519_PUBLIC, self.key_id, public)

    @property
    def is_weak(self) -> bool:
        """True for a public key whose point has a small order: anybody can make signatures that it verifies."""
        y = int.from_bytes(self.material, "little") % 2**255 % _P
        return self.kind == ED25519_PUBLIC and y in _SMALL_Y

    def signature(self, signed: bytes) -> bytes:
        """Raises ValueError for a key that cannot sign."""
        if self.kind == HMAC:
            return _hmac(self.material, signed)
        if self.kind == ED25519:
            return bytes(_ed25519().Ed25519PrivateKey.from_private_bytes(self.material).sign(signed))
        raise ValueError("a public key verifies grants, the private one signs them")

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        if self.kind == HMAC:
            import hmac

            return hmac.compare_digest(_hmac(self.material, signed), signature)
        if self.is_weak:
            return False
        from cryptography.exceptions import InvalidSignature

        try:
            _ed25519().Ed25519PublicKey.from_public_bytes(self.verifying().material).verify(signature, signed)
        except InvalidSignature:
            return False
        return True


def new_key(kind: str = HMAC) -> Key:
    """A fresh key that signs."""
    return Key(kind, os.urandom(8).hex(), os.urandom(32))


def sign(
    customer: str,
    *,
    key: str | None = None,
    agent: str | None = None,
    expires_in_s: int = 3600,
    now_s: float | None = None,
) -> str:
    """A grant for `customer`, for any agent where none is given; `key` is else METERHOUSE_GRANT_KEY.

    Raises ValueError for a customer or agent that is no identifier, a key that cannot sign, or an expiry in the past.
    """
    text = key if key is not None else os.environ.get(ENV_GRANT_KEY, "")
    own = Key.parse(text)
    if expires_in_s <= 0:
        raise ValueError(f"a grant expires in the future, not in {expires_in_s} s")
    import json

    payload: dict[str, Any] = {"k": own.key_id, "c": identifier(customer, "a customer id")}
    if agent is not None:
        payload["a"] = identifier(agent, "an agent")
    payload["e"] = int((time.time() if now_s is None else now_s) + expires_in_s)
    signed = _PREFIX + _encoded(json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode())
    token = f"{signed}.{_encoded(own.signature(signed.encode()))}"
    if len(token) > LONGEST_BYTES:
        raise ValueError(f"the grant would have {len(token)} bytes; {LONGEST_BYTES} is the most: shorten the ids")
    return token


def read(token: object) -> Grant:
    """What the token says. Raises ValueError for what is no grant; nothing is verified."""
    if not isinstance(token, str) or len(token) > LONGEST_BYTES or not token.startswith(_PREFIX):
        raise ValueError(f"a grant is a string of at most {LONGEST_BYTES} bytes that begins with {_PREFIX}")
    import json

    try:
        _, payload, _ = token.split(".")
        said = json.loads(_decoded(payload))
        key_id, customer, agent, expires_at_s = said["k"], said["c"], said.get("a"), said["e"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("the grant cannot be read: it was cut, or made by something else") from None
    if not isinstance(key_id, str) or not isinstance(expires_at_s, int) or not 0 < expires_at_s < _FAR_S:
        raise ValueError("the grant names no key or no expiry")
    identifier(customer, "the customer of a grant")
    if agent is not None:
        identifier(agent, "the agent of a grant")
    try:
        "".join((key_id, customer, agent or "")).encode()
    except UnicodeEncodeError:  # what JavaScript makes of half an emoji; the collector could not keep it
        raise ValueError("the grant names what is no text: half of a surrogate pair") from None
    return Grant(key_id, customer, agent, expires_at_s)


def is_genuine(token: str, key: Key) -> bool:
    """True when the token, which `read` takes, was signed with the key."""
    signed, _, signature = token.rpartition(".")
    try:
        return key.verifies(signed.encode(), _decoded(signature))
    except ValueError:
        return False


def _hmac(material: bytes, signed: bytes) -> bytes:
    import hmac

    return hmac.digest(material, signed, "sha256")


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise ValueError("Ed25519 grants need the package cryptography: pip install cryptography") from None
    return ed25519


def _encoded(raw: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as problem:
        raise ValueError(str(problem)) from None
