"""Usage that changes after its period was closed: corrected once, in its own tier and price, on the next invoice."""

from decimal import Decimal

import pytest
from rating_samples import at
from sqlalchemy import insert

from meterhouse_rating import credit_changes, explain_events, ledger_books, report
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger_proof import prove
from meterhouse_store import tables
from meterhouse_store.sql import begin_write

BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
plans:
  pay:
    components:
      fee: {model: recurring, price: 3.00}
      in: {model: graduated, metric: input, tiers: [{up_to: 100, price: 1.00}, {price: 0.50}]}
      out: {model: per_unit, metric: output, by: [model], prices: [{model: big, price: 2.00}], default: none}
"""
DEARER = BOOK.replace("price: 0.50", "price: 5.00").replace("price: 2.00", "price: 9.00")


def used(house, quantity, day, received=None, meter="llm.tokens.input", **more):
    told = {} if received is None else {"received": received}
    house.event("acme", meter, quantity, day, **told, **more)


@pytest.fixture
def closed(house):
    """acme's October: 90 input = 90.00 and the fee, closed on 5 November; the book is dearer from November on."""
    house.publish(BOOK)
    house.customer("acme", now=at("2026-10-01"))
    house.collected("2026-11-05T00:00:00")
    used(house, "90", "2026-10-02T00:00:00")
    house.close("2026-10")
    house.publish(DEARER, valid_from=at("2026-11-01"))
    house.collected("2026-11-21T00:00:00", position=2000)
    return house


def lines(house, month):
    chosen = {row["rating_id"] for row in house.rows(tables.ratings) if f"{row['period_start']:%Y-%m}" == month}
    found = [row for row in house.rows(tables.rated_lines) if row["rating_id"] in chosen]
    return [
        (row["kind"], row["description"], str(row["quantity"].normalize()), row["amount_minor"])
        for row in sorted(found, key=lambda row: row["position"])
    ]


def total(house, month):
    return next(it["total_minor"] for it in house.rows(tables.ratings) if f"{it['period_start']:%Y-%m}" == month)


def accounts(house):
    assert prove(house.world.engine, "test").problems == []
    return {it.account: it.amount_minor for it in ledger_books.balances(house.world.engine, "test", "acme", None)}


def policy(house, name):
    with begin_write(house.world.engine) as connection:
        connection.execute(
            insert(tables.correction_policies).values(
                namespace="test", customer_id="acme", recorded_at=at("2026-11-01"), policy=name, who="ann", why="agreed"
            )
        )


LATE = "in (correction of 2026-10-01..2026-11-01)"


def test_late_usage_is_a_debit_on_the_next_rating_in_its_own_tier_and_price_version(closed):
    house = closed
    used(house, "30", "2026-10-09T00:00:00", received="2026-11-10T00:00:00")
    # 120 in October: 100 at 1.00 and 20 at 0.50 = 110.00, less the 90.00 that were billed. Not a cent by DEARER.
    for _ in range(2):
        house.run("2026-11")
        assert lines(house, "2026-11") == [("flat", "fee", "1", 300), ("correction", LATE, "3E+1", 2000)]
    assert total(house, "2026-10") == 9300
    assert house.run("2026-11")[2].name == "unchanged"


def test_a_correction_is_closed_and_posted_once_and_names_what_it_corrects(closed):
    house = closed
    used(house, "30", "2026-10-09T00:00:00", received="2026-11-10T00:00:00")
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=3000)
    house.close("2026-11")
    assert house.run("2026-12")[-1].late == ()
    house.close("2026-11")
    assert lines(house, "2026-12") == [("flat", "fee", "1", 300)]
    assert accounts(house) == {"receivable": 9300 + 300 + 2000, "revenue": -11600}
    posted = {row["transaction_id"]: row for row in house.rows(tables.ledger_transactions)}
    (correction,) = [row for row in posted.values() if row["kind"] == "correction"]
    assert posted[correction["corrects"]]["memo"] == "in"
    # More of October: 120 -> 140 is 10.00 more, corrected against what was corrected already.
    used(house, "20", "2026-10-10T00:00:00", received="2026-12-06T00:00:00")
    house.at(at("2026-12-08"))
    house.collected("2026-12-07T00:00:00", position=4000)
    house.run("2026-12")
    assert lines(house, "2026-12") == [("flat", "fee", "1", 300), ("correction", LATE, "2E+1", 1000)]


