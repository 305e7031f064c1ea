"""OpenAI chat completions as the API sends them, for agents of frameworks: an answer, or a wish for tools.

Every answer used 100 input tokens, 60 of them cached, and 40 output tokens, 25 of them reasoning.
"""

import json

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 25,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
TOKENS_OF_ONE = {
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
    "llm.requests": 1,
}


def answer(text="done", number=1):
    """The body of an answer."""
    return _body({"role": "assistant", "content": text, "refusal": None}, "stop", number)


def wish(*calls, number=1):
    """The body that asks for tools: (tool call id, name, arguments)."""
    asked = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for call_id, name, arguments in calls
    ]
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": asked}
    return _body(message, "tool_calls", number)


def chunks(body):
    """The same answer as a stream that reports its usage."""
    message, reason = body["choices"][0]["message"], body["choices"][0]["finish_reason"]
    delta = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
    known = {key: body[key] for key in ("id", "created", "model", "system_fingerprint")}
    known["object"] = "chat.completion.chunk"
    parts = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}], "usage": None},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason, "logprobs": None}], "usage": None},
        {"choices": [], "usage": USAGE},
    ]
    return [*(b"data: " + json.dumps({**known, **part}).encode() + b"\n\n" for part in parts), b"data: [DONE]\n\n"]


def _body(message, reason, number):
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1763700000,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": USAGE,
        "service_tier": "default",
        "system_fingerprint": None,
    }
