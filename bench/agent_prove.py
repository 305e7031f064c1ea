"""The proof behind `make prove ONLY=agent`: agents are killed at random, and the provider's own log is the truth.

Eight processes at a time call a model provider on this machine, plain and streamed, from two threads each, under
`meterhouse run`. Each is killed with SIGKILL at a random moment of its work, in mid-stream too, and another one is
started, until the provider has read 10,000 calls. Then `meterhouse drain` runs, and what arrived is compared with what
the provider read, by request id:

- every call in the provider's log has one `llm.requests`, either `ok` with exactly its tokens, or `unfinished`;
- at most one call per killed thread is unfinished;
- nothing else arrived, but for calls whose process died between the intent and the request: `unfinished`, too.

The first round delivers to an OTLP receiver that keeps what it acknowledged. The second delivers through a proxy that
delays, resets, half-closes, answers 503, and loses replies of what was stored, to a real collector; there the stored
usage is compared, in the warehouse. Sampled, not enumerated: SEED=n repeats the kills and faults of a run, if not their
moments.
"""

import http.client
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import collector
from agent_servers import Provider, Served, Sink

CALLS = 10_000
PROCESSES = 8
THREADS = 2
LIFE_S = (0.05, 8.0)
"""From the first call that the provider read to the SIGKILL."""
DRAINS = 40
TOKENS = {"llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 15, "llm.tokens.reasoning": 25}
"""What COMPLETION reports, in disjoint buckets."""
FAULTS = {"delay": 2, "reset": 2, "half-close": 1, "stored, reset": 2, "stored, 503": 1, "stored, cut": 1, "503": 2}
PASSED = 12
"""Weight of a request that is passed on as it is, beside the weights of the faults."""

_COMMAND = [sys.executable, "-c", "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"]
_AGENT = """
import sys, threading, openai
name = {"x-agent": sys.argv[2]}
client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1", max_retries=0, default_headers=name)
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
def work():
    while True:
        client.chat.completions.create(**ask)
        for chunk in client.chat.completions.create(**ask, stream=True):
            pass
for _ in range(int(sys.argv[3])):
    threading.Thread(target=work).start()
"""


@dataclass(frozen=True)
class Event:
    """A usage event as it arrived."""

    event_id: str
    request_id: str
    meter: str
    status: str
    quantity: float


@dataclass
class Verdict:
    """How what arrived differs from what the provider served."""

    served: int
    arrived: int
    finished: int
    unfinished: int
    never_sent: int
    """Unfinished calls that the provider has not read: their process died in between."""
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong_tokens: list[str] = field(default_factory=list)
    of_nobody: list[str] = field(default_factory=list)
    """Finished calls that the provider has not read."""


def compare(served: Iterable[str], events: Iterable[Event]) -> Verdict:
    """Hold the events, each once by its id, against the request ids that the provider read. Pure."""
    log = set(served)
    once: dict[str, Event] = {}
    conflicting = []
    for event in events:
        if once.setdefault(event.event_id, event) != event:
            conflicting.append(event.request_id)
    calls: dict[str, list[Event]] = defaultdict(list)
    for event in once.values():
        calls[event.request_id].append(event)
    requests = Counter(event.request_id for event in once.values() if event.meter == "llm.requests")
    verdict = Verdict(len(log), len(calls), 0, 0, 0)
    verdict.twice = [*conflicting, *(request for request, count in requests.items() if count > 1)]
    verdict.lost = sorted(log - set(requests))
    for request, found in calls.items():
        expected = {"llm.requests": 1.0}
        if any(event.status == "unfinished" for event in found):
            verdict.unfinished += 1
            verdict.never_sent += request not in log
        else:
            verdict.finished += 1
            expected |= TOKENS
            if request not in log:
                verdict.of_nobody.append(request)
        if sorted((event.meter, event.quantity) for event in found) != sorted(expected.items()):
            verdict.wrong_tokens.append(request)
    return verdict


def prove() -> list[dict[str, Any]]:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"agent: SEED={seed}", flush=True)
    return [*_killed(random.Random(seed)), *_killed_behind_a_faulty_proxy(random.Random(seed + 1))]


