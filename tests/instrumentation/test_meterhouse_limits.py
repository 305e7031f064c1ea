"""Usage limits: who is paused is stopped before the provider is called, and nobody else notices anything."""

import asyncio
import decimal
import json
import os
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import anthropic
import openai
import pytest

import meterhouse
from meterhouse import leases, limits
from meterhouse.allowance_client import Client

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
}
ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "2+2?"}]}


class Allowance:
    """What the collector answers, and what it was asked. `hold`: it answers only when this is set."""

    def __init__(self):
        self.questions = []
        self.answer = {}
        self.status = 200
        self.seconds = 60
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, question):
        self.questions.append(question)
        self.hold.wait(10)
        expires_at = (datetime.now(UTC) + timedelta(seconds=self.seconds)).isoformat().replace("+00:00", "Z")
        lease_id = question["lease_id"] or f"lease-{len(self.questions)}"
        answer = {"decision": "allow", "lease_id": lease_id, "expires_at": expires_at, "units": None, "weights": {}}
        return self.status, json.dumps(answer | self.answer).encode()


@pytest.fixture
def allowance(metering, sink, monkeypatch):
    """The limits of a fresh process, and the collector's side of them."""
    monkeypatch.setattr(limits, "_client", Client())
    sink.allowance = Allowance()
    yield sink.allowance
    sink.allowance.hold.set()


def fresh(monkeypatch):
    monkeypatch.setattr(limits, "_client", Client())


def client(provider, **options):
    return openai.OpenAI(api_key="k", base_url=f"{provider.url}/v1", **options)


def admitted(customer="acme", task=None):
    """True where a call for this customer may go out."""
    with meterhouse.customer(customer):
        try:
            if task is None:
                limits.admit()
            else:
                with meterhouse.task(task):
                    limits.admit()
        except meterhouse.UsageLimitExceeded:
            return False
    return True


def test_a_paused_customer_s_call_never_reaches_the_provider_and_is_not_retried(allowance, provider):
    allowance.answer = {"decision": "pause", "reason": "hard_cap", "pause_at": "call"}
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded) as raised:
        client(provider, max_retries=3).chat.completions.create(**ASK)
    assert (raised.value.customer, raised.value.reason) == ("acme", "hard_cap")
    assert timedelta(seconds=50) < raised.value.until - datetime.now(UTC) <= timedelta(seconds=61)
    said = r"the usage limit of customer 'acme' is reached \(hard_cap\); a call after 20\S+ asks again"
    assert re.fullmatch(said, str(raised.value))
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded):
        anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=3).messages.create(
            model="claude", max_tokens=9, messages=ASK["messages"]
        )
    assert provider.log == [] and len(allowance.questions) == 1
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.customer, copy.until) == (str(raised.value), "acme", raised.value.until)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("reserved", "all that customer 'acme' may still use is held by other calls, which ends by itself (reserved);"),
        ("prepaid_used", "the prepaid credits of customer 'acme' are used up (prepaid_used);"),
        ("operator", "model calls of customer 'acme' are paused (operator);"),
    ],
)
def test_what_is_said_of_a_pause_is_true_of_its_reason(allowance, reason, said):
    allowance.answer = {"decision": "pause", "reason": reason}
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded) as raised:
        limits.admit()
    assert str(raised.value).startswith(said)


def test_the_async_and_the_streaming_call_are_stopped_as_well(allowance, provider):
    allowance.answer = {"decision": "pause"}

    async def call(**more):
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{provider.url}/v1", max_retries=3) as own:
            with meterhouse.customer("acme"):
                await own.chat.completions.create(**ASK, **more)

    for more in ({}, {"stream": True}):
        with pytest.raises(meterhouse.UsageLimitExceeded):
            asyncio.run(call(**more))
    assert provider.log == []


