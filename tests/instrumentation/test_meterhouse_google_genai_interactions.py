"""Google's interactions API, which has a transport of its own inside google-genai, against its wire format."""

import asyncio
import gc
import json

import pytest

import meterhouse

genai = pytest.importorskip("google.genai", exc_type=ImportError)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*nteractions.*experimental"),
    pytest.mark.filterwarnings("ignore:Async interactions client cannot use aiohttp:UserWarning"),
]
MODEL = "gemini-2.5-flash"
ASK = {"model": MODEL, "input": "a secret question"}
USAGE = {
    "total_input_tokens": 100,
    "input_tokens_by_modality": [{"modality": "text", "tokens": 70}, {"modality": "image", "tokens": 30}],
    "total_cached_tokens": 60,
    "cached_tokens_by_modality": [{"modality": "text", "tokens": 60}],
    "total_tool_use_tokens": 5,
    "total_output_tokens": 15,
    "total_thought_tokens": 25,
    "total_tokens": 145,
    "grounding_tool_count": [{"type": "google_search", "count": 2}, {"type": "retrieval", "count": 7}],
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 45,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
    "llm.web_searches": 2,
}
ANSWER = {
    "id": "interaction-1",
    "object": "interaction",
    "model": MODEL,
    "status": "completed",
    "created": "2026-11-20T10:00:00Z",
    "updated": "2026-11-20T10:00:01Z",
    "steps": [{"type": "model_output", "content": [{"type": "text", "text": "a secret answer"}]}],
    "usage": USAGE,
}


def event(kind, **data):
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"event_type": kind, **data}).encode())


STARTED = {"id": "interaction-1", "model": MODEL, "status": "in_progress"}
EVENTS = [
    event("interaction.created", interaction=STARTED),
    event("step.start", index=0, step={"type": "model_output"}),
    event("step.delta", index=0, delta={"type": "text", "text": "a secret answer"}),
    event("step.stop", index=0),
    event("interaction.completed", interaction={**STARTED, "status": "completed", "usage": USAGE}),
    b"event: done\ndata: [DONE]\n\n",
]


@pytest.fixture
def client(metering, provider):
    client = genai.Client(api_key="k", http_options={"base_url": provider.url})
    if not hasattr(client, "interactions"):
        pytest.skip("this version of google-genai has no interactions")
    return client


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.sink.events}


def test_an_interaction_is_metered_like_generated_content(client, provider, metering):
    provider.json(ANSWER)
    with meterhouse.customer("acme"):
        assert client.interactions.create(**ASK).id == "interaction-1"
    assert metering.units() == BUCKETS and statuses(metering) == {"ok"}
    one = metering.sink.events[0]
    assert one.point["gen_ai.provider.name"] == "gcp.gemini" and one.point["gen_ai.response.model"] == MODEL
    assert one.own["gen_ai.response.id"] == "interaction-1" and one.own["gen_ai.request.model"] == MODEL
    inputs = {e.point["gen_ai.token.modality"]: e.value for e in metering.sink.events if e.meter == "llm.tokens.input"}
    assert inputs == {"image": 30, "text": 15}
    assert b"secret" not in b"".join(body for _, body in metering.sink.requests)


def test_an_interaction_s_stream_tells_its_usage_at_its_end(client, provider, metering):
    provider.stream(EVENTS)
    kinds = [one.event_type for one in client.interactions.create(**ASK, stream=True)]
    assert kinds[0] == "interaction.created" and kinds[-1] == "interaction.completed"
    provider.stream(EVENTS)

    async def work():
        stream = await client.aio.interactions.create(**ASK, stream=True)
        seen = [one.event_type async for one in stream]
        await asyncio.sleep(0.01)
        return seen

    assert asyncio.run(work()) == kinds
    assert metering.units() == {meter: 2 * units for meter, units in BUCKETS.items()}
    assert statuses(metering) == {"ok"}


def test_an_interaction_s_stream_that_is_left_is_aborted(client, provider, metering):
    provider.stream(EVENTS[:3] * 5)
    stream = client.interactions.create(**ASK, stream=True)
    next(iter(stream))
    stream.close()
    del stream
    gc.collect()
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"aborted"}


def test_a_refused_interaction_is_a_failed_request(client, provider, metering):
    provider.json({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}, 400)
    with pytest.raises(Exception, match="no"):
        client.interactions.create(**ASK)
    assert metering.units() == {"llm.requests": 1} and statuses(metering) == {"failed"}


def test_reading_an_interaction_again_is_not_billed(client, provider, metering):
    provider.json(ANSWER)
    client.interactions.get("interaction-1")
    assert metering.flush() == []


def test_function_results_of_an_interaction_count_once(client, provider, metering):
    given = {"type": "function_result", "call_id": "call-c9f0f895fb98", "name": "look_up", "result": "sunny"}
    for _ in range(2):
        provider.json(ANSWER)
        client.interactions.create(model=MODEL, input=[given], previous_interaction_id="interaction-0")
    assert metering.units()["tool.calls"] == 1
    (tool,) = [one for one in metering.sink.events if one.meter == "tool.calls"]
    assert tool.point["gen_ai.tool.name"] == "look_up" and tool.own["usage.source"] == "sdk_loop"
