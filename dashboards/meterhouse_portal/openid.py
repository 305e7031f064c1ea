"""Signing in through an OpenID Connect provider: the authorization code flow with PKCE, and the ID token verified.

OpenID Connect Core 1.0, sections 3.1 and 5; Discovery 1.0; RFC 7636 (PKCE); RFC 9207 (`iss` in the provider's answer).
The provider says who somebody is, never what they may: that stays with `meterhouse portal invite`.
"""

import base64
import hashlib
import hmac
import http.client
import json
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from meterhouse_portal.addresses import is_safe

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What an ID token may be signed with: public keys only. `none` and HMAC are never among them."""
LEEWAY_S: Final = 60
TIMEOUT_S: Final = 5
MAX_ANSWER: Final = 512 * 1024
KNOWN_FOR: Final = timedelta(hours=1)
"""So long what the provider says of itself is taken as it was read."""
KEYS_AGAIN: Final = timedelta(minutes=1)
"""A key that is not known makes the provider's keys be read anew, no more often than this."""
DOWN_FOR: Final = timedelta(seconds=15)
"""So long a provider that did not answer is not asked again: waiting for it takes threads that others' pages need."""
ATTEMPT_LIFE: Final = timedelta(minutes=10)


class SignInRefused(ValueError):
    """What came back is not taken. The text is for the log: nobody who tries is told more than that it failed."""


class ProviderUnavailable(ConnectionError):
    """The provider does not answer, or not as the specification has it; the text is for the log."""


