"""Anthropic messages.

Usage as in https://docs.anthropic.com/en/api/messages: input tokens exclude what was read from or written to the cache;
the usage of `message_delta` is cumulative, so it replaces what `message_start` said; thinking is part of the output.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import sdk_client
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, count, rest, text, together
from meterhouse.vocabulary import (
    LLM_WEB_SEARCHES,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)


class Anthropic:
    """See sdk_client.Provider."""

    name = "anthropic"

    def provider_name(self, client: object) -> str:
        kind = type(client).__name__
        return "aws.bedrock" if "Bedrock" in kind else "gcp.vertex_ai" if "Vertex" in kind else self.name

    def operation(self, path: str) -> str | None:
        return "chat" if path.endswith("/v1/messages") else None

    def telling(self, line: bytes) -> bool:
        return b'"usage"' in line or b'"message_stop"' in line or b'"error"' in line

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        kind = document.get("type") or event
        message = document.get("message") if kind == "message_start" else document
        if kind in ("message_start", "message") and isinstance(message, Mapping):
            answer.identify(message)
        if kind in ("message_start", "message", "message_delta") and isinstance(message, Mapping):
            self._take_usage(message.get("usage"), answer)
        if kind in ("message", "message_stop"):
            answer.complete = True
        if kind == "error":
            answer.complete = answer.failed = True

    def ends(self, data: bytes) -> bool:
        return False

    def rows(self, answer: Answer) -> list[Row]:
        return rows(answer.usage)

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        return ()

    def ask_for_usage(self, options: Any, path: str) -> Any:
        return None

    def caused_by_us(self, document: Mapping[str, Any]) -> bool:
        return False

    def _take_usage(self, usage: object, answer: Answer) -> None:
        if isinstance(usage, Mapping):
            answer.usage.update({key: value for key, value in usage.items() if value is not None})
            answer.service_tier = text(usage, "service_tier") or answer.service_tier


def rows(usage: Mapping[str, Any]) -> list[Row]:
    """The disjoint buckets of an Anthropic usage object."""
    thinking = count(usage, "output_tokens_details", "thinking_tokens")
    visible = rest(count(usage, "output_tokens"), thinking)
    compacting = _compactions(usage)
    return [
        Row(TOKENS_INPUT, together(count(usage, "input_tokens"), *(count(one, "input_tokens") for one in compacting))),
        Row(TOKENS_CACHE_READ, count(usage, "cache_read_input_tokens")),
        *_cache_writes(usage),
        Row(TOKENS_OUTPUT, together(visible, *(count(one, "output_tokens") for one in compacting))),
        Row(TOKENS_REASONING, thinking),
        Row(LLM_WEB_SEARCHES, count(usage, "server_tool_use", "web_search_requests")),
    ]


def _cache_writes(usage: Mapping[str, Any]) -> list[Row]:
    """Writes by their time to live; what the total has beyond the details has an unknown one."""
    five_minutes = count(usage, "cache_creation", "ephemeral_5m_input_tokens")
    one_hour = count(usage, "cache_creation", "ephemeral_1h_input_tokens")
    unknown = rest(count(usage, "cache_creation_input_tokens"), five_minutes, one_hour)
    return [
        Row(TOKENS_CACHE_WRITE, five_minutes, cache_ttl="5m"),
        Row(TOKENS_CACHE_WRITE, one_hour, cache_ttl="1h"),
        Row(TOKENS_CACHE_WRITE, unknown),
    ]


def _compactions(usage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Beta: summarising a long context is billed, and is not in the usage's own totals."""
    iterations = usage.get("iterations")
    if not isinstance(iterations, list):
        return []
    return [one for one in iterations if isinstance(one, Mapping) and one.get("type") == "compaction"]


def install(module: ModuleType) -> None:
    """Patch the SDK's base client."""
    sdk_client.install(module, Anthropic())


remove = sdk_client.remove
