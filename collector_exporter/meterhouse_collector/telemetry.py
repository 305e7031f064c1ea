"""The collector's own metrics: counted at little cost, shown as Prometheus text, pushed as OTLP where wanted.

There is nothing of a request in them: labels are reason codes, never customers, keys or names that a sender chose.
"""

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from meterhouse_collector.door_settings import DoorSettings

PREFIX: Final = "meterhouse_collector_"
PUSH_S: Final = 30.0
BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

log = logging.getLogger(__name__)


class Histogram:
    """Durations in seconds. One thread records, others read: what they see may lack the last one."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum = 0.0

    def record(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it stands; `kind` is counter, gauge or histogram. `points`: (labels, value)."""

    name: str
    kind: str
    meaning: str
    points: tuple[tuple[dict[str, str], float | Histogram], ...]


@dataclass(slots=True)
class Figures:
    """What the doors and the journal count. received = accepted + refused + failed."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0
    events: int = 0
    turned_away: dict[str, int] = field(default_factory=dict)
    acknowledged_s: Histogram = field(default_factory=Histogram)
    fsync_s: Histogram = field(default_factory=Histogram)
    started_ns: int = field(default_factory=time.time_ns)

    def count(self, code: str, retry: bool, events: int, seconds: float) -> None:
        """A request that is finished; `code` '' where it was accepted."""
        if not code:
            self.accepted += 1
            self.events += events
            self.acknowledged_s.record(seconds)
            return
        if retry:
            self.failed += 1
        else:
            self.refused += 1
        self.turned_away[code] = self.turned_away.get(code, 0) + 1

    def timed(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        """`sync` with its duration recorded."""

        def timed(descriptor: int) -> None:
            started = time.perf_counter()
            sync(descriptor)
            self.fsync_s.record(time.perf_counter() - started)

        return timed

    def metrics(self) -> list[Metric]:
        """As they stand."""
        away = tuple(({"code": code}, float(number)) for code, number in sorted(self.turned_away.copy().items()))
        return [
            counter("requests_accepted_total", "requests acknowledged, on disk", self.accepted),
            counter("requests_refused_total", "requests refused for good (key, size, encoding)", self.refused),
            counter("requests_failed_total", "requests to be sent again (overload, disk, time)", self.failed),
            counter("events_accepted_total", "exemplars, points without them, and spans acknowledged", self.events),
            Metric("requests_turned_away_total", "counter", "requests refused or failed, by reason", away),
            _histogram("ack_seconds", "from a request's head to its acknowledgement", self.acknowledged_s),
            _histogram("fsync_seconds", "fdatasync of the journal", self.fsync_s),
        ]


def counter(name: str, meaning: str, value: float) -> Metric:
    """A counter without labels."""
    return Metric(name, "counter", meaning, (({}, float(value)),))


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels."""
    return Metric(name, "gauge", meaning, (({}, float(value)),))


def _histogram(name: str, meaning: str, value: Histogram) -> Metric:
    return Metric(name, "histogram", meaning, (({}, value),))


def prometheus(metrics: Iterable[Metric]) -> str:
    """Prometheus text format 0.0.4."""
    lines = []
    for metric in metrics:
        name = PREFIX + metric.name
        lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}"]
        for labels, value in metric.points:
            if isinstance(value, Histogram):
                lines += _buckets(name, value)
            else:
                text = ",".join(f'{key}="{label}"' for key, label in labels.items())
                lines.append(f"{name}{{{text}}} {value:.15g}" if text else f"{name} {value:.15g}")
    return "\n".join(lines) + "\n"


def _buckets(name: str, histogram: Histogram) -> list[str]:
    counts, total, lines = list(histogram.counts), 0, []
    for bound, count in zip([*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"], counts, strict=True):
        total += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
    return [*lines, f"{name}_sum {histogram.sum:.15g}", f"{name}_count {total}"]


class Push:
    """A thread that sends the metrics every half minute with the stock OTLP/HTTP exporter, and once at the end."""

    def __init__(self, settings: DoorSettings, read: Callable[[], list[Metric]], instance: str) -> None:
        self._settings, self._read, self._instance = settings, read, instance
        self._started_ns = time.time_ns()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin, where an endpoint is set."""
        if self._settings.otel_exporter_otlp_endpoint:
            self._thread.start()

    def stop(self) -> None:
        """Send a last time and end; waits for two seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def _run(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        endpoint = str(self._settings.otel_exporter_otlp_endpoint).rstrip("/")
        pairs = (pair.partition("=") for pair in self._settings.otel_exporter_otlp_headers.split(",") if pair)
        exporter = OTLPMetricExporter(
            endpoint=f"{endpoint}/v1/metrics",
            headers={name.strip(): value.strip() for name, _, value in pairs},
            timeout=10,
        )
        last = False
        while not last:
            last = self._stop.wait(PUSH_S)
            try:
                exporter.export(self._data())
            # Whatever it is: nobody but this thread would miss it, and it is only about ourselves.
            except Exception as problem:  # noqa: BLE001
                log.warning("the collector's own metrics cannot be sent: %s", type(problem).__name__)

    def _data(self) -> Any:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        now = time.time_ns()
        resource = Resource({"service.name": "meterhouse-collector", "service.instance.id": self._instance})
        found = [_otlp(metric, self._started_ns, now) for metric in self._read()]
        scope = ScopeMetrics(InstrumentationScope("meterhouse_collector"), found, "")
        return MetricsData([ResourceMetrics(resource, [scope], "")])


def _otlp(metric: Metric, started_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics import export

    cumulative = export.AggregationTemporality.CUMULATIVE
    data: Any
    if metric.kind == "histogram":
        data = export.Histogram([_distribution(value, started_ns, now_ns) for _, value in metric.points], cumulative)
    else:
        points = [
            export.NumberDataPoint(labels, started_ns if metric.kind == "counter" else 0, now_ns, value)
            for labels, value in metric.points
            if not isinstance(value, Histogram)
        ]
        data = export.Sum(points, cumulative, True) if metric.kind == "counter" else export.Gauge(points)
    unit = "s" if metric.name.endswith("seconds") else "By" if metric.name.endswith("bytes") else "1"
    # OpenTelemetry's names have no _total: that is Prometheus' way of saying counter.
    name = f"meterhouse.collector.{metric.name.removesuffix('_total')}"
    return export.Metric(name, metric.meaning, unit, data)


def _distribution(histogram: Any, started_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    counts = list(histogram.counts)
    # Smallest and largest are not kept: the bounds say as much.
    return HistogramDataPoint({}, started_ns, now_ns, sum(counts), histogram.sum, counts, list(BOUNDS_S), 0, 0)
