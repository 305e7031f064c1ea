"""The two signals that the doors take, and what differs between them on the wire."""

from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Signal:
    """`path` is that of OTLP/HTTP, `service` that of OTLP/gRPC, `message` the class of a request.

    The reply to both is an empty message: no bytes in Protobuf, `{}` in JSON. It never has a partial_success.
    """

    path: str
    service: str
    message: Any


METRICS: Final = Signal(
    "/v1/metrics", "opentelemetry.proto.collector.metrics.v1.MetricsService", ExportMetricsServiceRequest
)
TRACES: Final = Signal("/v1/traces", "opentelemetry.proto.collector.trace.v1.TraceService", ExportTraceServiceRequest)

ADDRESSES: Final = "metrics go to POST /v1/metrics, traces to POST /v1/traces"
NO_LOGS: Final = "logs are not taken: usage goes to metrics (POST /v1/metrics) or traces (POST /v1/traces)"
NO_METHOD: Final = "there is no such method: OTLP's MetricsService and TraceService are taken, each with Export"
LOGS_PATH: Final = "/v1/logs"
LOGS_SERVICE: Final = "opentelemetry.proto.collector.logs.v1.LogsService"
