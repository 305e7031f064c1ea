"""Both HTTP APIs under requests that Schemathesis makes up from their OpenAPI documents: nothing but what those say."""

import warnings
from datetime import UTC, datetime

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from portal_samples import NOW, TOKEN, portal_world
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from starlette.testclient import TestClient

from meterhouse_portal import access_keys, app
from meterhouse_rating import versions
from meterhouse_rating.price_api.app import build
from meterhouse_store import access, meters, registry
from meterhouse_store.settings import Settings
from meterhouse_store.sql import open_engine

EXAMPLES = 15
"""Of each operation so many requests as documented, and so many that are not: the same ones each time."""


@pytest.fixture(scope="module")
def portal(warehouse_address, tmp_path_factory):
    with portal_world(warehouse_address, tmp_path_factory.mktemp("portal") / "data") as (at, its_settings):
        _, key = access_keys.create(at.engine, "live", "acme", "generated", who="tests", now=NOW)
        yield app.build(its_settings, TOKEN, now=lambda: NOW), key, "/api/v1/openapi.json"


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    engine = open_engine(Settings(data=tmp_path_factory.mktemp("prices")))
    registry.ensure_namespace(engine, "live")
    units = {name: it.unit for name, it in meters.declared(Settings()).items()}
    versions.publish(engine, "live", versions.starter(), units, author="tests", now=datetime(2026, 1, 1, tzinfo=UTC))
    registry.add_customer(engine, "live", "acme")
    _, key = access.create_key(engine, "live", "shop", role=access.PRICING)
    yield build(lambda: engine, now=lambda: NOW), key, "/v1/openapi.json"
    engine.dispose()


@pytest.mark.parametrize("api", ["portal", "prices"])
def test_made_up_requests_get_documented_answers(api, request):
    built, key, path = request.getfixturevalue(api)
    schema = schemathesis.openapi.from_asgi(path, built)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not operation.query and not operation.path_parameters:
                continue

            @settings(
                max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(mode))
            def holds(case):
                nonlocal asked
                answer = case.call(headers={"Authorization": f"Bearer {key}"})
                unsaid = []
                if ".." in str((case.query or {}).get("period", "")):
                    # That a span is no longer than a month, and ends after it begins, no schema can say.
                    unsaid.append(checks.positive_data_acceptance)
                if answer.status_code == 414:
                    unsaid.append(checks.negative_data_rejection)  # which does not know that this refuses, too
                case.validate_response(answer, excluded_checks=unsaid or None)
                asked += 1

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                holds()
    assert asked > 70, asked


@pytest.mark.parametrize(
    ("api", "path"),
    [("portal", "/api/v1/nope"), ("portal", "/api/nope"), ("prices", "/v1/nope")],
)
def test_what_is_no_operation_is_a_problem_too(api, path, request):
    built, key, _ = request.getfixturevalue(api)
    with TestClient(built) as client:
        answer = client.get(path, headers={"Authorization": f"Bearer {key}"})
        wrong_way = client.delete("/api/v1/usage" if api == "portal" else "/v1/price-books")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["code"] == "not_found"
    assert (wrong_way.status_code, wrong_way.headers["content-type"]) == (405, "application/problem+json")
    assert "GET" in wrong_way.headers["allow"]
