"""Usage events as the data points of OpenTelemetry counters: delta sums in which every event is an exemplar. Pure.

The points are built here instead of by a MeterProvider. What counters and a reservoir of the SDK make of the same
measurements is the same on the wire, for more CPU, and with traps in between: a limit on the number of series beyond
which customers lose their names, exemplars that land in another interval than their value (1.42), measurements that
vanish when the host sets OTEL_SDK_DISABLED, times and spans of the call instead of the event's own.
"""

import math
import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meterhouse.events import UsageEvent, counts, cut
from meterhouse.vocabulary import EVENT_ID, GRANT, GRANTS, METRIC_PREFIX, POINT_ATTRIBUTES

Series = tuple[tuple[str, str], ...]
Own = Mapping[str, str]


def metrics_data(resource: Mapping[str, str], events: Sequence[UsageEvent]) -> MetricsData:
    """The events as metrics of one resource and one scope (the stock encoder keeps only the last of equal ones).

    A point's value is the sum of its exemplars. A quantity that does not count (negative, NaN, beyond 10^15) has a
    point to itself, as a double: in a sum it would take the others with it.
    """
    points: dict[tuple[str, Series, int], list[tuple[UsageEvent, Own]]] = {}
    divided: dict[int, tuple[Series, Own]] = {}  # by the id of the attributes: events of a call share them
    for index, event in enumerate(events):
        if (division := divided.get(id(event.attributes))) is None:
            division = divided[id(event.attributes)] = _divided(event.attributes)
        series, own = division
        key = event.meter, series, 0 if counts(event.quantity) else index + 1
        points.setdefault(key, []).append((event, own))
    of_meter: dict[str, list[NumberDataPoint]] = {}
    for (meter, series, _), measured in points.items():
        of_meter.setdefault(meter, []).append(_point(series, measured))
    metrics = [Metric(METRIC_PREFIX + meter, "", "", _sum(found)) for meter, found in of_meter.items()]
    grants = sorted({event.attributes[GRANT] for event in events if GRANT in event.attributes})
    # On the scope, once each: what reads the points passes it over, and the collector's door verifies it.
    named = InstrumentationScope("meterhouse", attributes={GRANTS: grants} if grants else None)
    scope = ScopeMetrics(named, metrics, "")
    known = Resource({key: cut(value) for key, value in resource.items()})
    return MetricsData([ResourceMetrics(known, [scope], "")])


def _sum(points: list[NumberDataPoint]) -> Sum:
    return Sum(points, AggregationTemporality.DELTA, True)


def _divided(attributes: Mapping[str, str]) -> tuple[Series, Own]:
    """What the series says of an event, and what its exemplar does."""
    kept = {key: cut(value) for key, value in attributes.items() if key != GRANT}
    series = tuple(sorted((key, value) for key, value in kept.items() if key in POINT_ATTRIBUTES))
    return series, {key: value for key, value in kept.items() if key not in POINT_ATTRIBUTES}


def _point(series: Series, measured: Sequence[tuple[UsageEvent, Own]]) -> NumberDataPoint:
    exemplars = [_exemplar(event, own) for event, own in measured]
    times = [event.event_time_ns for event, _ in measured]
    value = sum(one.value for one in exemplars)
    return NumberDataPoint(dict(series), min(times), max(time.time_ns(), *times), value, exemplars)


def _exemplar(event: UsageEvent, attributes: Own) -> Exemplar:
    """The event with what its series does not say; trace and span id only where there are both."""
    own = {**attributes, EVENT_ID: event.event_id}
    traced = event.trace_id and event.span_id
    span_id, trace_id = (event.span_id, event.trace_id) if traced else (None, None)
    return Exemplar(own, _value(event.quantity), event.event_time_ns, span_id, trace_id)


def _value(quantity: int | float) -> int | float:
    if counts(quantity):
        return quantity
    try:
        return float(quantity)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if quantity > 0 else -math.inf
