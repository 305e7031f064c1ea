"""Usage from a file, as the events that a collector takes: CSV with a header, or one JSON object a line.

Every row becomes one usage event whose id follows from what the row says (but not how much) and how many rows like it
came before. So the same file again adds nothing, and a file with another quantity is a conflict and not more usage.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA, NumberDataPoint

from meterhouse import vocabulary as v
from meterhouse_store.meters import counted_whole, how_to_declare
from meterhouse_store.numbers import D, plain

POINT_COLUMNS: Final = {
    "customer_id": v.CUSTOMER_ID, "agent_id": v.AGENT_ID, "agent_name": v.AGENT_NAME, "provider": v.PROVIDER,
    "model": v.RESPONSE_MODEL, "operation": v.OPERATION, "tool": v.TOOL_NAME, "modality": v.MODALITY,
    "cache_ttl": v.CACHE_TTL, "service_tier": v.SERVICE_TIER, "status": v.STATUS,
}  # fmt: skip
EVENT_COLUMNS: Final = {
    "call_id": v.CALL_ID, "task_id": v.TASK_ID, "conversation_id": v.CONVERSATION_ID, "step": v.STEP,
    "response_id": v.RESPONSE_ID, "request_id": v.REQUEST_ID, "lease_id": v.LEASE_ID, "usage_source": v.USAGE_SOURCE,
}  # fmt: skip
"""Columns of `events` and the attributes that carry them, on the point and on the exemplar."""

REQUIRED: Final = ("customer_id", "meter", "quantity", "event_time")
BY: Final = "import.by"
WHY: Final = "import.why"
_OWN: Final = "attributes."
_MAX_BYTES: Final = 256
_MAX_QUANTITY: Final = Decimal(10**15)
_OLDEST: Final = timedelta(days=400)
_AHEAD: Final = timedelta(days=1)
_EVENTS_PER_REQUEST: Final = 500
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MISTAKES: Final = 100


class FileRefused(ValueError):
    """A file with mistakes, all of them (at most a hundred), each with its line."""


@dataclass(frozen=True)
class Event:
    """One event to send: `point` and `exemplar` are its attributes."""

    meter: str
    event_id: str
    time_ns: int
    quantity: Decimal
    point: Mapping[str, str]
    exemplar: Mapping[str, str] = field(default_factory=dict)
    span: tuple[str, str] = ("", "")


def batch_of(file: Path) -> str:
    """The name of an import: the beginning of the file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def read(file: Path, meters: Mapping[str, Any], now: datetime, told: Mapping[str, str]) -> list[Event]:
    """The events of the file, each with the attributes `told`. Raises FileRefused, OSError."""
    if not file.is_file() and file.exists():
        raise FileRefused(f"{file} is no file that can be read twice, as an import is: save it to one first")
    found: list[Event] = []
    mistakes: list[str] = []
    alike: Counter[str] = Counter()
    names: dict[str, int] = {}
    for line, row in _rows(file):
        wrong = _mistakes(row, meters, now)
        if not wrong:
            event = _event(row, now, told, alike)
            if event.event_id in names:
                wrong = [f"event_id: {event.event_id} is that of line {names[event.event_id]}"]
            names.setdefault(event.event_id, line)
            found.append(event)
        mistakes += [f"line {line}: {one}" for one in wrong]
        if len(mistakes) >= _MISTAKES:
            break
    if mistakes:
        raise FileRefused("\n".join(mistakes[:_MISTAKES]))
    if not found:
        raise FileRefused(f"{file} has no rows")
    return found


