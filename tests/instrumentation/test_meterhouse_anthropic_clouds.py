"""Anthropic's clients for Bedrock and Vertex AI, its batches, tool runner and middleware, against wire formats."""

import asyncio
import base64
import binascii
import json
import struct

import anthropic
import pytest

import meterhouse
from meterhouse.providers.aws_eventstream import FAILURE, Frames

MODEL = "claude-sonnet-5"
BEDROCK_MODEL = "us.anthropic.claude-sonnet-5-v1:0"
ASK = {"model": BEDROCK_MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "a secret question"}]}
USAGE = {"input_tokens": 40, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 0, "output_tokens": 15}
BUCKETS = {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 15}
TWICE = {meter: 2 * units for meter, units in BUCKETS.items()}
MESSAGE = {
    "id": "msg_bdrk_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": "a secret answer"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
EVENTS = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {**USAGE, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a secret answer"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 40, "outputTokenCount": 15}},
]
CREDENTIALS = {"aws_access_key": "a", "aws_secret_key": "s", "aws_region": "us-east-1", "max_retries": 0}


def frame(payload, **headers):
    """One message of AWS's event stream, put together as its description says."""
    head = b""
    for name, value in headers.items():
        name, value = b":" + name.replace("_", "-").encode(), value.encode()
        head += bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", binascii.crc32(prelude)) + head + payload
    return message + struct.pack(">I", binascii.crc32(message))


def chunk(event):
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode(), "p": "abc"}).encode()
    return frame(payload, event_type="chunk", content_type="application/json", message_type="event")


REFUSED = frame(
    b'{"message":"too many"}',
    exception_type="throttlingException",
    content_type="application/json",
    message_type="exception",
)


def sse(event):
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())


def eventstream(provider, frames):
    body = b"".join(frames)
    provider.replies.append(lambda handler, _: handler.answer(200, body, "application/vnd.amazon.eventstream"))


@pytest.fixture
def bedrock(metering, provider):
    pytest.importorskip("botocore")
    with anthropic.AnthropicBedrock(base_url=provider.url, **CREDENTIALS) as client:
        yield client


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.sink.events}


def providers(metering):
    return {event.point["gen_ai.provider.name"] for event in metering.sink.events}


def test_bedrock_answers_and_event_streams_are_metered(bedrock, provider, metering):
    provider.json(MESSAGE)
    bedrock.messages.create(**ASK)
    eventstream(provider, map(chunk, EVENTS))
    assert [event.type for event in bedrock.messages.create(**ASK, stream=True)][-1] == "message_stop"
    assert provider.log[1][0].endswith("/invoke-with-response-stream")
    assert metering.units() == TWICE
    assert statuses(metering) == {"ok"} and providers(metering) == {"aws.bedrock"}
    event = metering.sink.events[0]
    assert event.own["gen_ai.request.model"] == BEDROCK_MODEL and event.point["gen_ai.response.model"] == MODEL
    assert b"secret" not in b"".join(body for _, body in metering.sink.requests)


def test_bedrock_is_metered_in_async_and_through_the_stream_helper(provider, metering):
    pytest.importorskip("botocore")

    async def work():
        async with anthropic.AsyncAnthropicBedrock(base_url=provider.url, **CREDENTIALS) as client:
            provider.json(MESSAGE)
            await client.messages.create(**ASK)
            eventstream(provider, map(chunk, EVENTS))
            async with client.messages.stream(**ASK) as stream:
                return await stream.get_final_text()

    assert asyncio.run(work()) == "a secret answer"
    assert metering.units() == TWICE and statuses(metering) == {"ok"}


def test_a_bedrock_stream_that_is_left_or_fails_keeps_what_was_reported(bedrock, provider, metering):
    eventstream(provider, map(chunk, EVENTS))
    with bedrock.messages.create(**ASK, stream=True) as stream:
        next(iter(stream))
    first = metering.units()
    assert first["llm.requests"] == 1 and first["llm.tokens.input"] == 40  # all of it came in one piece
    metering.sink.requests.clear()
    eventstream(provider, [chunk(EVENTS[0]), REFUSED])
    with pytest.raises(Exception, match="too many"):
        list(bedrock.messages.create(**ASK, stream=True))
    assert metering.units() == {**BUCKETS, "llm.tokens.output": 1} and statuses(metering) == {"failed"}


