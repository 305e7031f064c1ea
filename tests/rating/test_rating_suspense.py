"""Usage in suspense, assigned by the command, is on the customer's line; what is decided after the close is late."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from meterhouse_collector.suspense_commands import suspense
from meterhouse_rating.completeness_command import app as completeness
from meterhouse_store import tables

BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""
NOBODYS = {"reason": "customer_missing", "raw_value": "1500", "event_id": "lost-1"}


@pytest.fixture
def now_house(sqlite_house, monkeypatch, command_environment):
    """A house of today, because the command decides now; usage of October, acme on a plan."""
    house = sqlite_house
    for name, value in command_environment(house).items():
        if name.startswith("METERHOUSE_"):
            monkeypatch.setenv(name, value)
    house.publish(BOOK)
    house.customer("acme")
    house.at(datetime.now(UTC) + timedelta(days=1))
    house.collected((datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S"))
    house.event("", "llm.tokens.input", "1500", "2026-10-15T00:00:00", **NOBODYS)
    return house


def command(*arguments, app=suspense):
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def total_minor(house):
    return {row["customer_id"]: row["total_minor"] for row in house.rows(tables.ratings)}


def test_suspended_usage_is_assigned_rated_and_on_the_line(now_house):
    house = now_house
    house.run()
    assert total_minor(house) == {}
    code, told = command("list", "--json")
    assert (code, json.loads(told)[0]["event_id"]) == (3, "lost-1")
    code, told = command("show", "lost-1")
    assert code == 0 and "customer_missing" in told and "decided_at" not in told and "1970" not in told
    assert json.loads(command("show", "lost-1", "--json")[1])[0]["decided_at"] is None
    chosen = ("assign", "acme", "--reason", "customer_missing", "--why", "contract 7", "--by", "ann")
    assert command(*chosen) == (
        2,
        "1 row, 1500 in quantity, to be assigned to acme: say --yes to do it, or --dry-run\n",
    )
    code, told = command(*chosen, "--dry-run")
    assert (code, told) == (0, "1 row, 1500 in quantity, to be assigned to acme (dry run, nothing was done)\n")
    assert command(*chosen, "--yes") == (0, "1 row assigned to acme\n")
    assert command("list") == (0, "nothing is suspended\n")
    house.run()
    assert total_minor(house) == {"acme": 300}  # 1,500 * 2.00 / 1,000
    code, told = command("show", "lost-1")
    assert code == 0 and "assign to acme by ann: contract 7" in told and "state                usage" in told
    (decision,) = json.loads(command("decisions", "--json")[1])
    assert (decision["who"], decision["why"], decision["original_reason"]) == ("ann", "contract 7", "customer_missing")
    assert command("undo", decision["decision_id"][:12], "--why", "wrong", "--yes") == (0, "1 decision undone\n")
    house.run()
    assert total_minor(house) == {"acme": 0} or total_minor(house) == {}
    assert command("list")[0] == 3


def test_usage_that_is_assigned_after_the_close_is_late_and_not_lost(now_house):
    house, now = now_house, datetime.now(UTC)
    house.world.client.command("TRUNCATE TABLE checkpoints")
    house.event("acme", "llm.tokens.input", "1000", "2026-10-20T00:00:00")
    house.collected((now - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%S"))
    house.close()
    assert total_minor(house) == {"acme": 200}
    assert command("assign", "acme", "--event", "lost-1", "--why", "x", "--yes")[0] == 0
    house.collected((now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S"), position=2000)
    (late,) = house.close()[-1].late
    assert (late.customer_id, late.meter, late.quantity) == ("acme", "llm.tokens.input", 1500)
    assert total_minor(house) == {"acme": 200}


def test_a_decision_that_nobody_brought_into_the_warehouse_is_rated_all_the_same(now_house, monkeypatch):
    monkeypatch.setattr("meterhouse_store.decided.apply_mirrored", lambda client: None)
    monkeypatch.setattr("meterhouse_collector.deciding.apply_decisions", lambda *_: None)
    assert command("assign", "acme", "--event", "lost-1", "--why", "x", "--yes")[0] == 0
    monkeypatch.undo()
    now_house.run()
    assert total_minor(now_house) == {"acme": 300}


def test_commands_refuse_in_sentences(now_house):
    assert command("discard", "--why", "x", "--yes") == (
        2,
        "say which rows: --reason, --customer, --meter, --since, --credential, --agent or --event\n",
    )
    assert command("discard", "--event", "lost-1", "--why", " ", "--yes")[0] == 2
    assert command("release", "--event", "lost-1", "--why", "x", "--yes") == (
        3,
        "1 row refused: it names no customer: `suspense assign CUSTOMER` says whose it is\n",
    )
    assert command("undo", "ffff", "--why", "x", "--yes") == (1, "there is no decision 'ffff' in namespace test\n")
    assert command("show", "unheard-of") == (1, "there is no event 'unheard-of' in namespace test\n")


@pytest.mark.parametrize("nobody", ["", "acme\n", "a" * 257])
def test_usage_is_assigned_to_nobody_who_could_not_be_registered(now_house, nobody):
    code, told = command("assign", nobody, "--event", "lost-1", "--why", "x", "--dry-run")
    assert code != 0 and f"customer id {nobody!r}: 1 to 256 bytes of printable characters" in told


def test_whom_nobody_registered_is_told_before_rows_are_assigned_to_it(now_house):
    told = command("assign", "acmee", "--event", "lost-1", "--why", "x", "--dry-run")
    assert "to be assigned to acmee, who is not registered (`meterhouse customers list` shows who is)" in told[1]
    assert "registered" not in command("assign", "acme", "--event", "lost-1", "--why", "x", "--dry-run")[1]


def test_a_customer_that_is_none_is_not_complete(now_house):
    said = "acmee is not registered and sent nothing: `meterhouse customers list` shows who is.\n"
    assert command("--customer", "acmee", "--period", "2026-10", app=completeness) == (1, said)
    now_house.event("acmee", "llm.tokens.input", "1000", "2026-10-31T22:00:00")  # one that is still to be added
    code, told = command("--customer", "acmee", "--period", "2026-10", app=completeness)
    assert (code, "1 event of 1 process" in told) == (3, True)


def test_completeness_tells_what_is_there_and_ends_with_a_verdict(now_house):
    now_house.event("acme", "llm.tokens.input", "1000", "2026-10-31T22:00:00", service_name="shop", credential_id="")
    code, told = command("--customer", "acme", "--period", "2026-10", app=completeness)
    assert code == 3
    assert "  shop (no key): 1 event of 1 process, last in the hour of 2026-10-31 22:00 UTC\n" in told
    assert "! 1 row of nobody, sent with the same keys is in suspense as customer_missing: " in told
    assert told.endswith("Not certain to be complete: 1 event of 1 stream, 2 to look at.\n"), told
