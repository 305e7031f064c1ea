"""Google ADK: its tools, agents and sessions, over models that are metered below and one that only ADK sees."""

import asyncio
import json
import sys
from contextlib import aclosing

import pytest

import meterhouse

pytestmark = [  # litellm leaves coroutines and sockets of ended event loops behind
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'LoggingWorker:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:google"),
    pytest.mark.filterwarnings("ignore:.*[eE]xperimental:UserWarning"),
]

GEMINI_USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 15,
    "thoughtsTokenCount": 25,
    "totalTokenCount": 140,
}
ONE = {"llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 15, "llm.tokens.reasoning": 25}


@pytest.fixture
def adk(library, metering, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("GOOGLE_API_KEY", "k")
    library("google.adk")
    import google.adk.runners

    return google.adk


def spoken(model, request=None):
    """A model class of the host's own, which plays `model`: lists of parts, or errors."""
    from google.adk.models import BaseLlm, LlmResponse
    from google.genai import types

    class Scripted(BaseLlm):
        usage: types.GenerateContentResponseUsageMetadata | None = None

        async def generate_content_async(self, llm_request, stream=False):
            step = model.pop(0)
            if isinstance(step, Exception):
                raise step
            yield LlmResponse(content=types.Content(role="model", parts=step), usage_metadata=self.usage)

    return Scripted(model="own-1")


def says(text):
    from google.genai import types

    return [types.Part(text=text)]


def wants(*calls):
    from google.genai import types

    return [types.Part(function_call=types.FunctionCall(id=id_, name=name, args=args)) for id_, name, args in calls]


def run(agent, *, config=None, session="s-1", text="a secret question"):
    """One turn of a session; the texts that the agent says."""
    from google.adk.runners import InMemoryRunner
    from google.genai import types

    async def turn():
        runner = InMemoryRunner(agent, app_name="app")
        await runner.session_service.create_session(app_name="app", user_id="u", session_id=session)
        message = types.Content(role="user", parts=[types.Part(text=text)])
        extra = {"run_config": config} if config else {}
        said = []
        events = runner.run_async(user_id="u", session_id=session, new_message=message, **extra)
        async with aclosing(events):
            async for event in events:
                said += [part.text for part in (event.content.parts if event.content else []) if part.text]
        return said

    return asyncio.run(turn())


def tool_calls(metering):
    metering.flush()
    events = [e for e in metering.sink.events if e.meter == "tool.calls"]
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events)


@pytest.mark.cell("google-adk", "tool, sync")
@pytest.mark.cell("google-adk", "tool, async")
@pytest.mark.cell("google-adk", "agent name")
@pytest.mark.cell("google-adk", "conversation")
@pytest.mark.cell("google-adk", "step")
@pytest.mark.cell("google-adk", "only witness")
def test_tools_in_parallel_are_counted_once_each_with_agent_session_and_invocation(adk, metering):
    from google.adk.agents import LlmAgent
    from google.genai import types

    def add(a: int, b: int) -> int:
        return a + b

    async def look_up(word: str) -> str:
        return "a secret result"

    model = spoken([wants(("c1", "add", {"a": 1, "b": 2}), ("c2", "look_up", {"word": "x"})), says("done")])
    model.usage = types.GenerateContentResponseUsageMetadata(
        prompt_token_count=100, cached_content_token_count=60, candidates_token_count=15, thoughts_token_count=25
    )
    with meterhouse.customer("acme"):
        assert run(LlmAgent(name="desk", model=model, tools=[add, look_up])) == ["done"]
    assert metering.units() == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 2,
        "agent.conversations": 1,
    }
    assert tool_calls(metering) == [("add", "ok"), ("look_up", "ok")]
    events = metering.sink.events
    assert {e.point["gen_ai.agent.name"] for e in events} == {"desk"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"s-1"}
    assert len({e.own["meterhouse.step"] for e in events if e.meter != "agent.conversations"}) == 1
    assert {e.everything["usage.source"] for e in events if e.meter.startswith("llm.")} == {"framework"}
    assert {e.own["gen_ai.request.model"] for e in events if e.meter == "llm.requests"} == {"own-1"}


def test_a_model_that_reports_nothing_is_a_request_without_tokens(adk, metering):
    from google.adk.agents import LlmAgent

    run(LlmAgent(name="desk", model=spoken([says("done")])))
    assert metering.units() == {"llm.requests": 1, "agent.conversations": 1}


