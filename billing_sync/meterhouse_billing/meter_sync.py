"""`bill sync`: usage of the customers who are billed by Stripe's meters, hour by hour, into meter events.

Totals are absolute: Stripe's meters are made with `event_time_window: hour`, where the newest event of an hour counts
and the ones before it do not. So an event may be sent again whenever its outcome is unknown, usage that comes late or
is taken back is a newer total of its hour, and no difference can add up. With increments each of these would need
Stripe's memory of identifiers, which lasts a day.

Of an hour only the newest total is sent, and those of one customer and meter one after the other: an older total never
arrives after a newer one. Each step is committed before it is reported; a run that was stopped anywhere is repeated.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from meterhouse_billing import meter_records as records
from meterhouse_billing.drivers import METERS, Driver, driver_at, drivers
from meterhouse_billing.gateway import StripeRefused, StripeUnavailable
from meterhouse_billing.meter_gateway import MeterGateway
from meterhouse_billing.meter_records import Event, Lane, Subscription
from meterhouse_billing.meter_stream import BATCH, MeterStream, batch_id
from meterhouse_billing.meter_usage import Source, count
from meterhouse_billing.outbox import KEY_LASTS
from meterhouse_billing.world import World
from meterhouse_rating.layout import counted
from meterhouse_rating.periods import Period, month_of, months
from meterhouse_rating.usage import Hour
from meterhouse_store import registry, switches

WORKERS: Final = 16
ROUND: Final = 5000
"""So many events are marked as tried, and sent, between two looks at the switch."""
FLUSH: Final = 500
FLUSH_S: Final = 0.5
OLDEST: Final = timedelta(days=34, hours=23)
"""Stripe takes events of the past 35 days."""
STREAM_FROM: Final = 30_000
"""With `auto`, so many waiting events go by the stream: v1 would take them half a minute, at 1,000 a second."""
ON, OFF, AUTO = "on", "off", "auto"
SEALED_AFTER: Final = timedelta(minutes=2)
"""An hour is sealed when everything received up to so long after it is known."""


@dataclass(frozen=True)
class Step:
    """Something that is done and committed, or (`failed`) an exception that a person has to look at."""

    text: str
    customer_id: str = ""
    failed: bool = False

    def __str__(self) -> str:
        who = f"{self.customer_id}: " if self.customer_id else ""
        return f"{who}{'EXCEPTION: ' if self.failed else ''}{self.text}"


@dataclass
class Sync:
    """What a run works with. `sealed`: leave the hour under way out. `stream`: on, off, or auto, when there is much."""

    world: World
    source: Source
    gateway: MeterGateway
    sealed: bool = False
    workers: int = WORKERS
    stream: str = OFF
    known: dict[str, list[Driver]] = field(default_factory=dict)
    subscriptions: list[Subscription] = field(default_factory=list)
    contracts: dict[str, list[registry.Contract]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Read anew who is billed by meters."""
        self.known = drivers(self.world.engine, self.world.namespace)
        self.subscriptions = records.subscriptions(self.world.engine, self.world.namespace)
        self.contracts = {}
        for it in registry.contracts(self.world.engine, self.world.namespace):
            self.contracts.setdefault(it.customer_id, []).append(it)

    def billed(self, month: Period) -> list[Subscription]:
        """The subscriptions by which a month is billed."""
        found: dict[str, Subscription] = {}
        for it in self.subscriptions:
            if it.valid_from <= month.start and driver_at(self.known, it.customer_id, month.start) == METERS:
                found[it.customer_id] = it
        return list(found.values())

    def hours(self, month: Period, billed: Sequence[Subscription], as_of: datetime) -> Iterator[Hour]:
        """What they used in a month; not after their contracts' ends, to the moment.

        An hour in which a contract ends and another one begins comes in two parts.
        """
        within: dict[Period, list[str]] = {}
        for it in billed:
            for part in _under_contract(self.contracts.get(it.customer_id, ()), month):
                within.setdefault(part, []).append(it.customer_id)
        for part, customers in within.items():
            yield from self.source.hours(part, customers, as_of)

    def open_months(self, now: datetime) -> list[Period]:
        """The months that can still change in Stripe: of the past 35 days, up to now."""
        begun = min((it.valid_from for it in self.subscriptions), default=None)
        if begun is None:
            return []
        return list(months(max(begun, month_of(now - OLDEST, "UTC").start), now, "UTC"))


