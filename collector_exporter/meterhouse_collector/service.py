"""The collector's process: two doors, the journal and the projector, started and stopped together."""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.allowance import Allowances
from meterhouse_collector.credentials import Credentials
from meterhouse_collector.door_settings import DoorSettings
from meterhouse_collector.foreign.mapping import MappingError
from meterhouse_collector.foreign.mapping_file import MappingFile
from meterhouse_collector.grpc_door import grpc_server
from meterhouse_collector.http_door import Health, HttpDoor
from meterhouse_collector.http_protocol import IDLE_S, Connections, PlainHttpProtocol
from meterhouse_collector.intake import Intake, Outcome, Report
from meterhouse_collector.journal import Journal, JournalInUse
from meterhouse_collector.minutes import LOOK_S, Minutes
from meterhouse_collector.projection import CONNECT_S, Projection
from meterhouse_collector.refusal_counts import KEEP_S, RefusalCounts
from meterhouse_collector.segments import ForeignSegments
from meterhouse_collector.series import SeriesLimit
from meterhouse_collector.telemetry import Figures, Metric, Push, counter, gauge, prometheus
from meterhouse_collector.tls import ServerTls
from meterhouse_collector.upkeep import Upkeep
from meterhouse_collector.warehouse_counts import WarehouseCounts
from meterhouse_store import access, key_uses, logs, warehouse
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine
from meterhouse_store.terminal import wrong_settings

GRACE_S: Final = 5
"""How long requests under way may take to end when the collector stops."""
OTHER_FILES: Final = 200
"""Open files that are no connections: segments, the SQL database, libraries."""

log = logging.getLogger(__name__)


def journal_directory(data: Path) -> Path:
    """Where the collector of a data directory keeps its journal."""
    return data / "journal"


