"""Spans of GenAI instrumentations: an LLM call becomes rows, one per meter; every span is kept as a link of its trace.

Whether a span is the call itself or repeats another one takes other records to know: see twins.py.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meterhouse.vocabulary import (
    CUSTOMER_ID,
    FAILED,
    LLM_REQUESTS,
    NO_USAGE,
    OK,
    REASON_BAD_IDENTIFIER,
    REASON_BAD_QUANTITY,
    REASON_FRACTION,
    REASON_SOURCE_UNSUPPORTED,
    REASON_TIME_OUT_OF_RANGE,
    REPORTED,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_INPUT,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
)
from meterhouse_collector.foreign import conventions, numbers
from meterhouse_collector.foreign.attributes import Attributes, digest, printed
from meterhouse_collector.foreign.columns import OF_SPANS, Origin, origin_of
from meterhouse_collector.foreign.judging import UNAUTHORISED, Judge
from meterhouse_collector.foreign.mapping import Mapping
from meterhouse_collector.foreign.numbers import Number
from meterhouse_collector.foreign.rows import Event, Rows, Span
from meterhouse_collector.records import Record

SOURCE: Final = "otel.span"
TOKENS_TOTAL: Final = "llm.tokens.total"
"""Of a span that tells only the total: it cannot be priced, and is held in suspense."""
METERS: Final = (
    LLM_REQUESTS,
    TOKENS_INPUT,
    TOKENS_CACHE_READ,
    TOKENS_CACHE_WRITE,
    TOKENS_OUTPUT,
    TOKENS_REASONING,
    TOKENS_TOTAL,
)
_ERROR: Final = 2  # STATUS_CODE_ERROR of trace.proto
_NOUGHT: Final = Decimal(0)
_LATEST_NS: Final = 2**63 - 1

Quantity = tuple[str, Decimal, str, str]
"""Meter, quantity, what was told, and why it does not count."""


def span_rows(record: Record, mapping: Mapping, found: Rows) -> None:
    """Add the rows of a record's spans to what was found."""
    judge = Judge(record)
    for resource in ExportTraceServiceRequest.FromString(record.traces).resource_spans:
        origin = origin_of(resource.resource)
        for scope in resource.scope_spans:
            for span in scope.spans:
                _add(record, judge, mapping, origin, span, found)


def _add(record: Record, judge: Judge, mapping: Mapping, origin: Origin, span: Any, found: Rows) -> None:
    attributes = Attributes(span.attributes)
    columns = OF_SPANS.read(attributes, {})
    customer_id = _customer(mapping, attributes, origin)
    time_ns = span.end_time_unix_nano or span.start_time_unix_nano
    event_time = time_ns if judge.time_fits(time_ns) else judge.received_ns
    reason = judge.customer(customer_id, columns.get("agent_id", ""), time_ns)
    may_report = reason not in UNAUTHORISED
    if _is_bad(mapping, attributes, origin, span):
        reason = REASON_BAD_IDENTIFIER
    has_usage, is_call = conventions.has_usage(attributes), conventions.is_call(attributes)
    link = Span(
        namespace=record.namespace,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_time=min(span.start_time_unix_nano, _LATEST_NS),
        end_time=min(span.end_time_unix_nano, _LATEST_NS),
        is_call=is_call,
        has_usage=has_usage,
        may_report=may_report,
        provider=columns.get("provider", ""),
        response_id=columns.get("response_id", ""),
        customer_id=customer_id,
        event_time=event_time,
        received_at=judge.received_ns,
    )
    found.spans.append(link)
    if not is_call:
        return
    others = attributes.others(OF_SPANS)
    if not judge.time_fits(time_ns):
        others = {"meterhouse.raw_time_unix_nano": str(time_ns)} | others
    common: dict[str, Any] = columns | {
        "namespace": record.namespace,
        "customer_id": customer_id,
        "event_id": event_id(span),
        "event_time": event_time,
        "source": SOURCE,
        "status": columns.get("status") or (FAILED if span.status.code == _ERROR else OK),
        "usage_source": REPORTED if has_usage else NO_USAGE,
        "trace_id": link.trace_id,
        "span_id": link.span_id,
        "credential_id": record.credential_id,
        "received_at": judge.received_ns,
        "segment": record.segment,
        "record_id": record.record_id,
        "process_id": origin.process_id,
        "service_name": origin.service_name,
        "attributes": others,
    }
    late = "" if judge.time_fits(time_ns) else REASON_TIME_OUT_OF_RANGE
    for meter, quantity, raw, bad in _quantities(attributes):
        why = reason or bad or (REASON_FRACTION if numbers.is_fraction(meter, quantity) else late)
        found.events.append(
            Event(
                meter=meter,
                quantity=quantity,
                raw_value=raw if why else "",
                reason=why,
                first=judge.first(why),
                **common,
            )
        )


