"""What metering adds to the CPU of a chat call, in the thread that calls; robust on a machine that others use, too.

Two processes take turns on short rounds of the same calls, one of them metered. CPU time is no constant either: a busy
neighbour on the same core, or another clock frequency, makes it twice as much, of both alike. So each round is compared
as a ratio with the one beside it, each first every second time, and the median of all ratios is taken of what a call
without metering costs where it was least disturbed. Differences of rounds will not do: where a round without metering
was disturbed, metering seems to save time, and the smallest of many then is below zero. The ratios of the blocks tell
how much the machine disturbed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from agent_servers import COMPLETION, Sink

BLOCKS = 9
ROUNDS = 15
CALLS = 20

_WORKER = """
import json, sys, time, httpx2, openai
completion, calls, metered = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "metered"
transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=completion))
client = openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient(transport=transport))
def work(count):
    started = time.thread_time_ns()
    for _ in range(count):
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x"}])
    return (time.thread_time_ns() - started) / count / 1000
if metered:
    import meterhouse
    from meterhouse.otel import MeterhouseInstrumentor
    MeterhouseInstrumentor().instrument(skip_dep_check=True)
    meterhouse.customer("acme").__enter__()
work(10 * calls)
for _ in sys.stdin:
    print(work(calls), flush=True)
"""


def us_per_call() -> tuple[float, float, tuple[float, float]]:
    """What metering adds, and the call without it, in us; and the smallest and the largest that blocks gave."""
    sink = Sink()
    with tempfile.TemporaryDirectory() as journals, ExitStack() as stack:
        environment = {**os.environ, "METERHOUSE_ENDPOINT": sink.url, "METERHOUSE_JOURNAL_DIR": journals}
        plain, metered = (_worker(stack, kind, environment) for kind in ("plain", "metered"))
        blocks = [[_pair(plain, metered, turn) for turn in range(ROUNDS)] for _ in range(BLOCKS)]
    sink.stop()
    plain_us = min(statistics.median(without for without, _ in block) for block in blocks)
    added = [(statistics.median(with_it / without for without, with_it in block) - 1) * plain_us for block in blocks]
    ratio = statistics.median(with_it / without for block in blocks for without, with_it in block)
    return (ratio - 1) * plain_us, plain_us, (min(added), max(added))


def _pair(plain: Callable[[], float], metered: Callable[[], float], turn: int) -> tuple[float, float]:
    if turn % 2:
        with_it = metered()
        return plain(), with_it
    return plain(), metered()


def _worker(stack: ExitStack, kind: str, environment: dict[str, str]) -> Callable[[], float]:
    """What makes one round in a process of its own and gives its CPU per call; the process ends with the stack."""
    command = [sys.executable, "-c", _WORKER, json.dumps(COMPLETION), str(CALLS), kind]
    process: Any = stack.enter_context(
        subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    stack.callback(process.stdin.close)

    def one_round() -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return one_round
