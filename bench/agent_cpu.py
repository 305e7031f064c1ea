"""What metering adds to the CPU of a chat call, in the thread that calls; robust on a machine that others use, too.

Two processes take turns on short rounds of the same calls, one of them metered. CPU time is no constant either: a busy
neighbour on the same core, or another clock frequency, makes it twice as much. So each round is compared with
the one beside it, a block of rounds gives the median of the differences, and of several blocks the smallest counts:
what metering costs where it is least disturbed. The largest tells how much the machine disturbed.
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


def us_per_call() -> tuple[float, float, float]:
    """The smallest and the largest of the blocks' medians, and that of the call without metering; in us."""
    sink = Sink()
    with tempfile.TemporaryDirectory() as journals, ExitStack() as stack:
        environment = {**os.environ, "METERHOUSE_ENDPOINT": sink.url, "METERHOUSE_JOURNAL_DIR": journals}
        plain, metered = (_worker(stack, kind, environment) for kind in ("plain", "metered"))
        blocks = [[(plain(), metered()) for _ in range(ROUNDS)] for _ in range(BLOCKS)]
    sink.stop()
    added = [statistics.median(with_it - without for without, with_it in block) for block in blocks]
    return min(added), max(added), min(statistics.median(without for without, _ in block) for block in blocks)


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
