"""OTLP over gRPC: the same bytes to the same intake, without decoding them into objects first."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.http_protocol import Connections
from meterhouse_collector.intake import Intake
from meterhouse_collector.refusals import MALFORMED, NOT_FOUND, OVERLOADED, TIMEOUT, Refused
from meterhouse_collector.signals import LOGS_SERVICE, METRICS, NO_LOGS, NO_METHOD, TRACES, Signal

BODY_S: Final = 60.0
"""From the call to the end of its one message."""
METADATA_BYTES: Final = 16 * 2**10
STREAMS: Final = 128
"""Calls at once on one connection."""
_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def grpc_server(
    intake: Intake,
    address: str,
    credentials: Any = None,
    *,
    connections: int = 2000,
    calls_per_address: int = 1000,
    body_s: float = BODY_S,
) -> tuple[Any, int]:
    """A server that is not started yet, and the port it has; `credentials` are those of ServerTls.

    gRPC tells us of calls and not of connections: an address is limited in the calls that it has under way.

    Raises RuntimeError when the address is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", REQUEST_BYTES),  # held after decompression
            # Otherwise a second collector would share the port, and requests would go to either.
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", connections),
            ("grpc.max_concurrent_streams", STREAMS),  # of one connection
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_connection_idle_ms", 300_000),
            # Ends whatever hangs on a connection. Clients connect anew by themselves.
            ("grpc.max_connection_age_ms", 1_800_000),
            ("grpc.max_connection_age_grace_ms", 60_000),
            # A peer that is gone is noticed; one that pings more than every ten seconds is sent away.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 3),
        ]
    )
    # Without deserializer and serializer the handler gets and gives bytes. As a handler of a stream, of which there is
    # one message, it sees the call before the message is read: a wrong key costs nothing more, and there is a timeout.
    calls = Connections(connections * STREAMS, calls_per_address, "calls")
    methods = {signal.service: _Export(intake, signal, body_s, calls).export for signal in (METRICS, TRACES)}
    handlers = tuple(
        grpc.method_handlers_generic_handler(service, {"Export": grpc.stream_unary_rpc_method_handler(method)})
        for service, method in methods.items()
    )
    server.add_generic_rpc_handlers((*handlers, _Elsewhere(intake)))
    if credentials is None:
        return server, server.add_insecure_port(address)
    return server, server.add_secure_port(address, credentials)


class _Export:
    def __init__(self, intake: Intake, signal: Signal, body_s: float, calls: Connections) -> None:
        self._intake, self._signal, self._body_s, self._calls = intake, signal, body_s, calls

    async def export(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        try:
            with self._intake.counted() as outcome, self._slot(context.peer()):
                outcome.credential = await self._intake.authenticate(metadata.get("authorization"))
                request = await self._only(requests)
                outcome.bytes = len(request)
                with self._intake.room() as room:
                    room.take(len(request))
                    outcome.items = await self._intake.accept(outcome.credential, self._signal, request)
        except Refused as refused:
            await context.abort(_STATUS_CODES[refused.kind.grpc_status], refused.detail, _trailers(refused))
        return b""  # an empty response of either signal

    @contextmanager
    def _slot(self, peer: str) -> Iterator[None]:
        """One of the calls that an address may have. Raises Refused."""
        address = peer.rpartition(":")[0]  # ipv4:192.0.2.1:4711
        if why := self._calls.enter(address):
            raise Refused(OVERLOADED, why)
        try:
            yield
        finally:
            self._calls.leave(address)

    async def _only(self, requests: AsyncIterator[bytes]) -> bytes:
        """The call's message. Raises Refused where it is not one."""
        only = None
        try:
            async with asyncio.timeout(self._body_s):
                async for request in requests:
                    if only is not None:
                        raise Refused(MALFORMED, "the call has several messages; it has to have one")
                    only = request
        except TimeoutError:
            raise Refused(TIMEOUT, f"the request took longer than {self._body_s:g} s") from None
        if only is None:
            raise Refused(MALFORMED, "the call has no message; it has to have one")
        return only


class _Elsewhere(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes the calls that nobody else does, and refuses them."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call."""
        why = NO_LOGS if handler_call_details.method.startswith(f"/{LOGS_SERVICE}/") else NO_METHOD

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> bytes:
            self._intake.turned_away(NOT_FOUND)
            await context.abort(_STATUS_CODES[NOT_FOUND.grpc_status], why)  # raises
            return b""

        return grpc.stream_unary_rpc_method_handler(refuse)


def _trailers(refused: Refused) -> tuple[tuple[str, bytes], ...]:
    if not refused.kind.retry:
        return ()
    retry = RetryInfo(retry_delay=Duration(seconds=1))
    detail = AnyMessage()
    detail.Pack(retry)
    status = Status(code=refused.kind.grpc_status, message=refused.detail, details=[detail])
    # Python clients read the first, Go, .NET and Rust the second.
    return (
        ("google.rpc.retryinfo-bin", retry.SerializeToString()),
        ("grpc-status-details-bin", status.SerializeToString()),
    )
