"""The Claude Agent SDK against a `claude` program that plays given turns."""

import asyncio
import gc
import json
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

import meterhouse
from meterhouse import attribution

MODEL, SMALL = "claude-sonnet-5", "claude-haiku-4-5"
USAGE = {
    "input_tokens": 100,
    "cache_read_input_tokens": 60,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    "output_tokens": 40,
    "server_tool_use": {"web_search_requests": 2},
    "service_tier": "standard",
}


@pytest.fixture
def sdk(library):
    yield library("claude_agent_sdk")
    gc.collect()


@pytest.fixture
def options(sdk, tmp_path):
    """Options for a `claude` that plays these turns."""
    cli = tmp_path / "claude"
    cli.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "fake_claude.py").read_text())
    cli.chmod(0o755)

    def make(*turns, **more):
        return sdk.ClaudeAgentOptions(cli_path=str(cli), env={"FAKE_CLAUDE": json.dumps(turns)}, **more)

    return make


def counters(given, cached, written, made, searches=0):
    return {
        "inputTokens": given,
        "outputTokens": made,
        "cacheReadInputTokens": cached,
        "cacheCreationInputTokens": written,
        "webSearchRequests": searches,
        "costUSD": 0.5,
        "contextWindow": 200000,
        "maxOutputTokens": 32000,
    }


def said(message_id, *blocks, model=MODEL, parent=None):
    """A message of the assistant; the usage in it is what the CLI knows when the message begins."""
    usage = {"input_tokens": 999, "output_tokens": 1}
    message = {"id": message_id, "type": "message", "role": "assistant", "model": model, "content": list(blocks)}
    return {"type": "assistant", "message": {**message, "usage": usage}, "parent_tool_use_id": parent}


def wish(tool_use_id, name, **arguments):
    return {"type": "tool_use", "id": tool_use_id, "name": name, "input": arguments}


def gave(tool_use_id, content="fine", *, error=False, parent=None):
    block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content, "is_error": error}
    return {"type": "user", "message": {"role": "user", "content": [block]}, "parent_tool_use_id": parent}


def result(subtype="success", *, models=None, usage=USAGE, error=False, **more):
    known = {"type": "result", "subtype": subtype, "is_error": error, "duration_ms": 10, "duration_api_ms": 8}
    known |= {"num_turns": 2, "total_cost_usd": 0.5, "usage": usage, "modelUsage": models, "result": "done"}
    return {**known, **more}


ONE = counters(100, 60, 30, 40, 2)
TEXT = {"type": "text", "text": "hello"}


async def all_of(sdk, options):
    return [message async for message in sdk.query(prompt="go", options=options)]


def llm(events):
    found = {}
    for event in events:
        if event.meter.startswith("llm."):
            key = (event.meter, event.point.get("gen_ai.response.model"), event.point.get("cache.ttl"))
            found[key] = found.get(key, 0) + event.value
    return found


def tools(events):
    return sorted(
        (e.point["gen_ai.tool.name"], e.point["meterhouse.status"]) for e in events if e.meter == "tool.calls"
    )


def requests(events):
    return [(e.value, e.point["meterhouse.status"], e.own["usage.source"]) for e in events if e.meter == "llm.requests"]


@pytest.mark.cell("claude-agent-sdk", "tokens once")
@pytest.mark.cell("claude-agent-sdk", "only witness")
@pytest.mark.cell("claude-agent-sdk", "conversation")
def test_a_query_counts_what_its_result_reports_once_and_no_message_beside_it(metering, sdk, options):
    turn = [said("msg_1", TEXT), said("msg_1", wish("toolu_01", "Bash")), gave("toolu_01"), said("msg_2", TEXT)]
    with meterhouse.customer("acme"):
        messages = asyncio.run(all_of(sdk, options([*turn, result(models={MODEL: ONE})])))
    assert type(messages[-1]).__name__ == "ResultMessage"
    events = metering.flush()
    assert llm(events) == {
        ("llm.requests", MODEL, None): 2,  # msg_1 came in two messages
        ("llm.tokens.input", MODEL, None): 100,
        ("llm.tokens.cache_read", MODEL, None): 60,
        ("llm.tokens.cache_write", MODEL, "5m"): 20,
        ("llm.tokens.cache_write", MODEL, "1h"): 10,
        ("llm.tokens.output", MODEL, None): 40,
        ("llm.web_searches", MODEL, None): 2,
    }
    assert {e.own["usage.source"] for e in events if e.meter.startswith("llm.")} == {"framework"}
    assert {e.own["gen_ai.conversation.id"] for e in events} == {"s-1"}
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert {e.point["gen_ai.provider.name"] for e in events if e.meter.startswith("llm.")} == {"anthropic"}
    assert sum(e.value for e in events if e.meter == "agent.conversations") == 1


