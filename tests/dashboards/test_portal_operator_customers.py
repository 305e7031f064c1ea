"""Operators change customers in forms: by the commands' rules, kept with who and why, by two where that is asked."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from portal_samples import NOW, form_token, portal_world, text_of, visiting
from starlette.routing import Route

from meterhouse_billing import drivers
from meterhouse_portal import app, members
from meterhouse_rating import publishing
from meterhouse_rating.publishing import Person
from meterhouse_store import access, budgets, registry

ANNA, BEN = "anna@operator.example", "ben@operator.example"


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        for email in (ANNA, BEN):
            members.set_operator(made[0].engine, "live", email, True, who="tests", now=NOW)
        registry.add_customer(made[0].engine, "live", "initech", name="Initech", currency="EUR", plan="pay", now=NOW)
        yield made


@pytest.fixture
def anna(world):
    with visiting(world, ANNA) as browser:
        yield browser


def sent(browser, act, customer, why="agreed", **fields):
    """The answer to a form of the customers' pages."""
    token = form_token(browser.get("/operator/customers").text)
    form = {"form": token, "act": act, "customer": customer, "why": why, **fields}
    return browser.post("/operator/customers", data=form)


def test_a_customer_is_added_with_its_plan_and_mistakes_are_said_without_losing_what_was_typed(world, anna):
    at, _ = world
    wrong = sent(anna, "add", "hooli", name="Hooli", plan="pay", time_zone="Mars/Olympus")
    assert wrong.status_code == 422 and "is not an IANA name" in text_of(wrong.text) and 'value="Hooli"' in wrong.text
    assert registry.customer(at.engine, "live", "hooli") is None
    assert sent(anna, "add", "hooli", why=" ", name="Hooli").status_code == 400
    done = sent(anna, "add", "hooli", name="Hooli", plan="pay", time_zone="America/New_York", email="ap@hooli.example")
    assert done.status_code == 200 and "hooli is on the plan pay" in text_of(done.text)
    made = registry.customer(at.engine, "live", "hooli")
    assert (made.name, made.currency, made.time_zone, made.email) == (
        "Hooli", "EUR", "America/New_York", "ap@hooli.example"
    )  # fmt: skip
    assert "registered already" in text_of(sent(anna, "add", "hooli").text)
    listed = text_of(anna.get("/operator/customers?q=HOOLI").text)
    assert "hooli Hooli pay EUR America/New_York ap@hooli.example" in listed and "acme" not in listed


def test_a_currency_that_the_plan_has_not_is_refused_beside_its_field_with_what_to_do_on_the_page(world, anna):
    at, _ = world
    wrong = {
        "GBP": "The plan pay is in EUR, and the price book has no rate from EUR to GBP. Write EUR",
        "EURO": "'EURO' is no currency: write the three letters",
    }
    for act, customer, more in (("add", "piedpiper", {"plan": "pay"}), ("edit", "initech", {})):
        for currency, told in wrong.items():
            refused = sent(anna, act, customer, currency=currency, **more)
            assert refused.status_code == 422 and told in text_of(refused.text).replace("&#39;", "'"), (act, currency)
            field = "wrong-currency" if act == "add" else "wrong-edit-currency"
            assert f'id="{field}"' in refused.text and "meterhouse customers add" not in refused.text
    assert registry.customer(at.engine, "live", "initech").currency == "EUR"


def test_a_plan_begins_with_a_day_of_the_customer_s_zone_and_can_be_taken_back(world, anna):
    at, _ = world
    done = sent(anna, "plan", "acme", plan="pay", valid_from="2026-12-01")
    assert "acme is on the plan pay from 2026-12-01 (Europe/Berlin) on." in text_of(done.text)
    begins = datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert [it.valid_from for it in registry.contracts(at.engine, "live", "acme")][-1] == begins
    assert "closed" in text_of(sent(anna, "plan", "acme", plan="pay", valid_from="2026-10-15").text)
    assert "there is no plan" in text_of(sent(anna, "plan", "acme", plan="gold").text)
    assert sent(anna, "withdraw", "acme", valid_from=begins.isoformat()).status_code == 200
    assert len(registry.contracts(at.engine, "live", "acme")) == 1


