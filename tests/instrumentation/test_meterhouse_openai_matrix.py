"""Chat completions and responses of OpenAI, and Groq, in every scenario: what is metered, and that the host sees the
same as without metering. Each scenario runs both ways against a server that speaks the wire format."""

import asyncio
import gc
import json
import socket
import struct
import threading
from importlib.util import find_spec
from types import MappingProxyType

import groq
import openai
import pytest

from meterhouse.otel import MeterhouseInstrumentor

BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
SOON = [("retry-after-ms", "1")]


def sse(document, event=""):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


class Chat:
    """Chat completions."""

    sdk, path, answered_by = openai, "/v1/chat/completions", "gpt-5-mini-2026"
    ask = MappingProxyType({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "q"}]})
    usage = MappingProxyType(
        {
            "prompt_tokens": 100,
            "completion_tokens": 40,
            "total_tokens": 140,
            "prompt_tokens_details": {"cached_tokens": 60},
            "completion_tokens_details": {"reasoning_tokens": 25},
        }
    )
    asks_for_usage = True

    def client(self, url, asynchronous=False, **options):
        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        return kind(api_key="k", base_url=url + "/v1", **options)

    def create(self, client, **options):
        return client.chat.completions.create(**self.ask, **options)

    def raw(self, client, **options):
        return client.chat.completions.with_raw_response.create(**self.ask, **options)

    def streaming(self, client, **options):
        return client.chat.completions.with_streaming_response.create(**self.ask, **options)

    def body(self):
        message = {"role": "assistant", "content": "Hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        known = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.answered_by}
        return {**known, "choices": [choice], "usage": dict(self.usage)}

    def piece(self, text=None, reason=None, **more):
        delta = {} if text is None else {"role": "assistant", "content": text}
        known = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.answered_by}
        return {**known, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}

    def events(self, asked):
        """The stream; the server sends usage only where the request asks for it."""
        null = {"usage": None} if asked else {}
        parts = [self.piece("Hel", **null), self.piece("lo", **null), self.piece(reason="stop", **null)]
        if asked:
            parts.append({**self.piece(), "choices": [], "usage": dict(self.usage)})
        return [*map(sse, parts), b"data: [DONE]\n\n"]

    error_event = sse({"error": {"message": "overloaded", "type": "server_error"}})


