"""Full disks, odd file systems, servers that misbehave: what happens to usage is what the documentation says."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import meterhouse
import meterhouse.runtime
from meterhouse import adoption, dead_journal, journal
from meterhouse.cli import main
from meterhouse.dead_journal import DeadJournal
from meterhouse.events import Finished, Loose, Row, UsageEvent
from meterhouse.journal import Journal, MemoryFull
from meterhouse.journal_records import journals, unlock
from meterhouse.settings import Limits

ROOMY = Limits(10**9)
ATTRIBUTES = {"customer.id": "acme", "meterhouse.status": "ok"}


def event(name, quantity=1):
    return UsageEvent("pages", quantity, name, time.time_ns(), ATTRIBUTES)


def write_journal(directory, process, *events):
    directory.mkdir(exist_ok=True)
    made = Journal(directory, process, {"service.name": "s", "meterhouse.process.id": process}, ROOMY)
    for one in events:
        made.record(Loose([one]))
    made.close()


def drained(capsys, *options) -> dict:
    code = main(["drain", "--json", *options])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def ids(sink) -> list[str]:
    return sorted(one.id for one in sink.events)


def wake():
    running = meterhouse.runtime.runtime()
    running._wake.set()
    return running


# Room on the disk


def test_beyond_its_limit_intents_are_left_out_first_and_usage_waits_in_memory(tmp_path):
    made = Journal(tmp_path, "p", {}, Limits(64 * 1024))
    calls = 0
    with pytest.raises(OSError, match="have reached their limit"):
        while True:
            calls += 1
            made.intent(f"call-{calls}", 1, {"text": "x" * 100})
    assert 7 / 8 * 65536 - 300 < made.path.stat().st_size <= 7 / 8 * 65536
    for number in range(1, 1000):
        try:
            made.record(Loose([event(f"e{number}")]))
        except OSError:
            break
    assert 65536 - 300 < made.path.stat().st_size <= 65536
    assert {one.event_id for one in made.unacknowledged(1000)} == {f"e{n}" for n in range(1, number + 1)}
    made.close()


def test_delivered_usage_is_cleared_away_and_what_waited_is_written(tmp_path):
    made = Journal(tmp_path, "p", {}, Limits(64 * 1024))
    names = []
    with pytest.raises(OSError, match="have reached their limit"):
        while True:
            names.append(f"e{len(names)}")
            made.record(Loose([event(names[-1])]))
    made.acknowledge(names[:-1])
    made.tend()
    assert made.path.stat().st_size < 1000
    assert names[-1] in made.path.read_text()
    assert [one.event_id for one in made.unacknowledged(10)] == names[-1:]
    made.close()


def test_the_limit_is_for_all_journals_of_the_directory(tmp_path):
    (tmp_path / "dead-0.journal").write_bytes(b"x" * 65000)
    made = Journal(tmp_path, "p", {}, Limits(64 * 1024))
    with pytest.raises(OSError, match="have reached their limit"):
        made.record(Loose([event(f"e{number}") for number in range(12)]))
    made.close()


def test_what_has_room_nowhere_is_counted_told_and_named_by_drain(metering, monkeypatch, caplog, capsys, nowhere):
    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    monkeypatch.setattr(journal, "HELD_EVENTS", 3)
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    running = meterhouse.runtime.runtime()
    monkeypatch.setattr(running._journal, "_limits", Limits(0))
    for _ in range(5):
        meterhouse.meter("pages").add(1)
    assert running._journal.lost == 2
    assert "Meterhouse has room for usage neither on disk nor in memory" in caplog.text
    assert not meterhouse.runtime.flush(10)
    running.tell_what_is_left()
    assert "Meterhouse lost 2 usage events" in caplog.text and "leaves 3 usage events undelivered" in caplog.text
    running._journal.close()
    monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["lost"]) == (3, 3, 2)


def test_a_full_disk_costs_nothing_once_there_is_room_again(metering, monkeypatch, capsys, nowhere, until):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    running = meterhouse.runtime.runtime()
    write, full = os.write, [True]

    def disk(fd, data):
        if fd == running._journal._fd and full:
            if len(data) > 40:  # as a real disk does it: the last room is filled before it is full
                return write(fd, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", disk)
    names = {meterhouse.meter("pages").add(1) for _ in range(250)}
    full.clear()
    names |= {meterhouse.meter("pages").add(1) for _ in range(10)}
    wake()
    text = running._journal.path.read_text
    until(lambda: all(name in text() for name in names))
    (metering.journals / "copy-0.journal").write_bytes(running._journal.path.read_bytes())  # as if it were dead
    monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
    assert drained(capsys)["delivered"] == 260
    assert set(ids(metering.sink)) == names


def test_a_journal_on_a_disk_that_is_really_full_recovers(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        made = Journal(mounted, "p", {"a": "b"}, ROOMY)
        names = []
        while True:
            names.append(f"e{len(names)}")
            try:
                made.record(Loose([event(names[-1])]))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
        subprocess.run(["mount", "-o", "remount,size=10m", mounted], check=True)
        names.append("after")
        made.record(Loose([event("after")]))
        made.tend()
        made.close()
        with DeadJournal.take(made.path) as dead:
            found = [one.event_id for batch in dead.batches(10_000) for one in batch]
        assert sorted(found) == sorted(names)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_replacing_keeps_open_intents_spilled_events_and_what_comes_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "HELD_EVENTS", 50)
    monkeypatch.setattr(journal, "ROTATE_BYTES", 2000)
    made = Journal(tmp_path, "p", {}, ROOMY)
    made.intent("open", 5, {})
    for number in range(300):
        made.intent(f"c{number}", 5, {})
        made.record(Finished(f"c{number}", 7, [Row("llm.requests", 1)], ATTRIBUTES))
    copy = journal._copy

    def meanwhile(file, fd):
        monkeypatch.setattr(journal, "_copy", copy)
        copied = copy(file, fd)
        made.record(Loose([event("meanwhile")]))
        return copied

    monkeypatch.setattr(journal, "_copy", meanwhile)
    delivered = []
    while len(delivered) < 250:
        delivered += [one.event_id for one in made.unacknowledged(50)]
        made.acknowledge(delivered[-50:])
    assert made.path.name != "p-0.journal" and len(journals(tmp_path)) == 1
    left = {one.event_id for one in made.unacknowledged(1000)}
    assert len(left) == 51 and "meanwhile" in left and not left & set(delivered)
    unlock(made._fd)  # it dies
    with DeadJournal.take(made.path) as dead:
        found = [one for batch in dead.batches(10_000) for one in batch]
    unfinished = [one for one in found if one.attributes.get("meterhouse.status") == "unfinished"]
    assert {one.event_id for one in found if one not in unfinished} == left
    assert len(unfinished) == 1 and unfinished[0].event_time_ns == 5


def test_with_fsync_every_record_is_on_disk_before_the_call_goes_on(tmp_path, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(os.fstat(fd).st_size))[0])
    made = Journal(tmp_path, "p", {}, Limits(10**9, fsync=True))
    made.intent("c", 1, {})
    made.record(Loose([event("e")]))
    assert len(synced) == 2 and synced[1] == made.path.stat().st_size
    made.close()


def test_a_limit_that_is_no_number_is_named_and_the_default_holds(metering, monkeypatch, caplog):
    monkeypatch.setenv("METERHOUSE_JOURNAL_MAX_BYTES", "1GB")
    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    meterhouse.meter("pages").add(1)
    assert metering.units() == {"pages": 1}
    assert "METERHOUSE_JOURNAL_MAX_BYTES is '1GB', not a number of bytes" in caplog.text


# Directories that are not as they should be


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"METERHOUSE_JOURNAL_DIR": "/proc/nothing/here"}, "No such file or directory"),
        ({"METERHOUSE_JOURNAL_DIR": "", "XDG_STATE_HOME": "", "HOME": "/proc"}, "No such file or directory"),
    ],
)
def test_where_nothing_can_be_written_usage_is_sent_all_the_same_and_the_setting_is_named(given, why, agent, metering):
    process = agent("import meterhouse; meterhouse.meter('pages').add(3)", METERHOUSE_CUSTOMER="acme", **given)
    _, told = process.communicate(timeout=30)
    assert why in told and "Set METERHOUSE_JOURNAL_DIR to a directory that can be written." in told
    assert [one.value for one in metering.sink.events] == [3]


def test_a_user_without_a_home_is_metered_without_a_journal(metering, monkeypatch, caplog):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    monkeypatch.delenv("METERHOUSE_JOURNAL_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    meterhouse.meter("pages").add(3)
    assert metering.units() == {"pages": 3}
    assert "the user has no home directory" in caplog.text


def test_a_file_system_without_locks_is_called_what_it_is_and_nothing_is_left_on_it(metering, monkeypatch, caplog):
    def no_locks(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    monkeypatch.setattr(fcntl, "flock", no_locks)
    meterhouse.meter("pages").add(3)
    assert metering.units() == {"pages": 3}
    assert "its file system has no file locks (flock)" in caplog.text
    assert list(metering.journals.iterdir()) == []


def test_journals_of_another_user_are_passed_over_and_told_of_once(metering, monkeypatch, caplog):
    monkeypatch.setattr(meterhouse.trouble, "_warned", set())
    for number in range(3):
        write_journal(metering.journals, f"p{number}", event(f"e{number}"))
    opened = os.open

    def forbidden(path, *rest, **more):
        if str(path).endswith(("p0-0.journal", "p1-0.journal")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", forbidden)
    meterhouse.meter("pages").add(1)
    running = wake()
    deadline = time.monotonic() + 10
    while "e2" not in ids(metering.sink) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "e2" in ids(metering.sink) and running is meterhouse.runtime.runtime()
    assert caplog.text.count("another user's process left it there") == 1


# Adoption


def test_a_large_journal_is_adopted_in_windows_and_an_adopter_that_dies_has_not_worked_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr(dead_journal, "WINDOW_EVENTS", 100)
    names = [f"e{number}" for number in range(1000)]
    write_journal(tmp_path, "p", *(event(name) for name in names))
    (path,) = journals(tmp_path)
    sent = []
    with DeadJournal.take(path) as dead:
        for batch in dead.batches(50):
            assert len(dead._events) <= 100
            sent += [one.event_id for one in batch]
            dead.acknowledge(batch)
            if len(sent) >= 500:
                break  # the adopter dies here
    with DeadJournal.take(path) as dead:
        for batch in dead.batches(50):
            sent += [one.event_id for one in batch]
            dead.acknowledge(batch)
    assert set(sent) == set(names) and len(sent) == 1000


def test_thousands_of_journals_hold_up_the_own_usage_for_a_moment_only(metering, monkeypatch, until):
    monkeypatch.setattr("meterhouse.exporter.ADOPT_AT_MOST_S", 0.2)
    metering.journals.mkdir()
    line = json.dumps({"call": None, "events": [event("e").as_json()]}).replace('"e"', '"NAME"')
    for number in range(2000):
        name = f"{number:04}"
        text = '{"process":{"meterhouse.process.id":"p"}}\n' + line.replace("NAME", name) + "\n"
        (metering.journals / f"{name}-0.journal").write_text(text)
    meterhouse.meter("own").add(1)
    running = wake()

    def under_way():
        running._wake.set()  # a slow machine needs several passes for a few
        return len(metering.sink.events) > 5

    until(under_way)
    began = time.monotonic()
    last = meterhouse.meter("own").add(1)
    running._wake.set()
    until(lambda: last in ids(metering.sink))
    assert time.monotonic() - began < 3
    assert len(journals(metering.journals)) > 100, "the pass was not bounded"


def test_journals_that_are_stuck_do_not_keep_others_from_their_turn(tmp_path, monkeypatch):
    from meterhouse.delivery import Outcome

    for number in range(20):
        write_journal(tmp_path, f"{number:02}", event(f"{number:02}"))

    def deliver(_resource, events):
        return Outcome.RETRY if events[0].event_id < "10" else Outcome.ACKNOWLEDGED

    for _ in range(200):
        adoption.drain(tmp_path, deliver, count_rest=False)
    assert [path.name[:2] for path in journals(tmp_path)] == [f"{number:02}" for number in range(10)]


def test_a_draft_that_a_dead_process_left_is_cleared_away_and_a_living_one_is_not(tmp_path):
    old = time.time() - 100
    for name, held in (("dead", False), ("living", True)):
        path = tmp_path / f"{name}-0.new"
        path.write_text("")
        os.utime(path, (old, old))
        if held:
            file = open(path)  # noqa: SIM115 - held open for its lock
            fcntl.flock(file, fcntl.LOCK_EX)
    adoption.drain(tmp_path, lambda *_: pytest.fail("nothing to send"))
    assert [path.name for path in tmp_path.iterdir()] == ["living-0.new"]
    file.close()


# Whose usage it is


def _killed_under(key, journals, name, nowhere):
    """A process that dies before it could report, under this key."""
    code = f"import meterhouse, os; meterhouse.meter('pages').add(1, event_id={name!r}); os._exit(0)"
    set_for_it = {"METERHOUSE_API_KEY": key, "METERHOUSE_JOURNAL_DIR": str(journals), "METERHOUSE_ENDPOINT": nowhere}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **set_for_it}, check=True, timeout=60)


def test_usage_of_a_dead_process_is_billed_only_where_its_key_belongs(
    metering, capsys, caplog, monkeypatch, nowhere, until
):
    _killed_under("mh_live", metering.journals, "of-live", nowhere)
    _killed_under("mh_test", metering.journals, "of-test", nowhere)
    _killed_under("", metering.journals, "of-nobody", nowhere)
    meterhouse.meter("pages").add(1, event_id="own")
    wake()
    until(lambda: ids(metering.sink) == ["of-nobody", "of-test", "own"])
    until(lambda: "leaves 1 journal in" in caplog.text)
    meterhouse.runtime.flush(5)
    assert ids(metering.sink) == ["of-nobody", "of-test", "own"]
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["elsewhere"]) == (3, 0, 1)
    monkeypatch.setenv("METERHOUSE_API_KEY", "mh_live")
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["elsewhere"]) == (0, 1, 0)
    assert ids(metering.sink) == ["of-live", "of-nobody", "of-test", "own"]


def test_after_rotations_usage_of_the_old_keys_is_delivered_under_the_new_one(metering, capsys, monkeypatch, nowhere):
    credential = hashlib.sha256(b"mh_first").hexdigest()[:24]
    keys = {"first": "mh_first", "second": f"mh_{credential}.2-_x", "other": f"mh_{'0' * 24}.2-_x"}
    for name, key in keys.items():
        _killed_under(key, metering.journals, name, nowhere)
    monkeypatch.setenv("METERHOUSE_API_KEY", f"mh_{credential}.3")
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["elsewhere"]) == (3, 2, 1)
    assert ids(metering.sink) == ["first", "second"]


def test_after_a_key_was_revoked_a_person_has_its_usage_delivered_under_another_one(metering, capsys, nowhere):
    _killed_under("mh_revoked", metering.journals, "left", nowhere)
    assert "mh_revoked" not in "".join(path.read_text() for path in metering.journals.iterdir())
    assert drained(capsys)["elsewhere"] == 1
    found = drained(capsys, "--any-key")
    assert (found["code"], found["delivered"], ids(metering.sink)) == (0, 1, ["left"])


def test_a_process_without_a_key_leaves_alone_what_was_written_under_one(metering, capsys, monkeypatch, nowhere):
    _killed_under("mh_live", metering.journals, "of-live", nowhere)
    monkeypatch.delenv(
        "METERHOUSE_API_KEY"
    )  # it reports through an OpenTelemetry Collector, which has a key of its own
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["elsewhere"], ids(metering.sink)) == (3, 0, 1, [])
    found = drained(capsys, "--any-key")
    assert (found["code"], found["delivered"], ids(metering.sink)) == (0, 1, ["of-live"])


def test_what_was_refused_under_one_key_is_not_sent_again_under_another(metering, capsys, monkeypatch):
    metering.sink.answers = [(400, (), b"bad")] * 3
    write_journal(metering.journals, "p", event("e"))
    assert drained(capsys)["refused_events"] == 1
    monkeypatch.setenv("METERHOUSE_API_KEY", "mh_live")
    metering.sink.answers.clear()
    found = drained(capsys, "--refused")
    assert (found["code"], found["delivered"], found["elsewhere"], ids(metering.sink)) == (3, 0, 1, [])
    monkeypatch.setenv("METERHOUSE_API_KEY", "mh_test")
    found = drained(capsys, "--refused")
    assert (found["code"], found["delivered"], ids(metering.sink)) == (0, 1, ["e"])


# What the server says


def test_one_bad_event_costs_itself_only_and_at_most_nineteen_requests(metering, capsys, monkeypatch):
    from meterhouse.delivery import Delivery, Outcome

    attempts = []
    real = Delivery.attempt

    def attempt(self, resource, events):
        found = [event.event_id for event in events]
        attempts.append(found)
        if "e321" in found:
            self.why = "HTTP 400: bad"
            return Outcome.REFUSED
        return real(self, resource, events)

    monkeypatch.setattr(Delivery, "attempt", attempt)
    write_journal(metering.journals, "p", *(event(f"e{number}") for number in range(500)))
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["refused_events"], len(found["refused"])) == (3, 499, 1, 1)
    assert len(attempts) <= 19
    (kept,) = metering.journals.glob("*.refused")
    (line,) = [json.loads(line) for line in kept.read_text().splitlines()]
    assert (line["event"][2], line["process"]["meterhouse.process.id"]) == ("e321", "p")
    assert ids(metering.sink) == sorted(f"e{number}" for number in range(500) if number != 321)
    # Once the cause is mended:
    monkeypatch.setattr(Delivery, "attempt", real)
    assert drained(capsys)["code"] == 3
    found = drained(capsys, "--refused")
    assert (found["code"], found["delivered"], found["refused"]) == (0, 1, [])
    assert ids(metering.sink) == sorted(f"e{number}" for number in range(500))
    assert metering.sink.events[-1].resource["meterhouse.process.id"] == "p"
    assert list(metering.journals.iterdir()) == []


def test_a_server_that_refuses_everything_is_asked_a_bounded_number_of_times(metering, capsys):
    metering.sink.answers = [(400, (), b"no")] * 1000
    write_journal(metering.journals, "p", *(event(f"e{number}") for number in range(500)))
    assert drained(capsys)["code"] == 3
    assert len(metering.sink.refused) <= 2 * 50 + 1
    (kept,) = metering.journals.glob("*.refused")
    assert len(kept.read_text().splitlines()) == 500
    metering.sink.answers.clear()
    assert drained(capsys, "--refused")["delivered"] == 500
    assert len(ids(metering.sink)) == 500


def test_what_is_refused_again_is_kept_again(metering, capsys):
    metering.sink.answers = [(400, (), b"no")] * 2
    write_journal(metering.journals, "p", event("e"))
    drained(capsys)
    found = drained(capsys, "--refused")
    assert (found["code"], found["delivered"], found["refused_events"], len(found["refused"])) == (3, 0, 1, 1)
    assert found["refused"] == [str(path) for path in metering.journals.iterdir()]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "answer",
    [
        (500, (), b""),
        (503, (("Retry-After", "1"),), b""),
        (302, (("Location", "/elsewhere"),), b""),
        (401, (), b""),
        (413, (), b""),
        (429, (), b""),
        (200, (), b"\xff garbage"),
    ],
)
def test_whatever_a_server_answers_usage_arrives_once_in_the_end(answer, metering, until, monkeypatch):
    monkeypatch.setattr("meterhouse.exporter.INTERVAL_S", 0.05)
    metering.sink.answers = [answer] * (1 if answer[0] == 413 else 2)
    names = [meterhouse.meter("pages").add(1) for _ in range(2)]
    wake()
    until(lambda: not metering.sink.answers)
    until(lambda: ids(metering.sink) == sorted(names))
    assert meterhouse.runtime.flush(10)
    assert list(metering.journals.iterdir()) == []


def test_one_call_in_one_short_life_is_delivered(agent, provider, metering):
    source = "import meterhouse; meterhouse.meter('pages').add(1)"
    process = agent(source, METERHOUSE_CUSTOMER="acme")
    assert process.wait(30) == 0
    assert [one.value for one in metering.sink.events] == [1]


def test_memory_full_is_an_oserror_that_names_its_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "HELD_EVENTS", 1)
    made = Journal(tmp_path, "p", {}, Limits(0))
    with pytest.raises(OSError, match="have reached their limit"):
        made.record(Loose([event("a")]))
    with pytest.raises(MemoryFull, match="have reached their limit"):
        made.record(Loose([event("b")]))
    assert made.lost == 1
    made.close()
