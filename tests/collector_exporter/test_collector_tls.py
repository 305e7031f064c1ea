"""TLS and mTLS on both doors, with real certificates and the real exporters; and our own agent's way out over https."""

import os
import socket
import ssl
import subprocess
import sys

import grpc
import pytest
from certificates import Authority
from collector_samples import MAIN
from local_doors import KEY, running
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader

from meterhouse_collector.door_settings import DoorSettings
from meterhouse_collector.tls import ServerTls

AUTHORIZATION = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(autouse=True)
def no_bundle_of_this_machine(monkeypatch):
    # requests would prefer it to the CA that the stock exporter is given.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture(scope="module")
def tls_doors(authority, tmp_path_factory):
    with running(tmp_path_factory.mktemp("tls"), tls=ServerTls(*authority.issue("server"), None)) as doors:
        yield doors


@pytest.fixture(scope="module")
def mutual_doors(authority, tmp_path_factory):
    tls = ServerTls(*authority.issue("server-of-clients"), authority.file)
    with running(tmp_path_factory.mktemp("mtls"), tls=tls) as doors:
        yield doors


def http_exporter(doors, authority, client=(None, None)):
    return HttpExporter(
        endpoint=f"https://127.0.0.1:{doors.http[1]}/v1/metrics",
        headers=AUTHORIZATION,
        certificate_file=str(authority.file),
        client_certificate_file=client[0] and str(client[0]),
        client_key_file=client[1] and str(client[1]),
        timeout=3,
    )


def grpc_exporter(doors, authority, client=(None, None)):
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(),
        private_key=client[1] and client[1].read_bytes(),
        certificate_chain=client[0] and client[0].read_bytes(),
    )
    return GrpcExporter(endpoint=doors.grpc, credentials=credentials, headers=AUTHORIZATION, timeout=3)


def result_of(exporter):
    """What the stock exporter says of one export."""
    results = []
    export = exporter.export
    exporter.export = lambda *arguments, **options: results.append(export(*arguments, **options)) or results[-1]
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=600_000)])
    provider.get_meter("test").create_counter("meterhouse.api.calls").add(3, {"customer.id": "acme"})
    provider.force_flush()
    provider.shutdown()
    return results[0]


@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_the_stock_exporters_report_over_tls(tls_doors, authority, exporter):
    tls_doors.reported.clear()
    assert result_of(exporter(tls_doors, authority)) is MetricExportResult.SUCCESS
    assert ("", False) in [(code, retry and code != "") for code, retry, *_ in tls_doors.reported]


