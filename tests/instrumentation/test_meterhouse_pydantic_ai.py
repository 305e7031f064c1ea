"""PydanticAI agents: on OpenAI's SDK against a local provider, and on models that nobody but the framework sees."""

import asyncio
import sys
from contextlib import aclosing

import pytest
import wrapt
from openai_chat import TOKENS_OF_ONE, answer, chunks, wish

import meterhouse
from meterhouse import attribution


@pytest.fixture
def pydantic_ai(library):
    return library("pydantic_ai")


@pytest.fixture
def model(provider, pydantic_ai):
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    # Each test has its own event loop, so no connection may outlive one.
    client = AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="sk-test", default_headers={"Connection": "close"})
    return OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(openai_client=client))


def told(events, meter):
    return [event for event in events if event.meter == meter]


def tools(events):
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in told(events, "tool.calls"))


def function_model(*responses):
    """A model of the host's own, with the responses it gives in turn."""
    from pydantic_ai.models.function import FunctionModel

    left = list(responses)
    return FunctionModel(lambda _messages, _info: left.pop(0))


def said(text="done", **usage):
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.usage import RequestUsage

    return ModelResponse(parts=[TextPart(text)], usage=RequestUsage(**usage))


def asked(name, arguments, call_id):
    from pydantic_ai.messages import ModelResponse, ToolCallPart

    return ModelResponse(parts=[ToolCallPart(name, arguments, tool_call_id=call_id)])


@pytest.mark.cell("pydantic-ai", "tool, sync")
@pytest.mark.cell("pydantic-ai", "tool, async")
@pytest.mark.cell("pydantic-ai", "tokens once")
@pytest.mark.cell("pydantic-ai", "agent name")
@pytest.mark.cell("pydantic-ai", "conversation")
@pytest.mark.cell("pydantic-ai", "step")
def test_tools_and_tokens_count_once_under_the_agents_name_conversation_and_step(
    metering, provider, pydantic_ai, model
):
    agent = pydantic_ai.Agent(model, name="planner")

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        return a + b

    @agent.tool_plain
    async def wait(seconds: int) -> str:
        return f"waited {seconds}"

    both = [("call_Add0000000001", "add", {"a": 1, "b": 2}), ("call_Wait000000001", "wait", {"seconds": 3})]
    provider.json(wish(*both, number=1))
    provider.json(answer("all done", number=2))

    async def work():
        with meterhouse.customer("acme"):
            return await agent.run("go", conversation_id="c-17")

    assert asyncio.run(work()).output == "all done"
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("wait", "ok")]
    assert {e.own["usage.source"] for e in told(events, "tool.calls")} == {"reported"}
    assert metering.units() == {
        **{meter: 2 * count for meter, count in TOKENS_OF_ONE.items()},
        "tool.calls": 2,
        "agent.conversations": 1,
    }
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"c-17"}
    steps = {(e.meter, e.own["meterhouse.step"]) for e in events if e.meter in ("llm.requests", "tool.calls")}
    assert steps == {("llm.requests", "1"), ("llm.requests", "2"), ("tool.calls", "1")}


def test_what_the_host_said_wins_over_the_framework(metering, provider, pydantic_ai, model):
    provider.json(answer())
    with meterhouse.customer("acme"), meterhouse.agent("support"), meterhouse.conversation("mine"):
        asyncio.run(pydantic_ai.Agent(model, name="planner").run("go", conversation_id="theirs"))
    (request,) = told(metering.flush(), "llm.requests")
    assert request.point["gen_ai.agent.name"] == "support"
    assert request.own["gen_ai.conversation.id"] == "mine"
    assert request.own["meterhouse.step"] == "1"


@pytest.mark.cell("pydantic-ai", "tool failed")
def test_each_execution_counts_also_those_that_the_framework_repeats(metering, provider, pydantic_ai, model):
    agent = pydantic_ai.Agent(model)
    tries = []

    @agent.tool_plain(retries=2)
    def look(where: str) -> str:
        tries.append(where)
        if len(tries) == 1:
            raise pydantic_ai.ModelRetry("look elsewhere")
        return "found"

    provider.json(wish(("call_Look00000001", "look", {"where": "here"}), number=1))
    provider.json(wish(("call_Look00000002", "look", {"where": "there"}), number=2))
    provider.json(answer(number=3))
    assert asyncio.run(agent.run("go")).output == "done"
    assert len(tries) == 2
    assert tools(metering.flush()) == [("look", "failed"), ("look", "ok")]


