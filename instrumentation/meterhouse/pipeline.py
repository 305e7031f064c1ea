"""Usage events as OpenTelemetry counters: a private MeterProvider in which every measurement becomes an exemplar.

Private because the global provider is set once, by whoever comes first, and knows neither our views nor our exporter.
"""

import inspect
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import (
    AlwaysOnExemplarFilter,
    Counter,
    Exemplar,
    ExemplarReservoir,
    MeterProvider,
    ObservableCounter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meterhouse.events import UsageEvent, counts, cut, measurement, series
from meterhouse.vocabulary import METRIC_PREFIX, POINT_ATTRIBUTES

SERIES_LIMIT = 1_000_000
"""Above what the 500 events of a batch can make; the SDK's own 2,000 would strip customers of their names."""

_TIME = "meterhouse.carried.event_time"
_TRACE = "meterhouse.carried.trace_id"
_SPAN = "meterhouse.carried.span_id"


class KeepAll(ExemplarReservoir):
    """Keeps every measurement and gives it the time and the span that it carries instead of those of the call."""

    def __init__(self, **_: Any) -> None:
        self._lock = threading.Lock()
        self._offered: list[tuple[int | float, dict[str, Any]]] = []

    def offer(self, value: int | float, time_unix_nano: int, attributes: Any, context: Context) -> None:
        with self._lock:
            self._offered.append((value, dict(attributes)))

    def collect(self, point_attributes: Any) -> list[Exemplar]:
        with self._lock:
            offered, self._offered = self._offered, []
        return [self._exemplar(value, attributes, point_attributes) for value, attributes in offered]

    @staticmethod
    def _exemplar(value: int | float, attributes: dict[str, Any], point: Mapping[str, Any]) -> Exemplar:
        event_time_ns = attributes.pop(_TIME)
        trace_id, span_id = attributes.pop(_TRACE, None), attributes.pop(_SPAN, None)
        return Exemplar(
            {key: item for key, item in attributes.items() if key not in point},
            value,
            event_time_ns,
            int(span_id, 16) if span_id else None,
            int(trace_id, 16) if trace_id else None,
        )


class Pipeline:
    """Counters under one resource: `add` events, `collect` what was added since, as delta points; safe for threads.

    A quantity that does not count (negative, NaN, beyond 10^15) has a point to itself, with the value as a double: a
    counter would drop it without a word or carry it into a sum that OTLP has no room for, and with it all others.
    """

    def __init__(self, resource: Mapping[str, str]) -> None:
        self.resource = {key: cut(str(value)) for key, value in resource.items()}
        delta: dict[type, AggregationTemporality] = {
            Counter: AggregationTemporality.DELTA,
            ObservableCounter: AggregationTemporality.DELTA,
        }
        self._reader = InMemoryMetricReader(preferred_temporality=delta)
        self._provider = MeterProvider(
            [self._reader],
            resource=Resource(dict(self.resource)),
            exemplar_filter=AlwaysOnExemplarFilter(),
            shutdown_on_exit=False,
            views=[_view()],
        )
        # OTEL_SDK_DISABLED switches the host's telemetry off; what is billed must not vanish with it.
        if getattr(self._provider, "_disabled", False):
            self._provider._disabled = False
        self._meter = self._provider.get_meter("meterhouse")
        self._counters: dict[str, Any] = {}
        self._added: list[UsageEvent] = []
        # One lock over adding and collecting: older SDKs can put an exemplar into another interval than its value.
        self._lock = threading.Lock()

    def add(self, events: Sequence[UsageEvent]) -> None:
        """Count the events. Raises what the SDK raises for a name or a value; `collect` then empties the pipeline."""
        with self._lock:
            self._added.extend(events)
            for event in events:
                if not counts(event.quantity):
                    continue
                attributes: dict[str, Any] = dict(measurement(event))
                attributes[_TIME] = event.event_time_ns
                if event.trace_id and event.span_id:
                    attributes[_TRACE], attributes[_SPAN] = f"{event.trace_id:x}", f"{event.span_id:x}"
                self._counter(event.meter).add(event.quantity, attributes)

    def collect(self) -> tuple[MetricsData | None, list[UsageEvent]]:
        """The points since the last time and the events in them."""
        with self._lock:
            added, self._added = self._added, []
            if not added:
                return None, []
            counted = self._reader.get_metrics_data()
        # One resource and one scope: the stock encoder keeps only the last of those that are equal.
        of_resource = counted.resource_metrics if counted is not None else []
        metrics = [metric for one in of_resource for scope in one.scope_metrics for metric in scope.metrics]
        metrics += [_apart(event) for event in added if not counts(event.quantity)]
        scope_metrics = ScopeMetrics(InstrumentationScope("meterhouse"), metrics, "")
        return MetricsData([ResourceMetrics(Resource(dict(self.resource)), [scope_metrics], "")]), added

    def close(self) -> None:
        self._provider.shutdown()

    def _counter(self, meter: str) -> Any:
        counter = self._counters.get(meter)
        if counter is None:
            counter = self._counters[meter] = self._meter.create_counter(METRIC_PREFIX + meter)
        return counter


def _apart(event: UsageEvent) -> Metric:
    """A point of the one event, as its counter would have made it if it took the value."""
    try:
        value = float(event.quantity)
    except OverflowError:  # an integer of more than 308 digits
        value = math.inf if event.quantity > 0 else -math.inf
    point = series(event)
    own = {key: item for key, item in measurement(event).items() if key not in point}
    span_id, trace_id = (event.span_id, event.trace_id) if event.trace_id and event.span_id else (None, None)
    exemplar = Exemplar(own, value, event.event_time_ns, span_id, trace_id)
    now_ns = time.time_ns()
    data = Sum([NumberDataPoint(point, now_ns, now_ns, value, [exemplar])], AggregationTemporality.DELTA, True)
    return Metric(METRIC_PREFIX + event.meter, "", "", data)


def _reservoirs(_aggregation: type) -> Callable[..., ExemplarReservoir]:
    return KeepAll


def _view() -> View:
    options: dict[str, Any] = {}
    if "aggregation_cardinality_limit" in inspect.signature(View.__init__).parameters:  # SDK 1.45 and later
        options["aggregation_cardinality_limit"] = SERIES_LIMIT
    return View(
        instrument_name=METRIC_PREFIX + "*",
        attribute_keys=set(POINT_ATTRIBUTES),
        exemplar_reservoir_factory=_reservoirs,
        **options,
    )
