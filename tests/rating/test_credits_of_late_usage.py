"""Credits and late usage: a customer ends with what an undisturbed month comes to; amounts by hand."""

import json
import zipfile
from decimal import Decimal

import pytest
from rating_samples import at
from sqlalchemy import insert
from test_evidence import written
from test_late_in_parts import BOOK, FIRST, OVER, SECOND, cap, closed, discount, full, moved, of, used
from typer.testing import CliRunner

from meterhouse_rating import credit_changes, ledger_books, recorrect, shadow
from meterhouse_rating.commands import rate
from meterhouse_rating.credits import Grant
from meterhouse_rating.evidence import make
from meterhouse_rating.evidence_check.main import verify
from meterhouse_rating.ledger_proof import prove
from meterhouse_rating.periods import parse
from meterhouse_store import tables
from meterhouse_store.sql import begin_write

OCTOBER = "2026-10-01..2026-11-01"


def granted(house, dollars, when):
    credit_changes.grant(
        house.world.engine, "test", "acme", Grant("", "promotional", dollars * 100, at(when)), None,
        reference=when, who="ann", why="x", now=at(when),
    )  # fmt: skip


def one_plan(house, text=BOOK):
    """acme is on small all the time: 1.00 a token."""
    house.publish(text)
    house.customer("acme", plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))


def lines(house, month):
    return [it for _, _, found in full(house, month) for it in found]


def stands(house):
    """What the customer owes in all, and the credits that it has left."""
    assert prove(house.world.engine, "test").problems == []
    accounts = {it.account: it.amount_minor for it in ledger_books.balances(house.world.engine, "test", "acme", None)}
    _, grants = credit_changes.balance(house.world.engine, "test", "acme", at("2027-03-01"), with_open=False)
    left = sum(it.left_minor for it in grants)
    assert accounts.get("deferred_credits", 0) == -left
    return accounts.get("receivable", 0), left


def proved(house, tmp_path, month):
    pack = make(house.world, "acme", parse(month, "UTC"), tmp_path / f"{month}.zip")
    assert pack.verified, pack.as_text()
    assert shadow.again(house.world, month).differences == []


