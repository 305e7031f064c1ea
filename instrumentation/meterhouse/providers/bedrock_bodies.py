"""Listening to what botocore and aiobotocore hand out to be read later: event streams and bodies of `invoke_model`.

The objects stay the host's: same identity, same type. What their own methods draw from is listened to. No cycles are
made, so that they still go when the host lets go of them; that ends the call as well.
"""

import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

from meterhouse.metered import Metered
from meterhouse.trouble import warn_once

_SILENT = frozenset({"contentBlockDelta", "contentBlockStop", "messageStart", "messageStop"})
"""Events of Converse that tell nothing of usage; they are most of a stream, and parsed only for an estimate."""


def listen_to_events(metered: Metered, stream: Any) -> None:
    """Listen to a botocore EventStream or an aiobotocore AioEventStream."""
    events = stream._event_generator
    stream._event_generator = (
        _events_async(events, metered) if hasattr(events, "__anext__") else _events(events, metered)
    )
    stream.close = partial(_close, weakref.ref(stream), metered.end)
    weakref.finalize(stream, metered.end)


def _events(events: Any, metered: Metered) -> Iterator[Any]:
    try:
        for event in events:
            _take(metered, event)
            yield event
    except BaseException as error:
        metered.end(error)
        raise
    metered.end(exhausted=True)


async def _events_async(events: Any, metered: Metered) -> AsyncIterator[Any]:
    try:
        async for event in events:
            _take(metered, event)
            yield event
    except BaseException as error:
        metered.end(error)
        raise
    metered.end(exhausted=True)


def _take(metered: Metered, message: Any) -> None:
    try:
        headers: Mapping[str, Any] = message.headers
        if headers.get(":message-type", "event") == "event":
            kind = str(headers.get(":event-type", ""))
        else:
            kind = str(headers.get(":exception-type", "error"))
        if kind not in _SILENT or metered.estimating:
            metered.take(json.loads(message.payload or b"{}"), kind)
    except Exception:  # noqa: BLE001 - the provider's events must reach the host whatever we make of them
        warn_once("stream", "Meterhouse could not read a piece of a stream.", with_trace=True)
    if metered.answer.complete:  # now, not at the host's next read: it may never come
        metered.end()


class Body:
    """What the host has read of one answer so far; `length`: its bytes in all, where the server said so."""

    def __init__(self, metered: Metered, length: int | None) -> None:
        self._metered = metered
        self._length = length
        self._chunks: list[bytes] = []
        self._read = 0

    def took(self, chunk: bytes, asked_for: int | None) -> None:
        """The host read `chunk`, all that was left where it `asked_for` None or less than 0 bytes."""
        if self._metered.call.finished:
            return
        self._chunks.append(bytes(chunk))
        self._read += len(chunk)
        at_end = asked_for is None or asked_for < 0 or (not chunk and asked_for > 0)
        if at_end and self._length is not None and self._read < self._length:
            self._metered.answer.failed = True  # botocore raises IncompleteReadError
        if at_end or self._read == self._length:
            self._parse()
            self._metered.end(exhausted=True)

    def failed(self, error: BaseException) -> None:
        self._metered.end(error)

    def left(self) -> None:
        """Closed or collected. A body without a length may have been read to its end all the same."""
        if not self._metered.call.finished:
            self._metered.end(exhausted=self._length is None and self._parse())

    def _parse(self) -> bool:
        try:
            document = json.loads(b"".join(self._chunks))
        except (ValueError, RecursionError):  # no JSON, or not all of it: Bedrock's headers told the usage
            return False
        finally:
            self._chunks.clear()
        self._metered.take(document)
        return True


def listen_to_body(metered: Metered, body: Any, length: int | None) -> None:
    """Listen to a botocore StreamingBody, or to one of aiobotocore, whatever way it is read.

    A `with` on them hands out the HTTP response below, so that is listened to as well. Where it cannot be (a body of a
    Stubber), the body alone is.
    """
    reading = Body(metered, length)
    raw = getattr(body, "_raw_stream", None)
    if raw is None:
        raw = body.__wrapped__  # aiobotocore before 3: a proxy of aiohttp's response
    if hasattr(type(body), "__aenter__"):
        for target in (body, raw):  # the body reads raw.content, not raw
            target.read = partial(_read_async, weakref.ref(target), reading)
    else:
        target = raw if hasattr(raw, "__dict__") else body
        for method, listening in _READING.items():
            if hasattr(type(target), method):
                setattr(target, method, partial(listening, weakref.ref(target), reading))
        body.close = partial(_close, weakref.ref(body), reading.left)
    weakref.finalize(raw, reading.left)


def _read(alive: Any, reading: Body, *args: Any, **kwargs: Any) -> Any:
    target = alive()
    try:
        chunk = type(target).read(target, *args, **kwargs)
    except BaseException as error:
        reading.failed(error)
        raise
    reading.took(chunk, _amount(args, kwargs))
    return chunk


def _read1(alive: Any, reading: Body, *args: Any, **kwargs: Any) -> Any:
    target = alive()
    try:
        chunk = type(target).read1(target, *args, **kwargs)
    except BaseException as error:
        reading.failed(error)
        raise
    amount = _amount(args, kwargs)
    reading.took(chunk, 1 if amount is None or amount < 0 else amount)  # what is there, not all: only b"" is the end
    return chunk


def _read_chunked(alive: Any, reading: Body, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """What iterating, `readlines` and `stream` draw from where the answer's length is not told beforehand."""
    target = alive()
    try:
        for chunk in type(target).read_chunked(target, *args, **kwargs):
            reading.took(chunk, len(chunk))
            yield chunk
    except BaseException as error:
        reading.failed(error)
        raise
    reading.took(b"", None)


_READING = {"read": _read, "read1": _read1, "read_chunked": _read_chunked}
"""The methods of a response that everything else in it, and in a StreamingBody, reads by; none calls another."""


async def _read_async(alive: Any, reading: Body, *args: Any, **kwargs: Any) -> Any:
    target = alive()
    try:
        chunk = await type(target).read(target, *args, **kwargs)
    except BaseException as error:
        reading.failed(error)
        raise
    reading.took(chunk, _amount(args, kwargs))
    return chunk


def _amount(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    amount = args[0] if args else kwargs.get("amt")
    return amount if isinstance(amount, int) else None


def _close(alive: Any, left: Any) -> Any:
    target = alive()
    try:
        return None if target is None else type(target).close(target)
    finally:
        left()
