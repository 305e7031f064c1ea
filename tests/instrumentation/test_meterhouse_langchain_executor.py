"""LangChain's AgentExecutor, of langchain 0.3 and of langchain-classic."""

from typing import Any

import pytest

import meterhouse


@pytest.fixture
def langchain(library):
    """The package that has AgentExecutor."""
    try:
        from langchain.agents import AgentExecutor  # noqa: F401
    except ImportError:
        library("langchain_classic.agents")
        return "langchain_classic"
    return "langchain"


@pytest.fixture
def executor(langchain):
    """Makes an executor of a model whose answers ask for these tools."""
    import importlib

    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult
    from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
    from langchain_core.tools import tool

    agents = importlib.import_module(f"{langchain}.agents")

    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    class Model(BaseChatModel):
        asked: Any

        @property
        def _llm_type(self):
            return "house"

        def bind_tools(self, tools, **kwargs):
            return self

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            name = self.asked.pop(0)
            calls = [{"name": name, "args": {"a": 1, "b": 2}, "id": f"call_p0Lk{len(self.asked)}wMz"}] if name else []
            message = AIMessage("" if calls else "3", tool_calls=calls)
            return ChatResult(generations=[ChatGeneration(message=message)])

    def make(*asked, **more):
        prompt = ChatPromptTemplate.from_messages([("user", "{input}"), MessagesPlaceholder("agent_scratchpad")])
        agent = agents.create_tool_calling_agent(Model(asked=list(asked)), [add], prompt)
        return agents.AgentExecutor(agent=agent, tools=[add], **more)

    return make


def executions(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


@pytest.mark.cell("langchain", "tool, sync")
def test_its_tools_count_once_and_what_is_no_tool_does_not(metering, executor):
    agent = executor("add", "unknown", "")
    assert agent.invoke({"input": "1 + 2?"})["output"] == "3"
    assert executions(metering.flush()) == [("add", "ok")]


@pytest.mark.cell("langchain", "iteration limit")
def test_an_agent_that_stops_at_its_iteration_limit_fails_the_task(metering, executor):
    with meterhouse.task("limited"):
        output = executor("add", "add", "add", max_iterations=2).invoke({"input": "?"})["output"]
    assert output.startswith("Agent stopped due to")
    with meterhouse.task("enough"):
        executor("add", "", max_iterations=2).invoke({"input": "?"})
    found = [e for e in metering.flush() if e.meter == "agent.tasks"]
    assert {e.own["meterhouse.task.id"]: e.point["meterhouse.status"] for e in found} == {
        "limited": "failed",
        "enough": "ok",
    }
