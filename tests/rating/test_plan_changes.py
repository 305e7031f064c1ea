"""A plan that changes within a month, from the change to the month's lines; every amount is worked out by hand."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import commands
import pytest
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_rating import credit_changes, outlook, priced_parts, shadow
from meterhouse_rating.as_of import rate_as_of
from meterhouse_rating.book import BookRefused, parse
from meterhouse_rating.commands import rate
from meterhouse_rating.credits import Grant
from meterhouse_rating.evidence import make
from meterhouse_rating.periods import parse as parse_period
from meterhouse_store import agreements, registry, tables

BOOK = """
book: test
currency: USD
plan_changes: {apply: at_once}
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  people: {unit: conversation, meters: [agent.conversations], aggregate: unique, of: conversation_id}
plans:
  small:
    components:
      fee: {model: recurring, price: 31.00}
      in: {model: included, metric: input, included: 100, price: 1.00}
      talk: {model: per_unit, metric: people, price: 1.00}
  big:
    components:
      fee: {model: recurring, price: 62.00}
      tokens: {model: included, metric: input, included: 1000, price: 0.50}
      talk: {model: per_unit, metric: people, price: 1.00}
"""
WAITING = BOOK.replace("plan_changes: {apply: at_once}\n", "")
FEES = """
book: fees
currency: USD
plan_changes: {apply: at_once}
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  small: {components: {fee: {model: recurring, price: %s}, in: {model: per_unit, metric: input, price: 1.00}%s}}
  big: {components: {fee: {model: recurring, price: %s}, in: {model: per_unit, metric: input, price: 1.00}}}
"""


def moved(house, when="2026-10-11", plan="big", **more):
    """acme is on the small plan since September, and on another one from a day of October on."""
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"), **more)
    house.customer("acme", plan=plan, valid_from=at(when))
    house.collected()


def used(house, quantity, day, **more):
    house.event("acme", "llm.tokens.input", quantity, f"{day}T00:00:00", **more)


def parts(house, month="2026-10"):
    """The month's ratings in their order: plan, end, and the description and amount of each line."""
    found = []
    for rating in sorted(house.rows(tables.ratings), key=lambda row: row["period_start"]):
        if f"{rating['period_start']:%Y-%m}" != month:
            continue
        lines = [row for row in house.rows(tables.rated_lines) if row["rating_id"] == rating["rating_id"]]
        lines.sort(key=lambda row: row["position"])
        told = [(line["description"].partition(" (")[0], line["amount_minor"]) for line in lines]
        found.append((rating["plan"], f"{rating['period_end']:%m-%d}", told))
    return found


def test_an_upgrade_cuts_the_month_and_each_part_is_priced_by_its_own_plan(house):
    house.publish(BOOK)
    moved(house)
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    expected = [
        # 10 of 31 days of 31.00; 150 used, 100 of them included
        ("small", "10-11", [("fee", 1000), ("in", 5000)]),
        # 21 of 31 days of 62.00; 1,050 used, 1,000 of them included
        ("big", "11-01", [("fee", 4200), ("tokens", 2500)]),
    ]
    for _ in range(2):
        house.run("2026-10")
        assert parts(house) == expected
    house.close("2026-10")
    house.close("2026-10")
    house.run(None)
    assert parts(house) == expected
    states = {(row["period_start"], row["state"]) for row in house.rows(tables.ratings)}
    assert (at("2026-10-01"), "closed") in states and (at("2026-10-11"), "closed") in states


def test_where_the_book_says_so_the_new_plans_included_usage_goes_on_from_the_old_one(sqlite_house):
    house = sqlite_house
    house.publish(BOOK.replace("at_once}", "at_once, usage: carry_on}"))
    moved(house)
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    house.run("2026-10")
    # 150 of the 1,000 are used up: 850 of 1,050 are included, 200 cost 0.50
    assert parts(house)[1] == ("big", "11-01", [("fee", 4200), ("tokens", 10000)])


def test_a_dry_run_of_a_month_in_parts_says_what_the_run_makes_of_it(sqlite_house):
    house = sqlite_house
    house.publish(BOOK.replace("at_once}", "at_once, usage: carry_on}"))
    moved(house)
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    said = [it.outcome.rated.total_minor for it in house.run(dry_run=True) if it.outcome]
    assert said == [1000 + 5000, 4200 + 10000]
    house.run("2026-10")
    used(house, "10", "2026-10-06")  # what is stored is not what the first part comes to any more
    said = [it.outcome.rated.total_minor for it in house.run(dry_run=True) if it.outcome]
    assert said == [1000 + 6000, 4200 + 10500]


