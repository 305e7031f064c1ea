"""The agent's side: what metering costs a call, and that SIGKILL loses no call.

`bench` calls the real OpenAI SDK on a transport in memory, so that what is measured is the SDK with and without it.
`prove` kills agents at random moments and compares the provider's own log with what arrived at an OTLP receiver.
"""

import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CALLS = 600
ROUNDS = 5
KILLS = 12
PROCESSES = 2
LIVES_S = (0.9, 3.0)

COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 400}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "total_tokens": 140,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 25},
    },
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "delta": {"content": "y"}, "finish_reason": None}],
}


def bench() -> list[dict[str, Any]]:
    """What metering costs an agent: in the thread that calls, in its own thread, and at the import.

    `agent.cpu_us_per_call` is CPU that metering adds to one chat call in the calling thread: the patch, the reading and
    the journal. Counting, encoding, compressing and sending happen in the exporter's thread and are not in it; they are
    `agent.export_us_per_event`, the CPU of the whole process without its calling thread. A chat here makes 5 events.

    `baseline` is the same call without metering; for the export, JSON and gzip of the same events; for the import, an
    empty program. `ratio` is value / baseline.
    """
    added_us, plain_us = _cpu_us_per_call()
    export_us, packing_us = _export_us_per_event()
    import_ms, empty_ms = _import_ms()
    return [
        _row("agent.cpu_us_per_call", added_us, "us", plain_us, "the same call without metering"),
        _row("agent.export_us_per_event", export_us, "us", packing_us, "JSON and gzip of the same events"),
        _row("agent.import_ms", import_ms, "ms", empty_ms, "an empty program"),
    ]


def prove() -> list[dict[str, Any]]:
    """Kill agents with SIGKILL in their work, drain, and compare by request id. A case is a call that was served."""
    with tempfile.TemporaryDirectory() as journals:
        provider, sink = _Provider(), _Sink()
        environment = {
            **os.environ,
            "METERHOUSE_ENDPOINT": sink.url,
            "METERHOUSE_API_KEY": "k",
            "METERHOUSE_JOURNAL_DIR": journals,
            "METERHOUSE_CUSTOMER": "acme",
        }
        command = [sys.executable, "-c", "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"]
        luck = random.Random(1)
        for _ in range(KILLS):
            agents = [
                subprocess.Popen([*command, "run", "--", sys.executable, "-c", _AGENT, provider.url], env=environment)
                for _ in range(PROCESSES)
            ]
            for agent in agents:
                time.sleep(luck.uniform(*LIVES_S))
                agent.kill()
                agent.wait()
        time.sleep(0.2)  # what was sent before the last kill is being logged
        ended = subprocess.run([*command, "drain"], env=environment, check=False, timeout=120)
        provider.stop()
        sink.stop()
        left = len(os.listdir(journals))
    undrained = int(ended.returncode != 0 or left > 0)
    return [
        *_compare(provider.log, sink.events()),
        {"name": "agent.sigkill_everything_drained", "cases": 1, "violations": undrained},
    ]


def _compare(served: list[str], events: list[tuple[str, str, str, float]]) -> list[dict[str, Any]]:
    """`served`: request ids in the provider's log. `events`: (event id, request id, "meter status", quantity)."""
    once = {event_id: (request, what, quantity) for event_id, request, what, quantity in events}
    requests = Counter(request for request, what, _ in once.values() if what.startswith("llm.requests"))
    finished = {request for request, what, _ in once.values() if what == "llm.requests ok"}
    inputs = {request: q for request, what, q in once.values() if what == "llm.tokens.input ok"}
    log = set(served)
    conflicting = len({(event, quantity) for event, _, _, quantity in events}) - len(once)
    return [
        {"name": "agent.sigkill_no_call_lost", "cases": len(log), "violations": len(log - set(requests))},
        {
            "name": "agent.sigkill_no_call_twice",
            "cases": len(requests),
            "violations": sum(count != 1 for count in requests.values()) + conflicting,
        },
        {
            "name": "agent.sigkill_finished_calls_have_their_tokens",
            "cases": len(finished),
            "violations": sum(inputs.get(request) != 40 for request in finished) + len(finished - log),
        },
    ]


_AGENT = """
import sys, threading, openai
client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1", max_retries=0)
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
def work():
    while True:
        client.chat.completions.create(**ask)
        for chunk in client.chat.completions.create(**ask, stream=True):
            pass
for _ in range(3):
    threading.Thread(target=work).start()
"""


