"""Power cuts: a loop-mounted ext4 is shut down in the middle, and what was acknowledged is there after the next mount.

EXT4_IOC_SHUTDOWN throws away what the disk was not told to keep, which a killed process does not: its pages live on.
"""

import fcntl
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from meterhouse_collector import erasure, sealing, segments
from meterhouse_collector import journal as journals
from meterhouse_collector.journal import Entry, Journal, Overloaded
from meterhouse_collector.records import decode, frames

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)  # include/uapi/linux/ext4.h


class Disk:
    """An ext4 file system of its own, in a file, that can lose its power."""

    def __init__(self, image, place):
        self.image, self.place = image, place
        image.write_bytes(b"")
        os.truncate(image, 16 * 2**20)
        place.mkdir()
        # Without lazy initialisation, or a kernel thread writes to it meanwhile.
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
        self.mount()

    def mount(self):
        # A commit every five minutes: nothing gets durable by itself.
        run("mount", "-o", "loop,commit=300", self.image, self.place)

    def cut(self):
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def unmount(self):
        run("umount", self.place)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "umount"))):
        pytest.skip("a power cut is made with a loop-mounted ext4: only root may mount one")
    try:
        made = Disk(tmp_path / "image", tmp_path / "disk")
    except OSError as problem:
        pytest.skip(f"a power cut is made with a loop-mounted ext4, which this machine does not mount: {problem}")
    try:
        made.cut()
        made.unmount()
        made.mount()
    except OSError as problem:
        made.unmount()
        pytest.skip(f"this machine's ext4 cannot be shut down: {problem}")
    yield made
    made.unmount()


@contextmanager
def journal_on(disk, **more):
    """A journal of two records per segment; closed whatever becomes of the disk."""
    journal = Journal(disk.place / "journal", on_fatal=lambda problem: None, segment_bytes=120, reserve_bytes=0, **more)
    try:
        yield journal
    finally:
        journal.close()


def append(journal, number):
    journal.append(Entry("key-1", "live", (), b"%d" % number)).result(20)


def kept(disk):
    """The numbers of the records that a collector finds after the power is back."""
    directory = disk.place / "journal"
    if not (directory / "collector_id").exists():
        return []
    with journal_on(disk):
        pass
    found = [(name, segments.content(directory, name)) for name in segments.names(directory)]
    whole = [(data, one) for name, data in found for one in frames(data, name)]
    return [int(decode(data[one.body : one.end]).metrics) for data, one in whole if one.intact]


def cut_after(disk, acknowledged):
    """What is left of so many acknowledged records when the power goes right after the last one."""
    with journal_on(disk) as journal:
        for number in range(acknowledged):
            append(journal, number)
        disk.cut()
    disk.unmount()
    disk.mount()
    return kept(disk)


@pytest.mark.parametrize("acknowledged", range(1, 8))
def test_what_was_acknowledged_before_a_power_cut_is_there_after_it(disk, acknowledged):
    assert cut_after(disk, acknowledged) == list(range(acknowledged))


def test_it_is_there_too_after_several_cuts_in_a_row(disk):
    for round_ in range(4):
        with journal_on(disk) as journal:
            for number in range(3):
                append(journal, round_ * 3 + number)
            disk.cut()
            with pytest.raises(Overloaded):
                append(journal, 99)
        disk.unmount()
        disk.mount()
    assert [number for number in kept(disk) if number != 99] == list(range(12))


def test_the_cut_shows_a_missing_fsync_of_the_file(disk, monkeypatch):
    # Without it nothing of this test would be known to see anything.
    monkeypatch.setattr(journals.Journal.__init__, "__kwdefaults__", no_sync())
    assert cut_after(disk, 6) != list(range(6))


def no_sync():
    return journals.Journal.__init__.__kwdefaults__ | {"sync": lambda _descriptor: None}


def test_an_erasure_that_was_reported_stays_done(disk):
    assert erased_and_cut(disk) == ([], 1)


def test_the_cut_shows_a_missing_fsync_of_the_directory(disk, monkeypatch):
    # Here, because ext4 writes a new segment's name with its first fdatasync; other file systems need not.
    monkeypatch.setattr(segments, "sync_directory", lambda _directory: None)
    assert erased_and_cut(disk) != ([], 1)


def erased_and_cut(disk):
    """(what is wrong with the tombstones, how many there are) when the power goes right after an erasure."""
    with journal_on(disk) as journal:
        journal.append(Entry("key-1", "live", ("acme",), b"")).result(20)
    directory = disk.place / "journal"
    at = datetime(2026, 11, 21, tzinfo=UTC)
    erasure.erase(directory, "acme", "live", who="jane", why="-", at=at, is_taken=lambda _name: False)
    disk.cut()
    disk.unmount()
    disk.mount()
    return erasure.mistakes(directory), len(erasure.tombstones(directory))


@pytest.mark.parametrize("step", range(1, 9))
def test_a_cut_at_any_step_of_the_compression_leaves_one_of_the_two_files(disk, monkeypatch, step):
    with journal_on(disk) as journal:
        for number in range(5):
            append(journal, number)
    directory = disk.place / "journal"
    first = segments.names(directory)[0]
    steps = []

    def counted(real):
        def call(*arguments, **more):
            steps.append(real)
            if len(steps) == step:
                disk.cut()
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "open"), (os, "write"), (os, "fsync"), (os, "replace"), (os, "unlink")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        patched.setattr(type(directory), "replace", lambda file, to: os.replace(file, to))
        patched.setattr(type(directory), "unlink", lambda file, missing_ok=False: unlink(file, missing_ok))
        try:
            sealing.compress(directory, first)
        except OSError:
            assert len(steps) >= step
    if len(steps) < step:
        disk.cut()
    disk.unmount()
    disk.mount()
    assert kept(disk) == [0, 1, 2, 3, 4]


def unlink(file, missing_ok):
    try:
        os.unlink(file)
    except FileNotFoundError:
        if not missing_ok:
            raise


def test_a_cut_right_after_the_compression_leaves_the_compressed_file(disk):
    with journal_on(disk) as journal:
        for number in range(5):
            append(journal, number)
    directory = disk.place / "journal"
    for name in sealing.sealed(directory):
        sealing.compress(directory, name)
    disk.cut()
    disk.unmount()
    disk.mount()
    assert sealing.is_compressed(directory, segments.names(directory)[0])
    assert kept(disk) == [0, 1, 2, 3, 4]
