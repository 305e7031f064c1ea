"""OTLP requests and journal records for the tests of the collector and of the ClickHouse schema."""

import os
import re
import socket
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import commands
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from meterhouse_collector.records import Record, encode
from meterhouse_store import access, registry, sql
from meterhouse_store.settings import Settings

DELTA, CUMULATIVE = 1, 2
DAY_NS = 86_400_000_000_000
RECEIVED_NS = 1_793_491_200_000_000_000  # 2026-11-01T00:00:00Z
ADMIN = "admin-password-of-the-tests"
MAIN = "import sys; from meterhouse.cli import main; sys.exit(main())"


def any_value(value):
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=value)


def attributes(found):
    pairs = found.items() if isinstance(found, dict) else found
    return [KeyValue(key=key, value=any_value(value)) for key, value in pairs]


def event(quantity, event_id="event-1", time_ns=RECEIVED_NS, extra=(), **more):
    """One exemplar: (quantity, time, attributes)."""
    named = [("meterhouse.event.id", event_id)] if event_id is not None else []
    return quantity, time_ns, [*named, *(extra.items() if isinstance(extra, dict) else extra)], more


def add_sum(request, events, *, name="meterhouse.llm.tokens.input", point=None, value=None, kind=DELTA, monotonic=True):
    """One Sum with one point; without `value` the point's value is the sum of its exemplars."""
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metric = metrics.add(name=name)
    metric.sum.aggregation_temporality = kind
    metric.sum.is_monotonic = monotonic
    number = metric.sum.data_points.add(time_unix_nano=RECEIVED_NS)
    number.attributes.extend(attributes({"customer.id": "acme"} if point is None else point))
    total = 0
    for quantity, time_ns, keys, more in events:
        exemplar = number.exemplars.add(time_unix_nano=time_ns, **more)
        if quantity is not None:
            setattr(exemplar, "as_double" if isinstance(quantity, float) else "as_int", quantity)
            total += quantity
        exemplar.filtered_attributes.extend(attributes(keys))
    total = total if value is None else value
    setattr(number, "as_double" if isinstance(total, float) else "as_int", total)
    return request


def request_of(*events, **more):
    return add_sum(ExportMetricsServiceRequest(), events, **more)


def record(request, number=1, *, received_ns=RECEIVED_NS, allowed=(), credential="key-1", segment="a-00000001.seg"):
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return encode(Record(credential, "live", tuple(allowed), received_ns, f"{number:032x}", segment, raw))


def batch(customers, events_each, seed, meter="llm.requests"):
    """A request of one event of quantity 1 per (customer, number); ids follow from the seed. Times are now."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=f"meterhouse.{meter}")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = DELTA, True
    now = time.time_ns()
    for customer in customers:
        point = metric.sum.data_points.add(time_unix_nano=now, as_int=events_each)
        point.attributes.extend(attributes({"customer.id": customer}))
        for number in range(events_each):
            exemplar = point.exemplars.add(as_int=1, time_unix_nano=now)
            exemplar.filtered_attributes.extend(attributes({"meterhouse.event.id": f"{seed}-{customer}-{number}"}))
    return request


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(condition, *, within_s=20, what="the condition"):
    deadline, pause_s = time.monotonic() + within_s, 0.05
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(pause_s)  # longer and longer: a condition may be a question that takes as long
        pause_s = min(0.3, pause_s * 1.3)
    raise AssertionError(f"{what} did not come true within {within_s} s")


class Collector:
    """The real collector as a process of its own, on a data directory and a warehouse."""

    def __init__(self, data: Path, warehouse_url: str, database: str, customers=None):
        self.data = data
        clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
        self.environment = clean | {
            "METERHOUSE_DATA": str(data),
            "METERHOUSE_WAREHOUSE_URL": warehouse_url,
            "METERHOUSE_WAREHOUSE_DATABASE": database,
        }
        self.settings = Settings(data=data, warehouse_url=warehouse_url, warehouse_database=database)
        self.engine = sql.open_engine(self.settings)
        registry.ensure_namespace(self.engine, "live")
        self.key = access.create_key(self.engine, "live", "agents")[1]
        self.process = None

    def start(self):
        arguments = ["collector", "serve", "--http-port", "0", "--grpc-port", "0"]
        read, write = os.pipe()
        with (self.data / "collector.log").open("ab") as log, open(write, "wb") as told:
            self.process = commands.start(arguments, env=self.environment, cwd=self.data, stdout=told, stderr=log)
        self.output = open(read)  # noqa: SIM115
        line = self.output.readline()
        self.http, self.grpc = re.search(r"(http://\S+), OTLP/gRPC on (\S+)", line).groups()
        return self

    def kill(self):
        self.process.kill()
        self._reap()

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self._reap()
        self.engine.dispose()

    def _reap(self):
        self.process.wait(20)
        self.output.close()
        self.process = None

    def post(self, body, *, path="/v1/metrics", key=None, media_type="application/x-protobuf", **headers):
        """(status, headers, body) of a POST."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"Content-Type": media_type, "Authorization": f"Bearer {key or self.key}"}
        if not isinstance(body, bytes):
            body = body.SerializeToString()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.http + path, body, headers), timeout=20) as reply:
                return reply.status, dict(reply.headers), reply.read()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, dict(refusal.headers), refusal.read()

    def command(self, *arguments):
        return commands.run(arguments, env=self.environment, cwd=self.data, timeout=300)


def wait_projected(client):
    """Until everything received before now is projected."""
    now = datetime.now(UTC).replace(tzinfo=None)
    query = "SELECT projected_through FROM watermark"
    wait_for(lambda: (rows := client.query(query).result_rows) and rows[0][0] > now, within_s=60, what="the projection")
