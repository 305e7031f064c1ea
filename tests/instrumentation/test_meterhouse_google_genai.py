"""Google's Gemini API through its real SDK against a server that speaks its wire format."""

import asyncio
import contextlib
import gc
import json
import threading
import time

import pytest

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

genai = pytest.importorskip("google.genai", exc_type=ImportError)
errors, types = genai.errors, genai.types

# The SDK's own: it subclasses aiohttp's session.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .* method is deprecated"),
    # Old versions let aiohttp's connections go without closing them.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function (BaseConnector|ClientSession).__del__"),
]
MODEL = "gemini-2.5-flash"
ASK = {"model": MODEL, "contents": "a secret question"}
USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 15,
    "thoughtsTokenCount": 25,
    "totalTokenCount": 140,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 60}],
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
TWICE = {meter: 2 * units for meter, units in BUCKETS.items()}


def content(*parts, finish="STOP", **changes):
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": MODEL, "responseId": "resp-1", **changes}


ANSWER = content({"text": "a secret answer"}, usageMetadata=USAGE)
EARLY = {"promptTokenCount": 100, "cachedContentTokenCount": 60, "candidatesTokenCount": 3, "totalTokenCount": 103}
CHUNKS = [
    content({"text": "a "}, finish=None, usageMetadata=EARLY),
    content(
        {"text": "secret "}, finish=None, usageMetadata={**EARLY, "candidatesTokenCount": 9, "totalTokenCount": 109}
    ),
    content({"text": "answer"}, usageMetadata=USAGE),
]


def sse(*chunks):
    return [b"data: %s\r\n\r\n" % json.dumps(chunk).encode() for chunk in chunks]


def call(name, **arguments):
    return {"functionCall": {"name": name, "args": arguments}}


def options(provider, **more):
    return types.HttpOptions(base_url=provider.url, **more)


@pytest.fixture
def client(metering, provider):
    return genai.Client(api_key="k", http_options=options(provider))


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.sink.events}


@contextlib.asynccontextmanager
async def aio_of(client):
    """The async side of a client, closed at the end where this version can."""
    yield client.aio
    if hasattr(client.aio, "aclose"):
        await client.aio.aclose()


def in_loop(work):
    """Runs `work` and leaves the async client's session time to close."""

    async def all_of_it():
        result = await work()
        await asyncio.sleep(0.01)
        return result

    return asyncio.run(all_of_it())


@pytest.mark.cell("google-genai", "sync")
@pytest.mark.cell("google-genai", "cached tokens")
@pytest.mark.cell("google-genai", "reasoning tokens")
def test_cached_tokens_are_taken_out_of_the_prompt_and_thoughts_are_beside_the_output(client, provider, metering):
    provider.json(ANSWER)
    with meterhouse.customer("acme"):
        assert client.models.generate_content(**ASK).text == "a secret answer"
    assert metering.units() == BUCKETS
    event = metering.sink.events[0]
    assert event.point["gen_ai.provider.name"] == "gcp.gemini" and event.point["gen_ai.response.model"] == MODEL
    assert event.point["gen_ai.operation.name"] == "generate_content" and event.point["customer.id"] == "acme"
    assert event.own["gen_ai.request.model"] == MODEL and event.own["gen_ai.response.id"] == "resp-1"
    assert event.own["server.address"] == "127.0.0.1" and event.own["usage.source"] == "reported"
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("google-genai", "async")
def test_async_answers_are_metered_as_sync_ones(client, provider, metering):
    provider.json(ANSWER)

    async def work():
        async with aio_of(client) as aio:
            assert (await aio.models.generate_content(**ASK)).text == "a secret answer"

    in_loop(work)
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}


@pytest.mark.cell("google-genai", "stream")
def test_the_usage_of_each_chunk_replaces_the_former(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    assert [chunk.text for chunk in client.models.generate_content_stream(**ASK)] == ["a ", "secret ", "answer"]
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}


@pytest.mark.cell("google-genai", "async stream")
def test_async_streams_are_metered_as_sync_ones(client, provider, metering):
    provider.stream(sse(*CHUNKS))

    async def work():
        async with aio_of(client) as aio:
            return [chunk.text async for chunk in await aio.models.generate_content_stream(**ASK)]

    assert in_loop(work) == ["a ", "secret ", "answer"]
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}


