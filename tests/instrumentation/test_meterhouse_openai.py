"""OpenAI through its real SDK against a server that speaks its wire format."""

import asyncio
import gc
import json
from importlib.util import find_spec

import openai
import pytest

import meterhouse

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 25},
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "a secret question"}]}


def completion(**changes):
    message = {"role": "assistant", "content": "a secret answer"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini-2026",
        "service_tier": "default",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": USAGE,
        **changes,
    }


def chunk(text=None, usage=None):
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    document = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini-2026"}
    return b"data: " + json.dumps({**document, "choices": choices, "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = [chunk("Hel"), chunk("lo"), chunk(usage=USAGE), DONE]


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=2) as client:
        yield client


@pytest.fixture
def async_client(metering, provider):
    return lambda: openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=2)


def test_cached_and_reasoning_tokens_are_taken_out_of_the_totals(client, provider, metering):
    provider.json(completion())
    with meterhouse.customer("acme"), meterhouse.agent("support"), meterhouse.conversation("c1"), meterhouse.step("s1"):
        answer = client.chat.completions.create(**ASK)
    assert type(answer).__name__ == "ChatCompletion"
    assert metering.units() == {**BUCKETS, "agent.conversations": 1}
    (event,) = [event for event in metering.sink.events if event.meter == "llm.requests"]
    assert event.point == {
        "customer.id": "acme",
        "gen_ai.agent.id": "support",
        "gen_ai.agent.name": "support",
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.operation.name": "chat",
        "service.tier": "default",
        "meterhouse.status": "ok",
    }
    assert event.own["gen_ai.conversation.id"] == "c1" and event.own["meterhouse.step"] == "s1"
    assert event.own["gen_ai.response.id"] == "chatcmpl-1" and event.own["gen_ai.request.model"] == "gpt-5-mini"
    assert event.own["server.address"] == "127.0.0.1" and event.own["usage.source"] == "reported"
    assert event.own["meterhouse.request.id"] == event.own["meterhouse.call.id"]
    assert event.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]
    assert len({one.id for one in metering.sink.events}) == 6
    assert len(event.resource["meterhouse.process.id"]) == 32


def test_a_stream_is_asked_for_its_usage_and_the_host_does_not_see_that(client, provider, metering):
    provider.stream(STREAM)
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert [one.choices[0].delta.content for one in chunks] == ["Hel", "lo"]
    assert provider.log[0][2]["stream_options"] == {"include_usage": True}
    assert metering.units() == BUCKETS


def test_a_stream_in_pieces_of_any_size_reads_the_same(client, provider, metering):
    whole = b"".join(STREAM)
    provider.stream([whole[start : start + 7] for start in range(0, len(whole), 7)])
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert [one.choices[0].delta.content for one in chunks] == ["Hel", "lo"]
    assert metering.units() == BUCKETS


def test_the_usage_chunk_that_the_host_asked_for_reaches_it(client, provider, metering):
    provider.stream(STREAM)
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == 140 and len(chunks) == 3
    assert metering.units() == BUCKETS


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_stream_options_is_called_without_them(client, provider, metering, status):
    refusal = {"error": {"message": "unknown field stream_options"}}
    provider.json(refusal, status)
    provider.stream([chunk("Hi"), DONE])
    assert len(list(client.chat.completions.create(**ASK, stream=True))) == 1
    provider.stream([chunk("Hi"), DONE])
    assert len(list(client.chat.completions.create(**ASK, stream=True))) == 1  # remembered: asked once, not twice
    assert ["stream_options" in body for _, _, body in provider.log] == [True, False, False]
    assert provider.log[0][1]["x-client-request-id"] == provider.log[1][1]["x-client-request-id"]
    assert metering.units() == {"llm.requests": 2}
    assert {event.own["usage.source"] for event in metering.sink.events} == {"none"}


def test_a_stream_closed_early_is_one_aborted_call(client, provider, metering):
    provider.stream([chunk("Hel"), chunk("lo")] * 50 + [DONE])
    with client.chat.completions.create(**ASK, stream=True) as stream:
        next(iter(stream))
    assert metering.units() == {"llm.requests": 1}
    assert metering.sink.events[0].point["meterhouse.status"] == "aborted"


def test_a_stream_that_nobody_reads_is_one_aborted_call_when_it_is_collected(client, provider, metering, until):
    provider.stream([chunk("Hel"), DONE])
    stream = client.chat.completions.create(**ASK, stream=True)
    response = stream.response
    del stream
    response.close()
    del response
    gc.collect()
    assert metering.units() == {"llm.requests": 1}


def test_a_stream_that_breaks_is_one_failed_call_and_the_host_gets_its_error(client, provider, metering):
    provider.stream([chunk("Hel")], cut=True)
    with pytest.raises(Exception, match="onnection"):
        list(client.chat.completions.create(**ASK, stream=True))
    assert metering.units() == {"llm.requests": 1}
    assert metering.sink.events[0].point["meterhouse.status"] == "failed"


