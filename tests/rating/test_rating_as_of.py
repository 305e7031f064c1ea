"""`rate run --as-of`: what was closed comes out again to the byte, whatever was changed since; nothing is written."""

import json
import time
from datetime import UTC, datetime, timedelta

from rating_samples import at
from typer.testing import CliRunner

from meterhouse_collector import event_commands
from meterhouse_collector.suspense_commands import suspense
from meterhouse_rating import credit_changes
from meterhouse_rating.as_of import rate_as_of
from meterhouse_rating.commands import rate
from meterhouse_rating.credits import Grant
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


def give(house, amount, name, now):
    wanted = Grant("", "bought", amount, at("2026-09-01"))
    said = {"reference": name, "who": "ann", "why": "x", "now": now}
    credit_changes.grant(house.world.engine, "test", "acme", wanted, None, **said)


def told(house, period, moment):
    return [
        (str(it).partition(": ")[2], it.outcome.rated.total_minor)
        for it in rate_as_of(house.world, period, None, moment)
    ]


def test_what_was_closed_comes_out_again_whatever_came_later(house):
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-09-01"))
    house.collected("2026-11-05T00:00:00")
    give(house, 1300, "first", at("2026-09-02"))
    house.event("acme", "llm.tokens.input", "5000", "2026-09-10T00:00:00")
    house.event("acme", "llm.tokens.input", "3000", "2026-10-10T00:00:00")
    house.at(at("2026-11-05"))
    house.close(None)  # September: 10.00, by credits; October: 6.00, 3.00 of it by credits
    house.at(at("2026-11-10"))
    give(house, 5000, "second", at("2026-11-10"))
    house.publish(BOOK.replace("2.00", "9.00"), valid_from=at("2026-09-01"), now=at("2026-11-10"))
    house.event("acme", "llm.tokens.input", "700", "2026-10-11T00:00:00", received="2026-11-08T00:00:00")
    house.collected("2026-11-20T00:00:00", position=2000)
    house.run("2026-11")
    before = [house.rows(table) for table in (tables.ratings, tables.rated_lines, tables.ledger_entries)]
    assert told(house, "2026-09", at("2026-11-20")) == [("as it was closed, to the byte", 0)]
    assert told(house, "2026-10", at("2026-11-20")) == [("as it was closed, to the byte", 300)]
    # November carries a correction of 1.40; by what was known on 6 November there was nothing.
    assert told(house, "2026-11", at("2026-11-06")) == []
    # October on 4 November, before it was closed: September was open, too, so that its use of credits is not known.
    assert told(house, "2026-10", at("2026-11-04")) == [("open then", 0)]
    assert [house.rows(table) for table in (tables.ratings, tables.rated_lines, tables.ledger_entries)] == before


