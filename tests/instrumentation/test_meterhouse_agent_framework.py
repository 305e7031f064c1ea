"""Microsoft Agent Framework: on OpenAI's SDK against a local provider, and on clients that only the framework sees."""

import asyncio
import gc
import sys

import pytest
import wrapt
from openai_chat import TOKENS_OF_ONE, answer, chunks, wish

import meterhouse
from meterhouse import attribution

USAGE = {
    "input_token_count": 100,
    "cache_read_input_token_count": 60,
    "output_token_count": 40,
    "reasoning_output_token_count": 25,
    "total_token_count": 140,
}


@pytest.fixture
def framework(library):
    return library("agent_framework")


@pytest.fixture
def client(framework, provider):
    from agent_framework.openai import OpenAIChatCompletionClient
    from openai import AsyncOpenAI

    sdk = AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="sk-test", default_headers={"Connection": "close"})
    return OpenAIChatCompletionClient(model="gpt-5-mini", async_client=sdk)


@pytest.fixture
def scripted(framework):
    """Makes a client that answers with these in turn: a text, or (call id, name, arguments)s."""
    from agent_framework import (
        BaseChatClient,
        ChatResponse,
        ChatResponseUpdate,
        Content,
        FunctionInvocationLayer,
        Message,
        ResponseStream,
    )

    class Scripted(FunctionInvocationLayer, BaseChatClient):
        OTEL_PROVIDER_NAME = "mine"

        def __init__(self, *turns, usage=USAGE):
            super().__init__()
            self.turns, self.usage, self.model = list(turns), usage, "mine-1"

        def _contents(self):
            turn = self.turns.pop(0)
            if isinstance(turn, Exception):
                raise turn
            if isinstance(turn, str):
                return [Content.from_text(part) for part in turn.split("|")]
            return [Content.from_function_call(call_id=i, name=n, arguments=a) for i, n, a in turn]

        def _inner_get_response(self, *, messages, stream, options, **kwargs):
            if stream:
                return ResponseStream(self._pieces(), finalizer=ChatResponse.from_updates)
            return self._whole()

        async def _whole(self):
            message = Message(role="assistant", contents=self._contents())
            return ChatResponse(messages=[message], response_id="r-1", model="mine-1", usage_details=self.usage)

        async def _pieces(self):
            for content in self._contents():
                yield ChatResponseUpdate(role="assistant", contents=[content], response_id="r-1", model="mine-1")
            if self.usage:
                yield ChatResponseUpdate(
                    role="assistant",
                    contents=[Content.from_usage(usage_details=self.usage)],
                    response_id="r-1",
                    model="mine-1",
                )

    return Scripted


@pytest.fixture
def made(framework):
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    async def wait(seconds: int) -> str:
        """Waits."""
        return f"waited {seconds}"

    def broken() -> str:
        """Breaks."""
        raise ZeroDivisionError("secret")

    return [framework.tool(approval_mode="never_require")(one) for one in (add, wait, broken)]


async def text_of(agent, question, *, streaming, **more):
    if not streaming:
        return (await agent.run(question, **more)).text
    stream = agent.run(question, stream=True, **more)
    async for _ in stream:
        assert attribution.current().agent_name is None
    return (await stream.get_final_response()).text


def told(events, meter):
    return [event for event in events if event.meter == meter]


def tools(events):
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in told(events, "tool.calls"))


@pytest.mark.cell("agent-framework", "tool, sync")
@pytest.mark.cell("agent-framework", "tool, async")
@pytest.mark.cell("agent-framework", "tool failed")
@pytest.mark.cell("agent-framework", "agent name")
@pytest.mark.cell("agent-framework", "conversation")
@pytest.mark.cell("agent-framework", "tokens once")
@pytest.mark.parametrize("streaming", [False, True])
def test_tools_and_tokens_count_once_under_the_agents_name_and_session(
    metering, provider, framework, client, made, streaming
):
    three = [("call_Add0000000001", "add", {"a": 1, "b": 2}), ("call_Wait000000001", "wait", {"seconds": 3})]
    three += [("call_Brok000000001", "broken", {})]
    refused = [("call_Bad0000000001", "add", {"a": "many", "b": 2}), ("call_None000000001", "no_such_tool", {})]
    for body in (wish(*three, number=1), wish(*refused, number=2), answer("all done", number=3)):
        provider.stream(chunks(body)) if streaming else provider.json(body)
    agent = framework.Agent(client=client, name="planner", id="p-1", tools=made)
    session = framework.AgentSession(session_id="c-17")

    async def work():
        with meterhouse.customer("acme"):
            return await text_of(agent, "go", streaming=streaming, session=session)

    assert asyncio.run(work()) == "all done"
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("broken", "failed"), ("wait", "ok")]
    assert metering.units() == {
        **{meter: 3 * count for meter, count in TOKENS_OF_ONE.items()},
        "tool.calls": 3,
        "agent.conversations": 1,
    }
    assert {e.own["usage.source"] for e in events} == {"reported"}
    assert {(e.point["gen_ai.agent.name"], e.point["gen_ai.agent.id"]) for e in events} == {("planner", "p-1")}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"c-17"}
    assert {e.point["customer.id"] for e in events} == {"acme"}


