"""A SQL database of each kind, and an embedded warehouse in a process of its own."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from meterhouse_store.schema import migrate
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

ADMIN_PASSWORD = "admin-password-for-tests"
READER_PASSWORD = "reader-password-for-tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["sqlite", "postgresql"])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of a database that has no schema yet."""
    if request.param == "sqlite":
        return Settings(data=tmp_path)
    return Settings(data=tmp_path, sql_url=request.getfixturevalue("postgres_url"))


@pytest.fixture
def sql_engine(store_settings: Settings) -> Iterator[Engine]:
    engine = open_engine(store_settings)
    yield engine
    engine.dispose()


@dataclass
class Warehouse:
    """The front as a process, so that chDB is never opened in the tests' own."""

    data: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, user: str = "admin", **options: object) -> Client:
        password = {"admin": ADMIN_PASSWORD, "reader": READER_PASSWORD}[user]
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user, password=password, **options
        )

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def start(data: Path) -> Warehouse:
    port = free_port()
    program = (
        "import sys, pathlib; from meterhouse_store.embedded import serve;"
        f"serve(pathlib.Path(sys.argv[1]), '127.0.0.1', {port},"
        f" {{'admin': '{ADMIN_PASSWORD}', 'reader': '{READER_PASSWORD}'}})"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(data)])
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return Warehouse(data, port, process)
        except OSError:
            assert process.poll() is None, "the warehouse ended by itself"
            assert time.monotonic() < deadline, "the warehouse did not start"
            time.sleep(0.05)


@pytest.fixture
def start_warehouse() -> Callable[[Path], Warehouse]:
    return start


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """One front for all tests of a run, migrated; every test uses tables or namespaces of its own."""
    found = start(tmp_path_factory.mktemp("warehouse"))
    try:
        client = found.client()
        migrate(client, "meterhouse")
        client.close()
        yield found
    finally:
        assert found.stop() == 0


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def warehouse_url_and_users(warehouse: Warehouse) -> tuple[str, dict[str, str]]:
    return warehouse.url, {"admin": ADMIN_PASSWORD, "reader": READER_PASSWORD}
