"""AutoGen agents and teams: on OpenAI's SDK against a local provider, and on clients that only the framework sees."""

import asyncio
import sys
from contextlib import aclosing

import pytest
import wrapt
from openai_chat import TOKENS_OF_ONE, answer, chunks, wish

import meterhouse
from meterhouse import attribution

# AutoGen asks for what newer versions of its libraries call by other names.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Missing required field:UserWarning")


@pytest.fixture
def agentchat(library):
    library("autogen_agentchat")
    return library("autogen_agentchat.agents")


@pytest.fixture
def client(agentchat, provider):
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    info = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True}
    return OpenAIChatCompletionClient(
        model="gpt-5-mini",
        base_url=f"{provider.url}/v1",
        api_key="sk-test",
        default_headers={"Connection": "close"},
        model_info={**info, "family": "unknown"},
    )


@pytest.fixture
def scripted(agentchat):
    """Makes a client that answers with these in turn: a text, or (call id, name, JSON arguments)s."""
    from autogen_core import FunctionCall
    from autogen_core.models import ChatCompletionClient, CreateResult, RequestUsage

    class Scripted(ChatCompletionClient):
        def __init__(self, *turns, usage=(100, 40), cached=False):
            self.turns, self.usage, self.cached = list(turns), RequestUsage(*usage), cached

        def _next(self):
            turn = self.turns.pop(0)
            if isinstance(turn, Exception):
                raise turn
            content = turn if isinstance(turn, str) else [FunctionCall(id=i, name=n, arguments=a) for i, n, a in turn]
            reason = "stop" if isinstance(turn, str) else "function_calls"
            return CreateResult(finish_reason=reason, content=content, usage=self.usage, cached=self.cached)

        async def create(self, messages, **kwargs):
            return self._next()

        async def create_stream(self, messages, **kwargs):
            yield "pi"
            yield "ece"
            yield self._next()

        async def close(self):
            pass

        def actual_usage(self):
            return self.usage

        total_usage = actual_usage

        def count_tokens(self, messages, **kwargs):
            return 0

        def remaining_tokens(self, messages, **kwargs):
            return 1000

        capabilities = None

        @property
        def model_info(self):
            info = {"vision": False, "function_calling": True, "json_output": False, "structured_output": False}
            return {**info, "family": "unknown"}

    return Scripted


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


async def wait(seconds: int) -> str:
    """Waits."""
    return f"waited {seconds}"


def broken() -> str:
    """Breaks."""
    raise ZeroDivisionError("secret")


def told(events, meter):
    return [event for event in events if event.meter == meter]


def tools(events):
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in told(events, "tool.calls"))


@pytest.mark.cell("autogen", "tool, sync")
@pytest.mark.cell("autogen", "tool, async")
@pytest.mark.cell("autogen", "tool failed")
@pytest.mark.cell("autogen", "agent name")
@pytest.mark.cell("autogen", "tokens once")
@pytest.mark.parametrize("streaming", [True, False])
def test_tools_and_tokens_count_once_under_the_agents_name(metering, provider, agentchat, client, streaming):
    three = [("call_Add0000000001", "add", {"a": 1, "b": 2}), ("call_Wait000000001", "wait", {"seconds": 3})]
    three += [("call_Brok000000001", "broken", {})]
    refused = [("call_Bad0000000001", "add", {"a": "many", "b": 2}), ("call_None000000001", "no_such_tool", {})]
    for body in (wish(*three, number=1), wish(*refused, number=2), answer("all done", number=3)):
        provider.stream(chunks(body)) if streaming else provider.json(body)
    agent = agentchat.AssistantAgent(
        "planner", client, tools=[add, wait, broken], max_tool_iterations=5, model_client_stream=streaming
    )

    async def work():
        with meterhouse.customer("acme"):
            return (await agent.run(task="go")).messages[-1].content

    assert asyncio.run(work()) == "all done"
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("broken", "failed"), ("wait", "ok")]
    assert metering.units() == {**{meter: 3 * count for meter, count in TOKENS_OF_ONE.items()}, "tool.calls": 3}
    assert {e.own["usage.source"] for e in events} == {"reported"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.point["customer.id"] for e in events} == {"acme"}


@pytest.mark.cell("autogen", "only witness")
@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_no_choke_point_sees_counts_what_its_result_tells(metering, agentchat, scripted, streaming):
    agent = agentchat.AssistantAgent("planner", scripted("done"), model_client_stream=streaming)
    asyncio.run(agent.run(task="go"))
    events = metering.flush()
    assert {e.meter: e.value for e in events} == {"llm.requests": 1, "llm.tokens.input": 100, "llm.tokens.output": 40}
    assert {e.own["usage.source"] for e in events} == {"framework"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}


@pytest.mark.parametrize("streaming", [True, False])
def test_an_answer_from_autogens_own_cache_is_no_call(metering, agentchat, scripted, streaming):
    agent = agentchat.AssistantAgent("planner", scripted("done", cached=True), model_client_stream=streaming)
    asyncio.run(agent.run(task="go"))
    assert metering.flush() == []


