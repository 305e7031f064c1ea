"""What was turned away is counted by key, hour and reason, also over a restart; and what is told of ourselves."""

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import clickhouse_connect
import pytest
from collector_samples import Collector, add_sum, event, request_of, wait_for, wait_projected
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from sqlalchemy.exc import OperationalError

from meterhouse_collector.credentials import Credentials
from meterhouse_collector.door_settings import DoorSettings
from meterhouse_collector.refusal_counts import RefusalCounts
from meterhouse_collector.telemetry import Figures, Histogram, Metric, Push, gauge, prometheus
from meterhouse_collector.warehouse_counts import WarehouseCounts
from meterhouse_store import access, key_uses, logs, registry, sql
from meterhouse_store.settings import Settings

CANARY = "canary-7f3a"
REFUSED = "SELECT credential_id, code, requests, bytes FROM refused ORDER BY ALL"


def scraped(collector):
    import urllib.request

    with urllib.request.urlopen(collector.http + "/metrics", timeout=20) as reply:
        return reply.read().decode()


def value(text, name):
    return float(re.search(rf"^meterhouse_collector_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


@pytest.fixture
def json_collector(collector_warehouse, database, tmp_path):
    database.command("TRUNCATE TABLE refusals")
    running = Collector(tmp_path, collector_warehouse, database.database)
    running.environment["METERHOUSE_LOG"] = "json"
    yield running.start()
    running.stop()


def test_refusals_are_counted_by_key_and_reason_and_no_payload_is_told_anywhere(json_collector, database):
    credential, key = access.create_key(json_collector.engine, "live", "sender")
    garbage = b"\xff" + CANARY.encode()
    text = json.dumps({CANARY: 1, CANARY.upper(): 2}).encode()
    assert json_collector.post(garbage, key=key)[0] == 400
    assert json_collector.post(garbage, key=key)[0] == 400
    assert json_collector.post(text, key=key, media_type="application/json")[0] == 400
    assert json_collector.post(b"x", key=key, media_type=f"text/{CANARY}")[0] == 415
    assert json_collector.post(b"\0" * 17_000_000, key=key)[0] == 413
    assert json_collector.post(b"x", key=f"mh_{CANARY}")[0] == 401
    good = request_of(event(3, extra={CANARY: CANARY}), event(4, "event-2"), point={"customer.id": CANARY})
    assert json_collector.post(good, key=key)[0] == 200

    expected = {
        ("", "unauthenticated", 1, 0),
        (credential.credential_id, "malformed", 3, 2 * len(garbage) + len(text)),
        (credential.credential_id, "too_large", 1, 0),
        (credential.credential_id, "unsupported_media_type", 1, 1),
    }
    wait_for(lambda: set(database.query(REFUSED).result_rows) == expected, within_s=120, what="the counts")
    seen = scraped(json_collector)
    assert value(seen, "requests_accepted_total") == 1
    assert value(seen, "requests_refused_total") == 6
    assert value(seen, "events_accepted_total") == 2
    assert value(seen, 'requests_turned_away_total{code="malformed"}') == 3
    assert value(seen, "ack_seconds_count") == 1 and value(seen, 'ack_seconds_bucket{le="+Inf"}') == 1
    assert value(seen, "fsync_seconds_count") >= 1
    assert value(seen, "journal_bytes") > 100 and value(seen, "disk_free_bytes") > 1e6

    json_collector.stop()
    json_collector.start()  # another run counts on beside the first
    assert json_collector.post(garbage, key=key)[0] == 400
    expected -= {(credential.credential_id, "malformed", 3, 2 * len(garbage) + len(text))}
    expected |= {(credential.credential_id, "malformed", 4, 3 * len(garbage) + len(text))}
    wait_for(lambda: set(database.query(REFUSED).result_rows) == expected, within_s=120, what="the counts")

    told = Path(json_collector.data, "collector.log").read_text()
    for line in told.splitlines():
        assert set(json.loads(line)) >= {"time", "level", "logger", "message"}
    for text in (told, seen, str(database.query("SELECT * FROM refusals").result_rows)):
        assert CANARY not in text.lower() and key not in text and json_collector.key not in text


def test_what_became_of_the_rows_is_told_by_reason_and_when_a_key_was_last_used(collector, database):
    unused, _ = access.create_key(collector.engine, "live", "unused")
    now = time.time_ns()
    copies = [request_of(event(3, "a", now), event(4, "b", now)), request_of(event(4, "b", now))]
    nobody = request_of(event(5, "c", now), point={})
    bad = add_sum(request_of(event(1, "d", now)), [event(-1, "e", now)])
    for request in [*copies, nobody, bad]:
        assert collector.post(request)[0] == 200
    wait_projected(database)
    wait_for(lambda: "rows_received" in scraped(collector), what="the answer of the warehouse")
    seen = scraped(collector)
    told = {name: value(seen, f"rows_{name}") for name in ("received", "counted", "duplicate", "set_aside")}
    assert told == {"received": 6, "counted": 3, "duplicate": 1, "set_aside": 0}
    suspended = dict(re.findall(r'^meterhouse_collector_rows_suspended{reason="(\w+)"} (\S+)$', seen, re.MULTILINE))
    assert suspended == {"customer_missing": "1", "bad_quantity": "1"}
    assert 0 <= value(seen, "rows_age_seconds") < 60

    assert used(collector) == {"agents": None, "unused": None}  # a minute has not passed
    before = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=60)
    collector.process.terminate()
    collector._reap()
    found = used(collector)
    assert found["unused"] is None and unused.name == "unused"
    assert before <= datetime.fromisoformat(found["agents"]) <= datetime.now(UTC)
    collector.start()


def used(collector):
    listed = json.loads(collector.command("keys", "list", "--json").stdout)
    return {key["name"]: key["last_used_at"] for key in listed}


def test_the_use_of_a_key_is_noted_seldom_and_kept_while_it_cannot_be_written(tmp_path):
    engine = sql.open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live")
    made, text = access.create_key(engine, "live", "agents")
    noted, broken = [], [True]

    def note(uses):
        if broken[0]:
            raise OperationalError("", None, Exception("locked"))
        noted.append(dict(uses))
        key_uses.note(engine, uses)

    credentials = Credentials(lambda: access.credentials(engine), note)

    async def use(times):
        for _ in range(times):
            await credentials.of(f"Bearer {text}")

    asyncio.run(use(100))
    assert noted == []  # no request waits for it
    credentials.note_uses()
    broken[0] = False
    credentials.note_uses()
    credentials.note_uses()
    assert [list(one) for one in noted] == [[made.credential_id]]
    last = key_uses.last(engine)[made.credential_id]
    # Another collector that saw it earlier, and writes later.
    key_uses.note(engine, {made.credential_id: last - timedelta(hours=1)})
    assert key_uses.last(engine) == {made.credential_id: last}
    engine.dispose()


def test_the_warehouse_is_asked_about_its_rows_for_a_fiftieth_of_the_time_at_most():
    now, asked = [0.0], []

    class Slow:
        def query(self, text, settings):
            assert settings["max_threads"] == 1
            now[0] += 4.0
            asked.append(text)
            return SimpleNamespace(result_rows=[(9, 7, 0, 2)] if "conservation" in text else [])

        def close(self):
            pass

    counts = WarehouseCounts(Slow, lambda: now[0])
    assert counts.metrics() == []
    wait_for(lambda: counts.metrics())
    assert len(asked) == 2 and now[0] == 8.0
    for at in (100.0, 407.0):
        now[0] = at
        assert counts.metrics()[-1].points == (({}, at - 8.0),)
    assert len(asked) == 2
    now[0] = 408.0  # 8 + 50 * 8
    counts.metrics()
    wait_for(lambda: len(asked) == 4)


class Client:
    def __init__(self):
        self.rows, self.down = [], False

    def insert(self, _table, rows, **_options):
        if self.down:
            raise clickhouse_connect.driver.exceptions.OperationalError("down")
        self.rows += rows


def test_counts_that_could_not_be_written_are_written_later_and_old_hours_are_let_go(tmp_path):
    now, client = [3600.0], Client()
    counts = RefusalCounts(tmp_path / "refusals", clock_s=lambda: now[0])
    counts.add("live", "c", "malformed", 10)
    counts.add("live", "c", "malformed", 5)
    client.down = True
    with pytest.raises(clickhouse_connect.driver.exceptions.OperationalError):
        counts.write(client)
    client.down = False
    counts.write(client)
    counts.write(client)  # nothing changed: nothing is written
    assert [(row[1], row[3], *row[5:]) for row in client.rows] == [("c", "malformed", 2, 15)]
    now[0] = 7200.0
    counts.write(client)
    assert counts._counts == {}


def test_refusals_that_a_process_left_are_written_by_the_next_one(tmp_path):
    file = tmp_path / "refusals"
    killed = RefusalCounts(file, clock_s=lambda: 3600.0)
    killed.add("live", "c", "malformed", 10)
    killed.keep()
    killed.add("live", "c", "malformed", 5)
    killed.keep()
    killed.add("live", "c", "malformed", 1)  # a crash takes along what came since
    client, counts = Client(), RefusalCounts(file, clock_s=lambda: 7200.0)
    counts.add("live", "d", "malformed", 1)
    client.down = True
    with pytest.raises(clickhouse_connect.driver.exceptions.OperationalError):
        counts.write(client)
    counts.keep()  # two processes' now
    client, counts = Client(), RefusalCounts(file, clock_s=lambda: 7200.0)
    counts.write(client)
    counts.write(client)
    assert sorted((row[1], row[2].hour, *row[5:]) for row in client.rows) == [("c", 1, 2, 15), ("d", 2, 1, 1)]
    assert len({row[4] for row in client.rows}) == 2
    client, counts = Client(), RefusalCounts(file, clock_s=lambda: 7200.0)
    counts.write(client)
    assert client.rows == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"3",
        b'[["live"], 4, ["", "", "x", "", "", 1, 1]]',
        b'[["live", "c", 1000000000000, "malformed", "run", 1, 1]]',
        b'[["live", "c", 1, "malformed", "run", -1, 1]]',
        b'[["live", "\\ud800", 1, "malformed", "run", 1, 1]]',
    ],
)
def test_a_damaged_file_of_refusals_is_passed_over(tmp_path, caplog, damage):
    (tmp_path / "refusals").write_bytes(damage)
    client, counts = Client(), RefusalCounts(tmp_path / "refusals", clock_s=lambda: 3600.0)
    counts.write(client)
    assert client.rows == []
    assert "is damaged" in caplog.text
    caplog.clear()
    RefusalCounts(tmp_path / "refusals")  # told of once, not at each start
    assert caplog.text == ""


