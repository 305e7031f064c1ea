"""AWS Bedrock through boto3 against a server that speaks its wire format, event stream frames included."""

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO

import pytest
from bedrock_wire import (
    ANSWER,
    ASK,
    BUCKETS,
    COUNTED,
    KEYS,
    MESSAGE,
    MESSAGE_BUCKETS,
    MESSAGE_START,
    MESSAGE_STREAM,
    SONNET,
    START,
    STREAM,
    USAGE,
    body_reply,
    chunk,
    event,
    events_reply,
    exception,
)

import meterhouse
from meterhouse.otel import MeterhouseInstrumentor

boto3 = pytest.importorskip("boto3")

from botocore.config import Config  # noqa: E402
from botocore.eventstream import EventStream  # noqa: E402
from botocore.exceptions import (  # noqa: E402
    ClientError,
    EventStreamError,
    IncompleteReadError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.response import StreamingBody  # noqa: E402
from botocore.stub import Stubber  # noqa: E402
from urllib3.exceptions import ProtocolError  # noqa: E402


def connect(provider, **config):
    settings = {"retries": {"max_attempts": 3, "mode": "standard"}, "read_timeout": 5, **config}
    return boto3.client("bedrock-runtime", endpoint_url=provider.url, config=Config(**settings), **KEYS)


@pytest.fixture
def client(metering, provider):
    client = connect(provider)
    yield client
    client.close()


def invoke(client, model=SONNET, body=b'{"messages": []}'):
    return client.invoke_model(modelId=model, body=body)


def told_by(client, operation):
    """What of an operation's answer this version hands to its host; it leaves out the members that it does not know."""
    return client.meta.service_model.operation_model(operation).output_shape.members


def statuses(metering):
    return {event.point["meterhouse.status"] for event in metering.flush()}


@pytest.mark.cell("bedrock", "sync")
@pytest.mark.cell("bedrock", "cached tokens")
def test_converse_reports_input_without_the_cache_so_nothing_is_taken_out_of_it(client, provider, metering):
    body_reply(provider, {**ANSWER, "serviceTier": {"type": "priority"}})
    with meterhouse.customer("acme"):
        response = client.converse(**ASK)
    assert response["usage"]["inputTokens"] == 40
    assert metering.units() == BUCKETS
    one = metering.sink.events[0]
    assert one.point == {
        "customer.id": "acme",
        "gen_ai.provider.name": "aws.bedrock",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": SONNET,
        "meterhouse.status": "ok",
        **({"service.tier": "priority"} if "serviceTier" in told_by(client, "Converse") else {}),
    }
    assert one.own["gen_ai.response.id"] == response["ResponseMetadata"]["RequestId"] == "req-1"
    assert one.own["server.address"] == "127.0.0.1" and one.own["gen_ai.request.model"] == SONNET


def test_cache_writes_of_converse_are_split_by_their_time_to_live(client, provider, metering):
    if "cacheDetails" not in told_by(client, "Converse")["usage"].members:
        pytest.skip("this version has no cache details")
    details = [{"ttl": "1h", "inputTokens": 10}, {"ttl": "5m", "inputTokens": 15}]
    body_reply(provider, {**ANSWER, "usage": {**USAGE, "cacheWriteInputTokens": 30, "cacheDetails": details}})
    client.converse(**ASK)
    writes = {e.point.get("cache.ttl"): e.value for e in metering.flush() if e.meter == "llm.tokens.cache_write"}
    assert writes == {"1h": 10, "5m": 15, None: 5}


@pytest.mark.cell("bedrock", "stream")
def test_a_converse_stream_is_metered_and_stays_the_object_that_it_was(client, provider, metering):
    events_reply(provider, STREAM)
    response = client.converse_stream(**ASK)
    assert type(response["stream"]) is EventStream
    kinds = [next(iter(one)) for one in response["stream"]]
    assert kinds == [
        "messageStart",
        "contentBlockDelta",
        "contentBlockDelta",
        "contentBlockStop",
        "messageStop",
        "metadata",
    ]
    assert metering.units() == BUCKETS
    assert statuses(metering) == {"ok"}
    assert {event.own["gen_ai.response.id"] for event in metering.sink.events} == {"req-1"}


def test_a_stream_read_up_to_its_metadata_is_over_even_if_the_host_never_asks_for_the_end(client, provider, metering):
    events_reply(provider, STREAM)
    with closing(client.converse_stream(**ASK)["stream"]) as stream:
        events = iter(stream)
        while "metadata" not in next(events):
            pass
        assert metering.units() == BUCKETS
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("bedrock", "stream, closed early")
def test_a_stream_closed_early_is_aborted_with_what_was_reported_until_then(client, provider, metering):
    gate = threading.Event()
    events_reply(provider, STREAM, gate=gate, gate_before=2)
    stream = client.converse_stream(**ASK)["stream"]
    next(iter(stream))
    stream.close()
    gate.set()
    events_reply(provider, [MESSAGE_START, *MESSAGE_STREAM[1:2] * 9])
    body = client.invoke_model_with_response_stream(modelId=SONNET, body=b"{}")["body"]
    next(iter(body))
    body.close()
    assert metering.units() == {
        "llm.requests": 2,
        "llm.tokens.input": 40,
        "llm.tokens.cache_read": 60,
        "llm.tokens.cache_write": 30,
        "llm.tokens.output": 1,
    }
    assert statuses(metering) == {"aborted"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # botocore leaves the socket to the GC
@pytest.mark.cell("bedrock", "stream, collected")
def test_streams_that_the_host_lets_go_of_are_aborted_whether_begun_or_not(client, provider, metering):
    for begun in (True, False):
        events_reply(provider, STREAM)
        response = client.converse_stream(**ASK)
        if begun:
            next(iter(response["stream"]))
        del response
    gc.collect()
    assert metering.units() == {"llm.requests": 2}
    assert statuses(metering) == {"aborted"}


@pytest.mark.cell("bedrock", "failed in mid-stream")
@pytest.mark.parametrize("kind", ["modelStreamErrorException", "throttlingException", "internalServerException"])
def test_an_exception_in_mid_stream_reaches_the_host_and_the_call_has_failed(client, provider, metering, kind):
    events_reply(provider, [*START, exception(kind, "Too many tokens")])
    with closing(client.converse_stream(**ASK)["stream"]) as stream, pytest.raises(EventStreamError, match="Too many"):
        list(stream)
    events_reply(provider, [MESSAGE_START, exception(kind, "Too many tokens")])
    body = client.invoke_model_with_response_stream(modelId=SONNET, body=b"{}")["body"]
    with closing(body), pytest.raises(EventStreamError, match="Too many tokens"):
        list(body)
    assert metering.units()["llm.requests"] == 2 and metering.units()["llm.tokens.input"] == 40
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("bedrock", "failed in mid-stream")
def test_a_connection_that_breaks_within_a_stream_is_a_failed_call(client, provider, metering):
    events_reply(provider, START, cut=True)
    with closing(client.converse_stream(**ASK)["stream"]) as stream, pytest.raises(ProtocolError):
        list(stream)
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


@pytest.mark.cell("bedrock", "retried")
def test_retries_inside_the_sdk_are_one_call_with_one_request_id(client, provider, metering):
    body_reply(provider, {"message": "slow down"}, status=500)
    body_reply(provider, ANSWER)
    assert client.converse(**ASK)["ResponseMetadata"]["RetryAttempts"] == 1
    assert metering.units() == BUCKETS
    sent = {headers["amz-sdk-invocation-id"] for _, headers, _ in provider.log}
    assert len(provider.log) == 2 and len(sent) == 1
    assert {event.own["meterhouse.request.id"] for event in metering.sink.events} == sent


@pytest.mark.cell("bedrock", "failed")
def test_a_refused_call_raises_what_it_always_raised_and_has_failed(client, provider, metering):
    body_reply(
        provider, {"message": "no such model"}, status=400, headers=[("x-amzn-errortype", "ValidationException")]
    )
    with pytest.raises(client.exceptions.ValidationException) as caught:
        client.converse(**ASK)
    assert type(caught.value).__mro__[1] is ClientError
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}
    assert metering.sink.events[0].point["gen_ai.response.model"] == SONNET


@pytest.mark.cell("bedrock", "timeout")
def test_a_call_that_times_out_has_failed_once(metering, provider):
    gate = threading.Event()
    provider.replies += [lambda handler, _: gate.wait(20)] * 2
    client = connect(provider, read_timeout=0.2, retries={"total_max_attempts": 2, "mode": "standard"})
    with pytest.raises(ReadTimeoutError):
        client.converse(**ASK)
    gate.set()
    client.close()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


def read_whole(body):
    return body.read()


def read_in_pieces(body):
    return b"".join(iter(lambda: body.read(7), b""))


def read_chunks(body):
    return b"".join(body.iter_chunks(9))


def read_lines(body):
    return b"\n".join(body.iter_lines())


def read_all_lines(body):
    return b"".join(body.readlines())


def read_iterated(body):
    return b"".join(body)


def read_in_with(body):
    with body as raw:
        return raw.read()


def read_into(body):
    buffer = bytearray(100_000)
    return bytes(buffer[: body.readinto(buffer)])


def read_as_json(body):
    return json.dumps(json.load(body)).encode()


WAYS = [
    read_whole,
    read_in_pieces,
    read_chunks,
    read_lines,
    read_all_lines,
    read_iterated,
    read_in_with,
    read_into,
    read_as_json,
]


@pytest.mark.cell("bedrock", "raw response")
@pytest.mark.cell("bedrock", "reasoning tokens")
@pytest.mark.parametrize("read", WAYS)
def test_the_body_of_invoke_model_is_metered_in_whatever_way_it_is_read(client, provider, metering, read):
    if read is read_into and not hasattr(StreamingBody, "readinto"):
        pytest.skip("this version has no readinto")
    body_reply(provider, MESSAGE, headers=COUNTED)
    response = invoke(client)
    assert type(response["body"]) is StreamingBody
    assert json.loads(read(response["body"])) == MESSAGE
    assert metering.units() == MESSAGE_BUCKETS
    assert statuses(metering) == {"ok"}
    assert {event.point["gen_ai.response.model"] for event in metering.sink.events} == {SONNET}
    assert {event.own["gen_ai.response.id"] for event in metering.sink.events} == {"req-1"}


def without_length(provider, framing):
    """Answers MESSAGE in pieces whose number the headers do not tell."""
    content = json.dumps(MESSAGE).encode()

    def reply(handler, _):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        for name, value in COUNTED:
            handler.send_header(name, value)
        if framing == "chunked":
            handler.send_header("transfer-encoding", "chunked")
        handler.send_header("connection", "close")
        handler.end_headers()
        for start in range(0, len(content), 100):
            piece = content[start : start + 100]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framing == "chunked" else piece)
        handler.wfile.write(b"0\r\n\r\n" if framing == "chunked" else b"")
        handler.close_connection = True

    provider.replies.append(reply)


