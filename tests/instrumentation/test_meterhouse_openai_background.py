"""Background responses: created by one call and retrieved by others, counted once whoever retrieves them."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import openai
import pytest

import meterhouse
from meterhouse.providers import openai_background

pytestmark = pytest.mark.skipif(find_spec("openai.types.responses") is None, reason="this openai has no responses API")

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 0},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 25},
    "total_tokens": 140,
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
CREATED_AT = 1763700000
ASK = {"model": "gpt-5", "input": "q"}


def response(status, response_id="resp_bg", background=True, **changes):
    return {
        "id": response_id,
        "object": "response",
        "created_at": CREATED_AT,
        "status": status,
        "background": background,
        "model": "gpt-5-2026",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "usage": USAGE if status in ("completed", "incomplete") else None,
        **changes,
    }


def sse(kind, status, number):
    event = {"type": kind, "sequence_number": number, "response": response(status)}
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()


@pytest.fixture(autouse=True)
def forgotten(metering):
    """Each test knows no response of another's."""
    yield
    openai_background._at_exit()
    openai_background._counted.clear()


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=2) as client:
        yield client


def distinct(events):
    return {event.id: event for event in events}.values()


def units(events):
    found = {}
    for event in distinct(events):
        found[event.meter] = found.get(event.meter, 0) + event.value
    return found


def test_a_poll_loop_counts_once_for_whoever_created_it(client, provider, metering):
    provider.json(response("queued"))
    with meterhouse.customer("acme"):
        client.responses.create(**ASK, background=True)
    for status in ("queued", "in_progress", "completed", "completed"):
        provider.json(response(status))
        with meterhouse.customer("globex"):
            client.responses.retrieve("resp_bg")
    events = metering.flush()
    assert units(events) == BUCKETS and len(events) == 5
    assert {event.point["customer.id"] for event in events} == {"acme"}
    assert {event.point["meterhouse.status"] for event in events} == {"ok"}
    assert {event.own["usage.source"] for event in events} == {"reported"}
    assert {event.own["gen_ai.response.id"] for event in events} == {"resp_bg"}
    assert {event.event_time_ns for event in events} == {CREATED_AT * 10**9}
    assert {event.own["meterhouse.request.id"] for event in events} == {provider.log[0][1]["x-client-request-id"]}


def test_an_async_poll_and_a_raw_one_count_alike(metering, provider):
    async def call():
        async with openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1") as client:
            provider.json(response("queued"))
            await client.responses.create(**ASK, background=True)
            provider.json(response("completed"))
            raw = await client.responses.with_raw_response.retrieve("resp_bg")
            assert json.loads(raw.http_response.content)["status"] == "completed"

    asyncio.run(call())
    assert units(metering.flush()) == BUCKETS


def test_a_stream_that_was_left_and_is_resumed_counts_once(client, provider, metering):
    start = [sse("response.created", "queued", 0), sse("response.in_progress", "in_progress", 1)]
    provider.stream(start)
    with client.responses.create(**ASK, background=True, stream=True) as stream:
        next(iter(stream))
    provider.stream([sse("response.in_progress", "in_progress", 1)], cut=True)
    with contextlib.suppress(Exception):  # which one depends on the SDK's version
        list(client.responses.retrieve("resp_bg", stream=True, starting_after=0))
    provider.stream([sse("response.completed", "completed", 2)])
    assert len(list(client.responses.retrieve("resp_bg", stream=True, starting_after=1))) == 1
    provider.json(response("completed"))
    client.responses.retrieve("resp_bg")
    events = metering.flush()
    assert units(events) == BUCKETS and len(events) == 5
    assert {event.point["meterhouse.status"] for event in events} == {"ok"}


def test_a_background_stream_read_to_its_end_is_not_counted_again_when_it_is_retrieved(client, provider, metering):
    provider.stream([sse("response.created", "queued", 0), sse("response.completed", "completed", 1)])
    assert len(list(client.responses.create(**ASK, background=True, stream=True))) == 2
    provider.json(response("completed"))
    client.responses.retrieve("resp_bg")
    events = metering.flush()
    assert units(events) == BUCKETS and len(events) == 5


