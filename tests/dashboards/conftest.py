"""The embedded engine for tests of this folder: behind its HTTP port, in a process of its own, as users reach it."""

import sys
from pathlib import Path

import pytest
from quick_stores import PASSWORDS, empty

from meterhouse_sandbox.stripe_server import application
from meterhouse_store import warehouse
from meterhouse_store.schema import migrate
from meterhouse_store.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # for portal_samples


@pytest.fixture(scope="session")
def warehouse_address(warehouse_server):
    """host:port of a running warehouse with the schema."""
    client = connect(warehouse_server.address, "admin", database="default")
    migrate(client, "meterhouse")
    client.close()
    return warehouse_server.address


def connect(address: str, user: str, database: str = "meterhouse"):
    """A client as that user; waits for the port."""
    url = f"http://{user}:{PASSWORDS[user]}@{address}"
    return warehouse.connect(Settings(warehouse_url=url), timeout_s=30, database=database)


@pytest.fixture
def warehouse_client(warehouse_address):
    """A client that may do everything, on empty tables."""
    client = connect(warehouse_address, "admin")
    empty(client)
    yield client
    client.close()


@pytest.fixture
def reader_client(warehouse_address):
    """A client that may read views only: what Grafana and the portal use."""
    client = connect(warehouse_address, "reader")
    yield client
    client.close()


@pytest.fixture(scope="module")
def stripe_url(tmp_path_factory):
    """A running sandbox Stripe."""
    from portal_samples import serving

    with serving(application(tmp_path_factory.mktemp("stripe"))) as address:
        yield address


@pytest.fixture(scope="module")
def browser(chromium):
    """A real browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
