"""Programs that run beside a test: an agent that calls a provider when it is told to, and the provider's sandbox."""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import collector_samples as samples

RUN = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"

TALKER = """
import sys, time
import meterhouse, openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="k", max_retries=3)
for patience_s in sys.stdin:
    began = time.monotonic()
    while True:
        try:
            with meterhouse.customer("solo"), meterhouse.agent("helper"):
                client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
            said = "called"
        except meterhouse.UsageLimitExceeded as stopped:
            said = stopped.reason
        if said == "called" or time.monotonic() - began > float(patience_s):
            print(said, flush=True)
            break
        time.sleep(0.1)
"""

PROVIDER = (
    "import sys; from pathlib import Path; from meterhouse_sandbox.provider import serve;"
    "serve('127.0.0.1', int(sys.argv[1]), Path(sys.argv[2]), seed=7, fault_rate=0.0)"
)


@contextmanager
def starting(collector, folder):
    """Starts programs, metered by the collector: start(arguments of Python). All are killed at the end."""
    running = []
    settings = {
        "METERHOUSE_ENDPOINT": collector.http,
        "METERHOUSE_API_KEY": collector.key,
        "METERHOUSE_JOURNAL_DIR": str(folder / "journal"),
        "METERHOUSE_EXPORT_INTERVAL_S": "1",
        "METERHOUSE_ALLOWANCE_TIMEOUT": "30",  # on a slow machine nobody is let go because the answer took long
        # Nor because the first one got lost: what an agent that fails open uses then is no part of the bound.
        "METERHOUSE_ON_UNREACHABLE": "pause",
    }

    def start(*arguments):
        clean = {name: it for name, it in os.environ.items() if not name.startswith(("METERHOUSE_", "OTEL_"))}
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            env=clean | settings,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def provider(start, folder):
    """The address of a provider's sandbox that runs, and how many calls have reached it."""
    port = samples.free_port()
    start(PROVIDER, str(port), str(folder / "provider.log"))
    url = f"http://127.0.0.1:{port}"
    samples.wait_for(lambda: _answers(url), what="the provider")
    return url, lambda: len((folder / "provider.log").read_text().splitlines())


def talker(start, url):
    """An agent under `meterhouse run`; it calls when it is told for how many seconds to try: (what came, seconds)."""
    agent = start(RUN, "run", "--", sys.executable, "-c", TALKER, url)

    def call(patience_s):
        began = time.monotonic()
        agent.stdin.write(f"{patience_s}\n")
        agent.stdin.flush()
        return agent.stdout.readline().strip(), time.monotonic() - began

    return call


def _answers(url):
    try:
        with urllib.request.urlopen(f"{url}/sandbox/streams", timeout=2):
            return True
    except OSError:
        return False
