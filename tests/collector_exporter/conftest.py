"""A real warehouse behind its HTTP port, in a process of its own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for collector_samples

import collector_samples as samples
from quick_stores import empty
from worlds import World

from meterhouse_store import schema, warehouse
from meterhouse_store.settings import Settings


@pytest.fixture(scope="session")
def collector_warehouse_data(warehouse_server):
    """Where the embedded warehouse has its files."""
    return warehouse_server.data


@pytest.fixture(scope="session")
def collector_warehouse(warehouse_server):
    """The URL of an embedded warehouse, with the admin's name and password."""
    return warehouse_server.url()


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
    empty(only_database)
    return only_database


@pytest.fixture
def world(tmp_path, database, collector_warehouse):
    """A journal, `database` that follows it, and somebody who decides."""
    found = World(
        tmp_path, database, lambda name: warehouse.connect(Settings(warehouse_url=collector_warehouse), database=name)
    )
    yield found
    found.engine.dispose()


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
