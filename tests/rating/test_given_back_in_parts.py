"""What a later part of a month gives back: discounts of so much a month, and caps of money, take their part back."""

import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from test_evidence import written
from test_late_in_parts import FIRST, SECOND, VOLUME, cap, closed, corrections, discount, full, known, of, used
from typer.testing import CliRunner

from meterhouse_rating import shadow
from meterhouse_rating.commands import rate
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_store import agreements, budgets, tables
from meterhouse_store.budgets import MONEY, UNITS, Budget

OVER = "Above the cap of 60 USD: not billed"


def volume(house, text=VOLUME):
    """acme pays 1.00 a token up to 100 a month, 0.25 for each of more."""
    house.publish(text)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))


def in_two_parts(house, first="80", second="40"):
    used(house, first, "2026-10-05")
    used(house, second, "2026-10-20")
    known(house, "2026-11-05")
    house.close(FIRST)
    house.close(SECOND)
    return [it for _, _, it in full(house, "2026-10")]


def proved(house, tmp_path):
    """The pack of the month; nothing in it is wrong."""
    assert prove(house.world.engine, "test").problems == []
    assert shadow.again(house.world, "2026-10").differences == []
    pack = make(house.world, "acme", parse("2026-10", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    return pack


def test_an_amount_a_month_gives_back_what_it_took_off_too_much(sqlite_house, tmp_path, command_environment):
    """80.00 less 40.00; with 40 more all 120 cost 30.00, of which 30.00 are off: 50.00 less, and 10.00 back."""
    house = sqlite_house
    volume(house)
    discount(house, amount=Decimal(40), months=1)
    assert in_two_parts(house) == [[("in", 8000), ("Launch", -4000)], [("in", -5000), ("Launch", 1000)]]
    pack = proved(house, tmp_path)
    assert pack.findings.recomputed["discounts, from the agreement and the lines"] == 2
    assert not any("discounts of so much" in it for it in pack.findings.carried)
    (back,) = [row["line_id"] for row in house.rows(tables.rated_lines) if row["amount_minor"] == 1000]
    done = CliRunner().invoke(rate, ["explain", back], env=command_environment(house))
    assert done.exit_code == 0, done.output
    assert "Of the amount for this month 40 USD were taken off before." in done.output
    assert "Earlier parts of the month left 40 USD after it." in done.output


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("20", [("in", -7000), ("Launch", 1000)]),
        ("22", [("in", -6950), ("Launch", 950)]),
        ("40", [("in", -6500), ("Launch", 500)]),
        ("240", [("in", -1500)]),
    ],
)
def test_what_is_given_back_is_what_was_taken_off_beyond_the_month(house, second, expected):
    """100 cost 100.00, less 40.00. 120 cost 30.00, 122 30.50, 140 35.00: so much is off; of 340, 85.00, it is 40.00."""
    volume(house)
    discount(house, amount=Decimal(40), months=1)
    assert in_two_parts(house, "100", second) == [[("in", 10000), ("Launch", -4000)], expected]


def test_several_discounts_give_back_one_after_the_other(sqlite_house, tmp_path):
    """80.00 less 10 %: 72.00, less 40.00: 32.00, less 30.00. The month is 30.00, less 3.00, less 27.00."""
    house = sqlite_house
    volume(house)
    own = {"now": at("2026-10-01")}
    for day, name, more in (
        ("01", "Ten", {"percent": Decimal(10)}),
        ("02", "Forty", {"amount": Decimal(40)}),
        ("03", "Thirty", {"amount": Decimal(30)}),
    ):
        agreements.add_discount(
            house.world.engine, "test", "acme", name, valid_from=at(f"2026-10-{day}"), months=1, **more, **own
        )
    assert in_two_parts(house) == [
        [("in", 8000), ("Ten", -800), ("Forty", -4000), ("Thirty", -3000)],
        [("in", -5000), ("Ten", 500), ("Forty", 1300), ("Thirty", 3000)],
    ]
    proved(house, tmp_path)


def test_an_amount_off_one_component_gives_back_what_that_has(sqlite_house, tmp_path):
    """The fee of 50.00 is none of it."""
    house = sqlite_house
    volume(house, VOLUME + "      fee: {model: flat, price: 50}\n")
    discount(house, amount=Decimal(40), months=1, components=("in",))
    assert in_two_parts(house) == [
        [("in", 8000), ("fee", 5000), ("Launch", -4000)],
        [("in", -5000), ("Launch", 1000)],
    ]
    proved(house, tmp_path)


def test_a_cap_of_money_gives_back_what_was_above_it(sqlite_house, tmp_path, command_environment):
    """80.00 are 20.00 above 60.00; then it is 30.00, and nothing above. With 305 more it is 106.25: 46.25 above."""
    house = sqlite_house
    volume(house)
    cap(house, "60")
    used(house, "40", "2026-10-12")
    used(house, "300", "2026-10-25")
    used(house, "5", "2026-10-22")
    used(house, "80", "2026-10-05")
    known(house, "2026-11-05")
    parts = [FIRST, "2026-10-11..2026-10-21", "2026-10-21..2026-11-01"]
    for part in parts:
        house.close(part)
    lines = [[("in", 8000), (OVER, -2000)], [("in", -5000), (OVER, 2000)], [("in", 7625), (OVER, -4625)]]
    assert [it for _, _, it in full(house, "2026-10")] == lines
    pack = proved(house, tmp_path)
    assert pack.findings.recomputed["what is above caps, from the events and the lines"] == 3
    assert pack.findings.recomputed["what earlier parts of the month used of caps, from their lines"] == 3
    assert not any("cap" in it for it in pack.findings.carried)
    for line in house.rows(tables.rated_lines):
        done = CliRunner().invoke(rate, ["explain", line["line_id"], "--json"], env=command_environment(house))
        assert done.exit_code == 0, (line["description"], done.output)


