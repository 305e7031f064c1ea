"""The exporter class for an existing SDK pipeline: the stock SDK around it, a real socket behind it."""

from importlib.metadata import entry_points

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from meterhouse.metric_exporter import MeterhouseMetricExporter


def test_an_existing_pipeline_sends_delta_counters_with_our_key_and_no_other_vendors_headers(sink, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-vendor-key=secret")
    reader = PeriodicExportingMetricReader(MeterhouseMetricExporter(sink.url, "mh_key"), export_interval_millis=60_000)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    pages = provider.get_meter("host").create_counter("pages")
    pages.add(2, {"customer.id": "acme"})
    provider.force_flush()
    pages.add(3, {"customer.id": "acme"})
    provider.shutdown()

    values = []
    for _, body in sink.requests:
        metric = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics[0]
        assert metric.name == "pages" and metric.sum.aggregation_temporality == 1  # DELTA
        values.append(metric.sum.data_points[0].as_int)
    assert values == [2, 3]
    for headers, _ in sink.requests:
        assert headers["Authorization"] == "Bearer mh_key"
        assert "x-vendor-key" not in {name.lower() for name in headers}


def test_without_a_destination_it_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("METERHOUSE_ENDPOINT", "METERHOUSE_DATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="METERHOUSE_ENDPOINT"):
        MeterhouseMetricExporter()


def test_a_distribution_finds_it_by_its_entry_point():
    (entry,) = entry_points(group="opentelemetry_metrics_exporter", name="meterhouse")
    assert entry.load() is MeterhouseMetricExporter
