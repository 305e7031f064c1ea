"""How the collector does is in the warehouse, minute by minute: each once, whatever the warehouse and the clock do."""

import json
import math
import re
import time
import urllib.request
from datetime import UTC, datetime
from types import SimpleNamespace

import clickhouse_connect
import pytest
from collector_samples import Collector, event, request_of, wait_for

from meterhouse_collector import minutes
from meterhouse_collector.minutes import Minutes
from meterhouse_collector.projection import Projection
from meterhouse_collector.telemetry import Figures

NOON_S = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
HEALTH = (
    "SELECT toString(minute), accepted, refused, failed, waiting_bytes, lag_s FROM collector_health ORDER BY minute"
)


class World:
    """A collector's figures, and a clock that is set by hand."""

    def __init__(self, file, since=0):
        self.now_s, self.waiting, self.lag = NOON_S + since, 0, 0.0
        self.figures = Figures()
        self.minutes = Minutes(
            "c-1",
            self.figures,
            file=file,
            waiting_bytes=lambda: self.waiting,
            lag_s=lambda: self.lag,
            clock_s=lambda: self.now_s,
        )

    def at(self, seconds, waiting=0, lag=0.0):
        self.now_s, self.waiting, self.lag = NOON_S + seconds, waiting, lag
        self.minutes.look()


@pytest.fixture
def empty(database):
    database.command("TRUNCATE TABLE collector_minutes")
    return database


def test_a_minute_has_what_happened_in_it_and_the_most_that_waited(empty, tmp_path):
    world = World(tmp_path / "minutes")
    world.figures.count("", False, 5, 0.003)
    world.figures.count("", False, 5, 0.2)
    world.figures.count("malformed", False, 0, 0.001)
    world.figures.timed(lambda descriptor: None)(0)
    world.at(10, waiting=700, lag=1.5)
    world.at(59, waiting=20, lag=0.5)
    world.minutes.write(empty)
    # The minute is not over, and who watches sees it; a second later it is not written again, ten seconds later it is.
    assert empty.query(HEALTH).result_rows == [("2026-11-30 12:00:00", 2, 1, 0, 700, 1.5)]
    world.figures.count("", False, 5, 0.2)
    world.minutes.write(empty)
    assert empty.query(HEALTH).result_rows[0][1] == 2
    world.at(61)
    world.at(62)
    world.minutes.write(empty)
    assert empty.query(HEALTH).result_rows[0] == ("2026-11-30 12:00:00", 3, 1, 0, 700, 1.5)
    world.figures.count("overloaded", True, 0, 30.0)
    world.at(185, lag=90.0)  # looked at a moment late: the row is of the minute that it begins in
    world.minutes.end()
    world.minutes.write(empty)
    assert empty.query(HEALTH).result_rows == [
        ("2026-11-30 12:00:00", 3, 1, 0, 700, 1.5),
        ("2026-11-30 12:01:00", 0, 0, 1, 0, 0.0),
        ("2026-11-30 12:03:00", 0, 0, 0, 0, 90.0),
    ]
    durations = "SELECT what, at_most_s, times FROM collector_durations WHERE what = 'acknowledged' ORDER BY ALL"
    assert empty.query(durations).result_rows == [("acknowledged", 0.005, 1), ("acknowledged", 0.25, 2)]
    assert empty.query("SELECT sum(times) FROM collector_durations WHERE what = 'synced'").result_rows == [(1,)]


def test_minutes_wait_for_a_warehouse_that_is_down_and_stand_there_once(empty, tmp_path, monkeypatch):
    world = World(tmp_path / "minutes")
    world.figures.count("", False, 1, 100.0)
    world.at(61)

    class Down:
        def insert(self, *_arguments, **_named):
            raise clickhouse_connect.driver.exceptions.OperationalError("down")

    class Lost:
        """Stores what it is given, and the answer is lost."""

        def insert(self, *arguments, **named):
            empty.insert(*arguments, **named)
            raise clickhouse_connect.driver.exceptions.OperationalError("the answer is lost")

    for client in (Down(), Lost()):
        with pytest.raises(clickhouse_connect.driver.exceptions.OperationalError):
            world.minutes.write(client)
    world.minutes.write(empty)
    world.at(1)  # the clock is put back by seconds: the minute goes on until it comes to where it was
    world.figures.count("", False, 1, 0.001)
    world.at(122)
    world.minutes.write(empty)
    world.minutes.write(empty)
    told = empty.query(HEALTH).result_rows
    assert [row[:2] for row in told if row[1]] == [
        ("2026-11-30 12:00:00", 1),
        ("2026-11-30 12:01:00", 1),
    ]
    bounds = "SELECT at_most_s FROM collector_durations WHERE minute = toDateTime('2026-11-30 12:00:00', 'UTC')"
    assert empty.query(bounds).result_rows == [(math.inf,)]
    monkeypatch.setattr(minutes, "KEPT", 2)
    world = World(tmp_path / "other")
    for minute in range(1, 12):
        world.at(61 * minute)
    # A warehouse that is down for weeks costs no more memory and no more disk than that.
    assert len(world.minutes._rows) == 2
    assert len((tmp_path / "other").read_text().splitlines()) <= 4