def serve(settings: Settings, host: str, http_port: int, grpc_port: int) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Port 0 takes a free one; the ports are printed."""
    try:
        doors = DoorSettings()
        tls = _tls(doors)
    except ValidationError as problem:
        print(wrong_settings(problem), file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"METERHOUSE_TLS_CERT, _KEY and _CLIENT_CA name files of PEM that fit: {problem}", file=sys.stderr)
        return 2
    logs.configure(doors.log, "INFO")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        listener = socket.create_server((host, http_port), family=_family(host), backlog=2048)
    except OSError as problem:
        print(f"the collector cannot start on {host}:{http_port}: {problem}", file=sys.stderr)
        return 1
    directory = journal_directory(settings.data)
    mapping = MappingFile(settings.mapping_file)
    try:
        mapping.load()
    except (MappingError, OSError, UnicodeDecodeError) as problem:
        print(f"the collector cannot start, the file of METERHOUSE_MAPPING cannot be used:\n{problem}", file=sys.stderr)
        return 1
    figures = Figures()
    try:
        journal = Journal(directory, on_fatal=_end_process, sync=figures.timed(os.fdatasync))
        engine = open_engine(settings)
        refusals = RefusalCounts(directory / "refusals.json")
        projection = Projection(settings, journal)
        minutes = Minutes(
            journal.collector_id,
            figures,
            file=directory / "minutes.jsonl",
            waiting_bytes=lambda: journal.waiting_bytes,
            lag_s=projection.lag_s,
        )
    except (OSError, SQLAlchemyError) as problem:
        print(f"the collector cannot start, it must be able to write to {settings.data}: {problem}", file=sys.stderr)
        return 1
    except (JournalInUse, ForeignSegments) as problem:
        print(f"the collector cannot start: {problem}", file=sys.stderr)
        return 1
    projection.start(beside=[refusals.write, minutes.write])
    days = settings.journal_retention_days
    upkeep = Upkeep(
        journal,
        lambda: projection.position,
        archive_url=settings.journal_archive,
        keep=None if days is None else timedelta(days=days),
    )
    upkeep.start()
    credentials = Credentials(lambda: access.credentials(engine), partial(key_uses.note, engine))
    intake = Intake(
        credentials,
        journal,
        mapping=mapping.current,
        series=SeriesLimit(doors.series_per_hour),
        report=_reporter(figures, refusals),
    )
    slots = Connections(_within_descriptors(doors.connections), doors.connections_per_address)

    rows = WarehouseCounts(partial(warehouse.connect, settings, timeout_s=CONNECT_S))

    def metrics() -> list[Metric]:
        return [*figures.metrics(), *_state(journal, projection, slots), *rows.metrics()]

    door = HttpDoor(intake, Allowances(engine), lambda: _health(credentials, journal, projection, metrics))
    push = Push(doors, metrics, journal.collector_id)
    push.start()
    config = uvicorn.Config(
        door,
        http=PlainHttpProtocol.limited(slots, intake.turned_away),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing asks for the client but the connection limits, which see the true one
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            make_grpc = partial(
                grpc_server,
                intake,
                f"{host}:{grpc_port}",
                None if tls is None else tls.grpc_credentials(),
                connections=slots.limit,
                calls_per_address=doors.connections_per_address,
            )
            runner.run(_serve_doors(_Server(config, stop), listener, make_grpc, credentials, minutes, refusals, tls))
    finally:
        push.stop()
        minutes.end()
        upkeep.stop()
        journal.close()  # what waits is on disk then, and the projector has a last look at it
        projection.stop()
        refusals.keep()
        credentials.note_uses()
        engine.dispose()
    return 0


class _Server(uvicorn.Server):
    """Stops when it is told to, also before it listens: uvicorn's own way knows of no earlier signal, and raises
    each again at its end, where the default action would skip what is to follow.
    """

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()


async def _serve_doors(
    http: uvicorn.Server,
    listener: socket.socket,
    make_grpc: Callable[[], tuple[Any, int]],
    credentials: Credentials,
    minutes: Minutes,
    refusals: RefusalCounts,
    tls: ServerTls | None,
) -> None:
    server, grpc_port = make_grpc()
    beside = [
        asyncio.create_task(credentials.refresh_forever()),
        asyncio.create_task(_look_forever(minutes)),
        asyncio.create_task(_keep_forever(refusals)),
    ]
    if tls is not None:
        beside.append(asyncio.create_task(tls.follow_files()))
    await server.start()
    host, http_port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    print(f"collector: OTLP/HTTP on {scheme}://{host}:{http_port}, OTLP/gRPC on {host}:{grpc_port}", flush=True)
    try:
        await http.serve(sockets=[listener])
    finally:
        await server.stop(GRACE_S)
        for task in beside:
            task.cancel()


async def _look_forever(minutes: Minutes) -> None:
    while True:
        minutes.look()
        await asyncio.sleep(LOOK_S)


async def _keep_forever(refusals: RefusalCounts) -> None:
    while True:
        await asyncio.sleep(KEEP_S)
        await asyncio.to_thread(refusals.keep)


def _tls(doors: DoorSettings) -> ServerTls | None:
    if doors.tls_cert is None or doors.tls_key is None:
        return None
    return ServerTls(doors.tls_cert, doors.tls_key, doors.tls_client_ca)


def _reporter(figures: Figures, refusals: RefusalCounts) -> Report:
    def report(outcome: Outcome, code: str, retry: bool, seconds: float) -> None:
        figures.count(code, retry, outcome.items, seconds)
        if code:
            who = outcome.credential
            refusals.add(who.namespace if who else "", who.credential_id if who else "", code, outcome.bytes)

    return report


def _within_descriptors(connections: int) -> int:
    """So many connections, or as many as the process may have files open for both doors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(1, min(connections, (most - OTHER_FILES) // 2))


def _end_process(problem: Exception) -> None:
    log.critical("%s: the collector ends; its next start checks and copies the last segment", problem)
    time.sleep(0.2)  # the doors answer the waiting requests meanwhile
    os._exit(1)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _state(journal: Journal, projection: Projection, slots: Connections) -> list[Metric]:
    """What is asked when somebody looks."""
    space = os.statvfs(journal.directory)
    return [
        gauge("http_connections", "open connections to the HTTP door", slots.open.total()),
        counter("http_connections_refused_total", "connections beyond a limit", slots.refused),
        gauge("journal_waiting_bytes", "requests that wait for the disk", journal.waiting_bytes),
        gauge("journal_bytes", "files of the journal", _bytes_in(journal.directory)),
        gauge("disk_free_bytes", "space left where the journal is", space.f_bavail * space.f_frsize),
        gauge("projection_lag_seconds", "age of what is not in the warehouse yet", projection.lag_s()),
        counter(
            "projection_failures_total",
            "failed attempts to bring the journal into the warehouse",
            projection.failures,
        ),
    ]


def _bytes_in(directory: Path) -> int:
    total = 0
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):  # a segment that was sealed meanwhile
            total += entry.stat(follow_symlinks=False).st_size
    return total


def _health(
    credentials: Credentials, journal: Journal, projection: Projection, metrics: Callable[[], list[Metric]]
) -> Health:
    return Health(credentials.loaded and not journal.failed, projection.trouble(), lambda: prometheus(metrics()))
