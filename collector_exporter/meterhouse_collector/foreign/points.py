"""Data points of metrics that are not Meterhouse's own: each becomes one row, or one per meter that it counts under."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse.vocabulary import (
    CUSTOMER_ID,
    METRIC_PREFIX,
    REASON_BAD_IDENTIFIER,
    REASON_BAD_QUANTITY,
    REASON_EXEMPLARS_MISSING,
    REASON_FRACTION,
    REASON_OVERFLOW,
    REASON_SOURCE_UNSUPPORTED,
    REASON_TIME_OUT_OF_RANGE,
)
from meterhouse_collector.foreign import genai, numbers
from meterhouse_collector.foreign.attributes import Attributes, canonical, digest, printed
from meterhouse_collector.foreign.columns import OF_POINTS, Origin, origin_of
from meterhouse_collector.foreign.detection import CUMULATIVE, DELTA, is_ours
from meterhouse_collector.foreign.judging import Judge
from meterhouse_collector.foreign.mapping import Mapping, Rule
from meterhouse_collector.foreign.numbers import Number, is_fraction
from meterhouse_collector.foreign.rows import CumulativePoint, Event, Rows
from meterhouse_collector.records import Record
from meterhouse_store.decisions import POINT

_OVERFLOW: Final = "otel.metric.overflow"
_NOUGHT: Final = Decimal(0)
_ONE: Final = Decimal(1)
_HISTOGRAMS: Final = ("histogram", "exponential_histogram")


@dataclass(frozen=True, slots=True)
class _Target:
    """What the points of a metric count as; `reason` is why they do not, whatever else they say."""

    parts: tuple[genai.Part, ...]
    rule: Rule | None = None
    reason: str = ""
    resource_customer: bool = False
    """The customer may stand on the resource."""


@dataclass(frozen=True, slots=True)
class _Series:
    """Where a metric stands, and the bytes that name it."""

    origin: Origin
    name: str
    named: bytes
    kind: str
    temporality: int
    is_monotonic: bool

    @property
    def is_total(self) -> bool:
        """Its points are running totals."""
        return self.temporality == CUMULATIVE and self.is_monotonic

    @property
    def is_counted(self) -> bool:
        """Its points can be usage at all: they only add up."""
        return self.is_monotonic and self.temporality in (DELTA, CUMULATIVE)


def metric_rows(record: Record, mapping: Mapping, found: Rows) -> None:
    """Add the rows of a record's metrics to what was found."""
    judge = Judge(record)
    for series, point in _points(record.metrics):
        _Point(record, judge, mapping, series, point).add_to(found)


def _points(request: bytes) -> Iterator[tuple[_Series, Any]]:
    for resource in ExportMetricsServiceRequest.FromString(request).resource_metrics:
        origin = origin_of(resource.resource)
        for scope in resource.scope_metrics:
            of_scope = digest(
                canonical(resource.resource.attributes),
                scope.scope.name.encode(),
                scope.scope.version.encode(),
                canonical(scope.scope.attributes),
            ).encode()
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is None or is_ours(metric):
                    continue
                data = getattr(metric, kind)
                series = _Series(
                    origin,
                    metric.name,
                    of_scope,
                    kind,
                    getattr(data, "aggregation_temporality", 0),
                    # A histogram of what is never negative only adds up, as a monotonic sum does.
                    data.is_monotonic if kind == "sum" else kind in _HISTOGRAMS,
                )
                for point in data.data_points:
                    yield series, point


