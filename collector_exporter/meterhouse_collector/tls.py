"""TLS of both doors from PEM files, read again when they change: a renewed certificate needs no restart."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import grpc

LOOK_S: Final = 5.0
"""How often the files are looked at. A connection that is open goes on with the certificate it began with."""

log = logging.getLogger(__name__)


class _Listener(ssl.SSLContext):
    """Has each handshake done by the latest context, from its first byte on.

    A context forgets no CA, and no session: a client that resumes one of TLS 1.2 is not asked for its certificate
    again, so a new context must know none of those that began with the one before it.
    """

    def __new__(cls, _latest: Callable[[], ssl.SSLContext]) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, latest: Callable[[], ssl.SSLContext]) -> None:
        self._latest = latest

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """What the event loops call for each connection."""
        return self._latest().wrap_bio(*args, **kwargs)


class ServerTls:
    """The server's certificate and key, and whose clients it takes where `client_ca` is given.

    Raises OSError or ssl.SSLError where the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = [certificate, key, *([client_ca] if client_ca else [])]
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._latest = self._new_context()
        self.context = _Listener(lambda: self._latest)
        """Of the HTTP door's listener."""
        self._grpc = self._grpc_configuration()
        self._seen = self._stamp()

    def grpc_credentials(self) -> Any:
        """For `add_secure_port`; the files' present content holds from the next handshake on."""
        return grpc.dynamic_ssl_server_credentials(
            self._grpc, lambda: self._grpc, require_client_authentication=self._client_ca is not None
        )

    async def follow_files(self) -> None:
        """Take over what the files become; ends by cancellation. What cannot be used changes nothing and is logged."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Read the files again if they changed."""
        try:
            seen = self._stamp()
            if seen == self._seen:
                return
            self._latest = self._new_context()  # raises for a certificate without its key
            self._grpc = self._grpc_configuration()
            self._seen = seen
        except (OSError, ssl.SSLError) as problem:
            log.warning("the changed TLS files cannot be used, the ones read before hold: %s", problem)
            return
        log.info("the TLS files changed and were read again")

    def _stamp(self) -> list[tuple[int, int]]:
        return [(found.st_mtime_ns, found.st_ino) for found in (file.stat() for file in self._files)]

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # Tickets would be taken by whichever context can read them; sessions of TLS 1.2 are in this one alone.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        return context

    def _grpc_configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())],
            root_certificates=None if self._client_ca is None else self._client_ca.read_bytes(),
        )
