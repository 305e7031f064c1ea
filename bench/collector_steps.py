"""The life of a journal, killed at every step: a forked child appends, seals, projects and compresses, and strace kills
it at the Nth call of one kind, N = 1, 2, ... until a life goes to its end untouched.

The journal and the database outlive the children. After each kill another child starts on what the killed one left, as
a collector does, and brings everything into the warehouse; so each life begins alike, and the count of its calls ends.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from clickhouse_connect.driver.client import Client
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from meterhouse_collector import sealing, segments
from meterhouse_collector.inbox import Inbox
from meterhouse_collector.journal import Entry, Journal
from meterhouse_collector.projector import Projector, Unavailable

RECORDS: Final = 4
SEGMENT_BYTES: Final = 500
"""About two records."""
TRIES: Final = 20
MAIN_CALLS: Final = ("openat", "write", "pwrite64", "fsync", "rename", "unlink", "sendto")
"""Of the thread that recovers the journal, projects, writes checkpoints and compresses."""
WRITER_CALLS: Final = ("openat", "write", "fdatasync", "fsync")
"""Of the journal's writer: append and seal."""


@dataclass(slots=True)
class Lives:
    """What the children said: the ids that were sent, and those that were acknowledged."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    killed: int = 0
    mistakes: list[str] = field(default_factory=list)


def live_and_die(directory: Path, connect: Callable[[], Client], first: int, inject: str = "signal=SIGKILL") -> Lives:
    """Enumerates the steps; ids are numbers from `first` on. Afterwards the journal is projected to its end."""
    lives = Lives(sent={f"step-warm-{number}" for number in range(RECORDS)})
    number = first
    _warm_up(directory, connect)
    for thread, calls in (("writer", WRITER_CALLS), ("main", MAIN_CALLS)):
        for call in calls:
            when = 1
            while True:
                ids = [f"step-{number + one}" for one in range(RECORDS)]
                number += RECORDS
                status = _life(directory, connect, ids, lives, f"{call}:{inject}:when={when}", thread)
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                    break
                lives.killed += 1
                _restart(directory, connect, lives)
                if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                    lives.mistakes.append(f"{thread} {call} {when}: the child ended with {status}")
                    break
                when += 1
            print(f"{thread} {call}: {when - 1} kills", file=sys.stderr, flush=True)
    _check_journal(directory, lives)
    return lives


def _warm_up(directory: Path, connect: Callable[[], Client]) -> None:
    """One life in this process: what is imported at first use is imported here, not by each child again."""
    journal = Journal(directory, on_fatal=lambda _problem: None, segment_bytes=SEGMENT_BYTES)
    for number in range(RECORDS):
        journal.append(Entry("key-1", "live", (), _request(f"step-warm-{number}"))).result(30)
    _bring_in(journal, _projector(journal, connect))
    journal.close()


def _life(directory: Path, connect: Callable[[], Client], ids: list[str], lives: Lives, inject: str, of: str) -> int:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            _live(directory, connect, ids, theirs, of)
        finally:
            traceback.print_exc()
            os._exit(3)
    theirs.close()
    thread = int(ours.recv(32))
    call = inject.partition(":")[0]
    tracer = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={inject}", "-p", str(thread)],
        stderr=subprocess.PIPE,
    )
    status = Path(f"/proc/{child}/task/{thread}/status")
    while f"TracerPid:\t{tracer.pid}\n" not in status.read_text():
        if tracer.poll() is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"strace cannot attach: {tracer.stderr.read() if tracer.stderr else ''!r}")
        time.sleep(0.002)
    lives.sent.update(ids)
    ours.send(b"go")
    with ours.makefile("r") as told:
        lives.acknowledged.update(line.strip() for line in told if line.endswith("\n"))
    status_code = os.waitpid(child, 0)[1]
    tracer.wait(30)
    if tracer.stderr:
        tracer.stderr.close()
    ours.close()
    return status_code


def _restart(directory: Path, connect: Callable[[], Client], lives: Lives) -> None:
    name = f"step-after-{lives.killed}"
    child = os.fork()
    if child == 0:
        try:
            journal = Journal(directory, on_fatal=lambda _problem: os._exit(1), segment_bytes=SEGMENT_BYTES)
            journal.append(Entry("key-1", "live", (), _request(name))).result(30)
            _finish(journal, _projector(journal, connect))
        finally:
            traceback.print_exc()
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    if status:
        raise RuntimeError(f"the collector did not start again after a kill: {status}")
    lives.sent.add(name)
    lives.acknowledged.add(name)


def _live(directory: Path, connect: Callable[[], Client], ids: list[str], parent: socket.socket, of: str) -> None:
    if of == "main":
        _ready(parent, threading.get_native_id())
    journal = Journal(directory, on_fatal=lambda _problem: os._exit(1), segment_bytes=SEGMENT_BYTES)
    if of == "writer":
        _ready(parent, journal._thread.native_id or 0)
    projector = _projector(journal, connect)
    for at, name in enumerate(ids):
        journal.append(Entry("key-1", "live", (), _request(name))).result(30)
        parent.send(f"{name}\n".encode())
        if at == RECORDS // 2:
            _project(projector)
    _finish(journal, projector)


def _projector(journal: Journal, connect: Callable[[], Client]) -> Projector:
    return Projector(
        journal.collector_id,
        Inbox(connect()),
        horizon=journal.horizon,
        read=lambda position, until, limit: segments.read(journal.directory, position, until, limit),
    )


def _finish(journal: Journal, projector: Projector) -> None:
    """Bring in what there is, and end the process."""
    _bring_in(journal, projector)
    journal.close()
    os._exit(0)


def _project(projector: Projector) -> None:
    """To the end; a warehouse that does not answer is asked again, as the collector does."""
    for _ in range(TRIES):
        try:
            while projector.step():
                pass
            return
        except Unavailable as problem:
            print(f"asked again: {problem}", file=sys.stderr, flush=True)
            projector.forget()
            time.sleep(1)
    raise RuntimeError(f"the warehouse did not answer {TRIES} times")


def _bring_in(journal: Journal, projector: Projector) -> None:
    _project(projector)
    for name in sealing.sealed(journal.directory):
        if sealing.is_compressed(journal.directory, name):
            continue
        with sealing.upkeep_lock(journal.directory):
            sealing.compress(journal.directory, name)


def _ready(parent: socket.socket, thread: int) -> None:
    parent.send(str(thread).encode())
    parent.recv(2)


def _check_journal(directory: Path, lives: Lives) -> None:
    """Every acknowledged id once in the journal, by a plain search of its bytes."""
    whole = b"".join(segments.content(directory, name) for name in segments.names(directory))
    for name in sorted(lives.acknowledged):
        found = whole.count(b"\x12" + bytes([len(name) + 2]) + b"\x0a" + bytes([len(name)]) + name.encode())
        if found != 1:
            lives.mistakes.append(f"{name} was acknowledged and is {found} times in the journal")


def _request(name: str) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="meterhouse.llm.requests")
    metric.sum.aggregation_temporality, metric.sum.is_monotonic = 1, True
    now = time.time_ns()
    point = metric.sum.data_points.add(time_unix_nano=now, as_int=1)
    point.attributes.append(KeyValue(key="customer.id", value=AnyValue(string_value="acme")))
    exemplar = point.exemplars.add(as_int=1, time_unix_nano=now)
    exemplar.filtered_attributes.append(KeyValue(key="meterhouse.event.id", value=AnyValue(string_value=name)))
    return request.SerializeToString()
