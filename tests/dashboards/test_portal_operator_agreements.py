"""Operators give customers add-ons, prices of their own, discounts and quantities in forms, by the commands' rules."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from portal_samples import BOOK, NOW, form_token, portal_world, text_of, visiting

from meterhouse_portal import members
from meterhouse_rating import outlook, publishing
from meterhouse_rating.publishing import Person
from meterhouse_store import agreements, audit_book

ANNA, BEN = "anna@operator.example", "ben@operator.example"
WITH_ADD_ON = (
    BOOK
    + """
addons:
  support: {title: Support, components: {care: {model: flat, price: 20.00}}}
"""
)
DECEMBER = datetime(2026, 11, 30, 23, tzinfo=UTC)
"""Its beginning in Berlin, where acme is."""
HALF = "model: per_unit\nmetric: input_tokens\nper: 1000\nprice: 1.00\n"


@pytest.fixture
def world(warehouse_address, tmp_path):
    with portal_world(warehouse_address, tmp_path / "data", WITH_ADD_ON) as made:
        for email in (ANNA, BEN):
            members.set_operator(made[0].engine, "live", email, True, who="tests", now=NOW)
        yield made


@pytest.fixture
def anna(world):
    with visiting(world, ANNA) as browser:
        yield browser


def sent(browser, act, why="order 7", customer="acme", **fields):
    """The answer to a form of the customer's page; a name with `__` stands for one with a hyphen."""
    token = form_token(browser.get("/operator/customers").text)
    told = {name.replace("__", "-"): value for name, value in fields.items()}
    return browser.post(
        "/operator/customers", data={"form": token, "act": act, "customer": customer, "why": why} | told
    )


def looked_at(browser, text, component="input", **fields):
    """The page of a price that is checked."""
    token = form_token(browser.get("/operator/customers").text)
    form = {"form": token, "customer": "acme", "component": component, "text": text, "valid_from": "2026-12-01"}
    return browser.post("/operator/price", data=form | fields)


def test_a_price_of_its_own_is_checked_compared_and_simulated_before_it_is_saved(world, anna):
    at, _ = world
    begun = anna.get("/operator/price?customer=acme&component=input").text
    assert "model: per_unit, metric: input_tokens, per: 1000, price: 2.00" in text_of(begun)
    wrong = looked_at(anna, "model: per_unit\nmetric: nothing\nprice: cheap\n")
    assert wrong.status_code == 422 and "Line 2" in text_of(wrong.text) and "Line 3" in text_of(wrong.text)
    assert 'value="price"' not in wrong.text  # with mistakes nothing can be saved
    told = looked_at(anna, HALF)
    shown = text_of(told.text)
    # October: 300,000 tokens at 2.00 per thousand are 600.00, at 1.00 300.00; four tool calls are 2.00 either way.
    assert "Now 602.00 EUR With this price 302.00 EUR Change -300.00 EUR" in shown
    assert "+price: 1.00" in shown
    assert agreements.overrides(at.engine, "live") == []
    saved = sent(anna, "price", component="input", text=HALF.replace("\n", "\r\n"), valid_from="2026-12-01")
    assert "It has a price of its own for input from 2026-12-01 (Europe/Berlin) on." in text_of(saved.text)
    (own,) = agreements.overrides(at.engine, "live", "acme")
    assert (own.source, own.valid_from, own.valid_until) == (HALF, DECEMBER, None)
    begun = anna.get("/operator/price?customer=acme&component=input").text
    assert "price: 2.00" in begun  # what holds in December is not what holds now
    late = sent(anna, "price", component="input", text=HALF, valid_from="2026-10-01")
    assert late.status_code == 422 and "is closed" in text_of(late.text)
    crafted = sent(anna, "price", component="input", text="model: per_unit", valid_from="2027-01-01")
    assert crafted.status_code == 422 and len(agreements.overrides(at.engine, "live")) == 1
    much = sent(anna, "price", component="input", text=HALF + "# " + "x" * 10_000, valid_from="2027-01-01")
    assert much.status_code == 422 and "at most 10,000 characters" in text_of(much.text)
    for query in ("customer=acme&component=none", "customer=nobody&component=input", ""):
        assert anna.get(f"/operator/price?{query}").status_code == 404


