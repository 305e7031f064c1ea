"""`meterhouse replay`: real requests from a CSV file as usage events, with times and customers given by a stated rule.

Row i (from 0, in file order) is one call: an event of llm.requests with quantity 1, and one each of llm.tokens.input
and llm.tokens.output unless the row has 0 of them. Time is stretched linearly from [first, last] of the file onto
[period_start, period_end). The customer is number i modulo n of the cycle, in which `a:3,b:1` stands as a a a b. Ids
follow from the file's SHA-256, the plan, the row and the meter: the same command again sends the same events, another
period or other customers are other usage. An OTel counter can only say "now", so the requests are encoded here, by the
contract that agents follow (docs/contracts.md, section 1).
"""

import csv
import hashlib
import http.client
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA, NumberDataPoint

from meterhouse import vocabulary as v

COLUMNS: Final = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
EVENTS_PER_REQUEST: Final = 500
ATTEMPTS: Final = 20
"""Of one request, a second apart: about what a restart of the collector takes, several times over."""


class BadTrace(ValueError):
    """The file or the customers cannot be used; the text lists the mistakes."""


class SendFailed(RuntimeError):
    """The collector refused a request, or did not take it in time. What was sent stays; sending again is safe."""


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the file; `at_ns` as the file has it."""

    at_ns: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A file's calls, in its order."""

    sha256: str
    calls: list[Call]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a trace becomes usage: the cycle of customers, the half-open period (UTC), and what the calls were."""

    customers: tuple[str, ...]
    period_start: datetime
    period_end: datetime
    provider: str
    model: str
    agent: str


@dataclass(frozen=True, slots=True)
class Event:
    """One usage event."""

    customer_id: str
    meter: str
    event_id: str
    call_id: str
    event_time_ns: int
    quantity: int


def read_trace(file: Path) -> Trace:
    """The calls of a CSV file with the columns TIMESTAMP, ContextTokens, GeneratedTokens. Raises BadTrace, OSError."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadTrace(f"{file} is not a text file in UTF-8") from None
    rows = csv.DictReader(io.StringIO(text))
    if not set(COLUMNS) <= set(rows.fieldnames or ()):
        raise BadTrace(f"{file}: the first line must name the columns {', '.join(COLUMNS)}")
    calls: list[Call] = []
    mistakes: list[str] = []
    for row in rows:
        try:
            calls.append(Call(_ns(row["TIMESTAMP"]), _count(row["ContextTokens"]), _count(row["GeneratedTokens"])))
        except (ValueError, TypeError) as problem:
            mistakes.append(f"line {rows.line_num}: {problem}")
    if mistakes:
        raise BadTrace("\n".join([f"{file} has rows that cannot be read: {len(mistakes)}", *mistakes[:20]]))
    if not calls:
        raise BadTrace(f"{file} has no rows")
    return Trace(hashlib.sha256(data).hexdigest(), calls)


def cycle(text: str) -> tuple[str, ...]:
    """The customers of `a,b,c` or, weighted, `a:3,b:1`, as they take turns. Raises BadTrace."""
    out: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.rpartition(":") if ":" in part else (part, "", "1")
        if not name or not weight.isdecimal() or not 1 <= int(weight) <= 1000 or len(name.encode()) > 256:
            raise BadTrace(f"customers are given as a,b,c or a:3,b:1 with weights from 1 to 1000; {part!r} is neither")
        out += [name] * int(weight)
    if not out:
        raise BadTrace("name at least one customer: --customers acme,globex")
    return tuple(out)


def events(trace: Trace, plan: Plan) -> Iterator[Event]:
    """The usage events of a trace, by row and meter."""
    start_ns, span_ns = _instant_ns(plan.period_start), _instant_ns(plan.period_end) - _instant_ns(plan.period_start)
    first_ns = min(call.at_ns for call in trace.calls)
    length_ns = max(call.at_ns for call in trace.calls) - first_ns + 1
    identity = _identity(trace, plan)
    for number, call in enumerate(trace.calls):
        customer_id = plan.customers[number % len(plan.customers)]
        event_time_ns = start_ns + (call.at_ns - first_ns) * span_ns // length_ns
        call_id = _name(identity, number, "call")
        for meter, quantity in (
            (v.TOKENS_INPUT, call.input_tokens),
            (v.TOKENS_OUTPUT, call.output_tokens),
            (v.LLM_REQUESTS, 1),
        ):
            if quantity:
                event_id = _name(identity, number, meter)
                yield Event(customer_id, meter, event_id, call_id, event_time_ns, quantity)


