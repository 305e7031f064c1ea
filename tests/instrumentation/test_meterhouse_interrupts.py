"""A host's signal handler that raises (a timeout) strikes our code like its own: it is never swallowed."""

import functools
import os
import random
import signal
import sys
import time

import pytest

import meterhouse
import meterhouse.runtime
from meterhouse import interrupts, leases, limits
from meterhouse.allowance_client import Client
from meterhouse.call import Call, new_call_id
from meterhouse.events import Row


class Timeout(Exception):
    """The host's."""


def plain(_number, _frame):
    raise Timeout


def of_any_arguments(*_arguments):
    raise Timeout


def out_of_the_way(number, _frame):
    signal.signal(number, signal.SIG_DFL)
    raise Timeout


def that_keeps_nothing(number, frame):
    del number, frame
    raise Timeout


class Job:
    def ends(self, _number, _frame):
        raise Timeout

    def __call__(self, _number, _frame):
        raise Timeout


HANDLERS = {
    "function": plain,
    "any arguments": of_any_arguments,
    "takes itself out": out_of_the_way,
    "deletes its arguments": that_keeps_nothing,
    "method": Job().ends,
    "object": Job(),
    "partial": functools.partial(plain),
    "lambda": lambda *arguments: plain(*arguments),
}


@pytest.fixture(params=HANDLERS)
def handled(request):
    before = signal.signal(signal.SIGALRM, HANDLERS[request.param])
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def strikes_at_the_write(handled, monkeypatch):
    write = os.write

    def struck(fd, data):
        monkeypatch.setattr(os, "write", write)
        signal.raise_signal(signal.SIGALRM)
        return write(fd, data)

    return lambda: monkeypatch.setattr(os, "write", struck)


def test_a_timeout_at_the_end_of_a_call_reaches_the_host_and_the_call_counts(metering, strikes_at_the_write):
    with meterhouse.customer("acme"):
        call = Call(new_call_id(), {})
        strikes_at_the_write()
        with pytest.raises(Timeout):
            call.finish("ok", [Row("llm.requests", 1), Row("llm.tokens.input", 7)], {})
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 7}


def test_a_timeout_while_the_host_counts_reaches_it(metering, strikes_at_the_write):
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(1)
        strikes_at_the_write()
        with pytest.raises(Timeout):
            meterhouse.meter("pages").add(1)


def test_a_timeout_while_a_paused_call_waits_ends_it(metering, handled, monkeypatch):
    monkeypatch.setattr(limits, "_client", Client())
    paused = leases.Lease(False, time.monotonic() + 60, time.monotonic() + 60)
    limits._client.leases["acme", ""] = paused
    with meterhouse.customer("acme"), meterhouse.waiting(20), pytest.raises(Timeout):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        limits.admit()


def test_wherever_timeouts_strike_calls_are_journalled_afterwards():
    """None leaves the thread marked as busy, in which no intent would be written any more."""
    strikes = 0
    before = signal.signal(signal.SIGALRM, plain)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 1e-3))
                while True:
                    with meterhouse.runtime.marked_busy():
                        pass
            except Timeout:
                strikes += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert strikes == 300
    assert not meterhouse.runtime.busy()


def test_a_thread_that_is_busy_twice_is_busy_until_the_end_of_the_first():
    with meterhouse.runtime.marked_busy():
        with meterhouse.runtime.marked_busy():
            assert meterhouse.runtime.busy()
        assert meterhouse.runtime.busy()
    assert not meterhouse.runtime.busy()


def test_what_goes_wrong_inside_is_ours():
    try:
        {}["missing"]
    except KeyError as error:
        assert not interrupts.from_host(error)


FORKS = """
import os, sys, threading, time, faulthandler
import meterhouse
def add():
    with meterhouse.customer("acme"):
        meterhouse.meter("pages").add(1)
first = threading.Thread(target=add)
first.start()
time.sleep(float(sys.argv[1]))
child = os.fork()
if not child:
    faulthandler.dump_traceback_later(5, exit=True)
    add()
    meterhouse.runtime.flush()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
first.join()
"""


@pytest.mark.parametrize("after_s", ["0.005", "0.1"])
def test_a_fork_while_another_thread_starts_metering_leaves_a_child_that_can_meter(metering, agent, after_s):
    process = agent(FORKS, after_s)
    assert process.stdout.readline() == "0\n", process.stderr.read()
    assert process.wait(20) == 0
    assert [one.value for one in metering.sink.events if one.meter == "pages"] == [1, 1]


def test_an_event_that_a_signal_handler_counts_while_metering_is_imported_costs_the_host_nothing(
    monkeypatch, metering, caplog
):
    monkeypatch.setitem(sys.modules, "meterhouse.call", None)  # as half imported: the import fails
    meterhouse.meter("pages").add(1)
    assert "could not record an event" in caplog.text
