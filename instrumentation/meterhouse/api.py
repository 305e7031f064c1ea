"""The public functions; `import meterhouse` re-exports them. OpenTelemetry is imported when something is counted."""

import os
import re
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

from meterhouse import forks, interrupts
from meterhouse.attribution import MAX_BYTES, Scope, current, identifier
from meterhouse.trouble import warn, warn_once
from meterhouse.vocabulary import (
    ABORTED,
    AGENT_TASKS,
    FAILED,
    OK,
    ONCE,
    POINT_ATTRIBUTES,
    REPORTED,
    STATUS,
    USAGE_SOURCE,
)

if TYPE_CHECKING:
    from decimal import Decimal

STATUSES = (OK, FAILED, ABORTED)
DIMENSIONS = 32
"""As many as the store keeps of one event."""
# Compiled, and then kept by `re`, when they are first used.
_EVENT_ID = r"[A-Za-z0-9_-]{1,64}\Z"
_METER = r"[a-z][a-z0-9_.]{0,127}\Z"
_DIMENSION = r"[a-z][a-z0-9_.]{0,63}\Z"
_OURS = ("meterhouse.", "gen_ai.", "usage.", "server.")


def customer(customer_id: str) -> Scope:
    """What runs inside is for this customer. Raises ValueError unless it is a string of 1 to 256 bytes."""
    return Scope(customer=identifier(customer_id, "a customer id"))


def agent(name: str, *, agent_id: str | None = None) -> Scope:
    """What runs inside is this agent's work; its id is its name where none is given."""
    known = identifier(name, "an agent's name")
    return Scope(agent_name=known, agent_id=identifier(name if agent_id is None else agent_id, "an agent id"))


def conversation(conversation_id: str) -> Scope:
    """What runs inside belongs to this conversation."""
    return Scope(conversation=identifier(conversation_id, "a conversation id"))


def step(name: str) -> Scope:
    """What runs inside is this step of the agent."""
    return Scope(step=identifier(name, "a step's name"))


def grant(token: str) -> Scope:
    """What runs inside is for the customer, and of the agent, that a signed grant names; see grants.py.

    Raises ValueError for what is no grant. Whether it is genuine and still valid is for the collector to say.
    """
    with forks.lock:
        from meterhouse import grants
    read = grants.read(token)
    agent_of = {} if read.agent is None else {"agent_name": read.agent, "agent_id": read.agent}
    return Scope(customer=read.customer, grant=token, **agent_of)


class Task(Scope):
    """A scope that ends in one `agent.tasks` event: `ok`, or `failed` when it was left by an exception or `fail()`.

    A framework that gives up inside (its iteration limit is reached) fails the task as well, the innermost one.
    """

    def __init__(self, task_id: str | None) -> None:
        self._given = task_id
        self.task_id = task_id or os.urandom(16).hex()
        self._failed = False
        super().__init__(task=self.task_id)

    def fail(self) -> None:
        """The task did not reach its goal, though nothing was raised."""
        self._failed = True

    def fresh(self) -> "Task":
        return Task(self._given)

    def over(self, error: BaseException | None) -> None:
        status = FAILED if self._failed or (error is not None and not isinstance(error, GeneratorExit)) else OK
        # A queue that delivers a job twice runs a task of its own twice: each outcome of it counts once.
        _record(AGENT_TASKS, 1, ("task", self.task_id, status), status, {ONCE: "true"} if self._given else {})

    def _push(self) -> None:
        around = current()
        super()._push()
        # Where limits.py is not imported yet, no model was called: no task's calls were let.
        if task_inside := getattr(sys.modules.get("meterhouse.limits"), "task_inside", None):
            task_inside(around, self.task_id)


def task(task_id: str | None = None) -> Task:
    """What runs inside is one task; every event in it carries the task's id, a fresh one where none is given.

    A task inside a task is one of its own, with its own outcome. A given id counts once for each outcome, however
    often and wherever a task with it is run.
    """
    return Task(None if task_id is None else identifier(task_id, "a task id"))


class Timed(Scope):
    """Counts how long it was entered, in seconds of a monotonic clock; a scope like the others."""

    def __init__(self, of: "Meter", attributes: Mapping[str, str]) -> None:
        self._meter = of
        self._attributes = attributes
        self._started_ns: int | None = None
        super().__init__()

    def fresh(self) -> "Timed":
        return Timed(self._meter, self._attributes)

    def over(self, error: BaseException | None) -> None:
        if self._started_ns is None:
            return
        took_ns, self._started_ns = time.monotonic_ns() - self._started_ns, None
        failed = FAILED if isinstance(error, Exception) else ABORTED
        _record(
            self._meter.name,
            _seconds(took_ns),
            os.urandom(16).hex(),
            OK if error is None else failed,
            self._attributes,
        )

    def _push(self) -> None:
        super()._push()
        if self._started_ns is None:
            self._started_ns = time.monotonic_ns()