def event_id(span: Any) -> str:
    """`<trace id>-<span id>`; of a span whose ids are none, what it says."""
    if _has_ids(span):
        return f"{span.trace_id.hex()}-{span.span_id.hex()}"
    return f"span-{digest(span.SerializeToString(deterministic=True))}"


def _quantities(attributes: Attributes) -> Iterator[Quantity]:
    """What a call counts under each meter; of the disjoint meters only those of which it used some."""
    yield LLM_REQUESTS, Decimal(1), "1", ""
    told = {names: _first(attributes, names) for names in conventions.ALL}
    yield from _disjoint(
        told[conventions.INPUT],
        TOKENS_INPUT,
        {TOKENS_CACHE_READ: told[conventions.CACHE_READ], TOKENS_CACHE_WRITE: told[conventions.CACHE_WRITE]},
    )
    yield from _disjoint(told[conventions.OUTPUT], TOKENS_OUTPUT, {TOKENS_REASONING: told[conventions.REASONING]})
    total = told[conventions.TOTAL]
    if total is not None and told[conventions.INPUT] is None and told[conventions.OUTPUT] is None:
        yield TOKENS_TOTAL, total.value or _NOUGHT, total.raw, REASON_SOURCE_UNSUPPORTED


def _disjoint(whole: Number | None, meter: str, parts: dict[str, Number | None]) -> Iterator[Quantity]:
    """The parts of a number of tokens, and what is left of it without them."""
    left = None if whole is None else whole.value
    for of_part, part in parts.items():
        if part is None:
            continue
        if part.value is None:
            yield of_part, _NOUGHT, part.raw, REASON_BAD_QUANTITY
        elif part.value:
            yield of_part, part.value, part.raw, ""
        left = None if left is None or part.value is None else left - part.value
    if whole is None:
        return
    if left is None or left < 0:
        # A part that is no number, or larger than the whole: what is left of it is not known.
        yield meter, _NOUGHT if left is None else whole.value or _NOUGHT, whole.raw, REASON_BAD_QUANTITY
    elif left:
        yield meter, left, whole.raw, ""


def _first(attributes: Attributes, names: tuple[str, ...]) -> Number | None:
    """The number of the first of these attributes that is there."""
    for name in names:
        told = attributes.number(name)
        if told is not None:
            return _number(told)
    return None


def _number(told: int | float | str) -> Number:
    if isinstance(told, str):
        digits = told.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 16):
            return Number(None, printed(told[:256]))
        told = int(digits)
    return numbers.of_integer(told) if isinstance(told, int) else numbers.of_double(told)


def _customer(mapping: Mapping, attributes: Attributes, origin: Origin) -> str:
    if mapping.span_customer and (mapped := attributes.text(mapping.span_customer)):
        return mapped
    return attributes.text(CUSTOMER_ID) or origin.attributes.text(CUSTOMER_ID)


def _is_bad(mapping: Mapping, attributes: Attributes, origin: Origin, span: Any) -> bool:
    return (
        not _has_ids(span)
        or origin.is_bad
        or attributes.has_duplicates
        or OF_SPANS.holds_bad(attributes, (mapping.span_customer,))
        or attributes.is_bad(mapping.span_customer, or_integer=True)
    )


def _has_ids(span: Any) -> bool:
    return len(span.trace_id) == 16 and len(span.span_id) == 8 and any(span.trace_id) and any(span.span_id)
