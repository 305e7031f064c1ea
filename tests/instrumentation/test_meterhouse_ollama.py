"""Ollama through its real SDK against a server that speaks its wire format."""

import asyncio
import gc
import json
import threading
from contextlib import closing

import pytest

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

ollama = pytest.importorskip("ollama")
httpx = pytest.importorskip("httpx")

ASK = {"model": "llama4", "messages": [{"role": "user", "content": "a secret question"}]}
ANSWER = {
    "model": "llama4",
    "created_at": "2026-11-20T00:00:00Z",
    "message": {"role": "assistant", "content": "a secret answer"},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 100,
    "eval_count": 40,
}
BUCKETS = {"llm.requests": 1, "llm.tokens.input": 100, "llm.tokens.output": 40}
PART = {"model": "llama4", "message": {"role": "assistant", "content": "a secret "}, "done": False}
STREAM = [json.dumps(one).encode() + b"\n" for one in (PART, PART, ANSWER)]


@pytest.fixture
def client(metering, provider):
    client = ollama.Client(host=provider.url, timeout=5)
    yield client
    client._client.close()


def run(provider, work):
    async def connected():
        client = ollama.AsyncClient(host=provider.url, timeout=5)
        try:
            return await work(client)
        finally:
            await client._client.aclose()

    return asyncio.run(connected())


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.flush()}


@pytest.mark.cell("ollama", "sync")
def test_a_chat_counts_what_the_server_evaluated(client, provider, metering):
    provider.json(ANSWER)
    with meterhouse.customer("acme"):
        answer = client.chat(**ASK)
    assert answer["message"]["content"] == "a secret answer"
    assert metering.units() == BUCKETS
    one = metering.sink.events[0]
    assert one.point["gen_ai.provider.name"] == "ollama" and one.point["gen_ai.response.model"] == "llama4"
    assert one.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]
    assert one.own["server.address"] == "127.0.0.1"


@pytest.mark.cell("ollama", "cached tokens")
def test_a_prompt_that_the_server_had_in_its_cache_is_not_reported_and_not_guessed(client, provider, metering):
    provider.json({key: value for key, value in ANSWER.items() if key != "prompt_eval_count"})
    client.chat(**ASK)
    assert metering.units() == {"llm.requests": 1, "llm.tokens.output": 40}


def test_generate_and_embeddings_are_metered_and_what_runs_no_model_is_not(client, provider, metering):
    provider.json({**ANSWER, "response": "x"})
    client.generate(model="llama4", prompt="a secret question")
    provider.json({"model": "nomic", "embeddings": [[0.1]], "prompt_eval_count": 7})
    client.embed(model="nomic", input="a secret text")
    provider.json({"models": []})
    client.list()
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 107, "llm.tokens.output": 40}
    assert {event.point["gen_ai.operation.name"] for event in metering.sink.events} == {"text_completion", "embeddings"}


@pytest.mark.cell("ollama", "stream")
def test_a_stream_is_metered_once_it_has_told_its_usage(client, provider, metering):
    provider.stream(STREAM)
    stream = client.chat(**ASK, stream=True)
    assert type(stream).__name__ == "generator" and provider.log == []
    assert [one["done"] for one in stream] == [False, False, True]
    assert metering.units() == BUCKETS
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("ollama", "stream, closed early")
@pytest.mark.cell("ollama", "stream, collected")
def test_a_stream_left_early_is_aborted_and_one_never_begun_is_no_call(client, provider, metering):
    for leave in (lambda stream: stream.close(), lambda stream: None):
        provider.stream(STREAM[:1] * 9)
        stream = client.chat(**ASK, stream=True)
        next(stream)
        leave(stream)
        del stream
        gc.collect()
    client.chat(**ASK, stream=True)
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("ollama", "failed in mid-stream")
def test_an_error_in_mid_stream_reaches_the_host_and_the_call_has_failed(client, provider, metering):
    provider.stream([*STREAM[:2], b'{"error": "out of memory"}\n'])
    with closing(client.chat(**ASK, stream=True)) as stream, pytest.raises(ollama.ResponseError, match="out of memory"):
        list(stream)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("ollama", "failed")
