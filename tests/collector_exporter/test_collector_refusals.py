"""Whatever is turned away is counted, by reason, also before anybody knows who it is."""

import http.client
import socket

import grpc
import pytest
from collector_samples import wait_for
from local_doors import KEY, running


@pytest.fixture
def doors(tmp_path):
    with running(tmp_path, seconds={"head_s": 0.5}) as found:
        yield found


def codes(doors):
    return [(code, retry) for code, retry, _items, _bytes in doors.reported]


def asked(doors, method, path, headers=(), body=b""):
    connection = http.client.HTTPConnection(*doors.http, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def said(doors, data):
    """What the door answers to these bytes."""
    with socket.create_connection(doors.http, timeout=60) as client:
        client.sendall(data)
        return client.recv(2**16)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/logs", 404, "not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/metrics", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/metrics", 401, "unauthenticated"),
        ("POST", "/v1/allowance", 401, "unauthenticated"),
    ],
)
def test_a_request_that_is_refused_over_http_is_counted_once(doors, method, path, status, code):
    assert asked(doors, method, path) == status
    assert codes(doors) == [(code, False)]


def test_health_and_the_metrics_are_no_requests_that_are_counted(doors):
    assert [asked(doors, "GET", path) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
    assert codes(doors) == []


def test_an_allowance_that_cannot_be_read_is_counted_under_its_key(doors):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Encoding": "br"}
    assert asked(doors, "POST", "/v1/allowance", headers, b"{}") == 415
    assert doors.reported == [("unsupported_media_type", False, 0, 2)]


def test_what_never_becomes_a_request_is_counted(doors):
    assert b" 400 " in said(doors, b"\x16\x03\x01\x02\x00\x01\x00 this is TLS\r\n\r\n")
    assert b" 431 " in said(doors, b"POST /v1/metrics HTTP/1.1\r\nx: " + b"x" * 200_000)
    assert b" 408 " in said(doors, b"POST /v1/metrics HTTP/1.1\r\n")
    wait_for(lambda: len(doors.reported) == 3, within_s=60, what="the reports")
    assert codes(doors) == [("malformed", False), ("too_large", False), ("timeout", True)]


def test_a_connection_that_says_nothing_is_no_request(doors):
    assert b" 408 " in said(doors, b"")
    assert codes(doors) == []


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("/opentelemetry.proto.collector.logs.v1.LogsService/Export", "logs are not taken"),
        ("/opentelemetry.proto.collector.metrics.v1.MetricsService/Import", "there is no such method"),
        ("/grpc.health.v1.Health/Check", "there is no such method"),
    ],
)
def test_a_call_of_what_is_not_there_is_counted(doors, method, words):
    with grpc.insecure_channel(doors.grpc) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(method)(b"", timeout=60)
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED and words in refusal.value.details()
    assert codes(doors) == [("not_found", False)]


def test_a_call_without_a_key_is_counted(doors):
    method = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
    with grpc.insecure_channel(doors.grpc) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(method)(b"", timeout=60)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert codes(doors) == [("unauthenticated", False)]
