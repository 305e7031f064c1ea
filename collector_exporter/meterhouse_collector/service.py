"""The collector's process: two doors, the journal and the projector, started and stopped together."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from meterhouse_collector.allowance import Allowances
from meterhouse_collector.credentials import Credentials
from meterhouse_collector.grpc_door import grpc_server
from meterhouse_collector.http_door import Health, HttpDoor
from meterhouse_collector.http_protocol import PlainHttpProtocol
from meterhouse_collector.intake import Intake
from meterhouse_collector.journal import Journal, JournalInUse
from meterhouse_collector.projection import Projection
from meterhouse_collector.segments import ForeignSegments
from meterhouse_store import registry
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

GRACE_S: Final = 5
"""How long requests under way may take to end when the collector stops."""

log = logging.getLogger(__name__)


def journal_directory(data: Path) -> Path:
    """Where the collector of a data directory keeps its journal."""
    return data / "journal"


def serve(settings: Settings, host: str, http_port: int, grpc_port: int) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Port 0 takes a free one; the ports are printed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("urllib3", "clickhouse_connect"):  # the projector says the same in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # uvicorn raises the signal again when its server has stopped; the default action would skip what follows it here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    try:
        listener = socket.create_server((host, http_port), family=_family(host), backlog=2048)
    except OSError as problem:
        print(f"the collector cannot start on {host}:{http_port}: {problem}", file=sys.stderr)
        return 1
    directory = journal_directory(settings.data)
    try:
        journal = Journal(directory, on_fatal=_end_process)
        engine = open_engine(settings)
    except (OSError, SQLAlchemyError) as problem:
        print(f"the collector cannot start, it must be able to write to {settings.data}: {problem}", file=sys.stderr)
        return 1
    except (JournalInUse, ForeignSegments) as problem:
        print(f"the collector cannot start: {problem}", file=sys.stderr)
        return 1
    projection = Projection(settings, journal)
    projection.start()
    credentials = Credentials(lambda: registry.credentials(engine))
    intake = Intake(credentials, journal)
    door = HttpDoor(intake, Allowances(engine), lambda: _health(intake, credentials, journal, projection))
    config = uvicorn.Config(
        door,
        http=PlainHttpProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve_doors(uvicorn.Server(config), listener, intake, credentials, f"{host}:{grpc_port}"))
    finally:
        journal.close()  # what waits is on disk then, and the projector has a last look at it
        projection.stop()
        engine.dispose()
    return 0


async def _serve_doors(
    http: uvicorn.Server, listener: socket.socket, intake: Intake, credentials: Credentials, grpc_address: str
) -> None:
    server, grpc_port = grpc_server(intake, grpc_address)
    refreshing = asyncio.create_task(credentials.refresh_forever())
    await server.start()
    host, http_port = listener.getsockname()[:2]
    print(f"collector: OTLP/HTTP on http://{host}:{http_port}, OTLP/gRPC on {host}:{grpc_port}", flush=True)
    try:
        await http.serve(sockets=[listener])
    finally:
        await server.stop(GRACE_S)
        refreshing.cancel()


def _end_process(problem: Exception) -> None:
    log.critical("%s: the collector ends; its next start checks and copies the last segment", problem)
    time.sleep(0.2)  # the doors answer the waiting requests meanwhile
    os._exit(1)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _health(intake: Intake, credentials: Credentials, journal: Journal, projection: Projection) -> Health:
    counts = intake.counts
    figures = {
        ("requests_accepted_total", "counter", "requests acknowledged, on disk"): counts.accepted,
        ("requests_refused_total", "counter", "requests refused for good (key, size, encoding)"): counts.refused,
        ("requests_failed_total", "counter", "requests to be sent again (overload, disk)"): counts.failed,
        ("journal_waiting_bytes", "gauge", "requests that wait for the disk"): journal.waiting_bytes,
        ("projection_lag_seconds", "gauge", "age of what is not in the warehouse yet"): projection.lag_s(),
        ("projection_failures_total", "counter", "failed attempts to bring the journal into the warehouse"): (
            projection.failures
        ),
    }
    lines = []
    for (name, kind, meaning), value in figures.items():
        lines += [f"# HELP meterhouse_collector_{name} {meaning}", f"# TYPE meterhouse_collector_{name} {kind}"]
        lines.append(f"meterhouse_collector_{name} {value}")
    return Health(credentials.loaded and not journal.failed, projection.trouble(), "\n".join(lines) + "\n")
