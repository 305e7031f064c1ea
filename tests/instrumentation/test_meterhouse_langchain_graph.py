"""LangGraph: agents, conversations and steps of what runs inside graphs, their tools, and agents that give up."""

import asyncio
import operator
import warnings
from typing import Annotated, Any, TypedDict

import pytest

import meterhouse

pytest.importorskip("langgraph", reason="langgraph is not installed")

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import MemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

USAGE = {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}
ASK = {"messages": [("user", "What is 1 + 2?")]}
THREAD = {"configurable": {"thread_id": "t-1"}}


class Model(BaseChatModel):
    """Asks for the tools that it is given, one answer after the other; the last answer is repeated."""

    answers: Any = ()

    @property
    def _llm_type(self) -> str:
        return "house"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        calls = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        message = AIMessage("3" if not calls else "", tool_calls=calls, usage_metadata=USAGE)
        return ChatResult(generations=[ChatGeneration(message=message)])


def asks(*names, **args):
    return [
        {"name": name, "args": args, "id": f"call_x8Kq2{index}mW{name}", "type": "tool_call"}
        for index, name in enumerate(names)
    ]


def agent_of(answers, tools, **more):
    """The agent that the installed LangChain has: `create_agent`, or before it `create_react_agent`."""
    model = Model(answers=answers)
    try:
        from langchain.agents import create_agent
    except ImportError:
        return react_agent_of(model, tools, **more)
    return create_agent(model, tools, **more)


def react_agent_of(model, tools, **more):
    from langgraph.prebuilt import create_react_agent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moved to langchain, but works
        return create_react_agent(model, tools, **more)


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@tool
async def add_async(a: int, b: int) -> int:
    """Adds."""
    await asyncio.sleep(0)
    return a + b


def told(events, *meters):
    """(meter, agent, conversation, step) of each event."""
    keys = ("gen_ai.agent.name", "gen_ai.conversation.id", "meterhouse.step")
    return [(e.meter, *(e.everything.get(key) for key in keys)) for e in events if e.meter in meters]


def executions(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


@pytest.mark.cell("langgraph", "tool, sync")
@pytest.mark.cell("langgraph", "agent name")
@pytest.mark.cell("langgraph", "conversation")
@pytest.mark.cell("langgraph", "step")
@pytest.mark.cell("langgraph", "only witness")
def test_an_agent_s_work_carries_its_name_its_thread_and_the_node(metering):
    agent = agent_of([asks("add", "add", a=1, b=2), []], [add], name="calculator", checkpointer=MemorySaver())
    with meterhouse.customer("acme"):
        answer = agent.invoke(ASK, THREAD)
    assert answer["messages"][-1].content == "3"
    found = metering.flush()
    node = {step for meter, *_, step in told(found, "llm.requests")}
    assert len(node) == 1 and node < {"model", "agent"}
    assert sorted(told(found, "llm.requests", "tool.calls")) == sorted(
        [("llm.requests", "calculator", "t-1", *node)] * 2 + [("tool.calls", "calculator", "t-1", "tools")] * 2
    )
    assert metering.units() == {
        "llm.requests": 2,
        "llm.tokens.input": 20,
        "llm.tokens.output": 8,
        "tool.calls": 2,
        "agent.conversations": 1,
    }


@pytest.mark.cell("langgraph", "tool, async")
@pytest.mark.cell("langgraph", "tool failed")
def test_parallel_async_tools_count_each_and_one_that_the_agent_made_text_of_has_failed(metering):
    @tool(parse_docstring=False)
    async def broken() -> str:
        """Fails."""
        raise ValueError("gone")

    broken.handle_tool_error = True

    def text(error: Exception) -> str:
        return "it failed"

    from langgraph.prebuilt import ToolNode

    class State(TypedDict):
        messages: Annotated[list, operator.add]

    builder = StateGraph(State)
    builder.add_node("tools", ToolNode([add_async, broken], handle_tool_errors=text))
    builder.add_edge(START, "tools")
    graph = builder.compile()
    calls = [*asks("add_async", "add_async", a=1, b=2), *asks("broken"), *asks("unknown")]
    done = asyncio.run(graph.ainvoke({"messages": [AIMessage("", tool_calls=calls)]}))
    assert [message.status for message in done["messages"][1:]] == ["success", "success", "error", "error"]
    assert executions(metering.flush()) == [("add_async", "ok"), ("add_async", "ok"), ("broken", "failed")]


@pytest.mark.cell("langgraph", "tokens once")
def test_an_sdk_called_in_a_node_is_counted_once_for_the_node_and_results_are_not_counted_again(metering, provider):
    import openai

    client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0)
    for _ in range(2):
        provider.json(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "gpt-5-mini",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "3"}}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
            }
        )

    class State(TypedDict):
        text: str

    def write(state: State) -> State:
        answer = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}])
        return {"text": answer.choices[0].message.content}

    async def write_async(state: State) -> State:
        return await asyncio.to_thread(write, state)

    for node, run in ((write, "invoke"), (write_async, "ainvoke")):
        builder = StateGraph(State)
        builder.add_node("writer", node)
        builder.add_edge(START, "writer")
        graph = builder.compile(name="desk")
        ended = getattr(graph, run)({"text": ""}, THREAD)
        assert (asyncio.run(ended) if run == "ainvoke" else ended) == {"text": "3"}
    found = metering.flush()
    assert told(found, "llm.requests") == [("llm.requests", "desk", "t-1", "writer")] * 2
    assert metering.units() == {
        "llm.requests": 2,
        "llm.tokens.input": 20,
        "llm.tokens.output": 8,
        "agent.conversations": 1,
    }


