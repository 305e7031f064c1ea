"""The embedded engine for tests of this folder: behind its HTTP port, in a process of its own, as users reach it."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from meterhouse_sandbox.stripe_server import application
from meterhouse_store import warehouse
from meterhouse_store.schema import migrate
from meterhouse_store.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # for portal_samples

PASSWORDS = {"admin": "admin-password-of-the-tests", "reader": "reader-password-of-the-tests"}
FILLED = ("events", "conflicts", "checkpoints", "mirror_ratings", "mirror_rated_lines")
SERVE = "import sys; from pathlib import Path; from meterhouse_store.embedded import serve; "


@pytest.fixture(scope="session")
def warehouse_address(tmp_path_factory):
    """host:port of a running warehouse."""
    data = tmp_path_factory.mktemp("warehouse")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = SERVE + f"serve(Path({str(data)!r}), '127.0.0.1', {port}, {PASSWORDS!r})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=data, env=environment)
    try:
        address = f"127.0.0.1:{port}"
        client = connect(address, "admin", database="default")
        migrate(client, "meterhouse")
        client.close()
        yield address
    finally:
        process.terminate()
        process.wait(30)


def connect(address: str, user: str, database: str = "meterhouse"):
    """A client as that user; waits for the port."""
    url = f"http://{user}:{PASSWORDS[user]}@{address}"
    return warehouse.connect(Settings(warehouse_url=url), timeout_s=30, database=database)


@pytest.fixture
def warehouse_client(warehouse_address):
    """A client that may do everything, on empty tables."""
    client = connect(warehouse_address, "admin")
    for table in FILLED:
        client.command(f"TRUNCATE TABLE {table}")
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(application(tmp_path_factory.mktemp("stripe")), host="127.0.0.1", port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
