"""Operators give customers add-ons, prices of their own, discounts and quantities in forms, by the commands' rules."""

import html
import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from portal_samples import BOOK, NOW, form_token, portal_world, text_of, visiting
from sqlalchemy import select

from meterhouse_portal import members
from meterhouse_rating import outlook, publishing
from meterhouse_rating.publishing import Person
from meterhouse_store import agreements, audit_book, registry, tables

ANNA, BEN = "anna@operator.example", "ben@operator.example"
WITH_ADD_ON = (
    BOOK
    + """
addons:
  support: {title: Support, components: {care: {model: flat, price: 20.00}}}
  team: {title: Team, components: {people: {model: recurring, price: 9.00, quantity: seats}}}
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


def test_a_refused_form_is_open_with_all_that_was_typed_and_the_reason_beside_its_field(world, anna):
    typed = {"title": "Launch & <co>", "percent": "ten", "months": "3", "valid_from": "2026-12-24", "of__tools": "yes"}
    page = sent(anna, "discount", why="order 8", before_minimum="yes", **typed).text
    form = page.partition("Give it a discount")[2].partition("</form>")[0]
    assert page.count("<details open>") == 1 and "<details open><summary>Give it a discount" in page
    for value in ("Launch &amp; &lt;co&gt;", "ten", "3", "2026-12-24", "order 8"):
        assert f'value="{value}"' in form
    assert re.findall(r'name="([\w-]+)" value="yes" checked', form) == ["of-tools", "before_minimum"]
    percent = form.partition('id="percent"')[2]
    assert 'aria-describedby="wrong-discount-percent"' in percent.partition(">")[0]
    assert "'ten' is no number" in html.unescape(text_of(percent.partition("<label")[0]))
    assert page.count('role="alert"') == 1
    # What is about no single field stands above; the other forms have what they had.
    both = sent(anna, "discount", why="x", **typed | {"percent": "5", "amount": "5"}).text
    assert "give one of the two" in text_of(both).partition("Contracts")[0]
    assert 'id="since" name="valid_from" type="date" value="2026-12-01"' in both


def test_the_list_has_every_line_of_an_own_price_and_changes_are_said_in_words(world, anna):
    assert sent(anna, "price", component="input", text=HALF, valid_from="2026-12-01").status_code == 200
    sent(anna, "discount", title="Coupon", percent="5", valid_from="2026-12-01", of__input="yes", of__tools="yes")
    sent(anna, "discount", title="Promise", amount="9", valid_from="2026-12-01", before_minimum="yes")
    page = anna.get("/operator/customer?id=acme").text
    assert f"<code>{HALF.strip()}</code>" in page
    shown = text_of(page)
    assert "discount: title Coupon, percent 5, valid from 2026-12-01, off input and tools only" in shown
    assert "discount: title Promise, amount 9, before the minimum, valid from 2026-12-01" in shown
    assert "of-" not in shown.partition("What was changed here")[2]


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


def test_a_quantity_that_the_plan_does_not_count_is_refused_beside_its_field_with_what_it_counts(world, anna):
    shown = anna.get("/operator/customer?id=acme").text
    assert "its plan counts seats" in shown and '<option value="seats">' in shown
    refused = sent(anna, "quantity", counted="desks", quantity="3", valid_from="2026-12-01")
    assert refused.status_code == 422 and 'id="wrong-quantity-counted"' in refused.text
    assert "The plan pay of acme counts no desks (it counts seats)" in text_of(refused.text)
    assert agreements.quantities(world[0].engine, "live", "acme") == []


REFUSED = [
    ("quantity", {"counted": "desks", "quantity": "3"}, "counts no desks (it counts seats)"),
    ("discount", {"title": "C", "percent": "10", "of__gone": "yes"}, "has no component gone"),
    ("discount", {"title": "C", "percent": "10", "amount": "5"}, "give one of the two"),
    ("discount", {"title": "C", "percent": "ten"}, "is no number"),
    ("discount", {"title": "C", "amount": "1e9"}, "is no number"),
    ("quantity", {"counted": "seats", "quantity": "1_0"}, "is no number"),
    ("quantity", {"counted": "seats", "quantity": "\N{ARABIC-INDIC DIGIT THREE}"}, "is no number"),
    ("add-on", {"addon": "gold", "quantity": "1"}, "has no add-on gold"),
    ("quantity", {"counted": "seats", "quantity": "-1"}, ""),
    ("price", {"component": "input", "text": "model: none"}, ""),
    ("plan", {"plan": "gone"}, "gone"),
    ("driver", {"driver": "meters", "valid_from": "2026-12-02"}, "within a month"),
]


def test_where_two_persons_decide_a_change_is_checked_when_it_is_proposed(world, anna):
    at, _ = world
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    before = len(audit_book.entries(at.engine, "live", limit=50))
    for act, fields, told in REFUSED:
        refused = sent(anna, act, **{"valid_from": "2026-12-01"} | fields)
        assert refused.status_code == 422 and told in text_of(refused.text), (act, fields)
        assert "Changes that wait" not in anna.get("/operator/customers").text, (act, fields)
        assert len(audit_book.entries(at.engine, "live", limit=50)) == before, (act, fields)


AGREED = (
    "customers", "contracts", "contract_ends", "customer_addons", "price_overrides", "customer_discounts",
    "customer_quantities", "billing_drivers",
)  # fmt: skip


def recorded(engine):
    """All that is agreed with customers, as it is stored."""
    with engine.connect() as connection:
        found = [tables.metadata.tables[name] for name in AGREED]
        return {it.name: connection.execute(select(it).order_by(*it.primary_key.columns)).all() for it in found}


def test_where_two_persons_decide_all_that_a_customer_pays_waits_for_the_second(world, anna):
    at, _ = world
    sent(anna, "discount", title="Old", percent="1", valid_from="2026-12-01")
    sent(anna, "plan", plan="pay", valid_from="2027-02-01")
    sent(anna, "add", customer="hooli", currency="EUR")
    (running,) = agreements.discounts(at.engine, "live", "acme")
    later = registry.contracts(at.engine, "live", "acme")[-1].valid_from
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    before, audited = recorded(at.engine), len(audit_book.entries(at.engine, "live", limit=99))
    proposed = [
        ("discount", {"title": "Coupon", "percent": "10"}),
        ("add-on", {"addon": "support", "quantity": "2"}),
        ("quantity", {"counted": "seats", "quantity": "12"}),
        ("price", {"component": "input", "text": HALF}),
        ("end", {"agreement": running.agreement_id, "at": "2027-01-01"}),
        ("plan", {"plan": "pay", "valid_from": "2027-01-01"}),
        ("withdraw", {"valid_from": later.isoformat()}),
        ("cancel", {"at": "2027-03-01"}),
        ("driver", {"driver": "meters"}),
        ("add", {"customer": "initech", "plan": "pay", "currency": "EUR"}),
        ("edit", {"customer": "hooli", "currency": "USD"}),
    ]
    for act, fields in proposed:
        answer = sent(anna, act, **{"valid_from": "2026-12-01"} | fields)
        assert "It waits for another operator" in text_of(answer.text), (act, text_of(answer.text))
        assert recorded(at.engine) == before, act
    # The audit log has that they were proposed, and nothing else.
    assert len(audit_book.entries(at.engine, "live", limit=99)) == audited + len(proposed)
    page = anna.get("/operator/customers").text
    assert page.count('name="change"') == len(proposed)
    # Not by who asked for it; rejected, nothing of it is made; approved, it is what was asked for.
    changes = dict(re.findall(r"<p>([a-z-]+): [^<]*</p>.*?name=\"change\" value=\"([0-9a-f]{64})\"", page, re.DOTALL))
    mine = {"form": form_token(page), "act": "approve", "why": "me too"}
    for name in changes.values():
        assert anna.post("/operator/changes", data=mine | {"change": name}).status_code == 422
    assert recorded(at.engine) == before
    with visiting(world, BEN) as ben:
        theirs = mine | {"form": form_token(ben.get("/operator/customers").text), "why": "looked at"}
        rejected = ben.post("/operator/changes", data=theirs | {"act": "reject", "change": changes["driver"]})
        assert rejected.status_code == 303 and recorded(at.engine) == before
        crafted = theirs | {"change": changes["discount"], "percent": "90", "customer": "globex", "title": "Gift"}
        assert ben.post("/operator/changes", data=crafted).status_code == 303
    (_, made) = sorted(agreements.discounts(at.engine, "live"), key=lambda it: it.name == "Coupon")
    assert (made.customer_id, made.name, made.percent) == ("acme", "Coupon", Decimal(10))
    logged = [it for it in audit_book.entries(at.engine, "live", limit=9) if it.what != "change in the portal"]
    (logged,) = (it for it in logged if "Coupon" in f"{it.subject} {it.details}")
    assert logged.who == ANNA  # who asked for it; who approved it stands beside the change
    assert f"{ANNA}, {BEN}" in text_of(anna.get("/operator/customer?id=acme").text)


def test_nothing_of_another_customer_is_listed_ended_or_compared_with(world, anna):
    at, _ = world
    for name, text in (("acme", HALF), ("globex", HALF.replace("1.00", "7.77"))):
        assert (
            sent(anna, "price", customer=name, component="input", text=text, valid_from="2026-12-01").status_code == 200
        )
    theirs = next(it for it in agreements.overrides(at.engine, "live", "globex"))
    assert "7.77" not in anna.get("/operator/customer?id=acme").text
    assert sent(anna, "end", agreement=theirs.agreement_id, at="2027-01-01").status_code == 422
    assert agreements.overrides(at.engine, "live", "globex") == [theirs]
    # What acme has in December, not what globex has, and not the price book's of now.
    with visiting(world, ANNA, now=datetime(2026, 12, 5, tzinfo=UTC)) as later:
        begun = later.get("/operator/price?customer=acme&component=input").text
        assert "price: 1.00" in begun and "7.77" not in begun
        sent(later, "price", component="input", text=HALF.replace("1.00", "3.00"), valid_from="2027-01-01")
    with visiting(world, ANNA, now=datetime(2027, 1, 5, tzinfo=UTC)) as later:
        shown = later.get("/operator/price?customer=acme&component=input").text
        assert "price: 3.00" in shown.partition("<textarea")[2].partition("</textarea>")[0]
