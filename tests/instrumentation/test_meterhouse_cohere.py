"""Cohere through its real SDK, v1 and v2 clients, against a server that speaks its wire format."""

import asyncio
import gc
import json
import threading

import pytest

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

cohere = pytest.importorskip("cohere")

USAGE = {
    "billed_units": {"input_tokens": 90.0, "output_tokens": 40.0},
    "tokens": {"input_tokens": 150, "output_tokens": 44},
}
BUCKETS = {"llm.requests": 1, "llm.tokens.input": 90, "llm.tokens.output": 40}
ASK = {"model": "command-a", "messages": [{"role": "user", "content": "a secret question"}]}
ANSWER = {
    "id": "c14c80c3",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": [{"type": "text", "text": "a secret answer"}]},
    "usage": USAGE,
}
OLD = {
    "text": "a secret answer",
    "generation_id": "g1",
    "finish_reason": "COMPLETE",
    "meta": {"api_version": {"version": "1"}, **USAGE},
}


def sse(kind, **more):
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode())


def words(written):
    return sse("content-delta", index=0, delta={"message": {"content": {"text": written}}})


STREAM = [
    sse("message-start", id="c14c80c3", delta={"message": {"role": "assistant", "content": []}}),
    words("a secret "),
    words("answer"),
    sse("message-end", delta={"finish_reason": "COMPLETE", "usage": USAGE}),
]
OLD_STREAM = [
    json.dumps(one).encode() + b"\n"
    for one in (
        {"event_type": "stream-start", "generation_id": "g1", "is_finished": False},
        {"event_type": "text-generation", "text": "a secret", "is_finished": False},
        {"event_type": "stream-end", "is_finished": True, "finish_reason": "COMPLETE", "response": OLD},
    )
]


def lines(provider, parts):
    """One JSON document per line, as v1 streams."""

    def reply(handler, _body):
        handler.answer(200, b"".join(parts), "application/stream+json")

    provider.replies.append(reply)


def connect(provider, kind=None, **more):
    return (kind or cohere.ClientV2)(api_key="k", base_url=provider.url, timeout=5, **more)


@pytest.fixture
def client(metering, provider):
    with connect(provider) as client:
        yield client


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.flush()}


@pytest.mark.cell("cohere", "sync")
def test_billed_units_count_and_not_the_tokens_around_them(client, provider, metering):
    provider.json(ANSWER)
    with meterhouse.customer("acme"):
        assert client.chat(**ASK).usage.tokens.input_tokens == 150
    assert metering.units() == BUCKETS
    one = metering.sink.events[0]
    assert one.point["gen_ai.provider.name"] == "cohere" and one.point["gen_ai.response.model"] == "command-a"
    assert one.own["gen_ai.response.id"] == "c14c80c3" and one.own["server.address"] == "127.0.0.1"
    assert one.own["meterhouse.request.id"] == provider.log[0][1]["x-client-request-id"]


def test_tokens_count_where_no_billed_units_are_told(client, provider, metering):
    provider.json({**ANSWER, "usage": {"tokens": {"input_tokens": 100, "output_tokens": 40}}})
    client.chat(**ASK)
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 100, "llm.tokens.output": 40}


@pytest.mark.cell("cohere", "cached tokens")
@pytest.mark.parametrize(("cached", "read", "given"), [(60, 60, 30), (120, 90, None)])
def test_cached_tokens_are_taken_out_of_the_billed_input_and_at_most_all_of_it(
    client, provider, metering, cached, read, given
):
    provider.json({**ANSWER, "usage": {**USAGE, "cached_tokens": cached}})
    client.chat(**ASK)
    expected = {"llm.requests": 1, "llm.tokens.input": given, "llm.tokens.cache_read": read, "llm.tokens.output": 40}
    assert metering.units() == {meter: units for meter, units in expected.items() if units}


