"""Downloads: one at a time for a customer, a few for all, so that none starves the pages."""

import threading
from collections.abc import Iterator
from itertools import chain
from typing import Final

AT_ONCE: Final = 4


class Exports:
    """The downloads under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()

    def begin(self, customer_id: str, blocks: Iterator[bytes]) -> Iterator[bytes] | None:
        """The blocks, to be sent on; None where the customer has a download under way, or too many others have.

        What the blocks raise at their beginning passes through.
        """
        with self._lock:
            if customer_id in self._running or len(self._running) >= AT_ONCE:
                return None
            self._running.add(customer_id)
        passed_on = self._passed_on(customer_id, blocks)
        # Begun here: what fails, fails before anything is sent, and a download nobody fetches ends with the generator.
        return chain([next(passed_on, b"")], passed_on)

    def _passed_on(self, customer_id: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from blocks
        finally:
            with self._lock:
                self._running.discard(customer_id)
