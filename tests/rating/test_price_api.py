"""The price API: who may read what, what a customer pays when, and that the OpenAPI document says what is answered."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import create_engine
from starlette.testclient import TestClient
from typer.testing import CliRunner

from meterhouse_rating import publishing, versions
from meterhouse_rating.price_api.app import build
from meterhouse_rating.price_api.operations import OPERATIONS, document
from meterhouse_rating.publishing import Person
from meterhouse_store import access, agreements, key_uses, registry
from meterhouse_store.registry_commands import keys
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BOOK = """
book: own
currency: USD
tax: {behaviour: exclusive, code: txcd_10103001}
metrics:
  input: {unit: token, meters: [llm.tokens.input]}
  calls: {unit: call, meters: [llm.requests]}
plans:
  pay:
    title: Pay as you go
    trial_days: 10
    components:
      in: {model: per_unit, title: Input tokens, metric: input, per: 1_000_000, price: 2.50}
      calls: {model: per_unit, metric: calls, price: 0.01, tax: {code: txcd_20030000}}
      seats: {model: recurring, price: 20, quantity: seats}
  big:
    components:
      in: {model: per_unit, metric: input, per: 1_000_000, price: 1.50}
  acme-only:
    components:
      in: {model: per_unit, metric: input, per: 1_000_000, price: 0.50}
addons:
  support:
    components:
      fee: {model: flat, price: 100}
