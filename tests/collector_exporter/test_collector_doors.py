"""The doors, as exporters see them: stock OpenTelemetry exporters, wrong keys, bad input, overload; nothing is lost."""

import gzip
import json
import os
import re
import signal
import threading
import time
from decimal import Decimal

import grpc
import pytest
from collector_samples import RECEIVED_NS, Collector, batch, event, request_of, wait_for, wait_projected
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader

from meterhouse_collector.encodings import gunzip, json_to_protobuf
from meterhouse_collector.refusals import OVERLOADED, Refused
from meterhouse_store import access, registry, sql, tables

EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


def rows(client, columns="event_id, quantity", view="usage", where="true"):
    return client.query(f"SELECT {columns} FROM {view} WHERE {where} ORDER BY ALL").result_rows


def http_exporter(collector):
    return HttpExporter(
        endpoint=f"{collector.http}/v1/metrics",
        headers={"authorization": f"Bearer {collector.key}"},
        compression=Compression.Gzip,
        preferred_temporality={Counter: AggregationTemporality.DELTA},
    )


def grpc_exporter(collector):
    return GrpcExporter(
        endpoint=collector.grpc,
        insecure=True,
        headers={"authorization": f"Bearer {collector.key}"},
        compression=grpc.Compression.Gzip,
        preferred_temporality={Counter: AggregationTemporality.DELTA},
    )


@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_the_stock_exporter_is_acknowledged_and_its_point_without_exemplars_is_not_lost(
    shared_collector, shared_database, exporter
):
    reader = PeriodicExportingMetricReader(exporter(shared_collector), export_interval_millis=60_000)
    provider = MeterProvider([reader])
    provider.get_meter("test").create_counter("meterhouse.api.calls").add(3, {"customer.id": exporter.__name__})
    provider.shutdown()
    wait_projected(shared_database)
    name = exporter.__name__
    found = rows(shared_database, "reason, customer_id, meter, quantity", "suspense", f"customer_id = '{name}'")
    assert found == [("exemplars_missing", name, "api.calls", Decimal(3))]


def test_a_request_counts_once_however_often_and_through_whichever_door_it_comes(shared_collector, shared_database):
    request = batch(["acme", "globex"], 3, "s").SerializeToString()
    assert shared_collector.post(request)[::2] == (200, b"")
    assert shared_collector.post(gzip.compress(request), Content_Encoding="gzip")[::2] == (200, b"")
    with grpc.insecure_channel(shared_collector.grpc) as channel:
        assert (
            channel.unary_unary(EXPORT)(request, metadata=[("authorization", f"Bearer {shared_collector.key}")]) == b""
        )
    wait_projected(shared_database)
    assert rows(shared_database, "customer_id, event_id, quantity", where="event_id LIKE 's-%'") == [
        (customer, f"s-{customer}-{number}", 1) for customer in ("acme", "globex") for number in range(3)
    ]


OTLP_JSON = {
    "resourceMetrics": [
        {
            "scopeMetrics": [
                {
                    "metrics": [
                        {
                            "name": "meterhouse.llm.requests",
                            "futureField": 1,
                            "sum": {
                                "aggregationTemporality": 1,
                                "isMonotonic": True,
                                "dataPoints": [
                                    {
                                        "attributes": [{"key": "customer.id", "value": {"stringValue": "acme"}}],
                                        "asInt": "1",
                                        "exemplars": [
                                            {
                                                "timeUnixNano": "TIME",
                                                "asInt": "1",
                                                "traceId": "5b8efff798038103d269b633813fc60c",
                                                "spanId": "eee19b7ec3c1b174",
                                                "filteredAttributes": [
                                                    {"key": "meterhouse.event.id", "value": {"stringValue": "j-1"}}
                                                ],
                                            }
                                        ],
                                    }
                                ],
                            },
                        }
                    ]
                }
            ]
        }
    ]
}


