"""The portal over HTTP: who gets in, what leaves with every answer, and what happens when a part is missing."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from starlette.testclient import TestClient

from meterhouse_portal.app import build
from meterhouse_portal.commands import portal_token
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

TOKEN = "a-token-of-more-than-16-characters"
NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)


@contextmanager
def answering(status: int):
    """A server that answers every GET with this status; gives its base URL and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def client(tmp_path):
    with TestClient(build(Settings(data=tmp_path), TOKEN, now=lambda: NOW), follow_redirects=False) as client:
        yield client


@pytest.fixture
def operator(client):
    client.get("/", params={"token": TOKEN})
    return client


def test_without_the_token_nothing_is_shown(client):
    answer = client.get("/")

    assert answer.status_code == 401
    assert "meterhouse up" in answer.text
    assert "Customers" not in answer.text


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ä"])
def test_a_wrong_token_opens_nothing_and_sets_no_cookie(client, token):
    answer = client.get("/", params={"token": token})

    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address_bar(client):
    answer = client.get("/", params={"token": TOKEN})

    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert client.get("/").status_code == 200


def test_a_cookie_of_another_token_is_refused(client):
    client.cookies.set("meterhouse_portal", "0" * 64)

    assert client.get("/").status_code == 401


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/healthz", "/style.css", "/nothing"])
def test_every_answer_forbids_scripts_frames_and_sniffing(client, path):
    headers = client.get(path).headers

    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "no-store" in headers["cache-control"] or path == "/style.css"


def test_the_page_opens_in_the_current_month_and_in_the_one_asked_for(operator):
    assert "<h1>November 2026</h1>" in operator.get("/").text
    assert "<h1>February 2025</h1>" in operator.get("/?period=2025-02").text


def test_a_period_that_is_no_month_is_refused_in_a_sentence(operator):
    answer = operator.get("/?period=<b>")

    assert answer.status_code == 400
    assert "a month like 2026-11" in answer.text
    assert "<b>" not in answer.text


def test_a_year_beyond_the_calendar_is_refused_and_blames_nobody(operator):
    for period in ("2200-01", "2999-12"):
        answer = operator.get(f"/?period={period}")
        assert answer.status_code == 400 and "up to the year 2199" in answer.text
    assert operator.get("/?period=2199-12").status_code == 200


def test_a_parameter_that_the_page_does_not_know_is_refused_and_not_passed_over(operator):
    answer = operator.get("/?month=2026-10")

    assert answer.status_code == 400
    assert "<code>?period=2026-11</code>, not &#x27;month&#x27;." in answer.text


def test_without_a_warehouse_the_page_says_so_and_still_answers(operator):
    answer = operator.get("/")

    assert answer.status_code == 200
    assert "The warehouse does not answer." in answer.text


def test_without_a_database_the_page_says_so(tmp_path):
    url = f"postgresql+psycopg://nobody@127.0.0.1:{closed_port()}/none"
    with TestClient(build(Settings(data=tmp_path, sql_url=url), TOKEN, now=lambda: NOW)) as client:
        answer = client.get("/", params={"token": TOKEN})

    assert answer.status_code == 503
    assert "The figures cannot be read" in answer.text


@pytest.mark.parametrize(
    ("warehouse", "collector", "status"),
    [(200, 200, 200), (200, 503, 503), (500, 200, 503), (None, 200, 503), (200, None, 503)],
)
def test_health_is_that_of_the_warehouse_and_the_collector(tmp_path, monkeypatch, warehouse, collector, status):
    states = {200: "ok", 500: "unwell", 503: "unwell", None: "unreachable"}
    nobody = f"http://127.0.0.1:{closed_port()}"
    with answering(warehouse or 200) as (first, asked_first), answering(collector or 200) as (second, asked_second):
        monkeypatch.setenv("METERHOUSE_ENDPOINT", second if collector else nobody)
        first = first.replace("http://", "http://user:secret@") if warehouse else nobody
        with TestClient(build(Settings(data=tmp_path, warehouse_url=first), TOKEN)) as client:
            answer = client.get("/healthz")

    assert answer.status_code == status
    assert answer.json() == {
        "status": "ok" if status == 200 else "unwell",
        "warehouse": states[warehouse],
        "collector": states[collector],
    }
    assert asked_first == (["/ping"] if warehouse else [])
    assert asked_second == (["/healthz"] if collector else [])


def test_health_does_not_wait_for_a_part_that_never_answers(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("METERHOUSE_ENDPOINT", url)
        with TestClient(build(Settings(data=tmp_path, warehouse_url=url), TOKEN)) as client:
            before = time.monotonic()
            answer = client.get("/healthz")

    assert answer.json() == {"status": "unwell", "warehouse": "unreachable", "collector": "unreachable"}
    assert time.monotonic() - before < 4


def test_health_of_nothing_is_unknown(client, monkeypatch):
    monkeypatch.delenv("METERHOUSE_ENDPOINT", raising=False)

    assert client.get("/healthz").json() == {"status": "unwell", "warehouse": "unknown", "collector": "unknown"}


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_token_comes_from_the_environment_else_from_the_data_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("METERHOUSE_PORTAL_TOKEN", raising=False)
    assert portal_token(tmp_path) is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "secrets.json").write_text(json.dumps({"portal_token": "from-the-data-directory"}))
    assert portal_token(tmp_path) == "from-the-data-directory"
    monkeypatch.setenv("METERHOUSE_PORTAL_TOKEN", "from-the-environment")
    assert portal_token(tmp_path) == "from-the-environment"
    monkeypatch.setenv("METERHOUSE_PORTAL_TOKEN", "too-short")
    assert portal_token(tmp_path) is None


@pytest.fixture
def served(tmp_path):
    """The address of `meterhouse portal serve`, running."""
    open_engine(Settings(data=tmp_path)).dispose()
    port = closed_port()
    code = "import sys; from meterhouse.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "portal", "serve", "--data", str(tmp_path), "--port", str(port)],
        env={**os.environ, "METERHOUSE_PORTAL_TOKEN": TOKEN},
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/style.css", timeout=5).close()
                break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def test_a_browser_follows_the_link_and_shows_the_page_with_its_style_and_without_complaint(served, chromium, tmp_path):
    arguments = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [chromium, *arguments.split(), profile, f"{served}/?token={TOKEN}"], capture_output=True, text=True, timeout=60
    )

    assert '<h2 id="customers">Customers</h2>' in shown.stdout
    assert "CONSOLE" not in shown.stderr


def test_without_a_token_the_command_refuses_and_says_what_to_set(tmp_path, monkeypatch, capsys):
    from meterhouse.cli import main

    monkeypatch.delenv("METERHOUSE_PORTAL_TOKEN", raising=False)
    open_engine(Settings(data=tmp_path)).dispose()
    with pytest.raises(SystemExit) as ended:
        main(["portal", "serve", "--data", str(tmp_path)])

    assert ended.value.code == 1
    assert "set METERHOUSE_PORTAL_TOKEN" in capsys.readouterr().err


def test_in_a_wrong_directory_the_command_says_so_and_makes_nothing(tmp_path, monkeypatch, capsys):
    from meterhouse.cli import main

    monkeypatch.setenv("METERHOUSE_PORTAL_TOKEN", TOKEN)
    with pytest.raises(SystemExit) as ended:
        main(["portal", "serve", "--data", str(tmp_path / "wrong")])

    assert ended.value.code == 1
    assert f"there is no Meterhouse in {tmp_path / 'wrong'}" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