def of_raw(read):
    """The same with what `with` hands out: the HTTP response below."""

    def way(body):
        with body as raw:
            return read(raw)

    way.__name__ = f"raw_{read.__name__}"
    return way


def streamed(raw):
    return b"".join(raw.stream(9))


def read_in_ones(raw):
    return b"".join(iter(lambda: raw.read1(9), b""))


def read_line_by_line(raw):
    return b"".join(iter(raw.readline, b""))


def read_into_pieces(raw):
    found, buffer = b"", bytearray(64)
    while size := raw.readinto(buffer):
        found += buffer[:size]
    return found


RAW = [of_raw(one) for one in (read_whole, read_in_pieces, streamed, read_in_ones, read_all_lines, read_iterated)]
RAW += [of_raw(one) for one in (read_line_by_line, read_into_pieces, read_as_json)]


@pytest.mark.parametrize("framing", ["chunked", "until the connection closes", "length"])
@pytest.mark.parametrize("read", [*WAYS, read_line_by_line, *RAW])
def test_a_body_is_metered_in_whatever_way_it_is_read_even_where_nothing_tells_its_length(
    client, provider, metering, read, framing
):
    if framing == "length":
        body_reply(provider, MESSAGE, headers=COUNTED)
    else:
        without_length(provider, framing)
    if read is read_into and not hasattr(StreamingBody, "readinto"):
        pytest.skip("this version has no readinto")
    body = invoke(client)["body"]
    found = read(body)
    assert json.loads(found) == MESSAGE
    body.close()
    assert metering.units() == MESSAGE_BUCKETS
    assert statuses(metering) == {"ok"}


