"""A model provider and an OTLP sink on free ports, and a fresh Meterhouse in this process. Fakes live here only."""

import gzip
import importlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

import meterhouse.runtime
from meterhouse.otel import MeterhouseInstrumentor

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(Path(__file__).parent))  # for matrix
_matrix = importlib.import_module("matrix").Matrix()
pytest_collection_modifyitems = _matrix.pytest_collection_modifyitems
pytest_runtest_logreport = _matrix.pytest_runtest_logreport
pytest_terminal_summary = _matrix.pytest_terminal_summary


@dataclass
class Event:
    """One exemplar as the collector sees it; `point` and `own` are its attributes."""

    meter: str
    value: float
    event_time_ns: int
    point: dict
    own: dict
    resource: dict
    point_value: float

    @property
    def id(self):
        return self.own["meterhouse.event.id"]

    @property
    def everything(self):
        return {**self.point, **self.own}


def _attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _number(item):
    return getattr(item, item.WhichOneof("value"))


def decode(body: bytes) -> list[Event]:
    events = []
    for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        resource = _attributes(resource_metrics.resource.attributes)
        for scope in resource_metrics.scope_metrics:
            for metric in scope.metrics:
                assert metric.sum.is_monotonic and metric.sum.aggregation_temporality == 1  # DELTA
                for point in metric.sum.data_points:
                    for exemplar in point.exemplars:
                        events.append(
                            Event(
                                metric.name.removeprefix("meterhouse."),
                                getattr(exemplar, exemplar.WhichOneof("value")),
                                exemplar.time_unix_nano,
                                _attributes(point.attributes),
                                _attributes(exemplar.filtered_attributes),
                                resource,
                                getattr(point, point.WhichOneof("value")),
                            )
                        )
                    total = sum(_number(one) for one in point.exemplars)
                    assert total == _number(point) or (math.isnan(total) and math.isnan(_number(point)))
    return events


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers["content-length"]))

    def answer(self, status, body, kind="application/json", headers=()):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server:
    """A threaded HTTP server on a free port of this machine."""

    def __init__(self, handler):
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Sink(Server):
    """An OTLP/HTTP metrics receiver. `answers`: (status, headers, body) for the next requests, then 200.

    Their content type is OTLP's where the headers name no other.
    """

    decode = staticmethod(decode)

    def __init__(self):
        self.requests: list[tuple[dict, bytes]] = []
        self.refused: list[bytes] = []
        self.answers: list[tuple] = []
        # What a question for an allowance is answered: (status, body). A collector without limits by default.
        self.allowance: Callable[[dict], tuple[int, bytes]] = lambda _question: (404, b"{}")
        sink = self

        class Handler(_Quiet):
            def do_POST(self):
                if self.path == "/v1/allowance":
                    self.answer(*sink.allowance(json.loads(self.body())))
                    return
                body = gzip.decompress(self.body())
                status, headers, reply = sink.answers.pop(0) if sink.answers else (200, (), b"")
                given = dict(headers)
                kind = given.pop("content-type", "application/x-protobuf")
                if status == 200 and not reply and "protobuf" in kind:
                    assert self.path == "/v1/metrics"
                    sink.requests.append((dict(self.headers), body))
                    reply = ExportMetricsServiceResponse().SerializeToString()
                else:
                    sink.refused.append(body)
                self.answer(status, reply, kind, given.items())

        super().__init__(Handler)

    @property
    def events(self) -> list[Event]:
        return [event for _, body in self.requests for event in decode(body)]


Reply = Callable[[_Quiet, dict], None]


