"""One logical provider or tool call: born with an intent, finished exactly once, whatever becomes of it."""

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry import trace

from meterhouse import attribution
from meterhouse.events import Row, cut, of_call
from meterhouse.runtime import busy, runtime, warn_once
from meterhouse.vocabulary import CALL_ID, STATUS


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls and from which span, taken when the call starts."""

    attributes: Mapping[str, str]
    trace_id: int
    span_id: int

    @classmethod
    def now(cls) -> "Caller":
        who = attribution.current()
        span = trace.get_current_span().get_span_context()
        attributes = {**who.point_attributes(), **who.event_attributes()}
        return cls({key: cut(value) for key, value in attributes.items()}, span.trace_id, span.span_id)


def new_call_id() -> str:
    """A fresh id of 32 hex digits."""
    return uuid.uuid4().hex


class Call:
    """`attributes` are those known when it starts; the constructor journals the intent of a provider's call.

    A tool's call has none (`intent=False`): what its death leaves open is no request to a provider.
    """

    def __init__(self, call_id: str, attributes: Mapping[str, str], *, intent: bool = True) -> None:
        self.call_id = call_id
        self._caller = Caller.now()
        self._pid = os.getpid()
        self._attributes = {CALL_ID: call_id, **self._caller.attributes, **attributes}
        self._finished = False
        running = runtime()
        if running is not None and intent:
            running.begin(call_id, time.time_ns(), self._attributes)

    @property
    def finished(self) -> bool:
        return self._finished

    def finish(self, status: str, rows: Sequence[Row], attributes: Mapping[str, str]) -> None:
        """Record the call's events; only the first finish counts. Never raises."""
        # A forked child has a copy of its parent's open calls; they are the parent's to finish.
        if self._finished or os.getpid() != self._pid:
            return
        self._finished = True
        known = {**self._attributes, **attributes, STATUS: status}
        events = of_call(
            self.call_id, time.time_ns(), rows, known, trace_id=self._caller.trace_id, span_id=self._caller.span_id
        )
        running = runtime()
        if running is None:
            return
        if busy():
            running.later(lambda: running.record(self.call_id, events))
            return
        try:
            running.record(self.call_id, events)
        except Exception:  # noqa: BLE001 - the host's call went well; its intent stays open and will be told of
            warn_once("record", "Meterhouse could not record a call; it will be listed as unfinished.", with_trace=True)
