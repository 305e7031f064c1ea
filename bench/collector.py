"""How many usage events per second the collector acknowledges and stores; what kill -9 does is in collector_prove.py.

Real processes: the embedded warehouse, the collector, and requests made beforehand, on the same machine. The baseline
does in Python what ClickHouse does here itself: decode every request into columns and insert those with
clickhouse-connect.
"""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clickhouse_connect.driver.client import Client
from load import request_of
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse_store import access, registry, schema, sql, warehouse
from meterhouse_store.settings import Settings

EVENTS_PER_REQUEST = 500
SUSTAINED_S, VISIBLE_S = 180, 30
RATE = 440
"""Requests a second at most: beyond what the engine stores the journal would only grow."""
CONNECTIONS = 16
SMALL_EVENTS = 20
SENDERS = 4
BASELINE_REQUESTS = 200
MAIN = "import sys; from meterhouse.cli import main; sys.exit(main())"


def bench() -> list[dict[str, Any]]:
    """The rows `collector.*` and `warehouse.*`; about half an hour, most of it for the 100 million rows."""
    import warehouse_reads

    requests = [_request(EVENTS_PER_REQUEST, seed) for seed in range(BASELINE_REQUESTS)]
    with _system() as system:
        decoded = _python_decoder(system.client, requests)
        system.client.command("TRUNCATE TABLE events")
        rows = [*_sustained(system, decoded), *_small(system, decoded), _visible(system)]
    with _system() as system:
        system.kill_collector()
        return [*rows, *warehouse_reads.bench(system.client, system.warehouse.pid)]


def _sustained(system: "_System", decoded: float) -> list[dict[str, Any]]:
    """Three minutes of requests of 500 events, as fast as they are answered up to RATE."""
    peaks = {"collector": system.collector.pid, "warehouse": system.warehouse.pid}
    started = time.perf_counter()
    told = _load(system, events=EVENTS_PER_REQUEST, connections=CONNECTIONS, seconds=SUSTAINED_S, rate=RATE)
    _wait_projected(system.client)
    stored_s = time.perf_counter() - started
    _check_all_stored(system.client, told["events"])
    journal = sum(file.stat().st_size for file in (system.data / "journal").rglob("*") if file.is_file())
    print(
        f"sustained: {told['events']:,} events acknowledged in {told['seconds']:.0f} s, stored after {stored_s:.0f} s; "
        f"{told['refused']} requests refused for overload; ack p50 {told['ack_ms']['p50']:.1f} ms, p99 "
        f"{told['ack_ms']['p99']:.1f} ms, at most {told['ack_ms']['max']:.0f} ms; journal {journal / 1e9:.1f} GB",
        flush=True,
    )
    memory = {name: peak_mb(pid) for name, pid in peaks.items()}
    python = "requests decoded in Python, columns inserted"
    return [
        row("collector.events_per_s", told["events"] / stored_s, "events/s stored, 3 min", decoded, python, "higher"),
        row(
            "collector.acknowledged_events_per_s",
            told["events"] / told["seconds"],
            "events/s in the journal, 3 min",
            decoded,
            python,
            "higher",
        ),
        row("collector.ack_p99_ms", told["ack_ms"]["p99"], "ms", _fsync_p99_ms(system.data), "p99 of one fdatasync"),
        row("collector.rss_mb", memory["collector"], "MB at most", 300, "goal"),
        row("collector.engine_rss_mb", memory["warehouse"], "MB at most", 900, "goal"),
    ]


def _small(system: "_System", decoded: float) -> list[dict[str, Any]]:
    """Requests of 20 events as fast as they are answered."""
    told = _load(system, events=SMALL_EVENTS, connections=64, seconds=20)
    _wait_projected(system.client)
    print(f"small requests: {told['requests']:,}, ack p99 {told['ack_ms']['p99']:.1f} ms", flush=True)
    of = "requests of 20 events decoded in Python, columns inserted"
    value = told["requests"] / told["seconds"]
    return [row("collector.small_requests_per_s", value, "requests/s over HTTP", decoded / SMALL_EVENTS, of, "higher")]


