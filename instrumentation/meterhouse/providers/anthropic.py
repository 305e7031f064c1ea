"""Anthropic: messages, beta messages and the legacy completions; direct, on Bedrock, Vertex AI and Azure.

Usage as in https://docs.anthropic.com/en/api/messages: input tokens exclude what was read from or written to the cache;
the usage of `message_delta` is cumulative, so it replaces what `message_start` said; thinking is part of the output.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import anthropic_batches, sdk_client
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, Quantity, count, rest, text, together
from meterhouse.vocabulary import (
    LLM_WEB_SEARCHES,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)

_MESSAGES = ("/v1/messages", "/invoke", "/invoke-with-response-stream", ":rawPredict", ":streamRawPredict")
"""How paths end under which messages are made: Anthropic's own, Bedrock's and Vertex AI's."""


class Anthropic:
    """See sdk_client.Provider."""

    name = "anthropic"

    def provider_name(self, client: object) -> str:
        kind = type(client).__name__
        return "aws.bedrock" if "Bedrock" in kind else "gcp.vertex_ai" if "Vertex" in kind else self.name

    def operation(self, path: str) -> str | None:
        if path.endswith(_MESSAGES):
            return "chat"
        return "text_completion" if path.endswith("/v1/complete") else None

    def telling(self, line: bytes) -> bool:
        told = (b'"usage"', b'"message_stop"', b'"error"', b'"tool_use"', b'"completion"')
        return any(word in line for word in told)

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        kind = document.get("type") or event
        message = document.get("message") if kind == "message_start" else document
        if kind in ("message_start", "message", "completion") and isinstance(message, Mapping):
            answer.identify(message)
            answer.tool_calls |= _asked_for(message.get("content"))
        if kind in ("message_start", "message", "message_delta") and isinstance(message, Mapping):
            self._take_usage(message.get("usage"), answer)
        if kind == "content_block_start":
            answer.tool_calls |= _asked_for([document.get("content_block")])
        if kind == "content_block_delta" and isinstance(delta := document.get("delta"), Mapping):
            answer.characters += sum(len(text(delta, key) or "") for key in ("text", "partial_json"))
        if kind in ("message", "message_stop") or (kind == "completion" and document.get("stop_reason")):
            answer.complete = True
        if kind == "error":
            answer.complete = answer.failed = True

    def ends(self, data: bytes) -> bool:
        return False

    def rows(self, answer: Answer) -> list[Row]:
        return rows(answer.usage)

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        return _tool_results(body.get("messages"))

    def ask_for_usage(self, options: Any, path: str) -> Any:
        return None

    def _take_usage(self, usage: object, answer: Answer) -> None:
        if isinstance(usage, Mapping):
            answer.usage.update({key: value for key, value in usage.items() if value is not None})
            answer.service_tier = text(usage, "service_tier") or answer.service_tier


def rows(usage: Mapping[str, Any]) -> list[Row]:
    """The disjoint buckets of an Anthropic usage object."""
    thinking = count(usage, "output_tokens_details", "thinking_tokens")
    own = {**usage, "output_tokens": rest(count(usage, "output_tokens"), thinking)}
    others = _of_other_models(usage)
    return [
        *_buckets([own, *_iterations(usage, "compaction")]),
        Row(TOKENS_REASONING, thinking),
        Row(LLM_WEB_SEARCHES, count(usage, "server_tool_use", "web_search_requests")),
        *(row for model in others for row in _buckets(others[model], model)),
    ]


def _buckets(usages: list[Mapping[str, Any]], model: str = "") -> list[Row]:
    """The sums of several usages of one model; writes by their time to live, which details may leave unknown."""

    def total(*path: str) -> Quantity | None:
        return together(*(count(usage, *path) for usage in usages))

    five_minutes = total("cache_creation", "ephemeral_5m_input_tokens")
    one_hour = total("cache_creation", "ephemeral_1h_input_tokens")
    unknown = rest(total("cache_creation_input_tokens"), five_minutes, one_hour)
    return [
        Row(TOKENS_INPUT, total("input_tokens"), model=model),
        Row(TOKENS_CACHE_READ, total("cache_read_input_tokens"), model=model),
        Row(TOKENS_CACHE_WRITE, five_minutes, cache_ttl="5m", model=model),
        Row(TOKENS_CACHE_WRITE, one_hour, cache_ttl="1h", model=model),
        Row(TOKENS_CACHE_WRITE, unknown, model=model),
        Row(TOKENS_OUTPUT, total("output_tokens"), model=model),
    ]


def _iterations(usage: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """Beta: the parts of the work. Summarising a long context (`compaction`) is billed, and in no total."""
    iterations = usage.get("iterations")
    if not isinstance(iterations, list):
        return []
    return [one for one in iterations if isinstance(one, Mapping) and one.get("type") == kind]


def _of_other_models(usage: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Model -> its usages outside the totals: an advisor's, and those of models that declined before a fallback."""
    serving = {text(one, "model") for one in _iterations(usage, "fallback_message")}
    declined = [one for one in _iterations(usage, "message") if serving and text(one, "model") not in {None, *serving}]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in [*_iterations(usage, "advisor_message"), *declined]:
        found.setdefault(text(one, "model") or "", []).append(one)
    return found


def _asked_for(content: object) -> dict[str, str]:
    """Id -> name of the tools that the model wants the host to run; the server's own tools are `server_tool_use`."""
    uses = [block for block in _items(content) if _member(block, "type") == "tool_use"]
    return {use_id: name for use in uses if (use_id := _name(use, "id")) and (name := _name(use, "name"))}


def _tool_results(messages: object) -> Iterator[ToolResult]:
    """The tool results after the model's last message, named by the tool uses of that message."""
    names: dict[str, str] = {}
    results: list[object] = []
    for message in _items(messages):
        if _member(message, "role") == "assistant":
            names, results = _asked_for(_member(message, "content")), []
        else:
            results += [one for one in _items(_member(message, "content")) if _member(one, "type") == "tool_result"]
    for result in results:
        tool_use_id = _name(result, "tool_use_id")
        yield ToolResult(tool_use_id, names.get(tool_use_id, ""), failed=_member(result, "is_error") is True)


def _items(content: object) -> Iterable[object]:
    """The items of a list; a host's one-shot iterator is left to the SDK."""
    return content if isinstance(content, list | tuple) else ()


def _member(item: object, key: str) -> object:
    """Hosts give back the SDK's own objects as well as what is written as JSON."""
    return item.get(key) if isinstance(item, Mapping) else getattr(item, key, None)


def _name(item: object, key: str) -> str:
    value = _member(item, key)
    return value if isinstance(value, str) else ""


def install(module: ModuleType) -> None:
    """Patch the SDK's base client."""
    sdk_client.install(module, sdk_client.Sdk(Anthropic(), follow=anthropic_batches.follow))


remove = sdk_client.remove