def test_what_is_counted_is_bounded_and_goes_to_nobody_beyond_that(tmp_path):
    client, counts = Client(), RefusalCounts(tmp_path / "refusals", clock_s=lambda: 3600.0)
    for number in range(10_050):
        counts.add("live", f"c{number}", "malformed", 1)
    counts.write(client)
    assert len(client.rows) == 10_001
    assert [(*row[:2], *row[5:]) for row in client.rows if row[1] == ""] == [("", "", 50, 50)]


def test_prometheus_text_has_buckets_that_add_up():
    durations = Histogram()
    for seconds in (0.0004, 0.003, 0.003, 20.0):
        durations.record(seconds)
    text = prometheus([Metric("ack_seconds", "histogram", "m", (({}, durations),)), gauge("lag", "behind", 1.5)])
    assert "# TYPE meterhouse_collector_ack_seconds histogram" in text
    for line in (
        'ack_seconds_bucket{le="0.0005"} 1',
        'ack_seconds_bucket{le="0.0025"} 1',
        'ack_seconds_bucket{le="0.005"} 3',
        'ack_seconds_bucket{le="10"} 3',
        'ack_seconds_bucket{le="+Inf"} 4',
        "ack_seconds_sum 20.0064",
        "ack_seconds_count 4",
        "lag 1.5",
    ):
        assert f"meterhouse_collector_{line}\n" in text