def _killed(luck: random.Random) -> list[dict[str, Any]]:
    sink = Sink()
    try:
        with tempfile.TemporaryDirectory() as journals:
            served, killed, undrained = _work(luck, "killed", sink.url, "k", journals)
        events = [Event(event, request, *what.split(" "), quantity) for event, request, what, quantity in sink.events()]
    finally:
        sink.stop()
    return _rows("agent.sigkill", compare(served, events), killed, undrained)


def _killed_behind_a_faulty_proxy(luck: random.Random) -> list[dict[str, Any]]:
    with collector._system() as system, tempfile.TemporaryDirectory() as journals:
        proxy = FaultProxy(system.http, luck)
        served, killed, undrained = _work(luck, "killed, faulty network", proxy.url, system.key, journals)
        proxy.stop()
        collector._wait_projected(system.client)
        usage = system.client.query("SELECT event_id, request_id, meter, status, toFloat64(quantity) FROM usage")
        stored = [Event(*row) for row in usage.result_rows]
        suspended = system.client.query("SELECT count() FROM suspense").result_rows[0][0]
    print(f"agent: the proxy passed {proxy.passed} requests on and disturbed {dict(proxy.disturbed)}", flush=True)
    return [
        *_rows("agent.faulty_network", compare(served, stored), killed, undrained),
        {"name": "agent.faulty_network_nothing_suspended", "cases": len(stored), "violations": suspended},
    ]


def _rows(name: str, verdict: Verdict, killed: int, undrained: int) -> list[dict[str, Any]]:
    print(
        f"{name}: the provider read {verdict.served:,} calls; {verdict.finished:,} arrived finished and"
        f" {verdict.unfinished:,} unfinished, {verdict.never_sent:,} of which never reached the provider",
        flush=True,
    )
    found = {
        "no_call_lost": (verdict.served, len(verdict.lost)),
        "no_call_twice": (verdict.arrived, len(verdict.twice)),
        "finished_calls_have_their_tokens": (verdict.finished, len(verdict.wrong_tokens) + len(verdict.of_nobody)),
        # A thread makes one call after the other: only its last one can be open when its process is killed.
        "only_last_calls_unfinished": (verdict.unfinished, max(verdict.unfinished - THREADS * killed, 0)),
        "everything_drained": (1, undrained),
    }
    return [{"name": f"{name}_{what}", "cases": of, "violations": bad} for what, (of, bad) in found.items()]


