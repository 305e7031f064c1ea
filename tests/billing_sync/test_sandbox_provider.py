"""The local model provider, asked with the real openai and anthropic SDKs over HTTP."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import APIStatusError, OpenAI

HELLO: Any = [{"role": "user", "content": "hello"}]
CLAUDE = "claude-sonnet-5"
PRICE_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "price",
        "parameters": {"type": "object", "properties": {"sku": {"type": "string"}, "n": {"type": "integer"}}},
    },
}
SERVE = (
    "import sys; from pathlib import Path; from meterhouse_sandbox.provider import serve;"
    "serve('127.0.0.1', int(sys.argv[1]), Path(sys.argv[2]), seed=7, fault_rate=float(sys.argv[3]))"
)


@dataclass
class Provider:
    url: str
    log: Path

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="sk-any")

    @property
    def anthropic(self) -> Anthropic:
        return Anthropic(base_url=self.url, api_key="any")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def streams(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/sandbox/streams", timeout=5) as reply:
            return json.load(reply)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Provider]]:
    processes = []

    def start_provider(fault_rate: float = 0.0) -> Provider:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = tmp_path / "served.jsonl"
        command = [sys.executable, "-c", SERVE, str(port), str(log), str(fault_rate)]
        processes.append(subprocess.Popen(command))
        provider = Provider(f"http://127.0.0.1:{port}", log)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{provider.url}/healthz", timeout=1).close()
                return provider
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the provider did not start")

    yield start_provider
    for process in processes:
        process.terminate()
        process.wait(10)


def test_the_same_seed_gives_the_same_counts_and_the_log_has_them_in_disjoint_buckets(start):
    provider = start()
    with provider.openai as client:
        first = client.chat.completions.create(model="gpt-5-mini", messages=HELLO, user="acme").usage
    assert first is not None
    assert (first.prompt_tokens, first.prompt_tokens_details.cached_tokens) == (1417, 1152)
    assert (first.completion_tokens, first.completion_tokens_details.reasoning_tokens) == (417, 64)
    (line,) = provider.lines()
    # 1417 - 1152 read from the cache, 417 - 64 hidden
    assert line["units"] == {
        "llm.tokens.input": 265,
        "llm.tokens.cache_read": 1152,
        "llm.tokens.output": 353,
        "llm.tokens.reasoning": 64,
    }
    assert (line["end_user"], line["outcome"], line["status"], line["number"]) == ("acme", "served", 200, 1)


def test_a_chat_stream_tells_its_usage_only_when_asked_for_it_and_is_logged_either_way(start):
    provider = start()
    with provider.openai as client:
        silent = list(client.chat.completions.create(model="gpt-5-mini", messages=HELLO, stream=True))
        telling = list(
            client.chat.completions.create(
                model="gpt-5-mini", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
        )
    assert [chunk.usage for chunk in silent if chunk.usage] == []
    assert all(chunk.choices for chunk in silent)
    *_, last = telling
    assert [chunk for chunk in telling if chunk.usage] == [last]
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1139, 490)
    assert [line["usage"]["total_tokens"] for line in provider.lines()] == [1417 + 417, 1139 + 490]


def test_the_responses_api_tells_the_same_usage_whole_and_streamed_as_the_log(start):
    provider = start()
    with provider.openai as client:
        whole = client.responses.create(model="gpt-5-mini", input="hello")
        with client.responses.stream(model="gpt-5-mini", input="hello") as stream:
            streamed = stream.get_final_response()
    told = [(r.usage.input_tokens, r.usage.output_tokens, r.usage.total_tokens) for r in (whole, streamed)]
    assert told == [(1417, 417, 1834), (1139, 490, 1629)]
    assert whole.output_text == streamed.output_text != ""
    assert [line["usage"]["total_tokens"] for line in provider.lines()] == [1834, 1629]
    assert [line["response_id"] for line in provider.lines()] == [whole.id, streamed.id]


def test_embeddings_have_input_tokens_only(start):
    provider = start()
    with provider.openai as client:
        reply = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens, len(reply.data)) == (265, 265, 2)
    assert provider.lines()[0]["units"] == {"llm.tokens.input": 265}


def test_anthropic_counts_cache_outside_and_thinking_inside(start):
    provider = start()
    with provider.anthropic as client:
        usages = [
            client.messages.create(
                model=CLAUDE, max_tokens=4000, messages=HELLO, thinking={"type": "adaptive"}, metadata={"user_id": "u"}
            ).usage
            for _ in range(10)
        ]
    lines = provider.lines()
    assert {line["end_user"] for line in lines} == {"u"}
    for usage, line in zip(usages, lines, strict=True):
        units = line["units"]
        assert usage.input_tokens == units["llm.tokens.input"]
        assert usage.cache_read_input_tokens == units.get("llm.tokens.cache_read", 0)
        assert usage.cache_creation_input_tokens == units.get("llm.tokens.cache_write", 0)
        assert usage.output_tokens_details.thinking_tokens == units["llm.tokens.reasoning"]
        assert usage.output_tokens == units["llm.tokens.output"] + units["llm.tokens.reasoning"]
        ttl = usage.cache_creation
        assert ttl.ephemeral_5m_input_tokens + ttl.ephemeral_1h_input_tokens == usage.cache_creation_input_tokens
    assert any(usage.cache_creation.ephemeral_1h_input_tokens for usage in usages)


def test_an_anthropic_stream_ends_with_the_cumulative_usage_that_the_log_has(start):
    provider = start()
    with (
        provider.anthropic as client,
        client.messages.stream(model=CLAUDE, max_tokens=100, messages=HELLO) as stream,
    ):
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (265, 1152)
    (line,) = provider.lines()
    assert line["usage"]["output_tokens"] == message.usage.output_tokens == 353
    assert line["response_id"] == message.id


def test_tools_are_asked_for_and_a_result_leads_on_to_an_answer(start):
    provider = start()
    messages = list(HELLO)
    rounds = 0
    with provider.openai as client:
        while True:
            with client.chat.completions.stream(model="gpt-5-mini", messages=messages, tools=[PRICE_TOOL]) as stream:
                message = stream.get_final_completion().choices[0].message
            if not message.tool_calls:
                break
            rounds += 1
            arguments = json.loads(message.tool_calls[0].function.arguments)
            assert (type(arguments["sku"]), type(arguments["n"])) == (str, int)
            messages.append(message.model_dump(include={"role", "content", "tool_calls"}))
            messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12"})
    assert 1 <= rounds <= 2
    assert message.content


def test_refusals_make_the_sdk_try_again_and_are_logged_without_usage(start):
    provider = start(fault_rate=1.0)
    with provider.openai as client, provider.anthropic as claude:
        assert client.chat.completions.create(
            model="gpt-5-mini", messages=HELLO, extra_headers={"X-Client-Request-Id": "one"}
        ).usage
        claude.messages.create(model=CLAUDE, max_tokens=9, messages=HELLO)
    lines = provider.lines()
    assert [line["outcome"] for line in lines] == ["refused", "refused", "served"] * 2
    assert {line["status"] for line in lines[:2] + lines[3:5]} <= {429, 500}
    assert [line["units"] for line in lines[:2]] == [{}, {}]
    assert [line["request_id"] for line in lines[:3]] == ["one"] * 3


def test_a_stream_that_the_client_leaves_is_logged_with_what_it_had_caused(start):
    provider = start()
    with provider.openai as client:
        stream = client.chat.completions.create(
            model="gpt-5-mini-slow",
            messages=HELLO,
            stream=True,
            extra_headers={"X-Client-Request-Id": "left"},
        )
        for _ in range(4):  # the role and three words
            next(stream)
        (under_way,) = provider.streams()
        stream.close()
    for _ in range(100):
        if provider.lines():
            break
        time.sleep(0.05)
    (line,) = provider.lines()
    assert (under_way["request_id"], line["request_id"], line["outcome"]) == ("left", "left", "cut_off")
    assert line["model"] == "gpt-5-mini"
    assert line["units"]["llm.tokens.input"] == 265
    assert line["units"]["llm.tokens.output"] < 353
    assert provider.streams() == []


def test_a_wrong_request_is_refused_in_a_sentence(start):
    provider = start()
    with provider.openai as client:
        with pytest.raises(APIStatusError) as empty:
            client.chat.completions.create(model="gpt-5-mini", messages=[])
        with pytest.raises(APIStatusError) as large:
            client.embeddings.create(model="text-embedding-3-small", input="x" * 5_000_000)
    assert empty.value.status_code == 400
    assert "at least one message" in empty.value.message
    assert large.value.status_code == 413
    request = urllib.request.Request(f"{provider.url}/v1/messages", b'{"model": "m"}', method="POST")
    with pytest.raises(urllib.error.HTTPError) as keyless:
        urllib.request.urlopen(request, timeout=5)
    body = json.load(keyless.value)
    keyless.value.close()
    assert (keyless.value.code, body["type"]) == (400, "error")


def test_a_fault_rate_that_is_no_share_is_refused_by_the_command(tmp_path):
    command = [str(Path(sys.executable).parent / "meterhouse"), "sandbox", "provider", "--port", "9"]
    done = subprocess.run(
        [*command, "--log", str(tmp_path / "log"), "--fault-rate", "2"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "between 0 and 1" in done.stderr