class Meter:
    """A meter of the host's own, e.g. `meterhouse.meter("pages").add(3)`."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not re.match(_METER, name):
            raise ValueError(
                f"a meter's name is lower-case letters, digits, '_' and '.', at most 128; not {name!r:.80}"
            )
        self.name = name

    def add(
        self,
        quantity: "int | Decimal | float",
        *,
        event_id: str | None = None,
        status: str = OK,
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Count `quantity` units for the current customer; returns the event's id.

        An `event_id` counts once per customer and meter, however often, in whichever process and on whichever day it is
        added: the first that the collector received stands, another quantity under the same id is a conflict.
        `attributes` are dimensions of your own, at most 32 strings of at most 256 bytes.

        Raises ValueError for a quantity that is negative, not finite or has more than nine decimals, for an event id
        that is not 1 to 64 of `[A-Za-z0-9_-]`, a status other than ok, failed, aborted, or attributes that cannot be
        kept. Anything that goes wrong later is logged and not raised.
        """
        number = quantity if _is_plain(quantity) else _exactly(quantity)
        if event_id is not None and (not isinstance(event_id, str) or not re.match(_EVENT_ID, event_id)):
            raise ValueError(f"an event id is 1 to 64 of [A-Za-z0-9_-], not {event_id!r:.80}")
        if status not in STATUSES:
            raise ValueError(f"a status is one of {', '.join(STATUSES)}; not {status!r:.80}")
        known = _dimensions(attributes or {})
        if event_id is not None:
            known[ONCE] = "true"
        name = os.urandom(16).hex() if event_id is None else event_id
        _record(self.name, number, name, status, known)
        return name

    def timed(self, *, attributes: Mapping[str, str] | None = None) -> Timed:
        """Counts the seconds inside: `with meterhouse.meter("agent.seconds").timed():`, or as a decorator.

        Decimal seconds with nine decimals; status `failed` when left by an exception, `aborted` when cancelled. Of a
        decorated generator they are those from its first step to its end, its consumer's included.
        """
        return Timed(self, _dimensions(attributes or {}))


def meter(name: str) -> Meter:
    """The meter of this name; raises ValueError for a name that no meter can have."""
    return Meter(name)


def _record(
    name: str, number: int | float, event_id: str | tuple[str, ...], status: str, attributes: Mapping[str, str]
) -> None:
    """`event_id`: the id, or what it is made from."""
    try:
        with forks.lock:
            from meterhouse.call import Caller
            from meterhouse.events import Loose, UsageEvent, name_from
            from meterhouse.runtime import runtime
        caller = Caller.now()
        known = {**attributes, **caller.attributes, STATUS: status, USAGE_SOURCE: REPORTED}
        own = event_id if isinstance(event_id, str) else name_from(*event_id)
        event = UsageEvent(name, number, own, time.time_ns(), known, caller.trace_id, caller.span_id)
        running = runtime()
        if running is not None:
            running.record(Loose([event]))
    except ImportError as error:  # the interpreter ends, or a signal handler struck while this was imported
        warn("Meterhouse could not record an event: %s", error)
    except Exception as error:  # noqa: BLE001 - metering must not take the host down
        interrupts.hand_on(error)
        warn_once("record", "Meterhouse could not record an event.", with_trace=True)


def _is_plain(quantity: object) -> TypeGuard[int]:
    return type(quantity) is int and 0 <= quantity <= 10**15


def _exactly(quantity: "int | Decimal | float") -> int | float:
    with forks.lock:
        from meterhouse import quantities
    return quantities.exactly(quantity)


def _seconds(took_ns: int) -> float:
    """Nine decimals as long as a double holds them exactly; microseconds from eleven days on."""
    exact = took_ns if took_ns < 10**15 else took_ns // 1000 * 1000
    return exact / 10**9  # of integers: rounded once


def _dimensions(attributes: Mapping[str, str]) -> dict[str, str]:
    if len(attributes) > DIMENSIONS:
        raise ValueError(f"an event has at most {DIMENSIONS} attributes of your own, not {len(attributes)}")
    for name, value in attributes.items():
        ours = not isinstance(name, str) or name in POINT_ATTRIBUTES or name.startswith(_OURS)
        if ours or not re.match(_DIMENSION, name):
            raise ValueError(
                f"an attribute's name is lower-case letters, digits, '_' and '.', at most 64, and none of Meterhouse's "
                f"or OpenTelemetry's own; not {name!r:.80}"
            )
        if not isinstance(value, str) or len(value.encode(errors="replace")) > MAX_BYTES:
            raise ValueError(f"the attribute {name} is a string of at most {MAX_BYTES} bytes, not {value!r:.80}")
    return dict(attributes)