def test_a_body_that_is_never_read_counts_what_the_headers_told(client, provider, metering):
    for leave in (lambda body: None, lambda body: body.close(), lambda body: body.read(3)):
        body_reply(provider, MESSAGE, headers=COUNTED)
        leave(invoke(client)["body"])
    gc.collect()
    assert metering.units() == {"llm.requests": 3, "llm.tokens.input": 120, "llm.tokens.output": 117}
    assert statuses(metering) == {"aborted"}


def test_a_body_that_ends_too_early_raises_as_ever_and_has_failed(client, provider, metering):
    def short(handler, _body):
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"type": "mess')
        handler.close_connection = True

    provider.replies.append(short)
    with closing(invoke(client)["body"]) as body, pytest.raises((IncompleteReadError, ResponseStreamingError)):
        body.read()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}


def test_a_streamed_answer_of_anthropic_is_cumulative_and_its_own_count_goes_before_bedrocks(
    client, provider, metering
):
    events_reply(provider, MESSAGE_STREAM)
    chunks = list(client.invoke_model_with_response_stream(modelId=SONNET, body=b"{}")["body"])
    assert json.loads(chunks[-1]["chunk"]["bytes"])["type"] == "message_stop"
    assert metering.units() == MESSAGE_BUCKETS
    assert statuses(metering) == {"ok"}


