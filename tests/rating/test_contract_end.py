"""A contract that is cancelled: until when fees, minimums and advances are due, and what becomes of usage after it."""

from datetime import UTC, datetime

import pytest
from rating_samples import at
from test_plan_changes import FEES, parts, used
from typer.testing import CliRunner

from meterhouse_rating import shadow
from meterhouse_rating.commands import rate
from meterhouse_rating.contract_commands import contracts
from meterhouse_rating.evidence import make
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_store import registry, tables
from meterhouse_store.registry import RegistryError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def joined(house, plan="small"):
    house.customer("acme", plan=plan, valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.collected()


def cancelled(house, when, why="moved away"):
    return registry.end_contract(house.world.engine, "test", "acme", at(when), who="ann", why=why, now=NOW)


@pytest.fixture
def call(sqlite_house, monkeypatch, command_environment):
    for name, value in command_environment(sqlite_house).items():
        monkeypatch.setenv(name, value)

    def called(*arguments):
        done = CliRunner().invoke(contracts, list(arguments))
        return done.exit_code, done.output

    return called


def test_fees_and_minimums_are_due_for_the_days_until_the_end(house):
    house.publish(FEES % ("31.00", ", least: {model: minimum, amount: 62.00}", "62.00"))
    joined(house)
    used(house, "3", "2026-10-02")
    used(house, "4", "2026-10-20")
    assert cancelled(house, "2026-10-11")[1] and not cancelled(house, "2026-10-11")[1]
    house.run()
    # 10 of 31 days: a fee of 10.00, and 20.00 at least, of which usage of 3.00 makes 13.00.
    assert parts(house) == [("small", "10-11", [("fee", 1000), ("in", 300), ("least", 700)])]
    [left] = house.rows(tables.unrated_usage)
    assert (left["reason"], int(left["quantity"])) == ("contract_ended", 4)
    assert left["hint"].startswith("its contract ended at 2026-10-11: ")
    assert {row["who"] for row in house.rows(tables.contract_ends)} == {"ann"}


def test_where_plans_change_with_the_month_it_goes_on_to_the_months_end(sqlite_house, call):
    house = sqlite_house
    house.publish((FEES % ("31.00", "", "62.00")).replace("plan_changes: {apply: at_once}\n", ""))
    joined(house)
    used(house, "4", "2026-10-20")
    code, said = call("cancel", "acme", "--at", "2026-10-11", "--why", "moved away", "--dry-run")
    assert (code, said) == (0, "The contract of acme would end at 2026-11-01.\n")
    assert house.rows(tables.contract_ends) == []
    code, said = call("cancel", "acme", "--at", "2026-10-11", "--why", "moved away", "--by", "ann")
    assert (code, said) == (0, "The contract of acme on plan small ends at 2026-11-01.\n")
    house.run()
    house.run("2026-11")
    assert parts(house) == [("small", "11-01", [("fee", 3100), ("in", 400)])]
    assert parts(house, "2026-11") == []  # nothing is due any more


def test_what_was_paid_in_advance_beyond_the_end_comes_back(house):
    house.publish(FEES % ("30.00, pay: advance", "", "62.00"))
    joined(house)
    house.close("2026-09")
    house.close()  # with November in advance
    cancelled(house, "2026-11-11")
    house.run("2026-11")
    # 10 of November's 30 days were used: 20.00 of the 30.00 come back, and December is not billed.
    assert [(plan, end, sum(amount for _, amount in lines)) for plan, end, lines in parts(house, "2026-11")] == [
        ("small", "11-11", -2000)
    ]


def test_what_is_late_of_a_contract_that_ended_is_billed_after_it_and_what_was_taken_away_comes_back(
    sqlite_house, tmp_path, command_environment
):
    """October ends the contract; of its 4.00 the 3.00 are taken away, and 7 more arrive: 4.00 more. 5 are after it."""
    house = sqlite_house
    house.publish(FEES % ("31.00", "", "62.00"))
    joined(house)
    used(house, "1", "2026-10-02")
    used(house, "3", "2026-10-03", event_id="wrong")
    assert cancelled(house, "2026-11-01")[1]
    house.close()
    assert parts(house) == [("small", "11-01", [("fee", 3100), ("in", 400)])]
    used(house, "7", "2026-10-20", received="2026-11-22")
    used(house, "5", "2026-11-20")
    house.world.client.command(
        "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
        "toDateTime64('2026-11-22 00:00:00', 6, 'UTC') AS decided_at, 'd' AS decision_id) FROM events FINAL "
        "WHERE event_id = 'wrong'"
    )
    house.collected("2026-12-05T00:00:00", position=2000)
    house.at(at("2026-12-05"))
    for _ in range(2):
        house.run(None)
        assert parts(house, "2026-11") == [("", "12-01", [("in", 400)])]
        [left] = house.rows(tables.unrated_usage)
        assert (left["reason"], int(left["quantity"])) == ("contract_ended", 5)
    for _ in range(2):
        house.close(None)
        assert parts(house, "2026-11") == [("", "12-01", [("in", 400)])]
    assert parts(house, "2026-12") == []
    assert house.run(None)[-1].late == ()
    assert shadow.again(house.world, "2026-11").differences == []
    assert shadow.again(house.world, "2026-11").same == 1
    assert prove(house.world.engine, "test").problems == []
    pack = make(house.world, "acme", parse("2026-11", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    [line] = [row for row in house.rows(tables.rated_lines) if row["kind"] == "correction"]
    done = CliRunner().invoke(rate, ["explain", line["line_id"]], env=command_environment(house))
    assert done.exit_code == 0, done.output


def test_an_end_that_would_keep_what_was_paid_in_advance_is_refused(sqlite_house, call):
    house = sqlite_house
    house.publish(FEES % ("30.00, pay: advance", "", "62.00"))
    joined(house)
    house.close("2026-09")
    house.close()
    code, said = call("cancel", "acme", "--at", "2026-11-01", "--why", "moved away")
    assert code == 1 and said.startswith("30.00 USD of fees was billed in advance for the time from 2026-11-01"), said
    assert "is closed" in call("cancel", "acme", "--at", "2026-10-20", "--why", "moved away")[1]
    with pytest.raises(RegistryError, match="is closed"):  # also where two persons act at once
        cancelled(house, "2026-10-20")


def test_an_end_is_taken_back_until_it_comes_and_a_new_contract_begins_anew(house):
    house.publish(FEES % ("31.00", "", "62.00"))
    joined(house)
    engine = house.world.engine
    cancelled(house, "2026-12-01")
    with pytest.raises(RegistryError, match="has no contract that could end"):
        cancelled(house, "2026-12-05")
    registry.withdraw_contract(engine, "test", "acme", at("2026-12-01"), now=NOW)
    assert [it.plan for it in registry.contracts(engine, "test")] == ["small"]
    assert house.rows(tables.contract_ends) == []
    cancelled(house, "2026-10-11")
    registry.add_customer(engine, "test", "acme", plan="big", valid_from=at("2026-10-22"), now=NOW)
    house.run()
    # 10 days of the small plan, none of any, 10 days of the big one.
    assert parts(house) == [("small", "10-11", [("fee", 1000)]), ("big", "11-01", [("fee", 2000)])]
    with pytest.raises(RegistryError, match="another contract of acme begins at 2026-10-11"):
        cancelled(house, "2026-10-05")
    with pytest.raises(RegistryError, match="say why"):
        cancelled(house, "2026-12-01", why=" ")