"""
METERS = {"llm.tokens.input": "{token}", "llm.requests": "{request}"}
DOCUMENT = document()


def day(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Reading:
    """The API with a key; every answer is held against the OpenAPI document."""

    def __init__(self, app, key=None):
        self.client, self.key = TestClient(app, raise_server_exceptions=False), key

    def get(self, path, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.key is not None:
            names["Authorization"] = f"Bearer {self.key}"
        answer = self.client.get(path, headers=names)
        checked(path, answer)
        return answer

    def refused(self, path, **headers):
        answer = self.get(path, **headers)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["code"]


def checked(path, answer):
    """The answer is one that the document has for the path, and fits its schema."""
    plain_path = path.partition("?")[0]
    patterns = {re.sub(r"\{\w+\}", ".+" if "customer" in it else "[^/]+", it): it for it in DOCUMENT["paths"]}
    template = next((it for pattern, it in patterns.items() if re.fullmatch(pattern, plain_path)), None)
    if template is None:
        assert answer.status_code == 404, f"{path} is not in the document"
        return
    described = DOCUMENT["paths"][template]["get"]["responses"][str(answer.status_code)]
    if answer.status_code == 304:
        assert answer.content == b""
        return
    media = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media]["schema"]
    if media != "application/yaml":
        Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(answer.json())


@pytest.fixture
def engine(sql_url, tmp_path):
    made = open_engine(Settings(data=tmp_path, sql_url=sql_url))
    registry.ensure_namespace(made, "test", now=NOW)
    versions.publish(made, "test", BOOK, METERS, author="ann", now=NOW)
    yield made
    made.dispose()


@pytest.fixture
def app(engine):
    return build(lambda: engine, now=lambda: NOW)


def key(engine, role=access.PRICING, customers=None, namespace="test"):
    made = access.create_key(engine, namespace, role, role=role, customers=customers, now=NOW - timedelta(days=1))
    return made[1]


@pytest.fixture
def reading(app, engine):
    return Reading(app, key(engine))


# ---- the document ---------------------------------------------------------------------------------------------------


def test_the_document_is_openapi_and_every_route_is_in_it(app):
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    routes = {re.sub(r":\w+\}", "}", route.path) for route in app._app.routes}
    assert routes == set(DOCUMENT["paths"]) == {it.path for it in OPERATIONS}
    assert Reading(app).get("/v1/openapi.json").json() == DOCUMENT


# ---- price books ----------------------------------------------------------------------------------------------------


def test_a_version_is_told_with_its_plans_and_exact_terms(reading):
    found = reading.get("/v1/price-books/1").json()
    assert (found["version"], found["author"], found["approved_by"]) == (1, "ann", None)
    assert (found["plans"], found["addons"]) == (["pay", "big", "acme-only"], ["support"])
    assert reading.get("/v1/price-books/1/source").text == BOOK
    plan = reading.get("/v1/price-books/1/plans/pay").json()
    assert plan["components"][0] == {
        "name": "in",
        "title": "Input tokens",
        "model": "per_unit",
        "metrics": ["input"],
        "dimensions": [],
        "tax": {"behaviour": "exclusive", "code": "txcd_10103001"},
        "terms": {"model": "per_unit", "title": "Input tokens", "metric": "input", "per": "1000000", "price": "2.50"},
    }
    assert plan["components"][1]["tax"] == {"behaviour": "exclusive", "code": "txcd_20030000"}
    assert reading.get("/v1/price-books/1/addons/support").json()["components"][0]["terms"]["price"] == "100"
    assert [it["name"] for it in reading.get("/v1/price-books/1/addons").json()["items"]] == ["support"]


def test_versions_and_plans_come_in_pages(reading, engine):
    for number in range(3, 7):
        versions.publish(engine, "test", BOOK.replace("2.50", f"{number}.50"), METERS, author="ann", now=NOW)
    seen, address = [], "/v1/price-books?limit=2"
    while address is not None:
        page = reading.get(address).json()
        seen.append([it["version"] for it in page["items"]])
        address = page["next"]
    assert seen == [[1, 2], [3, 4], [5]]
    first = reading.get("/v1/price-books/1/plans?limit=2").json()
    assert [it["name"] for it in first["items"]] == ["pay", "big"]
    second = reading.get(first["next"]).json()
    assert ([it["name"] for it in second["items"]], second["next"]) == (["acme-only"], None)


def test_what_somebody_has_already_is_not_sent_again(reading, engine):
    first = reading.get("/v1/price-books/1")
    assert "immutable" in first.headers["cache-control"] and first.headers["vary"] == "Authorization"
    again = reading.get("/v1/price-books/1", If_None_Match=f'"other", W/{first.headers["etag"]}')
    assert (again.status_code, again.headers["etag"]) == (304, first.headers["etag"])
    listed = reading.get("/v1/price-books")
    assert listed.headers["cache-control"] == "private, no-cache"
    versions.publish(engine, "test", BOOK.replace("2.50", "3.50"), METERS, author="ann", now=NOW)
    assert reading.get("/v1/price-books", If_None_Match=listed.headers["etag"]).status_code == 200


def test_the_second_person_is_told(reading, engine):
    ann, bob = Person("ann", "ann"), Person("bob", "bob")
    publishing.ask_for_two(engine, "test", by=ann, why="audit", now=NOW)
    book = BOOK.replace("2.50", "3.50")
    publishing.propose(engine, "test", book, METERS, by=ann, valid_from=None, now=NOW)
    assert reading.refused("/v1/price-books/2") == (404, "not_found")  # a proposal is no version
    publishing.approve(engine, "test", "2", METERS, by=bob, why="read it", now=NOW)
    assert reading.get("/v1/price-books/2").json()["approved_by"] == "bob"


# ---- who may read what ----------------------------------------------------------------------------------------------


def test_a_key_that_reports_usage_reads_no_prices_and_no_key_reads_nothing(app, engine):
    registry.add_customer(engine, "test", "acme", plan="pay", now=NOW)
    metering = Reading(app, key(engine, access.METERING, ["acme"]))
    for path in ("/v1/price-books", "/v1/price-books/1/plans/pay", "/v1/customers/acme/prices"):
        assert metering.refused(path) == (403, "wrong_role")
        assert Reading(app).refused(path) == (401, "unauthenticated")
        assert Reading(app, "mh_" + "x" * 40).refused(path) == (401, "unauthenticated")
    assert "Bearer" in Reading(app).get("/v1/price-books").headers["www-authenticate"]
    assert Reading(app).get("/healthz").json() == {"status": "ok"}


def test_a_key_for_prices_is_made_by_the_command(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("METERHOUSE_SQL_URL", str(engine.url.render_as_string(hide_password=False)))
    monkeypatch.setenv("METERHOUSE_NAMESPACE", "test")
    monkeypatch.setenv("METERHOUSE_DATA", str(tmp_path))
    made = CliRunner().invoke(keys, ["create", "shop", "--role", "pricing", "--json"])
    assert made.exit_code == 0, made.output
    assert (
        len(Reading(build(lambda: engine), json.loads(made.output)["key"]).get("/v1/price-books").json()["items"]) == 1
    )
    assert CliRunner().invoke(keys, ["create", "shop", "--role", "both"]).exit_code == 1


def test_a_key_for_one_customer_reads_that_customers_prices_alone(app, engine):
    for name in ("acme", "globex"):
        registry.add_customer(engine, "test", name, plan="pay", now=NOW)
    limited = Reading(app, key(engine, customers=["acme"]))
    assert limited.get("/v1/customers/acme/prices").json()["plan"]["name"] == "pay"
    # Whether there is such a customer is not told either.
    assert limited.refused("/v1/customers/globex/prices") == (403, "customer_forbidden")
    assert limited.refused("/v1/customers/nobody/prices") == (403, "customer_forbidden")
    # Books have plans in them that were made for others.
    assert limited.refused("/v1/price-books") == (403, "customer_forbidden")
    assert limited.refused("/v1/price-books/1/plans/pay") == (403, "customer_forbidden")


def test_a_revoked_key_and_the_key_of_another_namespace_read_nothing_here(app, engine, reading):
    registry.ensure_namespace(engine, "other", now=NOW)
    assert Reading(app, key(engine, namespace="other")).get("/v1/price-books").json()["items"] == []
    [made] = [it for it in access.credentials(engine, "test") if it.role == access.PRICING]
    reading.get("/v1/price-books")
    assert key_uses.last(engine)[made.credential_id] == NOW
    access.revoke_key(engine, made.credential_id, now=NOW)
    assert reading.refused("/v1/price-books") == (401, "unauthenticated")


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/price-books/7", 404, "not_found"),
        ("/v1/price-books/99999999999999999999", 404, "not_found"),
        ("/v1/price-books/0", 404, "not_found"),
        ("/v1/price-books/1/plans/none", 404, "not_found"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1/customers/nobody/prices", 404, "not_found"),
        ("/v1/price-books?limit=0", 400, "bad_parameter"),
        ("/v1/price-books?limit=101", 400, "bad_parameter"),
        ("/v1/price-books?limit=1&limit=2", 400, "bad_parameter"),
        ("/v1/price-books?after=x", 400, "bad_parameter"),
        ("/v1/price-books?offset=1", 400, "unknown_parameter"),
        ("/v1/customers/acme/prices?at=soon", 400, "bad_parameter"),
        ("/v1/customers/acme/prices?at=9999-12-31", 400, "bad_parameter"),
        ("/v1/customers/acme/prices?at=" + "1" * 41, 400, "bad_parameter"),
        ("/v1/customers/" + "x" * 4097 + "/prices", 414, "address_too_long"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_a_code(reading, path, status, code):
    assert reading.refused(path) == (status, code)


def test_nothing_is_written_and_a_database_that_is_away_is_a_503(reading, tmp_path):
    answer = reading.client.post("/v1/price-books", headers={"Authorization": f"Bearer {reading.key}"})
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (
        405,
        "method_not_allowed",
        "GET, HEAD",
    )
    assert reading.client.request("GET", "/healthz", content=b"x").json()["code"] == "unexpected_body"
    away = create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")
    assert Reading(build(lambda: away, now=lambda: NOW), "mh_" + "x" * 40).refused("/v1/price-books") == (
        503,
        "unavailable",
    )
    away.dispose()


# ---- what a customer pays -------------------------------------------------------------------------------------------


def agreed(engine):
    """acme, in Berlin: on pay, on big from 10 December; with seats, an add-on, a price of its own and a discount."""
    registry.add_customer(
        engine,
        "test",
        "acme",
        plan="pay",
        time_zone="Europe/Berlin",
        valid_from=day("2026-10-01"),
        now=day("2026-10-01"),
    )
    registry.add_customer(engine, "test", "acme", plan="big", valid_from=day("2026-12-10"), now=NOW)
    where = {"engine": engine, "namespace": "test", "customer_id": "acme", "now": NOW}
    agreements.add_quantity(name="seats", quantity=Decimal(5), valid_from=day("2026-11-02"), **where)
    agreements.add_quantity(name="seats", quantity=Decimal(8), valid_from=day("2026-11-25"), **where)
    agreements.add_addon(
        addon="support", quantity=Decimal(2), valid_from=day("2026-11-10"), valid_until=day("2026-11-30"), **where
    )
    own = "model: per_unit\nmetric: calls\nprice: 0.005\n"
    agreements.add_override(component="calls", source=own, valid_from=day("2026-11-05"), **where)
    agreements.add_discount(name="Launch", percent=Decimal(20), months=2, valid_from=day("2026-11-15"), **where)


def test_the_price_list_of_a_customer_has_plan_agreements_and_what_is_to_change(reading, engine):
    agreed(engine)
    versions.publish(
        engine, "test", BOOK.replace("2.50", "3.00"), METERS, author="ann", valid_from=day("2026-12-20"), now=NOW
    )
    found = reading.get("/v1/customers/acme/prices").json()
    # The month in Berlin, which is an hour ahead.
    assert found["period"] == {
        "start": "2026-10-31T23:00:00+00:00",
        "end": "2026-11-30T23:00:00+00:00",
        "state": "open",
    }
    assert (found["price_book"]["version"], found["plan"]["name"]) == (1, "pay")
    assert [(it["name"], it["own_price"]) for it in found["components"]] == [
        ("in", None),
        ("calls", None),
        ("seats", None),
    ]
    assert [(it["name"], it["quantity"]) for it in found["addons"]] == [("support", "2")]
    assert [(it["name"], it["percent"]) for it in found["discounts"]] == [("Launch", "20")]
    assert found["quantities"] == [{"name": "seats", "quantity": "5", "valid_from": "2026-11-02T00:00:00+00:00"}]
    assert [(it["applies_from"][:16], it["kind"], it["name"], it["detail"]) for it in found["scheduled"]] == [
        ("2026-11-25T00:00", "quantity", "seats", "8"),
        ("2026-11-30T00:00", "addon_ends", "support", "2"),
        ("2026-11-30T23:00", "own_price_begins", "calls", ""),  # months that begin while it holds
        ("2026-12-31T23:00", "discount_ends", "Launch", "20 %"),  # November and December
        ("2026-12-31T23:00", "plan", "big", "from pay"),  # waits for the next month
        ("2026-12-31T23:00", "price_book", "2", "own"),
    ]


def test_at_another_time_other_prices_apply(reading, engine):
    agreed(engine)
    december = reading.get("/v1/customers/acme/prices?at=2026-12-15").json()
    calls = december["components"][1]
    assert (calls["terms"]["price"], december["plan"]["name"]) == ("0.005", "pay") and calls["own_price"]
    assert december["addons"] == []
    assert december["quantities"][0]["quantity"] == "8"
    # In January the plan is big, which has no component `calls`: the price of its own fits nothing.
    assert reading.refused("/v1/customers/acme/prices?at=2027-01-15") == (409, "not_priced")
    october = reading.get("/v1/customers/acme/prices?at=2026-10-05T12:00:00%2B02:00").json()
    assert (october["plan"]["trial_until"], october["scheduled"][0]["kind"]) == (
        "2026-10-11T00:00:00+00:00",
        "trial_ends",
    )


def test_a_plan_that_changes_at_once_cuts_the_month(reading, engine):
    at_once = BOOK + "plan_changes: {apply: at_once}\n"
    versions.publish(engine, "test", at_once, METERS, author="ann", valid_from=day("2026-01-01"), now=NOW)
    registry.add_customer(engine, "test", "acme", plan="pay", valid_from=day("2026-10-01"), now=NOW)
    registry.add_customer(engine, "test", "acme", plan="big", valid_from=day("2026-12-10"), now=NOW)
    before = reading.get("/v1/customers/acme/prices?at=2026-12-09").json()
    after = reading.get("/v1/customers/acme/prices?at=2026-12-10").json()
    assert (before["plan"]["name"], before["period"]["end"]) == ("pay", "2026-12-10T00:00:00+00:00")
    assert (after["plan"]["name"], after["period"]["start"]) == ("big", "2026-12-10T00:00:00+00:00")
    assert [(it["kind"], it["applies_from"]) for it in before["scheduled"]] == [("plan", "2026-12-10T00:00:00+00:00")]


def test_a_contract_that_ends_is_told_before_and_after(reading, engine):
    registry.add_customer(engine, "test", "acme", plan="pay", valid_from=day("2026-10-01"), now=day("2026-10-01"))
    registry.end_contract(engine, "test", "acme", day("2026-12-10"), who="ann", why="moved", now=NOW)
    [change] = reading.get("/v1/customers/acme/prices").json()["scheduled"]
    assert (change["kind"], change["name"], change["applies_from"]) == (
        "contract_ends",
        "pay",
        "2027-01-01T00:00:00+00:00",
    )
    assert reading.refused("/v1/customers/acme/prices?at=2027-01-05") == (409, "not_priced")


def test_an_id_with_a_slash_is_asked_for_percent_encoded(reading, engine):
    registry.add_customer(engine, "test", "eu/acme/prices", plan="big", now=NOW)
    found = reading.get("/v1/customers/eu%2Facme%2Fprices/prices").json()
    assert (found["customer_id"], found["plan"]["name"]) == ("eu/acme/prices", "big")