HEADERS = [
    ("x-amzn-bedrock-input-token-count", "12"),
    ("x-amzn-bedrock-output-token-count", "7"),
    ("x-amzn-bedrock-cache-read-input-token-count", "5"),
]
BY_HEADERS = (12, 7)
FAMILIES = {
    "amazon.nova-pro-v1:0": (
        {"output": {"message": {}}, "usage": {"inputTokens": 9, "outputTokens": 4, "cacheReadInputTokenCount": 3}},
        {"input": 9, "output": 4, "cache_read": 3},
    ),
    "amazon.titan-text-express-v1": (
        {"inputTextTokenCount": 9, "results": [{"tokenCount": 3}, {"tokenCount": 1, "outputText": "x"}]},
        {"input": 9, "output": 4},
    ),
    "meta.llama4-v1:0": (
        {"generation": "x", "prompt_token_count": 9, "generation_token_count": 4},
        {"input": 9, "output": 4},
    ),
    "ai21.jamba-1-5-large-v1:0": (
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}},
        {"input": 9, "output": 4},
    ),
    "openai.gpt-oss-120b-1:0": (
        {
            "object": "chat.completion",
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
        },
        {"input": 7, "cache_read": 2, "output": 1, "reasoning": 3},
    ),
    "mistral.mistral-large-2407-v1:0": ({"outputs": [{"text": "x"}]}, {"input": 12, "output": 7, "cache_read": 5}),
    "cohere.command-r-v1:0": ({"text": "x", "generation_id": "g"}, {"input": 12, "output": 7, "cache_read": 5}),
    "us.deepseek.r1-v1:0": ({"choices": [{"text": "x"}]}, {"input": 12, "output": 7, "cache_read": 5}),
}


@pytest.mark.parametrize("model", FAMILIES)
def test_each_familys_own_report_is_read_and_bedrocks_headers_where_it_has_none(client, provider, metering, model):
    document, expected = FAMILIES[model]
    body_reply(provider, document, headers=HEADERS)
    invoke(client, model)["body"].read()
    tokens = {"llm.requests": 1, **{f"llm.tokens.{name}": units for name, units in expected.items()}}
    assert metering.units() == tokens


STREAMED = {
    "amazon.nova-pro-v1:0": [
        chunk(messageStart={"role": "assistant"}),
        chunk(contentBlockDelta={"delta": {"text": "x"}}),
        chunk(
            metadata={"usage": {"inputTokens": 9, "outputTokens": 4}, "metrics": {}},
            **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4}},
        ),
    ],
    "amazon.titan-text-express-v1": [
        chunk(outputText="x", index=0, totalOutputTextTokenCount=None, inputTextTokenCount=9),
        chunk(outputText="", index=0, totalOutputTextTokenCount=4, inputTextTokenCount=9),
    ],
    "meta.llama4-v1:0": [
        chunk(generation="x", prompt_token_count=9, generation_token_count=1),
        chunk(generation="y", prompt_token_count=None, generation_token_count=4),
    ],
    "mistral.mistral-large-2407-v1:0": [
        chunk(outputs=[{"text": "x"}]),
        chunk(
            outputs=[{"text": ""}],
            **{"amazon-bedrock-invocationMetrics": {"inputTokenCount": 9, "outputTokenCount": 4}},
        ),
    ],
}