class OpenIdSettings(BaseSettings):
    """The provider, and who we are there; read from `METERHOUSE_OIDC_*`. Without an issuer there is none."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_OIDC_", frozen=True, extra="forbid")

    issuer: str = ""
    """Exactly as the provider writes it: https://login.example.com/realms/acme."""
    client_id: str = ""
    client_secret: str = Field(default="", repr=False)
    client_secret_file: Path | None = None
    """A file that holds the secret, instead. A public client has neither."""
    name: str = Field(default="your organisation", max_length=80)
    """What stands on the sign-in page, after `Sign in with`."""

    @field_validator("client_secret_file", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # docker compose passes a variable that is not set as the empty string.
        return None if value == "" else value

    @field_validator("name", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return "your organisation" if value == "" else value

    def secret(self) -> str:
        """The client's secret, or nothing. Raises OSError."""
        if self.client_secret_file is not None:
            return self.client_secret_file.read_text(encoding="utf-8").strip()
        return self.client_secret

    def checked(self) -> "OpenIdSettings | None":
        """These, or None where no issuer is set. Raises ValueError for settings nobody can sign in with."""
        if not self.issuer:
            return None
        if not is_safe(self.issuer) or urlsplit(self.issuer).query or urlsplit(self.issuer).fragment:
            raise ValueError(f"METERHOUSE_OIDC_ISSUER is {self.issuer!r}: it is an https:// address without ? and #")
        if not self.client_id:
            raise ValueError("set METERHOUSE_OIDC_CLIENT_ID to what the provider calls this portal")
        try:
            self.secret()
        except OSError as problem:
            raise ValueError(f"METERHOUSE_OIDC_CLIENT_SECRET_FILE: {problem.filename}: {problem.strerror}") from None
        return self


@dataclass(frozen=True)
class Attempt:
    """One sign-in under way, all of it derived from a secret that only the browser's cookie has.

    So nothing is stored of it, and an answer made for another browser's attempt fits nowhere.
    """

    secret: str

    @staticmethod
    def new() -> "Attempt":
        """An attempt with a secret of 256 random bits."""
        return Attempt(secrets.token_urlsafe(32))

    @property
    def state(self) -> str:
        return self._derived(b"state")

    @property
    def nonce(self) -> str:
        return self._derived(b"nonce")

    @property
    def verifier(self) -> str:
        """PKCE's code verifier, 43 characters."""
        return self._derived(b"verifier")

    @property
    def challenge(self) -> str:
        """PKCE's code challenge, by S256."""
        return _base64url(hashlib.sha256(self.verifier.encode()).digest())

    def _derived(self, purpose: bytes) -> str:
        return _base64url(hmac.digest(self.secret.encode(), b"meterhouse openid " + purpose, "sha256"))


class OpenId:
    """The provider, for any number of threads; it is first asked when somebody signs in."""

    def __init__(self, settings: OpenIdSettings, redirect_uri: str, now: Callable[[], datetime]) -> None:
        self.name = settings.name
        self._settings, self._redirect_uri, self._now = settings, redirect_uri, now
        self._lock = threading.Lock()
        self._metadata: tuple[datetime, dict[str, Any]] | None = None
        self._keys: tuple[datetime, KeySet] | None = None
        self._down_until: datetime | None = None

    def address(self, attempt: Attempt) -> str:
        """Where the browser goes to sign in. Raises ProviderUnavailable."""
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": "openid email",
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        endpoint = self._endpoint("authorization_endpoint")
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    def email(self, attempt: Attempt, answer: Mapping[str, str]) -> str:
        """The verified e-mail address of whoever the answer (the parameters of the callback) is about.

        Raises SignInRefused, ProviderUnavailable.
        """
        # Before anything else, and before the provider is told of it: is it an answer to what this browser asked?
        if not hmac.compare_digest(answer.get("state", "").encode(), attempt.state.encode()):
            raise SignInRefused("the state is not this browser's")
        metadata = self._provider()
        named = answer.get("iss")
        if named is None and metadata.get("authorization_response_iss_parameter_supported") is True:
            raise SignInRefused("the answer does not say which provider it is from")
        if named is not None and named != self._settings.issuer:
            raise SignInRefused(f"the answer is from {named[:200]!r}")
        if "error" in answer:
            raise SignInRefused(f"the provider says {answer['error'][:100]!r}")
        if not answer.get("code"):
            raise SignInRefused("the answer has no code")
        tokens = self._redeem(answer["code"], attempt)
        claims = self._verified(tokens.get("id_token"), attempt.nonce)
        if "email" not in claims or "email_verified" not in claims:
            claims = self._user_info(tokens, claims["sub"])
        email = claims.get("email")
        if not isinstance(email, str) or not email:
            raise SignInRefused("the provider tells no e-mail address")
        if claims.get("email_verified") is not True:
            raise SignInRefused("the provider does not vouch for the e-mail address (email_verified)")
        return email

    def _redeem(self, code: str, attempt: Attempt) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        client, secret = self._settings.client_id, self._settings.secret()
        ways = self._provider().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if secret and "client_secret_basic" in ways:
            both = f"{quote_plus(client)}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
            headers["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        else:
            form |= {"client_id": client} | ({"client_secret": secret} if secret else {})
        return _ask(self._endpoint("token_endpoint"), headers, urlencode(form).encode())

    def _verified(self, token: object, nonce: str) -> dict[str, Any]:
        """The claims of the ID token (Core, 3.1.3.7). Raises SignInRefused."""
        if not isinstance(token, str):
            raise SignInRefused("the provider sent no ID token")
        client = self._settings.client_id
        registry = JWTClaimsRegistry(
            now=int(self._now().timestamp()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._settings.issuer},
            sub={"essential": True},
            aud={"essential": True, "value": client},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
            azp={"value": client},
        )
        try:
            claims = self._decoded(token)
            registry.validate(claims)
        except (JoseError, ValueError) as wrong:
            raise SignInRefused(f"the ID token: {wrong}") from None
        if claims["aud"] not in (client, [client]):
            raise SignInRefused("the ID token is for others, too")  # whom nobody here trusts
        return claims

    def _decoded(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(token, self._key_set(KNOWN_FOR), algorithms=ALGORITHMS).claims
        except InvalidKeyIdError:  # the provider's keys may have changed
            return jwt.decode(token, self._key_set(KEYS_AGAIN), algorithms=ALGORITHMS).claims

    def _user_info(self, tokens: Mapping[str, Any], subject: str) -> dict[str, Any]:
        access = tokens.get("access_token")
        if not isinstance(access, str) or "userinfo_endpoint" not in self._provider():
            return {}
        if not access.isascii() or not access.isprintable():
            raise SignInRefused("the access token cannot be sent")
        claims = _ask(self._endpoint("userinfo_endpoint"), {"Authorization": f"Bearer {access}"})
        if claims.get("sub") != subject:  # Core, 5.3.2
            raise SignInRefused("the user info is about somebody else")
        return claims

    # ---- what the provider says of itself ---------------------------------------------------------------------------

    def _provider(self) -> dict[str, Any]:
        with self._lock:
            if self._metadata is None or self._now() - self._metadata[0] >= KNOWN_FOR:
                issuer = self._settings.issuer
                found = self._read(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                if found.get("issuer") != issuer:  # Discovery, 4.3
                    raise ProviderUnavailable(f"{issuer} calls itself {str(found.get('issuer'))[:200]!r}")
                self._metadata = self._now(), found
            return self._metadata[1]

    def _read(self, address: str) -> dict[str, Any]:
        """With the lock held: of many who wait for a provider that is down one asks it."""
        if self._down_until is not None and self._now() < self._down_until:
            raise ProviderUnavailable("it did not answer a moment ago")
        try:
            return _read(address)
        except ProviderUnavailable:
            self._down_until = self._now() + DOWN_FOR
            raise

    def _endpoint(self, name: str) -> str:
        found = self._provider().get(name)
        if not isinstance(found, str) or not is_safe(found):
            raise ProviderUnavailable(f"the provider's {name} is {str(found)[:200]!r}: no https:// address")
        return found

    def _key_set(self, known_for: timedelta) -> KeySet:
        address = self._endpoint("jwks_uri")
        with self._lock:
            if self._keys is None or self._now() - self._keys[0] >= known_for:
                found = self._read(address)
                try:
                    self._keys = self._now(), KeySet.import_key_set({"keys": found["keys"]})
                except (JoseError, ValueError, KeyError, TypeError, AttributeError) as wrong:
                    raise ProviderUnavailable(f"the provider's keys cannot be used: {wrong}") from None
            return self._keys[1]


def _read(address: str) -> dict[str, Any]:
    try:
        return _ask(address, {})
    except SignInRefused as refused:
        raise ProviderUnavailable(f"{address}: {refused}") from None


def _ask(address: str, headers: Mapping[str, str], form: bytes | None = None) -> dict[str, Any]:
    """The JSON object that is answered. Raises SignInRefused for a refusal, else ProviderUnavailable."""
    request = urllib.request.Request(address, form, {"Accept": "application/json", **headers})
    try:
        with _opener.open(request, timeout=TIMEOUT_S) as reply:
            body = reply.read(MAX_ANSWER + 1)
    except urllib.error.HTTPError as refused:
        with refused:
            said = refused.read(200).decode(errors="replace")
        if 400 <= refused.code < 500:
            raise SignInRefused(f"HTTP {refused.code}: {said!r}") from None
        raise ProviderUnavailable(f"{address}: HTTP {refused.code}") from None
    except (OSError, http.client.HTTPException) as problem:
        raise ProviderUnavailable(f"{address}: {problem}") from None
    try:
        found = json.loads(body) if len(body) <= MAX_ANSWER else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProviderUnavailable(f"{address} answers no JSON object of at most {MAX_ANSWER // 1024} kB")
    return found


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Secrets and codes go where the provider says, and nowhere further."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)
