"""The clients that people have, against the embedded warehouse; what is logged of them, and what if they hang up."""

import gzip
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from meterhouse_store import access_log
from meterhouse_store.access_log import AccessLog, Entry

ADMIN, READER = "admin-password-for-tests", "reader-password-for-tests"
SLOW = "SELECT sum(sleepEachRow(0.02)) FROM numbers(100000) SETTINGS max_block_size = 10"


def logged(warehouse, log, containing, **fields):
    """The last line of a log whose statement has this text and whose other fields are these."""
    for _ in range(200):
        file = warehouse.data / "logs" / f"access-{log}.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else []
        found = [line for line in lines if containing in line["statement"] and fields.items() <= line.items()]
        if found:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"{containing} is not logged")


def test_a_question_is_logged_with_who_asked_and_how_much_came_back_and_without_values(warehouse):
    client = warehouse.client("reader", database="meterhouse")
    client.query(
        "SELECT 'jane@example.org' AS who, number FROM numbers(7) WHERE {w:String} = 'w'", parameters={"w": "w"}
    )
    client.close()
    line = logged(warehouse, "reader", "AS who, number FROM numbers(?) WHERE {w:String} = ?")
    assert line["statement"].startswith("SELECT ? AS who")
    assert (line["user"], line["address"], line["code"], line["kind"]) == ("reader", "127.0.0.1", 0, "SELECT")
    assert (line["result_rows"], line["result_bytes"] > 7 * 8) == (7, True)
    assert "clickhouse-connect" in line["client"]
    assert line["ms"] > 0


def test_what_was_inserted_and_whoever_is_refused(warehouse):
    admin = warehouse.client(database="meterhouse")
    admin.command("CREATE TABLE IF NOT EXISTS kept (a String) ENGINE = MergeTree ORDER BY a")
    admin.command("INSERT INTO kept VALUES ('s3cret'), ('s3cret too')")
    admin.insert("kept", [["s3cret as well"]], column_names=["a"])
    admin.command("DROP TABLE kept SYNC")
    admin.close()
    assert logged(warehouse, "admin", "INSERT INTO kept VALUES (?), (?)")["written_rows"] == 2
    assert logged(warehouse, "admin", "kept")["code"] == 0
    request = urllib.request.Request(f"{warehouse.url}/?query=SELECT+1", headers={"X-ClickHouse-User": "mallory"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    # Not the only one: what asks whether the warehouse answers yet has no password.
    line = logged(warehouse, "refused", "", user="mallory")
    assert (line["code"], line["statement"]) == (516, "")
    text = "".join(file.read_text() for file in (warehouse.data / "logs").glob("access-*"))
    assert "s3cret" not in text and ADMIN not in text


def test_the_log_keeps_to_its_bounds_and_one_user_does_not_push_out_another(tmp_path):
    log = AccessLog(tmp_path, file_bytes=2000, files=3)
    log.write(Entry("10.0.0.1", user="reader", statement="SELECT 1 FROM usage"))
    for number in range(100):
        log.write(Entry("10.0.0.1", user="admin", statement=f"INSERT INTO t{number}"))
    log.close()
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sorted(sizes) == [
        "access-admin.jsonl", "access-admin.jsonl.1", "access-admin.jsonl.2", "access-reader.jsonl"
    ]  # fmt: skip
    assert max(sizes.values()) <= 2000


def test_a_statement_that_is_long_is_cut_and_its_values_do_not_come_back():
    told = access_log.without_values("SELECT " + ", ".join(f"'value-{n}'" for n in range(10_000)))
    assert len(told) <= access_log.MAX_STATEMENT + 10
    assert "value" not in told and told.endswith("...")
    assert "value" not in access_log.without_values("SELECT '" + "value" * 10_000 + "'")


def running(client):
    query = "SELECT count() FROM system.processes WHERE query LIKE '%sum(sleepEachRow(0.02))%'"
    return client.query(f"{query} AND query NOT LIKE '%LIKE%'").first_row[0]


@pytest.mark.parametrize("statement", [SLOW, f"{SLOW} FORMAT JSON"])
def test_a_client_that_hangs_up_has_its_statement_killed(warehouse, statement):
    admin = warehouse.client()
    with socket.create_connection(("127.0.0.1", warehouse.port)) as raw:
        body = statement.encode()
        raw.sendall(
            b"POST / HTTP/1.1\r\nHost: h\r\nX-ClickHouse-User: admin\r\nX-ClickHouse-Key: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (ADMIN.encode(), len(body), body)
        )
        deadline = time.monotonic() + 60
        while not running(admin):
            assert time.monotonic() < deadline, "the statement did not begin"
            time.sleep(0.05)
    deadline = time.monotonic() + 60
    while running(admin):
        assert time.monotonic() < deadline, "the statement still runs"
        time.sleep(0.1)
    admin.close()


def test_a_parameter_too_long_for_a_url_goes_in_a_form(warehouse):
    client = warehouse.client()
    text = "ü\r\n'--" * 20_000
    assert client.query("SELECT {t:String} AS t", parameters={"t": text}).first_row == (text,)
    client.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"query": "SELECT * FROM t", "t": ("t.tsv", b"1\n")}, "48"),
        ({"query": "SELECT 1", "password": "x"}, "48"),
        ({"query": "SELECT * FROM file('/etc/passwd')"}, "497"),
    ],
)
def test_a_form_gets_nobody_further_than_a_url(warehouse, fields, code):
    from urllib3.filepost import encode_multipart_formdata

    body, kind = encode_multipart_formdata(fields)
    headers = {"Content-Type": kind, "X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(warehouse.url, body, headers))
    assert refused.value.headers["X-ClickHouse-Exception-Code"] == code
    refused.value.close()


def test_requests_as_grafana_s_datasource_sends_them(warehouse):
    # The plugin uses clickhouse-go over HTTP: user in the head, Native back, gzip offered, its row limit as a setting,
    # the time that is left as another.
    def ask(statement):
        url = {"database": "meterhouse", "default_format": "Native", "limit": "1000000", "max_execution_time": "65",
               "client_protocol_version": "54460", "enable_http_compression": "1"}  # fmt: skip
        headers = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": READER, "Accept-Encoding": "gzip",
                   "User-Agent": "clickhouse-go/2.30.0 clickhouse-datasource/4.20.0 grafana/12"}  # fmt: skip
        address = f"{warehouse.url}/?{urllib.parse.urlencode(url)}"
        with urllib.request.urlopen(urllib.request.Request(address, statement.encode(), headers)) as answer:
            body = answer.read()
            return gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body

    assert b"UTC" in ask("SELECT displayName(), version(), revision(), timezone()")
    assert ask("SELECT 1").endswith(b"\x01")
    ask("SELECT toStartOfHour(event_time) AS time, sum(quantity) FROM usage WHERE event_time >= 0 GROUP BY time")
    assert b"usage" in ask("SELECT name FROM system.tables WHERE database = 'meterhouse'")