def _visible(system: "_System") -> dict[str, Any]:
    """At 10,000 events/s: how long after its reply an event is in `usage`, one probe after another."""
    loaded = threading.Thread(
        target=_load,
        args=(system,),
        kwargs={"events": 50, "connections": 8, "seconds": VISIBLE_S + 2, "rate": 200},
    )
    loaded.start()
    taken: list[float] = []
    connection = _connection(system)
    deadline = time.monotonic() + VISIBLE_S
    while time.monotonic() < deadline:
        if _post(system, connection, _request(1, 1_000_000 + len(taken), customer="probe-")) != 200:
            raise RuntimeError("a probe was refused")
        acknowledged = time.perf_counter()
        query = "SELECT count() FROM usage WHERE namespace = 'live' AND customer_id = 'probe-0'"
        while system.client.query(query).result_rows[0][0] <= len(taken):
            pass
        taken.append(1000 * (time.perf_counter() - acknowledged))
    loaded.join()
    taken.sort()
    p99 = taken[int(0.99 * len(taken))]
    print(f"visible: {len(taken)} probes, p50 {taken[len(taken) // 2]:.0f} ms, p99 {p99:.0f} ms", flush=True)
    started = time.perf_counter()
    system.client.query("SELECT count() FROM usage WHERE namespace = 'live' AND customer_id = 'probe-0'")
    return row("collector.visible_p99_ms", p99, "ms", 1000 * (time.perf_counter() - started), "one such query")


def _load(system: "_System", **options: float) -> dict[str, Any]:
    """Run load.py in a process of its own, as an agent would be."""
    parts = urlsplit(system.http)
    command = [
        sys.executable,
        str(Path(__file__).with_name("load.py")),
        str(parts.hostname),
        str(parts.port),
        system.key,
    ]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told


def _check_all_stored(client: Client, events: int) -> None:
    found = client.query("SELECT count() FROM usage WHERE namespace = 'live'").result_rows[0][0]
    if found != events:
        raise RuntimeError(f"{events} events were acknowledged and {found} are in usage")


def _fsync_p99_ms(directory: Path) -> float:
    """What the disk itself takes for a request's bytes: appended and synced, one after the other."""
    taken = []
    with (directory / "fsync-probe").open("wb", buffering=0) as file:
        for _ in range(200):
            started = time.perf_counter()
            file.write(bytes(65536))
            os.fdatasync(file.fileno())
            taken.append(1000 * (time.perf_counter() - started))
    return sorted(taken)[198]


def row(name: str, value: float, unit: str, baseline: float, baseline_is: str, better: str = "lower") -> dict[str, Any]:
    digits = 0 if value >= 1000 else 1 if value >= 10 else 2
    return {
        "name": name,
        "value": round(value, digits),
        "unit": unit,
        "baseline": round(baseline, digits),
        "baseline_is": baseline_is,
        "better": better,
        "ratio": round(value / baseline, 2),
    }


