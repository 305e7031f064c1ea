"""The keys that may report usage: read from the registry, kept in memory, so that no request waits for SQL."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.refusals import OVERLOADED, UNAUTHENTICATED, Refused
from meterhouse_store.access import METERING, Credential, hash_key

REFRESH_S: Final = 2.0
"""How long a revoked key may still be taken."""
UNKNOWN_REFRESH_S: Final = 0.5
"""How often at most an unknown key makes the registry be read. Such a request waits for that read: a key that was made
just now is never refused, because a sender takes 401 for final, and a guesser costs little."""
NOTE_S: Final = 60.0
"""How often at most it is noted which keys were used."""

log = logging.getLogger(__name__)


class Credentials:
    """Credentials by the hash of each key that they have, with its end where it was rotated away or revoked.

    While the registry cannot be read, the last known ones hold. `note` is given when credentials were last used, in a
    thread, once a minute and at the end.
    """

    def __init__(
        self,
        read: Callable[[], list[Credential]],
        note: Callable[[Mapping[str, datetime]], None] = lambda _used: None,
        *,
        note_s: float = NOTE_S,
    ) -> None:
        self._read, self._note, self._note_s = read, note, note_s
        self._used: dict[str, datetime] = {}
        self._noted_at = time.monotonic()
        self._known: dict[str, tuple[Credential, datetime | None]] | None = None
        self._names: dict[str, str] = {}
        """The hash of each header that brought a valid key lately: to work it out again costs more than the rest."""
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
            if time.monotonic() - self._noted_at >= self._note_s:
                await asyncio.to_thread(self.note_uses)
            await asyncio.sleep(REFRESH_S)

    def note_uses(self) -> None:
        """Note which credentials were used since the last time; what cannot be written now is written later."""
        self._noted_at = time.monotonic()
        used, self._used = self._used, {}
        if not used:
            return
        try:
            self._note(used)
        except SQLAlchemyError as problem:
            log.warning("when keys were last used cannot be written yet: %s", type(problem).__name__)
            self._used = used | self._used

    async def of(self, authorization: str | None) -> Credential:
        """The valid credential of an Authorization header. Raises Refused."""
        name = self._names.get(authorization or "") or _name(authorization or "")
        if self._known is None or name not in self._known:
            await self._read_since(time.monotonic())
        if self._known is None:
            raise Refused(OVERLOADED, "the registry of keys cannot be read yet: send it again in a second")
        found, until = self._known.get(name, (None, None))
        now = datetime.now(UTC)
        if found is None or found.valid_from > now or (until is not None and until <= now):
            raise Refused(
                UNAUTHENTICATED, "this key is unknown or was revoked: `meterhouse keys create NAME` makes one"
            )
        if found.role != METERING:
            raise Refused(
                UNAUTHENTICATED,
                f"this key is for {found.role}: `meterhouse keys create NAME` makes one that reports usage",
            )
        self._names[authorization or ""] = name
        self._used[found.credential_id] = now
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
            retired = {
                name: (credential, min(until, credential.revoked_at or until))
                for credential in found
                for name, until in credential.retired
            }
            self._known = retired | {credential.key_sha256: (credential, credential.revoked_at) for credential in found}
            self._names = {}


def _name(authorization: str) -> str:
    """The hash of the key in an Authorization header. Raises Refused."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Refused(UNAUTHENTICATED, "send the header `Authorization: Bearer mh_...` (METERHOUSE_API_KEY)")
    return hash_key(key.strip())
