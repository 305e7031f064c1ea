"""A real warehouse (the embedded engine behind its HTTP front) and real SQL databases for the rating tests."""

import os
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from quick_stores import WarehouseServer, empty, postgres_programs
from sqlalchemy import select

from meterhouse_rating import versions
from meterhouse_rating.run import Request, Step, close, run
from meterhouse_rating.world import World
from meterhouse_store import registry, schema, warehouse
from meterhouse_store.meters import declared
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

sys.path.insert(0, str(Path(__file__).parent))  # for rating_samples

NOW = datetime.fromisoformat("2026-11-21T12:00:00+00:00")


@pytest.fixture(scope="session")
def warehouse_url(warehouse_server: WarehouseServer) -> str:
    """The URL of an embedded warehouse that lives as long as the test run."""
    return warehouse_server.url()


@pytest.fixture(scope="session")
def warehouse_database(warehouse_url: str) -> str:
    """The name of a database with the schema in it; each test finds it empty."""
    name = "rating_tests"
    client = warehouse.connect(Settings(warehouse_url=warehouse_url), database="default")
    schema.migrate(client, name)
    client.close()
    return name


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """SQLite and PostgreSQL take turns, by the name of the test; `make prove ONLY=suite` runs the other halves."""
    if postgres_programs() is None:
        return
    for item in items:
        database = getattr(getattr(item, "callspec", None), "params", {}).get("sql_url")
        if database is None:
            continue
        name = item.nodeid.replace("postgres", "sqlite")
        if database != ("sqlite", "postgres")[zlib.crc32(name.encode()) % 2]:
            item.add_marker(pytest.mark.long)


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest, sqlite_copy: Callable[[Path], str], tmp_path: Path) -> str:
    """An empty SQL database: SQLite always, PostgreSQL where the machine has it."""
    if request.param == "sqlite":
        return sqlite_copy(tmp_path / "meterhouse.db")
    return str(request.getfixturevalue("postgres_schema_url"))


@dataclass
class House:
    """A small Meterhouse: its world, and what a test does to it."""

    world: World
    settings: Settings

    def event(self, customer: str, meter: str, quantity: str, when: str, **columns: str) -> None:
        """One usage event; received a minute after it happened unless `received` says otherwise."""
        self.events([{"customer_id": customer, "meter": meter, "quantity": quantity, "when": when, **columns}])

    def events(self, found: list[dict[str, str]]) -> None:
        rows = [_event_row(self.world.namespace, dict(event)) for event in found]
        names = list(rows[0])
        self.world.client.insert("events", [[row[name] for name in names] for row in rows], column_names=names)

    def collected(self, through: str = "2026-11-21T12:00:00", position: int = 1000, name: str = "c1") -> None:
        """The collector has everything up to a moment in the warehouse."""
        moment = datetime.fromisoformat(through + "+00:00")
        step = int(moment.timestamp()) * 10_000 + position
        self.world.client.insert(
            "checkpoints",
            [[name, "segment-1", position, moment, step]],
            column_names=["collector_id", "segment", "position", "projected_through", "step"],
        )

    def customer(self, name: str, plan: str = "pay", **more: Any) -> None:
        registry.add_customer(self.world.engine, self.world.namespace, name, plan=plan, **more)

    def publish(self, text: str, **more: Any) -> None:
        units = {name: meter.unit for name, meter in self.world.meters.items()}
        versions.publish(self.world.engine, self.world.namespace, text, units, author="test", **more)

    def run(self, period: str | None = "2026-10", **more: Any) -> list[Step]:
        return list(run(self.world, Request(period, **more)))

    def close(self, period: str = "2026-10", **more: Any) -> list[Step]:
        return list(close(self.world, Request(period, **more), grace=timedelta(hours=1), wait_s=0))

    def rows(self, table: Any) -> list[dict[str, Any]]:
        with self.world.engine.connect() as connection:
            query = select(table).order_by(*table.primary_key.columns)
            return [dict(row) for row in connection.execute(query).mappings()]

    def at(self, moment: datetime) -> None:
        self.world = replace(self.world, now=lambda: moment)


def _event_row(namespace: str, event: dict[str, str]) -> dict[str, Any]:
    when = datetime.fromisoformat(event.pop("when") + "+00:00")
    received = datetime.fromisoformat(event.pop("received", "") + "+00:00") if "received" in event else None
    received = received or when + timedelta(minutes=1)
    nanoseconds = int(received.timestamp()) * 10**9
    defaults = {
        "event_id": uuid.uuid4().hex,
        "status": "ok",
        "model": "",
        "reason": "",
        "raw_value": "",
    }
    return {
        **defaults,
        **event,
        "namespace": namespace,
        "quantity": Decimal(event["quantity"]),
        "event_time": when,
        "received_at": received,
        "first": 2**64 - 1 - nanoseconds,
    }


@pytest.fixture
def house(warehouse_url: str, warehouse_database: str, sql_url: str, tmp_path: Path) -> Iterator[House]:
    """A Meterhouse with an empty warehouse and an empty SQL database."""
    yield from _house(warehouse_url, warehouse_database, sql_url, tmp_path)


@pytest.fixture
def sqlite_house(
    warehouse_url: str, warehouse_database: str, sqlite_copy: Callable[[Path], str], tmp_path: Path
) -> Iterator[House]:
    """The same on SQLite only, for what does not depend on the database."""
    yield from _house(warehouse_url, warehouse_database, sqlite_copy(tmp_path / "meterhouse.db"), tmp_path)


@pytest.fixture(scope="session")
def new_house(warehouse_url: str, sqlite_copy: Callable[[Path], str]) -> Callable[[str, Path], Iterator[House]]:
    """Makes a Meterhouse on SQLite in a warehouse database of that name: for what a whole module may look at."""

    def make(database: str, data: Path) -> Iterator[House]:
        client = warehouse.connect(Settings(warehouse_url=warehouse_url), database="default")
        schema.migrate(client, database)
        client.close()
        return _house(warehouse_url, database, sqlite_copy(data / "meterhouse.db"), data)

    return make


def _house(warehouse_url: str, database: str, sql_url: str, data: Path) -> Iterator[House]:
    settings = Settings(
        data=data, namespace="test", warehouse_url=warehouse_url, warehouse_database=database, sql_url=sql_url
    )
    client = warehouse.connect(settings)
    empty(client)
    engine = open_engine(settings)
    registry.ensure_namespace(engine, "test")
    yield House(World(engine, client, "test", declared(settings), lambda: NOW, lambda _s: None), settings)
    client.close()
    engine.dispose()


@pytest.fixture
def command_environment() -> Callable[[House], dict[str, str]]:
    """The environment in which the `meterhouse` command works in a house."""

    def environment(house: House) -> dict[str, str]:
        return {
            **os.environ,
            "METERHOUSE_DATA": str(house.settings.data),
            "METERHOUSE_NAMESPACE": "test",
            "METERHOUSE_WAREHOUSE_URL": str(house.settings.warehouse_url),
            "METERHOUSE_WAREHOUSE_DATABASE": house.settings.warehouse_database,
            "METERHOUSE_SQL_URL": house.settings.sql_url,
        }

    return environment