def peak_mb(pid: int) -> float:
    """The most memory that a process has had in use, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise RuntimeError(f"the process {pid} tells no peak of its memory")
    return int(found[1]) / 1024


def prove() -> list[dict[str, Any]]:
    """Kill the collector at every step and at random moments under load, and fuzz what it is sent.

    See collector_prove.py and collector_fuzz.py.
    """
    import collector_fuzz
    import collector_prove

    return [*collector_prove.prove(), *collector_fuzz.prove()]


class _System:
    """An embedded warehouse and a collector as child processes, in a directory of their own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://admin:bench-admin@127.0.0.1:{port}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
        self.environment = clean | {
            "METERHOUSE_DATA": str(data),
            "METERHOUSE_WAREHOUSE_URL": url,
            "METERHOUSE_WAREHOUSE_ADMIN_PASSWORD": "bench-admin",
            "METERHOUSE_WAREHOUSE_READER_PASSWORD": "bench-reader",
        }
        self.warehouse = self._start("warehouse", "serve", "--port", str(port))
        settings = Settings(data=data, warehouse_url=url)
        admin = warehouse.connect(settings, database="default")
        schema.migrate(admin, settings.warehouse_database)
        admin.close()
        self.client = warehouse.connect(settings)
        engine = sql.open_engine(settings)
        registry.ensure_namespace(engine, "live")
        self.key = access.create_key(engine, "live", "bench")[1]
        engine.dispose()
        self.start_collector()

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        with (self.data / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", MAIN, *arguments],
                env=self.environment,
                cwd=self.data,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start_collector(self) -> None:
        self.collector = self._start("collector", "serve", "--http-port", "0", "--grpc-port", "0")
        assert self.collector.stdout is not None
        found = re.search(r"http://\S+", self.collector.stdout.readline().rstrip(","))
        if found is None:
            raise RuntimeError(f"the collector did not start: see {self.data / 'log'}")
        self.http = found[0].rstrip(",")

    def kill_collector(self) -> None:
        self.collector.send_signal(signal.SIGKILL)
        self.collector.wait()

    def stop(self) -> None:
        for process in (self.collector, self.warehouse):
            process.terminate()
        for process in (self.collector, self.warehouse):
            process.wait(30)


@contextmanager
def _system() -> Iterator[_System]:
    with tempfile.TemporaryDirectory(prefix="meterhouse-bench-") as directory:
        system = _System(Path(directory))
        try:
            yield system
        finally:
            system.stop()


def _request(events: int, seed: int, customer: str = "customer-") -> bytes:
    """A request of so many events, ids from the seed."""
    rng = random.Random(seed)
    ids = [(f"{seed}-{number}", str(uuid.UUID(int=rng.getrandbits(128)))) for number in range(events)]
    return request_of(ids, seed=seed, customer=customer)


def _post(system: _System, connection: http.client.HTTPConnection, request: bytes) -> int:
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {system.key}"}
    connection.request("POST", "/v1/metrics", request, headers)
    response = connection.getresponse()
    response.read()
    return response.status


def _connection(system: _System) -> http.client.HTTPConnection:
    parts = urlsplit(system.http)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)


def _wait_projected(client: Client, seconds: float = 900) -> None:
    now_ns = time.time_ns()
    query = "SELECT toUnixTimestamp64Nano(projected_through) FROM watermark"
    deadline = time.monotonic() + seconds
    while not ((rows := client.query(query).result_rows) and rows[0][0] > now_ns):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the journal was not projected within {seconds:g} s")
        time.sleep(0.2)


def _python_decoder(client: Client, requests: list[bytes]) -> float:
    """Events per second of: parse with upb, walk the objects, insert columns. No journal, no reasons: it flatters."""
    names = ["namespace", "customer_id", "meter", "event_id", "event_time", "quantity", "agent_name", "provider"]
    names += ["model", "status", "call_id", "usage_source", "received_at", "first"]
    started = time.perf_counter()
    for at in range(0, len(requests), 40):
        columns: list[list[Any]] = [[] for _ in names]
        for request in requests[at : at + 40]:
            for row in _rows(request):
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        client.insert("events", columns, column_names=names, column_oriented=True, settings={"async_insert": 0})
    return len(requests) * EVENTS_PER_REQUEST / (time.perf_counter() - started)


def _rows(request: bytes) -> Iterator[tuple[Any, ...]]:
    received_ns = time.time_ns()
    for resource in ExportMetricsServiceRequest.FromString(request).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.sum.data_points:
                    of_point = {pair.key: pair.value.string_value for pair in point.attributes}
                    for exemplar in point.exemplars:
                        of_event = {pair.key: pair.value.string_value for pair in exemplar.filtered_attributes}
                        yield (
                            "live",
                            of_point["customer.id"],
                            metric.name.removeprefix("meterhouse."),
                            of_event["meterhouse.event.id"],
                            exemplar.time_unix_nano,
                            exemplar.as_int,
                            of_point["gen_ai.agent.name"],
                            of_point["gen_ai.provider.name"],
                            of_point["gen_ai.response.model"],
                            of_point["meterhouse.status"],
                            of_event["meterhouse.call.id"],
                            of_event["usage.source"],
                            received_ns,
                            ~received_ns & 2**64 - 1,
                        )