def test_one_that_nobody_retrieves_is_listed_with_its_usage_unknown(client, provider, metering):
    provider.json(response("queued"))
    client.responses.create(**ASK, background=True)
    provider.json(response("in_progress"))
    client.responses.retrieve("resp_bg")
    openai_background._at_exit()
    (event,) = metering.flush()
    assert event.meter == "llm.requests" and event.own["usage.source"] == "none"
    assert event.point["meterhouse.status"] == "aborted"


def test_one_that_nobody_retrieves_is_listed_when_its_process_ends(agent, provider, sink, until):
    provider.json(response("queued"))
    source = f"""
import openai
client = openai.OpenAI(api_key="k", base_url={provider.url + "/v1"!r})
client.responses.create(model="gpt-5", input="q", background=True)
"""
    process = agent(source)
    assert process.wait(20) == 0
    until(lambda: sink.events)
    (event,) = sink.events
    assert event.meter == "llm.requests" and event.own["usage.source"] == "none"


@pytest.mark.parametrize(("status", "counted"), [("failed", "failed"), ("incomplete", "ok"), ("cancelled", "aborted")])
def test_each_way_to_end_has_its_status(client, provider, metering, status, counted):
    provider.json(response("queued"))
    client.responses.create(**ASK, background=True)
    error = {"code": "server_error", "message": "down"} if status == "failed" else None
    provider.json(response(status, usage=USAGE, error=error))
    if status == "cancelled":
        client.responses.cancel("resp_bg")
    else:
        client.responses.retrieve("resp_bg")
    events = metering.flush()
    assert units(events) == BUCKETS
    assert {event.point["meterhouse.status"] for event in events} == {counted}


def test_a_response_that_was_no_background_one_is_never_counted_by_retrieving_it(client, provider, metering):
    provider.json(response("completed", background=False))
    client.responses.create(**ASK)
    for background in (False, None):
        provider.json(response("completed", background=background))
        client.responses.retrieve("resp_bg")
    assert len(metering.flush()) == 5


def test_two_processes_that_retrieve_one_response_tell_the_same_events(client, provider, metering, agent, sink, until):
    """Without the request, which is told by the process that created it."""
    provider.json(response("completed"))
    provider.json(response("completed"))
    with meterhouse.customer("acme"):
        client.responses.retrieve("resp_bg")
        client.responses.retrieve("resp_bg")
    ours = metering.flush()
    tokens = {meter: quantity for meter, quantity in BUCKETS.items() if meter != "llm.requests"}
    assert units(ours) == tokens and len(ours) == 4
    provider.json(response("completed"))
    source = f"""
import openai
openai.OpenAI(api_key="k", base_url={provider.url + "/v1"!r}).responses.retrieve("resp_bg")
"""
    process = agent(source, METERHOUSE_CUSTOMER="acme")
    assert process.wait(20) == 0
    until(lambda: len(sink.events) == 8)
    assert {(event.id, event.value, event.event_time_ns) for event in sink.events} == {
        (event.id, event.value, event.event_time_ns) for event in ours
    }


def test_the_creating_process_and_another_name_the_tokens_alike(client, provider, metering):
    provider.json(response("queued"))
    client.responses.create(**ASK, background=True)
    provider.json(response("completed"))
    client.responses.retrieve("resp_bg")
    openai_background._counted.clear()  # as in another process
    provider.json(response("completed"))
    client.responses.retrieve("resp_bg")
    events = metering.flush()
    assert len(events) == 9 and units(events) == BUCKETS


def test_a_forked_child_leaves_the_parent_s_responses_to_the_parent(client, provider, metering):
    provider.json(response("queued"))
    client.responses.create(**ASK, background=True)
    code = (
        "import os, meterhouse.providers.openai_background as b\n"
        "b._waiting['x'] = object()\n"
        "pid = os.fork()\n"
        "os._exit(len(b._waiting)) if not pid else None\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "b._waiting.clear()\n"
        "raise SystemExit(status)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=30).returncode == 0


def test_only_so_many_are_waited_for(client, provider, metering, monkeypatch):
    monkeypatch.setattr(openai_background, "REMEMBERED", 1)
    for number in (1, 2):
        provider.json(response("queued", f"resp_{number}"))
        client.responses.create(**ASK, background=True)
    (event,) = metering.flush()
    assert event.own["gen_ai.response.id"] == "resp_1" and event.own["usage.source"] == "none"