def test_the_older_client_is_metered_too(metering, provider):
    provider.json(OLD)
    lines(provider, OLD_STREAM)
    with connect(provider, cohere.Client) as client:
        assert client.chat(model="command-r", message="a secret question").text == "a secret answer"
        events = list(client.chat_stream(model="command-r", message="a secret question"))
    assert events[-1].event_type == "stream-end"
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("cohere", "stream")
def test_a_stream_is_metered(client, provider, metering):
    provider.stream(STREAM)
    kinds = [event.type for event in client.chat_stream(**ASK)]
    assert kinds == ["message-start", "content-delta", "content-delta", "message-end"]
    assert metering.units() == BUCKETS
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("cohere", "stream, closed early")
@pytest.mark.cell("cohere", "stream, collected")
def test_streams_that_are_left_are_aborted_and_one_never_begun_is_no_call(client, provider, metering):
    for close in (True, False):
        provider.stream(STREAM[:2] * 9)
        stream = client.chat_stream(**ASK)
        next(iter(stream))
        if close:
            stream.close()
        del stream
        gc.collect()
    client.chat_stream(**ASK)
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("cohere", "failed in mid-stream")
def test_a_stream_that_breaks_or_ends_in_an_error_is_a_failed_call(client, provider, metering):
    provider.stream(STREAM[:2], cut=True)
    with pytest.raises(Exception, match="peer closed connection"):
        list(client.chat_stream(**ASK))
    provider.stream([*STREAM[:2], sse("message-end", delta={"finish_reason": "ERROR", "error": "x", "usage": USAGE})])
    assert len(list(client.chat_stream(**ASK))) == 3
    assert metering.units() == {**BUCKETS, "llm.requests": 2}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("cohere", "retried")
def test_retries_inside_the_sdk_are_one_call_with_one_request_id(client, provider, metering):
    provider.replies.append(
        lambda handler, _: handler.answer(503, b'{"message": "x"}', headers=[("retry-after-ms", "1")])
    )
    provider.json(ANSWER)
    # The first tries of 5.16 are counted as if two had been made before.
    client.chat(**ASK, request_options={"max_retries": 3})
    assert metering.units() == BUCKETS
    assert len(provider.log) == 2 and len({headers["x-client-request-id"] for _, headers, _ in provider.log}) == 1


@pytest.mark.cell("cohere", "failed")
def test_a_refused_call_raises_as_ever_and_has_failed(client, provider, metering):
    provider.json({"message": "no"}, 400)
    with pytest.raises(cohere.BadRequestError):
        client.chat(**ASK)
    provider.json({"message": "no"}, 401)
    with pytest.raises(cohere.UnauthorizedError):
        list(client.chat_stream(**ASK))
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("cohere", "timeout")
def test_a_call_that_times_out_has_failed(client, provider, metering):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    with pytest.raises(Exception, match="timed out"):
        client.chat(**ASK, request_options={"timeout_in_seconds": 0.2})
    gate.set()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("cohere", "raw response")
def test_raw_responses_are_metered(client, provider, metering):
    if not hasattr(client, "with_raw_response"):
        pytest.skip("this version has no raw responses")
    provider.json(ANSWER)
    raw = client.with_raw_response.chat(**ASK)
    assert raw.data.id == "c14c80c3" and "content-type" in raw.headers
    provider.stream(STREAM)
    with client.with_raw_response.chat_stream(**ASK) as streamed:
        assert len(list(streamed.data)) == 4
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}


def run(provider, work):
    async def connected():
        async with connect(provider, cohere.AsyncClientV2) as client:
            return await work(client)

    return asyncio.run(connected())