def test_what_a_closed_period_was_priced_in_does_not_change_and_the_rest_does(world, anna):
    at, _ = world
    refused = sent(anna, "edit", "acme", time_zone="UTC", name="Acme Ltd")
    assert refused.status_code == 422 and "time_zone of acme cannot change: a period was closed" in refused.text
    assert (
        sent(anna, "edit", "acme", time_zone="Europe/Berlin", name="Acme Ltd", email="ap@acme.example").status_code
        == 200
    )
    found = registry.customer(at.engine, "live", "acme")
    assert (found.name, found.email) == ("Acme Ltd", "ap@acme.example")
    page = text_of(anna.get("/operator/customer?id=acme").text)
    assert "edit: name Acme Ltd, email ap@acme.example anna@operator.example agreed Saved." in page
    assert "time zone Europe" not in page  # what is so already is no change


def test_a_contract_ends_and_billing_changes_at_the_edge_of_a_month(world, anna):
    at, _ = world
    assert "The contract ends at the beginning of 2026-12-01 (UTC)." in text_of(
        sent(anna, "cancel", "initech", at="2026-11-25").text
    )
    assert registry.contracts(at.engine, "live", "initech")[-1].plan == registry.ENDED
    inside = sent(anna, "driver", "globex", driver="meters", valid_from="2026-12-05")
    assert inside.status_code == 422 and "is within a month" in text_of(inside.text)
    assert sent(anna, "driver", "globex", driver="meters", valid_from="2026-12-01").status_code == 200
    (changed,) = drivers.drivers(at.engine, "live")["globex"]
    assert (changed.driver, changed.who, changed.why) == ("meters", ANNA, "agreed")


def test_the_operator_and_the_customer_read_the_same_day_for_the_end_of_a_contract(world, anna):
    at, _ = world
    registry.add_customer(
        at.engine, "live", "umbrella", name="Umbrella", currency="EUR", time_zone="Europe/Berlin", plan="pay",
        now=NOW - timedelta(days=60),
    )  # fmt: skip
    members.set_role(at.engine, "live", "umbrella", "uma@umbrella.example", "viewer", who="tests", now=NOW)
    # The book of the tests lets plans change with the next month, which begins in Berlin at 23:00 of the day before.
    said = text_of(sent(anna, "cancel", "umbrella", at="2026-12-15").text)
    assert "The contract ends at the beginning of 2027-01-01 (Europe/Berlin)." in said
    assert "ends 2027-01-01 00:00 CET , cancelled for 2026-12-15 00:00 CET" in said
    with visiting(world, "uma@umbrella.example") as uma:
        assert "What is to change 2027-01-01: the contract ends Times" in text_of(uma.get("/account/prices").text)
        uma.headers["Accept-Language"] = "de"
        assert "01.01.2027: Der Vertrag endet" in text_of(uma.get("/account/prices").text)
    with visiting(world, ANNA, now=datetime(2027, 1, 2, tzinfo=UTC)) as later:
        assert "ended 2027-01-01 00:00 CET , cancelled for" in text_of(later.get("/operator/customer?id=umbrella").text)
    with visiting(world, "uma@umbrella.example", now=datetime(2027, 1, 2, tzinfo=UTC)) as uma:
        assert "The contract ended on 2027-01-01." in text_of(uma.get("/account/prices").text)
        uma.headers["Accept-Language"] = "de"
        assert "Der Vertrag endete am 01.01.2027." in text_of(uma.get("/account/prices").text)


def test_agents_are_stopped_and_go_on_and_keys_are_shown_once(world, anna):
    at, _ = world
    assert "helper" in anna.get("/operator/customer?id=acme").text  # an agent of late
    assert "Calls stop" in sent(anna, "pause", "acme", why="key leaked").text
    (pause,) = budgets.pauses(at.engine, "live", "acme")
    assert (pause.who, pause.why) == (ANNA, "key leaked")
    assert "Paused: operator" in text_of(anna.get("/operator/customer?id=acme").text)
    assert "Calls go on." in sent(anna, "unpause", "acme").text and budgets.pauses(at.engine, "live", "acme") == []
    text = re.search(r"mh_[\w-]{43}", sent(anna, "key", "acme", name="nightly").text).group(0)
    assert access.credential_of(at.engine, text, NOW).customers == ("acme",)
    (key,) = [it for it in access.credentials(at.engine, "live") if it.name == "nightly"]
    again = anna.get("/operator/customer?id=acme").text + anna.get("/operator/record").text
    assert "nightly" in again and text not in again
    assert sent(anna, "revoke", "globex", key=key.credential_id).status_code == 422  # acme's
    assert sent(anna, "revoke", "acme", key=key.credential_id).status_code == 200
    assert access.credential_of(at.engine, text, NOW) is None