def test_subagents_and_helpers_on_other_models_are_in_and_the_main_models_usage_is_not_added(metering, sdk, options):
    models = {MODEL: counters(300, 60, 30, 90), SMALL: counters(7, 0, 0, 3)}
    turn = [said("msg_1", TEXT), said("msg_2", TEXT), result(models=models)]
    asyncio.run(all_of(sdk, options(turn)))
    assert llm(metering.flush()) == {
        ("llm.requests", MODEL, None): 2,
        ("llm.tokens.input", MODEL, None): 300,
        ("llm.tokens.cache_read", MODEL, None): 60,
        ("llm.tokens.cache_write", MODEL, None): 30,
        ("llm.tokens.output", MODEL, None): 90,
        ("llm.requests", SMALL, None): 1,
        ("llm.tokens.input", SMALL, None): 7,
        ("llm.tokens.output", SMALL, None): 3,
    }


def test_without_usage_per_model_the_results_own_usage_counts(metering, sdk, options):
    asyncio.run(all_of(sdk, options([said("msg_1", TEXT), result()])))
    found = llm(metering.flush())
    assert found["llm.tokens.input", MODEL, None] == 100
    assert found["llm.tokens.output", MODEL, None] == 40
    assert found["llm.requests", MODEL, None] == 1


def test_a_clients_turns_count_each_its_own_part_for_its_own_customer(metering, sdk, options):
    """modelUsage is the sum over the turns of a process."""
    first = [said("msg_1", TEXT), result(models={MODEL: counters(100, 0, 0, 40)}, usage=None)]
    second = [said("msg_2", TEXT), result(models={MODEL: counters(250, 0, 0, 45)}, usage=None)]

    async def work():
        async with sdk.ClaudeSDKClient(options=options(first, second)) as client:
            for customer in ("acme", "bolt"):
                with meterhouse.customer(customer):
                    await client.query("go")
                    assert [type(m).__name__ async for m in client.receive_response()][-1] == "ResultMessage"

    asyncio.run(work())
    found = {
        (e.point["customer.id"], e.meter): e.value
        for e in metering.flush()
        if e.meter in ("llm.tokens.input", "llm.tokens.output", "llm.requests")
    }
    assert found == {
        ("acme", "llm.tokens.input"): 100,
        ("acme", "llm.tokens.output"): 40,
        ("acme", "llm.requests"): 1,
        ("bolt", "llm.tokens.input"): 150,
        ("bolt", "llm.tokens.output"): 5,
        ("bolt", "llm.requests"): 1,
    }


def test_counters_that_begin_anew_count_in_full(metering, sdk, options):
    first = [said("msg_1", TEXT), result(models={MODEL: counters(100, 0, 0, 40)}, usage=None)]
    second = [said("msg_2", TEXT), result(models={MODEL: counters(30, 0, 0, 5)}, usage=None)]

    async def work():
        async with sdk.ClaudeSDKClient(options=options(first, second)) as client:
            for _ in range(2):
                await client.query("go")
                assert [m async for m in client.receive_response()]

    asyncio.run(work())
    assert (metering.units()["llm.tokens.input"], metering.units()["llm.tokens.output"]) == (130, 45)


