"""Cohere through its SDK: chat, embed, rerank, classify, generate, summarize, parse, transcriptions; v1 and v2.

Billed is what Cohere says it bills: `billed_units` (https://docs.cohere.com/reference/chat). Its `tokens` also hold the
template around the prompt and count only where no billed units are told. `cached_tokens` are a part of the prompt: they
are taken out of the billed input, at most all of it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.events import Row
from meterhouse.providers.httpx_calls import (
    REQUEST_ID_HEADER,
    Outgoing,
    answered,
    answered_async,
    opened,
    opened_async,
)
from meterhouse.providers.litellm_wire import JSONLines
from meterhouse.providers.openai_tools import results_of_messages
from meterhouse.providers.streamed import Streamed
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, Quantity, count, is_count, rest, text, together
from meterhouse.vocabulary import (
    LLM_CLASSIFICATIONS,
    LLM_INPUT_IMAGES,
    LLM_PAGES,
    LLM_SEARCH_UNITS,
    TOKENS_CACHE_READ,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
)

OPERATIONS = {
    "chat": "chat",
    "generate": "text_completion",
    "summarize": "text_completion",
    "embed": "embeddings",
    "rerank": "rerank",
    "classify": "classification",
    "parse": "parse",
    "transcriptions": "transcription",
}
"""The end of a path that is billed -> gen_ai.operation.name."""
_OWNERS = ("HttpClient", "AsyncHttpClient")
_NOTHING: Mapping[str, Any] = {}


class Cohere:
    """See streamed.Provider."""

    name = "cohere"

    def provider_name(self, client: object) -> str:
        return self.name

    def operation(self, path: str) -> str | None:
        return OPERATIONS.get(path.rpartition("/")[2])

    def telling(self, data: bytes) -> bool:
        told = (b"message-start", b"message-end", b"stream-", b"tool-call", b"error", b"[DONE]", b"billed_units")
        return any(word in data for word in told)

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        kind = text(document, "type") or text(document, "event_type") or event
        body = _body(document)
        answer.response_id = (
            text(document, "id") or text(body, "generation_id") or text(body, "id") or answer.response_id
        )
        for told in (body.get("usage"), body.get("meta"), *_generation_metas(body)):
            if isinstance(told, Mapping) and ("billed_units" in told or "tokens" in told):
                answer.usage = dict(told)
        for call in _calls(body):
            if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) and text(call, "id"):
                answer.tool_calls[call["id"]] = text(call["function"], "name") or ""
        if kind in ("text-generation", "content-delta"):
            answer.characters += _characters(document)
        if kind in ("message-end", "stream-end"):
            answer.complete = True
            answer.failed = "ERROR" in str(body.get("finish_reason", "")).upper()
        if kind == "error":
            answer.complete = answer.failed = True

    def rows(self, answer: Answer) -> list[Row]:
        billed = answer.usage.get("billed_units")
        told = billed if isinstance(billed, Mapping) and billed else answer.usage.get("tokens")
        if not isinstance(told, Mapping):
            return []
        cached, given = count(answer.usage, "cached_tokens"), count(told, "input_tokens")
        if is_count(cached) and is_count(given):
            cached = min(cached or 0, given or 0)
        return [
            *_input_rows(told, rest(given, cached)),
            Row(TOKENS_CACHE_READ, cached),
            Row(TOKENS_OUTPUT, count(told, "output_tokens")),
            Row(LLM_SEARCH_UNITS, count(told, "search_units")),
            Row(LLM_CLASSIFICATIONS, count(told, "classifications")),
            Row(LLM_INPUT_IMAGES, count(told, "images")),
            Row(LLM_PAGES, count(told, "pages")),
        ]

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        results = body.get("tool_results")  # v1: the results of one turn, without ids
        calls = [one.get("call") for one in (results if isinstance(results, list) else ()) if isinstance(one, Mapping)]
        named = [ToolResult("", text(call, "name") or "") for call in calls if isinstance(call, Mapping)]
        return [*results_of_messages(body.get("messages")), *named]

    def ask_for_usage(self, options: Any, path: str) -> None:
        return None  # every answer reports it


class Answered(Streamed):
    """v1 streams one JSON document per line, v2 server-sent events."""

    def framed(self, content_type: str) -> bool:
        if "stream+json" in content_type or "ndjson" in content_type:
            self.lines = JSONLines(self._take)
            return True
        return super().framed(content_type)


READER = Cohere()


def install(module: ModuleType) -> None:
    """Patch both clients of `cohere.core.http_client`."""
    for owner, (request, stream) in zip(_OWNERS, ((_request, _stream), (_request_async, _stream_async)), strict=True):
        patches.wrap(module, f"{owner}.request", request)
        patches.wrap(module, f"{owner}.stream", stream)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for owner in _OWNERS:
        for method in ("request", "stream"):
            patches.unwrap(module, f"{owner}.{method}")


def _request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _outgoing(client, args, kwargs)
    if call is None:
        return wrapped(*args, **kwargs)
    return answered(call, lambda: wrapped(*args, **_named(call, kwargs)))


async def _request_async(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    call = _outgoing(client, args, kwargs)
    if call is None:
        return await wrapped(*args, **kwargs)
    return await answered_async(call, lambda: wrapped(*args, **_named(call, kwargs)))


def _stream(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AbstractContextManager[Any]:
    call = _outgoing(client, args, kwargs)
    manager: AbstractContextManager[Any] = wrapped(*args, **(kwargs if call is None else _named(call, kwargs)))
    return manager if call is None else opened(call, manager)


def _stream_async(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AbstractAsyncContextManager[Any]:
    call = _outgoing(client, args, kwargs)
    manager: AbstractAsyncContextManager[Any] = wrapped(*args, **(kwargs if call is None else _named(call, kwargs)))
    return manager if call is None else opened_async(call, manager)


def _outgoing(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outgoing | None:
    """None for what is not billed. Before 5.1 the method is the first argument and the URL is whole."""
    method, path = (kwargs["method"], (*args, kwargs.get("path"))[0]) if "method" in kwargs else (*args, "", "")[:2]
    if str(method).upper() != "POST" or READER.operation(str(path)) is None:
        return None
    base = client.get_base_url(kwargs.get("base_url")) if hasattr(client, "get_base_url") else ""
    url = str(path) if "://" in str(path) else f"{base}/{path}"
    given = (kwargs.get("json"), kwargs.get("data"))
    body: Mapping[str, Any] = next((one for one in given if isinstance(one, Mapping)), _NOTHING)
    return Outgoing(READER, url, lambda: body, _given_name(kwargs), Answered)


def _given_name(kwargs: Mapping[str, Any]) -> str:
    """The name that the host gave the call."""
    options = kwargs.get("request_options")
    own = options.get("additional_headers") if isinstance(options, Mapping) else None
    for headers in (kwargs.get("headers"), own):
        for name, value in headers.items() if isinstance(headers, Mapping) else ():
            if str(name).lower() == REQUEST_ID_HEADER.lower() and isinstance(value, str):
                return value
    return ""


def _named(call: Outgoing, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, with a header that names the call to the provider."""
    if call.request_id:
        return kwargs
    return {**kwargs, "headers": {**(kwargs.get("headers") or {}), REQUEST_ID_HEADER: call.call_id}}


