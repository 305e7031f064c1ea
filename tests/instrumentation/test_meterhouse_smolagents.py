"""smolagents: agents on models that nobody but the framework sees, and on OpenAI's SDK."""

import sys

import pytest
import wrapt
from openai_chat import TOKENS_OF_ONE, chunks, wish

import meterhouse
from meterhouse import attribution


@pytest.fixture
def smolagents(library):
    return library("smolagents")


@pytest.fixture
def scripted(smolagents):
    """Makes a model that answers with these in turn: a text, or (tool call id, name, arguments)s."""
    from smolagents.models import ChatMessage, ChatMessageToolCall, ChatMessageToolCallFunction, Model
    from smolagents.monitoring import TokenUsage

    class Scripted(Model):
        def __init__(self, *turns, usage=(100, 40)):
            super().__init__(model_id="mine-1")
            self.turns = list(turns)
            self.usage = usage

        def generate(self, messages, stop_sequences=None, response_format=None, tools_to_call_from=None, **kwargs):
            turn = self.turns.pop(0)
            if isinstance(turn, Exception):
                raise turn
            usage = TokenUsage(*self.usage) if self.usage else None
            if isinstance(turn, str):
                return ChatMessage(role="assistant", content=turn, token_usage=usage)
            calls = [
                ChatMessageToolCall(id=i, type="function", function=ChatMessageToolCallFunction(name=n, arguments=a))
                for i, n, a in turn
            ]
            return ChatMessage(role="assistant", content="", tool_calls=calls, token_usage=usage)

    return Scripted


@pytest.fixture
def made(smolagents):
    from smolagents import tool

    @tool
    def add(a: int, b: int) -> int:
        """Adds.

        Args:
            a: one
            b: two
        """
        return a + b

    @tool
    def broken() -> str:
        """Breaks."""
        raise ZeroDivisionError("secret")

    return [add, broken]


def final(text="done", number=9):
    return [(f"call_{number}", "final_answer", {"answer": text})]


def quiet(**more):
    return {"verbosity_level": 0, **more}


def told(events, meter):
    return [event for event in events if event.meter == meter]


def tools(events):
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in told(events, "tool.calls"))


@pytest.mark.cell("smolagents", "tool, sync")
@pytest.mark.cell("smolagents", "tool failed")
@pytest.mark.cell("smolagents", "agent name")
@pytest.mark.cell("smolagents", "step")
@pytest.mark.cell("smolagents", "only witness")
def test_tools_and_tokens_count_once_under_the_agents_name_and_step(metering, smolagents, scripted, made):
    both = [("c-1", "add", {"a": 1, "b": 2}), ("c-2", "add", {"a": 3, "b": 4})]  # two at once: in threads
    model = scripted(both, [("c-3", "broken", {})], final())
    agent = smolagents.ToolCallingAgent(tools=made, model=model, name="planner", **quiet())
    with meterhouse.customer("acme"):
        assert agent.run("go") == "done"
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("add", "ok"), ("broken", "failed")]
    assert metering.units() == {
        "llm.requests": 3,
        "llm.tokens.input": 300,
        "llm.tokens.output": 120,
        "tool.calls": 3,
    }
    assert {e.own["usage.source"] for e in events if e.meter.startswith("llm.")} == {"framework"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.own["meterhouse.step"] for e in told(events, "llm.requests")} == {"1", "2", "3"}
    assert sorted(e.own["meterhouse.step"] for e in told(events, "tool.calls")) == ["1", "1", "2"]


def test_what_the_framework_refuses_to_run_is_no_execution(metering, smolagents, scripted, made):
    model = scripted([("c-1", "add", {"a": "many", "b": 2})], [("c-2", "no_such_tool", {})], final())
    agent = smolagents.ToolCallingAgent(tools=made, model=model, **quiet())
    assert agent.run("go") == "done"
    assert "tool.calls" not in metering.units()
    assert metering.units()["llm.requests"] == 3