class _Served:
    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads, self._http.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Provider(_Served):
    """Answers chats of both kinds and logs the id of every request that it read."""

    def __init__(self) -> None:
        self.log: list[str] = []
        log = self.log

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                log.append(self.headers["x-client-request-id"])
                self.send_response(200)
                self.send_header("content-type", "text/event-stream" if body.get("stream") else "application/json")
                self.end_headers()
                try:
                    if body.get("stream"):
                        self._stream()
                    else:
                        self.wfile.write(json.dumps(COMPLETION).encode())
                except OSError:
                    pass  # killed

            def _stream(self) -> None:
                last = {**CHUNK, "choices": [], "usage": COMPLETION["usage"]}
                for document in [CHUNK] * 5 + [last]:
                    self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
                    time.sleep(0.01)
                self.wfile.write(b"data: [DONE]\n\n")

        super().__init__(Handler)


class _Sink(_Served):
    """Keeps the OTLP requests that it acknowledged."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        bodies = self._bodies

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                bodies.append(gzip.decompress(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

        super().__init__(Handler)

    def events(self) -> list[tuple[str, str, str, float]]:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found = []
        for body in self._bodies:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in resource.scope_metrics[0].metrics:
                    for point in metric.sum.data_points:
                        status = {pair.key: pair.value.string_value for pair in point.attributes}["meterhouse.status"]
                        for exemplar in point.exemplars:
                            own = {pair.key: pair.value.string_value for pair in exemplar.filtered_attributes}
                            what = f"{metric.name.removeprefix('meterhouse.')} {status}"
                            ids = own["meterhouse.event.id"], own["meterhouse.request.id"]
                            found.append((*ids, what, float(exemplar.as_int)))
        return found


def _cpu_us_per_call() -> tuple[float, float]:
    import httpx2
    import openai

    import meterhouse
    from meterhouse.otel import MeterhouseInstrumentor
    from meterhouse.runtime import flush

    def answer(_request: Any) -> Any:
        return httpx2.Response(200, json=COMPLETION)

    sink = _Sink()
    with tempfile.TemporaryDirectory() as journals:
        os.environ |= {"METERHOUSE_ENDPOINT": sink.url, "METERHOUSE_JOURNAL_DIR": journals}
        transport = httpx2.MockTransport(answer)
        client = openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient(transport=transport))

        def calls() -> float:
            started = time.thread_time_ns()
            for _ in range(CALLS):
                client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x"}])
            return (time.thread_time_ns() - started) / CALLS / 1000

        plain, metered = [], []
        with meterhouse.customer("acme"):
            for round_number in range(ROUNDS + 1):  # interleaved, and the first round warms up
                without = calls()
                MeterhouseInstrumentor().instrument(skip_dep_check=True)
                with_metering = calls()
                MeterhouseInstrumentor().uninstrument()
                if round_number:
                    plain.append(without)
                    metered.append(with_metering)
        flush(30)
    sink.stop()
    without = statistics.median(plain)
    return statistics.median(metered) - without, without


_EXPORTING = """
import json, sys, time, httpx2, openai, meterhouse
from meterhouse.otel import MeterhouseInstrumentor
from meterhouse.runtime import flush
completion, calls = json.loads(sys.argv[1]), int(sys.argv[2])
transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=completion))
client = openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient(transport=transport))
MeterhouseInstrumentor().instrument(skip_dep_check=True)
def work():
    for _ in range(calls):
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x"}])
    assert flush(60)
with meterhouse.customer("acme"):
    work()  # warms up: the exporter's thread imports and connects
    others = time.process_time_ns() - time.thread_time_ns()
    work()
print(time.process_time_ns() - time.thread_time_ns() - others)
"""


def _export_us_per_event() -> tuple[float, float]:
    """In a process of its own, because the receiver's CPU is not the agent's."""
    sink = _Sink()
    with tempfile.TemporaryDirectory() as journals:
        environment = {**os.environ, "METERHOUSE_ENDPOINT": sink.url, "METERHOUSE_JOURNAL_DIR": journals}
        command = [sys.executable, "-c", _EXPORTING, json.dumps(COMPLETION), str(CALLS)]
        ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    events = sink.events()
    sink.stop()
    started = time.thread_time_ns()
    for first in range(0, len(events), 500):
        gzip.compress(json.dumps(events[first : first + 500]).encode())
    packing_us = (time.thread_time_ns() - started) / len(events) / 1000
    return int(ended.stdout) / (len(events) / 2) / 1000, packing_us


def _import_ms() -> tuple[float, float]:
    def run(code: str) -> float:
        times = []
        for _ in range(9):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1000

    empty = run("")
    return run("import meterhouse") - empty, empty


def _row(name: str, value: float, unit: str, baseline: float, baseline_is: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "baseline": round(baseline, 1),
        "baseline_is": baseline_is,
        "better": "lower",
        "ratio": round(value / baseline, 3),
    }
