"""Requests of other sources than Meterhouse's own, as records of the journal."""

from collector_samples import CUMULATIVE, DELTA, RECEIVED_NS, attributes
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meterhouse_collector.records import Record

SECOND_NS = 1_000_000_000
START_NS = RECEIVED_NS - 1000 * SECOND_NS
"""When the processes of these tests began, and their credentials: point times are seconds after that."""


def metrics_record(request, number=1, *, received_ns=RECEIVED_NS, valid_from_ns=START_NS, allowed=(), **more):
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return Record(
        "key-1",
        "live",
        tuple(allowed),
        received_ns,
        f"{number:032x}",
        "a-1.seg",
        raw,
        valid_from_ns=valid_from_ns,
        **more,
    )


def traces_record(request, number=1, *, received_ns=RECEIVED_NS, valid_from_ns=START_NS, allowed=(), **more):
    return Record(
        "key-1",
        "live",
        tuple(allowed),
        received_ns,
        f"{number:032x}",
        "a-1.seg",
        b"",
        traces=request.SerializeToString(),
        valid_from_ns=valid_from_ns,
        **more,
    )


def sum_of(*points, name="pages.read", customer="acme", kind=DELTA, monotonic=True, start_ns=START_NS, **keys):
    """A Sum with points (second, value) of one series."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=name)
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = kind, monotonic
    for second, value in points:
        point = metric.sum.data_points.add(start_time_unix_nano=start_ns, time_unix_nano=START_NS + second * SECOND_NS)
        if value is not None:
            setattr(point, "as_double" if isinstance(value, float) else "as_int", value)
        point.attributes.extend(attributes(({"customer.id": customer} if customer else {}) | keys))
    return request


def total_of(*points, **more):
    """A cumulative Sum."""
    return sum_of(*points, kind=CUMULATIVE, **more)


def tokens_of(*points, token_type="input", kind=DELTA, exponential=False, customer="acme", start_ns=START_NS, **keys):
    """A histogram gen_ai.client.token.usage with points (second, sum)."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="gen_ai.client.token.usage")
    data = metric.exponential_histogram if exponential else metric.histogram
    data.aggregation_temporality = kind
    for second, value in points:
        point = data.data_points.add(
            start_time_unix_nano=start_ns, time_unix_nano=START_NS + second * SECOND_NS, count=1, sum=value
        )
        named = {"gen_ai.token.type": token_type} | ({"customer.id": customer} if customer else {})
        point.attributes.extend(attributes(named | keys))
    return request


def span(number, *, trace=1, parent=None, second=1, until=None, customer="acme", name="chat", status=0, **keys):
    """One span as a request; `keys` with dots are given by a dict in `more`."""
    request = ExportTraceServiceRequest()
    found = request.resource_spans.add().scope_spans.add().spans.add(name=name)
    found.trace_id, found.span_id = trace.to_bytes(16), number.to_bytes(8)
    if parent is not None:
        found.parent_span_id = parent.to_bytes(8)
    found.start_time_unix_nano = START_NS + second * SECOND_NS
    found.end_time_unix_nano = START_NS + (second + 1 if until is None else until) * SECOND_NS
    found.status.code = status
    more = keys.pop("more", {})
    found.attributes.extend(attributes(({"customer.id": customer} if customer else {}) | more | keys))
    return request


def call(tokens_in=100, tokens_out=40, response_id="", provider="openai", **more):
    """The attributes of a span of one call by OpenTelemetry's conventions."""
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.usage.input_tokens": tokens_in,
        "gen_ai.usage.output_tokens": tokens_out,
    } | more
    return found | ({"gen_ai.response.id": response_id} if response_id else {})
