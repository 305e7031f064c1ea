"""The SQL database: opening it, creating its schema once, and the one way to begin a transaction that writes."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Column, Connection, Engine, Integer, MetaData, Table, create_engine, event, make_url, select
from sqlalchemy import inspect as inspect_database

from meterhouse_store import audit, sql_migrations
from meterhouse_store.settings import Settings
from meterhouse_store.tables import metadata

BUSY_TIMEOUT_S = 30
_BEGIN = "meterhouse_begin"
_ADVISORY_LOCK = 0x6D65_7465_72  # any number will do, as long as every Meterhouse uses the same

_turns: WeakKeyDictionary[Engine, AbstractContextManager[Any]] = WeakKeyDictionary()
"""Of each SQLite database that is open here, the lock that its writers in this process take."""

_versions = Table("schema_version", MetaData(), Column("version", Integer, primary_key=True, autoincrement=False))


class SchemaMismatch(RuntimeError):
    """The database was written by a newer version of Meterhouse."""


def open_engine(settings: Settings) -> Engine:
    """The database of `settings.sql_url`, with its schema brought up to date; many processes may do this at once.

    Raises SchemaMismatch for a database of a newer schema version.
    """
    url = make_url(settings.sql_url)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url)
    # Without a driver in the URL, SQLAlchemy before 2.1 would look for psycopg2.
    engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    audit.listen(engine)
    with _disposed_on_failure(engine):
        _ensure_schema(engine)
    return engine


@contextmanager
def begin_write(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; commits at the end of the block, rolls back on an exception.

    What it changed of the tables of audit_rules.py is in the audit log with it.

    On SQLite it takes the write lock at once (BEGIN IMMEDIATE) and waits for it up to BUSY_TIMEOUT_S: a transaction
    that reads first and asks for the lock later fails without waiting when another one wrote in between. Threads of one
    process come one after the other: SQLite would have them look again every now and then.
    """
    with _turns.get(engine, nullcontext()), engine.connect() as connection:
        connection = connection.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        audit.begin(connection)
        with connection.begin():
            yield connection
            audit.seal(connection)


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads all of it at one moment, while others go on writing."""
    # SQLite in WAL gives a transaction one snapshot; PostgreSQL does from this level on.
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def _disposed_on_failure(engine: Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.dispose()
        raise


def _open_sqlite(url: URL) -> Engine:
    assert url.database, "the settings let no other URL of SQLite in"
    file = Path(url.database)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    _turns[engine] = threading.Lock()
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    audit.listen(engine)
    # Switching to WAL does not wait for other connections, it fails; so only one process at a time is in here.
    with open(file.with_name(file.name + ".schema-lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _disposed_on_failure(engine):
            _switch_to_wal(engine)
            _ensure_schema(engine)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; `_begin_sqlite` does
    # A power cut must not take back a commit that was acknowledged: WAL with synchronous=NORMAL would.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _switch_to_wal(engine: Engine) -> None:
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()


def _ensure_schema(engine: Engine) -> None:
    with begin_write(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        if not inspect_database(connection).has_table(_versions.name):
            _versions.create(connection)
            metadata.create_all(connection)
            connection.execute(_versions.insert().values(version=sql_migrations.VERSION))
            return
        found = connection.execute(select(_versions.c.version)).scalar_one()
        if found > sql_migrations.VERSION:
            raise SchemaMismatch(
                f"the SQL database has schema version {found}, this Meterhouse knows versions up to "
                f"{sql_migrations.VERSION}: use the newer Meterhouse that wrote it, or another METERHOUSE_SQL_URL"
            )
        if found < sql_migrations.VERSION:
            sql_migrations.apply(connection, found)
            connection.execute(_versions.update().values(version=sql_migrations.VERSION))
        metadata.create_all(connection)  # tables that came without a version of their own
