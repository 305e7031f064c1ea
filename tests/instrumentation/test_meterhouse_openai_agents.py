"""OpenAI Agents SDK: tools, agents, conversations and turns of its runs, and models that it alone sees."""

import asyncio
import json
import socket
from typing import Any

import pytest

import meterhouse

pytest.importorskip("agents", reason="openai-agents is not installed")

import agents
from agents import (
    Agent,
    FunctionTool,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
)
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.usage import Usage
from openai import AsyncOpenAI
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseUsage,
)

QUIET = RunConfig(tracing_disabled=True)
# 100 in, of them 60 cached; 40 out, of them 25 reasoning.
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


def says(text="3"):
    content = [ResponseOutputText(type="output_text", text=text, annotations=[])]
    return [ResponseOutputMessage(id="msg_1", type="message", role="assistant", status="completed", content=content)]


def asks(*names, **arguments):
    return [
        ResponseFunctionToolCall(
            type="function_call", call_id=f"call_Lk3{index}Wm{name}", name=name, arguments=json.dumps(arguments)
        )
        for index, name in enumerate(names)
    ]


class HouseModel(Model):
    """A model of the host's own, whose calls no SDK sees; the last answer is repeated."""

    def __init__(self, *answers: Any, usage: dict | None = USAGE) -> None:
        self.answers = list(answers)
        self.model = "house/house-1"
        self.usage = usage

    def answer(self):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        output = self.answer()
        usage = {key: value for key, value in (self.usage or {}).items() if not key.endswith("details")}
        told = Usage(requests=1, **usage)
        if self.usage:
            details = ResponseUsage(**self.usage)
            told.input_tokens_details, told.output_tokens_details = (
                details.input_tokens_details,
                details.output_tokens_details,
            )
        return ModelResponse(output=output, usage=told, response_id="resp_house")

    async def stream_response(self, *args: Any, **kwargs: Any):
        response = Response(
            id="resp_house",
            created_at=1,
            model="house-1-2026",
            object="response",
            output=self.answer(),
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
            usage=ResponseUsage(**self.usage) if self.usage else None,
        )
        yield ResponseCompletedEvent(type="response.completed", sequence_number=1, response=response)


@function_tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@function_tool
async def add_async(a: int, b: int) -> int:
    """Adds."""
    await asyncio.sleep(0)
    return a + b


def run(agent, question="1 + 2?", **more):
    return asyncio.run(Runner.run(agent, question, **{"run_config": QUIET, **more}))


def run_streamed(agent, question="1 + 2?", **more):
    async def work():
        result = Runner.run_streamed(agent, question, **{"run_config": QUIET, **more})
        async for _ in result.stream_events():
            meterhouse.meter("pages").add(1)
        return result

    return asyncio.run(work())


RUNS = pytest.mark.parametrize("runs", [run, run_streamed])


def told(events, *meters):
    """(meter, agent, conversation, step) of each event."""
    keys = ("gen_ai.agent.name", "gen_ai.conversation.id", "meterhouse.step")
    return sorted((e.meter, *(e.everything.get(key) for key in keys)) for e in events if e.meter in meters)


