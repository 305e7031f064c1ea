"""LlamaIndex agents: on an LLM that nobody but the framework sees, and on its OpenAI integration."""

import asyncio
import gc
import sys
import warnings

import pytest
import wrapt
from openai_chat import TOKENS_OF_ONE, answer, chunks, wish

import meterhouse
from meterhouse import attribution

# LlamaIndex looks at every attribute of its own pydantic models, deprecated ones too.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__:DeprecationWarning",
    "ignore:Accessing the .model_:DeprecationWarning",
    "ignore:is_running called:DeprecationWarning",
)

PLACE = "llama_index.llms.openai is in the test environment llama-index: make environments ONLY=llama-index"
USAGE = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 25}}


@pytest.fixture
def core(library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, when they are imported first
        library("llama_index.core.agent.workflow")
    yield library("llama_index.core")
    gc.collect()


@pytest.fixture
def scripted(core):
    """Makes an LLM that answers with these (text, tool calls, usage) in turn."""
    from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.tools import ToolSelection
    from pydantic import PrivateAttr

    class Scripted(FunctionCallingLLM):
        _left: list = PrivateAttr()

        def __init__(self, *turns):
            super().__init__()
            self._left = list(turns)

        @classmethod
        def class_name(cls):
            return "scripted"

        @property
        def metadata(self):
            return LLMMetadata(model_name="mine-1", is_function_calling_model=True, context_window=100_000)

        def _next(self):
            turn = self._left.pop(0)
            if isinstance(turn, Exception):
                raise turn
            text, calls, usage = turn
            message = ChatMessage(role="assistant", content=text, additional_kwargs={"calls": calls})
            return ChatResponse(message=message, delta=text, raw={"model": "mine-1-2026", "id": "r-1", "usage": usage})

        def chat(self, messages, **kwargs):
            return self._next()

        async def achat(self, messages, **kwargs):
            return self.chat(messages, **kwargs)

        def stream_chat(self, messages, **kwargs):
            def pieces():
                whole = self._next()
                for text in whole.message.content.split():
                    yield ChatResponse(message=whole.message, delta=text, raw={"id": "r-1"})
                yield whole

            return pieces()

        async def astream_chat(self, messages, **kwargs):
            async def pieces():
                for piece in self.stream_chat(messages):
                    yield piece

            return pieces()

        def complete(self, prompt, formatted=False, **kwargs):
            return CompletionResponse(text=self._next().message.content, additional_kwargs=USAGE)

        async def acomplete(self, prompt, formatted=False, **kwargs):
            return self.complete(prompt)

        def stream_complete(self, prompt, formatted=False, **kwargs):
            raise NotImplementedError

        async def astream_complete(self, prompt, formatted=False, **kwargs):
            raise NotImplementedError

        def _prepare_chat_with_tools(self, tools, user_msg=None, chat_history=None, **kwargs):
            return {"messages": list(chat_history or [])}

        def get_tool_calls_from_response(self, response, **kwargs):
            calls = response.message.additional_kwargs.get("calls", [])
            return [ToolSelection(tool_id=i, tool_name=n, tool_kwargs=a) for i, n, a in calls]

    return Scripted


def says(text="done", *calls, usage=None):
    return text, calls, usage or {}


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


async def wait(seconds: int) -> str:
    """Waits."""
    return f"waited {seconds}"


def broken() -> str:
    """Breaks."""
    raise ZeroDivisionError("secret")


def tools(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


def told(events, meter):
    return [event for event in events if event.meter == meter]


def agent_of(core, llm, *made, **more):
    from llama_index.core.agent.workflow import FunctionAgent

    return FunctionAgent(name=more.pop("name", "planner"), description="plans", llm=llm, tools=list(made), **more)


@pytest.mark.cell("llama-index", "tool, sync")
@pytest.mark.cell("llama-index", "tool, async")
@pytest.mark.cell("llama-index", "tool failed")
@pytest.mark.cell("llama-index", "agent name")
@pytest.mark.cell("llama-index", "conversation")
@pytest.mark.cell("llama-index", "step")
# LlamaIndex's memory leaves its database connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("streaming", [True, False])
def test_tools_count_once_under_the_agents_name_conversation_and_step(metering, core, scripted, streaming):
    from llama_index.core.memory import Memory

    wishes = [("c-1", "add", {"a": 1, "b": 2}), ("c-2", "wait", {"seconds": 3}), ("c-3", "broken", {})]
    llm = scripted(says("", *wishes), says("", ("c-4", "no_such_tool", {})), says("all done"))
    agent = agent_of(core, llm, add, wait, broken, streaming=streaming)

    async def work():
        with meterhouse.customer("acme"):
            return await agent.run("go", memory=Memory.from_defaults(session_id="c-17"))

    assert str(asyncio.run(work())) == "all done"
    events = metering.flush()
    assert tools(events) == [("add", "ok"), ("broken", "failed"), ("wait", "ok")]
    assert sum(e.value for e in told(events, "llm.requests")) == 3
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"c-17"}
    assert {e.point["customer.id"] for e in events} == {"acme"}
    steps = sorted((e.meter, e.own["meterhouse.step"]) for e in events if "meterhouse.step" in e.own)
    steps = [step for step in steps if step[0] != "agent.conversations"]
    assert steps == [("llm.requests", step) for step in "123"] + [("tool.calls", "1")] * 3


def test_the_consumer_of_an_agents_events_is_nobodys_agent(metering, core, scripted):
    async def work():
        handler = agent_of(core, scripted(says("one two")), add).run("go")
        async for _ in handler.stream_events():
            assert attribution.current().agent_name is None
        return await handler

    assert str(asyncio.run(work())) == "one two"
    (request,) = told(metering.flush(), "llm.requests")
    assert request.point["gen_ai.agent.name"] == "planner"


def test_a_hand_over_to_another_agent_is_no_tool_and_each_agent_has_its_own_name(metering, core, scripted):
    from llama_index.core.agent.workflow import AgentWorkflow

    over = says("", ("c-1", "handoff", {"to_agent": "adder", "reason": "sums"}))
    first = agent_of(core, scripted(over), name="boss", can_handoff_to=["adder"])
    second = agent_of(core, scripted(says("", ("c-2", "add", {"a": 1, "b": 2})), says("3")), add, name="adder")
    team = AgentWorkflow(agents=[first, second], root_agent="boss")

    async def work():
        return await team.run(user_msg="go")

    assert str(asyncio.run(work())) == "3"
    events = metering.flush()
    assert tools(events) == [("add", "ok")]
    found = [(e.meter, e.point["gen_ai.agent.name"]) for e in events if e.meter in ("llm.requests", "tool.calls")]
    assert sorted(found) == [
        ("llm.requests", "adder"),
        ("llm.requests", "adder"),
        ("llm.requests", "boss"),
        ("tool.calls", "adder"),
    ]


@pytest.mark.cell("llama-index", "only witness")
@pytest.mark.parametrize("streaming", [True, False])
def test_an_llm_that_no_choke_point_sees_counts_what_its_raw_answer_tells(metering, core, scripted, streaming):
    agent = agent_of(core, scripted(says("one two", usage={**USAGE, **DETAILS})), streaming=streaming)

    async def work():
        return await agent.run("go")

    asyncio.run(work())
    events = metering.flush()
    assert {e.meter: e.value for e in events if e.meter.startswith("llm.")} == TOKENS_OF_ONE
    assert {e.own["usage.source"] for e in events if e.meter.startswith("llm.")} == {"framework"}
    assert {e.point["gen_ai.response.model"] for e in events if e.meter.startswith("llm.")} == {"mine-1-2026"}


def test_usage_in_anthropics_names_is_read_as_anthropic_means_it(metering, core, scripted):
    usage = {"input_tokens": 100, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30, "output_tokens": 40}
    scripted(says("hi", usage=usage)).chat([])
    assert metering.units() == {
        "llm.requests": 1,
        "llm.tokens.input": 100,
        "llm.tokens.cache_read": 60,
        "llm.tokens.cache_write": 30,
        "llm.tokens.output": 40,
    }


def test_an_llm_that_tells_nothing_is_a_request_without_tokens(metering, core, scripted):
    scripted(says("hi")).chat([])
    (request,) = metering.flush()
    assert (request.meter, request.own["usage.source"]) == ("llm.requests", "none")


def test_a_completion_tells_its_usage_in_additional_kwargs(metering, core, scripted):
    assert asyncio.run(scripted(says("hi")).acomplete("go")).text == "hi"  # which calls `complete`
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 100, "llm.tokens.output": 40}


