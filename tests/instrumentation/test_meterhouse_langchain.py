"""LangChain: its tools, and its chat models over SDKs that are metered and over none."""

import asyncio
from typing import Any

import pytest

import meterhouse

pytest.importorskip("langchain_core", reason="langchain-core is not installed")

from langchain_core.caches import InMemoryCache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import StructuredTool, ToolException, tool

QUESTION = [HumanMessage("What is 1 + 2?")]
# 100 in, of them 60 from the cache and 10 written to it; 40 out, of them 25 reasoning.
USAGE = {
    "input_tokens": 100,
    "output_tokens": 40,
    "total_tokens": 140,
    "input_token_details": {"cache_read": 60, "cache_creation": 10},
    "output_token_details": {"reasoning": 25},
}
BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 30,
    "llm.tokens.cache_read": 60,
    "llm.tokens.cache_write": 10,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}


class HouseModel(BaseChatModel):
    """A model of the host's own, whose calls no SDK sees."""

    answers: Any = ()
    model: str = "house-1"

    @property
    def _llm_type(self) -> str:
        return "house"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer)])


class HouseStream(HouseModel):
    """Streams; the usage comes in two parts, as with Anthropic."""

    def _stream(self, messages, stop=None, run_manager=None, **kwargs: Any):
        parts = [
            AIMessageChunk("3", usage_metadata={**USAGE, "output_tokens": 0, "output_token_details": {}}),
            AIMessageChunk("."),
            AIMessageChunk(
                "",
                usage_metadata={
                    "input_tokens": 0,
                    "output_tokens": 40,
                    "total_tokens": 40,
                    "output_token_details": {"reasoning": 25},
                },
                response_metadata={"model_name": "house-1-2026"},
            ),
        ]
        for part in parts:
            yield ChatGenerationChunk(message=part)


def answered(text="3", **more):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **more}}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 40,
            "total_tokens": 140,
            "prompt_tokens_details": {"cached_tokens": 60},
            "completion_tokens_details": {"reasoning_tokens": 25},
        },
    }


OPENAI_BUCKETS = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}


@pytest.fixture
def chat_openai(provider, library):
    # Each asyncio.run has an event loop of its own, so no connection may outlive one.
    once = {"connection": "close"}
    return library("langchain_openai").ChatOpenAI(
        model="gpt-5-mini", base_url=f"{provider.url}/v1", api_key="k", max_retries=0, default_headers=once
    )


def executions(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"], e.own["usage.source"])
        for e in events
        if e.meter == "tool.calls"
    )


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@tool
async def add_slowly(a: int, b: int) -> int:
    """Adds."""
    await asyncio.sleep(0)
    return a + b


def call_of(name, tool_call_id="call_mS81kq02LdW7", **args):
    return {"type": "tool_call", "name": name, "args": args, "id": tool_call_id}


@pytest.mark.cell("langchain", "tool, sync")
def test_a_tool_counts_however_it_is_called(metering):
    assert add.invoke({"a": 1, "b": 2}) == 3
    assert add.invoke(call_of("add", a=1, b=2)).content == "3"
    assert add.run({"a": 1, "b": 2}) == 3
    assert asyncio.run(add.ainvoke({"a": 1, "b": 2})) == 3  # in a thread
    found = metering.flush()
    assert executions(found) == [("add", "ok", "reported")] * 4


@pytest.mark.cell("langchain", "tool, async")
def test_an_async_tool_counts_and_parallel_ones_count_each(metering):
    async def work():
        one = await add_slowly.ainvoke({"a": 1, "b": 2})
        more = await asyncio.gather(*(add_slowly.ainvoke(call_of("add_slowly", a=1, b=n)) for n in range(3)))
        return one, [message.content for message in more]

    assert asyncio.run(work()) == (3, ["1", "2", "3"])
    assert executions(metering.flush()) == [("add_slowly", "ok", "reported")] * 4


def broken(kind: str) -> str:
    if kind == "tool":
        raise ToolException("no")
    raise ConnectionError("gone")


@pytest.mark.cell("langchain", "tool failed")
def test_a_tool_that_raises_handles_its_error_or_returns_one_has_failed(metering):
    handling = StructuredTool.from_function(broken, name="handling", description="d", handle_tool_error=True)
    raising = StructuredTool.from_function(broken, name="raising", description="d")
    assert handling.invoke({"kind": "tool"}) == "no"  # text; nothing shows that it failed
    assert handling.invoke(call_of("handling", kind="tool")).status == "error"
    assert asyncio.run(handling.ainvoke({"kind": "tool"})) == "no"
    with pytest.raises(ConnectionError, match="gone"):
        raising.invoke({"kind": "other"})

    def returns() -> ToolMessage:
        return ToolMessage("no", tool_call_id="call_mS81kq02LdW7", status="error")

    StructuredTool.from_function(returns, description="d").invoke(call_of("returns"))
    assert executions(metering.flush()) == [
        ("handling", "failed", "reported"),
        ("handling", "failed", "reported"),
        ("handling", "failed", "reported"),
        ("raising", "failed", "reported"),
        ("returns", "failed", "reported"),
    ]


