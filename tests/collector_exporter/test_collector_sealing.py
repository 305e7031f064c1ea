"""Compressed segments: the same journal in a fifth of the space, whatever happens while it is compressed."""

import os
import stat

import collector_samples as samples
import pytest

from meterhouse_collector import sealing, segments
from meterhouse_collector.journal import Entry, Journal
from meterhouse_collector.records import Record, decode, encode, frames
from meterhouse_collector.seekable import BLOCK_BYTES, NotSeekable, SeekableFile, compressed, zstd
from meterhouse_collector.segments import START, Gone, Position

NAME, LAST = "a-00000001-11111111.seg", "a-00000002-22222222.seg"


def frame(number, size=10_000):
    body = (b"%08d" % number) * (size // 8)
    return encode(Record("key-1", "live", (), 1000 + number, f"{number:032x}", NAME, body))


def entry(metrics):
    return Entry("key-1", "live", (), metrics)


@pytest.fixture
def directory(tmp_path):
    """A journal of two segments; the first one holds 300 records, about 3 MB."""
    (tmp_path / NAME).write_bytes(b"".join(frame(number) for number in range(300)))
    (tmp_path / LAST).write_bytes(frame(300))
    return tmp_path


def everything(directory):
    """All bytes of a journal as a projector reads them, and the positions it stopped at."""
    position, until, found, stops = START, segments.end(directory), [], []
    while True:
        data, after = segments.read(directory, position, until, 700_000)
        if after == position:
            return b"".join(found), stops
        found.append(data)
        stops.append(after)
        position = after


def test_a_compressed_journal_reads_as_before_at_the_same_positions(directory):
    before = everything(directory)
    plain_size = (directory / NAME).stat().st_size
    sealing.compress(directory, NAME)
    assert everything(directory) == before
    assert sorted(os.listdir(directory)) == [NAME + ".zst", LAST]
    assert segments.names(directory) == [NAME, LAST]
    assert (directory / (NAME + ".zst")).stat().st_size * 4 < plain_size
    assert stat.S_IMODE((directory / (NAME + ".zst")).stat().st_mode) == 0o600
    assert segments.holds(directory, Position(NAME, plain_size))
    assert not segments.holds(directory, Position(NAME, plain_size + 1))


@pytest.mark.parametrize("offset", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES - 5])
def test_any_part_can_be_read_by_its_offset(directory, offset):
    whole = (directory / NAME).read_bytes()
    sealing.compress(directory, NAME)
    with segments.opened(directory, NAME) as content:
        assert content.size == len(whole)
        for length in (0, 1, 17, BLOCK_BYTES + 3, 10**8):
            assert content.read(offset, length) == whole[offset : offset + length]


def test_zstd_itself_reads_the_file(directory):
    whole = (directory / NAME).read_bytes()
    sealing.compress(directory, NAME)
    assert zstd.decompress((directory / (NAME + ".zst")).read_bytes()) == whole


def test_compressing_twice_or_after_a_crash_in_between_changes_nothing(directory):
    whole = (directory / NAME).read_bytes()
    sealing.compress(directory, NAME)
    sealing.compress(directory, NAME)
    (directory / NAME).write_bytes(whole)  # as a crash leaves it between the rename and the unlink
    (directory / (NAME + ".zst.new")).write_bytes(b"half")
    assert segments.names(directory) == [NAME, LAST]
    assert not sealing.is_compressed(directory, NAME)
    sealing.compress(directory, NAME)
    assert sealing.is_compressed(directory, NAME)
    assert segments.content(directory, NAME) == whole
    assert sorted(os.listdir(directory)) == [NAME + ".zst", LAST]


def test_a_file_that_does_not_read_back_as_it_was_written_replaces_nothing(directory, monkeypatch):
    monkeypatch.setattr(sealing, "compressed", lambda blocks: compressed([b"x" + block[1:] for block in blocks]))
    whole = (directory / NAME).read_bytes()
    with pytest.raises(sealing.NotTheSame, match="differs from what it was made of at offset 0"):
        sealing.compress(directory, NAME)
    assert (directory / NAME).read_bytes() == whole
    assert not (directory / (NAME + ".zst")).exists()