def test_tools_in_the_code_of_a_code_agent_count_each_time_they_run(metering, smolagents, scripted, made):
    code = "Thought: add\n<code>\nx = add(1, 2)\ny = add(x, 3)\nfinal_answer(y)\n</code>"
    agent = smolagents.CodeAgent(tools=made, model=scripted(code), name="coder", **quiet())
    with meterhouse.customer("acme"), meterhouse.conversation("c-17"):
        assert agent.run("go") == 6
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("add", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"c-17"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"coder"}


def test_a_managed_agent_is_no_tool_and_decides_for_itself(metering, smolagents, scripted, made):
    inner = smolagents.ToolCallingAgent(
        tools=made,
        model=scripted([("c-1", "add", {"a": 1, "b": 2})], final("3")),
        name="adder",
        description="adds",
        **quiet(),
    )
    outer = smolagents.ToolCallingAgent(
        tools=[],
        model=scripted([("c-2", "adder", {"task": "add"})], final()),
        name="boss",
        managed_agents=[inner],
        **quiet(),
    )
    assert outer.run("go") == "done"
    events = metering.flush()
    found = sorted((e.meter, e.point["gen_ai.agent.name"]) for e in events if e.meter in ("llm.requests", "tool.calls"))
    assert found == [
        ("llm.requests", "adder"),
        ("llm.requests", "adder"),
        ("llm.requests", "boss"),
        ("llm.requests", "boss"),
        ("tool.calls", "adder"),
    ]


def test_the_consumer_of_a_streamed_run_is_nobodys_agent(metering, smolagents, scripted, made):
    model = scripted([("c-1", "add", {"a": 1, "b": 2})], final())
    agent = smolagents.ToolCallingAgent(tools=made, model=model, name="planner", **quiet())
    for _ in agent.run("go", stream=True):
        assert attribution.current().agent_name is None
    assert {e.point["gen_ai.agent.name"] for e in metering.flush()} == {"planner"}


@pytest.mark.cell("smolagents", "iteration limit")
def test_an_agent_that_runs_out_of_steps_fails_the_task(metering, smolagents, scripted, made):
    model = scripted([("c-1", "add", {"a": 1, "b": 2})], "gave up")
    agent = smolagents.ToolCallingAgent(tools=made, model=model, max_steps=1, **quiet())
    with meterhouse.task("t-1"):
        assert agent.run("go") == "gave up"
    with meterhouse.task("t-2"):
        agent = smolagents.ToolCallingAgent(tools=made, model=scripted(final()), max_steps=1, **quiet())
        assert agent.run("go") == "done"
    found = {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in told(metering.flush(), "agent.tasks")}
    assert found == {"t-1": "failed", "t-2": "ok"}


def test_planning_and_other_model_calls_of_an_agent_are_its_own(metering, smolagents, scripted, made):
    agent = smolagents.ToolCallingAgent(
        tools=made, model=scripted("a plan", final()), planning_interval=1, name="planner", **quiet()
    )
    assert agent.run("go") == "done"
    assert [e.point["gen_ai.agent.name"] for e in told(metering.flush(), "llm.requests")] == ["planner", "planner"]


def test_a_model_that_tells_no_usage_is_a_request_without_tokens_and_one_that_raises_failed(
    metering, smolagents, scripted
):
    scripted("hi", usage=None).generate([])
    with pytest.raises(OSError, match="gone"):
        scripted(OSError("gone")).generate([])
    requests = metering.flush()
    assert [(e.meter, e.point["meterhouse.status"], e.own["usage.source"]) for e in requests] == [
        ("llm.requests", "ok", "none"),
        ("llm.requests", "failed", "none"),
    ]