@pytest.mark.parametrize("model", STREAMED)
def test_each_familys_stream_is_read_by_its_own_count_or_bedrocks_metrics(client, provider, metering, model):
    events_reply(provider, STREAMED[model])
    assert len(list(client.invoke_model_with_response_stream(modelId=model, body=b"{}")["body"])) > 1
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 9, "llm.tokens.output": 4}


def test_embeddings_count_their_input_from_the_body_or_from_the_headers(client, provider, metering):
    body_reply(provider, {"embedding": [0.1], "inputTextTokenCount": 8})
    invoke(client, "amazon.titan-embed-text-v2:0", b'{"inputText": "x"}')["body"].read()
    body_reply(provider, {"embeddings": [[0.1]]}, headers=[("x-amzn-bedrock-input-token-count", "6")])
    response = invoke(client, "cohere.embed-multilingual-v3", b'{"texts": ["x"]}')
    assert json.loads(response["body"].read()) == {"embeddings": [[0.1]]}
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 14}
    assert {event.point["gen_ai.operation.name"] for event in metering.sink.events} == {"embeddings"}
    assert statuses(metering) == {"ok"}


@pytest.mark.cell("bedrock", "modalities")
def test_images_are_counted_where_a_model_makes_them(client, provider, metering):
    body_reply(provider, {"images": ["aGk=", "aG8="], "error": None})
    invoke(client, "amazon.nova-canvas-v1:0", b'{"taskType": "TEXT_IMAGE"}')["body"].read()
    assert metering.units() == {"llm.requests": 1, "llm.images": 2}


ARN = "arn:aws:bedrock:us-east-1:123456789012:"
OPAQUE = ARN + "application-inference-profile/" + "z" * 12


def test_a_profiles_arn_becomes_the_model_that_the_price_list_knows(client, provider, metering):
    for model in (ARN + "inference-profile/" + SONNET, ARN.replace("123456789012", "") + "foundation-model/" + SONNET):
        body_reply(provider, ANSWER)
        client.converse(**{**ASK, "modelId": model})
    assert {event.point["gen_ai.response.model"] for event in metering.flush()} == {SONNET}
    assert "123456789012" not in json.dumps([event.everything for event in metering.sink.events])


def test_what_hides_its_model_is_named_by_the_router_or_by_the_answer(client, provider, metering):
    trace = {"promptRouter": {"invokedModelId": ARN + "inference-profile/us.anthropic.claude-haiku-5-v1:0"}}
    body_reply(provider, {**ANSWER, "trace": trace})
    client.converse(**{**ASK, "modelId": ARN + "default-prompt-router/anthropic.claude:1"})
    body_reply(provider, MESSAGE)
    invoke(client, OPAQUE)["body"].read()
    body_reply(provider, ANSWER)
    client.converse(**{**ASK, "modelId": OPAQUE})
    models = [event.point["gen_ai.response.model"] for event in metering.flush() if event.meter == "llm.requests"]
    assert models == [
        "us.anthropic.claude-haiku-5-v1:0",
        "claude-sonnet-5",
        "application-inference-profile/zzzzzzzzzzzz",
    ]


def test_the_tier_of_a_call_is_told_whatever_the_operation(client, provider, metering):
    body_reply(provider, MESSAGE, headers=[("x-amzn-bedrock-service-tier", "flex")])
    invoke(client)["body"].read()
    events_reply(provider, [*STREAM[:-1], event("metadata", usage=USAGE, performanceConfig={"latency": "optimized"})])
    list(client.converse_stream(**ASK)["stream"])
    tiers = [event.point["service.tier"] for event in metering.flush() if event.meter == "llm.requests"]
    assert tiers == ["flex", "latency-optimized"]