def test_a_decision_of_later_is_taken_back(sqlite_house, monkeypatch, command_environment):
    house = sqlite_house
    for name, value in command_environment(house).items():
        if name.startswith("METERHOUSE_"):
            monkeypatch.setenv(name, value)

    def decide(*arguments):
        done = CliRunner().invoke(suspense, [*arguments, "--why", "x", "--yes"])
        assert done.exit_code in (0, 3), done.output

    def collected(position):
        now = datetime.now(UTC)
        house.at(now + timedelta(seconds=1))
        house.collected((now + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%S.%f"), position=position)

    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-09-01"))
    lost = {"reason": "customer_missing", "raw_value": "1500", "event_id": "lost-1"}
    house.event("", "llm.tokens.input", "1500", "2026-10-15T00:00:00", **lost)
    house.event("acme", "llm.tokens.input", "1000", "2026-10-15T00:00:00")
    decide("assign", "acme", "--event", "lost-1")
    collected(2000)
    house.close("2026-10")
    assert [row["total_minor"] for row in house.rows(tables.ratings)] == [500]
    (decision,) = house.rows(tables.decisions)
    time.sleep(1)  # the month was closed as of a second from when it was collected; what is taken back comes later
    decide("undo", decision["decision_id"][:12])
    collected(3000)
    house.run("2026-11")
    # 1,500 at 2.00 per 1,000 were taken back: a correction of -3.00, and October comes out as it was closed.
    assert {f"{row['period_start']:%m}": row["total_minor"] for row in house.rows(tables.ratings)} == {
        "10": 500, "11": -300,
    }  # fmt: skip
    done = CliRunner().invoke(rate, ["run", "--period", "2026-10", "--as-of", "2030-01-01", "--json"])
    assert done.exit_code == 0 and "as it was closed, to the byte" in done.output, done.output
    document, _ = json.JSONDecoder().raw_decode(done.output, done.output.index("{"))
    assert document["ratings"][0]["total_minor"] == 500


def test_what_was_retracted_and_amended_since_and_put_back_again_is_wound_back(
    sqlite_house, monkeypatch, command_environment
):
    """Two months, of which the second carries what was decided after the first was closed; then that is reverted."""
    house = sqlite_house
    for name, value in command_environment(house).items():
        if name.startswith("METERHOUSE_"):
            monkeypatch.setenv(name, value)
    ended = datetime.now(UTC) - timedelta(hours=2)  # a month can be closed an hour after its end
    third = ended.replace(day=1) - timedelta(days=1)
    second = third.replace(day=1) - timedelta(days=1)
    first = second.replace(day=1) - timedelta(days=1)
    names = [f"{it:%Y-%m}" for it in (first, second, third)]

    def decide(*arguments):
        time.sleep(1)  # what is decided in the second in which a month was closed may be known to it
        done = CliRunner().invoke(event_commands.events, [*arguments, "--why", "x", "--yes"])
        assert done.exit_code in (0, 3), done.output

    def closed(month, position):
        now = datetime.now(UTC) + timedelta(seconds=1)
        house.at(now)
        house.collected(now.strftime("%Y-%m-%dT%H:%M:%S.%f"), position=position)
        house.close(month)

    def came_out_again():
        """How many of the months are closed: all of them as they were."""
        so_many = 0
        for month in names:
            shadowed = CliRunner().invoke(rate, ["shadow", "--period", month])
            done = CliRunner().invoke(rate, ["run", "--period", month, "--as-of", "2200-01-01"])
            assert (shadowed.exit_code, done.exit_code) == (0, 0), shadowed.output + done.output
            so_many += "as it was closed, to the byte" in done.output
        return so_many

    began = first.replace(day=1, hour=0) - timedelta(days=9)
    house.publish(BOOK, now=began)
    house.customer("acme", now=began)
    when = f"{first:%Y-%m}-10T00:00:00"
    for name, quantity in (("retracted", "1000"), ("amended", "3000"), ("kept", "500")):
        house.event("acme", "llm.tokens.input", quantity, when, event_id=name, source="meterhouse")
    closed(names[0], 2000)
    # The collector takes the copy, and holds it as a conflict.
    copy = {
        "event_id": "amended",
        "source": "meterhouse",
        "reason": "conflict",
        "received": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}",
    }
    monkeypatch.setattr(
        event_commands, "_send", lambda *_: house.event("acme", "llm.tokens.input", "2000", when, **copy)
    )
    decide("retract", "--event", "retracted")
    decide("amend", "amended", "2000")
    assert came_out_again() == 1
    closed(names[1], 3000)
    assert came_out_again() == 2
    commands = {row["decided_at"]: row["decision_id"] for row in house.rows(tables.decisions)}
    assert len(commands) == 2
    for decision in commands.values():
        decide("revert", decision[:12], "--whole")
    assert came_out_again() == 2
    closed(names[2], 4000)
    assert came_out_again() == 3
    # 4,500 at 2.00 per 1,000; 2,000 less; and 2,000 more.
    totals = {f"{row['period_start']:%Y-%m}": row["total_minor"] for row in house.rows(tables.ratings)}
    assert [totals[month] for month in names] == [900, -400, 400]


def test_of_a_month_that_was_open_it_is_said_that_corrections_of_closed_ones_are_not_on_it(sqlite_house):
    house = sqlite_house
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-10-01"))
    house.collected("2026-11-05T00:00:00")
    house.event("acme", "llm.tokens.input", "3000", "2026-10-10T00:00:00")
    house.at(at("2026-11-05"))
    house.close("2026-10")
    house.event("acme", "llm.tokens.input", "2000", "2026-11-02T00:00:00")
    house.event("acme", "llm.tokens.input", "700", "2026-10-11T00:00:00", received="2026-11-08T00:00:00")
    house.collected("2026-11-20T00:00:00", position=2000)
    house.at(at("2026-11-20"))
    house.run("2026-11")
    # 2,000 at 2.00 per 1,000; and 1.40 that October was short of.
    assert [row["total_minor"] for row in house.rows(tables.ratings) if row["closed_at"] is None] == [540]
    said = "open then, told without corrections of what was closed by then"
    assert told(house, "2026-11", at("2026-11-20")) == [(said, 400)]
    assert told(house, "2026-10", at("2026-11-04")) == [("open then", 600)]
