"""What AWS Bedrock reports, for every family of models it hosts. Pure.

Converse and the Amazon models (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html):
input tokens exclude what was read from or written to the cache, so nothing is taken out of them; reasoning is part of
the output and not told apart. `invoke_model` answers in the shape of the model's maker. Where that says nothing of
usage, Bedrock's own count holds: response headers, and the metrics in the last chunk of a stream.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import anthropic, openai_tools, openai_usage
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, Quantity, count, rest, text, together
from meterhouse.vocabulary import (
    LLM_IMAGES,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
)

METRICS = "amazon-bedrock-invocationMetrics"
"""The member of a stream's last chunk that holds Bedrock's own count; also the event name of such a document."""
_COUNTED = {
    "inputTokenCount": "x-amzn-bedrock-input-token-count",
    "outputTokenCount": "x-amzn-bedrock-output-token-count",
    "cacheReadInputTokenCount": "x-amzn-bedrock-cache-read-input-token-count",
    "cacheWriteInputTokenCount": "x-amzn-bedrock-cache-write-input-token-count",
}
_ANTHROPIC = anthropic.Anthropic()


class Bedrock:
    """The `metered.Reader` of Bedrock's answers; `event` is the event type of a stream's event, else empty."""

    name = "aws.bedrock"

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        if event == METRICS:
            answer.usage[METRICS] = document
        elif event == "error" or event.endswith("Exception"):
            answer.complete = answer.failed = True
        elif event == "chunk":
            self._read_chunk(json.loads(base64.b64decode(document["bytes"])), answer)
        elif event == "contentBlockDelta":
            _take_text(document, answer)
        elif event in ("", "metadata", "contentBlockStart"):
            _read_body(document, answer)
            answer.complete = answer.complete or event == "metadata"

    def rows(self, answer: Answer) -> list[Row]:
        usage = answer.usage
        buckets = [*_model_rows(usage), Row(LLM_IMAGES, count(usage, "images"))]
        if all(row.quantity is None for row in buckets) and isinstance(usage.get(METRICS), Mapping):
            return _converse_rows(usage[METRICS])
        return buckets

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        """What tools gave since the model spoke last, in the body of Converse or of any family's `invoke_model`."""
        yield from _converse_results(body.get("messages"))
        yield from _ANTHROPIC.tool_results(body)
        yield from openai_tools.results_of_messages(body.get("messages"))

    def _read_chunk(self, chunk: Mapping[str, Any], answer: Answer) -> None:
        nova = next((kind for kind in ("metadata", "contentBlockStart") if isinstance(chunk.get(kind), Mapping)), None)
        _read_body(chunk if nova is None else chunk[nova], answer)
        if isinstance(chunk.get("contentBlockDelta"), Mapping):
            _take_text(chunk["contentBlockDelta"], answer)
        if isinstance(chunk.get(METRICS), Mapping):
            answer.usage[METRICS] = chunk[METRICS]
            answer.complete = True


