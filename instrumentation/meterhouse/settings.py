"""Where an agent's usage goes and where its journals lie: environment first, then a local `meterhouse up`.

The host's own OTEL_EXPORTER_* variables are never followed: they may point to another vendor.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from meterhouse.vocabulary import ENV_API_KEY, ENV_ENDPOINT, ENV_JOURNAL_DIR

ENDPOINTS_FILE = Path("run") / "endpoints.json"


@dataclass(frozen=True, slots=True)
class Destination:
    """An OTLP/HTTP base URL and the key for it."""

    endpoint: str
    api_key: str | None

    @property
    def metrics_url(self) -> str:
        return self.endpoint.rstrip("/") + "/v1/metrics"


def destination() -> Destination | None:
    """Where usage goes now; None: nowhere yet (`why_nowhere`), it stays in the process journal."""
    endpoint = os.environ.get(ENV_ENDPOINT)
    api_key = os.environ.get(ENV_API_KEY) or None
    if endpoint:
        return Destination(endpoint, api_key) if _is_url(endpoint) else None
    try:
        collector = json.loads((_data() / ENDPOINTS_FILE).read_bytes())["collector"]
        return Destination(str(collector["http"]), api_key or str(collector["api_key"]))
    except (OSError, ValueError, KeyError, TypeError):  # no local system is running, or its file is being written
        return None


def why_nowhere() -> str:
    """Why `destination` is None, and what to set, as the beginning of a sentence."""
    endpoint = os.environ.get(ENV_ENDPOINT)
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
    """The directory of the process journals; not created here."""
    named = os.environ.get(ENV_JOURNAL_DIR)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "meterhouse" / "journal"