def executions(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


@RUNS
@pytest.mark.cell("openai-agents", "tool, sync")
@pytest.mark.cell("openai-agents", "tool, async")
@pytest.mark.cell("openai-agents", "agent name")
@pytest.mark.cell("openai-agents", "conversation")
@pytest.mark.cell("openai-agents", "step")
def test_a_run_s_work_carries_the_agent_the_conversation_and_the_turn(metering, runs):
    model = HouseModel(asks("add", "add_async", "add", a=1, b=2), says())
    agent = Agent(name="calculator", model=model, tools=[add, add_async])
    with meterhouse.customer("acme"):
        assert runs(agent, session=SQLiteSession("c-1")).final_output == "3"
    found = metering.flush()
    assert told(found, "llm.requests", "tool.calls") == [
        ("llm.requests", "calculator", "c-1", "1"),
        ("llm.requests", "calculator", "c-1", "2"),
        *[("tool.calls", "calculator", "c-1", "1")] * 3,
    ]
    assert executions(found) == [("add", "ok"), ("add", "ok"), ("add_async", "ok")]
    assert {e.point["customer.id"] for e in found if e.meter != "pages"} == {"acme"}
    assert {one[1:] for one in told(found, "pages")} <= {(None, None, None)}  # nothing leaks to a stream's consumer


@RUNS
@pytest.mark.cell("openai-agents", "only witness")
def test_a_model_that_nobody_else_sees_is_counted_from_what_it_tells(metering, runs):
    runs(Agent(name="a", model=HouseModel(says())))
    found = [e for e in metering.flush() if e.meter != "pages"]
    units = {meter: quantity for meter, quantity in metering.units().items() if meter != "pages"}
    assert units == BUCKETS
    assert {(e.own["usage.source"], e.point["gen_ai.provider.name"], e.own["gen_ai.response.id"]) for e in found} == {
        ("framework", "house", "resp_house")
    }


@RUNS
@pytest.mark.cell("openai-agents", "only witness")
def test_without_usage_the_call_is_listed_and_a_broken_one_has_failed(metering, runs):
    runs(Agent(name="a", model=HouseModel(says(), usage=None)))
    with pytest.raises(ConnectionError, match="gone"):
        runs(Agent(name="a", model=HouseModel(ConnectionError("gone"))))
    found = [e for e in metering.flush() if e.meter != "pages"]
    assert [(e.meter, e.own["usage.source"], e.point["meterhouse.status"]) for e in found] == [
        ("llm.requests", "none", "ok"),
        ("llm.requests", "none", "failed"),
    ]


def response_body(output):
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5-mini-2025-08-07",
        "output": [item.to_dict() for item in output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USAGE,
    }


def sse(output):
    completed = {"type": "response.completed", "sequence_number": 1, "response": response_body(output)}
    return [b"event: response.completed\ndata: " + json.dumps(completed).encode() + b"\n\n"]


def over_sdk(kind, provider):
    """A model over the openai SDK; each run has an event loop of its own, so no connection may outlive one."""
    once = {"connection": "close"}
    client = AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0, default_headers=once)
    return kind(model="gpt-5-mini", openai_client=client)


@RUNS
@pytest.mark.cell("openai-agents", "tokens once")
def test_models_over_the_openai_sdk_are_counted_by_it_alone_and_results_are_not_counted_again(metering, provider, runs):
    for output in (asks("add", a=1, b=2), says()):
        provider.json(response_body(output)) if runs is run else provider.stream(sse(output))

    model = over_sdk(OpenAIResponsesModel, provider)
    assert runs(Agent(name="calculator", model=model, tools=[add])).final_output == "3"
    found = [e for e in metering.flush() if e.meter != "pages"]
    assert executions(found) == [("add", "ok")]
    assert told(found, "llm.requests") == [
        ("llm.requests", "calculator", None, "1"),
        ("llm.requests", "calculator", None, "2"),
    ]
    units = metering.units()
    assert {meter: units[meter] for meter in BUCKETS} == {meter: 2 * quantity for meter, quantity in BUCKETS.items()}
    assert {e.own["usage.source"] for e in found} == {"reported"}


@pytest.mark.cell("openai-agents", "tokens once")
def test_the_chat_completions_model_is_counted_by_the_openai_sdk_alone(metering, provider):
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
    run(Agent(name="a", model=over_sdk(OpenAIChatCompletionsModel, provider)))
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 10, "llm.tokens.output": 4}


@RUNS
@pytest.mark.cell("openai-agents", "tool failed")
def test_a_tool_whose_error_becomes_text_has_failed_and_one_that_raises_too(metering, runs):
    @function_tool
    def broken() -> str:
        """Fails."""
        raise ConnectionError("gone")

    @function_tool(failure_error_function=None)
    def raising() -> str:
        """Fails."""
        raise ConnectionError("gone")

    runs(Agent(name="a", model=HouseModel(asks("broken"), says()), tools=[broken]))
    with pytest.raises(Exception, match="gone"):
        runs(Agent(name="a", model=HouseModel(asks("raising"), says()), tools=[raising]))
    assert executions(metering.flush()) == [("broken", "failed"), ("raising", "failed")]


def test_a_tool_that_takes_too_long_has_failed(metering):
    @function_tool
    async def slow() -> str:
        """Slow."""
        await asyncio.sleep(5)
        return ""

    if not hasattr(slow, "timeout_seconds"):
        pytest.skip("this version has no time limits for tools")
    slow.timeout_seconds = 0.05
    run(Agent(name="a", model=HouseModel(asks("slow"), says()), tools=[slow]))
    assert executions(metering.flush()) == [("slow", "failed")]