def test_own_metrics_are_pushed_as_otlp_with_the_headers_that_are_set():
    received = []

    class Backend(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, self.headers["x-token"], ExportMetricsServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    backend = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    Thread(target=backend.serve_forever, daemon=True).start()
    figures = Figures()
    figures.count("", False, 5, 0.003)
    figures.count("malformed", False, 0, 0.001)
    settings = DoorSettings(
        otel_exporter_otlp_endpoint=f"http://127.0.0.1:{backend.server_port}", otel_exporter_otlp_headers="x-token=abc"
    )
    push = Push(settings, lambda: [*figures.metrics(), gauge("journal_bytes", "size", 12)], "collector-1")
    push.start()
    push.stop()
    wait_for(lambda: received)
    backend.shutdown()
    backend.server_close()
    path, token, request = received[0]
    assert (path, token) == ("/v1/metrics", "abc")
    resource = {one.key: one.value.string_value for one in request.resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "meterhouse-collector" and resource["service.instance.id"] == "collector-1"
    found = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    accepted = found["meterhouse.collector.requests_accepted"].sum
    assert (accepted.is_monotonic, accepted.aggregation_temporality, accepted.data_points[0].as_double) == (True, 2, 1)
    assert found["meterhouse.collector.events_accepted"].sum.data_points[0].as_double == 5
    [away] = found["meterhouse.collector.requests_turned_away"].sum.data_points
    assert (away.attributes[0].value.string_value, away.as_double) == ("malformed", 1)
    ack = found["meterhouse.collector.ack_seconds"].histogram.data_points[0]
    assert (ack.count, ack.sum, sum(ack.bucket_counts), len(ack.bucket_counts)) == (
        1,
        0.003,
        1,
        len(ack.explicit_bounds) + 1,
    )
    assert found["meterhouse.collector.journal_bytes"].gauge.data_points[0].as_double == 12


def test_a_log_line_is_one_json_object_also_with_a_traceback():
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger("test-of-logs")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it failed: %s", "so")
    [line] = written.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("ERROR", "test-of-logs", "it failed: so")
    assert "ValueError: two\nlines" in found["exception"]
    assert found["time"].endswith("Z") and found["time"][:4] == time.strftime("%Y", time.gmtime())


def test_a_log_line_of_text_has_its_time_in_utc_wherever_the_server_is():
    program = (
        "import logging; from meterhouse_store import logs; logs.configure(); logging.getLogger('of').warning('so')"
    )
    began = datetime.now(UTC)
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    at, _, rest = done.stderr.partition(" ")
    assert rest == "WARNING of: so\n" and at.endswith("Z")
    assert timedelta(0) <= datetime.fromisoformat(at) - began.replace(microsecond=0) < timedelta(minutes=1)
