"""Mistral through its real SDK against a server that speaks its wire format."""

import asyncio
import gc
import importlib
import json
import threading
from contextlib import contextmanager, nullcontext

import pytest

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

pytest.importorskip("mistralai")
try:
    sdk = importlib.import_module("mistralai.client")
    sdk.Mistral  # noqa: B018 - there is a module of that name without it before 2.0
    utils = importlib.import_module("mistralai.client.utils")
except (ImportError, AttributeError):
    sdk = importlib.import_module("mistralai")
    utils = importlib.import_module("mistralai.utils")

USAGE = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140, "num_cached_tokens": 60}
BUCKETS = {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 40}
MODEL = "mistral-large-latest"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "a secret question"}]}
ANSWER = {
    "id": "cmpl-1",
    "object": "chat.completion",
    "model": "mistral-large-2611",
    "created": 1,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a secret answer"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def sse(document, name=b""):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + data + b"\n\n"


def part(content, **more):
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}
    return sse(
        {
            "id": "cmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "mistral-large-2611",
            "choices": [choice],
            **more,
        }
    )


STREAM = [part("a secret "), part("answer"), part("", usage=USAGE), sse(b"[DONE]")]


@contextmanager
def connect(provider):
    client = sdk.Mistral(api_key="k", server_url=provider.url, timeout_ms=5000)
    with client if hasattr(client, "__enter__") else nullcontext(client):  # 1.0 has no end
        yield client


@pytest.fixture
def client(metering, provider):
    with connect(provider) as client:
        yield client


def run(provider, work):
    async def connected():
        client = sdk.Mistral(api_key="k", server_url=provider.url, timeout_ms=5000)
        async with client if hasattr(client, "__aenter__") else nullcontext(client):
            return await work(client)

    return asyncio.run(connected())


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.flush()}


@pytest.mark.cell("mistral", "sync")
@pytest.mark.cell("mistral", "cached tokens")
def test_cached_tokens_are_taken_out_of_the_prompt(client, provider, metering):
    provider.json(ANSWER)
    with meterhouse.customer("acme"):
        answer = client.chat.complete(**ASK)
    assert answer.usage.prompt_tokens == 100
    assert metering.units() == BUCKETS
    one = metering.sink.events[0]
    assert one.point["gen_ai.provider.name"] == "mistral_ai" and one.point["gen_ai.operation.name"] == "chat"
    assert one.point["gen_ai.response.model"] == "mistral-large-2611" and one.own["gen_ai.request.model"] == MODEL
    assert one.own["gen_ai.response.id"] == "cmpl-1"
    assert one.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]


def test_cached_tokens_are_found_where_the_details_tell_them_as_well(client, provider, metering):
    details = {"prompt_tokens_details": {"cached_tokens": 60}, "num_cached_tokens": 60}
    provider.json({**ANSWER, "usage": {**USAGE, **details}})
    client.chat.complete(**ASK)
    assert metering.units() == BUCKETS


@pytest.mark.cell("mistral", "stream")
def test_a_stream_is_metered(client, provider, metering):
    provider.stream(STREAM)
    with client.chat.stream(**ASK) as stream:
        assert [event.data.choices[0].delta.content for event in stream] == ["a secret ", "answer", ""]
    assert metering.units() == BUCKETS
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("mistral", "stream, closed early")
@pytest.mark.cell("mistral", "stream, collected")
def test_streams_that_are_left_are_aborted(client, provider, metering):
    for close in (True, False):
        provider.stream(STREAM[:1] * 9)
        stream = client.chat.stream(**ASK)
        next(iter(stream))
        if close:
            stream.response.close()
        del stream
        gc.collect()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("mistral", "failed in mid-stream")
def test_a_connection_that_breaks_within_a_stream_is_a_failed_call(client, provider, metering):
    provider.stream(STREAM[:2], cut=True)
    with client.chat.stream(**ASK) as stream, pytest.raises(Exception, match="peer closed connection"):
        list(stream)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("mistral", "retried")
