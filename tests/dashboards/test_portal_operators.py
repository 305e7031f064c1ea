"""Operators' pages: what waits is decided in the name of who is signed in, by the same rules as the commands."""

import re
from datetime import timedelta

import pytest
from portal_samples import BOOK, COLUMNS, NOW, TOKEN, event, form_token, portal_world, row, text_of
from starlette.testclient import TestClient

from meterhouse_billing import disputes, policies, records, reviews
from meterhouse_billing.gateway import connect
from meterhouse_billing.run import bill
from meterhouse_billing.world import World
from meterhouse_portal import app, members, questions
from meterhouse_rating import publishing, versions
from meterhouse_rating.publishing import Person
from meterhouse_store import decided, registry, sql
from meterhouse_store.settings import Settings
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import invoices, rated_lines

ANNA, BEN = "anna@operator.example", "ben@operator.example"


@pytest.fixture(scope="module")
def portal(warehouse_address, tmp_path_factory, stripe_url):
    """The world with drafts of October in Stripe, two operators, and how to be one of them."""
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as (world, settings):

        def billing(engine, namespace, who, now):
            environment = {"STRIPE_API_KEY": "sk_test_123", "METERHOUSE_STRIPE_URL": stripe_url}
            return World(engine, connect(environment, live=False), namespace, who, now)

        for email in (ANNA, BEN):
            members.set_operator(world.engine, "live", email, True, who="tests", now=NOW)
        at = billing(world.engine, "live", "bill run", lambda: NOW)
        list(bill(at, records.drafts(world.engine, "live"), approve=False))

        def visit(email, billing=billing):
            built = app.build(settings, TOKEN, now=lambda: NOW, billing=billing)
            browser = TestClient(built, follow_redirects=False)
            answer = browser.post(f"/sign-in/{members.request_link(world.engine, 'live', email, NOW)}")
            assert answer.status_code == 303
            return browser, answer.headers["location"]

        yield world, visit


def state_of(world, customer):
    with world.engine.connect() as connection:
        query = invoices.select().where(invoices.c.customer_id == customer)
        return connection.execute(query).mappings().one()["state"]


def test_operators_come_to_their_pages_and_customers_do_not(portal):
    _, visit = portal
    anna, where = visit(ANNA)
    assert where == "/operator" and anna.get("/operator").status_code == 200
    assert anna.get("/account").headers["location"] == "/operator"
    olga, where = visit("olga@acme.example")
    assert where == "/account"
    for path in ("/operator", "/operator/suspense", "/operator/prices", "/operator/questions", "/operator/record"):
        assert olga.get(path).status_code == 404
    token = form_token(olga.get("/account").text)
    for path in ("/operator/suspense", "/operator/prices", "/operator/questions", "/operator/invoices/x"):
        assert olga.post(path, data={"form": token, "act": "approve"}).status_code == 404


def test_an_operator_comes_to_the_page_that_was_asked_for(portal):
    world, visit = portal
    stranger, _ = visit(ANNA)
    stranger.cookies.clear()
    assert stranger.get("/operator/suspense?reason=conflict").headers["location"] == "/sign-in"
    answer = stranger.post(f"/sign-in/{members.request_link(world.engine, 'live', ANNA, NOW)}")
    assert answer.headers["location"] == "/operator/suspense?reason=conflict"


def test_the_overview_counts_what_waits_and_leads_to_the_months_of_all_customers(portal):
    _, visit = portal
    anna, _ = visit(ANNA)
    page = anna.get("/operator").text
    counts = dict(re.findall(r"<dt>(.*?)</dt><dd>(?:<a [^>]*>)?(.*?)(?:</a>)?</dd>", page))
    assert (counts["Invoices that wait"], counts["Customers"], counts["of them without a plan"]) == ("2", "2", "0")
    assert counts["In suspense"] == counts["Questions that wait"] == "0"
    assert '<a href="/">' in page and "None yet." in page
    months = anna.get("/")
    assert months.status_code == 200 and "Customers with usage" in months.text
    assert 'href="/operator"' in months.text
    olga, _ = visit("olga@acme.example")
    assert olga.get("/").status_code == 401


