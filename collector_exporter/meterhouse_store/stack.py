"""What `meterhouse up` starts: its data directory, secrets, ports and parts, in their order."""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import select

from meterhouse_store import access, endpoints, registry
from meterhouse_store.endpoints import Address, Collector, Endpoints, Warehouse, replace_private
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine
from meterhouse_store.supervisor import Part, PartFailed, Supervisor
from meterhouse_store.tables import price_books
from meterhouse_store.warehouse import ADMIN, READER

USUAL_PORTS = {"warehouse": 8123, "grpc": 4317, "http": 4318, "portal": 8080, "webhooks": 8081, "prices": 8082}
STARTER_PLAN = "pay-as-you-go"
_SECRETS = ("warehouse_admin", "warehouse_reader", "api_key", "webhook_secret", "portal_token")


class AlreadyRunning(RuntimeError):
    """Another `meterhouse up` has this data directory."""


@dataclass(frozen=True)
class Options:
    """How `up` runs; `strict`: customers that are not registered stay unrated; `stop_after_s` None: until told."""

    jobs: bool = True
    strict: bool = False
    stop_after_s: float | None = None


def run(settings: Settings, options: Options, say: Callable[[str], None], ready: Callable[[Endpoints], None]) -> None:
    """Start everything, call `ready`, keep it running until SIGTERM, SIGINT or the time is up, stop everything.

    Raises AlreadyRunning, PartFailed (after stopping what had started), or what the registry and SQL raise.
    """
    run_folder = settings.data / "run"
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    run_folder.mkdir(exist_ok=True, mode=0o700)
    with _locked(settings.data):
        supervisor = Supervisor(settings.data / "logs", run_folder / "children.json", say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: supervisor.stop.set())
        deadline = None if options.stop_after_s is None else time.monotonic() + options.stop_after_s
        try:
            found = _describe(settings, _secrets(run_folder), _ports(run_folder))
            _register(settings, found, options)
            endpoints.write(settings.data, found)
            _start(settings, found, supervisor, options)
            if not supervisor.stop.is_set():
                (run_folder / "ready").touch()
                ready(found)
                supervisor.watch(deadline)
        except PartFailed:
            if not supervisor.stop.is_set():  # a part that was interrupted did not fail
                raise
        finally:
            (run_folder / "ready").unlink(missing_ok=True)
            supervisor.stop_all()
            endpoints.remove(settings.data)


def is_ready(data: Path) -> bool:
    """Whether an `up` of this data directory has started everything."""
    return (data / "run" / "ready").exists() and running_pid(data) is not None


def running_pid(data: Path) -> int | None:
    """The process of the `up` that has this data directory; None where there is none."""
    try:
        lock = open(data / "run" / "up.lock", "r+")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read() or 0) or None
    return None


def read_secrets(data: Path) -> dict[str, str]:
    """The secrets of a data directory that `up` has been run in. Raises FileNotFoundError before that."""
    loaded: dict[str, str] = json.loads((data / "run" / "secrets.json").read_text())
    return loaded


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    with open(data / "run" / "up.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise AlreadyRunning(f"Meterhouse already runs in {data} (process {lock.read().strip()})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _secrets(run_folder: Path) -> dict[str, str]:
    """Made once and then kept: an agent's key must outlive a restart."""
    file = run_folder / "secrets.json"
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in _SECRETS if name not in kept]
    if missing:
        prefixes = {"api_key": "mh_", "webhook_secret": "whsec_"}
        kept |= {name: prefixes.get(name, "") + secrets.token_urlsafe(32) for name in missing}
        replace_private(file, json.dumps(kept, indent=2) + "\n")
    return kept


def _ports(run_folder: Path) -> dict[str, int]:
    """The ports of the last time, else the usual ones; where one is taken, any free one."""
    file = run_folder / "ports.json"
    wanted = USUAL_PORTS | (json.loads(file.read_text()) if file.exists() else {})
    chosen: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # held together, or two parts might get the same free port
        for name, port in wanted.items():
            chosen[name] = _bind(held, port) or _bind(held, 0)
    replace_private(file, json.dumps(chosen) + "\n")
    return chosen


