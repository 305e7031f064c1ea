"""Streams of the OpenAI family at the level of bytes and events, helpers around them, and the estimate."""

import asyncio
import gc
import gzip
import json
import threading
import weakref
import zlib
from importlib.util import find_spec

import openai
import pytest

import meterhouse
from meterhouse.providers.openai import unasked
from meterhouse.providers.sse import Lines, Withheld

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ASK = {"model": "gpt-5", "messages": [{"role": "user", "content": "q"}]}
DONE = b"data: [DONE]\n\n"


def piece(text=None, usage=..., **more):
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    known = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5", "choices": choices}
    document = {**known, **({} if usage is ... else {"usage": usage}), **more}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


ASKED = [piece("Hel", None), piece("lo", None), piece(usage=USAGE), DONE]
PLAIN = [piece("Hel"), piece("lo"), DONE]
UNITS = {"llm.requests": 1, "llm.tokens.input": 10, "llm.tokens.output": 5}
RESPONSES = pytest.mark.skipif(find_spec("openai.types.responses") is None, reason="this openai has no responses API")


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=0) as client:
        yield client


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_in_pieces_of_any_size_and_with_any_line_end(newline, size):
    text = b"event: a\ndata: 1\ndata: 2\n\n: comment\n\ndata:3\n\n\n\ndata: 4".replace(b"\n", newline)
    seen = []
    lines = Lines(lambda event, data: seen.append((event, data)))
    for start in range(0, len(text), size):
        lines.feed(text[start : start + size])
    lines.feed(b"\n\n")
    assert seen == [("a", b"1\n2"), ("", b"3"), ("", b"4")]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_host_gets_the_bytes_that_it_would_have_got_without_our_question(newline, size):
    asked, plain = (b"".join(events).replace(b"\n", newline) for events in (ASKED, PLAIN))
    withheld = Withheld(unasked)
    shown = [withheld.send(asked[start : start + size]) for start in range(0, len(asked), size)]
    assert b"".join(shown) + withheld.rest() == plain


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_whose_end_comes_in_pieces_is_passed_on_with_the_last_of_them(newline):
    withheld = Withheld(unasked)
    event = b"data: 1" + newline + newline
    for number in (1, 2, 3):
        shown = [withheld.send(event[at : at + number]) for at in range(0, len(event), number)]
        assert shown[-1] == event


def test_what_only_looks_like_our_usage_reaches_the_host():
    quoted = piece('"usage":{"prompt_tokens":1},"usage":null', None)
    theirs = piece("x", USAGE)
    broken = b'data: {"usage":{"a":1}, \n\n'
    filtered = piece(usage=None, prompt_filter_results=[1])
    assert unasked(quoted) == piece('"usage":{"prompt_tokens":1},"usage":null')
    assert unasked(theirs) == theirs and unasked(broken) == broken
    assert unasked(filtered) == piece(prompt_filter_results=[1])


def test_an_event_without_end_is_passed_on_and_its_memory_given_back(monkeypatch):
    monkeypatch.setattr("meterhouse.providers.sse.LONGEST_LINE_BYTES", 100)
    withheld, seen = Withheld(unasked), []
    lines = Lines(lambda event, data: seen.append(data))
    shown = b"".join(withheld.send(b"data: " + b"x" * 60) for _ in range(3)) + withheld.rest()
    for _ in range(3):
        lines.feed(b"data: " + b"x" * 60)
    assert shown == (b"data: " + b"x" * 60) * 3
    lines.feed(b"\n\ndata: 1\n\n")
    assert seen[-1] == b"1" and len(b"".join(seen)) < 100


def test_the_first_piece_reaches_the_host_before_the_second_is_sent(client, provider, metering):
    gate = threading.Event()
    provider.stream(ASKED, gate=gate, gate_before=1)
    stream = iter(client.with_options(timeout=2).chat.completions.create(**ASK, stream=True))
    assert next(stream).choices[0].delta.content == "Hel"  # or the SDK's time limit ends it
    gate.set()
    assert len(list(stream)) == 1
    assert metering.units() == UNITS


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("streamed", [False, True])
def test_compressed_answers_are_metered_raw_and_decoded(client, provider, metering, encoding, streamed):
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-5", "choices": [choice]}
    packed = pack(b"".join(ASKED) if streamed else json.dumps({**document, "usage": USAGE}).encode())
    kind = "text/event-stream" if streamed else "application/json"
    for method in ("iter_raw", "iter_bytes"):
        provider.replies.append(
            lambda handler, _: handler.answer(200, packed, kind, headers=[("content-encoding", encoding)])
        )
        options = {"stream_options": {"include_usage": True}} if streamed else {}
        with client.chat.completions.with_streaming_response.create(**ASK, stream=streamed, **options) as response:
            read = b"".join(getattr(response.http_response, method)())
        assert (read == packed) is (method == "iter_raw")
    assert metering.units() == {meter: 2 * quantity for meter, quantity in UNITS.items()}