def counted(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Bedrock's own count as the response headers tell it, in the names of a stream's metrics."""
    return {name: headers[header] for name, header in _COUNTED.items() if header in headers}


def model_id(requested: object) -> str:
    """The model as the price list has it: an ARN of a model or of a region's profile becomes the id at its end.

    Account and region are left out of every ARN. What still has a slash (`application-inference-profile/4x7`) hides
    which model it stands for.
    """
    given = requested if isinstance(requested, str) else ""
    if not given.startswith("arn:"):
        return given
    resource = given.split(":", 5)[-1]
    kind, _, name = resource.partition("/")
    return name if name and kind in ("foundation-model", "inference-profile") else resource


def operation(model: str, body: object) -> str:
    """The operation of an `invoke_model`: its path does not tell, the model's name and the body do."""
    for word, named in (("embed", "embeddings"), ("rerank", "rerank")):
        if word in model:
            return named
    if any(word in model for word in ("image", "canvas", "stability.")):
        return "image_generation"
    return (
        "text_completion" if isinstance(body, bytes | bytearray | str) and not _mentions(body, "messages") else "chat"
    )


def embeds(model: str | None) -> bool:
    """True for a model whose answers are vectors: long, and its headers tell all that is billed."""
    return "embed" in (model or "")


def tier_of_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The tier that `invoke_model` answers in its headers, as Converse has it in its body.

    `headers`: as they came, names in lower case; old versions of botocore know no tiers and parse none.
    """
    return {
        "serviceTier": {"type": headers.get("x-amzn-bedrock-service-tier")},
        "performanceConfig": {"latency": headers.get("x-amzn-bedrock-performanceconfig-latency")},
    }


def may_hold_results(body: object) -> bool:
    """False for a body that need not be parsed to know that no tool's result is in it."""
    return isinstance(body, bytes | bytearray | str) and any(
        _mentions(body, key) for key in ("toolResult", "tool_result", "tool_call_id")
    )


def _mentions(body: bytes | bytearray | str, word: str) -> bool:
    return word in body if isinstance(body, str) else word.encode() in body


def _read_body(document: Mapping[str, Any], answer: Answer) -> None:
    """A whole answer, or the part of a stream that has the same members."""
    if isinstance(document.get("type"), str):
        _read_anthropic(document, answer)
        return
    answer.usage.update({key: value for key, value in _reported(document).items() if value is not None})
    _learn_tier(document, answer)
    router = document.get("trace")
    if isinstance(router, Mapping) and isinstance(router.get("promptRouter"), Mapping):
        answer.model = model_id(router["promptRouter"].get("invokedModelId")) or answer.model
    answer.tool_calls.update(_tools_asked_for(document))


def _read_anthropic(document: Mapping[str, Any], answer: Answer) -> None:
    """Bedrock's name of the model and its request id stay, where they say more than the body does."""
    model, response_id = answer.model, answer.response_id
    _ANTHROPIC.read(document, "", answer)
    if model and "/" not in model:
        answer.model = model
    answer.response_id = response_id or answer.response_id


def _take_text(document: Mapping[str, Any], answer: Answer) -> None:
    """Count the characters that the model was seen to write."""
    delta = document.get("delta")
    answer.characters += len(text(delta, "text") or "") if isinstance(delta, Mapping) else 0


def _learn_tier(document: Mapping[str, Any], answer: Answer) -> None:
    tier = document.get("serviceTier")
    if isinstance(tier, Mapping):
        answer.service_tier = text(tier, "type") or answer.service_tier
    performance = document.get("performanceConfig")
    if isinstance(performance, Mapping) and performance.get("latency") == "optimized":
        answer.service_tier = "latency-optimized"  # has a price of its own, as a tier has


def _tools_asked_for(document: Mapping[str, Any]) -> dict[str, str]:
    start, output = document.get("start"), document.get("output")
    blocks: list[Any] = [start]
    if isinstance(output, Mapping) and isinstance(output.get("message"), Mapping):
        blocks = output["message"].get("content") or []
    asked = [block["toolUse"] for block in blocks if isinstance(block, Mapping) and "toolUse" in block]
    return {str(one["toolUseId"]): str(one["name"]) for one in asked if one.get("type") != "server_tool_use"}


def _reported(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a body says of its usage, in the names of its family; Meta's and Titan's become those of Converse."""
    if isinstance(document.get("usage"), Mapping):
        return dict(document["usage"])
    if "prompt_token_count" in document or "generation_token_count" in document:
        return {
            "inputTokens": document.get("prompt_token_count"),
            "outputTokens": document.get("generation_token_count"),
        }
    if "inputTextTokenCount" in document:
        return {"inputTokens": document["inputTextTokenCount"], "outputTokens": _titan_output(document)}
    if isinstance(document.get("images"), list):
        return {"images": len([image for image in document["images"] if image])}
    return {}


def _titan_output(document: Mapping[str, Any]) -> Quantity | None:
    results = document.get("results")
    parts = [count(one, "tokenCount") for one in results if isinstance(one, Mapping)] if results else []
    return together(count(document, "totalOutputTextTokenCount"), *parts)


def _model_rows(usage: Mapping[str, Any]) -> list[Row]:
    if "input_tokens" in usage or "output_tokens" in usage:
        return anthropic.rows(usage)
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        return openai_usage.rows(usage)
    return _converse_rows(usage)


def _converse_rows(usage: Mapping[str, Any]) -> list[Row]:
    """Also the metrics of a stream, whose names differ."""
    details = usage.get("cacheDetails")
    ttls: dict[str, Quantity | None] = {}
    for one in details if isinstance(details, list) else ():
        if isinstance(one, Mapping):
            ttls[str(one.get("ttl", ""))] = together(ttls.get(str(one.get("ttl", ""))), count(one, "inputTokens"))
    written = _either(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    unknown = together(ttls.pop("", None), rest(written, *ttls.values()))
    return [
        Row(TOKENS_INPUT, _either(usage, "inputTokens", "inputTokenCount")),
        Row(TOKENS_CACHE_READ, _either(usage, "cacheReadInputTokens", "cacheReadInputTokenCount")),
        *(Row(TOKENS_CACHE_WRITE, quantity, cache_ttl=ttl) for ttl, quantity in ttls.items()),
        Row(TOKENS_CACHE_WRITE, unknown),
        Row(TOKENS_OUTPUT, _either(usage, "outputTokens", "outputTokenCount")),
    ]


def _either(usage: Mapping[str, Any], name: str, other: str) -> Quantity | None:
    quantity = count(usage, name)
    return count(usage, other) if quantity is None else quantity


def _converse_results(messages: object) -> Iterable[ToolResult]:
    for message in reversed(messages) if isinstance(messages, list | tuple) else ():
        if not isinstance(message, Mapping) or message.get("role") == "assistant":
            return
        for block in message.get("content") or ():
            result = block.get("toolResult") if isinstance(block, Mapping) else None
            if isinstance(result, Mapping) and isinstance(result.get("toolUseId"), str):
                yield ToolResult(result["toolUseId"], failed=result.get("status") == "error")
