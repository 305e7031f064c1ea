"""Credits of customers whose contract ended expire at their time by the scheduled run; amounts by hand."""

import itertools
from datetime import timedelta

import commands
import pytest
from rating_samples import at
from test_rating_crash import failing_at

from meterhouse_rating import credit_changes, ledger_books
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger_proof import prove
from meterhouse_store import registry, tables

BOOK = """
book: ends
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
plans:
  small: {components: {in: {model: per_unit, metric: input, price: 1.00}}}
"""


def granted(house, dollars, until, kind="promotional", rollover=0, customer="acme"):
    grant = Grant("", kind, dollars * 100, at("2026-09-01"), at(until), 0, rollover * 100)
    told = {"reference": f"{customer} {until}", "who": "ann", "why": "agreed", "now": at("2026-09-01")}
    credit_changes.grant(house.world.engine, "test", customer, grant, None, **told)


def ended(house, customer="acme", when="2026-11-01"):
    """On small since September; 10.00 of usage in October, with which the contract ends."""
    house.customer(customer, plan="small", valid_from=at("2026-09-01"), now=at("2026-09-01"))
    if when:
        registry.end_contract(house.world.engine, "test", customer, at(when), who="ann", why="x", now=at("2026-10-20"))
    house.event(customer, "llm.tokens.input", "10", "2026-10-05T00:00:00", event_id=f"{customer} 10")


def runs(house, day, times=2):
    """The scheduled run on a day, and again; what they said of credits."""
    house.at(at(day))
    house.collected(f"{day}T00:00:00", position=int(day[2:4] + day[5:7] + day[8:]))
    return [f"{step}" for _ in range(times) for step in house.run(None) if step.name == "expired"]


def closes(house, day):
    house.at(at(day))
    house.collected(f"{day}T00:00:00", position=int(day[2:4] + day[5:7] + day[8:]))
    house.close(None)


def expired(house):
    """When, and what of it is revenue or promotions, in cents."""
    assert prove(house.world.engine, "test").problems == []
    entries = {}
    for row in house.rows(tables.ledger_entries):
        entries.setdefault(row["transaction_id"], {})[row["account"]] = row["amount_minor"]
    found = []
    for row in house.rows(tables.ledger_transactions):
        if row["kind"] == "credit_expired":
            sides = entries[row["transaction_id"]]
            lost = {name: -amount for name, amount in sides.items() if name in ("revenue", "promotions")}
            found.append((f"{row['effective_at']:%Y-%m-%d}", lost))
    return sorted(found, key=str)


def left(house, customer="acme"):
    """Of credits, in the ledger."""
    accounts = {it.account: it.amount_minor for it in ledger_books.balances(house.world.engine, "test", customer, None)}
    return -accounts.get("deferred_credits", 0)


def test_they_expire_on_their_day_once_and_what_is_carried_over_on_its_own(house):
    """Of 50.00 until 20 November 10.00 were used. Of 30.00 until 10 December, of money, 20.00 are carried over: 100
    days more, as they held from 1 September on. The other customer's contract goes on.
    """
    house.publish(BOOK)
    ended(house)
    ended(house, "other", when="")
    granted(house, 50, "2026-11-20")
    granted(house, 30, "2026-12-10", "bought", rollover=20)
    granted(house, 50, "2026-11-20", customer="other")
    closes(house, "2026-11-02")
    assert runs(house, "2026-11-19") == []
    assert runs(house, "2026-11-20") == ["expired acme 40.00 USD of credits"]
    assert expired(house) == [("2026-11-20", {"promotions": 4000})]
    assert runs(house, "2026-12-11") == ["expired acme 10.00 USD of credits"]
    assert expired(house) == [("2026-11-20", {"promotions": 4000}), ("2026-12-10", {"revenue": 1000})]
    assert left(house) == 2000
    # Nobody looked for a while: it ended on 20 March.
    assert runs(house, "2027-04-01") == ["expired acme 20.00 USD of credits"]
    assert ("2027-03-20", {"revenue": 2000}) in expired(house)
    assert (left(house), left(house, "other")) == (0, 4000)


