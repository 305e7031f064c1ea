"""The one runtime of a process: its id, journal, counters and exporting thread. A forked child gets a new one.

Nothing here raises into the host. What fails inside is logged once; what was journalled before is not lost by it.
"""

import atexit
import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from meterhouse.conversations import Conversations
from meterhouse.events import UsageEvent
from meterhouse.settings import journal_directory
from meterhouse.vocabulary import CUSTOMER_ID, ENV_CUSTOMER, PROCESS_ID

EXPORT_AT_EVENTS = 500
COUNTED_AT_MOST = 10_000
"""Events that may wait to be counted; beyond, the exporter reads them from the journal instead."""
EXIT_FLUSH_S = 5.0
RESOURCE_KEYS = ("service.name", "service.namespace", "service.version", "deployment.environment.name")

_log = logging.getLogger("meterhouse")
_busy = threading.local()


class Runtime:
    """Journal first, then the counters: `begin` a call, `record` events."""

    def __init__(self) -> None:
        from meterhouse.exporter import INTERVAL_S, Exporter
        from meterhouse.journal import Journal
        from meterhouse.pipeline import Pipeline

        self.pid = os.getpid()
        self.process_id = uuid.uuid4().hex
        resource = _resource(self.process_id)
        self._interval_s = INTERVAL_S
        self._journal: Journal | None = None
        try:
            self._journal = Journal(journal_directory(), self.process_id, resource)
        except OSError as error:
            warn_once(
                "journal", "Meterhouse cannot write its journal (%s): usage is sent, but a crash loses it.", error
            )
        self._pipeline: Pipeline = Pipeline(resource)
        self._exporter: Exporter = Exporter(self._journal, self._pipeline)
        self._late: deque[Callable[[], None]] = deque()
        self._uncounted: deque[UsageEvent] = deque()
        self._conversations = Conversations()
        self._wake = threading.Event()
        self._stopping = False
        self._flushed = False
        self._thread = threading.Thread(target=self._run, name="meterhouse-exporter", daemon=True)
        self._thread.start()

    def begin(self, call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> None:
        """Journal that a provider call is about to start."""
        if self._journal is None:
            return
        with Busy():
            try:
                self._journal.intent(call_id, started_at_ns, attributes)
            except OSError as error:
                warn_once("journal", "Meterhouse cannot write its journal (%s).", error)

    def record(self, call_id: str | None, events: Sequence[UsageEvent]) -> None:
        """Journal the events, then count them."""
        if any(CUSTOMER_ID not in event.attributes for event in events):
            warn_once(
                "customer",
                "Meterhouse knows no customer here: the usage is kept and waits in suspense, unbilled. Set %s, or use "
                "meterhouse.customer(...) around the work.",
                ENV_CUSTOMER,
            )
        with Busy():
            events = [*events, *self._conversations.opened_by(events)]
            journalled = self._journal is not None
            if self._journal is not None:
                try:
                    self._journal.events(call_id, events)
                except OSError as error:
                    journalled = False
                    warn_once("journal", "Meterhouse cannot write its journal (%s).", error)
            if len(self._uncounted) < COUNTED_AT_MOST:
                self._uncounted.extend(events)  # counted by the exporter's thread: the SDK's counters are slow
            elif journalled:
                self._exporter.lagging()
            else:
                warn_once("dropped", "Meterhouse has neither journal nor collector and loses usage.")
            if len(self._uncounted) >= EXPORT_AT_EVENTS:
                self._wake.set()

    def later(self, finish: Callable[[], None]) -> None:
        """Run `finish` in the exporter's thread: for the garbage collector, which may strike while a lock is held."""
        self._late.append(finish)

    def flush(self, timeout_s: float) -> bool:
        """Stop the thread after one last export; False when not everything was delivered in time."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._exporter.interrupt()
            return False
        return self._flushed

    def tell_what_is_left(self) -> None:
        """For the end of the process: one line when usage stays in the journal."""
        if self._journal is None:
            _log.warning("Meterhouse ends without a journal and could not deliver its last usage: it is lost.")
            return
        events, more = self._journal.waiting()
        if events:
            one = events == 1 and not more
            _log.warning(
                "Meterhouse leaves %s undelivered in %s: `meterhouse drain` delivers %s, or the next metered process.",
                "1 usage event" if one else f"{'more than ' * more}{events} usage events",
                self._journal.path,
                "it" if one else "them",
            )

    def abandon_after_fork(self) -> None:
        if self._journal is not None:
            self._journal.abandon_after_fork()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._step()
        self._run_late()
        with Busy():
            self._count()
            self._flushed = self._exporter.flush()
            if self._flushed and self._journal is not None:
                self._journal.close()

    def _step(self) -> None:
        try:
            self._run_late()
            with Busy():
                self._count()
                self._exporter.step()
        except Exception:  # noqa: BLE001 - the thread must live: everything unsent is in the journal
            if not sys.is_finalizing():
                warn_once("exporter", "Meterhouse failed while exporting and will try again.", with_trace=True)
            time.sleep(0.1)

    def _count(self) -> None:
        events = [self._uncounted.popleft() for _ in range(len(self._uncounted))]
        if events:
            self._pipeline.add(events)

    def _run_late(self) -> None:
        while self._late:
            self._late.popleft()()


class Busy:
    """Marks a thread that holds, or may soon hold, a lock of ours or of the SDK."""

    def __enter__(self) -> None:
        _busy.depth = getattr(_busy, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _busy.depth -= 1


def busy() -> bool:
    """True inside our own code: a finaliser that runs here must not take a lock."""
    return bool(getattr(_busy, "depth", 0))


_runtime: Runtime | None = None
_starting = threading.RLock()
_warned: set[str] = set()
_disabled = False


def runtime() -> Runtime | None:
    """This process's runtime, started on first use; None when it could not be started (logged once)."""
    global _runtime, _disabled
    if _runtime is not None or _disabled:
        return _runtime
    with _starting, Busy():
        if _runtime is None and not _disabled:
            try:
                _runtime = Runtime()
            except Exception:  # noqa: BLE001 - metering must not take the host down
                _disabled = True
                warn_once("start", "Meterhouse could not start: this process is not metered.", with_trace=True)
    return _runtime


def flush(timeout_s: float = EXIT_FLUSH_S) -> bool:
    """Deliver what is open and end the runtime; True when everything was delivered. A later event starts a new one."""
    global _runtime
    ending, _runtime = _runtime, None
    return ending is None or ending.flush(timeout_s)


def warn_once(topic: str, message: str, *arguments: object, with_trace: bool = False) -> None:
    """One warning per process and topic."""
    if topic not in _warned:
        _warned.add(topic)
        _log.warning(message, *arguments, exc_info=with_trace)


def _resource(process_id: str) -> dict[str, str]:
    """The allow-listed part of the host's resource; command lines and paths stay here."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    found = OTELResourceDetector().detect().attributes
    resource = {key: str(found[key]) for key in RESOURCE_KEYS if key in found}
    resource.setdefault("service.name", "unknown_service")
    resource["service.instance.id"] = str(found.get("service.instance.id", process_id))
    resource[PROCESS_ID] = process_id
    return resource


def _after_fork_in_child() -> None:
    global _runtime, _starting
    inherited, _runtime = _runtime, None
    _starting = threading.RLock()
    _busy.__dict__.clear()
    if inherited is not None:
        inherited.abandon_after_fork()


def _at_exit() -> None:
    ending = _runtime
    if ending is not None and not flush():
        ending.tell_what_is_left()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
