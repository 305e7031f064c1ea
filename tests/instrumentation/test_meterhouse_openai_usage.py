"""What else OpenAI's API reports besides the text of a chat: images, audio, the provider's own tools, other servers."""

import contextlib
import json
from importlib.util import find_spec

import openai
import pytest

from meterhouse.providers import openai_usage
from meterhouse.providers.openai import OpenAI

PNG = "iVBORw0KGgo="
RESPONSES = pytest.mark.skipif(find_spec("openai.types.responses") is None, reason="this openai has no responses API")
OLD = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
"""The SDK warns of methods that OpenAI is going to withdraw."""


@pytest.fixture
def client(metering, provider):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=0) as client:
        yield client


def found(metering):
    """(meter without its prefix, modality, model) -> quantity."""
    return {
        (
            event.meter.removeprefix("llm."),
            event.point.get("gen_ai.token.modality", ""),
            event.point.get("gen_ai.response.model", ""),
        ): event.value
        for event in metering.flush()
    }


def sse(*documents):
    return [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in documents]


def buckets(usage):
    return {
        (row.meter.removeprefix("llm."), row.modality, row.cache_ttl): row.quantity
        for row in openai_usage.rows(usage)
        if row.quantity
    }


# ---- images ----------------------------------------------------------------------------------------------------------

IMAGE_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 272,
    "total_tokens": 322,
}


@pytest.mark.cell("openai", "modalities")
def test_an_image_model_that_reports_tokens_is_those_tokens_and_its_images(client, provider, metering):
    provider.json({"created": 1, "data": [{"b64_json": PNG}, {"b64_json": PNG}], "usage": IMAGE_USAGE})
    client.images.generate(model="gpt-image-1", prompt="a cat", n=2)
    assert found(metering) == {
        ("requests", "", "gpt-image-1"): 1,
        ("images", "", "gpt-image-1"): 2,
        ("tokens.input", "image", "gpt-image-1"): 40,
        ("tokens.input", "text", "gpt-image-1"): 10,
        ("tokens.output", "", "gpt-image-1"): 272,
    }
    assert {event.point["gen_ai.operation.name"] for event in metering.sink.events} == {"image_generation"}


def test_an_edited_image_sent_as_multipart_is_metered(client, provider, metering):
    details = {"text_tokens": 0, "image_tokens": 272}
    usage = {**IMAGE_USAGE, "output_tokens_details": details}
    provider.json({"created": 1, "data": [{"b64_json": PNG}], "usage": usage})
    client.images.edit(model="gpt-image-1", image=("a.png", b"png"), prompt="a hat")
    assert provider.log[0][0] == "/v1/images/edits" and "multipart" in provider.log[0][1]["content-type"]
    assert found(metering) == {
        ("requests", "", "gpt-image-1"): 1,
        ("images", "", "gpt-image-1"): 1,
        ("tokens.input", "image", "gpt-image-1"): 40,
        ("tokens.input", "text", "gpt-image-1"): 10,
        ("tokens.output", "image", "gpt-image-1"): 272,
    }


@OLD
def test_images_of_a_model_that_reports_no_tokens_are_counted(client, provider, metering):
    provider.json({"created": 1, "data": [{"url": "https://x/1.png"}, {"url": "https://x/2.png"}]})
    client.images.generate(model="dall-e-2", prompt="a cat", n=2)
    provider.json({"created": 1, "data": [{"url": "https://x/3.png"}]})
    client.images.create_variation(model="dall-e-2", image=("a.png", b"png"))
    assert metering.units() == {"llm.requests": 2, "llm.images": 3}
    assert {event.own["usage.source"] for event in metering.sink.events} == {"reported"}
    assert {event.point["gen_ai.response.model"] for event in metering.sink.events} == {"dall-e-2"}


@pytest.mark.skipif(find_spec("openai.types.image_gen_completed_event") is None, reason="no image streams")
def test_partial_images_of_a_stream_are_no_images(client, provider, metering):
    known = {"b64_json": PNG, "created_at": 1, "size": "1024x1024", "quality": "low"}
    known |= {"background": "opaque", "output_format": "png"}
    partial = {"type": "image_generation.partial_image", "partial_image_index": 0, **known}
    done = {"type": "image_generation.completed", "usage": IMAGE_USAGE, **known}
    provider.stream(sse(partial, partial, done))
    events = list(client.images.generate(model="gpt-image-1", prompt="a cat", stream=True, partial_images=2))
    assert [type(event).__name__ for event in events] == ["ImageGenPartialImageEvent"] * 2 + ["ImageGenCompletedEvent"]
    assert found(metering) == {
        ("requests", "", "gpt-image-1"): 1,
        ("images", "", "gpt-image-1"): 1,
        ("tokens.input", "image", "gpt-image-1"): 40,
        ("tokens.input", "text", "gpt-image-1"): 10,
        ("tokens.output", "", "gpt-image-1"): 272,
    }


