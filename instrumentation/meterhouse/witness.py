"""Who has seen a model call: a framework must add no tokens that a choke point below it has counted.

A context variable tells it. Where the call runs in a thread without that (a plain pool, to give it a time limit), it is
known by what it used: it began and ended while the framework waited, in another thread that no framework watched.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from meterhouse.events import Row
from meterhouse.vocabulary import TOKENS

REMEMBERED = 1_000
"""Calls that ended in threads which no framework watched."""
BESIDE = frozenset({"classification", "embeddings", "moderation", "ocr", "rerank", "speech", "transcription"})
"""Operations that a framework's model may need besides: their answer is not the model's."""


class Witness:
    """Watches the calls made inside it."""

    def __init__(self) -> None:
        self.seen = 0
        """How many calls of models choke points have metered inside."""
        self._since = 0.0

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        self._since = self._since or time.monotonic()
        token = _witnesses.set((*_witnesses.get(), self))
        _watching.add(self)
        try:
            yield self
        finally:
            _watching.discard(self)
            with suppress(ValueError):  # left in another context than entered: a generator that the event loop closed
                _witnesses.reset(token)

    def recognises(self, tokens: int) -> bool:
        """True, once for each, where a call was metered elsewhere meanwhile that used so many tokens; 0: any number."""
        here = threading.get_ident()
        with _lock:
            for one in _elsewhere:
                if one.began >= self._since and one.thread != here and (not tokens or one.tokens == tokens):
                    _elsewhere.remove(one)
                    return True
        return False


@dataclass(slots=True, eq=False)
class Elsewhere:
    """A call that no framework watches, while one waits for a call."""

    thread: int = field(default_factory=threading.get_ident)
    began: float = field(default_factory=time.monotonic)
    tokens: int = 0

    def ended(self, rows: Iterable[Row]) -> None:
        """It used this."""
        self.tokens = tokens_of(rows)
        with _lock:
            _elsewhere.append(self)


_witnesses: ContextVar[tuple[Witness, ...]] = ContextVar("meterhouse_witnesses", default=())
_watching: set[Witness] = set()
_elsewhere: deque[Elsewhere] = deque(maxlen=REMEMBERED)
# Re-entrant: the garbage collector may end a call while this thread is in here.
_lock = threading.RLock()


def called(operation: str) -> Elsewhere | None:
    """A call is metered: tells the frameworks that watch it. Where none does but one waits: what to tell at its end."""
    if operation in BESIDE:
        return None
    witnesses = _witnesses.get()
    for witness in witnesses:
        witness.seen += 1
    return Elsewhere() if _watching and not witnesses else None


def tokens_of(rows: Iterable[Row]) -> int:
    """The tokens of all buckets together."""
    return sum(row.quantity for row in rows if row.meter.startswith(TOKENS) and isinstance(row.quantity, int))
