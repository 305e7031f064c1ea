"""Instrumentations of others over OpenAI's SDK, through the real collector and warehouse into usage.

Each has a test environment of its own; Meterhouse's server runs in the main one.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import openai_chat
import pytest

HERE = Path(__file__).parent
PYTHON = os.environ.get("METERHOUSE_SERVER_PYTHON", sys.executable)
"""The Python of an environment with the `server` extra."""
MODULES = {
    "openai-v2": "opentelemetry.instrumentation.openai_v2",
    "openllmetry": "opentelemetry.instrumentation.openai",
    "openinference": "openinference.instrumentation.openai",
    "openinference-langchain": "openinference.instrumentation.langchain",
    "openinference-both": "openinference.instrumentation.langchain",
}
MAPPING = """
metrics:
  - metric: gen_ai.client.token.usage
    customer: shop.customer
"""

TOLD_OF_RESPONSE = {
    "input_tokens": 100,
    "output_tokens": 40,
    "total_tokens": 140,
    "input_tokens_details": {"cached_tokens": 60},
    "output_tokens_details": {"reasoning_tokens": 25},
}
RESPONSE = {
    "object": "response",
    "created_at": 1763700000,
    "status": "completed",
    "model": "gpt-5-mini",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": TOLD_OF_RESPONSE,
}
EMBEDDING = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}

ALL_TOLD = openai_chat.TOKENS_OF_ONE
NO_DETAILS = {"llm.requests": 1, "llm.tokens.input": 100, "llm.tokens.output": 40}
NO_REASONING = {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 40}
EMBEDDED = {"llm.requests": 1, "llm.tokens.input": 7}
FULL = {"chat": ALL_TOLD, "stream": ALL_TOLD, "asynchronous": ALL_TOLD, "embeddings": EMBEDDED, "responses": ALL_TOLD}
ALONE = {
    # It tells neither what was cached nor what was reasoning, and does not see the Responses API.
    "openai-v2": {
        "chat": NO_DETAILS,
        "stream": NO_DETAILS,
        "asynchronous": NO_DETAILS,
        "embeddings": EMBEDDED,
    },
    # Of a stream it does not tell what was reasoning.
    "openllmetry": FULL | {"stream": NO_REASONING},
    "openinference": FULL,
}


class Server:
    """A collector and a warehouse of the main environment, asked over HTTP."""

    def __init__(self, data):
        (data / "mapping.yaml").write_text(MAPPING)
        samples = HERE.parent / "collector_exporter"
        self._process = subprocess.Popen(
            [PYTHON, HERE / "foreign_server.py", data],
            env=os.environ | {"PYTHONPATH": str(samples)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline()
        assert line, "the server did not start: its output is above"
        self.at = json.loads(line)

    def query(self, sql):
        headers = {"X-ClickHouse-User": "admin", "X-ClickHouse-Key": self.at["password"]}
        asked = urllib.request.Request(self.at["warehouse"], f"{sql} FORMAT JSONCompact".encode(), headers)
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return json.loads(reply.read())["data"]

    def wait_projected(self):
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        deadline = time.monotonic() + 60
        while not self.query(f"SELECT 1 FROM watermark WHERE projected_through > '{now}'"):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def usage(self, beginning):
        """Customer without `beginning` -> meter -> quantity."""
        found = {}
        rows = self.query(
            "SELECT customer_id, meter, toInt64(sum(quantity)) FROM usage "
            f"WHERE startsWith(customer_id, '{beginning}') GROUP BY ALL"
        )
        for customer_id, meter, quantity in rows:
            found.setdefault(customer_id.removeprefix(beginning), {})[meter] = int(quantity)
        return found

    def stop(self):
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def agent(request, provider, library, tmp_path):
    """Runs the agent under an instrumentation; what the provider says is queued first."""

    def run(instrumentation, mode, resource=""):
        library(MODULES[instrumentation])
        server = request.getfixturevalue("server")
        answers(provider, instrumentation, mode)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("METERHOUSE_", "OTEL_"))}
        environment = clean | {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": f"{provider.url}/v1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.at["http"],
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{server.at['key']}",
            "OTEL_RESOURCE_ATTRIBUTES": f"service.name=shop{resource}",
            "METERHOUSE_ENDPOINT": server.at["http"],
            "METERHOUSE_API_KEY": server.at["key"],
            "METERHOUSE_JOURNAL_DIR": str(tmp_path / "journals"),
        }
        program = [sys.executable, HERE / "foreign_openai_agent.py", instrumentation, mode]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert provider.replies == []
        server.wait_projected()
        return server

    return run


def answers(provider, instrumentation, mode):
    def name(kind):
        return f"{instrumentation}-{mode}-{kind}-0123456789"

    said = openai_chat.answer()
    if "langchain" in instrumentation or "both" in instrumentation:
        provider.json(said | {"id": f"chatcmpl-{name('langchain')}"})
        return
    provider.json(said | {"id": f"chatcmpl-{name('chat')}"})
    provider.stream(openai_chat.chunks(said | {"id": f"chatcmpl-{name('stream')}"}))
    provider.json(said | {"id": f"chatcmpl-{name('asynchronous')}"})
    provider.json(EMBEDDING)
    provider.json(RESPONSE | {"id": f"resp_{name('responses')}", "output": []})


@pytest.mark.parametrize("instrumentation", sorted(ALONE))
def test_alone_each_call_counts_once_with_the_tokens_that_its_span_tells(agent, instrumentation):
    server = agent(instrumentation, "alone")
    assert server.usage(f"{instrumentation}-alone-") == ALONE[instrumentation]


@pytest.mark.parametrize(
    ("instrumentation", "mode"),
    # OpenInference names no response, so there it matters whose span is the current one.
    [*((name, "before") for name in sorted(ALONE)), ("openinference", "after")],
)
def test_beside_meterhouse_each_call_counts_once_as_meterhouse_saw_it(agent, instrumentation, mode):
    server = agent(instrumentation, mode)
    assert server.usage(f"{instrumentation}-{mode}-") == FULL


@pytest.mark.parametrize(
    ("instrumentation", "mode"),
    [("openinference-langchain", "before"), ("openinference-both", "alone")],
)
def test_langchain_and_the_sdk_below_it_are_one_call_by_the_id_in_the_answer(agent, instrumentation, mode):
    server = agent(instrumentation, mode)
    assert server.usage(f"{instrumentation}-{mode}-") == {"langchain": ALL_TOLD}


def test_token_histograms_count_where_the_mapping_names_their_customer_and_no_span_does(agent):
    server = agent("openllmetry", "metrics", ",shop.customer=histograms")
    # Three chat completions and the embedding; it has no histogram of the Responses API, and none of cached tokens.
    assert server.usage("histograms") == {"": {"llm.tokens.input": 307, "llm.tokens.output": 120}}
    assert server.usage("openllmetry-metrics") == {}
    rows = server.query(
        "SELECT toInt64(sum(quantity)) FROM suspense WHERE meter = 'llm.requests' AND reason = 'customer_missing'"
    )
    assert [int(one) for (one,) in rows] == [5]
