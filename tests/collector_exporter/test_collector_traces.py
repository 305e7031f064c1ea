"""Traces through both doors: acknowledged when on disk, reduced before they are, so that nobody's text is stored."""

import gzip
import json
from pathlib import Path

import grpc
import pytest
from collector_samples import attributes, event, request_of
from foreign_samples import call, span
from google.protobuf.json_format import MessageToJson
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from meterhouse import grants
from meterhouse_collector.extents import check_metrics, check_traces
from meterhouse_collector.records import decode, frames
from meterhouse_collector.refusals import MALFORMED, TOO_LARGE, Refused
from meterhouse_collector.series import foreign_metrics
from meterhouse_collector.spans_allowed import reduce_traces
from meterhouse_store import access

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
SECRET = "the prompt that nobody may keep"


def llm_span(keys, *, resource=(), **fields):
    """A request of one span."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add()
    spans.resource.attributes.extend(attributes(resource))
    span = spans.scope_spans.add().spans.add(**{"trace_id": b"t" * 16, "span_id": b"s" * 8, "name": "chat"} | fields)
    span.attributes.extend(attributes(keys))
    return request


def kept(request, further=()):
    """The one span that is left, and its attributes."""
    span = (
        ExportTraceServiceRequest.FromString(reduce_traces(request, further)).resource_spans[0].scope_spans[0].spans[0]
    )
    return span, {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def journalled(collector):
    """The trace requests in the collector's journal, with their records."""
    records = []
    for file in sorted(Path(collector.data, "journal").glob("*.seg")):
        data = file.read_bytes()
        records += [decode(data[frame.body : frame.end]) for frame in frames(data, file.name)]
    return [(record, ExportTraceServiceRequest.FromString(record.traces)) for record in records if record.traces]


def spans_named(collector, name):
    return [
        (record, span)
        for record, request in journalled(collector)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name == name
    ]


