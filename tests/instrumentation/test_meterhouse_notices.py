"""What a wrongly configured agent is told: once, with the address, the journal and the command that helps."""

import socket
import time

import pytest

import meterhouse
import meterhouse.runtime
import meterhouse.settings
from meterhouse.cli import main
from meterhouse.metric_exporter import MeterhouseMetricExporter

COUNT = "import meterhouse; meterhouse.meter('pages').add(3)"
ACME = {"METERHOUSE_CUSTOMER": "acme"}


def ended(process) -> tuple[list[str], float]:
    """What the program wrote to stderr, and how long it took."""
    began = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    return told.splitlines(), time.monotonic() - began


@pytest.fixture
def journal_of(metering):
    def path() -> str:
        (found,) = metering.journals.glob("*.journal")
        return str(found)

    return path


def left(path: str) -> str:
    return (
        f"Meterhouse leaves 1 usage event undelivered in {path}: `meterhouse drain` delivers it, or the next metered "
        "process."
    )


def test_an_agent_that_is_told_no_collector_says_so_and_where_the_usage_is(agent, journal_of, tmp_path):
    data = tmp_path / "nothing-here"
    told, _ = ended(agent(COUNT, METERHOUSE_ENDPOINT="", METERHOUSE_DATA=str(data), **ACME))
    assert told == [
        f"Meterhouse does not know where to send usage: METERHOUSE_ENDPOINT is not set, and no `meterhouse up` runs in "
        f"{data}, which does not exist. It is kept in {journal_of()} and sent later, at the latest by "
        "`meterhouse drain`.",
        left(journal_of()),
    ]


def test_an_endpoint_without_a_scheme_is_called_what_it_is(agent, journal_of):
    told, _ = ended(agent(COUNT, METERHOUSE_ENDPOINT="127.0.0.1:4318", **ACME))
    assert len(told) == 2
    assert "METERHOUSE_ENDPOINT is '127.0.0.1:4318', which is not a URL such as http://127.0.0.1:4318" in told[0]
    assert told[1] == left(journal_of())


@pytest.mark.parametrize("endpoint", ["http://", "ftp://h/", "http://h:port", "http://[::1", "localhost:4318"])
def test_what_is_no_http_url_is_no_destination(endpoint, monkeypatch):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", endpoint)
    assert meterhouse.settings.destination() is None
    assert "is not a URL" in meterhouse.settings.why_nowhere()


def test_where_nobody_listens_a_short_agent_says_so_once_and_ends_at_once(agent, journal_of, nowhere):
    told, seconds = ended(agent(COUNT, METERHOUSE_ENDPOINT=nowhere, **ACME))
    assert told == [
        f"Meterhouse cannot deliver usage to {nowhere} (nobody answers there). It is kept in {journal_of()} and sent "
        "later, at the latest by `meterhouse drain`.",
        left(journal_of()),
    ]
    assert seconds < 4, "waited for a server that does not listen"


@pytest.mark.parametrize(
    ("key", "why"), [("", "no key is set: see METERHOUSE_API_KEY"), ("mh_wrong", "it does not know the key")]
)
def test_http_401_names_the_endpoint_and_the_key_s_variable(agent, sink, key, why):
    sink.answers = [(401, (), b"no")] * 4
    told, _ = ended(agent(COUNT, METERHOUSE_API_KEY=key, **ACME))
    assert len(told) == 2
    assert f"cannot deliver usage to {sink.url} (HTTP 401, {why}" in told[0]


def test_usage_without_a_customer_is_said_once(agent):
    told, _ = ended(agent(COUNT + "; meterhouse.meter('pages').add(4)"))
    assert len(told) == 1
    assert "knows no customer here" in told[0] and "METERHOUSE_CUSTOMER" in told[0] and "suspense" in told[0]


def test_with_everything_set_nothing_is_said(agent, sink):
    told, _ = ended(agent(COUNT, **ACME))
    assert told == [] and len(sink.events) == 1


def test_an_outage_is_said_once_and_its_end_too(metering, monkeypatch, caplog, until, nowhere):
    with meterhouse.customer("acme"):
        monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
        meterhouse.meter("pages").add(1)
        meterhouse.runtime.runtime()._wake.set()
        until(lambda: "cannot deliver" in caplog.text)
        monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
        assert metering.units() == {"pages": 1}
    told = [record.getMessage().partition(" (")[0] for record in caplog.records if record.name == "meterhouse"]
    assert told == [f"Meterhouse cannot deliver usage to {nowhere}", "Meterhouse delivers usage again."]


def test_a_host_name_that_does_not_exist_is_given_up_at_once(agent):
    _, seconds = ended(agent(COUNT, METERHOUSE_ENDPOINT="http://does-not-exist.invalid:4318", **ACME))
    assert seconds < 4


def test_drain_says_why_it_knows_nowhere(metering, monkeypatch, capsys, caplog):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", "127.0.0.1:4318")
    assert main(["drain"]) == 1
    assert "METERHOUSE_ENDPOINT is '127.0.0.1:4318', which is not a URL" in capsys.readouterr().err
    assert caplog.records == []


def test_an_exporter_for_a_pipeline_says_why_it_knows_no_collector(monkeypatch):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", "127.0.0.1:4318")
    with pytest.raises(ValueError, match="which is not a URL"):
        MeterhouseMetricExporter()


def test_a_process_without_a_journal_says_that_its_usage_is_lost(agent, tmp_path, nowhere):
    (tmp_path / "file").write_text("")
    where = str(tmp_path / "file" / "journal")
    told, _ = ended(agent(COUNT, METERHOUSE_ENDPOINT=nowhere, METERHOUSE_JOURNAL_DIR=where, **ACME))
    assert told[-1] == "Meterhouse ends without a journal and could not deliver its last usage: it is lost."


def test_a_port_that_takes_connections_and_says_nothing_holds_the_end_up_for_five_seconds_at_most(agent, journal_of):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        told, seconds = ended(agent(COUNT, METERHOUSE_ENDPOINT=endpoint, **ACME))
    assert told[-1] == left(journal_of())
    assert 4 < seconds < 9
