"""One logical provider or tool call: born with an intent, finished exactly once, whatever becomes of it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from opentelemetry import trace

from meterhouse import attribution, interrupts, limits
from meterhouse.attribution import Attribution
from meterhouse.events import Finished, Row, cut
from meterhouse.runtime import busy, runtime
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import CALL_ID, CUSTOMER_ID, GRANT, LEASE_ID, STATUS

REMEMBERED = 256
"""Callers whose attributes are kept ready."""


@dataclass(slots=True)
class Caller:
    """Who calls and from which span, taken when the call starts."""

    attributes: Mapping[str, str]
    trace_id: int
    span_id: int

    @classmethod
    def now(cls, who: Attribution | None = None) -> "Caller":
        """`who`: `attribution.resolved()`, where it is known already."""
        who = who or attribution.resolved()
        span = trace.get_current_span().get_span_context()
        return cls(_attributes(who, limits.lease_id(who)), span.trace_id, span.span_id)


@lru_cache(maxsize=REMEMBERED)
def _attributes(who: Attribution, lease: str) -> Mapping[str, str]:
    """What every event of theirs has; one mapping for all of their calls, never changed."""
    known = {key: cut(value) for key, value in who.attributes().items()}
    if lease:
        known[LEASE_ID] = cut(lease)
    if who.grant:
        known[GRANT] = who.grant  # whole, or its signature would be worth nothing
    return known


def new_call_id() -> str:
    """A fresh id of 32 hex digits."""
    return os.urandom(16).hex()


class Call:
    """`attributes` are those known when it starts; the constructor journals the intent of a provider's call.

    A tool's call has none (`intent=False`): what its death leaves open is no request to a provider. `who`: see Caller.
    """

    def __init__(
        self, call_id: str, attributes: Mapping[str, str], *, intent: bool = True, who: Attribution | None = None
    ) -> None:
        self.call_id = call_id
        self._caller = Caller.now(who)
        self._pid = os.getpid()
        self._attributes = {CALL_ID: call_id, **self._caller.attributes, **attributes}
        self._finished = False
        self._started_at_ns = time.time_ns()
        running = runtime()
        if running is not None and intent:
            running.begin(call_id, self._started_at_ns, self._attributes)

    @property
    def payer(self) -> str:
        """The customer; empty where none is known."""
        return self._caller.attributes.get(CUSTOMER_ID, "")

    @property
    def finished(self) -> bool:
        return self._finished

    def finish(
        self,
        status: str,
        rows: Sequence[Row],
        attributes: Mapping[str, str],
        *,
        event_time_ns: int | None = None,
        name: str | None = None,
    ) -> None:
        """Record the call's events; only the first finish counts. Never raises anything of its own.

        Their time is when the call started, as in its intent: who adopts that and tells of it as unfinished, though it
        did finish, tells the same event. Another `event_time_ns`, and `name`, from which their ids are made (else from
        the call's id), are for what several processes may tell of: copies of an event agree in both.
        """
        # A forked child has a copy of its parent's open calls; they are the parent's to finish.
        if self._finished or os.getpid() != self._pid:
            return
        self._finished = True
        known = {**self._attributes, **attributes, STATUS: status}
        at = self._started_at_ns if event_time_ns is None else event_time_ns
        finished = Finished(self.call_id, at, rows, known, self._caller.trace_id, self._caller.span_id, name)
        running = runtime()
        if running is None:
            return
        if busy():
            running.later(lambda: running.record(finished))
            return
        try:
            running.record(finished)
        except BaseException as error:
            if not isinstance(error, Exception) or interrupts.from_host(error):
                running.later(lambda: running.record(finished))  # once more: the same events count once
                raise
            warn_once("record", "Meterhouse could not record a call; it will be listed as unfinished.", with_trace=True)