@pytest.mark.cell("agent-framework", "only witness")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_no_choke_point_sees_counts_what_its_answer_tells(metering, framework, scripted, made, streaming):
    turns = [("c-1", "add", {"a": 1, "b": 2})], "all done"
    agent = framework.Agent(client=scripted(*turns), name="planner", tools=made)
    assert asyncio.run(text_of(agent, "go", streaming=streaming)) == "all done"
    events = metering.flush()
    assert metering.units() == {**{meter: 2 * count for meter, count in TOKENS_OF_ONE.items()}, "tool.calls": 1}
    assert {e.own["usage.source"] for e in told(events, "llm.requests")} == {"framework"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.point["gen_ai.response.model"] for e in told(events, "llm.requests")} == {"mine-1"}
    assert {e.point["gen_ai.provider.name"] for e in told(events, "llm.requests")} == {"mine"}


def test_no_usage_failed_and_abandoned_calls_are_listed(metering, framework, scripted):
    question = [framework.Message(role="user", contents=["hi"])]

    async def work():
        await scripted("hi", usage=None).get_response(question)
        with pytest.raises(OSError, match="gone"):
            await scripted(OSError("gone")).get_response(question)
        with pytest.raises(OSError, match="gone"):
            async for _ in scripted(OSError("gone")).get_response(question, stream=True):
                pass
        stream = scripted("one|two").get_response(question, stream=True)
        async for _ in stream:
            break
        if hasattr(stream, "close"):  # the oldest versions have none: there letting go of it is all that a host can do
            await stream.close()

    asyncio.run(work())
    requests = metering.flush()
    assert [(e.meter, e.point["meterhouse.status"], e.own["usage.source"]) for e in requests] == [
        ("llm.requests", "ok", "none"),
        ("llm.requests", "failed", "none"),
        ("llm.requests", "failed", "none"),
        ("llm.requests", "aborted", "none"),
    ]


def test_a_stream_that_the_host_lets_go_of_is_aborted_for_whom_it_was_made(metering, framework, scripted):
    async def work():
        with meterhouse.customer("acme"):
            stream = scripted("one|two").get_response([framework.Message(role="user", contents=["hi"])], stream=True)
            async for _ in stream:
                break
        del stream
        with meterhouse.customer("globex"):
            gc.collect()

    asyncio.run(work())
    (event,) = metering.flush()
    assert (event.meter, event.point["meterhouse.status"], event.point["customer.id"]) == (
        "llm.requests",
        "aborted",
        "acme",
    )


def test_an_agent_used_as_a_tool_decides_for_itself(metering, framework, scripted, made):
    inner = framework.Agent(
        client=scripted([("c-1", "add", {"a": 1, "b": 2})], "3"), name="adder", description="adds", tools=made
    )
    turns = [("c-2", "adder", {"task": "add"})], "done"
    outer = framework.Agent(client=scripted(*turns), name="boss", tools=[inner.as_tool()])
    assert asyncio.run(text_of(outer, "go", streaming=False)) == "done"
    found = told(metering.flush(), "tool.calls")
    assert sorted((e.point["gen_ai.tool.name"], e.point["gen_ai.agent.name"]) for e in found) == [
        ("add", "adder"),
        ("adder", "boss"),
    ]


MCP_SERVER = """
try:
    from mcp.server.mcpserver import MCPServer
except ImportError:  # mcp 1
    from mcp.server.fastmcp import FastMCP as MCPServer
server = MCPServer("tools")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("stdio")
"""


@pytest.mark.cell("agent-framework", "over MCP once")
def test_a_tool_of_an_mcp_server_counts_once(metering, library, framework, scripted):
    library("mcp")
    from mcp import ClientSession

    async def work():
        server = framework.MCPStdioTool(
            name="tools", command=sys.executable, args=["-c", MCP_SERVER], approval_mode="never_require"
        )
        turns = [("c-1", "add", {"a": 1, "b": 2})], "3"
        async with server, framework.Agent(client=scripted(*turns), name="planner", tools=[server]) as agent:
            with meterhouse.customer("acme"):
                return (await agent.run("go")).text

    assert asyncio.run(work()) == "3"
    assert hasattr(ClientSession.call_tool, "__wrapped__")  # this layer is metered as well
    (call,) = told(metering.flush(), "tool.calls")
    assert (call.point["gen_ai.tool.name"], call.point["gen_ai.agent.name"]) == ("add", "planner")
    assert call.point["customer.id"] == "acme"


def test_without_metering_the_classes_are_as_they_were(metering, framework, scripted):
    from agent_framework._agents import RawAgent

    from meterhouse.otel import MeterhouseInstrumentor

    def ours():
        patched = [(framework.FunctionTool, "_invoke_function"), (scripted, "_inner_get_response"), (RawAgent, "run")]
        return [isinstance(vars(owner)[name], wrapt.FunctionWrapper) for owner, name in patched]

    assert all(ours())
    MeterhouseInstrumentor().uninstrument()
    assert not any(ours())


def test_the_example_runs_under_meterhouse_run(example, metering, provider, framework):
    provider.json(wish(("call_Stock0000001", "stock", {"article": "lamp"}), number=1))
    provider.json(answer("There are 12.", number=2))
    server = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "sk-test"}
    assert example("agent_framework_agent.py", "How many lamps?", **server) == "There are 12.\n"
    events = metering.sink.events
    assert tools(events) == [("stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"warehouse"}
    assert sum(e.value for e in told(events, "llm.requests")) == 2