def test_of_the_three_conventions_usage_and_identity_are_kept_and_no_text_is():
    allowed = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.response.id": "resp-1",
        "gen_ai.conversation.id": "c-1",
        "gen_ai.agent.name": "support",
        "gen_ai.tool.name": "search",
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 60,
        "gen_ai.usage.reasoning.output_tokens": 25,
        "gen_ai.usage.prompt_tokens": 100,
        "llm.usage.total_tokens": 140,
        "llm.request.type": "chat",
        "traceloop.span.kind": "tool",
        "traceloop.association.properties.customer_id": "acme",
        "openinference.span.kind": "LLM",
        "llm.token_count.prompt": 100,
        "llm.token_count.prompt_details.cache_read": 60,
        "llm.model_name": "gpt-5",
        "llm.provider": "openai",
        "session.id": "c-1",
        "customer.id": "acme",
        "meterhouse.task.id": "t-1",
    }
    texts = dict.fromkeys(
        [
            "gen_ai.prompt.0.content",
            "gen_ai.completion.0.content",
            "gen_ai.input.messages",
            "gen_ai.output.messages",
            "gen_ai.system_instructions",
            "gen_ai.tool.call.arguments",
            "gen_ai.tool.call.result",
            "gen_ai.tool.description",
            "gen_ai.retrieval.query.text",
            "traceloop.entity.input",
            "traceloop.entity.output",
            "traceloop.association.properties.note",
            "input.value",
            "output.value",
            "llm.input_messages.0.message.content",
            "llm.output_messages.0.message.content",
            "llm.prompts",
            "llm.invocation_parameters",
            "tool.parameters",
            "metadata",
            "user.id",
            "gen_ai.user",
            "llm.user",
            "db.statement",
            "url.full",
        ],
        SECRET,
    )
    request = llm_span({**texts, **allowed}, resource={"service.name": "shop", "process.command_line": SECRET})
    request.resource_spans[0].scope_spans[0].scope.name = "openai"
    request.resource_spans[0].scope_spans[0].scope.attributes.extend(attributes({"note": SECRET}))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.parent_span_id, span.kind, span.trace_state = b"p" * 8, 3, SECRET
    span.start_time_unix_nano, span.end_time_unix_nano = 5, 7
    span.status.code, span.status.message = 2, SECRET
    span.events.add(name=SECRET).attributes.extend(attributes({"gen_ai.event.content": SECRET}))
    span.links.add(trace_id=b"l" * 16, span_id=b"l" * 8).attributes.extend(attributes({"note": SECRET}))

    raw = reduce_traces(request)
    assert SECRET.encode() not in raw
    left, found = kept(request)
    assert found == allowed
    assert (left.trace_id, left.span_id, left.parent_span_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert (left.name, left.kind, left.status.code) == ("chat", 3, 2)
    assert (left.start_time_unix_nano, left.end_time_unix_nano) == (5, 7)
    resource = ExportTraceServiceRequest.FromString(raw).resource_spans[0]
    assert [one.key for one in resource.resource.attributes] == ["service.name"]
    assert resource.scope_spans[0].scope.name == "openai"


def test_the_configured_customer_attribute_is_kept_whatever_it_is_called():
    assert kept(llm_span({"user.id": "u-1"}), ["user.id"])[1] == {"user.id": "u-1"}


def test_a_span_without_anything_of_ours_keeps_its_place_in_the_trace_and_not_its_name():
    span, found = kept(llm_span({"url.full": "/users/alice@example.com"}, name="GET /users/alice@example.com"))
    assert (span.name, found, span.span_id) == ("", {}, b"s" * 8)


def test_a_count_that_is_no_number_is_seen_later_and_its_text_is_not_kept():
    request = llm_span({"gen_ai.usage.input_tokens": SECRET, "gen_ai.usage.output_tokens": "12"})
    request.resource_spans[0].scope_spans[0].spans[0].attributes.append(
        KeyValue(key="llm.token_count.prompt", value=AnyValue(bytes_value=SECRET.encode()))
    )
    _, found = kept(request)
    assert found["gen_ai.usage.input_tokens"] != found["gen_ai.usage.input_tokens"]
    assert found["llm.token_count.prompt"] != found["llm.token_count.prompt"]
    assert found["gen_ai.usage.output_tokens"] == "12"


@pytest.mark.parametrize(
    ("answer", "response_id"),
    [
        ('{"id":"chatcmpl-1a","choices":[{"message":{"content":"say \\"id\\": \\"chatcmpl-2b\\""}}]}', "chatcmpl-1a"),
        ('{"choices": [{"content": "\\"id\\": \\"chatcmpl-2b\\""}], "id": "chatcmpl-1a"}', "chatcmpl-1a"),
        ('{"content": [{"id": "msg_3c"}], "response_metadata": {"id": "resp_4d"}}', "resp_4d"),
        ('{"id": "msg_3c", "type": "message"}', "msg_3c"),
        ('{"id": "patient-7", "name": "Ann"}', None),
        ("[" * 200_000, None),
    ],
)
def test_of_the_answer_that_openinference_repeats_only_the_id_of_the_response_is_kept(answer, response_id):
    span = {"openinference.span.kind": "LLM", "output.value": answer, "llm.token_count.prompt": 3}
    _, found = kept(llm_span(span))
    expected = {} if response_id is None else {"gen_ai.response.id": response_id}
    assert found == {"openinference.span.kind": "LLM", "llm.token_count.prompt": 3} | expected
    _, found = kept(llm_span(span | {"gen_ai.response.id": "told"}))
    assert found["gen_ai.response.id"] == "told"
    _, found = kept(llm_span(span | {"openinference.span.kind": "TOOL"}))
    assert "gen_ai.response.id" not in found


def test_an_identifier_that_is_too_long_stays_too_long_and_is_cut():
    _, found = kept(llm_span({"customer.id": "x" * 100_000, "session.id": "é" * 200, "gen_ai.response.id": "y" * 256}))
    assert found["customer.id"] == "x" * 260
    assert found["session.id"] == "é" * 130
    assert found["gen_ai.response.id"] == "y" * 256


def http_exporter(collector):
    return HttpExporter(endpoint=f"{collector.http}/v1/traces", headers={"authorization": f"Bearer {collector.key}"})


def grpc_exporter(collector):
    headers = {"authorization": f"Bearer {collector.key}"}
    return GrpcExporter(endpoint=collector.grpc, insecure=True, headers=headers, compression=grpc.Compression.Gzip)


@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_spans_of_the_stock_exporters_are_on_disk_without_their_texts(shared_collector, exporter):
    provider = TracerProvider(resource=Resource({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter(shared_collector)))
    name = exporter.__name__
    with provider.get_tracer("test").start_as_current_span(name) as span:
        span.set_attributes({"gen_ai.usage.input_tokens": 12, "gen_ai.prompt.0.content": SECRET})
        context = span.get_span_context()
    provider.shutdown()
    [(record, found)] = spans_named(shared_collector, name)
    assert int.from_bytes(found.trace_id) == context.trace_id and int.from_bytes(found.span_id) == context.span_id
    assert [(one.key, one.value.int_value) for one in found.attributes] == [("gen_ai.usage.input_tokens", 12)]
    assert (record.metrics, record.namespace) == (b"", "live")
    for file in Path(shared_collector.data, "journal").glob("*.seg"):
        assert SECRET.encode() not in file.read_bytes()


def test_json_and_gzip_are_taken_and_hexadecimal_ids_understood(shared_collector):
    body = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "5b8efff798038103d269b633813fc60c",
                                "spanId": "eee19b7ec3c1b174",
                                "parentSpanId": "eee19b7ec3c1b173",
                                "name": "in json",
                                "kind": 3,
                                "startTimeUnixNano": "1544712660000000000",
                                "attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}}],
                            }
                        ]
                    }
                ]
            }
        ]
    }
    data = gzip.compress(json.dumps(body).encode())
    reply = shared_collector.post(data, path="/v1/traces", media_type="application/json", Content_Encoding="gzip")
    assert reply[::2] == (200, b"{}")
    [(_, span)] = spans_named(shared_collector, "in json")
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert span.kind == 3