def test_otlp_json_has_hexadecimal_ids_and_is_stored_like_protobuf(shared_collector, shared_database):
    body = json.dumps(OTLP_JSON).replace("TIME", str(time.time_ns())).encode()
    assert shared_collector.post(body, media_type="application/json")[::2] == (200, b"{}")
    wait_projected(shared_database)
    assert rows(shared_database, "event_id, quantity, trace_id, span_id", where="event_id = 'j-1'") == [
        ("j-1", Decimal(1), "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")
    ]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"resourceMetrics": ' + b"[" * 80 + b"]" * 80 + b"}", "nested"),
        (b'{"resourceMetrics": NaN}', "NaN is not JSON"),
        (b'{"x": 1e999}', "out of range"),
        (b"{", "no OTLP/JSON"),
        (b"[]", "no OTLP/JSON"),
        (b"\xff\xfe", "no OTLP/JSON"),
        (b'{"a": [{"traceId": "xyz"}]}', "no OTLP/JSON"),
        (b'{"resourceSpans": []}', "holds resourceSpans: metrics go to POST /v1/metrics, traces to POST /v1/traces"),
        (b'{"resourceMetrics": [], "resource_logs": []}', "holds resource_logs"),
    ],
)
def test_bad_json_is_refused_in_words(body, says):
    with pytest.raises(Refused, match=says):
        json_to_protobuf(body)


def test_nan_as_text_is_taken_and_later_suspended():
    text = json.dumps(OTLP_JSON).replace('"TIME"', str(RECEIVED_NS)).replace('"asInt": "1"', '"asDouble": "NaN"')
    request = ExportMetricsServiceRequest.FromString(json_to_protobuf(text.encode()))
    value = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].as_double
    assert value != value


def test_a_gzip_bomb_is_stopped_at_the_limit():
    bomb = gzip.compress(b"\0" * 50_000_000)
    with pytest.raises(Refused, match="at most 1000000 bytes"):
        gunzip(bomb, 1_000_000)
    with pytest.raises(Refused, match="at most 15 bytes"):
        gunzip(gzip.compress(b"0123456789") * 2, 15)
    assert gunzip(gzip.compress(b"0123456789") * 2, 20) == b"01234567890123456789"
    for bad in (b"no gzip", gzip.compress(b"cut")[:-3]):
        with pytest.raises(Refused):
            gunzip(bad, 100)


def test_what_stands_behind_a_gzip_body_is_said_to():
    for behind in (b"trailing", b"trailing bytes, more than a header of gzip has"):
        with pytest.raises(Refused, match=f"behind the gzip body stand {len(behind)} bytes that are no gzip"):
            gunzip(gzip.compress(b"whole") + behind, 100)
    with pytest.raises(Refused, match="says it is gzip and is not"):
        gunzip(b"no gzip at all, and as long as a header", 100)


@pytest.mark.parametrize("told", ["W47/95gDgQPSabYzgT/GDA==", "5b8efff798038103d269b633813fc60", "5b 8e", "0x5b8e"])
def test_an_id_that_is_not_in_hex_is_named(told):
    text = json.dumps(OTLP_JSON).replace('"TIME"', str(RECEIVED_NS)).replace("5b8efff798038103d269b633813fc60c", told)
    with pytest.raises(Refused, match=r"traceId is .*: OTLP/JSON writes ids in hex"):
        json_to_protobuf(text.encode())


def test_what_cannot_be_taken_is_refused_in_the_words_of_the_protocol(shared_collector):
    good = request_of(event(1)).SerializeToString()
    status, headers, body = shared_collector.post(b"\xff\xff")
    assert (status, headers["content-type"]) == (400, "application/x-protobuf")
    assert Status.FromString(body).code == 3 and "ExportMetricsServiceRequest" in Status.FromString(body).message
    status, headers, body = shared_collector.post(b"{", media_type="application/json")
    assert (status, headers["content-type"], json.loads(body)["code"]) == (400, "application/json", 3)
    status, headers, body = shared_collector.post(good, key="mh_wrong")
    assert (status, headers["content-type"], json.loads(body)["code"]) == (
        401,
        "application/problem+json",
        "unauthenticated",
    )
    assert shared_collector.post(good, media_type="text/plain")[0] == 415
    assert shared_collector.post(good, Content_Encoding="br")[0] == 415
    assert shared_collector.post(gzip.compress(b"\0" * 17_000_000), Content_Encoding="gzip")[0] == 413
    with grpc.insecure_channel(shared_collector.grpc) as channel:
        export = channel.unary_unary(EXPORT)
        for request, key, code in (
            (good, "mh_wrong", grpc.StatusCode.UNAUTHENTICATED),
            (b"\xff\xff", shared_collector.key, grpc.StatusCode.INVALID_ARGUMENT),
            (b"\0" * 17_000_000, shared_collector.key, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as refusal:
                export(request, metadata=[("authorization", f"Bearer {key}")])
            assert refusal.value.code() == code


def test_overload_tells_both_protocols_to_come_again_in_a_second():
    from meterhouse_collector.grpc_door import _trailers

    trailers = dict(_trailers(Refused(OVERLOADED, "later")))
    assert RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]).retry_delay.seconds == 1
    status = Status.FromString(trailers["grpc-status-details-bin"])
    retry = RetryInfo()
    assert status.code == 14 and status.details[0].Unpack(retry) and retry.retry_delay.seconds == 1