def test_where_prices_take_two_persons_so_does_what_a_customer_pays(world, anna):
    at, _ = world
    publishing.ask_for_two(at.engine, "live", by=Person("carol", "root"), why="rule", now=NOW)
    waits = sent(anna, "plan", "globex", plan="pay", valid_from="2027-01-01", why="order 7")
    assert "It waits for another operator" in text_of(waits.text)
    sent(anna, "plan", "globex", plan="pay", valid_from="2027-01-01", why="order 7")  # sent twice it is one
    assert len(registry.contracts(at.engine, "live", "globex")) == 1
    page = anna.get("/operator/customers").text
    (name,) = re.findall(r'name="change" value="([0-9a-f]{64})"', page)
    mine = {"form": form_token(page), "change": name, "act": "approve", "why": "me too"}
    refused = anna.post("/operator/changes", data=mine)
    assert refused.status_code == 422 and "another person has to approve it" in text_of(refused.text)
    with visiting(world, BEN) as ben:
        theirs = mine | {"form": form_token(ben.get("/operator/customers").text), "why": "looked at"}
        assert ben.post("/operator/changes", data=theirs).status_code == 303
        assert "already" in text_of(ben.post("/operator/changes", data=theirs).text)
    assert registry.contracts(at.engine, "live", "globex")[-1].valid_from == datetime(2027, 1, 1, tzinfo=UTC)
    shown = text_of(anna.get("/operator/customer?id=globex").text)
    assert f"plan: plan pay, valid from 2027-01-01 {ANNA}, {BEN} order 7" in shown
    assert "contract of globex: pay" in text_of(anna.get("/operator/record").text)  # the audit log has it as any other
    assert sent(anna, "edit", "globex", name="Globex Inc").status_code == 200  # a name is nobody's money
    assert registry.customer(at.engine, "live", "globex").name == "Globex Inc"


# ---- nobody else gets in --------------------------------------------------------------------------------------------

OBJECTS = {"/operator/customer": "?id=acme", "/operator/price": "?customer=acme&component=input"}
WITHOUT_OBJECT = {
    "/operator", "/operator/customers", "/operator/questions", "/operator/suspense", "/operator/prices",
    "/operator/draft", "/operator/record", "/operator/changes", "/operator/invoices/{id}",
}  # fmt: skip


def test_every_route_of_operators_is_in_the_matrix_of_roles_and_objects(world):
    """Members of customers learn of no page; a form without its token does nothing; what is not there is not there."""
    from meterhouse_portal.customer_pages import CustomerPages
    from meterhouse_portal.rendering import Rendering
    from meterhouse_portal.stores import Stores
    from meterhouse_store.brand import Brand
    from meterhouse_store.mail import MailSettings

    _, settings = world
    pages = CustomerPages(
        settings, Stores(settings), Rendering(Brand()), MailSettings(), "", lambda: NOW, app.billing_world
    )
    routes = [
        (next(iter(it.methods - {"HEAD"})), it.path)
        for it in pages.routes()
        if isinstance(it, Route) and it.name == "operator"
    ]
    assert len(routes) >= 17
    for _, path in routes:
        assert path in WITHOUT_OBJECT or path in OBJECTS, f"{path} is in no matrix: add it here"
    with visiting(world) as nobody:
        for method, path in routes:
            assert nobody.request(method, path + OBJECTS.get(path, "")).headers["location"] == "/sign-in", path
    for email in ("vera@acme.example", "bill@acme.example", "olga@acme.example"):
        with visiting(world, email) as browser:
            token = form_token(browser.get("/account").text)
            for method, path in routes:
                data = {"form": token, "act": "approve", "why": "x"} if method == "POST" else None
                answer = browser.request(method, path + OBJECTS.get(path, ""), data=data)
                none = browser.request(method, "/operator/nothing-there", data=data)
                assert (answer.status_code, none.status_code) == (404, 404), path
    with visiting(world, ANNA) as anna:
        token = form_token(anna.get("/operator/customers").text)
        for method, path in routes:
            if method == "GET":
                assert anna.get(path + OBJECTS.get(path, "")).status_code == 200, path
            else:
                assert anna.post(path, data={"act": "approve", "why": "x"}).status_code == 403, path
                absent = anna.post(path, data={"form": token, "act": "no such act", "why": "x", "customer": "nobody"})
                assert absent.status_code in (404, 422), path
        for path in (
            "/operator/customer?id=nobody",
            "/operator/customer",
            "/operator/price?customer=nobody&component=input",
        ):
            assert anna.get(path).status_code == 404
