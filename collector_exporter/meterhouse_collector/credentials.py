"""The keys that may report usage: read from the registry, kept in memory, so that no request waits for SQL."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.refusals import OVERLOADED, UNAUTHENTICATED, Refused
from meterhouse_store.registry import Credential, hash_key

REFRESH_S: Final = 2.0
"""How long a revoked key may still be taken."""
UNKNOWN_REFRESH_S: Final = 0.5
"""How often at most an unknown key makes the registry be read. Such a request waits for that read: a key that was made
just now is never refused, because a sender takes 401 for final, and a guesser costs little."""

log = logging.getLogger(__name__)


class Credentials:
    """Credentials by the hash of their key. While the registry cannot be read, the last known ones hold."""

    def __init__(self, read: Callable[[], list[Credential]]) -> None:
        self._read = read
        self._known: dict[str, Credential] | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    @property
    def loaded(self) -> bool:
        """The registry was read at least once."""
        return self._known is not None

    async def refresh_forever(self) -> None:
        """Read the registry again and again; ends by cancellation."""
        while True:
            await self._read_since(time.monotonic() - REFRESH_S / 2)
            await asyncio.sleep(REFRESH_S)

    async def of(self, authorization: str | None) -> Credential:
        """The valid credential of an Authorization header. Raises Refused."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refused(UNAUTHENTICATED, "send the header `Authorization: Bearer mh_...` (METERHOUSE_API_KEY)")
        name = hash_key(key.strip())
        if self._known is None or name not in self._known:
            await self._read_since(time.monotonic())
        if self._known is None:
            raise Refused(OVERLOADED, "the registry of keys cannot be read yet: send it again in a second")
        found = self._known.get(name)
        now = datetime.now(UTC)
        if found is None or found.valid_from > now or (found.revoked_at is not None and found.revoked_at <= now):
            raise Refused(
                UNAUTHENTICATED, "this key is unknown or was revoked: `meterhouse keys create NAME` makes one"
            )
        return found

    async def _read_since(self, moment: float) -> None:
        """Return when the registry was read after `moment` (monotonic seconds), which is not done twice in a while."""
        async with self._reading:
            if self._read_at > moment:
                return
            await asyncio.sleep(self._read_at + UNKNOWN_REFRESH_S - time.monotonic())
            self._read_at = time.monotonic()
            try:
                found = await asyncio.to_thread(self._read)
            except SQLAlchemyError as problem:
                log.warning("the registry cannot be read, the keys known so far hold: %s", problem)
                return
            self._known = {credential.key_sha256: credential for credential in found}
