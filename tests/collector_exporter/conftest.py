"""A real warehouse behind its HTTP port, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for collector_samples

import collector_samples as samples

from meterhouse_store import schema, warehouse
from meterhouse_store.settings import Settings


@pytest.fixture(scope="session")
def collector_warehouse_data(tmp_path_factory):
    """Where the embedded warehouse has its files."""
    return tmp_path_factory.mktemp("warehouse")


@pytest.fixture(scope="session")
def collector_warehouse(collector_warehouse_data):
    """The URL of an embedded warehouse, with the admin's name and password."""
    data = collector_warehouse_data
    port = samples.free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")} | {
        "METERHOUSE_WAREHOUSE_ADMIN_PASSWORD": samples.ADMIN,
        "METERHOUSE_WAREHOUSE_READER_PASSWORD": "reader-password-of-the-tests",
    }
    command = [sys.executable, "-c", samples.MAIN, "warehouse", "serve", "--data", str(data), "--port", str(port)]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=data, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://admin:{samples.ADMIN}@127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def migrated(url, name):
    """A client of a database with the schema."""
    admin = warehouse.connect(Settings(warehouse_url=url), timeout_s=120, database="default")
    schema.migrate(admin, name)
    admin.close()
    return warehouse.connect(Settings(warehouse_url=url), timeout_s=120, database=name)


@pytest.fixture(scope="session")
def only_database(collector_warehouse):
    """A client of the database of the tests that want it empty."""
    client = migrated(collector_warehouse, "tests")
    yield client
    client.close()


@pytest.fixture
def database(only_database):
    """A client whose database is empty."""
    # Of some dozens of tables few have rows, and to empty one takes some milliseconds.
    with_rows = "SELECT name FROM system.tables WHERE database = currentDatabase() AND total_rows > 0"
    for (table,) in only_database.query(f"{with_rows} AND name != 'schema_migrations'").result_rows:
        only_database.command(f"TRUNCATE TABLE {table}")
    return only_database


@pytest.fixture(scope="session")
def shared_database(collector_warehouse):
    """A client of the database that `shared_collector` projects into."""
    client = migrated(collector_warehouse, "shared")
    yield client
    client.close()


@pytest.fixture(scope="session")
def shared_collector(collector_warehouse, shared_database, tmp_path_factory):
    """A collector for tests that neither stop it nor mind each other's events."""
    data = tmp_path_factory.mktemp("collector")
    running = samples.Collector(data, collector_warehouse, shared_database.database).start()
    yield running
    running.stop()


@pytest.fixture
def collector(collector_warehouse, database, tmp_path):
    """A running collector of its own that projects into `database`."""
    running = samples.Collector(tmp_path, collector_warehouse, database.database).start()
    yield running
    running.stop()
