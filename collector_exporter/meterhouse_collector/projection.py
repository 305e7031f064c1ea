"""The thread that runs the projector beside the doors: connects, steps, backs off; never stops acknowledgement."""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error

from meterhouse_collector import segments
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Journal
from meterhouse_collector.projector import Projector, Unavailable
from meterhouse_collector.segments import START, Position
from meterhouse_store import decided, schema, sql, warehouse
from meterhouse_store.settings import Settings

HEARTBEAT_S: Final = 0.5
"""Between two steps when nothing comes, at first: who sent something waits for the time after it to be projected."""
QUIET_S: Final = 10.0
QUIET_HEARTBEAT_S: Final = 2.0
"""Between two steps when nothing has come for QUIET_S: each writes a checkpoint, which two hundredths of a second of a
core go into."""
GATHER_S: Final = 0.2
"""Between two steps that caught up: what comes meanwhile is one insert, not one for each request."""
STEADY_STEPS: Final = 5
STEADY_SHARE: Final = 4
STEADY_GATHER_S: Final = 1.0
"""When so many steps in a row had something to project, it is waited for so many times as long as the last one took, at
most for a second: an insert costs a tenth of a second of a core however small it is, and traffic that is steady would
take a whole core by five of them a second."""
BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0)
CONNECT_S: Final = 1.0
APPLY_S: Final = 5.0
"""How often decisions are looked for that another process recorded and did not bring into the warehouse."""
BESIDE_S: Final = 2.0
"""How often `beside` are called, and once when the collector stops."""
PROJECTED: Final = "projected"
"""The file beside the journal that says how far it is in the warehouse, for the next process, until that can ask."""
BEHIND_S: Final = 60.0
"""A projection that is further behind than this is not well."""

log = logging.getLogger(__name__)


