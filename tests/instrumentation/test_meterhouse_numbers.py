"""What a provider reports that is no count: it is read, held or called unknown, and never becomes a silent 0."""

import json
import math

import openai
import pytest

import meterhouse
from meterhouse.events import Row, cut, of_call
from meterhouse.providers import anthropic as anthropic_reader
from meterhouse.providers import openai_usage as openai_reader
from meterhouse.usage import call_rows, count

ASK = {"model": "gpt-5-mini", "messages": []}


def completion(usage, **changes):
    message = {"role": "assistant", "content": "y"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
        **changes,
    }


def chat(given, made, **details):
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": 0, **details}


@pytest.fixture
def call(metering, provider, monkeypatch):
    """One chat whose answer is the document; returns its events by meter."""
    monkeypatch.setattr("meterhouse.trouble._warned", set())

    def ask(document):
        provider.json(document)
        with meterhouse.customer("acme"), openai.OpenAI(api_key="k", base_url=provider.url + "/v1") as client:
            client.chat.completions.create(**ASK)
        return {event.meter: event for event in metering.flush()}

    return ask


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        (12, 12),
        (0, 0),
        (12.0, 12),
        ("12", 12),
        (" 12.0 ", 12),
        (None, None),
        (-12, -12),
        ("-12", -12),
        (12.5, 12.5),
        ("12.5", 12.5),
        (10**15, 10**15),
        (10**30, 1e30),
        (1e30, 1e30),
        (10**400, math.inf),
        (math.inf, math.inf),
    ],
    ids=lambda number: f"{number!r:.20}({type(number).__name__})",
)
def test_what_a_provider_reports_is_read_as_the_number_that_it_is(reported, read):
    found = count({"n": reported}, "n")
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize(
    "reported", ["many", "", "1_000", "٣", "1" * 5000, [12], {"n": 12}, True, math.nan], ids=lambda bad: f"{bad!r:.20}"
)
def test_what_is_no_number_is_unknown_and_not_zero(reported):
    assert math.isnan(count({"n": reported}, "n"))


def test_details_that_are_no_object_are_unknown_and_empty_ones_are_absent():
    assert math.isnan(count({"details": "x"}, "details", "n"))
    assert count({"details": []}, "details", "n") is None
    assert count({}, "details", "n") is None


@pytest.mark.parametrize(("given", "made"), [(12.0, 7.0), ("12", "7")])
def test_integral_floats_and_decimal_strings_count_as_the_sdk_reads_them(call, given, made):
    found = call(completion(chat(given, made)))
    assert {meter: event.value for meter, event in found.items()} == {
        "llm.requests": 1,
        "llm.tokens.input": 12,
        "llm.tokens.output": 7,
    }
    assert type(found["llm.tokens.input"].value) is int
    assert {event.own["usage.source"] for event in found.values()} == {"reported"}


def test_a_negative_count_is_sent_as_it_is_in_a_point_of_its_own(call):
    found = call(completion(chat(-12, 7)))
    assert found["llm.tokens.input"].value == found["llm.tokens.input"].point_value == -12.0
    assert type(found["llm.tokens.input"].value) is float
    assert found["llm.tokens.output"].value == 7


def test_half_a_token_is_sent_as_no_number_with_what_was_reported_beside_it(call):
    found = call(completion(chat(12.5, 7)))
    assert math.isnan(found["llm.tokens.input"].value)
    assert found["llm.tokens.input"].own["usage.quantity"] == "12.5"
    assert found["llm.tokens.output"].value == 7