def test_a_revoked_key_stops_working_and_a_new_one_works_at_once(shared_collector):
    credential, key = access.create_key(shared_collector.engine, "live", "second", customers=["globex"])
    time.sleep(0.6)  # the collector looks for unknown keys twice a second at most
    assert shared_collector.post(request_of(event(1)), key=key)[0] == 200
    access.revoke_key(shared_collector.engine, credential.credential_id)
    wait_for(lambda: shared_collector.post(request_of(event(1)), key=key)[0] == 401, what="the revocation")


def test_the_customers_of_a_key_are_written_into_the_record(shared_collector, shared_database):
    key = access.create_key(shared_collector.engine, "live", "globex only", customers=["globex"])[1]
    time.sleep(0.6)
    assert shared_collector.post(batch(["acme", "globex"], 1, "k"), key=key)[0] == 200
    wait_projected(shared_database)
    assert rows(shared_database, "customer_id, quantity", where="event_id LIKE 'k-%'") == [("globex", Decimal(1))]
    assert rows(shared_database, "reason, customer_id", "suspense", "event_id LIKE 'k-%'") == [
        ("customer_forbidden", "acme")
    ]


def test_a_hostile_record_does_not_stop_those_behind_it(shared_collector, shared_database):
    # upb takes both members of a oneof and a message given in two parts; whatever ClickHouse makes of them, the
    # events behind them count.
    hostile = request_of(event(1, "h")).SerializeToString()
    assert shared_collector.post(hostile + hostile)[0] == 200
    assert shared_collector.post(b"\x0a\x00" * 100)[0] == 200
    assert shared_collector.post(batch(["acme"], 2, "behind"))[0] == 200
    wait_projected(shared_database)
    assert [row for row in rows(shared_database) if row[0].startswith("behind")] == [
        ("behind-acme-0", 1),
        ("behind-acme-1", 1),
    ]


def test_an_allowance_without_a_row_has_no_limit_and_with_one_says_what_billing_wrote(shared_collector):
    def ask(**request):
        status, _, body = shared_collector.post(
            json.dumps(request).encode(), path="/v1/allowance", media_type="application/json"
        )
        return status, json.loads(body)

    status, reply = ask(customer_id="acme", agent_id="support", lease_id="lease-1")
    assert status == 200 and reply.pop("expires_at").endswith("Z")
    assert reply == {
        "decision": "allow",
        "lease_id": "lease-1",
        "units": None,
        "weights": {},
        "pause_at": "call",
        "on_unreachable": "allow",
        "reason": None,
    }
    with sql.begin_write(shared_collector.engine) as connection:
        connection.execute(
            tables.allowances.insert().values(
                namespace="live",
                customer_id="acme",
                pauses=[{"agent_id": "", "reason": "operator"}],
                limits=[],
                pause_at="task",
                on_unreachable="pause",
                computed_at=registry.ALWAYS,
            )
        )
    status, reply = ask(customer_id="acme", agent_id="support")
    assert (status, reply["decision"], reply["units"], reply["weights"]) == (200, "pause", None, {})
    assert (reply["pause_at"], reply["on_unreachable"], reply["reason"]) == ("task", "pause", "operator")
    status, reply = ask(agent_id=7, used={"pages": 3})
    assert "used must be an object" in reply["detail"]
    assert (status, reply["code"]) == (400, "malformed")
    assert "customer_id must be a string" in reply["detail"] and "agent_id must be a string" in reply["detail"]


