"""The projector's thread: woken by what is written, and not once for each request."""

import threading
import time
from types import SimpleNamespace

import pytest

from meterhouse_collector import projection as projections
from meterhouse_collector.projection import Projection
from meterhouse_store.settings import Settings


@pytest.fixture
def stepped(monkeypatch, tmp_path):
    """A projection whose steps are noted; each comes to the end of the journal."""
    journal = SimpleNamespace(appended=threading.Event(), directory=tmp_path)
    steps = []
    projection = Projection(Settings(), journal)
    projection._projector = SimpleNamespace(caught_up=True, forget=lambda: None)
    monkeypatch.setattr(projection, "_step", lambda: steps.append(1))
    monkeypatch.setattr(projections, "HEARTBEAT_S", 60.0)
    projection.start()
    yield journal.appended, steps
    projection.stop()


def test_what_is_written_wakes_the_projector_long_before_its_heartbeat(stepped):
    appended, steps = stepped
    time.sleep(0.3)
    assert len(steps) == 1
    appended.set()
    deadline = time.monotonic() + 20
    while len(steps) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_small_requests_are_gathered_into_five_steps_a_second_at_most(stepped):
    appended, steps = stepped
    started = time.monotonic()
    while time.monotonic() < started + 1.0:
        appended.set()
        time.sleep(0.005)
    assert 2 <= len(steps) <= 6


def test_traffic_that_is_steady_is_gathered_for_longer_so_that_inserts_leave_the_core_to_others(monkeypatch, tmp_path):
    gathered = []
    journal = SimpleNamespace(
        appended=SimpleNamespace(wait=lambda _seconds: None, clear=lambda: None), directory=tmp_path
    )
    projection = Projection(Settings(), journal)
    projection._projector = SimpleNamespace(caught_up=True, forget=lambda: None)
    clock = [0.0]
    steps = iter([(True, 0.1)] * 7 + [(True, 2.0), (False, 0.1), (True, 0.1), (True, 0.001)])

    def step():
        more, took = next(steps, (None, 0))
        if more is None:
            projection._stop.set()
            return False
        clock[0] += took
        return more

    monkeypatch.setattr(projection, "_step", step)
    monkeypatch.setattr(projection._stop, "wait", lambda seconds: gathered.append(round(seconds, 3)))
    monkeypatch.setattr(projections, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    projection._run()
    # Four times a tenth from the fifth on, a second at most, and after a step without anything as at first.
    assert gathered[:11] == [0.2, 0.2, 0.2, 0.2, 0.4, 0.4, 0.4, 1.0, 0.2, 0.2, 0.2]


def test_where_nothing_has_come_for_ten_seconds_a_step_is_taken_every_two_seconds_and_no_more(tmp_path):
    waited = []
    journal = SimpleNamespace(appended=SimpleNamespace(wait=waited.append, clear=lambda: None), directory=tmp_path)
    projection = Projection(Settings(), journal)
    for ago_s in (0, 8, 12):
        projection._moved_at = time.monotonic() - ago_s
        projection._wait_for_more()
    assert waited == pytest.approx([0.3, 0.3, 1.8])


def test_a_stop_waits_neither_for_a_heartbeat_nor_for_a_write(monkeypatch, tmp_path):
    monkeypatch.setattr(projections, "HEARTBEAT_S", 60.0)
    projection = Projection(Settings(), SimpleNamespace(appended=threading.Event(), directory=tmp_path))
    projection._projector = SimpleNamespace(caught_up=True, forget=lambda: None)
    monkeypatch.setattr(projection, "_step", lambda: False)
    projection.start()
    time.sleep(0.4)  # it waits for something to be written
    projection.stop()
    assert not projection._thread.is_alive()
