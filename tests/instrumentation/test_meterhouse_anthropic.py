"""Anthropic through its real SDK against a server that speaks its wire format."""

import asyncio
import contextlib
import gc
import json
import threading
import time

import anthropic
import pytest

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor
from meterhouse.providers import anthropic as reader

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
START_EARLY = sse(
    "message_start",
    message={**MESSAGE, "content": [], "usage": {**USAGE, "output_tokens": 1, "output_tokens_details": None}},
)
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


TWICE = {meter: 2 * units for meter, units in BUCKETS.items()}
EARLY = {**BUCKETS, "llm.tokens.output": 1}  # what message_start tells: no thinking was reported yet
del EARLY["llm.tokens.reasoning"]


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.sink.events}


def of(metering, meter):
    return [event for event in metering.flush() if event.meter == meter]


@pytest.mark.cell("anthropic", "sync")
@pytest.mark.cell("anthropic", "cached tokens")
@pytest.mark.cell("anthropic", "reasoning tokens")
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
    assert event.own["gen_ai.response.id"] == "msg_1" and event.point["gen_ai.operation.name"] == "chat"


@pytest.mark.cell("anthropic", "stream")
def test_the_cumulative_usage_of_a_stream_is_assigned_not_added(client, provider, metering):
    provider.stream(STREAM)
    kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    provider.stream(STREAM)
    with client.messages.stream(**ASK) as stream:
        assert stream.get_final_text() == "Hello"
    assert metering.units() == TWICE
    assert statuses(metering) == {"ok"}


def test_every_stream_helper_is_one_call(client, provider, metering):
    provider.stream(STREAM)
    with client.messages.stream(**ASK) as stream:
        assert list(stream.text_stream) == ["Hello"]
        assert stream.get_final_message().usage.output_tokens == 40
    provider.stream(STREAM)
    with client.beta.messages.stream(**ASK) as stream:
        stream.until_done()
    provider.stream(STREAM)
    events = client.post("/v1/messages", body={**ASK, "stream": True}, cast_to=object, stream=True, stream_cls=STREAMS)
    assert len(list(events)) == 7  # the ping is the SDK's own
    assert metering.units() == {meter: 3 * units for meter, units in BUCKETS.items()}


STREAMS = anthropic.Stream[anthropic.types.RawMessageStreamEvent]


@pytest.mark.cell("anthropic", "async stream")
def test_async_streams_and_their_helpers_are_metered_as_sync_ones(provider, metering):
    async def work():
        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as client:
            provider.stream(STREAM)
            kinds = [event.type async for event in await client.messages.create(**ASK, stream=True)]
            provider.stream(STREAM)
            async with client.messages.stream(**ASK) as stream:
                return kinds, [text async for text in stream.text_stream], await stream.get_final_text()

    kinds, texts, text = asyncio.run(work())
    assert kinds[-1] == "message_stop" and texts == ["Hello"] and text == "Hello"
    assert metering.units() == TWICE and statuses(metering) == {"ok"}


@pytest.mark.cell("anthropic", "stream, closed early")
def test_a_stream_left_early_keeps_what_was_reported_until_then(client, provider, metering):
    provider.stream([START_EARLY, *STREAM[1:4], *STREAM[3:4] * 50])
    with client.messages.create(**ASK, stream=True) as stream:
        next(iter(stream))
    assert metering.units() == EARLY
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("anthropic", "stream, collected")
def test_a_stream_that_is_let_go_is_an_aborted_call(client, provider, metering):
    provider.stream([START_EARLY, *STREAM[1:4], *STREAM[3:4] * 50])
    stream = client.messages.create(**ASK, stream=True)
    next(iter(stream))
    del stream
    gc.collect()
    assert metering.units() == EARLY and statuses(metering) == {"aborted"}


@pytest.mark.cell("anthropic", "async cancelled")
def test_a_cancelled_stream_is_an_aborted_call_with_what_was_reported(provider, metering):
    gate = threading.Event()
    provider.stream([START_EARLY, *STREAM[1:]], gate=gate, gate_before=2)

    async def work():
        seen = asyncio.Event()

        async def read(client):
            async for _ in await client.messages.create(**ASK, stream=True):
                seen.set()

        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as client:
            task = asyncio.create_task(read(client))
            await seen.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    gate.set()
    assert metering.units() == EARLY and statuses(metering) == {"aborted"}


