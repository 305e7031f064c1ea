"""The one runtime of a process: its id, journal, counters and exporting thread. A forked child gets a new one.

Nothing here raises into the host. What fails inside is logged once; what was journalled before is not lost by it.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from meterhouse import forks, limits
from meterhouse.conversations import Conversations
from meterhouse.events import Loose, Recorded
from meterhouse.journal import Journal, MemoryFull
from meterhouse.journal_records import close_inherited
from meterhouse.settings import (
    JOURNAL_MAX_BYTES,
    Limits,
    destination,
    estimating,
    journal_directory,
    journal_fsync,
    journal_limits,
    number_of,
)
from meterhouse.trouble import warn_once
from meterhouse.vocabulary import (
    CUSTOMER_ID,
    ENV_CUSTOMER,
    ENV_EXPORT_EVENTS,
    ENV_EXPORT_INTERVAL_S,
    ENV_JOURNAL_DIR,
    PROCESS_ID,
)

EXPORT_AT_EVENTS = 500
COUNTED_AT_MOST = 10_000
"""Events that may wait to be counted; beyond, the exporter reads them from the journal instead."""
EXIT_FLUSH_S = 5.0
RESOURCE_KEYS = ("service.name", "service.namespace", "service.version", "deployment.environment.name")

LOST = "Meterhouse has room for usage neither on disk nor in memory (%s): it is lost."

_log = logging.getLogger("meterhouse")
_busy = threading.local()
_MARKED: Final = nullcontext()


class Runtime:
    """Journal first, then the counters: `begin` a call, `record` events."""

    def __init__(self) -> None:
        from meterhouse.exporter import INTERVAL_S, Exporter

        self.pid = os.getpid()
        self.process_id = os.urandom(16).hex()
        resource = _resource(self.process_id)
        self.estimating = estimating()
        """See settings.estimating; read once, as all settings that are no attribution."""
        self._interval_s = number_of(ENV_EXPORT_INTERVAL_S, INTERVAL_S, least=0.05)
        self._export_at = number_of(ENV_EXPORT_EVENTS, EXPORT_AT_EVENTS, least=1)
        self._journal: Journal | None = None
        try:
            goal = destination()
            mark = goal.mark if goal is not None else ""
            self._journal = Journal(journal_directory(), self.process_id, resource, _limits(), mark)
        except OSError as error:
            warn_once(
                "journal",
                "Meterhouse cannot write its journal (%s): usage is sent, but a crash loses it. Set %s to a directory "
                "that can be written.",
                error,
                ENV_JOURNAL_DIR,
            )
        self._exporter: Exporter = Exporter(self._journal, resource)
        self._late: deque[Callable[[], None]] = deque()
        self._uncounted: deque[Recorded] = deque()
        self._uncounted_events = 0
        self._conversations = Conversations()
        self._wake = threading.Event()
        self._stopping = False
        self._flushed = False
        self._thread = threading.Thread(target=self._run, name="meterhouse-exporter", daemon=True)
        self._thread.start()

    def begin(self, call_id: str, started_at_ns: int, attributes: Mapping[str, str]) -> None:
        """Journal that a provider call is about to start."""
        if self._journal is None or busy():  # busy: a signal handler struck while this thread held a lock of ours
            return
        with marked_busy():
            try:
                self._journal.intent(call_id, started_at_ns, attributes)
            except OSError as error:
                warn_once("intents", "Meterhouse cannot write its journal (%s): a crash loses calls now.", error)

    def record(self, recorded: Recorded) -> None:
        """Journal what was used, then count it."""
        if busy():  # a finaliser or a signal handler struck while this thread held a lock of ours
            self.later(lambda: self.record(recorded))
            return
        if CUSTOMER_ID not in recorded.attributes:
            warn_once(
                "customer",
                "Meterhouse knows no customer here: the usage is kept and waits in suspense, unbilled. Set %s, or use "
                "meterhouse.customer(...) around the work.",
                ENV_CUSTOMER,
            )
        with marked_busy():
            opened = self._conversations.opened_by(recorded)
            if opened is not None:
                self._keep(Loose([opened]))
            self._keep(recorded)
            try:
                limits.spend(recorded)
            except Exception:  # noqa: BLE001 - what was used counts whatever becomes of the limits
                warn_once("spend", "Meterhouse could not count usage against its limit.", with_trace=True)

    def _keep(self, recorded: Recorded) -> None:
        journalled = self._journal is not None
        if self._journal is not None:
            try:
                self._journal.record(recorded)
            except MemoryFull as error:  # the journal has counted it
                warn_once("lost", LOST, error)
                return
            except OSError as error:  # the journal keeps it in memory, and writes it when there is room
                warn_once("journal", "Meterhouse cannot write its journal (%s): a crash loses usage now.", error)
        if self._uncounted_events < COUNTED_AT_MOST:
            self._uncounted.append(recorded)  # spelled out and counted by the exporter's thread
            self._uncounted_events += recorded.size
        elif journalled:
            self._exporter.lagging()
        else:
            self._lose(recorded, "there is no journal")
        if self._uncounted_events >= self._export_at:
            self._wake.set()

    def _lose(self, recorded: Recorded, why: object) -> None:
        self._exporter.lost += recorded.size
        warn_once("lost", LOST, why)

    def later(self, finish: Callable[[], None]) -> None:
        """Run `finish` in the exporter's thread: for the garbage collector, which may strike while a lock is held."""
        self._late.append(finish)

    def flush(self, timeout_s: float) -> bool:
        """Stop the thread after one last export; False when not everything was delivered in time.

        What is recorded later is journalled and not sent: the next process, or `meterhouse drain`, delivers it.
        """
        self._stopping = True
        self._exporter.stop()
        self._wake.set()
        self._thread.join(timeout_s)
        return self._flushed

    def tell_what_is_left(self) -> None:
        """For the end of the process: a line when usage stays in the journal, and one when some was lost."""
        if self._journal is not None:
            self._journal.rescue()
        lost = self._exporter.lost + (self._journal.lost if self._journal is not None else 0)
        if lost:
            _log.error("Meterhouse lost %d usage events: there was room for them neither on disk nor in memory.", lost)
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

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._step()
        self._run_late()
        with marked_busy():
            self._count()
            self._flushed = self._exporter.flush()
            if self._flushed and self._journal is not None:
                self._journal.close()
            if self._flushed:
                self._adopt()

    def _adopt(self) -> None:
        try:
            self._exporter.adopt_at_end()
        except Exception:  # noqa: BLE001 - the own usage is delivered; theirs is in their journals
            if not sys.is_finalizing():
                warn_once("exporter", "Meterhouse failed while exporting and will try again.", with_trace=True)

    def _step(self) -> None:
        try:
            self._run_late()
            with marked_busy():
                self._count()
                self._exporter.step()
        except Exception:  # noqa: BLE001 - the thread must live: everything unsent is in the journal
            if not sys.is_finalizing():
                warn_once("exporter", "Meterhouse failed while exporting and will try again.", with_trace=True)
            time.sleep(0.1)

    def _count(self) -> None:
        # Threads that add at this moment can make the sum a few too large or small: it only says when to wake.
        self._uncounted_events = 0
        for _ in range(len(self._uncounted)):
            self._exporter.add(self._uncounted.popleft().events())

    def _run_late(self) -> None:
        while self._late:
            self._late.popleft()()