def test_the_next_process_writes_what_one_that_was_killed_left(empty, tmp_path):
    file = tmp_path / "minutes"
    killed = World(file)
    killed.figures.count("", False, 1, 100.0)
    killed.at(61)
    killed.figures.count("", False, 1, 0.001)
    killed.at(121)
    with file.open("ab") as torn:
        torn.write(b'["c-1", 29')
    second = World(file, since=130)
    second.at(130)
    second.figures.count("malformed", False, 0, 0.001)
    second.at(181)  # the torn line does not take this one along
    third = World(file, since=190)
    third.at(190)
    third.minutes.write(empty)
    assert [row[:3] for row in empty.query(HEALTH).result_rows] == [
        ("2026-11-30 12:00:00", 1, 0),
        ("2026-11-30 12:01:00", 1, 0),
        ("2026-11-30 12:02:00", 0, 1),
        ("2026-11-30 12:03:00", 0, 0),
    ]
    # What is written waits no more.
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("position", "damage"),
    [
        (1, 10**12),
        (1, -1),
        (3, -1),
        (3, 2**64),
        (6, ["q"]),
        (7, [0.5]),
        (8, [1, 2]),
        (0, "\ud800"),
        (10, "x"),
        (11, 2**32),
    ],
)
def test_a_row_that_no_column_takes_does_not_keep_the_others_from_the_warehouse(
    empty, tmp_path, caplog, position, damage
):
    file = tmp_path / "minutes"
    killed = World(file)
    killed.figures.count("", False, 1, 0.001)
    killed.at(61)
    row = ["c-1", NOON_S // 60 - 9, "run", 0, 0, 0, [0.5], [1], [1], 0, 1.0, 1]
    row[1] = int(row[1])
    row[position] = damage
    with file.open("a") as damaged:
        damaged.write(json.dumps(row) + "\n")
    second = World(file)
    second.at(70)
    second.minutes.write(empty)
    assert [row[:2] for row in empty.query(HEALTH).result_rows] == [
        ("2026-11-30 12:00:00", 1),
        ("2026-11-30 12:01:00", 0),
    ]
    assert empty.query("SELECT sum(times) FROM collector_durations").result_rows == [(1,)]
    assert "1 lines cannot be read" in caplog.text
    assert file.read_bytes() == b""


@pytest.mark.parametrize("years", [1, 200])
def test_a_clock_that_was_far_ahead_for_a_moment_costs_no_minute_after_it(empty, tmp_path, years):
    world = World(tmp_path / "minutes")
    world.figures.count("", False, 1, 0.001)
    world.at(30)
    world.at(years * 365 * 86400)
    world.figures.count("", False, 1, 0.001)
    world.at(61)
    world.figures.count("", False, 1, 0.001)
    world.at(121)
    world.at(-600)  # and back: these minutes come a second time
    world.figures.count("", False, 1, 0.001)
    world.at(10)
    world.figures.count("", False, 1, 0.001)
    world.at(61)
    world.minutes.write(empty)
    told = [row[:2] for row in empty.query(HEALTH).result_rows if row[0] < "2026-12"]
    assert [row for row in told if row[1]] == [
        ("2026-11-30 11:50:00", 1),
        ("2026-11-30 12:00:00", 2),
        ("2026-11-30 12:01:00", 1),
    ]


def test_what_is_counted_beside_usage_keeps_neither_usage_nor_the_rest_waiting(tmp_path, caplog):
    projection = Projection(None, SimpleNamespace(directory=tmp_path))
    written = []

    def fails(_client):
        raise ValueError("year 1903294 is out of range")

    projection._client, projection._beside = object(), (fails, written.append)
    projection._write_beside()
    assert len(written) == 1
    assert projection.trouble() is None
    assert "cannot be written yet: ValueError: year 1903294 is out of range" in caplog.text


def test_a_minute_of_a_clock_that_was_ahead_is_in_no_objective(empty):
    """Or its failures would be those of the last five minutes until its time has passed."""
    insert = (
        "INSERT INTO collector_minutes (collector_id, minute, process_run_id, accepted, failed, lag_s, edition) "
        "VALUES ('c', now() + INTERVAL 1 DAY, 'r', 1, 9, 90, 1), ('c', now(), 'r', 1, 0, 1, 1)"
    )
    empty.command(insert)
    told = empty.query("SELECT met, burn_5m, bad_1h FROM slos").result_rows
    assert len(told) == 2
    assert set(told) == {(1.0, 0.0, 0)}


def test_a_full_disk_costs_nothing_but_what_a_kill_would_take(empty, tmp_path, caplog):
    world = World(tmp_path / "missing" / "minutes")
    world.figures.count("", False, 1, 0.001)
    world.at(61)
    world.minutes.write(empty)
    assert empty.query(HEALTH).result_rows[0][:2] == ("2026-11-30 12:00:00", 1)
    assert "cannot be kept" in caplog.text


def test_an_insert_that_arrives_late_does_not_take_back_what_a_later_one_said(empty, tmp_path):
    sent = []

    class Slow:
        """Gives up on an insert that is still on its way."""

        def insert(self, *arguments, **named):
            sent.append((arguments, named))
            raise clickhouse_connect.driver.exceptions.OperationalError("no answer in time")

    world = World(tmp_path / "minutes")
    world.figures.count("", False, 1, 0.001)
    world.at(10)
    with pytest.raises(clickhouse_connect.driver.exceptions.OperationalError):
        world.minutes.write(Slow())
    world.figures.count("", False, 1, 0.001)
    world.at(20)
    world.minutes.write(empty)
    for arguments, named in sent:
        empty.insert(*arguments, **named)
    assert empty.query(HEALTH).result_rows == [("2026-11-30 12:00:00", 2, 0, 0, 0, 0.0)]


def test_a_collector_writes_its_minutes_and_the_last_one_when_it_stops(collector_warehouse, empty, tmp_path):
    running = Collector(tmp_path, collector_warehouse, empty.database)
    running.start()
    try:
        for number in range(3):
            assert running.post(request_of(event(1, f"e-{number}")))[0] == 200
        assert running.post(b"\xff")[0] == 400
        with urllib.request.urlopen(running.http + "/metrics", timeout=20) as reply:
            assert "meterhouse_collector_requests_accepted_total 3" in reply.read().decode()
    finally:
        running.stop()
    told = "SELECT sum(accepted), sum(refused), sum(failed) FROM collector_health"
    wait_for(lambda: empty.query(told).result_rows == [(3, 1, 0)], within_s=20, what="the minutes")
    durations = "SELECT sum(times) FROM collector_durations WHERE what = 'acknowledged'"
    assert empty.query(durations).result_rows == [(3,)]


def test_what_was_seen_while_the_warehouse_was_down_is_there_when_it_is_up_again(collector_warehouse, empty, tmp_path):
    empty.command("TRUNCATE TABLE refusals")
    running = Collector(tmp_path, "http://admin:x@127.0.0.1:9", empty.database).start()
    try:
        assert running.post(request_of(event(1, "e-1")))[0] == 200
        assert running.post(b"\xff")[0] == 400
        running.process.terminate()
        running._reap()
        running.environment["METERHOUSE_WAREHOUSE_URL"] = collector_warehouse
        running.start()
        told = "SELECT sum(accepted), sum(refused), sum(failed) FROM collector_health"
        wait_for(lambda: empty.query(told).result_rows == [(1, 1, 0)], within_s=30, what="the minutes")
        refusals = "SELECT code, sum(requests) FROM refused GROUP BY code"
        wait_for(lambda: empty.query(refusals).result_rows == [("malformed", 1)], within_s=30, what="the refusals")
    finally:
        running.stop()


def test_the_lag_goes_on_from_where_a_collector_that_was_killed_had_come_to(collector_warehouse, empty, tmp_path):
    def lag_s():
        with urllib.request.urlopen(running.http + "/metrics", timeout=20) as reply:
            text = reply.read().decode()
        return float(re.search(r"^meterhouse_collector_projection_lag_seconds (\S+)$", text, re.MULTILINE)[1])

    running = Collector(tmp_path, "http://admin:x@127.0.0.1:9", empty.database).start()
    try:
        assert running.post(request_of(event(1, "e-1")))[0] == 200
        began = time.time()
        running.kill()
        time.sleep(2)
        running.start()  # still without a warehouse: it waits since the first request came, not since this start
        assert time.time() - began <= lag_s() <= time.time() - began + 1.5
        running.kill()
        running.environment["METERHOUSE_WAREHOUSE_URL"] = collector_warehouse
        running.start()
        collector_id = (tmp_path / "journal" / "collector_id").read_text()
        projected = "SELECT projected_through > fromUnixTimestamp(%(now)s) FROM watermark WHERE collector_id = %(id)s"
        asked = {"now": int(time.time()) + 1, "id": collector_id}
        wait_for(lambda: empty.query(projected, asked).result_rows == [(1,)], within_s=60, what="the projection")
        running.kill()
        running.environment["METERHOUSE_WAREHOUSE_URL"] = "http://admin:x@127.0.0.1:9"
        began = time.time()
        running.start()  # all of it is there: nothing waits
        assert lag_s() <= time.time() - began
        time.sleep(2)
        assert running.post(request_of(event(1, "e-2")))[0] == 200
        came = time.time()
        running.kill()
        running.start()
        assert 0 <= lag_s() <= time.time() - came + 1.5
    finally:
        running.stop()