def test_a_stream_is_the_sum_of_its_pieces_and_one_left_early_aborted(metering, smolagents):
    """As TransformersModel tells it: the input with the first piece, one token of output with each."""
    from smolagents.models import ChatMessageStreamDelta, Model
    from smolagents.monitoring import TokenUsage

    class Streaming(Model):
        def generate_stream(self, messages, **kwargs):
            for given in (7, 0, 0):
                yield ChatMessageStreamDelta(content="a", token_usage=TokenUsage(given, 1))

    assert len(list(Streaming(model_id="mine-1").generate_stream([]))) == 3
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 3}
    pieces = Streaming(model_id="mine-1").generate_stream([])
    next(pieces)
    pieces.close()
    (left,) = [e for e in told(metering.flush(), "llm.requests") if e.point["meterhouse.status"] != "ok"]
    assert left.point["meterhouse.status"] == "aborted"


@pytest.mark.cell("smolagents", "tokens once")
@pytest.mark.parametrize("streaming", [True, False])
def test_the_tokens_of_an_sdk_that_is_metered_count_once(metering, provider, smolagents, made, streaming):
    turns = [wish(("call_Add0000000001", "add", {"a": 1, "b": 2}), number=1)]
    turns += [wish(("call_Final00000001", "final_answer", {"answer": "3"}), number=2)]
    for turn in turns:
        provider.stream(chunks(turn)) if streaming else provider.json(turn)
    model = smolagents.OpenAIServerModel("gpt-5-mini", api_base=f"{provider.url}/v1", api_key="sk-test")
    agent = smolagents.ToolCallingAgent(tools=made, model=model, name="planner", stream_outputs=streaming, **quiet())
    assert agent.run("go") == "3"
    model.client.close()
    events = metering.flush()
    assert metering.units() == {**{meter: 2 * count for meter, count in TOKENS_OF_ONE.items()}, "tool.calls": 1}
    assert {e.own["usage.source"] for e in events} == {"reported"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.own["meterhouse.step"] for e in told(events, "llm.requests")} == {"1", "2"}


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


@pytest.mark.cell("smolagents", "over MCP once")
def test_a_tool_of_an_mcp_server_counts_once(metering, library, smolagents, scripted):
    library("mcpadapt")
    from mcp import ClientSession, StdioServerParameters

    server = StdioServerParameters(command=sys.executable, args=["-c", MCP_SERVER])
    with meterhouse.customer("acme"), smolagents.ToolCollection.from_mcp(server, trust_remote_code=True) as collection:
        assert hasattr(ClientSession.call_tool, "__wrapped__")  # this layer is metered as well
        model = scripted([("c-1", "add", {"a": 1, "b": 2})], final("3"))
        agent = smolagents.ToolCallingAgent(tools=[*collection.tools], model=model, **quiet())
        assert agent.run("go") == "3"
    events = metering.flush()
    assert tools(events) == [("add", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}


def test_without_metering_the_classes_are_as_they_were(metering, smolagents, scripted, made):
    from smolagents import local_python_executor

    from meterhouse.otel import MeterhouseInstrumentor

    def ours():
        agent = smolagents.ToolCallingAgent
        found = [vars(smolagents.Tool)["__call__"], vars(scripted)["generate"], vars(agent)["_step_stream"]]
        found += [getattr(local_python_executor, "timeout", None)]
        return [isinstance(one, wrapt.FunctionWrapper) for one in found if one is not None]

    assert all(ours())
    MeterhouseInstrumentor().uninstrument()
    assert not any(ours())


def test_the_example_runs_under_meterhouse_run(example, metering, provider, smolagents):
    provider.json(wish(("call_Stock0000001", "stock", {"article": "lamp"}), number=1))
    provider.json(wish(("call_Final0000001", "final_answer", {"answer": "There are 12."}), number=2))
    server = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "sk-test"}
    assert example("smolagents_agent.py", "How many lamps?", **server) == "There are 12.\n"
    events = metering.sink.events
    assert tools(events) == [("stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"warehouse"}
    assert sum(e.value for e in told(events, "llm.requests")) == 2