@pytest.mark.cell("bedrock", "tool results handed back")
def test_tool_results_of_a_plain_loop_are_counted_once_under_the_name_the_model_asked_for(client, provider, metering):
    asked = {"toolUse": {"toolUseId": "tooluse_kZJMlvQmRJ6eAyJE", "name": "weather", "input": {}}}
    body_reply(
        provider, {**ANSWER, "output": {"message": {"role": "assistant", "content": [asked]}}, "stopReason": "tool_use"}
    )
    client.converse(**ASK)
    result = {"toolResult": {"toolUseId": "tooluse_kZJMlvQmRJ6eAyJE", "content": [{"text": "a secret result"}]}}
    talk = [*ASK["messages"], {"role": "assistant", "content": [asked]}, {"role": "user", "content": [result]}]
    for _ in range(2):
        body_reply(provider, ANSWER)
        client.converse(modelId=SONNET, messages=talk)
    more = [{"role": "assistant", "content": [{"text": "fine"}]}, {"role": "user", "content": [{"text": "and?"}]}]
    body_reply(provider, ANSWER)
    client.converse(modelId=SONNET, messages=[*talk, *more])
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert [(event.value, event.point["gen_ai.tool.name"], event.own["usage.source"]) for event in calls] == [
        (1, "weather", "sdk_loop")
    ]


@pytest.mark.cell("bedrock", "tool results handed back")
def test_tool_results_are_found_in_streams_and_in_invoke_models_own_shapes(client, provider, metering):
    start = {"toolUse": {"toolUseId": "tooluse_AAAAAAAA1", "name": "clock"}}
    events_reply(provider, [event("contentBlockStart", contentBlockIndex=0, start=start), STREAM[-1]])
    list(client.converse_stream(**ASK)["stream"])
    failed = {"toolResult": {"toolUseId": "tooluse_AAAAAAAA1", "content": [], "status": "error"}}
    events_reply(provider, STREAM)
    list(client.converse_stream(modelId=SONNET, messages=[{"role": "user", "content": [failed]}])["stream"])
    block = {"type": "tool_use", "id": "toolu_bdrk_01AAAAAAA", "name": "search", "input": {}}
    body_reply(provider, {**MESSAGE, "content": [block]})
    invoke(client)["body"].read()
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_bdrk_01AAAAAAA"}]}
    body_reply(provider, MESSAGE)
    invoke(client, body=json.dumps({"messages": [answer]}))["body"].read()
    calls = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert [(event.point["gen_ai.tool.name"], event.point["meterhouse.status"]) for event in calls] == [
        ("clock", "failed"),
        ("search", "ok"),
    ]


def test_what_runs_no_model_is_not_billed_and_an_async_invocation_is_a_request(client, provider, metering):
    if hasattr(client, "count_tokens"):
        body_reply(provider, {"inputTokens": 14})
        client.count_tokens(modelId=SONNET, input={"converse": {"messages": ASK["messages"]}})
    body_reply(provider, {"usage": {}, "action": "NONE", "outputs": [], "assessments": []})
    client.apply_guardrail(guardrailIdentifier="g", guardrailVersion="1", source="INPUT", content=[])
    assert metering.flush() == []
    body_reply(provider, {"invocationArn": ARN + "async-invoke/abcdefghijkl"})
    client.start_async_invoke(
        modelId="amazon.nova-reel-v1:1",
        modelInput={"taskType": "TEXT_VIDEO"},
        outputDataConfig={"s3OutputDataConfig": {"s3Uri": "s3://bucket"}},
    )
    assert metering.units() == {"llm.requests": 1}
    assert metering.sink.events[0].own["usage.source"] == "none"


def test_calls_in_parallel_threads_are_each_counted_for_their_own_customer(client, provider, metering):
    for _ in range(12):
        body_reply(provider, ANSWER)

    def work(number):
        with meterhouse.customer(f"c{number % 3}"):
            client.converse(**ASK)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
    sums = {}
    for one in metering.flush():
        if one.meter == "llm.tokens.cache_read":
            sums[one.point["customer.id"]] = sums.get(one.point["customer.id"], 0) + one.value
    assert sums == {"c0": 240, "c1": 240, "c2": 240}


