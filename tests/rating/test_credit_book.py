"""Credits from the grant to the ledger, on SQLite and PostgreSQL: granted, used, expired, carried over, taken back."""

import json
from datetime import UTC, datetime

import pytest
from rating_samples import at
from typer.testing import CliRunner

from meterhouse_rating import credit_changes, ledger_books
from meterhouse_rating.credit_changes import CreditsRefused
from meterhouse_rating.credit_commands import credits
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger_proof import prove
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
  prepaid:
    components:
      pack: {model: credit_pack, price: 10.00, credits: 12.00, expires_days: 40}
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""


@pytest.fixture
def acme(house):
    """acme with usage of 10.00 in September, 6.00 in October and 4.00 in November, on the plan `pay`."""
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "5000", "2026-09-10T00:00:00")
    house.event("acme", "llm.tokens.input", "3000", "2026-10-10T00:00:00")
    house.event("acme", "llm.tokens.input", "2000", "2026-11-10T00:00:00")
    return house


def give(house, amount, kind="bought", since="2026-09-01", until=None, **more):
    priority, rollover = more.pop("priority", 0), more.pop("rollover", 0)
    wanted = Grant("", kind, amount, at(since), None if until is None else at(until), priority, rollover)
    said = {"reference": "", "who": "ann", "why": "test", "now": at("2026-09-02")} | more
    return credit_changes.grant(house.world.engine, "test", "acme", wanted, None, **said)


def accounts(house):
    found = ledger_books.balances(house.world.engine, "test", "acme", None)
    assert prove(house.world.engine, "test").problems == []
    return {it.account: it.amount_minor for it in found}


def left(house, day=None):
    moment = at("2026-12-01") if day is None else at(day)
    _, grants = credit_changes.balance(house.world.engine, "test", "acme", moment, with_open=day is None)
    return {it.kind: it.left_minor for it in grants}


def totals(house):
    return {f"{row['period_start']:%m}": row["total_minor"] for row in house.rows(tables.ratings)}


def test_grants_pay_from_period_to_period_and_the_balance_is_the_fold_of_the_ledger(acme):
    give(acme, 800)
    give(acme, 500, "promotional")
    # September: 10.00 of usage, 5.00 promotional first, then 5.00 bought: nothing to pay. October: 3.00 of 6.00.
    for month in ("2026-09", "2026-10", "2026-11"):
        acme.run(month)
    assert totals(acme) == {"09": 0, "10": 300, "11": 400}
    assert left(acme) == {} and left(acme, "2026-11-20") == {"promotional": 500, "bought": 800}  # open: nothing posted
    acme.close("2026-09")
    acme.close("2026-10")
    assert totals(acme) == {"09": 0, "10": 300, "11": 400}
    assert accounts(acme) == {
        "cash": 800, "deferred_credits": 0, "promotions": 500, "receivable": 300, "revenue": -1600,
    }  # fmt: skip
    assert left(acme, "2026-09-15") == {"promotional": 500, "bought": 800}
    assert left(acme, "2026-10-15") == {"bought": 300}
    assert left(acme, "2026-11-15") == {}


def test_what_expires_is_lost_when_its_period_is_closed_and_what_rolls_over_pays_on(acme):
    give(acme, 700, until="2026-09-20", rollover=500, priority=1, reference="rolls")
    give(acme, 400, "promotional", since="2026-08-01", until="2026-09-25", priority=2, reference="ends")
    # September: 10.00 of usage by 7.00 and 3.00; 1.00 promotional is lost. Then the same with less usage:
    acme.close("2026-09")
    assert totals(acme) == {"09": 0}
    assert accounts(acme) == {
        "cash": 700, "deferred_credits": 0, "promotions": 300, "receivable": 0, "revenue": -1000,
    }  # fmt: skip
    give(acme, 900, since="2026-10-01", until="2026-10-21", rollover=200, reference="october")
    acme.run("2026-10")
    acme.run("2026-11")  # while October is open: 3.00 are left, 2.00 carried over to 10 November, 4.00 used
    assert totals(acme) == {"09": 0, "10": 0, "11": 200}
    acme.close("2026-10")
    acme.run("2026-11")
    assert totals(acme) == {"09": 0, "10": 0, "11": 200}
    # October used 6.00; of the 3.00 left 1.00 is earned, 2.00 are deferred on.
    assert accounts(acme) == {
        "cash": 1600, "deferred_credits": -200, "promotions": 300, "receivable": 0, "revenue": -1700,
    }  # fmt: skip


