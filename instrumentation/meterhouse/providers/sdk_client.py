"""The choke point that the OpenAI and Anthropic SDKs share: `request` of their base clients, once per logical call.

`request` is entered once and does the SDK's retries inside; `_process_response` gets the HTTP response that the result
is made from. Its `iter_bytes`/`aiter_bytes` are what every way of reading a body goes through: parsed, raw, streamed.
"""

import asyncio
import copy
import inspect
import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

import wrapt

from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.providers.sse import Lines, Withheld
from meterhouse.runtime import warn_once
from meterhouse.usage import Answer, call_rows, unreadable
from meterhouse.vocabulary import ABORTED, FAILED, OK, OPERATION, PROVIDER, REQUEST_ID, REQUEST_MODEL, SERVER_ADDRESS

REQUEST_ID_HEADER = "X-Client-Request-Id"
_PATCHED = (
    ("SyncAPIClient", "request"),
    ("SyncAPIClient", "_process_response"),
    ("AsyncAPIClient", "request"),
    ("AsyncAPIClient", "_process_response"),
)
_ABORTS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)

_running: ContextVar["Metered | None"] = ContextVar("meterhouse_call", default=None)
_refusing: set[str] = set()
"""Base URLs of servers that answered 400 to a request for usage, and took the same request without."""


class Provider(Protocol):
    """What differs between providers; pure apart from `install`."""

    name: str

    def provider_name(self, client: object) -> str:
        """The value of gen_ai.provider.name for this client."""

    def operation(self, path: str) -> str | None:
        """The operation that a POST to `path` is billed as; None: not billed."""

    def telling(self, line: bytes) -> bool:
        """True when a data line of a stream must be parsed (the first one always is)."""

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        """Take what a document (a body, or the data of a stream's event) tells."""

    def ends(self, data: bytes) -> bool:
        """True for data that ends a stream and is no JSON."""

    def rows(self, answer: Answer) -> list[Row]:
        """The disjoint buckets of what the answer reports; see `usage.Quantity` for what is no count."""

    def ask_for_usage(self, options: Any, path: str) -> Any:
        """Changed options for a stream that would not report its usage; None where it does."""

    def caused_by_us(self, document: Mapping[str, Any]) -> bool:
        """True for what a stream has only because of `ask_for_usage`."""