def test_no_usage_failed_and_abandoned_calls_are_listed(metering, scripted):
    async def work():
        await scripted("hi", usage=(0, 0)).create([])
        with pytest.raises(OSError, match="gone"):
            await scripted(OSError("gone")).create([])
        async with aclosing(scripted("hi").create_stream([])) as pieces:
            async for _ in pieces:
                break

    asyncio.run(work())
    requests = metering.flush()
    assert [(e.meter, e.point["meterhouse.status"], e.own["usage.source"]) for e in requests] == [
        ("llm.requests", "ok", "none"),
        ("llm.requests", "failed", "none"),
        ("llm.requests", "aborted", "none"),
    ]


def test_a_team_that_hands_over_counts_each_agent_and_no_hand_over(metering, agentchat, scripted):
    from autogen_agentchat.conditions import TextMentionTermination
    from autogen_agentchat.teams import Swarm

    first = agentchat.AssistantAgent("boss", scripted([("c-1", "transfer_to_adder", "{}")]), handoffs=["adder"])
    second = agentchat.AssistantAgent(
        "adder", scripted([("c-2", "add", '{"a": 1, "b": 2}')], "TERMINATE"), tools=[add], max_tool_iterations=3
    )
    team = Swarm([first, second], termination_condition=TextMentionTermination("TERMINATE"))

    async def work():
        with meterhouse.customer("acme"):
            async for _ in team.run_stream(task="go"):
                assert attribution.current().agent_name is None

    asyncio.run(work())
    events = metering.flush()
    found = sorted((e.meter, e.point["gen_ai.agent.name"]) for e in events if e.meter in ("llm.requests", "tool.calls"))
    assert found == [
        ("llm.requests", "adder"),
        ("llm.requests", "adder"),
        ("llm.requests", "boss"),
        ("tool.calls", "adder"),
    ]
    assert {e.point["customer.id"] for e in events} == {"acme"}


@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_used_as_a_tool_decides_for_itself(metering, agentchat, scripted, streaming):
    from autogen_agentchat.tools import AgentTool

    inner = agentchat.AssistantAgent(
        "adder",
        scripted([("c-1", "add", '{"a": 1, "b": 2}')], "3"),
        description="adds",
        tools=[add],
        max_tool_iterations=3,
    )
    turns = [("c-2", "adder", '{"task": "add"}')], "done"
    outer = agentchat.AssistantAgent(
        "boss", scripted(*turns), tools=[AgentTool(inner)], max_tool_iterations=3, model_client_stream=streaming
    )
    asyncio.run(outer.run(task="go"))
    found = told(metering.flush(), "tool.calls")
    assert sorted((e.point["gen_ai.tool.name"], e.point["gen_ai.agent.name"]) for e in found) == [
        ("add", "adder"),
        ("adder", "boss"),
    ]


def test_a_tool_that_the_host_runs_itself_counts_once(metering, agentchat):
    from autogen_core import CancellationToken
    from autogen_core.tools import FunctionTool

    async def work():
        tool = FunctionTool(add, description="adds")
        assert await tool.run_json({"a": 1, "b": 2}, CancellationToken()) == 3
        with pytest.raises(ValueError, match="many"):
            await tool.run_json({"a": "many", "b": 2}, CancellationToken())

    asyncio.run(work())
    assert tools(metering.flush()) == [("add", "ok")]


MCP_SERVER = """
from mcp.server.fastmcp import FastMCP
server = FastMCP("tools")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("stdio")
"""


@pytest.mark.cell("autogen", "over MCP once")
def test_a_tool_of_an_mcp_workbench_counts_once(metering, library, agentchat, scripted):
    library("mcp")
    from autogen_ext.tools.mcp import McpWorkbench, StdioServerParams

    async def work():
        async with McpWorkbench(StdioServerParams(command=sys.executable, args=["-c", MCP_SERVER])) as workbench:
            turns = [("c-1", "add", '{"a": 1, "b": 2}')], "3"
            agent = agentchat.AssistantAgent("planner", scripted(*turns), workbench=workbench, max_tool_iterations=3)
            with meterhouse.customer("acme"):
                return (await agent.run(task="go")).messages[-1].content

    assert asyncio.run(work()) == "3"
    (call,) = told(metering.flush(), "tool.calls")
    assert (call.point["gen_ai.tool.name"], call.point["gen_ai.agent.name"]) == ("add", "planner")
    assert call.point["customer.id"] == "acme"


def test_without_metering_the_classes_are_as_they_were(metering, agentchat, scripted):
    from autogen_core.tools import FunctionTool

    from meterhouse.otel import MeterhouseInstrumentor

    def ours():
        patched = [(FunctionTool, "run"), (scripted, "create"), (agentchat.AssistantAgent, "on_messages_stream")]
        patched += [(agentchat.AssistantAgent, "_execute_tool_call")]
        return [isinstance(vars(owner)[name], wrapt.FunctionWrapper) for owner, name in patched]

    assert all(ours())
    MeterhouseInstrumentor().uninstrument()
    assert not any(ours())


def test_the_example_runs_under_meterhouse_run(example, metering, provider, agentchat):
    provider.json(wish(("call_Stock0000001", "stock", {"article": "lamp"}), number=1))
    provider.json(answer("There are 12.", number=2))
    server = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "sk-test"}
    assert example("autogen_agent.py", "How many lamps?", **server) == "There are 12.\n"
    events = metering.sink.events
    assert tools(events) == [("stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"warehouse"}
    assert sum(e.value for e in told(events, "llm.requests")) == 2