def told(feed):
    found = []
    frames = Frames(lambda event, data: found.append((event, bytes(data))))
    for piece in feed:
        frames.feed(piece)
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_are_put_together_from_pieces_of_any_size(size):
    stream = b"".join([chunk({"a": 1}), chunk({"b": 2}), REFUSED])
    found = told(stream[start : start + size] for start in range(0, len(stream), size))
    assert [data for _, data in found] == [b'{"a": 1}', b'{"b": 2}', FAILURE]


def test_bytes_that_are_no_frames_are_not_collected():
    torn = bytearray(chunk({"a": 1}))
    torn[8] ^= 1  # the prelude's checksum
    assert told([bytes(torn), chunk({"b": 2})]) == []
    frames = Frames(lambda *_: None)
    frames.feed(b"<html>" * 1000)
    assert not any(getattr(frames, name) for name in vars(frames) if name == "_rest")


def test_vertex_ai_is_metered_as_the_provider_that_it_is(metering, provider):
    ask = {**ASK, "model": "claude-sonnet-5@20260101"}
    provider.json(MESSAGE)
    provider.stream([sse(event) for event in EVENTS])
    with anthropic.AnthropicVertex(
        region="us-east5", project_id="p", access_token="t", base_url=provider.url, max_retries=0
    ) as client:
        client.messages.create(**ask)
        list(client.messages.create(**ask, stream=True))
    provider.json(MESSAGE)

    async def work():
        async with anthropic.AsyncAnthropicVertex(
            region="us-east5", project_id="p", access_token="t", base_url=provider.url, max_retries=0
        ) as client:
            await client.messages.create(**ask)

    asyncio.run(work())
    assert provider.log[1][0].endswith(":streamRawPredict")
    assert metering.units() == {meter: 3 * units for meter, units in BUCKETS.items()}
    assert providers(metering) == {"gcp.vertex_ai"} and statuses(metering) == {"ok"}
    assert metering.sink.events[0].own["gen_ai.request.model"] == "claude-sonnet-5@20260101"


@pytest.fixture
def client(metering, provider):
    with anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=0) as client:
        yield client


def results(provider, batch_id, *lines):
    """What reading a batch's results asks for: the batch, then its lines."""
    url = f"{provider.url}/v1/messages/batches/{batch_id}/results"
    provider.json(
        {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended",
            "created_at": "2026-11-20T09:00:00Z",
            "ended_at": "2026-11-20T10:00:00.5Z",
            "results_url": url,
        }
    )
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    provider.replies.append(lambda handler, _: handler.answer(200, body, "application/x-jsonl"))


def succeeded(name):
    usage = {**USAGE, "service_tier": "batch"}
    return {"custom_id": name, "result": {"type": "succeeded", "message": {**MESSAGE, "id": name, "usage": usage}}}


def test_each_result_of_a_batch_is_metered_once_when_it_is_read(client, provider, metering):
    lines = [
        succeeded("msg_batch_a"),
        {"custom_id": "b", "result": {"type": "errored", "error": {"type": "error"}}},
        {"custom_id": "c", "result": {"type": "expired"}},
        succeeded("msg_batch_d"),
    ]
    for _ in range(2):
        results(provider, "msgbatch_1", *lines)
        assert [one.custom_id for one in client.messages.batches.results("msgbatch_1")] == [
            "msg_batch_a",
            "b",
            "c",
            "msg_batch_d",
        ]
    assert metering.units() == TWICE and statuses(metering) == {"ok"}
    events = metering.sink.events
    assert len(events) == 8  # two results of four meters each, though they were read twice
    assert {event.own["gen_ai.response.id"] for event in events} == {"msg_batch_a", "msg_batch_d"}
    assert {event.point["service.tier"] for event in events} == {"batch"}
    # 2026-11-20T10:00:00Z, the end of the batch: every process that reads the results says the same
    assert {event.event_time_ns for event in events} == {1795168800 * 10**9}


