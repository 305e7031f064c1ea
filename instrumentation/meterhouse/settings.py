"""Where an agent's usage goes and where its journals lie: environment first, then a local `meterhouse up`.

The host's own OTEL_EXPORTER_* variables are never followed: they may point to another vendor.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

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
    """Where usage goes now; None: nowhere yet, it stays in the process journal."""
    endpoint = os.environ.get(ENV_ENDPOINT)
    api_key = os.environ.get(ENV_API_KEY) or None
    if endpoint:
        return Destination(endpoint, api_key)
    try:
        data = Path(os.environ.get("METERHOUSE_DATA") or "meterhouse-data")
        collector = json.loads((data / ENDPOINTS_FILE).read_bytes())["collector"]
        return Destination(str(collector["http"]), api_key or str(collector["api_key"]))
    except (OSError, ValueError, KeyError, TypeError):  # no local system is running, or its file is being written
        return None


def journal_directory() -> Path:
    """The directory of the process journals; not created here."""
    named = os.environ.get(ENV_JOURNAL_DIR)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "meterhouse" / "journal"
