"""Nothing is lost and nothing is counted twice: killed processes, dead servers, forks. Real processes throughout."""

import json
import os
import signal
import sys
import threading

import openai
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

import meterhouse
import meterhouse.runtime
from meterhouse.cli import main

AGENT = """
import sys, openai, meterhouse
client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1", max_retries=0)
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
for _ in range(int(sys.argv[2])):
    client.chat.completions.create(**ask)
for chunk in client.chat.completions.create(**ask, stream=True) if sys.argv[3:] else ():
    print("streaming", flush=True)
"""
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "delta": {"content": "y"}, "finish_reason": None}],
}


def drained(capsys) -> dict:
    code = main(["drain", "--json"])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def test_a_process_killed_in_mid_stream_leaves_one_unfinished_call_and_all_others(
    agent, provider, metering, capsys, nowhere
):
    gate = threading.Event()
    for _ in range(3):
        provider.json(COMPLETION)
    provider.stream([b"data: " + json.dumps(CHUNK).encode() + b"\n\n"] * 2, gate=gate, gate_before=1)
    process = agent(AGENT, provider.url, "3", "stream", METERHOUSE_ENDPOINT=nowhere, METERHOUSE_CUSTOMER="acme")
    assert process.stdout.readline() == "streaming\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    gate.set()
    result = drained(capsys)
    assert (result["code"], result["journals"], result["delivered"], result["unfinished"]) == (0, 1, 10, 1)
    events = metering.sink.events
    requests = [event for event in events if event.meter == "llm.requests"]
    assert {one.own["meterhouse.request.id"] for one in requests} == {
        headers["x-client-request-id"] for _, headers, _ in provider.log
    }
    (open_call,) = [one for one in requests if one.point["meterhouse.status"] == "unfinished"]
    assert open_call.own["meterhouse.request.id"] == provider.log[3][1]["x-client-request-id"]
    assert open_call.own["usage.source"] == "none" and open_call.point["customer.id"] == "acme"
    assert sum(event.value for event in events if event.meter == "llm.tokens.input") == 21
    assert list(metering.journals.iterdir()) == []


def test_a_server_that_is_down_for_a_whole_process_life_gets_the_same_events_later(
    agent, provider, metering, capsys, nowhere
):
    for _ in range(2):
        provider.json(COMPLETION)
    process = agent(AGENT, provider.url, "2", METERHOUSE_ENDPOINT=nowhere)
    assert process.wait(30) == 0
    (journal,) = metering.journals.glob("*.journal")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    written = {line["call"]: line["at"] for line in lines if "call" in line}
    assert drained(capsys)["delivered"] == 6
    assert {event.own["meterhouse.call.id"]: event.event_time_ns for event in metering.sink.events} == written
    assert {e.resource["meterhouse.process.id"] for e in metering.sink.events} == {journal.name.partition("-")[0]}
    assert drained(capsys) | {"endpoint": ""} == {
        "code": 0,
        "journal_dir": str(metering.journals),
        "endpoint": "",
        "journals": 0,
        "delivered": 0,
        "unfinished": 0,
        "left": 0,
        "lost": 0,
        "unreadable_lines": 0,
        "failed": 0,
        "elsewhere": 0,
        "refused_events": 0,
        "refused": [],
        "damaged": [],
    }


def test_the_next_process_adopts_what_a_dead_one_left(agent, provider, metering, nowhere, until):
    provider.json(COMPLETION)
    assert agent(AGENT, provider.url, "1", METERHOUSE_ENDPOINT=nowhere).wait(30) == 0
    meterhouse.meter("pages").add(1)
    running = meterhouse.runtime.runtime()
    running._wake.set()
    until(lambda: {"llm.requests", "pages"} <= {event.meter for event in metering.sink.events})
    assert metering.units() == {"llm.requests": 1, "llm.tokens.input": 7, "llm.tokens.output": 3, "pages": 1}


