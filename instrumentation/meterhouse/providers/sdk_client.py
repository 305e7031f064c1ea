"""The choke point that the OpenAI and Anthropic SDKs share: `request` of their base clients, once per logical call.

`request` is entered once and does the SDK's retries inside; `_process_response` gets the HTTP response that the result
is made from. Its `iter_bytes`/`aiter_bytes` are what every way of reading a body goes through: parsed, raw, streamed.
"""

import copy
import inspect
import json
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

import wrapt

from meterhouse.call import Call, new_call_id
from meterhouse.metered import Metered, Reader, Request, current, start, start_async
from meterhouse.providers.sse import Lines, Withheld
from meterhouse.runtime import warn_once
from meterhouse.tools import HandedBack, ToolResult

REQUEST_ID_HEADER = "X-Client-Request-Id"
_PATCHED = (
    ("SyncAPIClient", "request"),
    ("SyncAPIClient", "_process_response"),
    ("AsyncAPIClient", "request"),
    ("AsyncAPIClient", "_process_response"),
)

_refusing: set[str] = set()
"""Base URLs of servers that answered 400 to a request for usage, and took the same request without."""


class Provider(Reader, Protocol):
    """What differs between the SDKs that have this base client; pure."""

    def provider_name(self, client: object) -> str:
        """The value of gen_ai.provider.name for this client."""

    def operation(self, path: str) -> str | None:
        """The operation that a POST to `path` is billed as; None: not billed."""

    def telling(self, line: bytes) -> bool:
        """True when a data line of a stream must be parsed (the first one always is)."""

    def ends(self, data: bytes) -> bool:
        """True for data that ends a stream and is no JSON."""

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        """What tools gave since the model spoke last, in the body of a request."""

    def ask_for_usage(self, options: Any, path: str) -> Any:
        """Changed options for a stream that would not report its usage; None where it does."""

    def caused_by_us(self, document: Mapping[str, Any]) -> bool:
        """True for what a stream has only because of `ask_for_usage`."""


class Streamed(Metered):
    """A call whose answer is read from the bytes of its response."""

    def __init__(self, provider: Provider, call: Call, handed_back: HandedBack | None) -> None:
        super().__init__(provider, call, handed_back)
        self.provider = provider
        self.asked = False
        self.lines = Lines(self._take)
        # While the host waits for the next piece, it is the reading that tells how the call ends, not a `close`: the
        # response closes itself at its end, before its last piece was looked at.
        self.reading = False
        self._first = True

    def body(self, content: bytes) -> None:
        """Take a whole body."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):  # the host's SDK reads it itself, and says what is wrong with it
            return
        self.take(document)

    def _take(self, event: str, data: bytes) -> None:
        if self.provider.ends(data):
            self.answer.complete = True
        elif self._first or self.provider.telling(data):
            self._first = False
            self.take(json.loads(data), event)
        if self.answer.complete:  # now, not at the host's next read: it may never come
            self.end()

    def feed(self, chunk: bytes) -> None:
        """Take a piece of a stream; what cannot be read is left out, the host reads it itself."""
        try:
            self.lines.feed(chunk)
        except Exception:  # noqa: BLE001 - the provider's bytes must reach the host whatever we make of them
            warn_once("stream", "Meterhouse could not read a piece of a stream.", with_trace=True)

    def ours(self, data: bytes) -> bool:
        """True for the data of an event that must not reach the host."""
        if b'"usage"' not in data:
            return False
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and self.provider.caused_by_us(document)


def install(module: ModuleType, provider: Provider) -> None:
    """Patch the four methods of an SDK's `_base_client`."""
    wrappers: tuple[Any, ...] = (
        partial(_request, provider),
        _process,
        partial(_request_async, provider),
        _process_async,
    )
    for (owner, method), wrapper in zip(_PATCHED, wrappers, strict=True):
        wrapt.wrap_function_wrapper(module, f"{owner}.{method}", wrapper)