@pytest.mark.cell("google-adk", "tool failed")
def test_a_tool_that_raises_has_failed_and_the_host_gets_its_error(adk, metering):
    from google.adk.agents import LlmAgent

    def broken() -> str:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        run(LlmAgent(name="desk", model=spoken([wants(("c1", "broken", {}))]), tools=[broken]))
    assert tool_calls(metering) == [("broken", "failed")]


def test_a_call_that_adk_answers_without_running_the_tool_is_none(adk, metering):
    from google.adk.agents import LlmAgent
    from google.adk.tools import FunctionTool

    def add(a: int) -> int:
        return a

    def pay(amount: int) -> str:
        return "paid"

    model = spoken([wants(("c1", "add", {})), wants(("c2", "pay", {"amount": 1})), says("done")])
    run(LlmAgent(name="desk", model=model, tools=[add, FunctionTool(pay, require_confirmation=True)]))
    assert tool_calls(metering) == []


def test_sub_agents_work_under_their_own_names_and_a_transfer_is_no_tool(adk, metering):
    from google.adk.agents import LlmAgent

    def add(a: int) -> int:
        return a

    clerk = LlmAgent(name="clerk", model=spoken([wants(("c2", "add", {"a": 1})), says("done")]), tools=[add])
    to_clerk = wants(("c1", "transfer_to_agent", {"agent_name": "clerk"}))
    run(LlmAgent(name="desk", model=spoken([to_clerk]), sub_agents=[clerk]))
    metering.flush()
    found = {(e.meter, e.point["gen_ai.agent.name"]) for e in metering.sink.events if e.meter != "agent.conversations"}
    assert found == {("llm.requests", "desk"), ("llm.requests", "clerk"), ("tool.calls", "clerk")}
    assert tool_calls(metering) == [("add", "ok")]


def test_an_agent_used_as_a_tool_decides_for_itself(adk, metering):
    from google.adk.agents import LlmAgent
    from google.adk.tools.agent_tool import AgentTool

    def add(a: int) -> int:
        return a

    helper = LlmAgent(name="helper", model=spoken([wants(("c2", "add", {"a": 1})), says("42")]), tools=[add])
    model = spoken([wants(("c1", "helper", {"request": "x"})), says("done")])
    run(LlmAgent(name="desk", model=model, tools=[AgentTool(helper)]))
    assert tool_calls(metering) == [("add", "ok"), ("helper", "ok")]


def test_a_long_running_tool_is_one_execution(adk, metering):
    from google.adk.agents import LlmAgent
    from google.adk.tools import LongRunningFunctionTool

    def book() -> dict:
        return {"status": "pending", "ticket": 7}

    model = spoken([wants(("c1", "book", {})), says("waiting")])
    run(LlmAgent(name="desk", model=model, tools=[LongRunningFunctionTool(book)]))
    assert tool_calls(metering) == [("book", "ok")]


@pytest.mark.cell("google-adk", "iteration limit")
def test_the_limit_of_model_calls_fails_the_task_even_where_the_host_catches_it(adk, metering):
    from google.adk.agents import LlmAgent, RunConfig
    from google.adk.agents.invocation_context import LlmCallsLimitExceededError

    def add(a: int) -> int:
        return a

    model = spoken([wants(("c1", "add", {"a": 1})), says("never")])
    with meterhouse.task(), pytest.raises(LlmCallsLimitExceededError):
        run(LlmAgent(name="desk", model=model, tools=[add]), config=RunConfig(max_llm_calls=1))
    metering.flush()
    [task] = [e for e in metering.sink.events if e.meter == "agent.tasks"]
    assert task.point["meterhouse.status"] == "failed"


def test_a_task_whose_agent_ends_within_its_limit_is_ok(adk, metering):
    from google.adk.agents import LlmAgent, RunConfig

    with meterhouse.task():
        run(LlmAgent(name="desk", model=spoken([says("done")])), config=RunConfig(max_llm_calls=1))
    metering.flush()
    [task] = [e for e in metering.sink.events if e.meter == "agent.tasks"]
    assert task.point["meterhouse.status"] == "ok"


def gemini(*parts):
    content = {"role": "model", "parts": list(parts)}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "modelVersion": "gemini-2.5-flash",
        "usageMetadata": GEMINI_USAGE,
    }