@pytest.mark.cell("anthropic", "failed")
def test_a_refused_call_is_a_failed_request(client, provider, metering):
    provider.json({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, 400)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**ASK)
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"failed"}


@pytest.mark.cell("anthropic", "failed in mid-stream")
def test_an_error_in_mid_stream_is_a_failed_call_with_what_was_reported(client, provider, metering):
    error = sse("error", error={"type": "overloaded_error", "message": "Overloaded"})
    provider.stream([START_EARLY, *STREAM[1:4], error])
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(**ASK, stream=True))
    assert metering.units() == EARLY
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("anthropic", "timeout")
def test_a_timeout_is_a_failed_request(provider, metering):
    provider.replies.append(lambda _handler, _body: time.sleep(0.5))
    with (
        anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=0, timeout=0.1) as client,
        pytest.raises(anthropic.APITimeoutError),
    ):
        client.messages.create(**ASK)
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"failed"}


@pytest.mark.cell("anthropic", "raw response")
def test_raw_and_streamed_raw_responses_are_metered(client, provider, metering):
    provider.json({**MESSAGE, "usage": USAGE})
    raw = client.messages.with_raw_response.create(**ASK)
    assert raw.http_response.status_code == 200 and raw.parse().id == "msg_1"
    provider.json({**MESSAGE, "usage": USAGE})
    with client.messages.with_streaming_response.create(**ASK) as response:
        assert json.loads(response.read())["id"] == "msg_1"
    provider.stream(STREAM)
    with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
        assert b"".join(response.iter_bytes()) == b"".join(STREAM)
    provider.stream(STREAM)
    assert len(list(client.messages.with_raw_response.create(**ASK, stream=True).parse())) == 7
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    assert statuses(metering) == {"ok"}


def test_the_beta_api_counts_compactions_that_are_in_no_total(client, provider, metering):
    compaction = {
        "type": "compaction",
        "input_tokens": 1000,
        "output_tokens": 100,
        "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 0},
    }
    message = {**compaction, "type": "message", "input_tokens": 40, "output_tokens": 40}
    provider.json({**MESSAGE, "usage": {**USAGE, "iterations": [compaction, message]}})
    client.beta.messages.create(**ASK)
    assert metering.units() == {
        **BUCKETS,
        "llm.tokens.input": 1040,
        "llm.tokens.cache_read": 67,
        "llm.tokens.cache_write": 35,
        "llm.tokens.output": 115,
    }


def test_tokens_of_an_advisor_and_of_models_that_declined_are_of_those_models(client, provider, metering):
    one = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    iterations = [
        {"type": "message", "model": "claude-fable-5", "input_tokens": 412, "output_tokens": 0, **one},
        {"type": "advisor_message", "model": "claude-opus-5", "input_tokens": 800, "output_tokens": 300, **one},
        {"type": "advisor_message", "model": "claude-opus-5", "input_tokens": 900, "output_tokens": 400, **one},
        {"type": "fallback_message", "model": "claude-sonnet-5", "input_tokens": 40, "output_tokens": 40, **one},
    ]
    provider.json({**MESSAGE, "usage": {**USAGE, "iterations": iterations}})
    client.beta.messages.create(**ASK)
    found = {(e.point["gen_ai.response.model"], e.meter): e.value for e in metering.flush() if "tokens" in e.meter}
    assert {key: value for key, value in found.items() if key[0] != "claude-sonnet-5"} == {
        ("claude-fable-5", "llm.tokens.input"): 412,
        ("claude-opus-5", "llm.tokens.input"): 1700,
        ("claude-opus-5", "llm.tokens.output"): 700,
    }
    assert found["claude-sonnet-5", "llm.tokens.input"] == 40
    assert metering.units()["llm.requests"] == 1


@pytest.mark.parametrize("reason", ["refusal", "pause_turn", "max_tokens", "model_context_window_exceeded"])
def test_an_answer_that_stops_for_another_reason_ended_well(client, provider, metering, reason):
    provider.json({**MESSAGE, "stop_reason": reason, "usage": USAGE})
    client.messages.create(**ASK)
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}


