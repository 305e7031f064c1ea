"""Whether the parts answer: what /healthz says. It names states only, no addresses and no secrets."""

import http.client
import os
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from meterhouse import vocabulary
from meterhouse_store import endpoints
from meterhouse_store.settings import Settings

TIMEOUT_S = 2.0
OK = "ok"


def check(settings: Settings) -> dict[str, str]:
    """{"status", "warehouse", "collector"}: `ok`, `unreachable`, `unwell` (it answers, but not well) or `unknown`.

    The addresses come from the environment, else from endpoints.json; `status` is `ok` when both parts are, else
    `unwell`. Takes at most about TIMEOUT_S.
    """
    probes = {
        "warehouse": (_warehouse_url(settings), 8123, "/ping"),
        "collector": (_collector_url(settings), 4318, "/healthz"),
    }
    with ThreadPoolExecutor(len(probes)) as pool:
        states = dict(zip(probes, pool.map(lambda probe: _ask(*probe), probes.values()), strict=True))
    return {"status": OK if set(states.values()) == {OK} else "unwell", **states}


def _warehouse_url(settings: Settings) -> str | None:
    if settings.warehouse_url:
        return settings.warehouse_url
    found = endpoints.read(settings.data)
    return found.warehouse.url if found else None


def _collector_url(settings: Settings) -> str | None:
    if url := os.environ.get(vocabulary.ENV_ENDPOINT):
        return url
    found = endpoints.read(settings.data)
    return found.collector.http if found else None


def _ask(url: str | None, usual_port: int, path: str) -> str:
    if url is None:
        return "unknown"
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port or usual_port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return OK if connection.getresponse().status == http.client.OK else "unwell"
    except (OSError, http.client.HTTPException):
        return "unreachable"
    finally:
        connection.close()
