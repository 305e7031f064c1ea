"""OTLP over gRPC: the same bytes to the same intake, without decoding them into objects first."""

from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from meterhouse_collector.intake import REQUEST_BYTES, Intake
from meterhouse_collector.refusals import Refused

_SERVICE: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def grpc_server(intake: Intake, address: str) -> tuple[Any, int]:
    """A server that is not started yet, and the port it has. Raises RuntimeError when the address is taken."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", REQUEST_BYTES),  # held after decompression
            # Otherwise a second collector would share the port, and requests would go to either.
            ("grpc.so_reuseport", 0),
        ]
    )
    # Without deserializer and serializer the handler gets and gives bytes.
    handler = grpc.unary_unary_rpc_method_handler(_Export(intake).export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
    return server, server.add_insecure_port(address)


class _Export:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def export(self, request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        try:
            credential = await self._intake.authenticate(metadata.get("authorization"))
            await self._intake.accept(credential, request)
        except Refused as refused:
            self._intake.count(refused)
            await context.abort(_STATUS_CODES[refused.kind.grpc_status], refused.detail, _trailers(refused))
        self._intake.count(None)
        return b""  # an empty ExportMetricsServiceResponse


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