def test_what_was_carried_over_and_is_over_as_well_goes_at_once(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    ended(house)
    granted(house, 30, "2026-12-10", "bought", rollover=20)
    closes(house, "2026-11-02")
    assert runs(house, "2027-04-01") == ["expired acme 20.00 USD of credits"]
    assert expired(house) == [("2026-12-10", {}), ("2027-03-20", {"revenue": 2000})]
    assert left(house) == 0


def test_they_wait_until_all_that_they_may_pay_is_closed(sqlite_house):
    """October, that is open on 20 November; then 5.00 that are late of it, on an open rating of November."""
    house = sqlite_house
    house.publish(BOOK)
    ended(house)
    granted(house, 50, "2026-11-20")
    granted(house, 50, "2026-12-15")
    assert runs(house, "2026-11-21") == []
    closes(house, "2026-11-21")
    house.event("acme", "llm.tokens.input", "5", "2026-10-06T00:00:00", received="2026-11-22T00:00:00")
    assert runs(house, "2026-11-23") == []
    assert expired(house) == []
    closes(house, "2026-12-02")
    assert expired(house) == [("2026-11-20", {"promotions": 3500})]
    assert left(house) == 5000


def test_they_wait_for_a_month_that_has_no_price_yet(sqlite_house):
    """October is on a plan that no book has until 25 November; its 10.00 are paid of the 50.00 then."""
    house = sqlite_house
    house.publish(BOOK.replace("small", "other"))
    ended(house)
    granted(house, 50, "2026-11-20")
    assert runs(house, "2026-11-21") == []
    house.publish(BOOK, valid_from=at("2026-09-01"))
    closes(house, "2026-11-25")
    assert runs(house, "2026-11-25") == ["expired acme 40.00 USD of credits"]


def test_those_of_a_customer_that_has_no_contract_yet_wait(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme", plan=None)
    granted(house, 50, "2026-11-20")
    house.collected()
    assert runs(house, "2026-11-21") == []
    assert left(house) == 5000


def test_what_comes_back_after_they_expired_expires_again(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    ended(house)
    granted(house, 50, "2026-12-05")
    closes(house, "2026-11-02")
    assert runs(house, "2026-12-05") == ["expired acme 40.00 USD of credits"]
    house.world.client.command(
        "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
        "toDateTime64('2026-12-06 00:00:00', 6, 'UTC') AS decided_at, 'd1' AS decision_id) FROM events FINAL"
    )
    assert runs(house, "2026-12-07") == []
    closes(house, "2026-12-07")
    assert left(house) == 1000
    assert runs(house, "2026-12-08") == ["expired acme 10.00 USD of credits"]
    assert expired(house) == [("2026-12-05", {"promotions": 1000}), ("2026-12-05", {"promotions": 4000})]
    assert left(house) == 0


def test_a_run_that_is_stopped_at_any_write_and_started_again_lets_them_expire_once(sqlite_house):
    """Two customers of two grants each; what is written of customers is one transaction."""
    house = sqlite_house
    house.publish(BOOK)
    for name in ("acme", "beta"):
        ended(house, name)
        granted(house, 50, "2026-11-20", customer=name)
        granted(house, 30, "2026-11-21", "bought", rollover=20, customer=name)
    closes(house, "2026-11-02")
    house.at(at("2026-11-22"))
    stopped = 0
    for number in itertools.count():
        before = len(expired(house))
        with failing_at(house.world.engine, number, writes=True):
            try:
                steps = [step.name for step in house.run(None)]
                break
            except OSError:
                stopped += 1
        assert len(expired(house)) == before == 0
    assert stopped > 3
    assert steps.count("expired") == 2
    assert [step for step in house.run(None) if step.name == "expired"] == []
    assert [day for day, _ in expired(house)] == ["2026-11-20"] * 2 + ["2026-11-21"] * 2
    assert (left(house), left(house, "beta")) == (2000, 2000)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("more", [{"dry_run": True}, {"new": True}, {"customer": "beta"}])
def test_a_dry_run_one_of_what_is_new_and_one_of_somebody_else_let_nothing_expire(sqlite_house, more):
    house = sqlite_house
    house.publish(BOOK)
    ended(house)
    house.customer("beta", plan="small")
    granted(house, 50, "2026-11-20")
    closes(house, "2026-11-02")
    house.at(at("2026-11-20") + timedelta(hours=1))
    house.run(None, **more)
    assert expired(house) == []
    house.run("2026-11")
    assert expired(house) == []


def test_through_the_commands(sqlite_house, command_environment, tmp_path):
    house = sqlite_house
    (tmp_path / "book.yaml").write_text(BOOK)
    house.collected("2025-12-01T00:00:00")
    house.event("acme", "llm.tokens.input", "1", "2025-10-05T00:00:00")

    def meterhouse(*told):
        done = commands.run(told, env=command_environment(house), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    meterhouse("prices", "publish", "book.yaml")
    meterhouse("customers", "add", "acme", "--plan", "small", "--valid-from", "2025-10-01")
    meterhouse("credits", "grant", "acme", "5", "--why", "welcome", "--from", "2025-10-01", "--expires", "2025-11-20")
    registry.end_contract(
        house.world.engine, "test", "acme", at("2025-11-01"), who="ann", why="x", now=at("2025-10-20")
    )
    said = [line for _ in range(2) for line in meterhouse("rate", "run", "--due").splitlines() if "credits" in line]
    closed = meterhouse("rate", "close", "--due")
    assert said == []
    said = [line for _ in range(2) for line in meterhouse("rate", "run", "--due").splitlines() if "credits" in line]
    assert said == ["expired acme 4.00 USD of credits"], closed
