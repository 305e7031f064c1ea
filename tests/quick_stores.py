"""Stores for tests in a fraction of the time: one engine for all tests of a worker, a schema that is made once and
copied, and only tables that have rows are emptied.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clickhouse_connect.driver.client import Client

from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

PASSWORDS = {"admin": "admin-password-of-the-tests", "reader": "reader-password-of-the-tests"}
_SERVE = "import sys; from meterhouse.cli import main; sys.exit(main())"
_WITH_ROWS = (
    "SELECT name FROM system.tables "
    "WHERE database = currentDatabase() AND total_rows > 0 AND name != 'schema_migrations' ORDER BY name"
)


@dataclass(frozen=True)
class WarehouseServer:
    """A running embedded warehouse; `data` is its directory."""

    data: Path
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, user: str = "admin") -> str:
        """With name and password: of admin, or of reader, who may read views only."""
        return f"http://{user}:{PASSWORDS[user]}@{self.address}"


@contextmanager
def warehouse_server(data: Path) -> Iterator[WarehouseServer]:
    """Serve a warehouse from a directory, in a process of its own; it may take a moment until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    environment |= {f"METERHOUSE_WAREHOUSE_{user.upper()}_PASSWORD": word for user, word in PASSWORDS.items()}
    command = [
        *with_parent("KILL"),
        sys.executable,
        "-c",
        _SERVE,
        "warehouse",
        "serve",
        "--data",
        str(data),
        "--port",
        str(port),
    ]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=data, env=environment, stdout=log, stderr=log)
    try:
        yield WarehouseServer(data, port)
    finally:
        process.kill()  # nothing in it is needed any more
        process.wait()


def empty(client: Client) -> None:
    """Take all rows out of the database of a client, but for what says which schema it has."""
    for (name,) in client.query(_WITH_ROWS).result_rows:
        client.command(f"TRUNCATE TABLE `{name}`")


def sqlite_copies(home: Path) -> Callable[[Path], str]:
    """What makes a SQLite database with the schema at a path, and returns its URL; `home` is for the first one."""
    first = home / "meterhouse.db"
    # Closed by its last connection it is one file.
    open_engine(Settings(data=home, sql_url=f"sqlite:///{first}")).dispose()

    def copy(path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(first, path)
        return f"sqlite:///{path}"

    return copy


def with_parent(signal: str) -> list[str]:
    """What begins a command that gets this signal where the test run is killed."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", signal]


def postgres_programs() -> Path | None:
    """The directory of PostgreSQL's programs; None where the machine has none."""
    # Debian keeps them out of PATH, one directory per version.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    return None if found is None or shutil.which("postgres") is None else Path(found).parent
