"""OpenAI, and whatever is called through its SDK.

Usage is read by openai_usage.py, tools by openai_tools.py, background responses are followed by openai_background.py.
Not metered: realtime and other web sockets, batches, fine-tuning, assistants. Moderations and token counts are free.
"""

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from meterhouse.events import Row
from meterhouse.providers import openai_background, sdk_client
from meterhouse.providers.openai_tools import (
    hosted_rows,
    results_of_input,
    results_of_messages,
    take_choices,
    take_items,
)
from meterhouse.providers.openai_usage import breakdown, merged, rows
from meterhouse.tools import ToolResult
from meterhouse.usage import MAPPING, Answer, count, is_mapping, seconds, text
from meterhouse.vocabulary import LLM_AUDIO_SECONDS, LLM_IMAGES

OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/responses/compact": "compaction",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
    "/decisions": "decision",
    "/images/generations": "image_generation",
    "/images/edits": "image_generation",
    "/images/variations": "image_generation",
    "/audio/transcriptions": "transcription",
    "/audio/translations": "translation",
    "/audio/speech": "speech",
    "/videos": "video_generation",
    "/videos/edits": "video_generation",
    "/videos/extensions": "video_generation",
    "/remix": "video_generation",
}
"""The end of a path that is billed -> gen_ai.operation.name."""
HOSTS = {
    "openai.azure.com": "azure.ai.openai",
    "cognitiveservices.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.openai",
    "models.ai.azure.com": "azure.ai.inference",
    "amazonaws.com": "aws.bedrock",
    "api.aws": "aws.bedrock",
    "api.anthropic.com": "anthropic",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "openrouter.ai": "openrouter",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}
"""A host, or the end of one -> gen_ai.provider.name; every other server is `openai`, and server.address says which."""
_STREAM_OPTIONS = "stream_options"
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_TERMINAL = ("completed", "incomplete", "failed", "cancelled")
"""States of a response in which nothing more comes."""
_ENDINGS = ("transcript.text.done", "speech.audio.done")
_IMAGES = ("image_generation.completed", "image_edit.completed")


