"""Google's Gemini API and Vertex AI through google-genai: content, chats, embeddings and images.

All of its families but interactions and live sessions end in four methods of one client, entered once per logical call
with the SDK's retries inside. What the SDK adds on top (chats, function calling, continuation) enters once per turn.
"""

import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from functools import partial
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from meterhouse import patches
from meterhouse.metered import Metered, Request, start, start_async
from meterhouse.providers.google_usage import Gemini

OPERATIONS = {
    "generateContent": "generate_content",
    "streamGenerateContent": "generate_content",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
    "predict": "image_generation",
}
"""Method at the end of a path -> what it is billed as."""
TIER_HEADER = "x-gemini-service-tier"
_PATCHED = ("request", "request_streamed", "async_request", "async_request_streamed")
_READER = Gemini()
_END = object()


def install(module: ModuleType) -> None:
    """Patch the four methods of the SDK's client."""
    wrappers = (_request, _request_streamed, _async_request, _async_request_streamed)
    for method, wrapper in zip(_PATCHED, wrappers, strict=True):
        patches.wrap(module, f"BaseApiClient.{method}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for method in _PATCHED:
        patches.unwrap(module, f"BaseApiClient.{method}")


def _request(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    asking = _Asking(client, args, kwargs)
    metered = start(Metered, _READER, asking.describe)
    if metered is None:
        return wrapped(*args, **kwargs)
    with metered.requesting():
        result = wrapped(*args, **kwargs)
    asking.take(metered, result)
    metered.end(exhausted=True)
    return result


async def _async_request(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    asking = _Asking(client, args, kwargs)
    metered = await start_async(Metered, _READER, asking.describe)
    if metered is None:
        return await wrapped(*args, **kwargs)
    with metered.requesting():
        result = await wrapped(*args, **kwargs)
    asking.take(metered, result)
    metered.end(exhausted=True)
    return result


def _request_streamed(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """A generator, as the SDK's own: the request goes out when its first chunk is asked for."""
    asking = _Asking(client, args, kwargs)
    metered = start(Metered, _READER, asking.describe)
    if metered is None:
        yield from wrapped(*args, **kwargs)
        return
    with metered.requesting():
        chunks = wrapped(*args, **kwargs)
    with closing(chunks):
        try:
            while True:
                with metered.running():
                    chunk = next(chunks, _END)
                if chunk is _END:
                    break
                asking.take(metered, chunk)
                yield chunk
        except GeneratorExit:
            metered.end()
            raise
        except BaseException as error:
            metered.end(error)
            raise
        metered.end(exhausted=True)


async def _async_request_streamed(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    asking = _Asking(client, args, kwargs)
    metered = await start_async(Metered, _READER, asking.describe)
    if metered is None:
        return await wrapped(*args, **kwargs)
    with metered.requesting():
        chunks = await wrapped(*args, **kwargs)
    stream = _chunks(asking, metered, chunks)
    weakref.finalize(stream, metered.end)  # nobody may ever ask for its first chunk
    return stream


async def _chunks(asking: "_Asking", metered: Metered, chunks: Any) -> AsyncIterator[Any]:
    async with aclosing(chunks):  # outermost: closing may fail where asyncio closes all that a loop left
        try:
            while True:
                with metered.running():
                    chunk = await anext(chunks, _END)
                if chunk is _END:
                    break
                asking.take(metered, chunk)
                yield chunk
        except GeneratorExit:
            metered.end()
            raise
        except BaseException as error:
            metered.end(error)
            raise
        metered.end(exhausted=True)


class _Asking:
    """One request of the client: what is known before it goes out, and what its answer tells."""

    def __init__(self, client: Any, args: Any, kwargs: Any) -> None:
        self._client = client
        self._args = args
        self._kwargs = kwargs
        self._model = ""

    def describe(self) -> Request | None:
        """What `start` wants to know; None for what is not billed (counting tokens, caches, files, batches, ...)."""
        http_method, path, body = _arguments(*self._args, **self._kwargs)
        resource, _colon, method = path.partition("?")[0].rpartition(":")
        operation = OPERATIONS.get(method) if http_method.lower() == "post" else None
        if operation is None:
            return None
        self._model = resource.rpartition("/")[2]
        return Request(
            provider="gcp.vertex_ai" if self._client.vertexai else "gcp.gemini",
            operation="embeddings" if method == "predict" and _embeds(body) else operation,
            model=self._model,
            server=_server(self._client),
            tool_results=partial(_READER.tool_results, body),
        )

    def take(self, metered: Metered, result: Any) -> None:
        """Take an answer, or a chunk of it: headers and body, in the oldest versions the parsed document."""
        body = result if isinstance(result, Mapping) else getattr(result, "body", None)
        if isinstance(body, str):
            try:
                body = json.loads(body)
            except (ValueError, RecursionError):  # the host's SDK reads it itself, and says what is wrong with it
                return
        metered.take(body)
        answer = metered.answer
        answer.model = answer.model or self._model  # embeddings, images and blocked prompts name none
        headers = getattr(result, "headers", None)
        if isinstance(headers, Mapping):
            tiers = [value for name, value in headers.items() if name.lower() == TIER_HEADER]
            answer.service_tier = next(iter(tiers), answer.service_tier)


def _arguments(http_method: str, path: str, request_dict: Any, *_: Any, **__: Any) -> tuple[str, str, Any]:
    return http_method, path, request_dict


def _embeds(request_dict: Any) -> bool:
    instances = request_dict.get("instances")
    return bool(instances) and "content" in instances[0]


def _server(client: Any) -> str:
    options = client._http_options  # a dict in the oldest versions
    base_url = options.get("base_url") if isinstance(options, Mapping) else options.base_url
    return urlsplit(str(base_url or "")).hostname or ""