def test_boto_does_not_retry_a_pause(allowance, provider, library):
    boto3 = library("boto3")
    config = library("botocore.config").Config(retries={"max_attempts": 4, "mode": "standard"})
    bedrock = boto3.client(
        "bedrock-runtime",
        endpoint_url=provider.url,
        region_name="eu-west-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=config,
    )
    allowance.answer = {"decision": "pause"}
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded):
        bedrock.converse(modelId="m", messages=[{"role": "user", "content": [{"text": "hi"}]}])
    assert provider.log == []


def test_langchain_hands_a_pause_on_as_it_is(allowance, provider, library):
    model = library("langchain_openai").ChatOpenAI(model="m", api_key="k", base_url=f"{provider.url}/v1", max_retries=4)
    allowance.answer = {"decision": "pause"}
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded):
        model.invoke("hi")
    assert provider.log == [] and len(allowance.questions) == 1


def test_a_lease_is_asked_for_once_and_its_events_name_it(allowance, provider, metering):
    for _ in range(3):
        provider.json(ANSWER)
        with meterhouse.customer("acme"), meterhouse.agent("support"):
            client(provider).chat.completions.create(**ASK)
    (question,) = allowance.questions
    process_id = question.pop("process_id")
    assert question == {"customer_id": "acme", "agent_id": "support", "lease_id": None, "used": {}, "release": False}
    events = metering.flush()
    assert len(events) == 9 and {event.own["meterhouse.lease.id"] for event in events} == {"lease-1"}
    assert {event.resource["meterhouse.process.id"] for event in events} == {process_id}


def test_customers_and_agents_have_leases_of_their_own_and_nobody_needs_none(allowance):
    assert admitted("acme") and admitted("globex") and admitted("acme")
    with meterhouse.customer("acme"), meterhouse.agent("support"):
        limits.admit()
    limits.admit()  # for no customer: never stopped
    assert [(one["customer_id"], one["agent_id"]) for one in allowance.questions] == [
        ("acme", None),
        ("globex", None),
        ("acme", "support"),
    ]


def test_first_calls_at_the_same_time_ask_once_and_all_wait_for_the_answer(allowance, until):
    allowance.hold.clear()
    allowance.answer = {"decision": "pause"}
    found = []
    threads = [threading.Thread(target=lambda: found.append(admitted())) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: allowance.questions)
    time.sleep(0.1)
    allowance.hold.set()
    for thread in threads:
        thread.join()
    assert found == [False] * 8 and len(allowance.questions) == 1


def test_first_calls_of_many_customers_at_once_all_wait_for_their_own_answer(allowance, sink, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ALLOWANCE_TIMEOUT", "3")

    class Slow(Allowance):
        def __call__(self, question):
            time.sleep(0.5)
            return super().__call__(question)

    sink.allowance = slow = Slow()
    slow.answer = {"decision": "pause"}
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(admitted, [f"customer-{number}" for number in range(30)]))
    assert found == [False] * 30 and len(slow.questions) == 30


def test_a_valid_lease_is_renewed_in_the_background_and_nobody_waits_for_that(allowance, monkeypatch, until):
    monkeypatch.setattr(leases, "RENEW_AT", 0.0)  # at once
    assert admitted()
    allowance.hold.clear()
    allowance.answer = {"decision": "pause"}
    started = time.monotonic()
    assert all(admitted() for _ in range(100))
    assert time.monotonic() - started < 0.5
    until(lambda: len(allowance.questions) == 2)
    assert allowance.questions[1]["lease_id"] == "lease-1"
    allowance.hold.set()
    until(lambda: not admitted())


def test_the_first_call_waits_for_a_slow_collector_no_longer_than_its_time_limit(allowance, monkeypatch, until):
    monkeypatch.setenv("METERHOUSE_ALLOWANCE_TIMEOUT", "0.3")
    fresh(monkeypatch)
    allowance.hold.clear()
    allowance.answer = {"decision": "pause"}
    started = time.monotonic()
    assert admitted()
    assert 0.3 <= time.monotonic() - started < 1
    started = time.monotonic()
    assert all(admitted() for _ in range(100))  # during the outage nobody else waits
    assert time.monotonic() - started < 0.3
    allowance.hold.set()