@pytest.mark.cell("google-adk", "tokens once")
@pytest.mark.parametrize("streamed", [False, True])
def test_what_googles_sdk_saw_is_counted_there_and_not_again(adk, provider, metering, monkeypatch, streamed):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", provider.url)
    from google.adk.agents import LlmAgent, RunConfig
    from google.adk.agents.run_config import StreamingMode

    def add(a: int) -> int:
        return a

    answers = [gemini({"functionCall": {"name": "add", "args": {"a": 1}}}), gemini({"text": "done"})]
    for answer in answers:
        if streamed:
            provider.stream([b"data: %s\r\n\r\n" % json.dumps(answer).encode()])
        else:
            provider.json(answer)
    config = RunConfig(streaming_mode=StreamingMode.SSE if streamed else StreamingMode.NONE)
    said = run(LlmAgent(name="desk", model="gemini-2.5-flash", tools=[add]), config=config)
    assert said[-1] == "done"
    assert metering.units() == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 1,
        "agent.conversations": 1,
    }
    calls = [e for e in metering.sink.events if e.meter == "llm.requests"]
    assert {(e.point["gen_ai.agent.name"], e.everything["usage.source"]) for e in calls} == {("desk", "reported")}


def test_what_litellm_saw_is_counted_there_and_not_again(adk, library, provider, metering):
    library("litellm")
    from google.adk.agents import LlmAgent
    from google.adk.models.lite_llm import LiteLlm

    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn"}
    usage = {"input_tokens": 7, "output_tokens": 5}
    provider.json({**message, "content": [{"type": "text", "text": "done"}], "usage": usage})
    model = LiteLlm(model="anthropic/claude-sonnet-4-5", api_base=provider.url, api_key="k")
    assert run(LlmAgent(name="desk", model=model)) == ["done"]
    expected = {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 5, "agent.conversations": 1}
    assert metering.units() == expected


@pytest.mark.cell("google-adk", "over MCP once")
def test_a_tool_over_mcp_is_counted_once(adk, library, metering, tmp_path):
    library("mcp")
    from google.adk.agents import LlmAgent
    from google.adk.tools.mcp_tool import McpToolset, StdioConnectionParams
    from mcp import StdioServerParameters

    server = tmp_path / "server.py"
    server.write_text(
        "from mcp.server import mcpserver\n"
        "server = mcpserver.MCPServer('tools')\n"
        "@server.tool()\n"
        "def add(a: int) -> int:\n"
        "    if a < 0:\n"
        "        raise ValueError('negative')\n"
        "    return a\n"
        "server.run()\n"
    )
    parameters = StdioServerParameters(command=sys.executable, args=[str(server)], env={"METERHOUSE_LIMITS": "off"})
    toolset = McpToolset(connection_params=StdioConnectionParams(server_params=parameters, timeout=20))
    model = spoken([wants(("c1", "add", {"a": 1})), wants(("c2", "add", {"a": -1})), says("done")])
    assert run(LlmAgent(name="desk", model=model, tools=[toolset])) == ["done"]
    assert tool_calls(metering) == [("add", "failed"), ("add", "ok")]


def test_a_stream_of_events_that_is_left_early_ends_the_model_call(adk, metering):
    from google.adk.models import BaseLlm, LlmResponse

    class Endless(BaseLlm):
        async def generate_content_async(self, llm_request, stream=False):
            while True:
                yield LlmResponse(partial=True)

    async def leave():
        async with aclosing(Endless(model="own-1").generate_content_async(None)) as answers:
            async for _ in answers:
                break

    asyncio.run(leave())
    metering.flush()
    assert [(e.meter, e.point["meterhouse.status"]) for e in metering.sink.events] == [("llm.requests", "aborted")]


def test_the_example_runs_unmodified_under_meterhouse_run(adk, example, provider, metering):
    provider.json(gemini({"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}))
    provider.json(gemini({"text": "It rains."}))
    printed = example("google_adk_agent.py", "How is the weather in Oslo?", GOOGLE_GEMINI_BASE_URL=provider.url)
    assert printed == "It rains.\n"
    events = metering.sink.events
    counted = {}
    for event in events:
        counted[event.meter] = counted.get(event.meter, 0) + event.value
    assert counted == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 1,
        "agent.conversations": 1,
    }
    assert {e.point["gen_ai.agent.name"] for e in events} == {"travel_desk"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"trip-1"}
