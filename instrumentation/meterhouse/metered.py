"""One provider call under way, whichever SDK makes it: what every choke point in `providers/` is built on.

A choke point calls `start` (or `await start_async`) with a `Reader`, makes the SDK's own call inside
`metered.running()`, hands `take` the documents of the answer, and calls `end` once or more: the first one counts.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

from meterhouse import limits, tools
from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.runtime import warn_once
from meterhouse.settings import estimating
from meterhouse.tools import ToolResult
from meterhouse.usage import Answer, call_rows, unreadable, with_estimate
from meterhouse.vocabulary import (
    ABORTED,
    FAILED,
    OK,
    OPERATION,
    PROVIDER,
    REQUEST_ID,
    REQUEST_MODEL,
    SERVER_ADDRESS,
    USAGE_SOURCE,
)

ABORTS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)
"""What ends a call from outside: it was left, it did not fail."""

_running: ContextVar["Metered | None"] = ContextVar("meterhouse_call", default=None)
_witnesses: ContextVar[tuple["Witness", ...]] = ContextVar("meterhouse_witnesses", default=())


class Reader(Protocol):
    """What differs between providers, as far as every SDK needs it; pure."""

    name: str

    def read(self, document: Mapping[str, Any], event: str, answer: Answer) -> None:
        """Take what a document tells: a body, or the data of one event of a stream."""

    def rows(self, answer: Answer) -> list[Row]:
        """The disjoint buckets of what the answer reports; see `usage.Quantity` for what is no count."""


@dataclass(slots=True)
class Request:
    """What is known of a call before it goes out. Empty strings: not known."""

    provider: str
    operation: str
    model: str = ""
    server: str = ""
    request_id: str = ""
    call_id: str = field(default_factory=new_call_id)
    tool_results: Callable[[], Iterable[ToolResult]] | None = None
    """Reads from the request's body what tools gave; asked once, and only if somebody wants to know."""

    def attributes(self) -> dict[str, str]:
        known = {
            PROVIDER: self.provider,
            OPERATION: self.operation,
            REQUEST_MODEL: self.model,
            SERVER_ADDRESS: self.server,
            REQUEST_ID: self.request_id,
        }
        return {key: cut(value) for key, value in known.items() if value}


Described = Callable[[], Request | None]