@pytest.mark.cell("claude-agent-sdk", "tool failed")
def test_each_tool_use_is_one_execution_and_what_was_refused_is_none(metering, sdk, options):
    wishes = [
        wish("toolu_0000000001", "Bash"),
        wish("toolu_0000000002", "Read"),
        wish("toolu_0000000003", "Write"),
        wish("toolu_0000000004", "Edit"),
        wish("toolu_0000000005", "Nope"),
    ]
    turn = [
        said("msg_1", *wishes),
        gave("toolu_0000000001"),
        gave("toolu_0000000001"),  # replayed
        gave("toolu_0000000002", "File does not exist.", error=True),
        gave("toolu_0000000003", "The user doesn't want to proceed", error=True),
        gave("toolu_0000000004", "<tool_use_error>InputValidationError: Edit failed</tool_use_error>", error=True),
        gave(
            "toolu_0000000005", [{"type": "text", "text": "<tool_use_error>No such tool</tool_use_error>"}], error=True
        ),
        said("msg_2", TEXT),
        result(
            models={MODEL: ONE},
            permission_denials=[{"tool_name": "Write", "tool_use_id": "toolu_0000000003", "tool_input": {}}],
        ),
    ]
    asyncio.run(all_of(sdk, options(turn)))
    assert tools(metering.flush()) == [("Bash", "ok"), ("Read", "failed")]


@pytest.mark.cell("claude-agent-sdk", "agent name")
def test_a_subagents_tools_have_its_name(metering, sdk, options):
    turn = [
        said("msg_1", wish("toolu_task00000001", "Task", subagent_type="reviewer", prompt="secret prompt")),
        said("msg_2", wish("toolu_read00000001", "Read"), parent="toolu_task00000001"),
        gave("toolu_read00000001", parent="toolu_task00000001"),
        gave("toolu_task00000001"),
        said("msg_3", TEXT),
        result(models={MODEL: ONE}),
    ]
    asyncio.run(all_of(sdk, options(turn)))
    events = metering.flush()
    found = {e.point["gen_ai.tool.name"]: e.point.get("gen_ai.agent.name") for e in events if e.meter == "tool.calls"}
    assert found == {"Task": None, "Read": "reviewer"}
    assert b"secret prompt" not in b"".join(body for _, body in metering.sink.requests)


@pytest.mark.cell("claude-agent-sdk", "tool, async")
@pytest.mark.cell("claude-agent-sdk", "over MCP once")
def test_a_tool_of_the_hosts_own_process_counts_once(metering, sdk, options):
    ran = []

    @sdk.tool("add", "Adds two numbers", {"a": int, "b": int})
    async def add(arguments):
        ran.append(arguments)
        if arguments["a"] < 0:
            raise ValueError("negative")
        return {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}]}

    turn = [
        said("msg_1", wish("toolu_add000000001", "mcp__sums__add", a=1, b=2)),
        {"mcp": ["sums", "add", {"a": 1, "b": 2}, "toolu_add000000001"]},
        said("msg_2", wish("toolu_add000000002", "mcp__sums__add", a=-1, b=2)),
        {"mcp": ["sums", "add", {"a": -1, "b": 2}, "toolu_add000000002"]},
        said("msg_3", TEXT),
        result(models={MODEL: ONE}),
    ]
    server = sdk.create_sdk_mcp_server("sums", tools=[add])
    asyncio.run(all_of(sdk, options(turn, mcp_servers={"sums": server})))
    assert ran == [{"a": 1, "b": 2}, {"a": -1, "b": 2}]
    assert tools(metering.flush()) == [("mcp__sums__add", "failed"), ("mcp__sums__add", "ok")]


@pytest.mark.cell("claude-agent-sdk", "iteration limit")
@pytest.mark.parametrize(
    ("subtype", "error", "task", "status"),
    [
        ("success", False, "ok", "ok"),
        ("error_max_turns", False, "failed", "ok"),
        ("error_max_turns", True, "failed", "ok"),
        ("error_during_execution", True, "failed", "failed"),
    ],
)
def test_a_limit_fails_the_task_and_not_the_calls(metering, sdk, options, subtype, error, task, status):
    with meterhouse.task("t-1"):
        turn = [said("msg_1", TEXT), result(subtype, error=error, models={MODEL: ONE})]
        asyncio.run(all_of(sdk, options(turn)))
    events = metering.flush()
    assert [e.point["meterhouse.status"] for e in events if e.meter == "agent.tasks"] == [task]
    assert requests(events) == [(1, status, "framework")]
    assert metering.units()["llm.tokens.output"] == 40


