"""How long customers' pages take with ten thousand customers, and what a download of a million events costs.

`bench` asks of 10 million events, or as many as METERHOUSE_BENCH_MILLIONS says (the goals are for 100), in a month
under way. The portal's application runs under uvicorn in a process of its own; pages are asked one after the other over
HTTP, as customers with about a thousand events each (ten thousand of 100 million). The baseline of pages is the sign-in
page, which reads neither store; that of the download is the portal's memory before it.
"""

import http.client
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import warehouse_reads
from clickhouse_connect.driver.client import Client

from meterhouse_portal import members
from meterhouse_rating import versions
from meterhouse_store import meters, registry, schema, sql, warehouse
from meterhouse_store.settings import Settings

MILLIONS: Final = 10
NOW: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
"""The rows of warehouse_reads.py end on November 30th."""
PAGES: Final = ("/account", "/account/usage", "/account/invoices", "/account/prices", "/account/budgets")
LOG: Final = "/account/usage"
VISITORS: Final = 25
ROUNDS: Final = 4
EXPORTED: Final = 1_000_000
PASSWORDS: Final = {"admin": "secret", "reader": "read"}
BOOK: Final = """
book: bench
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_read]}
  output: {unit: token, meters: [llm.tokens.output]}
  calls: {unit: call, meters: [tool.calls]}
unbilled: {meters: [llm.requests]}
plans:
  pay:
    title: Pay
    components:
      input:
        model: graduated
        metric: input
        per: 1000
        tiers: [{up_to: 100000, price: 0.003}, {price: 0.002}]
      output: {model: per_unit, metric: output, per: 1000, price: 0.015}
      tools: {model: per_unit, metric: calls, price: 0.01}
"""
ENGINE: Final = f"""
import sys
from pathlib import Path
from meterhouse_store.embedded import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), {PASSWORDS!r})
"""
PORTAL: Final = """
import sys
from datetime import datetime
from pathlib import Path
import uvicorn
from meterhouse_portal.app import build
from meterhouse_store.settings import Settings
now = datetime.fromisoformat(sys.argv[4])
settings = Settings(data=Path(sys.argv[1]), warehouse_url=sys.argv[2])
app = build(settings, "a-token-of-the-bench-only", now=lambda: now)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
"""


def bench() -> list[dict[str, Any]]:
    """The slowest pages, the usage log's first one, and the portal's memory at a download of a million events."""
    millions = int(os.environ.get("METERHOUSE_BENCH_MILLIONS") or MILLIONS)
    with tempfile.TemporaryDirectory() as folder, _engine(Path(folder) / "engine") as (address, client):
        warehouse_reads.fill(client, millions)
        names = [f"customer-{number}" for number in range(VISITORS)]
        settings = Settings(data=Path(folder) / "data", warehouse_url=f"http://reader:{PASSWORDS['reader']}@{address}")
        sessions = _people(settings, [*names, "exporter"])
        _one_with_many(client)
        with _portal(settings) as (port, pid):
            times: dict[str, list[float]] = {page: [] for page in (*PAGES, "/sign-in")}
            for _ in range(ROUNDS):
                for name in names:
                    for page in times:
                        times[page].append(_get_ms(port, page, sessions[name]))
            before = _rss_mb(pid)
            peak, bytes_sent, seconds = _download(port, pid, sessions["exporter"])
    for page, found in times.items():
        print(f"{page}: median {statistics.median(found):.0f} ms, p99 {_p99(found):.0f} ms")
    print(f"{EXPORTED:,} events as CSV: {bytes_sent / 2**20:.0f} MB in {seconds:.1f} s")
    asked = [one for page in PAGES for one in times[page]]
    unit = f"ms, {millions} million events"
    plain = {"baseline": round(statistics.median(times["/sign-in"]), 1), "baseline_is": "a page of no store"}
    return [
        {"name": "portal.page_p99_ms", "value": round(_p99(asked), 1), "unit": unit, "better": "lower", **plain},
        {"name": "portal.log_first_page_ms", "value": round(statistics.median(times[LOG]), 1), "unit": unit,
         "better": "lower", **plain},
        {"name": "portal.export_1m_rss_mb", "value": round(peak, 1), "unit": "MB at most", "baseline": round(before, 1),
         "baseline_is": "before the download", "better": "lower"},
    ]  # fmt: skip