def test_two_images_of_one_stream_add_up(client, provider, metering):
    done = {"type": "image_edit.completed", "b64_json": PNG, "usage": IMAGE_USAGE}
    provider.stream(sse(done, done))
    with client.images.with_streaming_response.edit(
        model="gpt-image-1", image=("a.png", b"png"), prompt="x", extra_body={"stream": True}
    ) as response:
        response.read()
    units = metering.units()
    assert units["llm.images"] == 2 and units["llm.tokens.output"] == 544 and units["llm.tokens.input"] == 100


def test_an_svg_drawn_by_another_model_is_that_model_s(client, provider, metering):
    svg = {
        "model": "gpt-6-luna",
        "input_tokens": 20,
        "output_tokens": 300,
        "reasoning_tokens": 100,
        "total_tokens": 320,
    }
    provider.json({"created": 1, "data": [{"b64_json": PNG}], "usage": IMAGE_USAGE, "svg_usage": svg})
    client.images.generate(model="gpt-image-3", prompt="a cat")
    assert found(metering) == {
        ("requests", "", "gpt-image-3"): 1,
        ("images", "", "gpt-image-3"): 1,
        ("tokens.input", "image", "gpt-image-3"): 40,
        ("tokens.input", "text", "gpt-image-3"): 10,
        ("tokens.output", "", "gpt-image-3"): 272,
        ("tokens.input", "", "gpt-6-luna"): 20,
        ("tokens.output", "", "gpt-6-luna"): 200,
        ("tokens.reasoning", "", "gpt-6-luna"): 100,
    }
    assert len({event.id for event in metering.sink.events}) == 8


# ---- audio -----------------------------------------------------------------------------------------------------------


def test_a_transcription_billed_by_tokens_is_its_audio_and_text_tokens(client, provider, metering):
    details = {"text_tokens": 4, "audio_tokens": 96}
    usage = {"type": "tokens", "input_tokens": 100, "input_token_details": details, "output_tokens": 30}
    provider.json({"text": "a secret", "usage": {**usage, "total_tokens": 130}})
    client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"wav"))
    assert found(metering) == {
        ("requests", "", "gpt-4o-transcribe"): 1,
        ("tokens.input", "audio", "gpt-4o-transcribe"): 96,
        ("tokens.input", "text", "gpt-4o-transcribe"): 4,
        ("tokens.output", "", "gpt-4o-transcribe"): 30,
    }
    assert {event.point["gen_ai.operation.name"] for event in metering.sink.events} == {"transcription"}


@pytest.mark.parametrize(("reported", "read"), [(9.5, 9.5), (9, 9), (0.1234567894, 0.123456789)])
def test_a_transcription_billed_by_duration_is_its_seconds(client, provider, metering, reported, read):
    provider.json({"text": "x", "usage": {"type": "duration", "seconds": reported}})
    client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"wav"))
    assert found(metering) == {("requests", "", "whisper-1"): 1, ("audio.seconds", "", "whisper-1"): read}
    assert {event.own["usage.source"] for event in metering.sink.events} == {"reported"}


@OLD
@pytest.mark.parametrize("duration", [8.47, "8.47"], ids=["number", "text"])
def test_the_duration_of_a_verbose_answer_without_usage_is_its_seconds(client, provider, metering, duration):
    provider.json({"task": "translate", "language": "english", "duration": duration, "text": "x", "segments": []})
    client.audio.translations.create(model="whisper-1", file=("a.wav", b"wav"), response_format="verbose_json")
    assert found(metering) == {("requests", "", "whisper-1"): 1, ("audio.seconds", "", "whisper-1"): 8.47}


def test_the_usage_goes_before_the_duration(client, provider, metering):
    usage = {"type": "duration", "seconds": 9}
    provider.json({"task": "transcribe", "language": "english", "duration": 8.47, "text": "x", "usage": usage})
    client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"wav"), response_format="verbose_json")
    assert metering.units() == {"llm.requests": 1, "llm.audio.seconds": 9}


