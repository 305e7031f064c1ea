"""The journal: what was acknowledged is in it, whole and in order, whatever happened to the process."""

import errno
import threading
import zlib
from concurrent.futures import wait

import pytest

from meterhouse_collector import journal as journals
from meterhouse_collector.journal import START, Entry, Journal, JournalInUse, Overloaded, Position, read, segments
from meterhouse_collector.records import Damaged, Record, decode, encode, frames, intact_length

RECORD = Record("key-1", "live", ("acme", "globex"), 0x18_07_06_05_04_03_02_01, "0" * 32, "s", b"\x0a\x00")


def entry(metrics=b"\x0a\x00"):
    return Entry("key-1", "live", (), metrics)


@pytest.fixture
def opened(tmp_path):
    """Opens journals on one directory and closes them."""
    made = []

    def opening(**more):
        made.append(Journal(tmp_path, on_fatal=more.pop("on_fatal", lambda problem: None), **more))
        return made[-1]

    yield opening
    for one in made:
        if one._thread.is_alive() or not one._closed:
            one.close()


def records(directory):
    return [
        decode(data[frame.body : frame.end])
        for name in segments(directory)
        if (data := (directory / name).read_bytes()) or True
        for frame in frames(data)
    ]


def test_a_record_is_these_bytes():
    # Worked out by hand from the wire format: tag, length, content; fixed64 little endian; crc32 last.
    body = (
        b"\x0a\x05key-1"
        b"\x12\x04live"
        b"\x1a\x04acme\x1a\x06globex"
        b"\x21\x01\x02\x03\x04\x05\x06\x07\x18"
        b"\x2a\x20" + b"0" * 32 + b"\x32\x01s"
        b"\x3a\x02\x0a\x00"
    )
    assert encode(RECORD) == bytes([len(body) + 5]) + body + b"\x7d" + zlib.crc32(body).to_bytes(4, "little")
    assert decode(encode(RECORD)[1:]) == RECORD


def test_any_flipped_bit_of_a_record_is_seen():
    frame = encode(RECORD)
    for bit in range(8, len(frame) * 8):
        bad = bytearray(frame)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode(bytes(bad[1:]))


def test_a_torn_tail_of_any_length_leaves_the_whole_frames():
    two = encode(RECORD) * 2
    for length in range(len(two)):
        whole = len(two) // 2 if length >= len(two) // 2 else 0
        assert intact_length(two[:length]) == whole
    assert intact_length(two) == len(two)


def test_entries_are_on_disk_in_order_when_they_are_acknowledged(tmp_path, opened):
    journal = opened()
    for number in range(20):
        journal.append(entry(b"%d" % number)).result(5)
    found = records(tmp_path)
    assert [record.metrics for record in found] == [b"%d" % number for number in range(20)]
    assert {record.segment for record in found} == set(segments(tmp_path))
    assert len({record.record_id for record in found}) == 20


def test_nothing_is_acknowledged_before_the_fdatasync_that_covers_it(opened):
    may_sync, calls = threading.Event(), []
    journal = opened(sync=lambda descriptor: (calls.append(descriptor), may_sync.wait(5)))
    first = journal.append(entry())
    rest = [journal.append(entry()) for _ in range(50)]
    assert not wait([first, *rest], timeout=0.1).done
    may_sync.set()
    assert not wait([first, *rest], timeout=5).not_done
    assert len(calls) <= 3  # the first alone, then all that came meanwhile


def test_received_at_rises_also_when_the_clock_falls_and_over_a_restart(tmp_path, opened):
    times = iter([1000, 900, 900, 2000])
    journal = opened(clock_ns=lambda: next(times))
    for _ in range(4):
        journal.append(entry()).result(5)
    journal.close()
    again = opened(clock_ns=lambda: 5)
    again.append(entry()).result(5)
    assert [record.received_at_ns for record in records(tmp_path)] == [1000, 1001, 1002, 2000, 2001]


def test_the_horizon_of_an_idle_journal_is_now_and_later_records_come_after_it(tmp_path, opened):
    now = [1000]
    journal = opened(clock_ns=lambda: now[0])
    journal.append(entry()).result(5)
    now[0] = 5000
    while journal._writing:
        pass
    assert journal.horizon().through_ns == 5000
    now[0] = 10
    journal.append(entry()).result(5)
    assert records(tmp_path)[-1].received_at_ns == 5001


