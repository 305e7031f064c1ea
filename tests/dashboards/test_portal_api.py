"""The customers' API: every answer is as its OpenAPI document says, and of one customer alone."""

import re
from datetime import timedelta
from decimal import Decimal

import jsonschema
import pytest
from openapi_spec_validator import validate
from portal_samples import NOW, TOKEN, portal_world, text_of, visiting
from starlette.testclient import TestClient

from meterhouse_portal import access_keys, app
from meterhouse_portal.customer_api import OPERATIONS, CustomerApi, document
from meterhouse_portal.stores import Stores


@pytest.fixture(scope="module")
def world(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def keys(world):
    at, _ = world
    return {
        name: access_keys.create(at.engine, "live", name, "tests", who="tests", now=NOW)[1]
        for name in ("acme", "globex")
    }


@pytest.fixture
def api(world):
    with TestClient(app.build(world[1], TOKEN, now=lambda: NOW)) as client:
        yield client


def asked(api, key, path):
    return api.get(path, headers={"Authorization": f"Bearer {key}"})


def test_the_document_is_valid_and_has_every_route(world):
    validate(document())
    routes = {it.path for it in CustomerApi(world[1], Stores(world[1]), lambda: NOW).routes()}
    assert routes == set(document()["paths"]) == {it.path for it in OPERATIONS}


def test_every_answer_is_as_the_document_says(api, keys):
    rating = asked(api, keys["acme"], "/api/v1/invoices").json()["items"][-1]["id"]
    for it in OPERATIONS:
        answer = asked(api, keys["acme"], it.path.replace("{id}", rating))
        assert answer.status_code == 200, it.path
        jsonschema.validate(answer.json(), it.answer)


def test_what_came_again_with_another_quantity_changes_nothing_that_is_shown(world, api, keys):
    def shown():
        with visiting(world, "vera@acme.example") as browser:
            pages = [text_of(browser.get(page).text) for page in ("/account", "/account/usage")]
        asks = ("/api/v1/usage", "/api/v1/actions", "/api/v1/bill")
        return [*pages, *(asked(api, keys["acme"], path).json() for path in asks)]

    before, client = shown(), world[0].client
    (one,) = client.query("SELECT event_id FROM events WHERE call_id = 'c-19'").first_row
    mine = f"FROM events WHERE customer_id = 'acme' AND event_id = '{one}'"
    key = "namespace, customer_id, meter, event_time, event_id, quantity AS standing_quantity, first"
    client.command(f"INSERT INTO conflicts SELECT {key} {mine}")
    client.command(f"INSERT INTO events SELECT * REPLACE (quantity + 1000 AS quantity, first + 1000 AS first) {mine}")
    try:
        assert shown() == before
    finally:
        client.command("TRUNCATE TABLE conflicts")
        client.command(
            f"ALTER TABLE events DELETE WHERE quantity = 31000 AND event_id = '{one}' SETTINGS mutations_sync = 1"
        )
    assert shown() == before


def test_the_figures_are_those_of_the_pages(api, keys):
    usage = asked(api, keys["acme"], "/api/v1/usage").json()
    assert (usage["period_start"], usage["period_end"]) == ("2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z")
    assert usage["items"] == [
        {"meter": "llm.requests", "quantity": "1", "events": 1},
        {"meter": "llm.tokens.input", "quantity": "600000", "events": 20},
        {"meter": "tool.calls", "quantity": "1", "events": 1},
    ]
    bill = asked(api, keys["acme"], "/api/v1/bill").json()
    assert (bill["so_far"], bill["expected"], bill["low"], bill["high"]) == ("1200.50", "1789.60", "1789.25", "1790.29")
    (october,) = [it for it in asked(api, keys["acme"], "/api/v1/invoices").json()["items"] if it["state"] == "closed"]
    lines = asked(api, keys["acme"], f"/api/v1/invoices/{october['id']}").json()["lines"]
    assert october["total"] == "602.00"
    assert [(it["description"], it["quantity"], it["amount"]) for it in lines] == [
        ("input", "300000", "600.00"), ("tools", "4", "2.00"),
    ]  # fmt: skip


def test_the_log_goes_on_page_by_page_and_can_be_narrowed(api, keys, monkeypatch):
    monkeypatch.setattr("meterhouse_portal.usage_log.PAGE", 7)
    items, after = [], ""
    while after is not None:
        page = asked(api, keys["acme"], f"/api/v1/actions?after={after}").json()
        items += page["items"]
        after = page["next"]
    assert len(items) == len({it["id"] for it in items}) == 21
    assert sum(Decimal(it["used"].get("llm.tokens.input", "0")) for it in items) == 600_000
    (only,) = asked(api, keys["acme"], "/api/v1/actions?conversation=talk-7").json()["items"]
    assert (only["id"], only["event_time"]) == ("c-20", "2026-11-20T12:00:00Z")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/usage?period=tomorrow", 400, "bad_parameter"),
        ("/api/v1/usage?month=2026-11", 400, "bad_parameter"),
        ("/api/v1/actions?after=x", 400, "bad_parameter"),
        ("/api/v1/actions?model=" + "m" * 300, 400, "bad_parameter"),
        ("/api/v1/invoices/" + "0" * 64, 404, "not_found"),
    ],
)
def test_a_refusal_is_a_problem_with_a_code(api, keys, path, status, code):
    answer = asked(api, keys["acme"], path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_is_one_customer_and_none_is_nobody(world, api, keys):
    mine = asked(api, keys["globex"], "/api/v1/invoices").json()["items"][-1]["id"]
    other, none = (asked(api, keys["acme"], f"/api/v1/invoices/{it}") for it in (mine, "f" * 64))
    assert (other.status_code, other.text) == (404, none.text)
    assert "888000" in asked(api, keys["globex"], "/api/v1/usage").text
    assert "888000" not in asked(api, keys["acme"], "/api/v1/usage").text
    for header in ("", "Bearer", "Bearer mhc_wrong", f"Basic {keys['acme']}", "Bearer " + "x" * 9000):
        answer = api.get("/api/v1/usage", headers={"Authorization": header})
        assert answer.status_code == 401 and "WWW-Authenticate" in answer.headers
    at, _ = world
    made, text = access_keys.create(at.engine, "live", "acme", "short", who="tests", now=NOW)
    access_keys.revoke(at.engine, "live", "acme", made.key_id, NOW + timedelta(seconds=1))
    assert asked(api, text, "/api/v1/usage").status_code == 401
    assert re.fullmatch(r"mhc_[\w-]{43}", text)
