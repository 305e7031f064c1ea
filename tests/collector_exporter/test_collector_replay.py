"""Replay: a trace becomes the same events every time, at stretched times, and every token of the file is in them."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from meterhouse_collector.replay import BadTrace, Plan, Sender, SendFailed, cycle, events, read_trace, requests, totals

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,100,10
2023-11-16 18:00:15.0000000,200,0
2023-11-16 18:01:00.0000000,300,30
"""
PLAN = Plan(
    ("acme", "globex"),
    datetime(2026, 10, 1, tzinfo=UTC),
    datetime(2026, 10, 2, tzinfo=UTC),
    "azure.ai.openai",
    "m",
    "a",
)


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    return read_trace(file)


def test_rows_go_round_the_customers_and_zero_tokens_make_no_event(trace):
    assert totals(events(trace, PLAN)) == {
        "acme": {"events": 6, "llm.tokens.input": 400, "llm.tokens.output": 40, "llm.requests": 2},
        "globex": {"events": 2, "llm.tokens.input": 200, "llm.requests": 1},
    }


def test_times_are_stretched_linearly_and_stay_inside_the_half_open_period(trace):
    times = [event.event_time_ns for event in events(trace, PLAN) if event.meter == "llm.requests"]
    day = 86_400 * 10**9
    start = 1_790_812_800 * 10**9  # 2026-10-01T00:00:00Z
    # The trace counts as one nanosecond longer than its 60 s: 15/60 of a day less 360 ns, 60/60 less 1,440 ns.
    assert times == [start, start + day // 4 - 360, start + day - 1_440]


def test_the_same_replay_has_the_same_ids_and_another_window_has_others(trace):
    ids = [event.event_id for event in events(trace, PLAN)]
    assert len(set(ids)) == 8
    assert [event.event_id for event in events(trace, PLAN)] == ids
    moved = replace(PLAN, period_start=datetime(2026, 9, 1, tzinfo=UTC))
    assert not {event.event_id for event in events(trace, moved)} & set(ids)


def test_each_points_value_is_the_sum_of_its_exemplars(trace):
    (body,) = requests(events(trace, PLAN), trace, PLAN)
    request = ExportMetricsServiceRequest.FromString(body)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    found = {
        (metric.name, point.attributes[0].value.string_value): (point.as_int, [one.as_int for one in point.exemplars])
        for metric in metrics
        for point in metric.sum.data_points
    }
    assert found == {
        ("meterhouse.llm.tokens.input", "acme"): (400, [100, 300]),
        ("meterhouse.llm.tokens.input", "globex"): (200, [200]),
        ("meterhouse.llm.tokens.output", "acme"): (40, [10, 30]),
        ("meterhouse.llm.requests", "acme"): (2, [1, 1]),
        ("meterhouse.llm.requests", "globex"): (1, [1]),
    }


def test_all_mistakes_of_a_file_are_listed_with_their_lines(tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n2023-11-16 18:00:00,-1,2\n2023-11-16,1,x\n"
    )
    with pytest.raises(BadTrace) as refusal:
        read_trace(file)
    text = str(refusal.value)
    assert "line 2: " in text and "yesterday" in text
    assert "line 3: " in text and "'-1'" in text
    assert "line 4: " in text and "'x'" in text


def test_a_file_with_other_columns_is_refused_with_the_columns_it_needs(tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("when,in,out\n")
    with pytest.raises(BadTrace, match="must name the columns TIMESTAMP, ContextTokens, GeneratedTokens"):
        read_trace(file)


def test_weights_make_customers_take_more_turns():
    assert cycle("a:3,b:1") == ("a", "a", "a", "b")
    with pytest.raises(BadTrace, match="a:3,b:1"):
        cycle("a:0")


class Answers(BaseHTTPRequestHandler):
    """Answers with the statuses of the class's list in turn, and counts."""

    statuses: list[int] = []  # noqa: RUF012 - each test sets its own
    seen = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status = type(self).statuses[type(self).seen]
        type(self).seen += 1
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("statuses", "delivered", "seen"),
    [([503, 200], True, 2), ([200], True, 1), ([400, 200], False, 1)],
    ids=["overload is repeated", "success is not repeated", "bad data is not repeated"],
)
def test_only_what_may_be_repeated_is_repeated(statuses, delivered, seen):
    handler = type("Handler", (Answers,), {"statuses": statuses, "seen": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        sender = Sender(f"http://127.0.0.1:{server.server_port}", "key", pause=lambda seconds: None)
        if delivered:
            sender.send(b"")
        else:
            with pytest.raises(SendFailed, match="400"):
                sender.send(b"")
        sender.close()
        assert handler.seen == seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
