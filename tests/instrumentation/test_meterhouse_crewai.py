"""CrewAI: its tools, agents, tasks and runs, over a model that is metered below and one that only CrewAI sees."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

import meterhouse

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::ImportWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HERE = Path(__file__).parent
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_TRACKING": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OPENAI_API_KEY": "k",
}
ONE = {"llm.tokens.input": 40, "llm.tokens.cache_read": 60, "llm.tokens.output": 15, "llm.tokens.reasoning": 25}
TOLD = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 60},
    "reasoning_tokens": 25,
}
ENDS = "Thought: I now know\nFinal Answer: 3"


def _openai_chat():
    spec = importlib.util.spec_from_file_location("openai_chat", HERE / "openai_chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chat = _openai_chat()


@pytest.fixture
def crewai(library, metering, monkeypatch, tmp_path):
    for name, value in {**QUIET, "CREWAI_STORAGE_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return library("crewai")


def acts(name, arguments):
    return f"Thought: I should act\nAction: {name}\nAction Input: {arguments}"


def spoken(crewai, *script, told=None):
    """A model class of the host's own, which plays the script: texts, or errors."""
    left = list(script)

    class Own(crewai.BaseLLM):
        def call(self, messages, tools=None, callbacks=None, available_functions=None, **_):
            if told:
                self._track_token_usage_internal(told)
            step = left.pop(0)
            if isinstance(step, Exception):
                raise step
            return step

        async def acall(self, messages, *args, **kwargs):
            return self.call(messages)

    return Own(model="own-1")


def crew(crewai, llm, *tools, name="count", **more):
    agent = crewai.Agent(role="clerk", goal="g", backstory="b", llm=llm, tools=list(tools), **more)
    task = crewai.Task(name=name, description="a secret question", expected_output="e", agent=agent)
    return crewai.Crew(agents=[agent], tasks=[task], cache=True)


def adder(crewai, runs):
    from crewai.tools import tool

    @tool("add")
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        runs.append((a, b))
        return a + b

    return add


def tool_calls(metering):
    metering.flush()
    events = [e for e in metering.sink.events if e.meter == "tool.calls"]
    return sorted((e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events)


def seen(metering, attribute):
    return {e.everything.get(attribute) for e in metering.sink.events if e.meter != "agent.conversations"}


@pytest.mark.cell("crewai", "tokens once")
@pytest.mark.cell("crewai", "agent name")
@pytest.mark.cell("crewai", "conversation")
@pytest.mark.cell("crewai", "step")
def test_what_openais_sdk_saw_is_counted_there_and_the_tool_of_the_native_path_once(crewai, provider, metering):
    runs = []
    provider.json(chat.wish(("call_abcdef12345", "add", {"a": 1, "b": 2}), number=1))
    provider.json(chat.answer("done", number=2))
    llm = crewai.LLM(model="gpt-5-mini", base_url=provider.url, api_key="k")
    with meterhouse.customer("acme"):
        assert crew(crewai, llm, adder(crewai, runs)).kickoff().raw == "done"
    assert runs == [(1, 2)]
    assert metering.units() == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 1,
        "agent.conversations": 1,
    }
    assert seen(metering, "gen_ai.agent.name") == {"clerk"} and seen(metering, "meterhouse.step") == {"count"}
    assert seen(metering, "usage.source") == {"reported"} and seen(metering, "customer.id") == {"acme"}
    [conversation] = seen(metering, "gen_ai.conversation.id")
    assert len(conversation) == 32


@pytest.mark.cell("crewai", "tool, sync")
@pytest.mark.cell("crewai", "only witness")
def test_a_model_that_only_crewai_sees_is_counted_from_what_it_told_crewai(crewai, metering):
    runs = []
    llm = spoken(crewai, acts("add", '{"a": 1, "b": 2}'), ENDS, told=TOLD)
    assert crew(crewai, llm, adder(crewai, runs)).kickoff().raw == "3"
    assert runs == [(1, 2)]
    assert metering.units() == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 1,
        "agent.conversations": 1,
    }
    requests = [e for e in metering.sink.events if e.meter == "llm.requests"]
    assert {e.everything["usage.source"] for e in requests} == {"framework"}
    assert {(e.point["gen_ai.provider.name"], e.own["gen_ai.request.model"]) for e in requests} == {
        ("unknown", "own-1")
    }


