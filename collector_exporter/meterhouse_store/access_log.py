"""Who asked the embedded warehouse what, when, and how much came back: a line of JSON per request.

`logs/access-admin.jsonl`, `-reader` and `-refused` in the data directory (the last for names that are no user), each at
most FILES files of FILE_BYTES, so that the projector's inserts never push a reader's questions out. Values are left out
of statements: neither what was inserted nor whom a question was about is in it, so an erasure needs not look here.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, Protocol

from meterhouse_store import statements

FILE_BYTES: Final = 10 * 1024 * 1024
FILES: Final = 10
MAX_STATEMENT: Final = 2000
_USERS: Final = ("admin", "reader")
_VALUES: Final = ("string", "number", "heredoc")


class _Counted(Protocol):
    @property
    def read_rows(self) -> int: ...
    @property
    def written_rows(self) -> int: ...
    @property
    def result_rows(self) -> int: ...


@dataclass
class Entry:
    """One request, filled in while it is served; `code` is ClickHouse's error code, 0 where there was no error."""

    address: str
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    user: str = ""
    client: str = ""
    query_id: str = ""
    kind: str = ""
    statement: str = ""
    code: int = 0
    received_bytes: int = 0
    result_bytes: int = 0
    read_rows: int = 0
    written_rows: int = 0
    result_rows: int = 0

    def count(self, summary: _Counted, result_bytes: int) -> None:
        """Take over what a statement read and wrote."""
        self.read_rows, self.written_rows = summary.read_rows, summary.written_rows
        self.result_rows, self.result_bytes = summary.result_rows, result_bytes


class AccessLog:
    """The files. `write` may be called from one thread."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._files = {
            name: RotatingFileHandler(
                folder / f"access-{name}.jsonl", "a", file_bytes, files - 1, encoding="utf-8", delay=True
            )
            for name in (*_USERS, "refused")
        }

    def write(self, entry: Entry) -> None:
        """Append a request. A disk that is full costs the line, not the answer."""
        line = json.dumps(_told(entry), ensure_ascii=False)
        record = logging.LogRecord("access", logging.INFO, "", 0, line, None, None)
        self._files[entry.user if entry.user in _USERS else "refused"].handle(record)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def without_values(statement: str) -> str:
    """The statement with ? for each string and number, at most MAX_STATEMENT characters of it."""
    parts: list[str] = []
    length = 0
    try:
        for token in statements.tokens(statement[: 4 * MAX_STATEMENT].encode()):
            part = "?" if token.kind in _VALUES else token.sql.decode(errors="replace")
            part = " " if token.kind in ("space", "comment") else part
            length += len(part)
            if length > MAX_STATEMENT:
                return "".join(parts) + " ..."
            parts.append(part)
    except statements.Refused:  # cut off in the middle of something
        parts.append(" ...")
    return "".join(parts)


def _told(entry: Entry) -> Mapping[str, Any]:
    return {
        "at": entry.began_at.isoformat(timespec="milliseconds"),
        "user": entry.user[:64],
        "address": entry.address,
        "client": entry.client[:100],
        "query_id": entry.query_id,
        "kind": entry.kind,
        "statement": without_values(entry.statement),
        "code": entry.code,
        "ms": round((time.monotonic() - entry.began) * 1000, 1),
        "received_bytes": entry.received_bytes,
        "read_rows": entry.read_rows,
        "written_rows": entry.written_rows,
        "result_rows": entry.result_rows,
        "result_bytes": entry.result_bytes,
    }