def test_the_journal_of_a_living_process_is_left_alone(metering, capsys):
    meterhouse.meter("pages").add(1)
    assert drained(capsys)["journals"] == 0
    assert metering.units() == {"pages": 1}


def test_a_torn_last_line_is_passed_over(metering, capsys):
    metering.journals.mkdir()
    intent = json.dumps({"intent": "c1", "at": 5, "attributes": {"meterhouse.call.id": "c1"}})
    (metering.journals / "dead-0.journal").write_text(
        json.dumps({"process": {"service.name": "s", "meterhouse.process.id": "dead"}})
        + "\n"
        + intent
        + '\n{"call":"c1","events":[["llm.requ'
    )
    result = drained(capsys)
    assert (result["delivered"], result["unfinished"]) == (1, 1)
    assert metering.sink.events[0].event_time_ns == 5


def test_what_failed_is_sent_again_with_the_same_ids_and_times(metering, until):
    metering.sink.answers = [(500, (), b"")]
    with meterhouse.customer("acme"):
        first = meterhouse.meter("pages").add(3)
    running = meterhouse.runtime.runtime()
    running._wake.set()
    until(lambda: bool(metering.sink.refused))
    assert metering.units() == {"pages": 3}
    refused = metering.sink.decode(metering.sink.refused[0])
    delivered = metering.sink.events
    assert [(e.id, e.event_time_ns) for e in refused] == [(e.id, e.event_time_ns) for e in delivered]
    assert first == delivered[0].id


@pytest.mark.parametrize(("status", "body"), [(302, ExportMetricsServiceResponse().SerializeToString()), (200, b"<p>")])
def test_a_redirect_or_a_page_is_no_acknowledgement(metering, status, body):
    metering.sink.answers = [(status, (("Location", "/elsewhere"),), body)] * 4
    meterhouse.meter("pages").add(3)
    meterhouse.runtime.flush(10)
    assert metering.sink.requests == []
    assert len(list(metering.journals.glob("*.journal"))) == 1


def test_what_the_server_says_is_bad_is_kept_apart_and_holds_nothing_up(metering, capsys):
    metering.sink.answers = [(400, (), b"bad"), (400, (), b"bad")]
    meterhouse.meter("pages").add(3)
    assert meterhouse.runtime.flush(10)
    (kept,) = metering.journals.glob("*.refused")
    assert json.loads(kept.read_text())["event"][0] == "pages"
    assert drained(capsys)["code"] == 3
    meterhouse.meter("pages").add(4)
    assert metering.units() == {"pages": 4}


def test_points_that_the_server_rejects_in_part_are_kept_apart(metering):
    partial = ExportMetricsServiceResponse()
    partial.partial_success.rejected_data_points = 1
    reply = partial.SerializeToString()
    metering.sink.answers = [(200, (), reply), (200, (), reply)]
    meterhouse.meter("pages").add(3)
    assert meterhouse.runtime.flush(10)
    assert len(list(metering.journals.glob("*.refused"))) == 1