def test_what_the_host_says_wins(metering):
    agent = agent_of([[]], [add], name="calculator")
    with meterhouse.agent("mine"), meterhouse.conversation("c-1"), meterhouse.step("s"):
        agent.invoke(ASK, THREAD)
    assert told(metering.flush(), "llm.requests") == [("llm.requests", "mine", "c-1", "s")]


def test_an_agent_that_is_a_node_of_a_graph_has_its_own_name(metering):
    class State(TypedDict):
        messages: Annotated[list, operator.add]

    def before(state: State) -> State:
        add.invoke({"a": 1, "b": 2})
        return {"messages": []}

    builder = StateGraph(State)
    builder.add_node("before", before)
    builder.add_node("helper", agent_of([asks("add", a=1, b=2), []], [add], name="helper"))
    builder.add_edge(START, "before")
    builder.add_edge("before", "helper")
    builder.compile(name="team", checkpointer=MemorySaver()).invoke(ASK, THREAD)
    assert told(metering.flush(), "tool.calls") == [
        ("tool.calls", "team", "t-1", "before"),
        ("tool.calls", "helper", "t-1", "tools"),
    ]


def test_an_agent_used_as_a_tool_is_an_execution_and_its_tools_are_others(metering):
    inner = agent_of([asks("add", a=1, b=2), []], [add], name="inner")

    @tool
    def ask_inner(question: str) -> str:
        """Asks another agent."""
        return inner.invoke({"messages": [("user", question)]})["messages"][-1].content

    @tool
    def add_up(a: int, b: int) -> int:
        """Adds, by another tool."""
        return add.invoke({"a": a, "b": b})

    outer = agent_of([asks("ask_inner", question="1 + 2?") + asks("add_up", a=1, b=2), []], [ask_inner, add_up])
    outer.invoke(ASK)
    assert executions(metering.flush()) == [("add", "ok"), ("add_up", "ok"), ("ask_inner", "ok")]


def test_a_tool_that_waits_for_a_person_counts_once_when_it_has_run(metering):
    @tool
    def book(day: str) -> str:
        """Books."""
        return f"booked {day}, {interrupt('sure?')}"

    agent = agent_of([asks("book", day="monday"), []], [book], checkpointer=MemorySaver())
    with meterhouse.task() as task:
        agent.invoke(ASK, THREAD)
    assert executions(metering.flush()) == []
    agent.invoke(Command(resume="yes"), THREAD)
    found = metering.flush()
    assert executions(found) == [("book", "ok")]
    assert [e.point["meterhouse.status"] for e in found if e.own.get("meterhouse.task.id") == task.task_id][-1] == "ok"