@pytest.mark.cell("google-genai", "stream, closed early")
def test_a_stream_closed_early_keeps_what_was_reported_until_then(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    stream = client.models.generate_content_stream(**ASK)
    next(stream)
    stream.close()
    units = metering.units()
    assert units == {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 3}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("google-genai", "stream, collected")
def test_a_stream_that_is_let_go_is_an_aborted_call(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    stream = client.models.generate_content_stream(**ASK)
    next(stream)
    del stream
    gc.collect()
    assert metering.units()["llm.tokens.output"] == 3 and statuses(metering) == {"aborted"}


def test_nothing_is_estimated_of_text_that_its_own_chunk_reports(client, provider, metering, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    unreported = {key: value for key, value in CHUNKS[1].items() if key != "usageMetadata"}
    for chunks, output in ((CHUNKS, 3), ([CHUNKS[0], unreported, unreported], 3 + 2)):  # "secret " is 2 tokens more
        provider.stream(sse(*chunks))
        stream = client.models.generate_content_stream(**ASK)
        for _ in range(1 if chunks is CHUNKS else 2):
            next(stream)
        stream.close()
        assert metering.units()["llm.tokens.output"] == output
        metering.sink.requests.clear()


def test_a_stream_left_after_its_last_chunk_ended_well(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    for chunk in client.models.generate_content_stream(**ASK):
        if chunk.candidates[0].finish_reason:
            break
    del chunk
    gc.collect()
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}


def test_a_stream_that_nobody_reads_is_aborted_once_its_request_went_out(client, provider, metering):
    client.models.generate_content_stream(**ASK)  # goes out with its first chunk only
    provider.stream(sse(*CHUNKS))

    async def work():
        async with aio_of(client) as aio:
            path = f"models/{MODEL}:streamGenerateContent?alt=sse"
            await aio._api_client.async_request_streamed("post", path, {"contents": []})
            gc.collect()

    assert provider.log == []
    in_loop(work)
    assert len(provider.log) == 1 and metering.units() == {"llm.requests": 1} and statuses(metering) == {"aborted"}


@pytest.mark.cell("google-genai", "async cancelled")
def test_a_cancelled_stream_is_an_aborted_call_with_what_was_reported(client, provider, metering):
    gate = threading.Event()
    provider.stream(sse(*CHUNKS), gate=gate, gate_before=1)

    async def work():
        seen = asyncio.Event()

        async def read(aio):
            async for _ in await aio.models.generate_content_stream(**ASK):
                seen.set()

        async with aio_of(client) as aio:
            task = asyncio.create_task(read(aio))
            await seen.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    in_loop(work)
    gate.set()
    assert metering.units()["llm.tokens.output"] == 3 and statuses(metering) == {"aborted"}


@pytest.mark.cell("google-genai", "retried")
def test_the_sdk_s_own_retries_are_one_call(metering, provider):
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.01, max_delay=0.02)
    client = genai.Client(api_key="k", http_options=options(provider, retry_options=retry))
    provider.json({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}, 503)
    provider.json(ANSWER)
    client.models.generate_content(**ASK)
    assert len(provider.log) == 2 and metering.units() == BUCKETS and statuses(metering) == {"ok"}


@pytest.mark.cell("google-genai", "failed")
def test_a_refused_call_is_a_failed_request(client, provider, metering):
    provider.json({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}, 400)
    with pytest.raises(errors.ClientError):
        client.models.generate_content(**ASK)
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"failed"}
    assert metering.sink.events[0].own["usage.source"] == "none"


@pytest.mark.cell("google-genai", "failed in mid-stream")
def test_an_error_in_mid_stream_is_a_failed_call_with_what_was_reported(client, provider, metering):
    provider.stream(sse(CHUNKS[0], {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}))
    with contextlib.suppress(errors.ServerError):  # versions until 1.46 hand it over as an empty chunk
        list(client.models.generate_content_stream(**ASK))
    assert metering.units()["llm.tokens.output"] == 3 and statuses(metering) == {"failed"}


def test_a_connection_that_breaks_in_mid_stream_is_a_failed_call(client, provider, metering):
    provider.stream(sse(CHUNKS[0]), cut=True)
    with pytest.raises(Exception, match=r"incomplete chunked read|Connection broken"):
        list(client.models.generate_content_stream(**ASK))
    assert metering.units()["llm.tokens.output"] == 3 and statuses(metering) == {"failed"}


@pytest.mark.cell("google-genai", "timeout")
def test_a_timeout_is_a_failed_request(metering, provider):
    client = genai.Client(api_key="k", http_options=options(provider, timeout=100))
    provider.replies.append(lambda _handler, _body: time.sleep(0.5))
    with pytest.raises(Exception, match=r"timed out|Read timed out"):
        client.models.generate_content(**ASK)
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"failed"}


