"""The ClickHouse HTTP front over the real engine, in a process of its own, with the real client and plain HTTP."""

import base64
import gzip
import signal
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

PASSWORD = "admin-password-for-tests"
READER_PASSWORD = "reader-password-for-tests"
SCHEMA = 'syntax = "proto3"; message Item { string name = 1; int64 amount = 2; }'


def ask(warehouse, body=b"", user="admin", password=PASSWORD, headers=None, method="POST", **url):
    """(status, headers, body) of a plain request."""
    sent = {"X-ClickHouse-User": user, "X-ClickHouse-Key": password, **(headers or {})}
    address = f"{warehouse.url}/?{urllib.parse.urlencode(url)}"
    request = urllib.request.Request(address, data=body if method == "POST" else None, headers=sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.headers, refusal.read()


@pytest.fixture(scope="module")
def admin(warehouse):
    client = warehouse.client(database="meterhouse")
    client.command("CREATE TABLE IF NOT EXISTS numbers_seen (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    client.command("INSERT INTO numbers_seen SELECT number, toString(number) FROM numbers(1000)")
    yield client
    client.command("DROP TABLE numbers_seen SYNC")
    client.close()


@pytest.fixture(scope="module")
def reader(warehouse):
    client = warehouse.client("reader", database="meterhouse")
    yield client
    client.close()


def test_ping_and_healthz_need_no_password(warehouse):
    for path in ("/ping", "/healthz"):
        with urllib.request.urlopen(warehouse.url + path) as answer:
            assert answer.status == 200


def test_the_client_queries_with_parameters_and_settings(admin):
    asked = admin.query(
        "SELECT {a:Int64} + 1, {b:String}, getSetting('max_threads')",
        parameters={"a": 41, "b": "it's\ta\\b"},
        settings={"max_threads": 1},
    )
    assert asked.result_rows == [(42, "it's\ta\\b", 1)]


def test_a_setting_of_one_request_does_not_reach_the_next(admin, warehouse):
    before = ask(warehouse, b"SELECT getSetting('max_block_size')")[2]
    assert ask(warehouse, b"SELECT getSetting('max_block_size')", max_block_size="77")[2] == b"77\n"
    assert ask(warehouse, b"SELECT getSetting('max_block_size')")[2] == before
    client = warehouse.client()  # with a session
    client.query("SELECT 1", settings={"max_block_size": 78})
    assert client.query("SELECT toString(getSetting('max_block_size'))").result_rows == [(before.decode().strip(),)]
    client.close()


def test_the_client_inserts_columns_with_its_own_compression(admin):
    admin.command("CREATE TABLE inserted (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    summary = admin.insert("inserted", [[i, f"row {i}"] for i in range(5000)], column_names=["a", "b"])
    assert summary.written_rows == 5000
    assert admin.query("SELECT count(), sum(a) FROM inserted").result_rows == [(5000, 12497500)]
    admin.command("DROP TABLE inserted SYNC")


def test_protobuf_with_an_inline_schema_is_inserted_as_it_is(admin, warehouse):
    admin.command("CREATE TABLE items (name String, amount Int64) ENGINE = MergeTree ORDER BY name")
    # Two length-delimited Items: {name: "a", amount: 5} and {name: "bc", amount: 300}.
    block = bytes.fromhex("05 0a0161 1005") + bytes.fromhex("07 0a026263 10ac02")
    summary = admin.raw_insert(
        "items",
        insert_block=block,
        fmt="Protobuf",
        settings={"format_schema_source": "string", "format_schema": SCHEMA, "format_schema_message_name": "Item"},
    )
    assert summary.written_rows == 2
    assert admin.query("SELECT name, amount FROM items ORDER BY name").result_rows == [("a", 5), ("bc", 300)]
    # The engine keeps a copy of the schema: beside its data, not wherever it was started.
    assert (warehouse.data / "warehouse" / "__cache__").is_dir()
    admin.command("DROP TABLE items SYNC")


def test_a_block_that_is_not_the_format_is_an_error_and_inserts_nothing(admin):
    with pytest.raises(DatabaseError) as refused:
        admin.raw_insert("numbers_seen", insert_block=b"not a number\n", fmt="TSV")
    assert refused.value.code == 27
    assert admin.query("SELECT count() FROM numbers_seen").result_rows == [(1000,)]


def test_a_large_result_streams_and_a_late_error_reaches_the_client(admin):
    with admin.query_row_block_stream("SELECT number FROM numbers(1000000)") as blocks:
        assert sum(len(block) for block in blocks) == 1000000
    failing = "SELECT throwIf(number = 900000, 'too late') FROM numbers(1000000) SETTINGS max_block_size = 10000"
    with pytest.raises(StreamFailureError, match="too late"), admin.query_row_block_stream(failing) as blocks:
        for _ in blocks:
            pass


def test_a_session_keeps_a_temporary_table(warehouse):
    client = warehouse.client()
    client.command("CREATE TEMPORARY TABLE kept (a Int8)")
    client.command("INSERT INTO kept VALUES (7)")
    assert client.query("SELECT a FROM kept").result_rows == [(7,)]
    client.close()


@pytest.mark.parametrize(
    ("statement", "code", "status"),
    [
        ("SELECT x", 47, 404),
        ("SELECT * FROM meterhouse.nothing", 60, 404),
        ("SELECT * FROM nowhere.nothing", 81, 404),
        ("SELECT throwIf(1)", 395, 500),
        ("SELECT 1 +", 62, 400),
        ("SELECT * FROM file('/etc/passwd')", 497, 403),
    ],
)
def test_errors_have_clickhouse_s_code_and_status(warehouse, statement, code, status):
    answered, headers, body = ask(warehouse, statement.encode())
    assert (answered, headers["X-ClickHouse-Exception-Code"]) == (status, str(code))
    assert body.startswith(f"Code: {code}. DB::Exception: ".encode())


@pytest.mark.parametrize(
    "value", ["x'; SET ROLE admin; --", "x\\'; SET ROLE admin; --", "x; SET ROLE admin", "/*", "\\"]
)
def test_a_setting_s_value_is_no_statement(warehouse, value):
    reader = {"user": "reader", "password": READER_PASSWORD}
    for named in ({"log_comment": value}, {"session_timezone": value}, {"session_timezone": value.replace("x", "UTC")}):
        status, _, body = ask(warehouse, b"SELECT currentRoles()", **reader, **named)
        assert (status, body) == (200, b"['reader']\n") or (status >= 400 and b"BAD_ARGUMENTS" in body), body


def test_an_unknown_setting_is_an_error(warehouse):
    assert ask(warehouse, b"SELECT 1", no_such_setting="1")[1]["X-ClickHouse-Exception-Code"] == "115"


@pytest.mark.parametrize(
    ("user", "password"), [("admin", "wrong"), ("admin", ""), ("nobody", ""), ("default", ""), ("reader", PASSWORD)]
)
def test_a_wrong_password_is_refused_with_516(warehouse, user, password):
    status, headers, _ = ask(warehouse, b"SELECT 1", user=user, password=password)
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (403, "516")


def test_the_password_may_come_in_any_of_clickhouse_s_three_ways(warehouse):
    basic = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(warehouse.url, data=b"SELECT 1", headers={"Authorization": f"Basic {basic}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == b"1\n"
    in_url = urllib.parse.urlencode({"user": "admin", "password": PASSWORD, "query": "SELECT 2"})
    with urllib.request.urlopen(f"{warehouse.url}/?{in_url}") as answer:
        assert answer.read() == b"2\n"
    assert ask(warehouse, b"SELECT 3")[2] == b"3\n"


def test_query_in_the_url_data_in_the_body_and_gzip(warehouse, admin):
    admin.command("CREATE TABLE posted (a UInt8) ENGINE = MergeTree ORDER BY a")
    query = "INSERT INTO meterhouse.posted FORMAT TSV"
    assert ask(warehouse, b"1\n2\n", query=query)[0] == 200
    packed = gzip.compress(b"INSERT INTO meterhouse.posted FORMAT TSV\n3\n")
    assert ask(warehouse, packed, headers={"Content-Encoding": "gzip"})[0] == 200
    answer = ask(warehouse, b"SELECT groupArray(a) FROM (SELECT a FROM posted ORDER BY a) FORMAT JSONCompactColumns",
                 database="meterhouse")  # fmt: skip
    assert answer[2].split() == b"[ [[1,2,3]] ]".split()
    assert answer[1]["X-ClickHouse-Format"] == "JSONCompactColumns"
    admin.command("DROP TABLE posted SYNC")


def test_a_body_that_is_damaged_or_grows_too_large_is_refused(warehouse):
    status, headers, _ = ask(warehouse, b"not gzip", headers={"Content-Encoding": "gzip"})
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "271")
    bomb = gzip.compress(bytes(300 * 1024 * 1024), 1)
    status, headers, _ = ask(warehouse, bomb, headers={"Content-Encoding": "gzip"})
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (413, "223")


def test_get_changes_nothing(warehouse):
    answered = ask(warehouse, method="GET", query="INSERT INTO meterhouse.numbers_seen VALUES (1, 'a')")
    assert answered[1]["X-ClickHouse-Exception-Code"] == "164"
    answered = ask(warehouse, method="GET", query="CREATE TABLE meterhouse.got (a UInt8) ENGINE = Null")
    assert answered[1]["X-ClickHouse-Exception-Code"] == "164"


def test_the_reader_reads_views_and_nothing_else(reader):
    assert reader.query("SELECT count() FROM usage").result_rows == [(0,)]
    assert "usage" in {name for (name,) in reader.query("SHOW TABLES").result_rows}
    assert "events" not in {name for (name,) in reader.query("SHOW TABLES").result_rows}
    for statement in (
        "SELECT * FROM events",
        "SELECT * FROM `events`",
        "SELECT * FROM merge('meterhouse', '^events$')",
    ):
        with pytest.raises(DatabaseError) as refused:
            reader.query(statement)
        assert refused.value.code in (497, 636)  # 636: merge() sees no table that matches


@pytest.mark.parametrize(
    "statement", ["INSERT INTO numbers_seen VALUES (1, 'a')", "DROP TABLE numbers_seen", "SET readonly = 0"]
)
def test_the_reader_changes_nothing(reader, statement):
    with pytest.raises(DatabaseError) as refused:
        reader.command(statement)
    assert refused.value.code == 164


def test_the_reader_cannot_lift_its_limits(reader, warehouse):
    with pytest.raises(DatabaseError) as refused:
        reader.query("SELECT 1 SETTINGS max_execution_time = 9999")
    assert refused.value.code == 164
    limits = ask(
        warehouse,
        b"SELECT getSetting('max_result_rows'), getSetting('readonly')",
        user="reader",
        password=READER_PASSWORD,
        max_result_rows="0",
    )
    assert limits[2] == b"1000000\t1\n"


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM default.`/etc/passwd`",
        "SELECT 1 FORMAT Template SETTINGS format_template_row = '/etc/passwd'",
        "SELECT 1 SETTINGS dialect = 'kusto'",
        "CREATE DICTIONARY d (a UInt64) PRIMARY KEY a SOURCE(NULL()) LAYOUT(FLAT()) LIFETIME(0)",
        "CREATE FUNCTION f AS x -> x",
    ],
)
def test_what_has_no_telling_word_is_refused_by_the_engine_itself(warehouse, statement):
    _, headers, _ = ask(warehouse, statement.encode())
    assert headers["X-ClickHouse-Exception-Code"] in ("497", "452")


def test_many_threads_share_one_client(warehouse):
    client = warehouse.client(autogenerate_session_id=False)
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(
            lambda n: client.query(f"SELECT {n} + sum(number) FROM numbers(1000)").result_rows, range(40)
        )
        assert list(answers) == [[(n + 499500,)] for n in range(40)]
    client.close()


def test_a_killed_warehouse_opens_again_with_what_it_acknowledged(tmp_path, start_warehouse):
    first = start_warehouse(tmp_path)
    client = first.client()
    client.command("CREATE DATABASE kept ENGINE = Atomic")
    client.command("CREATE TABLE kept.t (a UInt64) ENGINE = MergeTree ORDER BY a")
    for number in range(20):
        client.insert("kept.t", [[number]], column_names=["a"])
    client.close()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(30)
    second = start_warehouse(tmp_path)
    try:
        client = second.client()
        assert client.query("SELECT count(), sum(a) FROM kept.t").result_rows == [(20, 190)]
        client.close()
    finally:
        assert second.stop() == 0