@pytest.mark.cell("langgraph", "iteration limit")
def test_a_graph_that_reaches_its_recursion_limit_fails_the_task_even_where_the_host_catches_it(metering):
    limit = {"recursion_limit": 5}
    with meterhouse.task("caught"), pytest.raises(GraphRecursionError):
        loop_for_ever().invoke({"n": 0}, limit)
    with meterhouse.task("caught, async"), pytest.raises(GraphRecursionError):
        asyncio.run(loop_for_ever().ainvoke({"n": 0}, limit))
    with pytest.raises(GraphRecursionError), meterhouse.task("raised"):
        loop_for_ever().invoke({"n": 0}, limit)
    with meterhouse.task("enough"):
        loop_for_ever().invoke({"n": -3}, limit)
    assert {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in metering.flush()} == {
        "caught": "failed",
        "caught, async": "failed",
        "raised": "failed",
        "enough": "ok",
    }


def loop_for_ever():
    class State(TypedDict):
        n: int

    builder = StateGraph(State)
    builder.add_node("again", lambda state: {"n": state["n"] + 1})
    builder.add_edge(START, "again")
    builder.add_conditional_edges("again", lambda state: END if state["n"] < 0 else "again")
    return builder.compile()


@pytest.mark.cell("langgraph", "iteration limit")
@pytest.mark.parametrize("inside_a_tool", [False, True])
def test_an_agent_that_says_it_needs_more_steps_fails_the_task_unless_it_is_another_s_tool(metering, inside_a_tool):
    agent = react_agent_of(Model(answers=[asks("add", a=1, b=2)]), [add])

    @tool
    def ask_it() -> str:
        """Asks it."""
        return agent.invoke(ASK, {"recursion_limit": 4})["messages"][-1].content

    with meterhouse.task():
        if inside_a_tool:
            answer = ask_it.invoke({})
        else:
            answer = agent.invoke(ASK, {"recursion_limit": 4})["messages"][-1].content
    assert answer == "Sorry, need more steps to process this request."
    tasks = [e.point["meterhouse.status"] for e in metering.flush() if e.meter == "agent.tasks"]
    assert tasks == ["ok" if inside_a_tool else "failed"]


@pytest.mark.cell("langgraph", "iteration limit")
def test_an_agent_that_its_call_limit_ends_fails_the_task(metering):
    middleware = pytest.importorskip("langchain.agents.middleware")
    agents = pytest.importorskip("langchain.agents")
    for limit in (
        middleware.ModelCallLimitMiddleware(run_limit=2, exit_behavior="end"),
        middleware.ToolCallLimitMiddleware(run_limit=1, exit_behavior="end"),
    ):
        agent = agents.create_agent(Model(answers=[asks("add", a=1, b=2)]), [add], middleware=[limit])
        with meterhouse.task(f"{type(limit).__name__} reached"):
            assert "limit" in agent.invoke(ASK)["messages"][-1].content
        with meterhouse.task(f"{type(limit).__name__} not reached"):
            agents.create_agent(Model(answers=[[]]), [add], middleware=[limit]).invoke(ASK)
    found = [e for e in metering.flush() if e.meter == "agent.tasks"]
    assert {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in found} == {
        "ModelCallLimitMiddleware reached": "failed",
        "ModelCallLimitMiddleware not reached": "ok",
        "ToolCallLimitMiddleware reached": "failed",
        "ToolCallLimitMiddleware not reached": "ok",
    }


@pytest.mark.parametrize("mode", ["values", "updates", "messages"])
def test_nothing_leaks_to_the_consumer_of_a_stream_sync_and_async(metering, mode):
    def agent():
        return agent_of([asks("add_async" if mode == "values" else "add", a=1, b=2), []], [add, add_async], name="calc")

    def consume(pieces):
        meterhouse.meter("pages").add(1)
        add.invoke({"a": 1, "b": 2})
        return pieces + 1

    async def work():
        pieces = 0
        async for _ in agent().astream(ASK, THREAD, stream_mode=mode):
            pieces = consume(pieces)
        return pieces

    pieces = asyncio.run(work())
    if mode != "values":  # its tool is asynchronous
        for _ in agent().stream(ASK, THREAD, stream_mode=mode):
            pieces = consume(pieces)
    found = metering.flush()
    assert pieces >= 3
    assert told(found, "pages") == [("pages", None, None, None)] * pieces
    own = [one for one in told(found, "tool.calls") if one[1] is None]
    assert own == [("tool.calls", None, None, None)] * pieces