def test_failed_and_abandoned_calls_are_listed(metering, core, scripted):
    with pytest.raises(OSError, match="gone"):
        scripted(OSError("gone")).chat([])
    pieces = scripted(says("one two three", usage=USAGE)).stream_chat([])
    assert next(pieces).delta == "one"
    pieces.close()
    requests = told(metering.flush(), "llm.requests")
    assert [(e.point["meterhouse.status"], e.own["usage.source"]) for e in requests] == [
        ("failed", "none"),
        ("aborted", "none"),
    ]


@pytest.mark.cell("llama-index", "iteration limit")
@pytest.mark.parametrize("method", ["force", "generate"])
def test_an_agent_that_reaches_its_limit_fails_the_task(metering, core, scripted, method):
    llm = scripted(says("", ("c-1", "add", {"a": 1, "b": 2})), says("gave up"))
    agent = agent_of(core, llm, add, early_stopping_method=method)
    if not hasattr(agent, "early_stopping_method"):
        pytest.skip("this version always raises")

    async def work():
        with meterhouse.task("t-1"):
            return str(await agent.run("go", max_iterations=1))

    if method == "generate":
        assert asyncio.run(work()) == "gave up"
    else:
        with pytest.raises(Exception, match="Max iterations"):
            asyncio.run(work())
    (task,) = told(metering.flush(), "agent.tasks")
    assert task.point["meterhouse.status"] == "failed"


