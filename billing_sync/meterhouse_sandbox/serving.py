"""Serving a sandbox from the command line: it says where it is once it really listens there."""

import socket

import uvicorn
from starlette.types import ASGIApp


def run(app: ASGIApp, host: str, port: int, announcement: str) -> None:
    """Serve until SIGTERM or SIGINT and print the announcement when connections are taken.

    Ends the process with code 1 when the port is taken.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    _Announcing(config, announcement).run()


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self._announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Flushed: a log file has to show it while the process runs.
        print(self._announcement, flush=True)
