"""What a formula comes to with nothing used, where usage is taken away; and the arithmetic that corrections show."""

from rating_samples import at
from test_credits_of_late_usage import take_away
from test_late_in_parts import FIRST, SECOND, closed, corrections, full, known, of, used
from typer.testing import CliRunner

from meterhouse_rating import shadow
from meterhouse_rating.commands import rate
from meterhouse_rating.evidence import make
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_store import tables

BOOK = """
book: parts
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  pay:
    components:
      in: {model: formula, inputs: {x: input}, amount: "max(0, x - 50) * 0.3 + 1"}
"""


def in_two_parts(house, first, second):
    house.publish(BOOK)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    used(house, first, "2026-10-05")
    used(house, second, "2026-10-20")
    known(house, "2026-11-05")
    house.close(FIRST)
    house.close(SECOND)
    return [lines for _, _, lines in full(house, "2026-10")]


def test_what_a_formula_comes_to_with_nothing_used_goes_to_the_part_that_has_usage_left(house):
    """60 are 4.00, 70 are 7.00. Without the 60 the 10 are 1.00; with 20 late ones instead, 1.00 is all 30 are."""
    assert in_two_parts(house, "60", "10") == [[("in", 400)], [("in", 300)]]
    take_away(house, 60)
    closed(house, "2026-11", "2026-12-05")
    assert corrections(house) == [(of("in", FIRST), -400), (of("in", SECOND), -200)]
    used(house, "20", "2026-10-06", received="2026-12-08")
    closed(house, "2026-12", "2027-01-05")
    assert corrections(house, "2026-12") == [(of("in", FIRST), 100), (of("in", SECOND), -100)]
    take_away(house, 10)
    closed(house, "2027-01", "2027-02-05")
    assert [it for it in corrections(house, "2027-01") if it[1]] == []
    take_away(house, 20)
    closed(house, "2027-02", "2027-03-05")
    assert corrections(house, "2027-02") == [(of("in", FIRST), -100)]
    assert sum(row["amount_minor"] for row in house.rows(tables.rated_lines)) == 0
    assert prove(house.world.engine, "test").problems == []


def test_of_a_part_whose_usage_is_taken_away_before_the_next_is_closed_the_next_has_the_constant(house):
    """60 are 4.00; without them the 10 of the second part are 1.00."""
    house.publish(BOOK)
    house.customer("acme", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    used(house, "60", "2026-10-05")
    used(house, "10", "2026-10-20")
    closed(house, FIRST, "2026-11-02")
    take_away(house, 60)
    closed(house, SECOND, "2026-11-05")
    assert [lines for _, _, lines in full(house, "2026-10")] == [[("in", 400)], [("in", 100), (of("in", FIRST), -400)]]


def test_a_correction_shows_the_arithmetic_of_its_line_as_it_is_now(sqlite_house, tmp_path, command_environment):
    """70 are 7.00 and 4.00 were billed."""
    house = sqlite_house
    assert in_two_parts(house, "60", "0") == [[("in", 400)], [("in", 0)]]
    used(house, "10", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    (line,) = [row for row in house.rows(tables.rated_lines) if row["kind"] == "correction" and row["amount_minor"]]
    assert (line["amount_minor"], line["description"]) == (300, of("in", FIRST))
    done = CliRunner().invoke(rate, ["explain", line["line_id"]], env=command_environment(house))
    assert done.exit_code == 0, done.output
    told = [it.strip() for it in done.output.splitlines()]
    at_formula = next(at for at, it in enumerate(told) if "max(0, x - 50) * 0.3 + 1" in it)
    assert "70" in told[at_formula] and "7" in told[at_formula]
    assert told[at_formula + 1 : at_formula + 3] == [
        f"{FIRST} comes to 7 USD by what is known now.",
        "Less what was billed of it so far: -4 USD.",
    ]
    pack = make(house.world, "acme", parse("2026-11", "UTC"), tmp_path / "pack.zip")
    assert pack.verified, pack.as_text()
    assert shadow.again(house.world, "2026-11").differences == []
