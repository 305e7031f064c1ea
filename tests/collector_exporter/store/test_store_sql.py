"""Opening the SQL database: one schema, however many open it at once; transactions that write."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, insert, inspect, make_url, select, text, update

from meterhouse_store import registry, sql_migrations
from meterhouse_store.settings import Settings
from meterhouse_store.sql import SchemaMismatch, begin_write, open_engine
from meterhouse_store.tables import budget_changes, metadata, namespaces

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)


_barrier = None


def _set_barrier(barrier):
    global _barrier
    _barrier = barrier


def _open_and_count(data, sql_url):
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: F401 - loaded before the race, not in it

    _barrier.wait()
    engine = open_engine(Settings(data=data, sql_url=sql_url))
    with engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM schema_version")).scalar_one()
    engine.dispose()
    return found


def test_many_processes_that_start_at_once_make_one_schema(store_settings):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(4, _set_barrier, (spawn.Barrier(4),)) as pool:
        counts = pool.starmap(_open_and_count, [(store_settings.data, store_settings.sql_url)] * 4, chunksize=1)
    assert counts == [1] * 4
    engine = open_engine(store_settings)
    assert set(metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()


@pytest.mark.parametrize("rounds", [10, pytest.param(60, marks=pytest.mark.long)])
def test_no_opener_of_a_new_sqlite_file_finds_it_locked(tmp_path, rounds):
    # Switching to WAL fails, without waiting, where another connection does the same; one time in sixty without a lock.
    def open_together(round_number):
        barrier = threading.Barrier(8)

        def one(_):
            barrier.wait()
            open_engine(Settings(data=tmp_path / str(round_number))).dispose()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, range(8)))

    for round_number in range(rounds):
        open_together(round_number)


def test_a_database_of_a_newer_schema_version_is_refused(sql_engine, store_settings):
    with begin_write(sql_engine) as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    with pytest.raises(SchemaMismatch, match="schema version 99, this Meterhouse knows versions up to"):
        open_engine(store_settings)


@pytest.fixture
def first_release(store_settings):
    """The database as the first release made it, with a customer in it."""
    url = make_url(store_settings.sql_url)
    kind = url.get_backend_name()
    script = (Path(__file__).parent / f"schema_1_{kind}.sql").read_text()
    engine = create_engine(url if kind == "sqlite" else url.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        registered_at = "2026-10-01T12:00:00.000000+00:00"
        connection.exec_driver_sql(f"INSERT INTO namespaces VALUES ('live', 'live', NULL, 'USD', '{registered_at}')")
        connection.exec_driver_sql(
            "INSERT INTO customers VALUES ('live', 'acme', 'Acme', 'USD', 'UTC', 'a@acme.example', NULL, 'operator', "
            f"'{registered_at}')"
        )
    engine.dispose()


def test_a_database_of_the_first_release_is_brought_up_to_date_and_keeps_its_data(first_release, store_settings):
    engine = open_engine(store_settings)
    with engine.connect() as connection:
        version = connection.execute(text("SELECT version FROM schema_version")).scalar_one()
    (acme,) = registry.customers(engine, "live")
    engine.dispose()
    assert version == sql_migrations.VERSION
    assert (acme.name, acme.email, acme.registered_at) == ("Acme", "a@acme.example", NOW)


def test_every_column_of_the_tables_of_today_is_in_a_database_of_the_first_release_once_it_is_migrated(
    first_release, store_settings
):
    # A column that fails here needs a migration: see meterhouse_store/sql_migrations.py.
    engine = open_engine(store_settings)
    found = inspect(engine)
    missing = {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name not in {one["name"] for one in found.get_columns(table.name)}
    }
    engine.dispose()
    assert missing == set()


def test_sqlite_survives_a_power_cut_and_checks_references(tmp_path):
    engine = open_engine(Settings(data=tmp_path))
    with engine.connect() as connection:
        pragma = {name: connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in
                  ("journal_mode", "synchronous", "foreign_keys")}  # fmt: skip
    engine.dispose()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2: FULL


def test_an_exception_in_a_write_rolls_all_of_it_back(sql_engine):
    with pytest.raises(ZeroDivisionError), begin_write(sql_engine) as connection:
        connection.execute(insert(namespaces), _namespace("a"))
        _ = 1 // 0
    with sql_engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(namespaces)).scalar_one() == 0


def test_writers_that_read_first_wait_for_each_other_and_none_is_lost(tmp_path):
    engine = open_engine(Settings(data=tmp_path))
    with begin_write(engine) as connection:
        connection.execute(insert(namespaces), _namespace("counter", default_plan="0"))

    def count_up():
        for _ in range(25):
            with begin_write(engine) as connection:
                seen = connection.execute(select(namespaces.c.default_plan)).scalar_one()
                connection.execute(update(namespaces).values(default_plan=str(int(seen) + 1)))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        assert connection.execute(select(namespaces.c.default_plan)).scalar_one() == "100"
    engine.dispose()


def test_decimals_and_times_come_back_exactly(sql_engine):
    amount = Decimal("12345678901234567890.123456789")
    with begin_write(sql_engine) as connection:
        connection.execute(
            insert(budget_changes).values(
                namespace="live", customer_id="acme", name="money", recorded_at=NOW, change="set", terms={},
                amount=amount, who="ann", why="agreed",
            )
        )  # fmt: skip
    with sql_engine.connect() as connection:
        row = connection.execute(select(budget_changes.c.amount, budget_changes.c.recorded_at)).one()
    assert row == (amount, NOW)


def _namespace(name, default_plan=None):
    return {
        "namespace": name,
        "kind": "live",
        "default_plan": default_plan,
        "default_currency": "USD",
        "created_at": NOW,
    }
