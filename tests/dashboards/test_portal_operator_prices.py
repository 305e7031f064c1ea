"""Prices are changed in a form: checked, compared and simulated first, then published, or proposed where two decide."""

import html
import re
from datetime import UTC, datetime

import pytest
from portal_samples import BOOK, NOW, form_token, portal_world, text_of, visiting

from meterhouse_portal import members
from meterhouse_rating import publishing, versions
from meterhouse_rating.publishing import Person

ANNA, BEN = "anna@operator.example", "ben@operator.example"


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        for email in (ANNA, BEN):
            members.set_operator(made[0].engine, "live", email, True, who="tests", now=NOW)
        yield made


@pytest.fixture
def anna(world):
    with visiting(world, ANNA) as browser:
        yield browser


def typed(page):
    """What the form of a page has, and would send."""
    inputs = dict(re.findall(r'<input [^>]*?name="([\w-]+)"[^>]*? value="([^"]*)"', page))
    texts = dict(re.findall(r'<textarea [^>]*?name="(\w+)"[^>]*>\n(.*?)</textarea>', page, re.DOTALL))
    return {name: html.unescape(value) for name, value in (inputs | texts).items()}


def sent(browser, act, page="", **fields):
    """A button of the form that a page has (at first that of the newest version), pressed when fields were typed."""
    form = typed(page or browser.get("/operator/draft").text)
    return browser.post("/operator/draft", data=form | {"act": act} | fields)


def publish(browser, text, why, **fields):
    """Checked, and what was checked published."""
    page = sent(browser, "check", text=text, **fields).text
    assert ">Publish<" in page or ">Ask for approval<" in page
    return sent(browser, "publish", page, why=why)


def test_a_changed_amount_shows_what_it_changes_and_who_would_pay_more(anna):
    page = anna.get("/operator/draft").text
    assert "Plan Pay (pay) input, price EUR per 1,000 input_tokens tools, price EUR per call" in text_of(page)
    assert 'value="2.00"' in page
    answer = sent(anna, "check", **{"amount-0": "2.50"})
    shown = text_of(answer.text)
    assert typed(answer.text)["text"] == BOOK.replace("price: 2.00", "price: 2.50")
    assert "plans. pay. components. input. price 2.00 2.50" in shown
    # October: acme's 300,000 tokens at 0.50 per 1,000 more, globex's 777,000.
    assert "What 2026-10 would have come to" in shown and "2,156.00 → 2,694.50 EUR" in shown
    assert "Pay more 2 Pay less 0 Pay the same 0" in shown
    assert "globex 1,554.00 EUR 1,942.50 EUR +388.50 EUR more acme 602.00 EUR 752.00 EUR +150.00 EUR more" in shown


def test_mistakes_stand_at_their_lines_and_nothing_is_published(world, anna):
    broken = BOOK.replace("metric: tool_calls, price: 0.50", "metric: tool_cals, price: 0.50").replace("EUR", "EURO", 1)
    for act in ("check", "publish"):
        answer = sent(anna, act, text=broken, why="x")
        assert answer.status_code == 422
        assert [int(n) for n in re.findall(r'<li id="line-(\d+)" class="wrong">', answer.text)] == [3, 13]
        assert "nothing is published" in text_of(answer.text)
    assert len(versions.versions(world[0].engine, "live")) == 1
    much = sent(anna, "check", **{"amount-0": "much", "amount-1": "0.70"})
    assert much.status_code == 422 and typed(much.text)["amount-0"] == "much" and typed(much.text)["amount-1"] == "0.70"
    assert sent(anna, "check", text="a: [" + "[" * 5000).status_code == 422
    # From a text that is none the way back is open.
    assert sent(anna, "check", sent(anna, "check", text="a: [").text, text=BOOK).status_code == 200
    for day in ("9999-12-31", "0001-01-01", "soon"):
        answer = sent(anna, "check", valid_from=day, **{"amount-0": "2.50"})
        assert answer.status_code == 422 and "price: 2.50" in typed(answer.text)["text"]
        assert typed(answer.text)["valid_from"] == day
    assert sent(anna, "explode").status_code == 404


