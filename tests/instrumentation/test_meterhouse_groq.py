"""What is particular to Groq; its scenarios are those of test_meterhouse_openai_matrix.py."""

import groq
import pytest

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def groq_call(provider, **answer):
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    known = {"id": "c", "object": "chat.completion", "created": 1, "model": "groq/compound", "choices": [choice]}
    provider.json({**known, **answer})
    with groq.Groq(api_key="k", base_url=provider.url) as client:
        client.chat.completions.create(model="groq/compound", messages=[{"role": "user", "content": "q"}])


def by_model(metering):
    return {
        (event.point["gen_ai.response.model"], event.meter.removeprefix("llm.tokens.")): event.value
        for event in metering.flush()
    }


def parts(*usages):
    return {"models": [{"model": model, "usage": usage} for model, usage in usages]}


SMALL = {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
LARGE = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}


def test_models_that_worked_together_on_groq_have_their_own_tokens(metering, provider):
    groq_call(provider, usage=USAGE, usage_breakdown=parts(("small", SMALL), ("large", LARGE)))
    assert by_model(metering) == {
        ("groq/compound", "llm.requests"): 1,
        ("small", "input"): 4,
        ("small", "output"): 1,
        ("large", "input"): 6,
        ("large", "output"): 4,
    }


def test_parts_that_do_not_add_up_to_the_usage_leave_the_usage_as_it_is(metering, provider):
    groq_call(provider, usage=USAGE, usage_breakdown=parts(("small", SMALL)))
    assert by_model(metering) == {
        ("groq/compound", "llm.requests"): 1,
        ("groq/compound", "input"): 10,
        ("groq/compound", "output"): 5,
    }


@pytest.mark.cell("groq", "modalities")
def test_groq_s_transcriptions_are_seconds_where_they_say_how_long(metering, provider):
    with groq.Groq(api_key="k", base_url=provider.url) as client:
        provider.json({"text": "x", "duration": 2.5, "x_groq": {"id": "req_1"}})
        client.audio.transcriptions.create(
            model="whisper-large-v3", file=("a.wav", b"wav"), response_format="verbose_json"
        )
        provider.json({"text": "x", "x_groq": {"id": "req_1"}})
        client.audio.transcriptions.create(model="whisper-large-v3", file=("a.wav", b"wav"))
    assert metering.units() == {"llm.requests": 2, "llm.audio.seconds": 2.5}


@pytest.mark.cell("groq", "tool results handed back")
def test_tool_results_handed_back_to_groq_count_once(metering, provider):
    asked = {"id": "call_groq0001", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    given = {"role": "tool", "tool_call_id": "call_groq0001", "content": "x"}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    known = {"id": "c", "object": "chat.completion", "created": 1, "model": "llama", "choices": [choice]}
    with groq.Groq(api_key="k", base_url=provider.url) as client:
        for _ in range(2):
            provider.json({**known, "usage": USAGE})
            client.chat.completions.create(
                model="llama", messages=[{"role": "assistant", "tool_calls": [asked]}, given]
            )
    (event,) = [event for event in metering.flush() if event.meter == "tool.calls"]
    assert event.point["gen_ai.tool.name"] == "search" and event.point["gen_ai.provider.name"] == "groq"