def test_no_word_of_prompt_or_answer_is_sent_or_journalled(client, provider, metering):
    body_reply(provider, ANSWER)
    client.converse(**ASK)
    events_reply(provider, STREAM)
    list(client.converse_stream(**ASK)["stream"])
    body_reply(provider, MESSAGE)
    invoke(client, body=json.dumps({"messages": [{"role": "user", "content": "a secret question"}]}))["body"].read()
    written = b"".join(path.read_bytes() for path in metering.journals.glob("**/*") if path.is_file())
    metering.flush()
    sent = b"".join(body for _, body in metering.sink.requests)
    assert written and sent and b"secret" not in written + sent


def seen_by_the_host(provider):
    """Everything that a host can see of a few calls: types, answers, errors, and the events of its own hooks."""
    body_reply(provider, ANSWER)
    events_reply(provider, STREAM)
    body_reply(provider, MESSAGE, headers=COUNTED)
    body_reply(provider, {"message": "no"}, status=400, headers=[("x-amzn-errortype", "ValidationException")])
    client, told, seen = connect(provider), [], []
    client.meta.events.register("*.bedrock-runtime.*", lambda event_name, **kwargs: told.append((event_name, *kwargs)))

    def without_date(response):
        response["ResponseMetadata"]["HTTPHeaders"].pop("date")
        return response

    seen.append(without_date(client.converse(**ASK)))
    streamed = without_date(client.converse_stream(**ASK))
    seen += [type(streamed["stream"]), list(streamed.pop("stream")), streamed]
    invoked = without_date(invoke(client))
    seen += [type(invoked["body"]), invoked["body"].readable(), invoked["body"].tell(), invoked["body"].read()]
    seen += [invoked["body"].read(), invoked["body"].readable(), invoked["body"].close(), invoked.pop("contentType")]
    with pytest.raises(ClientError) as caught:
        client.converse(**ASK)
    seen += [str(caught.value), type(caught.value).__name__, without_date(caught.value.response)]
    with pytest.raises(ParamValidationError) as wrong:
        client.converse(modelId=7)
    seen += [str(wrong.value), client.can_paginate("converse"), [*client.meta.method_to_api_mapping]]
    client.close()
    headers = [sorted(headers) for _, headers, _ in provider.log]
    provider.log.clear()
    return seen, told, headers


def test_a_host_sees_the_same_with_meterhouse_and_without(provider, metering):
    metered = seen_by_the_host(provider)
    assert metering.units()["llm.requests"] == 5
    MeterhouseInstrumentor().uninstrument()
    try:
        assert seen_by_the_host(provider) == metered
    finally:
        MeterhouseInstrumentor().instrument(skip_dep_check=True)


def test_the_calls_of_other_services_are_not_touched(provider, metering):
    body_reply(provider, {"inferenceProfileSummaries": []})
    client = boto3.client("bedrock", endpoint_url=provider.url, **KEYS)
    assert client.list_inference_profiles()["inferenceProfileSummaries"] == []
    client.close()
    assert metering.flush() == []


def test_the_output_of_a_stream_left_early_is_estimated_only_where_the_operator_asked_for_it(
    provider, metering, monkeypatch
):
    monkeypatch.setenv("METERHOUSE_ESTIMATE", "1")
    client = connect(provider)
    events_reply(provider, [*START, *STREAM[1:2] * 50])
    with closing(client.converse_stream(**ASK)["stream"]) as stream:
        events = iter(stream)
        next(events), next(events)
    client.close()
    assert metering.units() == {"llm.requests": 1, "llm.tokens.output": 3}  # "a secret ": 9 characters
    assert {event.own["usage.source"] for event in metering.sink.events} == {"estimated"}


def test_a_stubbed_body_is_listened_to_as_well_and_a_short_one_has_failed(client, metering):
    headers = {"HTTPHeaders": {"content-length": "1000"}}
    body = StreamingBody(BytesIO(b'{"type": "mess'), "1000")
    answer = {"body": body, "contentType": "application/json", "ResponseMetadata": headers}
    with Stubber(client) as stubber:
        stubber.add_response("invoke_model", answer)
        found = invoke(client)["body"]
        assert found is body
        with pytest.raises(IncompleteReadError):
            found.read()
    assert metering.units() == {"llm.requests": 1}
    assert statuses(metering) == {"failed"}