def test_a_trace_record_says_since_when_its_key_is_valid_and_for_whom(shared_collector):
    credential, key = access.create_key(shared_collector.engine, "live", "tracer", customers=["acme"])
    request = llm_span({"gen_ai.usage.input_tokens": 1}, name="since when")
    assert shared_collector.post(request, path="/v1/traces", key=key)[::2] == (200, b"")
    [(record, _)] = spans_named(shared_collector, "since when")
    assert record.valid_from_ns == round(credential.valid_from.timestamp() * 10**6) * 1000
    assert (record.allowed_customers, record.mapping) == (("acme",), "")


def test_only_a_request_with_foreign_metrics_names_them_to_the_mapping():
    def foreign(**more):
        return foreign_metrics(request_of((1, 0, [], {}), **more))

    assert foreign(name="meterhouse.llm.requests") == frozenset()
    assert foreign(name="http.requests") == {"http.requests"}
    assert foreign(name="meterhouse.llm.requests", kind=2) == {"meterhouse.llm.requests"}
    assert foreign(name="meterhouse.llm.requests", monotonic=False) == {"meterhouse.llm.requests"}


def test_grants_of_a_traces_scope_are_verified_and_written_into_the_record(shared_collector):
    signer = grants.new_key(grants.HMAC)
    key = access.create_key(shared_collector.engine, "live", "bound", grant_key=signer)[1]
    request = llm_span({"customer.id": "acme"}, name="granted")
    token = grants.sign("acme", key=str(signer), expires_in_s=1000, now_s=1_999_999_000)
    value = AnyValue()
    value.array_value.values.add(string_value=token)
    request.resource_spans[0].scope_spans[0].scope.attributes.append(KeyValue(key="meterhouse.grants", value=value))
    assert shared_collector.post(request, path="/v1/traces", key=key)[0] == 200
    [(record, _)] = spans_named(shared_collector, "granted")
    assert record.customers_from == "grants"
    assert [(one.customer_id, one.expires_at_ns) for one in record.grants] == [("acme", 2_000_000_000 * 10**9)]


