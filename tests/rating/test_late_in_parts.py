"""Late usage of an earlier part of a month: the month comes to what it would have come to in time; amounts by hand."""

from decimal import Decimal

import pytest
from rating_samples import at
from sqlalchemy import insert
from typer.testing import CliRunner

from meterhouse_rating import shadow
from meterhouse_rating.commands import rate
from meterhouse_rating.evidence import make
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_store import agreements, budgets, tables
from meterhouse_store.budgets import MONEY, UNITS, Budget
from meterhouse_store.sql import begin_write

BOOK = """
book: parts
currency: USD
plan_changes: {apply: at_once}
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_read]}
plans:
  small:
    components:
      in: {model: per_unit, metric: input, price: 1.00}
  big:
    components:
      in: {model: per_unit, metric: input, price: 0.50}
"""


def moved(house):
    """acme is on small, and from 11 October on on big."""
    house.publish(BOOK)
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    house.customer("acme", plan="big", valid_from=at("2026-10-11"), now=at("2026-10-01"))


def cap(house, limit, of=""):
    measure = UNITS if of else MONEY
    budget = Budget("acme", "most", measure, Decimal(limit), **({"of": of} if of else {}))
    budgets.set_budget(house.world.engine, "test", budget, who="ann", why="agreed", now=at("2026-10-02"))


def discount(house, **more):
    own = {"valid_from": at("2026-10-01"), "now": at("2026-10-01")}
    agreements.add_discount(house.world.engine, "test", "acme", "Launch", **own, **more)


def used(house, quantity, day, received=None, **more):
    told = {} if received is None else {"received": f"{received}T00:00:00"}
    house.event("acme", "llm.tokens.input", quantity, f"{day}T00:00:00", **told, **more)


def known(house, day):
    house.at(at(day))
    house.collected(f"{day}T00:00:00", position=int(day[2:4] + day[5:7] + day[8:]))


def closed(house, month, day):
    known(house, day)
    house.close(month)


def corrections(house, month="2026-11"):
    return [it for _, _, lines in full(house, month) for it in lines if "correction" in it[0]]


def full(house, month):
    """As `parts`, with the whole descriptions."""
    found = []
    for rating in sorted(house.rows(tables.ratings), key=lambda row: row["period_start"]):
        if f"{rating['period_start']:%Y-%m}" == month:
            lines = [row for row in house.rows(tables.rated_lines) if row["rating_id"] == rating["rating_id"]]
            lines.sort(key=lambda row: row["position"])
            found.append((rating["plan"], rating["state"], [(it["description"], it["amount_minor"]) for it in lines]))
    return found


FIRST, SECOND = "2026-10-01..2026-10-11", "2026-10-11..2026-11-01"
OVER = "Above the cap of 100 %s: not billed"


def of(what, period):
    return f"{what} (correction of {period})"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("cap_of", "expected"),
    [
        # 80.00 and 60 x 0.50 are 110.00, 10.00 above the cap. With 15 more in the first part, all of it is above it.
        ("", [(of("in", FIRST), 1500), (of(OVER % "USD", SECOND), -1500)]),
        # 20 of 60 tokens were billed in the second part, 5 are now: 7.50 less.
        ("input", [(of("in", FIRST), 1500), (of(OVER % "input", SECOND), -750)]),
        pytest.param(
            "llm.tokens.input",
            [(of("in", FIRST), 1500), (of(OVER % "llm.tokens.input", SECOND), -750)],
            marks=pytest.mark.long,
        ),
        pytest.param("llm.tokens.cache_read", [(of("in", FIRST), 1500)], marks=pytest.mark.long),
    ],
)
def test_a_cap_holds_over_the_month_when_usage_of_its_first_part_is_late(house, cap_of, expected):
    moved(house)
    used(house, "80", "2026-10-05")
    used(house, "60", "2026-10-20")
    cap(house, "100", cap_of)
    closed(house, "2026-10", "2026-11-05")
    used(house, "15", "2026-10-06", received="2026-11-08")
    known(house, "2026-11-21")
    house.run("2026-11")
    assert corrections(house) == expected
    closed(house, "2026-11", "2026-12-05")
    known(house, "2026-12-08")
    house.run("2026-12")
    assert corrections(house) == expected and corrections(house, "2026-12") == []
    assert prove(house.world.engine, "test").problems == []