def test_a_body_that_cannot_be_decoded_reaches_a_raw_reader_and_counts_as_unknown(client, provider, metering):
    headers = [("content-encoding", "gzip")]
    provider.replies.append(lambda handler, _: handler.answer(200, b"no gzip", headers=headers))
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert b"".join(response.http_response.iter_raw()) == b"no gzip"
    (event,) = metering.flush()
    assert event.own["usage.source"] == "none"


def test_a_body_beyond_the_limit_is_not_kept(client, provider, metering, monkeypatch):
    monkeypatch.setattr("meterhouse.providers.streamed.MOST_BODY_BYTES", 10)
    provider.json({"id": "c", "usage": USAGE})
    with client.chat.completions.with_streaming_response.create(**ASK) as response:
        assert json.loads(response.read())["id"] == "c"
    assert metering.units() == {"llm.requests": 1}


def test_a_response_that_was_read_has_none_of_our_readers_left(client, provider, metering):
    provider.stream(ASKED)
    stream = client.chat.completions.create(**ASK, stream=True)
    list(stream)
    left = set(vars(stream.response))
    assert not left & {"iter_bytes", "aiter_bytes", "iter_raw", "aiter_raw"}


@pytest.mark.parametrize("method", ["iter_bytes", "iter_raw"])
def test_a_host_that_keeps_only_the_iterator_of_a_response_reads_and_counts_all_of_it(
    client, provider, metering, method
):
    provider.stream(ASKED)
    raw = client.chat.completions.with_raw_response.create(**ASK, stream=True)
    held = weakref.ref(raw.http_response)
    pieces = getattr(raw.http_response, method)()
    del raw
    gc.collect()
    assert b"".join(pieces) == b"".join(PLAIN)
    assert metering.units() == UNITS
    del pieces
    gc.collect()
    assert held() is None


# ---- helpers and parallel calls --------------------------------------------------------------------------------------


def helper(client):
    completions = client.chat.completions
    for one in (completions, client.beta.chat.completions if hasattr(client.beta, "chat") else completions):
        if hasattr(one, "stream"):
            return one.stream
    return pytest.skip("this openai has no helper streams")


def test_the_helper_stream_of_chats_is_metered_once(client, provider, metering):
    provider.stream(ASKED)
    with helper(client)(**ASK) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "Hello"
    assert kinds.count("content.delta") == 2
    assert metering.units() == UNITS


def test_the_async_helper_stream_of_chats_left_early_is_aborted(metering, provider):
    gate = threading.Event()
    provider.stream(ASKED, gate=gate, gate_before=1)

    async def call():
        client = openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1")
        async with client, helper(client)(**ASK) as stream:
            await anext(aiter(stream))

    asyncio.run(call())
    gate.set()
    (event,) = metering.flush()
    assert event.point["meterhouse.status"] == "aborted"


@RESPONSES
def test_the_helper_stream_of_responses_is_metered_once(client, provider, metering):
    known = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5", "output": [], "tools": []}
    known |= {"parallel_tool_calls": True, "tool_choice": "auto"}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": {**known, "status": "in_progress"}},
        {
            "type": "response.completed",
            "sequence_number": 1,
            "response": {**known, "status": "completed", "usage": usage},
        },
    ]
    provider.stream([f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events])
    with client.responses.stream(model="gpt-5", input="q") as stream:
        assert stream.get_final_response().usage.total_tokens == 15
    assert metering.units() == UNITS