@pytest.mark.skipif(
    find_spec("openai.types.audio.transcription_text_done_event") is None, reason="no transcription streams"
)
def test_a_streamed_transcription_is_metered(client, provider, metering):
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}
    usage["input_token_details"] = {"text_tokens": 0, "audio_tokens": 14}
    delta = {"type": "transcript.text.delta", "delta": "a secret"}
    provider.stream(sse(delta, {"type": "transcript.text.done", "text": "a secret", "usage": usage}))
    stream = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", b"wav"), stream=True)
    assert len(list(stream)) == 2
    assert found(metering) == {
        ("requests", "", "gpt-4o-transcribe"): 1,
        ("tokens.input", "audio", "gpt-4o-transcribe"): 14,
        ("tokens.output", "", "gpt-4o-transcribe"): 45,
    }


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_a_transcript_without_usage_is_a_request_whose_usage_is_unknown(client, provider, metering, kind):
    body = b"a secret" if kind == "text/plain" else b'{"text": "a secret"}'
    provider.replies.append(lambda handler, _: handler.answer(200, body, kind))
    response_format = "text" if kind == "text/plain" else "json"
    client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"wav"), response_format=response_format)
    (event,) = metering.flush()
    assert event.meter == "llm.requests" and event.own["usage.source"] == "none"
    assert event.point["meterhouse.status"] == "ok"


def test_speech_reports_nothing_and_nothing_is_guessed(client, provider, metering):
    provider.replies.append(lambda handler, _: handler.answer(200, b"\xff\xf3mp3" * 1000, "audio/mpeg"))
    answer = client.audio.speech.create(model="gpt-4o-mini-tts", voice="coral", input="a secret")
    assert answer.content == b"\xff\xf3mp3" * 1000
    provider.replies.append(lambda handler, _: handler.answer(200, b"\xff\xf3mp3" * 1000, "audio/mpeg"))
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input="a secret"
    ) as response:
        assert b"".join(response.iter_bytes(512)) == b"\xff\xf3mp3" * 1000
    assert metering.units() == {"llm.requests": 2}
    assert {(e.point["meterhouse.status"], e.own["usage.source"]) for e in metering.sink.events} == {("ok", "none")}


def test_streamed_speech_reports_its_tokens(client, provider, metering):
    delta = {"type": "speech.audio.delta", "audio": PNG}
    usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    provider.stream(sse(delta, {"type": "speech.audio.done", "usage": usage}))
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input="x", extra_body={"stream_format": "sse"}
    ) as response:
        response.read()
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 14, "llm.tokens.output": 101}


# ---- the provider's own tools ----------------------------------------------------------------------------------------


def search(n, action):
    return {"type": "web_search_call", "id": f"ws_{n}", "status": "completed", "action": action}


ITEMS = [
    search(1, {"type": "search", "query": "q"}),
    search(2, {"type": "open_page", "url": "https://x"}),
    search(3, {"type": "search", "query": "r"}),
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "status": "completed",
        "code": "1",
        "container_id": "c",
        "outputs": [],
    },
    {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": None},
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": PNG},
    {"type": "image_generation_call", "id": "ig_2", "status": "failed", "result": None},
]
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 15,
}


def response(**changes):
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5",
        "output": ITEMS,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "image_generation", "model": "gpt-image-2"}],
        "usage": USAGE,
        **changes,
    }


HOSTED = {
    "llm.requests": 1,
    "llm.tokens.input": 10,
    "llm.tokens.output": 5,
    "llm.web_searches": 2,
    "llm.code_executions": 1,
    "llm.file_searches": 1,
    "llm.images": 1,
}


@RESPONSES
def test_tools_that_the_provider_ran_are_counted_from_its_answer(client, provider, metering):
    provider.json(response())
    client.responses.create(model="gpt-5", input="q")
    assert metering.units() == HOSTED


@RESPONSES
def test_tools_that_the_provider_ran_in_a_stream_are_counted_once(client, provider, metering):
    created = {"type": "response.created", "response": response(status="in_progress", output=[], usage=None)}
    items = [{"type": "response.output_item.done", "output_index": n, "item": item} for n, item in enumerate(ITEMS)]
    provider.stream(sse(created, *items, {"type": "response.completed", "response": response()}))
    list(client.responses.create(model="gpt-5", input="q", stream=True))
    assert metering.units() == HOSTED


