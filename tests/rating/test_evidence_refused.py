"""No evidence pack is handed out of what was changed behind our back: it is said what differs, with exit code 1."""

import json
import sqlite3
from contextlib import closing

import pytest
from evidence_samples import furnished
from typer.testing import CliRunner

from meterhouse_rating.evidence_commands import evidence

INPUT = "SELECT line_id FROM rated_lines WHERE component = 'input' AND amount_minor = 600"
PAID = f"(SELECT transaction_id FROM ledger_transactions WHERE source_id = ({INPUT}))"


@pytest.fixture(scope="module")
def house(new_house, tmp_path_factory):
    """For looking only."""
    making = new_house("evidence_refused", tmp_path_factory.mktemp("evidence_refused"))
    yield furnished(next(making))
    making.close()


@pytest.fixture
def make(house, tmp_path, command_environment):
    """Calls `meterhouse evidence` for acme's October, into a folder of its own, on a database that was changed so."""

    def call(changes, *more):
        file = tmp_path / "changed.db"
        file.unlink(missing_ok=True)
        stored = sqlite3.connect(house.settings.sql_url.removeprefix("sqlite:///"))
        with closing(stored), closing(sqlite3.connect(file)) as copy, copy:
            stored.backup(copy)
            triggers = copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (name,) in triggers:  # whoever may write the file may take them out
                copy.execute(f'DROP TRIGGER "{name}"')
            for one in changes:
                assert copy.execute(one).rowcount > 0, one
        environment = command_environment(house) | {"METERHOUSE_SQL_URL": f"sqlite:///{file}"}
        (tmp_path / "out").mkdir(exist_ok=True)
        arguments = ["acme", "--period", "2026-10", "--out", str(tmp_path / "out" / "acme.zip"), *more]
        done = CliRunner().invoke(evidence, arguments, env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    return call


LINE = f"UPDATE rated_lines SET amount_minor = 601 WHERE line_id = ({INPUT})"
TOTAL = "UPDATE ratings SET total_minor = total_minor + 1 WHERE customer_id = 'acme'"
ENTRIES = f"UPDATE ledger_entries SET amount_minor = amount_minor + sign(amount_minor) WHERE transaction_id = {PAID}"
CHANGES = {
    "a line's amount": ([LINE], "(input (gpt-5-mini)): its rounded amount: it says 601, recomputed it is 600"),
    "a line's and the total": ([LINE, TOTAL], "what the ledger says is owed: it says 600, recomputed it is 601"),
    "a line's, the total and the ledger's": ([ENTRIES, LINE, TOTAL], "ledger transaction 4: its seal: it says "),
    "the total": ([TOTAL], "the total of rating 2026-10-01: it says 19426, recomputed it is 19425"),
    "the ledger's": ([ENTRIES], "what the ledger says is owed: it says 601, recomputed it is 600"),
    "one side of the ledger's": (
        [f"{ENTRIES} AND position = 0"],
        "ledger transaction 4 does not sum to zero: {'USD': 1}",
    ),
    "a line's quantity": (
        [LINE.replace("amount_minor = 601", "quantity = 2000001")],
        "its quantity, from the events: it says 2000001, recomputed it is 2000000",
    ),
    "a line that is gone": (
        [f"DELETE FROM rated_lines WHERE line_id = ({INPUT})"],
        "the events of input (input) are priced by the book and on no line",
    ),
    "a price": (
        ["UPDATE price_books SET source = replace(source, 'price: 3.00', 'price: 4.00')"],
        "its amount by the price book: it says 6, recomputed it is 8",
    ),
}
"""What was changed after closing -> how, and what is told of it."""


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_in_sql_after_closing_gets_no_pack_and_it_is_said_why(make, tmp_path, what):
    changes, told = CHANGES[what]
    code, said, error = make(changes)
    assert (code, error) == (1, "No pack was made: what is stored does not agree with itself.\n")
    assert told in said and "NOT verified" in said and "\nVerified" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_there_already_stays_and_machines_are_told_too(make, tmp_path):
    assert make([])[0] == 0
    before = (tmp_path / "out" / "acme.zip").read_bytes()
    code, said, _ = make([TOTAL], "--json")
    document = json.loads(said)
    assert (code, document["verified"], len(document["problems"])) == (1, False, 1)
    assert [(it.name, it.read_bytes()) for it in (tmp_path / "out").iterdir()] == [("acme.zip", before)]


def test_an_event_that_was_put_into_the_warehouse_behind_the_rating_gets_no_pack(house, make, tmp_path):
    house.event("acme", "llm.tokens.input", "1000000", "2026-10-05T00:00:00", model="gpt-5-mini", event_id="forged")
    try:
        code, said, _ = make([])
    finally:
        delete = "ALTER TABLE events DELETE WHERE event_id = 'forged'"
        house.world.client.command(delete, settings={"mutations_sync": 1})
    assert code == 1 and "its quantity, from the events: it says 2000000, recomputed it is 3000000" in said
    assert list((tmp_path / "out").iterdir()) == []