def _body(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that has the members of a whole answer: v1 streams put it in `response`, v2 streams in `delta`."""
    for part in ("response", "delta"):
        if isinstance(document.get(part), Mapping):
            return document[part]  # type: ignore[no-any-return]
    return document


def _generation_metas(body: Mapping[str, Any]) -> list[Any]:
    generations = body.get("generations")
    return [one.get("meta") for one in generations if isinstance(one, Mapping)] if isinstance(generations, list) else []


def _calls(body: Mapping[str, Any]) -> list[Any]:
    message = body.get("message")
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    return calls if isinstance(calls, list) else [calls]


def _input_rows(told: Mapping[str, Any], given: Quantity | None) -> list[Row]:
    """Image tokens stand beside the input tokens, unless text and image together are just the input."""
    image, words = count(told, "image_tokens"), count(told, "text_tokens")
    if image is None or not image:
        return [Row(TOKENS_INPUT, words if given is None else given)]
    inside = words is not None and together(words, image) == count(told, "input_tokens")
    written = rest(given, image) if inside else words if given is None else given
    return [Row(TOKENS_INPUT, image, "image"), Row(TOKENS_INPUT, written, "text")]


def _characters(document: Mapping[str, Any]) -> int:
    delta: Any = document
    for key in ("delta", "message", "content"):
        delta = delta.get(key) if isinstance(delta, Mapping) else None
    written = document.get("text") if delta is None else delta.get("text") if isinstance(delta, Mapping) else None
    return len(written) if isinstance(written, str) else 0