def send_until(collector, stop, acknowledged, customer):
    number = 0
    while not stop.is_set():
        number += 1
        try:
            status = collector.post(batch([customer], 5, number))[0]
        except OSError:
            return
        if status == 200:
            acknowledged.append(number)


def test_every_acknowledged_event_is_in_usage_exactly_once_after_kill_9_under_load(collector, database):
    expected = set()
    for round_number in range(3):
        stop, logs = threading.Event(), {f"c{round_number}-{n}": [] for n in range(4)}
        senders = [
            threading.Thread(target=send_until, args=(collector, stop, log, customer)) for customer, log in logs.items()
        ]
        for sender in senders:
            sender.start()
        time.sleep(0.7 + 0.3 * round_number)
        os.kill(collector.process.pid, signal.SIGKILL)
        stop.set()
        for sender in senders:
            sender.join()
        collector.kill()
        expected |= {
            (customer, f"{number}-{customer}-{event_number}")
            for customer, log in logs.items()
            for number in log
            for event_number in range(5)
        }
        collector.start()
    wait_projected(database)
    found = rows(database, "customer_id, event_id")
    assert len(found) == len(set(found))
    assert len(expected) > 100
    assert expected <= set(found)
    assert rows(database, "*", "suspense") == []


def test_the_collector_acknowledges_while_the_warehouse_is_down_and_catches_up(collector_warehouse, database, tmp_path):
    alone = Collector(tmp_path, "http://admin:x@127.0.0.1:9", database.database).start()
    try:
        assert alone.post(batch(["acme"], 2, "down"))[0] == 200
    finally:
        alone.stop()
    back = Collector(tmp_path, collector_warehouse, database.database)
    back.start()
    try:
        wait_projected(database)
        assert rows(database) == [("down-acme-0", 1), ("down-acme-1", 1)]
    finally:
        back.stop()


def test_rebuild_gives_identical_totals_beside_a_running_collector_and_says_what_differs(collector, database):
    collector.post(batch(["acme", "globex"], 20, "r"))
    collector.post(request_of(event(5, None), event(float("nan"), "n")))
    wait_projected(database)
    first = collector.command("warehouse", "rebuild", "--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["live_sha256"] == report["rebuilt_sha256"] and report["events"] == 40 and report["differences"] == []
    collector.post(batch(["acme"], 1, "after"))
    wait_projected(database)
    assert database.query("SELECT count() FROM usage").first_row == (41,)
    database.command("ALTER TABLE events DELETE WHERE event_id = 'r-acme-7'", settings={"mutations_sync": 1})
    second = collector.command("warehouse", "rebuild")
    assert second.returncode == 3, second.stderr
    assert "differs: live acme llm.requests -: live 20 events, 20, rebuilt 21 events, 21" in second.stdout
    assert database.query("SELECT count() FROM usage").first_row == (41,)


def test_suspense_and_status_are_listed_for_people_and_for_machines(collector, database):
    nothing = collector.command("suspense", "list")
    assert (nothing.returncode, nothing.stdout) == (0, "nothing is suspended\n")
    collector.post(request_of(event(-4, "bad", time_ns=time.time_ns())))
    wait_projected(database)
    listed = collector.command("suspense", "list", "--json")
    assert listed.returncode == 3
    (row,) = json.loads(listed.stdout)
    assert (row["reason"], row["customer_id"], row["quantity"], row["raw_value"]) == ("bad_quantity", "acme", "0", "-4")
    shown = collector.command("suspense", "list").stdout
    assert re.search(r"\nbad_quantity +1 +its quantity is no number that can be counted +discard\n", shown), shown
    status = json.loads(collector.command("warehouse", "status", "--json").stdout)
    assert status["suspense"] == [{"namespace": "live", "reason": "bad_quantity", "rows": 1}]
    query = collector.command("warehouse", "query", "SELECT reason, quantity FROM suspense", "--json")
    assert json.loads(query.stdout) == [{"reason": "bad_quantity", "quantity": "0"}]
