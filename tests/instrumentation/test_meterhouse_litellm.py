"""litellm over its own HTTP client, against a server that speaks each provider's wire format."""

import asyncio
import gc
import json
import threading

import pytest

import meterhouse

pytestmark = [  # litellm leaves coroutines and sockets of ended event loops behind
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'LoggingWorker:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUESTION = [{"role": "user", "content": "a secret question"}]
CLAUDE = "anthropic/claude-sonnet-4-5"
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "a secret answer"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
}
# In: 40 fresh, 60 read from the cache, 30 written to it (20 for five minutes, 10 for an hour). litellm says 130.
CACHED = {
    "input_tokens": 40,
    "cache_read_input_tokens": 60,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    "output_tokens": 40,
    "service_tier": "standard",
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.cache_write": 30,
    "llm.tokens.output": 40,
}
PLAIN = {"input_tokens": 7, "output_tokens": 5}
COUNTED = {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 5}


def sse(kind, **data):
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **data}).encode())


START = sse("message_start", message={**MESSAGE, "content": [], "usage": {**CACHED, "output_tokens": 1}})
STREAM = [
    START,
    sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
    sse("content_block_delta", index=0, delta={"type": "text_delta", "text": " you"}),
    sse("content_block_stop", index=0),
    sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 40}),
    sse("message_stop"),
]
# What a stream has told when it is left before its end: the input in full, one token of output.
BEGUN = {**BUCKETS, "llm.tokens.output": 1}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
}


@pytest.fixture
def litellm(library, metering, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for its price list at import
    module = library("litellm")
    monkeypatch.setattr(module, "suppress_debug_info", True)
    return module


@pytest.fixture
def claude(provider):
    return {"model": CLAUDE, "messages": QUESTION, "api_base": provider.url, "api_key": "k", "max_tokens": 64}


def chat_stream(*chunks):
    return [*(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks), b"data: [DONE]\n\n"]


def statuses(metering):
    return sorted(e.point["meterhouse.status"] for e in metering.sink.events if e.meter == "llm.requests")


@pytest.mark.cell("litellm", "sync")
@pytest.mark.cell("litellm", "cached tokens")
def test_what_the_provider_sent_is_counted_not_the_prompt_tokens_that_litellm_makes_of_it(
    litellm, claude, provider, metering
):
    provider.json({**MESSAGE, "usage": CACHED})
    with meterhouse.customer("acme"):
        answer = litellm.completion(**claude)
    assert answer.usage.prompt_tokens == 130
    assert metering.units() == BUCKETS
    event = metering.sink.events[0]
    assert event.point["gen_ai.provider.name"] == "anthropic" and event.point["customer.id"] == "acme"
    assert event.point["gen_ai.response.model"] == "claude-sonnet-4-5-20250929"
    assert event.own["gen_ai.request.model"] == "claude-sonnet-4-5"
    assert event.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]
    writes = {e.point["cache.ttl"]: e.value for e in metering.sink.events if e.meter == "llm.tokens.cache_write"}
    assert writes == {"5m": 20, "1h": 10}


@pytest.mark.cell("litellm", "async")
def test_an_asynchronous_call_is_counted_the_same(litellm, claude, provider, metering):
    provider.json({**MESSAGE, "usage": CACHED})
    asyncio.run(litellm.acompletion(**claude))
    assert metering.units() == BUCKETS
    assert statuses(metering) == ["ok"]


