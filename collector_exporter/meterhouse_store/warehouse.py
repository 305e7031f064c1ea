"""The ClickHouse client: the embedded engine's HTTP front or a server, by URL, with the same code."""

import logging
import re
import time
import urllib.error
import urllib.request
from urllib.parse import quote, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver import options
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error, OperationalError

from meterhouse_store import endpoints
from meterhouse_store.settings import Settings

# At its first insert the client asks whether it was given a data frame, and imports pandas to ask, which chDB brings
# along: 0.9 s and 60 MB for every process. Nothing here has data frames; it is as where pandas is not installed.
options.pd = options.pd_time_test = options.np = None

ADMIN = "admin"
READER = "reader"
"""The users of the embedded engine: one that may do everything, one that may read views."""


PATIENCE_S = 2.0
"""Who waits longer for the warehouse is told so, once."""

log = logging.getLogger(__name__)

_REFUSAL = re.compile(r"Code: (\d+)\. DB::Exception: (.*?)(?: ?\(for url [^)]*\))?$", re.DOTALL)
_URL = re.compile(r" ?\(for url [^)]*\)")


class WarehouseUnavailable(RuntimeError):
    """No warehouse is known, or it does not answer."""


def said(problem: Error) -> str:
    """What the driver raised, in a sentence: the warehouse's own words with their code, or that it does not answer."""
    text = str(problem)
    if found := _REFUSAL.search(text):
        return f"the warehouse refuses this (code {found[1]}): {found[2].strip()}"
    if isinstance(problem, OperationalError):
        return "the warehouse does not answer"
    return _URL.sub("", text)


def connect(settings: Settings, *, timeout_s: float = 60, database: str | None = None, user: str = ADMIN) -> Client:
    """A client of the warehouse, safe to share between threads; waits at most `timeout_s` seconds for the port.

    `database` goes before the setting; whoever creates the database connects to `default`. `user` counts only for the
    embedded engine, a URL names its own. Raises WarehouseUnavailable, or clickhouse-connect's error for a refusal.
    """
    url = settings.warehouse_url or embedded_url(settings, user)
    parts = urlsplit(url)
    port = parts.port or (8443 if parts.scheme == "https" else 8123)
    _wait(f"{parts.scheme}://{parts.hostname}:{port}/ping", timeout_s)
    return clickhouse_connect.get_client(
        interface=parts.scheme,
        host=parts.hostname,
        port=port,
        username=unquote(parts.username or "default"),
        password=unquote(parts.password or ""),
        database=database or settings.warehouse_database,
        # A ClickHouse session takes one query at a time, and nothing here needs its state.
        autogenerate_session_id=False,
    )


def embedded_url(settings: Settings, user: str) -> str:
    """The address of the embedded engine with that user and its password. Raises WarehouseUnavailable."""
    found = endpoints.read(settings.data)
    if found is None:
        raise WarehouseUnavailable(
            f"no warehouse: nothing runs in {settings.data} (start it with `meterhouse up --data {settings.data}`) "
            "and METERHOUSE_WAREHOUSE_URL is not set"
        )
    users = found.warehouse.users
    name = user if user in users else next(iter(users))  # a server by URL has the one user that URL named
    parts = urlsplit(found.warehouse.url)
    return f"{parts.scheme}://{quote(name, safe='')}:{quote(users[name], safe='')}@{parts.netloc}"


def _wait(ping_url: str, timeout_s: float) -> None:
    began, told = time.monotonic(), False
    deadline = began + timeout_s
    while True:
        try:
            with urllib.request.urlopen(ping_url, timeout=5):
                return
        except urllib.error.HTTPError as refusal:
            raise WarehouseUnavailable(f"{ping_url} answers {refusal.code}: is this ClickHouse's HTTP port?") from None
        except OSError as problem:
            if time.monotonic() >= deadline:
                raise WarehouseUnavailable(f"{ping_url} did not answer within {timeout_s:g} s ({problem})") from None
            if not told and time.monotonic() - began > PATIENCE_S:
                log.warning("%s does not answer (%s): it is waited for up to %g s", ping_url, problem, timeout_s)
                told = True
            time.sleep(0.1)