def test_a_hand_off_changes_the_agent_and_what_the_host_says_wins(metering):
    second = Agent(name="second", model=HouseModel(asks("add", a=1, b=2), says()), tools=[add])
    first = Agent(name="first", model=HouseModel(asks("transfer_to_second")), handoffs=[second])
    run(first, run_config=RunConfig(tracing_disabled=True, group_id="g-1"))
    with meterhouse.agent("mine"), meterhouse.conversation("c"), meterhouse.step("s"):
        run(Agent(name="third", model=HouseModel(says())))
    assert told(metering.flush(), "llm.requests", "tool.calls") == [
        ("llm.requests", "first", "g-1", "1"),
        ("llm.requests", "mine", "c", "s"),
        ("llm.requests", "second", "g-1", "2"),
        ("llm.requests", "second", "g-1", "3"),
        ("tool.calls", "second", "g-1", "2"),
    ]


@RUNS
def test_an_agent_used_as_a_tool_is_an_execution_and_its_tools_are_others(metering, runs):
    inner = Agent(name="inner", model=HouseModel(asks("add", a=1, b=2), says()), tools=[add])

    @function_tool
    async def add_up(a: int, b: int) -> str:
        """Adds by another tool."""
        return str(await _call(add, a=a, b=b))

    tools = [inner.as_tool("ask_inner", "Asks."), add_up]
    model = HouseModel([*asks("ask_inner", input="?"), *asks("add_up", a=1, b=2)], says())
    runs(Agent(name="outer", model=model, tools=tools), session=SQLiteSession("c-1"))
    found = metering.flush()
    assert executions(found) == [("add", "ok"), ("add_up", "ok"), ("ask_inner", "ok")]
    assert ("llm.requests", "inner", "c-1", "1") in told(found, "llm.requests")


async def _call(tool: FunctionTool, **arguments: Any) -> Any:
    from agents.tool_context import ToolContext

    text = json.dumps(arguments)
    context = ToolContext(context=None, tool_name=tool.name, tool_call_id="call_inner99", tool_arguments=text)
    return await tool.on_invoke_tool(context, text)


@RUNS
@pytest.mark.cell("openai-agents", "iteration limit")
def test_too_many_turns_fail_the_task_even_where_the_host_catches_it(metering, runs):
    agent = Agent(name="a", model=HouseModel(asks("add", a=1, b=2)), tools=[add])
    with meterhouse.task("caught"), pytest.raises(MaxTurnsExceeded):
        runs(agent, max_turns=2)
    with pytest.raises(MaxTurnsExceeded), meterhouse.task("raised"):
        runs(agent, max_turns=2)
    with meterhouse.task("enough"):
        runs(Agent(name="a", model=HouseModel(asks("add", a=1, b=2), says()), tools=[add]), max_turns=2)
    found = [e for e in metering.flush() if e.meter == "agent.tasks"]
    assert {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in found} == {
        "caught": "failed",
        "raised": "failed",
        "enough": "ok",
    }


@pytest.mark.cell("openai-agents", "iteration limit")
def test_an_agent_used_as_a_tool_that_takes_too_many_turns_is_a_failed_execution_only(metering):
    inner = Agent(name="inner", model=HouseModel(asks("add", a=1, b=2)), tools=[add])
    tool = inner.as_tool("ask_inner", "Asks.", max_turns=1)
    with meterhouse.task():
        run(Agent(name="outer", model=HouseModel(asks("ask_inner", input="?"), says()), tools=[tool]))
    found = metering.flush()
    assert ("ask_inner", "failed") in executions(found)
    assert [e.point["meterhouse.status"] for e in found if e.meter == "agent.tasks"] == ["ok"]


@pytest.mark.cell("openai-agents", "over MCP once")
def test_the_tools_of_its_mcp_servers_count_once(metering, tmp_path):
    import sys

    server = tmp_path / "server.py"
    server.write_text(
        "try:\n    from mcp.server.mcpserver import MCPServer\n"
        "except ImportError:\n    from mcp.server.fastmcp import FastMCP as MCPServer\n"
        "server = MCPServer('files')\n"
        "@server.tool()\ndef read(path: str) -> str:\n    return 'contents of ' + path\n"
        "@server.tool()\ndef broken() -> str:\n    raise RuntimeError('no')\n"
        "server.run('stdio')\n"
    )
    from agents.mcp import MCPServerStdio

    async def work():
        async with MCPServerStdio(
            {"command": sys.executable, "args": [str(server)]}, client_session_timeout_seconds=30
        ) as files:
            model = HouseModel(asks("read", path="x") + asks("broken"), says())
            return await Runner.run(Agent(name="a", model=model, mcp_servers=[files]), "?", run_config=QUIET)

    assert asyncio.run(work()).final_output == "3"
    assert executions(metering.flush()) == [("broken", "failed"), ("read", "ok")]


