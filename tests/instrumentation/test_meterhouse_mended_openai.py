"""What a hostile reader found in how OpenAI's streams are asked for their usage, and read, whatever the host does."""

import copy
import json
import pickle

import httpx
import openai
import pytest
import wrapt

from meterhouse.otel import MeterhouseInstrumentor
from meterhouse.providers import asking
from meterhouse.providers.asking import Asking
from meterhouse.providers.openai import unasked

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ASK = {"model": "gpt-5", "messages": [{"role": "user", "content": "q"}]}
UNITS = {"llm.requests": 1, "llm.tokens.input": 10, "llm.tokens.output": 5}
DONE = b"data: [DONE]\n\n"
BODY = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def piece(text=None, **more):
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    known = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5", "choices": choices}
    return b"data: " + json.dumps({**known, **more}, separators=(",", ":")).encode() + b"\n\n"


def by_question(events, usage=None):
    """A stream that has `usage` before its end only where it was asked for."""

    def reply(handler, body):
        asked = (body.get("stream_options") or {}).get("include_usage")
        told = [usage or piece(usage=USAGE)] if asked else []
        handler.answer(200, b"".join([*events, *told, DONE]), "text/event-stream")

    return reply


def refusing(message, status=400, **more):
    error = {"error": {"message": message, **more}}
    return lambda handler, _: handler.answer(status, json.dumps(error).encode())


def texts(client, model="gpt-5"):
    stream = client.chat.completions.create(**{**ASK, "model": model}, stream=True)
    return [chunk.choices[0].delta.content for chunk in stream]


@pytest.fixture
def known(monkeypatch):
    """Nothing is known of any server yet."""
    fresh = Asking()
    for module in ("sdk_client", "litellm"):
        monkeypatch.setattr(f"meterhouse.providers.{module}.ASKING", fresh)
    return fresh


@pytest.fixture
def client(metering, provider, known):
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=0) as client:
        yield client


# ---- the usage that was asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["content", "text"])
def test_a_stream_that_a_hook_of_the_host_has_read_is_as_without_our_question(metering, provider, known, attribute):
    def hook(response):
        response.read()
        getattr(response, attribute)

    provider.replies.append(by_question([piece("a"), piece("b")]))
    http = httpx.Client(event_hooks={"response": [hook]})
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as client:
        stream = client.chat.completions.create(**ASK, stream=True)
        assert b"usage" not in stream.response.content and "usage" not in stream.response.text
        assert [chunk.choices[0].delta.content for chunk in stream] == ["a", "b"]
    assert metering.units() == UNITS


@pytest.mark.parametrize("choices", [{"choices": None}, {"choices": []}, {}], ids=["null", "empty", "absent"])
def test_a_usage_of_no_choice_is_taken_out_again(client, provider, metering, choices):
    document = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5", "usage": USAGE, **choices}
    usage = b"data: " + json.dumps(document).encode() + b"\n\n"
    provider.replies.append(by_question([piece("a"), piece("b")], usage))
    assert texts(client) == ["a", "b"]
    assert metering.units() == UNITS


def test_an_error_beside_a_usage_reaches_the_host():
    event = piece(usage=USAGE, error={"message": "overloaded"})
    assert unasked(event) == event


def test_a_usage_beside_a_choice_stays_because_servers_tell_it_there_unasked(client, provider, metering):
    provider.stream([piece("a"), piece("b", usage=USAGE), DONE])
    told = [chunk.usage and chunk.usage.total_tokens for chunk in client.chat.completions.create(**ASK, stream=True)]
    assert told == [None, 15]
    assert metering.units() == UNITS