def test_a_month_in_parts_as_it_was_known_goes_on_from_part_to_part_also_where_it_was_open(sqlite_house):
    """With 55.00 of credits, of which the first part takes 50.00: the second has 5.00 of them."""
    house = sqlite_house
    house.publish(BOOK.replace("at_once}", "at_once, usage: carry_on}"), now=at("2026-01-01"))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="big", valid_from=at("2026-10-11"), now=at("2026-10-01"))
    grant = Grant("", "promotional", 5500, at("2026-09-01"))
    said = {"reference": "gift", "who": "ann", "why": "sorry", "now": at("2026-09-05")}
    credit_changes.grant(house.world.engine, "test", "acme", grant, None, **said)
    house.collected()
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    for _ in range(2):
        known = rate_as_of(house.world, "2026-10", None, at("2026-11-05"))
        assert [it.outcome.rated.total_minor for it in known] == [1000, 4200 + 10000 - 500]
        house.run("2026-10")
        assert [sum(amount for _, amount in lines) for _, _, lines in parts(house)] == [1000, 13700]


def test_what_customers_see_of_a_month_in_parts_goes_on_from_part_to_part_before_any_run(sqlite_house):
    house = sqlite_house
    house.publish(BOOK.replace("at_once}", "at_once, usage: carry_on}"))
    moved(house, "2026-11-11")
    used(house, "150", "2026-11-05")
    used(house, "1050", "2026-11-20")
    # Fees: 10 of 30 days of 31.00, 20 of 62.00. 50 cost 1.00; of 1,050 850 are included, 200 cost 0.50.
    seen = outlook.look(house.world, "acme")
    assert [it.rated.total_minor for it in seen.outcomes] == [1033 + 5000, 4133 + 10000]
    begun = priced_parts.begin(house.world, "acme", parse_period("2026-11", "UTC"))
    priced = begun.parts(begun.ask())
    assert [sum(line["amount_minor"] for line in it.lines) for it in priced] == [1033 + 5000, 4133 + 10000]