def test_a_cancelled_tool_is_aborted(metering):
    @tool
    async def forever() -> str:
        """Never ends."""
        await asyncio.Event().wait()
        return ""

    async def work():
        task = asyncio.create_task(forever.ainvoke({}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert executions(metering.flush()) == [("forever", "aborted", "reported")]


def test_a_tool_that_calls_another_is_one_and_its_error_is_not_the_outer_s(metering):
    inner = StructuredTool.from_function(broken, name="inner", description="d", handle_tool_error=True)

    @tool
    def outer() -> str:
        """Calls another."""
        return inner.invoke({"kind": "tool"})

    assert outer.invoke({}) == "no"
    assert executions(metering.flush()) == [("outer", "ok", "reported")]


@pytest.mark.cell("langchain", "tokens once")
def test_a_model_over_a_metered_sdk_is_counted_by_the_sdk_alone(metering, provider, chat_openai):
    for _ in range(2):
        provider.json(answered())
    with meterhouse.customer("acme"):
        assert chat_openai.invoke(QUESTION).usage_metadata["input_tokens"] == 100
        assert asyncio.run(chat_openai.ainvoke(QUESTION)).content == "3"
    found = metering.flush()
    assert metering.units() == {meter: 2 * quantity for meter, quantity in OPENAI_BUCKETS.items()}
    assert {e.own["usage.source"] for e in found} == {"reported"}


@pytest.mark.cell("langchain", "tokens once")
def test_a_stream_over_a_metered_sdk_is_counted_by_the_sdk_alone(metering, provider, chat_openai):
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini","choices":'
    usage = b'"usage":{"prompt_tokens":100,"completion_tokens":40,"total_tokens":140}}\n\n'
    chunks = [
        head + b'[{"index":0,"delta":{"role":"assistant","content":"3"}}]}\n\n',
        head + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        head + b"[]," + usage,
        b"data: [DONE]\n\n",
    ]

    async def collect():
        return [chunk.content async for chunk in chat_openai.astream(QUESTION)]

    provider.stream(chunks)
    provider.stream(chunks)
    assert "".join(str(chunk.content) for chunk in chat_openai.stream(QUESTION)) == "3"
    asyncio.run(collect())
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 200, "llm.tokens.output": 80}


@pytest.mark.cell("langchain", "tokens once")
def test_the_anthropic_model_is_counted_by_its_sdk_alone(metering, provider, library):
    model = library("langchain_anthropic").ChatAnthropic(
        model="claude-sonnet-4-5", base_url=provider.url, api_key="k", max_retries=0
    )
    usage = {"input_tokens": 40, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 0, "output_tokens": 15}
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "stop_reason": "end_turn",
    }
    provider.json({**body, "stop_sequence": None, "content": [{"type": "text", "text": "3"}], "usage": usage})
    model.invoke(QUESTION)
    assert metering.units() == {
        "llm.requests": 1,
        "llm.tokens.input": 40,
        "llm.tokens.cache_read": 60,
        "llm.tokens.output": 15,
    }


def test_a_tool_run_by_langchain_and_handed_back_to_a_model_counts_once(metering, provider, chat_openai):
    asked = [{"id": "call_Hand3dBack1", "type": "function", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}]
    provider.json(answered(None, tool_calls=asked))
    provider.json(answered())
    model = chat_openai.bind_tools([add])
    first = model.invoke(QUESTION)
    model.invoke([*QUESTION, first, *(add.invoke(call) for call in first.tool_calls)])
    assert executions(metering.flush()) == [("add", "ok", "reported")]


def test_a_tool_of_the_host_s_own_counts_when_its_result_is_handed_back(metering, provider, chat_openai):
    asked = [{"id": "call_Host3sOwn81", "type": "function", "function": {"name": "mine", "arguments": "{}"}}]
    provider.json(answered(None, tool_calls=asked))
    provider.json(answered())
    first = chat_openai.invoke(QUESTION)
    chat_openai.invoke([*QUESTION, first, ToolMessage("3", tool_call_id="call_Host3sOwn81")])
    assert executions(metering.flush()) == [("mine", "ok", "sdk_loop")]


@pytest.mark.cell("langchain", "only witness")
def test_a_model_that_nobody_else_sees_is_counted_from_what_it_tells(metering):
    model = HouseModel(answers=[AIMessage("3", usage_metadata=USAGE), AIMessage("3", usage_metadata=USAGE)])
    with meterhouse.customer("acme"):
        model.invoke(QUESTION)
        asyncio.run(model.ainvoke(QUESTION))
    found = metering.flush()
    assert metering.units() == {meter: 2 * quantity for meter, quantity in BUCKETS.items()}
    assert {(e.own["usage.source"], e.point["gen_ai.provider.name"], e.point["meterhouse.status"]) for e in found} == {
        ("framework", "housemodel", "ok")
    }
    assert {e.own["gen_ai.request.model"] for e in found} == {"house-1"}
    assert {e.point["customer.id"] for e in found} == {"acme"}


