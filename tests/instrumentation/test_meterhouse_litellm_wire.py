"""litellm in the wire formats of the providers it speaks to itself: what each of them reports, and how."""

import base64
import binascii
import io
import json
import struct

import pytest

pytestmark = [  # litellm leaves coroutines and sockets of ended event loops behind
    pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:coroutine 'LoggingWorker:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUESTION = [{"role": "user", "content": "a secret question"}]
# The one truth: 100 in, of them 60 cached; 40 out, of them 25 reasoning.
TRUTH = {
    "llm.requests": 1,
    "llm.tokens.input": 40,
    "llm.tokens.cache_read": 60,
    "llm.tokens.output": 15,
    "llm.tokens.reasoning": 25,
}
COUNTED = {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 5}
OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 25},
}
GEMINI_USAGE = {
    "promptTokenCount": 100,
    "cachedContentTokenCount": 60,
    "candidatesTokenCount": 15,
    "thoughtsTokenCount": 25,
    "totalTokenCount": 140,
}


@pytest.fixture
def litellm(library, metering, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for its price list at import
    for name, value in (("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION_NAME", "eu-west-1")):
        monkeypatch.setenv(name, value)
    module = library("litellm")
    monkeypatch.setattr(module, "suppress_debug_info", True)
    return module


@pytest.fixture
def ask(provider):
    return {"messages": QUESTION, "api_base": provider.url, "api_key": "k"}


def sse(*documents):
    return [b"data: %s\n\n" % json.dumps(document).encode() for document in documents]


def text(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def provider_of(metering):
    return {(e.point["gen_ai.provider.name"], e.point.get("gen_ai.response.model")) for e in metering.sink.events}


def gemini(text, usage=None, finish=None):
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
        **({"usageMetadata": usage} if usage else {}),
    }


@pytest.mark.cell("litellm", "reasoning tokens")
def test_gemini_thoughts_are_beside_the_output_and_cached_tokens_inside_the_prompt(litellm, ask, provider, metering):
    provider.json(gemini("hi", GEMINI_USAGE, "STOP"))
    litellm.completion(model="gemini/gemini-2.5-flash", **ask)
    assert metering.units() == TRUTH
    assert provider_of(metering) == {("gcp.gemini", "gemini-2.5-flash")}


def test_a_gemini_stream_repeats_its_counts_and_is_counted_once(litellm, ask, provider, metering):
    early = {**GEMINI_USAGE, "candidatesTokenCount": 3, "thoughtsTokenCount": 20, "totalTokenCount": 123}
    provider.stream(sse(gemini("Hello", early), gemini(" you", GEMINI_USAGE, "STOP")))
    assert text(litellm.completion(model="gemini/gemini-2.5-flash", stream=True, **ask)) == "Hello you"
    assert metering.units() == TRUTH


@pytest.mark.cell("litellm", "modalities")
def test_what_the_provider_splits_into_text_and_audio_stays_split(litellm, ask, provider, metering):
    split = [{"modality": "TEXT", "tokenCount": 3}, {"modality": "AUDIO", "tokenCount": 4}]
    usage = {"promptTokenCount": 7, "promptTokensDetails": split, "candidatesTokenCount": 5, "totalTokenCount": 12}
    provider.json(gemini("hi", usage, "STOP"))
    litellm.completion(model="gemini/gemini-2.5-flash", **ask)
    metering.flush()
    given = {e.point.get("gen_ai.token.modality"): e.value for e in metering.sink.events if "input" in e.meter}
    assert given == {"text": 3, "audio": 4}


def test_an_error_inside_a_gemini_stream_is_a_failed_call(litellm, ask, provider, metering):
    gone = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
    provider.stream(
        sse(gemini("Hello", {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}), gone)
    )
    with pytest.raises(Exception, match="overloaded"):
        list(litellm.completion(model="gemini/gemini-2.5-flash", stream=True, **ask))
    assert metering.units() == COUNTED
    assert {e.point["meterhouse.status"] for e in metering.sink.events} == {"failed"}


def frame(event, payload, kind="event"):
    """One message of AWS's event stream, as Bedrock sends it."""
    headers = b""
    for name, value in ((f":{kind}-type", event), (":content-type", "application/json"), (":message-type", kind)):
        headers += struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + body
    return message + struct.pack(">I", binascii.crc32(message))


def aws(provider, frames):
    def reply(handler, _):
        handler.answer(200, b"".join(frames), "application/vnd.amazon.eventstream")

    provider.replies.append(reply)


NOVA = {"model": "bedrock/converse/eu.amazon.nova-pro-v1:0"}
CONVERSE_USAGE = {"inputTokens": 40, "outputTokens": 40, "totalTokens": 140, "cacheReadInputTokens": 60}
CONVERSED = {**TRUTH, "llm.tokens.output": 40}
del CONVERSED["llm.tokens.reasoning"]  # part of the output, which Bedrock does not tell apart


def test_bedrock_converse_excludes_what_was_cached_from_its_input(litellm, ask, provider, metering):
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    provider.json({"output": {"message": message}, "stopReason": "end_turn", "usage": CONVERSE_USAGE, "metrics": {}})
    litellm.completion(**NOVA, messages=QUESTION, aws_bedrock_runtime_endpoint=provider.url)
    assert metering.units() == CONVERSED
    assert provider_of(metering) == {("aws.bedrock", "eu.amazon.nova-pro-v1:0")}


def test_the_event_stream_of_bedrock_converse_is_read(litellm, provider, metering):
    frames = [
        frame("messageStart", {"role": "assistant"}),
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}}),
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": CONVERSE_USAGE, "metrics": {"latencyMs": 1}}),
    ]
    aws(provider, frames)
    answer = litellm.completion(**NOVA, messages=QUESTION, aws_bedrock_runtime_endpoint=provider.url, stream=True)
    assert text(answer) == "hi"
    assert metering.units() == CONVERSED
    assert {e.point["meterhouse.status"] for e in metering.sink.events} == {"ok"}


