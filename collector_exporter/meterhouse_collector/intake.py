"""What both doors do with a request: who is it, can it be read, is it on disk."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeVar

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.extents import check_metrics, check_traces, check_unfolded
from meterhouse_collector.foreign.mapping import NONE, Mapping
from meterhouse_collector.grants import Verifier, tokens
from meterhouse_collector.journal import Entry, Journal, Overloaded
from meterhouse_collector.records import GRANTS, Granted
from meterhouse_collector.refusals import FORBIDDEN, OVERLOADED, Kind, Refused
from meterhouse_collector.series import SeriesLimit, foreign_metrics
from meterhouse_collector.signals import METRICS, Signal
from meterhouse_collector.spans_allowed import reduce_traces
from meterhouse_store.access import Credential

HELD_BYTES: Final = 256 * 2**20
"""Bodies of requests under way, as sent and decompressed."""
LARGE_BYTES: Final = 128 * 2**10
"""What is larger is decoded in a thread: the others do not wait for it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

T = TypeVar("T")
Report = Callable[["Outcome", str, bool, float], None]


@dataclass(slots=True)
class Outcome:
    """What became of a request: `items` are its exemplars, points and spans, `bytes` what was read of its body."""

    credential: Credential | None = None
    bytes: int = 0
    items: int = 0


class Room:
    """What one request takes of the memory that all requests under way have together."""

    def __init__(self, intake: "Intake") -> None:
        self._intake, self._taken = intake, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._intake.held_bytes -= self._taken

    def take(self, size: int) -> None:
        """So many bytes more. Raises Refused."""
        if self._intake.held_bytes + size > HELD_BYTES:
            raise Refused(OVERLOADED, "the requests under way take all the memory there is for them")
        self._intake.held_bytes += size
        self._taken += size


class Intake:
    """Takes requests from the doors into the journal.

    `mapping()` is what holds of the mapping file now: the rules that concern a request are written into its record.
    `report` is told of every request that is finished: what became of it, why it was refused ('' for accepted), whether
    it may be sent again, and how many seconds it took.
    """

    def __init__(
        self,
        credentials: Credentials,
        journal: Journal,
        *,
        mapping: Callable[[], Mapping] = lambda: NONE,
        series: SeriesLimit | None = None,
        report: Report = lambda _outcome, _code, _retry, _seconds: None,
    ) -> None:
        self._credentials, self._journal = credentials, journal
        self._mapping = mapping
        self._series, self._report = series or SeriesLimit(), report
        self.held_bytes = 0
        self._verifier = Verifier()
        self._written = _Written()
        self._decoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decoder")

    async def authenticate(self, authorization: str | None) -> Credential:
        """The credential of an `Authorization: Bearer mh_...` header. Raises Refused."""
        return await self._credentials.of(authorization)

    async def accept(self, credential: Credential, signal: Signal, request: bytes) -> int:
        """How many exemplars, points or spans the serialized request has, when it is on disk. Raises Refused."""
        if credential.customers is not None and not credential.customers:
            # In the record an empty list means any customer.
            raise Refused(FORBIDDEN, "this key may report for no customer at all: create one that names its customers")
        read = self._read_metrics if signal is METRICS else self._read_traces
        entry, items = await self.decoded(len(request), lambda: read(credential, request))
        try:
            await self._written.wait(self._journal.append(entry))
        except Overloaded as problem:
            raise Refused(OVERLOADED, f"{problem}: send it again in a second") from None
        return items

    def _read_metrics(self, credential: Credential, request: bytes) -> tuple[Entry, int]:
        message, extent = check_metrics(request)
        granted = self._granted(credential, message.resource_metrics, extent.rows, len(request))
        foreign = foreign_metrics(message)
        if foreign:
            self._series.check(credential.credential_id, message)
        entry = _entry(
            credential,
            granted,
            metrics=request,
            mapping=self._mapping().for_record(foreign) if foreign else "",
            foreign=bool(foreign),
        )
        return entry, extent.events

    def _read_traces(self, credential: Credential, request: bytes) -> tuple[Entry, int]:
        message, extent = check_traces(request)
        granted = self._granted(credential, message.resource_spans, extent.rows, len(request))
        mapping = self._mapping()
        traces = reduce_traces(message, mapping.span_attributes)
        entry = _entry(credential, granted, traces=traces, mapping=mapping.for_record(()), foreign=True)
        return entry, extent.events

    def _granted(self, credential: Credential, resources: Any, rows: int, size: int) -> tuple[Granted, ...]:
        """What the request's grants allow; nothing where the credential needs none."""
        if credential.grant_keys is None:
            return ()
        granted = self._verifier.granted(credential.grant_keys, tokens(resources))
        # The warehouse copies them to each point.
        check_unfolded(rows * sum(len(one.customer_id) + len(one.agent_id) + 24 for one in granted), size)
        return granted

    async def decoded(self, size: int, work: Callable[[], T]) -> T:
        """The result of work on so many bytes of a request, which does not hold up the other requests."""
        if size <= LARGE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    @contextmanager
    def counted(self) -> Iterator[Outcome]:
        """Around the handling of one request: whatever becomes of it is reported, once."""
        outcome, started = Outcome(), time.perf_counter()
        code, retry = "internal", True
        try:
            yield outcome
            code = ""
        except Refused as refused:
            code, retry = refused.kind.code, refused.kind.retry
            raise
        except asyncio.CancelledError:
            code = "cancelled"  # the client went away, or the collector stops
            raise
        finally:
            self._report(outcome, code, retry, time.perf_counter() - started)

    @contextmanager
    def refusals_counted(self) -> Iterator[Outcome]:
        """Around what is no usage: only where it is refused it is reported."""
        outcome, started = Outcome(), time.perf_counter()
        try:
            yield outcome
        except Refused as refused:
            self._report(outcome, refused.kind.code, refused.kind.retry, time.perf_counter() - started)
            raise

    def turned_away(self, kind: Kind) -> None:
        """Report a request that never came as far as this."""
        self._report(Outcome(), kind.code, kind.retry, 0.0)

    def room(self) -> Room:
        """Memory for one request, given back at the end of the context."""
        return Room(self)


class _Written:
    """Lets coroutines wait for futures of the journal's thread, which wakes the loop once for all that it finishes."""

    def __init__(self) -> None:
        self._finished: deque[tuple[asyncio.Future[None], Future[None]]] = deque()
        self._waking = False

    async def wait(self, done: Future[None]) -> None:
        """Until it is done; raises what it raises."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        done.add_done_callback(lambda finished: self._finish(loop, waiter, finished))
        await waiter

    def _finish(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None], finished: Future[None]) -> None:
        self._finished.append((waiter, finished))
        if not self._waking and not loop.is_closed():
            self._waking = True
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        # First this: what is finished from now on wakes the loop again, if it comes too late for the turns below.
        self._waking = False
        while self._finished:
            waiter, finished = self._finished.popleft()
            if waiter.done():  # cancelled
                continue
            if (problem := finished.exception()) is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(problem)


def _entry(
    credential: Credential,
    granted: tuple[Granted, ...],
    *,
    metrics: bytes = b"",
    traces: bytes = b"",
    mapping: str = "",
    foreign: bool,
) -> Entry:
    return Entry(
        credential.credential_id,
        credential.namespace,
        credential.customers or (),
        metrics,
        granted,
        "" if credential.grant_keys is None else GRANTS,
        traces=traces,
        mapping=mapping,
        valid_from_ns=_ns(credential.valid_from) if foreign else 0,
    )


def _ns(at: datetime) -> int:
    # Whole microseconds, in integers: a float would round.
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000
