"""The mapping file as a collector reads it: again whenever it has changed, and never a broken one."""

import logging
import time
from pathlib import Path
from typing import Final

from meterhouse_collector.foreign.mapping import NONE, Mapping, MappingError, parse

LOOK_S: Final = 1.0
"""A change holds for requests that come so much later."""

log = logging.getLogger(__name__)


class MappingFile:
    """What holds of a mapping file; None: there is none."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._mapping = file, NONE
        self._seen: tuple[int, int] | None = None
        self._look_at = 0.0

    def load(self) -> None:
        """Read the file. Raises MappingError or OSError."""
        if self._file is not None:
            status = self._file.stat()
            self._seen = status.st_mtime_ns, status.st_size
            self._mapping = parse(self._file.read_text(encoding="utf-8"), str(self._file))

    def current(self) -> Mapping:
        """The mapping as of about a second ago. While the file is broken or missing, the last good one holds."""
        if self._file is None or time.monotonic() < self._look_at:
            return self._mapping
        self._look_at = time.monotonic() + LOOK_S
        try:
            status = self._file.stat()
            if (status.st_mtime_ns, status.st_size) != self._seen:
                self.load()
                log.info("the mapping file has changed: %d rules for metrics", len(self._mapping.rules))
        except (MappingError, OSError, UnicodeDecodeError) as problem:
            log.error("the mapping file cannot be used, what held before goes on: %s", problem)
        return self._mapping
