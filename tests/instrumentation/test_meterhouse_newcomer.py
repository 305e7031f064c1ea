"""What somebody met who knew the documentation only, and then tried to break it: full disks, odd headers, odd keys."""

import asyncio
import errno
import os
import socket
import threading

import pytest

import meterhouse
from meterhouse import adoption, journal_records, limits
from meterhouse.attribution import current
from meterhouse.cli import main
from meterhouse.delivery import Outcome
from meterhouse.events import Loose, UsageEvent
from meterhouse.journal import Journal
from meterhouse.middleware import CustomerFromHeader, WSGICustomerFromHeader
from meterhouse.settings import Limits, destination

ATTRIBUTES = {"customer.id": "acme", "meterhouse.status": "ok"}


def journal_with(directory, names):
    made = Journal(directory, "p", {"meterhouse.process.id": "p"}, Limits(10**9))
    for name in names:
        made.record(Loose([UsageEvent("pages", 1, name, 5, ATTRIBUTES)]))
    made.close()
    return made.path


# A full disk


@pytest.mark.parametrize("room", [0, 20], ids=["not a byte", "a part of the line"])
def test_on_a_full_disk_a_dead_journal_is_delivered_whole_once_and_makes_room(tmp_path, monkeypatch, room):
    """The journals themselves may be what fills the disk: if they could not go, nothing would ever free it."""
    names = [f"e{number:04}" for number in range(1200)]
    path = journal_with(tmp_path, names)
    write, sent = os.write, []

    def disk(fd, data):
        if room and len(data) > room:
            return write(fd, data[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    def deliver(_resource, events):
        sent.extend(event.event_id for event in events)
        return Outcome.ACKNOWLEDGED

    monkeypatch.setattr(os, "write", disk)
    total = adoption.drain(tmp_path, deliver)
    assert (sent, total.events, total.failed, total.unreadable_lines) == (names, 1200, 0, 0)
    assert not path.exists()


def test_a_note_that_the_disk_has_half_room_for_leaves_no_damaged_line(tmp_path, monkeypatch):
    names = [f"e{number:04}" for number in range(1200)]
    path = journal_with(tmp_path, names)
    write, sent = os.write, []

    def disk(fd, data):  # full for the first note, and with room again for the second
        return write(fd, data[:20] if len(sent) == 1 else data)

    def twice(_resource, events):
        if len(sent) == 2:
            return Outcome.RETRY
        sent.append(len(events))
        return Outcome.ACKNOWLEDGED

    monkeypatch.setattr(os, "write", disk)
    assert adoption.drain(tmp_path, twice).left == 200
    monkeypatch.undo()
    with open(path, "rb") as file:
        assert all(isinstance(record, dict) for record, _ in journal_records.records(file))


def test_what_a_full_disk_cost_is_named_by_drain_where_a_line_still_fits(tmp_path, capsys, monkeypatch):
    made = Journal(tmp_path, "p", {"meterhouse.process.id": "p"}, Limits(10**9))
    write = os.write

    def disk(fd, data):
        if len(data) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", disk)
    for number in range(3):
        with pytest.raises(OSError, match="No space"):
            made.record(Loose([UsageEvent("pages", 1, f"e{number}", 5, ATTRIBUTES)]))
    made.rescue()
    assert made.lost == 3
    monkeypatch.undo()
    journal_records.unlock(made._fd)
    assert adoption.drain(tmp_path, lambda *_: Outcome.ACKNOWLEDGED).lost == 3


# Short lives


def test_a_process_of_a_moment_delivers_what_dead_ones_left(agent, metering, nowhere):
    count = "import meterhouse; meterhouse.meter('pages').add({})"
    for quantity in (1, 2):
        assert agent(count.format(quantity), METERHOUSE_ENDPOINT=nowhere).wait(30) == 0
    assert len(list(metering.journals.glob("*.journal"))) == 2
    assert agent(count.format(4)).wait(30) == 0
    assert sorted(event.value for event in metering.sink.events) == [1, 2, 4]
    assert list(metering.journals.iterdir()) == []


# For whom


def asgi_customer(value: bytes) -> str | None:
    seen = []

    async def app(scope, receive, send):
        seen.append(current().customer)

    asyncio.run(CustomerFromHeader(app)({"type": "http", "headers": [(b"x-customer-id", value)]}, None, None))
    return seen[0]


def wsgi_customer(value: bytes) -> str | None:
    seen = []

    def app(environ, start_response):
        seen.append(current().customer)
        return []

    WSGICustomerFromHeader(app)({"HTTP_X_CUSTOMER_ID": value.decode("latin-1")}, None)  # as PEP 3333 has it
    return seen[0]


@pytest.mark.parametrize("of", [asgi_customer, wsgi_customer])
def test_a_customer_is_the_same_one_whichever_server_and_client_carry_its_name(of):
    assert of("café".encode()) == "café"
    assert of("café".encode("latin-1")) == "café"  # what `requests` makes of a string
    assert of(b"acme") == "acme"


@pytest.mark.parametrize("of", [asgi_customer, wsgi_customer])
def test_two_names_that_are_no_utf_8_are_not_one_customer(of):
    assert of(b"kund\xe9") != of(b"kund\xe8")


def test_half_a_character_is_no_name_or_two_customers_would_become_one():
    for half in ("x\ud800", "x\udcff"):
        with pytest.raises(ValueError, match="a customer id must be a string of 1 to 256 bytes of UTF-8"):
            meterhouse.customer(half)


def test_a_scope_that_is_interrupted_while_it_is_entered_is_not_left_behind(monkeypatch):
    class Timeout(BaseException):
        """A signal handler's, raised between the two halves of entering."""

    def strikes(*_):
        raise Timeout

    monkeypatch.setattr(limits, "task_inside", strikes)
    with pytest.raises(Timeout), meterhouse.customer("acme"), meterhouse.task():
        raise AssertionError("not reached")
    assert current().task is None and current().customer is None


def test_a_message_without_headers_carries_nothing():
    with meterhouse.customer("acme"), meterhouse.carried(None):
        assert current().customer == "acme"


def test_a_class_is_not_decorated_in_vain():
    with pytest.raises(TypeError, match="decorates functions and methods, not the class Desk"):

        @meterhouse.customer("acme")
        class Desk:
            pass


# Where to


@pytest.mark.parametrize("given", ["{}/v1/metrics", "{}/v1/metrics/", " {}/\n"])
def test_an_endpoint_with_its_path_and_a_key_with_its_line_end_are_taken_as_meant(given, metering, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", given.format(metering.sink.url))
    monkeypatch.setenv("METERHOUSE_API_KEY", "mh_test\n")  # of a file, or a mounted secret
    found = destination()
    assert (found.endpoint, found.api_key) == (metering.sink.url, "mh_test")
    meterhouse.meter("pages").add(3)
    assert metering.units() == {"pages": 3}


COUNT = "import meterhouse; meterhouse.meter('pages').add(3)"


def told(process) -> str:
    return process.communicate(timeout=30)[1]


def test_a_key_that_no_header_can_hold_is_called_so_and_not_shown(agent):
    said = told(agent(COUNT, METERHOUSE_API_KEY="mh_\N{LEFT DOUBLE QUOTATION MARK}secret"))
    assert "cannot be sent as a header: see METERHOUSE_API_KEY" in said and "secret" not in said


def test_a_server_without_tls_is_not_called_absent(agent):
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():  # as a collector does to what is no HTTP
        while True:
            connection, _ = listening.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

    threading.Thread(target=answer, daemon=True).start()
    said = told(agent(COUNT, METERHOUSE_ENDPOINT=f"https://127.0.0.1:{listening.getsockname()[1]}"))
    assert "no TLS connection: " in said and "nobody answers" not in said


def test_a_certificate_file_that_is_not_there_is_named(agent):
    said = told(agent(COUNT, METERHOUSE_ENDPOINT="https://127.0.0.1:1", METERHOUSE_TLS_CA="/nonexistent/ca.pem"))
    assert "/nonexistent/ca.pem" in said and "nobody answers" not in said


def test_http_404_asks_for_the_base_url(agent, metering):
    metering.sink.answers = [(404, (), b"")] * 5
    assert "HTTP 404: METERHOUSE_ENDPOINT is the collector's address, without a path" in told(agent(COUNT))


def test_a_file_that_is_no_program_is_told_how_it_is_run(tmp_path, capsys):
    script = tmp_path / "agent.py"
    script.write_text("print(1)")
    assert main(["run", str(script)]) == 1
    assert f"it is a file: meterhouse run -- python {script}" in capsys.readouterr().err