def test_credits_pay_nothing_of_late_usage_that_a_cap_takes_off_again(sqlite_house, tmp_path):
    """100.00 are closed, and the cap. Of 20.00 more nothing is owed, whatever credits came since."""
    house = sqlite_house
    one_plan(house)
    cap(house, "100")
    used(house, "100", "2026-10-05")
    closed(house, "2026-10", "2026-11-05")
    granted(house, 50, "2026-11-06")
    used(house, "20", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [(of("in", OCTOBER), 2000), (of(OVER % "USD", OCTOBER), -2000)]
    assert stands(house) == (10000, 5000)
    proved(house, tmp_path, "2026-11")


def test_credits_pay_what_a_cap_leaves_of_late_usage(sqlite_house, tmp_path):
    """200.00 were there; 90.00 of them paid. Of 20.00 more the cap leaves 10.00."""
    house = sqlite_house
    one_plan(house)
    cap(house, "100")
    granted(house, 200, "2026-10-01")
    used(house, "90", "2026-10-05")
    closed(house, "2026-10", "2026-11-05")
    used(house, "20", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [
        (of("in", OCTOBER), 2000),
        (of(OVER % "USD", OCTOBER), -1000),
        ("Credits applied", -1000),
    ]
    assert stands(house) == (0, 10000)
    proved(house, tmp_path, "2026-11")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("credits", [100, 200])
def test_credits_of_a_later_part_pay_the_late_usage_of_an_earlier_one_that_takes_its_place_under_the_cap(
    sqlite_house, tmp_path, credits
):
    """80.00 and 20.00 of 30.00 are paid by credits. With 15.00 more in the first part the second has 5.00."""
    house = sqlite_house
    moved(house)
    cap(house, "100")
    granted(house, credits, "2026-10-01")
    used(house, "80", "2026-10-05")
    used(house, "60", "2026-10-20")
    closed(house, "2026-10", "2026-11-05")
    used(house, "15", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [
        (of("in", FIRST), 1500),
        (of(OVER % "USD", SECOND), -1500),
        (of("Credits given back", SECOND), 1500),
        ("Credits applied", -1500),
    ]
    assert stands(house) == (0, (credits - 100) * 100)
    proved(house, tmp_path, "2026-11")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["next_invoice", "credit_note"])
def test_credits_that_came_later_pay_nothing_that_the_month_does_not_owe(sqlite_house, tmp_path, policy):
    """The same without credits, until 50.00 come in November: the 15.00 are set off, also where they are on a note."""
    house = sqlite_house
    moved(house)
    cap(house, "100")
    with begin_write(house.world.engine) as connection:
        row = {"namespace": "test", "customer_id": "acme", "recorded_at": at("2026-10-01"), "policy": policy}
        connection.execute(insert(tables.correction_policies).values(**row, who="ann", why="agreed"))
    used(house, "80", "2026-10-05")
    used(house, "60", "2026-10-20")
    closed(house, "2026-10", "2026-11-05")
    granted(house, 50, "2026-11-06")
    used(house, "15", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert stands(house) == (10000, 5000)
    proved(house, tmp_path, "2026-11")


def take_away(house, quantity):
    """A decision took the events of that quantity out of usage, as `decided.py` writes it."""
    house.world.client.command(
        "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
        "toDateTime64('2026-11-10 00:00:00', 6, 'UTC') AS decided_at, 'd1' AS decision_id) FROM events FINAL "
        f"WHERE quantity = {quantity}"
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("later", [0, 50])
def test_credits_that_come_back_pay_what_a_cap_had_taken_off_and_now_is_owed(sqlite_house, tmp_path, later):
    """Credits pay 60.00 of 100.00; 30.00 of the second part are above the cap. 60.00 are taken away: 70.00 in all, of
    which those 60.00 pay as much. What comes later than that pays nothing: the month owes less than it was.
    """
    house = sqlite_house
    moved(house)
    cap(house, "100")
    granted(house, 60, "2026-10-01")
    for quantity, day in (("60", "05"), ("40", "06"), ("20", "20"), ("40", "21")):
        used(house, quantity, f"2026-10-{day}")
    closed(house, "2026-10", "2026-11-05")
    if later:
        granted(house, later, "2026-11-06")
    take_away(house, 60)
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [
        (of("in", FIRST), -6000),
        (of("Credits given back", FIRST), 2000),
        (of(OVER % "USD", SECOND), 3000),
        ("Credits applied", -2000),
    ]
    assert stands(house) == (1000, later * 100)
    proved(house, tmp_path, "2026-11")


def test_credits_that_come_back_and_later_ones_pay_together_what_the_month_comes_to_more(sqlite_house, tmp_path):
    """10.00 of 40.00 are paid by credits, of 10.00 none. 35.00 are taken away of the first, 40.00 more are in the
    second part: 55.00 in all, of which 40.00 were paid in money; so 15.00 are by credits, the later 50.00, too.
    """
    house = sqlite_house
    one_plan(house)
    granted(house, 10, "2026-10-01")
    used(house, "5", "2026-10-05")
    used(house, "35", "2026-10-05")
    used(house, "10", "2026-10-20")
    closed(house, FIRST, "2026-10-12")
    closed(house, SECOND, "2026-11-05")
    assert stands(house) == (4000, 0)
    granted(house, 50, "2026-11-06")
    take_away(house, 35)
    used(house, "40", "2026-10-21", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [
        (of("in", FIRST), -3500),
        (of("Credits given back", FIRST), 500),
        (of("in", SECOND), 4000),
        ("Credits applied", -1000),
    ]
    assert stands(house) == (4000, 4500)
    proved(house, tmp_path, "2026-11")


def test_credits_pay_late_usage_less_its_discounts_and_what_other_usage_gives_back(sqlite_house, tmp_path):
    """10 % are off 100.00 of input and a fee of 50.00. 40.00 more of input, 10.00 less of calls: 30.00, of which 3.00
    are off; of fees credits pay nothing.
    """
    house = sqlite_house
    one_plan(house, WITH_A_FEE)
    discount(house, percent=Decimal(10), months=1)
    used(house, "100", "2026-10-05")
    house.event("acme", "tool.calls", "10", "2026-10-05T00:00:00")
    closed(house, "2026-10", "2026-11-05")
    assert stands(house) == (14400, 0)
    granted(house, 100, "2026-11-06")
    used(house, "40", "2026-10-06", received="2026-11-08")
    take_away(house, 10)
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [
        ("fee", 5000),
        (of("in", OCTOBER), 4000),
        (of("Launch", OCTOBER), -300),
        (of("calls", OCTOBER), -1000),
        ("Credits applied", -2700),
    ]
    assert stands(house) == (14400 + 5000, 7300)
    proved(house, tmp_path, "2026-11")


WITH_A_FEE = """
book: parts
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  calls: {unit: call, meters: [tool.calls]}
plans:
  small:
    components:
      fee: {model: flat, price: 50}
      in: {model: per_unit, metric: input, price: 1.00}
      calls: {model: per_unit, metric: calls, price: 1.00}
"""


def test_a_forged_amount_that_credits_may_pay_is_found(sqlite_house, tmp_path):
    house = sqlite_house
    one_plan(house)
    cap(house, "100")
    granted(house, 200, "2026-10-01")
    used(house, "90", "2026-10-05")
    closed(house, FIRST, "2026-10-12")
    used(house, "20", "2026-10-06", received="2026-10-14")
    closed(house, SECOND, "2026-11-05")
    file = tmp_path / "pack.zip"
    pack = make(house.world, "acme", parse("2026-10", "UTC"), file)
    assert pack.findings.recomputed["what credits may pay of late usage, from the corrections"] == 1
    assert not any("late usage" in it for it in pack.findings.carried)
    for at_line, key, said in ((0, "payable", "12.00"), (0, "payable", "20.00"), (1, "of_usage", "-9.00")):
        with zipfile.ZipFile(file) as archive:
            files = {it: archive.read(it) for it in archive.namelist()}
        value = json.loads(files["ratings.json"])
        explanation = value[1]["lines"][at_line]["explanation"]
        assert explanation[key] != said
        explanation[key] = said
        files["ratings.json"] = json.dumps(value).encode()
        problems = verify(written(files, tmp_path / "forged.zip")).findings.problems
        assert any("late usage" in it or "what is usage of" in it for it in problems)


def test_credits_come_back_where_late_usage_that_they_paid_is_taken_away(sqlite_house, tmp_path):
    """90.00 of money; 20.00 late ones by credits, the first 10.00 and 10.00 of the next. 15.00 are taken away."""
    house = sqlite_house
    one_plan(house)
    used(house, "90", "2026-10-05")
    closed(house, "2026-10", "2026-11-05")
    granted(house, 10, "2026-11-06")
    granted(house, 50, "2026-11-07")
    used(house, "15", "2026-10-06", received="2026-11-08")
    used(house, "5", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [(of("in", OCTOBER), 2000), ("Credits applied", -2000)]
    take_away(house, 15)
    closed(house, "2026-12", "2027-01-05")
    assert lines(house, "2026-12") == [(of("in", OCTOBER), -1500), (of("Credits given back", OCTOBER), 1500)]
    assert stands(house) == (9000, 5500)
    proved(house, tmp_path, "2026-12")
    take_away(house, 5)
    take_away(house, 90)
    closed(house, "2027-01", "2027-02-05")
    assert lines(house, "2027-01") == [(of("in", OCTOBER), -9500), (of("Credits given back", OCTOBER), 500)]
    assert stands(house) == (0, 6000)


def test_credits_that_paid_late_usage_under_a_cap_come_back(sqlite_house, tmp_path, command_environment):
    """90.00 by credits, then 10.00 of 20.00 late ones. 50.00 less are 60.00: 40.00 come back."""
    house = sqlite_house
    one_plan(house)
    cap(house, "100")
    granted(house, 200, "2026-10-01")
    used(house, "50", "2026-10-05")
    used(house, "40", "2026-10-05")
    closed(house, "2026-10", "2026-11-05")
    used(house, "20", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert stands(house) == (0, 10000)
    late = [row for row in house.rows(tables.rated_lines) if row["amount_minor"] == 2000]
    done = CliRunner().invoke(rate, ["explain", late[0]["line_id"]], env=command_environment(house))
    assert done.exit_code == 0, done.output
    assert "Credits may pay 10 USD of it: the rest goes off what other corrections of the month" in done.output
    take_away(house, 50)
    closed(house, "2026-12", "2027-01-05")
    assert lines(house, "2026-12") == [
        (of("in", OCTOBER), -5000),
        (of(OVER % "USD", OCTOBER), 1000),
        (of("Credits given back", OCTOBER), 4000),
    ]
    assert stands(house) == (0, 14000)
    proved(house, tmp_path, "2026-12")


def test_credits_that_paid_the_corrections_on_a_rating_do_not_come_back_when_that_is_corrected(sqlite_house, tmp_path):
    """80.00; 20.00 late ones are on the second part, which has 5.00 itself. 10 more there are 5.00 more, by credits."""
    house = sqlite_house
    moved(house)
    granted(house, 200, "2026-10-01")
    used(house, "80", "2026-10-05")
    used(house, "10", "2026-10-20")
    closed(house, FIRST, "2026-10-12")
    used(house, "20", "2026-10-06", received="2026-10-14")
    closed(house, SECOND, "2026-11-05")
    assert stands(house) == (0, 9500)
    used(house, "10", "2026-10-21", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11") == [(of("in", SECOND), 500), ("Credits applied", -500)]
    assert stands(house) == (0, 9000)
    proved(house, tmp_path, "2026-11")


def test_credits_pay_usage_less_a_percentage_that_a_minimum_takes_back_as_much_of(sqlite_house, tmp_path):
    """The second part is closed first: 200.00 are due at least, less 25 %. Of 40.00 of usage in the first, that the
    minimum gives back, 10.00 are off; 30.00 of credits pay the rest, and 120.00 are money.
    """
    house = sqlite_house
    one_plan(house, WITH_A_FEE.replace("fee: {model: flat, price: 50}", "least: {model: minimum, amount: 200}"))
    discount(house, percent=Decimal(25), months=1)
    granted(house, 100, "2026-10-01")
    used(house, "40", "2026-10-05")
    closed(house, SECOND, "2026-11-02")
    closed(house, FIRST, "2026-11-03")
    second = [("least", 20000), ("Launch", -5000)]
    first = [("in", 4000), ("least", -4000), ("Launch", 0), ("Credits applied", -3000)]
    assert [it for _, _, it in full(house, "2026-10")] == [first, second]
    assert stands(house) == (12000, 7000)
    proved(house, tmp_path, "2026-10")


def test_credits_pay_late_usage_less_what_an_amount_a_month_moves_to_it_from_a_fee(sqlite_house):
    """40.00 are off 50.00 and a fee of 50.00, half each; of 100.00 and the fee 26.67 are off usage, 6.67 more."""
    house = sqlite_house
    one_plan(house, WITH_A_FEE)
    discount(house, amount=Decimal(40), months=1)
    used(house, "50", "2026-10-05")
    closed(house, "2026-10", "2026-11-05")
    granted(house, 100, "2026-11-06")
    used(house, "50", "2026-10-06", received="2026-11-08")
    closed(house, "2026-11", "2026-12-05")
    assert lines(house, "2026-11")[-1] == ("Credits applied", -4333)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("credits", "owed", "left"), [(200, 9000, 9000), (85, 11500, 0), (0, 20000, 0)])
def test_credits_pay_late_usage_that_a_minimum_gives_back_on_a_credit_note(sqlite_house, tmp_path, credits, owed, left):
    """50.00, 30.00, and 120.00 up to 200.00 at least. 20.00 and 10.00 are late: the 30.00 come back as money on a
    credit note, and are usage on the next rating, which credits pay like the 80.00 as far as there are any.
    """
    house = sqlite_house
    one_plan(house, LEAST)
    recorrect.set_policy(house.world.engine, "test", "acme", "credit_note", who="ann", why="x", now=at("2026-09-01"))
    if credits:
        granted(house, credits, "2026-10-01")
    used(house, "50", "2026-10-05")
    used(house, "30", "2026-10-20")
    closed(house, FIRST, "2026-10-12")
    closed(house, SECOND, "2026-11-05")
    used(house, "20", "2026-10-06", received="2026-11-08")
    used(house, "10", "2026-10-21", received="2026-11-08")
    for _ in range(2):
        closed(house, "2026-11", "2026-12-05")
    november = ("least", 20000)
    paid = [("Credits applied", -min(3000, credits * 100 - 8000))] if credits else []
    assert lines(house, "2026-11") == [november, (of("in", FIRST), 2000), (of("in", SECOND), 1000), *paid]
    [note] = house.rows(tables.credit_notes)
    assert [(it["description"], it["amount_minor"]) for it in note["lines"]] == [(of("least", SECOND), -3000)]
    assert stands(house) == (owed + 20000, left)
    proved(house, tmp_path, "2026-11")


LEAST = BOOK.replace("      in: {model: per_unit, metric: input, price: 1.00}\n", """\
      in: {model: per_unit, metric: input, price: 1.00}
      least: {model: minimum, amount: 200}
""")  # fmt: skip


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", ["next_invoice", "credit_note"])
def test_credits_that_come_back_after_their_rest_expired_expire_again(house, tmp_path, policy):
    """Of 50.00 until 20 October 30.00 paid, up to 5.00 were carried over, 15.00 were lost. The 30.00 come back by and
    by in November and December: they are over, and nothing more of them is carried over.
    """
    one_plan(house)
    recorrect.set_policy(house.world.engine, "test", "acme", policy, who="ann", why="agreed", now=at("2026-09-01"))
    credit_changes.grant(
        house.world.engine, "test", "acme", Grant("", "promotional", 5000, at("2026-10-01"), at("2026-10-20"), 0, 500),
        None, reference="gift", who="ann", why="x", now=at("2026-10-01"),
    )  # fmt: skip
    used(house, "10", "2026-10-05")
    used(house, "20", "2026-10-06")
    closed(house, "2026-10", "2026-11-05")
    # Of the 20.00 that are left 5.00 hold up to 8 November.
    assert lines(house, "2026-10") == [("in", 3000), ("Credits applied", -3000)]
    take_away(house, 10)
    closed(house, "2026-11", "2026-12-05")
    take_away(house, 20)
    closed(house, "2026-12", "2027-01-05")
    assert stands(house) == (0, 0)
    posted = [(row["effective_at"].date().isoformat(), row["kind"]) for row in house.rows(tables.ledger_transactions)]
    assert sorted(it for it in posted if it[1] == "credit_expired") == [
        ("2026-10-20", "credit_expired"),
        ("2026-10-20", "credit_expired"),
        ("2026-10-20", "credit_expired"),
        ("2026-11-08", "credit_expired"),
    ]
    if policy == "next_invoice":
        proved(house, tmp_path, "2026-11")
        proved(house, tmp_path, "2026-12")
