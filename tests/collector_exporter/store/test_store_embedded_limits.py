"""What a reader, a strange client or a second process must not do to the embedded warehouse."""

import asyncio
import gzip
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from meterhouse_store import embedded_http
from meterhouse_store.compression import BadCompression, TooLarge, UnknownEncoding, decompress
from meterhouse_store.embedded_http import Front

PASSWORDS = {"admin": "admin-password-for-tests", "reader": "reader-password-for-tests"}


def ask(warehouse, body, user="reader", headers=None, **url):
    """(ClickHouse's error code or None, body)."""
    sent = {"X-ClickHouse-User": user, "X-ClickHouse-Key": PASSWORDS[user], **(headers or {})}
    request = urllib.request.Request(f"{warehouse.url}/?{urllib.parse.urlencode(url)}", body, sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return None, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return int(refusal.headers["X-ClickHouse-Exception-Code"]), refusal.read()


@pytest.mark.parametrize("user", ["reader", "admin"])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT /* /* */ ' */ file($$/etc/hostname$$) -- '",
        "/* /* */ SELECT 1, ' */ SET ROLE admin -- '",
        "/* /* */ SELECT 1, ' */ SHOW PROCESSLIST -- '",
        "/* /* */ SELECT 1, ' */ KILL QUERY WHERE 1 -- '",
        "/* /* */ SELECT 1, ' */ SYSTEM STOP MERGES -- '",
        "SELECT .1efile('/etc/hostname')",
    ],
)
def test_a_comment_in_a_comment_hides_nothing(warehouse, user, statement):
    assert ask(warehouse, statement.encode(), user, wait_end_of_query=1)[0] == 62


def test_no_file_is_written_behind_a_comment(warehouse, tmp_path):
    target = tmp_path / "out"
    statement = f"SELECT 1 /* /* */ ' */ INTO OUTFILE '{target}' -- '"
    assert ask(warehouse, statement.encode())[0] == 62
    assert not target.exists()


def test_literals_and_data_reach_the_engine_byte_for_byte(warehouse):
    statement = "SELECT $a$-- it's \\ /* $$ é$a$, 'b\\'''\\x41 -- /*' /* c */, hex(x'00ff'), 1.5e-3, `a``b` FROM "
    statement += "(SELECT 7 AS `a``b`) -- end"
    expected = "-- it\\'s \\\\ /* $$ é\tb\\'\\'A -- /*\t00FF\t0.0015\t7\n"
    assert ask(warehouse, statement.encode()) == (None, expected.encode())
    ask(warehouse, b"CREATE TABLE meterhouse.bytes (a String) ENGINE = Memory", "admin")
    data = b"\x03'/*\x02--\x02\x00\xff"  # RowBinary: three strings, each after its length
    query = "INSERT INTO meterhouse.bytes /* x */ FORMAT RowBinary"
    assert ask(warehouse, query.encode() + b"\n" + data, "admin") == (None, b"")
    assert ask(warehouse, b"SELECT groupArray(hex(a)) FROM meterhouse.bytes", "admin")[1] == (
        b"['272F2A','2D2D','00FF']\n"
    )
    ask(warehouse, b"DROP TABLE meterhouse.bytes SYNC", "admin")


@pytest.mark.parametrize(
    ("statement", "url"),
    [
        ("SELECT query FROM system.{t:Identifier}", {"param_t": "processes"}),
        ("SELECT query FROM processes", {"database": "system"}),
        ("SELECT * FROM errors", {"database": "system"}),
        ("SELECT last_error_message FROM system . `errors`", {}),
        ("SELECT * FROM merge('system', '^process')", {}),
    ],
)
def test_a_reader_finds_no_way_to_what_others_ask(warehouse, statement, url):
    assert ask(warehouse, statement.encode(), **url)[0] in (497, 636)


@pytest.mark.parametrize(
    "name",
    ["max_block_size", "function_sleep_max_microseconds_per_block", "max_parser_depth", "max_threads", "readonly"],
)
def test_a_reader_sets_only_the_shape_of_its_answers(warehouse, name):
    assert ask(warehouse, b"SELECT 1", **{name: "1"})[0] == 164
    assert ask(warehouse, b"SELECT 1 FORMAT JSONEachRow", output_format_json_quote_64bit_integers="1")[0] is None