@pytest.mark.cell("google-genai", "raw response")
def test_an_answer_that_is_handed_over_raw_is_metered(client, provider, metering):
    provider.json(ANSWER)
    answer = client.models.generate_content(**ASK, config={"should_return_http_response": True})
    assert json.loads(answer.sdk_http_response.body) == ANSWER
    assert metering.units() == BUCKETS


@pytest.mark.cell("google-genai", "modalities")
def test_modalities_are_those_of_the_uncached_input_of_the_cache_and_of_the_output(client, provider, metering):
    usage = {
        "promptTokenCount": 1000,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 200},
            {"modality": "IMAGE", "tokenCount": 500},
            {"modality": "AUDIO", "tokenCount": 200},
            {"modality": "DOCUMENT", "tokenCount": 100},
        ],
        "cachedContentTokenCount": 350,
        "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 300}, {"modality": "TEXT", "tokenCount": 50}],
        "toolUsePromptTokenCount": 70,
        "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}, {"modality": "VIDEO", "tokenCount": 40}],
        "candidatesTokenCount": 1300,
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "IMAGE", "tokenCount": 1290}],
        "totalTokenCount": 2370,
    }
    provider.json(content({"text": "x"}, usageMetadata=usage))
    client.models.generate_content(**ASK)
    found = {(e.meter, e.point.get("gen_ai.token.modality", "")): e.value for e in metering.flush()}
    assert found == {
        ("llm.requests", ""): 1,
        ("llm.tokens.input", "image"): 200,
        ("llm.tokens.input", "audio"): 200,
        ("llm.tokens.input", "document"): 100,
        ("llm.tokens.input", "video"): 40,
        ("llm.tokens.input", "text"): 180,  # 200 given, 50 of them cached, 30 from tools
        ("llm.tokens.cache_read", "image"): 300,
        ("llm.tokens.cache_read", "text"): 50,
        ("llm.tokens.output", "image"): 1290,
        ("llm.tokens.output", "text"): 10,
    }


def test_a_blocked_prompt_is_an_answer_with_its_input(client, provider, metering):
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 8}}
    provider.json(blocked)
    client.models.generate_content(**ASK)
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 8} and statuses(metering) == {"ok"}
    # The answer names no model: the one that was asked for has refused.
    assert {event.point["gen_ai.response.model"] for event in metering.sink.events} == {MODEL}