def test_a_provider_that_tells_its_usage_unasked_is_not_asked_and_nothing_is_taken_out(metering, provider, known):
    provider.stream([piece("a"), piece(usage=USAGE), DONE])

    class Routed(openai.OpenAI):
        pass

    with Routed(api_key="k", base_url="http://openrouter.ai/api/v1", http_client=httpx.Client(proxy=provider.url)) as c:
        told = [chunk.usage and chunk.usage.total_tokens for chunk in c.chat.completions.create(**ASK, stream=True)]
    assert told == [None, 15]
    assert "stream_options" not in provider.log[0][2]
    assert metering.units() == UNITS


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/json", "application/octet-stream", "Text/Event-Stream"]
)
def test_what_the_server_calls_a_stream_does_not_matter(client, provider, metering, kind):
    body = b"".join([piece("a"), piece("b"), piece(usage=USAGE), DONE])

    def reply(handler, _):
        handler.send_response(200)
        if kind:
            handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    provider.replies.append(reply)
    assert texts(client) == ["a", "b"]
    assert metering.units() == UNITS


def test_a_body_of_any_kind_that_is_json_is_read(client, provider, metering):
    provider.replies.append(
        lambda handler, _: handler.answer(200, json.dumps(BODY).encode(), "application/octet-stream")
    )
    client.chat.completions.create(**ASK)
    assert metering.units() == UNITS


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_one_refusal_without_a_reason_does_not_end_the_asking(client, provider, metering):
    provider.replies.append(refusing("flaky"))
    for _ in range(3):
        provider.replies.append(by_question([piece("a")]))
    assert [texts(client) for _ in range(3)] == [["a"]] * 3
    assert ["stream_options" in body for _, _, body in provider.log] == [True, False, True, True]
    assert metering.units() == {"llm.requests": 3, "llm.tokens.input": 20, "llm.tokens.output": 10}


def test_refusals_without_a_reason_end_the_asking_when_they_are_repeated(client, provider):
    for _ in range(3):
        provider.replies += [refusing("no"), by_question([piece("a")])]
    provider.replies.append(by_question([piece("a")]))
    for _ in range(4):
        texts(client)
    assert ["stream_options" in body for _, _, body in provider.log] == [True, False] * 3 + [False]


def test_a_model_that_refuses_says_nothing_about_the_others_of_its_server(client, provider, metering):
    def reply(handler, body):
        if body["model"] == "old" and "stream_options" in body:
            refusing("Unrecognized request argument supplied: stream_options")(handler, body)
        else:
            by_question([piece("a")])(handler, body)

    provider.replies += [reply] * 6
    for model in ("new", "old", "old", "new", "new"):
        texts(client, model)
    asked = ["stream_options" in body for _, _, body in provider.log]
    assert asked == [True, True, False, False, True, True]
    assert metering.units() == {"llm.requests": 5, "llm.tokens.input": 30, "llm.tokens.output": 15}


@pytest.mark.parametrize(
    ("server", "twice"),
    [
        ("https://api.openai.com/v1/", False),
        ("https://eu.api.openai.com/v1/", False),
        ("https://notapi.openai.com.example/v1/", True),
        ("http://localhost:8000/v1/", True),
    ],
)
def test_an_unnamed_refusal_of_a_server_that_is_known_to_take_the_question_is_not_repeated(known, server, twice):
    error = ValueError("bad request")
    error.status_code = 400
    assert known.may_refuse(server, "m", error) is twice


def test_an_unnamed_refusal_of_a_model_that_took_the_question_before_is_not_repeated(client, provider):
    provider.replies += [by_question([piece("a")]), refusing("no")]
    assert texts(client) == ["a"]
    with pytest.raises(openai.BadRequestError):
        texts(client)
    assert len(provider.log) == 2


def test_a_refusal_is_forgotten_after_an_hour(known, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: clock[0])
    known.refused("http://s", "m", ValueError("unknown field stream_options"))
    assert not known.needed("openai", "http://s", "m")
    clock[0] += 3601
    assert known.needed("openai", "http://s", "m")


def test_what_is_known_of_servers_is_bounded(known, monkeypatch):
    monkeypatch.setattr(asking, "REMEMBERED", 2)
    for model in "abc":
        known.refused("http://s", model, ValueError("stream_options"))
    assert [known.needed("openai", "http://s", model) for model in "abc"] == [True, False, False]


def test_an_error_that_names_another_field_is_the_hosts_and_sent_once(client, provider, metering):
    provider.replies.append(refusing("too long", param="messages", code="context_length_exceeded"))
    with pytest.raises(openai.BadRequestError, match="too long"):
        texts(client)
    assert len(provider.log) == 1
    (event,) = metering.flush()
    assert event.everything["meterhouse.status"] == "failed"


