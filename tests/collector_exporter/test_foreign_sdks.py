"""Stock OpenTelemetry SDKs, without anything of Meterhouse, through the real collector into usage."""

import pytest
from collector_samples import wait_projected
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor


def metric_exporter(collector, protocol, temporality):
    preferred = {Counter: temporality, Histogram: temporality}
    headers = {"authorization": f"Bearer {collector.key}"}
    if protocol == "grpc":
        return GrpcMetrics(
            endpoint=f"http://{collector.grpc}", insecure=True, headers=headers, preferred_temporality=preferred
        )
    return HttpMetrics(endpoint=f"{collector.http}/v1/metrics", headers=headers, preferred_temporality=preferred)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("temporality", [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])
def test_a_counter_and_a_token_histogram_of_a_stock_sdk_count_exactly(
    shared_collector, shared_database, protocol, temporality
):
    name = f"pages.{protocol}.{temporality.name.lower()}"
    customer = f"sdk-{protocol}-{temporality.name.lower()}"
    exporter = metric_exporter(shared_collector, protocol, temporality)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader])
    meter = provider.get_meter("shop")
    pages, tokens = meter.create_counter(name), meter.create_histogram("gen_ai.client.token.usage")
    unnamed = meter.create_counter(f"{name}.unnamed")
    for amount in (3, 4, 5):
        pages.add(amount, {"customer.id": customer})
        tokens.record(100 * amount, {"customer.id": customer, "gen_ai.token.type": "input"})
        unnamed.add(amount)
        assert provider.force_flush()
    provider.shutdown()
    wait_projected(shared_database)
    query = (
        f"SELECT meter, toInt64(sum(quantity)) FROM usage WHERE customer_id = '{customer}' GROUP BY meter ORDER BY 1"
    )
    assert shared_database.query(query).result_rows == [("llm.tokens.input", 1200), (name, 12)]
    query = f"SELECT reason, toInt64(sum(quantity)) FROM suspense WHERE meter = '{name}.unnamed' GROUP BY reason"
    assert shared_database.query(query).result_rows == [("source_unsupported", 12)]


def test_spans_of_a_stock_sdk_count_their_innermost_calls(shared_collector, shared_database):
    exporter = OTLPSpanExporter(
        endpoint=f"{shared_collector.http}/v1/traces", headers={"authorization": f"Bearer {shared_collector.key}"}
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("agent")
    usage = {"customer.id": "sdk-spans", "gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4}
    with (
        tracer.start_as_current_span("invoke_agent", attributes=usage | {"gen_ai.operation.name": "invoke_agent"}),
        tracer.start_as_current_span("ChatOpenAI", attributes=usage | {"gen_ai.operation.name": "chat"}),
        tracer.start_as_current_span("POST"),
    ):
        said = usage | {"gen_ai.operation.name": "chat", "gen_ai.prompt.0.content": "a secret"}
        with tracer.start_as_current_span("chat gpt-5", attributes=said):
            assert trace.get_current_span().is_recording()
    provider.shutdown()
    wait_projected(shared_database)
    columns = "meter, toInt64(quantity), mapContains(attributes, 'gen_ai.prompt.0.content')"
    query = f"SELECT {columns} FROM usage WHERE customer_id = 'sdk-spans' ORDER BY meter"
    assert shared_database.query(query).result_rows == [
        ("llm.requests", 1, False),
        ("llm.tokens.input", 30, False),
        ("llm.tokens.output", 4, False),
    ]
    query = "SELECT count() FROM set_aside WHERE customer_id = 'sdk-spans' AND reason = 'twin'"
    assert shared_database.query(query).first_row == (3,)
