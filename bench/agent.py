"""The agent's side: what metering costs a call, and that SIGKILL loses no call.

`bench` calls the real OpenAI SDK on a transport in memory, so that what is measured is the SDK with and without it.
`prove` kills agents at random moments and compares the provider's own log with what arrived at an OTLP receiver.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import agent_cpu
import agent_memory
from agent_servers import CHUNK, COMPLETION, Sink

CALLS = 600
RUNS = 5


def bench() -> list[dict[str, Any]]:
    """What metering costs an agent: in the thread that calls, in its own thread, and at the import.

    `agent.cpu_us_per_call` is CPU that metering adds to one chat call in the calling thread: the patch, the reading and
    the journal; by the median ratio of rounds beside each other (agent_cpu.py), because neighbours slow both down.
    Counting, encoding, compressing and sending happen in the exporter's thread and are not in it; they are
    `agent.export_us_per_event`, the CPU of the whole process without its calling thread. A chat here makes 5 events.

    `agent.stream_us_per_chunk` is what metering adds to a chunk of a chat stream, asked for its usage. `agent.rss_mb`
    is the memory that an agent has more after 5,000 metered calls than without, `agent.rss_growth_mb` what it takes
    more in the second half of many further ones.

    `baseline` is the same call without metering; for the export, JSON and gzip of the same events; for the import, an
    empty program. `ratio` is value / baseline.
    """
    added_us, plain_us, (least_us, most_us) = agent_cpu.us_per_call()
    runs = sorted((_export_us_per_event() for _ in range(RUNS)), key=lambda it: it[0] / it[1])
    export_us, packing_us = runs[RUNS // 2]  # of a disturbed machine some are twice the others
    import_ms, empty_ms = _import_ms()
    chunk_us, plain_chunk_us = agent_memory.stream_us_per_chunk(CHUNK, COMPLETION["usage"])
    rss_mb, plain_rss_mb, growth_mb = agent_memory.rss_mb(COMPLETION)
    return [
        _row(
            "agent.cpu_us_per_call",
            added_us,
            "us",
            plain_us,
            f"the call without; blocks {least_us:.0f} to {most_us:.0f}",
        ),
        _row("agent.export_us_per_event", export_us, "us", packing_us, "JSON and gzip of the same events"),
        _row("agent.import_ms", import_ms, "ms", empty_ms, "an empty program"),
        _row("agent.stream_us_per_chunk", chunk_us, "us", plain_chunk_us, "the same chunk without metering"),
        _row("agent.rss_mb", rss_mb, "MB", plain_rss_mb, "the agent without metering"),
        _row("agent.rss_growth_mb", growth_mb, "MB", plain_rss_mb, "the agent without metering"),
    ]


def prove() -> list[dict[str, Any]]:
    """Kill agents with SIGKILL in their work, drain, and compare by request id: see agent_prove.py. Then make a million
    calls, over whose second half the memory must not grow: see agent_memory.py."""
    import agent_prove

    return [*agent_prove.prove(), *agent_memory.prove(COMPLETION)]


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
    sink = Sink()
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