def remove(module: ModuleType) -> None:
    """Undo `install`."""
    for owner, method in _PATCHED:
        wrapped = inspect.getattr_static(getattr(module, owner), method)
        setattr(getattr(module, owner), method, getattr(wrapped, "__wrapped__", wrapped))


def _request(provider: Provider, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    sending = _Sending(provider, client, args, kwargs)
    metered = start(Streamed, provider, sending.describe)
    if metered is None:
        return wrapped(*args, **kwargs)
    with metered.running():
        for a, k in sending.attempts(metered):
            try:
                result = wrapped(*a, **k)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken()
                return result
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _request_async(provider: Provider, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    sending = _Sending(provider, client, args, kwargs)
    metered = await start_async(Streamed, provider, sending.describe)
    if metered is None:
        return await wrapped(*args, **kwargs)
    with metered.running():
        for a, k in sending.attempts(metered):
            try:
                result = await wrapped(*a, **k)
            except BaseException as error:
                if sending.gives_up(error):
                    metered.end(error)
                    raise
            else:
                sending.taken()
                return result
    raise AssertionError("unreachable: the last attempt returns or raises")


def _process(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    _attach(kwargs.get("response"))
    return wrapped(*args, **kwargs)


async def _process_async(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    _attach(kwargs.get("response"))
    return await wrapped(*args, **kwargs)


class _Sending:
    """The arguments of one `request`, and the attempts with them: asking for usage, then as the host called it."""

    def __init__(self, provider: Provider, client: Any, args: Any, kwargs: Any) -> None:
        self._provider = provider
        self._client = client
        self._args = args
        self._kwargs = kwargs
        self._options: Any = None
        self._asking = False
        self._refused = False

    def describe(self) -> Request | None:
        """What `start` wants to know; None for what is not billed."""
        options = self._args[1] if len(self._args) > 1 else self._kwargs["options"]
        path = urlsplit(str(options.url)).path
        operation = self._provider.operation(path) if str(options.method).lower() == "post" else None
        if operation is None:
            return None
        call_id = new_call_id()
        self._options, request_id = _with_request_id(options, self._client, call_id)
        body = options.json_data if isinstance(options.json_data, Mapping) else {}
        model = body.get("model")
        return Request(
            provider=self._provider.provider_name(self._client),
            operation=operation,
            model=model if isinstance(model, str) else "",
            server=urlsplit(str(self._client.base_url)).hostname or "",
            request_id=request_id,
            call_id=call_id,
            tool_results=partial(self._provider.tool_results, body),
        )

    def attempts(self, metered: Streamed) -> Iterator[tuple[Any, Any]]:
        """The arguments to try in turn."""
        asking = self._asking_for_usage()
        if asking is not None:
            metered.asked = self._asking = True
            yield self._with(asking)
            metered.asked = self._asking = False
            self._refused = True
        yield self._with(self._options)

    def taken(self) -> None:
        """The last attempt went well: a server that refused only what we asked for is not asked again."""
        if self._refused:
            _refusing.add(str(self._client.base_url))

    def gives_up(self, error: BaseException) -> bool:
        """True unless the server may have refused only what we asked for."""
        return not self._asking or getattr(error, "status_code", None) != 400

    def _asking_for_usage(self) -> Any:
        try:
            if not self._kwargs.get("stream") or str(self._client.base_url) in _refusing:
                return None
            return self._provider.ask_for_usage(self._options, urlsplit(str(self._options.url)).path)
        except Exception:  # noqa: BLE001 - the host's call must go out as it is
            warn_once("ask", "Meterhouse could not ask for the usage of a stream.", with_trace=True)
            return None

    def _with(self, options: Any) -> tuple[Any, Any]:
        # Each attempt has its own copy: the SDK changes the options that it is given.
        if len(self._args) > 1:
            return (self._args[0], copy.copy(options), *self._args[2:]), self._kwargs
        return self._args, {**self._kwargs, "options": copy.copy(options)}


def _with_request_id(options: Any, client: Any, call_id: str) -> tuple[Any, str]:
    """A copy of the options that names the call to the provider; a name that the host gave it stays."""
    headers = options.headers if isinstance(options.headers, Mapping) else {}
    for given in (headers, client.default_headers):
        for name, value in given.items():
            if name.lower() == REQUEST_ID_HEADER.lower() and isinstance(value, str):
                return options, value
    marked = copy.copy(options)
    marked.headers = {**headers, REQUEST_ID_HEADER: call_id}
    return marked, call_id


def _attach(response: Any) -> None:
    """Listen to the response of the running call."""
    metered = current()
    if not isinstance(metered, Streamed) or metered.call.finished or response is None:
        return
    try:
        if response.status_code >= 400:  # a middleware of the host's may look at it before the SDK raises
            return
        if response.is_closed and response.is_stream_consumed:
            _whole(metered, response)
        else:
            _listen(metered, response)
    except Exception:  # noqa: BLE001 - the host's answer must reach it
        warn_once("response", "Meterhouse could not read a response.", with_trace=True)


def _whole(metered: Streamed, response: Any) -> None:
    if "event-stream" in response.headers.get("content-type", ""):
        metered.feed(response.content + b"\n\n")
    else:
        metered.body(response.content)
    metered.end(exhausted=True)


def _listen(metered: Streamed, response: Any) -> None:
    """Put our readers in front of the response's own. No cycles: the response must go when the host lets go of it."""
    alive = weakref.ref(response)
    response.iter_bytes = partial(_iter_bytes, alive, metered)
    response.aiter_bytes = partial(_aiter_bytes, alive, metered)
    response.close = partial(_close, alive, metered)
    response.aclose = partial(_aclose, alive, metered)
    weakref.finalize(response, metered.end)


def _is_stream(response: Any) -> bool:
    return "event-stream" in response.headers.get("content-type", "")


def _iter_bytes(alive: Any, metered: Streamed, chunk_size: int | None = None) -> Iterator[bytes]:
    response = alive()
    reader = _Reader(metered, response)
    metered.reading = True
    try:
        for chunk in type(response).iter_bytes(response, chunk_size):
            shown = reader.take(chunk)
            if shown:
                metered.reading = False
                yield shown
                metered.reading = True
        rest = reader.done()
        if rest:
            yield rest
    except BaseException as error:
        metered.end(error)
        raise


async def _aiter_bytes(alive: Any, metered: Streamed, chunk_size: int | None = None) -> AsyncIterator[bytes]:
    response = alive()
    reader = _Reader(metered, response)
    metered.reading = True
    try:
        async for chunk in type(response).aiter_bytes(response, chunk_size):
            shown = reader.take(chunk)
            if shown:
                metered.reading = False
                yield shown
                metered.reading = True
        rest = reader.done()
        if rest:
            yield rest
    except BaseException as error:
        metered.end(error)
        raise


class _Reader:
    """Feeds what is read to the call and says what the host gets to see of it."""

    def __init__(self, metered: Streamed, response: Any) -> None:
        self._metered = metered
        self._body: list[bytes] | None = None if _is_stream(response) else []
        self._shown = Withheld(metered.ours) if metered.asked and self._body is None else None

    def take(self, chunk: bytes) -> bytes:
        if self._body is not None:
            self._body.append(chunk)
            return chunk
        self._metered.feed(chunk)
        return self._shown.send(chunk) if self._shown is not None else chunk

    def done(self) -> bytes:
        if self._body is not None:
            self._metered.body(b"".join(self._body))
        else:
            self._metered.feed(b"\n\n")
        self._metered.end(exhausted=True)
        return self._shown.rest() if self._shown is not None else b""


def _close(alive: Any, metered: Streamed) -> None:
    response = alive()
    if response is not None:
        try:
            type(response).close(response)
        finally:
            _closed(metered)


async def _aclose(alive: Any, metered: Streamed) -> None:
    response = alive()
    if response is not None:
        try:
            await type(response).aclose(response)
        finally:
            _closed(metered)


def _closed(metered: Streamed) -> None:
    if not metered.reading:
        metered.end()
