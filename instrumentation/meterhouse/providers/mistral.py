"""Mistral through its SDK: chat, fill-in-the-middle, agents, conversations, embeddings, OCR, audio, classifiers.

Usage as in https://docs.mistral.ai/api: cached tokens are part of the prompt tokens and taken out of them here;
reasoning is part of the completion and not told apart. A conversation's connector tokens (what its tools put before the
model) stand beside the prompt tokens and are input as well. OCR is billed by the page, audio by the second.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.events import Row
from meterhouse.providers.httpx_calls import REQUEST_ID_HEADER, Outgoing, answered, answered_async
from meterhouse.providers.openai_tools import results_of_messages, take_choices
from meterhouse.providers.openai_usage import merged, rows
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, count, seconds, text
from meterhouse.vocabulary import (
    LLM_AUDIO_SECONDS,
    LLM_CODE_EXECUTIONS,
    LLM_IMAGES,
    LLM_PAGES,
    LLM_WEB_SEARCHES,
    TOKENS_INPUT,
)

OPERATIONS = (
    (re.compile(r"/(chat|agents)/completions$"), "chat"),
    (re.compile(r"/fim/completions$"), "text_completion"),
    (re.compile(r"/conversations(/[^/]+(/restart)?)?$"), "chat"),
    (re.compile(r"/embeddings$"), "embeddings"),
    (re.compile(r"/ocr$"), "ocr"),
    (re.compile(r"/audio/transcriptions$"), "transcription"),
    (re.compile(r"/audio/speech$"), "speech"),
    (re.compile(r"/moderations$"), "moderation"),
    (re.compile(r"/classifications$"), "classification"),
)
"""The end of a path that is billed -> gen_ai.operation.name."""
CONNECTORS = {
    "web_search": LLM_WEB_SEARCHES,
    "web_search_premium": LLM_WEB_SEARCHES,
    "code_interpreter": LLM_CODE_EXECUTIONS,
    "image_generation": LLM_IMAGES,
}
"""A conversation's connector -> the meter that its runs are counted on."""
_ENDINGS = ("conversation.response.done", "transcription.done", "speech.audio.done")
_MODEL = re.compile(rb'(?<!\\)"model"\s*:\s*"([^"\\]{1,256})"')
_METHODS = ("BaseSDK.do_request", "BaseSDK.do_request_async")


class Mistral:
    """See streamed.Provider."""

    name = "mistral_ai"

    def provider_name(self, client: object) -> str:
        return self.name

    def operation(self, path: str) -> str | None:
        return next((named for ending, named in OPERATIONS if ending.search(path)), None)

    def telling(self, data: bytes) -> bool:
        told = (b'"usage"', b'"tool_calls"', b"function.call", b".error", b".done", b"[DONE]", b'"error"')
        return any(word in data for word in told)

    def ends(self, data: bytes) -> bool:
        return data.startswith(b"[DONE]")

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        kind = text(document, "type") or event
        answer.identify(document)
        for place in ("usage", "usage_info"):
            if isinstance(document.get(place), Mapping):
                answer.usage = dict(document[place])
                answer.service_tier = text(answer.usage, "service_tier") or answer.service_tier
        take_choices(document.get("choices"), answer)
        for entry in (document, *_entries(document)):
            answer.model = text(entry, "model") or answer.model
            if str(entry.get("type")).startswith("function.call") and text(entry, "tool_call_id"):
                answer.tool_calls[entry["tool_call_id"]] = text(entry, "name") or ""
        answer.characters += _characters(document)
        if kind in _ENDINGS:
            answer.complete = True
        if kind in ("conversation.response.error", "error") or isinstance(document.get("error"), Mapping):
            answer.complete = answer.failed = True

    def rows(self, answer: Answer) -> list[Row]:
        usage = answer.usage
        if "num_cached_tokens" in usage:
            usage = {"cached_tokens": usage["num_cached_tokens"], **usage}
        connectors = usage.get("connectors")
        found = [
            *rows(usage),
            Row(TOKENS_INPUT, count(usage, "connector_tokens")),
            Row(LLM_AUDIO_SECONDS, seconds(usage, "prompt_audio_seconds"), decimal=True),
            Row(LLM_PAGES, count(usage, "pages_processed")),
        ]
        if isinstance(connectors, Mapping):
            found += [Row(CONNECTORS[name], count(connectors, name)) for name in connectors if name in CONNECTORS]
        return merged(found)

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        inputs = body.get("inputs")
        results = [
            ToolResult(text(one, "tool_call_id") or "")
            for one in (inputs if isinstance(inputs, list) else ())
            if isinstance(one, Mapping) and one.get("type") == "function.result"
        ]
        return [*results_of_messages(body.get("messages")), *results]

    def ask_for_usage(self, options: Any, path: str) -> None:
        return None  # every answer reports it


READER = Mistral()


def install(module: ModuleType) -> None:
    """Patch the base class of the SDK's parts, `basesdk.BaseSDK`."""
    for method, wrapper in zip(_METHODS, (_request, _request_async), strict=True):
        patches.wrap(module, method, wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for method in _METHODS:
        patches.unwrap(module, method)


def _request(wrapped: Callable[..., Any], _sdk: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _outgoing(args[1] if len(args) > 1 else kwargs.get("request"))
    return wrapped(*args, **kwargs) if call is None else answered(call, lambda: wrapped(*args, **kwargs))


async def _request_async(wrapped: Callable[..., Any], _sdk: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call = _outgoing(args[1] if len(args) > 1 else kwargs.get("request"))
    if call is None:
        return await wrapped(*args, **kwargs)
    return await answered_async(call, lambda: wrapped(*args, **kwargs))


def _outgoing(request: Any) -> Outgoing | None:
    if getattr(request, "method", "") != "POST" or READER.operation(request.url.path) is None:
        return None
    call = Outgoing(READER, str(request.url), lambda: _told(request), request.headers.get(REQUEST_ID_HEADER, ""))
    request.headers.setdefault(REQUEST_ID_HEADER, call.call_id)
    return call


def _told(request: Any) -> Mapping[str, Any]:
    """The model, and the whole body only where tool results may be in it: parsing it is not free."""
    try:
        content = request.content
    except RuntimeError:  # a file that is sent in pieces
        return {}
    if b'"tool_call_id"' in content:
        document = json.loads(content)
        return document if isinstance(document, dict) else {}
    model = _MODEL.search(content)
    return {} if model is None else {"model": model[1].decode(errors="replace")}


def _entries(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    outputs = document.get("outputs")
    return [one for one in outputs if isinstance(one, Mapping)] if isinstance(outputs, list) else []


def _characters(document: Mapping[str, Any]) -> int:
    """Of the text that the model was seen to write."""
    written = [document.get("content")] if document.get("type") == "message.output.delta" else []
    for choice in document.get("choices") or ():
        delta = choice.get("delta") if isinstance(choice, Mapping) else None
        written.append(delta.get("content") if isinstance(delta, Mapping) else None)
    return sum(len(one) for one in written if isinstance(one, str))