@contextmanager
def projection_lock(journal_directory: Path, *, wait: bool) -> Iterator[bool]:
    """Whoever writes what the journal says into the live database holds this; yields False where another one does."""
    with open(journal_directory / "projection.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _words(problem: Exception) -> str:
    if isinstance(problem, Error):
        return warehouse.said(problem)
    if isinstance(problem, warehouse.WarehouseUnavailable | Unavailable):
        return str(problem)
    return f"{type(problem).__name__}: {problem}"


def _note(directory: Path, position: Position) -> None:
    """Keep up to where the journal is in the warehouse, without fsync: a hint for the next process."""
    fresh = directory / (PROJECTED + ".new")
    with suppress(OSError):  # a full disk: the next process asks the warehouse without a hint
        fresh.write_text(json.dumps(position), encoding="ascii")
        fresh.replace(directory / PROJECTED)


def _through_at_start_s(journal: Journal) -> float:
    """Unix seconds: when the first request came that is not noted to be in the warehouse; now, where none is known."""
    try:
        segment, offset = json.loads((journal.directory / PROJECTED).read_bytes())
        waits_since_ns = segments.first_after(journal.directory, Position(str(segment), int(offset)))
    except (FileNotFoundError, ValueError, TypeError, segments.Gone):
        # Nothing was ever projected, or an older copy of the journal was restored: all of it is projected again.
        waits_since_ns = segments.first_after(journal.directory, START)
    return time.time() if waits_since_ns is None else waits_since_ns / 1e9


class Projection:
    """The projector of a running collector."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings, self._journal = settings, journal
        self._beside: Sequence[Callable[[Client], None]] = ()
        self._beside_at = 0.0
        self._client: Client | None = None
        self._projector: Projector | None = None
        self._apply: Callable[[], object] = lambda: None
        self._applied_at = 0.0
        self._stop = threading.Event()
        self._through_ns: int | None = None
        self._position: Position | None = None
        self._problem: str | None = None
        self.failures = 0
        self._known_through_s = _through_at_start_s(journal)
        self._moved_at = time.monotonic()
        self._in_a_row, self._took_s = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)

    def start(self, beside: Sequence[Callable[[Client], None]] = ()) -> None:
        """Begin; connecting is tried until it works.

        Each of `beside` is given the client now and then, to write what is no usage.
        """
        self._beside = beside
        self._thread.start()

    def stop(self) -> None:
        """Project what is left, for at most five seconds, and stop."""
        self._stop.set()
        self._journal.appended.set()
        self._thread.join(timeout=5)

    @property
    def position(self) -> Position | None:
        """Up to where the journal is in the warehouse; None while that is not known."""
        return self._position

    def lag_s(self) -> float:
        """Seconds since the time up to which everything is in the warehouse, as far as is known.

        Until the warehouse says it: since the first request that an earlier process left, or since this one began.
        """
        through_s = self._known_through_s if self._through_ns is None else self._through_ns / 1e9
        return round(max(0.0, time.time() - through_s), 3)

    def trouble(self) -> str | None:
        """What is wrong with the projection, in a sentence; None while it goes on and is less than a minute behind."""
        if self._problem is not None:
            return f"the projection fails and is tried again ({self.failures} failures so far): {self._problem}"
        if self.lag_s() > BEHIND_S:
            return f"the projection is {self.lag_s():.0f} s behind"
        return None

    def _run(self) -> None:
        failures = 0
        while True:
            last = self._stop.is_set()
            began = time.monotonic()
            try:
                more = self._step()
                self._in_a_row, self._took_s = self._in_a_row + 1 if more else 0, time.monotonic() - began
                failures, self._problem = 0, None
            # Whatever it is: the doors go on, the journal keeps everything, and a thread that had ended would be missed
            # by nobody.
            except Exception as problem:  # noqa: BLE001
                self._problem = _words(problem)[:500]
                self.failures += 1
                log.warning("the warehouse is behind, the journal keeps everything: %s", self._problem)
                if self._projector is not None:
                    self._projector.forget()
                failures, more = failures + 1, False
            if last and (failures or not more):
                return
            if failures:
                self._stop.wait(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])
            elif self._projector is not None and self._projector.caught_up:
                self._wait_for_more()

    def _wait_for_more(self) -> None:
        quiet = time.monotonic() - self._moved_at > QUIET_S
        gather_s = GATHER_S
        if self._in_a_row >= STEADY_STEPS:
            gather_s = min(STEADY_GATHER_S, max(GATHER_S, STEADY_SHARE * self._took_s))
        if not self._stop.wait(gather_s):
            self._journal.appended.wait(max(0.0, (QUIET_HEARTBEAT_S if quiet else HEARTBEAT_S) - gather_s))
        self._journal.appended.clear()

    def _step(self) -> bool:
        if self._projector is None:
            self._projector = self._connect()
        with projection_lock(self._journal.directory, wait=False) as mine:
            if not mine:  # a rebuild is about to exchange the tables
                self._stop.wait(HEARTBEAT_S)
                return False
            if time.monotonic() - self._applied_at > APPLY_S:
                self._apply()
                self._applied_at = time.monotonic()
            more = self._projector.step()
            if self._stop.is_set() or time.monotonic() - self._beside_at > BESIDE_S:
                self._write_beside()
        if more:
            self._moved_at = time.monotonic()
        if self._projector.done is not None:
            self._through_ns = self._projector.done.through_ns
            if self._position != self._projector.done.position:
                self._position = self._projector.done.position
                _note(self._journal.directory, self._position)
        return more

    def _write_beside(self) -> None:
        self._beside_at = time.monotonic()
        if self._client is None:
            return
        for write in self._beside:
            try:
                write(self._client)
            # Usage does not wait for it, whatever it is.
            except Exception as problem:  # noqa: BLE001
                log.warning("what is counted beside usage cannot be written yet: %s", _words(problem)[:500])

    def _connect(self) -> Projector:
        database = self._settings.warehouse_database
        client = warehouse.connect(self._settings, timeout_s=CONNECT_S, database="default")
        schema.ensure(client, database)
        client.close()
        client = warehouse.connect(self._settings, timeout_s=CONNECT_S)
        directory = self._journal.directory
        engine = sql.open_engine(self._settings)
        # Before anything is projected: what was decided about rows that are still to come waits for them.
        self._apply = lambda: decided.apply(engine, client)
        self._client = client
        return Projector(
            self._journal.collector_id,
            Inbox(client),
            horizon=self._journal.horizon,
            read=lambda position, until, limit: segments.read(directory, position, until, limit),
        )