class Provider(Server):
    """A model provider whose next replies are given by a test; keeps (path, headers, body) of every request."""

    def __init__(self):
        self.log: list[tuple[str, dict, dict]] = []
        self.replies: list[Reply] = []
        provider = self

        class Handler(_Quiet):
            def do_POST(self):
                headers = {name.lower(): value for name, value in self.headers.items()}
                content = self.body()
                body = {} if "multipart" in headers.get("content-type", "") else json.loads(content or b"{}")
                provider.log.append((self.path, headers, body))
                provider.replies.pop(0)(self, body)

            def do_GET(self):
                provider.log.append((self.path, {}, {}))
                provider.replies.pop(0)(self, {})

        super().__init__(Handler)

    def json(self, document, status=200):
        self.replies.append(lambda handler, _: handler.answer(status, json.dumps(document).encode()))

    def stream(self, events: list[bytes], *, gate: threading.Event | None = None, gate_before: int = 0, cut=False):
        """Server-sent events, chunked; waits for `gate` before event number `gate_before`; `cut` breaks off."""

        def reply(handler, _body):
            handler.send_response(200)
            handler.send_header("content-type", "text/event-stream")
            handler.send_header("transfer-encoding", "chunked")
            handler.end_headers()
            try:
                for index, event in enumerate(events):
                    if gate is not None and index == gate_before:
                        gate.wait(20)
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    handler.wfile.flush()
                if not cut:
                    handler.wfile.write(b"0\r\n\r\n")
            except OSError:
                pass
            handler.close_connection = True

        self.replies.append(reply)


@dataclass
class Metering:
    """Meterhouse switched on in this process."""

    sink: Sink
    journals: Path
    environment: dict = field(default_factory=dict)

    def flush(self) -> list[Event]:
        """Everything that the sink has after a flush."""
        assert meterhouse.runtime.flush(10)
        return self.sink.events

    def units(self) -> dict[str, float]:
        """Meter -> sum, after a flush, of everything that came once."""
        found: dict[str, float] = {}
        for event in {event.id: event for event in self.flush()}.values():
            found[event.meter] = found.get(event.meter, 0) + event.value
        return found


def dead_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def nowhere() -> str:
    """An endpoint that nobody listens on."""
    return dead_port()


@pytest.fixture
def sink() -> Iterator[Sink]:
    server = Sink()
    yield server
    server.stop()


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider()
    yield server
    server.stop()


@pytest.fixture
def metering(sink, tmp_path, monkeypatch) -> Iterator[Metering]:
    meterhouse.runtime.flush(5)
    journals = tmp_path / "journals"
    for name in ("METERHOUSE_CUSTOMER", "METERHOUSE_AGENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METERHOUSE_ENDPOINT", sink.url)
    monkeypatch.setenv("METERHOUSE_API_KEY", "mh_test")
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(journals))
    MeterhouseInstrumentor().instrument(skip_dep_check=True)
    yield Metering(sink, journals)
    meterhouse.runtime.flush(5)
    MeterhouseInstrumentor().uninstrument()


UNDER_METERHOUSE = [sys.executable, "-c", "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"]
UNDER_METERHOUSE += ["run", "--", sys.executable]


@pytest.fixture
def example(metering, tmp_path) -> Callable[..., str]:
    """Runs `examples/frameworks/NAME` unmodified under `meterhouse run`, for acme; gives what it printed."""

    def run(name: str, *arguments: str, **environment: str) -> str:
        ended = subprocess.run(
            [*UNDER_METERHOUSE, str(ROOT / "examples" / "frameworks" / name), *arguments],
            env={**os.environ, "METERHOUSE_CUSTOMER": "acme", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@pytest.fixture
def agent(metering, sink) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `source` as a program of its own under `meterhouse run`; what still runs at the end is killed."""
    started = []

    def start(source: str, *arguments: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [*UNDER_METERHOUSE, "-c", source, *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


ENVIRONMENTS = ROOT / "tests" / "environments"


@pytest.fixture(scope="session")
def library() -> Callable[[str], object]:
    """Imports a module that only some environments have; skips where it is missing, naming the one that has it."""

    def find(module: str) -> object:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            files = sorted(ENVIRONMENTS.glob("*.txt"))
            names = [path.stem for path in files if f"provides {module}\n" in path.read_text()] or ["(the main one)"]
            pytest.skip(f"{module} is not installed here; it is in the test environment {' or '.join(names)}")

    return find


@pytest.fixture
def until():
    """Waits until a condition holds, ten seconds at most."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "waited ten seconds in vain"
            time.sleep(0.02)

    return wait
