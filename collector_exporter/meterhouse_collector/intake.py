"""What both doors do with a request: who is it, can it be read, is it on disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.grants import Verifier, tokens
from meterhouse_collector.journal import Entry, Journal, Overloaded
from meterhouse_collector.records import GRANTS, Granted
from meterhouse_collector.refusals import FORBIDDEN, MALFORMED, OVERLOADED, TOO_LARGE, Refused
from meterhouse_store.registry import Credential

REQUEST_BYTES: Final = 16 * 2**20
"""The largest request, after decompression. Exporters send 500 events in about 100 kB."""
REQUEST_ITEMS: Final = 50_000
"""Of one request, the resources, scopes, metrics, points and exemplars together: an empty one takes two bytes to send
and a row to store."""
ATTRIBUTES: Final = 1000
"""Of one resource or point."""
UNFOLDED_BYTES: Final = 4 * 2**20
UNFOLDED_TIMES: Final = 32
"""The warehouse makes each exemplar's row with the attributes of its point and resource. A request may grow by that to
the one plus the other times its size; without a limit one of 1.5 MB took 15 GB of memory there."""
LARGE_BYTES: Final = 128 * 2**10
"""What is larger is decoded in a thread: the others do not wait for it."""

T = TypeVar("T")


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
        self._verifier = Verifier()
        self._decoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decoder")

    async def authenticate(self, authorization: str | None) -> Credential:
        """The credential of an `Authorization: Bearer mh_...` header. Raises Refused."""
        return await self._credentials.of(authorization)

    async def accept(self, credential: Credential, request: bytes) -> None:
        """Returns when the serialized ExportMetricsServiceRequest is on disk. Raises Refused."""
        granted = await self.decoded(len(request), lambda: self._checked(credential, request))
        if credential.customers is not None and not credential.customers:
            # In the record an empty list means any customer.
            raise Refused(FORBIDDEN, "this key may report for no customer at all: create one that names its customers")
        entry = Entry(
            credential.credential_id,
            credential.namespace,
            credential.customers or (),
            request,
            granted,
            "" if credential.grant_keys is None else GRANTS,
        )
        try:
            await asyncio.wrap_future(self._journal.append(entry))
        except Overloaded as problem:
            raise Refused(OVERLOADED, f"{problem}: send it again in a second") from None

    def _checked(self, credential: Credential, request: bytes) -> tuple[Granted, ...]:
        """What the request's grants allow; nothing where the credential needs none."""
        message, points = check(request)
        if credential.grant_keys is None:
            return ()
        granted = self._verifier.granted(credential.grant_keys, tokens(message))
        # The warehouse copies them to each point.
        _check_unfolded(points * sum(len(one.customer_id) + len(one.agent_id) + 24 for one in granted), len(request))
        return granted

    async def decoded(self, size: int, work: Callable[[], T]) -> T:
        """The result of work on so many bytes of a request, which does not hold up the other requests."""
        if size <= LARGE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def count(self, refused: Refused | None) -> None:
        """Count a finished request."""
        if refused is None:
            self.counts.accepted += 1
        elif refused.kind.retry:
            self.counts.failed += 1
        else:
            self.counts.refused += 1


def check(request: bytes) -> tuple[Any, int]:
    """The parsed request and its number of points.

    Raises Refused for what is no ExportMetricsServiceRequest, or more than the warehouse can be asked to unfold.
    """
    if len(request) > REQUEST_BYTES:
        raise Refused(TOO_LARGE, f"a request has at most {REQUEST_BYTES} bytes, decompressed: send smaller batches")
    try:
        # ClickHouse decodes it later and would take garbage in silence: what it cannot take must not get in.
        message = ExportMetricsServiceRequest.FromString(request)
    except DecodeError as problem:
        raise Refused(MALFORMED, f"this is no ExportMetricsServiceRequest: {problem}") from None
    return message, _check_extent(message, len(request))


def _check_extent(message: Any, size: int) -> int:
    items = unfolded = points = 0

    def counted(found: Any) -> Any:
        """Counted before any of it is looked at: that is what takes time."""
        nonlocal items
        items += len(found)
        if items > REQUEST_ITEMS:
            raise Refused(
                TOO_LARGE,
                f"a request has at most {REQUEST_ITEMS} resources, scopes, metrics, points and exemplars together: "
                "send smaller batches",
            )
        return found

    for resource in counted(message.resource_metrics):
        shared = _attribute_bytes(resource.resource)
        for scope in counted(resource.scope_metrics):
            for metric in counted(scope.metrics):
                for point in counted(_points(metric)):
                    points += 1
                    rows = len(counted(getattr(point, "exemplars", ())))  # a summary's points have none
                    unfolded += (shared + _attribute_bytes(point)) * max(rows, 1)
    _check_unfolded(unfolded, size)
    return points


def _check_unfolded(unfolded: int, size: int) -> None:
    limit = UNFOLDED_BYTES + UNFOLDED_TIMES * size
    if unfolded > limit:
        raise Refused(
            TOO_LARGE,
            f"the attributes of resources and points, repeated for each exemplar, or the grants for each point, are "
            f"{unfolded} bytes and may be {limit}: send smaller batches, or smaller attributes",
        )


def _points(metric: Any) -> Any:
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else ()


def _attribute_bytes(holder: Any) -> int:
    if len(holder.attributes) > ATTRIBUTES:
        raise Refused(TOO_LARGE, f"a resource or a point has at most {ATTRIBUTES} attributes")
    return sum(attribute.ByteSize() for attribute in holder.attributes)
