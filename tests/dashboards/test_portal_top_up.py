"""Buying credits in the portal: on a page of Stripe (the sandbox, over HTTP), once however often the form is sent."""

import json
import re
import urllib.request

import pytest
from portal_samples import NOW, TOKEN, form_token, portal_world, text_of
from starlette.testclient import TestClient

from meterhouse_billing import news, policies, purchases
from meterhouse_billing.gateway import connect
from meterhouse_billing.world import World
from meterhouse_portal import app, members


@pytest.fixture(scope="module")
def portal(warehouse_address, tmp_path_factory, stripe_url):
    """The world, what billing works with, and how to be a member."""
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as (world, settings):
        post(f"{stripe_url}/_sandbox/clock", {"now": NOW.timestamp()})
        wanted = {policies.TOP_UPS: "EUR=10/50"}
        policies.change(world.engine, "live", "", wanted, who="op", why="we sell credits", now=NOW)

        def billing(engine, namespace, who, now, url=stripe_url):
            environment = {"STRIPE_API_KEY": "sk_test_123", "METERHOUSE_STRIPE_URL": url}
            return World(engine, connect(environment, live=False), namespace, who, now)

        def visit(email, billing=billing):
            built = app.build(settings, TOKEN, public_url="https://usage.example.com", now=lambda: NOW, billing=billing)
            browser = TestClient(built, base_url="https://usage.example.com", follow_redirects=False)
            browser.post(f"/sign-in/{members.request_link(world.engine, 'live', email, NOW)}")
            return browser

        yield world, visit, billing


def post(address, body=None):
    class Stay(urllib.request.HTTPRedirectHandler):
        def http_error_303(self, request, reply, *_rest):
            return reply

    request = urllib.request.Request(address, json.dumps(body or {}).encode(), {"Accept": "application/json"})
    with urllib.request.build_opener(Stay).open(request, timeout=10) as reply:
        return reply.read()


def filled(browser):
    """The form as it came."""
    page = browser.get("/account/top-up").text
    return {"form": form_token(page), "reference": re.search(r'name="reference" value="([^"]+)"', page).group(1)}


def address_in(answer):
    return re.search(r'class="go" href="([^"]+)"', answer.text).group(1)


def test_a_member_chooses_an_amount_pays_at_stripe_and_has_the_credits(portal, stripe_url):
    world, visit, billing = portal
    browser = visit("bill@acme.example")
    assert 'href="/account/top-up">Buy credits' in browser.get("/account/credits").text
    assert "10.00 EUR 50.00 EUR Go to payment" in text_of(browser.get("/account/top-up").text)
    form = filled(browser) | {"amount": "5000"}
    first, again = (browser.post("/account/top-up", data=form) for _ in range(2))
    assert first.status_code == 200 and address_in(first) == address_in(again)
    (row,) = purchases.listed(world.engine, "live", "acme")
    assert (row["amount_minor"], row["currency"], row["who"]) == (5000, "EUR", "bill@acme.example")
    another = browser.post("/account/top-up", data=filled(browser) | {"amount": "1000"})
    assert address_in(another) != address_in(first)
    assert "There are no credits." in browser.get("/account/credits").text  # asked for is not paid

    post(f"{stripe_url}/_sandbox/checkout/{address_in(first).rpartition('/')[2]}")
    at = billing(world.engine, "live", "webhooks", lambda: NOW)
    events = at.gateway.call(lambda client: client.v1.events.list({"limit": 100}).data)
    for event in reversed(events):
        news.receive(world.engine, "live", json.dumps(event.to_dict()), NOW)
    while news.process(at):
        pass
    shown = text_of(browser.get("/account/top-up").text)
    assert "50.00 EUR paid bill@acme.example" in shown and "10.00 EUR to be paid" in shown
    assert "Left 50.00 EUR" in text_of(browser.get("/account/credits").text)
    assert "bill@acme" not in visit("gus@globex.example").get("/account/top-up").text


@pytest.mark.parametrize("wrong", [{"amount": "2000"}, {"amount": "-1000"}, {"amount": "x"}, {"reference": "short"}])
def test_what_is_not_offered_is_not_sold(portal, wrong):
    world, visit, _ = portal
    browser, before = visit("olga@acme.example"), len(purchases.listed(portal[0].engine, "live"))
    answer = browser.post("/account/top-up", data=filled(browser) | {"amount": "1000"} | wrong)
    assert (answer.status_code, "Choose one of the amounts." in answer.text) == (422, True)
    assert len(purchases.listed(world.engine, "live")) == before


def test_without_stripe_it_says_so_and_nothing_is_charged(portal, monkeypatch):
    _, visit, billing = portal
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)
    without_key = visit("olga@acme.example", app.billing_world)
    assert "Nothing can be bought here now." in without_key.get("/account/top-up").text
    monkeypatch.setattr("meterhouse_billing.gateway.time.sleep", lambda _: None, raising=False)
    browser = visit("olga@acme.example", lambda *it: billing(*it, url="http://127.0.0.1:1"))
    answer = browser.post("/account/top-up", data=filled(browser) | {"amount": "1000"})
    assert answer.status_code == 422 and "Payments cannot be reached now" in answer.text


def test_one_customer_starts_twenty_an_hour_at_most(portal, monkeypatch):
    monkeypatch.setattr("meterhouse_portal.top_up_pages._STARTS.take", lambda *_: False)
    browser = portal[1]("olga@acme.example")
    answer = browser.post("/account/top-up", data=filled(browser) | {"amount": "1000"})
    assert "That was often" in answer.text
