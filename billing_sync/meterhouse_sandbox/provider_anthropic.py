"""Anthropic's wire format: messages, whole and as server-sent events. Pure.

`input_tokens` leaves cache reads and writes out, `output_tokens` has the thinking inside, and the usage of a stream's
`message_delta` is cumulative, as Anthropic counts them.
Source: https://platform.claude.com/docs/en/api/messages, and the types of the anthropic SDK 2.11.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meterhouse_sandbox.provider_answer import Answer, Asked, BadRequest, Tool, Units
from meterhouse_sandbox.provider_wire import Frame, items, model_of, question_of, text_of


def error(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = {429: "rate_limit_error", 500: "api_error", 401: "authentication_error", 413: "request_too_large"}.get(
        status, "invalid_request_error"
    )
    return {"type": "error", "error": {"type": kind, "message": message}}


def messages_asked(body: Mapping[str, Any]) -> Asked:
    """What a body of POST /v1/messages asks for; raises BadRequest."""
    messages = items(body, "messages")
    if not messages:
        raise BadRequest("messages: at least one message is required")
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequest("max_tokens: field required")
    thinking, metadata = body.get("thinking"), body.get("metadata")
    return Asked(
        model=model_of(body),
        stream=body.get("stream") is True,
        reasons=isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"),
        end_user=text_of(metadata, "user_id") if isinstance(metadata, dict) else "",
        tools=tuple(_tools(body)),
        tool_results=_results_since_user(messages),
        handed_back=tuple(text_of(block, "tool_use_id") for message in messages for block in _results(message)),
        question=question_of(messages),
    )


def messages_usage(units: Units) -> dict[str, Any]:
    return {**_input_usage(units), **_output_usage(units)}


def messages_body(answer: Answer) -> dict[str, Any]:
    reason = "end_turn" if answer.tool_use is None else "tool_use"
    return {**_head(answer), "content": _blocks(answer), "stop_reason": reason, "usage": messages_usage(answer.units)}


def messages_frames(answer: Answer, asked: Asked) -> Iterator[Frame]:
    reason = "end_turn" if answer.tool_use is None else "tool_use"
    start = {**_head(answer), "content": [], "usage": {**_input_usage(answer.units), "output_tokens": 1}}
    yield _frame("message_start", message=start)
    for index, block in enumerate(_blocks(answer)):
        yield _frame("content_block_start", index=index, content_block=_empty(block))
        for delta in _deltas(block, answer):
            yield _frame("content_block_delta", index=index, delta=delta)
        yield _frame("content_block_stop", index=index)
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield _frame("message_delta", delta=delta, usage=_delta_usage(answer.units))
    yield _frame("message_stop")


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.response_id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _input_usage(units: Units) -> dict[str, Any]:
    return {
        "input_tokens": units.input,
        "cache_read_input_tokens": units.cache_read,
        "cache_creation_input_tokens": units.cache_write_5m + units.cache_write_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": units.cache_write_5m,
            "ephemeral_1h_input_tokens": units.cache_write_1h,
        },
        "service_tier": "standard",
    }


def _output_usage(units: Units) -> dict[str, Any]:
    usage: dict[str, Any] = {"output_tokens": units.output + units.reasoning}
    if units.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": units.reasoning}
    return usage


def _delta_usage(units: Units) -> dict[str, Any]:
    # The API repeats the input side here without the split by ttl, which only message_start has.
    given = {k: v for k, v in _input_usage(units).items() if k not in ("cache_creation", "service_tier")}
    return {**given, **_output_usage(units)}


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.units.reasoning:
        blocks.append({"type": "thinking", "thinking": "Let me look at the figures.", "signature": "c2FuZGJveA=="})
    if answer.tool_use is not None:
        use = answer.tool_use
        blocks.append(
            {"type": "tool_use", "id": f"toolu_{answer.response_id}", "name": use.name, "input": use.arguments}
        )
    else:
        blocks.append({"type": "text", "text": answer.text})
    return blocks


def _empty(block: dict[str, Any]) -> dict[str, Any]:
    blank: dict[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {key: blank.get(key, value) for key, value in block.items()}


def _deltas(block: dict[str, Any], answer: Answer) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "thinking":
            yield {"type": "thinking_delta", "thinking": block["thinking"]}
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use":
            yield {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        case _:
            yield from ({"type": "text_delta", "text": word} for word in answer.words)


def _tools(body: Mapping[str, Any]) -> Iterator[Tool]:
    for tool in items(body, "tools"):
        if not isinstance(tool.get("name"), str):
            raise BadRequest("tools: every tool needs a 'name'")
        schema = tool.get("input_schema")
        yield Tool(tool["name"], schema if isinstance(schema, dict) else {})


def _results(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_result"]


def _results_since_user(messages: list[dict[str, Any]]) -> int:
    count = 0
    for message in messages:
        results = len(_results(message))
        if message.get("role") == "user":
            count = count + results if results else 0
    return count


def _frame(kind: str, **fields: Any) -> Frame:
    payload = json.dumps({"type": kind, **fields}, separators=(",", ":"))
    is_word = kind == "content_block_delta" and fields["delta"]["type"] == "text_delta"
    return Frame(f"event: {kind}\ndata: {payload}\n\n".encode(), word=is_word, settles=kind == "message_delta")
