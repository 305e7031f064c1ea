"""The journal under attack: races, interrupted writes, descriptors that the host closed, lines that cannot be read."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

import meterhouse
import meterhouse.runtime
from meterhouse import journal, refused
from meterhouse.call import Call, new_call_id
from meterhouse.cli import main
from meterhouse.dead_journal import DeadJournal
from meterhouse.delivery import Outcome
from meterhouse.events import Finished, Loose, Row, UsageEvent, event_name, unfinished
from meterhouse.exporter import Exporter
from meterhouse.journal import Journal
from meterhouse.journal_records import journals, lock, name_of, unlock
from meterhouse.settings import Limits

ROOMY = Limits(10**9)
ATTRIBUTES = {"customer.id": "acme", "meterhouse.status": "ok"}
LARGE = {**ATTRIBUTES, **{f"k{number}": "\x01" * 256 for number in range(32)}}
"""49 KB as JSON: 100 such events on a line are more than is read."""


def event(name, attributes=ATTRIBUTES, meter="pages", quantity=1):
    return UsageEvent(meter, quantity, name, 5, attributes)


def finished(call_id):
    return Finished(call_id, 5, [Row("llm.requests", 1)], ATTRIBUTES)


NASTY = 'quote " back \\ line \n nul \x00 separator \u2028 é \U0001f600'


def test_whatever_is_in_a_call_stands_in_the_journal_as_json(tmp_path):
    made = Journal(tmp_path, "p", {}, ROOMY)
    made.intent(NASTY, 7, {"gen_ai.request.model": NASTY, NASTY: "half \ud83d"})
    rows = [Row("llm.tokens.input", 10**15), Row(NASTY, 2), Row("seconds", 1.5, decimal=True), Row("m", 3, NASTY)]
    made.record(Finished(NASTY, 8, [*rows, Row("n", float("inf"))], {"gen_ai.request.model": NASTY}, 255, 16, NASTY))
    _, intent, call = map(json.loads, made.path.read_bytes().splitlines())
    known = {"gen_ai.request.model": NASTY}
    assert intent == {"intent": NASTY, "at": 7, "attributes": {**known, NASTY: "half ?"}}
    assert call == {
        "call": NASTY,
        "at": 8,
        "attributes": known,
        "rows": [
            ["llm.tokens.input", 10**15],
            [NASTY, 2],
            ["seconds", 1.5, "", "", "", "", True],
            ["m", 3, NASTY, "", "", "", False],
            ["n", float("inf")],
        ],
        "span": ["ff", "10"],
        "name": NASTY,
    }


def left_by(made: Journal) -> list[UsageEvent]:
    """What an adopter finds when the process dies now."""
    unlock(made._fd)
    with DeadJournal.take(made.path) as dead:
        found = [one for batch in dead.batches(500) for one in batch]
        assert dead.unreadable_lines == 0
        return found


def drained(capsys, *options) -> dict:
    code = main(["drain", "--json", *options])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def test_what_is_recorded_while_the_file_is_replaced_is_in_the_new_one(tmp_path, monkeypatch):
    made = Journal(tmp_path, "p", {}, ROOMY)
    spell_out = made._spell_out

    def and_another_thread_records():
        spell_out()
        made.intent("late", 5, ATTRIBUTES)
        made.record(finished("late"))

    monkeypatch.setattr(made, "_spell_out", and_another_thread_records)
    made._replace()
    assert [one.event_id for one in left_by(made)] == [event_name("late", "llm.requests")]


def test_an_unfinished_call_and_its_late_end_are_one_event(metering):
    with meterhouse.customer("acme"):
        call = Call(new_call_id(), {})
        running = meterhouse.runtime.runtime()
        (intent,) = [json.loads(one) for one in running._journal.path.read_text().splitlines() if '"intent"' in one]
        told = unfinished(call.call_id, intent["at"], intent["attributes"])
        time.sleep(0.01)
        call.finish("ok", [Row("llm.requests", 1), Row("llm.tokens.input", 7)], {})
    (request,) = [one for one in metering.flush() if one.meter == "llm.requests"]
    identity = request.point["customer.id"], request.meter, request.event_time_ns, request.id, request.value
    assert identity == ("acme", told.meter, told.event_time_ns, told.event_id, told.quantity)


def test_a_journal_with_calls_under_way_is_ours_until_the_process_is_gone(tmp_path):
    made = Journal(tmp_path, "p", {}, ROOMY)
    made.intent("late", 5, ATTRIBUTES)
    made.close()
    assert DeadJournal.take(made.path) is None
    made.record(finished("late"))
    (found,) = left_by(made)
    assert found.attributes["meterhouse.status"] == "ok" and len(journals(tmp_path)) == 1


def test_usage_that_waits_for_room_keeps_its_call_open_on_disk(tmp_path):
    made = Journal(tmp_path, "p", {}, Limits(64 * 1024))
    made.intent("open", 5, ATTRIBUTES)
    made._limits = Limits(0)
    with pytest.raises(OSError, match="have reached their limit"):
        made.record(finished("open"))
    made._replace()
    (found,) = left_by(made)
    assert found.attributes["meterhouse.status"] == "unfinished"


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_write_leaves_the_call_open_and_no_torn_line(tmp_path, monkeypatch, written):
    made = Journal(tmp_path, "p", {}, ROOMY)
    made.intent("c", 5, ATTRIBUTES)
    write = os.write

    def interrupted(fd, data):
        write(fd, data if written else data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.record(finished("c"))
    monkeypatch.setattr(os, "write", write)
    made.record(Loose([event("next")]))
    made.close()
    assert sorted(one.attributes["meterhouse.status"] for one in left_by(made)) == ["ok", "unfinished"]


def test_an_interrupted_end_of_a_call_is_recorded_afterwards(metering, monkeypatch):
    with meterhouse.customer("acme"):
        call = Call(new_call_id(), {})
        write = os.write

        def interrupted(fd, data):
            monkeypatch.setattr(os, "write", write)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call.finish("ok", [Row("llm.requests", 1), Row("llm.tokens.input", 7)], {})
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 7}


def test_a_file_of_the_host_that_got_the_journal_s_descriptor_is_left_alone(tmp_path):
    made = Journal(tmp_path / "j", "p", {}, ROOMY)
    made.record(Loose([event("before")]))
    old = made.path
    os.close(made._fd)
    with open(tmp_path / "of the host", "wb") as file:
        assert file.fileno() == made._fd
        made.record(Loose([event("after")]))
        assert os.fstat(file.fileno()).st_size == 0
        with DeadJournal.take(old) as dead:
            assert [one.event_id for batch in dead.batches(9) for one in batch] == ["before"]
        assert [one.event_id for one in made.unacknowledged(9)] == ["before", "after"]
        assert [one.event_id for one in left_by(made)] == ["after"]


def test_events_beyond_memory_are_read_wherever_the_host_went(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "HELD_EVENTS", 5)
    monkeypatch.chdir(tmp_path)
    made = Journal(Path("relative"), "p", {}, ROOMY)
    for number in range(20):
        made.record(Loose([event(f"e{number}")]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    os.rename(tmp_path / "relative", tmp_path / "moved")
    seen = [one.event_id for one in made.unacknowledged(100)]
    assert seen == [f"e{number}" for number in range(20)]


@pytest.mark.parametrize("end", [Journal.tend, Journal.rescue])
def test_a_journal_that_somebody_removed_is_written_again(tmp_path, monkeypatch, end):
    monkeypatch.setattr(journal, "HELD_EVENTS", 3)
    directory = tmp_path / "j"
    made = Journal(directory, "p", {}, ROOMY)
    made.record(Loose([event("delivered")]))
    made.unacknowledged(1)
    made.acknowledge([name_of(event("delivered"))])
    for number in range(6):  # three of them only the file has
        made.record(Loose([event(f"e{number}")]))
    shutil.rmtree(directory)
    end(made)
    made.record(Loose([event("later")]))
    assert made.lost == 0
    assert [one.event_id for one in left_by(made)] == [*(f"e{number}" for number in range(6)), "later"]


def test_a_journal_that_was_removed_and_cannot_be_written_again_is_lost_and_not_left(tmp_path):
    directory = tmp_path / "j"
    made = Journal(directory, "p", {}, ROOMY)
    made.record(Loose([event("a"), event("b")]))
    shutil.rmtree(directory)
    directory.write_text("in its way")
    made.rescue()
    assert made.lost == 2 and made.waiting() == (0, False)


def test_no_line_is_longer_than_is_read(tmp_path):
    made = Journal(tmp_path, "p", {}, ROOMY)
    for number in range(120):
        made.record(Loose([event(f"e{number}", LARGE)]))
    made.unacknowledged(1)
    made._replace()
    assert [one.event_id for one in left_by(made)] == [f"e{number}" for number in range(120)]


def test_the_same_id_for_two_meters_and_customers_is_three_events(tmp_path):
    once = {**ATTRIBUTES, "meterhouse.once": "true"}
    made = Journal(tmp_path, "p", {}, ROOMY)
    given = [event("job-1", once), event("job-1", once, "seconds", 9), event("job-1", {**once, "customer.id": "zeta"})]
    for one in given:
        made.record(Loose([one]))
    assert made.unacknowledged(9) == given
    made.close()
    with DeadJournal.take(made.path) as dead:
        (batch,) = dead.batches(9)
        assert batch == given
        dead.acknowledge(batch[:1])
    with DeadJournal.take(made.path) as dead:
        assert list(dead.batches(9)) == [given[1:]]


def test_a_journal_with_damaged_lines_is_delivered_as_far_as_it_goes_and_kept_aside(metering, capsys):
    metering.journals.mkdir()
    line = json.dumps({"call": None, "events": [event("a").as_json()]})
    damaged = (
        f'{{"process":{{}}}}\n{line}\n{line.replace("5", chr(0))}\n{{"intent":"c","at":1e999,"attributes":{{}}}}\n'
    )
    (metering.journals / "dead-0.journal").write_text(damaged)
    kept = metering.journals / "dead-0.damaged"
    found = drained(capsys)
    assert (found["code"], found["delivered"], found["unreadable_lines"]) == (3, 1, 2)
    assert found["damaged"] == [str(kept)] and kept.read_text().startswith(damaged)
    assert drained(capsys)["code"] == 3
    kept.unlink()
    assert drained(capsys)["code"] == 0


def test_a_line_that_was_torn_by_the_end_of_its_process_is_no_damage(tmp_path):
    path = tmp_path / "dead-0.journal"
    line = json.dumps({"call": None, "events": [event("a").as_json()]})
    path.write_text(f'{{"process":{{}}}}\n{line}\n{line[:30]}')
    with DeadJournal.take(path) as dead:
        (batch,) = dead.batches(9)
        dead.acknowledge(batch)
    with DeadJournal.take(path) as dead:
        assert list(dead.batches(9)) == [] and dead.unreadable_lines == 0


def test_what_is_being_set_aside_is_sent_again_by_nobody_before_it_is_whole(tmp_path, monkeypatch):
    sent = []
    fsync = os.fsync

    def and_another_process_drains(fd):
        refused.send_again(tmp_path, lambda _resource, events: sent.extend(events) or Outcome.ACKNOWLEDGED)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", and_another_process_drains)
    path = refused.keep(tmp_path, {}, [(event(f"e{number}", LARGE), "bad") for number in range(20)])
    assert sent == [] and len(path.read_text().splitlines()) == 20
    refused.send_again(tmp_path, lambda _resource, events: sent.extend(events) or Outcome.ACKNOWLEDGED)
    assert len(sent) == 20 and list(tmp_path.iterdir()) == []


def test_what_another_one_has_sent_again_meanwhile_is_not_sent_twice(tmp_path, monkeypatch):
    sent = []
    refused.keep(tmp_path, {}, [(event("a"), "bad")])

    def when_the_other_one_is_done(fd):
        lock(fd)
        for path in refused.files(tmp_path):
            path.unlink()

    monkeypatch.setattr(refused, "lock", when_the_other_one_is_done)
    refused.send_again(tmp_path, lambda _resource, events: sent.extend(events) or Outcome.ACKNOWLEDGED)
    assert sent == []


def test_a_full_disk_leaves_no_half_of_what_is_set_aside(tmp_path, monkeypatch):
    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        refused.keep(tmp_path, {}, [(event("a"), "bad")])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_sent_waits_in_the_journal_and_not_in_memory_too(tmp_path, monkeypatch, sink):
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    monkeypatch.delenv("METERHOUSE_ENDPOINT", raising=False)
    made = Journal(tmp_path / "j", "p", {}, ROOMY)
    exporter = Exporter(made, {})
    for number in range(3):
        one = Loose([event(f"e{number}")])
        made.record(one)
        exporter.add(one.events())
        exporter.step()
        assert exporter._counted == []
    monkeypatch.setenv("METERHOUSE_ENDPOINT", sink.url)
    exporter.step()
    assert [one.id for one in sink.events] == ["e0", "e1", "e2"]


def test_without_a_journal_memory_has_a_bound_and_what_is_beyond_it_is_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    monkeypatch.delenv("METERHOUSE_ENDPOINT", raising=False)
    monkeypatch.setattr("meterhouse.exporter.COUNTED_AT_MOST", 2)
    exporter = Exporter(None, {})
    exporter.add([event("a"), event("b"), event("c")])
    exporter.step()
    assert ([one.event_id for one in exporter._counted], exporter.lost) == (["b", "c"], 1)


@pytest.mark.parametrize(
    ("status", "kind"), [(204, "text/html"), (202, "text/plain"), (206, "application/x-protobuf"), (200, "text/html")]
)
def test_only_the_answer_of_a_collector_is_an_acknowledgement(metering, status, kind):
    metering.sink.answers = [(status, [("content-type", kind)], b"")] * 9
    meterhouse.meter("pages").add(1)
    running = meterhouse.runtime.runtime()
    assert not meterhouse.runtime.flush(10)
    assert running._journal.waiting() == (1, False) and running._journal.path.exists()
