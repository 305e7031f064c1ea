"""What a journal record becomes in ClickHouse: the rows of `events` and the views over them, reason by reason."""

from decimal import Decimal

import pytest
from collector_samples import CUMULATIVE, DAY_NS, RECEIVED_NS, add_sum, attributes, event, record, request_of
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from meterhouse_collector.inbox import Inbox
from meterhouse_store import schema


def held(client, columns="reason, customer_id, quantity, raw_value"):
    return client.query(f"SELECT {columns} FROM suspense ORDER BY event_id, quantity").result_rows


def used(client, columns="customer_id, meter, event_id, quantity"):
    return client.query(f"SELECT {columns} FROM usage ORDER BY event_id, quantity").result_rows


def post(client, *records):
    Inbox(client).post(b"".join(records))


def test_an_event_keeps_every_field_that_the_contract_names(database):
    point = {
        "customer.id": "acme",
        "gen_ai.agent.id": "agent-7",
        "gen_ai.agent.name": "support",
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-5-mini",
        "gen_ai.operation.name": "chat",
        "gen_ai.tool.name": "search",
        "gen_ai.token.modality": "text",
        "cache.ttl": "5m",
        "service.tier": "flex",
        "meterhouse.status": "failed",
    }
    extra = {
        "meterhouse.call.id": "call-1",
        "meterhouse.task.id": "task-1",
        "gen_ai.conversation.id": "conversation-1",
        "meterhouse.step": "plan",
        "gen_ai.response.id": "response-1",
        "meterhouse.request.id": "request-1",
        "meterhouse.lease.id": "lease-1",
        "usage.source": "reported",
        "gen_ai.request.model": "gpt-5",
        "team": "blue",
        "seats": 3,
    }
    request = request_of(
        event(12, extra=extra, trace_id=bytes(range(16)), span_id=bytes(range(8))),
        name="meterhouse.tool.calls",
        point=point,
    )
    request.resource_metrics[0].resource.attributes.extend(
        attributes({"service.name": "shop", "meterhouse.process.id": "process-1"})
    )
    post(database, record(request))
    row = database.query("SELECT * FROM usage").first_row
    names = database.query("SELECT * FROM usage").column_names
    found = dict(zip(names, row, strict=True))
    times = {name: found.pop(name).isoformat() for name in ("event_time", "key_time", "received_at", "known_at")}
    assert set(times.values()) == {"2026-11-01T00:00:00"}
    assert found.pop("decided_at").isoformat() == "1970-01-01T00:00:00"
    assert found.pop("original_reason") == ""
    assert found == {
        "namespace": "live",
        "customer_id": "acme",
        "meter": "tool.calls",
        "event_id": "event-1",
        "quantity": Decimal(12),
        "raw_value": "",
        "status": "failed",
        "agent_id": "agent-7",
        "agent_name": "support",
        "provider": "openai",
        "model": "gpt-5-mini",
        "operation": "chat",
        "tool": "search",
        "modality": "text",
        "cache_ttl": "5m",
        "service_tier": "flex",
        "call_id": "call-1",
        "task_id": "task-1",
        "conversation_id": "conversation-1",
        "step": "plan",
        "response_id": "response-1",
        "request_id": "request-1",
        "trace_id": "000102030405060708090a0b0c0d0e0f",
        "span_id": "0001020304050607",
        "lease_id": "lease-1",
        "usage_source": "reported",
        "source": "meterhouse",
        "attributes": {"gen_ai.request.model": "gpt-5", "team": "blue"},
        "credential_id": "key-1",
        "process_id": "process-1",
        "service_name": "shop",
        "segment": "a-00000001.seg",
        "record_id": "00000000000000000000000000000001",
        "billed_customer_id": "acme",
        "decision_id": "",
    }


@pytest.mark.parametrize(
    ("quantity", "stored"),
    [
        (0, "0"),
        (10**15, "1000000000000000"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1.25e-7, "0.000000125"),
        (1e-9, "0.000000001"),
        (123456.123456789, "123456.123456789"),
        (1e15, "1000000000000000"),
        (-0.0, "0"),
    ],
)
def test_a_quantity_is_stored_exactly_as_it_is_written(database, quantity, stored):
    post(database, record(request_of(event(quantity), name="meterhouse.agent.seconds")))
    assert used(database) == [("acme", "agent.seconds", "event-1", Decimal(stored))]


