"""The public functions; `import meterhouse` re-exports them. OpenTelemetry is imported when something is counted."""

import hashlib
import re
import time
import uuid
from decimal import Decimal
from types import TracebackType
from typing import Self

from meterhouse.attribution import Outcome, Scope, identifier
from meterhouse.events import UsageEvent
from meterhouse.vocabulary import AGENT_TASKS, FAILED, OK, REPORTED, STATUS, USAGE_SOURCE

STATUSES = ("ok", "failed", "aborted")
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_METER = re.compile(r"[a-z][a-z0-9_.]{0,127}\Z")


class UsageLimitExceeded(Exception):
    """The customer's usage limit is reached: raised before the provider is called, never retried by an SDK."""


def customer(customer_id: str) -> Scope:
    """What runs inside is for this customer. Raises ValueError unless it is a string of 1 to 256 bytes."""
    return Scope(customer=identifier(customer_id, "a customer id"))


def agent(name: str, *, agent_id: str | None = None) -> Scope:
    """What runs inside is this agent's work; its id is its name where none is given."""
    known = identifier(name, "an agent's name")
    return Scope(agent_name=known, agent_id=identifier(agent_id or name, "an agent id"))


def conversation(conversation_id: str) -> Scope:
    """What runs inside belongs to this conversation."""
    return Scope(conversation=identifier(conversation_id, "a conversation id"))


def step(name: str) -> Scope:
    """What runs inside is this step of the agent."""
    return Scope(step=identifier(name, "a step's name"))


class Task(Scope):
    """A scope that ends in one `agent.tasks` event: `ok`, or `failed` when it was left by an exception or `fail()`.

    A framework that gives up inside (its iteration limit is reached) fails the task as well.
    """

    def __init__(self, task_id: str | None) -> None:
        self._given = task_id
        self.task_id = task_id or uuid.uuid4().hex
        self._failed = False
        self._outcome = Outcome(self.fail)
        super().__init__(task=self.task_id)

    def fail(self) -> None:
        """The task did not reach its goal, though nothing was raised."""
        self._failed = True

    def fresh(self) -> "Task":
        return Task(self._given)

    def __enter__(self) -> Self:
        super().__enter__()
        self._outcome.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outcome.__exit__()
        failed = self._failed or (kind is not None and not issubclass(kind, GeneratorExit))
        try:
            meter(AGENT_TASKS).add(1, event_id=_task_event(self.task_id), status=FAILED if failed else OK)
        finally:
            super().__exit__(kind, error, trace)


def task(task_id: str | None = None) -> Task:
    """What runs inside is one task; every event in it carries the task's id, a fresh one where none is given."""
    return Task(None if task_id is None else identifier(task_id, "a task id"))


class Meter:
    """A meter of the host's own, e.g. `meterhouse.meter("pages").add(3)`."""

    def __init__(self, name: str) -> None:
        if not _METER.match(name):
            raise ValueError(
                f"a meter's name is lower-case letters, digits, '_' and '.', at most 128; not {name!r:.80}"
            )
        self.name = name

    def add(self, quantity: int | Decimal | float, *, event_id: str | None = None, status: str = OK) -> str:
        """Count `quantity` units for the current customer; returns the event's id.

        The same `event_id` counts once, however often it is added. Raises ValueError for a quantity that is negative,
        not finite or has more than nine decimals, for an event id that is not 1 to 64 of `[A-Za-z0-9_-]`, or a status
        other than ok, failed, aborted. Anything that goes wrong later is logged and not raised.
        """
        number = _quantity(quantity)
        if event_id is not None and not _EVENT_ID.match(event_id):
            raise ValueError(f"an event id is 1 to 64 of [A-Za-z0-9_-], not {event_id!r:.80}")
        if status not in STATUSES:
            raise ValueError(f"a status is one of {', '.join(STATUSES)}; not {status!r:.80}")
        name = event_id or uuid.uuid4().hex
        _record(self.name, number, name, status)
        return name


def meter(name: str) -> Meter:
    """The meter of this name; raises ValueError for a name that no meter can have."""
    return Meter(name)


def _record(name: str, number: int | float, event_id: str, status: str) -> None:
    from meterhouse.call import Caller
    from meterhouse.runtime import runtime, warn_once

    try:
        caller = Caller.now()
        known = {**caller.attributes, STATUS: status, USAGE_SOURCE: REPORTED}
        event = UsageEvent(name, number, event_id, time.time_ns(), known, caller.trace_id, caller.span_id)
        running = runtime()
        if running is not None:
            running.record(None, [event])
    except Exception:  # noqa: BLE001 - metering must not take the host down
        warn_once("record", "Meterhouse could not record an event.", with_trace=True)


def _quantity(quantity: int | Decimal | float) -> int | float:
    """The number that OTLP carries, exactly the one that was given."""
    if isinstance(quantity, int) and not isinstance(quantity, bool) and 0 <= quantity <= 10**15:
        return quantity
    number = isinstance(quantity, int | float | Decimal) and not isinstance(quantity, bool)
    exact = Decimal(str(quantity)) if number else Decimal("NaN")
    if not exact.is_finite() or not 0 <= exact <= 10**15:
        raise ValueError(f"a quantity is a number from 0 to 10^15, not {quantity!r:.80}")
    if exact != round(exact, 9) or Decimal(repr(float(exact))) != exact:
        raise ValueError(f"a quantity has at most nine decimals and 15 digits, not {quantity!r:.80}")
    return float(exact)


def _task_event(task_id: str) -> str:
    return hashlib.sha256(f"task\0{task_id}".encode()).hexdigest()[:32]