def test_a_tool_that_raises_is_failed_and_the_host_gets_its_error(metering, provider, pydantic_ai, model):
    agent = pydantic_ai.Agent(model)

    @agent.tool_plain
    def broken() -> str:
        raise ZeroDivisionError("secret")

    provider.json(wish(("call_Broken00000001", "broken", {})))
    with pytest.raises(ZeroDivisionError, match="secret"):
        asyncio.run(agent.run("go"))
    assert tools(metering.flush()) == [("broken", "failed")]


def test_what_the_framework_refuses_to_run_is_no_execution(metering, provider, pydantic_ai, model):
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    agent = pydantic_ai.Agent(model, output_type=City)

    @agent.tool_plain
    def add(a: int) -> int:
        return a

    provider.json(wish(("call_Invalid0000001", "add", {"a": "many"}), number=1))  # refused by validation
    provider.json(wish(("call_Unknown0000001", "no_such_tool", {}), number=2))
    provider.json(wish(("call_Output00000001", "final_result", {"name": "Bern"}), number=3))
    provider.json(wish(("call_Output00000002", "final_result", {"name": "Genf"}), number=4))
    first = asyncio.run(agent.run("go"))
    assert first.output == City(name="Bern")
    assert asyncio.run(agent.run("again", message_history=first.all_messages())).output == City(name="Genf")
    assert metering.units()["llm.requests"] == 4
    assert "tool.calls" not in metering.units()


def test_a_tool_that_waits_for_approval_counts_when_it_ran(metering, provider, pydantic_ai, model):
    from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults

    agent = Agent(model, output_type=[str, DeferredToolRequests])
    ran = []

    @agent.tool
    def delete(context: pydantic_ai.RunContext, name: str) -> str:
        if not context.tool_call_approved:
            raise pydantic_ai.ApprovalRequired
        ran.append(name)
        return "deleted"

    provider.json(wish(("call_Delete00000001", "delete", {"name": "x"}), number=1))
    provider.json(answer(number=2))
    waiting = asyncio.run(agent.run("go"))
    assert isinstance(waiting.output, DeferredToolRequests)
    assert tools(metering.sink.events) == []
    results = DeferredToolResults(approvals={"call_Delete00000001": True})
    asyncio.run(agent.run(message_history=waiting.all_messages(), deferred_tool_results=results))
    assert ran == ["x"]
    assert tools(metering.flush()) == [("delete", "ok")]


def test_an_agent_used_as_a_tool_decides_for_itself(metering, pydantic_ai):
    inner = pydantic_ai.Agent(function_model(asked("find", {}, "call_Find00000001"), said("found")), name="searcher")
    outer = pydantic_ai.Agent(function_model(asked("delegate", {}, "call_Dele00000001"), said("done")), name="boss")

    @inner.tool_plain
    def find() -> str:
        return "here"

    @outer.tool_plain
    async def delegate() -> str:
        return (await inner.run("find it")).output

    assert asyncio.run(outer.run("go")).output == "done"
    found = told(metering.flush(), "tool.calls")
    assert sorted((e.point["gen_ai.tool.name"], e.point["gen_ai.agent.name"]) for e in found) == [
        ("delegate", "boss"),
        ("find", "searcher"),
    ]


@pytest.mark.cell("pydantic-ai", "only witness")
def test_a_model_that_no_choke_point_sees_is_counted_as_the_framework_tells(metering, pydantic_ai):
    usage = {
        "input_tokens": 100,
        "cache_read_tokens": 60,
        "cache_write_tokens": 10,
        "output_tokens": 40,
        "output_audio_tokens": 5,
    }
    agent = pydantic_ai.Agent(function_model(said(**usage)), name="planner")
    asyncio.run(agent.run("go"))
    events = metering.flush()
    assert {(e.meter, e.point.get("gen_ai.token.modality")): e.value for e in events} == {
        ("llm.tokens.input", None): 30,
        ("llm.tokens.cache_read", None): 60,
        ("llm.tokens.cache_write", None): 10,
        ("llm.tokens.output", "audio"): 5,
        ("llm.tokens.output", "text"): 35,
        ("llm.requests", None): 1,
        **({("agent.conversations", None): 1} if told(events, "agent.conversations") else {}),
    }
    tokens = [e for e in events if e.meter.startswith("llm.")]
    assert {e.own["usage.source"] for e in tokens} == {"framework"}
    assert {e.point["gen_ai.agent.name"] for e in tokens} == {"planner"}
    assert {e.point["gen_ai.provider.name"] for e in tokens} == {"function"}