def test_retries_inside_the_sdk_are_one_call_with_one_request_id(client, provider, metering):
    provider.json({"message": "x"}, 500)
    provider.json(ANSWER)
    retries = utils.RetryConfig("backoff", utils.BackoffStrategy(1, 10, 1.1, 5000), False)
    client.chat.complete(**ASK, retries=retries)
    assert metering.units() == BUCKETS
    assert len(provider.log) == 2 and len({headers["x-client-request-id"] for _, headers, _ in provider.log}) == 1


@pytest.mark.cell("mistral", "failed")
def test_a_refused_call_raises_as_ever_and_has_failed(client, provider, metering):
    for status in (401, 422):
        provider.json({"detail": []}, status)
        with pytest.raises(Exception, match=r"(?i)status 401|detail|validation"):
            client.chat.complete(**ASK)
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("mistral", "timeout")
def test_a_call_that_times_out_has_failed(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    with connect(provider) as client, pytest.raises(Exception, match="timed out"):
        client.chat.complete(**ASK, timeout_ms=200)
    gate.set()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("mistral", "async")
@pytest.mark.cell("mistral", "async stream")
def test_async_calls_and_streams_in_parallel_are_counted_for_their_own_customers(metering, provider):
    for _ in range(3):
        provider.json(ANSWER)
    provider.stream(STREAM)

    async def work(client):
        async def one(number):
            with meterhouse.customer(f"c{number}"):
                await client.chat.complete_async(**ASK)

        await asyncio.gather(*(one(number) for number in range(3)))
        with meterhouse.customer("streamed"):
            assert len([event async for event in await client.chat.stream_async(**ASK)]) == 3

    run(provider, work)
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    paid = {event.point["customer.id"]: event.value for event in metering.sink.events if event.meter == "llm.requests"}
    assert paid == {"c0": 1, "c1": 1, "c2": 1, "streamed": 1}


@pytest.mark.cell("mistral", "async cancelled")
def test_a_cancelled_call_and_a_cancelled_stream_are_aborted(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    provider.stream(STREAM, gate=gate, gate_before=1)

    async def work(client):
        async def read():
            async with await client.chat.stream_async(**ASK) as stream:
                async for _ in stream:
                    pass

        for started in (client.chat.complete_async(**ASK), read()):
            task = asyncio.create_task(started)
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(provider, work)
    gate.set()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("mistral", "modalities")
def test_pages_and_seconds_of_audio_are_metered_as_the_provider_reports_them(client, provider, metering):
    if not hasattr(client, "ocr"):
        pytest.skip("this version has no OCR")
    provider.json({"pages": [], "model": "mistral-ocr", "usage_info": {"pages_processed": 3, "doc_size_bytes": 9}})
    client.ocr.process(model="mistral-ocr", document={"type": "document_url", "document_url": "https://x/y.pdf"})
    assert metering.units() == {"llm.requests": 1, "llm.pages": 3}
    if not hasattr(client, "audio"):
        pytest.skip("this version has no audio")
    heard = {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 388, "prompt_audio_seconds": 203}
    provider.replies.append(
        lambda handler, _: handler.answer(
            200, json.dumps({"model": "voxtral", "text": "x", "language": None, "usage": heard}).encode()
        )
    )
    client.audio.transcriptions.complete(model="voxtral", file={"file_name": "y.mp3", "content": b"a secret"})
    assert metering.units() == {
        "llm.requests": 2,
        "llm.pages": 3,
        "llm.audio.seconds": 203,
        "llm.tokens.input": 4,
        "llm.tokens.output": 9,
    }


def test_the_other_billed_parts_of_the_sdk_are_metered_and_a_list_of_models_is_not(client, provider, metering):
    provider.json({**ANSWER, "object": "x"})
    client.fim.complete(model="codestral", prompt="a secret")
    provider.json(ANSWER)
    client.agents.complete(agent_id="ag_1", messages=ASK["messages"])
    data = [{"object": "embedding", "index": 0, "embedding": [0.1]}]
    usage = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    provider.json({"id": "e", "object": "list", "model": "mistral-embed", "data": data, "usage": usage})
    client.embeddings.create(model="mistral-embed", inputs=["a secret"])
    provider.json({"object": "list", "data": []})
    client.models.list()
    assert metering.units() == {
        "llm.requests": 3,
        "llm.tokens.input": 87,
        "llm.tokens.cache_read": 120,
        "llm.tokens.output": 80,
    }
    operations = [e.point["gen_ai.operation.name"] for e in metering.sink.events if e.meter == "llm.requests"]
    assert operations == ["text_completion", "chat", "embeddings"]


def test_a_conversation_counts_its_connectors_and_what_they_put_before_the_model(client, provider, metering):
    if not hasattr(client, "beta"):
        pytest.skip("this version has no conversations")
    usage = {
        "prompt_tokens": 188,
        "completion_tokens": 55,
        "total_tokens": 7355,
        "connector_tokens": 7112,
        "connectors": {"web_search": 1},
    }
    output = {"type": "message.output", "content": "x", "model": "mistral-medium-2611", "role": "assistant"}
    provider.json({"object": "conversation.response", "conversation_id": "c", "outputs": [output], "usage": usage})
    client.beta.conversations.start(model="mistral-medium-latest", inputs="a secret question")
    assert metering.units() == {
        "llm.requests": 1,
        "llm.tokens.input": 7300,
        "llm.tokens.output": 55,
        "llm.web_searches": 1,
    }
    assert {event.point["gen_ai.response.model"] for event in metering.sink.events} == {"mistral-medium-2611"}


@pytest.mark.cell("mistral", "tool results handed back")
def test_tool_results_of_a_plain_loop_are_counted_once_per_id(client, provider, metering):
    asked = [{"id": "D681PevKs", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "", "tool_calls": asked}
    provider.json({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    client.chat.complete(**ASK)
    talk = [*ASK["messages"], message, {"role": "tool", "tool_call_id": "D681PevKs", "content": "a secret result"}]
    for _ in range(2):
        provider.json(ANSWER)
        client.chat.complete(model=MODEL, messages=talk)
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert [(event.value, event.point["gen_ai.tool.name"], event.own["usage.source"]) for event in calls] == [
        (1, "weather", "sdk_loop")
    ]


def test_a_host_sees_the_same_with_meterhouse_and_without(metering, provider):
    def seen():
        provider.json(ANSWER)
        provider.stream(STREAM)
        provider.json({"message": "no"}, 400)
        with connect(provider) as client:
            found = [repr(client.chat.complete(**ASK))]
            with client.chat.stream(**ASK) as stream:
                found += [type(stream).__name__, [repr(one) for one in stream]]
            with pytest.raises(Exception, match="400") as caught:
                client.chat.complete(**ASK)
        return [*found, type(caught.value).__name__, str(caught.value)]

    metered = seen()
    assert metering.units()["llm.requests"] == 3
    MeterhouseInstrumentor().uninstrument()
    try:
        assert seen() == metered
    finally:
        MeterhouseInstrumentor().instrument(skip_dep_check=True)


def test_no_word_of_prompt_or_answer_is_sent_or_journalled(client, provider, metering):
    provider.json(ANSWER)
    client.chat.complete(**ASK)
    provider.stream(STREAM)
    with client.chat.stream(**ASK) as stream:
        list(stream)
    written = b"".join(path.read_bytes() for path in metering.journals.glob("**/*") if path.is_file())
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert written and sent and b"secret" not in written + sent


def test_the_output_of_a_stream_left_early_is_estimated_only_where_the_operator_asked_for_it(
    client, provider, metering, monkeypatch
):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    provider.stream(STREAM[:1] * 50)
    stream = client.chat.stream(**ASK)
    next(iter(stream))
    stream.response.close()
    found = metering.units()
    assert found["llm.requests"] == 1 and found["llm.tokens.output"] >= 3  # the bytes of later parts are read ahead
    assert {event.own["usage.source"] for event in metering.sink.events} == {"estimated"}
