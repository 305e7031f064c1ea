"""Where an agent's usage goes and where its journals lie: environment first, then a local `meterhouse up`.

The host's own OTEL_EXPORTER_* variables are never followed: they may point to another vendor.
"""

import errno
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meterhouse.trouble import warn_once
from meterhouse.vocabulary import (
    ENV_API_KEY,
    ENV_ENDPOINT,
    ENV_ESTIMATE,
    ENV_JOURNAL_DIR,
    ENV_JOURNAL_FSYNC,
    ENV_JOURNAL_MAX_BYTES,
    ENV_TLS_CA,
    ENV_TLS_CLIENT_CERT,
    ENV_TLS_CLIENT_KEY,
)

JOURNAL_MAX_BYTES = 1024**3
JOURNAL_LEAST_BYTES = 64 * 1024
ENDPOINTS_FILE = Path("run") / "endpoints.json"


def tls_options() -> dict[str, Any]:
    """What `requests` is told of certificates: a private CA, and a certificate of the agent's own, where they are set.

    Without METERHOUSE_TLS_CA an https endpoint is checked as by any other program with requests: certifi's list, or
    REQUESTS_CA_BUNDLE.
    """
    found: dict[str, Any] = {}
    if authority := os.environ.get(ENV_TLS_CA):
        found["verify"] = authority
    if certificate := os.environ.get(ENV_TLS_CLIENT_CERT):
        key = os.environ.get(ENV_TLS_CLIENT_KEY)
        found["cert"] = (certificate, key) if key else certificate
    return found


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes`: how much the journals of a directory may take together. `fsync`: records survive a power cut."""

    max_bytes: int
    fsync: bool = False


_CREDENTIAL_DIGITS = 24
_ROTATED_KEY = re.compile(rf"mh_([0-9a-f]{{{_CREDENTIAL_DIGITS}}})\.[A-Za-z0-9_-]+")
"""A key that replaced another one: the digits of its credential's id, and the secret (docs/contracts.md)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """An OTLP/HTTP base URL and the key for it."""

    endpoint: str
    api_key: str | None

    @property
    def mark(self) -> str:
        """What a journal is marked with, so that nobody delivers it elsewhere; empty where there is no key.

        It is the credential's id, which is of one collector and one of its namespaces, whatever the address is called
        from here: it comes from a hash of the credential's first key, and the keys that replace that one tell it.
        """
        if not self.api_key:
            return ""
        if told := _ROTATED_KEY.fullmatch(self.api_key):
            return told[1]
        import hashlib

        return hashlib.sha256(self.api_key.encode(errors="replace")).hexdigest()[:_CREDENTIAL_DIGITS]

    @property
    def metrics_url(self) -> str:
        return self.endpoint.rstrip("/") + "/v1/metrics"


def destination() -> Destination | None:
    """Where usage goes now; None: nowhere yet (`why_nowhere`), it stays in the process journal."""
    endpoint = os.environ.get(ENV_ENDPOINT, "").strip()
    api_key = os.environ.get(ENV_API_KEY, "").strip() or None  # read from a file it ends in a newline
    if endpoint:
        base = endpoint.rstrip("/").removesuffix("/v1/metrics")  # as OTEL_EXPORTER_OTLP_METRICS_ENDPOINT has it
        return Destination(base, api_key) if _is_url(endpoint) else None
    try:
        collector = json.loads((_data() / ENDPOINTS_FILE).read_bytes())["collector"]
        return Destination(str(collector["http"]), api_key or str(collector["api_key"]))
    except (OSError, ValueError, KeyError, TypeError):  # no local system is running, or its file is being written
        return None


def why_nowhere() -> str:
    """Why `destination` is None, and what to set, as the beginning of a sentence."""
    endpoint = os.environ.get(ENV_ENDPOINT, "").strip()
    if endpoint and not _is_url(endpoint):
        return f"{ENV_ENDPOINT} is {endpoint!r:.80}, which is not a URL such as http://127.0.0.1:4318"
    data = _data().absolute()
    missing = "" if data.is_dir() else ", which does not exist"
    return f"{ENV_ENDPOINT} is not set, and no `meterhouse up` runs in {data}{missing}"


def _data() -> Path:
    return Path(os.environ.get("METERHOUSE_DATA") or "meterhouse-data")


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # raises ValueError where it is not a number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def journal_directory() -> Path:
    """The directory of the process journals; not created here. OSError where the user has no home."""
    named = os.environ.get(ENV_JOURNAL_DIR)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "meterhouse" / "journal"
    except RuntimeError as error:  # a container that runs under a number that has no user
        raise OSError(errno.ENOENT, "the user has no home directory") from error


def journal_limits() -> Limits:
    """How much the journals may take, and whether they are fsynced. ValueError: the environment gives no number."""
    given = os.environ.get(ENV_JOURNAL_MAX_BYTES) or str(JOURNAL_MAX_BYTES)
    if not given.isdecimal() or int(given) < JOURNAL_LEAST_BYTES:
        raise ValueError(
            f"{ENV_JOURNAL_MAX_BYTES} is {given!r:.80}, not a number of bytes from {JOURNAL_LEAST_BYTES} on"
        )
    return Limits(int(given), journal_fsync())


def journal_fsync() -> bool:
    """True where METERHOUSE_JOURNAL_FSYNC is on."""
    return _is_on(ENV_JOURNAL_FSYNC)


def estimating() -> bool:
    """True where METERHOUSE_ESTIMATE is on: tokens of streams that were left early are estimated, and flagged so."""
    return _is_on(ENV_ESTIMATE)


def number_of(name: str, default: float, least: float = 0.0) -> float:
    """The number that an environment variable says; the default, with a warning, for what is none from `least`."""
    text = os.environ.get(name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if least <= number < math.inf:
        return number
    warn_once(name, "Meterhouse takes %s=%g: %r is no number from %g.", name, default, text, least)
    return default


def choice_of(name: str, choices: Mapping[str, Collection[str]], default: str) -> str:
    """The choice that an environment variable says, in any of its spellings; the default, with a warning, for none."""
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return default
    for choice, spellings in choices.items():
        if text == choice or text in spellings:
            return choice
    known = ", ".join(choices)
    warn_once(name, "Meterhouse takes %s=%s: %r is none of %s.", name, default, os.environ[name][:80], known)
    return default


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
