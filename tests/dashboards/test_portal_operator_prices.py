"""Prices are changed in a form: checked, compared and simulated first, then published, or proposed where two decide."""

import html
import re

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


def sent(browser, act, text, **fields):
    form = {"form": form_token(browser.get("/operator/draft").text), "act": act, "text": text, **fields}
    return browser.post("/operator/draft", data=form)


def draft_of(page):
    """The text that the page would publish."""
    return html.unescape(re.search(r'<textarea name="text" hidden[^>]*>\n(.*?)</textarea>', page, re.DOTALL).group(1))


def test_a_changed_amount_shows_what_it_changes_and_who_would_pay_more(anna):
    page = anna.get("/operator/draft").text
    assert "plan, pay, input, price" in text_of(page) and 'value="2.00"' in page
    answer = sent(anna, "amounts", BOOK, **{"amount-0": "2.50"})
    shown = text_of(answer.text)
    assert draft_of(answer.text) == BOOK.replace("price: 2.00", "price: 2.50")
    assert "plans. pay. components. input. price 2.00 2.50" in shown
    # October: acme's 300,000 tokens at 0.50 per 1,000 more, globex's 777,000.
    assert "What 2026-10 would have come to" in shown and "2,156.00 → 2,694.50 EUR" in shown
    assert "Pay more 2 Pay less 0 Pay the same 0" in shown
    assert "globex 1,554.00 EUR 1,942.50 EUR +388.50 EUR more acme 602.00 EUR 752.00 EUR +150.00 EUR more" in shown


def test_mistakes_stand_at_their_lines_and_nothing_is_published(world, anna):
    broken = BOOK.replace("metric: tool_calls, price: 0.50", "metric: tool_cals, price: 0.50").replace("EUR", "EURO", 1)
    for act in ("check", "publish"):
        answer = sent(anna, act, broken, why="x")
        assert answer.status_code == 422
        assert [int(n) for n in re.findall(r'<li id="line-(\d+)" class="wrong">', answer.text)] == [3, 13]
        assert "nothing is published" in text_of(answer.text)
    assert len(versions.versions(world[0].engine, "live")) == 1
    assert sent(anna, "amounts", BOOK, **{"amount-0": "much"}).status_code == 422
    assert sent(anna, "check", "a: [" + "[" * 5000).status_code == 422
    assert sent(anna, "explode", BOOK).status_code == 404


def test_one_person_publishes_with_a_reason_and_usage_without_a_price_is_shown_first(world, anna):
    without_tools = re.sub(r"      tools: .*\n", "", BOOK).replace("[llm.requests]", "[llm.requests, tool.calls]", 1)
    without_tools = without_tools.replace("  tool_calls: {unit: call, meters: [tool.calls]}\n", "")
    assert "Pay less 1" in text_of(sent(anna, "check", without_tools).text)  # acme's four tool calls of October
    new = BOOK.replace("price: 0.50", "price: 0.40")
    assert sent(anna, "publish", new, why="").status_code == 400
    done = sent(anna, "publish", new, why="cheaper tools", valid_from="2026-12-01")
    assert "Version 2 is published." in text_of(done.text)
    made = versions.versions(world[0].engine, "live")[-1]
    assert (made.source, made.author, f"{made.valid_from:%Y-%m-%d}") == (new, ANNA, "2026-12-01")
    assert "was published already" in text_of(sent(anna, "publish", new, why="again", valid_from="2026-12-01").text)
    last = publishing.audit(world[0].engine, "live")[-1]
    assert (last.what, last.version, last.who, last.why) == ("published", 2, ANNA, "cheaper tools")
    assert "price decision: published" in text_of(anna.get("/operator/record").text)
    # The next draft begins with what is published now.
    assert new.strip() in html.unescape(anna.get("/operator/draft").text)


def test_where_two_decide_it_is_proposed_and_another_one_approves_it(world, anna):
    at, _ = world
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    newest = versions.versions(at.engine, "live")[-1].source
    new = newest.replace("price: 2.00", "price: 1.90")
    waits = sent(anna, "publish", new, why="round", valid_from="2027-01-01")
    assert "waits for another operator" in text_of(waits.text)
    assert versions.versions(at.engine, "live")[-1].source == newest
    (proposal,) = publishing.proposals(at.engine, "live")
    with visiting(world, BEN) as ben:
        form = {"form": form_token(ben.get("/operator/prices").text), "proposal": proposal.proposal_id, "why": "yes"}
        assert ben.post("/operator/prices", data=form | {"act": "approve"}).status_code == 303
    assert versions.versions(at.engine, "live")[-1].source == new