@pytest.mark.cell("langchain", "only witness")
def test_its_streams_add_up_sync_and_async(metering):
    async def collect():
        return [chunk.content async for chunk in HouseStream().astream(QUESTION)]

    chunks = list(HouseStream().stream(QUESTION))
    assert [chunk.content for chunk in chunks][:2] == ["3", "."] and type(chunks[0]) is AIMessageChunk
    assert asyncio.run(collect())[:2] == ["3", "."]
    found = metering.flush()
    assert metering.units() == {meter: 2 * quantity for meter, quantity in BUCKETS.items()}
    assert {e.point["gen_ai.response.model"] for e in found} == {"house-1-2026"}


@pytest.mark.cell("langchain", "only witness")
def test_a_stream_left_early_is_aborted_with_what_was_told_until_then(metering):
    stream = HouseStream().stream(QUESTION)
    assert next(stream).content == "3"
    stream.close()
    found = metering.flush()
    assert metering.units() == {
        "llm.requests": 1,
        "llm.tokens.input": 30,
        "llm.tokens.cache_read": 60,
        "llm.tokens.cache_write": 10,
    }
    assert {e.point["meterhouse.status"] for e in found} == {"aborted"}


@pytest.mark.cell("langchain", "only witness")
def test_without_usage_the_call_is_listed_and_nothing_is_guessed(metering):
    HouseModel(answers=[AIMessage("3")]).invoke(QUESTION)
    with pytest.raises(ConnectionError, match="gone"):
        HouseModel(answers=[ConnectionError("gone")]).invoke(QUESTION)
    assert [(e.meter, e.own["usage.source"], e.point["meterhouse.status"]) for e in metering.flush()] == [
        ("llm.requests", "none", "ok"),
        ("llm.requests", "none", "failed"),
    ]


def test_an_answer_from_langchain_s_cache_is_no_call(metering):
    model = HouseModel(answers=[AIMessage("3", usage_metadata=USAGE)], cache=InMemoryCache())
    assert model.invoke(QUESTION).content == model.invoke(QUESTION).content == "3"
    assert metering.units() == BUCKETS


def test_a_paused_customer_s_model_is_not_called_and_not_counted(metering, monkeypatch):
    def paused():
        raise meterhouse.UsageLimitExceeded("acme")

    monkeypatch.setattr("meterhouse.limits.admit", paused)
    model = HouseModel(answers=[AIMessage("3")])
    with pytest.raises(meterhouse.UsageLimitExceeded):
        model.invoke(QUESTION)
    assert model.answers and metering.flush() == []


@pytest.mark.cell("langchain", "conversation")
@pytest.mark.cell("langchain", "agent name")
@pytest.mark.cell("langchain", "step")
def test_what_a_run_s_metadata_say_is_on_its_events_and_what_the_host_says_wins(metering):
    model = HouseModel(answers=[AIMessage("3", usage_metadata=USAGE), AIMessage("3", usage_metadata=USAGE)])
    known = {"metadata": {"session_id": "c-1", "lc_agent_name": "helper", "langgraph_node": "plan"}}
    model.invoke(QUESTION, known)
    add.invoke({"a": 1, "b": 2}, {"configurable": {"thread_id": "c-1"}})
    with meterhouse.agent("mine"), meterhouse.conversation("c-2"), meterhouse.step("s"):
        model.invoke(QUESTION, known)
    events = [e.everything for e in metering.flush() if e.meter in ("llm.requests", "tool.calls")]
    assert [(e.get("gen_ai.agent.name"), e["gen_ai.conversation.id"], e.get("meterhouse.step")) for e in events] == [
        ("helper", "c-1", "plan"),
        ("mine", "c-2", "s"),
        (None, "c-1", None),
    ]


def test_nothing_leaks_to_the_consumer_of_a_stream(metering):
    stream = HouseStream().stream(QUESTION, {"metadata": {"session_id": "c-1", "lc_agent_name": "helper"}})
    for _ in stream:
        meterhouse.meter("pages").add(1)
        add.invoke({"a": 1, "b": 2})
    consumer = [e.everything for e in metering.flush() if e.meter in ("pages", "tool.calls")]
    assert len(consumer) >= 6
    assert not any("gen_ai.conversation.id" in e or "gen_ai.agent.name" in e for e in consumer)


def test_models_and_tools_are_as_before_when_metering_is_switched_off(metering):
    from langchain_core.tools.base import BaseTool

    from meterhouse.otel import MeterhouseInstrumentor

    class Late(HouseModel):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            return super()._generate(*args, **kwargs)

    assert Late(answers=[AIMessage("3", usage_metadata=USAGE)]).invoke(QUESTION).content == "3"
    assert metering.units() == BUCKETS  # a subclass that calls its base is one call
    MeterhouseInstrumentor().uninstrument()
    patched = [
        kind for kind in (Late, HouseModel, BaseTool) for one in vars(kind).values() if "Wrapper" in type(one).__name__
    ]
    assert patched == [] and "__init_subclass__" not in vars(BaseChatModel)
    MeterhouseInstrumentor().instrument(skip_dep_check=True)
