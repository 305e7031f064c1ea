"""`meterhouse statement`: an open and a closed period, itemised, with all that is on no line."""

import csv
import io
import json
from decimal import Decimal

import pytest
from evidence_samples import furnished
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_rating.periods import parse
from meterhouse_rating.usage_statement import as_text, state
from meterhouse_rating.usage_statement_command import app
from meterhouse_store import registry, tables

BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
plans:
  pay:
    components:
      fee: {model: recurring, price: 31.00}
      in: {model: graduated, metric: input, tiers: [{up_to: 1000, price: 0.01}, {price: 0.005}]}
"""


def stated(house, month="2026-10"):
    customer = registry.customer(house.world.engine, "test", "acme")
    return state(house.world, customer, month, parse(month, customer.time_zone))


def test_an_open_period_is_itemised_by_all_that_is_known_and_nothing_is_written(house):
    house.publish(BOOK, now=at("2026-09-01"))
    house.customer("acme", now=at("2026-10-01"), valid_from=at("2026-10-01"))
    house.event("acme", "llm.tokens.input", "1500", "2026-10-02T00:00:00")
    house.event("acme", "llm.tokens.input", "70", "2026-10-03T00:00:00", status="failed")
    house.event("acme", "llm.tokens.output", "30", "2026-10-04T00:00:00")
    house.event("", "llm.tokens.input", "9", "2026-10-05T00:00:00", reason="customer_missing", raw_value="9")
    house.at(at("2026-10-20"))
    house.collected("2026-10-20T00:00:00")
    made = stated(house)
    assert made.exceptions
    told = as_text(made).splitlines()
    end = len(told) - len(made.missing) - 1
    assert told[:end] == [
        "Usage statement of acme, 2026-10-01..2026-11-01, time zone UTC",
        "",
        "2026-10-01..2026-11-01, plan pay, price book version 1, open: amounts can still change",
        "  fee        1  month   31.00  USD",
        "      1 at 31 USD from 2026-10-01 to 2026-11-01, 31/31 days: 31 USD.",
        "  in     1,500  tokens  12.50  USD",
        "      1,000 at 0.01 USD, beyond 0 up to 1,000: 10 USD (line 11).",
        "      500 at 0.005 USD, beyond 1,000: 2.5 USD (line 11).",
        "",
        "  Usage                 12.50  USD",
        "  Fees                  31.00  USD",
        "  Total                 43.50  USD",
        "",
        "Free of charge",
        "  llm.tokens.input  70  1 event  unbilled_status  the price book test does not bill calls that are failed",
        "",
        "Without a price (what to do)",
        "  llm.tokens.output  30  1 event  no_price  the plan pay (line 8) has no price for output: below `components` "
        "add a component with metric: output, or add llm.tokens.output to the plan's `unbilled`; then meterhouse "
        "prices publish FILE --valid-from 2026-10-01",
        "",
        "In suspense, not counted",
        "  1  rows of nobody  customer_missing  nobody says which customer it was for",
        "",
    ]
    assert told[end] == f"Not certain to be complete: 3 events of 1 stream, {len(made.missing)} to look at."
    assert told[end + 1 :] == [f"  {it}" for it in made.missing] and "  the period is not over" in told
    assert house.rows(tables.ratings) == [] and house.rows(tables.unrated_usage) == []


def test_a_month_of_which_a_part_is_closed_is_that_part_and_what_lies_beside_it(house):
    house.publish(BOOK.replace("      fee: {model: recurring, price: 31.00}\n", ""), now=at("2026-09-01"))
    house.customer("acme", now=at("2026-10-01"), valid_from=at("2026-10-01"))
    for day in ("05", "12", "25"):
        house.event("acme", "llm.tokens.input", "600", f"2026-10-{day}T00:00:00")
    house.at(at("2026-10-28"))
    house.collected("2026-10-28T00:00:00")
    house.close("2026-10-10..2026-10-20")
    made = stated(house)
    assert [(str(it["period_start"])[8:10], it["state"], it["total_minor"]) for it in made.ratings] == [
        ("01", "open", 500),  # beyond the 600 that are closed: 400 at 0.01, 200 at 0.005
        ("10", "closed", 600),
        ("20", "open", 300),  # 1,200 were before
    ]
    # It says what `rate run --due` comes to.
    house.run(None)
    october = [it for it in house.rows(tables.ratings) if it["period_start"] < at("2026-11-01")]
    assert made.totals == {"USD": sum(it["total_minor"] for it in october)}


@pytest.fixture(scope="module")
def closed(new_house, tmp_path_factory):
    """For looking only."""
    making = new_house("statement", tmp_path_factory.mktemp("statement"))
    yield furnished(next(making))
    making.close()


def test_a_closed_period_says_what_was_billed_in_every_form(closed, tmp_path, command_environment):
    def call(*arguments):
        done = CliRunner().invoke(app, ["acme", "--period", "2026-10", *arguments], env=command_environment(closed))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    code, said = call("--json", "--csv", str(tmp_path / "acme.csv"))
    document = json.loads(said)
    assert (code, document["totals"]) == (0, {"USD": "194.25"})
    (rating,) = document["ratings"]
    assert rating["sums"] == {
        "Usage": "31.70",
        "Fees": "97.01",
        "Minimum commitment": "71.29",
        "Discounts": "-0.75",
        "Credits applied": "-5.00",
    }
    assert "32 events of 1 stream" in document["completeness"]["verdict"]
    assert [(it["meter"], it["quantity"]) for it in document["free"]] == [
        ("llm.requests", "3"), ("llm.tokens.input", "999"),
    ]  # fmt: skip
    written = (tmp_path / "acme.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(written)))
    assert sum(Decimal(row["amount"]) for row in rows if row["amount"]) == Decimal("194.25")
    assert {row["section"] for row in rows} == {
        "usage", "flat", "minimum", "discount", "credit_applied", "free",
    }  # fmt: skip
    assert call("--csv", "-") == (0, written)
    assert ["Total", "194.25", "USD"] in [line.split() for line in call()[1].splitlines()]


def test_months_have_a_statement_each(closed, tmp_path, command_environment):
    def call(*arguments):
        told = ["acme", "--period", "2026-09..2026-10", *arguments]
        return CliRunner().invoke(app, told, env=command_environment(closed)).stdout

    document = json.loads(call("--json", "--csv", str(tmp_path / "both.csv")))["statements"]
    assert [it["period_start"][:7] for it in document] == ["2026-09", "2026-10"]
    assert document[1]["totals"] == {"USD": "194.25"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "both.csv").read_text())))
    october = [row["amount"] for row in rows if row["period_start"][:7] == "2026-10" and row["amount"]]
    assert sum(Decimal(amount) for amount in october) == Decimal("194.25")
    assert [line for line in call().splitlines() if line.startswith("Usage statement of acme")] == [
        "Usage statement of acme, 2026-09-01..2026-10-01, time zone UTC",
        "Usage statement of acme, 2026-10-01..2026-11-01, time zone UTC",
    ]


def test_a_stranger_is_refused(closed, command_environment):
    done = CliRunner().invoke(app, ["nobody", "--period", "2026-10"], env=command_environment(closed))
    assert (done.exit_code, done.output.startswith("nobody is not registered")) == (1, True)