def test_an_event_loop_goes_on_while_an_answer_is_waited_for(allowance):
    allowance.hold.clear()
    ticks = []

    async def tick():
        while len(ticks) < 5:
            ticks.append(1)
            await asyncio.sleep(0.01)
        allowance.hold.set()

    async def work():
        with meterhouse.customer("acme"):
            await asyncio.gather(tick(), limits.admit_async(), limits.admit_async())

    asyncio.run(asyncio.wait_for(work(), 5))
    assert len(ticks) == 5 and len(allowance.questions) == 1


def test_a_cancelled_call_leaves_the_question_to_the_others(allowance):
    allowance.hold.clear()

    async def work():
        with meterhouse.customer("acme"):
            first = asyncio.create_task(limits.admit_async())
            second = asyncio.create_task(limits.admit_async())
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.sleep(0.05)
            allowance.hold.set()
            await second
            return first.cancelled()

    assert asyncio.run(work()) and len(allowance.questions) == 1


def test_where_nobody_answers_calls_go_out_unless_the_operator_says_otherwise(metering, nowhere, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    fresh(monkeypatch)
    assert admitted()
    monkeypatch.setenv("METERHOUSE_ON_UNREACHABLE", "pause")
    fresh(monkeypatch)
    with meterhouse.customer("acme"), pytest.raises(meterhouse.UsageLimitExceeded, match="unreachable") as raised:
        limits.admit()
    assert (raised.value.reason, raised.value.until) == ("unreachable", None)


@pytest.mark.parametrize(
    ("name", "typo", "taken"),
    [("METERHOUSE_ON_UNREACHABLE", "pausee", "allow"), ("METERHOUSE_LIMITS", "offf", "on")],
)
def test_a_setting_that_is_spelled_wrongly_is_told_once_with_what_is_taken(
    allowance, monkeypatch, caplog, name, typo, taken
):
    monkeypatch.setattr("meterhouse.trouble._warned", set())
    monkeypatch.setenv(name, typo)
    fresh(monkeypatch)
    assert admitted("acme") and admitted("globex")
    (line,) = [record.message for record in caplog.records if name in record.message]
    assert line.startswith(f"Meterhouse takes {name}={taken}: {typo!r} is none of ")


@pytest.mark.parametrize("spelled", ["PAUSE", " pause "])
def test_settings_of_limits_are_read_whatever_their_case(allowance, nowhere, monkeypatch, caplog, spelled):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    monkeypatch.setenv("METERHOUSE_ON_UNREACHABLE", spelled)
    fresh(monkeypatch)
    assert not admitted()
    assert not [record for record in caplog.records if "METERHOUSE_ON_UNREACHABLE" in record.message]


def test_each_customer_s_last_lease_says_what_to_do_when_nobody_answers(allowance, nowhere, monkeypatch):
    allowance.seconds = 1
    allowance.answer = {"on_unreachable": "pause"}
    assert admitted("strict")
    allowance.answer = {"on_unreachable": "allow"}
    assert admitted("lenient")
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    assert admitted("strict") and admitted("lenient")  # the leases still hold
    time.sleep(1.05)
    assert not admitted("strict") and admitted("lenient")


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, {}), (401, {}), (200, {"decision": "maybe"}), (200, {"expires_at": "soon"}), (200, {"units": "many"})],
)
def test_an_answer_that_says_nothing_is_no_answer(allowance, status, answer):
    allowance.status, allowance.answer = status, answer
    assert admitted() and admitted()
    assert len(allowance.questions) == 1


def test_a_collector_without_allowances_is_not_asked_again(allowance, sink, monkeypatch):
    allowance.status = 404
    assert all(admitted() for _ in range(50))
    assert len(allowance.questions) == 1
    monkeypatch.setenv("METERHOUSE_LIMITS", "off")
    fresh(monkeypatch)
    allowance.status, allowance.answer = 200, {"decision": "pause"}
    assert admitted() and len(allowance.questions) == 1


