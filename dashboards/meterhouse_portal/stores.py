"""The portal's way to the SQL database and the warehouse: opened when first needed, and again when they were lost."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_store import registry, sql, warehouse
from meterhouse_store.settings import Settings

WAIT_S: Final = 2.0
"""A page that waits longer for a warehouse that is down helps nobody; it says so instead."""

UNREADABLE = (SQLAlchemyError, OSError, sql.SchemaMismatch, registry.RegistryError, ValueError)
"""What reading the SQL database may raise."""


class NoWarehouse(RuntimeError):
    """The warehouse does not answer; the text is for the log."""


class Rehearsed(Exception):
    """All that could be refused was looked at: the change could be made. None was."""


class Stores:
    """Both stores, for any number of threads. The portal may be up before either of them is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._client: Client | None = None

    def engine(self) -> Engine:
        """The SQL database. Raises what is in UNREADABLE."""
        with self._lock:
            if self._engine is None:
                self._engine = sql.open_engine(self._settings)
            return self._engine

    def rehearsing(self) -> "Stores":
        """The same, but for this: the first transaction that would be kept is taken back, and raises Rehearsed."""
        made = copy.copy(self)
        made._engine = self.engine().execution_options()  # has listeners of its own
        event.listen(made._engine, "commit", _take_back)
        return made

    @contextmanager
    def warehouse(self) -> Iterator[Client]:
        """The warehouse, as a user that reads views only; every failure within is NoWarehouse.

        One client is kept: connecting anew takes as long as a page.
        """
        with self.warehouse_when_asked() as connect:
            yield connect()

    @contextmanager
    def warehouse_when_asked(self) -> Iterator[Callable[[], Client]]:
        """The same for what may need none: it is connected to when that is called, and only that can fail then."""
        try:
            yield self._connected
        except (warehouse.WarehouseUnavailable, ClickHouseError, OSError) as problem:
            self._forget()
            raise NoWarehouse(str(problem)) from problem

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = warehouse.connect(self._settings, timeout_s=WAIT_S, user=warehouse.READER)
            return self._client

    def _forget(self) -> None:
        # The port and the password of an embedded engine that was started again are others.
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _take_back(_connection: Connection) -> None:
    raise Rehearsed