def test_a_tool_called_by_the_host_itself_counts_once(metering, core):
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(add)
    assert tool(1, 2).raw_output == 3
    assert asyncio.run(tool.acall(a=1, b=2)).raw_output == 3
    with pytest.raises(ZeroDivisionError):
        FunctionTool.from_defaults(broken).call()
    assert tools(metering.flush()) == [("add", "ok"), ("add", "ok"), ("broken", "failed")]


def test_a_tool_that_waits_for_a_person_counts_when_it_ran(metering, core, scripted):
    from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

    async def delete(ctx: Context, name: str) -> str:
        """Deletes."""
        said = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="sure?"))
        return f"{name}: {said.response}"

    agent = agent_of(core, scripted(says("", ("c-1", "delete", {"name": "x"})), says("done")), delete)

    async def work():
        handler = agent.run("go")
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                handler.ctx.send_event(HumanResponseEvent(response="yes"))
        return await handler

    assert str(asyncio.run(work())) == "done"
    assert tools(metering.flush()) == [("delete", "ok")]


def test_without_metering_the_classes_are_as_they_were(metering, core, scripted):
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.base.llms.base import BaseLLM
    from llama_index.core.tools import FunctionTool

    from meterhouse.otel import MeterhouseInstrumentor

    def ours():
        patched = [(FunctionTool, "call"), (scripted, "chat"), (FunctionAgent, "take_step")]
        found = [vars(owner)[name] for owner, name in patched]  # LlamaIndex wraps its methods as well
        return [isinstance(f, wrapt.FunctionWrapper) and "meterhouse" in f._self_wrapper.__module__ for f in found]

    assert ours() == [True, True, True]
    MeterhouseInstrumentor().uninstrument()
    assert ours() == [False, False, False]
    assert "__init_subclass__" not in vars(BaseLLM)


@pytest.fixture
def openai_llm(core, provider):
    try:
        from llama_index.llms.openai import OpenAI
    except ImportError:
        pytest.skip(PLACE)
    return OpenAI(
        model="gpt-5-mini",
        api_base=f"{provider.url}/v1",
        api_key="sk-test",
        default_headers={"Connection": "close"},
        reuse_client=False,
    )


@pytest.mark.cell("llama-index", "tokens once")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("streaming", [True, False])
def test_the_tokens_of_an_sdk_that_is_metered_count_once(metering, core, provider, openai_llm, streaming):
    for body in (wish(("call_Add0000000001", "add", {"a": 1, "b": 2}), number=1), answer("all done", number=2)):
        provider.stream(chunks(body)) if streaming else provider.json(body)
    agent = agent_of(core, openai_llm, add, streaming=streaming)

    async def work():
        return await agent.run("go")

    assert str(asyncio.run(work())) == "all done"
    events = metering.flush()
    found = {meter: value for meter, value in metering.units().items() if meter != "agent.conversations"}
    assert found == {**{meter: 2 * count for meter, count in TOKENS_OF_ONE.items()}, "tool.calls": 1}
    assert {e.own["usage.source"] for e in events} == {"reported"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"planner"}
    assert {e.own["meterhouse.step"] for e in told(events, "llm.requests")} == {"1", "2"}


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


@pytest.mark.cell("llama-index", "over MCP once")
def test_a_tool_of_an_mcp_server_counts_once(metering, core, scripted):
    try:
        from llama_index.tools.mcp import BasicMCPClient, McpToolSpec
    except ImportError:
        pytest.skip(PLACE)
    from mcp import ClientSession

    async def work():
        client = BasicMCPClient(sys.executable, args=["-c", MCP_SERVER])
        made = await McpToolSpec(client=client).to_tool_list_async()
        agent = agent_of(core, scripted(says("", ("c-1", "add", {"a": 1, "b": 2})), says("3")), *made)
        return await agent.run("go")

    assert hasattr(ClientSession.call_tool, "__wrapped__")  # this layer is metered as well
    assert str(asyncio.run(work())) == "3"
    assert tools(metering.flush()) == [("add", "ok")]


def test_the_example_runs_under_meterhouse_run(example, metering, core, provider, openai_llm):
    provider.stream(chunks(wish(("call_Stock0000001", "stock", {"article": "lamp"}), number=1)))
    provider.stream(chunks(answer("There are 12.", number=2)))
    server = {"OPENAI_API_BASE": f"{provider.url}/v1", "OPENAI_API_KEY": "sk-test"}
    assert example("llama_index_agent.py", "How many lamps?", **server) == "There are 12.\n"
    events = metering.sink.events
    assert tools(events) == [("stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.agent.name"] for e in events} == {"warehouse"}
    assert sum(e.value for e in told(events, "llm.requests")) == 2
