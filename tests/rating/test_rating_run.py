"""`rate run` and `rate close` against real stores: totals by hand, repetition, late usage, refusals."""

from datetime import timedelta

import pytest
from rating_samples import at

from meterhouse_rating.periods import PeriodError
from meterhouse_rating.report import as_json, as_text, imagined, stored
from meterhouse_rating.results import Moment
from meterhouse_rating.run import NotYet, Request, close, run
from meterhouse_rating.settle import WatermarkWentBack
from meterhouse_rating.versions import NotThere
from meterhouse_store import registry, tables

BOOK = """
book: test
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  output: {unit: token, meters: [llm.tokens.output]}
unbilled:
  meters: [llm.requests]
plans:
  pay:
    components:
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
      out: {model: per_unit, metric: output, per: 1000, by: [model], prices: [{model: big, price: 9.00}], default: none}
  team:
    unbilled: [llm.tokens.input]
    components:
      fee: {model: flat, price: 49.00, included: {output: 1000}, overage: {output: {per: 1000, tiers: [{price: 5.00}]}}}
  prepaid:
    unbilled: [llm.tokens.output]
    components:
      pack: {model: credit_pack, price: 10.00, credits: 12.00}
      in: {model: per_unit, metric: input, per: 1000, price: 2.00}
"""


def totals(house):
    return {(row["customer_id"], row["state"]): row["total_minor"] for row in house.rows(tables.ratings)}


def unrated(house):
    return {
        (row["customer_id"], row["meter"], row["reason"]): row["quantity"] for row in house.rows(tables.unrated_usage)
    }


def test_an_amount_that_nothing_can_hold_is_no_rating_and_keeps_nobody_elses(house):
    """A price that was mistyped, and a great quantity: 10^15 tokens at 100,000,000.00 each are 10^25 cents."""
    mad = "  mad:\n    components:\n      in: {model: per_unit, metric: input, per: 1, price: 100000000.00}\n"
    house.publish(BOOK + mad)
    house.customer("acme")
    house.customer("mad", plan="mad")
    house.customer("zoo")
    house.collected()
    for customer_id in ("acme", "zoo"):
        house.event(customer_id, "llm.tokens.input", "1500", "2026-10-01T00:00:00", model="big")
    house.event("mad", "llm.tokens.input", "50000", "2026-10-01T00:00:00")
    house.run()
    assert totals(house)["mad", "open"] == 5 * 10**14
    house.event("mad", "llm.tokens.input", "1000000000000000", "2026-10-02T00:00:00")
    house.run()
    assert totals(house) == {("acme", "open"): 300, ("zoo", "open"): 300}
    [left] = house.rows(tables.unrated_usage)
    assert (left["customer_id"], left["reason"], left["quantity"]) == ("mad", "amount_too_large", 10**15 + 50000)
    assert (
        "in would come to 100000000005000000000000.00 USD, and at most 10,000,000,000,000 can be charged"
        in left["hint"]
    )
    house.close()
    assert totals(house) == {("acme", "closed"): 300, ("zoo", "closed"): 300}
    house.publish(BOOK + mad.replace("100000000.00", "0.001"), valid_from=at("2026-10-01"))
    house.close()
    assert totals(house)["mad", "closed"] == 10**14 + 5000


def test_a_month_is_priced_per_customer_and_nothing_is_lost(house):
    house.publish(BOOK)
    house.customer("acme")
    house.customer("globex", plan="team")
    house.collected()
    house.event("acme", "llm.tokens.input", "1500", "2026-10-01T00:00:00", model="big")
    house.event("acme", "llm.tokens.output", "500", "2026-10-31T23:59:59", model="big")
    house.event("acme", "llm.tokens.output", "70", "2026-10-15T00:00:00", model="strange")
    house.event("acme", "llm.tokens.output", "30", "2026-10-15T00:00:00", model="big", status="failed")
    house.event("acme", "llm.tokens.input", "99999", "2026-11-01T00:00:00", model="big")
    house.event("globex", "llm.tokens.output", "1200", "2026-10-15T00:00:00")
    steps = house.run()
    # acme: 1,500 * 2 / 1,000 + 500 * 9 / 1,000 = 3.00 + 4.50; globex: 49.00 + 200 * 5 / 1,000 = 50.00
    assert totals(house) == {("acme", "open"): 750, ("globex", "open"): 5000}
    assert unrated(house) == {
        ("acme", "llm.tokens.output", "no_price"): 70,
        ("acme", "llm.tokens.output", "unbilled_status"): 30,
    }
    assert [str(step) for step in steps] == [
        "watermark as of 2026-11-21T12:00:00+00:00 (c1 at segment-1:1000)",
        "usage 2026-10-01..2026-11-01: 5 events of 2 customers",
        "rated acme 7.50 USD 2026-10-01..2026-11-01 (unrated usage: no_price)",
        "rated globex 50.00 USD 2026-10-01..2026-11-01",
        "mirrored 2 ratings copied to the warehouse",
    ]


