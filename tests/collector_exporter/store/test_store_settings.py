"""Settings from the environment, endpoints.json, and finding the warehouse."""

import stat

import pytest
from pydantic import ValidationError

from meterhouse_store import endpoints, warehouse
from meterhouse_store.endpoints import Address, Collector, Endpoints, Warehouse
from meterhouse_store.settings import NoData, Settings, load
from meterhouse_store.terminal import wrong_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("DATA", "NAMESPACE", "WAREHOUSE_URL", "WAREHOUSE_DATABASE", "SQL_URL", "METERS"):
        monkeypatch.delenv(f"METERHOUSE_{name}", raising=False)


def described(url="http://127.0.0.1:8123", users=None):
    return Endpoints(
        pid=7,
        data="/somewhere",
        started_at="2026-10-01T00:00:00+00:00",
        namespace="live",
        warehouse=Warehouse(url, "meterhouse", users or {"admin": "a", "reader": "b"}),
        collector=Collector("http://127.0.0.1:4318", "127.0.0.1:4317", "mh_key"),
        portal=Address("http://127.0.0.1:8080"),
        webhooks=Address("http://127.0.0.1:8081/webhooks/stripe"),
        prices=Address("http://127.0.0.1:8082"),
        health=Address("http://127.0.0.1:8080/healthz"),
    )


def test_without_an_environment_everything_is_in_the_data_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load()
    assert found.data == tmp_path / "meterhouse-data"
    assert found.sql_url == f"sqlite:///{tmp_path}/meterhouse-data/meterhouse.db"
    assert (found.namespace, found.warehouse_url, found.warehouse_database) == ("live", None, "meterhouse")


def test_the_environment_is_read_and_data_on_the_command_line_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("METERHOUSE_DATA", "/elsewhere")
    monkeypatch.setenv("METERHOUSE_METERS", "/own.yaml")
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_URL", "")
    assert str(load().data) == "/elsewhere"
    assert load(tmp_path).data == tmp_path
    assert str(load().meters_file) == "/own.yaml"
    assert load().warehouse_url is None


def test_settings_that_cannot_be_used_are_refused(monkeypatch):
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "Not Good")
    monkeypatch.setenv("METERHOUSE_WAREHOUSE_DATABASE", "a;b")
    with pytest.raises(ValidationError) as refused:
        load()
    assert refused.value.error_count() == 2
    assert wrong_settings(refused.value).splitlines()[0] == (
        "METERHOUSE_NAMESPACE: String should match pattern '^[a-z0-9][a-z0-9_-]{0,63}$', not 'Not Good'"
    )


@pytest.mark.parametrize(
    "url", ["mysql://user:geheim@host/db", "host/geheim", "sqlite://", "sqlite:///", "sqlite:///:memory:"]
)
def test_a_database_that_cannot_be_shared_or_is_unknown_is_refused_without_its_password(monkeypatch, url):
    monkeypatch.setenv("METERHOUSE_SQL_URL", url)
    with pytest.raises(ValidationError) as refused:
        load()
    assert wrong_settings(refused.value) == (
        "METERHOUSE_SQL_URL: a file, sqlite:////absolute/path/meterhouse.db, or a server, "
        "postgresql://user:password@host/meterhouse"
    )
    assert "geheim" not in str(refused.value)


def test_passwords_are_not_in_the_repr(tmp_path):
    settings = Settings(data=tmp_path, warehouse_url="http://u:secret@h", sql_url="postgresql://u:secret@h/d")
    assert "secret" not in repr(settings)
    assert "mh_key" not in repr(described())


def test_endpoints_come_back_as_written_and_only_their_owner_reads_them(tmp_path):
    assert endpoints.read(tmp_path) is None
    endpoints.write(tmp_path, described())
    assert endpoints.read(tmp_path) == described()
    assert stat.S_IMODE(endpoints.path(tmp_path).stat().st_mode) == 0o600
    endpoints.remove(tmp_path)
    endpoints.remove(tmp_path)
    assert endpoints.read(tmp_path) is None


def test_damaged_endpoints_say_what_to_do(tmp_path):
    endpoints.path(tmp_path).parent.mkdir()
    endpoints.path(tmp_path).write_text('{"pid": 1')
    with pytest.raises(NoData, match=r"damaged .* delete the file"):
        endpoints.read(tmp_path)


def test_no_warehouse_says_how_to_start_one(tmp_path):
    with pytest.raises(warehouse.WarehouseUnavailable, match="meterhouse up --data"):
        warehouse.connect(Settings(data=tmp_path))


def test_a_warehouse_that_does_not_answer_is_waited_for_only_so_long(tmp_path, unused_port):
    settings = Settings(data=tmp_path, warehouse_url=f"http://u:p@127.0.0.1:{unused_port}")
    with pytest.raises(warehouse.WarehouseUnavailable, match=r"did not answer within 0\.2 s"):
        warehouse.connect(settings, timeout_s=0.2)


def test_who_waits_for_the_warehouse_is_told_so_once(tmp_path, unused_port, monkeypatch, caplog):
    settings = Settings(data=tmp_path, warehouse_url=f"http://u:p@127.0.0.1:{unused_port}")
    monkeypatch.setattr(warehouse, "PATIENCE_S", 0.3)
    with pytest.raises(warehouse.WarehouseUnavailable):
        warehouse.connect(settings, timeout_s=0.2)
    assert not caplog.records
    with pytest.raises(warehouse.WarehouseUnavailable):
        warehouse.connect(settings, timeout_s=1)
    (said,) = caplog.messages
    assert said.startswith(f"http://127.0.0.1:{unused_port}/ping does not answer") and said.endswith("up to 1 s")


def test_the_embedded_warehouse_is_found_by_its_data_directory(tmp_path, warehouse_url_and_users):
    url, users = warehouse_url_and_users
    endpoints.write(tmp_path, described(url, users))
    client = warehouse.connect(Settings(data=tmp_path))
    assert client.query("SELECT currentDatabase()").result_rows == [("meterhouse",)]
    client.close()
    client = warehouse.connect(Settings(data=tmp_path), user="reader", database="default")
    assert client.query("SELECT currentDatabase()").result_rows == [("default",)]
    client.close()
