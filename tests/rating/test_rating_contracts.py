"""Agreements through SQL and the commands, rated by real runs; trials; two months of fees in advance."""

import json
from datetime import datetime
from decimal import Decimal

import pytest
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_rating import starters
from meterhouse_rating.contract_commands import contracts as commands
from meterhouse_rating.price_commands import prices
from meterhouse_store import agreements
from meterhouse_store.registry import RegistryError
from meterhouse_store.tables import rated_lines, ratings, unrated_usage

BOOK = """
book: agreed
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
rates: [{from: USD, to: EUR, rate: 0.5, valid_from: 2026-01-01}]
plans:
  pay:
    components:
      seats: {model: recurring, price: 31.00, quantity: seats, pay: advance}
      in: {model: per_unit, metric: input, price: 1.00}
  try:
    trial_days: 10
    components:
      fee: {model: recurring, price: 31.00}
      in: {model: per_unit, metric: input, price: 1.00}
addons:
  desk: {title: Desk, components: {fee: {model: recurring, price: 31.00}}}
"""


def lines_of(house, period="2026-10"):
    month = {row["rating_id"] for row in house.rows(ratings) if row["period_start"].strftime("%Y-%m") == period}
    found = [row for row in house.rows(rated_lines) if row["rating_id"] in month]
    return [(row["description"], row["amount_minor"]) for row in sorted(found, key=lambda row: row["position"])]


def test_fees_in_advance_go_on_from_month_to_month_and_make_up_for_what_changed(house):
    house.publish(BOOK)
    house.customer("acme", valid_from=at("2026-09-01"))
    house.collected()
    engine = house.world.engine
    agreements.add_quantity(engine, "test", "acme", "seats", Decimal(1), valid_from=at("2026-09-01"))
    house.run("2026-09")
    house.close("2026-09")
    assert lines_of(house, "2026-09") == [
        ("seats (2026-09-01..2026-10-01)", 3100),
        ("seats (2026-10-01..2026-11-01)", 3100),
    ]
    agreements.add_quantity(engine, "test", "acme", "seats", Decimal(2), valid_from=at("2026-10-22"))
    house.close("2026-10")
    # One seat more for 10 of 31 days; two for November
    assert lines_of(house, "2026-10") == [
        ("seats (2026-10-01..2026-11-01)", 1000),
        ("seats (2026-11-01..2026-12-01)", 6200),
    ]


def test_a_run_with_add_on_own_price_discount_and_conversion(house):
    house.publish(BOOK)
    house.customer("acme", currency="EUR", valid_from=at("2026-09-01"))
    engine = house.world.engine
    agreements.add_quantity(engine, "test", "acme", "seats", Decimal(0), valid_from=at("2026-09-01"))
    agreements.add_addon(engine, "test", "acme", "desk", valid_from=at("2026-10-22"))
    source = "{model: per_unit, metric: input, price: 3.00}"
    agreements.add_override(engine, "test", "acme", "in", source, valid_from=at("2026-10-01"))
    agreements.add_discount(
        engine,
        "test",
        "acme",
        "Early bird",
        percent=Decimal(10),
        components=["in"],
        months=1,
        valid_from=at("2026-10-05"),
    )
    house.event("acme", "llm.tokens.input", "20", "2026-10-02T00:00:00")
    house.collected()
    house.run()
    # 60.00 USD are 30.00 EUR; the desk 10 of 31 days: 10.00 USD are 5.00 EUR; 10 % of 30.00
    assert [line for line in lines_of(house) if line[1]] == [("in", 3000), ("Desk", 500), ("Early bird", -300)]
    assert house.rows(ratings)[0]["currency"] == "EUR"
    before = house.rows(ratings)
    house.run()
    assert house.rows(ratings) == before  # nothing changed, nothing is written
    discount = agreements.discounts(engine, "test")[0]
    agreements.end(engine, "test", discount.agreement_id, discount.valid_from)
    house.run()
    assert [line for line in lines_of(house) if line[1]] == [("in", 3000), ("Desk", 500)]


def test_what_was_used_in_a_trial_is_free_and_listed_and_fees_begin_after_it(house):
    house.publish(BOOK)
    house.customer("acme", plan="try", valid_from=at("2026-10-02"))
    for day, quantity in (("03", "5"), ("11", "7"), ("12", "11")):
        house.event("acme", "llm.tokens.input", quantity, f"2026-10-{day}T00:00:00")
    house.collected()
    house.run()
    # The trial ends on the 12th at 00:00: 20 of 31 days of the fee, and what was used from then on
    assert lines_of(house) == [("fee", 2000), ("in", 1100)]
    (left,) = house.rows(unrated_usage)
    assert (left["reason"], left["quantity"]) == ("unbilled_trial", Decimal(12))


