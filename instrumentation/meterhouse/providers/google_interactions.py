"""Google's interactions API (`client.interactions`), which has a transport of its own beside google-genai's client.

Until 2.x it is the base client that OpenAI's and Anthropic's SDKs have as well; since then `do_request`. Usage as in
https://ai.google.dev/api/interactions-api: the counts of generateContent under other names.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.events import Row
from meterhouse.metered import Request, start, start_async
from meterhouse.providers import google_usage, sdk_client
from meterhouse.providers.streamed import Streamed, listen
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, count, text
from meterhouse.vocabulary import LLM_WEB_SEARCHES

_PATCHED = (("BaseSDK", "do_request"), ("AsyncBaseSDK", "do_request_async"))
_TOTALS = {
    "promptTokenCount": "total_input_tokens",
    "cachedContentTokenCount": "total_cached_tokens",
    "toolUsePromptTokenCount": "total_tool_use_tokens",
    "candidatesTokenCount": "total_output_tokens",
    "thoughtsTokenCount": "total_thought_tokens",
}
_DETAILS = {
    "promptTokensDetails": "input_tokens_by_modality",
    "cacheTokensDetails": "cached_tokens_by_modality",
    "toolUsePromptTokensDetails": "tool_use_tokens_by_modality",
    "candidatesTokensDetails": "output_tokens_by_modality",
}


class Interactions:
    """See sdk_client.Provider."""

    name = "google-genai"

    def provider_name(self, client: object) -> str:
        return "gcp.vertex_ai" if "aiplatform" in str(getattr(client, "base_url", "")) else "gcp.gemini"

    def operation(self, path: str) -> str | None:
        return "generate_content" if path.endswith("/interactions") else None

    def telling(self, line: bytes) -> bool:
        return any(word in line for word in (b'usage"', b'"interaction"', b'"error"', b'"function_call"'))

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        wrapped = document.get("interaction")
        interaction = wrapped if isinstance(wrapped, Mapping) else document
        self._take_usage(interaction, answer)
        if "status" in interaction and text(interaction, "id"):
            answer.identify(interaction)
        for step in (document.get("step"), *_list(interaction.get("steps")), *_list(interaction.get("outputs"))):
            if isinstance(step, Mapping) and step.get("type") == "function_call" and text(step, "id"):
                answer.tool_calls[step["id"]] = text(step, "name") or ""
        kind = text(document, "event_type") or event
        if kind in ("interaction.completed", "interaction.complete"):
            answer.complete = True
        if kind == "error" or interaction.get("status") == "failed" or isinstance(document.get("error"), Mapping):
            answer.complete = answer.failed = True

    def rows(self, answer: Answer) -> list[Row]:
        return rows(answer.usage)

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        return _tool_results(body.get("input"))

    def ask_for_usage(self, options: Any, path: str) -> Any:
        return None

    def _take_usage(self, document: Mapping[str, Any], answer: Answer) -> None:
        metadata = document.get("metadata")
        told = document.get("usage") or (metadata.get("total_usage") if isinstance(metadata, Mapping) else None)
        if isinstance(told, Mapping):
            answer.usage.update({key: value for key, value in told.items() if value is not None})


def rows(usage: Mapping[str, Any]) -> list[Row]:
    """The disjoint buckets of an interaction's usage."""
    totals = {ours: usage.get(theirs) for ours, theirs in _TOTALS.items()}
    details = {ours: [_renamed(one) for one in _list(usage.get(theirs))] for ours, theirs in _DETAILS.items()}
    searches = [one for one in _list(usage.get("grounding_tool_count")) if _is_search(one)]
    return [
        *google_usage.rows({**totals, **details}),
        Row(LLM_WEB_SEARCHES, count(searches[0], "count") if searches else None),
    ]


def _renamed(one: object) -> object:
    return {"modality": one.get("modality"), "tokenCount": one.get("tokens")} if isinstance(one, Mapping) else one


def _is_search(one: object) -> bool:
    return isinstance(one, Mapping) and one.get("type") == "google_search"


def _tool_results(given: object) -> Iterator[ToolResult]:
    for one in [given] if isinstance(given, Mapping) else _list(given):
        if isinstance(one, Mapping) and one.get("type") == "function_result":
            yield ToolResult(text(one, "call_id") or "", text(one, "name") or "", failed=one.get("is_error") is True)


def _list(items: object) -> list[Any]:
    return items if isinstance(items, list) else []


READER = Interactions()


def install(module: ModuleType) -> None:
    """Patch whichever transport this version has."""
    if hasattr(module, "SyncAPIClient"):
        sdk_client.install(module, READER)
        return
    for (owner, method), wrapper in zip(_PATCHED, (_do_request, _do_request_async), strict=True):
        patches.wrap(module, f"{owner}.{method}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    if hasattr(module, "SyncAPIClient"):
        sdk_client.remove(module)
        return
    for owner, method in _PATCHED:
        patches.unwrap(module, f"{owner}.{method}")


def _do_request(wrapped: Any, _sdk: Any, args: Any, kwargs: Any) -> Any:
    metered = start(Streamed, READER, partial(_describe, *args, **kwargs))
    if metered is None:
        return wrapped(*args, **kwargs)
    with metered.requesting():
        response = wrapped(*args, **kwargs)
    _answered(metered, response)
    return response


async def _do_request_async(wrapped: Any, _sdk: Any, args: Any, kwargs: Any) -> Any:
    metered = await start_async(Streamed, READER, partial(_describe, *args, **kwargs))
    if metered is None:
        return await wrapped(*args, **kwargs)
    with metered.requesting():
        response = await wrapped(*args, **kwargs)
    _answered(metered, response)
    return response


def _describe(hook_ctx: Any, request: Any, *_: Any, **__: Any) -> Request | None:
    if hook_ctx.operation_id != "CreateInteraction":
        return None
    document = json.loads(request.content)
    return Request(
        provider="gcp.vertex_ai" if "/projects/" in request.url.path else "gcp.gemini",
        operation="generate_content",
        model=text(document, "model") or text(document, "agent") or "",
        server=request.url.host,
        tool_results=partial(READER.tool_results, document),
    )


def _answered(metered: Streamed, response: Any) -> None:
    if response.status_code >= 400:  # handed back for its caller to raise
        metered.answer.failed = True
        metered.end()
    else:
        listen(metered, response)
