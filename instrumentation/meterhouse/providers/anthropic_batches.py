"""Results of Anthropic's message batches: each is a model call, told when the host reads it, and told once.

Creating a batch is not billed; results that errored, expired or were cancelled are not either. Events are named after
the message and dated by the end of the batch, so that another process that reads the results tells the same events.
https://docs.anthropic.com/en/docs/build-with-claude/batch-processing
"""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from meterhouse.call import Call
from meterhouse.metered import Metered, Request
from meterhouse.providers.streamed import Provider, Streamed
from meterhouse.usage import text

REMEMBERED = 100_000
"""Batches whose end, and messages whose usage, is remembered; the oldest goes first."""
LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""A result that does not end within this is not metered, and its memory is given back."""
_BATCH = re.compile(r"/messages/batches/([^/]+)(/results)?\Z")

# Without a lock, because results may be read in several threads: each step is one operation of a dict.
_ended_at_ns: OrderedDict[str, int] = OrderedDict()
_told: OrderedDict[str, object] = OrderedDict()


class Result(Metered):
    """One message of a batch."""

    ended_at_ns: int | None = None

    def _finish(self, status: str, rows: list[Any], known: Mapping[str, str]) -> None:
        self.call.finish(status, rows, known, event_time_ns=self.ended_at_ns)


class Batch(Streamed):
    """A look at a batch, which tells when it ended; it is no call itself."""

    def take(self, document: object, event: str = "") -> None:
        if not isinstance(document, Mapping) or document.get("type") != "message_batch":
            return
        batch_id, ended_at = text(document, "id"), text(document, "ended_at")
        if batch_id and ended_at:
            _ended_at_ns[batch_id] = int(datetime.fromisoformat(ended_at).timestamp()) * 1_000_000_000
            _forget(_ended_at_ns)

    def end(self, error: BaseException | None = None, *, exhausted: bool = False) -> None:
        pass


class Results(Batch):
    """The results of a batch as they are read: JSON, one per line."""

    batch_id = ""
    request: Request

    def framed(self, content_type: str) -> bool:
        self.lines = _JsonLines(self._take_result)
        return True

    def _take_result(self, line: bytes) -> None:
        document = json.loads(line)
        result = document.get("result") if isinstance(document, Mapping) else None
        message = result.get("message") if isinstance(result, Mapping) else None
        message_id = text(message, "id") if isinstance(message, Mapping) else None
        if message_id is None:
            return
        mark = object()
        if _told.setdefault(message_id, mark) is not mark:
            return
        _forget(_told)
        one = Result(self.provider, Call(_name(message_id), self.request.attributes(), intent=False))
        one.ended_at_ns = _ended_at_ns.get(self.batch_id)
        one.take(message)
        one.end(exhausted=True)


class _JsonLines:
    """Calls `take` for each line of the bytes it is fed, in pieces of any size."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest: list[bytes] = []
        self._waiting = 0

    def feed(self, chunk: bytes) -> None:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            whole, self._rest, self._waiting = b"".join((*self._rest, line)), [], 0
            if whole.strip():
                self._take(whole)
        self._waiting += len(rest)
        if self._waiting > LONGEST_LINE_BYTES:
            self._rest = []
        else:
            self._rest.append(rest)


def follow(provider: Provider, describe: Callable[[], Request], method: str, path: str) -> Streamed | None:
    """What listens to a request for a batch or its results; None for any other request."""
    found = _BATCH.search(path)
    if found is None or method.lower() != "get":
        return None
    request = describe()
    call = Call(request.call_id, request.attributes(), intent=False)
    if not found[2]:
        return Batch(provider, call, None)
    results = Results(provider, call, None)
    results.batch_id, results.request = found[1], request
    return results


def _name(message_id: str) -> str:
    return hashlib.sha256(f"message\0{message_id}".encode(errors="replace")).hexdigest()[:32]


def _forget(memory: OrderedDict[str, Any]) -> None:
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
