"""OpenAI's wire format: chat completions, responses and embeddings, whole and as server-sent events. Pure.

Cached tokens are inside the prompt tokens and reasoning tokens inside the completion tokens, as OpenAI counts them. A
chat stream tells its usage only when `stream_options.include_usage` asks for it, in a last chunk without choices.
Source: https://developers.openai.com/api/reference, and the types of the openai SDK 3.52.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from struct import pack
from typing import Any

from meterhouse_sandbox.provider_answer import Answer, Asked, BadRequest, Tool, Units
from meterhouse_sandbox.provider_wire import Frame, items, model_of, question_of, text_of

_REASONING_MODELS = ("gpt-5", "o1", "o3", "o4")
_DIMENSIONS = 16


def error(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = {429: "rate_limit_error", 500: "server_error", 401: "authentication_error"}.get(
        status, "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


# ---- chat completions -----------------------------------------------------------------------------------------------


def chat_asked(body: Mapping[str, Any]) -> Asked:
    """What a body of POST /v1/chat/completions asks for; raises BadRequest."""
    messages = items(body, "messages")
    if not messages:
        raise BadRequest("'messages' needs at least one message")
    options = body.get("stream_options") or {}
    if options and not body.get("stream"):
        raise BadRequest("'stream_options' is only allowed when 'stream' is true")
    model = model_of(body)
    return Asked(
        model=model,
        stream=body.get("stream") is True,
        usage_in_stream=isinstance(options, dict) and options.get("include_usage") is True,
        reasons=model.startswith(_REASONING_MODELS),
        end_user=text_of(body, "user"),
        tools=tuple(_tools(tool.get("function") for tool in items(body, "tools"))),
        tool_results=_results_since_user(messages, lambda message: message.get("role") == "tool"),
        handed_back=tuple(text_of(one, "tool_call_id") for one in messages if one.get("role") == "tool"),
        question=question_of(messages),
    )


def chat_usage(units: Units) -> dict[str, Any]:
    prompt, completion = units.input + units.cache_read, units.output + units.reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": units.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": units.reasoning, "audio_tokens": 0},
    }


def chat_body(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.tool_use is not None:
        message["tool_calls"] = [_chat_tool_call(answer)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(answer)}
    return {**_chat_head(answer, "chat.completion"), "choices": [choice], "usage": chat_usage(answer.units)}


def chat_frames(answer: Answer, asked: Asked) -> Iterator[Frame]:
    head = _chat_head(answer, "chat.completion.chunk")
    silent = {"usage": None} if asked.usage_in_stream else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], **silent})

    yield Frame(chunk({"role": "assistant", "content": "" if answer.tool_use is None else None, "refusal": None}))
    if answer.tool_use is not None:
        call = _chat_tool_call(answer)
        arguments = call["function"]["arguments"]
        first = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        yield Frame(chunk({"tool_calls": [first]}))
        yield Frame(chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}))
    for word in answer.words:
        yield Frame(chunk({"content": word}), word=True)
    yield Frame(chunk({}, _finish_reason(answer)), settles=not asked.usage_in_stream)
    if asked.usage_in_stream:
        yield Frame(_data({**head, "choices": [], "usage": chat_usage(answer.units)}), settles=True)
    yield Frame(b"data: [DONE]\n\n")


def _chat_head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer.response_id}",
        "object": kind,
        "created": answer.created_at,
        "model": answer.model,
        "service_tier": "default",
        "system_fingerprint": "fp_sandbox",
    }


def _chat_tool_call(answer: Answer) -> dict[str, Any]:
    assert answer.tool_use is not None
    function = {"name": answer.tool_use.name, "arguments": json.dumps(answer.tool_use.arguments)}
    return {"id": answer.tool_use.call_id, "type": "function", "function": function}


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.tool_use is None else "tool_calls"


# ---- responses ------------------------------------------------------------------------------------------------------


def responses_asked(body: Mapping[str, Any]) -> Asked:
    """What a body of POST /v1/responses asks for; raises BadRequest."""
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise BadRequest("'input' must be a text or a list of items")
    history = items(body, "input") if isinstance(given, list) else []
    model = model_of(body)
    return Asked(
        model=model,
        stream=body.get("stream") is True,
        reasons=model.startswith(_REASONING_MODELS),
        end_user=text_of(body, "user") or text_of(body, "safety_identifier"),
        tools=tuple(_tools(tool for tool in items(body, "tools") if tool.get("type") == "function")),
        tool_results=_results_since_user(history, lambda item: item.get("type") == "function_call_output"),
        handed_back=tuple(text_of(one, "call_id") for one in history if one.get("type") == "function_call_output"),
        question=given if isinstance(given, str) else question_of(history),
    )


def responses_usage(units: Units) -> dict[str, Any]:
    given, made = units.input + units.cache_read, units.output + units.reasoning
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": units.cache_read, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": units.reasoning},
        "total_tokens": given + made,
    }


def responses_body(answer: Answer) -> dict[str, Any]:
    return _response(answer, "completed", [_output_item(answer, "completed")], responses_usage(answer.units))


def responses_frames(answer: Answer, asked: Asked) -> Iterator[Frame]:
    started = _response(answer, "in_progress", [], None)
    item = _output_item(answer, "completed")
    place = {"item_id": item["id"], "output_index": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
        ("response.output_item.added", {"output_index": 0, "item": _output_item(answer, "in_progress")}),
    ]
    if answer.tool_use is not None:
        arguments = {"arguments": item["arguments"]}
        events += [
            ("response.function_call_arguments.delta", {**place, "delta": item["arguments"]}),
            ("response.function_call_arguments.done", {**place, **arguments, "name": item["name"]}),
        ]
    else:
        part = {**place, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events.append(("response.content_part.added", {**part, "part": empty}))
        events += [("response.output_text.delta", {**part, "delta": word, "logprobs": []}) for word in answer.words]
        events += [
            ("response.output_text.done", {**part, "text": answer.text, "logprobs": []}),
            ("response.content_part.done", {**part, "part": {**empty, "text": answer.text}}),
        ]
    events += [
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": responses_body(answer)}),
    ]
    for number, (kind, event) in enumerate(events):
        data = _data({"type": kind, "sequence_number": number, **event}, event=kind)
        yield Frame(data, word=kind == "response.output_text.delta", settles=kind == "response.completed")


def _response(answer: Answer, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": f"resp_{answer.response_id}",
        "object": "response",
        "created_at": answer.created_at,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": answer.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "service_tier": "default",
        "metadata": {},
        "usage": usage,
    }


def _output_item(answer: Answer, status: str) -> dict[str, Any]:
    done = status == "completed"
    if answer.tool_use is not None:
        return {
            "id": f"fc_{answer.response_id}",
            "type": "function_call",
            "status": status,
            "call_id": answer.tool_use.call_id,
            "name": answer.tool_use.name,
            "arguments": json.dumps(answer.tool_use.arguments) if done else "",
        }
    content = [{"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}] if done else []
    return {
        "id": f"msg_{answer.response_id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


# ---- embeddings -----------------------------------------------------------------------------------------------------


def embeddings_asked(body: Mapping[str, Any]) -> Asked:
    """What a body of POST /v1/embeddings asks for; raises BadRequest."""
    if not isinstance(body.get("input"), str | list) or not body["input"]:
        raise BadRequest("'input' must be a text or a list of texts")
    return Asked(model=model_of(body), end_user=text_of(body, "user"))


def embeddings_units(units: Units) -> Units:
    """Embeddings have input tokens only."""
    return Units(input=units.input)


def embeddings_usage(units: Units) -> dict[str, Any]:
    return {"prompt_tokens": units.input, "total_tokens": units.input}


def embeddings_body(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vector = [round((i + 1) / _DIMENSIONS, 4) for i in range(_DIMENSIONS)]
    packed = body.get("encoding_format") == "base64"
    embedding = b64encode(pack(f"<{_DIMENSIONS}f", *vector)).decode() if packed else vector
    data = [{"object": "embedding", "index": i, "embedding": embedding} for i in range(len(texts))]
    return {"object": "list", "data": data, "model": answer.model, "usage": embeddings_usage(answer.units)}


def _tools(given: Any) -> Iterator[Tool]:
    for function in given:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest("every tool needs a function with a 'name'")
        parameters = function.get("parameters")
        yield Tool(function["name"], parameters if isinstance(parameters, dict) else {})


def _results_since_user(messages: list[dict[str, Any]], is_result: Any) -> int:
    count = 0
    for message in messages:
        count = 0 if message.get("role") == "user" else count + bool(is_result(message))
    return count


def _data(payload: Mapping[str, Any], event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()