def test_a_legacy_completion_is_a_request_whose_tokens_nobody_reports(client, provider, metering):
    answer = {"id": "compl_1", "type": "completion", "completion": " x", "stop_reason": "stop_sequence", "model": "c-2"}
    with contextlib.suppress(AttributeError):  # newer versions have no completions any more
        provider.json(answer)
        client.completions.create(model="c-2", max_tokens_to_sample=5, prompt="a secret")
    if not provider.log:
        client.post("/v1/complete", body={"model": "c-2", "prompt": "a secret"}, cast_to=object)
    (event,) = metering.flush()
    assert event.meter == "llm.requests" and event.own["usage.source"] == "none"
    assert event.point["gen_ai.operation.name"] == "text_completion" and event.point["meterhouse.status"] == "ok"


def test_counting_tokens_and_creating_batches_is_not_billed(client, provider, metering):
    provider.json({"input_tokens": 14})
    client.messages.count_tokens(model="claude-sonnet-5", messages=ASK["messages"])
    provider.json({"id": "msgbatch_0", "type": "message_batch", "processing_status": "in_progress"})
    client.messages.batches.create(requests=[{"custom_id": "a", "params": ASK}])
    assert metering.flush() == []


def test_the_request_id_that_the_host_chose_is_kept(client, provider, metering):
    provider.json({**MESSAGE, "usage": USAGE})
    client.messages.create(**ASK, extra_headers={"x-client-request-id": "mine"})
    assert provider.log[0][1]["x-client-request-id"] == "mine"
    assert {event.own["meterhouse.request.id"] for event in metering.flush()} == {"mine"}


@pytest.mark.cell("anthropic", "async")
@pytest.mark.cell("anthropic", "retried")
def test_async_messages_and_retries_are_metered_as_sync_ones(provider, metering):
    provider.json({"type": "error", "error": {"type": "api_error", "message": "x"}}, 500)
    provider.json({**MESSAGE, "usage": USAGE})
    provider.stream(STREAM)

    async def work():
        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as client:
            await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                await stream.get_final_message()

    asyncio.run(work())
    assert len(provider.log) == 3
    assert metering.units() == TWICE and statuses(metering) == {"ok"}


def test_calls_in_parallel_and_inside_a_stream_are_calls_of_their_own(client, provider, metering):
    provider.stream(STREAM)
    with meterhouse.customer("outer"):
        stream = client.messages.create(**ASK, stream=True)
    next(iter(stream))
    provider.json({**MESSAGE, "usage": USAGE})
    with meterhouse.customer("inner"):
        client.messages.create(**ASK)
    list(stream)

    async def work():
        async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as client:
            await asyncio.gather(client.messages.create(**ASK), client.messages.create(**ASK))

    provider.json({**MESSAGE, "usage": USAGE})
    provider.json({**MESSAGE, "usage": USAGE})
    asyncio.run(work())
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    paid = [event.point.get("customer.id") for event in of(metering, "llm.requests")]
    assert sorted(paid, key=str) == [None, None, "inner", "outer"]


def tool_use(use_id, name):
    return {"type": "tool_use", "id": use_id, "name": name, "input": {}}


