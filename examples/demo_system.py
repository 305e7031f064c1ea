"""The demo's hands: runs `meterhouse` commands and other programs, keeps their output, stops what it started."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

BIN = Path(sys.executable).parent
MARK = ".made-by-the-demo"
COMMAND_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0

T = TypeVar("T")


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


class System:
    """One data directory, the environment of its processes, and the processes that the demo itself started."""

    def __init__(self, data: Path, env: Mapping[str, str]) -> None:
        self.data = data
        self.logs = data / "logs"
        self.env = dict(env)
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._files: list[IO[str]] = []

    # ---- commands ---------------------------------------------------------------------------------------------------

    def meterhouse(self, *arguments: str, ok: Sequence[int] = (0,), timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run `meterhouse ARGUMENTS` to its end and return what it printed; raises DemoError for other exit codes."""
        command = [str(BIN / "meterhouse"), *arguments]
        try:
            done = subprocess.run(
                command, env=self.env, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as late:
            raise DemoError(f"`meterhouse {' '.join(arguments)}` took longer than {timeout_s:.0f} s") from late
        with (self.logs / "commands.log").open("a") as log:
            log.write(f"$ meterhouse {' '.join(arguments)}\n{done.stdout}{done.stderr}[{done.returncode}]\n\n")
        if done.returncode not in ok:
            raise DemoError(
                f"`meterhouse {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def json(self, *arguments: str, ok: Sequence[int] = (0,)) -> Any:
        """The same for a command that prints JSON."""
        text = self.meterhouse(*arguments, "--json", ok=ok)
        try:
            return json.loads(text)
        except ValueError as problem:
            raise DemoError(f"`meterhouse {' '.join(arguments)} --json` printed no JSON: {text[:500]}") from problem

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the warehouse, by `meterhouse warehouse query`."""
        rows: list[dict[str, Any]] = self.json("warehouse", "query", sql)
        return rows

    def file(self, name: str) -> Any:
        """A JSON file of the data directory."""
        return json.loads((self.data / name).read_text())

    # ---- processes --------------------------------------------------------------------------------------------------

    def start(
        self, name: str, command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program that `stop_all` will stop; its output goes to logs/NAME.log, its input is a pipe."""
        log = (self.logs / f"{name}.log").open("a")
        self._files.append(log)
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**self.env, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes[name] = process
        return process

    def process(self, name: str) -> subprocess.Popen[str]:
        """A program that was started and not stopped."""
        return self._processes[name]

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL where that does not end it in time."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)

    def kill(self, name: str) -> None:
        """SIGKILL: no handler, no flush, no goodbye."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)
        if process.stdin is not None:
            process.stdin.close()

    def finish(self, name: str, timeout_s: float) -> None:
        """Wait until a program that was given all its input ends; raises DemoError where it fails or takes too long."""
        process = self._processes.pop(name)
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
            raise DemoError(f"{name} did not finish within {timeout_s:.0f} s: {self.logs / name}.log") from late
        if process.returncode != 0:
            tail = (self.logs / f"{name}.log").read_text()[-1500:]
            raise DemoError(f"{name} ended with {process.returncode}:\n{tail}")

    def stop_all(self) -> None:
        for name in list(self._processes):
            self.stop(name)
        for file in self._files:
            file.close()
        self._files.clear()


def until(what: str, probe: Callable[[], T | None], timeout_s: float = 60.0, pause_s: float = 0.1) -> T:
    """Ask again until `probe` gives something; raises DemoError when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(pause_s)
    raise DemoError(f"{what} did not happen within {timeout_s:.0f} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get_json(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """GET; None where nobody answers or the answer is no success."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=5) as reply:
            text = reply.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace") or True


def post_json(url: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout_s: float = 60.0) -> Any:
    """POST; raises DemoError where it fails."""
    request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return json.loads(reply.read())
    except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError) as problem:
        raise DemoError(f"POST {url}: {problem}") from problem


def environment() -> dict[str, str]:
    """This process's environment without what would lead the demo to somebody else's system or account."""
    foreign = ("METERHOUSE_", "STRIPE_", "OTEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def fresh_directory(data: Path) -> None:
    """An empty data directory; one that an earlier demo left is stopped and removed, any other is refused."""
    if data.exists() and any(data.iterdir()):
        if not (data / MARK).exists():
            raise DemoError(f"{data} exists and is not a demo's: move it away, or choose another with --data DIR")
        down = [str(BIN / "meterhouse"), "down", "--data", str(data)]
        subprocess.run(down, env=environment(), capture_output=True, timeout=60, check=False)
        shutil.rmtree(data)
    (data / "logs").mkdir(parents=True)
    (data / MARK).touch()
