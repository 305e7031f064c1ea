"""What a namespace may do: every change is kept with who made it and why."""

import json
from datetime import UTC, datetime

import pytest

from meterhouse.cli import main
from meterhouse_store import registry, switches
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    for name in ("METERHOUSE_SQL_URL", "METERHOUSE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    engine = open_engine(Settings(data=tmp_path))
    registry.ensure_namespace(engine, "live")
    registry.ensure_namespace(engine, "test-eu")
    engine.dispose()

    def command(*arguments):
        """(exit code, stdout, stderr)"""
        with pytest.raises(SystemExit) as ended:
            main(["namespaces", *arguments, "--data", str(tmp_path)])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return command


def test_all_is_on_until_somebody_turns_it_off_for_one_namespace(sql_engine):
    for name in ("live", "test"):
        registry.ensure_namespace(sql_engine, name)
    switches.require(sql_engine, "live", switches.RATING)
    switches.turn(sql_engine, "live", {"rating": "off"}, who="ann", why="wrong book", now=NOW)
    assert [switches.is_on(sql_engine, "live", switch) for switch in switches.SWITCHES] == [False, True, True]
    assert switches.is_on(sql_engine, "test", switches.RATING)
    with pytest.raises(switches.SwitchedOff, match=r"since 2026-11-01 12:00 UTC \(by ann: wrong book\)"):
        switches.require(sql_engine, "live", switches.RATING)


def test_the_last_change_counts_also_where_the_clock_stands_still(sql_engine):
    registry.ensure_namespace(sql_engine, "live")
    for state in ("off", "on", "off"):
        switches.turn(sql_engine, "live", {"sync": state}, who="ann", why=f"to {state}", now=NOW)
    assert not switches.is_on(sql_engine, "live", switches.SYNC)
    assert [change.why for change in switches.history(sql_engine, "live")] == ["to off", "to on", "to off"]


def test_a_change_needs_a_reason_and_a_namespace(sql_engine):
    registry.ensure_namespace(sql_engine, "live")
    with pytest.raises(registry.RegistryError, match="say why"):
        switches.turn(sql_engine, "live", {"sync": "off"}, who="ann", why=" ", now=NOW)
    with pytest.raises(registry.RegistryError, match="no namespace 'lvie'"):
        switches.turn(sql_engine, "lvie", {"sync": "off"}, who="ann", why="typing", now=NOW)


def test_the_command_sets_lists_and_remembers(call):
    assert call("set", "live", "--rating", "off", "--pausing", "off", "--why", "wrong book")[0] == 0
    assert call("set", "live", "--pausing", "on", "--why", "limits are right")[0] == 0
    rows = [line.split() for line in call("list")[1].splitlines()]
    assert rows[0] == ["namespace", "kind", "rating", "sync", "pausing"]
    assert rows[2:] == [
        ["live", "live", "off:", "wrong", "book", "on", "on"],
        ["test-eu", "test", "on", "on", "on"],
    ]
    changes = json.loads(call("history", "live", "--json")[1])
    assert [(one["switch"], one["state"], one["why"]) for one in changes] == [
        ("pausing", "off", "wrong book"),
        ("rating", "off", "wrong book"),
        ("pausing", "on", "limits are right"),
    ]


def test_the_history_of_no_namespace_is_a_mistake(call):
    code, _, said = call("history", "lvie")
    assert code == 1
    assert "there is no namespace 'lvie': `meterhouse namespaces list` shows them" in said


@pytest.mark.parametrize("arguments", [(), ("--rating", "maybe"), ("--sync", "OFF")])
def test_a_switch_is_named_and_set_on_or_off(call, arguments):
    assert call("set", "live", *arguments, "--why", "because")[0] == 2
