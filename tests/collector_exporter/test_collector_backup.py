"""Backup while the collector takes requests, and restore elsewhere: what was acknowledged is there, once."""

import io
import json
import os
import tarfile
import threading
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from unittest import mock

import collector_samples as samples
import pytest
from collector_samples import batch, event, request_of, wait_for
from foreign_samples import call, span, sum_of, tokens_of, total_of
from worlds import ID, World, segment_name

from meterhouse.cli import main
from meterhouse_collector import archive, erasure, retention, sealing
from meterhouse_collector.archive import Archive
from meterhouse_collector.segments import Position
from meterhouse_store import access, decisions, registry, sql, sql_migrations, suspended, switches, warehouse
from meterhouse_store.settings import Settings

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
TOTALS = "SELECT customer_id, meter, count(), sum(quantity) FROM usage GROUP BY 1, 2 ORDER BY 1, 2"


def meterhouse(*arguments, **environment):
    """(exit code, what it printed, what it complained about)"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    out, error = io.StringIO(), io.StringIO()
    patched = mock.patch.dict(os.environ, clean | {name: str(value) for name, value in environment.items()}, clear=True)
    with patched, redirect_stdout(out), redirect_stderr(error), pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code or 0, out.getvalue(), error.getvalue()


@pytest.fixture
def restored(collector_warehouse):
    """A database to restore into, and a client of it once it is there."""
    admin = warehouse.connect(Settings(warehouse_url=collector_warehouse), database="default")
    admin.command("DROP DATABASE IF EXISTS restored SYNC")
    yield {"METERHOUSE_WAREHOUSE_URL": collector_warehouse, "METERHOUSE_WAREHOUSE_DATABASE": "restored"}
    admin.command("DROP DATABASE IF EXISTS restored SYNC")
    admin.close()


def client_of(environment):
    settings = Settings(warehouse_url=environment["METERHOUSE_WAREHOUSE_URL"], warehouse_database="restored")
    return warehouse.connect(settings)


@pytest.mark.parametrize("name", ["backup", pytest.param("backup.tar", marks=pytest.mark.long)])
def test_a_backup_under_load_restores_all_that_was_acknowledged_before_it(
    collector, database, restored, tmp_path, name
):
    registry.add_customer(collector.engine, "live", "acme", email="a@acme.example")
    acknowledged, stop = [], threading.Event()

    def send():
        number = 0
        while not stop.is_set():
            if collector.post(batch(["acme", "globex"], 5, f"r{number}"))[0] == 200:
                acknowledged.append(number)
            number += 1
            stop.wait(0.05)

    threads = [threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(acknowledged) >= 20, within_s=120, what="twenty acknowledged requests")
        query = "SELECT count() FROM usage"
        wait_for(lambda: database.query(query).result_rows[0][0] >= 100, within_s=120, what="the projection")
        before = len(acknowledged)
        done = collector.command("backup", str(tmp_path / name), "--json")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["sql"]["rows"]["customers"] == 1
    assert len(acknowledged) > before, "nothing was sent while the backup was taken"

    code, printed, error = meterhouse("restore", tmp_path / name, "--data", tmp_path / "elsewhere", **restored)
    assert (code, error.count("differs")) == (0, 0), error
    assert manifest["warehouse"]["usage_sha256"] in printed
    client = client_of(restored)
    acme, globex = client.query(TOTALS).result_rows
    client.close()
    assert acme[:2] == ("acme", "llm.requests") and globex[0] == "globex"
    assert before * 5 <= acme[2] == acme[3] <= len(acknowledged) * 5
    engine = sql.open_engine(Settings(data=tmp_path / "elsewhere"))
    assert [one.email for one in registry.customers(engine, "live")] == ["a@acme.example"]
    frozen = switches.current(engine, "live")["sync"]
    engine.dispose()
    assert (frozen.state, frozen.why.split()[0]) == ("off", "restored")


@pytest.fixture(scope="module")
def small(collector_warehouse, tmp_path_factory):
    """A backup without load, and where it was taken."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "data").mkdir()
    taken = samples.Collector(folder / "data", collector_warehouse, "unused").start()
    assert taken.post(batch(["acme"], 3, "s"))[0] == 200
    taken.stop()
    code, _, error = meterhouse("backup", folder / "kept", "--data", folder / "data", "--no-warehouse")
    assert code == 0, error
    return folder