def test_what_is_no_trace_request_is_refused_on_both_doors(shared_collector):
    status, _, body = shared_collector.post(b"\xff\xff", path="/v1/traces")
    assert status == 400 and "ExportTraceServiceRequest" in Status.FromString(body).message
    status, _, body = shared_collector.post(b"{", path="/v1/traces", media_type="application/json")
    assert status == 400 and "ExportTraceServiceRequest" in json.loads(body)["message"]
    assert shared_collector.post(llm_span({}), path="/v1/traces", key="mh_wrong")[0] == 401
    with grpc.insecure_channel(shared_collector.grpc) as channel:
        for request, key, code in (
            (b"\xff\xff", shared_collector.key, grpc.StatusCode.INVALID_ARGUMENT),
            (b"", "mh_wrong", grpc.StatusCode.UNAUTHENTICATED),
            (b"\0" * 17_000_000, shared_collector.key, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as refusal:
                channel.unary_unary(EXPORT)(request, metadata=[("authorization", f"Bearer {key}")])
            assert refusal.value.code() == code


def test_logs_are_refused_on_both_doors_with_where_usage_goes(shared_collector):
    status, _, body = shared_collector.post(b"", path="/v1/logs")
    assert status == 404 and "logs are not taken" in json.loads(body)["detail"]
    with grpc.insecure_channel(shared_collector.grpc) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(LOGS)(b"", metadata=[("authorization", f"Bearer {shared_collector.key}")])
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED and "logs are not taken" in refusal.value.details()


def test_metrics_at_the_address_of_traces_are_refused_and_not_lost(shared_collector):
    # On the wire a metric is a span without times: nothing else tells them apart.
    request = request_of(event(1))
    status, _, body = shared_collector.post(request.SerializeToString(), path="/v1/traces")
    assert status == 400 and "these are metrics: metrics go to POST /v1/metrics" in Status.FromString(body).message
    told = MessageToJson(request).encode()
    status, _, body = shared_collector.post(told, path="/v1/traces", media_type="application/json")
    assert status == 400 and "holds resourceMetrics: metrics go to" in json.loads(body)["message"]
    timeless = llm_span({"gen_ai.operation.name": "chat"}).SerializeToString()
    assert shared_collector.post(timeless, path="/v1/traces")[0] == 200


def spans(number, *, events=0, resource=(), keys=()):
    request = llm_span({})
    request.resource_spans[0].resource.attributes.extend(attributes(resource))
    target = request.resource_spans[0].scope_spans[0].spans
    del target[:]
    for _ in range(number):
        target.add().attributes.extend(attributes(keys))
    for _ in range(events):
        target[0].events.add()
    return request.SerializeToString()


def test_the_limits_of_a_trace_request_are_met_exactly():
    check_traces(spans(49_998))
    check_traces(spans(1, events=49_997))
    check_traces(spans(1, keys=[(f"a{number}", 1) for number in range(1000)]))
    for request, kind in (
        (spans(49_999), TOO_LARGE),
        (spans(1, events=49_998), TOO_LARGE),
        (spans(1, keys=[(f"a{number}", 1) for number in range(1001)]), TOO_LARGE),
        (spans(501, keys=[("a", 1)] * 1000), TOO_LARGE),
        (spans(500, resource=[("a", "x" * 20_000)]), TOO_LARGE),
        (b"\xff", MALFORMED),
    ):
        with pytest.raises(Refused) as refusal:
            check_traces(request)
        assert refusal.value.kind is kind


def test_traces_at_the_address_of_metrics_are_told_where_they_go():
    with pytest.raises(Refused, match="these are traces: metrics go to POST /v1/metrics, traces to POST /v1/traces"):
        check_metrics(span(1, trace=0xFE << 120, more=call()).SerializeToString())
    with pytest.raises(Refused) as refused:
        check_metrics(b"\xff\xff garbage")
    assert "these are traces" not in str(refused.value)