def totals(found: Iterable[Event]) -> dict[str, Counter[str]]:
    """Units per customer and meter; `events` counts the events."""
    out: dict[str, Counter[str]] = {}
    for event in found:
        counter = out.setdefault(event.customer_id, Counter())
        counter[event.meter] += event.quantity
        counter["events"] += 1
    return out


def requests(found: Iterable[Event], trace: Trace, plan: Plan) -> Iterator[bytes]:
    """OTLP requests of 500 events, each event an exemplar of its customer's and meter's point."""
    iterator = iter(found)
    while chunk := list(islice(iterator, EVENTS_PER_REQUEST)):
        yield _request(chunk, trace, plan)


class Sender:
    """Posts requests to a collector over one connection, with a bounded number of attempts each."""

    def __init__(self, endpoint: str, api_key: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        parts = urlsplit(endpoint)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=30)
        self._path = parts.path.rstrip("/") + "/v1/metrics"
        self._headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {api_key}"}
        self._pause = pause

    def send(self, request: bytes) -> None:
        """Returns when the collector acknowledged the request. Raises SendFailed."""
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(1)
            try:
                self._connection.request("POST", self._path, request, self._headers)
                response = self._connection.getresponse()
                text = response.read().decode(errors="replace")
            except (OSError, http.client.HTTPException) as failure:
                self._connection.close()
                problem = f"{type(failure).__name__}: {failure}"
                continue
            if response.status == 200:
                return
            problem = f"{response.status} {text}"
            if response.status not in (429, 502, 503, 504):
                break
        raise SendFailed(f"the collector did not take a request: {problem}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _request(chunk: list[Event], trace: Trace, plan: Plan) -> bytes:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(
        _texts({"service.name": "meterhouse-replay", v.PROCESS_ID: _name(_identity(trace, plan), 0, "process")})
    )
    metrics = resource.scope_metrics.add().metrics
    points: dict[tuple[str, str], NumberDataPoint] = {}
    for event in chunk:
        point = points.get((event.meter, event.customer_id))
        if point is None:
            metric = next((metric for metric in metrics if metric.name == v.METRIC_PREFIX + event.meter), None)
            if metric is None:
                metric = metrics.add(name=v.METRIC_PREFIX + event.meter)
                metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
                metric.sum.is_monotonic = True
            point = points[event.meter, event.customer_id] = metric.sum.data_points.add(
                start_time_unix_nano=chunk[0].event_time_ns, time_unix_nano=chunk[-1].event_time_ns
            )
            point.attributes.extend(
                _texts(
                    {
                        v.CUSTOMER_ID: event.customer_id,
                        v.AGENT_NAME: plan.agent,
                        v.PROVIDER: plan.provider,
                        v.RESPONSE_MODEL: plan.model,
                        v.OPERATION: "chat",
                        v.STATUS: v.OK,
                    }
                )
            )
        point.as_int += event.quantity
        exemplar = point.exemplars.add(as_int=event.quantity, time_unix_nano=event.event_time_ns)
        exemplar.filtered_attributes.extend(
            _texts({v.EVENT_ID: event.event_id, v.CALL_ID: event.call_id, v.USAGE_SOURCE: v.REPORTED})
        )
    return request.SerializeToString()


def _texts(values: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


def _identity(trace: Trace, plan: Plan) -> str:
    told = (trace.sha256, *plan.customers, plan.period_start.isoformat(), plan.period_end.isoformat())
    return hashlib.sha256("\n".join((*told, plan.provider, plan.model, plan.agent)).encode()).hexdigest()


def _name(identity: str, row: int, what: str) -> str:
    return hashlib.sha256(f"{identity}:{row}:{what}".encode()).hexdigest()[:32]


def _ns(text: str) -> int:
    # datetime has microseconds, the trace has tenths of them.
    whole, _, fraction = text.strip().removesuffix("Z").partition(".")
    at = datetime.fromisoformat(whole)
    if at.tzinfo is not None or not (fraction or "0").isdecimal() or len(fraction) > 9:
        raise ValueError(f"a time looks like 2023-11-16 18:17:03.9799600 (UTC), not {text!r}")
    return _instant_ns(at.replace(tzinfo=UTC)) + int((fraction or "0").ljust(9, "0"))


def _instant_ns(at: datetime) -> int:
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) > 10**15:
        raise ValueError(f"a number of tokens is a whole number from 0 to 10^15, not {text!r}")
    return int(text)