def test_what_earlier_parts_were_less_by_caps_and_left_after_discounts_cannot_be_forged(sqlite_house, tmp_path):
    house = sqlite_house
    volume(house)
    cap(house, "60")
    discount(house, amount=Decimal(40), months=1)
    assert in_two_parts(house) == [
        [("in", 8000), (OVER, -2000), ("Launch", -4000)],
        [("in", -5000), (OVER, 2000), ("Launch", 1000)],
    ]
    proved(house, tmp_path)
    for forged in ("cap", "discount"):
        with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files["ratings.json"])
        if forged == "cap":
            value[1]["caps"]["earlier"]["off"] = {"most": 1000}
        else:
            value[1]["lines"][2]["explanation"]["earlier_left"] = "15"
        files["ratings.json"] = json.dumps(value).encode()
        assert verify(written(files, tmp_path / "forged.zip")).findings.problems


def test_what_a_discount_left_of_earlier_parts_is_checked_also_where_no_amount_depends_on_it(sqlite_house, tmp_path):
    """30.00 less 30.00, then 60.00 less the other 10.00 of the month: nothing was left of the first part."""
    house = sqlite_house
    volume(house)
    discount(house, amount=Decimal(40), months=1)
    assert in_two_parts(house, "30", "60") == [[("in", 3000), ("Launch", -3000)], [("in", 6000), ("Launch", -1000)]]
    proved(house, tmp_path)
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        files = {it: archive.read(it) for it in archive.namelist()}
    value = json.loads(files["ratings.json"])
    value[1]["lines"][1]["explanation"]["earlier_left"] = "15"
    files["ratings.json"] = json.dumps(value).encode()
    problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
    assert problems == ["what Launch left of earlier parts of the month: it says 1500, recomputed it is 0"]


def test_what_is_late_of_the_first_part_comes_to_the_month_with_what_is_given_back(sqlite_house, tmp_path):
    """85.00 less 40.00 of 80.00 in the first part. With 40 late ones 120 are 30.00, and 5 more 1.25: all are off."""
    house = sqlite_house
    volume(house)
    discount(house, amount=Decimal(40), months=1)
    assert in_two_parts(house, "80", "5") == [[("in", 8000), ("Launch", -4000)], [("in", 500)]]
    used(house, "40", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == [
        (of("in", FIRST), -5000),
        (of("Launch", FIRST), 1000),
        (of("in", SECOND), -375),
        (of("Launch", SECOND), -125),
    ]
    used(house, "1", "2026-10-07", received="2026-12-08")
    closed(house, "2026-12", "2027-01-05")
    assert sum(row["amount_minor"] for row in house.rows(tables.rated_lines)) == 0
    proved(house, tmp_path)


def test_late_usage_makes_a_later_part_give_back_what_a_cap_took_off_the_first(sqlite_house, tmp_path):
    """80.00, 20.00 above 60.00, and 5.00, all above. 30 late ones of the second part: all 115 cost 28.75."""
    house = sqlite_house
    volume(house)
    cap(house, "60")
    assert in_two_parts(house, "80", "5") == [[("in", 8000), (OVER, -2000)], [("in", 500), (OVER, -500)]]
    used(house, "30", "2026-10-21", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    # -51.25 instead of 5.00; 20.00 come back instead of 5.00 off
    assert corrections(house) == [(of("in", SECOND), -5625), (of(OVER, SECOND), 2500)]
    used(house, "200", "2026-10-07", received="2026-12-08")
    closed(house, "2026-12", "2027-01-05")
    # 280 x 0.25 = 70.00, 10.00 above; 35 x 0.25 = 8.75, all above
    assert corrections(house, "2026-12") == [
        (of("in", FIRST), -1000),
        (of(OVER, FIRST), 1000),
        (of("in", SECOND), 6000),
        (of(OVER, SECOND), -2875),
    ]
    proved(house, tmp_path)


TWO = """
book: parts
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  calls: {unit: call, meters: [tool.calls]}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, price: 1.00}
      calls: {model: per_unit, metric: calls, price: 1.00}
"""


def budget(house, name, limit, what=""):
    more = {"of": what} if what else {}
    made = Budget("acme", name, UNITS if what else MONEY, Decimal(limit), **more)
    budgets.set_budget(house.world.engine, "test", made, who="ann", why="agreed", now=at("2026-10-02"))


def test_a_cap_of_money_counts_of_earlier_parts_what_a_cap_of_units_left(sqlite_house, tmp_path):
    """Of 120 tokens 100 are billed; 30.00 of calls make 130.00, 20.00 above 110.00."""
    house = sqlite_house
    volume(house, TWO)
    budget(house, "tokens", "100", "input")
    budget(house, "money", "110")
    house.event("acme", "tool.calls", "30", "2026-10-20T00:00:00")
    assert in_two_parts(house, "120", "5") == [
        [("in", 12000), ("Above the cap of 100 input: not billed", -2000)],
        [
            ("in", 500),
            ("calls", 3000),
            ("Above the cap of 100 input: not billed", -500),
            ("Above the cap of 110 USD: not billed", -2000),
        ],
    ]
    proved(house, tmp_path)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_two_caps_of_money_the_lower_one_holds(sqlite_house, tmp_path, names):
    """70.00 and 60.00: 130.00, of which 80.00 are billed, whichever of the two is taken off first."""
    house = sqlite_house
    volume(house, TWO)
    budget(house, names[0], "100")
    budget(house, names[1], "80")
    in_two_parts(house, "70", "60")
    assert [row["total_minor"] for row in house.rows(tables.ratings)] in ([7000, 1000], [1000, 7000])
    proved(house, tmp_path)
