"""What metering adds to a stream's chunks and to the memory of an agent; each measured in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHUNKS = 2_000
ROUNDS = 7
CALLS = 200_000
PROVED_CALLS = 1_000_000
"""Metered calls whose memory is looked at; a million takes some three minutes on a machine with nothing else to do."""
MOST_GROWTH_MB = 2.0
"""What counts as flat: half a million calls that left 5 bytes each would be more."""

_STREAM = """
import json, statistics, sys, time, httpx2, openai, meterhouse
from meterhouse.otel import MeterhouseInstrumentor
chunk, usage, chunks, rounds = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
lines = [b"data: " + json.dumps(chunk).encode() + b"\\n\\n"] * chunks
end = [b"data: " + json.dumps({**chunk, "choices": [], "usage": usage}).encode() + b"\\n\\n", b"data: [DONE]\\n\\n"]
class Pieces(httpx2.SyncByteStream):
    def __init__(self, asked):
        self.asked = asked
    def __iter__(self):
        yield from lines
        yield from end if self.asked else end[1:]
def answer(request):
    asked = b"include_usage" in request.content
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(asked))
client = openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient(transport=httpx2.MockTransport(answer)))
def stream():
    started = time.thread_time_ns()
    seen = sum(1 for _ in client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": "x"}], stream=True))
    assert seen == chunks, seen
    return (time.thread_time_ns() - started) / chunks / 1000
plain, metered = [], []
with meterhouse.customer("acme"):
    for number in range(rounds + 1):  # interleaved, and the first round warms up
        without = stream()
        MeterhouseInstrumentor().instrument(skip_dep_check=True)
        added = stream()
        MeterhouseInstrumentor().uninstrument()
        if number:
            plain.append(without)
            metered.append(added)
print(json.dumps([statistics.median(metered) - statistics.median(plain), statistics.median(plain)]))
"""

_MEMORY = """
import json, sys, time, httpx2, openai
calls, metered, completion = int(sys.argv[1]), sys.argv[2] == "metered", json.loads(sys.argv[3])
def rss_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=completion))
client = openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient(transport=transport))
def call():
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x"}])
if metered:
    import meterhouse
    from meterhouse.otel import MeterhouseInstrumentor
    MeterhouseInstrumentor().instrument(skip_dep_check=True)
    meterhouse.customer("acme").__enter__()
for _ in range(5_000):
    call()
time.sleep(6 if metered else 0)  # an export later
first = rss_mb()
if metered:  # the rest without the SDK around it: a million calls in minutes instead of a quarter of an hour
    from meterhouse.metered import Metered, Request, start
    from meterhouse.providers.openai import OpenAI
    from meterhouse.runtime import flush
    reader = OpenAI()
    def call():
        one = start(Metered, reader, lambda: Request("openai", "chat", "gpt-5-mini"))
        one.take(completion)
        one.end(exhausted=True)
marks = []  # the most of each quarter: what waits for the exporter comes and goes, and has a bound
for part in range(4):
    most = 0
    for number in range(calls // 4 if metered else 0):
        call()
        if number % 1_000 == 0:
            most = max(most, rss_mb())
    marks.append(most)
if metered:
    flush(60)
print(json.dumps({"first": first, "marks": marks}))
"""


def stream_us_per_chunk(chunk: dict[str, Any], usage: dict[str, Any]) -> tuple[float, float]:
    """CPU that metering adds to one chunk of a chat stream, and what the SDK takes for it, in us."""
    with tempfile.TemporaryDirectory() as journals:
        arguments = [json.dumps(chunk), json.dumps(usage), str(CHUNKS), str(ROUNDS)]
        added, plain = json.loads(_run(_STREAM, arguments, {"METERHOUSE_JOURNAL_DIR": journals}))
    return added, plain


def prove(completion: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory over a million calls, made as fast as they can be."""
    added, _, growth = rss_mb(completion, PROVED_CALLS)
    print(f"agent: metering adds {added:.1f} MB, the second half of {PROVED_CALLS:,} calls {growth:.1f}", flush=True)
    return [{"name": "agent.memory_is_flat", "cases": PROVED_CALLS, "violations": int(growth > MOST_GROWTH_MB)}]


def rss_mb(completion: dict[str, Any], calls: int = CALLS) -> tuple[float, float, float]:
    """Memory that metering adds to an agent that called 5,000 times, that of the agent without it, and how much more it
    takes at most in the second half of `calls` made as fast as they can be than in the first, in MB."""
    found: dict[str, dict[str, Any]] = {}
    sink = _Forgetful()
    for kind in ("plain", "metered"):
        with tempfile.TemporaryDirectory() as journals:
            environment = {"METERHOUSE_JOURNAL_DIR": journals, "METERHOUSE_ENDPOINT": sink.url}
            found[kind] = json.loads(_run(_MEMORY, [str(calls), kind, json.dumps(completion)], environment))
            print(f"agent: memory of the {kind} agent in MB: {found[kind]}", flush=True)
    sink.stop()
    plain, metered, marks = found["plain"]["first"], found["metered"]["first"], found["metered"]["marks"]
    return metered - plain, plain, max(marks[2:]) - max(marks[:2])


class _Forgetful:
    """An OTLP receiver that takes everything and keeps nothing."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                metrics = self.path == "/v1/metrics"
                self.send_response(200 if metrics else 404)
                self.send_header("content-type", "application/x-protobuf" if metrics else "application/json")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def _run(program: str, arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=3600).stdout