def take_away(house, quantity):
    """A decision took the event of that quantity out of usage, as `decided.py` writes it."""
    house.world.client.command(
        "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
        "toDateTime64('2026-11-10 00:00:00', 6, 'UTC') AS decided_at, 'd1' AS decision_id) FROM events FINAL "
        f"WHERE quantity = {quantity}"
    )


def test_usage_that_is_taken_away_is_a_credit_on_the_next_rating(closed):
    house = closed
    take_away(house, 90)
    house.run("2026-11")
    assert lines(house, "2026-11") == [("flat", "fee", "1", 300), ("correction", LATE, "-9E+1", -9000)]
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=3000)
    house.close("2026-11")
    house.run("2026-12")
    assert lines(house, "2026-12") == [("flat", "fee", "1", 300)]
    assert accounts(house) == {"receivable": 9300 + 300 - 9000, "revenue": -600}


def test_by_policy_it_is_a_credit_note_and_a_debit_is_on_the_next_invoice_all_the_same(closed):
    house = closed
    policy(house, "credit_note")
    take_away(house, 90)
    house.run("2026-11")
    assert lines(house, "2026-11") == [("flat", "fee", "1", 300)] and house.rows(tables.credit_notes) == []
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=3000)
    for _ in range(2):
        house.close("2026-11")
    (note,) = house.rows(tables.credit_notes)
    assert (note["total_minor"], note["currency"], len(note["lines"])) == (-9000, "USD", 1)
    assert accounts(house) == {"receivable": 9300 + 300 - 9000, "revenue": -600}
    assert explained(house, note["lines"][0]["line_id"]) == ("credit note", (), 0)
    used(house, "40", "2026-10-09T00:00:00", received="2026-12-06T00:00:00")
    house.at(at("2026-12-08"))
    house.collected("2026-12-07T00:00:00", position=4000)
    house.run("2026-12")
    assert lines(house, "2026-12") == [("flat", "fee", "1", 300), ("correction", LATE, "4E+1", 4000)]
    (late,) = [row["line_id"] for row in house.rows(tables.rated_lines) if row["amount_minor"] == 4000]
    assert explained(house, late) == ("open", (), 1)


def explained(house, line_id):
    """Where a line is, what does not add up in it, and how many events are behind it."""
    (line,) = report.lines_named(house.world.engine, "test", line_id[:12])
    found = explain_events.behind(house.world, line, 20)
    return line["state"], found.problems, found.count


def test_by_policy_nothing_is_corrected_and_it_stays_listed(closed):
    house = closed
    policy(house, "none")
    used(house, "30", "2026-10-09T00:00:00", received="2026-11-10T00:00:00")
    steps = house.run("2026-11")
    assert lines(house, "2026-11") == [("flat", "fee", "1", 300)]
    assert [(it.meter, it.quantity) for it in house.run("2026-10")[-1].late] == [("llm.tokens.input", 30)]
    assert steps[-1].name == "mirrored"


def test_only_one_open_rating_carries_a_correction(closed):
    house = closed
    used(house, "30", "2026-10-09T00:00:00", received="2026-11-10T00:00:00")
    house.run("2026-12")
    house.run("2026-11")
    assert [kind for month in ("2026-11", "2026-12") for kind, *_ in lines(house, month)].count("correction") == 1
    house.at(at("2027-01-05"))
    house.collected("2027-01-05T00:00:00", position=3000)
    house.close("2026-11")
    house.close("2026-12")
    kinds = [kind for month in ("2026-11", "2026-12") for kind, *_ in lines(house, month)]
    assert kinds.count("correction") == 1 and accounts(house)["receivable"] == 9300 + 300 + 300 + 2000