def test_part_of_a_token_is_suspended_and_part_of_a_second_counts(database):
    post(
        database,
        record(request_of(event(12.5), event(3.0, "event-2"))),
        record(request_of(event(12.5, "event-3"), name="meterhouse.agent.seconds"), 2),
        record(request_of(event(0.5, "event-4"), name="meterhouse.pages.of.ours"), 3),
    )
    assert held(database) == [("fractional_quantity", "acme", Decimal("12.5"), "12.5")]
    assert sorted(used(database)) == [
        ("acme", "agent.seconds", "event-3", Decimal("12.5")),
        ("acme", "llm.tokens.input", "event-2", Decimal(3)),
        ("acme", "pages.of.ours", "event-4", Decimal("0.5")),
    ]


@pytest.mark.parametrize(
    ("told", "is_once", "reason"),
    [
        ("true", True, ""),
        (True, True, ""),
        ("false", False, ""),
        (False, False, ""),
        ("True", False, "bad_identifier"),
        ("yes", False, "bad_identifier"),
        (1, False, "bad_identifier"),
        (0.5, False, "bad_identifier"),
    ],
)
def test_whether_an_event_counts_once_is_a_truth_or_it_is_suspended(database, told, is_once, reason):
    post(database, record(request_of(event(5, extra={"meterhouse.once": told}))))
    query = "SELECT event_time = toDateTime64(0, 9, 'UTC'), reason, attributes FROM events"
    assert database.query(query).result_rows == [(is_once, reason, {})]


@pytest.mark.parametrize(
    ("quantity", "raw"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (-1, "-1"),
        (-0.5, "-0.5"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.5e-10, "1.5e-10"),
        (1.25e-8, "1.25e-8"),
        (5e-324, "5e-324"),
        (1.7e308, "1.7e308"),
        (10**15 + 1, "1000000000000001"),
        (2**63 - 1, "9223372036854775807"),
        (-(2**63), "-9223372036854775808"),
        (None, ""),
    ],
)
def test_a_quantity_that_cannot_count_is_suspended_with_its_raw_value(database, quantity, raw):
    post(database, record(request_of(event(quantity))))
    assert held(database) == [("bad_quantity", "acme", Decimal(0), raw)]
    assert used(database) == []


@pytest.mark.parametrize(
    ("point", "extra", "reason"),
    [
        ({}, {}, "customer_missing"),
        ({"customer.id": ""}, {}, "customer_missing"),
        ({"customer.id": 42}, {}, "bad_identifier"),
        ({"customer.id": "c" * 257}, {}, "bad_identifier"),
        ([("customer.id", "acme"), ("customer.id", "globex")], {}, "bad_identifier"),
        ({"customer.id": "acme", "gen_ai.agent.name": True}, {}, "bad_identifier"),
        ({"customer.id": "acme"}, {"meterhouse.call.id": 1.5}, "bad_identifier"),
        ({"customer.id": "acme"}, {"gen_ai.conversation.id": "ü" * 129}, "bad_identifier"),
        ({"customer.id": "acme"}, [("team", "a"), ("team", "b")], "bad_identifier"),
        ({"otel.metric.overflow": True}, {}, "series_overflow"),
    ],
)
def test_a_bad_identifier_is_suspended(database, point, extra, reason):
    post(database, record(request_of(event(5, extra=extra), point=point)))
    assert [(row[0], row[2]) for row in held(database)] == [(reason, Decimal(5))]
    assert used(database) == []


def test_identifiers_of_256_bytes_count(database):
    post(database, record(request_of(event(5), point={"customer.id": "é" * 128})))
    assert used(database, "customer_id, quantity") == [("é" * 128, Decimal(5))]