@pytest.mark.cell("litellm", "stream")
def test_a_stream_is_counted_at_its_end_and_reaches_the_host_whole(litellm, claude, provider, metering):
    provider.stream(STREAM)
    chunks = list(litellm.completion(**claude, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello you"
    assert metering.units() == BUCKETS
    assert statuses(metering) == ["ok"]


@pytest.mark.cell("litellm", "async stream")
def test_an_asynchronous_stream_is_counted_the_same(litellm, claude, provider, metering):
    provider.stream(STREAM)

    async def work():
        stream = await litellm.acompletion(**claude, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(work()) == "Hello you"
    assert metering.units() == BUCKETS
    assert statuses(metering) == ["ok"]


@pytest.mark.cell("litellm", "stream, closed early")
def test_a_stream_that_is_left_counts_what_was_reported_and_nothing_that_litellm_would_guess(
    litellm, claude, provider, metering
):
    gate = threading.Event()
    provider.stream(STREAM, gate=gate, gate_before=4)

    async def work():
        stream = await litellm.acompletion(**claude, stream=True)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(work())
    gate.set()
    gc.collect()
    assert metering.units() == BEGUN
    assert statuses(metering) == ["aborted"]


@pytest.mark.cell("litellm", "stream, collected")
def test_a_stream_that_the_garbage_collector_ends_counts_what_was_reported(litellm, claude, provider, metering, until):
    gate = threading.Event()
    provider.stream(STREAM, gate=gate, gate_before=4)
    stream = litellm.completion(**claude, stream=True)
    next(stream)
    del stream
    gc.collect()
    gate.set()
    until(lambda: gc.collect() >= 0 and metering.units() == BEGUN)
    assert statuses(metering) == ["aborted"]


@pytest.mark.cell("litellm", "async cancelled")
def test_a_cancelled_call_is_aborted_and_the_cancellation_passes(litellm, claude, provider, metering, until):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: (gate.wait(20), handler.answer(200, b"{}")))

    async def work():
        task = asyncio.create_task(litellm.acompletion(**claude))
        while not provider.log:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    gate.set()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == ["aborted"]


@pytest.mark.cell("litellm", "retried")
def test_each_request_that_litellm_makes_is_a_call_and_only_the_one_that_was_answered_has_tokens(
    litellm, claude, provider, metering
):
    provider.json({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529)
    provider.json({**MESSAGE, "usage": PLAIN})
    litellm.completion(**claude, num_retries=1)
    assert metering.units() == {**COUNTED, "llm.requests": 2}
    assert statuses(metering) == ["failed", "ok"]


@pytest.mark.cell("litellm", "failed")
def test_an_error_passes_as_it_is_and_the_call_has_failed(litellm, claude, provider, metering):
    provider.json({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, 400)
    with pytest.raises(litellm.BadRequestError, match="no"):
        litellm.completion(**claude)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == ["failed"]
    assert metering.sink.events[0].everything["usage.source"] == "none"


@pytest.mark.cell("litellm", "failed in mid-stream")
def test_a_stream_in_which_the_provider_fails_counts_what_was_reported(litellm, claude, provider, metering):
    provider.stream([*STREAM[:4], sse("error", error={"type": "overloaded_error", "message": "busy"})])
    with pytest.raises(Exception, match="busy"):
        list(litellm.completion(**claude, stream=True))
    assert metering.units() == BEGUN
    assert statuses(metering) == ["failed"]


def test_a_stream_that_breaks_off_counts_what_was_reported(litellm, claude, provider, metering):
    provider.stream(STREAM[:4], cut=True)
    with pytest.raises(Exception, match="incomplete chunked read"):
        list(litellm.completion(**claude, stream=True))
    assert metering.units() == BEGUN
    assert statuses(metering) == ["failed"]


@pytest.mark.cell("litellm", "timeout")
def test_a_call_that_times_out_has_failed(litellm, claude, provider, metering):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    with pytest.raises(litellm.Timeout):
        litellm.completion(**claude, timeout=0.2)
    gate.set()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == ["failed"]


TWICE = {"llm.requests": 2, "llm.tokens.input": 14, "llm.tokens.output": 10}


def test_a_fallback_to_another_model_is_a_call_of_its_own(litellm, claude, provider, metering):
    provider.json({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529)
    provider.json({**MESSAGE, "usage": PLAIN})
    litellm.completion(**claude, num_retries=0, fallbacks=["anthropic/claude-haiku-4-5"])
    assert metering.units() == {**COUNTED, "llm.requests": 2}
    asked = {e.point["meterhouse.status"]: e.own["gen_ai.request.model"] for e in metering.sink.events}
    assert asked == {"failed": "claude-sonnet-4-5", "ok": "claude-haiku-4-5"}


def test_a_router_counts_each_deployment_that_it_asks(litellm, provider, metering):
    here = {"api_base": provider.url, "api_key": "k"}
    models = [
        {"model_name": "smart", "litellm_params": {"model": CLAUDE, **here}},
        {"model_name": "cheap", "litellm_params": {"model": "anthropic/claude-haiku-4-5", **here}},
    ]
    router = litellm.Router(model_list=models, fallbacks=[{"smart": ["cheap"]}], num_retries=0)
    provider.json({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, 529)
    provider.json({**MESSAGE, "usage": PLAIN})
    asyncio.run(router.acompletion(model="smart", messages=QUESTION))
    assert metering.units() == {**COUNTED, "llm.requests": 2}
    assert statuses(metering) == ["failed", "ok"]


def test_what_litellm_answers_itself_is_no_call(litellm, claude, provider, metering, monkeypatch):
    monkeypatch.setattr(litellm, "cache", litellm.Cache(type="local"))
    provider.json({**MESSAGE, "usage": PLAIN})
    answers = [litellm.completion(**claude, caching=True).choices[0].message.content for _ in range(2)]
    litellm.completion(model=CLAUDE, messages=QUESTION, mock_response="hi")
    list(litellm.completion(model=CLAUDE, messages=QUESTION, mock_response="hi", stream=True))
    assert answers == ["a secret answer", "a secret answer"] and len(provider.log) == 1
    assert metering.units() == COUNTED


def test_through_the_openai_sdk_a_call_is_counted_there_once(litellm, provider, metering):
    provider.json(CHAT)
    provider.json(CHAT)
    ask = {"model": "openai/gpt-5-mini", "messages": QUESTION, "api_base": provider.url, "api_key": "k"}
    litellm.completion(**ask)
    asyncio.run(litellm.acompletion(**ask))
    assert metering.units() == TWICE


def test_an_openai_sdk_stream_through_litellm_is_counted_once(litellm, provider, metering):
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini", "choices": []}
    said = {**chunk, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
    over = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    provider.stream(chat_stream(said, over, {**chunk, "usage": CHAT["usage"]}))
    ask = {"model": "openai/gpt-5-mini", "messages": QUESTION, "api_base": provider.url, "api_key": "k"}
    list(litellm.completion(**ask, stream=True))
    assert metering.units() == COUNTED


def test_a_usage_limit_passes_through_litellm_and_is_not_tried_again(litellm, claude, provider, metering, monkeypatch):
    asked = []

    def paused():
        asked.append(1)
        raise meterhouse.UsageLimitExceeded("the usage limit of customer 'acme' is reached")

    monkeypatch.setattr("meterhouse.limits.admit", paused)
    for model in (CLAUDE, "openai/gpt-5-mini"):
        with pytest.raises(meterhouse.UsageLimitExceeded):
            litellm.completion(**{**claude, "model": model}, num_retries=2)
    assert asked == [1, 1] and not provider.log
    assert metering.units() == {}


def test_the_host_sees_the_same_with_and_without(litellm, claude, provider, metering):
    from meterhouse.otel import MeterhouseInstrumentor

    def seen():
        provider.json({**MESSAGE, "usage": CACHED})
        answer = litellm.completion(**claude)
        provider.stream(STREAM)
        stream = litellm.completion(**claude, stream=True)
        chunks = [(chunk.choices[0].delta.content, chunk.choices[0].finish_reason) for chunk in stream]
        provider.json({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, 400)
        with pytest.raises(litellm.BadRequestError) as error:
            litellm.completion(**claude)
        return answer.choices[0].message.content, answer.usage.model_dump(), type(stream), chunks, str(error.value)

    metered = seen()
    MeterhouseInstrumentor().uninstrument()
    assert metered == seen()
    assert len(provider.log) == 6 and "x-client-request-id" not in provider.log[-1][1]


def test_nothing_that_was_asked_or_answered_is_written_or_sent(litellm, claude, provider, metering):
    provider.json({**MESSAGE, "usage": CACHED})
    provider.stream(STREAM)
    litellm.completion(**claude)
    list(litellm.completion(**claude, stream=True))
    written = b"".join(path.read_bytes() for path in metering.journals.iterdir())
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert b"claude-sonnet" in written and b"claude-sonnet" in sent
    assert b"secret" not in written + sent and b"Hello" not in written + sent


def test_the_example_runs_unmodified_under_meterhouse_run(litellm, example, provider, metering):
    use = {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835", "name": "opening_hours", "input": {"day": "Monday"}}
    provider.json({**MESSAGE, "content": [use], "stop_reason": "tool_use", "usage": PLAIN})
    provider.json({**MESSAGE, "content": [{"type": "text", "text": "From 9 to 17."}], "usage": PLAIN})
    environment = {"MODEL_BASE_URL": provider.url, "ANTHROPIC_API_KEY": "k"}
    assert example("litellm_agent.py", "When are you open on Monday?", **environment) == "From 9 to 17.\n"
    counted = {}
    for event in metering.sink.events:
        counted[event.meter] = counted.get(event.meter, 0) + event.value
    assert counted == {**TWICE, "tool.calls": 1}
    [tool] = [e for e in metering.sink.events if e.meter == "tool.calls"]
    assert (tool.point["gen_ai.tool.name"], tool.everything["usage.source"]) == ("opening_hours", "sdk_loop")