def test_the_distinct_searches_that_an_answer_names_are_web_searches(client, provider, metering):
    first = content({"text": "x"}, finish=None)
    first["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["secret a", "secret b"]}
    last = content({"text": "y"}, usageMetadata=USAGE)
    last["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["secret b", "secret c", ""]}
    provider.stream(sse(first, last))
    list(client.models.generate_content_stream(**ASK))
    assert metering.units() == {**BUCKETS, "llm.web_searches": 3}
    assert b"secret" not in b"".join(body for _, body in metering.sink.requests)


@pytest.mark.parametrize(
    ("headers", "usage", "tier"),
    [
        ([("x-gemini-service-tier", "priority")], USAGE, "priority"),
        ([], {**USAGE, "trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned_throughput"),
        ([], USAGE, None),
    ],
)
def test_the_service_tier_is_the_one_that_served(client, provider, metering, headers, usage, tier):
    body = json.dumps(content({"text": "x"}, usageMetadata=usage)).encode()
    provider.replies.append(lambda handler, _: handler.answer(200, body, headers=headers))
    client.models.generate_content(**ASK)
    assert {event.point.get("service.tier") for event in metering.flush()} == {tier}


def test_vertex_ai_is_another_provider(metering, provider):
    from google.oauth2.credentials import Credentials

    credentials = Credentials("token")
    client = genai.Client(
        vertexai=True, project="p", location="us-central1", credentials=credentials, http_options=options(provider)
    )
    provider.json(ANSWER)
    client.models.generate_content(**ASK)
    assert metering.units() == BUCKETS
    event = metering.sink.events[0]
    assert event.point["gen_ai.provider.name"] == "gcp.vertex_ai" and event.own["gen_ai.request.model"] == MODEL


def test_embeddings_count_what_was_embedded_where_the_answer_says_so(client, provider, metering):
    provider.json({"embeddings": [{"values": [0.1]}], "usageMetadata": {"promptTokenCount": 12}})
    client.models.embed_content(model="gemini-embedding-001", contents="a secret question")
    provider.json({"embeddings": [{"values": [0.1]}]})
    client.models.embed_content(model="gemini-embedding-001", contents="a secret question")
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 12}
    requests = [event for event in metering.sink.events if event.meter == "llm.requests"]
    assert {event.point["gen_ai.operation.name"] for event in requests} == {"embeddings"}
    assert {event.point["gen_ai.response.model"] for event in requests} == {"gemini-embedding-001"}
    assert sorted(event.own["usage.source"] for event in requests) == ["none", "reported"]


@pytest.fixture
def vertex(metering, provider):
    from google.oauth2.credentials import Credentials

    return genai.Client(
        vertexai=True, project="p", location="us-central1", credentials=Credentials("t"), http_options=options(provider)
    )


def test_vertex_embeddings_are_the_sum_of_their_token_counts(vertex, provider, metering):
    made = {"values": [0.1], "statistics": {"truncated": False, "token_count": 4.0}}
    provider.json({"predictions": [{"embeddings": made}, {"embeddings": {**made, "statistics": {"token_count": 5}}}]})
    vertex.models.embed_content(model="text-embedding-005", contents=["one", "two"])
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 9}


def test_images_are_those_that_were_made_and_not_filtered(vertex, provider, metering):
    made = {"mimeType": "image/png", "bytesBase64Encoded": "aGVsbG8="}
    provider.json({"predictions": [made, {"raiFilteredReason": "no"}, made]})
    vertex.models.generate_images(model="imagen-4.0-generate-001", prompt="a secret picture")
    provider.json({"predictions": [made]})
    vertex.models.upscale_image(
        model="imagen-4.0-upscale-preview",
        image=types.Image(image_bytes=b"hello", mime_type="image/png"),
        upscale_factor="x2",
    )
    assert metering.units() == {"llm.requests": 2, "llm.images": 3}
    images = [event for event in metering.sink.events if event.meter == "llm.images"]
    assert {event.point["gen_ai.response.model"] for event in images} == {
        "imagen-4.0-generate-001",
        "imagen-4.0-upscale-preview",
    }


def test_counting_tokens_caching_and_files_are_not_billed(client, provider, metering):
    provider.json({"totalTokens": 5, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}]})
    client.models.count_tokens(**ASK)
    provider.json({"name": "cachedContents/1", "usageMetadata": {"totalTokenCount": 5000}})
    client.caches.create(model=MODEL, config={"contents": "a secret document"})
    provider.json({"name": "files/1"})
    client.files.get(name="files/1")
    assert metering.flush() == []


def test_a_chat_is_one_call_per_turn(client, provider, metering):
    chat = client.chats.create(model=MODEL)
    provider.json(ANSWER)
    chat.send_message("a secret question")
    provider.stream(sse(*CHUNKS))
    assert "".join(chunk.text for chunk in chat.send_message_stream("another")) == "a secret answer"
    assert metering.units() == TWICE


def test_a_function_that_the_sdk_runs_itself_counts_once_and_each_round_is_a_call(client, provider, metering):
    def look_up(city: str) -> str:
        """The weather."""
        return f"sunny in {city}"

    def broken(city: str) -> str:
        """Fails."""
        raise RuntimeError(city)

    asked = content(call("look_up", city="Ulm"), call("broken", city="Bonn"), usageMetadata=USAGE)
    config = types.GenerateContentConfig(tools=[look_up, broken])
    provider.json(asked)
    provider.json(ANSWER)
    assert client.models.generate_content(**ASK, config=config).text == "a secret answer"
    parts = provider.log[1][2]["contents"][-1]["parts"]
    assert len(parts) == 2  # both results were handed back
    provider.json(asked)
    provider.json(ANSWER)

    async def work():
        async with aio_of(client) as aio:
            await aio.models.generate_content(**ASK, config=config)

    in_loop(work)
    assert metering.units() == {**{meter: 4 * units for meter, units in BUCKETS.items()}, "tool.calls": 4}
    tools = [(e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in metering.sink.events if is_tool(e)]
    assert sorted(tools) == [("broken", "failed"), ("broken", "failed"), ("look_up", "ok"), ("look_up", "ok")]
    assert {e.own["usage.source"] for e in metering.sink.events if is_tool(e)} == {"reported"}


def is_tool(event):
    return event.meter == "tool.calls"


@pytest.mark.cell("google-genai", "tool results handed back")
def test_results_that_the_host_hands_back_count_once(client, provider, metering):
    turns = [
        {"role": "user", "parts": [{"text": "a secret question"}]},
        {"role": "model", "parts": [call("look_up", city="Ulm"), call("look_up", city="Bonn")]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "look_up", "response": {"output": "sunny"}}},
                {"functionResponse": {"name": "look_up", "response": {"error": "no such city"}}},
            ],
        },
    ]
    with meterhouse.customer("acme"):
        provider.json(ANSWER)
        client.models.generate_content(model=MODEL, contents=turns)
        provider.json(ANSWER)
        later = [*turns, {"role": "model", "parts": [{"text": "x"}]}, {"role": "user", "parts": [{"text": "more"}]}]
        client.models.generate_content(model=MODEL, contents=later)
    assert metering.units() == {**TWICE, "tool.calls": 2}
    tools = [event for event in metering.sink.events if is_tool(event)]
    assert {event.point["gen_ai.tool.name"] for event in tools} == {"look_up"}
    assert {event.own["usage.source"] for event in tools} == {"sdk_loop"}
    assert sorted(event.point["meterhouse.status"] for event in tools) == ["failed", "ok"]


