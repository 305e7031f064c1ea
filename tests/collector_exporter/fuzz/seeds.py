"""Honest requests of every kind, from which fuzzing begins."""

import gzip

import collector_samples as samples
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from target import GRANT_KEY, KINDS, SEGMENT

from meterhouse import grants
from meterhouse_collector.records import Record, encode


def metrics():
    request = samples.request_of(samples.event(3, trace_id=b"t" * 16, span_id=b"s" * 8), samples.event(0.5, "event-2"))
    samples.add_sum(request, [(None, 5, [], {})], name="http.requests", kind=samples.CUMULATIVE, value=7)
    found = request.resource_metrics[0].scope_metrics[0].metrics
    found.add(name="gen_ai.client.token.usage").histogram.data_points.add(count=2, sum=30, explicit_bounds=[1, 10])
    found.add(name="g").gauge.data_points.add(as_double=float("nan"))
    found.add(name="e").exponential_histogram.data_points.add(count=1, zero_count=1)
    found.add(name="s").summary.data_points.add(count=1, sum=2)
    request.resource_metrics[0].resource.attributes.extend(samples.attributes({"service.name": "x", "n": 1, "d": 0.5}))
    token = grants.sign("acme", key=str(GRANT_KEY), expires_in_s=10**9, now_s=0)
    scope = request.resource_metrics[0].scope_metrics[0].scope
    scope.attributes.add(key="meterhouse.grants").value.array_value.values.add(string_value=token)
    return request


def traces():
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add()
    spans.resource.attributes.extend(samples.attributes({"service.name": "x", "secret": "y"}))
    span = spans.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8, name="chat")
    span.attributes.extend(
        samples.attributes(
            {
                "gen_ai.usage.input_tokens": 5,
                "llm.token_count.prompt": "5",
                "gen_ai.prompt": "p",
                "customer.id": "é" * 200,
            }
        )
    )
    span.attributes.add(key="gen_ai.usage.x").value.kvlist_value.values.add(key="a").value.bool_value = True
    span.events.add(name="e")
    span.links.add(trace_id=b"l" * 16)
    return request


def seeds():
    """Name -> bytes, by the kinds of target.py."""
    raw = {ExportMetricsServiceRequest: metrics(), ExportTraceServiceRequest: traces()}
    sent = {
        "metrics": raw[ExportMetricsServiceRequest].SerializeToString(),
        "traces": raw[ExportTraceServiceRequest].SerializeToString(),
        "metrics json": MessageToJson(raw[ExportMetricsServiceRequest], indent=None).encode(),
        "traces json": MessageToJson(raw[ExportTraceServiceRequest], indent=None).encode(),
    }
    # OTLP has ids in hex, Protobuf's JSON in base64.
    sent["metrics json"] = sent["metrics json"].replace(b"dHR0dHR0dHR0dHR0dHR0dA==", b"74" * 16)
    sent["traces json"] = sent["traces json"].replace(b"dHR0dHR0dHR0dHR0dHR0dA==", b"74" * 16)
    for text in (b"c3Nzc3Nzc3M=", b"cHBwcHBwcHA=", b"bGxsbGxsbGxsbGxsbGxsbA=="):
        sent = {kind: body.replace(text, b"73" * 8) for kind, body in sent.items()}
    sent["metrics gzip"] = gzip.compress(sent["metrics"])
    sent["traces gzip"] = gzip.compress(sent["traces"])
    sent["granted metrics"] = sent["metrics"]
    record = Record("c", "live", ("acme",), 5, "0" * 32, SEGMENT, sent["metrics"])
    sent["journal"] = encode(record) * 2
    return {kind.replace(" ", "-"): bytes([KINDS.index(kind)]) + body for kind, body in sent.items()}
