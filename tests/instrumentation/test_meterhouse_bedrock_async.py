"""AWS Bedrock through aiobotocore, and what a host sees of its clients with Meterhouse and without."""

import asyncio
import gc
import json
import threading
from contextlib import asynccontextmanager

import pytest
from bedrock_wire import (
    ANSWER,
    ASK,
    BUCKETS,
    COUNTED,
    KEYS,
    MESSAGE,
    MESSAGE_BUCKETS,
    MESSAGE_STREAM,
    SONNET,
    START,
    STREAM,
    body_reply,
    events_reply,
    exception,
)

import meterhouse

aiobotocore = pytest.importorskip("aiobotocore")

from aiobotocore.config import AioConfig  # noqa: E402
from aiobotocore.eventstream import AioEventStream  # noqa: E402
from aiobotocore.session import get_session  # noqa: E402
from botocore.exceptions import ClientError, EventStreamError  # noqa: E402


@asynccontextmanager
async def connect(provider, **config):
    settings = {"retries": {"max_attempts": 3, "mode": "standard"}, "read_timeout": 5, **config}
    options = {"endpoint_url": provider.url, "config": AioConfig(**settings), **KEYS}
    async with get_session().create_client("bedrock-runtime", **options) as client:
        yield client


def run(provider, work, **config):
    async def connected():
        async with connect(provider, **config) as client:
            return await work(client)

    return asyncio.run(connected())


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.flush()}


@pytest.mark.cell("bedrock", "async")
def test_an_async_call_and_its_retries_are_one_call(metering, provider):
    body_reply(provider, {"message": "slow down"}, status=500)
    body_reply(provider, ANSWER)

    async def work(client):
        with meterhouse.customer("acme"):
            return await client.converse(**ASK)

    assert run(provider, work)["ResponseMetadata"]["RetryAttempts"] == 1
    assert metering.units() == BUCKETS
    sent = {headers["amz-sdk-invocation-id"] for _, headers, _ in provider.log}
    assert {(e.point["customer.id"], e.own["meterhouse.request.id"]) for e in metering.sink.events} == {
        ("acme", sent.pop())
    }


@pytest.mark.cell("bedrock", "async stream")
def test_an_async_stream_is_metered_and_stays_the_object_that_it_was(metering, provider):
    events_reply(provider, STREAM)
    events_reply(provider, MESSAGE_STREAM)

    async def work(client):
        response = await client.converse_stream(**ASK)
        assert type(response["stream"]) is AioEventStream
        assert [next(iter(one)) async for one in response["stream"]][-1] == "metadata"
        response = await client.invoke_model_with_response_stream(modelId=SONNET, body=b"{}")
        assert len([one async for one in response["body"]]) == len(MESSAGE_STREAM)

    run(provider, work)
    assert metering.units() == {m: BUCKETS.get(m, 0) + MESSAGE_BUCKETS.get(m, 0) for m in BUCKETS | MESSAGE_BUCKETS}
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("bedrock", "async cancelled")
def test_a_cancelled_call_and_a_cancelled_stream_are_aborted(metering, provider):
    gate = threading.Event()
    provider.replies.append(lambda handler, _: gate.wait(20))
    events_reply(provider, STREAM, gate=gate, gate_before=2)

    async def work(client):
        call = asyncio.create_task(client.converse(**ASK))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        stream = (await client.converse_stream(**ASK))["stream"]

        async def read():
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        stream.close()

    run(provider, work)
    gate.set()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("bedrock", "stream, closed early")
def test_an_async_stream_closed_early_is_aborted(metering, provider):
    events_reply(provider, [*START, *STREAM[1:2] * 50])

    async def work(client):
        stream = (await client.converse_stream(**ASK))["stream"]
        async for _ in stream:
            break
        stream.close()

    run(provider, work)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("bedrock", "failed in mid-stream")
def test_an_exception_in_the_middle_of_an_async_stream_fails_the_call(metering, provider):
    events_reply(provider, [*START, exception("throttlingException", "Too many tokens")])

    async def work(client):
        stream = (await client.converse_stream(**ASK))["stream"]
        with pytest.raises(EventStreamError, match="Too many tokens"):
            _ = [one async for one in stream]
        stream.close()

    run(provider, work)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


async def whole(body):
    return await body.read()


async def in_pieces(body):
    pieces = []
    while piece := await body.read(7):
        pieces.append(piece)
    return b"".join(pieces)


async def chunked(body):
    return b"".join([piece async for piece in body.iter_chunks(9)])


async def inside(body):
    async with body as opened:
        return await opened.read()


async def by_lines(body):
    return b"\n".join([line async for line in body.iter_lines()])


async def iterated(body):
    return b"".join([piece async for piece in body])


async def as_json_inside(body):
    async with body as opened:
        return json.dumps(await opened.json()) if hasattr(opened, "json") else await opened.read()


@pytest.mark.parametrize("read", [whole, in_pieces, chunked, inside, by_lines, iterated, as_json_inside])
def test_the_async_body_of_invoke_model_is_metered_in_whatever_way_it_is_read(metering, provider, read):
    body_reply(provider, MESSAGE, headers=COUNTED)

    async def work(client):
        response = await client.invoke_model(modelId=SONNET, body=b"{}")
        assert type(response["body"]).__name__ in ("AioStreamingBody", "StreamingBody")
        assert json.loads(await read(response["body"])) == MESSAGE

    run(provider, work)
    assert metering.units() == MESSAGE_BUCKETS
    assert statuses(metering) == {"ok"}


def test_an_async_body_that_is_never_read_counts_what_the_headers_told(metering, provider):
    body_reply(provider, MESSAGE, headers=COUNTED)

    async def work(client):
        (await client.invoke_model(modelId=SONNET, body=b"{}"))["body"].close()

    run(provider, work)
    gc.collect()
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 40, "llm.tokens.output": 39}
    assert statuses(metering) == {"aborted"}


def test_calls_in_parallel_are_each_counted_for_their_own_customer(metering, provider):
    for _ in range(8):
        body_reply(provider, ANSWER)

    async def work(client):
        async def one(number):
            with meterhouse.customer(f"c{number % 2}"):
                await client.converse(**ASK)

        await asyncio.gather(*(one(number) for number in range(8)))

    run(provider, work)
    sums = {}
    for event in metering.flush():
        if event.meter == "llm.tokens.input":
            sums[event.point["customer.id"]] = sums.get(event.point["customer.id"], 0) + event.value
    assert sums == {"c0": 160, "c1": 160}


@pytest.mark.cell("bedrock", "failed")
def test_a_refused_async_call_has_failed(metering, provider):
    body_reply(provider, {"message": "no"}, status=403, headers=[("x-amzn-errortype", "AccessDeniedException")])

    async def work(client):
        with pytest.raises(ClientError):
            await client.converse(**ASK)

    run(provider, work)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}