def test_one_person_publishes_with_a_reason_and_usage_without_a_price_is_shown_first(world, anna):
    without_tools = re.sub(r"      tools: .*\n", "", BOOK).replace("[llm.requests]", "[llm.requests, tool.calls]", 1)
    without_tools = without_tools.replace("  tool_calls: {unit: call, meters: [tool.calls]}\n", "")
    assert "Pay less 1" in text_of(sent(anna, "check", text=without_tools).text)  # acme's four tool calls of October
    new = BOOK.replace("price: 0.50", "price: 0.40")
    assert publish(anna, new, "").status_code == 400
    done = publish(anna, new, "cheaper tools", valid_from="2026-12-01")
    assert "Version 2 is published." in text_of(done.text)
    made = versions.versions(world[0].engine, "live")[-1]
    assert (made.source, made.author, f"{made.valid_from:%Y-%m-%d}") == (new, ANNA, "2026-12-01")
    again = sent(anna, "publish", text=new, why="again", valid_from="2026-12-01")
    assert "That is version 2 already: nothing was published." in text_of(again.text)
    last = publishing.audit(world[0].engine, "live")[-1]
    assert (last.what, last.version, last.who, last.why) == ("published", 2, ANNA, "cheaper tools")
    assert "price decision: published" in text_of(anna.get("/operator/record").text)
    # The next draft begins with what is published now.
    assert new.strip() in html.unescape(anna.get("/operator/draft").text)


def test_where_two_decide_it_is_proposed_and_another_one_approves_it(world, anna, monkeypatch):
    at, _ = world
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    newest = versions.versions(at.engine, "live")[-1].source
    new = newest.replace("price: 2.00", "price: 1.90")
    waits = publish(anna, new, "round", valid_from="2027-01-01")
    assert "waits for another operator" in text_of(waits.text)
    assert versions.versions(at.engine, "live")[-1].source == newest
    (proposal,) = publishing.proposals(at.engine, "live")
    with visiting(world, BEN) as ben:
        with monkeypatch.context() as without:
            without.setattr("meterhouse_rating.simulate.simulate", None)  # the list simulates nothing
            listed = text_of(ben.get("/operator/prices").text)
        assert "Valid from 2027-01-01" in listed and "Simulate 2026-10 with it, and decide" in listed
        shown = text_of(ben.get(f"/operator/prices?look={proposal.proposal_id}").text)
        # Version 2 prices tools alone otherwise; globex' 777,000 tokens of October at 0.10 per 1,000 less.
        assert "Valid from 2027-01-01" in shown and "No month that has begun and is not closed changes." in shown
        assert "once at the prices of version 2, which would price 2027-01 without this" in shown
        assert "Customer Version 2 The proposal Change" in shown
        assert "globex 1,554.00 EUR 1,476.30 EUR -77.70 EUR less" in shown
        form = {"form": form_token(ben.get("/operator/prices").text), "proposal": proposal.proposal_id, "why": "yes"}
        assert ben.post("/operator/prices", data=form | {"act": "approve"}).status_code == 303
    assert versions.versions(at.engine, "live")[-1].source == new


def test_nothing_that_was_typed_is_lost_where_amounts_and_text_were_both_changed(anna):
    text = typed(anna.get("/operator/draft").text)["text"]
    mine = text.replace("title: Pay", "title: Paid")
    answer = sent(anna, "check", text=mine, **{"amount-0": "2.50", "valid_from": "2027-02-01"})
    assert answer.status_code == 422 and "they are not mixed" in text_of(answer.text)
    form = typed(answer.text)
    assert (form["text"], form["before"], form["amount-0"], form["valid_from"]) == (mine, text, "2.50", "2027-02-01")
    names = re.findall(r"<button [^>]*>([^<]*)<", answer.text.partition('action="/operator/draft"')[2])
    assert names == ["Check the text, without the amounts", "Check the amounts, without the text"]
    assert typed(sent(anna, "text", answer.text).text)["text"] == mine
    assert typed(sent(anna, "amounts", answer.text).text)["text"] == re.sub(r"price: (1.90|2.00)", "price: 2.50", text)
    # What was changed after the check is not published, and not lost.
    checked = sent(anna, "check", text=mine, valid_from="2027-02-01").text
    late = sent(anna, "publish", checked, text=mine.replace("Paid", "Later"), why="round")
    assert late.status_code == 422 and "this is not what was checked" in text_of(late.text)
    assert "Later" in typed(late.text)["text"] and typed(late.text)["why"] == "round"
    late = sent(anna, "publish", checked, valid_from="2027-03-01", why="round")
    assert late.status_code == 422 and typed(late.text)["valid_from"] == "2027-03-01"
    for page in (anna.get("/operator/draft").text, checked):
        names = re.findall(r"<button [^>]*>([^<]*)<", page)
        assert len(names) == len(set(names)) and "Check and simulate" in names


