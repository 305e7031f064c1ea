"""The examples for LangChain, LangGraph, the OpenAI Agents SDK and MCP, as they are, under `meterhouse run`."""

from pathlib import Path

import pytest

import meterhouse.runtime

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "frameworks"
CALL = "call_Wq71mZk08sLd"


@pytest.fixture
def example(example, provider, metering):
    """Runs an example to its end; returns what it printed and its events."""

    def run(name, *arguments):
        printed = example(name, *arguments, OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY="k")
        meterhouse.runtime.runtime()  # delivers what the process left, on a machine that is too busy at its end
        return printed, metering.flush()

    return run


def chat(content=None, *, tool="", usage=(10, 4)):
    """A chat completion that says something, or asks for the tool."""
    function = {"name": tool, "arguments": '{"article": "lamps"}'}
    calls = {"tool_calls": [{"id": CALL, "type": "function", "function": function}]} if tool else {}
    message = {"role": "assistant", "content": content, **calls}
    given, made = usage
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [{"index": 0, "finish_reason": "tool_calls" if tool else "stop", "message": message}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }


def response(**item):
    """A response of one output item."""
    usage = {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}
    usage |= {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5-mini",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


def told(events, *keys):
    """(meter, sum) and the values of these attributes, of every kind of event."""
    found = {}
    for event in events:
        kind = (event.meter, *(event.everything.get(key) for key in keys))
        found[kind] = found.get(kind, 0) + event.value
    return found


def test_langchain(example, provider, library):
    library("langchain_openai")
    provider.json(chat(tool="stock"))
    provider.json(chat("There are 12.", usage=(20, 6)))
    printed, events = example("langchain_agent.py", "How many lamps are there?")
    assert printed == "There are 12.\n"
    assert told(events, "customer.id", "gen_ai.tool.name", "usage.source") == {
        ("llm.requests", "acme", None, "reported"): 2,
        ("llm.tokens.input", "acme", None, "reported"): 30,
        ("llm.tokens.output", "acme", None, "reported"): 10,
        ("tool.calls", "acme", "stock", "reported"): 1,
    }


def test_langgraph(example, provider, library):
    library("langchain_openai")
    pytest.importorskip("langchain.agents.middleware")  # 0.3 has no create_agent
    provider.json(chat(tool="stock"))
    provider.json(chat("There are 12.", usage=(20, 6)))
    printed, events = example("langgraph_agent.py", "How many lamps are there?", "c-1")
    assert printed.splitlines() == ["model: ", "tools: There are 12 of lamps.", "model: There are 12."]
    assert told(events, "gen_ai.agent.name", "gen_ai.conversation.id", "meterhouse.step") == {
        ("llm.requests", "clerk", "c-1", "model"): 2,
        ("llm.tokens.input", "clerk", "c-1", "model"): 30,
        ("llm.tokens.output", "clerk", "c-1", "model"): 10,
        ("tool.calls", "clerk", "c-1", "tools"): 1,
        ("agent.conversations", "clerk", "c-1", None): 1,
    }


def test_openai_agents(example, provider, library):
    library("agents")
    call = {"type": "function_call", "status": "completed"}
    provider.json(response(**call, id="fc_1", call_id="call_HandOver0001", name="transfer_to_clerk", arguments="{}"))
    provider.json(response(**call, id="fc_2", call_id=CALL, name="stock", arguments='{"article": "lamps"}'))
    text = {"type": "output_text", "text": "There are 12.", "annotations": []}
    provider.json(response(type="message", id="msg_1", role="assistant", status="completed", content=[text]))
    printed, events = example("openai_agents_agent.py", "How many lamps are there?", "c-1")
    assert printed == "There are 12.\n"
    assert told(events, "gen_ai.agent.name", "gen_ai.conversation.id", "meterhouse.step") == {
        ("llm.requests", "desk", "c-1", "1"): 1,
        ("llm.tokens.input", "desk", "c-1", "1"): 10,
        ("llm.tokens.output", "desk", "c-1", "1"): 4,
        ("llm.requests", "clerk", "c-1", "2"): 1,
        ("llm.tokens.input", "clerk", "c-1", "2"): 10,
        ("llm.tokens.output", "clerk", "c-1", "2"): 4,
        ("tool.calls", "clerk", "c-1", "2"): 1,
        ("llm.requests", "clerk", "c-1", "3"): 1,
        ("llm.tokens.input", "clerk", "c-1", "3"): 10,
        ("llm.tokens.output", "clerk", "c-1", "3"): 4,
        ("agent.conversations", "desk", "c-1", None): 1,
    }
    assert [path for path, *_ in provider.log] == ["/v1/responses"] * 3


def test_mcp(example, provider):
    pytest.importorskip("mcp.server.mcpserver", reason="the example is for mcp 2")
    provider.json(chat(tool="warehouse__stock"))
    provider.json(chat("There are 12."))
    printed, events = example("mcp_agent.py", "How many lamps are there?")
    assert printed == "There are 12.\n"
    assert told(events, "gen_ai.tool.name", "usage.source") == {
        ("llm.requests", None, "reported"): 2,
        ("llm.tokens.input", None, "reported"): 20,
        ("llm.tokens.output", None, "reported"): 8,
        ("tool.calls", "stock", "reported"): 1,
    }
    handed_back = provider.log[1][2]["messages"][-1]
    assert handed_back == {"role": "tool", "tool_call_id": CALL, "content": "There are 12 of lamps."}


@pytest.mark.parametrize("name", ["langchain", "langgraph", "openai_agents", "mcp"])
def test_they_are_short_and_know_nothing_of_metering(name):
    source = (EXAMPLES / f"{name}_agent.py").read_text()
    assert len(source.splitlines()) <= 60
    assert "import meterhouse" not in source and "from meterhouse" not in source