def requests(events: Sequence[Event], sender: str) -> Iterator[bytes]:
    """OTLP requests of 500 events; `sender` becomes their service.name."""
    iterator = iter(events)
    while chunk := list(islice(iterator, _EVENTS_PER_REQUEST)):
        yield _request(chunk, sender)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            if file.suffix.lower() in (".jsonl", ".ndjson"):
                for number, line in enumerate(text, 1):
                    if line.strip():
                        yield number, _object(number, line)
                return
            rows = csv.DictReader(text, strict=True)
            for row in rows:
                if None in row or None in row.values():
                    raise FileRefused(f"line {rows.line_num}: it has not as many fields as the header")
                yield rows.line_num, row
    except UnicodeDecodeError:
        raise FileRefused(f"{file} is not a text file in UTF-8") from None
    except csv.Error as problem:
        raise FileRefused(f"{file} is no CSV file: {problem}") from None


def _object(number: int, line: str) -> dict[str, str]:
    try:
        found = json.loads(line, parse_float=str, parse_int=str)
    except ValueError as problem:
        raise FileRefused(f"line {number}: no JSON object: {problem}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str | None) for value in found.values()):
        raise FileRefused(f"line {number}: a JSON object of texts and numbers, such as {{...}} with {REQUIRED}")
    return {name: value for name, value in found.items() if value is not None}


def _mistakes(row: Mapping[str, str], meters: Mapping[str, Any], now: datetime) -> list[str]:
    """All that is wrong with a row."""
    known = {*REQUIRED, *POINT_COLUMNS, *EVENT_COLUMNS, "event_id"}
    strange = sorted(name for name in row if name not in known and not name.startswith(_OWN))
    found = [f"there is no column {name}: own ones are called {_OWN}NAME" for name in strange]
    given = {name: row[name] for name in REQUIRED if row.get(name, "").strip()}
    found += [f"{name} is missing" for name in REQUIRED if name not in given]
    found += [f"{name} is longer than {_MAX_BYTES} bytes" for name in row if len(row[name].encode()) > _MAX_BYTES]
    meter = given.get("meter", "").removeprefix(v.METRIC_PREFIX)
    if meter and meter not in meters:
        found.append(f"meter: {meter} is not declared: {how_to_declare(meter)}")
    readers: tuple[tuple[str, Callable[[str], object]], ...] = (
        ("event_time", lambda text: _time_ns(text, now)),
        ("quantity", lambda text: _quantity(text, meter)),
    )
    for name, read in readers:
        try:
            if name in given:
                read(given[name])
        except ValueError as problem:
            found.append(str(problem))
    if (own := row.get("event_id", "")) and not _EVENT_ID.fullmatch(own):
        found.append("event_id: 1 to 64 characters of A-Z, a-z, 0-9, _ and -")
    return found


def _event(row: Mapping[str, str], now: datetime, told: Mapping[str, str], alike: Counter[str]) -> Event:
    """The event of a row without mistakes."""
    meter = row["meter"].removeprefix(v.METRIC_PREFIX)
    time_ns, quantity = _time_ns(row["event_time"], now), _quantity(row["quantity"], meter)
    point = {key: row[name] for name, key in POINT_COLUMNS.items() if row.get(name)}
    own = {name.removeprefix(_OWN): value for name, value in row.items() if name.startswith(_OWN) and value}
    exemplar = {key: row[name] for name, key in EVENT_COLUMNS.items() if row.get(name)} | own | dict(told)
    given = row.get("event_id", "")
    says = json.dumps(
        [meter, time_ns, {k: w for k, w in sorted(row.items()) if w and k not in ("quantity", "event_time")}]
    )
    alike[says] += 1
    event_id = given or "import-" + hashlib.sha256(f"{says}{alike[says]}".encode()).hexdigest()[:40]
    return Event(meter, event_id, time_ns, quantity, {v.STATUS: v.OK} | point, exemplar)


def _time_ns(text: str, now: datetime) -> int:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"event_time: {text!r} is no time such as 2026-10-01T12:00:00Z") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    if not now - _OLDEST < moment < now + _AHEAD:
        raise ValueError("event_time: more than 400 days ago, or more than a day ahead, which no collector takes")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _quantity(text: str, meter: str) -> Decimal:
    try:
        found = D(text.strip())
    except ValueError:
        raise ValueError(f"quantity: {text!r} is no number") from None
    exact = found == found.to_integral_value() or Decimal(repr(float(found))) == found
    if found < 0 or found > _MAX_QUANTITY or found != round(found, 9) or not exact:
        raise ValueError(f"quantity: {text} is not from 0 to 10^15 with at most nine decimals that a double can hold")
    if meter in counted_whole() and found != found.to_integral_value():
        raise ValueError(f"quantity: {text} is part of a unit, and {meter} counts whole ones")
    return found