def test_credits_expire_in_a_month_without_usage_too(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    give(house, 300, until="2026-09-20")
    house.close("2026-09")
    assert accounts(house) == {"cash": 300, "deferred_credits": 0, "revenue": -300}
    house.close("2026-09")
    assert accounts(house) == {"cash": 300, "deferred_credits": 0, "revenue": -300}


def test_a_pack_becomes_two_grants_that_expire(house):
    house.publish(BOOK)
    house.customer("acme", plan="prepaid", now=at("2026-09-01"))
    house.collected()
    house.event("acme", "llm.tokens.input", "500", "2026-09-10T00:00:00")
    house.close("2026-09")  # pack 10.00 for 12.00 until 11 October; usage 1.00, of the promotional 2.00
    assert accounts(house) == {"deferred_credits": -1100, "promotions": 200, "receivable": 1000, "revenue": -100}
    house.close("2026-10")
    assert accounts(house) == {"deferred_credits": 0, "promotions": 100, "receivable": 1000, "revenue": -1100}


def test_a_refund_takes_what_open_ratings_left_and_names_the_grant(acme):
    bought = give(acme, 1500).grant_id
    gift = give(acme, 300, "promotional", priority=9).grant_id
    acme.run("2026-09")
    more = {"who": "ann", "why": "asked", "now": at("2026-10-01")}
    engine = acme.world.engine
    with pytest.raises(CreditsRefused, match=r"5\.00 USD of \w+ are left"):
        credit_changes.give_back(engine, "test", bought, "credit_refunded", amount_minor=501, **more)
    with pytest.raises(CreditsRefused, match="is promotional: `credits revoke` takes it back"):
        credit_changes.give_back(engine, "test", gift, "credit_refunded", amount_minor=None, **more)
    for new in (True, False):
        done = credit_changes.give_back(engine, "test", bought[:9], "credit_refunded", amount_minor=200, **more)
        assert (done.amount_minor, done.new) == (200, new)
    done = credit_changes.give_back(engine, "test", bought, "credit_refunded", amount_minor=None, **more)
    assert (done.amount_minor, done.left_minor) == (300, 0)
    credit_changes.give_back(engine, "test", gift, "credit_revoked", amount_minor=None, **more)
    # 15.00 - 2.00 - 3.00 are there for September's 10.00
    acme.close("2026-09")
    assert totals(acme) == {"09": 0}
    assert accounts(acme) == {
        "cash": 1000, "deferred_credits": 0, "promotions": 0, "receivable": 0, "revenue": -1000,
    }  # fmt: skip
    rows = [row for row in acme.rows(tables.ledger_transactions) if row["corrects"]]
    assert {row["kind"] for row in rows} == {"credit_refunded", "credit_revoked"}


def test_a_top_up_rule_buys_on_the_rating_and_its_credits_go_on(acme):
    set_rule = {"below_minor": 100, "times": 5, "who": "ann", "now": at("2026-09-01")}
    for new in (True, False):
        assert new == credit_changes.set_top_up(
            acme.world.engine, "test", "acme", amount_minor=500, valid_from=at("2026-09-01"), **set_rule
        )
    # September: 10.00 of usage and 1.00 to be left: 3 times 5.00, 5.00 left. October: 6.00: once, 4.00 left.
    acme.run("2026-09")
    acme.run("2026-10")
    assert totals(acme) == {"09": 1500, "10": 500}
    acme.close("2026-09")
    acme.close("2026-10")
    assert totals(acme) == {"09": 1500, "10": 500}
    assert accounts(acme) == {"deferred_credits": -400, "receivable": 2000, "revenue": -1600}
    credit_changes.set_top_up(
        acme.world.engine, "test", "acme", amount_minor=0, valid_from=at("2026-11-01"), **set_rule
    )
    acme.run("2026-11")  # 4.00 by what is left, nothing is bought any more
    assert totals(acme)["11"] == 0


def test_the_same_grant_is_granted_once(acme):
    assert [give(acme, 100).new for _ in range(2)] == [True, False]
    assert [give(acme, 100, reference="voucher-1", why=why).new for why in ("a", "b")] == [True, False]
    with pytest.raises(CreditsRefused, match=r"voucher-1 is the reference of 1\.00 USD \(bought\) already"):
        give(acme, 101, reference="voucher-1")
    assert accounts(acme) == {"cash": 200, "deferred_credits": -200}


def test_credits_from_before_there_were_grants_are_used_as_one(acme):
    from meterhouse_rating import ledger
    from meterhouse_rating.ledger import Entry, Posting
    from meterhouse_store.sql import begin_write

    with begin_write(acme.world.engine) as connection:
        sides = (Entry("receivable", 1200, "USD"), Entry("deferred_credits", -1200, "USD"))
        moment = at("2026-08-01")
        posting = Posting("credit_pack", "old", "old pack", sides)
        ledger.post(connection, "test", "acme", [posting], effective_at=moment, recorded_at=moment)
    acme.close("2026-09")
    assert totals(acme) == {"09": 0} and accounts(acme)["deferred_credits"] == -200
    acme.close("2026-10")
    assert totals(acme)["10"] == 400 and accounts(acme)["deferred_credits"] == 0


@pytest.fixture
def call(sqlite_house, command_environment, monkeypatch):
    for name, value in command_environment(sqlite_house).items():
        if name.startswith("METERHOUSE_"):
            monkeypatch.setenv(name, value)
    sqlite_house.publish(BOOK)
    sqlite_house.customer("acme")

    def run(*arguments):
        done = CliRunner().invoke(credits, list(arguments))
        return done.exit_code, done.output

    return run


def test_the_commands_grant_list_refund_and_say_what_is_left(call):
    code, said = call("grant", "acme", "50", "--bought", "--why", "wire 7", "--dry-run")
    assert code == 0 and said.startswith(
        "acme: 50.00 USD of bought credits would be granted (dry run); 50.00 are left."
    )
    assert call("list") == (0, "No credits are left.\n")
    grant = ("grant", "acme", "50", "--bought", "--why", "wire 7", "--reference", "w7", "--json")
    made = json.loads(call(*grant)[1])
    assert (made["amount"], made["new"], json.loads(call(*grant)[1])["new"]) == ("50.00", True, False)
    call("grant", "acme", "5", "--why", "welcome", "--from", "2026-10-01", "--expires", "2099-01-01")
    code, said = call("balance", "acme")
    assert code == 0 and [line.split()[:3] for line in said.splitlines()] == [
        ["promotional", "5.00", "USD"], ["bought", "50.00", "USD"], ["Total", "55.00", "USD"],
    ]  # fmt: skip
    code, said = call("refund", made["grant_id"][:10], "--amount", "20", "--why", "asked")
    assert code == 0 and said.startswith("acme: 20.00 USD of bought credits refunded; 30.00 are left.")
    assert {row["kind"]: row["left_minor"] for row in json.loads(call("list", "--json")[1])} == {
        "bought": 3000, "promotional": 500,
    }  # fmt: skip
    now = datetime.now(UTC).isoformat()
    assert json.loads(call("balance", "acme", "--at", now, "--json")[1])["balance"] == "35.00"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("grant", "globex", "1", "--why", "x"), "globex is not registered"),
        (("grant", "acme", "0", "--why", "x"), "0 USD is no amount that can be charged"),
        (("grant", "acme", "99999999999999999999", "--why", "x"), "is no amount that can be charged: 0.01 to 10,000"),
        (("grant", "acme", "1e30", "--why", "x"), "1e30 USD is no amount that can be charged: 0.01 to 10,000"),
        (("grant", "acme", "1", "--why", " "), "say why"),
        (("grant", "acme", "1", "--why", "x", "--expires", "2020-01-01"), "it expires before it begins"),
        (("grant", "acme", "1", "--why", "x", "--rollover", "1"), "only what expires is rolled over"),
        (("refund", "abc", "--why", "x"), "no grant begins with abc: `meterhouse credits list` shows their ids"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, arguments, why):
    code, said = call(*arguments)
    assert code == 1 and why in said