def _work(luck: random.Random, title: str, endpoint: str, key: str, journals: str) -> tuple[list[str], int, int]:
    """Agents at work and killed until CALLS calls were read; drained. Request ids, kills, 1 if not all drained."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("METERHOUSE_", "OTEL_"))}
    environment = clean | {
        "METERHOUSE_ENDPOINT": endpoint,
        "METERHOUSE_API_KEY": key,
        "METERHOUSE_JOURNAL_DIR": journals,
        "METERHOUSE_CUSTOMER": "acme",
    }
    provider = Provider()
    agents: list[_Agent] = []
    killed = 0
    try:
        while len(provider.log) < CALLS:
            while len(agents) < PROCESSES:
                agents.append(_Agent(f"{killed + len(agents)}", provider, environment, luck.uniform(*LIFE_S)))
            for agent in [one for one in agents if one.is_due()]:
                agent.kill()
                agents.remove(agent)
                killed += 1
            _progress(title, len(provider.log), killed)
            time.sleep(0.01)
    finally:
        for agent in agents:
            agent.kill()
    killed += len(agents)
    _progress(title, CALLS, killed, done=True)
    time.sleep(0.5)  # what was sent before the last kill is being logged
    for _ in range(DRAINS):
        ended = subprocess.run(
            [*_COMMAND, "drain"], env=environment, check=False, timeout=120, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if ended.returncode == 0:
            break
    provider.stop()
    return provider.log, killed, int(ended.returncode != 0 or bool(os.listdir(journals)))


class _Agent:
    def __init__(self, name: str, provider: Provider, environment: dict[str, str], life_s: float) -> None:
        self._name = name
        self._provider = provider
        self._life_s = life_s
        self._dies_at: float | None = None
        self._process = subprocess.Popen(
            [*_COMMAND, "run", "--", sys.executable, "-c", _AGENT, provider.url, name, str(THREADS)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    def is_due(self) -> bool:
        if self._dies_at is None and self._name in self._provider.agents:
            self._dies_at = time.monotonic() + self._life_s
        if self._process.poll() is not None:
            raise RuntimeError(f"an agent ended by itself, with exit code {self._process.returncode}")
        return self._dies_at is not None and time.monotonic() >= self._dies_at

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class FaultProxy(Served):
    """Passes OTLP requests on to `target`, and disturbs some of them in a way that the luck chooses."""

    def __init__(self, target: str, luck: random.Random) -> None:
        self.passed = 0
        self.disturbed: Counter[str] = Counter()
        proxy = self
        address = urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                fault = luck.choices(["", *FAULTS], [PASSED, *FAULTS.values()])[0]
                proxy.passed += not fault
                if fault:
                    proxy.disturbed[fault] += 1
                try:
                    _DISTURB[fault](self, lambda: _forward(address, self, body))
                except OSError:
                    self.close_connection = True  # the agent was killed

        super().__init__(Handler)


Reply = tuple[int, list[tuple[str, str]], bytes]


def _forward(address: str, handler: BaseHTTPRequestHandler, body: bytes) -> Reply:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", handler.path, body, dict(handler.headers))
        reply = connection.getresponse()
        return reply.status, [("content-type", reply.headers.get("content-type", ""))], reply.read()
    finally:
        connection.close()


def _answer(handler: BaseHTTPRequestHandler, reply: Reply, *, claimed: int = 0) -> None:
    status, headers, body = reply
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body) + claimed))
    handler.end_headers()
    handler.wfile.write(body)


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def _pass_on(handler: BaseHTTPRequestHandler, forward: Callable[[], Reply]) -> None:
    _answer(handler, forward())


def _delay(handler: BaseHTTPRequestHandler, forward: Callable[[], Reply]) -> None:
    time.sleep(1)
    _answer(handler, forward())


def _half_close(handler: BaseHTTPRequestHandler, _forward: Callable[[], Reply]) -> None:
    handler.connection.shutdown(socket.SHUT_WR)
    handler.close_connection = True


def _stored_then_reset(handler: BaseHTTPRequestHandler, forward: Callable[[], Reply]) -> None:
    forward()
    _reset(handler)


def _stored_then_503(handler: BaseHTTPRequestHandler, forward: Callable[[], Reply]) -> None:
    forward()
    _unavailable(handler, forward)


def _stored_then_cut(handler: BaseHTTPRequestHandler, forward: Callable[[], Reply]) -> None:
    _answer(handler, forward(), claimed=100)
    handler.close_connection = True


def _unavailable(handler: BaseHTTPRequestHandler, _forward: Callable[[], Reply]) -> None:
    _answer(handler, (503, [("Retry-After", "1")], b""))


_DISTURB: dict[str, Callable[[BaseHTTPRequestHandler, Callable[[], Reply]], None]] = {
    "": _pass_on,
    "delay": _delay,
    "reset": lambda handler, _forward: _reset(handler),
    "half-close": _half_close,
    "stored, reset": _stored_then_reset,
    "stored, 503": _stored_then_503,
    "stored, cut": _stored_then_cut,
    "503": _unavailable,
}


def _progress(title: str, calls: int, killed: int, *, done: bool = False) -> None:
    if not sys.stderr.isatty() and not done:
        return
    share = min(calls / CALLS, 1)
    bar = ("#" * round(30 * share)).ljust(30, ".")
    text = f"\r  [{bar}] {min(calls, CALLS):>6,} of {CALLS:,} calls, {killed} killed ({title})"
    print(text, end="\n" if done else "", file=sys.stderr, flush=True)