def test_a_correction_fills_no_tier_of_the_month_whose_invoice_it_is_on(closed):
    used(closed, "30", "2026-10-03T00:00:00", received="2026-11-08T00:00:00")
    used(closed, "40", "2026-11-02T00:00:00")
    used(closed, "70", "2026-11-18T00:00:00")
    closed.run("2026-11-01..2026-11-16")
    closed.run("2026-11-16..2026-12-01")
    # The correction of 30 is October's: November's later part goes on from 40, 60 more are at 1.00 and 10 at 5.00.
    usage = [it[3] for it in lines(closed, "2026-11") if it[0] == "usage"]
    assert sorted(usage) == [4000, 11000]


def test_late_usage_without_a_price_is_listed_for_its_period_and_other_late_usage_is_billed(closed):
    house = closed
    used(house, "5", "2026-10-09T00:00:00", received="2026-11-10T00:00:00", meter="llm.tokens.output", model="big")
    used(house, "7", "2026-10-09T00:00:00", received="2026-11-10T00:00:00", meter="llm.tokens.output", model="small")
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=3000)
    house.close("2026-11")
    # 5 at 2.00 by October's book
    out = "out (big) (correction of 2026-10-01..2026-11-01)"
    assert lines(house, "2026-11") == [("flat", "fee", "1", 300), ("correction", out, "5", 1000)]
    (left,) = house.rows(tables.unrated_usage)
    assert (left["reason"], left["quantity"], f"{left['period_start']:%Y-%m}") == ("no_price", 7, "2026-10")
    assert house.run("2026-12")[2].name == "rated" and lines(house, "2026-12") == [("flat", "fee", "1", 300)]


def test_credits_come_back_where_the_usage_that_they_paid_is_taken_away(house):
    house.publish(BOOK)
    house.customer("acme", now=at("2026-10-01"))
    house.collected("2026-11-05T00:00:00")
    for amount, kind, name in ((3000, "promotional", "gift"), (4000, "bought", "wire")):
        wanted = Grant("", kind, amount, at("2026-10-01"))
        credit_changes.grant(
            house.world.engine, "test", "acme", wanted, None, reference=name, who="ann", why="x", now=at("2026-10-01")
        )
    used(house, "90", "2026-10-02T00:00:00")
    used(house, "10", "2026-10-03T00:00:00")
    house.close("2026-10")  # 100.00 of usage, 70.00 by credits, 3.00 fee
    assert accounts(house)["receivable"] == 3300
    house.collected("2026-11-21T00:00:00", position=2000)
    take_away(house, 90)
    # October comes to 10.00, all by the promotional credits: 30.00 of money and 60.00 of credits come back (40.00
    # bought, used last, then 20.00 promotional).
    house.run("2026-11")
    assert lines(house, "2026-11") == [
        ("flat", "fee", "1", 300),
        ("correction", LATE, "-9E+1", -9000),
        ("credit_restored", "Credits given back (correction of 2026-10-01..2026-11-01)", "1", 6000),
    ]
    _, grants = credit_changes.balance(house.world.engine, "test", "acme", at("2026-11-20"), with_open=True)
    assert {it.kind: it.left_minor for it in grants} == {"bought": 4000, "promotional": 2000}
    house.at(at("2026-12-05"))
    house.collected("2026-12-05T00:00:00", position=3000)
    house.close("2026-11")
    assert accounts(house) == {
        "cash": 4000, "deferred_credits": -6000, "promotions": 3000, "receivable": 3300 + 300 - 9000 + 6000,
        "revenue": -1000 - 600,
    }  # fmt: skip
    house.run("2026-12")
    assert [kind for kind, *_ in lines(house, "2026-12")] == ["flat"]


def test_a_plan_and_a_discount_of_later_change_nothing_of_a_closed_period(closed):
    house = closed
    used(house, "30", "2026-10-09T00:00:00", received="2026-11-10T00:00:00")
    from meterhouse_store import agreements

    agreements.add_quantity(house.world.engine, "test", "acme", "seats", Decimal(5), valid_from=at("2026-11-01"))
    house.publish(DEARER.replace("fee:", "fees:"), valid_from=at("2026-10-01"))
    house.run("2026-11")
    assert ("correction", LATE, "3E+1", 2000) in lines(house, "2026-11")


