"""Ollama through its SDK: chat, generate, embed; the functions that make a request and its result.

Usage as in https://docs.ollama.com/api/usage: `prompt_eval_count` is missing, or smaller than the prompt, where the
server had the prompt in its cache, and Ollama does not tell how much that was: what it evaluated is what counts.
Thinking is part of `eval_count`.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from meterhouse import patches
from meterhouse.call import new_call_id
from meterhouse.events import Row
from meterhouse.metered import Metered, Request, start, start_async
from meterhouse.providers.httpx_calls import REQUEST_ID_HEADER
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, count, text
from meterhouse.vocabulary import TOKENS_INPUT, TOKENS_OUTPUT

OPERATIONS = {
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
_OWNERS = ("Client", "AsyncClient")
_TOLD = ("model", "prompt_eval_count", "eval_count", "done", "response")


class Ollama:
    """The `metered.Reader` of Ollama's answers: a body, or the lines of a stream."""

    name = "ollama"

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        answer.model = text(document, "model") or answer.model
        for key in ("prompt_eval_count", "eval_count"):
            if document.get(key) is not None:
                answer.usage[key] = document[key]
        message = document.get("message")
        written = message.get("content") if isinstance(message, Mapping) else document.get("response")
        answer.characters += len(written) if isinstance(written, str) else 0
        if document.get("error"):
            answer.complete = answer.failed = True
        elif document.get("done"):
            answer.complete = True

    def rows(self, answer: Answer) -> list[Row]:
        return [
            Row(TOKENS_INPUT, count(answer.usage, "prompt_eval_count")),
            Row(TOKENS_OUTPUT, count(answer.usage, "eval_count")),
        ]

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        """The results behind the model's last message; Ollama has no ids, and names only since 0.5."""
        messages = body.get("messages")
        listed = [one for one in messages if isinstance(one, Mapping)] if isinstance(messages, list) else []
        found: list[ToolResult] = []
        for message in reversed(listed):
            if message.get("role") == "assistant":
                asked = [*_asked_for(message), *[""] * len(found)]
                return [ToolResult("", one.name or name) for one, name in zip(found, asked, strict=False)]
            if message.get("role") == "tool":
                found.insert(0, ToolResult("", text(message, "tool_name") or text(message, "name") or ""))
        return found


READER = Ollama()


def install(module: ModuleType) -> None:
    """Patch both clients of `ollama._client`."""
    for owner, wrapper in zip(_OWNERS, (_request, _request_async), strict=True):
        for method in _methods(module):
            patches.wrap(module, f"{owner}.{method}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for owner in _OWNERS:
        for method in _methods(module):
            patches.unwrap(module, f"{owner}.{method}")


def _methods(module: ModuleType) -> list[str]:
    """What makes a result out of a request; before 0.4 chat and generate had a method of their own around it."""
    return [name for name in ("_request", "_request_stream") if hasattr(module.Client, name)]


def _request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    sending = _Sending(client, args, kwargs)
    if not sending.billed:
        return wrapped(*args, **kwargs)
    if kwargs.get("stream"):
        return _parts(sending, wrapped(*args, **sending.named))
    metered = start(Metered, READER, sending.describe)
    if metered is None:
        return wrapped(*args, **kwargs)
    with _ending(metered), metered.running():
        result = wrapped(*args, **sending.named)
        _take(metered, result)
    return result


async def _request_async(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    sending = _Sending(client, args, kwargs)
    if not sending.billed:
        return await wrapped(*args, **kwargs)
    if kwargs.get("stream"):
        return _parts_async(sending, await wrapped(*args, **sending.named))
    metered = await start_async(Metered, READER, sending.describe)
    if metered is None:
        return await wrapped(*args, **kwargs)
    with _ending(metered), metered.running():
        result = await wrapped(*args, **sending.named)
        _take(metered, result)
    return result


class _Sending:
    """One request of a client about to go out."""

    def __init__(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # (cls, method, path), before 0.4 (method, path)
        self._path = str(args[-1]) if args else str(kwargs.get("url", ""))
        self.billed = self._path in OPERATIONS
        self._server = client._client.base_url.host if self.billed else ""
        body = kwargs.get("json")
        self._body: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
        self._call_id = new_call_id()
        self.named = {**kwargs, "headers": {REQUEST_ID_HEADER: self._call_id, **(kwargs.get("headers") or {})}}
        """The arguments, with a header that names the call to the server."""

    def describe(self) -> Request:
        """What `metered.start` wants to know."""
        return Request(
            provider=READER.name,
            operation=OPERATIONS[self._path],
            model=text(self._body, "model") or "",
            server=self._server,
            request_id=self._call_id,
            call_id=self._call_id,
            tool_results=partial(READER.tool_results, self._body),
        )


def _parts(sending: _Sending, parts: Iterator[Any]) -> Iterator[Any]:
    """The request goes out when the host asks for the first part, so the call begins there."""
    metered = start(Metered, READER, sending.describe)
    with closing(parts) as opened:  # type: ignore[type-var]
        if metered is None:
            yield from opened
            return
        with _ending(metered):
            for part in opened:
                _take(metered, part)
                yield part


async def _parts_async(sending: _Sending, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    metered = await start_async(Metered, READER, sending.describe)
    async with aclosing(parts) as opened:  # type: ignore[type-var]
        if metered is None:
            async for part in opened:
                yield part
            return
        with _ending(metered):
            async for part in opened:
                _take(metered, part)
                yield part


@contextmanager
def _ending(metered: Metered) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        metered.end(error)
        raise
    metered.end(exhausted=True)


def _take(metered: Metered, part: Any) -> None:
    """A part of the answer: an object with the names of its JSON; before 0.4 a mapping, or the HTTP response."""
    document = part.json() if hasattr(part, "status_code") else part
    if not isinstance(document, Mapping):
        document = {key: getattr(part, key, None) for key in _TOLD}
        document["message"] = {"content": getattr(getattr(part, "message", None), "content", None)}
    metered.take(document)
    if metered.answer.complete:  # now, not at the host's next read: it may never come
        metered.end()


def _asked_for(message: Mapping[str, Any]) -> list[str]:
    calls = message.get("tool_calls")
    functions = [one.get("function") for one in (calls if isinstance(calls, list) else ()) if isinstance(one, Mapping)]
    return [text(one, "name") or "" for one in functions if isinstance(one, Mapping)]
