"""`meterhouse budgets ... --dry-run`: shows what the command comes to, refuses what it refuses, and writes nothing."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from meterhouse_billing.budget_commands import budgets as command
from meterhouse_store import budgets, tables
from meterhouse_store.budgets import UNITS, Budget

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WHY = ("--why", "agreed", "--by", "ann")
BOOK = """
book: own
currency: USD
metrics:
  tokens: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      tokens: {model: per_unit, metric: tokens, price: 0.01}
"""
CHANGES = {
    "set": (("acme", "--units", "100", "--of", "agent.conversations"), "budget_changes", "  100  agent.conversations"),
    "raise": (("acme", "talks", "--to", "300"), "budget_changes", "  300  agent.conversations"),
    "acknowledge": (("acme", "talks"), "budget_changes", "acknowledged"),
    "remove": (("acme", "talks"), "budget_changes", "No budgets"),
    "pause": (("acme",), "pause_changes", "acme is paused: key (leaked)\nacme is paused: operator (agreed)"),
    "unpause": (("acme", "--reason", "key"), "pause_changes", "acme is not paused."),
    "policy": (
        ("acme", "--pause-at", "task"),
        "budget_policies",
        "acme: pauses at a task; allow while nobody answers.",
    ),
}
"""Command -> what it is called with, the table where its change is recorded, and what it prints."""


@pytest.fixture
def acme(sqlite_house, command_environment):
    """A customer with the budget talks of 200 a month and a pause for the reason key; the function calls a command."""
    house = sqlite_house
    house.publish(BOOK, valid_from=datetime(2026, 1, 1, tzinfo=UTC))
    house.customer("acme")
    house.collected(datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat())
    engine = house.world.engine
    said = {"who": "ann", "why": "leaked", "now": NOW}
    budgets.set_budget(engine, "test", Budget("acme", "talks", UNITS, Decimal(200), of="agent.conversations"), **said)
    budgets.pause(engine, "test", "acme", "key", **said)

    def call(*arguments):
        done = CliRunner().invoke(command, list(arguments), env=command_environment(house))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return house, call


def dump(house):
    return {table.name: house.rows(table) for table in tables.metadata.sorted_tables}


def test_every_command_that_has_a_dry_run_is_here():
    found = get_command(command).commands.items()
    assert {name for name, one in found if any(it.name == "dry_run" for it in one.params)} == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_dry_run_shows_what_the_command_then_does_and_writes_nothing(acme, name):
    house, call = acme
    arguments, table, shown = CHANGES[name]
    before = dump(house)
    code, would = call(name, *arguments, *WHY, "--dry-run")
    assert code == 0 and shown in would and "Nothing was written (dry run)." in would
    assert dump(house) == before
    code, done = call(name, *arguments, *WHY)
    assert (code, re.sub(r"\s*Nothing was written \(dry run\)\.", "", would)) == (0, done)
    after = dump(house)
    assert len(after[table]) == len(before[table]) + 1


def test_a_dry_run_of_setting_a_budget_anew_keeps_what_was_acknowledged(acme):
    _, call = acme
    call("acknowledge", "acme", "talks", *WHY)
    anew = ("set", "acme", "--name", "talks", "--units", "7", "--of", "agent.conversations", *WHY)
    code, would = call(*anew, "--dry-run")
    assert (code, would.replace("Nothing was written (dry run).\n", "")) == call(*anew)
    assert "acknowledged" in would


REFUSED = [
    (("set", "nosuch", "--amount", "5", *WHY), "nosuch is not registered"),
    (("set", "acme", "--amount", "0", *WHY), "a limit is a number above 0"),
    (("raise", "acme", "talks", "--to", "150", *WHY), "the limit is 200 already"),
    (("raise", "acme", "none", "--to", "150", *WHY), "acme has no budget none (it has talks)"),
    (("acknowledge", "acme", "none", *WHY), "acme has no budget none (it has talks)"),
    (("remove", "acme", "none", *WHY), "acme has no budget none (it has talks)"),
    (("pause", "nosuch", *WHY), "nosuch is not registered"),
    (("pause", "acme", "--reason", "", *WHY), "a reason has 1 to 64 characters"),
    (("unpause", "nosuch", *WHY), "nosuch is not registered"),
    (("policy", "nosuch", *WHY), "nosuch is not registered"),
    (("policy", "acme", "--pause-at", "never", *WHY), "pause_at is call or task"),
    *(((name, *arguments, "--why", " "), "say why: it is kept") for name, (arguments, *_) in CHANGES.items()),
]


def test_what_a_command_refuses_its_dry_run_refuses_in_the_same_words(acme):
    house, call = acme
    before = dump(house)
    for arguments, told in REFUSED:
        refused = call(*arguments)
        assert refused[0] == 1 and refused[1].startswith(told), arguments
        assert call(*arguments, "--dry-run") == refused, arguments
    assert dump(house) == before
