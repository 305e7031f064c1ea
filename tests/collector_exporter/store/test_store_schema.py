"""The warehouse's schema: what a migration notes and refuses, and what it would be on a cluster of servers."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from meterhouse.cli import main
from meterhouse_store import migrations, schema
from meterhouse_store.schema import SchemaRefused, cluster

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SAMPLE = [
    "-- Rows.\n\nCREATE TABLE IF NOT EXISTS m.events\n(\n    namespace String, customer_id String, event_id String, "
    "first UInt64\n)\nENGINE = ReplacingMergeTree(first)\nORDER BY (namespace, customer_id, event_id)\nSETTINGS a = 1",
    "CREATE TABLE IF NOT EXISTS m.marks (collector_id String)\nENGINE = ReplacingMergeTree ORDER BY collector_id",
    "ALTER TABLE m.events ADD COLUMN IF NOT EXISTS note String",
    "ALTER TABLE m.events MODIFY SETTING a = 2",
    "CREATE TABLE IF NOT EXISTS m.inbox (x UInt8)\nENGINE = Null",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS m.explode TO m.events AS\nSELECT 1",
    "CREATE OR REPLACE VIEW m.usage AS\nSELECT * FROM m.events FINAL\nSETTINGS b = 1",
    "CREATE OR REPLACE VIEW m.mark AS\nSELECT * FROM m.marks FINAL",
]
ON_CLUSTER = [
    "-- Rows.\nCREATE TABLE IF NOT EXISTS m.events_local ON CLUSTER c\n(\n    namespace String, customer_id String, "
    "event_id String, first UInt64\n)\nENGINE = ReplicatedReplacingMergeTree(first)\n"
    "ORDER BY (namespace, customer_id, event_id)\nSETTINGS a = 1",
    "CREATE TABLE IF NOT EXISTS m.events ON CLUSTER c AS m.events_local\n"
    "ENGINE = Distributed('c', 'm', 'events_local', cityHash64(namespace, customer_id))",
    "CREATE TABLE IF NOT EXISTS m.marks_local ON CLUSTER c (collector_id String)\n"
    "ENGINE = ReplicatedReplacingMergeTree ORDER BY collector_id",
    "CREATE TABLE IF NOT EXISTS m.marks ON CLUSTER c AS m.marks_local\n"
    "ENGINE = Distributed('c', 'm', 'marks_local', cityHash64(collector_id))",
    "ALTER TABLE m.events_local ON CLUSTER c ADD COLUMN IF NOT EXISTS note String",
    "ALTER TABLE m.events ON CLUSTER c ADD COLUMN IF NOT EXISTS note String",
    "ALTER TABLE m.events_local ON CLUSTER c MODIFY SETTING a = 2",
    "CREATE TABLE IF NOT EXISTS m.inbox ON CLUSTER c (x UInt8)\nENGINE = Null",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS m.explode ON CLUSTER c TO m.events AS\nSELECT 1",
    "CREATE OR REPLACE VIEW m.usage ON CLUSTER c AS\nSELECT * FROM m.events FINAL\n"
    "SETTINGS b = 1, distributed_product_mode = 'global', optimize_skip_unused_shards = 1",
    "CREATE OR REPLACE VIEW m.mark ON CLUSTER c AS\nSELECT * FROM m.marks FINAL\n"
    "SETTINGS distributed_product_mode = 'global', optimize_skip_unused_shards = 1",
]


@pytest.fixture
def admin(warehouse):
    client = warehouse.client()
    yield client
    for name in ("fresh", "newer", "older"):
        client.command(f"DROP DATABASE IF EXISTS {name} SYNC")
    client.close()


def test_a_migration_says_what_it_made_and_notes_what_it_applied(admin):
    made = schema.migrate(admin, "fresh", now=NOW)
    assert made.before == 0
    assert {"events", "usage", "suspense", "explode"} <= set(made.created)
    noted = admin.query("SELECT script, sha256, version, applied_at FROM fresh.schema_migrations").result_rows
    own = [(script.name, script.sha256, schema.VERSION, NOW.replace(tzinfo=None)) for script in schema.scripts("fresh")]
    assert sorted(noted) == own
    again = schema.migrate(admin, "fresh")
    assert (again.created, again.applied, again.before) == ((), (), schema.VERSION)
    assert admin.query("SELECT count() FROM fresh.schema_migrations").first_row == (len(own),)


def test_a_process_that_starts_runs_no_statement_where_all_is_applied_and_there(admin, monkeypatch):
    ran = []
    command = admin.command
    monkeypatch.setattr(admin, "command", lambda text, **how: (ran.append(text), command(text, **how)))
    schema.ensure(admin, "fresh")
    assert ran
    ran.clear()
    schema.ensure(admin, "fresh")
    assert ran == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("DROP VIEW fresh.usage SYNC", []),
        ("DROP VIEW fresh.explode SYNC", [("of another",)]),  # the script of that view alone
        ("INSERT INTO fresh.schema_migrations VALUES ('{script}', 'of another', {version}, '9', '', now64(6) + 1)", []),
        ("INSERT INTO fresh.schema_migrations VALUES ('{script}', '{sha256}', 5, '0.1', '', now64(6) + 1)", []),
        ("INSERT INTO fresh.schema_migrations VALUES ('02_inbox.sql', 'x', {version}, '9', '', now64(6) + 1)", []),
    ],
)
def test_a_process_that_starts_brings_up_to_date_what_is_missing_or_of_another_version(admin, change, left):
    schema.migrate(admin, "fresh")
    views = next(script for script in schema.scripts("fresh") if script.name == "03_views.sql")
    admin.command("CREATE OR REPLACE VIEW fresh.watermark AS SELECT 'of another' AS segment")
    admin.command(change.format(script=views.name, version=schema.VERSION, sha256=views.sha256))
    schema.ensure(admin, "fresh")
    assert admin.query("SELECT segment FROM fresh.watermark").result_rows == left
    for view in ("usage", "explode"):
        assert admin.query(f"EXISTS VIEW fresh.{view}").first_row == (1,)


def test_a_database_from_before_there_were_migrations_is_taken_over_with_its_rows(admin):
    schema.migrate(admin, "older")
    admin.command("INSERT INTO older.events (namespace, event_id, quantity, event_time) VALUES ('a', 'x', 7, now64(9))")
    admin.command("DROP TABLE older.schema_migrations SYNC")
    admin.command("DROP VIEW older.usage SYNC")
    admin.command("ALTER TABLE older.events DROP COLUMN once_time")
    made = schema.migrate(admin, "older")
    assert made.before == 1
    assert made.created == ("schema_migrations", "usage")
    assert admin.query("SELECT event_id, quantity FROM older.usage").result_rows == [("x", 7)]


def test_a_database_of_before_version_6_finds_the_copies_of_what_it_has(admin):
    schema.migrate(admin, "older")
    admin.command("DROP VIEW older.identify SYNC")
    admin.command("DROP TABLE older.identities SYNC")
    columns = "(namespace, customer_id, meter, event_id, quantity, event_time, received_at)"
    rows = ", ".join(f"('a', 'b', 'c', 'x{n}', 7, toDateTime64('2026-{n:02}-01', 9, 'UTC'), now64(9))" for n in (1, 2))
    admin.command(f"INSERT INTO older.events {columns} VALUES {rows}")
    admin.command("TRUNCATE TABLE older.schema_migrations")
    admin.command("INSERT INTO older.schema_migrations VALUES ('01_events.sql', 'earlier', 5, '0.1', '', now64(6))")
    assert schema.migrate(admin, "older").before == 5
    admin.command(f"INSERT INTO older.events {columns} VALUES {rows.replace('7,', '8,')}")
    query = "SELECT count() FROM (SELECT event_time, identity FROM older.identities GROUP BY ALL HAVING count() = 2)"
    assert admin.query(query).first_row == (2,)


def test_a_database_of_a_newer_version_is_refused_and_stays_as_it_is(admin):
    schema.migrate(admin, "newer")
    admin.command("INSERT INTO newer.schema_migrations VALUES ('03_views.sql', 'later', 99, '9.1', '', now64(6) + 1)")
    admin.command("DROP VIEW newer.suspense SYNC")
    with pytest.raises(SchemaRefused, match=r"schema version 99, written by Meterhouse 9\.1"):
        schema.migrate(admin, "newer")
    assert admin.query("EXISTS VIEW newer.suspense").first_row == (0,)


def test_a_database_of_a_single_server_is_not_moved_to_a_cluster(admin):
    schema.migrate(admin, "fresh")
    with pytest.raises(SchemaRefused, match="was made on a single server and cannot be moved to cluster main"):
        schema.migrate(admin, "fresh", cluster="main")


def test_the_command_says_what_it_did_and_a_dry_run_prints_the_statements(warehouse, monkeypatch, capsys, admin):
    url = f"http://admin:admin-password-for-tests@127.0.0.1:{warehouse.port}"
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_URL", url)
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_DATABASE", "fresh")

    def call(*options):
        with pytest.raises(SystemExit) as ended:
            main(["warehouse", "migrate", *options])
        return ended.value.code or 0, capsys.readouterr()

    code, printed = call("--dry-run")
    assert code == 0
    assert "CREATE DATABASE IF NOT EXISTS fresh ENGINE = Atomic;" in printed.out
    assert "CREATE TABLE IF NOT EXISTS fresh.events\n" in printed.out
    assert admin.query("EXISTS DATABASE fresh").first_row == (0,)
    code, printed = call()
    assert code == 0
    assert printed.out.startswith("made in fresh: ")
    assert printed.out.endswith(f"database fresh is up to date, schema version {schema.VERSION}\n")
    assert json.loads(call("--json")[1].out)["created"] == []
    code, printed = call("--cluster", "main")
    assert code == 1
    assert "was made on a single server" in printed.err


def test_on_a_cluster_tables_are_replicated_and_sharded_by_customer_and_views_read_all_shards():
    assert cluster.render(SAMPLE, "m", "c", set()) == ON_CLUSTER


def test_a_statement_that_no_rule_is_for_is_not_guessed():
    with pytest.raises(ValueError, match="no rule for the statement 'CREATE DICTIONARY"):
        cluster.render(["CREATE DICTIONARY m.d (x UInt8) PRIMARY KEY x"], "m", "c", set())


def test_all_copies_of_a_row_have_the_same_shard_because_it_follows_from_the_sorting_key():
    rendered = [text for script in schema.scripts("m", "c") for text in script.statements]
    local = {cluster._HEAD.fullmatch(text)["name"]: text for text in rendered if "ENGINE = Replicated" in text}
    spread = [text for text in rendered if "ENGINE = Distributed" in text]
    assert len(local) == len(spread) > 5
    for text in spread:
        key = text.partition("cityHash64(")[2].partition(")")[0].split(", ")
        name = cluster._HEAD.fullmatch(text)["name"] + cluster.LOCAL
        found = cluster._SORTED.search(local[name])
        assert set(key) <= set((found["several"] or found["one"]).replace(" ", "").split(","))
    events = next(text for text in spread if "m.events_local'" in text or "'events_local'" in text)
    assert "cityHash64(namespace, customer_id)" in events


def test_the_engine_reads_every_statement_for_a_cluster(admin):
    statements = [text for script in schema.scripts("m", "c") for text in script.statements]
    for text in [schema.create_database("m", "c"), *statements]:
        formatted = admin.query("SELECT formatQuerySingleLine({text:String})", parameters={"text": text}).first_row[0]
        assert " ON CLUSTER c" in formatted or formatted.startswith("INSERT INTO m.")


PLANS = """
import re, sys
import chdb
from meterhouse_store import schema
from meterhouse_store.engine import readable_views
folder = sys.argv[1]
with open(f"{folder}/config.xml", "w") as config:
    shard = "<shard><replica><host>127.0.0.1</host><port>1</port></replica></shard>"
    config.write(f"<clickhouse><remote_servers><c>{shard}{shard}</c></remote_servers></clickhouse>")