def test_close_due_closes_what_was_missed_month_by_month(closed):
    house = closed
    used(house, "10", "2026-12-02T00:00:00")
    house.at(at("2027-02-10"))
    house.collected("2027-02-10T00:00:00", position=3000)
    house.close(None)
    states = {f"{row['period_start']:%Y-%m}": row["state"] for row in house.rows(tables.ratings)}
    assert states == dict.fromkeys(("2026-10", "2026-11", "2026-12", "2027-01"), "closed")
    house.close(None)
    assert {f"{row['period_start']:%Y-%m}": row["state"] for row in house.rows(tables.ratings)} == states


# ---- levels ----------------------------------------------------------------------------------------------------------

LEVELS = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  stored: {unit: GB day, meters: [agent.seconds], aggregate: time_weighted, per: day, of: agent_id}
  seats: {unit: seat, meters: [api.calls], aggregate: latest}
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, price: 1.00}
      store: {model: per_unit, metric: stored, price: 0.10}
      seats: {model: per_unit, metric: seats, price: 5.00}
"""


def known(house, day, position=1000):
    house.at(at(day))
    house.collected(f"{day}T00:00:00", position=position)


@pytest.fixture
def held(house):
    """10 GB since 20 October and 4 seats since the 2nd, October to December closed, each on the 5th after it."""
    house.publish(LEVELS)
    house.customer("acme", now=at("2026-10-01"))
    known(house, "2026-11-05")
    used(house, "10", "2026-10-20T00:00:00", meter="agent.seconds", agent_id="a", event_id="stored")
    used(house, "4", "2026-10-02T00:00:00", meter="api.calls", event_id="seats")
    house.close("2026-10")
    known(house, "2026-12-05", position=2000)
    house.close("2026-11")
    known(house, "2027-01-05", position=3000)
    house.close("2026-12")
    known(house, "2027-01-21", position=4000)
    return house


def corrections(house, month):
    return [(what, quantity, amount) for kind, what, quantity, amount in lines(house, month) if kind == "correction"]


NOVEMBER, DECEMBER = "(correction of 2026-11-01..2026-12-01)", "(correction of 2026-12-01..2027-01-01)"


def test_a_level_that_came_late_corrects_the_closed_months_that_it_goes_on_into(held):
    # 120 GB days in October, 300 in November, 310 in December, and 4 seats in each.
    assert [total(held, month) for month in ("2026-10", "2026-11", "2026-12")] == [3200, 5000, 5100]
    used(held, "4", "2026-10-25T00:00:00", "2027-01-10T00:00:00", "agent.seconds", agent_id="a")
    held.run("2027-01")
    # 6 GB less for the 7 days that were left of October, for 30 and for 31.
    assert corrections(held, "2027-01") == [
        ("store (correction of 2026-10-01..2026-11-01)", "-42", -420),
        (f"store {NOVEMBER}", "-1.8E+2", -1800),
        (f"store {DECEMBER}", "-186", -1860),
    ]
    known(held, "2027-02-05", position=5000)
    held.close("2027-01")
    known(held, "2027-02-21", position=6000)
    held.run("2027-02")
    assert corrections(held, "2027-02") == []
    assert prove(held.world.engine, "test").problems == []


def test_a_level_goes_on_no_further_than_to_the_next_event_and_other_late_usage_not_at_all(held):
    used(held, "7", "2026-11-30T12:00:00", "2027-01-10T00:00:00", "api.calls")
    used(held, "9", "2026-10-25T00:00:00", "2027-01-10T00:00:00")
    used(held, "1", "2026-12-31T00:00:00", "2027-01-10T00:00:00", "api.calls")
    held.run("2027-01")
    # 7 seats instead of 4 at November's end, and 1 at December's.
    assert corrections(held, "2027-01") == [
        ("in (correction of 2026-10-01..2026-11-01)", "9", 900),
        (f"seats {NOVEMBER}", "3", 1500),
        (f"seats {DECEMBER}", "-3", -1500),
    ]