def test_a_downgrade_is_the_same_the_other_way_round(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme", plan="big", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="small", valid_from=at("2026-10-16"))
    house.collected()
    house.run("2026-10")
    # 15 of 31 days of 62.00, 16 of 31 days of 31.00
    assert parts(house) == [("big", "10-16", [("fee", 3000)]), ("small", "11-01", [("fee", 1600)])]


def test_metrics_that_are_no_sums_are_measured_in_each_part_by_itself(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    moved(house)
    for day, name in (("02", "a"), ("03", "b"), ("20", "b"), ("21", "c"), ("22", "c")):
        house.event("acme", "agent.conversations", "1", f"2026-10-{day}T00:00:00", conversation_id=name)
    house.run("2026-10")
    assert [lines[-1] for _, _, lines in parts(house)] == [("talk", 200), ("talk", 200)]


def test_paid_in_advance_the_old_plan_gives_back_what_the_new_one_takes(house):
    house.publish(FEES % ("31.00, pay: advance", "", "62.00, pay: advance"))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.collected()
    house.run("2026-09")
    assert parts(house, "2026-09") == [("small", "10-01", [("fee", 3100), ("fee", 3100)])]  # September and October
    house.close("2026-09")
    house.customer("acme", plan="big", valid_from=at("2026-10-11"))
    house.close("2026-10")
    assert parts(house) == [
        ("small", "10-11", [("fee", -2100)]),  # 10.00 are due for ten days, 31.00 were paid
        ("big", "11-01", [("fee", 4200), ("fee", 6200)]),  # 21 of 31 days of 62.00, and November
    ]
    house.run("2026-11")
    assert parts(house, "2026-11") == [("big", "12-01", [("fee", 6200)])]  # December; November is paid


@pytest.mark.sampled(2)
@pytest.mark.parametrize("change", [None, "2026-10-11"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_parts_of_a_month_come_to_its_fee_whichever_is_closed_first(sqlite_house, change, order):
    house = sqlite_house
    house.publish(FEES % ("31.00", "", "62.00"))
    house.customer("acme", plan="small", valid_from=at("2026-10-01"), now=at("2026-10-01"))
    if change:
        house.customer("acme", plan="big", valid_from=at(change))
    house.collected()
    spans = ["2026-10-01..2026-10-11", "2026-10-11..2026-10-21", "2026-10-21..2026-11-01"]
    for place in order:
        house.close(spans[place])
    # 10, 10 and 11 of 31 days of 31.00, or from the change on of 62.00
    times = 2 if change else 1
    assert [lines for _, _, lines in parts(house)] == [
        [("fee", 1000)],
        [("fee", times * 1000)],
        [("fee", times * 1100)],
    ]


def test_a_discount_of_so_much_a_month_is_taken_off_once_and_one_of_a_percentage_of_each_part(
    sqlite_house, tmp_path, command_environment
):
    """Of 10.00 a month 8.00 are taken off the first part, which comes to no more, and 2.00 off the second."""
    house = sqlite_house
    house.publish(FEES % ("0.00", "", "0.00"))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="big", valid_from=at("2026-10-11"), now=at("2026-10-01"))
    house.collected()
    used(house, "16", "2026-10-05")
    used(house, "100", "2026-10-20")
    for name, off in (("A half", {"percent": Decimal(50)}), ("Coupon", {"amount": Decimal(10)})):
        since = at("2026-10-01") if name == "A half" else at("2026-10-02")
        agreements.add_discount(house.world.engine, "test", "acme", name, valid_from=since, now=at("2026-10-02"), **off)
    expected = [
        [("fee", 0), ("in", 1600), ("A half", -800), ("Coupon", -800)],
        [("fee", 0), ("in", 10000), ("A half", -5000), ("Coupon", -200)],
    ]
    said = [it.outcome.rated.total_minor for it in house.run(dry_run=True) if it.outcome]
    assert said == [0, 4800]
    for _ in range(2):
        house.run("2026-10")
        assert [lines for _, _, lines in parts(house)] == expected
    house.close("2026-10")
    assert [lines for _, _, lines in parts(house)] == expected
    (coupon,) = [row for row in house.rows(tables.rated_lines) if row["amount_minor"] == -200]
    done = CliRunner().invoke(rate, ["explain", coupon["line_id"]], env=command_environment(house))
    assert done.exit_code == 0 and "Of the amount for this month 8 USD were taken off before." in done.stdout
    whole = make(house.world, "acme", parse_period("2026-10", "UTC"), tmp_path / "whole.zip")
    assert whole.verified and not any("discounts" in it for it in whole.findings.carried)
    second = make(house.world, "acme", parse_period("2026-10-11..2026-11-01", "UTC"), tmp_path / "second.zip")
    assert second.verified
    assert "what discounts of so much a month took off in other parts of the month" in second.findings.carried


@pytest.mark.parametrize("off", [{"percent": Decimal(50)}, {"amount": Decimal(40)}])
def test_a_minimum_counts_of_earlier_parts_of_its_month_what_discounts_before_it_left(sqlite_house, off):
    """Of 60.00 and 20.00 half is taken off, or 40.00 a month: 40.00 are left, and 60.00 missing of 100.00."""
    house = sqlite_house
    house.publish(FEES % ("0.00", ", least: {model: minimum, amount: 100.00, of: [in]}", "0.00"))
    house.customer("acme", plan="small", valid_from=at("2026-10-01"), now=at("2026-10-01"))
    house.collected()
    used(house, "60", "2026-10-05")
    used(house, "20", "2026-10-20")
    since = {"valid_from": at("2026-10-01"), "now": at("2026-10-01")}
    agreements.add_discount(house.world.engine, "test", "acme", "Less", before_minimum=True, **since, **off)
    house.close("2026-10-01..2026-10-11")
    house.close("2026-10-11..2026-11-01")
    first, second = [dict(lines) for _, _, lines in parts(house)]
    assert (first["in"] + first["Less"] + second["in"] + second.get("Less", 0), second["least"]) == (4000, 6000)


def test_a_minimum_that_was_trued_up_with_the_later_part_first_is_given_back_as_far_as_the_earlier_reaches_it(
    sqlite_house, tmp_path
):
    """20.00 of 100.00 when the later part is closed, so 80.00 are missing; with 60.00 before it only 20.00 are."""
    house = sqlite_house
    house.publish(FEES % ("0.00", ", least: {model: minimum, amount: 100.00}", "0.00"))
    house.customer("acme", plan="small", valid_from=at("2026-10-01"), now=at("2026-10-01"))
    house.collected()
    used(house, "60", "2026-10-05")
    used(house, "20", "2026-10-20")
    house.close("2026-10-11..2026-11-01")
    house.close("2026-10-01..2026-10-11")
    first, second = [dict(lines) for _, _, lines in parts(house)]
    assert (second["in"], second["least"], first["in"], first["least"]) == (2000, 8000, 6000, -6000)
    assert make(house.world, "acme", parse_period("2026-10", "UTC"), tmp_path / "pack.zip").verified


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("off", "sept", "back"),
    [
        # 31.00 were half paid: of 21 of 31 days 10.50 come back.
        ({"percent": Decimal(50)}, -3100, -1050),
        # Nobody gets back what a coupon paid in full.
        ({"percent": Decimal(100)}, -6200, 0),
        # 15.50 of 62.00 are 7.75 of the 31.00 in advance: 21 of 31 of the 23.25 that were paid.
        ({"amount": Decimal("15.50")}, -1550, -1575),
    ],
)
def test_what_comes_back_of_an_advance_is_what_was_paid_after_discounts(sqlite_house, tmp_path, off, sept, back):
    house = sqlite_house
    house.publish(FEES % ("31.00, pay: advance", "", "62.00, pay: advance"), now=at("2026-01-01"))
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    since = {"valid_from": at("2026-09-01"), "now": at("2026-09-01"), "months": 1}
    agreements.add_discount(house.world.engine, "test", "acme", "Less", **since, **off)
    house.collected()
    house.close("2026-09")
    assert parts(house, "2026-09") == [("small", "10-01", [("fee", 3100), ("fee", 3100), ("Less", sept)])]
    house.customer("acme", plan="big", valid_from=at("2026-10-11"), now=at("2026-10-01"))
    house.close("2026-10")
    assert parts(house) == [("small", "10-11", [("fee", back)]), ("big", "11-01", [("fee", 4200), ("fee", 6200)])]
    assert make(house.world, "acme", parse_period("2026-10", "UTC"), tmp_path / "pack.zip").verified


def test_seats_that_change_in_the_month_are_counted_at_the_price_of_the_plan_they_were_on(sqlite_house):
    house = sqlite_house
    house.publish(FEES % ("31.00, quantity: seats", "", "62.00, quantity: seats"))
    moved(house)
    for number, day in (("2", "2026-09-01"), ("5", "2026-10-06"), ("3", "2026-10-21")):
        agreements.add_quantity(house.world.engine, "test", "acme", "seats", Decimal(number), valid_from=at(day))
    house.run("2026-10")
    # small, 1.00 a seat and day: 5 days of 2 and 5 of 5; big, 2.00: 10 days of 5 and 11 of 3
    assert parts(house) == [("small", "10-11", [("fee", 3500)]), ("big", "11-01", [("fee", 16600)])]


def test_a_minimum_is_trued_up_where_its_plan_ends_for_the_days_that_it_held(sqlite_house):
    house = sqlite_house
    house.publish(FEES % ("31.00", ", least: {model: minimum, amount: 310.00}", "62.00"))
    moved(house)
    used(house, "40", "2026-10-05")
    house.run("2026-10")
    # 10 of 31 days of 310.00 are 100.00, of which fee and usage come to 50.00
    assert parts(house) == [
        ("small", "10-11", [("fee", 1000), ("in", 4000), ("least", 5000)]),
        ("big", "11-01", [("fee", 4200)]),
    ]


@pytest.mark.parametrize(
    ("when", "month", "price", "first", "second"),
    [
        # October has 31 days and an hour in Berlin: 2,682,000 s. From its start to the 26th, 25 days and the hour.
        ("2026-10-25T23:00:00", "2026-10", "26820.00, prorate: second", 2163600, 518400),
        ("2026-10-25T23:00:00", "2026-10", "31.00", 2500, 600),
        # March has an hour less: 2,674,800 s. From its start to the 30th, 29 days less the hour.
        ("2026-03-29T22:00:00", "2026-03", "26748.00, prorate: second", 2502000, 172800),
        ("2026-03-29T22:00:00", "2026-03", "31.00", 2900, 200),
        # At noon: by the day, it belongs to the plan that holds at its end.
        ("2026-10-11T10:00:00", "2026-10", "31.00", 1000, 2100),
    ],
)
def test_days_of_23_and_25_hours_are_days_and_the_parts_of_a_fee_are_the_fee(
    sqlite_house, when, month, price, first, second
):
    house = sqlite_house
    house.publish(FEES % (price, "", price))
    zone = {"time_zone": "Europe/Berlin", "now": at("2026-01-01")}
    house.customer("acme", plan="small", valid_from=at("2026-01-01"), **zone)
    house.customer("acme", plan="big", valid_from=at(when))
    house.collected()
    house.run(month)
    of_month = [row for row in house.rows(tables.ratings) if row["period_start"] >= at(f"{month}-01T00:00") - HOURS]
    assert sorted((row["plan"], row["total_minor"]) for row in of_month) == [("big", second), ("small", first)]


HOURS = at("2026-01-01T03:00") - at("2026-01-01")


def test_a_trial_that_an_upgrade_ends_is_paid_for_from_that_day(sqlite_house):
    house = sqlite_house
    house.publish(BOOK.replace("  small:\n", "  small:\n    trial_days: 14\n"))
    house.customer("acme", plan="small", valid_from=at("2026-10-02"), now=at("2026-10-02"))
    house.customer("acme", plan="big", valid_from=at("2026-10-07"))
    house.collected()
    used(house, "500", "2026-10-05")  # in the trial
    used(house, "1200", "2026-10-08")
    house.run("2026-10")
    # 25 of 31 days of 62.00; 200 of 1,200 are not included
    assert [part for part in parts(house) if part[2]] == [("big", "11-01", [("fee", 5000), ("tokens", 10000)])]
    assert {row["reason"] for row in house.rows(tables.unrated_usage)} == {"unbilled_trial"}


def test_nothing_changes_in_a_closed_period_afterwards_and_what_is_told_in_time_is_made_up_for(house):
    """So the fees of a closed period need no correction: nothing that they depend on can change."""
    house.publish(FEES % ("31.00, quantity: seats, pay: advance", "", "62.00, quantity: seats, pay: advance"))
    house.customer("acme", plan="small", valid_from=at("2026-10-01"), now=at("2026-10-01"))
    agree = {"valid_from": at("2026-10-01")}
    agreements.add_quantity(house.world.engine, "test", "acme", "seats", Decimal(2), **agree)
    house.collected()
    house.close("2026-10")
    assert parts(house) == [("small", "11-01", [("fee", 6200), ("fee", 6200)])]  # October, and November in advance
    for when in ("2026-09-15", "2026-10-11"):
        with pytest.raises(
            registry.RegistryError, match=r"up to 2026-11-01T00:00:00\+00:00 is closed: let the plan begin"
        ):
            house.customer("acme", plan="big", valid_from=at(when))
        with pytest.raises(registry.RegistryError, match=r"up to 2026-11-01T00:00:00\+00:00 is closed"):
            agreements.add_quantity(house.world.engine, "test", "acme", "seats", Decimal(9), valid_from=at(when))
    # A third seat from 16 November, told before the month is closed: 15 of 30 days of 31.00, and December for three.
    agreements.add_quantity(house.world.engine, "test", "acme", "seats", Decimal(3), valid_from=at("2026-11-16"))
    house.run(None)
    assert parts(house) == [("small", "11-01", [("fee", 6200), ("fee", 6200)])]
    assert parts(house, "2026-11") == [("small", "12-01", [("fee", 1550), ("fee", 9300)])]


def test_a_change_that_is_taken_back_makes_one_month_of_the_two_parts(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    moved(house, "2026-11-25")
    used(house, "150", "2026-11-05")
    house.run("2026-11")
    assert [plan for plan, _, _ in parts(house, "2026-11")] == ["small", "big"]
    with house.world.engine.begin() as connection:
        connection.execute(tables.contracts.delete().where(tables.contracts.c.plan == "big"))
    house.run("2026-11")
    assert [(plan, end) for plan, end, _ in parts(house, "2026-11")] == [("small", "12-01")]


def test_without_the_key_a_change_waits_for_the_next_month(sqlite_house):
    house = sqlite_house
    house.publish(WAITING)
    moved(house)
    house.run("2026-10")
    house.run("2026-11")
    assert parts(house) == [("small", "11-01", [("fee", 3100)])]
    assert parts(house, "2026-11") == [("big", "12-01", [("fee", 6200)])]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_parts_after_a_change_that_waits_are_of_the_months_plan_whichever_is_closed_first(
    sqlite_house, tmp_path, order
):
    """31 days of 31.00, and of 200 tokens 100 are included; all of it on small, also from the 16th on."""
    house = sqlite_house
    house.publish(WAITING)
    moved(house, "2026-10-16")
    for quantity, day in (("110", "05"), ("40", "12"), ("20", "16"), ("30", "25")):
        used(house, quantity, f"2026-10-{day}")
    spans = ("2026-10-01..2026-10-11", "2026-10-11..2026-10-16", "2026-10-16..2026-10-21", "2026-10-21..2026-11-01")
    for day, place in enumerate(order, 5):
        house.at(at(f"2026-11-0{day}"))
        house.close(spans[place])
    found = parts(house)
    assert [plan for plan, _, _ in found] == ["small"] * 4
    assert [dict(lines)["fee"] for _, _, lines in found] == [1000, 500, 500, 1100]
    assert sum(dict(lines).get("in", 0) for _, _, lines in found) == 10000
    house.run("2026-11")
    assert parts(house, "2026-11") == [("big", "12-01", [("fee", 6200)])]
    pack = make(house.world, "acme", parse_period("2026-10", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    assert shadow.again(house.world, "2026-10").differences == []


def test_a_customer_that_began_within_the_month_is_on_its_first_plan_to_the_months_end(sqlite_house):
    house = sqlite_house
    house.publish(WAITING)
    house.customer("acme", plan="small", valid_from=at("2026-10-06"), now=at("2026-10-06"))
    house.customer("acme", plan="big", valid_from=at("2026-10-16"))
    house.collected()
    house.run("2026-10-01..2026-10-16")
    house.run("2026-10-16..2026-11-01")
    assert parts(house) == [("small", "10-16", [("fee", 1000)]), ("small", "11-01", [("fee", 1600)])]


def test_what_is_left_of_a_month_after_a_part_that_is_closed_beyond_the_change_is_due_on_the_months_plan(sqlite_house):
    house = sqlite_house
    house.publish(WAITING)
    moved(house, "2026-10-16")
    house.close("2026-10-01..2026-10-21")
    house.run(None)
    assert parts(house) == [("small", "10-21", [("fee", 2000)]), ("small", "11-01", [("fee", 1100)])]


def test_parts_after_a_change_that_waits_through_the_commands(sqlite_house, command_environment, tmp_path):
    house = sqlite_house
    (tmp_path / "book.yaml").write_text(WAITING)
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    house.collected()
    for told in (
        ("prices", "publish", "book.yaml"),
        ("customers", "add", "acme", "--plan", "small", "--valid-from", "2026-10-01"),
        ("customers", "add", "acme", "--plan", "big", "--valid-from", "2026-10-11"),
        ("rate", "run", "--period", "2026-10-01..2026-10-16"),
        ("rate", "run", "--period", "2026-10-16..2026-11-01"),
        ("rate", "status", "--period", "2026-10"),
    ):
        done = commands.run(told, env=command_environment(house), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "acme  2026-10-16..2026-11-01  plan small" in done.stdout


def test_usage_has_nothing_to_carry_on_where_a_change_waits():
    with pytest.raises(BookRefused, match=r"plan_changes: .*Add `apply: at_once`\."):
        parse(BOOK.replace("apply: at_once", "usage: carry_on"))


def test_a_whole_month_through_the_commands(sqlite_house, command_environment, tmp_path):
    house = sqlite_house
    environment = command_environment(house)
    (tmp_path / "book.yaml").write_text(BOOK)
    used(house, "150", "2026-10-05")
    used(house, "1050", "2026-10-20")
    house.collected()

    def meterhouse(*arguments):
        done = commands.run(arguments, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    meterhouse("prices", "publish", "book.yaml")
    meterhouse("customers", "add", "acme", "--plan", "small", "--valid-from", "2026-10-01")
    meterhouse("customers", "add", "acme", "--plan", "big", "--valid-from", "2026-10-11")
    meterhouse("rate", "run", "--period", "2026-10")
    shown = meterhouse("rate", "status", "--period", "2026-10")
    assert "acme  2026-10-01..2026-10-11  plan small" in shown and "acme  2026-10-11..2026-11-01  plan big" in shown
    found = json.loads(
        meterhouse("rate", "run", "--period", "2026-10", "--as-of", datetime.now(UTC).isoformat(), "--json")
    )
    assert [it["total"] for it in found["ratings"]] == ["60.00", "67.00"]