class Metered:
    """One call under way: its answer so far, and the way to its end."""

    def __init__(self, provider: Provider, call: Call, *, asked: bool) -> None:
        self.provider = provider
        self.call = call
        self.asked = asked
        self.answer = Answer()
        self.lines = Lines(self._take)
        # While the host waits for the next piece, it is the reading that tells how the call ends, not a `close`: the
        # response closes itself at its end, before its last piece was looked at.
        self.reading = False
        self._first = True

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        """The call is over: read to its end, broken by `error`, or left early."""
        if (error is not None and not isinstance(error, _ABORTS)) or self.answer.failed:
            status = FAILED
        else:
            status = OK if exhausted or self.answer.complete else ABORTED
        buckets = self.provider.rows(self.answer)
        if lost := sorted({row.meter for row in buckets if unreadable(row)}):
            warn_once(
                "unreadable",
                "Meterhouse cannot read what %s reported for %s: it is no number. The call is counted with usage.source"
                " none, its tokens there are unknown.",
                self.provider.name,
                ", ".join(lost),
            )
        self.call.finish(status, call_rows(buckets), _short(self.answer.attributes()))

    def body(self, content: bytes) -> None:
        """Take a whole body."""
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):  # the host's SDK reads it itself, and says what is wrong with it
            return
        if isinstance(document, dict):
            self.provider.read(document, "", self.answer)

    def _take(self, event: str, data: bytes) -> None:
        if self.provider.ends(data):
            self.answer.complete = True
        elif self._first or self.provider.telling(data):
            self._first = False
            document = json.loads(data)
            if isinstance(document, dict):
                self.provider.read(document, event, self.answer)
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
    prepared = _prepare(provider, client, args, kwargs)
    if prepared is None:
        return wrapped(*args, **kwargs)
    metered, attempts = prepared
    token = _running.set(metered)
    try:
        for index, (a, k) in enumerate(attempts):
            try:
                result = wrapped(*a, **k)
            except BaseException as error:
                if index + 1 < len(attempts) and _bad_request(error):
                    metered.asked = False
                    continue
                metered.end(error)
                raise
            _learn(client, index)
            return result
    finally:
        _running.reset(token)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _request_async(provider: Provider, wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
    prepared = _prepare(provider, client, args, kwargs)
    if prepared is None:
        return await wrapped(*args, **kwargs)
    metered, attempts = prepared
    token = _running.set(metered)
    try:
        for index, (a, k) in enumerate(attempts):
            try:
                result = await wrapped(*a, **k)
            except BaseException as error:
                if index + 1 < len(attempts) and _bad_request(error):
                    metered.asked = False
                    continue
                metered.end(error)
                raise
            _learn(client, index)
            return result
    finally:
        _running.reset(token)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _process(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    _attach(kwargs.get("response"))
    return wrapped(*args, **kwargs)


async def _process_async(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    _attach(kwargs.get("response"))
    return await wrapped(*args, **kwargs)


def _prepare(provider: Provider, client: Any, args: Any, kwargs: Any) -> tuple[Metered, list[tuple[Any, Any]]] | None:
    """The call, and the arguments of one attempt or two: asking for usage, then as the host called it."""
    try:
        options = args[1] if len(args) > 1 else kwargs["options"]
        path = urlsplit(str(options.url)).path
        operation = provider.operation(path) if str(options.method).lower() == "post" else None
        if operation is None or _running.get() is not None:
            return None
        call_id = new_call_id()
        marked, request_id = _with_request_id(options, client, call_id)
        call = Call(call_id, _attributes(provider, client, options, operation, request_id))
        asking = None
        if kwargs.get("stream") and str(client.base_url) not in _refusing:
            asking = provider.ask_for_usage(marked, path)
        chosen = [marked] if asking is None else [asking, marked]
        metered = Metered(provider, call, asked=asking is not None)
        return metered, [_with_options(args, kwargs, one) for one in chosen]
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("request", "Meterhouse could not meter a call.", with_trace=True)
        return None


def _attributes(provider: Provider, client: Any, options: Any, operation: str, request_id: str) -> dict[str, str]:
    body = options.json_data
    model = body.get("model") if isinstance(body, Mapping) else None
    known = {
        PROVIDER: provider.provider_name(client),
        OPERATION: operation,
        REQUEST_MODEL: model if isinstance(model, str) else "",
        SERVER_ADDRESS: urlsplit(str(client.base_url)).hostname or "",
        REQUEST_ID: request_id,
    }
    return _short({key: value for key, value in known.items() if value})


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


def _with_options(args: Any, kwargs: Any, options: Any) -> tuple[Any, Any]:
    # Each attempt has its own copy: the SDK changes the options that it is given.
    if len(args) > 1:
        return (args[0], copy.copy(options), *args[2:]), kwargs
    return args, {**kwargs, "options": copy.copy(options)}


def _bad_request(error: BaseException) -> bool:
    return getattr(error, "status_code", None) == 400


def _learn(client: Any, index: int) -> None:
    if index:
        _refusing.add(str(client.base_url))


def _short(attributes: Mapping[str, str]) -> dict[str, str]:
    return {key: cut(value) for key, value in attributes.items()}


def _attach(response: Any) -> None:
    """Listen to the response of the running call."""
    metered = _running.get()
    if metered is None or metered.call.finished or response is None:
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


def _whole(metered: Metered, response: Any) -> None:
    if "event-stream" in response.headers.get("content-type", ""):
        metered.feed(response.content + b"\n\n")
    else:
        metered.body(response.content)
    metered.end(exhausted=True)


def _listen(metered: Metered, response: Any) -> None:
    """Put our readers in front of the response's own. No cycles: the response must go when the host lets go of it."""
    alive = weakref.ref(response)
    response.iter_bytes = partial(_iter_bytes, alive, metered)
    response.aiter_bytes = partial(_aiter_bytes, alive, metered)
    response.close = partial(_close, alive, metered)
    response.aclose = partial(_aclose, alive, metered)
    weakref.finalize(response, metered.end)


def _is_stream(response: Any) -> bool:
    return "event-stream" in response.headers.get("content-type", "")


def _iter_bytes(alive: Any, metered: Metered, chunk_size: int | None = None) -> Iterator[bytes]:
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


async def _aiter_bytes(alive: Any, metered: Metered, chunk_size: int | None = None) -> AsyncIterator[bytes]:
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

    def __init__(self, metered: Metered, response: Any) -> None:
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


def _close(alive: Any, metered: Metered) -> None:
    response = alive()
    if response is not None:
        try:
            type(response).close(response)
        finally:
            _closed(metered)


async def _aclose(alive: Any, metered: Metered) -> None:
    response = alive()
    if response is not None:
        try:
            await type(response).aclose(response)
        finally:
            _closed(metered)


def _closed(metered: Metered) -> None:
    if not metered.reading:
        metered.end()
