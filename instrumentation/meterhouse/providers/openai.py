"""OpenAI, and whatever is called through its SDK: chat completions, completions, responses, embeddings.

Usage as in https://platform.openai.com/docs/api-reference: cached and cache-write tokens are part of the input tokens,
reasoning tokens part of the output tokens, so both are taken out of them here.
"""

import copy
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import sdk_client
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, Quantity, by_modality, count, is_count, rest, together
from meterhouse.vocabulary import (
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)

OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
_STREAM_OPTIONS = "stream_options"


class OpenAI:
    """See sdk_client.Provider."""

    name = "openai"

    def provider_name(self, client: object) -> str:
        return "azure.ai.openai" if "Azure" in type(client).__name__ else self.name

    def operation(self, path: str) -> str | None:
        for ending, operation in OPERATIONS.items():
            if path.endswith(ending):
                return operation
        return None

    def telling(self, line: bytes) -> bool:
        # Every chunk has "usage":null where usage was asked for; only the object tells something.
        return (b'"usage"' in line and b'"usage":null' not in line.replace(b" ", b"")) or b'"error"' in line

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        response = document.get("response")
        body = response if isinstance(response, Mapping) else document  # responses: the events wrap it
        answer.identify(body)
        if isinstance(body.get("usage"), Mapping):
            answer.usage = dict(body["usage"])
        kind = document.get("type") or event
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            answer.complete = True
        if kind in ("response.failed", "error") or isinstance(document.get("error"), Mapping):
            answer.complete = answer.failed = True

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def rows(self, answer: Answer) -> list[Row]:
        return rows(answer.usage)

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        return ()

    def ask_for_usage(self, options: Any, path: str) -> Any:
        """Chat streams report usage only where asked: a copy of the options that asks, or None if there is no need."""
        body = options.json_data
        if not path.endswith("completions") or not isinstance(body, Mapping):
            return None
        extra = options.extra_json
        place = "extra_json" if isinstance(extra, Mapping) and _STREAM_OPTIONS in extra else "json_data"
        asked = (extra if place == "extra_json" else body).get(_STREAM_OPTIONS)
        if not (asked is None or isinstance(asked, Mapping)) or (asked and asked.get("include_usage")):
            return None
        changed = copy.copy(options)
        setattr(changed, place, {**getattr(options, place), _STREAM_OPTIONS: {**(asked or {}), "include_usage": True}})
        return changed

    def caused_by_us(self, document: Mapping[str, Any]) -> bool:
        """The chunk that a stream has only because usage was asked for."""
        return document.get("choices") == [] and isinstance(document.get("usage"), Mapping)


def rows(usage: Mapping[str, Any]) -> list[Row]:
    """The disjoint buckets of an OpenAI usage object, of the chat or of the responses shape."""
    shape = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    given, made = count(usage, shape[0]), count(usage, shape[1])
    given_details, made_details = f"{shape[0]}_details", f"{shape[1]}_details"
    cached = count(usage, given_details, "cached_tokens")
    written = count(usage, given_details, "cache_write_tokens")
    reasoning = count(usage, made_details, "reasoning_tokens")
    visible = made if _beside(reasoning, given, made, count(usage, "total_tokens")) else rest(made, reasoning)
    return [
        *by_modality(TOKENS_INPUT, given, rest(given, cached, written), **_media(usage, given_details)),
        Row(TOKENS_CACHE_READ, cached),
        Row(TOKENS_CACHE_WRITE, written),
        *by_modality(TOKENS_OUTPUT, made, visible, **_media(usage, made_details)),
        Row(TOKENS_REASONING, reasoning),
    ]


def _beside(reasoning: Quantity | None, given: Quantity | None, made: Quantity | None, total: Quantity | None) -> bool:
    """Some compatible servers count reasoning beside the output instead of inside; their total shows it."""
    if not reasoning or not made or not is_count(reasoning) or not is_count(made):
        return False
    return reasoning > made or total == together(given, made, reasoning)


def _media(usage: Mapping[str, Any], details: str) -> dict[str, Quantity | None]:
    return {"audio": count(usage, details, "audio_tokens"), "image": count(usage, details, "image_tokens")}


def install(module: ModuleType) -> None:
    """Patch the SDK's base client."""
    sdk_client.install(module, OpenAI())


remove = sdk_client.remove