def test_what_is_late_of_the_first_part_is_on_the_second_which_has_what_is_left_of_the_cap(
    sqlite_house, tmp_path, command_environment
):
    """80.00 are closed; 15.00 are late, and the second part, 60 x 0.50, has the 5.00 that are left of 100.00."""
    house = sqlite_house
    moved(house)
    used(house, "80", "2026-10-05")
    used(house, "60", "2026-10-20")
    cap(house, "100")
    closed(house, FIRST, "2026-11-02")
    used(house, "15", "2026-10-06", received="2026-11-03")
    known(house, "2026-11-05")
    expected = [("in", 3000), (OVER % "USD", -2500), (of("in", FIRST), 1500)]
    house.run("2026-11")  # carries the correction, until a rating of the month itself does
    house.run(SECOND)
    assert full(house, "2026-10")[1] == ("big", "open", expected)
    house.close(SECOND)
    assert full(house, "2026-10")[1] == ("big", "closed", expected)
    house.run("2026-11")
    assert corrections(house) == []
    assert shadow.again(house.world, "2026-10").differences == []
    pack = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    assert pack.findings.recomputed["what earlier parts of the month used of caps, from their lines"] == 1
    assert not any("cap" in it for it in pack.findings.carried)
    used(house, "3", "2026-10-07", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == [(of("in", FIRST), 300), (of(OVER % "USD", SECOND), -300)]
    said = []
    for line in house.rows(tables.rated_lines):
        done = CliRunner().invoke(rate, ["explain", line["line_id"]], env=command_environment(house))
        assert done.exit_code == 0, (line["description"], done.output)
        said += [it.strip() for it in done.output.splitlines() if "goes on from" in it]
    assert said == [f"It goes on from {FIRST} of its month, corrected as well."]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["next_invoice", "credit_note"])
