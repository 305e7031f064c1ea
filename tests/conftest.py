"""What tests of several folders share: programs that a machine may lack, and the list of what was skipped for that.

A test that needs such a program skips with the reason `this machine lacks NAME`. The end of the run names those skips;
with METERHOUSE_CI=1 one of them fails the run, so that a test can never be quietly off where it has to run.
"""

import gc
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quick_stores import WarehouseServer

sys.path.insert(0, str(Path(__file__).parent))  # for quick_stores

LACKS = "this machine lacks "
MEMORY = Path("/dev/shm")  # a file system of Linux in memory
NEEDED_BYTES = 4 * 1024**3


# ---- what was skipped -----------------------------------------------------------------------------------------------


class LackOfPrograms:
    """Collects the skips of one run for which the machine, not the test, is the reason."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.tests: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason.startswith(LACKS):
                self.tests.setdefault(reason.removeprefix(LACKS), []).append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.tests and os.environ.get("METERHOUSE_CI") == "1" and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.tests:
            return
        terminalreporter.section("skipped because of this machine", sep="-")
        for program, tests in sorted(self.tests.items()):
            terminalreporter.line(f"{program}: {len(tests)} not run ({', '.join(tests)})")
        if os.environ.get("METERHOUSE_CI") == "1":
            terminalreporter.line("METERHOUSE_CI=1: the run fails, because all of them have to run here.", red=True)


def pytest_collection_finish() -> None:
    """All that was imported stays to the end: a tenth of the time went into looking through it for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled` the first cases run in `make test`, the others are `long`."""
    cases = Counter[str]()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None or item.get_closest_marker("long"):
            continue
        test = item.nodeid.partition("[")[0]
        cases[test] += 1
        if cases[test] > mark.args[0]:
            item.add_marker(pytest.mark.long)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LackOfPrograms(config))
    # What is written is synced thousands of times: in memory that takes no time. (In a container it may be 64 MB.)
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > NEEDED_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# ---- programs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip(LACKS + "Chromium")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The SQLAlchemy URL of a throwaway PostgreSQL server without tables; it lives as long as the test run."""
    from quick_stores import postgres_programs, with_parent

    programs = postgres_programs()
    if programs is None:
        pytest.skip(LACKS + "PostgreSQL")
    # A short path: the name of a Unix socket has at most 107 bytes, and pytest's own directories are long.
    home = Path(tempfile.mkdtemp(prefix="mh-pg-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
    owner = _unprivileged_user()
    if owner is not None:
        os.chown(home, owner.pw_uid, owner.pw_gid)
    # PostgreSQL refuses to run as root.
    who = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    data = home / "data"
    initialised = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "meterhouse", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"],
        capture_output=True,
        text=True,
        cwd=home,
        **who,
    )
    assert initialised.returncode == 0, initialised.stderr
    # No TCP port, so none can be taken; fsync off and little of a log, because nothing in it outlives the run.
    settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_wal_size=200MB", "-k", str(home)]
    command = [*with_parent("INT"), programs / "postgres", "-D", data, *settings]
    log = (home / "log").open("wb")
    server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, **who)
    try:
        url = f"postgresql+psycopg://meterhouse@/postgres?host={home}"
        _wait_for(url, server, home / "log")
        yield url
    finally:
        server.send_signal(
            signal.SIGQUIT
        )  # at once: upon SIGTERM it waits for its clients, and writes what nobody needs
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()
        shutil.rmtree(home)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty PostgreSQL database for this one test."""
    with _new_database(postgres_server, "template1") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database with the schema, that nobody is connected to."""
    from meterhouse_store.settings import Settings
    from meterhouse_store.sql import open_engine

    with _new_database(postgres_server, "template1") as url:
        open_engine(Settings(sql_url=url)).dispose()
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture
def postgres_schema_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new PostgreSQL database with the schema, as a copy of one."""
    with _new_database(postgres_server, postgres_template) as url:
        yield url


@contextmanager
def _new_database(server: str, template: str) -> Iterator[str]:
    import sqlalchemy

    name = f"t_{secrets.token_hex(6)}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        # Before PostgreSQL 15 it was copied as files always; by way of the log takes twice the time.
        how = " STRATEGY file_copy" if connection.dialect.server_version_info >= (15,) else ""
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} TEMPLATE {template}{how}"))
    yield sqlalchemy.make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:  # some megabytes each, of memory where there is enough
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def warehouse_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[WarehouseServer]":
    """One embedded warehouse for all tests of a worker; the tests of a folder have databases of their own in it."""
    from quick_stores import warehouse_server

    with warehouse_server(tmp_path_factory.mktemp("warehouse")) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Makes a SQLite database with the schema at a path, and returns its URL."""
    from quick_stores import sqlite_copies

    return sqlite_copies(tmp_path_factory.mktemp("schema"))


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run a server as that refuses root: its own user, else nobody; None when we are not root."""
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import sqlalchemy  # here, because the environments of agents' tests have none of the server

    engine = sqlalchemy.create_engine(url)
    deadline = time.monotonic() + 30
    while True:
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            break
    engine.dispose()