def test_headers_of_another_vendor_are_not_sent(metering, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer other,x-vendor=1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    meterhouse.meter("pages").add(3)
    assert metering.units() == {"pages": 3}
    headers = {name.lower(): value for name, value in metering.sink.requests[0][0].items()}
    assert headers["authorization"] == "Bearer mh_test" and "x-vendor" not in headers
    assert headers["content-encoding"] == "gzip"


def test_more_events_than_are_held_in_memory_are_delivered_from_the_file(metering, monkeypatch, nowhere):
    monkeypatch.setattr("meterhouse.journal.HELD_EVENTS", 700)
    monkeypatch.setattr("meterhouse.runtime.COUNTED_AT_MOST", 300)
    monkeypatch.setenv("METERHOUSE_ENDPOINT", nowhere)
    names = {meterhouse.meter("pages").add(1) for _ in range(2000)}
    monkeypatch.setenv("METERHOUSE_ENDPOINT", metering.sink.url)
    assert metering.flush() and {event.id for event in metering.sink.events} == names
    assert list(metering.journals.iterdir()) == []


def test_a_full_journal_is_replaced_by_what_is_open_in_it(metering, monkeypatch, until):
    monkeypatch.setattr("meterhouse.journal.ROTATE_BYTES", 1000)
    from meterhouse.call import Call, new_call_id

    open_call = Call(new_call_id(), {})
    for _ in range(20):
        meterhouse.meter("pages").add(1)
    running = meterhouse.runtime.runtime()
    running._wake.set()
    until(lambda: bool(list(metering.journals.glob("*-1.journal"))))
    (path,) = metering.journals.glob("*.journal")
    assert open_call.call_id in path.read_text() and "pages" not in path.read_text()
    assert metering.units() == {"pages": 20}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_its_own_process_and_sends_nothing_of_its_parents(metering):
    meterhouse.meter("pages").add(1)
    child = os.fork()
    if child == 0:
        meterhouse.meter("pages").add(10)
        os._exit(0 if meterhouse.runtime.flush(10) else 1)
    assert os.waitpid(child, 0)[1] == 0
    meterhouse.meter("pages").add(100)
    found = metering.flush()
    assert sorted(event.value for event in found) == [1, 10, 100]
    assert len({event.resource["meterhouse.process.id"] for event in found}) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_childs_hold_on_its_parents_journal_ends_at_the_fork(agent, metering, capsys):
    source = """
import os, sys, time, meterhouse
meterhouse.meter("pages").add(1)
if os.fork() == 0:
    time.sleep(20)
print("forked", flush=True)
time.sleep(20)
"""
    process = agent("import os; os.setsid()\n" + source, METERHOUSE_ENDPOINT="http://127.0.0.1:9")
    assert process.stdout.readline() == "forked\n"
    process.kill()
    process.wait()
    try:
        assert drained(capsys)["delivered"] == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the orphaned child


def test_normal_exit_delivers_and_leaves_no_journal(agent, provider, metering):
    provider.json(COMPLETION)
    process = agent(AGENT, provider.url, "1")
    assert process.wait(30) == 0, process.stderr.read()
    assert {event.meter: event.value for event in metering.sink.events} == {
        "llm.requests": 1,
        "llm.tokens.input": 7,
        "llm.tokens.output": 3,
    }
    assert list(metering.journals.iterdir()) == []


def test_opentelemetry_instrument_meters_a_program_without_meterhouse_in_it(provider, metering):
    import subprocess
    from pathlib import Path

    provider.json(COMPLETION)
    source = AGENT.replace(", meterhouse", "")
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable, "-c", source]
    off = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    subprocess.run([*command, provider.url, "1"], check=True, env={**os.environ, **off}, timeout=60)
    assert sorted(event.meter for event in metering.sink.events) == [
        "llm.requests",
        "llm.tokens.input",
        "llm.tokens.output",
    ]


def test_a_journal_directory_that_cannot_be_written_does_not_stop_the_host(metering, monkeypatch, tmp_path, provider):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(tmp_path / "file" / "journal"))
    provider.json(COMPLETION)
    with openai.OpenAI(api_key="k", base_url=provider.url + "/v1") as client:
        client.chat.completions.create(model="m", messages=[])
    meterhouse.runtime.flush(10)
    assert {event.meter for event in metering.sink.events} == {"llm.requests", "llm.tokens.input", "llm.tokens.output"}


def test_without_a_journal_what_failed_waits_in_memory(metering, monkeypatch, tmp_path, until):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METERHOUSE_JOURNAL_DIR", str(tmp_path / "file" / "journal"))
    metering.sink.answers = [(500, (), b"")]
    meterhouse.meter("pages").add(1)
    meterhouse.runtime.runtime()._wake.set()
    until(lambda: bool(metering.sink.refused))
    meterhouse.meter("pages").add(2)
    assert metering.units() == {"pages": 3}
