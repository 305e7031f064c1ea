"""`meterhouse jobs`: rating and billing, round after round, one after the other; and budgets all the time.

Each step is the command a person would type, as a child process; every step may be repeated, so a round that was
interrupted is made good by the next.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meterhouse_store.endpoints import replace_private
from meterhouse_store.supervisor import die_with_parent

STEP_TIMEOUT_S = 3600
STOP_TIMEOUT_S = 20
DONE = 0
DONE_WITH_EXCEPTIONS = 3


class Beside:
    """A command that runs all the time, beside the rounds; started again with the next round if it ended."""

    def __init__(self, name: str, argv: Sequence[str], say: Callable[[str], None]) -> None:
        self._name, self._argv, self._say = name, list(argv), say
        self.process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Start it where it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._say(f"{now} {self._name} ended with code {self.process.returncode}: it is started again")
        after_fork = die_with_parent(os.getpid())
        self.process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, preexec_fn=after_fork)

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Jobs:
    """Runs `steps` (name -> argv) in a loop; what came of them stands in `state_file`, `alive_file` is touched.

    What is `beside` them runs from the first round to the end of the loop.
    """

    def __init__(
        self,
        steps: dict[str, Sequence[str]],
        state_file: Path,
        alive_file: Path,
        say: Callable[[str], None],
        beside: Sequence[Beside] = (),
    ) -> None:
        self._steps = steps
        self._beside = beside
        self._state_file = state_file
        self._alive_file = alive_file
        self._say = say
        self._told: dict[str, tuple[int, str]] = {}
        self.stop = threading.Event()

    def loop(self, every_s: float) -> None:
        """Begin a round every `every_s` seconds, or as soon as the last one is done, until `stop` is set."""
        try:
            while not self.stop.is_set():
                began = time.monotonic()
                for it in self._beside:
                    it.keep()
                self.round()
                self.stop.wait(max(0.0, began + every_s - time.monotonic()))
        finally:
            for it in self._beside:
                it.end()

    def round(self) -> None:
        """Run every step once; a step that failed does not keep the next from running."""
        for name, argv in self._steps.items():
            if self.stop.is_set():
                return
            self._record(name, *self._run(argv))
        self._alive_file.touch()

    def _run(self, argv: Sequence[str]) -> tuple[int, str]:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while True:
            try:
                output, _ = process.communicate(timeout=0.5)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                if self.stop.is_set() or time.monotonic() > deadline:
                    return _end(process)

    def _record(self, name: str, code: int, output: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        state = read_state(self._state_file)
        mine = state.setdefault(name, {})
        mine |= {"finished_at": now, "exit_code": code, "last_words": output.strip()[-2000:]}
        if code in (DONE, DONE_WITH_EXCEPTIONS):
            mine["succeeded_at"] = now
        replace_private(self._state_file, json.dumps(state, indent=2) + "\n")
        outcome = {DONE: "done", DONE_WITH_EXCEPTIONS: "done with exceptions"}.get(code, f"failed with code {code}")
        if code == DONE or not output.strip():
            self._say(f"{now} {name}: {outcome}")
        elif self._told.get(name) == (code, _without_figures(output)):
            self._say(f"{now} {name}: {outcome}, as before ({self._state_file} has its last words)")
        else:
            self._say(f"{now} {name}: {outcome}")
            self._say("\n".join(f"  | {line}" for line in output.strip().splitlines()[-20:]))
        self._told[name] = (code, _without_figures(output))


def read_state(state_file: Path) -> dict[str, Any]:
    """What came of each step: finished_at, exit_code, last_words, succeeded_at; empty before the first round."""
    try:
        state: dict[str, Any] = json.loads(state_file.read_text())
    except FileNotFoundError:
        return {}
    return state


def run(data: Path, command: tuple[str, ...], every_s: float, say: Callable[[str], None]) -> None:
    """Rate what is due, bill it where Stripe is configured, send notices, sum usage, make the evidence packs that
    customers asked for, and watch budgets, until SIGTERM.

    `command` calls meterhouse.
    """
    steps: dict[str, Sequence[str]] = {"rate run --due": (*command, "rate", "run", "--due", "--data", str(data))}
    if os.environ.get("STRIPE_API_KEY") or os.environ.get("STRIPE_SECRET_KEY"):
        steps["bill run --due"] = (*command, "bill", "run", "--due", "--data", str(data))
        steps["credits top-up-due"] = (*command, "credits", "top-up-due", "--data", str(data))
        steps["bill sync"] = (*command, "bill", "sync", "--data", str(data))
    else:
        say("no STRIPE_API_KEY: usage is rated, nothing is billed")
    steps["notices send"] = (*command, "notices", "send", "--data", str(data))
    steps["warehouse rollup"] = (*command, "warehouse", "rollup", "--data", str(data))
    steps["portal packs"] = (*command, "portal", "packs", "--data", str(data))
    folder = data / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = Beside("budgets watch", (*command, "budgets", "watch", "--data", str(data)), say)
    jobs = Jobs(steps, folder / "jobs.json", folder / "jobs.alive", say, [beside])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: jobs.stop.set())
    jobs.loop(every_s)


_FIGURE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*|(?<![\w.-])\d[\d.,]*(?![\w-])|\s+")
"""A moment, a number, or blanks: their lengths follow the numbers."""


def _without_figures(output: str) -> str:
    """What stays the same while usage and time go on: customers, reasons and hints."""
    return _FIGURE.sub(" ", output)


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.terminate()
    try:
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return process.returncode, output
