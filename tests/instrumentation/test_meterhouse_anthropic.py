"""Anthropic through its real SDK against a server that speaks its wire format."""

import asyncio
import json

import anthropic
import pytest

import meterhouse

USAGE = {
    "input_tokens": 40,
    "cache_read_input_tokens": 60,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    "output_tokens": 40,
    "output_tokens_details": {"thinking_tokens": 25},
    "server_tool_use": {"web_search_requests": 2},
    "service_tier": "standard",
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.cache_write": 30,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
    "llm.web_searches": 2,
}
ASK = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": [{"role": "user", "content": "a secret question"}]}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [{"type": "text", "text": "a secret answer"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
}


def sse(kind, **data):
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **data}).encode())


START = sse("message_start", message={**MESSAGE, "content": [], "usage": {**USAGE, "output_tokens": 1}})
STREAM = [
    START,
    sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    sse("ping"),
    sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
    sse("content_block_stop", index=0),
    sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 12}),
    sse(
        "message_delta",
        delta={"stop_reason": "end_turn"},
        usage={"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 25}},
    ),
    sse("message_stop"),
]


@pytest.fixture
def client(metering, provider):
    with anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=2) as client:
        yield client


def test_cache_reads_and_writes_are_added_to_nothing_and_split_by_their_time_to_live(client, provider, metering):
    provider.json({**MESSAGE, "usage": USAGE})
    with meterhouse.customer("acme"):
        client.messages.create(**ASK)
    assert metering.units() == BUCKETS
    writes = {e.point["cache.ttl"]: e.value for e in metering.sink.events if e.meter == "llm.tokens.cache_write"}
    assert writes == {"5m": 20, "1h": 10}
    event = metering.sink.events[0]
    assert event.point["gen_ai.provider.name"] == "anthropic" and event.point["service.tier"] == "standard"
    assert event.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]


def test_the_cumulative_usage_of_a_stream_is_assigned_not_added(client, provider, metering):
    provider.stream(STREAM)
    kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    provider.stream(STREAM)
    with client.messages.stream(**ASK) as stream:
        assert stream.get_final_text() == "Hello"
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}
    assert {event.point["meterhouse.status"] for event in metering.sink.events} == {"ok"}


def test_a_stream_left_early_keeps_what_was_reported_until_then(client, provider, metering):
    provider.stream([START, *STREAM[1:4], *STREAM[3:4] * 50])
    with client.messages.create(**ASK, stream=True) as stream:
        next(iter(stream))
    found = metering.units()
    assert found["llm.tokens.input"] == 40 and found["llm.requests"] == 1
    assert {event.point["meterhouse.status"] for event in metering.sink.events} == {"aborted"}


def test_an_error_in_mid_stream_is_a_failed_call_with_what_was_reported(client, provider, metering):
    error = sse("error", error={"type": "overloaded_error", "message": "Overloaded"})
    provider.stream([*STREAM[:4], error])
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(**ASK, stream=True))
    assert metering.units()["llm.requests"] == 1
    assert {event.point["meterhouse.status"] for event in metering.sink.events} == {"failed"}


def test_counting_tokens_is_not_billed(client, provider, metering):
    provider.json({"input_tokens": 14})
    client.messages.count_tokens(model="claude-sonnet-5", messages=ASK["messages"])
    assert metering.flush() == []


def test_the_request_id_that_the_host_chose_is_kept(client, provider, metering):
    provider.json({**MESSAGE, "usage": USAGE})
    client.messages.create(**ASK, extra_headers={"x-client-request-id": "mine"})
    assert provider.log[0][1]["x-client-request-id"] == "mine"
    assert {event.own["meterhouse.request.id"] for event in metering.flush()} == {"mine"}


def test_async_messages_and_retries_are_metered_as_sync_ones(provider, metering):
    provider.json({"type": "error", "error": {"type": "api_error", "message": "x"}}, 500)
    provider.json({**MESSAGE, "usage": USAGE})
    provider.stream(STREAM)

    async def work():
        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as client:
            await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                assert await stream.get_final_text() == "Hello"

    asyncio.run(work())
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}