@pytest.mark.parametrize("bad", ["many", [12], True])
def test_a_count_that_is_no_number_makes_the_call_s_usage_unknown_and_is_said_once(call, caplog, bad):
    found = call(completion(chat(bad, 7)))
    assert {meter: event.value for meter, event in found.items()} == {"llm.requests": 1, "llm.tokens.output": 7}
    assert found["llm.requests"].own["usage.source"] == "none"
    assert found["llm.tokens.output"].own["usage.source"] == "reported"
    call(completion(chat(bad, 7)))
    assert [record.getMessage() for record in caplog.records if record.name == "meterhouse"] == [
        "Meterhouse cannot read what openai reported for llm.tokens.input: it is no number. The call is counted with "
        "usage.source none, its tokens there are unknown."
    ]


def test_a_usage_without_any_count_is_unknown(call):
    found = call(completion({"total_tokens": 19}))
    assert list(found) == ["llm.requests"] and found["llm.requests"].own["usage.source"] == "none"


def test_reported_zeros_are_no_events_and_the_call_is_known(call):
    found = call(completion(chat(0, 0)))
    assert list(found) == ["llm.requests"] and found["llm.requests"].own["usage.source"] == "reported"


def openai_buckets(usage):
    return {
        (row.meter.removeprefix("llm.tokens."), row.modality): row.quantity
        for row in openai_reader.rows(usage)
        if row.quantity not in (0, None)
    }


def test_more_cached_than_given_leaves_a_negative_rest_that_is_held():
    """The buckets still add up to what was reported, 40: the parts count, the contradiction waits in suspense."""
    usage = chat(40, 7, prompt_tokens_details={"cached_tokens": 60})
    assert openai_buckets(usage) == {("input", ""): -20, ("cache_read", ""): 60, ("output", ""): 7}


def test_a_part_that_is_no_count_is_held_and_not_taken_out_of_its_total():
    for bad in (-12, 12.5, 1e30):
        usage = chat(40, 7, prompt_tokens_details={"cached_tokens": bad})
        assert openai_buckets(usage) == {("input", ""): 40, ("cache_read", ""): bad, ("output", ""): 7}


def test_a_total_that_is_no_count_is_held_as_reported_and_its_parts_count():
    usage = chat(-12, 12.5, prompt_tokens_details={"cached_tokens": 5})
    assert openai_buckets(usage) == {("input", ""): -12, ("cache_read", ""): 5, ("output", ""): 12.5}


