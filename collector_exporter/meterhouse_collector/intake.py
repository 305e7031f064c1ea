"""What both doors do with a request: who is it, can it be read, is it on disk."""

import asyncio
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.journal import Entry, Journal, Overloaded
from meterhouse_collector.refusals import FORBIDDEN, MALFORMED, OVERLOADED, TOO_LARGE, Refused
from meterhouse_store.registry import Credential

REQUEST_BYTES: Final = 16 * 2**20
"""The largest request, after decompression. Exporters send 500 events in about 100 kB."""


@dataclass(slots=True)
class Counts:
    """Requests since the start: what `/metrics` shows. received = accepted + refused + failed."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0


class Intake:
    """Takes requests from the doors into the journal."""

    def __init__(self, credentials: Credentials, journal: Journal) -> None:
        self._credentials, self._journal = credentials, journal
        self.counts = Counts()

    async def authenticate(self, authorization: str | None) -> Credential:
        """The credential of an `Authorization: Bearer mh_...` header. Raises Refused."""
        return await self._credentials.of(authorization)

    async def accept(self, credential: Credential, request: bytes) -> None:
        """Returns when the serialized ExportMetricsServiceRequest is on disk. Raises Refused."""
        if len(request) > REQUEST_BYTES:
            raise Refused(TOO_LARGE, f"a request has at most {REQUEST_BYTES} bytes, decompressed: send smaller batches")
        try:
            # ClickHouse decodes it later and would take garbage in silence: what it cannot take must not get in.
            ExportMetricsServiceRequest.FromString(request)
        except DecodeError as problem:
            raise Refused(MALFORMED, f"this is no ExportMetricsServiceRequest: {problem}") from None
        if credential.customers is not None and not credential.customers:
            # In the record an empty list means any customer.
            raise Refused(FORBIDDEN, "this key may report for no customer at all: create one that names its customers")
        entry = Entry(credential.credential_id, credential.namespace, credential.customers or (), request)
        try:
            await asyncio.wrap_future(self._journal.append(entry))
        except Overloaded as problem:
            raise Refused(OVERLOADED, f"{problem}: send it again in a second") from None

    def count(self, refused: Refused | None) -> None:
        """Count a finished request."""
        if refused is None:
            self.counts.accepted += 1
        elif refused.kind.retry:
            self.counts.failed += 1
        else:
            self.counts.refused += 1
