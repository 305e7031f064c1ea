"""`meterhouse` commands as processes of their own that start in a tenth of the time.

Most of a short command's time goes into imports. Here one process has imported what commands share and has run nothing;
each command is a fork of it, with the arguments, environment, directory and files it is given: an own process, whose
exit code, output and signals are real. What an installed command's start is like is tested where the executable runs.
"""

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

IMPORTED = (
    "meterhouse.cli",
    "meterhouse_store.terminal",
    "meterhouse_store.sql",
    "meterhouse_store.warehouse",
    "meterhouse_store.registry",
    "meterhouse_store.registry_commands",
    "meterhouse_collector.commands",
    "meterhouse_collector.service",
    "meterhouse_collector.verify",
    "meterhouse_rating.publishing",
    "meterhouse_rating.run",
    "meterhouse_rating.commands",
    "meterhouse_reports.commands",
    "meterhouse_billing.commands",
    "psycopg",
    "rich.table",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
)

_lock = threading.Lock()
_server = None


def run(arguments, *, env, cwd=None, timeout=60, text=True):
    """As `subprocess.run([meterhouse, *arguments], capture_output=True)`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with start(arguments, env=env, cwd=cwd, stdout=out, stderr=err) as command:
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.kill()
                raise
        out.seek(0)
        err.seek(0)
        said = [out.read(), err.read()]
    if text:
        said = [one.decode() for one in said]
    return subprocess.CompletedProcess(command.args, code, *said)


def start(arguments, *, env, cwd=None, stdout, stderr):
    """As `subprocess.Popen([meterhouse, *arguments])`; `stdout` and `stderr` are files or descriptors."""
    with _lock:
        address = _address()
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(address)
    told = json.dumps({"arguments": [*map(str, arguments)], "env": dict(env), "cwd": str(cwd or os.getcwd())})
    files = [file if isinstance(file, int) else file.fileno() for file in (stdout, stderr)]
    socket.send_fds(asked, [told.encode() + b"\n"], files)
    return Command(["meterhouse", *arguments], asked)


class Command:
    """A command that was started, with what tests use of `subprocess.Popen`."""

    def __init__(self, arguments, told):
        self.args, self._told, self._read = arguments, told, b""
        self.pid, self.returncode = self._number(None), None

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self._told.close()

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout=None):
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._told.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _number(self, timeout):
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._read:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._told], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            found = self._told.recv(64)
            assert found, "who starts the commands is gone"
            self._read += found
        line, _, self._read = self._read.partition(b"\n")
        return int(line)


def _address():
    global _server
    if _server is None or _server[0] != os.getpid():
        folder = tempfile.TemporaryDirectory(prefix="mh-")
        address = str(Path(folder.name) / "s")
        process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not Path(address).exists():
            assert process.poll() is None and time.monotonic() < deadline, "the server of commands does not start"
            time.sleep(0.02)
        _server = os.getpid(), address
        atexit.register(_end, process, folder, os.getpid())
    return _server[1]


def _end(process, folder, pid):
    if os.getpid() == pid:
        process.stdin.close()
        process.wait(20)
        folder.cleanup()


def _serve(address):
    """In the process that is forked from: it ends with its stdin."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address + ".new")
        listener.listen(64)
        os.rename(address + ".new", address)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return None
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _answer(connection)
            connection.close()


def _answer(connection):
    """Fork the command and tell what comes of it; returns in the command's process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while not told.endswith(b"\n"):
        told += connection.recv(1 << 16)
    asked = json.loads(told)
    pid = os.fork()
    if pid:
        connection.sendall(b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(b"%d\n" % code)
        os._exit(0)
    connection.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    os.chdir(asked["cwd"])
    sys.argv = ["meterhouse", *asked["arguments"]]
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stderr.reconfigure(line_buffering=True)
    return True


def _command():
    """Run it and end as an interpreter does, but for taking down what was there before the fork."""
    from meterhouse.cli import main

    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__" and _serve(sys.argv[1]):
    _command()