@pytest.mark.parametrize(
    "wrong", ["\0", "\n", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u2066"], ids=lambda it: f"{ord(it):04x}"
)
def test_what_breaks_lines_or_steers_terminals_is_kept_as_a_sign_that_does_not_and_counts(database, wrong):
    texts = {"customer.id": f"acme{wrong}", "gen_ai.response.model": f"m{wrong}"}
    texts |= {"gen_ai.agent.id": f"a{wrong}", "region": f"r{wrong}", f"k{wrong}": "v"}
    own = {"gen_ai.conversation.id": f"c{wrong}", "colour": f"o{wrong}"}
    sent = request_of(event(12, extra=own), name=f"meterhouse.pages{wrong}", point=texts)
    post(database, record(sent))
    ((*names, attributes_kept),) = used(database, "customer_id, meter, model, agent_id, conversation_id, attributes")
    assert names == ["acme\ufffd", "pages\ufffd", "m\ufffd", "a\ufffd", "c\ufffd"]
    assert attributes_kept == {"region": "r\ufffd", "k\ufffd": "v", "colour": "o\ufffd"}


def test_other_signs_of_all_languages_stay_as_they_are(database):
    name = "Straße \u00a0名前 \u200bמודל é🙂"
    post(database, record(request_of(event(12), point={"customer.id": "acme", "gen_ai.response.model": name})))
    assert used(database, "model") == [(name,)]


@pytest.mark.parametrize("event_id", [None, "", "x" * 65, "a b", "a\n", "ä"])
def test_an_event_without_a_usable_id_gets_one_and_is_suspended(database, event_id):
    post(database, record(request_of(event(5, event_id))))
    ((reason, found),) = held(database, "reason, event_id")
    assert reason == "event_id_missing"
    assert found.startswith("suspended-") and len(found) == 42


def test_events_without_ids_are_not_taken_for_one_another_and_have_the_same_ids_on_replay(database):
    records = record(request_of(event(5, None), event(5, None))), record(request_of(event(5, None)), number=2)
    post(database, *records)
    first = held(database, "event_id")
    post(database, *records)
    assert len(set(first)) == 3
    assert held(database, "event_id") == first


def test_a_customer_that_the_key_may_not_report_for_is_suspended(database):
    post(database, record(request_of(event(5)), allowed=["globex", "initech"]))
    post(
        database,
        record(request_of(event(6, "event-2"), point={"customer.id": "globex"}), allowed=["globex", "initech"]),
    )
    assert held(database) == [("customer_forbidden", "acme", Decimal(5), "5")]
    assert used(database, "customer_id, quantity") == [("globex", Decimal(6))]


@pytest.mark.parametrize(
    ("time_ns", "reason"),
    [
        (RECEIVED_NS - 400 * DAY_NS, ""),
        (RECEIVED_NS - 400 * DAY_NS - 1, "time_out_of_range"),
        (RECEIVED_NS + DAY_NS, ""),
        (RECEIVED_NS + DAY_NS + 1, "time_out_of_range"),
        (0, "time_out_of_range"),
        (2**64 - 1, "time_out_of_range"),
    ],
)
def test_an_event_counts_from_400_days_before_to_one_day_after_it_was_received(database, time_ns, reason):
    post(database, record(request_of(event(5, time_ns=time_ns))))
    query = "SELECT reason, toUnixTimestamp64Nano(event_time), attributes FROM events"
    raw = {"meterhouse.raw_time_unix_nano": str(time_ns)} if reason else {}
    assert database.query(query).result_rows == [(reason, RECEIVED_NS if reason else time_ns, raw)]


def test_times_of_101_months_in_one_insert_are_all_stored(database):
    month_ns = 31 * DAY_NS
    records = [
        record(
            request_of(event(1, f"event-{i}", time_ns=RECEIVED_NS + i * month_ns)),
            i,
            received_ns=RECEIVED_NS + i * month_ns,
        )
        for i in range(101)
    ]
    post(database, *records)
    assert database.query("SELECT count(), uniqExact(toYYYYMM(event_time)) FROM usage").result_rows == [(101, 101)]


@pytest.mark.parametrize(
    ("events", "value", "gap"),
    [
        ([], 7, "7"),
        ([], 0, "0"),
        ([event(5)], 7, "2"),
        ([event(5), event(6, "event-2")], 7, "-4"),
        ([event(0.5)], 0.75, "0.25"),
        ([event(2**62, "big")], 2**62 + 1, "1"),
    ],
)
def test_a_point_whose_exemplars_do_not_add_up_leaves_the_difference_in_suspense(database, events, value, gap):
    post(database, record(request_of(*events, value=value)))
    rows = [row for row in held(database, "reason, quantity, raw_value, source") if row[0] == "exemplars_missing"]
    assert rows == [("exemplars_missing", Decimal(gap), str(value), "meterhouse")]


def test_doubles_that_add_up_but_for_rounding_leave_no_difference(database):
    tenths = (event(0.1, f"event-{i}") for i in range(10))
    post(database, record(request_of(*tenths, name="meterhouse.agent.seconds")))
    assert held(database) == []
    assert database.query("SELECT count(), sum(quantity) FROM usage").result_rows == [(10, Decimal(1))]


def test_what_is_not_ours_is_left_to_python(database):
    request = request_of(event(5), kind=CUMULATIVE)
    add_sum(request, [event(6)], monotonic=False)
    add_sum(request, [event(7)], kind=0)
    add_sum(request, [event(8)], name="requests")
    add_sum(request, [event(9)], name="meterhouse.")
    add_sum(request, [event(9.5)], name="meterhouseX")
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="meterhouse.llm.requests").gauge.data_points.add(as_int=3, time_unix_nano=RECEIVED_NS)
    metrics.add(name="meterhouse.llm.requests").histogram.data_points.add(count=3, sum=12.5, time_unix_nano=RECEIVED_NS)
    add_sum(request, [event(4)])
    post(database, record(request))
    assert database.query("SELECT source, quantity FROM events").result_rows == [("meterhouse", Decimal(4))]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_the_first_received_copy_stands_whatever_the_order_of_inserts(database, order):
    for number in order:
        extra = {"meterhouse.call.id": f"call-{number}"}
        post(database, record(request_of(event(5, extra=extra)), number, received_ns=RECEIVED_NS + number))
    for merged in (False, True):
        if merged:
            database.command("OPTIMIZE TABLE events FINAL")
        assert used(database, "call_id, quantity") == [("call-1", Decimal(5))]