def test_a_refused_call_raises_as_ever_and_has_failed(client, provider, metering):
    provider.json({"error": "model not found"}, 404)
    with pytest.raises(ollama.ResponseError, match="model not found") as caught:
        client.chat(**ASK)
    assert caught.value.status_code == 404
    provider.json({"error": "model not found"}, 404)
    with pytest.raises(ollama.ResponseError, match="model not found"):
        list(client.chat(**ASK, stream=True))
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("ollama", "timeout")
def test_a_call_that_times_out_has_failed(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    client = ollama.Client(host=provider.url, timeout=0.2)
    with pytest.raises(httpx.ReadTimeout):
        client.chat(**ASK)
    gate.set()
    client._client.close()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("ollama", "async")
@pytest.mark.cell("ollama", "async stream")
def test_async_calls_and_streams_in_parallel_are_counted_for_their_own_customers(metering, provider):
    for _ in range(3):
        provider.json(ANSWER)
    provider.stream(STREAM)

    async def work(client):
        async def one(number):
            with meterhouse.customer(f"c{number}"):
                await client.chat(**ASK)

        await asyncio.gather(*(one(number) for number in range(3)))
        with meterhouse.customer("streamed"):
            parts = [one async for one in await client.chat(**ASK, stream=True)]
        assert len(parts) == 3

    run(provider, work)
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    paid = {event.point["customer.id"]: event.value for event in metering.sink.events if event.meter == "llm.requests"}
    assert paid == {"c0": 1, "c1": 1, "c2": 1, "streamed": 1}
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("ollama", "async cancelled")
def test_a_cancelled_call_and_a_cancelled_stream_are_aborted(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    provider.stream(STREAM, gate=gate, gate_before=1)

    async def work(client):
        async def read():
            async for _ in await client.chat(**ASK, stream=True):
                pass

        for started in (client.chat(**ASK), read()):
            task = asyncio.create_task(started)
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(provider, work)
    gate.set()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("ollama", "tool results handed back")
def test_tool_results_have_no_ids_and_are_counted_by_the_order_of_what_was_asked_for(client, provider, metering):
    asked = [{"function": {"name": name, "arguments": {}}} for name in ("weather", "clock")]
    talk = [
        *ASK["messages"],
        {"role": "assistant", "content": "", "tool_calls": asked},
        {"role": "tool", "content": "a secret result"},
        {"role": "tool", "content": "noon"},
    ]
    provider.json(ANSWER)
    client.chat(model="llama4", messages=talk)
    provider.json(ANSWER)
    client.chat(model="llama4", messages=[*talk, {"role": "assistant", "content": "x"}, *ASK["messages"]])
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert sorted((event.point["gen_ai.tool.name"], event.own["usage.source"]) for event in calls) == [
        ("clock", "sdk_loop"),
        ("weather", "sdk_loop"),
    ]


def test_a_host_sees_the_same_with_meterhouse_and_without(metering, provider):
    def seen():
        provider.json(ANSWER)
        provider.stream(STREAM)
        provider.json({"error": "no"}, 400)
        client = ollama.Client(host=provider.url)
        found = [repr(client.chat(**ASK)), [repr(one) for one in client.chat(**ASK, stream=True)]]
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(**ASK)
        client._client.close()
        return [*found, repr(caught.value), caught.value.status_code, str(caught.value.__cause__)]

    metered = seen()
    assert metering.units()["llm.requests"] == 3
    MeterhouseInstrumentor().uninstrument()
    try:
        assert seen() == metered
    finally:
        MeterhouseInstrumentor().instrument(skip_dep_check=True)


def test_no_word_of_prompt_or_answer_is_sent_or_journalled(client, provider, metering):
    provider.json(ANSWER)
    client.chat(**ASK)
    provider.stream(STREAM)
    list(client.chat(**ASK, stream=True))
    written = b"".join(path.read_bytes() for path in metering.journals.glob("**/*") if path.is_file())
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert written and sent and b"secret" not in written + sent


def test_the_output_of_a_stream_left_early_is_estimated_only_where_the_operator_asked_for_it(
    client, provider, metering, monkeypatch
):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    provider.stream(STREAM[:1] * 50)
    stream = client.chat(**ASK, stream=True)
    next(iter(stream))
    stream.close()
    found = metering.units()
    assert found["llm.requests"] == 1 and found["llm.tokens.output"] >= 3  # the bytes of later parts are read ahead
    assert {event.own["usage.source"] for event in metering.sink.events} == {"estimated"}