def _under_contract(contracts: Sequence[registry.Contract], month: Period) -> list[Period]:
    """The parts of a month that no end of a contract takes out; `contracts` in the order of their beginnings."""
    parts: list[Period] = []
    start: datetime | None = month.start
    for it in contracts:
        at = min(max(it.valid_from, month.start), month.end)
        if it.plan != registry.ENDED:
            start = at if start is None else start
        elif start is not None:
            parts.append(Period(start, at))
            start = None
    if start is not None:
        parts.append(Period(start, month.end))
    return [it for it in parts if it.start < it.end]


def plan(run: Sync) -> Iterator[Step]:
    """Write down what is to be sent: the total of each hour that is another one than what was sent last."""
    world, now = run.world, run.world.now()
    as_of = run.source.as_of()
    if as_of is None:
        yield Step("the warehouse knows of no usage yet")
        return
    until = as_of - SEALED_AFTER - timedelta(hours=1) if run.sealed else as_of
    until += timedelta(microseconds=1)  # an hour is named by its start, and one that starts at that moment is meant
    frozen = {(it.customer_id, it.period.start) for it in records.frozen(world.engine, world.namespace)}
    for month in run.open_months(now):
        billed = [it for it in run.billed(month) if (it.customer_id, month.start) not in frozen]
        if not billed:
            continue
        found = count(billed, run.hours(month, billed, as_of))
        lanes = {
            (it.customer_id, metered.event_name): it.stripe_customer_id
            for it in billed
            for metered in it.metered
            if (it.customer_id, metered.event_name) not in found.problems
        }
        written = records.record(
            world.engine,
            world.namespace,
            month,
            found.buckets,
            of=lanes,
            since=now - OLDEST,
            until=until,
            now=now,
        )
        if written:
            yield Step(f"{month.start:%Y-%m}: {counted(written, 'hourly total')} to send")
        for (customer_id, event_name), why in found.problems.items():
            yield Step(f"{event_name}: {why}: correct the usage, or bill by invoices", customer_id, failed=True)


def deliver(run: Sync) -> Iterator[Step]:
    """Send what is pending. Raises StripeUnavailable: everything done stays done, and SwitchedOff."""
    world = run.world
    records.supersede(world.engine, world.namespace, world.now())
    lanes = records.pending(world.engine, world.namespace)
    total = sum(map(len, lanes.values()))
    done = 0
    route = _Route(run, total)
    while lanes:
        switches.require(world.engine, world.namespace, switches.SYNC)
        batch = _batch(lanes)
        records.trying(world.engine, [event for events in batch for event in events], world.now())
        for settled in _Round(run, batch, route).results():
            done += settled
            yield Step(f"sent {done:,} of {counted(total, 'hourly total')}{route.told()}")