def test_the_same_record_posted_three_times_counts_once(database):
    for _ in range(3):
        post(database, record(request_of(event(5), event(6, "event-2"))))
    assert used(database, "event_id, quantity") == [("event-1", Decimal(5)), ("event-2", Decimal(6))]


@pytest.mark.parametrize("order", [("forbidden", "good"), ("good", "forbidden")])
def test_a_suspended_copy_never_displaces_one_that_counts(database, order):
    records = {
        "forbidden": record(request_of(event(5)), 1, received_ns=RECEIVED_NS, allowed=["globex"]),
        "good": record(request_of(event(5)), 2, received_ns=RECEIVED_NS + 1),
    }
    for name in order:
        post(database, records[name])
    database.command("OPTIMIZE TABLE events FINAL")
    assert used(database, "record_id, quantity") == [(f"{2:032x}", Decimal(5))]


def test_one_call_may_have_the_same_meter_twice_under_two_ids(database):
    request = request_of(event(5, "text"), point={"customer.id": "acme", "gen_ai.token.modality": "text"})
    add_sum(request, [event(5, "image")], point={"customer.id": "acme", "gen_ai.token.modality": "image"})
    post(database, record(request))
    assert used(database, "modality, quantity") == [("image", Decimal(5)), ("text", Decimal(5))]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3)])
def test_of_two_quantities_under_one_identity_the_first_received_counts_and_the_others_are_conflicts(database, order):
    store = Inbox(database)
    for number in order:  # received first: 7, then 5, then 9
        received_ns = RECEIVED_NS + number
        store.post(record(request_of(event({1: 7, 2: 5, 3: 9}[number])), number, received_ns=received_ns))
        store.mark_conflicts(received_ns, received_ns)
    assert used(database, "event_id, quantity") == [("event-1", Decimal(7))]
    assert held(database, "reason, quantity") == [("conflict", Decimal(5)), ("conflict", Decimal(9))]


def test_the_same_id_in_another_namespace_customer_meter_or_at_another_time_is_no_conflict(database):
    request = request_of(event(5), event(6, time_ns=RECEIVED_NS + 1))
    add_sum(request, [event(7)], point={"customer.id": "globex"})
    add_sum(request, [event(8)], name="meterhouse.llm.tokens.output")
    post(database, record(request))
    Inbox(database).mark_conflicts(RECEIVED_NS, RECEIVED_NS)
    assert [row[0] for row in used(database, "quantity")] == [5, 6, 7, 8]


def test_an_attribute_that_is_a_list_or_absent_does_not_disturb(database):
    request = request_of(event(5))
    exemplar = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].exemplars[0]
    exemplar.filtered_attributes.append(
        KeyValue(key="tags", value=AnyValue(array_value=ArrayValue(values=[AnyValue()])))
    )
    exemplar.filtered_attributes.append(KeyValue(key="nothing"))
    exemplar.filtered_attributes.append(KeyValue(key="empty", value=AnyValue(string_value="")))
    post(database, record(request))
    assert used(database, "quantity, attributes") == [(Decimal(5), {"empty": ""})]


def test_an_event_keeps_at_most_32_other_attributes(database):
    post(database, record(request_of(event(5, extra={f"key-{i:02d}": str(i) for i in range(40)}))))
    ((found,),) = used(database, "attributes")
    assert found == {f"key-{i:02d}": str(i) for i in range(32)}


def test_an_empty_request_and_a_metric_without_points_are_no_rows(database):
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="meterhouse.llm.requests")
    post(database, record(b""), record(request, 2))
    assert database.query("SELECT count() FROM events").first_row == (0,)


def test_migrating_again_changes_nothing(database):
    post(database, record(request_of(event(5))))
    schema.migrate(database, database.database)
    assert used(database, "quantity") == [(Decimal(5),)]


@pytest.mark.parametrize("name", ["a-b", "1a", "a; DROP DATABASE b", ""])
def test_a_database_name_that_is_no_identifier_is_refused(database, name):
    with pytest.raises(ValueError, match="letters, digits"):
        schema.migrate(database, name)
