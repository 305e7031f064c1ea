"""`meterhouse customers`, `keys` and `down`, called as a person calls them."""

import json

import pytest

from meterhouse.cli import main
from meterhouse_store.registry import credentials, hash_key
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("METERHOUSE_SQL_URL", raising=False)
    monkeypatch.delenv("METERHOUSE_NAMESPACE", raising=False)

    def command(*arguments):
        """(exit code, stdout, stderr)"""
        try:
            code = main([*arguments, "--data", str(tmp_path)])
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_a_customer_is_added_changed_and_listed(call):
    assert call("customers", "add", "acme", "--name", "Acme", "--plan", "team")[0] == 0
    code, printed, _ = call("customers", "add", "acme", "--email", "billing@acme.example", "--json")
    assert code == 0
    added = json.loads(printed)[0]
    assert (added["name"], added["email"], added["currency"]) == ("Acme", "billing@acme.example", "USD")
    assert [contract["plan"] for contract in added["contracts"]] == ["team"]
    _, printed, _ = call("customers", "list")
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert rows[0] == ["customer", "name", "plans", "currency", "time", "zone", "email", "registered", "by"]
    assert rows[2] == ["acme", "Acme", "team", "USD", "UTC", "billing@acme.example", "operator"]


def test_a_customer_without_a_plan_is_told_what_is_missing(call):
    _, printed, _ = call("customers", "add", "acme")
    assert "No plan yet" in printed


def test_mistakes_end_with_1_and_name_all_of_them(call):
    code, _, error = call("customers", "add", "acme", "--currency", "eu", "--time-zone", "Mars")
    assert code == 1
    assert "'eu'" in error and "'Mars'" in error


def test_a_wrong_call_ends_with_2(call):
    assert call("customers", "add", "acme", "--plan", "team", "--valid-from", "tomorrow")[0] == 2
    assert call("jobs", "--every", "0s")[0] == 2


def test_a_key_is_shown_once_and_works(call, tmp_path):
    code, printed, _ = call("keys", "create", "support", "--customers", "acme, globex", "--json")
    assert code == 0
    made = json.loads(printed)
    engine = open_engine(Settings(data=tmp_path))
    (kept,) = credentials(engine)
    engine.dispose()
    assert (kept.credential_id, kept.key_sha256) == (made["credential_id"], hash_key(made["key"]))
    assert kept.customers == ("acme", "globex")
    listed = json.loads(call("keys", "list", "--json")[1])
    assert [key["credential_id"] for key in listed] == [made["credential_id"]]
    assert made["key"] not in json.dumps(listed)
    assert "is revoked since" in call("keys", "revoke", made["credential_id"])[1]
    assert call("keys", "revoke", "cred_other")[0] == 1


def test_down_where_nothing_runs_is_fine(call):
    code, printed, _ = call("down")
    assert (code, printed.split()[0]) == (0, "Nothing")


def test_settings_that_cannot_be_used_are_named(call, monkeypatch):
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "Not Good")
    code, _, error = call("customers", "list")
    assert code == 2
    assert "METERHOUSE_NAMESPACE" in error