engine = chdb.connect(f"{folder}/store?config-file={folder}/config.xml")
single = lambda text: text.replace(" ON CLUSTER c", "").replace("ENGINE = Replicated", "ENGINE = ")
engine.query(single(schema.create_database("m", "c")))
for script in schema.scripts("m", "c"):
    for text in script.statements:
        text = single(text)
        if len(sys.argv) > 2:
            text = text.replace("distributed_product_mode = 'global', ", "")
        if "INSERT INTO " in text:
            continue  # only for a database of an older version
        engine.query(text)
for view in readable_views():
    try:
        engine.query(f"EXPLAIN SELECT * FROM m.{view} WHERE 1")
    except RuntimeError as problem:
        # The plan stands, and a subquery of it goes to the shards: nobody is there.
        if "ALL_CONNECTION_TRIES_FAILED" not in str(problem):
            raise
    print(view)
"""


def test_every_view_can_be_planned_over_two_shards(tmp_path):
    done = subprocess.run([sys.executable, "-c", PLANS, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"usage", "suspense", "rated_lines"} <= set(done.stdout.split())


def test_the_check_above_sees_a_view_that_a_cluster_would_refuse(tmp_path):
    done = subprocess.run([sys.executable, "-c", PLANS, tmp_path, "without"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Double-distributed IN/JOIN subqueries is denied" in done.stderr


def test_the_statements_are_printed_with_the_hash_of_the_script_they_come_from():
    printed = migrations.as_text("m", "c")
    for script in schema.scripts("m"):
        assert f"-- {script.name}, sha256 {script.sha256}\n" in printed


def test_a_month_at_rest_is_merged_into_one_part_and_only_then(admin):
    schema.migrate(admin, "fresh")
    for at in ("2026-09-01", "2026-09-01", "2026-09-02", "2026-10-01"):
        admin.command(f"INSERT INTO fresh.events (customer_id, event_time) VALUES ('acme', '{at} 00:00:00')")
    admin.command("ALTER TABLE fresh.events MODIFY SETTING min_age_to_force_merge_seconds = 1")
    query = """
        SELECT partition, count(), toInt64(sum(rows)) FROM system.parts
        WHERE database = 'fresh' AND table = 'events' AND active GROUP BY partition ORDER BY partition
    """
    deadline = time.monotonic() + 60
    while (found := admin.query(query).result_rows) != [("202609", 1, 2), ("202610", 1, 1)]:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    engine = admin.command("SELECT engine_full FROM system.tables WHERE database = 'fresh' AND name = 'events'")
    assert "min_age_to_force_merge_on_partition_only = 1" in engine


def test_a_process_that_writes_to_the_warehouse_does_not_import_pandas_for_it(warehouse, admin):
    program = """if True:
        import sys
        from meterhouse_store import schema, warehouse
        from meterhouse_store.settings import Settings
        client = warehouse.connect(Settings(warehouse_url=sys.argv[1]), database="default")
        schema.migrate(client, "fresh")
        print(sorted({"pandas", "numpy"} & set(sys.modules)))
    """
    url = f"http://admin:admin-password-for-tests@127.0.0.1:{warehouse.port}"
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