@RESPONSES
def test_a_stream_left_early_counts_the_searches_that_were_reported_until_then(client, provider, metering):
    created = {"type": "response.created", "response": response(status="in_progress", output=[], usage=None)}
    items = [{"type": "response.output_item.done", "output_index": n, "item": item} for n, item in enumerate(ITEMS)]
    provider.stream(sse(created, *items[:3]), cut=True)
    with contextlib.suppress(Exception):  # which one depends on the SDK's version
        list(client.responses.create(model="gpt-5", input="q", stream=True))
    events = {event.meter: event for event in metering.flush()}
    assert {meter: event.value for meter, event in events.items()} == {"llm.requests": 1, "llm.web_searches": 2}
    assert events["llm.requests"].own["usage.source"] == "none"


@RESPONSES
def test_the_provider_s_own_count_of_billable_searches_goes_before_ours(client, provider, metering):
    image_gen = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    image_gen["input_tokens_details"] = {"image_tokens": 0, "text_tokens": 0}
    provider.json(response(tool_usage={"image_gen": image_gen, "web_search": {"num_requests": 1}}))
    client.responses.create(model="gpt-5", input="q")
    assert metering.units() == {**HOSTED, "llm.web_searches": 1}


@RESPONSES
def test_tokens_of_the_image_tool_are_those_of_its_own_model(client, provider, metering):
    image_gen = {
        "input_tokens": 50,
        "input_tokens_details": {"image_tokens": 30, "text_tokens": 20},
        "cached_tokens": 15,
        "cached_tokens_details": {"cached_image_tokens": 10, "cached_text_tokens": 5},
        "output_tokens": 515,
        "output_tokens_details": {"image_tokens": 515, "text_tokens": 0},
        "total_tokens": 565,
    }
    tool_usage = {"image_gen": image_gen, "web_search": {"num_requests": 0}}
    provider.json(response(output=ITEMS[5:], tool_usage=tool_usage))
    client.responses.create(model="gpt-5", input="q")
    assert found(metering) == {
        ("requests", "", "gpt-5"): 1,
        ("tokens.input", "", "gpt-5"): 10,
        ("tokens.output", "", "gpt-5"): 5,
        ("images", "", "gpt-5"): 1,
        ("tokens.input", "image", "gpt-image-2"): 20,
        ("tokens.input", "text", "gpt-image-2"): 15,
        ("tokens.cache_read", "image", "gpt-image-2"): 10,
        ("tokens.cache_read", "text", "gpt-image-2"): 5,
        ("tokens.output", "image", "gpt-image-2"): 515,
    }


# ---- further paths ---------------------------------------------------------------------------------------------------


def test_paths_that_are_free_or_bill_nothing_are_not_metered(client, provider, metering):
    provider.json({"id": "modr-1", "model": "omni-moderation", "results": []})
    client.moderations.create(input="x")
    provider.json({"id": "batch_1", "object": "batch", "status": "validating", "endpoint": "/v1/chat/completions"})
    client.batches.create(input_file_id="f", endpoint="/v1/chat/completions", completion_window="24h")
    provider.json({"object": "response.input_tokens", "input_tokens": 11})
    client.post("/responses/input_tokens", body={"model": "gpt-5", "input": "q"}, cast_to=object)
    provider.json({"object": "list", "data": []})
    client.models.list()
    assert metering.flush() == []


def test_a_call_by_path_is_metered_as_by_method(client, provider, metering):
    provider.json({**response(output=[]), "object": "response.compaction", "model": None})
    client.post("/responses/compact", body={"model": "gpt-5", "input": "q"}, cast_to=object)
    assert found(metering) == {
        ("requests", "", "gpt-5"): 1,
        ("tokens.input", "", "gpt-5"): 10,
        ("tokens.output", "", "gpt-5"): 5,
    }
    assert metering.sink.events[0].point["gen_ai.operation.name"] == "compaction"