class OpenAI:
    """See streamed.Provider."""

    name = "openai"

    def provider_name(self, client: object) -> str:
        if any("Azure" in kind.__name__ for kind in type(client).__mro__):
            return "azure.ai.openai"
        host = ending = sdk_client.host(client)
        while ending:
            if ending in HOSTS:
                return HOSTS[ending]
            ending = ending.partition(".")[2]
        return "gcp.vertex_ai" if host.endswith("-aiplatform.googleapis.com") else self.name

    def operation(self, path: str) -> str | None:
        above, _, last = path.rpartition("/")
        return OPERATIONS.get(f"/{above.rpartition('/')[2]}/{last}") or OPERATIONS.get(f"/{last}")

    def telling(self, data: bytes) -> bool:
        # Every chunk has "usage":null where usage was asked for; only the object tells something.
        return (
            (b'"usage"' in data and _USAGE.search(data) is not None)
            or b'_call"' in data  # an item of a response that is a tool's
            or (b'"tool_calls"' in data and b'"name"' in data)
            or b'"error"' in data
            or b"[DONE]" in data
        )

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        kind = document.get("type") or event
        response = document.get("response")
        body = response if is_mapping(response) else document  # responses: the events wrap it
        answer.identify(body)
        self._take_usage(body, answer)
        if body is response or body.get("object") == "response":
            self._take_response(body, answer)
        take_choices(document.get("choices"), answer)
        _take_text(document, kind, answer)
        if kind == "response.output_item.done":
            take_items([document.get("item")], answer)
        elif kind in _IMAGES:
            answer.noted["images"] = answer.noted.get("images", 0) + 1
            answer.noted.setdefault("usages", []).append(document.get("usage"))
        elif kind in _ENDINGS:
            answer.complete = True
        if kind in ("response.failed", "error") or document.get("error"):  # a falsy one is none to the SDK either
            answer.complete = answer.failed = True

    def rows(self, answer: Answer) -> list[Row]:
        noted = answer.noted
        if not noted:
            return rows(answer.usage)
        usages = [one for one in noted.get("usages", ()) if isinstance(one, MAPPING)] or [answer.usage]
        found = breakdown(noted.get("models", ()), answer.usage) or [row for usage in usages for row in rows(usage)]
        if not answer.usage and "duration" in noted:
            found.append(Row(LLM_AUDIO_SECONDS, noted["duration"], decimal=True))
        if "images" in noted:
            found.append(Row(LLM_IMAGES, noted["images"]))
        tool = noted.get("tool_usage", {}).get("image_gen")
        if isinstance(tool, MAPPING):
            found += rows(tool, noted.get("image_model", ""))
        for drawing in noted.get("svg", ()):
            found += rows(drawing, text(drawing, "model") or "")
        return merged([*found, *hosted_rows(answer)])

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        found = results_of_messages(body.get("messages"))
        return found if found or "input" not in body else results_of_input(body["input"])

    def ask_for_usage(self, options: Any, path: str) -> tuple[Any, Callable[[bytes], bytes]] | None:
        """Chat streams report usage only where asked: a copy of the options that asks, or None if there is no need."""
        body = options.json_data
        if not path.endswith("completions") or not isinstance(body, MAPPING):
            return None
        extra = options.extra_json
        place = "extra_json" if isinstance(extra, MAPPING) and _STREAM_OPTIONS in extra else "json_data"
        asked = (extra if place == "extra_json" else body).get(_STREAM_OPTIONS)
        if not (asked is None or isinstance(asked, MAPPING)) or (asked and asked.get("include_usage")):
            return None
        changed = copy.copy(options)
        setattr(changed, place, {**getattr(options, place), _STREAM_OPTIONS: {**(asked or {}), "include_usage": True}})
        return changed, unasked

    def _take_usage(self, body: Mapping[str, Any], answer: Answer) -> None:
        groq = body.get("x_groq")  # its streams report usage there, whether or not they were asked
        for place in (groq, body) if is_mapping(groq) else (body,):
            if is_mapping(place.get("usage")):
                answer.usage = dict(place["usage"])
            parts = place.get("usage_breakdown")
            if is_mapping(parts) and isinstance(parts.get("models"), list):
                answer.noted["models"] = parts["models"]
        if "duration" in body:  # whisper's verbose answers, whose usage older servers leave out
            answer.noted["duration"] = seconds(body, "duration")
        made = body.get("data")
        if isinstance(made, list) and made and all(isinstance(one, MAPPING) and _is_image(one) for one in made):
            answer.noted["images"] = len(made)
        if is_mapping(body.get("svg_usage")):
            answer.noted["svg"] = [body["svg_usage"]]

    def _take_response(self, body: Mapping[str, Any], answer: Answer) -> None:
        """What only the responses API has: state, output items, the usage of the provider's own tools."""
        noted, status = answer.noted, body.get("status")
        if status in _TERMINAL or (status is None and answer.usage):
            answer.complete = status != "cancelled"
            answer.failed = answer.failed or status == "failed"
        answer.pending = body.get("background") is True and status in ("queued", "in_progress")
        noted["background"], noted["status"] = body.get("background") is True, status
        created = count(body, "created_at")
        answer.created_at_ns = int(created * 10**9) if created and created > 0 else None
        if body.get("output"):
            noted.pop("hosted", None)
            take_items(body["output"], answer)
            items = [item for item in body["output"] if isinstance(item, MAPPING)]
            noted["svg"] = [item["svg_usage"] for item in items if isinstance(item.get("svg_usage"), MAPPING)]
        if isinstance(body.get("tool_usage"), MAPPING):
            noted["tool_usage"] = body["tool_usage"]
        for tool in body.get("tools") or ():
            if isinstance(tool, MAPPING) and tool.get("type") == "image_generation":
                noted["image_model"] = text(tool, "model") or ""


def unasked(event: bytes) -> bytes:
    """An event of a chat stream as it would have come without asking for usage; empty where it would not have come.

    A usage beside a choice stays: servers that tell it there mostly do so unasked, and elsewhere it is only one field
    more for the host.
    """
    if b'"usage"' not in event:
        return event
    plain = event.replace(b',"usage":null', b"")
    if _USAGE.search(plain) is None:
        return plain
    data = b"\n".join(line[5:] for line in plain.splitlines() if line.startswith(b"data:"))
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return event
    if not isinstance(document, dict) or document.get("choices") or document.get("error"):
        return plain
    return b"" if isinstance(document.get("usage"), dict) else plain


def _take_text(document: Mapping[str, Any], kind: object, answer: Answer) -> None:
    """Count the characters that the model was seen to write."""
    if kind in ("response.output_text.delta", "response.refusal.delta", "transcript.text.delta"):
        answer.characters += len(text(document, "delta") or "")
    for choice in document.get("choices") or ():
        if is_mapping(choice):
            delta = choice.get("delta")
            if is_mapping(delta):
                answer.characters += sum(len(text(delta, key) or "") for key in ("content", "refusal"))
            answer.characters += len(text(choice, "text") or "")


def _is_image(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("b64_json") or item.get("url"), str)


def install(module: ModuleType) -> None:
    """Patch the SDK's base client."""
    sdk_client.install(module, sdk_client.Sdk(OpenAI(), openai_background.Created, openai_background.follow))


remove = sdk_client.remove