def test_a_torn_tail_is_set_aside_at_start_and_what_was_acknowledged_stays(tmp_path, opened):
    journal = opened()
    journal.append(entry(b"kept")).result(5)
    journal.close()
    file = tmp_path / segments(tmp_path)[0]
    whole = file.read_bytes()
    file.write_bytes(whole + encode(RECORD)[:-3])
    opened().append(entry(b"later")).result(5)
    assert file.read_bytes() == whole
    assert file.with_suffix(".torn").read_bytes() == encode(RECORD)[:-3]
    assert [record.metrics for record in records(tmp_path)] == [b"kept", b"later"]


def test_segments_rotate_by_size_and_their_names_sort_in_the_order_written(tmp_path, opened):
    journal = opened(segment_bytes=200)
    for number in range(12):
        journal.append(entry(b"%02d" % number)).result(5)
    assert len(segments(tmp_path)) > 3
    assert [record.metrics for record in records(tmp_path)] == [b"%02d" % number for number in range(12)]


def test_reading_range_by_range_gives_every_frame_once(tmp_path, opened):
    journal = opened(segment_bytes=300)
    for number in range(30):
        journal.append(entry(b"%02d" % number)).result(5)
    until, position, found = journal.horizon().position, START, b""
    while True:
        data, after = read(tmp_path, position, until, 250)
        if after == position:
            break
        found, position = found + data, after
    assert position == until
    assert [decode(found[frame.body : frame.end]).metrics for frame in frames(found)] == [
        b"%02d" % n for n in range(30)
    ]


def test_a_frame_larger_than_the_range_comes_alone(tmp_path, opened):
    journal = opened()
    journal.append(entry(b"x" * 5000)).result(5)
    journal.append(entry(b"y")).result(5)
    until = journal.horizon().position
    data, after = read(tmp_path, Position(until.segment, 0), until, 100)
    assert [len(decode(data[frame.body : frame.end]).metrics) for frame in frames(data)] == [5000]
    assert after.offset == len(data)


def test_a_failed_fdatasync_refuses_what_waits_and_ends_the_process(opened):
    ended = []

    def fails(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    journal = opened(sync=fails, on_fatal=ended.append)
    with pytest.raises(Overloaded, match="did not take"):
        journal.append(entry()).result(5)
    journal._thread.join(5)
    assert [problem.errno for problem in ended] == [errno.EIO]
    assert journal.failed
    with pytest.raises(Overloaded):
        journal.append(entry())


def test_a_full_disk_refuses_and_leaves_no_torn_frame_behind(tmp_path, opened, monkeypatch):
    journal = opened()
    journal.append(entry(b"before")).result(5)
    real = journals.os.write

    def half(descriptor, data):
        if len(data) > 20:
            return real(descriptor, bytes(data[:20]))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journals.os, "write", half)
    with pytest.raises(Overloaded, match="No space left"):
        journal.append(entry(b"x" * 30)).result(5)
    monkeypatch.undo()
    journal.append(entry(b"after")).result(5)
    assert [record.metrics for record in records(tmp_path)] == [b"before", b"after"]


def test_the_reserve_of_the_disk_is_kept(tmp_path, opened):
    journal = opened(reserve_bytes=2**60)
    with pytest.raises(Overloaded, match="nearly full"):
        journal.append(entry()).result(5)
    assert records(tmp_path) == []


def test_more_than_the_journal_takes_on_is_refused_at_once(opened):
    may_sync = threading.Event()
    journal = opened(sync=lambda _descriptor: may_sync.wait(5), waiting_bytes=1000)
    first = journal.append(entry())
    while not journal._writing:
        pass
    second = journal.append(entry(b"x" * 900))
    with pytest.raises(Overloaded, match="wait for the disk"):
        journal.append(entry(b"x" * 200))
    may_sync.set()
    assert not wait([first, second], timeout=5).not_done


def test_a_second_collector_on_the_same_directory_is_refused(opened):
    opened()
    with pytest.raises(JournalInUse, match="one journal directory has one collector"):
        opened()
