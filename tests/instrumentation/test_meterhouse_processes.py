"""However processes start, fork and end: the provider's log equals what was delivered, matched by request id."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest

from meterhouse.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROGRAM = """
import asyncio, multiprocessing, os, signal, subprocess, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
import openai
URL = sys.argv[1] + "/v1"
ASK = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
def connect():
    return openai.OpenAI(api_key="k", base_url=URL, max_retries=0)
client = connect()
def call(*_):
    client.chat.completions.create(**ASK)
def stream():
    return client.chat.completions.create(**ASK, stream=True)
def call_anew():
    global client
    client = connect()  # or it would share its parent's connections
    call()
def calls_in(context, *starts):
    children = [multiprocessing.get_context(context).Process(target=call_anew) for _ in range(2)]
    for child in children: child.start()
    for child in children: child.join()
def forked(work):
    global client
    child = os.fork()
    if child == 0:
        client = connect()  # or it would share its parent's connections
        work()
        os._exit(0)
    return child
def main():
"""
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "y"}, "finish_reason": None}],
}
USAGE = {**CHUNK, "choices": [], "usage": CHAT["usage"]}
STREAM = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in (CHUNK, CHUNK, USAGE)] + [b"data: [DONE]\n\n"]


@dataclass
class Account:
    """What the provider read and what was delivered."""

    served: list[str]
    delivered: dict[str, str]
    """Request id -> status of its `llm.requests`."""
    tokens: float
    processes: int

    def statuses(self) -> list[str]:
        return sorted(self.delivered.values())


def account(provider, sink) -> Account:
    once = {event.id: event for event in sink.events}.values()
    requests = [event for event in once if event.meter == "llm.requests"]
    delivered = {event.own["meterhouse.request.id"]: event.point["meterhouse.status"] for event in requests}
    assert len(delivered) == len(requests), "a call was counted twice"
    assert len(once) == len(sink.events), "an event was sent twice though its acknowledgement was read"
    served = [headers["x-client-request-id"] for _, headers, _ in provider.log]
    return Account(
        served,
        delivered,
        sum(event.value for event in once if event.meter == "llm.tokens.input"),
        len({event.resource["meterhouse.process.id"] for event in requests}),
    )


def drained(capsys) -> dict:
    code = main(["drain", "--json"])
    return {"code": code, **json.loads(capsys.readouterr().out)}


@pytest.fixture
def program(metering, provider, tmp_path):
    """Starts a file with `source` as its main function under `meterhouse run`, in a process group of its own."""
    started = []

    def start(source: str, *, python=(), **environment: str) -> subprocess.Popen:
        file = tmp_path / "agent_program.py"
        guard = 'if __name__ == "__main__":\n    main()\n'
        file.write_text(PROGRAM + textwrap.indent(textwrap.dedent(source).strip("\n"), "    ") + "\n" + guard)
        wrapper = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
        what = [sys.executable, *(python or [str(file)]), provider.url]
        process = subprocess.Popen(
            [sys.executable, "-c", wrapper, "run", "--", *what],
            env={**os.environ, "METERHOUSE_CUSTOMER": "acme", **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ended(process) -> int:
    _, told = process.communicate(timeout=60)
    assert "Meterhouse" not in told, told
    return process.returncode


# What the program does, its calls, its exit code, and whether its usage has arrived when it is gone or needs a drain.
WAYS = {
    "sys.exit": ("call(); sys.exit(3)", 1, 3, True),
    "an unhandled exception": ("call(); raise ValueError", 1, 1, True),
    # A program started in the background of a shell has SIGINT ignored.
    "Ctrl-C": (
        "signal.signal(signal.SIGINT, signal.default_int_handler); call(); signal.raise_signal(signal.SIGINT)",
        1,
        -signal.SIGINT,
        True,
    ),
    "SIGTERM": ("call(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 1, -signal.SIGTERM, False),
    "os._exit": ("call(); os._exit(0)", 1, 0, False),
    "os.execv": ("call(); os.execv(sys.executable, [sys.executable, '-c', ''])", 1, 0, False),
    "os.execv of a metered program": (
        "call()\nif len(sys.argv) == 2: os.execv(sys.executable, [sys.executable, *sys.argv, 'again'])",
        2,
        0,
        False,
    ),
    "multiprocessing, fork": ("call(); calls_in('fork')", 3, 0, True),
    "multiprocessing, spawn": ("call(); calls_in('spawn')", 3, 0, True),
    "multiprocessing, forkserver": ("call(); calls_in('forkserver')", 3, 0, True),
    "a process pool that renews its workers": (
        "with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), max_tasks_per_child=1) as pool:\n"
        "    list(pool.map(call, range(2)))",
        2,
        0,
        True,
    ),
    "a child process of its own": (
        "call()\nif len(sys.argv) == 2: subprocess.run([sys.executable, *sys.argv, 'child'], check=True)",
        2,
        0,
        True,
    ),
    "a live thread that makes its call at the end": (
        "threading.Thread(target=lambda: (time.sleep(0.3), call())).start()",
        1,
        0,
        True,
    ),
    "fork before the first call": ("os.waitpid(forked(call), 0); call()", 2, 0, False),
    "forks while threads are in their calls": (
        """
        call()  # the SDK's own first call holds a lock that a fork would leave locked
        threads = [threading.Thread(target=lambda: [call() for _ in range(10)]) for _ in range(2)]
        for thread in threads: thread.start()
        for child in [forked(call) for _ in range(4)]:
            assert os.waitpid(child, 0)[1] == 0
        for thread in threads: thread.join()
        """,
        25,
        0,
        False,
    ),
    "a zygote whose children are killed": (
        """
        call()
        for child in [forked(lambda: (call(), os.kill(os.getpid(), signal.SIGKILL))) for _ in range(3)]:
            os.waitpid(child, 0)
        call()
        """,
        5,
        0,
        False,
    ),
}


MORE = {
    "an unhandled exception",
    "os.execv",
    "multiprocessing, fork",
    "multiprocessing, spawn",
    "a process pool that renews its workers",
    "fork before the first call",
}
"""They differ little from others."""


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.long) if way in MORE else way for way in WAYS])
def test_each_call_arrives_once_however_processes_start_fork_and_end(way, program, provider, metering, capsys):
    source, calls, code, by_itself = WAYS[way]
    for _ in range(calls):
        provider.json(CHAT)
    assert ended(program(source)) == code
    if by_itself:
        assert list(metering.journals.iterdir()) == []
    else:
        assert drained(capsys)["code"] == 0
    found = account(provider, metering.sink)
    assert sorted(found.delivered) == sorted(found.served) and len(found.served) == calls
    assert found.statuses() == ["ok"] * calls and found.tokens == 7 * calls
    assert list(metering.journals.iterdir()) == []


def test_a_fork_in_mid_stream_leaves_the_stream_to_the_parent(program, provider, metering, capsys):
    provider.stream(STREAM)
    provider.json(CHAT)
    source = """
    chunks = stream()
    next(chunks)
    os.waitpid(forked(lambda: (call(), chunks.close())), 0)
    list(chunks)
    """
    assert ended(program(source)) == 0
    assert drained(capsys)["code"] == 0
    found = account(provider, metering.sink)
    assert sorted(found.delivered) == sorted(found.served)
    assert (found.statuses(), found.tokens, found.processes) == (["ok", "ok"], 14, 2)


@pytest.mark.parametrize(
    ("end", "status"),
    [("", "aborted"), ("os._exit(0)", "unfinished"), ("os.kill(os.getpid(), signal.SIGTERM)", "unfinished")],
)
def test_a_stream_that_a_daemon_thread_reads_at_the_end_is_told_of(end, status, program, provider, metering, capsys):
    gate = threading.Event()
    provider.json(CHAT)
    provider.stream(STREAM, gate=gate, gate_before=1)
    source = """
    call()
    started = threading.Event()
    def read():
        for _ in stream():
            started.set()
    threading.Thread(target=read, daemon=True).start()
    started.wait(20)
    """
    process = program(textwrap.dedent(source) + end)
    process.wait(30)
    gate.set()
    assert drained(capsys)["code"] == 0
    found = account(provider, metering.sink)
    assert sorted(found.delivered) == sorted(found.served)
    assert (found.statuses(), found.tokens) == (sorted(["ok", status]), 7)


def test_a_daemon_thread_that_goes_on_after_the_last_export_is_journalled(program, provider, metering, capsys):
    for _ in range(2):
        provider.json(CHAT)
    source = """
    import atexit
    call()
    from meterhouse.runtime import runtime
    late = threading.Event()
    def work():
        late.wait()
        call()
        late.clear()
    def after_the_export():
        late.set()
        while late.is_set(): time.sleep(0.01)
    threading.Thread(target=work, daemon=True).start()
    atexit._clear()
    from meterhouse import runtime as ours
    atexit.register(after_the_export)  # the last registered runs first
    atexit.register(ours._at_exit)
    """
    assert ended(program(source)) == 0
    assert len(account(provider, metering.sink).delivered) == 1
    assert drained(capsys)["delivered"] == 3
    found = account(provider, metering.sink)
    assert sorted(found.delivered) == sorted(found.served) and found.statuses() == ["ok", "ok"]


def test_a_cancelled_task_is_aborted_and_the_others_are_counted(program, provider, metering, capsys):
    gate = threading.Event()
    provider.stream(STREAM, gate=gate, gate_before=1)
    provider.json(CHAT)
    source = """
    async def agent():
        client = openai.AsyncOpenAI(api_key="k", base_url=URL, max_retries=0)
        reading = asyncio.Event()
        async def read():
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                reading.set()
        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        await asyncio.wait([task])
        await client.chat.completions.create(**ASK)
    asyncio.run(agent())
    """
    process = program(source)
    assert ended(process) == 0
    gate.set()
    found = account(provider, metering.sink)
    assert sorted(found.delivered) == sorted(found.served)
    assert (found.statuses(), found.tokens) == (["aborted", "ok"], 7)
    assert list(metering.journals.iterdir()) == []


def test_a_module_that_is_run_with_dash_m_is_metered(program, provider, metering):
    provider.json(CHAT)
    assert ended(program("call()", python=("-m", "agent_program"))) == 0
    assert account(provider, metering.sink).statuses() == ["ok"]


def test_a_signal_handler_that_counts_while_the_journal_is_being_written_does_not_hang(program, metering):
    source = """
    import meterhouse
    from meterhouse import journal
    write = os.write
    def interrupted(fd, data):
        journal.os.write = write
        signal.raise_signal(signal.SIGUSR1)
        return write(fd, data)
    signal.signal(signal.SIGUSR1, lambda *_: meterhouse.meter("signals").add(1))
    meterhouse.meter("pages").add(1)
    journal.os.write = interrupted
    meterhouse.meter("pages").add(1)
    """
    assert ended(program(source)) == 0
    assert sorted(event.meter for event in metering.sink.events) == ["pages", "pages", "signals"]