def _batch(lanes: dict[Lane, list[Event]]) -> list[list[Event]]:
    """Take a round's events out of the lanes, evenly: a lane is worked off by one thread at a time."""
    share = max(1, ROUND // len(lanes))
    batch = []
    for lane, events in list(lanes.items()):
        batch.append(events[:share])
        if len(events) > share:
            lanes[lane] = events[share:]
        else:
            del lanes[lane]
        if sum(map(len, batch)) >= ROUND:
            break
    return batch


class _Route:
    """By which of Stripe's ways events go: v1, or the stream until Stripe refuses that."""

    def __init__(self, run: Sync, total: int) -> None:
        wanted = run.stream == ON or (run.stream == AUTO and total >= STREAM_FROM)
        self.stream = MeterStream(run.gateway.gateway, run.world.now) if wanted else None
        self._why = ""

    def refuse(self, why: str) -> None:
        """The stream is not to be had: what is left goes by v1."""
        self.stream, self._why = None, why

    def told(self) -> str:
        """For people."""
        return " by the stream" if self.stream else f" (not by the stream: {self._why})" if self._why else ""


class _Round:
    """Sends lanes of events in threads; what was delivered is written down by the caller's thread, some at a time."""

    def __init__(self, run: Sync, batch: Sequence[Sequence[Event]], route: _Route) -> None:
        self._run, self._route = run, route
        self._lanes = deque(batch)
        if route.stream is not None:  # it takes any events together, of an hour there is one
            every = [event for events in batch for event in events]
            self._lanes = deque(every[at : at + BATCH] for at in range(0, len(every), BATCH))
        self._settled: queue.Queue[Callable[[], None] | str | None] = queue.Queue()  # None: a thread ended
        self._working = 0
        self._stop = threading.Event()
        self._problem: BaseException | None = None
        self._meters = {metered.event_name: metered for it in run.subscriptions for metered in it.metered}

    def results(self) -> Iterator[int]:
        """How many events were settled since the last time, each time they are written down."""
        threads = [
            threading.Thread(target=self._work, name=f"meter-events-{number}", daemon=True)
            for number in range(min(self._run.workers, len(self._lanes)))
        ]
        for thread in threads:
            thread.start()
        self._working = len(threads)
        try:
            while self._working:
                if settled := self._flush():
                    yield settled
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem

    def _flush(self) -> int:
        """Write down what was settled within FLUSH_S, or until there is enough of it; how much it was."""
        delivered: list[str] = []
        changes: list[Callable[[], None]] = []
        until = time.monotonic() + FLUSH_S
        while self._working and len(delivered) + len(changes) < FLUSH:
            try:
                settled = self._settled.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if settled is None:
                self._working -= 1
            elif isinstance(settled, str):
                delivered.append(settled)
            else:
                changes.append(settled)
        records.delivered(self._run.world.engine, delivered, self._run.world.now())
        for change in changes:
            change()
        return len(delivered) + len(changes)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    events = self._lanes.popleft()
                except IndexError:
                    return
                self._lane(events)
        except BaseException as problem:  # noqa: BLE001 (raised again by the thread that waits)
            self._problem = self._problem or problem
            self._stop.set()
        finally:
            self._settled.put(None)

    def _lane(self, events: Sequence[Event]) -> None:
        world, stream = self._run.world, self._route.stream
        if stream is not None:
            events = self._streamed(stream, events)
        for event in events:
            if self._stop.is_set():
                return
            try:
                if not self._is_there(event):
                    self._run.gateway.send(event, event.attempts + 1)
            except StripeRefused as refused:
                self._settled.put(_rejecting(world, event, str(refused)))
            except StripeUnavailable as problem:
                records.failed(world.engine, {event.identifier: str(problem)})
                raise
            else:
                self._settled.put(event.identifier)

    def _streamed(self, stream: MeterStream, events: Sequence[Event]) -> Sequence[Event]:
        """Send a batch by the stream; what is left for v1, which is all of it where Stripe refuses the stream."""
        world, left = self._run.world, []
        for event in events:
            if self._is_there(event):
                self._settled.put(event.identifier)
            else:
                left.append(event)
        if not left:
            return []
        name = batch_id(left)
        records.batch(world.engine, world.namespace, name, left, world.now())
        try:
            stream.send(left, name)
        except StripeRefused as refused:
            self._route.refuse(str(refused))
            return left
        except StripeUnavailable as problem:
            records.failed(world.engine, {event.identifier: str(problem) for event in left})
            raise
        for event in left:
            self._settled.put(event.identifier)
        return []

    def _is_there(self, event: Event) -> bool:
        """Whether an event whose outcome was unknown for so long that Stripe may have forgotten its name is there."""
        metered = self._meters.get(event.event_name)
        now = self._run.world.now()
        if event.sent_at is None or now - event.sent_at <= KEY_LASTS or metered is None:
            return False
        hour = Period(event.hour, event.hour + timedelta(hours=1))
        return self._run.gateway.total(metered.stripe_meter_id, event.stripe_customer_id, hour) == event.total


def _rejecting(world: World, event: Event, why: str) -> Callable[[], None]:
    def change() -> None:
        records.reject(world.engine, world.namespace, event.identifier, why, world.now())

    return change