def test_reasoning_is_taken_out_of_the_output_and_the_two_times_to_live_apart(metering, pydantic_ai):
    from pydantic_ai.usage import RequestUsage

    if not hasattr(RequestUsage, "output_reasoning_tokens"):
        pytest.skip("this version does not tell them apart")
    usage = {"input_tokens": 100, "cache_write_tokens": 30, "cache_write_1h_tokens": 10}
    usage |= {"output_tokens": 40, "output_reasoning_tokens": 25}
    asyncio.run(pydantic_ai.Agent(function_model(said(**usage))).run("go"))
    found = {(e.meter, e.point.get("cache.ttl")): e.value for e in metering.flush() if "tokens" in e.meter}
    assert found == {
        ("llm.tokens.input", None): 70,
        ("llm.tokens.cache_write", "5m"): 20,
        ("llm.tokens.cache_write", "1h"): 10,
        ("llm.tokens.output", None): 15,
        ("llm.tokens.reasoning", None): 25,
    }


def test_models_around_models_count_once(metering, pydantic_ai):
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.wrapper import WrapperModel

    inner = function_model(said(input_tokens=10, output_tokens=4))
    asyncio.run(pydantic_ai.Agent(WrapperModel(FallbackModel(inner))).run("go"))
    units = metering.units()
    assert (units["llm.requests"], units["llm.tokens.input"], units["llm.tokens.output"]) == (1, 10, 4)


def test_a_witnessed_call_that_raises_is_a_failed_request_and_one_that_is_cancelled_aborted(metering, pydantic_ai):
    from pydantic_ai.models.function import FunctionModel

    def refuse(_messages, _info):
        raise pydantic_ai.ModelHTTPError(503, "mine")

    async def hang(_messages, _info):
        await asyncio.sleep(60)

    with pytest.raises(pydantic_ai.ModelHTTPError):
        asyncio.run(pydantic_ai.Agent(FunctionModel(refuse)).run("go"))

    async def cancelled():
        task = asyncio.create_task(pydantic_ai.Agent(FunctionModel(hang)).run("go"))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    requests = told(metering.flush(), "llm.requests")
    assert [(e.point["meterhouse.status"], e.own["usage.source"]) for e in requests] == [
        ("failed", "none"),
        ("aborted", "none"),
    ]


def test_a_stream_counts_once_and_its_consumer_is_nobodys_agent(metering, provider, pydantic_ai, model):
    provider.stream(chunks(answer("streamed")))
    seen = []

    async def work():
        agent = pydantic_ai.Agent(model, name="planner")
        async with agent.run_stream("go") as result:
            async for text in result.stream_text():
                seen.append((text, attribution.current().agent_name))
        seen.append(("after", attribution.current().agent_name))

    asyncio.run(work())
    assert {name for _, name in seen} == {None}
    assert seen[-2][0] == "streamed"
    events = metering.flush()
    assert {meter: value for meter, value in metering.units().items() if "llm" in meter} == TOKENS_OF_ONE
    (request,) = told(events, "llm.requests")
    assert (request.point["gen_ai.agent.name"], request.own["meterhouse.step"]) == ("planner", "1")


def stream_model(*texts, usage=None):
    from pydantic_ai.models.function import FunctionModel

    async def speak(_messages, _info):
        for text in texts:
            yield text

    return FunctionModel(stream_function=speak)


@pytest.mark.cell("pydantic-ai", "only witness")
def test_a_witnessed_stream_counts_once_and_one_left_early_is_aborted(metering, pydantic_ai):
    async def work():
        agent = pydantic_ai.Agent(stream_model("one ", "two ", "three"), name="planner")
        async with agent.run_stream("go") as whole:
            assert await whole.get_output() == "one two three"
        async with agent.iter("go") as run:
            async for node in run:
                if agent.is_model_request_node(node):
                    async with node.stream(run.ctx) as stream, aclosing(aiter(stream)) as events:
                        async for _ in events:
                            assert attribution.current().agent_name is None
                            break
                    break

    asyncio.run(work())
    requests = told(metering.flush(), "llm.requests")
    versions = pydantic_ai.__version__.split(".")
    # 1.80 does not say that a stream was left early.
    assert [e.point["meterhouse.status"] for e in requests] == [
        "ok",
        "aborted" if versions[0] != "1" else "ok",
    ]
    assert {e.point["gen_ai.agent.name"] for e in requests} == {"planner"}