def test_curl(warehouse):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("this machine lacks curl")
    address = f"{warehouse.url}/?database=meterhouse"
    asked = subprocess.run(
        [curl, "-sS", "--user", f"reader:{READER}", "--data-binary", "SELECT 6 * 7 FORMAT CSV", address],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert asked.stdout == "42\n"
    refused = subprocess.run(
        [curl, "-sS", "-i", "-u", f"reader:{READER}", "-d", "SELECT * FROM url('http://127.0.0.1/', CSV)", address],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert refused.stdout.startswith("HTTP/1.1 403")
    assert "x-clickhouse-exception-code: 497" in refused.stdout.lower()


JAVASCRIPT = """
const { createClient } = require('@clickhouse/client');
(async () => {
  const client = createClient({ url: process.argv[2], username: 'admin', password: process.argv[3],
    database: 'meterhouse', compression: { request: true, response: true } });
  await client.command({ query: 'CREATE TABLE IF NOT EXISTS js (a UInt64, b String) ENGINE = MergeTree ORDER BY a' });
  await client.insert({ table: 'js', values: [{ a: 1, b: 'one' }, { a: 2, b: 'two' }], format: 'JSONEachRow' });
  const rows = await client.query({ query: 'SELECT b FROM js WHERE a = {a:UInt64}', query_params: { a: 2 },
    format: 'JSONEachRow' });
  const stream = await client.query({ query: 'SELECT number FROM numbers(100000)', format: 'JSONEachRow' });
  let streamed = 0;
  for await (const part of stream.stream()) streamed += part.length;
  const json = await (await client.query({ query: 'SELECT sum(a) AS s FROM js', format: 'JSON' })).json();
  let code = '';
  try { await client.query({ query: 'SELECT * FROM nowhere' }); } catch (problem) { code = problem.code; }
  await client.command({ query: 'DROP TABLE js SYNC' });
  console.log(JSON.stringify([await rows.json(), streamed, json.data, code, (await client.ping()).success]));
  await client.close();
})();
"""


def test_the_javascript_client(warehouse, tmp_path):
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("this machine lacks node and npm")
    (tmp_path / "program.cjs").write_text(JAVASCRIPT)
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", tmp_path, "@clickhouse/client@1"]
    if subprocess.run(install, capture_output=True, cwd=tmp_path, timeout=120).returncode:
        pytest.skip("this machine lacks npm's registry")
    done = subprocess.run([node, "program.cjs", warehouse.url, ADMIN], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows, streamed, total, code, alive = json.loads(done.stdout)
    assert (rows, streamed, total, code, alive) == ([{"b": "two"}], 100_000, [{"s": 3}], "60", True)


def test_the_access_log_is_nobody_else_s(warehouse):
    assert Path(warehouse.data / "logs").stat().st_mode & 0o077 == 0