def _bind(held: contextlib.ExitStack, port: int) -> int:
    attempt = held.enter_context(socket.socket())
    attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
    try:
        attempt.bind(("127.0.0.1", port))
    except OSError:
        return 0
    return int(attempt.getsockname()[1])


def _describe(settings: Settings, kept: dict[str, str], ports: dict[str, int]) -> Endpoints:
    url = f"http://127.0.0.1:{ports['warehouse']}"
    users = {ADMIN: kept["warehouse_admin"], READER: kept["warehouse_reader"]}
    if settings.warehouse_url is not None:
        parts = urlsplit(settings.warehouse_url)
        url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        users = {unquote(parts.username or "default"): unquote(parts.password or "")}
    portal = f"http://127.0.0.1:{ports['portal']}"
    return Endpoints(
        pid=os.getpid(),
        data=str(settings.data),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        namespace=settings.namespace,
        warehouse=Warehouse(url, settings.warehouse_database, users),
        collector=Collector(f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}", kept["api_key"]),
        portal=Address(portal),
        webhooks=Address(f"http://127.0.0.1:{ports['webhooks']}/webhooks/stripe"),
        prices=Address(f"http://127.0.0.1:{ports['prices']}"),
        health=Address(f"{portal}/healthz"),
    )


def _register(settings: Settings, found: Endpoints, options: Options) -> None:
    engine = open_engine(settings)
    try:
        plan = None if options.strict else STARTER_PLAN
        registry.ensure_namespace(engine, settings.namespace, default_plan=plan)
        access.create_key(engine, settings.namespace, "meterhouse up", key_text=found.collector.api_key)
    finally:
        engine.dispose()


def _start(settings: Settings, found: Endpoints, supervisor: Supervisor, options: Options) -> None:
    if settings.warehouse_url is None:
        supervisor.start(
            _part("warehouse", settings, "warehouse serve", port_of(found.warehouse.url), f"{found.warehouse.url}/ping")
        )
    supervisor.run_once(_part("migrate", settings, "warehouse migrate"))
    http, grpc = port_of(found.collector.http), found.collector.grpc.rpartition(":")[2]
    supervisor.start(
        _part(
            "collector",
            settings,
            "collector serve",
            health_url=f"{found.collector.http}/healthz",
            extra=("--http-port", http, "--grpc-port", grpc),
        )
    )
    if not _has_prices(settings):
        supervisor.run_once(_part("starter-prices", settings, "prices publish --starter"))
    supervisor.start(_part("portal", settings, "portal serve", port_of(found.portal.url), found.health.url))
    webhooks = port_of(found.webhooks.url)
    supervisor.start(
        _part(
            "webhooks",
            settings,
            "bill webhooks",
            webhooks,
            f"http://127.0.0.1:{webhooks}/healthz",
            environment={
                "STRIPE_WEBHOOK_SECRET": os.environ.get("STRIPE_WEBHOOK_SECRET")
                or read_secrets(settings.data)["webhook_secret"]
            },
        )
    )
    prices = found.prices.url
    supervisor.start(_part("prices", settings, "prices serve", port_of(prices), f"{prices}/healthz"))
    if options.jobs:
        supervisor.start(_part("jobs", settings, "jobs"))


def port_of(url: str) -> str:
    """The port of a URL, as text."""
    return str(urlsplit(url).port)


def _part(
    name: str,
    settings: Settings,
    command: str,
    port: str | None = None,
    health_url: str | None = None,
    *,
    extra: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Part:
    ports = ("--port", port) if port else ()
    argv = (*meterhouse_command(), *command.split(), "--data", str(settings.data), *ports, *extra)
    return Part(name, argv, health_url, environment or {})


def meterhouse_command() -> tuple[str, ...]:
    """How a child process calls the command `meterhouse` of this installation."""
    return (sys.executable, "-c", "from meterhouse.cli import main; raise SystemExit(main())")


def _has_prices(settings: Settings) -> bool:
    engine = open_engine(settings)
    try:
        with engine.connect() as connection:
            query = select(price_books.c.version).where(price_books.c.namespace == settings.namespace).limit(1)
            return connection.execute(query).first() is not None
    finally:
        engine.dispose()