@pytest.mark.cell("cohere", "async")
@pytest.mark.cell("cohere", "async stream")
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
            assert len([event async for event in client.chat_stream(**ASK)]) == 4

    run(provider, work)
    assert metering.units() == {meter: 4 * units for meter, units in BUCKETS.items()}
    paid = {event.point["customer.id"]: event.value for event in metering.sink.events if event.meter == "llm.requests"}
    assert paid == {"c0": 1, "c1": 1, "c2": 1, "streamed": 1}
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("cohere", "async cancelled")
def test_a_cancelled_call_and_a_cancelled_stream_are_aborted(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    provider.stream(STREAM, gate=gate, gate_before=1)

    async def work(client):
        async def read():
            async for _ in client.chat_stream(**ASK):
                pass

        for started in (client.chat(**ASK), read()):
            task = asyncio.create_task(started)
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(provider, work)
    gate.set()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("cohere", "modalities")
def test_what_is_not_billed_by_text_tokens_has_meters_of_its_own(client, provider, metering):
    def meta(**units):
        return {"api_version": {"version": "2"}, "billed_units": units}

    hit = [{"index": 0, "relevance_score": 0.9}]
    provider.json({"id": "r", "results": hit, "meta": meta(search_units=2)})
    client.rerank(model="rerank-v4", query="a secret", documents=["a secret"])
    for units in ({"images": 1}, {"input_tokens": 8}, {"input_tokens": 3, "image_tokens": 9}):
        provider.json({"id": "e", "embeddings": {"float": [[0.1]]}, "texts": [], "meta": meta(**units)})
        client.embed(model="embed-v4", input_type="classification", embedding_types=["float"], texts=["a secret"])
    assert metering.units() == {
        "llm.requests": 4,
        "llm.search_units": 2,
        "llm.input_images": 1,
        "llm.tokens.input": 20,
    }
    kinds = {e.point.get("gen_ai.token.modality", ""): e.value for e in metering.sink.events if "input" in e.meter}
    assert kinds["image"] == 9 and kinds["text"] == 3
    operations = {event.point["gen_ai.operation.name"] for event in metering.sink.events}
    assert operations == {"rerank", "embeddings"}


def test_classifications_are_metered_and_counting_tokens_is_not_billed(metering, provider):
    meta = {"api_version": {"version": "1"}, "billed_units": {"classifications": 3}}
    provider.json({"id": "x", "classifications": [], "meta": meta})
    provider.json({"tokens": [1], "token_strings": ["x"], "meta": {"api_version": {"version": "1"}}})
    with connect(provider, cohere.Client) as client:
        client.classify(inputs=["a", "b", "c"], examples=[])
        client.tokenize(text="x", model="command-r", offline=False)
    assert metering.units() == {"llm.requests": 1, "llm.classifications": 3}


@pytest.mark.cell("cohere", "tool results handed back")
def test_tool_results_of_a_plain_loop_are_counted_once_per_id(client, provider, metering):
    asked = [{"id": "weather_f8hz29fhq3hv", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    message = {"role": "assistant", "tool_calls": asked, "tool_plan": "x"}
    provider.json({**ANSWER, "message": message, "finish_reason": "TOOL_CALL"})
    client.chat(**ASK)
    result = {"role": "tool", "tool_call_id": "weather_f8hz29fhq3hv", "content": "a secret result"}
    for _ in range(2):
        provider.json(ANSWER)
        client.chat(model="command-a", messages=[*ASK["messages"], message, result])
    start = sse(
        "tool-call-start",
        index=0,
        delta={
            "message": {
                "tool_calls": {**asked[0], "id": "clock_aaaaaaaa1", "function": {"name": "clock", "arguments": ""}}
            }
        },
    )
    provider.stream([STREAM[0], start, STREAM[-1]])
    list(client.chat_stream(**ASK))
    provider.json(ANSWER)
    client.chat(model="command-a", messages=[{**result, "tool_call_id": "clock_aaaaaaaa1"}])
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert [(event.point["gen_ai.tool.name"], event.own["usage.source"]) for event in calls] == [
        ("weather", "sdk_loop"),
        ("clock", "sdk_loop"),
    ]


def test_tool_results_of_the_older_client_have_names_and_no_ids(metering, provider):
    provider.json(OLD)
    with connect(provider, cohere.Client) as client:
        call = {"name": "weather", "parameters": {}}
        client.chat(model="command-r", message="", tool_results=[{"call": call, "outputs": [{"x": "a secret"}]}])
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert [event.point["gen_ai.tool.name"] for event in calls] == ["weather"]


def test_a_host_sees_the_same_with_meterhouse_and_without(metering, provider):
    def seen():
        provider.json(ANSWER)
        provider.stream(STREAM)
        provider.json({"message": "no"}, 400)
        with connect(provider) as client:
            stream = client.chat_stream(**ASK)
            found = [repr(client.chat(**ASK)), type(stream).__name__, [repr(one) for one in stream]]
            with pytest.raises(cohere.BadRequestError) as caught:
                client.chat(**ASK)
        return [*found, type(caught.value).__name__, caught.value.status_code, caught.value.body]

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
    list(client.chat_stream(**ASK))
    written = b"".join(path.read_bytes() for path in metering.journals.glob("**/*") if path.is_file())
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert written and sent and b"secret" not in written + sent


def test_the_output_of_a_stream_left_early_is_estimated_only_where_the_operator_asked_for_it(
    client, provider, metering, monkeypatch
):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    provider.stream(STREAM[:2] * 50)
    stream = client.chat_stream(**ASK)
    next(stream), next(stream)
    stream.close()
    found = metering.units()
    assert found["llm.requests"] == 1 and found["llm.tokens.output"] >= 3  # the bytes of later parts are read ahead
    assert {event.own["usage.source"] for event in metering.sink.events} == {"estimated"}