def test_parsed_answers_and_legacy_completions_are_metered(client, provider, metering):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    known = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}
    provider.json(
        {**known, "choices": [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}], "usage": usage}
    )
    client.completions.create(model="gpt-3.5-turbo-instruct", prompt="q")
    message = {"role": "assistant", "content": "{}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    provider.json({**known, "object": "chat.completion", "choices": [choice], "usage": usage})
    places = (client.chat.completions, getattr(getattr(client.beta, "chat", None), "completions", None))
    parse = next((place.parse for place in places if hasattr(place, "parse")), client.chat.completions.create)
    parse(model="gpt-5", messages=[{"role": "user", "content": "q"}])
    assert metering.units() == {"llm.requests": 2, "llm.tokens.input": 20, "llm.tokens.output": 10}
    operations = {event.point["gen_ai.operation.name"] for event in metering.sink.events}
    assert operations == {"text_completion", "chat"}


@RESPONSES
@pytest.mark.parametrize("deployment", [None, "mine"])
def test_azure_is_metered_under_its_own_name_whatever_its_paths(provider, metering, deployment):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-5-2026", "choices": [choice]}
    with openai.AzureOpenAI(
        api_key="k", api_version="2025-03-01-preview", azure_endpoint=provider.url, azure_deployment=deployment
    ) as client:
        provider.json({**body, "usage": usage})
        client.chat.completions.create(model="mine", messages=[{"role": "user", "content": "q"}])
        provider.json(response(output=[]))
        client.responses.create(model="mine", input="q")
        provider.json({"object": "list", "data": [], "model": "text-embedding-3", "usage": {"prompt_tokens": 8}})
        client.embeddings.create(model="mine", input="q", encoding_format="float")
    assert "/deployments/mine/" in provider.log[0][0]
    assert metering.units() == {"llm.requests": 3, "llm.tokens.input": 28, "llm.tokens.output": 10}
    assert {event.point["gen_ai.provider.name"] for event in metering.sink.events} == {"azure.ai.openai"}


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com/openai/v1/", "azure.ai.openai"),
        ("https://mine.services.ai.azure.com/openai/v1/", "azure.ai.openai"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.x.ai/v1", "x_ai"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1", "aws.bedrock"),
        ("https://generativelanguage.googleapis.com/v1beta/openai/", "gcp.gemini"),
        ("https://us-east1-aiplatform.googleapis.com/v1/projects/p", "gcp.vertex_ai"),
        ("http://localhost:11434/v1", "openai"),
        ("https://notapi.x.ai.example.com/v1", "openai"),
        ("https://fakeapi.x.ai/v1", "openai"),
    ],
)
def test_the_provider_is_named_after_the_host_that_is_called(base_url, name):
    with openai.OpenAI(api_key="k", base_url=base_url) as client:
        assert OpenAI().provider_name(client) == name


# ---- shapes ----------------------------------------------------------------------------------------------------------


def chat(**details):
    return {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140, **details}


@pytest.mark.parametrize(
    "place", [{"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}, {"cached_tokens": 60}]
)
def test_cached_tokens_where_deepseek_and_moonshot_have_them(place):
    assert buckets(chat(**place)) == {
        ("tokens.input", "", ""): 40,
        ("tokens.cache_read", "", ""): 60,
        ("tokens.output", "", ""): 40,
    }


def test_reasoning_that_a_server_counts_beside_the_output_is_not_taken_out_of_it():
    usage = {"prompt_tokens": 100, "completion_tokens": 15, "total_tokens": 140}
    assert buckets({**usage, "completion_tokens_details": {"reasoning_tokens": 25}}) == {
        ("tokens.input", "", ""): 100,
        ("tokens.output", "", ""): 15,
        ("tokens.reasoning", "", ""): 25,
    }


def test_cache_writes_by_their_time_to_live():
    details = {"cached_tokens": 20, "cache_write_tokens": 50}
    details["cache_write_tokens_details"] = {"ttl_30m_tokens": 30, "ttl_12h_tokens": 15}
    usage = {"input_tokens": 100, "input_tokens_details": details, "output_tokens": 1, "total_tokens": 101}
    assert buckets(usage) == {
        ("tokens.input", "", ""): 30,
        ("tokens.cache_read", "", ""): 20,
        ("tokens.cache_write", "", "30m"): 30,
        ("tokens.cache_write", "", "12h"): 15,
        ("tokens.cache_write", "", ""): 5,
        ("tokens.output", "", ""): 1,
    }


def test_text_and_audio_of_input_and_output_are_told_apart():
    usage = chat(
        prompt_tokens_details={"audio_tokens": 30, "text_tokens": 70},
        completion_tokens_details={"audio_tokens": 25, "reasoning_tokens": 5, "text_tokens": 10},
    )
    assert buckets(usage) == {
        ("tokens.input", "audio", ""): 30,
        ("tokens.input", "text", ""): 70,
        ("tokens.output", "audio", ""): 25,
        ("tokens.output", "text", ""): 10,
        ("tokens.reasoning", "", ""): 5,
    }


def test_searches_that_perplexity_reports_are_web_searches():
    assert buckets(chat(num_search_queries=3))[("web_searches", "", "")] == 3
