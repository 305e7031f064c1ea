// Exports one counter with one of the SDK's exporters: node conformance.mjs proto|http|grpc URL KEY delta|cumulative
import { AggregationTemporalityPreference, OTLPMetricExporter as Json } from '@opentelemetry/exporter-metrics-otlp-http';
import { OTLPMetricExporter as Proto } from '@opentelemetry/exporter-metrics-otlp-proto';
import { OTLPMetricExporter as Grpc } from '@opentelemetry/exporter-metrics-otlp-grpc';
import { MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics';
import grpc from '@grpc/grpc-js';

const [, , kind, url, key, temporality] = process.argv;
const temporalityPreference = AggregationTemporalityPreference[temporality.toUpperCase()];
const headers = { Authorization: `Bearer ${key}` };
const metadata = new grpc.Metadata();
metadata.set('authorization', headers.Authorization);
const exporter =
  kind === 'grpc'
    ? new Grpc({ url, metadata, temporalityPreference })
    : new { proto: Proto, http: Json }[kind]({ url, headers, temporalityPreference, compression: 'gzip' });
const results = [];
const send = exporter.export.bind(exporter);
exporter.export = (found, done) => send(found, (result) => (results.push(result.code), done(result)));
const provider = new MeterProvider({
  readers: [new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 600_000 })],
});
const counter = provider.getMeter('test').createCounter('test.calls');
counter.add(2, { 'customer.id': 'acme', n: 7, part: 0.5, ok: true, list: ['a', 'b'] });
await provider.forceFlush().catch(() => {});
counter.add(3, { 'customer.id': 'acme', n: 7, part: 0.5, ok: true, list: ['a', 'b'] });
await provider.shutdown().catch(() => {});
console.log(JSON.stringify(results));
