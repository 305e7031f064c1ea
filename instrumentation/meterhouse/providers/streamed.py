"""Reading a call's answer from an HTTP response of httpx or httpx2, whichever way the host reads it.

Every way of reading goes through the response's `iter_bytes`/`aiter_bytes` or, undecoded, `iter_raw`/`aiter_raw`. The
host sees the same bytes at the same time; only what a stream has because we asked for its usage is left out.
"""

import json
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Protocol

from meterhouse.call import Call
from meterhouse.metered import Metered, Reader, current
from meterhouse.providers import aws_eventstream
from meterhouse.providers.sse import Lines, Withheld
from meterhouse.tools import HandedBack, ToolResult
from meterhouse.trouble import warn_once

MOST_BODY_BYTES = 256 * 1024 * 1024
"""A body that is longer is not looked at."""
Unasked = Callable[[bytes], bytes]
"""An event of a stream, with its line ends -> what of it would have come without asking for usage."""


class Provider(Reader, Protocol):
    """What differs between the SDKs that have this base client; pure."""

    def provider_name(self, client: object) -> str:
        """The value of gen_ai.provider.name for this client."""

    def operation(self, path: str) -> str | None:
        """The operation that a POST to `path` is billed as; None: not billed."""

    def telling(self, data: bytes) -> bool:
        """True where an event of a stream, or one of several, must be parsed (the first one always is)."""

    def ends(self, data: bytes) -> bool:
        """True for data that ends a stream and is no JSON; `telling` is True for it as well."""

    def tool_results(self, body: Mapping[str, Any]) -> Iterable[ToolResult]:
        """What tools gave since the model spoke last, in the body of a request."""

    def ask_for_usage(self, options: Any, path: str) -> tuple[Any, Unasked] | None:
        """Changed options for a stream that would not report its usage, and how to hide that; None where it does."""


class Framing(Protocol):
    """Takes a stream apart."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""


class Streamed(Metered):
    """A call whose answer is read from the bytes of its response."""

    def __init__(self, provider: Provider, call: Call, handed_back: HandedBack | None) -> None:
        super().__init__(provider, call, handed_back)
        self.provider = provider
        self.requested_model = ""
        self.streaming = False
        """The host asked for a stream, and takes the answer for one, whatever the server calls it."""
        self.unasked: Unasked | None = None
        """Set where the stream has been asked for its usage."""
        self.answered = False
        """A response has come that the call is read from."""
        self.lines: Framing | None = None
        """What takes a stream apart, made for its first piece."""
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
        elif self._telling(data):
            self._take_json(event, data)
        if self.answer.complete:  # now, not at the host's next read: it may never come
            self.end()

    def _take_json(self, event: str, data: bytes) -> None:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):  # a ping may have any data; the SDK decides what is wrong
            return
        self._first = False
        self.take(document, event)

    def _telling(self, data: bytes) -> bool:
        return self._first or self.estimating or self.provider.telling(data)

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        if self.answered and not self.answer.model:
            self.answer.model = self.requested_model  # answers with images or audio name none
        super().end(error, exhausted=exhausted)

    def framed(self, content_type: str) -> bool:
        """True for a stream, whose pieces `feed` takes; False for a body, which `body` takes as a whole."""
        if aws_eventstream.CONTENT_TYPE in content_type:
            self.lines = aws_eventstream.Frames(self._take)
            return True
        return "event-stream" in content_type

    def feed(self, chunk: bytes) -> None:
        """Take a piece of a stream; what cannot be read is left out, the host reads it itself."""
        if self.call.finished:
            return
        try:
            if self.lines is None:
                self.lines = Lines(self._take, self._telling)
            self.lines.feed(chunk)
        except Exception:  # noqa: BLE001 - the provider's bytes must reach the host whatever we make of them
            warn_once("stream", "Meterhouse could not read a piece of a stream.", with_trace=True)


def attach(response: Any) -> None:
    """Listen to the response of the running call."""
    metered = current()
    if isinstance(metered, Streamed):
        listen(metered, response)


def listen(metered: Streamed, response: Any) -> None:
    """Read the call from this response of httpx or httpx2, whichever way the host reads it; never raises."""
    if metered.call.finished or response is None:
        return
    try:
        if response.status_code >= 400:  # a middleware of the host's may look at it before the SDK raises
            return
        metered.answered = True
        if response.is_closed and response.is_stream_consumed:
            _whole(metered, response)
        else:
            _listen(metered, response)
    except Exception:  # noqa: BLE001 - the host's answer must reach it
        warn_once("response", "Meterhouse could not read a response.", with_trace=True)


def _whole(metered: Streamed, response: Any) -> None:
    """A hook or transport of the host's has read it all: it is kept as it would have come without our question."""
    content = response.content
    if not metered.streaming and len(content) <= MOST_BODY_BYTES and _is_body(metered, response):
        metered.body(content)
        metered.end(exhausted=True)
        return
    reading = _Reading(metered, response)
    shown = reading.take(content) + reading.done()
    if shown != content:
        response._content = shown
        response.__dict__.pop("_text", None)  # made from the content when it is asked for


def _is_body(metered: Streamed, response: Any) -> bool:
    """True for the JSON that nearly all answers are: nothing has to be found out about it."""
    kind = response.headers.get("content-type", "").lower()
    return kind.partition(";")[0] == "application/json" and not metered.framed(kind)