def test_claude_on_bedrock_is_read_in_its_own_format(litellm, provider, metering):
    start = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": []}
    counted = {"inputTokenCount": 7, "outputTokenCount": 5, "invocationLatency": 1, "firstByteLatency": 1}
    events = [
        {"type": "message_start", "message": {**start, "usage": {"input_tokens": 7, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": counted},
    ]
    aws(provider, [frame("chunk", {"bytes": base64.b64encode(json.dumps(e).encode()).decode()}) for e in events])
    model = "bedrock/invoke/anthropic.claude-3-5-sonnet-20240620-v1:0"
    answer = litellm.completion(
        model=model, messages=QUESTION, aws_bedrock_runtime_endpoint=provider.url, stream=True, max_tokens=5
    )
    assert text(answer) == "hi"
    assert metering.units() == COUNTED
    assert {e.own["gen_ai.request.model"] for e in metering.sink.events} == {
        "anthropic.claude-3-5-sonnet-20240620-v1:0"
    }


def chat(usage=OPENAI_USAGE, **more):
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m-1",
        "choices": choices,
        "usage": usage,
        **more,
    }


def chunks(*usages):
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    said = {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": None}]}
    over = {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [*sse(said, over, *({**base, "choices": [], "usage": usage} for usage in usages)), b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("model", "name"), [("groq/llama-3.3-70b-versatile", "groq"), ("mistral/mistral-large-latest", "mistral_ai")]
)
def test_a_server_that_speaks_openais_format_is_read_in_it(litellm, ask, provider, metering, model, name):
    provider.json(chat(service_tier="default"))
    litellm.completion(model=model, **ask)
    assert metering.units() == TRUTH
    assert provider_of(metering) == {(name, "m-1")}


def test_a_stream_in_openais_format_is_asked_for_its_usage_and_the_host_sees_none_of_it(
    litellm, ask, provider, metering
):
    provider.stream(chunks(OPENAI_USAGE))
    host = list(litellm.completion(model="deepseek/deepseek-chat", stream=True, **ask))
    assert provider.log[0][2]["stream_options"] == {"include_usage": True}
    assert text(host) == "hi" and not any(getattr(chunk, "usage", None) for chunk in host)
    assert metering.units() == TRUTH


def test_a_stream_that_the_host_asked_for_its_usage_shows_it_to_the_host(litellm, ask, provider, metering):
    provider.stream(chunks(OPENAI_USAGE))
    host = litellm.completion(
        model="deepseek/deepseek-chat", stream=True, stream_options={"include_usage": True}, **ask
    )
    assert [chunk.usage.prompt_tokens for chunk in host if getattr(chunk, "usage", None)] == [100]
    assert metering.units() == TRUTH


def test_a_server_that_refuses_to_be_asked_is_called_without_and_its_call_is_one(litellm, ask, provider, metering):
    provider.json({"error": {"message": "stream_options: extra inputs are not permitted"}}, 400)
    provider.stream(chunks())
    provider.stream(chunks())
    for _ in range(2):
        assert text(litellm.completion(model="deepseek/deepseek-chat", stream=True, **ask)) == "hi"
    assert ["stream_options" in body for _, _, body in provider.log] == [True, False, False]
    assert metering.units() == {"llm.requests": 2}
    assert {e.everything["usage.source"] for e in metering.sink.events} == {"none"}


def test_where_nothing_was_reported_the_count_that_litellm_makes_is_not_taken(litellm, ask, provider, metering):
    answer = chat(usage=None)
    del answer["usage"]
    provider.json(answer)
    litellm.completion(model="deepseek/deepseek-chat", **ask)
    provider.json({"model": "llama3", "created_at": "2026-01-01T00:00:00Z", "response": "hi", "done": True})
    guessed = litellm.completion(model="ollama/llama3", **ask).usage
    assert guessed.prompt_tokens > 0
    assert metering.units() == {"llm.requests": 2}
    assert {e.everything["usage.source"] for e in metering.sink.events} == {"none"}


OLLAMA = {"model": "llama3", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "hi"}}


def test_ollama_streams_lines_of_json(litellm, ask, provider, metering):
    ended = {**OLLAMA, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    lines = [{**OLLAMA, "done": False}, {**ended, "prompt_eval_count": 7, "eval_count": 5}]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    provider.replies.append(lambda handler, _: handler.answer(200, body, "application/x-ndjson"))
    assert text(litellm.completion(model="ollama_chat/llama3", stream=True, **ask)) == "hi"
    assert metering.units() == COUNTED
    assert provider_of(metering) == {("ollama", "llama3")}


def test_cohere_is_read_in_its_own_format(litellm, ask, provider, metering):
    usage = {
        "billed_units": {"input_tokens": 7, "output_tokens": 5},
        "tokens": {"input_tokens": 70, "output_tokens": 9},
    }
    message = {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    provider.json({"id": "c", "finish_reason": "COMPLETE", "message": message, "usage": usage})
    litellm.completion(model="cohere_chat/command-a-03-2025", **ask)
    assert metering.units() == COUNTED
    assert provider_of(metering) == {("cohere", "command-a-03-2025")}


@pytest.mark.cell("litellm", "tool results handed back")
def test_tool_results_that_a_plain_loop_hands_back_are_counted_once(litellm, ask, provider, metering):
    call = {"id": "toolu_01A09q90qw90lq917835", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "name": "add", "content": "a secret result"},
    ]
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn"}
    usage = {"input_tokens": 7, "output_tokens": 5}
    for _ in range(2):
        provider.json({**message, "content": [{"type": "text", "text": "hi"}], "usage": usage})
        litellm.completion(model="anthropic/claude-sonnet-4-5", **{**ask, "messages": history}, max_tokens=9)
    assert metering.units()["tool.calls"] == 1
    [tool] = [e for e in metering.sink.events if e.meter == "tool.calls"]
    assert tool.everything["usage.source"] == "sdk_loop"


def test_embeddings_are_counted_whichever_way_they_go(litellm, provider, metering):
    here = {"input": ["a secret"], "api_base": provider.url, "api_key": "k"}
    vector = {"object": "embedding", "index": 0, "embedding": [0.1]}
    provider.json({"object": "list", "model": "v", "data": [vector], "usage": {"prompt_tokens": 7, "total_tokens": 7}})
    litellm.embedding(model="openai/text-embedding-3-small", **here)
    provider.json({"object": "list", "model": "voyage-3", "data": [vector], "usage": {"total_tokens": 7}})
    litellm.embedding(model="voyage/voyage-3", **here)
    provider.json({"model": "nomic", "embeddings": [[0.1]], "prompt_eval_count": 7})
    litellm.embedding(model="ollama/nomic", **here)
    metering.flush()
    events = metering.sink.events
    assert {e.point["gen_ai.operation.name"] for e in events} == {"embeddings"}
    given = {e.point["gen_ai.provider.name"]: e.value for e in events if e.meter == "llm.tokens.input"}
    assert given == {"openai": 7, "voyage": 7, "ollama": 7}


def test_a_reranking_is_a_request(litellm, provider, metering):
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    provider.json({"id": "r", "results": [{"index": 0, "relevance_score": 0.9}], "meta": meta})
    here = {"api_base": provider.url, "api_key": "k"}
    litellm.rerank(model="cohere/rerank-v3.5", query="q", documents=["a secret"], **here)
    assert metering.units()["llm.requests"] == 1
    assert {e.point["gen_ai.operation.name"] for e in metering.sink.events} == {"rerank"}


def test_responses_of_a_provider_that_has_none_are_counted_once(litellm, ask, provider, metering):
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn"}
    usage = {"input_tokens": 7, "output_tokens": 5}
    provider.json({**message, "content": [{"type": "text", "text": "hi"}], "usage": usage})
    here = {"api_base": provider.url, "api_key": "k"}
    litellm.responses(model="anthropic/claude-sonnet-4-5", input="a secret", **here)
    assert metering.units() == COUNTED


def test_openais_responses_go_over_litellms_own_client_and_are_counted_once(litellm, provider, metering):
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 25},
        "total_tokens": 140,
    }
    body = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-mini", "status": "completed"}
    part = {"type": "output_text", "text": "hi", "annotations": []}
    output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}]
    provider.json({**body, "output": output, "usage": usage, "error": None, "tools": [], "parallel_tool_calls": True})
    litellm.responses(model="openai/gpt-5-mini", input="a secret", api_base=provider.url, api_key="k")
    assert metering.units() == TRUTH


def test_speech_and_transcription_are_requests(litellm, provider, metering):
    here = {"api_base": provider.url, "api_key": "k"}
    provider.replies.append(lambda handler, _: handler.answer(200, b"RIFF", "audio/mpeg"))
    litellm.speech(model="openai/tts-1", input="a secret", voice="alloy", **here)
    sound = io.BytesIO(b"RIFF")
    sound.name = "a.wav"
    provider.replies.append(lambda handler, _: handler.answer(200, b'{"text": "a secret"}'))
    litellm.transcription(model="openai/whisper-1", file=sound, **here)
    assert metering.units()["llm.requests"] == 2