def test_a_restore_makes_the_embedded_warehouse_and_a_collector_goes_on_from_there(small, tmp_path):
    code, printed, error = meterhouse("restore", small / "kept", "--data", tmp_path / "new")
    assert code == 0, error
    assert f"restored into {tmp_path / 'new'}, calls to Stripe are off" in printed
    assert (tmp_path / "new" / "warehouse").is_dir()
    assert not (tmp_path / "new.restoring").exists()


def test_nothing_is_overwritten(small, tmp_path):
    code, _, error = meterhouse("backup", small / "kept", "--data", small / "data", "--no-warehouse")
    assert (code, "exists already" in error) == (1, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "meterhouse.db").touch()
    code, _, error = meterhouse("restore", small / "kept", "--data", tmp_path / "full")
    assert (code, "is not empty" in error) == (1, True)
    code, _, error = meterhouse(
        "restore", small / "kept", "--no-warehouse", "--data", tmp_path / "new",
        METERHOUSE_SQL_URL=f"sqlite:///{small / 'data' / 'meterhouse.db'}",
    )  # fmt: skip
    assert (code, "the SQL database is not empty" in error) == (1, True)
    assert not (tmp_path / "new").exists()


def changed(small, tmp_path, change):
    """The backup with a change in one of its files."""
    copy = tmp_path / "copy"
    for file in (small / "kept").rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(small / "kept")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    change(copy)
    return copy


def _rot(copy):
    file = max((copy / "journal").glob("*.seg*"), key=lambda found: found.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _edit(copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"credentials": 1', '"credentials": 2'))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_rot, ".seg is damaged"),
        (lambda copy: (copy / "sql.jsonl").unlink(), "sql.jsonl is missing"),
        (lambda copy: (copy / "sql.jsonl").write_bytes(b"{}\n"), "sql.jsonl does not have its"),
        (_edit, "manifest.json was changed"),
        (lambda copy: (copy / "manifest.json").unlink(), "is no complete backup"),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_written(small, tmp_path, change, sentence):
    copy = changed(small, tmp_path, change)
    code, _, error = meterhouse("backup", copy, "--verify")
    assert code == 1 and sentence in error
    code, _, error = meterhouse("restore", copy, "--data", tmp_path / "new")
    assert code == 1 and sentence in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_a_whole_backup_verifies(small):
    code, printed, _ = meterhouse("backup", small / "kept", "--verify")
    assert (code, "is whole" in printed) == (0, True)


def test_a_tar_that_was_cut_off_is_refused(small, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(small / "kept", ".")
    (tmp_path / "cut.tar").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])
    code, _, error = meterhouse("backup", tmp_path / "cut.tar", "--verify")
    assert (code, "is no complete backup" in error) == (1, True)


def _of_schema(version, copy):
    """A backup as a Meterhouse of that SQL schema would have written it."""
    import hashlib

    file = copy / "sql.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = json.dumps({"schema_version": version})
    if version == 1:  # before customers had a reference
        lines = [line.replace(',"reference"]', "]") for line in lines]
    file.write_text("\n".join(lines) + "\n")
    manifest = json.loads((copy / "manifest.json").read_text())
    data = file.read_bytes()
    manifest["files"]["sql.jsonl"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))


def test_a_backup_of_an_older_schema_is_restored_and_one_of_a_newer_refused(small, tmp_path):
    older = changed(small, tmp_path, lambda copy: _of_schema(1, copy))
    code, _, error = meterhouse("restore", older, "--data", tmp_path / "new", "--no-warehouse")
    assert code == 0, error
    newer = changed(small, tmp_path / "2", lambda copy: _of_schema(sql_migrations.VERSION + 1, copy))
    code, _, error = meterhouse("restore", newer, "--data", tmp_path / "never", "--no-warehouse")
    assert (code, "restore it with the Meterhouse that wrote it" in error) == (1, True)
    assert not (tmp_path / "never").exists()


def test_sql_goes_from_sqlite_to_postgresql(small, tmp_path, postgres_url):
    code, _, error = meterhouse(
        "restore", small / "kept", "--data", tmp_path / "new", "--no-warehouse", METERHOUSE_SQL_URL=postgres_url
    )
    assert code == 0, error
    before, after = (
        sql.open_engine(settings)
        for settings in (Settings(data=small / "data"), Settings(data=tmp_path, sql_url=postgres_url))
    )
    assert access.credentials(before) == access.credentials(after) != []
    code, _, error = meterhouse(
        "backup", tmp_path / "again", "--data", tmp_path / "new", "--no-warehouse", METERHOUSE_SQL_URL=postgres_url
    )
    assert code == 0, error
    for engine in (before, after):
        engine.dispose()