def test_a_discount_of_so_much_a_month_is_taken_off_once_when_usage_of_its_first_part_is_late(house, policy):
    """40.00 a month are off 30.00 and 30 x 0.50: 30.00 of them off the first part, and 10.00 off the second. With 8.00
    late in the first part it is 38.00 and 2.00.
    """
    moved(house)
    discount(house, amount=Decimal(40))
    used(house, "30", "2026-10-05")
    used(house, "30", "2026-10-20")
    if policy == "credit_note":
        row = {"namespace": "test", "customer_id": "acme", "recorded_at": at("2026-10-01"), "policy": policy}
        with begin_write(house.world.engine) as connection:
            connection.execute(insert(tables.correction_policies).values(**row, who="ann", why="agreed"))
    closed(house, "2026-10", "2026-11-05")
    assert [[amount for _, amount in lines] for _, _, lines in full(house, "2026-10")] == [[3000, -3000], [1500, -1000]]
    used(house, "8", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == [
        (of("in", FIRST), 800),
        (of("Launch", FIRST), -800),
        (of("Launch", SECOND), 800),
    ]


MONTH = """
book: parts
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: graduated, metric: input, tiers: [{up_to: 100, price: 1.00}, {price: 0.10}]}
      least: {model: minimum, amount: 200}
"""
THIRDS = ["2026-10-01..2026-10-11", "2026-10-11..2026-10-21", "2026-10-21..2026-11-01"]


def test_tiers_and_a_minimum_go_on_over_three_parts_closed_in_any_order(house):
    """60 + 60 + 60, closed last, first, middle: 60.00 and 140.00 to the minimum; 40.00 + 2.00, 42.00 less to it; 6.00,
    6.00 less. 30 are late of the last: 90.00 and 110.00; then 10.00 + 5.00, 15.00 less.
    """
    house.publish(MONTH)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    for day in ("05", "15", "25"):
        used(house, "60", f"2026-10-{day}")
    for part, day in ((2, "2026-11-02"), (0, "2026-11-03"), (1, "2026-11-04")):
        closed(house, THIRDS[part], day)
    assert sum(it["total_minor"] for it in house.rows(tables.ratings)) == 20000
    used(house, "30", "2026-10-26", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert sum(it["total_minor"] for it in house.rows(tables.ratings)) == 40000
    assert corrections(house) == [
        (of("in", THIRDS[0]), -2700),
        (of("least", THIRDS[0]), 2700),
        (of("in", THIRDS[2]), 3000),
        (of("least", THIRDS[2]), -3000),
    ]


def test_parts_that_are_corrected_one_after_the_other_come_to_the_month(house):
    """Twice 90 at 1.00 up to 100, 0.10 beyond; late in the first part before the second is closed, then in both."""
    house.publish(MONTH.replace("least: {model: minimum, amount: 200}", "fee: {model: flat, price: 1.00}"))
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    used(house, "90", "2026-10-05")
    used(house, "90", "2026-10-20")
    closed(house, FIRST, "2026-10-12")
    used(house, "5", "2026-10-06", received="2026-10-14")
    closed(house, SECOND, "2026-11-02")
    # 95.00 and the fee; of the 90 that follow 5 are at 1.00, 85 at 0.10
    second = [("in", 500 + 850), (of("in", FIRST), 500)]
    assert [lines for _, _, lines in full(house, "2026-10")] == [[("in", 9000), ("fee", 100)], second]
    used(house, "3", "2026-10-07", received="2026-11-08")
    used(house, "10", "2026-10-21", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    # 98.00; of 100 2 are at 1.00 and 98 at 0.10: 11.80, of which 13.50 were billed
    assert corrections(house) == [(of("in", FIRST), 300), (of("in", SECOND), 200 + 980 - 1350)]
    assert shadow.again(house.world, "2026-10").differences == []
    used(house, "2", "2026-10-08", received="2026-12-08")
    closed(house, "2026-12", "2027-01-05")
    # 100.00; 100 at 0.10
    assert corrections(house, "2026-12") == [(of("in", FIRST), 200), (of("in", SECOND), 1000 - 1180)]


VOLUME = """
book: parts
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: volume, metric: input, tiers: [{up_to: 100, price: 1.00}, {price: 0.25}]}
"""


def test_a_percentage_takes_its_share_back_of_what_a_cheaper_tier_of_volume_gives_back(house, tmp_path):
    """80 are 80.00; with 40 more all 120 cost 0.25: 50.00 less, of which 20 % are taken back: 30.00 less 6.00.
    Of 30 late ones of the first part all 110 cost 0.25: 52.50 less; the second is 10.00 then instead of -50.00.
    """
    house.publish(VOLUME)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    discount(house, percent=Decimal(20), months=1)
    used(house, "80", "2026-10-05")
    used(house, "40", "2026-10-20")
    known(house, "2026-11-05")
    house.close(FIRST)
    house.close(SECOND)
    lines = [[("in", 8000), ("Launch", -1600)], [("in", -5000), ("Launch", 1000)]]
    assert [it for _, _, it in full(house, "2026-10")] == lines
    pack = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    assert pack.findings.recomputed["discounts, from the agreement and the lines"] == 2
    used(house, "30", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == [
        (of("in", FIRST), -5250),
        (of("Launch", FIRST), 1050),
        (of("in", SECOND), 6000),
        (of("Launch", SECOND), -1200),
    ]


def test_an_amount_is_off_what_is_left_of_a_part_that_gives_a_minimum_back(sqlite_house):
    """The later part is closed first: 10.00, trued up to 200.00, which is off. Of the first 30.00 come, which the
    minimum gives back: nothing is left that the other 50.00 could be off.
    """
    house = sqlite_house
    house.publish(MONTH)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    discount(house, amount=Decimal(250), months=1)
    used(house, "10", "2026-10-20")
    used(house, "30", "2026-10-05")
    closed(house, SECOND, "2026-11-02")
    closed(house, FIRST, "2026-11-03")
    second = [("in", 1000), ("least", 19000), ("Launch", -20000)]
    assert [lines for _, _, lines in full(house, "2026-10")] == [[("in", 3000), ("least", -3000)], second]


def test_what_an_earlier_part_gives_back_is_trued_up_where_the_last_part_had_reached_the_minimum(house):
    """The later part is closed first: 100 at 1.00 are more than the minimum. With 40 more all 140 cost 0.25: 35.00,
    which is 65.00 less, and 55.00 short of 90.00.
    """
    house.publish(VOLUME + "      least: {model: minimum, amount: 90}\n")
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    used(house, "100", "2026-10-20")
    used(house, "40", "2026-10-05")
    closed(house, SECOND, "2026-11-02")
    closed(house, FIRST, "2026-11-03")
    assert [it for _, _, it in full(house, "2026-10")] == [[("in", -6500), ("least", 5500)], [("in", 10000)]]
    assert shadow.again(house.world, "2026-10").differences == []
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == []
