"""What clients and disks do that nobody means: it is served or refused in words, nothing is lost in silence."""

import contextlib
import gzip
import json
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import commands
import pytest
from collector_samples import Collector, attributes, batch, event, request_of, wait_for, wait_projected
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, NumberDataPoint

from meterhouse_collector import segments
from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.extents import check_metrics as check
from meterhouse_collector.journal import Entry, Journal, Overloaded
from meterhouse_collector.projection import Projection
from meterhouse_collector.records import frames
from meterhouse_collector.refusals import MALFORMED, TOO_LARGE, Refused
from meterhouse_store.settings import Settings

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"Connection: Upgrade, Keep-Alive\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
)


def ids(client, like):
    rows = client.query(f"SELECT event_id FROM usage WHERE event_id LIKE '{like}' ORDER BY event_id").result_rows
    return [row[0] for row in rows]


def one(event_id):
    return request_of(event(1, event_id, time_ns=time.time_ns())).SerializeToString()


def head(collector, *more):
    parts = [b"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"]
    return b"".join([*parts, b"Authorization: Bearer " + collector.key.encode() + b"\r\n", *more])


def sent(collector, *pieces, replies=1):
    """The status lines of the replies to bytes that are sent piece by piece."""
    with socket.create_connection((urlsplit(collector.http).hostname, urlsplit(collector.http).port), 10) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.05)
        found = b""
        while found.count(b"HTTP/1.1 ") < replies and (data := client.recv(65536)):
            found += data
    return [int(part[:3]) for part in found.split(b"HTTP/1.1 ")[1:]]


def length(body):
    return b"Content-Length: %d\r\n\r\n" % len(body)


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
def test_a_request_that_offers_an_upgrade_is_served_as_it_is_and_stored(shared_collector, shared_database, offer):
    name = "up-" + str(len(offer))
    whole, parts, chunks, zipped, last = (one(f"{name}-{number}") for number in range(5))
    zipped = gzip.compress(zipped)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(chunks), chunks)
    assert sent(shared_collector, head(shared_collector, offer, length(whole), whole)) == [200]
    split = head(shared_collector, offer, length(parts), parts)
    assert sent(shared_collector, split[:40], split[40:300], split[300:-9], split[-9:]) == [200]
    assert sent(shared_collector, head(shared_collector, offer, chunked)) == [200]
    # Two on one connection in one piece, the second without the offer.
    first = head(shared_collector, offer, b"Content-Encoding: gzip\r\n", length(zipped), zipped)
    assert sent(shared_collector, first + head(shared_collector, length(last), last), replies=2) == [200, 200]
    # What follows a request that closes the connection is not looked at.
    closing = head(shared_collector, offer.replace(b"Upgrade,", b"Upgrade, close,"), length(whole), whole)
    assert sent(shared_collector, closing + b"and more\r\n\r\n") == [200]
    wait_projected(shared_database)
    assert ids(shared_database, f"{name}-%") == [f"{name}-{number}" for number in range(5)]


def test_curl_with_http2_is_served_and_stored(shared_collector, shared_database, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("this machine lacks curl")
    file = tmp_path / "body"
    file.write_bytes(one("curl-1"))
    headers = ["-H", f"Authorization: Bearer {shared_collector.key}", "-H", "Content-Type: application/x-protobuf"]
    command = ["curl", "-s", "--http2", "-w", "%{http_code}", "--data-binary", f"@{file}", *headers]
    done = subprocess.run([*command, shared_collector.http + "/v1/metrics"], capture_output=True, timeout=20)
    assert done.stdout == b"200"
    wait_projected(shared_database)
    assert ids(shared_database, "curl-%") == ["curl-1"]


def test_a_body_that_is_not_what_its_head_says_is_not_taken_for_an_empty_one(shared_collector):
    body = one("never")
    assert sent(shared_collector, head(shared_collector, b"\r\n"), body)[0] == 400
    assert sent(shared_collector, head(shared_collector, b"Content-Length: 0\r\n\r\n")) == [200]
    assert sent(shared_collector, b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n") == [400]


def test_a_body_of_empty_gzip_members_is_refused_at_once_and_nobody_waits_for_it(shared_collector):
    bomb = gzip.compress(b"", 1) * 700_000
    started = time.monotonic()
    with pytest.raises(Refused, match="at most 1000 members"):
        gunzip(bomb, 2**24)
    assert time.monotonic() - started < 1
    assert shared_collector.post(bomb, Content_Encoding="gzip")[0] == 400
    assert gunzip(gzip.compress(b"ab" * 100_000) * 20, 2**24) == b"ab" * 2_000_000


def test_a_small_request_of_millions_of_points_is_refused_with_what_to_do(shared_collector):
    # 2 bytes a point: field 1 of Sum, empty; then the lengths of Sum (field 7 of Metric), metrics, scope, resource.
    def field(number, content):
        size, out = len(content), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size]) + content

    request = field(1, field(2, field(2, field(1, b"meterhouse.x") + field(7, b"\x0a\x00" * 7_000_000))))
    assert len(gzip.compress(request)) < 20_000
    status, headers, body = shared_collector.post(gzip.compress(request), Content_Encoding="gzip")
    assert status == 413 and "retry-after" not in {name.lower() for name in headers}
    detail = json.loads(body)["detail"]
    assert "at most 50000 resources, scopes, metrics, points and exemplars together" in detail
    assert "send smaller batches" in detail


def points(number, exemplars, extra=(), of_each=0):
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add()
    point = NumberDataPoint(attributes=attributes(extra))
    exemplar = Exemplar(filtered_attributes=[KeyValue()] * of_each)
    point.exemplars.extend([exemplar] * exemplars)
    metric.sum.data_points.extend([point] * number)
    return request.SerializeToString()


def test_the_limits_of_a_request_are_met_exactly():
    check(points(49_997, 0))
    check(points(1, 49_996))
    check(points(1, 0, [(f"a{number}", 1) for number in range(1000)]))
    check(points(1, 500, [("a", "x" * 8_400)]))
    check(points(1, 500, of_each=1000))
    check(points(2, 250, of_each=1000))
    for request in (
        points(1, 500, [("a", "x" * 9_500)]),
        points(49_998, 0),
        points(1, 49_997),
        points(1, 0, [(f"a{number}", 1) for number in range(1001)]),
        points(1, 1, of_each=1001),
        points(1, 501, of_each=1000),
        points(2, 251, of_each=1000),
        b"\x0a\x00" * 50_001,
    ):
        with pytest.raises(Refused) as refusal:
            check(request)
        assert refusal.value.kind is TOO_LARGE


@pytest.mark.parametrize(
    "text",
    [
        '{"resourceMetrics": [], "resourceMetrics": []}',
        '{"resourceMetrics": [], "resource_metrics": []}',
        '{"resourceMetrics": [{"scopeMetrics": [{"metrics": [], "metrics": []}]}]}',
    ],
)
def test_json_that_names_a_field_twice_is_refused(text):
    with pytest.raises(Refused, match="names a field twice") as refusal:
        json_to_protobuf(text.encode())
    assert refusal.value.kind is MALFORMED


def test_half_a_surrogate_pair_is_refused_in_words(shared_collector):
    body = b'{"customer_id": "\\ud800"}'
    status, headers, reply = shared_collector.post(body, path="/v1/allowance", media_type="application/json")
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert "customer_id must be a string of at most 256 bytes of UTF-8" in json.loads(reply)["detail"]
    text = '{"resourceMetrics": [{"schemaUrl": "\\ud800"}]}'
    assert shared_collector.post(text.encode(), media_type="application/json")[0] == 400