def test_a_second_run_writes_nothing_and_a_new_event_changes_only_its_customer(house):
    house.publish(BOOK)
    house.customer("acme")
    house.customer("globex")
    house.collected("2026-11-21T11:00:00")
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.event("globex", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.run()
    before = house.rows(tables.ratings), house.rows(tables.rated_lines)
    house.at(at("2026-11-21T13:00:00"))
    house.collected("2026-11-21T12:30:00", position=2000)
    assert [step.name for step in house.run()] == ["watermark", "usage", "unchanged", "unchanged"]
    assert (house.rows(tables.ratings), house.rows(tables.rated_lines)) == before
    house.event("globex", "llm.tokens.input", "500", "2026-10-03T00:00:00")
    assert [step.name for step in house.run()] == ["watermark", "usage", "unchanged", "rated", "mirrored"]
    assert totals(house) == {("acme", "open"): 200, ("globex", "open"): 300}


def test_the_mirror_shows_the_lines_of_the_last_run_only(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.run()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-03T00:00:00")
    house.run()
    query = "SELECT customer_id, component, amount_minor FROM rated_lines ORDER BY line_id"
    assert house.world.client.query(query).result_rows == [("acme", "in", 400)]


def test_a_customer_that_nobody_registered_is_listed_with_the_command_and_priced_once_it_is_there(house):
    house.publish(BOOK)
    house.collected()
    house.event("new co", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.run()
    (row,) = house.rows(tables.unrated_usage)
    assert (row["reason"], row["hint"]) == (
        "customer_not_registered",
        "meterhouse customers add 'new co' --plan pay|prepaid|team",
    )
    house.customer("new co")
    house.run()
    assert house.rows(tables.unrated_usage) == []
    assert totals(house) == {("new co", "open"): 200}


def test_with_a_default_plan_a_new_customer_is_registered_and_priced_at_once(house):
    registry.ensure_namespace(house.world.engine, "test", default_plan="pay")
    house.publish(BOOK)
    house.collected()
    house.event("newco", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    assert "registered newco on plan pay, first seen in usage" in [str(step) for step in house.run()]
    assert totals(house) == {("newco", "open"): 200}
    assert registry.customers(house.world.engine, "test")[0].origin == "auto"


def test_a_meter_that_is_not_declared_is_listed_with_the_lines_to_add(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "pages.read", "12.5", "2026-10-02T00:00:00")
    house.run()
    (row,) = house.rows(tables.unrated_usage)
    assert (row["reason"], str(row["quantity"].normalize())) == ("meter_not_declared", "12.5")
    assert 'below `meters:` the line pages.read: {unit: "1"' in row["hint"]


def test_months_are_those_of_each_customers_time_zone(house):
    house.publish(BOOK)
    house.customer("berlin", time_zone="Europe/Berlin")
    house.customer("utc")
    house.collected()
    for customer in ("berlin", "utc"):
        house.event(customer, "llm.tokens.input", "1000", "2026-09-30T22:30:00")
        house.event(customer, "llm.tokens.input", "5000", "2026-10-31T23:30:00")
    house.run()
    assert totals(house) == {("berlin", "open"): 200, ("utc", "open"): 1000}


def test_closing_freezes_the_lines_and_posts_a_ledger_that_sums_to_zero(house):
    house.publish(BOOK)
    house.customer("acme", plan="prepaid")
    house.collected()
    house.event("acme", "llm.tokens.input", "7000", "2026-10-02T00:00:00")
    house.run()
    house.close()
    # pack 10.00 for 12.00 of credits; usage 14.00; credits pay 12.00; the customer owes 10 + 14 - 12 = 12.00
    assert totals(house) == {("acme", "closed"): 1200}
    accounts: dict[str, int] = {}
    per_transaction: dict[str, int] = {}
    for entry in house.rows(tables.ledger_entries):
        accounts[entry["account"]] = accounts.get(entry["account"], 0) + entry["amount_minor"]
        key = entry["transaction_id"]
        per_transaction[key] = per_transaction.get(key, 0) + entry["amount_minor"]
    assert accounts == {"receivable": 1200, "revenue": -1400, "promotions": 200, "deferred_credits": 0}
    assert set(per_transaction.values()) == {0} and len(per_transaction) == 3
    before = [house.rows(table) for table in (tables.ratings, tables.rated_lines, tables.ledger_transactions)]
    assert [step.name for step in house.close()] == ["watermark", "usage", "already_closed"]
    assert [house.rows(table) for table in (tables.ratings, tables.rated_lines, tables.ledger_transactions)] == before
    mirrored = house.world.client.query("SELECT sum(amount_minor), count() FROM ledger_entries").result_rows
    # the pack 4 (10.00 bought, 2.00 promotional credits), the usage 2, the credits applied 3
    assert mirrored == [(0, 9)]


def test_a_month_can_be_closed_without_a_run_before(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.close()
    assert totals(house) == {("acme", "closed"): 200}


def test_credits_left_over_pay_the_next_month_and_the_pack_is_bought_once(house):
    house.publish(BOOK)
    house.customer("acme", plan="prepaid")
    house.collected()
    house.event("acme", "llm.tokens.input", "2000", "2026-09-02T00:00:00")
    house.event("acme", "llm.tokens.input", "5000", "2026-10-02T00:00:00")
    # September: pack 10.00, usage 4.00 paid by credits, 8.00 left. October: usage 10.00, 8.00 paid.
    house.run("2026-09")
    house.run("2026-10")
    assert totals_by_month(house) == {"2026-09": 1000, "2026-10": 200}
    house.close("2026-09")
    house.run("2026-10")
    house.close("2026-10")
    assert totals_by_month(house) == {"2026-09": 1000, "2026-10": 200}
    house.event("acme", "llm.tokens.input", "1000", "2026-11-02T00:00:00")
    house.run("2026-11")
    assert totals_by_month(house)["2026-11"] == 200


def totals_by_month(house):
    return {f"{row['period_start']:%Y-%m}": row["total_minor"] for row in house.rows(tables.ratings)}


def test_a_month_is_closed_only_after_the_month_before_it(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "2000", "2026-09-02T00:00:00")
    house.run("2026-09")
    with pytest.raises(PeriodError, match=r"acme: close 2026-09-01\.\.2026-10-01 before"):
        house.close("2026-10")


def test_late_usage_of_a_closed_month_is_reported_and_leaves_the_month_as_it_was(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected("2026-11-05T00:00:00")
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.close()
    house.event("acme", "llm.tokens.input", "300", "2026-10-09T00:00:00", received="2026-11-20T00:00:00")
    house.collected("2026-11-21T00:00:00", position=2000)
    steps = house.run()
    assert [(it.customer_id, it.meter, it.quantity) for it in steps[-1].late] == [("acme", "llm.tokens.input", 300)]
    assert totals(house) == {("acme", "closed"): 200}
    assert str(steps[-1]) == "late 1 event arrived after the period was closed, on the next invoice"
    (found,) = [step.late for step in house.run(None) if step.late]
    assert found == steps[-1].late
    assert house.close()[-1].late == steps[-1].late


def test_usage_received_after_the_closing_moment_is_not_rated_by_it(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected("2026-11-05T00:00:00")
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00", received="2026-11-05T00:00:01")
    house.event("acme", "llm.tokens.input", "2000", "2026-10-02T00:00:00", received="2026-11-05T00:00:00")
    house.close()
    assert totals(house) == {("acme", "closed"): 400}


def test_a_month_that_is_not_over_is_not_closed(house):
    house.publish(BOOK)
    with pytest.raises(NotYet, match=r"2026-11 can be closed from 2026-12-01T01:00:00\+00:00 on"):
        house.close("2026-11")


def test_closing_waits_a_bounded_time_for_every_collector(house):
    house.publish(BOOK)
    house.customer("acme")
    with pytest.raises(NotYet, match="no collector has written"):
        house.close()
    house.collected("2026-11-01T00:59:59", name="slow")
    house.collected("2026-11-01T01:00:00", name="fast")
    with pytest.raises(NotYet, match="waiting: slow"):
        house.close()
    house.collected("2026-11-01T01:00:00", name="slow")
    assert house.close()[0].name == "watermark"


def test_closing_goes_on_as_soon_as_the_warehouse_is_complete(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.customer("acme")
    house.collected("2026-11-01T00:00:00")
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        house.collected("2026-11-02T00:00:00", position=2000)

    object.__setattr__(house.world, "sleep", sleep)
    steps = close(house.world, Request("2026-10"), grace=timedelta(hours=1), wait_s=30)
    assert next(steps).name == "watermark" and slept == [0.5]


def test_a_period_that_overlaps_a_closed_one_is_refused_and_due_rates_what_lies_beside_it(house):
    house.publish(BOOK)
    house.customer("acme", plan="team")
    house.collected()
    for day in ("05", "12", "25"):
        house.event("acme", "llm.tokens.output", "600", f"2026-10-{day}T00:00:00")
    house.close("2026-10-10..2026-10-20")
    with pytest.raises(PeriodError, match=r"overlaps closed ones: acme 2026-10-10\.\.2026-10-20"):
        house.run("2026-10")
    house.at(at("2026-10-31T00:00:00"))
    house.run(None)
    # The fee is charged once in the month and 1,000 of the month's 1,800 are included, whichever part comes first.
    lines = [(row["kind"], row["quantity"], row["amount_minor"]) for row in house.rows(tables.rated_lines)]
    assert sum(amount for _, _, amount in lines) == 4900 + 400
    assert [kind for kind, _, _ in lines].count("flat") == 1
    assert sorted(str(quantity.normalize()) for kind, quantity, _ in lines if kind == "usage") == ["6E+2"] * 3


def test_due_charges_a_recurring_fee_in_months_without_usage(house):
    house.publish(BOOK)
    house.customer("acme", plan="team", now=at("2026-09-15"))
    house.customer("payer", plan="pay", now=at("2026-09-15"))
    house.collected()
    house.run(None)
    assert totals_by_month(house) == {"2026-09": 4900, "2026-10": 4900, "2026-11": 4900}


def test_another_window_replaces_the_open_rating_it_overlaps(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.event("acme", "llm.tokens.input", "1000", "2026-10-22T00:00:00")
    house.run("2026-10")
    house.run("2026-10-15..2026-11-01")
    assert totals_by_month(house) == {"2026-10": 200} and len(house.rows(tables.ratings)) == 1


def test_a_warehouse_that_went_backwards_is_refused(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected(position=2000)
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.run()
    house.world.client.command("TRUNCATE TABLE checkpoints")
    house.collected(position=1999)
    house.event("acme", "llm.tokens.input", "1000", "2026-10-03T00:00:00")
    with pytest.raises(WatermarkWentBack, match="c1 went backwards"):
        house.run()
    assert totals(house) == {("acme", "open"): 200}


def test_a_dry_run_writes_nothing(house):
    registry.ensure_namespace(house.world.engine, "test", default_plan="pay")
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.event("newco", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    steps = [str(step) for step in house.run(dry_run=True)]
    assert "rated acme 2.00 USD 2026-10-01..2026-11-01 (dry run)" in steps
    assert house.rows(tables.ratings) == house.rows(tables.unrated_usage) == []
    assert [customer.customer_id for customer in registry.customers(house.world.engine, "test")] == ["acme"]


def test_without_a_price_book_the_run_says_how_to_publish_one(house):
    with pytest.raises(NotThere, match="meterhouse prices publish"):
        house.run()


def test_a_plan_or_currency_that_the_book_lacks_leaves_the_customer_unrated(house):
    house.publish(BOOK)
    house.customer("acme", plan="gold")
    house.customer("euro", currency="EUR")
    house.collected()
    for customer in ("acme", "euro"):
        house.event(customer, "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.run()
    hints = {row["customer_id"]: row["hint"] for row in house.rows(tables.unrated_usage)}
    assert hints == {
        "acme": "price book version 1 has no plan gold (it has pay, team, prepaid): add the plan, then meterhouse "
        "prices publish FILE --valid-from 2026-10-01; or meterhouse customers add acme --plan PLAN "
        "--valid-from 2026-10-01",
        "euro": "plan pay is priced in USD, the customer pays in EUR: meterhouse customers add euro --currency USD, "
        "give it a plan in EUR, or add to the price book: rates: [{from: USD, to: EUR, rate: ..., "
        "valid_from: 2026-10-01}]",
    }
    assert house.rows(tables.ratings) == []


def test_the_book_in_force_at_the_start_of_a_period_prices_all_of_it(house):
    house.publish(BOOK)
    house.publish(BOOK.replace("price: 2.00", "price: 3.00"), valid_from=at("2026-10-10"))
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-20T00:00:00")
    house.event("acme", "llm.tokens.input", "1000", "2026-11-02T00:00:00")
    house.run("2026-10")
    house.run("2026-11")
    assert totals_by_month(house) == {"2026-10": 200, "2026-11": 300}


def test_what_a_hint_for_a_missing_price_says_to_do_prices_the_period(house):
    house.publish(BOOK)
    house.customer("acme")
    house.customer("berlin", time_zone="Europe/Berlin")
    house.collected()
    for customer in ("acme", "berlin"):
        house.event(customer, "llm.tokens.output", "1000", "2026-10-15T00:00:00", model="new")
    house.run()
    hints = {row["customer_id"]: row["hint"] for row in house.rows(tables.unrated_usage)}
    to_add = "below `prices` of the component `out` (line 13) add: - {model: 'new', price: ...}"
    assert hints == {
        "acme": f"{to_add}; then meterhouse prices publish FILE --valid-from 2026-10-01",
        "berlin": f"{to_add}; then meterhouse prices publish FILE --valid-from 2026-09-30T22:00:00Z",
    }
    mended = BOOK.replace("prices: [", "prices: [{model: new, price: 7.00}, ")
    house.publish(mended, now=at("2026-11-21"))
    house.run()
    assert len(house.rows(tables.unrated_usage)) == 2  # valid from now: too late for the period
    house.publish(mended, valid_from=at("2026-09-30T22:00:00"))
    house.run()
    assert house.rows(tables.unrated_usage) == [] and totals(house) == {("acme", "open"): 700, ("berlin", "open"): 700}


def test_a_dry_run_of_closing_says_that_nothing_was_closed(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    steps = house.close(dry_run=True)
    assert str(steps[-1]) == "would close acme 2.00 USD 2026-10-01..2026-11-01 (dry run)"
    outcomes = [step.outcome for step in steps if step.outcome]
    text = as_text(imagined("test", outcomes, Moment(at("2026-11-21"), {}, at("2026-11-21")), ()))
    assert text.startswith("acme  2026-10-01..2026-11-01  plan pay, price book version 1, not written (dry run)\n")
    assert house.rows(tables.ratings) == []


@pytest.mark.parametrize("open_first", [False, True])
def test_a_dry_run_of_closing_months_goes_on_from_one_to_the_next(sqlite_house, open_first):
    house = sqlite_house
    house.publish(BOOK, now=at("2026-08-01"))
    house.customer("acme", plan="prepaid", now=at("2026-09-01"), valid_from=at("2026-09-01"))
    house.collected()
    for when in ("2026-09-02", "2026-10-02"):
        house.event("acme", "llm.tokens.input", "8000", f"{when}T00:00:00")
    if open_first:
        house.run(None)
    steps = house.close(None, dry_run=True)
    # A pack of 10.00 is bought once and gives 12.00; usage is 16.00 each month: 10.00 + 4.00, then all of it.
    told = [str(it) for it in steps if it.outcome]
    assert told == [
        "would close acme 14.00 USD 2026-09-01..2026-10-01 (dry run)",
        "would close acme 16.00 USD 2026-10-01..2026-11-01 (dry run)",
    ]
    assert [it.name for it in house.close(None) if it.outcome] == ["closed", "closed"]
    assert totals_by_month(house) | {"2026-11": 0} == {"2026-09": 1400, "2026-10": 1600, "2026-11": 0}


@pytest.mark.parametrize("what", ["run", "close"])
def test_a_dry_run_corrects_a_closed_period_once(sqlite_house, what):
    house = sqlite_house
    house.publish(BOOK, now=at("2026-07-01"))
    house.customer("acme", now=at("2026-08-01"), valid_from=at("2026-08-01"))
    for when in ("2026-08-02", "2026-09-02", "2026-10-02"):
        house.event("acme", "llm.tokens.input", "1000", f"{when}T00:00:00")
    house.at(at("2026-09-03"))
    house.collected("2026-09-03T00:00:00")
    house.close("2026-08")
    house.at(at("2026-11-21"))
    house.collected("2026-11-21T00:00:00", position=2000)
    house.event("acme", "llm.tokens.input", "500", "2026-08-03T00:00:00", received="2026-11-01T00:00:00")
    steps = getattr(house, what)(None, dry_run=True)
    told = {
        it.outcome.period.start.month: it.outcome.rated.total_minor for it in steps if it.outcome and it.outcome.rated
    }
    assert told == {9: 200 + 100, 10: 200}  # 2.00 each, and 1.00 for the 500 of August
    getattr(house, what)(None)
    assert {k: v for k, v in totals_by_month(house).items() if v} == {"2026-08": 200, "2026-09": 300, "2026-10": 200}


def test_a_period_that_is_none_is_refused_before_anything_is_printed(house):
    house.publish(BOOK)
    house.collected()
    with pytest.raises(PeriodError, match="is no period"):
        next(run(house.world, Request("november")))


def test_unrated_usage_is_listed_once_per_cause(sqlite_house):
    house = sqlite_house
    house.publish(BOOK)
    house.collected()
    house.customer("gold", plan="gold")
    house.event("gold", "llm.tokens.output", "7", "2026-10-02T00:00:00")
    house.event("gold", "llm.tokens.input", "12000", "2026-10-02T00:00:00")
    house.event("gold", "llm.tokens.input", "345", "2026-10-03T00:00:00")
    for number in range(1, 8):
        house.event(f"new {number}", "llm.tokens.input", "1000", "2026-10-02T00:00:00")
    house.customer("acme")
    for meter in ("tool.calls", "api.calls"):
        house.event("acme", meter, "1", "2026-10-02T00:00:00")
    house.run()
    assert as_text(stored(house.world.engine, "test", "2026-10", None)).partition("Unrated usage")[2].splitlines() == [
        " (what to do)",
        "  customer_not_registered: 7 events of new 1, new 2, new 3, new 4, new 5 and 2 more",
        "    llm.tokens.input 7,000",
        "    -> meterhouse customers add CUSTOMER --plan pay|prepaid|team",
        "  no_price: 3 events of gold",
        "    llm.tokens.input 12,345; llm.tokens.output 7",
        "    -> price book version 1 has no plan gold (it has pay, team, prepaid): add the plan, then meterhouse "
        "prices publish FILE --valid-from 2026-10-01; or meterhouse customers add gold --plan PLAN "
        "--valid-from 2026-10-01",
        "  no_price: 2 events of acme",
        "    api.calls 1; tool.calls 1",
        "    -> add METER to a metric of the price book test, or to `unbilled: {meters: [METER]}`; then meterhouse "
        "prices publish FILE --valid-from 2026-10-01",
    ]


def test_the_report_says_per_meter_what_was_used_rated_free_and_unrated(house):
    house.publish(BOOK)
    house.customer("acme")
    house.collected()
    house.event("acme", "llm.tokens.output", "500", "2026-10-02T00:00:00", model="big")
    house.event("acme", "llm.tokens.output", "70", "2026-10-02T00:00:00", model="strange")
    house.event("acme", "llm.requests", "3", "2026-10-02T00:00:00")
    house.run()
    found = stored(house.world.engine, "test", "2026-10", None)
    (rating,) = as_json(found)["ratings"]
    assert rating["meters"] == {
        "llm.requests": {"used": "3", "rated": "0", "unbilled": "3", "unrated": "0"},
        "llm.tokens.output": {"used": "570", "rated": "500", "unbilled": "0", "unrated": "70"},
    }
    assert (rating["total"], rating["total_minor"], found.exceptions) == ("4.50", 450, True)
    line_id = rating["lines"][0]["line_id"]
    assert as_text(found).splitlines()[:5] == [
        "acme  2026-10-01..2026-11-01  plan pay, price book version 1, open",
        f"  out (big)     500  tokens          4.50  USD  {line_id[:10]}",
        "  llm.requests    3  unbilled_meter  free",
        "  Total                              4.50  USD",
        "",
    ]