def test_results_that_another_process_reads_are_the_same_events(provider, metering, agent, until):
    source = """
import sys, anthropic
with anthropic.Anthropic(api_key="k", base_url=sys.argv[1], max_retries=0) as client:
    list(client.messages.batches.results("msgbatch_2"))
"""
    found = []
    for _ in range(2):
        results(provider, "msgbatch_2", succeeded("msg_batch_e"))
        process = agent(source, provider.url, METERHOUSE_CUSTOMER="acme")
        assert process.wait(30) == 0, process.stderr.read()
        found.append({(event.id, event.event_time_ns, event.value) for event in metering.sink.events})
        assert {event.resource["meterhouse.process.id"] for event in metering.sink.events}
        metering.sink.requests.clear()
    assert len(found[0]) == 4 and found[0] == found[1]


def tool_use(use_id, name):
    return {"type": "tool_use", "id": use_id, "name": name, "input": {"city": "Ulm"}}


def test_tools_that_the_sdk_runs_count_once_and_each_turn_is_a_call(client, provider, metering):
    if not hasattr(client.beta.messages, "tool_runner"):
        pytest.skip("this version of anthropic has no tool runner")

    @anthropic.beta_tool
    def look_up(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        return f"sunny in {city}"

    @anthropic.beta_tool
    def broken(city: str) -> str:
        """Fails.

        Args:
            city: where
        """
        raise RuntimeError(city)

    uses = [tool_use("toolu_03Ghi", "look_up"), tool_use("toolu_04Jkl", "broken")]
    provider.json({**MESSAGE, "content": uses, "stop_reason": "tool_use"})
    provider.json(MESSAGE)
    with meterhouse.customer("acme"):
        runner = client.beta.messages.tool_runner(**{**ASK, "model": MODEL}, tools=[look_up, broken])
        assert runner.until_done().content[0].text == "a secret answer"
    assert metering.units() == {**TWICE, "tool.calls": 2}
    tools = [event for event in metering.sink.events if event.meter == "tool.calls"]
    assert sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in tools) == [
        ("broken", "failed"),
        ("look_up", "ok"),
    ]
    assert {event.own["usage.source"] for event in tools} == {"reported"}


REFUSAL = {**MESSAGE, "id": "msg_refused", "model": "claude-fable-5", "content": [], "stop_reason": "refusal"}


@pytest.fixture
def falling_back(metering, provider):
    middleware = getattr(anthropic, "BetaRefusalFallbackMiddleware", None)
    if middleware is None:
        pytest.skip("this version of anthropic has no fallback middleware")
    with anthropic.Anthropic(
        api_key="k", base_url=provider.url, max_retries=0, middleware=[middleware([{"model": MODEL}])]
    ) as client:
        yield client


@pytest.mark.parametrize("streamed", [False, True])
def test_a_second_request_of_a_client_s_middleware_is_a_call_of_its_own(falling_back, provider, metering, streamed):
    refused_usage = {**USAGE, "output_tokens": 2}
    details = {"type": "refusal", "category": "cyber", "explanation": None, "fallback_credit_token": "t"}
    ask = {**ASK, "model": "claude-fable-5"}
    if streamed:
        start = {**REFUSAL, "stop_reason": None, "usage": refused_usage}
        delta = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}
        refused = [
            {"type": "message_start", "message": start},
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ]
        provider.stream([sse(event) for event in refused])
        provider.stream([sse(event) for event in EVENTS])
        list(falling_back.beta.messages.create(**ask, stream=True))
    else:
        provider.json({**REFUSAL, "stop_details": details, "usage": refused_usage})
        provider.json(MESSAGE)
        falling_back.beta.messages.create(**ask)
    assert len(provider.log) == 2
    assert metering.units() == {**TWICE, "llm.tokens.output": 17}
    outputs = {
        e.point["gen_ai.response.model"]: e.value for e in metering.sink.events if e.meter == "llm.tokens.output"
    }
    assert outputs == {"claude-fable-5": 2, MODEL: 15}
    # The middleware leaves a refused stream before its end.
    assert statuses(metering) == ({"ok", "aborted"} if streamed else {"ok"})
