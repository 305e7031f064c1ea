"""An agent under an instrumentation of somebody else: each kind of call once, for a customer named after mode and kind.

    python foreign_openai_agent.py INSTRUMENTATION MODE       # with OTEL_EXPORTER_OTLP_* and OPENAI_* set

What the span processor does is what the baggage processor of OpenTelemetry does: it puts the customer on every span.
"""

import asyncio
import importlib
import sys
from contextlib import nullcontext
from contextvars import ContextVar

import openai
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

INSTRUMENTORS = {
    "openai-v2": ["opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor"],
    "openllmetry": ["opentelemetry.instrumentation.openai:OpenAIInstrumentor"],
    "openinference": ["openinference.instrumentation.openai:OpenAIInstrumentor"],
    "openinference-langchain": ["openinference.instrumentation.langchain:LangChainInstrumentor"],
    "openinference-both": [
        "openinference.instrumentation.openai:OpenAIInstrumentor",
        "openinference.instrumentation.langchain:LangChainInstrumentor",
    ],
}
MESSAGES = [{"role": "user", "content": "hello"}]
customer = ContextVar("customer", default="")


class Customers(SpanProcessor):
    """Puts the customer on every span."""

    def on_start(self, span, parent_context=None):
        span.set_attribute("customer.id", customer.get())


def chat(client):
    client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES)


def stream(client):
    options = {"include_usage": True}
    list(client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES, stream=True, stream_options=options))


def asynchronous(_client):
    asyncio.run(openai.AsyncOpenAI().chat.completions.create(model="gpt-5-mini", messages=MESSAGES))


def embeddings(client):
    client.embeddings.create(model="text-embedding-3-small", input="hello")


def responses(client):
    client.responses.create(model="gpt-5-mini", input="hello")


def langchain(_client):
    from langchain_openai import ChatOpenAI

    with trace.get_tracer("agent").start_as_current_span("agent"):
        ChatOpenAI(model="gpt-5-mini").invoke("hello")


KINDS = [chat, stream, asynchronous, embeddings, responses]


def main(instrumentation, mode):
    """Make the calls and send everything off."""
    traces = TracerProvider()
    if mode != "metrics":
        traces.add_span_processor(Customers())
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(traces)
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=3_600_000)])
    metrics.set_meter_provider(meters)
    is_beside = mode in ("before", "after")
    if mode == "before":
        MeterhouseInstrumentor().instrument(skip_dep_check=True)
    for name in INSTRUMENTORS[instrumentation]:
        module, _, instrumentor = name.partition(":")
        getattr(importlib.import_module(module), instrumentor)().instrument()
    if mode == "after":
        MeterhouseInstrumentor().instrument(skip_dep_check=True)
    client = openai.OpenAI()
    for kind in KINDS if instrumentation in ("openai-v2", "openllmetry", "openinference") else [langchain]:
        name = f"{instrumentation}-{mode}-{kind.__name__}"
        customer.set(name)
        with meterhouse.customer(name) if is_beside else nullcontext():
            kind(client)
    traces.shutdown()
    meters.shutdown()
    if is_beside:
        assert meterhouse.runtime.flush(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