def test_a_server_that_took_the_question_before_is_believed_its_refusal(client, provider):
    provider.replies += [by_question([piece("a")]), refusing("overloaded")]
    texts(client)
    with pytest.raises(openai.BadRequestError, match="overloaded"):
        texts(client)
    assert len(provider.log) == 2


def test_where_the_second_try_fails_as_well_the_host_sees_its_own_error(client, provider, known):
    provider.replies += [refusing("first"), refusing("second")]
    with pytest.raises(openai.BadRequestError, match="second"):
        texts(client)
    assert known.needed("openai", str(client.base_url), "gpt-5")


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_falsy_error_in_a_stream_is_none(client, provider, metering):
    provider.stream([piece("a"), piece("b", error={}), piece(usage=USAGE), DONE])
    options = {"include_usage": True}
    assert len(list(client.chat.completions.create(**ASK, stream=True, stream_options=options))) == 3
    assert metering.units() == UNITS


@pytest.mark.parametrize(
    "again", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_a_response_that_was_read_can_be_copied_and_pickled(client, provider, again):
    provider.replies.append(by_question([piece("a")]))
    with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        read = response.read()
        assert again(response.http_response).content == read


# ---- calls inside calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_a_hook_of_another_call_makes_is_a_call_of_its_own(metering, provider, known, stream):
    guard = {**BODY, "model": "guard", "usage": {"prompt_tokens": 777, "completion_tokens": 7}}
    provider.json(guard)
    provider.replies.append(by_question([piece("a")])) if stream else provider.json(BODY)
    inner = openai.OpenAI(api_key="k", base_url=provider.url + "/v1")
    hook = lambda _: inner.chat.completions.create(**{**ASK, "model": "guard"})  # noqa: E731
    http = httpx.Client(event_hooks={"request": [hook]})
    with inner, openai.OpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as client:
        answer = client.chat.completions.create(**ASK, stream=stream)
        if stream:
            assert [chunk.choices[0].delta.content for chunk in answer] == ["a"]
    told = {(e.everything["gen_ai.request.model"], e.meter): e.value for e in metering.flush()}
    assert told == {
        ("guard", "llm.requests"): 1,
        ("guard", "llm.tokens.input"): 777,
        ("guard", "llm.tokens.output"): 7,
        ("gpt-5", "llm.requests"): 1,
        ("gpt-5", "llm.tokens.input"): 10,
        ("gpt-5", "llm.tokens.output"): 5,
    }


# ---- beside others ---------------------------------------------------------------------------------------------------


def test_a_wrapper_on_top_of_ours_stays_when_we_leave_and_come_back(metering, provider, known):
    from openai import _base_client

    seen = []

    def theirs(wrapped, _instance, args, kwargs):
        seen.append(1)
        return wrapped(*args, **kwargs)

    ours = _base_client.SyncAPIClient.__dict__["request"]
    wrapt.wrap_function_wrapper(_base_client, "SyncAPIClient.request", theirs)
    client = openai.OpenAI(api_key="k", base_url=provider.url + "/v1")
    try:
        for _ in range(3):
            provider.json(BODY)
        client.chat.completions.create(**ASK)
        MeterhouseInstrumentor().uninstrument()
        client.chat.completions.create(**ASK)
        assert (len(seen), metering.units()) == (2, UNITS)
        MeterhouseInstrumentor().instrument(skip_dep_check=True)
        client.chat.completions.create(**ASK)
        assert len(seen) == 3
        assert metering.units() == {meter: 2 * units for meter, units in UNITS.items()}
    finally:
        _base_client.SyncAPIClient.request = ours
        client.close()


def test_patched_methods_are_pickled_and_copied_as_before(client):
    assert pickle.loads(pickle.dumps(openai.OpenAI.request)) is not None
    assert copy.copy(client.request) == client.request
    assert copy.deepcopy(openai.OpenAI.request) == openai.OpenAI.request
