"""The collector seen from the kernel: a reply follows the fdatasync that covers its request; what fails is told."""

import re
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import collector_samples as samples
import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from meterhouse_collector import segments
from meterhouse_collector.records import decode, frames

REQUESTS = 8
NOWHERE = "http://admin:none@127.0.0.1:1"  # requests are acknowledged also while the warehouse is down
_CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)")
_SEGMENT = "".join(f"\\x{byte:02x}" for byte in b".seg") + ">"  # how -xx shows the end of a path
_RESUMED = re.compile(r"(?P<thread>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")


@pytest.fixture
def strace():
    if (program := shutil.which("strace")) is None:
        pytest.skip("this machine lacks strace")
    return program


@pytest.fixture
def alone(tmp_path):
    """A collector without a warehouse."""
    collector = samples.Collector(tmp_path, NOWHERE, "none").start()
    yield collector
    collector.stop()


@contextmanager
def traced(strace, collector, *options):
    """What strace notes of the collector goes into the file that this gives."""
    log = collector.data / "strace.log"
    command = [strace, "-f", "-q", "-o", log, *options, "-p", str(collector.process.pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    threads = Path(f"/proc/{collector.process.pid}/task")

    def attached():
        assert process.poll() is None, process.stderr.read()
        return all(f"TracerPid:\t{process.pid}\n" in file.read_text() for file in threads.glob("*/status"))

    samples.wait_for(attached, what="strace")
    try:
        yield log
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def request(marker):
    return samples.request_of(samples.event(1, marker))


def send_http(collector, markers):
    for marker in markers:
        assert collector.post(request(marker))[0] == 200


def send_grpc(collector, markers):
    with grpc.insecure_channel(collector.grpc) as channel:
        for marker in markers:
            metadata = [("authorization", f"Bearer {collector.key}")]
            MetricsServiceStub(channel).Export(request(marker), metadata=metadata, timeout=20)


def is_http_reply(data):
    return data.startswith(b"HTTP/1.1 200")


def is_grpc_reply(data):
    """HEADERS and DATA are replies; a connection's own frames (settings, windows, pings) are not."""
    at, kinds = 0, set()
    while at + 9 <= len(data):
        kinds.add(data[at + 3])
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    return bool(kinds & {0, 1})


@pytest.mark.parametrize(("send", "is_reply"), [(send_http, is_http_reply), (send_grpc, is_grpc_reply)])
def test_each_reply_leaves_after_the_fdatasync_that_covers_its_request(strace, alone, send, is_reply):
    markers = [f"marker-{number}" for number in range(REQUESTS)]
    calls = ["-yy", "-xx", "-s", "100000", "-e", "trace=write,writev,sendto,sendmsg,fdatasync"]
    with traced(strace, alone, *calls) as log:
        send(alone, markers)
    story = list(events(log.read_text().splitlines(), markers, is_reply))
    # One sender that waits for each reply: nothing else can be between.
    assert story == [(what, marker) for marker in markers for what in ("written", "synced", "replied")]


def events(lines, markers, is_reply):
    """(what, marker) in the order it happened: written and synced when the call ended, replied when it began."""
    marker, begun = None, {}
    for line in lines:
        resumed = _RESUMED.match(line)
        found = resumed or _CALL.match(line)
        if not found:
            continue
        whole = begun.pop(found["thread"], "") + found["rest"] if resumed else found["rest"]
        is_begun = whole.endswith("<unfinished ...>")
        if is_begun:
            begun[found["thread"]] = whole.removesuffix("<unfinished ...>")
        data = b"".join(bytes.fromhex(part.replace("\\x", "")) for part in re.findall(r'"((?:\\x..)*)"', whole))
        if "<TCP" in whole.split(",")[0] and not resumed and is_reply(data):
            yield "replied", marker
        elif _SEGMENT in whole.split(",")[0] and not is_begun:
            if found["name"] == "fdatasync":
                assert whole.endswith("= 0"), line
                yield "synced", marker
            else:
                marker = next(one for one in markers if one.encode() in data)
                yield "written", marker


def kept(collector):
    directory = collector.data / "journal"
    for name in segments.names(directory):
        data = segments.content(directory, name)
        yield from (decode(data[one.body : one.end]).metrics for one in frames(data, name) if one.intact)


def test_a_failed_fdatasync_ends_the_collector_and_its_next_start_has_what_was_acknowledged(strace, alone):
    assert alone.post(request("before"))[0] == 200
    with traced(strace, alone, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1"):
        with suppress(OSError):  # the process may be faster than its reply
            assert alone.post(request("lost"))[0] == 503
        assert alone.process.wait(20) == 1
    alone.output.close()
    alone.start()
    assert alone.post(request("after"))[0] == 200
    found = [data for data in kept(alone) if b"lost" not in data]  # it may be there: nobody was told either way
    assert found == [request(marker).SerializeToString() for marker in ("before", "after")]


def test_a_write_that_finds_the_disk_full_is_refused_and_the_next_one_is_taken(strace, alone):
    assert alone.post(request("before"))[0] == 200
    with traced(strace, alone, "-e", "trace=write", "-P", segment(alone), "-e", "inject=write:error=ENOSPC:when=1"):
        assert alone.post(request("refused"))[0] == 503
        assert alone.post(request("after"))[0] == 200
    assert list(kept(alone)) == [request(marker).SerializeToString() for marker in ("before", "after")]


def segment(collector):
    directory = collector.data / "journal"
    return str(directory / segments.names(directory)[-1])
