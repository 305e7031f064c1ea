"""What a hostile reader found in names, calls inside calls, tool call ids, witnesses and streams of frameworks."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import ollama
import openai
import pytest

from meterhouse.events import Finished, Row, event_name, from_line
from meterhouse.frameworks import streams
from meterhouse.frameworks.model_calls import ModelCall
from meterhouse.journal_records import line
from meterhouse.metered import Metered
from meterhouse.tool_memory import unique
from meterhouse.witness import Witness

ASK = {"model": "gpt-5", "messages": [{"role": "user", "content": "q"}]}
HALF = "x\ud800"


def body(given=10, made=5, **more):
    message = {"role": "assistant", "content": "x"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
        **more,
    }


def message(**usage):
    known = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": [], "stop_reason": None}
    return {**known, "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 3, **usage}}


def event(kind, **data):
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **data}).encode())


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=0) as client:
        yield client


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [Row("m", 1, modality=HALF), Row("m", 1, model=HALF), Row("m", 1, model="é" * 600)])
def test_an_event_has_the_same_id_before_and_after_it_was_in_the_journal(row):
    finished = Finished("c" * 32, 1, [row], {})
    read = from_line(json.loads(line(finished)))
    (before,), (after,) = finished.events(), read.events()
    assert before == after
    assert all(len(value.encode()) <= 1024 for value in before.attributes.values())


def test_a_name_can_be_made_of_anything():
    assert len(event_name(HALF, HALF, HALF, HALF, HALF)) == 32


def test_a_model_that_utf_8_cannot_have_keeps_nothing_from_being_delivered(client, provider, metering):
    parts = {"models": [{"model": HALF, "usage": body()["usage"]}]}
    provider.json(body(usage_breakdown=parts))
    provider.json(body(100, 50))
    for _ in range(2):
        client.chat.completions.create(**ASK)
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 110, "llm.tokens.output": 55}


# ---- calls inside calls ----------------------------------------------------------------------------------------------


def test_a_guardrail_of_another_sdk_inside_a_request_is_a_call_of_its_own(metering, provider):
    provider.json(message(cache_read_input_tokens=1000))
    provider.json(body())
    guard = anthropic.Anthropic(api_key="k", base_url=provider.url)
    hook = lambda _: guard.messages.create(model="claude", max_tokens=5, messages=ASK["messages"])  # noqa: E731
    http = httpx.Client(event_hooks={"request": [hook]})
    with guard, openai.OpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as client:
        client.chat.completions.create(**ASK)
    assert {(e.everything["gen_ai.provider.name"], e.meter): e.value for e in metering.flush()} == {
        ("anthropic", "llm.requests"): 1,
        ("anthropic", "llm.tokens.input"): 7,
        ("anthropic", "llm.tokens.cache_read"): 1000,
        ("anthropic", "llm.tokens.output"): 3,
        ("openai", "llm.requests"): 1,
        ("openai", "llm.tokens.input"): 10,
        ("openai", "llm.tokens.output"): 5,
    }


def test_an_unbilled_request_inside_a_call_is_no_part_of_it(metering, provider):
    provider.json({"object": "list", "data": []})
    provider.json(body())
    inner = openai.OpenAI(api_key="k", base_url=provider.url + "/v1")
    http = httpx.Client(event_hooks={"request": [lambda _: inner.models.list()]})
    with inner, openai.OpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as client:
        client.chat.completions.create(**ASK)
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 10, "llm.tokens.output": 5}


def test_a_task_that_was_begun_in_a_call_and_outlives_it_is_no_part_of_it(metering, provider):
    provider.json(body())
    said = {"role": "assistant", "content": "x"}
    provider.json({"model": "o", "message": said, "done": True, "prompt_eval_count": 7, "eval_count": 3})
    judge = ollama.AsyncClient(host=provider.url)
    later = []

    async def judged():
        await asyncio.sleep(0.2)
        await judge.chat(model="o", messages=ASK["messages"])
        await judge._client.aclose()

    async def hook(_):
        later.append(asyncio.create_task(judged()))

    async def main():
        http = httpx.AsyncClient(event_hooks={"response": [hook]})
        async with openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as client:
            await client.chat.completions.create(**ASK)
            await later[0]

    asyncio.run(main())
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 17, "llm.tokens.output": 8}


def test_a_call_and_a_witness_may_be_left_in_another_context():
    async def entered(manager):
        with manager:
            await asyncio.sleep(0)

    metered = Metered.__new__(Metered)
    for manager in (metered.running(), Witness().watching()):
        coroutine = entered(manager)
        loop = asyncio.new_event_loop()
        task = loop.create_task(coroutine)
        task._log_destroy_pending = False
        loop.call_soon(loop.stop)
        loop.run_forever()
        coroutine.close()  # outside of the task's context
        loop.close()


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"event: ping\ndata: ok\n\n", b"event: ping\ndata:\n\n"], ids=["text", "empty"])
def test_an_event_that_is_no_json_takes_none_of_its_neighbours_with_it(metering, provider, first):
    begun = {**message(), "usage": {"input_tokens": 10, "output_tokens": 1}}
    ended = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 42})
    provider.stream([first + event("message_start", message=begun) + ended + event("message_stop")])
    with anthropic.Anthropic(api_key="k", base_url=provider.url) as client:
        list(client.messages.create(model="claude", max_tokens=5, messages=ASK["messages"], stream=True))
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 10, "llm.tokens.output": 42}


def test_what_is_thrown_into_a_stream_of_a_framework_reaches_the_inner_one(metering):
    def pieces():
        try:
            yield 1
        except ValueError as error:
            yield f"handled {error}"

    stream = streams.watched(ModelCall("p", "m"), pieces(), streams.Tally(), counts_tools=False)
    assert next(stream) == 1
    assert stream.throw(ValueError("theirs")) == "handled theirs"
    assert list(stream) == []
    assert metering.units() == {"llm.requests": 1}


def test_what_is_thrown_into_an_async_stream_of_a_framework_reaches_the_inner_one(metering):
    async def pieces():
        try:
            yield 1
        except ValueError as error:
            yield f"handled {error}"

    async def main():
        stream = streams.watched_async(ModelCall("p", "m"), pieces(), streams.Tally(), counts_tools=False)
        assert await anext(stream) == 1
        assert await stream.athrow(ValueError("theirs")) == "handled theirs"
        assert [piece async for piece in stream] == []

    asyncio.run(main())
    assert metering.units() == {"llm.requests": 1}


# ---- witnesses -------------------------------------------------------------------------------------------------------


def framework_call(work, given=10, made=5):
    call = ModelCall("mine", "m")
    with call.running():
        work()
    call.end(lambda: {"usage": {"input": given, "output": made}})


def test_a_call_that_a_framework_waits_for_in_a_plain_pool_counts_once(client, provider, metering):
    for _ in range(2):
        provider.json(body())
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            framework_call(lambda: pool.submit(client.chat.completions.create, **ASK).result(10))
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 20, "llm.tokens.output": 10}


def test_another_call_in_a_pool_is_not_taken_for_the_frameworks(client, provider, metering):
    provider.json(body())
    with ThreadPoolExecutor(1) as pool:
        framework_call(lambda: pool.submit(client.chat.completions.create, **ASK).result(10), 1000, 500)
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 1010, "llm.tokens.output": 505}


def test_an_embedding_that_a_frameworks_model_needs_is_not_its_answer(client, provider, metering):
    data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    provider.json({"object": "list", "model": "emb", "data": data, "usage": usage})
    framework_call(lambda: client.embeddings.create(model="emb", input="x", encoding_format="float"), 1000, 500)
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 1003, "llm.tokens.output": 500}


# ---- tools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbered", ["call_1", "tool_call_1", "call_00001", "chatcmpl-tool-0", "get_weather_12", "f:0"]
)
def test_ids_that_only_number_the_calls_are_not_unique(numbered):
    assert not unique(numbered)


@pytest.mark.parametrize(
    "drawn", ["call_Ab3kd92KsLw81mZq", "abcdefgh1", "aBcdefghi", "toolu_01A09q90qw90lq917835lq9", "call_1234567"]
)
def test_ids_that_were_drawn_at_random_are_unique(drawn):
    assert unique(drawn)
