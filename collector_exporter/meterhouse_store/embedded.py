"""`meterhouse warehouse serve`: the embedded engine behind ClickHouse's HTTP port, until SIGTERM or SIGINT."""

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from meterhouse_store import settings
from meterhouse_store.access_log import AccessLog
from meterhouse_store.embedded_http import Front
from meterhouse_store.engine import Engine, EngineError

GRACE_S = 20
MAX_URL = 1024 * 1024


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own version raises the signal again at its end: the process would die before the store is closed.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, self, "should_exit", True)
        yield


def serve(data: Path, host: str, port: int, users: dict[str, str]) -> None:
    """Serve the store of a data directory; `users` maps admin and reader to their passwords.

    Blocks until SIGTERM or SIGINT; must be called in the main thread. Raises ValueError for other users; exits with 1
    and a sentence where the store cannot be opened, as uvicorn does where the port is taken.
    """
    data = data.absolute()
    database = settings.load(data).warehouse_database
    store = data / "warehouse"
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _in_use(store):
        raise SystemExit(f"{store} is in use by another process: stop it (meterhouse down), or name another --data")
    # chDB keeps the format schemas of inserts in `__cache__` of the working directory, whatever is configured.
    os.chdir(store)
    try:
        engine = Engine(store, database)
    except EngineError as problem:
        raise SystemExit(f"{store} cannot be opened: {problem}") from None
    accesses = AccessLog(data / "logs")
    front = Front(engine, users, accesses.write)
    server = _Server(
        uvicorn.Config(
            front,
            host=host,
            port=port,
            lifespan="off",
            ws="none",
            # httptools gives the application no body where the request has an Upgrade header, as Java's client sends.
            http="h11",
            h11_max_incomplete_event_size=MAX_URL,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=1000,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    try:
        server.run()
    finally:
        front.close()
        engine.close()
        accesses.close()


def _in_use(store: Path) -> bool:
    # The lock that ClickHouse itself takes; what chDB says when it does not get it does not tell why.
    try:
        with (store / "status").open("rb") as status:
            fcntl.flock(status, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