def test_an_agreement_that_does_not_fit_leaves_the_customer_unrated_with_what_to_do(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme")
    agreements.add_addon(house.world.engine, "test", "acme", "gone", valid_from=at("2026-10-01"))
    house.event("acme", "llm.tokens.input", "5", "2026-10-02T00:00:00")
    house.collected()
    house.run()
    (left,) = house.rows(unrated_usage)
    assert "the add-on gone, which the price book does not have" in left["hint"]


def test_nothing_is_agreed_into_a_closed_period(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme", valid_from=at("2026-09-01"))
    house.collected()
    engine = house.world.engine
    made = agreements.add_addon(engine, "test", "acme", "desk", valid_from=at("2026-09-01"))
    house.close("2026-09")
    with pytest.raises(RegistryError, match=r"up to 2026-10-01T00:00:00\+00:00 is closed"):
        agreements.add_quantity(engine, "test", "acme", "seats", Decimal(5), valid_from=at("2026-09-30"))
    with pytest.raises(RegistryError, match="is closed: end it then or later"):
        agreements.end(engine, "test", made.agreement_id[:12], at("2026-09-20"))
    # The same again is no change, and allowed.
    assert agreements.add_addon(engine, "test", "acme", "desk", valid_from=at("2026-09-01")) == made
    with pytest.raises(RegistryError, match="another agreement on desk"):
        agreements.add_addon(engine, "test", "acme", "desk", quantity=Decimal(2), valid_from=at("2026-09-01"))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "a percentage or an amount"),
        ({"percent": Decimal(101)}, "101 percent"),
        ({"amount": Decimal(0)}, "an amount of 0"),
        ({"amount": Decimal("1e24")}, "a number of 25 digits"),
        ({"percent": Decimal(f"1.{'3' * 24}")}, "a number of 25 digits"),
        ({"percent": Decimal(1), "months": 0}, "0 months"),
    ],
)
def test_a_discount_that_is_none_is_refused(sqlite_house, values, why):
    sqlite_house.customer("acme")
    with pytest.raises(RegistryError, match=why):
        agreements.add_discount(
            sqlite_house.world.engine,
            "test",
            "acme",
            "x",
            valid_from=datetime.fromisoformat("2026-01-01T00:00+00:00"),
            **values,
        )


@pytest.mark.parametrize("number", ["1e24", "1e400", "1e-24", "0." + "1" * 24])
def test_how_many_is_a_number_that_can_be_multiplied_exactly(sqlite_house, number):
    sqlite_house.customer("acme")
    about = sqlite_house.world.engine, "test", "acme"
    for add in (
        lambda many: agreements.add_quantity(*about, "seats", many, valid_from=at("2026-01-01")),
        lambda many: agreements.add_addon(*about, "desk", quantity=many, valid_from=at("2026-01-01")),
    ):
        with pytest.raises(RegistryError, match="digits: write one of at most 24"):
            add(Decimal(number))
        assert add(Decimal("9" * 23 + ".5")).quantity == Decimal("9" * 23 + ".5")


def test_the_commands_record_show_and_end_what_was_agreed(sqlite_house, command_environment, tmp_path, monkeypatch):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme")
    own = tmp_path / "own.yaml"
    own.write_text("model: per_unit\nmetric: input\nprice: 0.50\n")
    for name, value in command_environment(house).items():
        monkeypatch.setenv(name, value)

    def contracts(*words):
        done = CliRunner().invoke(commands, [*words])
        return done.exit_code, done.output

    code, shown = contracts("add-on", "acme", "desk", "--quantity", "2", "--from", "2026-12-01")
    assert (code, shown.partition(" (")[0]) == (0, "acme has 2 of the add-on desk from 2026-12-01 on")
    assert contracts("price", "acme", "in", str(own), "--from", "2026-12-01")[0] == 0
    assert contracts("discount", "acme", "Launch", "--percent", "10", "--months", "3", "--component", "in")[0] == 0
    assert contracts("quantity", "acme", "seats", "5", "--from", "2026-12-01") == (
        0,
        "acme has 5 seats from 2026-12-01 on.\n",
    )
    found = json.loads(contracts("show", "acme", "--json")[1])
    assert [sorted({"addon", "source", "percent", "quantity"} & set(it)) for it in found] == [
        ["addon", "quantity"],
        ["source"],
        ["percent"],
        ["quantity"],
    ]
    assert contracts("end", found[0]["agreement_id"][:12], "--on", "2027-01-01")[0] == 0
    assert "2026-12-01..2027-01-01" in contracts("show", "acme")[1]
    assert contracts("add-on", "acme", "gone") == (1, "The price book has no add-on gone (it has desk).\n")
    own.write_text("model: per_unit\nmetric: input\n")
    assert contracts("price", "acme", "in", str(own))[0] == 1
    assert contracts("end", "zzz")[0] == 1


def test_the_starter_books_are_listed_printed_and_published(sqlite_house, command_environment, monkeypatch):
    for name, value in command_environment(sqlite_house).items():
        monkeypatch.setenv(name, value)
    listed = CliRunner().invoke(prices, ["starters"])
    assert "seats-plus-usage" in listed.output
    assert CliRunner().invoke(prices, ["starters", "markup"]).output == starters.text("markup")
    assert CliRunner().invoke(prices, ["starters", "gone"]).exit_code == 2
    published = CliRunner().invoke(prices, ["publish", "--starter", "markup"])
    assert (published.exit_code, published.output.partition(":")[0]) == (0, "Price book markup, version 1, published")
