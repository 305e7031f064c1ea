"""The journal: what was acknowledged is in it, whole and in order, whatever happened to the process."""

import errno
import logging
import stat
import threading
import time
import zlib
from concurrent.futures import wait
from dataclasses import replace

import pytest

from meterhouse_collector import journal as journals
from meterhouse_collector import segments
from meterhouse_collector.journal import Entry, Journal, JournalInUse, Overloaded
from meterhouse_collector.records import Damaged, Record, decode, encode, frames
from meterhouse_collector.segments import START, ForeignSegments, Gone, Position, read

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
    """The intact records of a journal."""
    return [record for name in segments.names(directory) for record in intact((directory / name).read_bytes(), name)]


def intact(data, segment="s"):
    return [decode(data[frame.body : frame.end]) for frame in frames(data, segment) if frame.intact]


def places(data, segment="s"):
    return [(frame.start, frame.end, frame.intact) for frame in frames(data, segment)]


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
    size = len(encode(RECORD))
    for length in range(2 * size):
        assert places((encode(RECORD) * 2)[:length]) == ([(0, size, True)] if length >= size else [])
    assert places(encode(RECORD) * 2) == [(0, size, True), (size, 2 * size, True)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_damaged_byte_costs_one_frame_and_no_other_moves(which):
    # Also a byte of the length, after which nothing says where the next frame starts.
    numbered = [encode(replace(RECORD, received_at_ns=number)) for number in range(4)]
    size, good = len(numbered[0]), [number for number in range(4) if number != which]
    for place in range(size):
        for bit in range(8):
            data = bytearray(b"".join(numbered))
            data[which * size + place] ^= 1 << bit
            assert [record.received_at_ns for record in intact(bytes(data))] == good
            assert [found[:2] for found in places(bytes(data))] == [(n * size, (n + 1) * size) for n in range(4)]


@pytest.mark.parametrize(("segment", "damaged"), [("guessed", (0, 1, 5, 100)), ("s", (2, 5, 50))])
def test_after_damage_no_record_is_read_that_a_request_carried_inside(segment, damaged):
    # Who knows the segment's name gains nothing by it unless the damage is in the length, the first two bytes here.
    forged = encode(replace(RECORD, credential_id="forged", segment=segment))
    carrier, later = encode(replace(RECORD, metrics=forged * 3)), encode(RECORD)
    for place in damaged:
        data = bytearray(carrier + later)
        data[place] ^= 0x40
        assert [record.credential_id for record in intact(bytes(data))] == ["key-1"]


def test_a_record_inside_a_request_is_not_read_either_when_the_frame_behind_it_is_damaged_too():
    forged = encode(replace(RECORD, credential_id="forged", segment="guessed"))
    carrier, later = bytearray(encode(replace(RECORD, metrics=forged))), bytearray(encode(RECORD))
    carrier[0] ^= 0x40
    later[-1] ^= 0x40
    assert [record.credential_id for record in intact(bytes(carrier + later) + encode(RECORD))] == ["key-1"]


def test_a_damaged_length_before_megabytes_is_read_past_in_little_time():
    large = bytearray(encode(replace(RECORD, metrics=b"\x0a" * 8_000_000)))
    large[0] ^= 0x7F
    started = time.monotonic()
    assert len(intact(bytes(large) * 2 + encode(RECORD))) == 1
    assert time.monotonic() - started < 30  # trying every offset takes minutes


def test_entries_are_on_disk_in_order_when_they_are_acknowledged(tmp_path, opened):
    journal = opened()
    for number in range(20):
        journal.append(entry(b"%d" % number)).result(5)
    found = records(tmp_path)
    assert [record.metrics for record in found] == [b"%d" % number for number in range(20)]
    assert {record.segment for record in found} == set(segments.names(tmp_path))
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
    file = tmp_path / segments.names(tmp_path)[0]
    whole = file.read_bytes()
    file.write_bytes(whole + encode(RECORD)[:-3])
    opened().append(entry(b"later")).result(5)
    assert file.read_bytes() == whole
    assert file.with_suffix(".torn").read_bytes() == encode(RECORD)[:-3]
    assert [record.metrics for record in records(tmp_path)] == [b"kept", b"later"]


@pytest.mark.parametrize("place", [0, 30, 150])
def test_damage_in_the_last_segment_stays_in_its_place_and_is_told(tmp_path, opened, caplog, place):
    journal = opened()
    for number in range(5):
        journal.append(entry(b"%d" % number)).result(5)
    journal.close()
    file = tmp_path / segments.names(tmp_path)[0]
    bad = bytearray(file.read_bytes())
    bad[place] ^= 4  # of the first record, or the second
    file.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        opened().append(entry(b"later")).result(5)
    assert file.read_bytes() == bytes(bad)
    lost = b"1" if place == 150 else b"0"
    assert [record.metrics for record in records(tmp_path)] == [
        told for told in (b"0", b"1", b"2", b"3", b"4", b"later") if told != lost
    ]
    size = len(bad) // 5
    assert f"{file}: {size} bytes at offset {place // size * size} are damaged" in caplog.text
    assert not list(tmp_path.glob("*.torn"))


def test_a_damaged_last_record_is_kept_where_it_is(tmp_path, opened):
    journal = opened()
    for number in range(2):
        journal.append(entry(b"%d" % number)).result(5)
    journal.close()
    file = tmp_path / segments.names(tmp_path)[0]
    bad = bytearray(file.read_bytes())
    bad[-1] ^= 4
    file.write_bytes(bad)
    opened()
    assert file.read_bytes() == bytes(bad)


def test_whatever_a_start_writes_is_readable_by_its_owner_only(tmp_path, opened):
    journal = opened()
    journal.append(entry()).result(5)
    journal.horizon()
    journal.close()
    file = tmp_path / segments.names(tmp_path)[0]
    file.write_bytes(file.read_bytes() + b"torn")
    opened().horizon()
    files = [file for file in tmp_path.iterdir() if file.name != "lock"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert len(files) == 5  # collector_id, clock, two segments, what was torn


def test_a_restored_copy_never_gives_a_name_to_other_bytes(tmp_path, opened):
    journal = opened()
    journal.append(entry(b"a")).result(5)
    journal.close()
    copy = {file: file.read_bytes() for file in tmp_path.iterdir()}
    journal = opened()
    journal.append(entry(b"b")).result(5)
    position = journal.horizon().position
    journal.close()
    (tmp_path / position.segment).unlink()
    for file, data in copy.items():
        file.write_bytes(data)
    journal = opened()
    journal.append(entry(b"c")).result(5)
    assert position.segment not in segments.names(tmp_path)
    assert [record.metrics for record in records(tmp_path)] == [b"a", b"c"]
    with pytest.raises(Gone, match="there is no segment"):
        read(tmp_path, position, journal.horizon().position, 1000)


def test_a_position_beyond_the_end_of_a_file_is_gone(tmp_path, opened):
    journal = opened()
    journal.append(entry()).result(5)
    until = journal.horizon().position
    beyond = Position(until.segment, until.offset + 1)
    with pytest.raises(Gone, match=f"ends at {until.offset}, before {until.offset + 1}"):
        read(tmp_path, beyond, until, 1000)
    with pytest.raises(Gone, match=f"ends at {until.offset}"):
        read(tmp_path, beyond, Position("z", 0), 1000)


def test_segments_without_the_id_of_their_collector_are_not_written_to(tmp_path, opened):
    opened().close()
    (tmp_path / "collector_id").unlink()
    with pytest.raises(ForeignSegments, match="restore its file collector_id"):
        opened()


def test_what_was_promised_to_be_past_stays_past_when_the_clock_falls_between_two_starts(tmp_path, opened):
    journal = opened(clock_ns=lambda: 5000)
    assert journal.horizon().through_ns == 5000  # idle: no record says so
    journal.close()
    opened(clock_ns=lambda: 10).append(entry()).result(5)
    assert records(tmp_path)[-1].received_at_ns == 5001


def test_a_damaged_clock_file_is_not_believed(tmp_path):
    segments.write_clock(tmp_path, 5000)
    assert segments.read_clock(tmp_path) == 5000
    bad = bytearray((tmp_path / "clock").read_bytes())
    bad[7] ^= 1
    (tmp_path / "clock").write_bytes(bad)
    assert segments.read_clock(tmp_path) == 0


def test_a_writer_that_fails_for_any_reason_refuses_what_waits_and_says_so(opened):
    ended = []
    journal = opened(on_fatal=ended.append)
    with pytest.raises(Overloaded, match="did not take"):
        journal.append(Entry("key-1", "live", ("\ud800",), b"")).result(5)
    journal._thread.join(5)
    assert journal.failed and len(ended) == 1


def test_segments_rotate_by_size_and_their_names_sort_in_the_order_written(tmp_path, opened):
    journal = opened(segment_bytes=200)
    for number in range(12):
        journal.append(entry(b"%02d" % number)).result(5)
    assert len(segments.names(tmp_path)) > 3
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
    assert [record.metrics for record in intact(found)] == [b"%02d" % n for n in range(30)]


def test_a_frame_larger_than_the_range_comes_alone(tmp_path, opened):
    journal = opened()
    journal.append(entry(b"x" * 5000)).result(5)
    journal.append(entry(b"y")).result(5)
    until = journal.horizon().position
    data, after = read(tmp_path, Position(until.segment, 0), until, 100)
    assert [len(record.metrics) for record in intact(data)] == [5000]
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
