"""TLS of both doors from PEM files, read again when they change: a renewed certificate needs no restart."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, Final

import grpc

LOOK_S: Final = 5.0
"""How often the files are looked at. A connection that is open goes on with the certificate it began with."""

log = logging.getLogger(__name__)


class ServerTls:
    """The server's certificate and key, and whose clients it takes where `client_ca` is given.

    Raises OSError or ssl.SSLError where the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = [certificate, key, *([client_ca] if client_ca else [])]
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._latest = self._new_context()
        self.context = self._new_context()
        """Of the HTTP door's listener. Each handshake goes on with the latest one: a context forgets no CA."""
        self.context.sni_callback = self._with_latest
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

    def _with_latest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called in every handshake, with a name or without.
        connection.context = self._latest

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
            context.num_tickets = 0  # a session that is resumed would not be asked for its certificate again
            context.options |= ssl.OP_NO_TICKET
        return context

    def _grpc_configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self._key.read_bytes(), self._certificate.read_bytes())],
            root_certificates=None if self._client_ca is None else self._client_ca.read_bytes(),
        )
