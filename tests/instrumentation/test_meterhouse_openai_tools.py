"""Tool results that a plain loop around the SDK hands back: one `tool.calls` each, once per tool call id."""

import asyncio
import contextlib
import json
from importlib.util import find_spec

import openai
import pytest

import meterhouse
from meterhouse.providers.openai import OpenAI
from meterhouse.providers.openai_tools import results_of_input, results_of_messages
from meterhouse.tools import ToolResult

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
MODEL = {"model": "gpt-5"}
RESPONSES = pytest.mark.skipif(find_spec("openai.types.responses") is None, reason="this openai has no responses API")


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=2) as client:
        yield client


def call(call_id, name="get_weather"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": '{"secret": 1}'}}


def chat(*calls, text=None):
    message = {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    known = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5"}
    return {**known, "choices": [choice], "usage": USAGE}


def output(call_id, text="a secret"):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def response(*items, **changes):
    known = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-5"}
    known |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return {**known, "output": list(items), "usage": usage, **changes}


def function_call(call_id, name="get_weather"):
    known = {"type": "function_call", "id": f"fc_{call_id}", "status": "completed"}
    return {**known, "call_id": call_id, "name": name, "arguments": "{}"}


def result(call_id):
    return {"type": "function_call_output", "call_id": call_id, "output": "a secret"}


def tools(metering):
    return [event for event in metering.flush() if event.meter == "tool.calls"]


@pytest.mark.cell("openai", "tool results handed back")
def test_a_loop_of_two_turns_counts_each_result_once(client, provider, metering):
    messages = [{"role": "user", "content": "q"}]
    turns = [[call("call_aaaa1111"), call("call_bbbb2222", "search")], [call("call_cccc3333")], []]
    for calls in turns:
        provider.json(chat(*calls, text=None if calls else "done"))
        message = client.chat.completions.create(**MODEL, messages=messages).choices[0].message
        messages.append(message)  # the SDK's own object, as its documentation does it
        messages += [output(one.id) for one in message.tool_calls or ()]
    events = tools(metering)
    assert sorted(event.point["gen_ai.tool.name"] for event in events) == ["get_weather", "get_weather", "search"]
    assert {event.own["usage.source"] for event in events} == {"sdk_loop"}
    assert {event.point["gen_ai.provider.name"] for event in events} == {"openai"}
    assert metering.units()["llm.requests"] == 3


def test_a_history_that_is_sent_again_counts_nothing_again(client, provider, metering):
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call("call_dddd4444")]}]
    history += [output("call_dddd4444")]
    for more in ([], [{"role": "assistant", "content": "done"}, {"role": "user", "content": "and?"}]):
        provider.json(chat(text="x"))
        client.chat.completions.create(**MODEL, messages=[*history, *more])
    provider.json(chat(text="x"))
    client.chat.completions.create(**MODEL, messages=history)  # tried again by the host
    assert len(tools(metering)) == 1


def test_what_another_process_had_answered_before_is_not_counted_here(client, provider, metering):
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call("call_eeee5555")]}]
    history += [output("call_eeee5555"), {"role": "assistant", "content": "done"}, {"role": "user", "content": "and?"}]
    provider.json(chat(text="x"))
    client.chat.completions.create(**MODEL, messages=history)
    assert tools(metering) == []


def test_retries_inside_the_sdk_count_a_result_once(client, provider, metering):
    provider.replies.append(lambda handler, _: handler.answer(500, b"{}", headers=[("retry-after-ms", "1")]))
    provider.json(chat(text="x"))
    asked = {"role": "assistant", "tool_calls": [call("call_ffff6666")]}
    client.chat.completions.create(**MODEL, messages=[asked, output("call_ffff6666")])
    assert len(provider.log) == 2 and len(tools(metering)) == 1


@RESPONSES
@pytest.mark.cell("openai", "tool results handed back")
def test_results_of_the_responses_api_have_the_names_that_earlier_answers_gave(client, provider, metering):
    provider.json(response(function_call("call_gggg7777"), function_call("call_hhhh8888", "search")))
    client.responses.create(**MODEL, input="q")
    provider.json(response(id="resp_2"))
    client.responses.create(
        **MODEL, previous_response_id="resp_1", input=[result("call_gggg7777"), result("call_hhhh8888")]
    )
    assert sorted(event.point["gen_ai.tool.name"] for event in tools(metering)) == ["get_weather", "search"]