def test_an_operator_who_is_one_no_more_is_out_at_once(portal):
    world, visit = portal
    members.set_operator(world.engine, "live", "carl@operator.example", True, who="tests", now=NOW)
    carl, _ = visit("carl@operator.example")
    assert carl.get("/operator").status_code == 200
    members.set_operator(world.engine, "live", "carl@operator.example", False, who="tests", now=NOW)
    assert carl.get("/operator").headers["location"] == "/sign-in"
    assert members.operators(world.engine, "live") == [ANNA, BEN]


def test_an_invoice_in_review_shows_its_lines_and_days_on_the_customer_s_clock_and_is_held_without_a_stripe_key(
    portal, monkeypatch
):
    for name in ("STRIPE_API_KEY", "STRIPE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    world, visit = portal
    anna, _ = visit(ANNA, app.billing_world)
    page = anna.get("/operator").text
    card = text_of(page[page.index("acme: 602.00 EUR") : page.index("</article>")])
    assert "2026-10-01 to 2026-11-01 (Europe/Berlin)" in card
    assert "input 300,000 token 600.00 EUR" in card and "300,000 at 2 EUR per 1,000: 600 EUR" in card
    assert "tools 4 call 2.00 EUR" in card and "Total 602.00 EUR" in card
    assert "set STRIPE_API_KEY" in text_of(page)
    path = re.search(r'action="(/operator/invoices/[0-9a-f]+)"', page).group(1)
    form = {"form": form_token(page), "why": "ask them first"}
    refused = anna.post(path, data=form | {"act": "approve"})
    assert refused.status_code == 422 and "there is no Stripe key" in text_of(refused.text)
    assert anna.post(path, data=form | {"act": "hold"}).status_code == 303
    assert state_of(world, "acme") == "in review" and "on hold" in anna.get("/operator").text


def test_payments_that_banks_took_back_are_shown_with_the_invoices(portal):
    world, visit = portal
    anna, _ = visit(ANNA)
    assert "banks took back" not in text_of(anna.get("/operator").text)
    shown = {"id": "dp_1", "payment_intent": "pi_1", "amount": 1250, "currency": "usd", "reason": "fraudulent"}
    with begin_write(world.engine) as connection:
        about = shown | {"status": "needs_response", "created": int(NOW.timestamp())}
        disputes.keep(connection, "live", "acme", about, NOW, "in_1")
    told = text_of(anna.get("/operator").text)
    assert "Payments that banks took back or ask about" in told
    assert "acme in_1 12.50 USD" in told and "fraudulent needs response" in told


def test_above_a_limit_one_approves_and_another_finalises(portal):
    world, visit = portal
    wanted = {"two-persons": "EUR=100", "approval": "person"}
    policies.change(world.engine, "live", "", wanted, who="carol", why="agreed", now=NOW)
    (anna, _), (ben, _) = visit(ANNA), visit(BEN)
    page = anna.get("/operator").text
    assert "acme: 602.00 EUR" in text_of(page)
    can = r"acme: 602\.00 EUR.*?</article>"
    assert re.findall(r'value="(\w+)">[A-Z]', re.search(can, page, re.DOTALL).group()) == ["approve", "hold"]
    path = re.search(r'acme: 602\.00 EUR.*?action="(/operator/invoices/[0-9a-f]+)"', page, re.DOTALL).group(1)
    form = {"form": form_token(page), "why": "looked at"}
    assert anna.post(path, data=form | {"act": "approve", "why": " "}).status_code == 400
    assert anna.post(path, data={"act": "approve", "why": "x"}).status_code == 403
    assert anna.post(path, data=form | {"act": "approve"}).status_code == 303
    assert state_of(world, "acme") == "approved"
    refused = anna.post(path, data=form | {"act": "finalise"})
    assert refused.status_code == 422 and "another person finalises" in text_of(refused.text)
    as_account = World(world.engine, None, "live", "anna", lambda: NOW)
    invoice = records.invoice(world.engine, path.rpartition("/")[2])
    told = reviews.second_person(as_account, invoice, policies.load(world.engine, "live", "acme"))
    assert told is not None and "may be one person" in told  # anna of the command line is no second person
    page = ben.get("/operator").text
    assert re.findall(r'value="(\w+)">[A-Z]', re.search(can, page, re.DOTALL).group()) == ["finalise", "hold"]
    theirs = {"form": form_token(page), "why": "due"}
    decided = ben.post(path, data=theirs | {"act": "finalise"})
    assert decided.status_code == 303 and state_of(world, "acme") == "finalised"
    went_out = records.invoice(world.engine, path.rpartition("/")[2])
    page = ben.get(decided.headers["location"]).text
    assert f"Invoice {went_out['number']} of acme over 602.00 EUR is finalised." in text_of(page)
    # The Stripe of the tests is at http://127.0.0.1: twice, above and among the latest.
    assert page.count(f'<a href="{went_out["hosted_url"]}" rel="noopener noreferrer">{went_out["number"]}</a>') == 2
    assert f"{went_out['number']} acme 2026-10-01 to 2026-11-01 602.00 EUR finalised" in text_of(page)
    assert "is finalised." not in text_of(ben.get("/operator?done=nothing").text)
    shown = text_of(anna.get("/operator/record").text)
    assert "approved → finalised ben@operator.example due" in shown
    assert ben.post(path, data=theirs | {"act": "explode"}).status_code == 404


def test_a_question_is_answered_in_the_operator_s_name(portal):
    world, visit = portal
    line = {"rating_id": "r" * 64, "line_id": "b" * 64, "amount_minor": 100, "currency": "EUR"}
    asked = questions.ask(world.engine, "live", "acme", line, "<Why?>", who="olga@acme.example", now=NOW)
    anna, _ = visit(ANNA)
    page = anna.get("/operator/questions").text
    assert "&lt;Why?&gt;" in page
    form = {"form": form_token(page), "question": asked.question_id, "outcome": "accepted"}
    assert anna.post("/operator/questions", data=form | {"why": ""}).status_code == 422
    assert anna.post("/operator/questions", data=form | {"why": "Credited"}).status_code == 303
    (answered,) = questions.of_customer(world.engine, "live", "acme")
    assert (answered.outcome, answered.answer, answered.answered_by) == ("accepted", "Credited", ANNA)
    assert anna.post("/operator/questions", data=form | {"why": "Again"}).status_code == 422


def test_a_question_is_shown_with_its_line_explained(portal):
    world, visit = portal
    with world.engine.connect() as connection:
        is_it = (rated_lines.c.description == "input") & (rated_lines.c.amount_minor == 60000)
        line = dict(connection.execute(rated_lines.select().where(is_it)).mappings().one())
    questions.ask(world.engine, "live", "acme", line, "So much?", who="olga@acme.example", now=NOW)
    shown = text_of(visit(ANNA)[0].get("/operator/questions").text)
    assert "acme: input, 600.00 EUR So much? How the line is made" in shown
    assert "300,000" in shown.partition("How the line is made")[2]


def test_what_is_in_suspense_is_assigned_and_counts(portal):
    world, visit = portal
    held = event("", "tool.calls", "2026-11-20 10:00:00", 3, agent="lost")
    values = row(800, held).replace("'', '', 'ok'", "'3', 'customer_missing', 'ok'")
    world.client.command(f"INSERT INTO events ({COLUMNS}) VALUES {values}")
    anna, _ = visit(ANNA)
    page = anna.get("/operator/suspense").text
    assert re.findall(r'name="act" value="(\w+)"', page) == ["assign", "discard"]  # nobody is named to release it to
    assert "3 tool.calls" in text_of(page) and "agent lost" in text_of(page)
    hidden = {name: re.search(rf'name="{name}" value="([0-9a-f]*)"', page).group(1) for name in ("row", "follows")}
    twin = event("globex", "tool.calls", "2026-11-20 10:00:00", 7, agent="lost")
    twin = row(800, twin).replace("'', '', 'ok'", "'7', 'customer_missing', 'ok'")
    world.client.command(f"INSERT INTO events ({COLUMNS}) VALUES {twin}")  # another's row with the same event id
    form = {"form": form_token(page), **hidden, "event": "e800", "meter": "tool.calls", "reason": "customer_missing"}
    form |= {"act": "assign", "why": "their key, ticket 9"}
    assert anna.post("/operator/suspense", data=form | {"customer": "initech"}).status_code == 422
    assert anna.post("/operator/suspense", data=form | {"row": "0", "customer": "globex"}).status_code == 422
    done = anna.post("/operator/suspense", data=form | {"customer": "globex"})
    assert done.status_code == 200 and "Decided." in done.text
    decided.apply(world.engine, world.client)
    query = "SELECT billed_customer_id, quantity FROM usage WHERE event_id = 'e800'"
    assert [(who, int(quantity)) for who, quantity in world.client.query(query).result_rows] == [("globex", 3)]
    assert anna.post("/operator/suspense", data=form | {"customer": "acme"}).status_code == 422  # decided meanwhile
    left = text_of(anna.get("/operator/suspense").text)
    assert "7 tool.calls" in left and "3 tool.calls" not in left


def test_a_proposed_price_book_is_approved_by_another_person(portal):
    world, visit = portal
    declared = {name: it.unit for name, it in world.meters.items()}
    publishing.ask_for_two(world.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    text = BOOK.replace("price: 2.00", "price: 2.50")
    publishing.propose(
        world.engine, "live", text, declared, by=Person(ANNA, "portal"), valid_from=NOW + timedelta(days=10), now=NOW
    )
    (anna, _), (ben, _) = visit(ANNA), visit(BEN)
    page = anna.get("/operator/prices").text
    assert "-      input: {model: per_unit, metric: input_tokens, per: 1000, price: 2.00}" in page
    assert "+      input: {model: per_unit, metric: input_tokens, per: 1000, price: 2.50}" in page
    assert 'name="proposal"' not in page  # what it comes to is looked at before it is decided
    page = anna.get(re.search(r'href="(/operator/prices\?look=[0-9a-f]+)"', page).group(1)).text
    assert "What 2026-10 would have come to" in page
    name = re.search(r'name="proposal" value="([0-9a-f]+)"', page).group(1)
    mine = {"form": form_token(page), "proposal": name, "act": "approve", "why": "agreed"}
    refused = anna.post("/operator/prices", data=mine)
    assert refused.status_code == 422 and "another person has to approve it" in text_of(refused.text)
    theirs = mine | {"form": form_token(ben.get("/operator/prices").text)}
    assert ben.post("/operator/prices", data=theirs).status_code == 303
    assert versions.versions(world.engine, "live")[-1].source == text
    assert "approved by ben@operator.example" in text_of(ben.get("/operator/prices").text)


def test_what_the_database_cannot_hold_is_no_page_and_no_store_that_is_away(
    warehouse_address, postgres_url, tmp_path, monkeypatch
):
    given = Settings(data=tmp_path, sql_url=postgres_url, warehouse_url=f"http://{warehouse_address}")
    engine = sql.open_engine(given)
    monkeypatch.setattr(sql, "open_engine", lambda _settings: engine)
    registry.ensure_namespace(engine, "live", now=NOW)
    members.set_operator(engine, "live", ANNA, True, who="tests", now=NOW)
    with TestClient(app.build(given, TOKEN, now=lambda: NOW), follow_redirects=False) as browser:
        browser.post(f"/sign-in/{members.request_link(engine, 'live', ANNA, NOW)}")
        assert browser.get("/operator/customer?id=a%00b").status_code == 404
        token = form_token(browser.get("/operator/customers").text)
        form = {"form": token, "act": "unpause", "customer": "a\0b", "why": "x"}
        assert browser.post("/operator/customers", data=form).status_code == 404
    engine.dispose()
