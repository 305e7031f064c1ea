"""How many usage events per second the collector acknowledges and stores, and whether kill -9 loses any.

Real processes: the embedded warehouse, the collector, and requests made beforehand, on the same machine. The baseline
does in Python what ClickHouse does here itself: decode every request into columns and insert those with
clickhouse-connect.
"""

import http.client
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
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from meterhouse_store import registry, schema, sql, warehouse
from meterhouse_store.settings import Settings

EVENTS_PER_REQUEST = 500
REQUESTS = 2000
SENDERS = 4
BASELINE_REQUESTS = 200
KILL_ROUNDS = 20
MAIN = "import sys; from meterhouse.cli import main; sys.exit(main())"


def bench() -> list[dict[str, Any]]:
    """`collector.events_per_s`: from the first byte sent until the last event is in `usage`."""
    requests = [_request(EVENTS_PER_REQUEST, seed) for seed in range(REQUESTS)]
    with _system() as system:
        baseline = _python_decoder(system.client, requests[:BASELINE_REQUESTS])
        system.client.command("TRUNCATE TABLE events")
        started = time.perf_counter()
        _send_all(system, requests)
        acknowledged_s = time.perf_counter() - started
        _wait_projected(system.client)
        stored_s = time.perf_counter() - started
        found = system.client.query("SELECT count() FROM usage").result_rows[0][0]
    events = len(requests) * EVENTS_PER_REQUEST
    if found != events:
        raise RuntimeError(f"{events} events were acknowledged and {found} are in usage")
    value = events / stored_s
    return [
        {
            "name": "collector.events_per_s",
            "value": round(value),
            "unit": "events/s acknowledged and stored",
            "baseline": round(baseline),
            "baseline_is": "requests decoded in Python, columns inserted",
            "better": "higher",
            "ratio": round(value / baseline, 2),
        },
        {
            "name": "collector.acknowledged_events_per_s",
            "value": round(events / acknowledged_s),
            "unit": "events/s on disk in the journal",
            "baseline": round(baseline),
            "baseline_is": "requests decoded in Python, columns inserted",
            "better": "higher",
            "ratio": round(events / acknowledged_s / baseline, 2),
        },
    ]


def prove() -> list[dict[str, Any]]:
    """`collector.sigkill`: the collector is killed under load; each acknowledged event must be in `usage` once."""
    rng = random.Random(1)
    acknowledged: set[str] = set()
    with _system() as system:
        for number in range(KILL_ROUNDS):
            stop = threading.Event()
            logs: list[list[int]] = [[] for _ in range(SENDERS)]
            senders = [
                threading.Thread(target=_send_until, args=(system, stop, logs[n], (number * SENDERS + n) * 100_000))
                for n in range(SENDERS)
            ]
            for sender in senders:
                sender.start()
            time.sleep(0.2 + rng.random())
            system.kill_collector()
            stop.set()
            for sender in senders:
                sender.join()
            acknowledged |= {f"{seed}-{event}" for log in logs for seed in log for event in range(10)}
            system.start_collector()
        _wait_projected(system.client)
        found = [row[0] for row in system.client.query("SELECT event_id FROM usage").result_rows]
    violations = len(acknowledged - set(found)) + len(found) - len(set(found))
    return [{"name": "collector.sigkill", "cases": len(acknowledged), "violations": violations}]


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
        self.key = registry.create_key(engine, "live", "bench")[1]
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


def _request(events: int, seed: int) -> bytes:
    """A request as the instrumentation sends it: 20 customers, attributes of an LLM call, ids from the seed."""
    rng, now = random.Random(seed), time.time_ns()
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="meterhouse.llm.tokens.input")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 1, True
    points = min(20, events)
    for customer in range(points):
        point = metric.sum.data_points.add(time_unix_nano=now)
        point.attributes.extend(
            _texts(
                {
                    "customer.id": f"customer-{customer}",
                    "gen_ai.agent.name": "support",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.response.model": "gpt-5-mini",
                    "meterhouse.status": "ok",
                }
            )
        )
        for number in range(customer, events, points):
            quantity = rng.randrange(1, 5000)
            point.as_int += quantity
            exemplar = point.exemplars.add(as_int=quantity, time_unix_nano=now)
            call = str(uuid.UUID(int=rng.getrandbits(128)))
            keys = {"meterhouse.event.id": f"{seed}-{number}", "meterhouse.call.id": call, "usage.source": "reported"}
            exemplar.filtered_attributes.extend(_texts(keys))
    return request.SerializeToString()


def _texts(values: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


def _post(system: _System, connection: http.client.HTTPConnection, request: bytes) -> int:
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {system.key}"}
    connection.request("POST", "/v1/metrics", request, headers)
    response = connection.getresponse()
    response.read()
    return response.status


def _connection(system: _System) -> http.client.HTTPConnection:
    parts = urlsplit(system.http)
    return http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)


def _send_all(system: _System, requests: list[bytes]) -> None:
    refused: list[int] = []

    def send(mine: list[bytes]) -> None:
        connection = _connection(system)
        for request in mine:
            while (status := _post(system, connection, request)) == 503:
                time.sleep(1)
            if status != 200:
                refused.append(status)
        connection.close()

    threads = [threading.Thread(target=send, args=(requests[n::SENDERS],)) for n in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise RuntimeError(f"{len(refused)} requests were refused: {sorted(set(refused))}")


def _send_until(system: _System, stop: threading.Event, acknowledged: list[int], first_seed: int) -> None:
    connection = _connection(system)
    seed = first_seed
    while not stop.is_set():
        seed += 1
        try:
            if _post(system, connection, _request(10, seed)) == 200:
                acknowledged.append(seed)
        except (OSError, http.client.HTTPException):
            break
    connection.close()


def _wait_projected(client: Client) -> None:
    now_ns = time.time_ns()
    query = "SELECT toUnixTimestamp64Nano(projected_through) FROM watermark"
    deadline = time.monotonic() + 120
    while not ((rows := client.query(query).result_rows) and rows[0][0] > now_ns):
        if time.monotonic() > deadline:
            raise RuntimeError("the journal was not projected within 120 s")
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
