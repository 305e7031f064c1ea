// An agent that is not in Python, billed through Meterhouse by nothing but OpenTelemetry's own JavaScript SDK: a counter,
// a customer on each measurement, and an OTLP exporter with Meterhouse's address and key.
import { metrics } from '@opentelemetry/api';
import { AggregationTemporalityPreference } from '@opentelemetry/exporter-metrics-otlp-http';
import { OTLPMetricExporter } from '@opentelemetry/exporter-metrics-otlp-proto';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics';

const endpoint = process.env.METERHOUSE_ENDPOINT ?? 'http://127.0.0.1:4318';
const exporter = new OTLPMetricExporter({
  url: `${endpoint.replace(/\/$/, '')}/v1/metrics`,
  headers: { Authorization: `Bearer ${process.env.METERHOUSE_API_KEY}` },
  // Each export says what was added since the last one, so a process that ends takes nothing along but its last export.
  temporalityPreference: AggregationTemporalityPreference.DELTA,
});
const provider = new MeterProvider({
  resource: resourceFromAttributes({ 'service.name': 'translator', 'service.instance.id': crypto.randomUUID() }),
  readers: [new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 5000 })],
});
metrics.setGlobalMeterProvider(provider);

const pages = metrics.getMeter('translator').createCounter('translator.pages', {
  unit: '{page}',
  description: 'pages translated',
});

// The agent's work. What it says of usage is the last line: how many pages, for whom.
async function translate(customer, text) {
  const translated = text.split('\f').map((page) => page.split('').reverse().join(''));
  pages.add(translated.length, { 'customer.id': customer, 'gen_ai.agent.name': 'translator' });
  return translated;
}

await translate('acme', 'one\ftwo\fthree');
await translate('globex', 'only one');
await translate('acme', 'four\ffive');

// Without this the last measurements are lost with the process.
await provider.shutdown();