class Metered:
    """One call under way: its answer so far, and the way to its end."""

    def __init__(self, reader: Reader, call: Call, handed_back: "tools.HandedBack | None" = None) -> None:
        self.reader = reader
        self.call = call
        self.answer = Answer()
        self._handed_back = handed_back
        self._asker = tools.payer()
        self.estimating = estimating()
        """All of a stream is to be read, because its output is estimated should its usage never be told."""

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Marks the context: a choke point that is reached inside belongs to this call and is not metered again."""
        token = _running.set(self)
        try:
            yield self
        finally:
            _running.reset(token)

    def take(self, document: object, event: str = "") -> None:
        """Take a parsed document of the answer; never raises, what cannot be read is left out."""
        if not isinstance(document, Mapping):
            return
        try:
            reported = dict(self.answer.usage) if self.estimating else None
            self.reader.read(document, event, self.answer)
            if reported is not None and self.answer.usage != reported:
                self.answer.characters = 0  # what was read until here is in it
        except Exception:  # noqa: BLE001 - the provider's answer must reach the host whatever we make of it
            warn_once("read", "Meterhouse could not read an answer of %s.", self.reader.name, with_trace=True)

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        """The call is over: read to its end (`exhausted`), broken by `error`, or left early. Never raises."""
        if self.call.finished:
            return
        try:
            self._end(error, exhausted=exhausted)
        except Exception:  # noqa: BLE001 - the host's call went well; its intent stays open and will be told of
            warn_once("end", "Meterhouse could not read what a call used.", with_trace=True)

    def _end(self, error: BaseException | None, *, exhausted: bool) -> None:
        if (error is not None and not isinstance(error, ABORTS)) or self.answer.failed:
            status = FAILED
        else:
            status = OK if error is None and (exhausted or self.answer.complete) else ABORTED
        buckets = self.reader.rows(self.answer)
        if lost := sorted({row.meter for row in buckets if unreadable(row)}):
            warn_once(
                "unreadable",
                "Meterhouse cannot read what %s reported for %s: it is no number. The call is counted with usage.source"
                " none, its tokens there are unknown.",
                self.reader.name,
                ", ".join(lost),
            )
        rows = call_rows(buckets, ended=status == OK)
        if status == ABORTED and self.estimating and self.answer.characters:
            rows = with_estimate(rows, self.answer.characters)
        known = {key: cut(value) for key, value in self.answer.attributes().items()}
        self._finish(status, rows, known)
        tools.learn(self._asker, self.answer.tool_calls)
        if self._handed_back is not None and status != FAILED:
            self._handed_back.accepted()

    def _finish(self, status: str, rows: list[Row], known: Mapping[str, str]) -> None:
        self.call.finish(status, rows, known)


M = TypeVar("M", bound=Metered)


class Witness:
    """Watches the calls made inside it, for a framework that must add no tokens which a choke point saw."""

    def __init__(self) -> None:
        self.seen = 0
        """How many calls choke points have metered inside."""

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        token = _witnesses.set((*_witnesses.get(), self))
        try:
            yield self
        finally:
            _witnesses.reset(token)


def current() -> Metered | None:
    """The call that the running code is part of."""
    return _running.get()


def start(kind: Callable[[Any, Call, "tools.HandedBack | None"], M], reader: Reader, request: Described) -> M | None:
    """The call that is about to go out, a `kind` of Metered; None where it is not metered, or could not be (logged).

    `request` describes the call; it is asked only where no other choke point meters this call already, and answers None
    for what is not billed. Raises UsageLimitExceeded, and nothing else, when the customer is paused.
    """
    described = _described(request)
    if described is None:
        return None
    limits.admit()
    return _begun(kind, reader, described)


async def start_async(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M], reader: Reader, request: Described
) -> M | None:
    """`start` for code in an event loop, which must not be blocked while an allowance is asked for."""
    described = _described(request)
    if described is None:
        return None
    await limits.admit_async()
    return _begun(kind, reader, described)


def start_further(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M], reader: Reader, request: Described
) -> M | None:
    """`start` for a call that has gone out already, inside another one or behind its back: nobody can stop it now."""
    described = _asked(request)
    return None if described is None else _begun(kind, reader, replace(described, tool_results=None))


def _described(request: Described) -> Request | None:
    return None if _running.get() is not None else _asked(request)


def _asked(request: Described) -> Request | None:
    try:
        return request()
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("request", "Meterhouse could not meter a call.", with_trace=True)
        return None


def _begun(kind: Callable[[Any, Call, "tools.HandedBack | None"], M], reader: Reader, request: Request) -> M | None:
    try:
        handed_back = (
            None if request.tool_results is None else tools.handed_back(request.provider, request.tool_results)
        )
        metered = kind(reader, Call(request.call_id, request.attributes()), handed_back)
        tools.model_called()
        for witness in _witnesses.get():
            witness.seen += 1
        return metered
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("request", "Meterhouse could not meter a call.", with_trace=True)
        return None


def witnessed(reader: Reader, request: Request, usage: Mapping[str, Any], *, source: str, status: str = OK) -> None:
    """Count a model call that only a framework saw, after it: `usage` is what `reader.read` takes. Never raises."""
    try:
        call = Call(request.call_id, request.attributes(), intent=False)
        answer = Answer()
        reader.read(usage, "", answer)
        tools.model_called()
        for witness in _witnesses.get():
            witness.seen += 1
        known = {key: cut(value) for key, value in answer.attributes().items()}
        call.finish(status, call_rows(reader.rows(answer)), {**known, USAGE_SOURCE: source})
    except Exception:  # noqa: BLE001 - metering must not take the host down
        warn_once("witness", "Meterhouse could not meter a call that %s reported.", reader.name, with_trace=True)
