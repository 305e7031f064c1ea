"""One event that cannot be sent, stored or read costs itself only: not its batch, not its journal, not the others."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

import meterhouse
import meterhouse.runtime
from meterhouse.adoption import BATCH
from meterhouse.cli import main
from meterhouse.events import Loose, UsageEvent
from meterhouse.pipeline import export_request
from meterhouse.vocabulary import CUSTOMER_ID

sys.path.insert(0, str(Path(__file__).parents[1] / "collector_exporter"))
import collector_samples as samples

NOW_NS = samples.RECEIVED_NS
BEYOND_FIXED64 = 2**64
"""An event_time that OTLP has no room for: whatever else is right, the event cannot be encoded."""


def event(name, quantity=1, *, at=NOW_NS, meter="pages"):
    return UsageEvent(meter, quantity, name, at, {CUSTOMER_ID: "acme", "meterhouse.status": "ok"})


def write_journal(directory, process, *events, extra=()):
    directory.mkdir(exist_ok=True)
    lines = [{"process": {"service.name": "s", "meterhouse.process.id": process}}]
    lines += [{"call": None, "events": [one.as_json()]} for one in events]
    path = directory / f"{process}-0.journal"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *extra]))
    return path


def drained(capsys):
    code = main(["drain", "--json"])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def refused(directory):
    return [json.loads(line) for path in directory.glob("*.refused") for line in path.read_text().splitlines()]


def arrived(sink):
    return {one.id: one.value for one in sink.events}


def test_numbers_beyond_what_otlp_can_carry_go_out_as_doubles_in_points_of_their_own(metering, provider, capsys):
    big = [10**30, 2**63 - 1, 2**63 - 1]
    for given in [10, *big, 10]:
        usage = {"prompt_tokens": given, "completion_tokens": 5, "total_tokens": 0}
        message = {"role": "assistant", "content": "y"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        provider.json({**document, "usage": usage})
    with meterhouse.customer("acme"), openai.OpenAI(api_key="k", base_url=provider.url + "/v1") as client:
        for _ in range(5):
            client.chat.completions.create(model="m", messages=[])
    found = metering.flush()
    inputs = [one for one in found if one.meter == "llm.tokens.input"]
    assert sorted((one.value, one.point_value) for one in inputs) == [
        (10, 20),
        (10, 20),
        (2.0**63, 2.0**63),
        (2.0**63, 2.0**63),
        (1e30, 1e30),
    ]
    assert sum(one.value for one in found if one.meter == "llm.tokens.output") == 25
    assert len([one for one in found if one.meter == "llm.requests"]) == 5
    assert list(metering.journals.iterdir()) == []


def test_a_poisoned_journal_of_before_is_delivered_and_so_is_its_neighbour(metering, capsys):
    write_journal(metering.journals, "a", event("big", 10**30), event("sum1", 2**63 - 1), event("sum2", 2**63 - 1))
    write_journal(metering.journals, "b", event("good", 7))
    result = drained(capsys)
    assert (result["code"], result["journals"], result["delivered"], result["left"]) == (0, 2, 4, 0)
    assert arrived(metering.sink) == {"big": 1e30, "sum1": 2.0**63, "sum2": 2.0**63, "good": 7}


def test_an_event_that_cannot_be_encoded_is_found_in_its_batch_and_set_aside(metering, capsys):
    good = [event(f"e{n}", n + 1) for n in range(BATCH)]
    write_journal(metering.journals, "a", *good[:321], event("poison", at=BEYOND_FIXED64), *good[321:])
    write_journal(metering.journals, "b", event("neighbour", 7))
    result = drained(capsys)
    assert (result["code"], result["journals"], result["left"], len(result["refused"])) == (3, 2, 0, 1)
    (kept,) = refused(metering.journals)
    assert kept["event"][2] == "poison" and kept["why"].startswith("it cannot be encoded as OTLP: ")
    assert arrived(metering.sink) == {**{one.event_id: one.quantity for one in good}, "neighbour": 7}
    assert not list(metering.journals.glob("*.journal"))


def test_a_living_process_sets_it_aside_and_delivers_the_rest(metering):
    meterhouse.meter("pages").add(3)
    running = meterhouse.runtime.runtime()
    running.record(Loose([event("poison", at=BEYOND_FIXED64)]))
    assert metering.units() == {"pages": 3}
    assert [one["event"][2] for one in refused(metering.journals)] == ["poison"]
    assert not list(metering.journals.glob("*.journal"))


def test_a_process_without_a_journal_says_what_it_lost_and_delivers_the_rest(metering, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(tmp_path / "file" / "journal"))
    meterhouse.meter("pages").add(3)
    meterhouse.runtime.runtime().record(Loose([event("poison", at=BEYOND_FIXED64)]))
    assert metering.units() == {"pages": 3}
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told.startswith("Meterhouse loses 1 usage event that cannot be delivered (it cannot be encoded as OTLP: ")


def test_it_is_set_aside_once_however_often_the_rest_has_to_be_sent_again(metering, until):
    metering.sink.answers = [(500, (), b"")] * 2
    meterhouse.runtime.runtime().record(Loose([event("poison", at=BEYOND_FIXED64), event("good", 7)]))
    running = meterhouse.runtime.runtime()

    def delivered():
        running._wake.set()
        return arrived(metering.sink) == {"good": 7}

    until(delivered)
    assert meterhouse.runtime.flush(10)
    assert [one["event"][2] for one in refused(metering.journals)] == ["poison"]


def test_a_living_process_delivers_again_by_itself_once_the_collector_is_back(metering, until, monkeypatch):
    monkeypatch.setattr("meterhouse.exporter.INTERVAL_S", 0.05)
    metering.sink.answers = [(500, (), b"")] * 2
    running = meterhouse.runtime.runtime()
    name = meterhouse.meter("pages").add(3)
    until(lambda: arrived(metering.sink) == {name: 3})
    assert running is meterhouse.runtime.runtime()


def test_a_body_that_is_too_large_is_sent_in_halves(metering, capsys):
    metering.sink.answers = [(413, (), b"")]
    write_journal(metering.journals, "a", event("left", 3), event("right", 4))
    assert drained(capsys)["left"] == 0
    assert arrived(metering.sink) == {"left": 3, "right": 4}
    assert len(metering.sink.requests) == 2


def test_a_row_of_a_damaged_journal_that_is_no_event_is_an_unreadable_line(metering, capsys):
    rows = [["pages", "three", "x", 5, {}, "0", "0"], ["pages", 3, "y", 5, {"a": 1}, "0", "0"], ["pages", 3]]
    damaged = [{"call": None, "events": [row]} for row in rows]
    write_journal(metering.journals, "a", event("good", 7), extra=damaged)
    result = drained(capsys)
    assert (result["delivered"], result["unreadable_lines"]) == (1, 3)
    assert arrived(metering.sink) == {"good": 7}


def test_a_batch_that_the_collector_chokes_on_holds_up_its_own_journal_only(metering, capsys):
    metering.sink.answers = [(500, (), b"")]
    write_journal(metering.journals, "a", event("bad", 3))
    write_journal(metering.journals, "b", event("good", 7))
    result = drained(capsys)
    assert (result["code"], result["delivered"], result["left"]) == (3, 1, 1)
    assert arrived(metering.sink) == {"good": 7}
    assert [path.name for path in metering.journals.iterdir()] == ["a-0.journal"]


def test_a_journal_that_fails_in_an_unforeseen_way_holds_up_itself_only(metering, capsys, monkeypatch, caplog):
    write_journal(metering.journals, "a", event("bad", 3))
    write_journal(metering.journals, "b", event("good", 7))

    def fragile(resource, events):
        if resource["meterhouse.process.id"] == "a":
            raise RuntimeError("unforeseen")
        return export_request(resource, events)

    monkeypatch.setattr("meterhouse.delivery.export_request", fragile)
    result = drained(capsys)
    assert (result["code"], result["delivered"], result["left"]) == (3, 1, 1)
    assert arrived(metering.sink) == {"good": 7}
    assert any("a-0.journal" in record.getMessage() for record in caplog.records)


def test_a_journal_that_may_not_be_opened_is_passed_over_and_named(metering, capsys, caplog):
    write_journal(metering.journals, "b", event("good", 7))
    (metering.journals / "a-0.journal").mkdir()  # for root, who may open any file, a directory is what cannot be opened
    result = drained(capsys)
    assert (result["code"], result["delivered"]) == (3, 1)
    assert arrived(metering.sink) == {"good": 7}
    assert any("a-0.journal" in record.getMessage() for record in caplog.records)


def test_an_unreachable_collector_stops_the_pass(metering, capsys, monkeypatch, nowhere):
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    attempts = []
    monkeypatch.setattr("meterhouse.delivery.Session.request", _counting(attempts))
    for name in "abc":
        write_journal(metering.journals, name, event(name, 3))
    result = drained(capsys)
    assert (result["code"], result["journals"], result["left"]) == (3, 3, 3)
    assert len(attempts) == 1


def _counting(attempts):
    from meterhouse.delivery import Session

    real = Session.request

    def request(self, *args, **kwargs):
        attempts.append(args)
        return real(self, *args, **kwargs)

    return request


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """A client of a real, empty database."""
    pytest.importorskip("chdb")  # not in the environments that have the agent's part only
    from meterhouse_store import schema
    from meterhouse_store import warehouse as real
    from meterhouse_store.settings import Settings

    data = tmp_path_factory.mktemp("warehouse")
    port = samples.free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")} | {
        "METERHOUSE_WAREHOUSE_ADMIN_PASSWORD": samples.ADMIN,
        "METERHOUSE_WAREHOUSE_READER_PASSWORD": "reader-password-of-the-tests",
    }
    command = [sys.executable, "-c", samples.MAIN, "warehouse", "serve", "--data", str(data), "--port", str(port)]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=data, env=environment, stdout=log, stderr=log)
    settings = Settings(warehouse_url=f"http://admin:{samples.ADMIN}@127.0.0.1:{port}")
    try:
        admin = real.connect(settings, timeout_s=30, database="default")
        schema.migrate(admin, "agents")
        admin.close()
        client = real.connect(settings, timeout_s=30, database="agents")
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait(30)


def test_the_collector_holds_exactly_the_bad_quantities_and_counts_all_others(metering, capsys, warehouse):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    from meterhouse_collector.inbox import Inbox

    bad = {"huge": 10**30, "endless": math.inf, "none": math.nan, "negative": -12, "over": 10**15 + 1}
    good = {"one": 1, "most": 10**15, "half": 0.5, "same": 10**15}
    write_journal(metering.journals, "a", *(event(name, quantity) for name, quantity in {**bad, **good}.items()))
    assert drained(capsys)["code"] == 0
    for _, body in metering.sink.requests:
        Inbox(warehouse).post(samples.record(ExportMetricsServiceRequest.FromString(body)))
    held = warehouse.query("SELECT event_id, reason, raw_value FROM suspense ORDER BY event_id").result_rows
    assert held == [
        ("endless", "bad_quantity", "inf"),
        ("huge", "bad_quantity", "1e30"),
        ("negative", "bad_quantity", "-12"),
        ("none", "bad_quantity", "nan"),
        ("over", "bad_quantity", "1000000000000001"),
    ]
    used = warehouse.query("SELECT event_id, toString(quantity) FROM usage ORDER BY event_id").result_rows
    assert used == [("half", "0.5"), ("most", "1000000000000000"), ("one", "1"), ("same", "1000000000000000")]