class Responses(Chat):
    """The responses API."""

    path = "/v1/responses"
    ask = MappingProxyType({"model": "gpt-5-mini", "input": "q"})
    usage = MappingProxyType(
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 0},
            "output_tokens": 40,
            "output_tokens_details": {"reasoning_tokens": 25},
            "total_tokens": 140,
        }
    )
    asks_for_usage = False

    def create(self, client, **options):
        return client.responses.create(**self.ask, **options)

    def raw(self, client, **options):
        return client.responses.with_raw_response.create(**self.ask, **options)

    def streaming(self, client, **options):
        return client.responses.with_streaming_response.create(**self.ask, **options)

    def body(self, status="completed", **more):
        text = {"type": "output_text", "text": "Hello", "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1763700000,
            "status": status,
            "model": self.answered_by,
            "output": [message] if status == "completed" else [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": dict(self.usage) if status == "completed" else None,
            **more,
        }

    def events(self, asked):
        place = {"item_id": "msg_1", "output_index": 0}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        events = [
            {"type": "response.created", "response": self.body("in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **place, "content_index": 0, "part": part},
            {"type": "response.output_text.delta", **place, "content_index": 0, "delta": "Hel", "logprobs": []},
            {"type": "response.output_text.delta", **place, "content_index": 0, "delta": "lo", "logprobs": []},
            {"type": "response.completed", "response": self.body()},
        ]
        return [sse({**event, "sequence_number": n}, event["type"]) for n, event in enumerate(events)]

    error_event = sse({"type": "error", "code": "server_error", "message": "overloaded", "sequence_number": 9}, "error")


class Groq(Chat):
    """Groq's own SDK; its streams tell their usage in `x_groq`, whether or not they are asked."""

    sdk, path, answered_by = groq, "/openai/v1/chat/completions", "llama-3.3-70b-versatile"
    ask = MappingProxyType({"model": "llama-3.3-70b-versatile", "messages": [{"role": "user", "content": "q"}]})
    usage = MappingProxyType({**Chat.usage, "queue_time": 0.1, "prompt_time": 0.01, "completion_time": 0.2})
    asks_for_usage = False

    def client(self, url, asynchronous=False, **options):
        return (groq.AsyncGroq if asynchronous else groq.Groq)(api_key="k", base_url=url, **options)

    def events(self, asked):
        parts = [self.piece("Hel", x_groq={"id": "req_1"}), self.piece("lo")]
        parts.append(self.piece(reason="stop", x_groq={"id": "req_1", "usage": dict(self.usage)}))
        return [*map(sse, parts), b"data: [DONE]\n\n"]


NO_RESPONSES = pytest.mark.skipif(
    find_spec("openai.types.responses") is None, reason="this openai has no responses API"
)
APIS = [Chat(), pytest.param(Responses(), marks=NO_RESPONSES), Groq()]


@pytest.fixture(params=APIS, ids=lambda api: type(api).__name__.lower())
def api(request):
    return request.param


@pytest.fixture
def streamed(api, provider):
    """Queues the API's stream as a server sends it, with usage only where asked."""

    def queue(change=list, **how):
        def reply(handler, body):
            asked = bool((body.get("stream_options") or {}).get("include_usage"))
            provider.stream(change(api.events(asked)), **how)
            provider.replies.pop()(handler, body)

        provider.replies.append(reply)

    return queue


@pytest.fixture
def both_ways(provider, metering):
    """Runs a scenario metered and not, and compares what it returns; gives the events, and what was seen."""

    def run(scenario):
        seen = [_observed(scenario)]
        gc.collect()
        events = metering.flush()
        MeterhouseInstrumentor().uninstrument()
        try:
            seen.append(_observed(scenario))
        finally:
            MeterhouseInstrumentor().instrument(skip_dep_check=True)
        assert seen[0] == seen[1]
        assert provider.replies == []
        assert len(metering.flush()) == len(events)
        return events, seen[0]

    return run


def _observed(scenario):
    try:
        return scenario()
    except Exception as error:  # noqa: BLE001 - any error is what the host sees
        return type(error), str(error), type(error.__cause__), getattr(error, "status_code", None)


def units(events):
    found = {}
    for event in events:
        found[event.meter] = found.get(event.meter, 0) + event.value
    return found


def only(events, status, source):
    """The single request of a call without tokens."""
    assert units(events) == {"llm.requests": 1}
    assert events[0].point["meterhouse.status"] == status and events[0].own["usage.source"] == source


def dumped(items):
    return [(type(one).__name__, one.to_dict()) for one in items]


def reset(handler, _body):
    """Close the connection without an answer, by RST."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def refused(status, provider):
    provider.replies.append(lambda handler, _: handler.answer(status, b'{"error":{"message":"no"}}', headers=SOON))


@pytest.mark.cell("openai", "sync")
@pytest.mark.cell("groq", "sync")
@pytest.mark.cell("openai", "cached tokens")
@pytest.mark.cell("groq", "cached tokens")
@pytest.mark.cell("openai", "reasoning tokens")
@pytest.mark.cell("groq", "reasoning tokens")
def test_a_call_is_its_buckets(api, provider, both_ways):
    def scenario():
        provider.json(api.body())
        with api.client(provider.url) as client:
            return dumped([api.create(client)])

    events, _ = both_ways(scenario)
    assert units(events) == BUCKETS
    point = events[0].point
    assert point["gen_ai.provider.name"] == ("groq" if isinstance(api, Groq) else "openai")
    assert point["gen_ai.response.model"] == api.answered_by and point["gen_ai.operation.name"] == "chat"
    assert point["meterhouse.status"] == "ok"
    assert provider.log[0][0] == api.path
    assert provider.log[0][1]["x-client-request-id"] == events[0].own["meterhouse.request.id"]


@pytest.mark.cell("openai", "async")
@pytest.mark.cell("groq", "async")
def test_an_async_call_is_its_buckets(api, provider, both_ways):
    async def call():
        async with api.client(provider.url, asynchronous=True) as client:
            return dumped([await api.create(client)])

    def scenario():
        provider.json(api.body())
        return asyncio.run(call())

    assert units(both_ways(scenario)[0]) == BUCKETS


@pytest.mark.cell("openai", "stream")
@pytest.mark.cell("groq", "stream")
def test_a_stream_is_its_buckets(api, provider, streamed, both_ways):
    def scenario():
        streamed()
        with api.client(provider.url) as client, api.create(client, stream=True) as stream:
            chunks = dumped(stream)
            assert stream.response.is_closed
            return chunks, stream.response.status_code, [*stream]

    events, seen = both_ways(scenario)
    assert units(events) == BUCKETS
    assert {event.point["meterhouse.status"] for event in events} == {"ok"}
    assert len(seen[0]) == (6 if isinstance(api, Responses) else 3)


@pytest.mark.cell("openai", "async stream")
@pytest.mark.cell("groq", "async stream")
def test_an_async_stream_is_its_buckets(api, provider, streamed, both_ways):
    async def call():
        async with api.client(provider.url, asynchronous=True) as client:
            stream = await api.create(client, stream=True)
            return dumped([chunk async for chunk in stream])

    def scenario():
        streamed()
        return asyncio.run(call())

    assert units(both_ways(scenario)[0]) == BUCKETS


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.cell("openai", "stream, closed early")
@pytest.mark.cell("groq", "stream, closed early")
def test_a_stream_closed_early_is_aborted(api, provider, streamed, both_ways, asynchronous):
    gates = []

    async def call():
        client = api.client(provider.url, asynchronous=True)
        async with client, await api.create(client, stream=True) as stream:
            return dumped([await anext(aiter(stream))])

    def scenario():
        gates.append(threading.Event())
        streamed(gate=gates[-1], gate_before=2)
        if asynchronous:
            seen = asyncio.run(call())
        else:
            with api.client(provider.url) as client, api.create(client, stream=True) as stream:
                seen = dumped([next(iter(stream))])
        gates[-1].set()
        return seen

    only(both_ways(scenario)[0], "aborted", "none")


@pytest.mark.cell("openai", "stream, collected")
@pytest.mark.cell("groq", "stream, collected")
def test_a_stream_that_is_dropped_is_aborted_once_it_is_collected(api, provider, streamed, both_ways):
    gates = []

    def scenario():
        gates.append(threading.Event())
        streamed(gate=gates[-1], gate_before=2)
        client = api.client(provider.url)
        stream = api.create(client, stream=True)
        seen = dumped([next(stream)])
        response = stream.response
        del stream
        gc.collect()
        response.close()
        gates[-1].set()
        client.close()
        return seen

    only(both_ways(scenario)[0], "aborted", "none")


def test_a_response_that_nobody_closes_is_aborted_when_it_is_collected(api, provider, streamed, metering):
    gate = threading.Event()
    streamed(gate=gate, gate_before=1)
    with api.client(provider.url) as client:
        raw = api.raw(client, stream=True)
        del raw
        gc.collect()
        only(metering.flush(), "aborted", "none")
        gate.set()


@pytest.mark.parametrize("in_stream", [False, True])
@pytest.mark.cell("openai", "async cancelled")
@pytest.mark.cell("groq", "async cancelled")
def test_a_cancelled_task_is_an_aborted_call(api, provider, streamed, both_ways, in_stream):
    gates = []

    async def call():
        async with api.client(provider.url, asynchronous=True) as client:
            stream = await api.create(client, stream=True) if in_stream else None
            if in_stream:
                await anext(stream)
            waiting = asyncio.ensure_future(anext(stream) if in_stream else api.create(client))
            while len(provider.log) < len(gates):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            waiting.cancel()
            await waiting

    def scenario():
        gates.append(threading.Event())
        streamed(gate=gates[-1], gate_before=1 if in_stream else 0)
        try:
            asyncio.run(call())
        except asyncio.CancelledError as error:
            return type(error)
        finally:
            gates[-1].set()

    events, seen = both_ways(scenario)
    only(events, "aborted", "none")
    assert seen is asyncio.CancelledError


@pytest.mark.parametrize("trouble", ["500", "429", "reset"])
@pytest.mark.cell("openai", "retried")
@pytest.mark.cell("groq", "retried")
def test_what_the_sdk_retries_is_one_call(api, provider, both_ways, trouble):
    def scenario():
        if trouble == "reset":
            provider.replies.append(reset)
        else:
            refused(int(trouble), provider)
        provider.json(api.body())
        with api.client(provider.url, max_retries=2) as client:
            return dumped([api.create(client)])

    events, _ = both_ways(scenario)
    assert units(events) == BUCKETS
    assert len(provider.log) == 4  # two requests each way
    assert provider.log[0][1]["x-client-request-id"] == provider.log[1][1]["x-client-request-id"]


@pytest.mark.parametrize(("status", "asynchronous"), [(400, False), (401, True), (500, False)])
@pytest.mark.cell("openai", "failed")
@pytest.mark.cell("groq", "failed")
def test_a_call_that_fails_is_one_failed_request(api, provider, both_ways, status, asynchronous):
    async def call():
        async with api.client(provider.url, asynchronous=True, max_retries=0) as client:
            await api.create(client)

    def scenario():
        refused(status, provider)
        if asynchronous:
            asyncio.run(call())
        with api.client(provider.url, max_retries=0) as client:
            api.create(client)

    events, seen = both_ways(scenario)
    only(events, "failed", "none")
    assert seen[3] == status


def test_a_connection_that_is_refused_is_one_failed_request(api, provider, both_ways, nowhere):
    def scenario():
        with api.client(nowhere, max_retries=0) as client:
            api.create(client, stream=True)

    events, seen = both_ways(scenario)
    only(events, "failed", "none")
    assert seen[0] is api.sdk.APIConnectionError


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("how", ["cut", "error event"])
@pytest.mark.cell("openai", "failed in mid-stream")
@pytest.mark.cell("groq", "failed in mid-stream")
def test_a_stream_that_breaks_is_one_failed_call(api, provider, streamed, both_ways, how, asynchronous):
    seen = []

    async def call():
        async with api.client(provider.url, asynchronous=True, max_retries=0) as client:
            async for chunk in await api.create(client, stream=True):
                seen.append(chunk)

    def scenario():
        seen.clear()
        if how == "cut":
            streamed(lambda events: events[:2], cut=True)
        else:
            streamed(lambda events: [*events[:2], api.error_event])
        try:
            if asynchronous:
                asyncio.run(call())
            else:
                with api.client(provider.url, max_retries=0) as client:
                    seen.extend(api.create(client, stream=True))
        except Exception as error:  # noqa: BLE001 - the host's
            return dumped(seen), type(error), str(error)
        return dumped(seen)

    events, _ = both_ways(scenario)
    only(events, "failed", "none")


@pytest.mark.parametrize(("where", "asynchronous"), [("connect", False), ("read", True), ("stream", False)])
@pytest.mark.cell("openai", "timeout")
@pytest.mark.cell("groq", "timeout")
def test_a_timeout_is_one_failed_call(api, provider, streamed, both_ways, where, asynchronous):
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = [socket.create_connection(full.getsockname())]  # what comes now, waits for ever
    url = provider.url if where != "connect" else f"http://127.0.0.1:{full.getsockname()[1]}"
    gates = []

    async def call():
        async with api.client(url, asynchronous=True, max_retries=0, timeout=0.2) as client:
            return [chunk async for chunk in await api.create(client, stream=True)]

    def scenario():
        gates.append(threading.Event())
        if where != "connect":
            streamed(gate=gates[-1], gate_before=2) if where == "stream" else provider.replies.append(
                lambda handler, _: gates[-1].wait(20)
            )
        try:
            if asynchronous:
                return asyncio.run(call())
            with api.client(url, max_retries=0, timeout=0.2) as client:
                return [*api.create(client, stream=True)]
        finally:
            gates[-1].set()

    try:
        events, seen = both_ways(scenario)
    finally:
        for one in (*waiting, full):
            one.close()
    only(events, "failed", "none")
    assert "Timeout" in seen[0].__name__


@pytest.mark.cell("openai", "raw response")
@pytest.mark.cell("groq", "raw response")
def test_raw_responses_are_metered_in_whichever_way_they_are_read(api, provider, streamed, both_ways):
    def scenario():
        seen = []
        with api.client(provider.url) as client:
            provider.json(api.body())
            raw = api.raw(client)
            seen.append(
                (raw.status_code, raw.headers["content-type"], raw.http_response.content, dumped([raw.parse()]))
            )
            for read in (
                lambda response: response.read(),
                lambda response: response.json(),
                lambda response: response.text(),
                lambda response: b"".join(response.iter_bytes(7)),
                lambda response: b"".join(response.http_response.iter_raw()),
                lambda response: [*response.iter_lines()],
                lambda response: dumped([response.parse()]),
            ):
                provider.json(api.body())
                with api.streaming(client) as response:
                    seen.append(read(response))
            streamed()
            with api.streaming(client, stream=True) as response:
                seen.append([line for line in response.iter_lines() if line])
            streamed()
            with api.streaming(client, stream=True) as response:
                seen.append(b"".join(response.http_response.iter_raw()))
            streamed()
            seen.append(dumped(api.raw(client, stream=True).parse()))
        return seen

    events, _ = both_ways(scenario)
    assert units(events) == {meter: 11 * quantity for meter, quantity in BUCKETS.items()}
    assert {event.point["meterhouse.status"] for event in events} == {"ok"}


def test_async_raw_responses_are_metered_in_whichever_way_they_are_read(api, provider, streamed, both_ways):
    async def call():
        seen = []
        async with api.client(provider.url, asynchronous=True) as client:
            provider.json(api.body())
            async with api.streaming(client) as response:
                seen.append(await response.json())
            provider.json(api.body())
            async with api.streaming(client) as response:
                seen.append(b"".join([piece async for piece in response.http_response.aiter_raw()]))
            streamed()
            async with api.streaming(client, stream=True) as response:
                seen.append([line async for line in response.iter_lines() if line])
            streamed()
            async with api.streaming(client, stream=True) as response:
                seen.append(b"".join([piece async for piece in response.http_response.aiter_raw()]))
        return seen

    events, _ = both_ways(lambda: asyncio.run(call()))
    assert units(events) == {meter: 4 * quantity for meter, quantity in BUCKETS.items()}


def test_a_copied_and_a_changed_client_are_metered_alike(api, provider, both_ways):
    def scenario():
        provider.json(api.body())
        provider.json(api.body())
        with api.client(provider.url) as client:
            changed = client.with_options(max_retries=0, default_headers={"x-mine": "1"})
            return dumped([api.create(changed), api.create(client.copy())])

    events, _ = both_ways(scenario)
    assert units(events) == {meter: 2 * quantity for meter, quantity in BUCKETS.items()}
    assert provider.log[0][1]["x-mine"] == "1"


def test_what_the_server_gets_differs_by_the_documented_header_and_question_only(api, provider, streamed, both_ways):
    def scenario():
        streamed()
        with api.client(provider.url) as client:
            return dumped(api.create(client, stream=True))

    both_ways(scenario)
    (_, headers, body), (_, plain_headers, plain_body) = provider.log
    headers.pop("x-client-request-id")
    if api.asks_for_usage:
        assert body.pop("stream_options") == {"include_usage": True}
    assert body == plain_body
    assert headers.keys() - {"content-length"} == plain_headers.keys() - {"content-length"}
    length = {"content-length"}
    assert {k: v for k, v in headers.items() if k not in length} == {
        k: v for k, v in plain_headers.items() if k not in length
    }


def test_streams_left_when_the_loop_ends_are_aborted_calls(api, provider, streamed, metering):
    """asyncio closes what a loop leaves behind all at once, the outer generators and the inner ones in any order."""

    async def call():
        client = api.client(provider.url, asynchronous=True)
        left.append(await api.create(client, stream=True))
        await anext(left[-1])

    left = []
    for _ in range(20):
        streamed()
        asyncio.run(call())
    left.clear()
    gc.collect()
    statuses = [event.point["meterhouse.status"] for event in metering.flush() if event.meter == "llm.requests"]
    assert statuses == ["aborted"] * 20
