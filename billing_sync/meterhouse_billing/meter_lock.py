"""One `bill sync` of a namespace at a time, on all machines that share its database."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from meterhouse_billing.gateway import BillingError
from meterhouse_rating.ids import digest


class Busy(BillingError):
    """Another one is at work."""


@contextmanager
def alone(engine: Engine, namespace: str) -> Iterator[None]:
    """Hold the lock for the block; it ends with the process. Raises Busy."""
    busy = Busy(f"another `meterhouse bill sync` of namespace {namespace} is at work")
    if engine.dialect.name == "postgresql":
        number = int(digest(["meter sync", namespace])[:15], 16)
        with engine.connect() as connection:
            if not connection.execute(text("SELECT pg_try_advisory_lock(:n)"), {"n": number}).scalar_one():
                raise busy
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": number})
        return
    database = Path(str(engine.url.database))
    with open(database.with_name(f"{database.name}.meters-{namespace}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