@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_under_mutual_tls_a_client_with_a_certificate_of_the_ca_is_served_and_others_are_not(
    mutual_doors, authority, exporter, tmp_path
):
    assert result_of(exporter(mutual_doors, authority, authority.issue("client"))) is MetricExportResult.SUCCESS
    before = len(mutual_doors.reported)
    assert result_of(exporter(mutual_doors, authority)) is MetricExportResult.FAILURE
    stranger = Authority(tmp_path, "another-ca").issue("stranger")
    assert result_of(exporter(mutual_doors, authority, stranger)) is MetricExportResult.FAILURE
    assert len(mutual_doors.reported) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_http_and_old_tls_get_nothing_from_a_tls_door(tls_doors):
    with socket.create_connection(tls_doors.http[:2], timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" not in plain.recv(100)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(tls_doors.http[:2], timeout=10) as connection, pytest.raises(OSError):
        old.wrap_socket(connection)


def served_serial(address):
    host, port = address if isinstance(address, tuple) else address.split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as connection,
        context.wrap_socket(connection) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not_taken(authority, tmp_path, caplog):
    certificate, key = authority.issue("renewed")
    tls = ServerTls(certificate, key, None)
    with running(tmp_path, tls=tls) as doors:
        doors.http = doors.http[:2]
        first = served_serial(doors.http)
        assert served_serial(doors.grpc) == first
        authority.issue("renewed")
        tls.look()
        second = served_serial(doors.http)
        assert second != first and served_serial(doors.grpc) == second
        kept = key.read_bytes()
        authority.issue("renewed")
        key.write_bytes(kept)  # a certificate whose key has not come yet
        tls.look()
        assert "cannot be used, the ones read before hold" in caplog.text
        assert served_serial(doors.http) == second
        assert served_serial(doors.grpc) == second


@pytest.mark.sampled(1)
@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_a_client_of_a_ca_that_was_taken_out_is_refused_without_a_restart(authority, tmp_path, exporter):
    (tmp_path / "cas").mkdir()
    old, new = Authority(tmp_path / "cas", "old"), Authority(tmp_path / "cas", "new")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(old.file.read_bytes())
    of_old, of_new = old.issue("of-old"), new.issue("of-new")
    tls = ServerTls(*authority.issue("server-of-two"), clients)
    with running(tmp_path, tls=tls) as doors:
        assert result_of(exporter(doors, authority, of_old)) is MetricExportResult.SUCCESS
        assert result_of(exporter(doors, authority, of_new)) is MetricExportResult.FAILURE
        clients.write_bytes(new.file.read_bytes())
        tls.look()
        assert result_of(exporter(doors, authority, of_old)) is MetricExportResult.FAILURE
        assert result_of(exporter(doors, authority, of_new)) is MetricExportResult.SUCCESS


def test_a_session_of_a_client_of_a_ca_that_was_taken_out_is_not_resumed(authority, tmp_path):
    old, clients = Authority(tmp_path, "old"), tmp_path / "clients.pem"
    clients.write_bytes(old.file.read_bytes())
    client = ssl.create_default_context(cafile=authority.file)
    client.load_cert_chain(*old.issue("of-old"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # of 1.3 there are no sessions here

    def connected(doors, session=None):
        plain = socket.create_connection(doors.http[:2], timeout=10)
        return client.wrap_socket(plain, server_hostname="localhost", session=session)

    tls = ServerTls(*authority.issue("server-of-sessions"), clients)
    with running(tmp_path, tls=tls) as doors, connected(doors) as open_one:
        open_one.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in open_one.recv(1000)
        clients.write_bytes(authority.file.read_bytes())
        tls.look()
        with pytest.raises(OSError, match=r"EOF|alert|reset"):
            connected(doors, open_one.session)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("exporter", [http_exporter, grpc_exporter])
def test_a_certificate_that_has_expired_is_refused_from_either_side(mutual_doors, authority, tmp_path, exporter):
    before = len(mutual_doors.reported)
    expired = authority.issue("expired-client", expired=True)
    assert result_of(exporter(mutual_doors, authority, expired)) is MetricExportResult.FAILURE
    assert len(mutual_doors.reported) == before
    with running(tmp_path, tls=ServerTls(*authority.issue("expired-server", expired=True), None)) as doors:
        assert result_of(exporter(doors, authority)) is MetricExportResult.FAILURE
        assert doors.reported == []


AGENT = """
import meterhouse
from meterhouse.metric_exporter import MeterhouseMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
reader = PeriodicExportingMetricReader(MeterhouseMetricExporter(), export_interval_millis=600_000)
provider = MeterProvider([reader])
provider.get_meter("test").create_counter("meterhouse.api.calls").add(3, {"customer.id": "acme"})
provider.shutdown()
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("with_certificate", [True, False])
def test_our_own_exporter_reports_over_mutual_tls_with_a_private_ca(
    mutual_doors, authority, tmp_path, with_certificate
):
    certificate, key = authority.issue("agent")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")} | {
        "METERHOUSE_ENDPOINT": f"https://127.0.0.1:{mutual_doors.http[1]}",
        "METERHOUSE_API_KEY": KEY,
        "METERHOUSE_TLS_CA": str(authority.file),
    }
    if with_certificate:
        environment |= {"METERHOUSE_TLS_CLIENT_CERT": str(certificate), "METERHOUSE_TLS_CLIENT_KEY": str(key)}
    mutual_doors.reported.clear()
    subprocess.run([sys.executable, "-c", AGENT], env=environment, cwd=tmp_path, timeout=120, check=True)
    assert [code for code, *_ in mutual_doors.reported] == ([""] if with_certificate else [])


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"METERHOUSE_TLS_CERT": "CERT"}, "set both, or none"),
        ({"METERHOUSE_TLS_CLIENT_CA": "CERT"}, "needs METERHOUSE_TLS_CERT"),
        ({"METERHOUSE_TLS_CERT": "/nowhere", "METERHOUSE_TLS_KEY": "/nowhere"}, "there is no file /nowhere"),
        ({"METERHOUSE_TLS_CERT": "CERT", "METERHOUSE_TLS_KEY": "CERT"}, "name files of PEM that fit"),
    ],
)
def test_settings_that_cannot_work_are_said_at_start(authority, tmp_path, variables, says):
    certificate, _ = authority.issue("settings")
    environment = os.environ | {name: value.replace("CERT", str(certificate)) for name, value in variables.items()}
    command = [sys.executable, "-c", MAIN, "collector", "serve", "--http-port", "0", "--grpc-port", "0"]
    done = subprocess.run(
        command, env=environment | {"METERHOUSE_DATA": str(tmp_path)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_without_settings_the_doors_speak_no_tls(monkeypatch):
    for name in list(os.environ):
        if name.startswith("METERHOUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("METERHOUSE_TLS_CERT", "")  # as docker compose passes what is not set
    assert DoorSettings().tls_cert is None
