"""What fuzzing calls with bytes: the way of a request from the door's bytes to the journal's record.

Bytes are refused in words, or become a record that reads back; nothing else may happen. The first byte says what the
others are. Accepted requests are kept by `accepted`, for the warehouse to decode afterwards.
"""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meterhouse import grants
from meterhouse_collector.credentials import Credentials
from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.extents import REQUEST_BYTES
from meterhouse_collector.intake import Intake
from meterhouse_collector.records import Damaged, Record, decode, encode, frames
from meterhouse_collector.refusals import Refused
from meterhouse_collector.signals import METRICS, TRACES
from meterhouse_collector.spans_allowed import (
    COUNTS,
    OURS,
    RESOURCE_ATTRIBUTES,
    SPAN_ATTRIBUTES,
    TEXT_BYTES,
    reduce_traces,
)
from meterhouse_store.access import Credential

KINDS = (
    "metrics",
    "traces",
    "metrics json",
    "traces json",
    "metrics gzip",
    "traces gzip",
    "journal",
    "granted metrics",
)
GRANT_KEY = grants.Key(grants.HMAC, "0102030405060708", bytes(32))
PLAIN = Credential("fuzz", "live", "fuzz", "", None, datetime(2026, 1, 1, tzinfo=UTC), None)
BOUND = replace(PLAIN, grant_keys=(str(GRANT_KEY),))
SEGMENT = "0badcafe-00000001-12345678.seg"

_intake = Intake(Credentials(list), None)  # its journal is not reached


def one(data):
    """The frame of the record that the bytes become; None where they are refused."""
    if not data:
        return None
    kind, body = KINDS[data[0] % len(KINDS)], bytes(data[1:])
    if kind == "journal":
        return journal(body)
    try:
        entry = accepted(kind, body)
    except Refused as refused:
        assert refused.detail and len(refused.detail) < 20_000
        return None
    record = Record(
        entry.credential_id,
        entry.namespace,
        entry.allowed_customers,
        1_793_491_200_000_000_000,
        "0" * 32,
        SEGMENT,
        entry.metrics,
        entry.grants,
        entry.customers_from,
        entry.traces,
        entry.mapping,
        entry.valid_from_ns,
    )
    frame = encode(record)
    [found] = frames(frame, SEGMENT)
    assert found.intact and found.end == len(frame)
    assert decode(frame[found.body : found.end]) == record
    return frame


def accepted(kind, body):
    """The journal's entry. Raises Refused."""
    signal = TRACES if kind.startswith("traces") else METRICS
    if kind.endswith("gzip"):
        body = gunzip(body, REQUEST_BYTES)
        assert len(body) <= REQUEST_BYTES
    elif kind.endswith("json"):
        body = json_to_protobuf(body, signal)
    if signal is METRICS:
        entry, events = _intake._read_metrics(BOUND if kind.startswith("granted") else PLAIN, body)
        assert entry.metrics == body and not entry.traces
    else:
        entry, events = _intake._read_traces(PLAIN, body)
        assert not entry.metrics
        only_what_is_allowed(entry.traces)
    assert 0 <= events <= 50_000
    return entry


def only_what_is_allowed(traces):
    """Reduced once is reduced for ever, and there is nothing in it that the list does not name."""
    message = ExportTraceServiceRequest.FromString(traces)
    assert reduce_traces(message) == traces
    for resource in message.resource_spans:
        check_attributes(resource.resource.attributes, RESOURCE_ATTRIBUTES)
        for scope in resource.scope_spans:
            assert not scope.scope.attributes and not scope.schema_url
            for span in scope.spans:
                check_attributes(span.attributes, SPAN_ATTRIBUTES)
                assert not (span.events or span.links or span.trace_state or span.status.message)
                assert span.attributes or not span.name


def check_attributes(attributes, allowed):
    for one in attributes:
        assert one.key in allowed or one.key.startswith((*COUNTS, OURS)), one.key
        assert len(one.key.encode()) <= TEXT_BYTES + 4
        assert one.value.WhichOneof("value") in ("string_value", "bool_value", "int_value", "double_value")
        assert len(one.value.string_value.encode()) <= TEXT_BYTES + 4


def journal(data):
    """Any bytes as a segment: they are read to the end, and every intact frame is a record or damaged."""
    at = 0
    for frame in frames(data, SEGMENT):
        assert at <= frame.start <= frame.body <= frame.end <= len(data)
        at = frame.end
        if frame.intact:
            with suppress(Damaged):
                decode(data[frame.body : frame.end])