def test_a_result_with_an_id_counts_once_however_often_it_is_sent(client, provider, metering):
    called = {"functionCall": {"id": "call-8f14e45fceea", "name": "look_up", "args": {}}}
    given = {"functionResponse": {"id": "call-8f14e45fceea", "name": "look_up", "response": {"output": "sunny"}}}
    turns = [{"role": "model", "parts": [called]}, {"role": "user", "parts": [given]}]
    for _ in range(2):
        provider.json(ANSWER)
        client.models.generate_content(model=MODEL, contents=turns)
    assert metering.units()["tool.calls"] == 1


def test_calls_in_parallel_and_inside_a_stream_are_calls_of_their_own(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    stream = client.models.generate_content_stream(**ASK)
    with meterhouse.customer("outer"):
        next(stream)
    provider.json(ANSWER)
    with meterhouse.customer("inner"):
        client.models.generate_content(**ASK)
    list(stream)
    provider.json(ANSWER)
    provider.json(ANSWER)

    async def work():
        async with aio_of(client) as aio:
            await asyncio.gather(aio.models.generate_content(**ASK), aio.models.generate_content(**ASK))

    in_loop(work)
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    paid = [e.point.get("customer.id") for e in metering.sink.events if e.meter == "llm.requests"]
    assert sorted(paid, key=str) == [None, None, "inner", "outer"]


def behaviour(provider):
    """What a host sees in each way of calling, as text."""
    seen = []

    def note(step):
        try:
            seen.append(repr(step()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
            seen.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}")

    def chunks():
        stream = client.models.generate_content_stream(**ASK)
        return type(stream).__name__, [chunk.model_dump(exclude={"sdk_http_response"}) for chunk in stream]

    async def async_chunks():
        async with aio_of(genai.Client(api_key="k", http_options=options(provider))) as aio:
            stream = await aio.models.generate_content_stream(**ASK)
            return type(stream).__name__, [chunk.model_dump(exclude={"sdk_http_response"}) async for chunk in stream]

    client = genai.Client(api_key="k", http_options=options(provider, timeout=10_000))
    provider.json(ANSWER)
    note(lambda: client.models.generate_content(**ASK).model_dump(exclude={"sdk_http_response"}))
    provider.json({"error": {"code": 404, "message": "no model", "status": "NOT_FOUND"}}, 404)
    note(lambda: client.models.generate_content(**ASK))
    provider.replies.append(lambda handler, _: handler.answer(200, b"no json"))
    note(lambda: client.models.generate_content(**ASK))
    provider.stream(sse(*CHUNKS))
    note(chunks)
    provider.stream(sse(CHUNKS[0], {"error": {"code": 429, "message": "slow down", "status": "EXHAUSTED"}}))
    note(chunks)
    provider.stream(sse(*CHUNKS))
    note(lambda: in_loop(async_chunks))
    provider.stream([*sse(CHUNKS[0]), b"data: {broken\r\n\r\n"])
    note(lambda: in_loop(async_chunks))
    note(lambda: client.models.generate_content(model="", contents="x"))
    return seen


def test_the_host_sees_the_same_with_and_without_metering(metering, provider):
    metered = behaviour(provider)
    requests = [(path, body) for path, _, body in provider.log]
    MeterhouseInstrumentor().uninstrument()
    provider.log.clear()
    assert behaviour(provider) == metered
    assert [(path, body) for path, _, body in provider.log] == requests
    assert "ClientError" in metered[1] and "generator" in metered[3]  # the list is not empty words
    assert metering.units()["llm.requests"] == 7


def test_no_text_of_prompt_answer_or_tool_leaves_the_process(client, provider, metering):
    provider.stream(sse(*CHUNKS))
    list(client.models.generate_content_stream(**ASK))
    metering.flush()
    assert b"secret" not in b"".join(body for _, body in metering.sink.requests)