def prove() -> list[dict[str, Any]]:
    """Nothing: the portal's guarantees are tests."""
    return []


def _people(settings: Settings, customers: list[str]) -> dict[str, str]:
    """The customers, registered and priced, and a session of each."""
    engine = sql.open_engine(settings)
    registry.ensure_namespace(engine, "live", now=NOW - timedelta(days=60))
    units = {name: it.unit for name, it in meters.declared(settings).items()}
    versions.publish(engine, "live", BOOK, units, author="bench", now=NOW - timedelta(days=60))
    found = {}
    for name in customers:
        registry.add_customer(engine, "live", name, currency="USD", plan="pay", now=NOW - timedelta(days=60))
        email = f"{name}@bench.example"
        members.set_role(engine, "live", name, email, members.OWNER, who="bench", now=NOW)
        link = members.request_link(engine, "live", email, NOW)
        session = None if link is None else members.sign_in(engine, "live", link, NOW)
        if session is None:
            raise RuntimeError(f"{email} cannot sign in")
        found[name] = session
    engine.dispose()
    return found


def _one_with_many(client: Client) -> None:
    """A customer with a million events of its own."""
    client.command(
        "INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, status, agent_name, model, "
        "call_id, received_at, first) SELECT 'live', 'exporter', 'llm.requests', concat('e', toString(number)), "
        "toDateTime64('2026-11-20', 9, 'UTC') + toIntervalMillisecond(number), 1, 'ok', 'support', 'gpt-5-mini', "
        "concat('c', toString(number)), toDateTime64('2026-11-21', 9, 'UTC'), number FROM numbers({count:UInt64})",
        parameters={"count": EXPORTED},
    )


def _get_ms(port: int, page: str, session: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started = time.perf_counter()
    connection.request("GET", page, headers={"Cookie": f"meterhouse_session={session}"})
    answer = connection.getresponse()
    body = answer.read()
    taken = 1000 * (time.perf_counter() - started)
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{page} answered {answer.status}: {body[:200]!r}")
    return taken


def _download(port: int, pid: int, session: str) -> tuple[float, int, float]:
    """The portal's highest memory in MB while it sends the CSV, the bytes, and the seconds; every event is counted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.perf_counter()
    connection.request("GET", f"{LOG}.csv", headers={"Cookie": f"meterhouse_session={session}"})
    answer = connection.getresponse()
    peak, sent, lines = 0.0, 0, 0
    while block := answer.read(2**20):
        sent += len(block)
        lines += block.count(b"\n")
        peak = max(peak, _rss_mb(pid))
    seconds = time.perf_counter() - started
    connection.close()
    if lines != EXPORTED + 1:
        raise RuntimeError(f"the download has {lines - 1:,} events instead of {EXPORTED:,}")
    return peak, sent, seconds


def _p99(found: list[float]) -> float:
    return statistics.quantiles(found, n=100)[98]


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def _engine(folder: Path) -> Iterator[tuple[str, Client]]:
    port = _free_port()
    process = subprocess.Popen([sys.executable, "-c", ENGINE, str(folder), str(port)])
    try:
        settings = Settings(warehouse_url=f"http://admin:{PASSWORDS['admin']}@127.0.0.1:{port}")
        first = warehouse.connect(settings, timeout_s=60, database="default")
        schema.migrate(first, settings.warehouse_database)
        first.close()
        client = warehouse.connect(settings, timeout_s=60)
        yield f"127.0.0.1:{port}", client
        client.close()
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _portal(settings: Settings) -> Iterator[tuple[int, int]]:
    port = _free_port()
    url = settings.warehouse_url or ""
    process = subprocess.Popen(
        [sys.executable, "-c", PORTAL, str(settings.data), url, str(port), NOW.isoformat()],
        env={**os.environ, "METERHOUSE_PORTAL_TOKEN": secrets.token_hex(16)},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