def test_units_are_counted_down_by_weight_and_asked_for_again_before_they_are_used_up(allowance, until):
    allowance.answer = {"units": "100", "weights": {"pages": "2", "agent.seconds": "0.5"}}
    with meterhouse.customer("acme"):
        limits.admit()
        meterhouse.meter("pages").add(20)  # 40 of 100
        meterhouse.meter("unweighted").add(1000)
        assert len(allowance.questions) == 1
        meterhouse.meter("agent.seconds").add(20)  # 10 more: half of it is left, the next is asked for
        until(lambda: len(allowance.questions) == 2)
    assert allowance.questions[1]["lease_id"] == "lease-1"
    assert allowance.questions[1]["used"] == {"pages": "20", "agent.seconds": "20"}


def test_a_lease_that_is_used_up_stops_the_next_call_until_the_collector_says(allowance, until):
    allowance.answer = {"units": "10", "weights": {"pages": "1"}}
    with meterhouse.customer("acme"):
        limits.admit()
        allowance.answer = {"decision": "pause", "reason": "hard_cap"}
        meterhouse.meter("pages").add(10)
        with pytest.raises(meterhouse.UsageLimitExceeded, match="hard_cap"):
            limits.admit()
    assert len(allowance.questions) == 2
    with meterhouse.customer("globex"), pytest.raises(meterhouse.UsageLimitExceeded):
        limits.admit()


def test_after_an_answer_that_got_lost_the_lease_goes_on_and_tells_all_that_was_used(allowance, until):
    allowance.answer = {"units": "2", "weights": {"pages": "1"}}
    assert admitted()
    allowance.status = 503
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(2)  # all of it, so that it asks
        until(lambda: limits._client.leases["acme", ""].left is None)
        meterhouse.meter("pages").add(1)  # while nobody answers, it is let
    allowance.status = 200
    limits._client.ask(("acme", "")).result(10)
    assert (allowance.questions[-1]["lease_id"], allowance.questions[-1]["used"]) == ("lease-1", {"pages": "3"})


def test_usage_between_a_question_and_its_answer_is_taken_off_the_answer(allowance, until):
    allowance.answer = {"units": "10", "weights": {"pages": "1"}}
    with meterhouse.customer("acme"):
        limits.admit()
        allowance.hold.clear()
        meterhouse.meter("pages").add(6)  # asks
        until(lambda: len(allowance.questions) == 2)
        meterhouse.meter("pages").add(3)  # the answer's 10 do not know of these
        allowance.hold.set()
        until(lambda: limits._client.leases["acme", ""].left == 7)
        assert allowance.questions[1]["used"] == {"pages": "6"}
        meterhouse.meter("pages").add(2)  # asks, and tells of all that names this lease
        until(lambda: len(allowance.questions) == 3)
    assert allowance.questions[2]["used"] == {"pages": "11"}


def test_a_call_of_a_task_under_way_may_end_where_the_pause_is_for_tasks(allowance, monkeypatch, until):
    monkeypatch.setattr(leases, "RENEW_AT", 0.0)
    assert admitted(task="t-1")
    allowance.answer = {"decision": "pause", "pause_at": "task"}
    until(lambda: not admitted())
    assert admitted(task="t-1") and not admitted(task="t-2")
    with meterhouse.customer("acme"), meterhouse.task("t-1"), meterhouse.task("inner"):
        limits.admit()
    allowance.answer = {"decision": "pause", "pause_at": "call"}
    fresh(monkeypatch)
    assert not admitted(task="t-1")