@pytest.mark.cell("anthropic", "tool results handed back")
def test_tool_results_that_the_host_hands_back_count_once_under_the_name_that_was_asked_for(client, provider, metering):
    uses = [tool_use("toolu_01Abc", "look_up"), tool_use("toolu_02Def", "book")]
    provider.json({**MESSAGE, "content": uses, "stop_reason": "tool_use", "usage": USAGE})
    asked = client.messages.create(**ASK)
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_01Abc", "content": "a secret result"},
        {"type": "tool_result", "tool_use_id": "toolu_02Def", "content": "broken", "is_error": True},
    ]
    turns = [*ASK["messages"], {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
    for messages in (turns, turns, [*turns, {"role": "assistant", "content": "x"}, ASK["messages"][0]]):
        provider.json({**MESSAGE, "usage": USAGE})
        client.messages.create(**{**ASK, "messages": messages})
    tools = of(metering, "tool.calls")
    assert [(e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in tools] == [
        ("look_up", "ok"),
        ("book", "failed"),
    ]
    assert {event.own["usage.source"] for event in tools} == {"sdk_loop"}
    assert b"secret" not in b"".join(body for _, body in metering.sink.requests)


def test_only_results_after_the_model_s_last_message_are_new():
    """Some servers only number their ids, so that an id says nothing about an earlier turn."""
    answered = [tool_use("call_1", "look_up")]
    given = [{"type": "tool_result", "tool_use_id": "call_1", "content": "x"}]
    turns = [{"role": "assistant", "content": answered}, {"role": "user", "content": given}]
    found = list(reader.Anthropic().tool_results({"messages": turns * 3}))
    assert [(one.tool_call_id, one.name, one.failed) for one in found] == [("call_1", "look_up", False)]


@pytest.mark.parametrize(("wanted", "output", "source"), [("1", 1 + 3, "estimated"), ("", 1, "reported")])
def test_the_output_of_an_aborted_stream_is_estimated_beyond_what_was_reported(
    client, provider, metering, monkeypatch, wanted, output, source
):
    """After message_start, which reports 1 token, two times 5 characters came: 3 more tokens, where that is wanted."""
    monkeypatch.setenv("METERHOUSE_ESTIMATE", wanted)
    gate = threading.Event()
    provider.stream([START_EARLY, STREAM[1], STREAM[3], STREAM[3], STREAM[3]], gate=gate, gate_before=4)
    with client.messages.create(**ASK, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                next(stream)
                break
    gate.set()
    assert metering.units() == {**EARLY, "llm.tokens.output": output}
    (found,) = of(metering, "llm.tokens.output")
    assert found.own["usage.source"] == source and statuses(metering) == {"aborted"}


def test_an_unknown_shape_of_messages_is_left_to_the_sdk(provider):
    odd = [None, "x", {"role": "user", "content": "text"}, {"role": "user", "content": [None, 3, {"type": None}]}]
    assert list(reader.Anthropic().tool_results({"messages": odd})) == []
    assert list(reader.Anthropic().tool_results({"messages": iter(odd)})) == []
    assert list(reader.Anthropic().tool_results({})) == []


def behaviour(provider):
    """What a host sees in each way of calling, as text."""
    seen = []

    def note(step):
        try:
            seen.append(repr(step()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
            seen.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}")

    def chunks():
        with client.messages.create(**ASK, stream=True) as stream:
            return type(stream).__qualname__, [event.model_dump() for event in stream]

    async def async_chunks():
        async with (
            anthropic.AsyncAnthropic(api_key="k", base_url=provider.url, max_retries=0) as other,
            await other.messages.create(**ASK, stream=True) as stream,
        ):
            return type(stream).__qualname__, [event.model_dump() async for event in stream]

    def lines():
        with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
            return response.headers["content-type"], list(response.iter_lines())

    client = anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=0)
    answer = {**MESSAGE, "usage": USAGE}
    provider.json(answer)
    note(lambda: client.messages.create(**ASK).model_dump())
    provider.json({"type": "error", "error": {"type": "not_found_error", "message": "no model"}}, 404)
    note(lambda: client.messages.create(**ASK))
    provider.replies.append(lambda handler, _: handler.answer(200, b"no json"))
    note(lambda: client.messages.create(**ASK))
    for events in (STREAM, STREAM[:4], [*STREAM[:2], sse("error", error={"type": "overloaded_error", "message": "x"})]):
        provider.stream(events)
        note(chunks)
        provider.stream(events)
        note(lambda: asyncio.run(async_chunks()))
    provider.stream([*STREAM[:2], b"event: message_delta\ndata: {broken\n\n"])
    note(chunks)
    provider.stream(STREAM)
    note(lines)
    client.close()
    return seen


def test_the_host_sees_the_same_with_and_without_metering(metering, provider):
    metered = behaviour(provider)
    requests = [(path, body) for path, _, body in provider.log]
    MeterhouseInstrumentor().uninstrument()
    provider.log.clear()
    assert behaviour(provider) == metered
    assert [(path, body) for path, _, body in provider.log] == requests
    assert "NotFoundError" in metered[1] and "message_stop" in metered[3]  # the list is not empty words
    assert metering.units()["llm.requests"] == 11