def test_an_unchanged_draft_is_offered_to_nobody_and_the_draft_is_blamed_for_its_own_differences_alone(
    warehouse_address, tmp_path
):
    with portal_world(warehouse_address, tmp_path / "data") as made:
        engine, units = made[0].engine, {name: it.unit for name, it in made[0].meters.items()}
        members.set_operator(engine, "live", ANNA, True, who="tests", now=NOW)
        # From 2026-10-31 on version 2: ten times the price. October stays on version 1.
        dear = BOOK.replace("price: 2.00", "price: 20.00")
        began = datetime(2026, 10, 31, tzinfo=UTC)
        versions.publish(engine, "live", dear, units, author="tests", valid_from=began, now=NOW)
        with visiting(made, ANNA) as anna:
            same = sent(anna, "check").text
            assert "That is version 2: there is nothing to publish." in text_of(same)
            assert 'value="publish"' not in same and "would have come to" not in same
            shown = text_of(sent(anna, "check", **{"amount-0": "21.00"}).text)
            assert "once at the prices of version 2, which would price 2026-12 without this" in shown
            # 777,000 tokens at 1.00 per 1,000 more.
            assert "globex 15,540.00 EUR 16,317.00 EUR +777.00 EUR more" in shown
            assert "No month that has begun and is not closed changes." in shown

            # November is open, October closed. Acme's November begins in Berlin, an hour before that of UTC.
            back = sent(anna, "check", **{"amount-0": "21.00", "valid_from": "2026-11-01"}).text
            assert "not closed: 2026-11 (one customer)." in text_of(back)
            both = sent(anna, "check", **{"amount-0": "21.00", "valid_from": "2026-10-31T23:00Z"}).text
            assert "not closed: 2026-11 (2 customers)." in text_of(both)
            assert "once at the prices of version 2, which would price 2026-11 without this" in text_of(back)
            # Version 1 is valid from the beginning, so that this one reaches from 2020-01 to 2026-10.
            early = text_of(sent(anna, "check", **{"amount-0": "21.00", "valid_from": "2020-01-01"}).text)
            assert "It prices periods that begin then or later; from 2026-11 on version 2 does." in early
            # Both are customers since 22 September, which nobody closed.
            assert "not closed: 2026-09 (2 customers)." in early
            never = sent(anna, "check", **{"amount-0": "21.00", "valid_from": "2026-10-15"})
            sentence = "It prices no month: version 2, valid from 2026-10-31, prices those that begin then or later"
            assert sentence in text_of(never.text) and 'value="publish"' not in never.text
            refused = sent(anna, "publish", never.text, why="x")
            assert refused.status_code == 422
            assert len(versions.versions(engine, "live")) == 2
            done = publish(anna, dear.replace("20.00", "21.00"), "round", valid_from="2026-11-01")
            assert "Version 3 is published. It prices periods that begin then or later." in text_of(done.text)

            # A version for months before that one is newer, but drafts go on from what holds in the end.
            publish(anna, BOOK.replace("2.00", "3.00"), "September", valid_from="2026-09-01")
            form = anna.get("/operator/draft").text
            assert "price: 21.00" in typed(form)["text"]
            same = sent(anna, "check", form)
            assert "Nothing: the text is the same. That is version 3" in text_of(same.text)
            assert 'value="publish"' not in same.text
            assert "That is version 3 already" in text_of(sent(anna, "publish", same.text, why="x").text)
            assert len(versions.versions(engine, "live")) == 4
