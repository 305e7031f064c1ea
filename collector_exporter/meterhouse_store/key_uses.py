"""When each key was last used: noted by collectors now and then, for whoever wonders whether a key is still needed."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Engine, insert, select, update

from meterhouse_store.sql import begin_write
from meterhouse_store.tables import key_uses


def note(engine: Engine, used: Mapping[str, datetime]) -> None:
    """Note the last use of these credentials (aware times); an earlier time than is noted changes nothing."""
    with begin_write(engine) as connection:
        for credential_id, at in sorted(used.items()):
            is_it = key_uses.c.credential_id == credential_id
            known = connection.execute(select(key_uses.c.last_used_at).where(is_it)).scalar_one_or_none()
            if known is None:
                connection.execute(insert(key_uses).values(credential_id=credential_id, last_used_at=at))
            elif known < at:
                connection.execute(update(key_uses).where(is_it).values(last_used_at=at))


def last(engine: Engine) -> dict[str, datetime]:
    """Credential id -> when it was last used, as far as it was noted."""
    with engine.connect() as connection:
        return {row.credential_id: row.last_used_at for row in connection.execute(select(key_uses))}