def _listen(metered: Streamed, response: Any) -> None:
    """Put our readers in front of the response's own. No cycles: the response must go when the host lets go of it."""
    alive = weakref.ref(response)
    response.iter_bytes = partial(_iter, "iter_bytes", alive, metered)
    response.aiter_bytes = partial(_aiter, "aiter_bytes", alive, metered)
    response.iter_raw = partial(_iter, "iter_raw", alive, metered)
    response.aiter_raw = partial(_aiter, "aiter_raw", alive, metered)
    response.close = partial(_close, alive, metered)
    response.aclose = partial(_aclose, alive, metered)
    weakref.finalize(response, metered.end)


def _iter(method: str, alive: Any, metered: Streamed, chunk_size: int | None = None) -> Iterator[bytes]:
    # The response is held from now on, not from the first step on: a host may keep nothing but this iterator.
    return _pieces(method, alive(), metered, chunk_size)


def _aiter(method: str, alive: Any, metered: Streamed, chunk_size: int | None = None) -> AsyncIterator[bytes]:
    return _apieces(method, alive(), metered, chunk_size)


def _pieces(method: str, response: Any, metered: Streamed, chunk_size: int | None) -> Iterator[bytes]:
    _read_once(response)
    pieces = getattr(type(response), method)(response, chunk_size)
    if metered.call.finished:
        yield from pieces
        return
    reading = _Reading(metered, response, raw=method == "iter_raw")
    metered.reading = True
    with closing(pieces):
        try:
            for chunk in pieces:
                shown = reading.take(chunk)
                if shown:
                    metered.reading = False
                    yield shown
                    metered.reading = True
            rest = reading.done()
            if rest:
                yield rest
        except BaseException as error:
            metered.end(error)
            raise
        finally:
            _leave(response)


async def _apieces(method: str, response: Any, metered: Streamed, chunk_size: int | None) -> AsyncIterator[bytes]:
    _read_once(response)
    pieces = getattr(type(response), method)(response, chunk_size)
    if metered.call.finished:
        async with aclosing(pieces):
            async for chunk in pieces:
                yield chunk
        return
    reading = _Reading(metered, response, raw=method == "aiter_raw")
    metered.reading = True
    async with aclosing(pieces):  # outermost: closing may fail where asyncio closes all that a loop left
        try:
            async for chunk in pieces:
                shown = reading.take(chunk)
                if shown:
                    metered.reading = False
                    yield shown
                    metered.reading = True
            rest = reading.done()
            if rest:
                yield rest
        except BaseException as error:
            metered.end(error)
            raise
        finally:
            _leave(response)


def _read_once(response: Any) -> None:
    """Take our readers away again: decoded bytes are read from undecoded ones, and a body that was read is kept."""
    for method in ("iter_bytes", "aiter_bytes", "iter_raw", "aiter_raw"):
        response.__dict__.pop(method, None)


def _leave(response: Any) -> None:
    """The call has ended, and the response may live on: it is the host's alone again, to be copied and pickled."""
    for method in ("close", "aclose"):
        response.__dict__.pop(method, None)


class _Reading:
    """Feeds what is read to the call and says what the host gets to see of it.

    `raw`: the pieces are as they came. A compressed body is decoded when all of it is there, and shown as it is.
    """

    def __init__(self, metered: Streamed, response: Any, *, raw: bool = False) -> None:
        self._metered = metered
        self._response_type = type(response)
        self._encoding = response.headers.get("content-encoding", "") if raw else ""
        self._plain = self._encoding in ("", "identity")
        kind = response.headers.get("content-type", "").lower()
        self._streamed = metered.framed(kind)
        self._readable = self._streamed or metered.streaming or not kind or "json" in kind or kind.startswith("text/")
        self._body: list[bytes] | None = []
        self._size = 0
        self._feed = self._first
        self._shown: Withheld | None = None

    def take(self, chunk: bytes) -> bytes:
        """A piece that was read; gives what the host sees."""
        self._feed(chunk)
        return chunk if self._shown is None else self._shown.send(chunk)

    def _first(self, chunk: bytes) -> None:
        """What it begins with tells more than what the server calls it, and the SDKs go by neither."""
        if not chunk:
            return
        document = _is_document(chunk)
        if self._plain and self._metered.streaming and not document:
            self._streamed = True
        if self._streamed and self._plain:
            self._body, self._feed = None, self._metered.feed
            self._shown = Withheld(self._metered.unasked) if self._metered.unasked is not None else None
        else:
            self._body = self._body if self._readable or document else None
            self._feed = self._keep
        self._feed(chunk)

    def done(self) -> bytes:
        """It was read to its end; gives what the host has not seen yet."""
        content = self._content()
        if self._streamed or (self._metered.streaming and not _is_document(content)):
            self._metered.feed(content + b"\n\n")
        elif content:
            self._metered.body(content)
        self._metered.end(exhausted=True)
        return b"" if self._shown is None else self._shown.rest()

    def _keep(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > MOST_BODY_BYTES:
            self._body = None
        if self._body is not None:
            self._body.append(chunk)

    def _content(self) -> bytes:
        content = b"".join(self._body or ())
        if not content or self._encoding in ("", "identity"):
            return content
        try:
            headers = {"content-encoding": self._encoding}
            return bytes(self._response_type(200, headers=headers, content=content).content)
        except Exception:  # noqa: BLE001 - it is the host's to decode; each version has its own errors
            warn_once("encoding", "Meterhouse could not decode a body that was read raw.", with_trace=True)
            return b""


def _is_document(content: bytes) -> bool:
    """True for what begins as JSON: no stream of events."""
    return content.lstrip()[:1] in (b"{", b"[")


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