def _request(chunk: Sequence[Event], sender: str) -> bytes:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(_texts({"service.name": sender}))
    metrics = resource.scope_metrics.add().metrics
    by_meter: dict[str, Any] = {}
    points: dict[tuple[Any, ...], NumberDataPoint] = {}
    for event in chunk:
        whole = event.quantity == event.quantity.to_integral_value()
        key = (event.meter, whole, *sorted(event.point.items()))
        if event.meter not in by_meter:
            by_meter[event.meter] = metrics.add(name=v.METRIC_PREFIX + event.meter).sum
            by_meter[event.meter].aggregation_temporality = AGGREGATION_TEMPORALITY_DELTA
            by_meter[event.meter].is_monotonic = True
        if key not in points:
            points[key] = by_meter[event.meter].data_points.add(time_unix_nano=event.time_ns)
            points[key].attributes.extend(_texts(event.point))
        exemplar = points[key].exemplars.add(
            time_unix_nano=event.time_ns, trace_id=bytes.fromhex(event.span[0]), span_id=bytes.fromhex(event.span[1])
        )
        exemplar.filtered_attributes.extend(_texts({v.EVENT_ID: event.event_id} | dict(event.exemplar)))
        if whole:
            exemplar.as_int = int(event.quantity)
            points[key].as_int += int(event.quantity)
        else:
            exemplar.as_double = float(event.quantity)
            points[key].as_double += float(event.quantity)
    return request.SerializeToString()


def _texts(values: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in values.items()]


def totals(events: Sequence[Event]) -> list[tuple[str, str, int, Decimal, int, int]]:
    """Per customer and meter: events, quantity, first and last time in ns."""
    found: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        found.setdefault((event.point[v.CUSTOMER_ID], event.meter), []).append(event)
    return [
        (
            *key,
            len(of_key),
            sum((it.quantity for it in of_key), Decimal(0)),
            min(it.time_ns for it in of_key),
            max(it.time_ns for it in of_key),
        )
        for key, of_key in sorted(found.items())
    ]


def amended(row: Mapping[str, Any], quantity: str) -> Event:
    """The copy of a row of `usage` (with `key_ns`) with another quantity. Raises ValueError where that cannot be."""
    number = _quantity(quantity, row["meter"])
    problems: dict[str, Callable[[], bool]] = {
        "its quantity is that already": lambda: row["quantity"] == number,
        f"it came from {row['source']}, whose quantities are worked out: retract it, and import what is true": lambda: (
            row["source"] != "meterhouse"
        ),
        "it was assigned to another customer: retract it, and import what is true": lambda: (
            row["billed_customer_id"] != row["customer_id"]
        ),
        "it counts once whenever it is told, and is always 1: retract it instead": lambda: row["key_ns"] == 0,
    }
    for sentence, applies in problems.items():
        if applies():
            raise ValueError(f"event {row['event_id']} cannot be amended: {sentence}")
    point = {key: str(row[name]) for name, key in POINT_COLUMNS.items() if row[name]}
    exemplar = {key: str(row[name]) for name, key in EVENT_COLUMNS.items() if row[name]} | dict(row["attributes"])
    span = (str(row["trace_id"]), str(row["span_id"]))
    exemplar["import.amends"] = plain(row["quantity"])
    return Event(row["meter"], row["event_id"], row["key_ns"], number, point, exemplar, span)
