"""An exporter class for an OpenTelemetry metrics pipeline that exists already.

    reader = PeriodicExportingMetricReader(MeterhouseMetricExporter())

or `OTEL_METRICS_EXPORTER=otlp,meterhouse`, where an OpenTelemetry distribution configures the SDK from the environment.
It is for instruments of your own. Events of Meterhouse's instrumentation have their own way out, with a journal.
"""

from typing import Any

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Counter
from opentelemetry.sdk.metrics.export import AggregationTemporality

from meterhouse.delivery import TIMEOUT_S, Session
from meterhouse.settings import Destination, destination, why_nowhere
from meterhouse.vocabulary import ENV_API_KEY, ENV_ENDPOINT


class MeterhouseMetricExporter(OTLPMetricExporter):
    """The stock OTLP/HTTP exporter for Meterhouse: its address and key, delta counters, no other vendor's headers.

    `endpoint` is the collector's base URL; without it METERHOUSE_ENDPOINT and METERHOUSE_API_KEY say where, or a local
    `meterhouse up`. Raises ValueError where none of them does. What the stock exporter gives up on is lost: it keeps no
    journal, see docs/otlp.md.
    """

    def __init__(self, endpoint: str | None = None, api_key: str | None = None, **options: Any) -> None:
        goal = Destination(endpoint, api_key) if endpoint else destination()
        if goal is None:
            raise ValueError(
                f"no collector is known ({why_nowhere()}): pass endpoint and api_key, or set {ENV_ENDPOINT} and "
                f"{ENV_API_KEY}"
            )
        own: dict[str, Any] = {
            "timeout": TIMEOUT_S,
            "compression": Compression.Gzip,
            "preferred_temporality": {Counter: AggregationTemporality.DELTA},
        }
        super().__init__(endpoint=goal.metrics_url, session=Session(goal), **{**own, **options})
