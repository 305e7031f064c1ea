"""Meters of the host's own: durations, dimensions, and ids that count once whenever they are told."""

import asyncio
import decimal
import threading
import time
from decimal import Decimal
from types import SimpleNamespace

import pytest

import meterhouse


def test_an_event_id_is_marked_to_count_once_whenever_it_is_told(metering):
    meterhouse.meter("pages").add(3, event_id="job-42")
    meterhouse.meter("seconds").add(9, event_id="job-42")
    meterhouse.meter("pages").add(1)
    found = {(e.meter, e.value): e.own.get("meterhouse.once") for e in metering.flush()}
    assert found == {("pages", 3): "true", ("seconds", 9): "true", ("pages", 1): None}


def test_a_given_task_id_counts_once_for_each_outcome_and_a_fresh_one_needs_no_mark(metering):
    for outcome in ("failed", "ok", "ok"):
        with meterhouse.task("job-7") as task:
            if outcome == "failed":
                task.fail()
    with meterhouse.task():
        pass
    found = [(e.id, e.point["meterhouse.status"], e.own.get("meterhouse.once")) for e in metering.flush()]
    assert [row[1:] for row in found] == [("failed", "true"), ("ok", "true"), ("ok", "true"), ("ok", None)]
    assert found[1][0] == found[2][0] != found[0][0]


def test_a_conversation_is_told_once_per_process_with_an_id_that_every_process_gives_it(metering):
    for customer in ("acme", "globex"):
        with meterhouse.customer(customer), meterhouse.conversation("c-1"):
            meterhouse.meter("pages").add(1)
            meterhouse.meter("pages").add(1)
    found = [e for e in metering.flush() if e.meter == "agent.conversations"]
    # sha256 of "conversation", customer and conversation, joined by zero bytes: its first 32 digits
    assert [(e.point["customer.id"], e.id) for e in found] == [
        ("acme", "0962cdf03724eaeabcf4a3534b753377"),
        ("globex", "49f6fc4b8ab2037684c93a75eed506f1"),
    ]
    assert all(e.own["meterhouse.once"] == "true" and e.value == 1 for e in found)


def test_durations_are_exact_decimal_seconds_of_a_monotonic_clock(metering, monkeypatch):
    times = iter([1_000_000_000, 3_500_000_001, 0, 10**15 + 999])
    clock = SimpleNamespace(monotonic_ns=lambda: next(times), time_ns=time.time_ns)
    with monkeypatch.context() as patched:
        patched.setattr("meterhouse.api.time", clock)
        for _ in range(2):
            with meterhouse.meter("agent.seconds").timed():
                pass
    values = [Decimal(repr(e.value)) for e in metering.flush()]
    assert values == [Decimal("2.500000001"), Decimal("1000000")]


def test_durations_decorate_all_kinds_of_functions_and_know_how_they_ended(metering):
    timed = meterhouse.meter("agent.seconds").timed(attributes={"phase": "plan"})

    @timed
    def failing():
        raise KeyError

    @timed
    async def slow():
        await asyncio.sleep(10)

    @timed
    def generator():
        yield 1
        time.sleep(0.02)
        yield 2

    async def cancelled():
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with meterhouse.customer("acme"):
        with pytest.raises(KeyError):
            failing()
        asyncio.run(cancelled())
        assert list(generator()) == [1, 2]
    found = [e for e in metering.flush() if e.meter == "agent.seconds"]
    assert [e.point["meterhouse.status"] for e in found] == ["failed", "aborted", "ok"]
    assert [e.own["phase"] for e in found] == ["plan"] * 3 and {e.point["customer.id"] for e in found} == {"acme"}
    assert 0.01 <= found[1].value < 5 and 0.02 <= found[2].value < 5


def test_a_timed_function_may_run_in_many_threads_at_once(metering):
    @meterhouse.meter("agent.seconds").timed()
    def nap():
        time.sleep(0.05)

    threads = [threading.Thread(target=nap) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = [e.value for e in metering.flush()]
    assert len(values) == 8 and all(0.05 <= value < 2 for value in values)


def test_dimensions_of_the_host_s_own_travel_with_the_event(metering):
    meterhouse.meter("pages").add(1, attributes={"team": "blue", "invoice.number": "é" * 128})
    (event,) = metering.flush()
    assert (event.own["team"], event.own["invoice.number"]) == ("blue", "é" * 128)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"customer.id": "x"}, "an attribute's name"),
        ({"meterhouse.once": "true"}, "an attribute's name"),
        ({"gen_ai.conversation.id": "x"}, "an attribute's name"),
        ({"Team": "x"}, "an attribute's name"),
        ({7: "x"}, "an attribute's name"),
        ({"team": 7}, "the attribute team is a string"),
        ({"team": "x" * 257}, "the attribute team is a string"),
        ({f"a{n}": "x" for n in range(33)}, "at most 32 attributes"),
    ],
)
def test_dimensions_that_cannot_be_kept_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        meterhouse.meter("pages").add(1, attributes=bad)
    with pytest.raises(ValueError, match=says):
        meterhouse.meter("pages").timed(attributes=bad)


def test_any_status_may_be_told(metering):
    for status in ("ok", "failed", "aborted"):
        meterhouse.meter("pages").add(Decimal("0.5"), status=status)
    assert [e.point["meterhouse.status"] for e in metering.flush()] == ["ok", "failed", "aborted"]


def test_an_agent_without_an_id_of_its_own_is_known_by_its_name(metering):
    with meterhouse.agent("support"):
        meterhouse.meter("pages").add(1)
    with meterhouse.agent("support", agent_id="a-7"):
        meterhouse.meter("pages").add(1)
    found = [(e.point["gen_ai.agent.name"], e.point["gen_ai.agent.id"]) for e in metering.flush()]
    assert found == [("support", "support"), ("support", "a-7")]
    with pytest.raises(ValueError, match="an agent id"):
        meterhouse.agent("support", agent_id="")


@pytest.mark.parametrize("context", [decimal.Context(prec=4), decimal.Context(prec=6, traps=[decimal.Inexact])])
def test_quantities_are_exact_whatever_the_host_s_decimal_context(metering, monkeypatch, context):
    took = iter([1_000, 1_000 + 12_345_678_901])
    with decimal.localcontext(context), meterhouse.customer("acme"):
        meterhouse.meter("pages").add(1.5)
        meterhouse.meter("pages").add(decimal.Decimal("123456789.123456"))
        with monkeypatch.context() as patched:
            patched.setattr("meterhouse.api.time.monotonic_ns", lambda: next(took))
            with meterhouse.meter("agent.seconds").timed():
                pass
        with pytest.raises(ValueError, match="nine decimals"):
            meterhouse.meter("pages").add(decimal.Decimal("0.1234567891"))
    values = [(one.meter, one.value) for one in metering.flush()]
    assert sorted(values) == [("agent.seconds", 12.345678901), ("pages", 1.5), ("pages", 123456789.123456)]
