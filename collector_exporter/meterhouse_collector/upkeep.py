"""The thread that looks after sealed segments beside the doors: compresses what the warehouse has taken in, and
copies it to the object store and removes what is too old where the settings say so.

It works a fifth of the time of one core at most, and what it does may fail and wait: the doors need none of it.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from meterhouse_collector import archive, sealing
from meterhouse_collector.archive import Archive
from meterhouse_collector.journal import Journal
from meterhouse_collector.retention import remove_old
from meterhouse_collector.segments import Position

LOOK_S: Final = 1.0
RETRY_S: Final = 60.0
OLD_S: Final = 600.0
REST: Final = 4.0
"""Seconds of rest for each second of work."""

log = logging.getLogger(__name__)


class Upkeep:
    """`projected` gives the position up to which the journal is in the warehouse; None: not known yet.

    `archive_url`: where copies go; `keep`: for how long segments are kept; None: no copies, for ever.
    """

    def __init__(
        self,
        journal: Journal,
        projected: Callable[[], Position | None],
        *,
        archive_url: str | None = None,
        keep: timedelta | None = None,
    ) -> None:
        self._journal, self._projected = journal, projected
        self._archive_url, self._keep = archive_url, keep
        self._archive: Archive | None = None
        self._looked_for_old_at = -OLD_S
        self.problem: str | None = None
        """What went wrong at last, in a sentence; None while all goes well."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the segment under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = LOOK_S
        while not self._stop.wait(wait_s):
            try:
                self._look()
                wait_s, self.problem = LOOK_S, None
            # Whatever it is: it is tried again, and a thread that had ended would be missed by nobody.
            except Exception as problem:  # noqa: BLE001
                self.problem = f"{type(problem).__name__}: {problem}"
                log.error("the journal's upkeep failed and is tried again in a minute: %s", self.problem)
                wait_s = RETRY_S

    def _look(self) -> None:
        directory = self._journal.directory
        if rotation_wanted(directory) or self._journal.segment_is_due:
            self._journal.rotate()
            request_of_rotation(directory).unlink(missing_ok=True)
        projected = self._projected()
        if projected is None:
            return
        ready = [name for name in sealing.sealed(directory) if name < projected.segment]
        self._compress(directory, ready)
        if self._archive_url is not None:
            self._copy(directory, ready, self._archive_url)
        if self._keep is not None and time.monotonic() - self._looked_for_old_at >= OLD_S:
            self._looked_for_old_at = time.monotonic()
            with sealing.upkeep_lock(directory):
                remove_old(directory, projected, self._keep, datetime.now(UTC), archive_to=self._archive)

    def _compress(self, directory: Path, names: list[str]) -> None:
        for name in names:
            if self._stop.is_set():
                return
            if not sealing.is_compressed(directory, name):
                with sealing.upkeep_lock(directory):
                    sealing.compress(directory, name, self._rest)

    def _copy(self, directory: Path, names: list[str], url: str) -> None:
        if self._archive is None:
            self._archive = Archive(url, self._journal.collector_id)
        known = archive.copies(directory)
        for name in names:
            if self._stop.is_set():
                return
            if sealing.is_compressed(directory, name) and not archive.is_copied(directory, name, known.get(name)):
                with sealing.upkeep_lock(directory):
                    archive.note(directory, name, self._archive.put(directory, name))

    def _rest(self, worked_s: float) -> None:
        self._stop.wait(worked_s * REST)


def request_of_rotation(directory: Path) -> Path:
    """The file by which another process asks the collector to go on in a new segment."""
    return directory / "rotate"


def rotation_wanted(directory: Path) -> bool:
    """Whether another process has asked for it."""
    return request_of_rotation(directory).exists()
