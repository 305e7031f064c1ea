"""Foreign metrics of a request, and the limit on how many distinct series of them a credential reports in an hour.

A series of a foreign metric is state in the warehouse for as long as it reports. Meterhouse's own events have their
identity in themselves; their series cost nothing and have no limit.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from meterhouse.vocabulary import METRIC_PREFIX
from meterhouse_collector.extents import points
from meterhouse_collector.refusals import SERIES, Refused

SERIES_PER_HOUR: Final = 100_000


def foreign_metrics(message: Any) -> frozenset[str]:
    """The names of the metrics of an ExportMetricsServiceRequest that do not hold Meterhouse's own events."""
    return frozenset(
        metric.name
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if _is_foreign(metric)
    )


class SeriesLimit:
    """Counts distinct series by credential since the full hour. Used by several threads."""

    def __init__(self, limit: int = SERIES_PER_HOUR, clock_s: Callable[[], float] = time.time) -> None:
        self._limit, self._clock_s = limit, clock_s
        self._lock = threading.Lock()
        self._hour = 0
        self._seen: dict[str, set[int]] = {}

    def check(self, credential_id: str, message: Any) -> None:
        """Count the request's series. Raises Refused, and counts none, where they are too many."""
        found = _series(message)
        with self._lock:
            hour = int(self._clock_s() // 3600)
            if hour != self._hour:
                self._hour, self._seen = hour, {}
            known = self._seen.setdefault(credential_id, set())
            new = found - known
            if len(known) + len(new) > self._limit:
                raise Refused(
                    SERIES,
                    f"a key reports at most {self._limit} distinct series of foreign metrics in an hour: leave out "
                    " attributes whose values are many, or raise METERHOUSE_SERIES_PER_HOUR",
                )
            known |= new


def _series(message: Any) -> set[int]:
    # Two that have the same hash count as one: a limit may be off by that.
    found: set[int] = set()
    for resource in message.resource_metrics:
        of = resource.resource.SerializeToString()
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if _is_foreign(metric):
                    for point in points(metric):
                        attributes = frozenset(one.SerializeToString() for one in point.attributes)
                        found.add(hash((of, metric.name, attributes)))
    return found


def _is_foreign(metric: Any) -> bool:
    return not (
        metric.name.startswith(METRIC_PREFIX)
        and metric.WhichOneof("data") == "sum"
        and metric.sum.is_monotonic
        and metric.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    )