def test_a_damaged_block_costs_what_stood_in_it_and_says_so(directory, caplog):
    sealing.compress(directory, NAME)
    file = directory / (NAME + ".zst")
    data = bytearray(file.read_bytes())
    data[200] ^= 1  # in the first of three blocks: 103 records of 10,089 bytes and most of the next one
    file.write_bytes(data)
    found = list(frames(segments.content(directory, NAME), NAME))
    kept = [one for one in found if one.intact]
    assert len(kept) == 300 - 104
    content = segments.content(directory, NAME)
    assert decode(content[kept[-1].body : kept[-1].end]).record_id == f"{299:032x}"
    assert kept[-1].end == len(b"".join(frame(number) for number in range(300)))
    assert f"the block of {BLOCK_BYTES} bytes at offset 0 is damaged" in caplog.text


def test_a_flipped_bit_anywhere_in_a_block_is_seen(tmp_path):
    whole = bytes(range(256)) * 4
    good = b"".join(compressed([whole]))
    for place in range(4, len(good) - 8 - 8 - 9):  # the block without its magic number, and not the table
        bad = bytearray(good)
        bad[place] ^= 1
        (tmp_path / "f").write_bytes(bad)
        descriptor = os.open(tmp_path / "f", os.O_RDONLY)
        assert SeekableFile(descriptor, "f").read(0, 2000) in (whole, bytes(1024)), place
        os.close(descriptor)


@pytest.mark.parametrize("cut", [1, 9, 20, 1000])
def test_a_file_that_is_not_whole_is_not_taken_for_one(tmp_path, cut):
    data = b"".join(compressed([os.urandom(2000)]))
    (tmp_path / "f").write_bytes(data[:-cut])
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(NotSeekable):
        SeekableFile(descriptor, "f")
    os.close(descriptor)


def test_a_segment_that_is_compressed_while_it_is_read_is_read_to_its_end(directory):
    whole = (directory / NAME).read_bytes()
    with segments.opened(directory, NAME) as content:
        half = content.read(0, 1_000_000)
        sealing.compress(directory, NAME)
        assert half + content.read(1_000_000, 10**8) == whole


def test_a_segment_in_neither_form_is_gone(directory):
    (directory / NAME).unlink()
    with pytest.raises(Gone, match="there is no segment"):
        segments.content(directory, NAME)


def test_a_journal_whose_last_segment_is_compressed_starts_and_goes_on(tmp_path):
    journal = Journal(tmp_path, on_fatal=lambda problem: None, clock_ns=lambda: 5000)
    journal.append(entry(b"first")).result(5)
    name = journal.segment
    journal.close()
    sealing.compress(tmp_path, name)
    journal = Journal(tmp_path, on_fatal=lambda problem: None, clock_ns=lambda: 10)
    journal.append(entry(b"second")).result(5)
    journal.close()
    found = [segments.content(tmp_path, name) for name in segments.names(tmp_path)]
    told = [decode(data[one.body : one.end]) for data in found for one in frames(data, "")]
    assert [(record.metrics, record.received_at_ns) for record in told] == [(b"first", 5000), (b"second", 5001)]


def test_rotating_seals_what_there_is_and_an_empty_segment_stays(tmp_path):
    journal = Journal(tmp_path, on_fatal=lambda problem: None)
    first = journal.segment
    journal.rotate()
    journal.append(entry(b"a")).result(5)
    assert journal.segment == first
    journal.rotate()
    samples.wait_for(lambda: journal.segment != first, what="the next segment")
    journal.close()
    assert sealing.sealed(tmp_path) == [first]


def test_a_running_collector_compresses_what_is_sealed_and_projected(collector, database):
    journal = collector.data / "journal"
    assert collector.post(samples.batch(["acme"], 5, "one"))[0] == 200
    first = segments.names(journal)[-1]
    (journal / "rotate").touch()  # as another process asks for it
    samples.wait_for(lambda: sealing.is_compressed(journal, first), within_s=60, what="the compression")
    assert not (journal / "rotate").exists()
    assert collector.post(samples.batch(["acme"], 5, "two"))[0] == 200
    samples.wait_projected(database)
    rebuilt = collector.command("warehouse", "rebuild", "--json")
    assert '"differences": []' in rebuilt.stdout, rebuilt.stderr
    assert database.query("SELECT count(), sum(quantity) FROM usage").result_rows == [(10, 10)]


def test_an_empty_segment_is_compressed_too(directory):
    before = everything(directory)
    (directory / LAST).rename(directory / "a-00000003-33333333.seg")
    (directory / LAST).write_bytes(b"")
    sealing.compress(directory, LAST)
    assert segments.content(directory, LAST) == b""
    assert everything(directory)[0] == before[0]
