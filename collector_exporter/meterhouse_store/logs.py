"""The log of a server on standard error, as text or one JSON object a line, with times in UTC. What requests carry is
never logged.
"""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Final, Literal

_QUIET: Final = ("urllib3", "clickhouse_connect", "opentelemetry")
"""Whoever calls them says the same in one line."""


def configure(form: str = "text", level: Literal["INFO", "WARNING"] = "WARNING") -> None:
    """`text` or `json`; what is below the level is left out."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    text.converter = time.gmtime
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level, handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """time (RFC 3339, UTC), level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