class _Point:
    """One point on its way to its rows."""

    def __init__(self, record: Record, judge: Judge, mapping: Mapping, series: _Series, point: Any) -> None:
        self._record, self._judge, self._series, self._point = record, judge, series, point
        self._attributes = Attributes(point.attributes)
        self._target = self._find_target(mapping)
        # In a record of before there was a mapping each point is a row of its own, as it was then.
        self._is_total = series.is_total and record.valid_from_ns != 0
        self._series_id = digest(
            series.named,
            series.name.encode(),
            f"{series.kind}.{series.temporality}".encode(),
            canonical(point.attributes),
        )
        self._time_ns = point.time_unix_nano
        self._time_fits = judge.time_fits(self._time_ns)

    def add_to(self, found: Rows) -> None:
        scale = self._target.rule.scale if self._target.rule else _ONE
        told = self._number()
        number = numbers.times(told, scale)
        common = self._common()
        reason = self._reason(common["customer_id"], common.get("agent_id", ""))
        orderable = self._time_fits and self._point.start_time_unix_nano <= self._time_ns
        if not reason and number.value is None:
            reason = REASON_BAD_QUANTITY
        elif not reason and not self._is_total and self._has_fraction(number):
            reason = REASON_FRACTION
        elif not reason and not (orderable if self._is_total else self._time_fits):
            reason = REASON_TIME_OUT_OF_RANGE
        common |= {"reason": reason, "first": self._judge.first(reason), "raw_value": self._raw(number, reason)}
        for part, (meter, sign) in enumerate(self._target.parts):
            if self._is_total and number.value is not None and told.value is not None and orderable:
                found.points.append(self._total(common, meter, part, told.value, sign * scale))
            else:
                # A running total that cannot be put in order says nothing: the next point covers its increase.
                quantity = _NOUGHT if self._is_total or number.value is None else sign * number.value
                found.events.append(Event(meter=meter, quantity=quantity, **common))

    def _has_fraction(self, number: Number) -> bool:
        """Whether it is part of a unit of a meter that has whole ones only; of a total its increases may be."""
        return any(is_fraction(meter, number.value) for meter, _ in self._target.parts)

    def _total(self, common: dict[str, Any], meter: str, part: int, value: Decimal, factor: Decimal) -> CumulativePoint:
        start_ns = self._point.start_time_unix_nano
        return CumulativePoint(
            meter=meter,
            quantity=_NOUGHT,
            series=self._series_id,
            start_time=min(start_ns, 2**63 - 1),
            part=part,
            value=value,
            factor=factor,
            # A point without a start, or of no duration, stands for a sequence that goes on from an unknown one
            # (OpenTelemetry's metrics data model, cumulative streams: handling unknown start time).
            from_zero=self._record.valid_from_ns <= start_ns < self._time_ns and start_ns > 0,
            **common,
        )

    def _find_target(self, mapping: Mapping) -> _Target:
        name = self._series.name
        own = name.removeprefix(METRIC_PREFIX) if name != METRIC_PREFIX else name
        own = printed(own if len(name.encode()) <= 256 else own[:64])
        unsupported = _Target(((own, 1),), reason=REASON_SOURCE_UNSUPPORTED)
        if not self._series.is_counted or not self._record.valid_from_ns:
            return unsupported
        overflow = REASON_OVERFLOW if _OVERFLOW in self._attributes else ""
        rule = mapping.rule_for(name)
        if rule is not None:
            meter = ((rule.meter, 1),) if rule.meter else self._built_in() or ((own, 1),)
            return _Target(meter, rule, overflow, resource_customer=True)
        if parts := self._built_in():
            return _Target(parts, reason=overflow)
        if self._series.kind != "sum":
            return unsupported
        if name.startswith(METRIC_PREFIX) and name != METRIC_PREFIX:
            # A processor made totals of our own events: an event that was sent again is in them twice.
            stripped = REASON_EXEMPLARS_MISSING if self._series.origin.process_id else ""
            return _Target(((own, 1),), reason=stripped or overflow, resource_customer=True)
        if overflow or CUSTOMER_ID in self._attributes:
            return _Target(((own, 1),), reason=overflow)
        return unsupported

    def _built_in(self) -> tuple[genai.Part, ...]:
        token_type = self._attributes.text(genai.TOKEN_TYPE)
        return genai.parts(self._series.name, self._series.kind, token_type)

    def _number(self) -> Number:
        point = self._point
        if self._series.kind in ("sum", "gauge"):
            return numbers.of_point(point)
        if self._target.rule is not None and self._target.rule.value == "count":
            return numbers.of_integer(point.count)
        has_sum = self._series.kind == "summary" or point.HasField("sum")
        return numbers.of_double(point.sum) if has_sum and not point.flags & 1 else numbers.NONE

    def _raw(self, number: Number, reason: str) -> str:
        """What the point said, where the row does not count, or counts something else."""
        if not reason and not number.rounded:
            return ""
        is_number = self._series.kind in ("sum", "gauge")
        return number.raw if is_number else f"{number.raw} sum of {self._point.count}"

    def _common(self) -> dict[str, Any]:
        rule, origin = self._target.rule, self._series.origin
        columns = OF_POINTS.read(self._attributes, rule.attributes if rule else {})
        customer_key = (rule.customer if rule else "") or CUSTOMER_ID
        customer_id = self._attributes.text(customer_key)
        if not customer_id and self._target.resource_customer:
            customer_id = origin.attributes.text(customer_key)
        start_ns, time_ns = self._point.start_time_unix_nano, self._time_ns
        others = self._attributes.others(OF_POINTS)
        if not self._time_fits:
            others = {"meterhouse.raw_time_unix_nano": str(time_ns)} | others
        return columns | {
            "namespace": self._record.namespace,
            "customer_id": customer_id,
            "event_id": f"{POINT}{digest(self._series_id.encode(), start_ns.to_bytes(8), time_ns.to_bytes(8))}",
            "event_time": time_ns if self._time_fits else self._judge.received_ns,
            "source": f"otel.{self._series.kind}",
            "credential_id": self._record.credential_id,
            "received_at": self._judge.received_ns,
            "segment": self._record.segment,
            "record_id": self._record.record_id,
            "process_id": origin.process_id,
            "service_name": origin.service_name,
            "attributes": others,
        }

    def _reason(self, customer_id: str, agent_id: str) -> str:
        if self._target.reason:
            return self._target.reason
        if self._is_bad():
            return REASON_BAD_IDENTIFIER
        return self._judge.customer(customer_id, agent_id, self._time_ns)

    def _is_bad(self) -> bool:
        rule, attributes = self._target.rule, self._attributes
        mapped = [*rule.attributes.values(), rule.customer] if rule else []
        return (
            self._series.origin.is_bad
            or len(self._series.name.encode()) > 256
            or attributes.has_duplicates
            or OF_POINTS.holds_bad(attributes, mapped)
            or any(attributes.is_bad(name, or_integer=True) for name in mapped)
        )
