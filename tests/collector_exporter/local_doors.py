"""Both doors in this process, with a real journal and limits of the test's choice; no warehouse is behind them."""

import asyncio
import threading
from contextlib import contextmanager
from datetime import UTC, datetime

import uvicorn

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.grpc_door import grpc_server
from meterhouse_collector.http_door import Health, HttpDoor
from meterhouse_collector.http_protocol import Connections, PlainHttpProtocol
from meterhouse_collector.intake import Intake
from meterhouse_collector.journal import Journal
from meterhouse_store.access import Credential, hash_key

KEY = "mh_" + "k" * 40
CREDENTIAL = Credential("c-1", "live", "agents", hash_key(KEY), None, datetime(2026, 1, 1, tzinfo=UTC), None)


class Doors:
    """`http` is (host, port), `grpc` host:port; `reported` is what became of requests, `journal` where they are."""

    def __init__(
        self, directory, *, journal=None, tls=None, connections=(100, 50), seconds=None, grpc_options=None, **intake
    ):
        self.reported = []
        self.journal = journal or Journal(directory / "journal", on_fatal=self.reported.append, reserve_bytes=0)
        self.intake = Intake(
            Credentials(lambda: [CREDENTIAL]),
            self.journal,
            report=lambda outcome, code, retry, _seconds: self.reported.append(
                (code, retry, outcome.items, outcome.bytes)
            ),
            **intake,
        )
        self._tls, self._connections = tls, Connections(*connections)
        self._seconds, self._grpc_options = seconds or {}, grpc_options or {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self):
        self._thread.start()
        assert self._started.wait(30)
        return self

    def stop(self):
        self._server.should_exit = True
        self._thread.join(30)
        self.journal.close()

    @property
    def slots(self):
        return self._connections

    async def _run(self):
        context = None if self._tls is None else self._tls.context
        config = uvicorn.Config(
            HttpDoor(self.intake, None, lambda: Health(True, None, lambda: "")),
            port=0,
            http=PlainHttpProtocol.limited(self._connections, self.intake.turned_away, **self._seconds),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        credentials = None if self._tls is None else self._tls.grpc_credentials()
        grpc_door, port = grpc_server(self.intake, "127.0.0.1:0", credentials, **self._grpc_options)
        await grpc_door.start()
        self.grpc = f"127.0.0.1:{port}"
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        self.http = self._server.servers[0].sockets[0].getsockname()
        self._started.set()
        await serving
        await grpc_door.stop(1)


@contextmanager
def running(directory, **options):
    doors = Doors(directory, **options).start()
    try:
        yield doors
    finally:
        doors.stop()
