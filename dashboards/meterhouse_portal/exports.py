"""Downloads: one at a time for a customer, a few for all, so that none starves the pages."""

import threading
import time
from collections.abc import Generator, Iterator
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

AT_ONCE: Final = 4
LONGEST_S: Final = 600.0
"""A download that was not fetched by then is broken off: whoever stops reading keeps others out no longer."""


class Exports:
    """The downloads under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, float] = {}

    def begin(
        self, customer_id: str, blocks: Iterator[bytes], headers: dict[str, str], media_type: str
    ) -> "Download | None":
        """The answer; None where the customer has a download under way, or too many others have.

        What the blocks raise at their beginning passes through.
        """
        with self._lock:
            now = time.monotonic()
            self._running = {name: since for name, since in self._running.items() if now - since < LONGEST_S}
            if customer_id in self._running or len(self._running) >= AT_ONCE:
                return None
            self._running[customer_id] = now
        passed_on = self._passed_on(customer_id, blocks, now)
        return Download(next(passed_on, b""), passed_on, headers, media_type)

    def _passed_on(self, customer_id: str, blocks: Iterator[bytes], began: float) -> Generator[bytes, None, None]:
        try:
            for block in blocks:
                if time.monotonic() - began > LONGEST_S:
                    raise TimeoutError("the download took too long")
                yield block
        finally:
            with self._lock:
                if self._running.get(customer_id) == began:
                    del self._running[customer_id]


class Download(StreamingResponse):
    """Blocks that are let go of when the answer ends, also because nobody reads it any more."""

    def __init__(
        self, first: bytes, rest: Generator[bytes, None, None], headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(self._all(first, rest), headers=headers, media_type=media_type)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(self._let_go)

    @staticmethod
    def _all(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
        yield first
        yield from rest

    def _let_go(self) -> None:
        for _ in range(100):
            try:
                self._rest.close()
                return
            except ValueError:  # a thread is in it: it ends with its block
                time.sleep(0.05)
