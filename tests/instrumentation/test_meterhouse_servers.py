"""Web apps under uvicorn and gunicorn: each request's usage is for the customer of its header, streamed or not."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": None}],
}
USAGE = {**CHUNK, "choices": [], "usage": CHAT["usage"]}
STREAM = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in (CHUNK, CHUNK, USAGE)] + [b"data: [DONE]\n\n"]


class App:
    """A web server as a process group of its own, on a free port."""

    def __init__(self, provider, *command: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        wrapper = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = [argument.format(port=port) for argument in command]
        self.process = subprocess.Popen(
            [sys.executable, "-c", wrapper, "run", "--", sys.executable, "-m", *arguments],
            env={**os.environ, "OPENAI_BASE_URL": provider.url + "/v1", "OPENAI_API_KEY": "k", "MODEL": "m"},
            cwd=ROOT / "examples" / "web",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "the server did not start"
                time.sleep(0.05)

    def ask(self, path: str, customer: str) -> str:
        headers = {"x-customer-id": customer, "content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, b'"?"', headers), timeout=30) as reply:
            return reply.read().decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        _, told = self.process.communicate(timeout=30)
        assert "Meterhouse" not in told, told
        return self.process.returncode


@pytest.fixture
def serve(metering, provider):
    apps = []

    def start(*command):
        apps.append(App(provider, *command))
        return apps[-1]

    yield start
    for app in apps:
        if app.process.poll() is None:
            os.killpg(app.process.pid, signal.SIGKILL)
            app.process.communicate()


def billed(provider, sink) -> dict[str, int]:
    """Customer -> calls, after a check against the provider's log."""
    once = {event.id: event for event in sink.events}.values()
    requests = [event for event in once if event.meter == "llm.requests"]
    assert sorted(event.own["meterhouse.request.id"] for event in requests) == sorted(
        headers["x-client-request-id"] for _, headers, _ in provider.log
    )
    assert sum(event.value for event in once if event.meter == "llm.tokens.output") == 3 * len(requests)
    calls: dict[str, int] = {}
    for event in requests:
        customer = event.point.get("customer.id", "")
        calls[customer] = calls.get(customer, 0) + 1
    return calls


@pytest.mark.sampled(1)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_fastapi_under_uvicorn_is_metered_by_customer_and_delivers_at_sigterm(workers, serve, provider, metering):
    app = serve("uvicorn", "fastapi_app:app", "--port", "{port}", "--workers", workers, "--log-level", "warning")
    customers = ["acme", "zoe"] * 4
    for _ in customers:
        provider.json(CHAT)
    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(lambda customer: app.ask("/chat", customer), customers)) == {'"yes"'}
    for _ in range(3):
        provider.stream(STREAM)
    assert [app.ask("/stream", customer) for customer in ("acme", "acme", "zoe")] == ["yesyes"] * 3
    app.stop()
    assert billed(provider, metering.sink) == {"acme": 6, "zoe": 5}
    assert list(metering.journals.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--preload"], ["--preload", "--worker-class", "gthread", "--threads", "4"]])
def test_a_wsgi_app_under_gunicorn_is_metered_by_customer(options, serve, provider, metering):
    app = serve("gunicorn", "wsgi_app:app", "--bind", "127.0.0.1:{port}", "--workers", "2", *options)
    customers = ["acme", "zoe", "acme"] * 3
    for _ in customers:
        provider.stream(STREAM)
    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(lambda customer: app.ask("/", customer), customers)) == {"yesyes"}
    assert app.stop() == 0
    assert billed(provider, metering.sink) == {"acme": 6, "zoe": 3}
    assert list(metering.journals.iterdir()) == []


def test_a_worker_that_is_killed_leaves_its_usage_to_a_drain(serve, provider, metering):
    from meterhouse.cli import main

    app = serve("gunicorn", "wsgi_app:app", "--bind", "127.0.0.1:{port}", "--workers", "1", "--preload")
    gate = threading.Event()
    provider.stream(STREAM)
    provider.stream(STREAM, gate=gate, gate_before=1)
    assert app.ask("/", "acme") == "yesyes"
    with ThreadPoolExecutor(1) as client:
        broken = client.submit(app.ask, "/", "zoe")
        while len(provider.log) < 2:
            time.sleep(0.02)
        time.sleep(0.2)
        os.killpg(app.process.pid, signal.SIGKILL)
        gate.set()
        assert broken.exception(20) is not None
    app.process.communicate()
    assert main(["drain"]) == 0
    requests = [event for event in metering.sink.events if event.meter == "llm.requests"]
    told = sorted((event.point["customer.id"], event.point["meterhouse.status"]) for event in requests)
    assert told == [("acme", "ok"), ("zoe", "unfinished")]
    assert re.fullmatch("[0-9a-f]{32}", requests[0].resource["meterhouse.process.id"])
