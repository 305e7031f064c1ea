"""Keeps child processes running: starts them in order, waits for their health, restarts what dies, stops in reverse.

Knows nothing of Meterhouse. Children are of their own process groups, so that Ctrl-C reaches the supervisor alone and
the order of stopping is its; on Linux the kernel ends them when it dies.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

HEALTH_TIMEOUT_S = 90
ONE_SHOT_TIMEOUT_S = 180
STOP_TIMEOUT_S = 30
POLL_S = 0.2
MAX_DEATHS = 8
DEATHS_WITHIN_S = 120
BACKOFF_S = (0.2, 0.5, 1, 2, 5, 10)
MAX_LOG_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1


class PartFailed(RuntimeError):
    """A child that does not start, does not get well, or dies again and again; the text has the end of its log."""


@dataclass(frozen=True)
class Part:
    """A child process; `health_url` None: it is well as long as it lives."""

    name: str
    argv: Sequence[str]
    health_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Child:
    part: Part
    process: subprocess.Popen[bytes]
    deaths: deque[float]
    restart_at: float | None = None


class Supervisor:
    """Runs parts until `stop` is set; logs to `logs`/NAME.log, writes {name: pid} to `pids_file` at every change."""

    def __init__(self, logs: Path, pids_file: Path, say: Callable[[str], None]) -> None:
        self._logs = logs
        self._pids_file = pids_file
        self._say = say
        self._children: list[_Child] = []
        self.stop = threading.Event()
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        pids_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def run_once(self, part: Part) -> None:
        """Run a part to its end. Raises PartFailed unless it ends with 0 in time."""
        process = self._spawn(part)
        deadline = time.monotonic() + ONE_SHOT_TIMEOUT_S
        while process.poll() is None:
            if self.stop.is_set() or time.monotonic() > deadline:
                _end(process)
                raise PartFailed(f"{part.name} was stopped before it was done")
            time.sleep(POLL_S / 4)
        if process.returncode != 0:
            raise PartFailed(f"{part.name} failed with code {process.returncode}:\n{self._tail(part)}")

    def start(self, part: Part) -> None:
        """Start a part and wait until it is well. Raises PartFailed where it dies or does not get well in time."""
        child = _Child(part, self._spawn(part), deque())
        self._children.append(child)
        self._write_pids()
        deadline = time.monotonic() + HEALTH_TIMEOUT_S
        while not self.stop.is_set() and not _is_well(part.health_url):
            if child.process.poll() is not None:
                raise PartFailed(f"{part.name} ended with code {child.process.returncode}:\n{self._tail(part)}")
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"{part.name} did not answer at {part.health_url} within {HEALTH_TIMEOUT_S} s:\n{self._tail(part)}"
                )
            time.sleep(POLL_S / 4)

    def watch(self, until: float | None = None) -> None:
        """Restart what dies, until `stop` or the monotonic time `until`; raises PartFailed for what will not live."""
        checked_logs = 0.0
        while not self.stop.wait(POLL_S) and (until is None or time.monotonic() < until):
            for child in self._children:
                self._revive(child)
            if time.monotonic() - checked_logs > 10:
                checked_logs = time.monotonic()
                for child in self._children:
                    _bound(self._log_file(child.part))

    def stop_all(self) -> None:
        """Stop the parts, the last started first; what does not end in time is killed."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                _end(child.process)
        self._children.clear()
        self._pids_file.unlink(missing_ok=True)

    def _revive(self, child: _Child) -> None:
        code = child.process.poll()
        if code is None:
            return
        now = time.monotonic()
        if child.restart_at is None:
            child.deaths.append(now)
            while child.deaths[0] < now - DEATHS_WITHIN_S:
                child.deaths.popleft()
            if len(child.deaths) > MAX_DEATHS:
                raise PartFailed(
                    f"{child.part.name} died {len(child.deaths)} times within {DEATHS_WITHIN_S} s, giving up:\n"
                    f"{self._tail(child.part)}"
                )
            pause = BACKOFF_S[min(len(child.deaths), len(BACKOFF_S)) - 1]
            child.restart_at = now + pause
            at = datetime.now(UTC).isoformat(timespec="seconds")
            self._say(f"{at} {child.part.name} ended with code {code}, starts again in {pause:g} s")
        elif now >= child.restart_at:
            child.process = self._spawn(child.part)
            child.restart_at = None
            self._write_pids()

    def _spawn(self, part: Part) -> subprocess.Popen[bytes]:
        _bound(self._log_file(part))
        with open(self._log_file(part), "ab") as log:
            return subprocess.Popen(
                list(part.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | part.environment,
                process_group=0,
                preexec_fn=die_with_parent(os.getpid()),
            )

    def _log_file(self, part: Part) -> Path:
        return self._logs / f"{part.name}.log"

    def _tail(self, part: Part) -> str:
        with open(self._log_file(part), "rb") as log:
            return last_lines(log)

    def _write_pids(self) -> None:
        fresh = self._pids_file.with_suffix(".new")
        fresh.write_text(json.dumps({child.part.name: child.process.pid for child in self._children}) + "\n")
        fresh.replace(self._pids_file)


def last_lines(log: IO[bytes], lines: int = 15) -> str:
    """The end of a log, indented."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 8000))
    text = log.read().decode(errors="replace").splitlines()[-lines:]
    return "\n".join(f"  | {line}" for line in text)


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child runs first so that it ends when its parent does, where the system can do that."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def after_fork() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return after_fork


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_well(health_url: str | None) -> bool:
    if health_url is None:
        return True
    try:
        with urllib.request.urlopen(health_url, timeout=2):
            return True
    except OSError:  # refused, timed out, or an HTTP error such as 503
        return False


def _bound(log: Path) -> None:
    """Keep a log and its predecessor under MAX_LOG_BYTES each; the writer appends, so the file can be cut under it."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)