def test_a_host_that_waits_goes_on_when_the_pause_ends(allowance, monkeypatch, until):
    monkeypatch.setattr(limits, "ASK_AGAIN_S", 0.05)
    allowance.answer = {"decision": "pause"}
    threading.Timer(0.3, lambda: allowance.answer.update(decision="allow")).start()
    with meterhouse.customer("acme"), meterhouse.waiting(5):
        limits.admit()
    assert len(allowance.questions) > 2

    async def work():
        with meterhouse.customer("globex"):
            async with meterhouse.waiting(0.2):
                await limits.admit_async()

    allowance.answer = {"decision": "pause"}
    started = time.monotonic()
    with pytest.raises(meterhouse.UsageLimitExceeded):
        asyncio.run(work())
    assert 0.2 <= time.monotonic() - started < 2
    monkeypatch.setenv("METERHOUSE_LIMIT_WAIT_S", "0.1")
    started = time.monotonic()
    assert not admitted("globex") and time.monotonic() - started >= 0.1
    with pytest.raises(ValueError, match="a time to wait"):
        meterhouse.waiting(-1)


def test_memory_is_bounded_and_the_lease_that_was_renewed_longest_ago_goes_first(allowance, monkeypatch):
    monkeypatch.setattr("meterhouse.allowance_client.LEASES", 3)
    for customer in ("a", "b", "c", "d"):
        assert admitted(customer)
    assert list(limits._client.leases) == [("b", ""), ("c", ""), ("d", "")]


PROGRAM = """
import os, sys, openai, meterhouse
from meterhouse import limits
def call():
    with meterhouse.customer("acme"):
        limits.admit()
        meterhouse.meter("pages").add(1)
call()
if sys.argv[1:] == ["fork"]:
    child = os.fork()
    call()
    if child:
        os.waitpid(child, 0)
    else:
        import meterhouse.runtime
        meterhouse.runtime.flush(5)
        os._exit(0)
"""


def test_units_are_given_back_at_the_end_after_the_usage_was_delivered(allowance, agent, sink):
    allowance.answer = {"units": "10", "weights": {"pages": "1"}}
    process = agent(PROGRAM)
    assert process.wait(30) == 0, process.stderr.read()
    asked, released = allowance.questions
    assert (asked["release"], released["release"], released["lease_id"]) == (False, True, "lease-1")
    assert released["used"] == {"pages": "1"}
    assert [event.own["meterhouse.lease.id"] for event in sink.events] == ["lease-1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_leases_of_its_own(allowance, agent, sink):
    process = agent(PROGRAM, "fork")
    assert process.wait(30) == 0, process.stderr.read()
    asked = [one for one in allowance.questions if not one["release"]]
    assert len(asked) == 2 and asked[0]["process_id"] != asked[1]["process_id"]
    assert sorted(event.own["meterhouse.lease.id"] for event in sink.events) == ["lease-1", "lease-1", "lease-2"]


@pytest.mark.parametrize(
    "bad",
    [
        {"units": "10", "weights": {"pages": "9e9999999"}},
        {"units": "10", "weights": {"pages": "-5"}},
        {"units": "9" * 5000},
        {"units": True},
        {"units": "NaN"},
        {"weights": {f"m{number}": "1" for number in range(1001)}},
        {"lease_id": ["x"]},
        {"lease_id": "x" * 257},
        {"reason": {"a": 1}},
        {"padding": "x" * 2**20},
    ],
)
def test_an_answer_beyond_all_bounds_is_no_answer_and_usage_counts(allowance, metering, monkeypatch, bad):
    monkeypatch.setenv("METERHOUSE_ON_UNREACHABLE", "pause")
    allowance.answer = bad
    assert not admitted()
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(7)
    assert metering.units() == {"pages": 7}


def test_usage_counts_before_it_counts_against_a_limit(metering, monkeypatch):
    def fails(_recorded):
        raise ArithmeticError

    monkeypatch.setattr(limits, "spend", fails)
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(7)
    assert metering.units() == {"pages": 7}


def test_units_are_counted_exactly_whatever_the_host_s_decimal_context(allowance):
    allowance.answer = {"units": "1000000", "weights": {"pages": "3"}}
    with decimal.localcontext(decimal.Context(prec=4, traps=[decimal.Inexact])):
        assert admitted()
        with meterhouse.customer("acme"):
            for _ in range(9):
                meterhouse.meter("pages").add(3)
    assert limits._client.leases["acme", ""].left == 999_919
