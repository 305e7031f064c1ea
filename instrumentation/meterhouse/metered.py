"""One provider call under way, whichever SDK makes it: what every choke point in `providers/` is built on.

A choke point calls `start` (or `await start_async`) with a `Reader`, makes the SDK's own call inside
`metered.running()`, hands `take` the documents of the answer, and calls `end` once or more: the first one counts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, Protocol, Self, TypeVar

from meterhouse import attribution, limits, tools, witness
from meterhouse.attribution import Attribution
from meterhouse.call import Call, new_call_id
from meterhouse.events import Row, cut
from meterhouse.runtime import runtime
from meterhouse.tools import ToolResult
from meterhouse.trouble import warn_once
from meterhouse.usage import MAPPING, Answer, call_rows, unreadable, with_estimate
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

REMEMBERED = 256
"""Kinds of requests whose attributes are kept ready."""

_running: ContextVar["Metered | None"] = ContextVar("meterhouse_call", default=None)


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
        known = _of_requests(self.provider, self.operation, self.model, self.server)
        return {**known, REQUEST_ID: cut(self.request_id)} if self.request_id else dict(known)


@lru_cache(maxsize=REMEMBERED)
def _of_requests(provider: str, operation: str, model: str, server: str) -> Mapping[str, str]:
    """What all such requests have; one mapping for all of them, never changed."""
    known = {PROVIDER: provider, OPERATION: operation, REQUEST_MODEL: model, SERVER_ADDRESS: server}
    return {key: cut(value) for key, value in known.items() if value}


Described = Callable[[], Request | None]


class Metered:
    """One call under way: its answer so far, and the way to its end."""

    def __init__(self, reader: Reader, call: Call, handed_back: "tools.HandedBack | None" = None) -> None:
        self.reader = reader
        self.call = call
        self.answer = Answer()
        self.under_way = False
        """Its request runs: what is left of its context in tasks and threads that outlive it means nothing."""
        self._handed_back = handed_back
        self.elsewhere: witness.Elsewhere | None = None
        process = runtime()
        self.estimating = process is not None and process.estimating
        """All of a stream is to be read, because its output is estimated should its usage never be told."""

    def running(self) -> "_Running[Self]":
        """Marks the context: a choke point of the same SDK that is reached inside belongs to this call."""
        return _Running(self)

    @contextmanager
    def requesting(self) -> Iterator[Self]:
        """`running` around the whole of the SDK's own call: what it raises is the end of this one."""
        with self.running():
            try:
                yield self
            except BaseException as error:
                self.end(error)
                raise

    def take(self, document: object, event: str = "") -> None:
        """Take a parsed document of the answer; never raises, what cannot be read is left out."""
        if not isinstance(document, MAPPING):
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
        if isinstance(error, Exception) or self.answer.failed:  # any other is a cancellation: it was left
            status = FAILED
        else:
            status = OK if error is None and (exhausted or self.answer.complete) else ABORTED
        buckets = self.reader.rows(self.answer)
        if any(map(unreadable, buckets)):
            warn_once(
                "unreadable",
                "Meterhouse cannot read what %s reported for %s: it is no number. The call is counted with usage.source"
                " none, its tokens there are unknown.",
                self.reader.name,
                ", ".join(sorted({row.meter for row in buckets if unreadable(row)})),
            )
        rows = call_rows(buckets, ended=status == OK)
        if status == ABORTED and self.estimating and self.answer.characters:
            rows = with_estimate(rows, self.answer.characters)
        known = {key: cut(value) for key, value in self.answer.attributes().items()}
        self._finish(status, rows, known)
        if self.elsewhere is not None:
            self.elsewhere.ended(rows)
        if self.answer.tool_calls:
            tools.learn(self.call.payer, self.answer.tool_calls)
        if self._handed_back is not None and status != FAILED:
            self._handed_back.accepted()

    def _finish(self, status: str, rows: list[Row], known: Mapping[str, str]) -> None:
        self.call.finish(status, rows, known)


M = TypeVar("M", bound=Metered)


class _Running(Generic[M]):
    """See Metered.running; a class of its own, because every call enters one: a generator takes six times as long."""

    __slots__ = ("_metered", "_token")

    def __init__(self, metered: M) -> None:
        self._metered = metered

    def __enter__(self) -> M:
        self._token = _running.set(self._metered)
        self._metered.under_way = True
        return self._metered

    def __exit__(self, *_: object) -> None:
        self._metered.under_way = False
        _left(_running, self._token)


def current() -> Metered | None:
    """The call that the running code is part of."""
    running = _running.get()
    return running if running is not None and running.under_way else None


@contextmanager
def outside() -> Iterator[None]:
    """Around a request that is no part of the running call, and is none itself."""
    token = _running.set(None)
    try:
        yield
    finally:
        _left(_running, token)


def start(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M],
    reader: Reader,
    request: Described,
    *,
    once: bool = False,
) -> M | None:
    """The call that is about to go out, a `kind` of Metered; None where it is not metered, or could not be (logged).

    `request` describes the call; it is asked only where no choke point of the same SDK meters this call already, and
    answers None for what is not billed. `once`: this choke point is passed once per call, so that whoever passes it
    inside a running one makes another. Raises UsageLimitExceeded, and nothing else, when the customer is paused.
    """
    described = _described(reader, request, once)
    if described is None:
        return None
    who = attribution.resolved()
    limits.admit(who)
    return _begun(kind, reader, described, who)


async def start_async(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M],
    reader: Reader,
    request: Described,
    *,
    once: bool = False,
) -> M | None:
    """`start` for code in an event loop, which must not be blocked while an allowance is asked for."""
    described = _described(reader, request, once)
    if described is None:
        return None
    who = attribution.resolved()
    await limits.admit_async(who)
    return _begun(kind, reader, described, who)


def start_further(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M], reader: Reader, request: Described
) -> M | None:
    """`start` for a call that has gone out already, inside another one or behind its back: nobody can stop it now."""
    described = _asked(request)
    return None if described is None else _begun(kind, reader, replace(described, tool_results=None))


def _described(reader: Reader, request: Described, once: bool) -> Request | None:
    running = None if once else current()
    # A host's hooks and transports may call other models while a call is under way, through other SDKs for one.
    return None if running is not None and type(running.reader) is type(reader) else _asked(request)


def _left(variable: ContextVar[Any], token: Token[Any]) -> None:
    try:  # noqa: SIM105 - on every call, where `suppress` takes its time
        variable.reset(token)
    except ValueError:  # in another context than entered: a coroutine that the event loop, or nobody, closed
        pass


def _asked(request: Described) -> Request | None:
    try:
        return request()
    except Exception:  # noqa: BLE001 - the host's call must go out whatever becomes of its metering
        warn_once("request", "Meterhouse could not meter a call.", with_trace=True)
        return None


def _begun(
    kind: Callable[[Any, Call, "tools.HandedBack | None"], M],
    reader: Reader,
    request: Request,
    who: Attribution | None = None,
) -> M | None:
    try:
        handed_back = (
            None if request.tool_results is None else tools.handed_back(request.provider, request.tool_results)
        )
        metered = kind(reader, Call(request.call_id, request.attributes(), who=who), handed_back)
        tools.model_called()
        metered.elsewhere = witness.called(request.operation)
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
        witness.called(request.operation)
        known = {key: cut(value) for key, value in answer.attributes().items()}
        call.finish(status, call_rows(reader.rows(answer)), {**known, USAGE_SOURCE: source})
    except Exception:  # noqa: BLE001 - metering must not take the host down
        warn_once("witness", "Meterhouse could not meter a call that %s reported.", reader.name, with_trace=True)