def test_a_model_that_tells_nothing_is_a_request_without_tokens(crewai, metering):
    crew(crewai, spoken(crewai, ENDS)).kickoff()
    assert metering.units() == {"llm.requests": 1, "agent.conversations": 1}
    assert [e.everything["usage.source"] for e in metering.sink.events if e.meter == "llm.requests"] == ["none"]


@pytest.mark.cell("crewai", "tool, async")
def test_an_asynchronous_run_with_an_asynchronous_tool_is_counted_the_same(crewai, metering):
    from crewai.tools import BaseTool

    runs = []

    class LookUp(BaseTool):
        name: str = "look_up"
        description: str = "Looks a word up."

        def _run(self, word: str) -> str:
            runs.append("sync")
            return word

        async def _arun(self, word: str) -> str:
            runs.append("async")
            return word

    llm = spoken(crewai, acts("look_up", '{"word": "x"}'), ENDS)
    asyncio.run(crew(crewai, llm, LookUp()).akickoff())
    tool = LookUp()
    assert asyncio.run(tool.arun(word="y")) == "y"
    assert len(runs) == 2 and runs[1] == "async"
    assert tool_calls(metering) == [("look_up", "ok"), ("look_up", "ok")]


@pytest.mark.cell("crewai", "tool failed")
def test_each_try_of_a_tool_that_raises_is_a_failed_execution(crewai, metering):
    from crewai.tools import tool

    runs = []

    @tool("broken")
    def broken(word: str) -> str:
        """Breaks."""
        runs.append(word)
        raise ConnectionError("gone")

    crew(crewai, spoken(crewai, acts("broken", '{"word": "x"}'), ENDS), broken).kickoff()
    assert tool_calls(metering) == [("broken", "failed")] * len(runs) and runs


def test_what_crewais_cache_answers_is_no_execution(crewai, metering):
    runs = []
    same = acts("add", '{"a": 1, "b": 2}')
    other = acts("add", '{"a": 3, "b": 4}')
    crew(crewai, spoken(crewai, same, other, same, ENDS), adder(crewai, runs)).kickoff()
    assert runs == [(1, 2), (3, 4)]
    assert tool_calls(metering) == [("add", "ok"), ("add", "ok")]


def test_arguments_that_are_refused_and_a_spent_tool_are_no_executions(crewai, metering):
    from crewai.tools import BaseTool

    class Add(BaseTool):
        name: str = "add"
        description: str = "Adds."
        max_usage_count: int | None = 1

        def _run(self, a: int) -> int:
            return a

    add = Add()
    with pytest.raises(ValueError, match="validation"):
        add.run(a="no number")
    assert add.run(a=1) == 1
    assert add.run(a=2) != 2
    assert tool_calls(metering) == [("add", "ok")]


@pytest.mark.cell("crewai", "iteration limit")
def test_an_agent_that_reaches_its_limit_fails_the_task_though_it_answers(crewai, metering):
    runs = []
    llm = spoken(crewai, acts("add", '{"a": 1, "b": 2}'), ENDS)
    with meterhouse.task():
        assert crew(crewai, llm, adder(crewai, runs), max_iter=1).kickoff().raw
    with meterhouse.task():
        crew(crewai, spoken(crewai, ENDS)).kickoff()
    metering.flush()
    tasks = [e.point["meterhouse.status"] for e in metering.sink.events if e.meter == "agent.tasks"]
    assert sorted(tasks) == ["failed", "ok"]


def test_a_flow_is_one_conversation_with_the_crews_in_it(crewai, metering):
    from crewai.flow.flow import Flow, start

    class Desk(Flow):
        @start()
        def begin(self):
            crew(crewai, spoken(crewai, ENDS)).kickoff()
            return crew(crewai, spoken(crewai, ENDS), name="second").kickoff().raw

    flow = Desk()
    assert flow.kickoff() == "3"
    metering.flush()
    assert seen(metering, "gen_ai.conversation.id") == {flow.flow_id}
    assert seen(metering, "meterhouse.step") == {"count", "second"}