def test_parts_without_a_total_count_and_no_rest_is_made_up():
    usage = {"completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 5}}
    assert openai_buckets(usage) == {("cache_read", ""): 5, ("output", ""): 7}


def test_media_that_do_not_fit_into_their_total_leave_a_negative_text_rest():
    usage = chat(40, 7, prompt_tokens_details={"audio_tokens": 60})
    assert openai_buckets(usage) == {("input", "audio"): 60, ("input", "text"): -20, ("output", ""): 7}


def test_media_that_may_be_among_the_cached_ones_are_taken_as_far_as_they_go():
    usage = chat(100, 7, prompt_tokens_details={"cached_tokens": 90, "audio_tokens": 50})
    assert openai_buckets(usage) == {("input", "audio"): 10, ("cache_read", ""): 90, ("output", ""): 7}


def anthropic_buckets(usage):
    rows = anthropic_reader.rows(usage)
    named = {(row.meter.removeprefix("llm."), row.cache_ttl): row.quantity for row in rows}
    assert len(named) == len(rows)
    return {name: quantity for name, quantity in named.items() if quantity not in (0, None)}


def test_more_thinking_than_output_leaves_a_negative_rest_that_is_held():
    usage = {"input_tokens": 3, "output_tokens": 10, "output_tokens_details": {"thinking_tokens": 25}}
    assert anthropic_buckets(usage) == {
        ("tokens.input", ""): 3,
        ("tokens.output", ""): -15,
        ("tokens.reasoning", ""): 25,
    }


def test_cache_writes_whose_details_exceed_their_total_leave_a_negative_rest_that_is_held():
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_5m_input_tokens": 15}}
    assert anthropic_buckets(usage) == {
        ("tokens.input", ""): 3,
        ("tokens.cache_write", "5m"): 15,
        ("tokens.cache_write", ""): -5,
    }


def test_cache_writes_without_a_total_are_their_details():
    usage = {"input_tokens": 3, "cache_creation": {"ephemeral_5m_input_tokens": 15}}
    assert anthropic_buckets(usage) == {("tokens.input", ""): 3, ("tokens.cache_write", "5m"): 15}


def test_a_sum_with_a_bad_part_is_that_part_and_does_not_pass_for_a_count():
    compaction = {"type": "compaction", "input_tokens": 100, "output_tokens": 20}
    usage = {"input_tokens": -12, "output_tokens": 7, "iterations": [compaction]}
    assert anthropic_buckets(usage) == {("tokens.input", ""): -12, ("tokens.output", ""): 27}


def test_rows_that_were_not_reported_are_left_out_and_unreadable_ones_are_owned_up_to():
    known = [Row("a", 3), Row("b", None), Row("c", 0)]
    assert call_rows(known) == [Row("llm.requests", 1), Row("a", 3), Row("c", 0)]
    assert call_rows([*known, Row("d", math.nan)]) == [
        Row("llm.requests", 1, usage_source="none"),
        Row("a", 3),
        Row("c", 0),
    ]
    assert call_rows([Row("b", None)]) == [Row("llm.requests", 1, usage_source="none")]


def test_only_zeros_are_no_events():
    events = of_call("c", 5, [Row("a", 0), Row("b", -3), Row("c", 1.5)], {})
    assert [event.meter for event in events] == ["b", "c"]
    assert math.isnan(events[1].quantity) and events[1].attributes == {"usage.quantity": "1.5"}


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("m\ud800", "m\ufffd"),
        ("\udfff\ud800", "\ufffd\ufffd"),
        ("😀", "😀"),
        ("i" * 255 + "\ud800", "i" * 255),
        ("\ud800" * 100, "\ufffd" * 85),
    ],
)
def test_half_a_surrogate_pair_in_an_identifier_becomes_the_replacement_character(raw, clean):
    assert cut(raw) == clean


@pytest.mark.parametrize("place", ["model", "id", "service_tier"])
def test_half_a_surrogate_pair_from_a_provider_loses_nothing(call, metering, place):
    found = call(completion(chat(12, 7), **{place: "x" * 80 + "\ud800"}))
    assert {meter: event.value for meter, event in found.items()} == {
        "llm.requests": 1,
        "llm.tokens.input": 12,
        "llm.tokens.output": 7,
    }
    names = {"model": "gen_ai.response.model", "id": "gen_ai.response.id", "service_tier": "service.tier"}
    assert {event.everything[names[place]] for event in found.values()} == {"x" * 80 + "\ufffd"}
    assert list(metering.journals.iterdir()) == []


def test_half_a_surrogate_pair_in_the_request_or_the_environment_is_cleaned_in_the_journal_too(
    call, metering, monkeypatch, nowhere
):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop\udce9")
    monkeypatch.setenv("METERHOUSE_AGENT", "agent\udce9")
    found = call(completion(chat(12, 7)))
    assert not any("gen_ai.agent.name" in event.point for event in found.values())  # no name that an agent can have
    assert {event.resource["service.name"] for event in found.values()} == {"shop\ufffd"}
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    meterhouse.meter("pages").add(1)
    meterhouse.runtime.flush(10)
    (journal,) = metering.journals.glob("*.journal")
    header, *_ = (json.loads(line) for line in journal.read_text().splitlines())
    assert header["process"]["service.name"].isprintable() and "\udce9" not in header["process"]["service.name"]


def test_nesting_without_end_reaches_the_host_as_its_own_sdk_reports_it(call, provider, metering):
    provider.replies.append(lambda handler, _: handler.answer(200, b"[" * 100_000))
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**ASK)
    assert len(raw.content) == 100_000
    assert metering.units() == {"llm.requests": 1}