def test_a_plain_stream_that_is_left_early_is_aborted_with_what_was_reported(metering, pydantic_ai):
    from pydantic_ai.direct import model_request_stream
    from pydantic_ai.messages import ModelRequest
    from pydantic_ai.models import StreamedResponse

    async def work():
        question = [ModelRequest.user_text_prompt("hi")]
        async with model_request_stream(stream_model("one ", "two ", "three"), question) as stream:
            async for _ in stream:
                break

    asyncio.run(work())
    (request,) = told(metering.flush(), "llm.requests")
    tells = "_finished" in StreamedResponse.__dataclass_fields__  # older versions do not say that it was left early
    assert request.point["meterhouse.status"] == ("aborted" if tells else "ok")


@pytest.mark.cell("pydantic-ai", "iteration limit")
def test_a_run_that_reaches_its_limit_raises_and_fails_the_task(metering, pydantic_ai):
    from pydantic_ai.exceptions import UsageLimitExceeded
    from pydantic_ai.usage import UsageLimits

    agent = pydantic_ai.Agent(function_model(asked("again", {}, "call_Again0000001")))

    @agent.tool_plain
    def again() -> str:
        return "once more"

    with pytest.raises(UsageLimitExceeded), meterhouse.task("t-1"):
        asyncio.run(agent.run("go", usage_limits=UsageLimits(request_limit=1)))
    (task,) = told(metering.flush(), "agent.tasks")
    assert task.point["meterhouse.status"] == "failed"


MCP_SERVER = """
try:
    from mcp.server.mcpserver import MCPServer
except ImportError:
    from mcp.server.fastmcp import FastMCP as MCPServer
server = MCPServer("tools")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("stdio")
"""


@pytest.mark.cell("pydantic-ai", "over MCP once")
def test_a_tool_of_an_mcp_server_counts_once(metering, library, pydantic_ai):
    library("fastmcp")
    from fastmcp.client.transports import StdioTransport
    from mcp import ClientSession
    from pydantic_ai.mcp import MCPToolset

    toolset = MCPToolset(StdioTransport(sys.executable, ["-c", MCP_SERVER]))
    responses = asked("add", {"a": 1, "b": 2}, "call_Add0000000001"), said("3")
    agent = pydantic_ai.Agent(function_model(*responses), toolsets=[toolset])
    assert hasattr(ClientSession.call_tool, "__wrapped__")  # this layer is metered as well
    assert asyncio.run(agent.run("go")).output == "3"
    assert tools(metering.flush()) == [("add", "ok")]


def test_plain_requests_without_an_agent_count_as_well(metering, pydantic_ai):
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest

    question = [ModelRequest.user_text_prompt("hi")]
    response = asyncio.run(model_request(function_model(said(input_tokens=7, output_tokens=2)), question))
    assert response.parts[0].content == "done"
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 2}


def test_without_metering_the_classes_are_as_they_were(metering, pydantic_ai):
    from pydantic_ai.models import Model
    from pydantic_ai.models.function import FunctionModel
    from pydantic_ai.tool_manager import ToolManager

    from meterhouse.otel import MeterhouseInstrumentor

    patched = [(FunctionModel, "request"), (FunctionModel, "request_stream"), (ToolManager, "_raw_execute")]
    assert all(isinstance(vars(owner)[name], wrapt.FunctionWrapper) for owner, name in patched)
    MeterhouseInstrumentor().uninstrument()
    assert not any(isinstance(vars(owner)[name], wrapt.FunctionWrapper) for owner, name in patched)
    announced = vars(Model).get("__init_subclass__")
    assert announced is None or "meterhouse" not in announced.__func__.__module__


def test_the_example_runs_under_meterhouse_run(example, metering, provider, pydantic_ai):
    provider.json(wish(("call_Stock0000001", "stock", {"article": "lamp"}), number=1))
    provider.json(answer("There are 12.", number=2))
    server = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "sk-test"}
    assert example("pydantic_ai_agent.py", "How many lamps?", **server) == "There are 12.\n"
    events = metering.sink.events
    assert tools(events) == [("stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"warehouse"}
    assert sum(e.value for e in told(events, "llm.requests")) == 2