def test_a_reader_may_lower_its_limits(warehouse):
    statement = b"SELECT getSetting('max_execution_time'), getSetting('max_result_rows')"
    assert ask(warehouse, statement, max_execution_time="5", max_result_rows="9" * 18)[1] == b"5\t1000000\n"


def test_a_format_of_python_s_is_not_one_of_the_server_s(warehouse):
    assert ask(warehouse, b"SELECT 1", default_format="DataFrame")[0] == 73


def test_readers_that_sleep_do_not_hold_up_the_admin(warehouse):
    with ThreadPoolExecutor(20) as threads:
        sleeping = [threads.submit(ask, warehouse, b"SELECT sleep(1)") for _ in range(18)]
        time.sleep(0.5)
        assert ask(warehouse, b"SELECT 1", "admin") == (None, b"1\n")
        assert not any(each.done() for each in sleeping)
        assert all(each.result() == (None, b"0\n") for each in sleeping)


def test_a_request_that_offers_an_upgrade_is_served_with_its_whole_body(warehouse):
    body = b"SELECT 41 + 1"
    head = (
        "POST /?user=reader&password=reader-password-for-tests HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n"
        "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    )
    for framing in (
        f"Content-Length: {len(body)}\r\n\r\n".encode() + body,
        f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", warehouse.port), timeout=10) as connection:
            connection.sendall(head.encode() + framing)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                received = connection.recv(4096)
                assert received, answer
                answer += received
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\n42\n\r\n" in answer


def test_a_body_of_a_great_many_empty_members_is_refused_at_once(warehouse):
    body = gzip.compress(b"") * 400_000
    started = time.monotonic()
    assert ask(warehouse, body, "admin", {"Content-Encoding": "gzip"})[0] == 271
    assert time.monotonic() - started < 5
    with pytest.raises(BadCompression, match="more than 10000 gzip streams"):
        decompress(body, "gzip", 100)


def test_several_members_are_one_body_and_its_size_is_bounded():
    text = bytes(range(256)) * 400
    body = gzip.compress(text) + gzip.compress(b"") + gzip.compress(b"end")
    assert decompress(body, "gzip", len(text) + 3) == text + b"end"
    with pytest.raises(TooLarge):
        decompress(body, "gzip", len(text) + 2)
    with pytest.raises(BadCompression, match="too early"):
        decompress(body[:-1], "gzip", len(text) + 3)
    with pytest.raises(UnknownEncoding):
        decompress(b"", "br", 10)


def test_a_reader_s_body_is_a_question_not_a_load(warehouse):
    body = gzip.compress(b"SELECT 1 " + b" " * 1024 * 1024)
    assert ask(warehouse, body, "reader", {"Content-Encoding": "gzip"})[0] == 223
    # The same goes through for the admin, up to the engine's own bound on a statement (max_query_size).
    assert ask(warehouse, body, "admin", {"Content-Encoding": "gzip"})[0] == 62


class Endless:
    """An engine whose answers never end."""

    unsafe_functions = frozenset()

    def __init__(self):
        self.closed = False

    def handle(self):
        return self

    def close(self):
        pass

    def stream(self, handle, call):
        try:
            while True:
                yield b"block", 1
        finally:
            self.closed = True


def test_a_client_that_reads_nothing_loses_its_slot(monkeypatch):
    monkeypatch.setattr(embedded_http, "SEND_S", 0.05)
    engine = Endless()
    front = Front(engine, PASSWORDS)
    headers = [(b"x-clickhouse-user", b"reader"), (b"x-clickhouse-key", PASSWORDS["reader"].encode())]
    scope = {"type": "http", "path": "/", "method": "GET", "query_string": b"query=SELECT+1", "headers": headers}

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def request():
        await asyncio.wait_for(front(scope, receive, send), 5)

    asyncio.run(request())
    front.close()
    assert engine.closed


def test_a_second_server_on_a_directory_says_so_and_exits_with_1(warehouse, unused_port):
    program = (
        "import sys, pathlib; from meterhouse_store.embedded import serve;"
        f"serve(pathlib.Path(sys.argv[1]), '127.0.0.1', {unused_port}, {{'admin': 'a', 'reader': 'b'}})"
    )
    second = subprocess.run(
        [sys.executable, "-c", program, str(warehouse.data)], capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert second.stderr == (
        f"{warehouse.data}/warehouse is in use by another process: stop it (meterhouse down), or name another --data\n"
    )
    assert ask(warehouse, b"SELECT 1") == (None, b"1\n")