def ask(collector, path):
    try:
        with urlopen(collector.http + path, timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except HTTPError as refusal:
        with refusal:
            return refusal.code, json.loads(refusal.read())


def test_ready_says_whether_usage_reaches_the_warehouse_and_health_says_it_too(shared_collector, tmp_path):
    wait_for(lambda: ask(shared_collector, "/readyz")[0] == 200, what="readiness")
    assert ask(shared_collector, "/readyz")[1] == {"status": "ready", "accepting": True, "projection": "ok"}
    assert ask(shared_collector, "/healthz") == (200, {"status": "ok", "accepting": True, "projection": "ok"})
    alone = Collector(tmp_path, "http://admin:x@127.0.0.1:9", "none").start()
    try:
        wait_for(lambda: ask(alone, "/readyz")[0] == 503, what="the failure")
        status, said = ask(alone, "/healthz")
        assert (status, said["status"], said["accepting"]) == (200, "ok", True)
        assert said["projection"].startswith("the projection fails and is tried again")
    finally:
        alone.stop()


def test_the_projection_survives_whatever_is_raised_and_counts_it(tmp_path, monkeypatch):
    raised = [ValueError("negative read"), KeyError("x"), MemoryError()]

    def step(_projection):
        if raised:
            raise raised.pop()
        return False

    monkeypatch.setattr(Projection, "_step", step)
    monkeypatch.setattr("meterhouse_collector.projection.BACKOFF_S", (0.3,))
    journal = Journal(tmp_path / "journal", on_fatal=lambda problem: None)
    projection = Projection(Settings(data=tmp_path), journal)
    projection.start()
    try:
        said = wait_for(projection.trouble, what="the failure")
        assert "(1 failures so far): MemoryError" in said
        wait_for(lambda: projection.trouble() is None, what="the recovery")
        assert projection.failures == 3
        now = time.time()
        monkeypatch.setattr("meterhouse_collector.projection.time", SimpleNamespace(time=lambda: now + 61))
        assert projection.trouble() == f"the projection is {projection.lag_s():.0f} s behind"
    finally:
        monkeypatch.undo()
        projection.stop()
        journal.close()


@pytest.mark.long
def test_a_restored_older_journal_beside_the_same_warehouse_loses_nothing(collector, database, tmp_path_factory):
    journal, copy = collector.data / "journal", tmp_path_factory.mktemp("backup") / "journal"
    collector.post(batch(["acme"], 3, "before"))
    wait_projected(database)
    collector.kill()
    shutil.copytree(journal, copy)
    collector.start()
    for number in range(5):
        collector.post(batch(["acme"], 3, f"gone{number}"))
    wait_projected(database)
    collector.kill()
    shutil.rmtree(journal)
    shutil.copytree(copy, journal)
    # Now the live database has more than the journal can give.
    refused = collector.command("warehouse", "rebuild")
    assert (refused.returncode, "which" in refused.stderr) == (1, True), refused.stderr
    collector.start()
    collector.post(batch(["acme"], 3, "after"))
    wait_projected(database)
    assert database.query("SELECT count(), uniq(event_id) FROM usage").first_row == (21, 21)
    assert len(ids(database, "after-%")) == 3

    kept = collector.command("warehouse", "rebuild")
    assert kept.returncode == 3, kept.stderr
    assert "differs: live acme llm.requests -: live 21 events, 21, rebuilt 6 events, 6" in kept.stdout
    assert f"nothing was exchanged, because a total would get lower: the rebuilt tables are in {database.database}" in (
        kept.stdout
    )
    assert database.query("SELECT count() FROM usage").first_row == (21,)
    assert database.query(f"SELECT count() FROM {database.database}_rebuild.usage").first_row == (6,)

    forced = json.loads(collector.command("warehouse", "rebuild", "--force", "--json").stdout)
    assert (forced["lower"], forced["exchanged"], forced["events"]) == (True, True, 6)
    assert database.query("SELECT count() FROM usage").first_row == (6,)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(0, id="length"),
        pytest.param(1, id="tag", marks=pytest.mark.long),
        pytest.param(150, id="content", marks=pytest.mark.long),
    ],
)
def test_one_damaged_byte_costs_one_record_which_is_in_suspense(collector, database, place):
    for number in range(20):
        assert collector.post(batch(["acme"], 1, f"rot{number:02d}"))[0] == 200
    collector.kill()
    file = collector.data / "journal" / segments.names(collector.data / "journal")[-1]
    bad = bytearray(file.read_bytes())
    start = len(bad) // 20 * 3  # all of them are equally long
    bad[start + place] ^= 1
    file.write_bytes(bad)
    database.command("TRUNCATE TABLE events")
    database.command("TRUNCATE TABLE checkpoints")
    collector.start()
    wait_projected(database)
    assert ids(database, "rot%") == [f"rot{number:02d}-acme-0" for number in range(20) if number != 3]
    place = "attributes['meterhouse.position']"
    held = database.query(f"SELECT reason, {place}, length(base64Decode(raw_value)) FROM suspense").result_rows
    assert held == [("unreadable_record", f"{file.name}:{start}", len(bad) // 20)]
    assert f"{len(bad) // 20} bytes at offset {start} are damaged" in (collector.data / "collector.log").read_text()


def test_status_says_by_its_exit_code_that_a_collector_is_behind(collector, database):
    wait_projected(database)
    assert collector.command("warehouse", "status").returncode == 0
    collector.kill()
    database.command("INSERT INTO checkpoints SELECT * REPLACE (projected_through - 90 AS projected_through, step + 9 "
                     "AS step) FROM checkpoints FINAL")  # fmt: skip
    told = collector.command("warehouse", "status")
    assert told.returncode == 3
    assert "s behind: is it running, and what does its log say?" in told.stdout
    (mark,) = json.loads(collector.command("warehouse", "status", "--json").stdout)["watermark"]
    assert mark["behind"] is True


@contextlib.contextmanager
def mounted(directory, options):
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(directory)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_data_directory_that_cannot_be_written_is_named_at_start(tmp_path):
    with mounted(tmp_path / "data", "size=4m") as data:
        one_collector = Collector(data, "http://admin:x@127.0.0.1:9", "none")
        one_collector.engine.dispose()
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        one_collector.environment["PYTHONDONTWRITEBYTECODE"] = "1"
        told = one_collector.command("collector", "serve", "--http-port", "0", "--grpc-port", "0")
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith(f"the collector cannot start, it must be able to write to {data}: ")


def test_a_full_disk_is_overload_and_what_was_acknowledged_is_whole(tmp_path):
    with mounted(tmp_path / "data", "size=2m") as data:
        journal = Journal(data / "journal", on_fatal=lambda problem: None, reserve_bytes=0)
        try:
            full(journal)
        finally:
            journal.close()
        name = segments.names(data / "journal")[0]
        found = (data / "journal" / name).read_bytes()
    whole = list(frames(found, name))
    assert whole[-1].end == len(found) and all(frame.intact for frame in whole)
    assert len(whole) >= 10


def full(journal):
    with pytest.raises(Overloaded, match=r"No space left|nearly full"):
        for _ in range(100):
            journal.append(Entry("key-1", "live", (), b"x" * 100_000)).result(10)
    assert not journal.failed


def test_a_collector_that_is_told_to_stop_while_it_starts_stops(collector_warehouse, database, tmp_path):
    starting = Collector(tmp_path, collector_warehouse, database.database)
    arguments = ["collector", "serve", "--http-port", "0", "--grpc-port", "0"]
    with open(tmp_path / "printed", "wb") as printed:
        process = commands.start(arguments, env=starting.environment, cwd=starting.data, stdout=printed, stderr=printed)
    wait_for((starting.data / "journal" / "lock").exists, what="the journal")  # the doors open later
    process.terminate()
    assert process.wait(20) == 0
    starting.engine.dispose()