def test_native_tools_count_when_they_are_executed_and_not_when_they_are_refused(metering):
    if not hasattr(agents, "ShellTool"):
        pytest.skip("this version has no shell tool")
    from openai.types.responses import ResponseFunctionShellToolCall

    def shell_call(number):
        return ResponseFunctionShellToolCall.model_validate(
            {
                "type": "shell_call",
                "id": f"sh_{number}",
                "call_id": f"call_Shell{number}9xQ",
                "status": "completed",
                "action": {"commands": ["echo"], "timeout_ms": None, "max_output_length": None},
                "environment": None,
            }
        )

    ran = []
    shell = agents.ShellTool(executor=lambda request: ran.append(1) or "done")
    run(Agent(name="a", model=HouseModel([shell_call(1)], says()), tools=[shell]))
    careful = agents.ShellTool(executor=lambda request: ran.append(1) or "done", needs_approval=True)
    agent = Agent(name="a", model=HouseModel([shell_call(2)], says()), tools=[careful])

    async def refuse():
        result = await Runner.run(agent, "?", run_config=QUIET)
        state = result.to_state()
        state.reject(result.interruptions[0])
        return await Runner.run(agent, state, run_config=QUIET)

    asyncio.run(refuse())

    def on_approval(*_):
        return {"approve": False, "reason": "no"}

    never = agents.ShellTool(executor=lambda request: ran.append(1), needs_approval=True, on_approval=on_approval)
    run(Agent(name="a", model=HouseModel([shell_call(3)], says()), tools=[never]))
    assert ran == [1]
    assert executions(metering.flush()) == [("shell", "ok")]


def test_a_tool_that_waits_for_approval_counts_when_it_has_run(metering):
    @function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        """Pays."""
        return "paid"

    agent = Agent(name="a", model=HouseModel(asks("pay", "pay", amount=1), says()), tools=[pay])

    async def decide():
        result = await Runner.run(agent, "?", run_config=QUIET)
        assert executions(metering.flush()) == []
        state = result.to_state()
        state.approve(result.interruptions[0])
        state.reject(result.interruptions[1])
        return await Runner.run(agent, state, run_config=QUIET)

    assert asyncio.run(decide()).final_output == "3"
    assert executions(metering.flush()) == [("pay", "ok")]


def test_a_stream_of_a_model_left_early_is_aborted(metering):
    async def work():
        stream = HouseModel(says()).stream_response()
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(work())
    found = metering.flush()
    assert {e.point["meterhouse.status"] for e in found} == {"aborted"} and metering.units() == BUCKETS


def test_nothing_is_sent_anywhere_by_being_metered(metering, monkeypatch):
    from agents.tracing import get_trace_provider

    before = len(get_trace_provider()._multi_processor._processors)
    connected = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: connected.append(to) or connect(self, to))
    run(Agent(name="a", model=HouseModel(asks("add", a=1, b=2), says()), tools=[add], model_settings=ModelSettings()))
    metering.flush()
    assert len(get_trace_provider()._multi_processor._processors) == before
    assert {address[0] for address in connected if isinstance(address, tuple)} <= {"127.0.0.1"}


def test_what_was_patched_is_as_before_when_metering_is_switched_off(metering):
    from agents.run_internal import run_loop, tool_actions, tool_execution

    from meterhouse.otel import MeterhouseInstrumentor

    MeterhouseInstrumentor().uninstrument()
    owners = [agents.run, agents.run.AgentRunner, agents.tool, run_loop, tool_execution, MaxTurnsExceeded, HouseModel]
    owners += [OpenAIResponsesModel, tool_actions.ShellAction]
    patched = [
        (owner, name) for owner in owners for name, one in vars(owner).items() if "Wrapper" in type(one).__name__
    ]
    assert patched == []
    MeterhouseInstrumentor().instrument(skip_dep_check=True)


def test_a_module_of_the_host_s_own_of_that_name_is_left_alone(metering):
    from types import ModuleType

    from meterhouse.frameworks import openai_agents

    own = ModuleType("agents.run")
    openai_agents.install(own)
    openai_agents.remove(own)
    assert [name for name in vars(own) if not name.startswith("__")] == []
