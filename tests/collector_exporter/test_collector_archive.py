"""Copies of the journal in an object store, what may be removed, and how it comes back: on a real S3 wire."""

import io
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from unittest import mock

import collector_samples as samples
import pytest

from meterhouse.cli import main
from meterhouse_collector import archive, erasure, retention, sealing, segments
from meterhouse_collector.archive import Archive, ArchiveFailed
from meterhouse_collector.journal import Entry, Journal
from meterhouse_collector.records import Record, encode, frames
from meterhouse_collector.segments import Position
from meterhouse_collector.upkeep import Upkeep

COLLECTOR = "01234567" * 4
FIRST, SECOND, LAST = (f"01234567-0000000{n}-{n * 11111111}.seg" for n in (1, 2, 3))
AT = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def s3():
    """The URL of an S3 server with an empty bucket `journal`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """A URL for METERHOUSE_JOURNAL_ARCHIVE with a prefix of its own."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, Signature=x"}
    urllib.request.urlopen(urllib.request.Request(f"{s3}/journal", method="PUT", headers=signed)).close()
    return f"s3://journal/{abs(hash(request.node.name))}"


def environment(s3):
    return {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


def commands(data, more):
    """Runs `meterhouse` on a data directory."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    told = clean | {"METERHOUSE_DATA": str(data)} | more
    return lambda *arguments: subprocess.run(
        [sys.executable, "-c", samples.MAIN, *arguments], env=told, cwd=data, capture_output=True, text=True
    )


def frame(number, received_at=AT):
    received_ns = int(received_at.timestamp()) * 10**9
    return encode(Record("key-1", "live", (), received_ns + number, f"{number:032x}", FIRST, b"%d" % number))


@pytest.fixture
def directory(tmp_path):
    """A journal of three segments, the first two of 100 and 50 days before AT."""
    directory = tmp_path / "journal"
    directory.mkdir()
    (directory / "collector_id").write_text(COLLECTOR)
    (directory / FIRST).write_bytes(frame(1, AT - timedelta(days=100)))
    (directory / SECOND).write_bytes(frame(2, AT - timedelta(days=50)))
    (directory / LAST).write_bytes(frame(3))
    for name, days in ((FIRST, 100), (SECOND, 50)):
        sealing.compress(directory, name)
        then = (AT - timedelta(days=days)).timestamp()
        os.utime(directory / (name + ".zst"), (then, then))
    return directory


def copied(directory, bucket):
    store = Archive(bucket, COLLECTOR)
    for name in sealing.sealed(directory):
        archive.note(directory, name, store.put(directory, name))
    return store


def test_a_segment_comes_back_from_its_copy_as_it_was(directory, bucket):
    store = copied(directory, bucket)
    whole = (directory / (FIRST + ".zst")).read_bytes()
    (directory / (FIRST + ".zst")).unlink()
    assert store.names() == [FIRST, SECOND]
    store.fetch(directory, FIRST)
    assert (directory / (FIRST + ".zst")).read_bytes() == whole
    assert segments.content(directory, FIRST) == frame(1, AT - timedelta(days=100))


def test_copying_twice_is_copying_once(directory, bucket):
    first, second = copied(directory, bucket), copied(directory, bucket)
    assert first.names() == second.names() == [FIRST, SECOND]


def test_a_copy_that_reads_back_differently_does_not_count(directory, bucket, monkeypatch):
    store = Archive(bucket, COLLECTOR)
    real = store._get
    monkeypatch.setattr(store, "_get", lambda name: real(name)[:-1] + b"x")
    with pytest.raises(ArchiveFailed, match="reads back as"):
        store.put(directory, FIRST)


def test_a_changed_copy_is_not_fetched_whether_it_was_noted_or_not(directory, bucket):
    store = copied(directory, bucket)
    import obstore

    obstore.put(store._store, store.key(FIRST), (directory / (SECOND + ".zst")).read_bytes())
    (directory / (FIRST + ".zst")).unlink()
    with pytest.raises(ArchiveFailed, match="is not what was copied"):
        store.fetch(directory, FIRST)
    (directory / "archive.json").unlink()
    obstore.put(store._store, store.key(FIRST), b"something else")
    with pytest.raises(ArchiveFailed, match="is damaged"):
        store.fetch(directory, FIRST)
    assert segments.names(directory) == [SECOND, LAST]


def test_a_store_that_does_not_answer_is_told_and_stops_nothing(directory, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{samples.free_port()}")
    with pytest.raises(ArchiveFailed, match="Generic S3 error"):
        copied(directory, bucket)


def test_nothing_is_removed_unless_it_is_old_projected_and_copied(directory, bucket):
    def removed(days, projected=LAST):
        return retention.remove_old(
            directory, Position(projected, 0), timedelta(days=days), AT, archive_to=Archive(bucket, COLLECTOR)
        )

    assert removed(10) == []  # no copy yet
    copied(directory, bucket)
    assert removed(101) == []
    assert removed(60, projected=FIRST) == []
    assert removed(60) == [FIRST]
    assert segments.names(directory) == [SECOND, LAST]
    (told,) = retention.removed(directory)
    assert (told["segment"], told["received_up_to"]) == (FIRST, "2026-08-13T00:00:00+00:00")
    assert told["copy"] == f"{COLLECTOR}/{FIRST}.zst"
    assert removed(10) == [SECOND]  # the last one is never sealed
    assert segments.missing(directory) == [1, 2]


def test_a_copy_of_a_file_that_was_rewritten_since_is_no_copy(directory, bucket):
    copied(directory, bucket)
    sealing.replace_durably(directory / (FIRST + ".zst"), segments.InMemory(frame(4, AT - timedelta(days=100))))
    then = (AT - timedelta(days=100)).timestamp()
    os.utime(directory / (FIRST + ".zst"), (then, then))
    keep = timedelta(days=10)
    store = Archive(bucket, COLLECTOR)
    assert retention.remove_old(directory, Position(LAST, 0), keep, AT, archive_to=store) == []


def test_what_was_fetched_back_is_not_removed_again_at_once(directory, bucket):
    store = copied(directory, bucket)
    now = datetime.now(UTC)
    old = timedelta(days=1)
    assert retention.remove_old(directory, Position(LAST, 0), old, now, archive_to=store) == [FIRST, SECOND]
    store.fetch(directory, FIRST)
    assert retention.remove_old(directory, Position(LAST, 0), old, now, archive_to=None) == []


def test_an_erasure_names_the_copies_that_it_could_not_look_into(directory, bucket):
    store = copied(directory, bucket)
    retention.remove_old(directory, Position(LAST, 0), timedelta(days=60), AT, archive_to=store)
    nobody = {"who": "jane", "why": "-", "at": AT, "is_taken": lambda _name: False}
    left = erasure.erase(directory, "acme", "live", **nobody).left
    assert left == (
        f"{FIRST} was removed, and its copy {COLLECTOR}/{FIRST}.zst was not looked into: fetch it and repeat",
    )


def test_the_upkeep_copies_and_copies_again_after_a_rewrite(tmp_path, bucket):
    journal = Journal(tmp_path, on_fatal=lambda problem: None)
    journal.append(Entry("key-1", "live", ("acme",), b"")).result(5)
    first = journal.segment
    journal.rotate()
    samples.wait_for(lambda: journal.segment != first, what="the next segment")
    upkeep = Upkeep(journal, lambda: Position(journal.segment, 0), archive_url=bucket)
    upkeep._look()
    store = Archive(bucket, journal.collector_id)
    before = store.sha256(first)
    journal.close()
    nobody = {"who": "jane", "why": "-", "at": AT, "is_taken": lambda _name: False}
    assert erasure.erase(tmp_path, "acme", "live", **nobody).records == 1
    upkeep._look()
    assert store.sha256(first) != before
    assert archive.is_copied(tmp_path, first, archive.copies(tmp_path)[first])


def test_status_verify_and_fetch_say_what_there_is(directory, bucket, tmp_path):
    store = copied(directory, bucket)
    retention.remove_old(directory, Position(LAST, 0), timedelta(days=60), AT, archive_to=store)
    code, out, _ = journal(tmp_path, bucket, "status", "--json")
    told = json.loads(out)
    assert [(one["segment"], one["state"]) for one in told["segments"]] == [(SECOND, "copied"), (LAST, "open")]
    assert (code, told["missing"], [one["segment"] for one in told["removed"]]) == (3, [1], [FIRST])
    assert "segment number 1 is missing" in journal(tmp_path, bucket, "verify")[1]
    fetched = f"fetched {FIRST}\n1 segments fetched, 0 are still missing\n"
    assert journal(tmp_path, bucket, "fetch") == (0, fetched, "")
    assert journal(tmp_path, bucket, "verify", "--copies") == (0, "3 records are whole\n", "")


def test_a_rebuild_refuses_where_segments_are_missing_and_works_after_they_were_fetched(
    collector, database, bucket, s3
):
    journal = collector.data / "journal"
    assert collector.post(samples.batch(["acme"], 5, "one"))[0] == 200
    first = segments.names(journal)[-1]
    (journal / "rotate").touch()
    samples.wait_for(lambda: sealing.is_compressed(journal, first), within_s=60, what="the compression")
    collector_id = (journal / "collector_id").read_text()
    archive.note(journal, first, Archive(bucket, collector_id).put(journal, first))
    (journal / (first + ".zst")).unlink()
    refused = collector.command("warehouse", "rebuild")
    assert refused.returncode == 1
    assert "lacks 1 segments that the live database was made of, the first is number 1" in refused.stderr
    run = commands(collector.data, {"METERHOUSE_JOURNAL_ARCHIVE": bucket} | environment(s3))
    assert run("journal", "fetch").returncode == 0
    assert json.loads(collector.command("warehouse", "rebuild", "--json").stdout)["differences"] == []
    assert database.query("SELECT count() FROM usage").result_rows == [(5,)]


def journal(tmp_path, url, *arguments):
    """(exit code, standard output, standard error) of `meterhouse journal ...`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    told = clean | {"METERHOUSE_DATA": str(tmp_path)} | ({"METERHOUSE_JOURNAL_ARCHIVE": url} if url else {})
    out, error = io.StringIO(), io.StringIO()
    patched = mock.patch.dict(os.environ, told, clear=True)
    with patched, redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as ended:
        main(["journal", *arguments])
    return ended.value.code or 0, out.getvalue(), error.getvalue()


@pytest.fixture
def nfs(tmp_path):
    """A directory for copies, as a URL and as a path with this collector's copies."""
    (tmp_path / "nfs").mkdir()
    return f"file://{tmp_path}/nfs", tmp_path / "nfs" / COLLECTOR


def remove_all(directory, store, projected=LAST):
    return retention.remove_old(directory, Position(projected, 0), timedelta(days=1), AT, archive_to=store)


def test_half_a_copy_is_none_and_is_made_again(directory, nfs, tmp_path):
    url, folder = nfs
    folder.mkdir()
    whole = (directory / (FIRST + ".zst")).read_bytes()
    (folder / (FIRST + ".zst")).write_bytes(whole[: len(whole) // 2])  # whoever wrote it died
    store = Archive(url, COLLECTOR)
    assert remove_all(directory, store) == []
    code, out, _ = journal(tmp_path, url, "status", "--json")
    assert (code, [one["state"] for one in json.loads(out)["segments"]]) == (0, ["compressed", "compressed", "open"])
    with pytest.raises(ArchiveFailed, match="is damaged"):
        store.fetch(directory, FIRST)
    assert (directory / (FIRST + ".zst")).read_bytes() == whole
    copied(directory, url)
    assert (folder / (FIRST + ".zst")).read_bytes() == whole
    assert remove_all(directory, store) == [FIRST, SECOND]


def test_nothing_is_removed_whose_copy_has_gone_or_was_changed_since_and_it_is_copied_again(directory, nfs):
    url, folder = nfs
    store = copied(directory, url)
    (folder / (FIRST + ".zst")).unlink()
    with pytest.raises(ArchiveFailed, match=FIRST):
        remove_all(directory, store)
    assert list(archive.copies(directory)) == [SECOND]
    archive.note(directory, FIRST, store.put(directory, FIRST))
    (folder / (FIRST + ".zst")).write_bytes(b"something else")
    assert remove_all(directory, store) == []
    assert list(archive.copies(directory)) == [SECOND]
    assert segments.names(directory) == [FIRST, SECOND, LAST]
    copied(directory, url)
    assert remove_all(directory, store) == [FIRST, SECOND]


def test_while_the_store_is_down_usage_is_taken_and_nothing_is_removed(tmp_path, nfs):
    url, folder = nfs
    (tmp_path / "own").mkdir()
    own = Journal(tmp_path / "own", on_fatal=lambda problem: None)
    own.append(Entry("key-1", "live", ("acme",), b"")).result(5)
    first = own.segment
    own.rotate()
    samples.wait_for(lambda: own.segment != first, what="the next segment")
    upkeep = Upkeep(own, lambda: Position(own.segment, 0), archive_url=url, keep=timedelta(0))
    folder.parent.rename(tmp_path / "unmounted")
    folder.parent.write_text("the mount point is a file")
    with pytest.raises(ArchiveFailed):
        upkeep._look()
    own.append(Entry("key-1", "live", ("acme",), b"")).result(5)
    assert segments.names(tmp_path / "own") == [first, own.segment]
    folder.parent.unlink()
    (tmp_path / "unmounted").rename(folder.parent)
    upkeep._look()
    assert segments.names(tmp_path / "own") == [own.segment]
    assert retention.removed(tmp_path / "own")[0]["copy"] == f"{own.collector_id}/{first}.zst"
    Archive(url, own.collector_id).fetch(tmp_path / "own", first)
    own.close()
    assert len(list(frames(segments.content(tmp_path / "own", first), first))) == 1


def test_fetch_brings_what_it_can_and_says_what_it_cannot(directory, nfs, tmp_path):
    url, folder = nfs
    copied(directory, url)
    for name in (FIRST, SECOND):
        (directory / (name + ".zst")).unlink()
    (folder / (FIRST + ".zst")).write_bytes(b"something else")
    code, out, error = journal(tmp_path, url, "fetch", "--json")
    assert (code, json.loads(out)["fetched"], json.loads(out)["missing"]) == (1, [SECOND], [1])
    assert error == f"the copy of {FIRST} is not what was copied: it was changed or damaged there\n"
    assert json.loads(out)["problems"] == [error.strip()]
    (folder / (FIRST + ".zst")).unlink()
    assert journal(tmp_path, url, "fetch")[0] == 3  # no copy of it is left
    code, _, error = journal(tmp_path, url, "fetch", FIRST)
    assert (code, FIRST in error) == (1, True)
    code, _, error = journal(tmp_path, url, "fetch", LAST)
    assert (code, "which the collector writes to" in error) == (1, True)
    assert (directory / LAST).exists()


def test_a_damaged_segment_is_told_by_status_and_verify_and_replaced_by_fetch(directory, nfs, tmp_path):
    url, _ = nfs
    copied(directory, url)
    nobody = {"who": "jane", "why": "-", "at": AT, "is_taken": lambda _name: False}
    erasure.erase(directory, "nobody", "live", **nobody)
    whole = (directory / (FIRST + ".zst")).read_bytes()
    (directory / (FIRST + ".zst")).write_bytes(whole[:-3])  # without the table of its blocks
    code, out, _ = journal(tmp_path, url, "status", "--json")
    assert (code, json.loads(out)["segments"][0]["state"], json.loads(out)["segments"][0]["bytes"]) == (
        3,
        "damaged",
        None,
    )
    shown = journal(tmp_path, url, "status")[1].splitlines()[1].split()
    assert shown[1:3] == ["damaged", "?"]  # how much is in it is not known, and not 0
    code, out, _ = journal(tmp_path, url, "verify", "--json")
    (mistake,) = json.loads(out)["mistakes"]
    assert (code, json.loads(out)["records"], mistake.endswith(f"`meterhouse journal fetch {FIRST}`")) == (3, 2, True)
    assert journal(tmp_path, url, "fetch", FIRST)[0] == 0
    assert journal(tmp_path, url, "verify", "--copies")[:2] == (0, "3 records are whole\n")
    # One that was never compressed here, or that a crash has left beside: it would be read before the fetched one.
    (directory / SECOND).write_bytes(b"\0" * 50)
    code, out, _ = journal(tmp_path, url, "verify")
    assert (code, out.splitlines()[1]) == (3, f"{SECOND}: 50 bytes at offset 0 are no record")
    assert journal(tmp_path, url, "fetch", SECOND)[0] == 0
    assert journal(tmp_path, url, "verify", "--copies")[:2] == (0, "3 records are whole\n")


def test_a_damaged_copy_is_told_by_verify(directory, nfs, tmp_path):
    url, folder = nfs
    copied(directory, url)
    (folder / (FIRST + ".zst")).write_bytes(b"something else")
    (folder / (SECOND + ".zst")).unlink()
    assert journal(tmp_path, url, "verify")[0] == 0
    code, out, _ = journal(tmp_path, url, "verify", "--copies", "--json")
    changed, gone = json.loads(out)["mistakes"]
    assert (code, changed) == (3, f"the copy of {FIRST} is not what was copied: it was changed or damaged there")
    assert gone.startswith(f"the copy of {SECOND} cannot be read: ")


@pytest.mark.parametrize(
    ("url", "expected", "sentence"),
    [
        (None, 1, "METERHOUSE_JOURNAL_ARCHIVE"),
        ("nonsense://x", 2, "nonsense://x"),
        ("file:///dev/null/x", 1, "Not a directory"),
    ],
)
def test_a_place_for_copies_that_is_none_is_told_in_a_sentence(directory, tmp_path, url, expected, sentence):
    for command in (("fetch",), ("verify", "--copies")):
        code, out, error = journal(tmp_path, url, *command)
        assert (code, out, sentence in error, "Traceback" in error) == (expected, "", True, False)


def test_without_a_journal_the_commands_say_where_to_look(tmp_path):
    for command in ("status", "verify", "fetch"):
        code, _, error = journal(tmp_path, "file:///tmp", command)
        assert (code, error.startswith("there is no journal in")) == (1, True)