def test_a_lone_agent_is_known_by_its_role(crewai, metering):
    agent = crewai.Agent(role="clerk", goal="g", backstory="b", llm=spoken(crewai, ENDS, ENDS))
    agent.kickoff("a secret question")
    asyncio.run(agent.kickoff_async("a secret question"))
    metering.flush()
    requests = [e for e in metering.sink.events if e.meter == "llm.requests"]
    assert [e.point["gen_ai.agent.name"] for e in requests] == ["clerk", "clerk"]
    assert len({e.own["gen_ai.conversation.id"] for e in requests}) == 2


def test_what_the_host_says_wins_over_what_crewai_knows(crewai, metering):
    with meterhouse.agent("support"), meterhouse.conversation("c-17"), meterhouse.step("plan"):
        crew(crewai, spoken(crewai, ENDS)).kickoff()
    metering.flush()
    [request] = [e for e in metering.sink.events if e.meter == "llm.requests"]
    known = ("gen_ai.agent.name", "gen_ai.conversation.id", "meterhouse.step")
    assert [request.everything[name] for name in known] == ["support", "c-17", "plan"]


def test_an_error_of_a_model_passes_and_its_call_has_failed(crewai, metering):
    llm = spoken(crewai, ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        llm.call([{"role": "user", "content": "a secret"}])
    metering.flush()
    assert [(e.meter, e.point["meterhouse.status"]) for e in metering.sink.events] == [("llm.requests", "failed")]


@pytest.mark.cell("crewai", "over MCP once")
def test_a_tool_over_mcp_is_counted_once(crewai, library, metering, tmp_path):
    library("mcp")
    from crewai.mcp import MCPServerStdio

    server = tmp_path / "server.py"
    server.write_text(
        "from mcp.server.fastmcp import FastMCP\n"
        "server = FastMCP('tools')\n"
        "@server.tool()\n"
        "def add(a: int) -> int:\n"
        "    return a\n"
        "server.run()\n"
    )
    called = []

    class Own(crewai.BaseLLM):
        def call(self, messages, tools=None, callbacks=None, available_functions=None, **_):
            called.append(messages)
            return ENDS if len(called) > 1 else acts(names[0], '{"a": 1}')

    mcps = [MCPServerStdio(command=sys.executable, args=[str(server)], env={"METERHOUSE_LIMITS": "off"})]
    agent = crewai.Agent(role="clerk", goal="g", backstory="b", llm=Own(model="own-1"), mcps=mcps)
    names = [tool.name for tool in agent.get_mcp_tools(mcps)]
    task = crewai.Task(description="a secret question", expected_output="e", agent=agent)
    crewai.Crew(agents=[agent], tasks=[task]).kickoff()
    assert tool_calls(metering) == [(names[0], "ok")]


def test_nothing_stays_patched_when_metering_is_switched_off(crewai, metering):
    import wrapt
    from crewai.tools.base_tool import BaseTool

    from meterhouse.otel import MeterhouseInstrumentor

    kind = type(spoken(crewai, ENDS))
    assert isinstance(vars(BaseTool)["run"], wrapt.FunctionWrapper)
    MeterhouseInstrumentor().uninstrument()
    for owner, name in ((BaseTool, "run"), (crewai.Crew, "kickoff"), (kind, "call"), (crewai.Agent, "execute_task")):
        assert not isinstance(vars(owner)[name], wrapt.FunctionWrapper)
    assert "meterhouse" not in vars(crewai.BaseLLM)["__init_subclass__"].__func__.__module__


def test_the_example_runs_unmodified_under_meterhouse_run(crewai, example, provider, metering):
    provider.json(chat.wish(("call_abcdef12345", "stock", {"article": "lamp"}), number=1))
    provider.json(chat.answer("There are 12.", number=2))
    printed = example("crewai_agent.py", "How many lamps are there?", OPENAI_BASE_URL=f"{provider.url}/v1")
    assert printed.endswith("There are 12.\n")
    assert seen(metering, "gen_ai.agent.name") == {"stock keeper"} and seen(metering, "customer.id") == {"acme"}
    counted = {}
    for event in metering.sink.events:
        counted[event.meter] = counted.get(event.meter, 0) + event.value
    assert counted == {
        **{meter: 2 * quantity for meter, quantity in ONE.items()},
        "llm.requests": 2,
        "tool.calls": 1,
        "agent.conversations": 1,
    }