def test_an_interrupted_turn_is_aborted_with_what_was_reported(metering, sdk, options):
    turn = [said("msg_1", TEXT), result(models={MODEL: ONE}, terminal_reason="aborted_streaming")]
    asyncio.run(all_of(sdk, options(turn)))
    assert requests(metering.flush()) == [(1, "aborted", "framework")]
    assert metering.units()["llm.tokens.input"] == 100


# The SDK leaves the receiving end of such a query to the garbage collector.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObjectReceiveStream:ResourceWarning")
def test_a_query_that_is_left_early_is_listed_without_tokens(metering, sdk, options, tmp_path):
    turn = [
        said("msg_1", TEXT, wish("toolu_0000000001", "Bash")),
        gave("toolu_0000000001"),
        said("msg_2", TEXT, wish("toolu_0000000002", "Sleep")),
        {"wait": str(tmp_path / "never")},
    ]

    async def work():
        async with aclosing(sdk.query(prompt="go", options=options(turn))) as messages:
            async for message in messages:
                assert attribution.current().conversation is None
                if type(message).__name__ == "UserMessage":
                    await asyncio.sleep(0.2)
                    return

    asyncio.run(work())
    events = metering.flush()
    assert requests(events) == [(2, "aborted", "none")]
    assert not [e for e in events if "tokens" in e.meter]
    assert tools(events) == [("Bash", "ok"), ("Sleep", "aborted")]


def test_a_process_that_dies_is_failed_and_the_host_gets_the_error(metering, sdk, options):
    with pytest.raises(Exception, match="exit code"):
        asyncio.run(all_of(sdk, options([said("msg_1", TEXT), {"exit": 3}])))
    assert requests(metering.flush()) == [(1, "failed", "none")]


def test_a_client_that_is_asked_nothing_counts_nothing(metering, sdk, options):
    async def work():
        async with sdk.ClaudeSDKClient(options=options([])):
            pass

    asyncio.run(work())
    assert metering.flush() == []


def test_a_prompt_that_is_never_answered_is_one_request(metering, sdk, options, tmp_path):
    async def work():
        async with sdk.ClaudeSDKClient(options=options([{"wait": str(tmp_path / "never")}])) as client:
            await client.query("go")

    asyncio.run(work())
    assert requests(metering.flush()) == [(1, "aborted", "none")]


def test_the_messages_are_the_same_with_and_without_metering(metering, sdk, options):
    from meterhouse.otel import MeterhouseInstrumentor

    turn = [said("msg_1", TEXT, wish("toolu_01", "Bash")), gave("toolu_01"), result(models={MODEL: ONE})]
    metered = asyncio.run(all_of(sdk, options(turn)))
    MeterhouseInstrumentor().uninstrument()
    from claude_agent_sdk._internal.query import Query

    assert not [name for name, own in vars(Query).items() if hasattr(own, "__wrapped__")]
    assert asyncio.run(all_of(sdk, options(turn))) == metered
    assert requests(metering.flush()) == [(1, "ok", "framework")]


def test_the_example_runs_under_meterhouse_run(example, metering, sdk, options):
    turn = [said("msg_1", wish("toolu_stock0000001", "mcp__warehouse__stock", article="lamp"))]
    turn += [{"mcp": ["warehouse", "stock", {"article": "lamp"}, "toolu_stock0000001"]}]
    turn += [said("msg_2", TEXT), result(models={MODEL: ONE})]
    made = options(turn)
    environment = {**made.env, "CLAUDE_CLI": str(made.cli_path)}
    assert example("claude_agent_sdk_agent.py", "How many lamps?", **environment) == "done\n"
    events = metering.sink.events
    assert tools(events) == [("mcp__warehouse__stock", "ok")]
    assert {e.point["customer.id"] for e in events} == {"acme"}
    assert requests(events) == [(2, "ok", "framework")]