@RESPONSES
def test_names_are_learned_from_streams(client, provider, metering):
    events = [
        {"type": "response.output_item.done", "output_index": 0, "item": function_call("call_iiii9999")},
        {"type": "response.completed", "response": response(function_call("call_iiii9999"))},
    ]
    provider.stream([f"data: {json.dumps(event)}\n\n".encode() for event in events])
    list(client.responses.create(**MODEL, input="q", stream=True))
    started = {"index": 0, **call("call_jjjj0000", "search")}
    pieces = [
        {"content": ""},
        {"tool_calls": [started]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"name": 1}'}}]},
    ]
    known = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
    chunks = [{**known, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
    provider.stream([*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"])
    list(client.chat.completions.create(**MODEL, messages=[{"role": "user", "content": "q"}], stream=True))
    provider.json(response())
    client.responses.create(**MODEL, input=[result("call_iiii9999")])
    provider.json(chat(text="x"))
    client.chat.completions.create(**MODEL, messages=[output("call_jjjj0000")])
    assert sorted(event.point["gen_ai.tool.name"] for event in tools(metering)) == ["get_weather", "search"]


@RESPONSES
def test_results_that_stand_between_the_calls_of_one_answer_all_count(client, provider, metering):
    """Some loops append a call and its result, then the next call and its result."""
    calls = [function_call("call_kkkk1111"), function_call("call_llll2222", "search")]
    provider.json(response(*calls))
    client.responses.create(**MODEL, input="q")
    asked = {"role": "user", "content": "q"}
    provider.json(response())
    client.responses.create(
        **MODEL, input=[asked, calls[0], result("call_kkkk1111"), calls[1], result("call_llll2222")]
    )
    assert sorted(event.point["gen_ai.tool.name"] for event in tools(metering)) == ["get_weather", "search"]


@RESPONSES
def test_earlier_results_of_another_process_do_not_count_here(client, provider, metering):
    calls = [function_call("call_mmmm3333"), function_call("call_nnnn4444", "search")]
    provider.json(response())
    client.responses.create(**MODEL, input=[calls[0], result("call_mmmm3333"), calls[1], result("call_nnnn4444")])
    assert [event.point["gen_ai.tool.name"] for event in tools(metering)] == ["search"]


def test_a_tool_that_ran_over_mcp_and_is_handed_back_counts_once(client, provider, metering, library):
    """Its result has an id that MCP does not know; the name of the tool tells that it was counted."""
    library("mcp")
    from mcp.client.session import ClientSession

    class Session(ClientSession):
        def __init__(self):
            pass

        async def send_request(self, *_, **__):
            raise ConnectionError("no server")

    with contextlib.suppress(Exception):
        asyncio.run(Session().call_tool("get_weather", {}))
    asked = {"role": "assistant", "tool_calls": [call("call_rrrr8888"), call("call_ssss9999", "search")]}
    provider.json(chat(text="x"))
    client.chat.completions.create(**MODEL, messages=[asked, output("call_rrrr8888"), output("call_ssss9999")])
    assert sorted(event.point["gen_ai.tool.name"] for event in tools(metering)) == ["get_weather", "search"]


def test_tool_results_are_for_the_customer_of_the_request(client, provider, metering):
    provider.json(chat(text="x"))
    asked = {"role": "assistant", "tool_calls": [call("call_oooo5555")]}
    with meterhouse.customer("acme"):
        client.chat.completions.create(**MODEL, messages=[asked, output("call_oooo5555")])
    assert [event.point["customer.id"] for event in tools(metering)] == ["acme"]


def test_no_argument_or_result_of_a_tool_leaves_the_process(client, provider, metering, monkeypatch, nowhere):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    provider.json(chat(call("call_pppp6666")))
    message = client.chat.completions.create(**MODEL, messages=[{"role": "user", "content": "q"}]).choices[0].message
    provider.json(chat(text="x"))
    client.chat.completions.create(**MODEL, messages=[message, output("call_pppp6666")])
    written = b"".join(path.read_bytes() for path in metering.journals.iterdir())
    monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
    assert len(tools(metering)) == 1
    assert b"tool.calls" in written
    for document in (written, *(body for _, body in metering.sink.requests)):
        assert b"secret" not in document


def test_a_body_whose_messages_can_be_read_once_reaches_the_provider_whole(client, provider, metering):
    provider.json(chat(text="x"))
    asked = {"role": "assistant", "tool_calls": [call("call_qqqq7777")]}
    client.chat.completions.create(**MODEL, messages=iter([asked, output("call_qqqq7777")]))
    assert len(provider.log[0][2]["messages"]) == 2


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_custom_tools_and_the_older_function_role_are_results():
    custom = {"id": "call_1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    assert results_of_messages([{"role": "assistant", "tool_calls": [custom]}, output("call_1")]) == [
        ToolResult("call_1", "sql")
    ]
    older = [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]
    assert results_of_messages([*older, {"role": "function", "name": "f", "content": "x"}]) == [ToolResult("", "f")]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("local_shell_call_output", "local_shell"),
        ("shell_call_output", "shell"),
        ("apply_patch_call_output", "apply_patch"),
        ("computer_call_output", "computer"),
    ],
)
def test_tools_of_the_responses_api_that_have_no_name_are_named_after_their_kind(kind, name):
    item = {"type": kind, "call_id": "call_1", "output": "x"}
    assert results_of_input([{"type": kind.removesuffix("_output"), "call_id": "call_1"}, item]) == [
        ToolResult("call_1", name)
    ]


def test_a_custom_tool_s_result_has_the_name_in_the_same_input():
    asked = {"type": "custom_tool_call", "call_id": "call_1", "name": "sql", "input": "select 1"}
    given = {"type": "custom_tool_call_output", "call_id": "call_1", "output": "x"}
    assert results_of_input([asked, given]) == [ToolResult("call_1", "sql")]


@pytest.mark.parametrize("body", [{}, {"messages": "x"}, {"input": "a question"}, {"messages": None, "input": 3}])
def test_a_body_without_results_has_none(body):
    assert list(OpenAI().tool_results(body)) == []