def marked_busy() -> AbstractContextManager[object]:
    """Marks this thread as one that holds, or may soon hold, a lock of ours or of the SDK.

    The mark is a lock that nobody else takes: no signal handler can strike between its being left and its being
    released, as it could in an `__exit__` written in Python, after which the thread would stay marked for ever.
    """
    mark = getattr(_busy, "mark", None)
    if mark is None:
        _busy.mark = mark = threading.Lock()
    return _MARKED if mark.locked() else mark


def busy() -> bool:
    """True inside our own code: a finaliser that runs here must not take a lock."""
    mark = getattr(_busy, "mark", None)
    return mark is not None and mark.locked()


_runtime: Runtime | None = None
_disabled = False


def runtime() -> Runtime | None:
    """This process's runtime, started on first use; None when it could not be started (logged once)."""
    global _runtime, _disabled
    if _runtime is not None or _disabled:
        return _runtime
    with forks.lock, marked_busy():
        if _runtime is None and not _disabled:
            try:
                _runtime = Runtime()
                _end_with_multiprocessing()
            except Exception:  # noqa: BLE001 - metering must not take the host down
                warn_once("start", "Meterhouse could not start: this process is not metered.", with_trace=True)
                _disabled = True
    return _runtime


def flush(timeout_s: float = EXIT_FLUSH_S) -> bool:
    """Deliver what is open and end the runtime; True when everything was delivered. A later event starts a new one."""
    global _runtime
    ending, _runtime = _runtime, None
    return ending is None or ending.flush(timeout_s)


def _limits() -> Limits:
    try:
        return journal_limits()
    except ValueError as error:
        warn_once("limits", "Meterhouse keeps to %d bytes of journals: %s.", JOURNAL_MAX_BYTES, error)
        return Limits(JOURNAL_MAX_BYTES, journal_fsync())


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
    global _runtime
    _runtime = None
    _busy.__dict__.clear()
    close_inherited()


def _at_exit() -> None:
    # The runtime stays: what daemon threads still finish is journalled by it.
    if _runtime is not None and not _runtime.flush(EXIT_FLUSH_S):
        _runtime.tell_what_is_left()
    else:  # before its usage has arrived a lease stays reserved, until it expires
        limits.release()


def _end_with_multiprocessing() -> None:
    """The children of multiprocessing that were forked end without running what is registered with atexit."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=-100)  # last: what the child's queues still do comes before


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