@RESPONSES
@pytest.mark.parametrize("kind", ["response.failed", "response.incomplete"])
def test_a_response_that_ends_otherwise_has_the_tokens_that_it_reported(client, provider, metering, kind):
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    known = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5", "output": [], "tools": []}
    known |= {"parallel_tool_calls": True, "tool_choice": "auto", "status": kind.partition(".")[2], "usage": usage}
    known |= {"error": {"code": "server_error", "message": "no"} if kind == "response.failed" else None}
    event = {"type": kind, "sequence_number": 1, "response": known}
    provider.stream([f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()])
    assert [one.type for one in client.responses.create(model="gpt-5", input="q", stream=True)] == [kind]
    assert metering.units() == UNITS
    status = "failed" if kind == "response.failed" else "ok"
    assert {event.point["meterhouse.status"] for event in metering.sink.events} == {status}


def test_a_call_made_while_a_stream_is_read_is_a_call_of_its_own(client, provider, metering):
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-5", "choices": [choice]}
    provider.stream(ASKED)
    for chunk in client.chat.completions.create(**ASK, stream=True):
        provider.json({**document, "usage": USAGE})
        with meterhouse.step(chunk.choices[0].delta.content):
            client.chat.completions.create(**ASK)
    assert metering.units() == {meter: 3 * quantity for meter, quantity in UNITS.items()}
    assert {event.own.get("meterhouse.step") for event in metering.sink.events} == {None, "Hel", "lo"}


def test_parallel_streams_of_one_client_are_calls_of_their_own(metering, provider):
    async def one(client, name):
        async with meterhouse.customer(name):
            stream = await client.chat.completions.create(**ASK, stream=True)
            return [chunk.choices[0].delta.content async for chunk in stream]

    async def all_of_them():
        async with openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1") as client:
            return await asyncio.gather(*(one(client, f"customer-{n}") for n in range(5)))

    for _ in range(5):
        provider.stream(ASKED)
    assert asyncio.run(all_of_them()) == [["Hel", "lo"]] * 5
    per_customer = {}
    for event in metering.flush():
        per_customer.setdefault(event.point["customer.id"], {})[event.meter] = event.value
    assert per_customer == {f"customer-{n}": UNITS for n in range(5)}


def test_what_cannot_be_read_in_a_stream_changes_nothing_for_the_host(client, provider, metering, monkeypatch):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("meterhouse.providers.openai._take_text", broken)
    provider.stream(ASKED)
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hel", "lo"]
    assert metering.units()["llm.requests"] == 1


# ---- the estimate ----------------------------------------------------------------------------------------------------


def left_early(client, provider, events, **options):
    gate = threading.Event()
    provider.stream(events, gate=gate, gate_before=len(events) - 1)
    with client.chat.completions.create(**ASK, stream=True, **options) as stream:
        for _ in range(len(events) - 2):
            next(iter(stream))
    gate.set()


TEXT = [piece("Hello ", None), piece("wörld!", None), piece("!", None), piece("never", None), DONE]


def test_an_aborted_stream_is_estimated_where_that_is_asked_for(client, provider, metering, monkeypatch):
    """13 characters are 4 tokens."""
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    left_early(client, provider, [*TEXT[:3], DONE, DONE])
    events = metering.flush()
    assert {event.meter: event.value for event in events} == {"llm.requests": 1, "llm.tokens.output": 4}
    assert {event.own["usage.source"] for event in events} == {"estimated"}
    assert {event.point["meterhouse.status"] for event in events} == {"aborted"}
    assert {event.point["gen_ai.response.model"] for event in events} == {"gpt-5"}


def test_nothing_is_estimated_by_default(client, provider, metering, monkeypatch):
    monkeypatch.delenv("METERHOUSE_ESTIMATE", raising=False)
    left_early(client, provider, [*TEXT[:3], DONE, DONE])
    (event,) = metering.flush()
    assert event.meter == "llm.requests" and event.own["usage.source"] == "none"


def test_what_was_reported_is_never_estimated(client, provider, metering, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    provider.stream(ASKED)
    list(client.chat.completions.create(**ASK, stream=True))
    assert metering.units() == UNITS
    assert {event.own["usage.source"] for event in metering.sink.events} == {"reported"}


@RESPONSES
def test_text_of_the_responses_api_is_estimated_alike(client, provider, metering, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    known = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
    deltas = [{"type": "response.output_text.delta", "delta": "12345", "sequence_number": n, **known} for n in (0, 1)]
    gate = threading.Event()
    events = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in (*deltas, *deltas)]
    provider.stream(events, gate=gate, gate_before=2)
    with client.responses.create(model="gpt-5", input="q", stream=True) as stream:
        next(iter(stream))
        next(iter(stream))
    gate.set()
    assert metering.units() == {"llm.requests": 1, "llm.tokens.output": 3}