def test_events_of_an_agent_are_streamed_without_leaking_and_a_stream_left_early_leaves_nothing(metering):
    agent = agent_of([asks("add", a=1, b=2), []], [add], name="calc", checkpointer=MemorySaver())

    async def work():
        kinds = set()
        async for event in agent.astream_events(ASK, THREAD, version="v2"):
            meterhouse.meter("pages").add(1)
            kinds.add(event["event"])
        return kinds

    assert {"on_tool_end", "on_chat_model_end"} <= asyncio.run(work())
    left = agent.stream(ASK, THREAD)
    next(left)
    left.close()
    meterhouse.meter("pages").add(1)
    found = metering.flush()
    assert {one[1:] for one in told(found, "pages")} == {(None, None, None)}
    assert {one[1:3] for one in told(found, "llm.requests", "tool.calls")} == {("calc", "t-1")}


def test_two_threads_at_once_keep_their_own_conversations(metering):
    agent = agent_of([[]], [add], name="calc", checkpointer=MemorySaver())

    async def work():
        await asyncio.gather(
            *(agent.ainvoke(ASK, {"configurable": {"thread_id": f"t-{n}"}}) for n in range(5)),
        )

    asyncio.run(work())
    found = metering.flush()
    assert sorted(one[2] for one in told(found, "llm.requests")) == ["t-0", "t-1", "t-2", "t-3", "t-4"]
    assert metering.units()["agent.conversations"] == 5


@pytest.mark.cell("langgraph", "over MCP once")
@pytest.mark.cell("langchain", "over MCP once")
def test_a_tool_of_an_mcp_server_counts_once(metering):
    """In mcp 2, which LangChain's adapters do not know yet: a tool of the host's own that calls the server."""
    client = pytest.importorskip("mcp.client")
    server = pytest.importorskip("mcp.server.mcpserver").MCPServer("files")

    @server.tool()
    def read(path: str) -> str:
        return f"contents of {path}"

    async def work():
        async with client.Client(server) as session:

            @tool("read")
            async def reading(path: str) -> str:
                """Reads."""
                return (await session.call_tool("read", {"path": path})).content[0].text

            @tool
            async def broken() -> str:
                """Fails."""
                return (await session.call_tool("broken", {})).content[0].text

            agent = agent_of([asks("read", path="x") + asks("broken"), []], [reading, broken])
            return await agent.ainvoke(ASK)

    answer = asyncio.run(work())
    assert next(message.content for message in answer["messages"] if message.type == "tool") == "contents of x"
    assert executions(metering.flush()) == [("broken", "failed"), ("read", "ok")]


@pytest.mark.cell("langgraph", "over MCP once")
@pytest.mark.cell("langchain", "over MCP once")
def test_the_tools_of_langchain_s_mcp_adapters_count_once(metering, library):
    try:
        from mcp.server import fastmcp
    except ImportError:
        pytest.skip("LangChain's adapters do not know mcp 2")
    adapters = library("langchain_mcp_adapters.tools")
    from mcp.shared.memory import create_connected_server_and_client_session as connected

    server = fastmcp.FastMCP("files")

    @server.tool()
    def read(path: str) -> str:
        return f"contents of {path}"

    @server.tool()
    def broken() -> str:
        raise RuntimeError("no")

    async def work():
        async with connected(server._mcp_server) as session:
            agent = agent_of([asks("read", path="x") + asks("broken"), []], await adapters.load_mcp_tools(session))
            return await agent.ainvoke(ASK)

    answer = asyncio.run(work())
    assert len(answer["messages"]) == 5
    assert executions(metering.flush()) == [("broken", "failed"), ("read", "ok")]