def test_retries_inside_the_sdk_are_one_call(client, provider, metering):
    provider.json({"error": {"message": "busy"}}, 500)
    provider.json({"error": {"message": "slow down"}}, 429)
    provider.json(completion())
    client.chat.completions.create(**ASK)
    assert metering.units() == BUCKETS
    assert len({headers["x-client-request-id"] for _, headers, _ in provider.log}) == 1 and len(provider.log) == 3


def test_a_call_that_fails_after_its_retries_is_one_failed_request(client, provider, metering):
    for _ in range(3):
        provider.json({"error": {"message": "down"}}, 500)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASK)
    assert metering.units() == {"llm.requests": 1}
    assert metering.sink.events[0].point["meterhouse.status"] == "failed"


def test_raw_and_streamed_raw_responses_are_metered_once(client, provider, metering):
    provider.json(completion())
    assert client.chat.completions.with_raw_response.create(**ASK).parse().usage.total_tokens == 140
    provider.json(completion())
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert b"secret answer" in response.read()
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}


@pytest.mark.skipif(find_spec("openai.types.responses") is None, reason="this openai has no responses API")
def test_the_responses_api_is_metered_and_retrieving_a_response_is_not(client, provider, metering):
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 0},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 25},
        "total_tokens": 140,
    }
    body = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "output": [], "usage": usage}
    provider.json(body)
    client.responses.create(model="gpt-5-mini", input="x")
    provider.json(body)
    client.responses.retrieve("resp_1")
    done = {"type": "response.completed", "sequence_number": 2, "response": body}
    start = {"type": "response.created", "sequence_number": 1, "response": {**body, "usage": None}}
    provider.stream([b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in (start, done)])
    assert len(list(client.responses.create(model="gpt-5-mini", input="x", stream=True))) == 2
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}


def test_embeddings_count_input_only(client, provider, metering):
    item = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    provider.json({"object": "list", "data": [item], "model": "text-embedding-3-small", "usage": usage})
    client.embeddings.create(model="text-embedding-3-small", input="x", encoding_format="float")
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 8}
    assert metering.sink.events[0].point["gen_ai.operation.name"] == "embeddings"


def test_text_and_audio_tokens_of_one_call_are_two_events(client, provider, metering):
    details = {"cached_tokens": 0, "audio_tokens": 30}
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "prompt_tokens_details": details}
    provider.json(completion(usage=usage))
    client.chat.completions.create(**ASK)
    found = metering.flush()
    inputs = {e.point["gen_ai.token.modality"]: e.value for e in found if e.meter == "llm.tokens.input"}
    assert inputs == {"text": 70, "audio": 30} and len({event.id for event in found}) == 4


def test_customers_of_interleaved_tasks_keep_their_own_calls(async_client, provider, metering):
    async def one(client, customer):
        async with meterhouse.customer(customer):
            for _ in range(3):
                stream = await client.chat.completions.create(**ASK, stream=True)
                assert [c.choices[0].delta.content async for c in stream] == ["Hel", "lo"]
                await asyncio.sleep(0)

    async def both():
        async with async_client() as client:
            await asyncio.gather(one(client, "acme"), one(client, "globex"))

    for _ in range(6):
        provider.stream(STREAM)
    asyncio.run(both())
    per_customer = {}
    for event in metering.flush():
        customer = per_customer.setdefault(event.point["customer.id"], {})
        customer[event.meter] = customer.get(event.meter, 0) + event.value
    assert per_customer == {name: {meter: 3 * n for meter, n in BUCKETS.items()} for name in ("acme", "globex")}


def test_a_cancelled_call_is_aborted(async_client, provider, metering, until):
    import threading

    gate = threading.Event()
    provider.stream(STREAM, gate=gate, gate_before=1)

    async def cancelled():
        async with async_client() as client:
            stream = await client.chat.completions.create(**ASK, stream=True)
            await anext(aiter(stream))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(aiter(stream))

    asyncio.run(cancelled())
    gate.set()
    assert metering.units() == {"llm.requests": 1}
    assert metering.sink.events[0].point["meterhouse.status"] == "aborted"


def test_threads_share_one_client_and_lose_nothing(client, provider, metering):
    import threading

    for _ in range(40):
        provider.json(completion())

    def work(name):
        with meterhouse.customer(name):
            for _ in range(10):
                client.chat.completions.create(**ASK)

    threads = [threading.Thread(target=work, args=(f"customer-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metering.units() == {meter: 40 * units for meter, units in BUCKETS.items()}
    assert {event.point["customer.id"] for event in metering.sink.events} == {f"customer-{n}" for n in range(4)}


def test_no_prompt_answer_or_key_is_in_the_journal_or_on_the_wire(client, provider, metering, monkeypatch, nowhere):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)  # so that the journal keeps it all
    provider.json(completion())
    client.chat.completions.create(**ASK)
    provider.stream([chunk("a secret answer"), chunk(usage=USAGE), DONE])
    list(client.chat.completions.create(**ASK, stream=True))
    written = b"".join(path.read_bytes() for path in metering.journals.iterdir())
    monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert b"llm.requests" in written and b"llm.requests" in sent
    for secret in (b"secret", b"mh_test"):
        assert secret not in written and secret not in sent