def with_everything(folder, client, connect):
    """A world with all sources, decisions, an erasure and two copied segments of which the first was removed here."""
    folder.mkdir()
    world = World(folder, client, connect)
    registry.ensure_namespace(world.engine, "live")
    world.metrics(request_of(event(7, "a"), event(5, "b")), valid_from_ns=0)
    world.metrics(request_of(event(9, "b")), valid_from_ns=0)
    world.metrics(total_of((10, 10), (30, 30), (40, 25)))
    world.rotate()
    world.metrics(request_of(event(11, "n"), point={"gen_ai.agent.name": "x"}), valid_from_ns=0)
    world.metrics(sum_of((1, 5), name="pages.sold"))
    world.metrics(tokens_of((1, 100.0)))
    world.rotate()
    world.traces(span(1, more=call(50, 20)))
    world.traces(span(2, parent=1, more=call(50, 20)))
    world.decide(suspended.release, reason="conflict")
    world.decide(suspended.assign, "globex", events=("n",))
    world.decide(suspended.release, reason="cumulative_fall")
    world.metrics(total_of((35, 20)))  # of what was released 5 would be left
    erasure.erase(world.journal, "nobody", "live", who="ann", why="-", at=NOON, is_taken=lambda _name: False)
    store = Archive(f"file://{folder}/copies", ID)
    for name in sealing.sealed(world.journal):
        sealing.compress(world.journal, name)
        archive.note(world.journal, name, store.put(world.journal, name))
    return world


def test_decisions_other_sources_and_an_archived_journal_are_restored_and_agree_with_each_other(
    database, collector_warehouse, restored, tmp_path
):
    def connect(name):
        return warehouse.connect(Settings(warehouse_url=collector_warehouse), timeout_s=30, database=name)

    world = with_everything(tmp_path / "data", database, connect)
    before = world.state()
    live = restored | {"METERHOUSE_WAREHOUSE_DATABASE": database.database}
    copies = {"METERHOUSE_JOURNAL_ARCHIVE": f"file://{tmp_path}/data/copies"}
    code, _, error = meterhouse("backup", tmp_path / "whole.tar", "--data", tmp_path / "data", **live)
    assert code == 0, error
    store = Archive(copies["METERHOUSE_JOURNAL_ARCHIVE"], ID)
    now = datetime.now(UTC) + timedelta(days=9)
    assert retention.remove_old(world.journal, Position(segment_name(2), 0), timedelta(1), now, archive_to=store) == [
        segment_name(1)
    ]
    code, _, error = meterhouse("backup", tmp_path / "lacking", "--data", tmp_path / "data", **live)
    assert code == 0, error

    code, _, error = meterhouse("restore", tmp_path / "whole.tar", "--data", tmp_path / "new", **restored)
    assert (code, error.count("differs")) == (0, 0), error
    client = client_of(restored)
    again = World.state(SimpleNamespace(client=client))
    assert {name: again[name] for name in before} == before
    engine = sql.open_engine(Settings(data=tmp_path / "new"))
    kept = decisions.latest(engine, "live", 100)
    engine.dispose()
    assert kept == decisions.latest(world.engine, "live", 100) and len(kept) == 4
    code, printed, error = meterhouse("warehouse", "verify", "--data", tmp_path / "new", **restored)
    assert (code, "the warehouse agrees with it" in printed) == (0, True), printed + error
    assert meterhouse("journal", "verify", "--copies", "--data", tmp_path / "new", **copies)[:2] == (
        0, "9 records are whole\n",
    )  # fmt: skip

    # Of a journal whose oldest segment is in the object store only: told, and whole after it was fetched.
    client.command("DROP DATABASE restored SYNC")
    client.close()
    code, printed, error = meterhouse("restore", tmp_path / "lacking", "--data", tmp_path / "old", **restored)
    assert (code, "differs: live llm.tokens.input" in error) == (3, True), error
    assert meterhouse("warehouse", "rebuild", "--data", tmp_path / "old", **restored)[0] == 1
    assert meterhouse("journal", "fetch", "--data", tmp_path / "old", **copies)[0] == 0
    code, printed, error = meterhouse("warehouse", "rebuild", "--data", tmp_path / "old", **restored)
    assert code in (0, 3), error  # it says by how much the totals have grown
    client = client_of(restored)
    again = World.state(SimpleNamespace(client=client))
    client.close()
    assert {name: again[name] for name in before} == before
    code, printed, error = meterhouse("warehouse", "verify", "--data", tmp_path / "old", **restored)
    assert (code, "the warehouse agrees with it" in printed) == (0, True), printed + error
    world.engine.dispose()