def test_a_discount_is_a_coupon_off_what_was_chosen_and_prices_the_month_under_way(world, anna):
    at, _ = world
    before = outlook.look(at, "acme").so_far_minor
    assert before == 120_050  # 20 times 30,000 tokens are 1,200.00, and a tool call is 0.50
    fields = {"title": "Launch coupon", "percent": "10", "months": "2", "valid_from": "2026-11-01", "of__input": "yes"}
    both = sent(anna, "discount", **fields, amount="5")
    assert both.status_code == 422 and "give one of the two" in text_of(both.text)
    assert "no number" in text_of(sent(anna, "discount", **fields | {"percent": "ten"}).text)
    assert "has no component gone" in text_of(sent(anna, "discount", **fields, of__gone="yes").text)
    done = sent(anna, "discount", **fields)
    assert "It has the discount Launch coupon from 2026-11-01 (Europe/Berlin) on." in text_of(done.text)
    sent(anna, "discount", **fields)  # sent twice it is one
    (made,) = agreements.discounts(at.engine, "live", "acme")
    assert (made.percent, made.months, made.components) == (Decimal(10), 2, ["input"])
    assert outlook.look(at, "acme").so_far_minor == before - 12_000
    shown = text_of(anna.get("/operator/customer?id=acme").text)
    assert "discount Launch coupon 10 % of input, 2 months from 2026-11-01" in shown


def test_add_ons_and_quantities_are_added_and_ended_and_the_audit_log_has_who(world, anna):
    at, _ = world
    assert "no add-on gold" in text_of(sent(anna, "add-on", addon="gold", valid_from="2026-12-01").text)
    none = sent(anna, "add-on", addon="support", quantity="0", valid_from="2026-12-01")
    assert none.status_code == 422 and agreements.addons(at.engine, "live") == []
    assert "from which day" in text_of(sent(anna, "add-on", addon="support").text)
    done = sent(anna, "add-on", addon="support", quantity="2", valid_from="2026-12-01", valid_until="2027-02-01")
    assert "It has the add-on support 2026-12-01 to 2027-02-01 (Europe/Berlin)." in text_of(done.text)
    assert sent(anna, "quantity", counted="seats", quantity="12", valid_from="2026-12-01").status_code == 200
    (seats,) = agreements.quantities(at.engine, "live", "acme")
    assert (seats.name, seats.quantity, seats.valid_from) == ("seats", Decimal(12), DECEMBER)
    sent(anna, "add-on", addon="support", valid_from="2027-03-01")
    (_, second) = agreements.addons(at.engine, "live", "acme")
    theirs = sent(anna, "end", agreement=second.agreement_id, at="2027-04-01", customer="globex")
    assert theirs.status_code == 422 and "no such agreement" in text_of(theirs.text)
    ended = sent(anna, "end", agreement=second.agreement_id, at="2027-04-01")
    assert "It holds 2027-03-01 to 2027-04-01 (Europe/Berlin)." in text_of(ended.text)
    # Midnight in Berlin, which has summer time then.
    assert agreements.addons(at.engine, "live", "acme")[1].valid_until == datetime(2027, 3, 31, 22, tzinfo=UTC)
    logged = [it for it in audit_book.entries(at.engine, "live", limit=50) if it.who == ANNA]
    assert any("support" in f"{it.subject} {it.details}" for it in logged)
    assert any("seats" in f"{it.subject} {it.details}" for it in logged)


def test_where_prices_take_two_persons_an_own_price_waits_and_is_read_by_the_other(world, anna):
    at, _ = world
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    assert "Ask for approval" in looked_at(anna, HALF).text
    waits = sent(anna, "price", component="input", text=HALF, valid_from="2026-12-01")
    assert "It waits for another operator" in text_of(waits.text)
    assert sent(anna, "discount", title="Coupon", amount="5", valid_from="2026-12-01").status_code == 200
    assert agreements.overrides(at.engine, "live") == [] and agreements.discounts(at.engine, "live") == []
    page = anna.get("/operator/customers").text
    assert "metric: input_tokens\nper: 1000\nprice: 1.00" in page
    (name,) = re.findall(
        r'name="change" value="([0-9a-f]{64})"', page.partition("per: 1000")[2].partition("</form>")[0]
    )
    mine = {"form": form_token(page), "change": name, "act": "approve", "why": "me too"}
    assert anna.post("/operator/changes", data=mine).status_code == 422
    with visiting(world, BEN) as ben:
        theirs = mine | {"form": form_token(ben.get("/operator/customers").text)}
        assert ben.post("/operator/changes", data=theirs).status_code == 303
    (own,) = agreements.overrides(at.engine, "live", "acme")
    assert own.source == HALF and agreements.discounts(at.engine, "live") == []
