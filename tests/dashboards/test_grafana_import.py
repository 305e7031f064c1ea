"""`meterhouse grafana import` against a local server that is as strict as Grafana's documentation."""

import json

import pytest
from grafana_server import Grafana, serve
from typer.testing import CliRunner

from meterhouse_reports.grafana_commands import app

WAREHOUSE = "http://reader:p%40ss@clickhouse.example:9123"
DASHBOARDS = {"meterhouse-" + name for name in ("overview", "pipeline", "usage", "costs", "billing", "budgets")}


@pytest.fixture
def grafana():
    """A Grafana with a data source and a dashboard of its owner's."""
    state = Grafana()
    state.add_source({"uid": "own", "name": "Own", "type": "prometheus", "access": "proxy", "isDefault": True})
    server = serve(state)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()


def run(grafana, *more, token="admin-token"):
    told = ["import", "--url", grafana.url, "--token", token, "--warehouse", WAREHOUSE, *more]
    return CliRunner().invoke(app, told, env={"COLUMNS": "200"})


def test_what_is_no_address_is_called_wrongly(grafana):
    grafana.url = "notaurl"
    refused = run(grafana)
    assert refused.exit_code == 2 and "notaurl is no address of a Grafana" in refused.output


def outcomes(result):
    return {it["outcome"] for it in json.loads(result.output)["done"]}


def test_a_grafana_gets_all_of_it_and_again_nothing_but_the_password(grafana):
    first = run(grafana, "--json", "--docs", "https://git.example/meterhouse/docs/")
    assert first.exit_code == 0, first.output
    assert outcomes(first) == {"new"}
    source = grafana.sources["meterhouse-clickhouse"]
    assert (source["type"], source["isDefault"]) == ("grafana-clickhouse-datasource", False)
    reached = {name: source["jsonData"][name] for name in ("host", "port", "secure", "username", "defaultDatabase")}
    assert reached == {
        "host": "clickhouse.example", "port": 9123, "secure": False, "username": "reader",
        "defaultDatabase": "meterhouse",
    }  # fmt: skip
    assert source["secureJsonData"] == {"password": "p@ss"}
    assert grafana.folders["meterhouse"]["title"] == "Meterhouse"
    assert set(grafana.dashboards) == DASHBOARDS
    for one in grafana.dashboards.values():
        assert one["meta"] == {"folderUid": "meterhouse"}
        (chosen,) = [it for it in one["dashboard"]["templating"]["list"] if it["type"] == "datasource"]
        assert chosen["current"]["value"] == "meterhouse-clickhouse"
    rules = grafana.groups["meterhouse", "meterhouse"]["rules"]
    lag = next(rule for rule in rules if rule["uid"] == "meterhouse-projection-lag")
    assert lag["annotations"]["runbook_url"] == "https://git.example/meterhouse/docs/runbooks/projection-lag.md"
    assert grafana.groups["meterhouse", "meterhouse"]["interval"] == 60

    grafana.writes.clear()
    again = run(grafana, "--json", "--docs", "https://git.example/meterhouse")
    assert outcomes(again) == {"as it was"}
    assert grafana.writes == [("PUT", "/api/datasources/uid/meterhouse-clickhouse")]
    assert list(grafana.sources) == ["own", "meterhouse-clickhouse"] and grafana.sources["own"]["isDefault"]


def test_what_somebody_changed_there_is_put_right_and_rules_that_are_no_more_go(grafana):
    run(grafana)
    grafana.dashboards["meterhouse-usage"]["dashboard"]["panels"].pop()
    group = grafana.groups["meterhouse", "meterhouse"]
    group["rules"][0]["for"] = "1h"
    group["rules"].append({**group["rules"][1], "uid": "meterhouse-old", "title": "An old one"})
    dry = run(grafana, "--dry-run", "--json")
    changed = [it for it in json.loads(dry.output)["done"] if it["outcome"] != "as it was"]
    assert [(it["kind"], it["name"], it["outcome"]) for it in changed] == [
        ("dashboard", "Meterhouse usage", "changed"),
        ("alert rule", "The warehouse is behind", "changed"),
        ("alert rule", "An old one", "removed"),
    ]
    assert "meterhouse-old" in [rule["uid"] for rule in grafana.groups["meterhouse", "meterhouse"]["rules"]]
    run(grafana)
    assert "meterhouse-old" not in [rule["uid"] for rule in grafana.groups["meterhouse", "meterhouse"]["rules"]]
    assert outcomes(run(grafana, "--json")) == {"as it was"}


def test_a_dry_run_writes_nothing(grafana):
    found = run(grafana, "--dry-run")
    assert found.exit_code == 0 and "Nothing was written" in found.output
    assert grafana.writes == [] and list(grafana.sources) == ["own"]


@pytest.mark.parametrize("path", ["/api", "/grafana"])
def test_what_answers_and_is_no_grafana_is_not_taken_for_an_empty_one(grafana, path):
    grafana.url += path
    for more in ((), ("--dry-run",)):
        found = run(grafana, *more)
        assert found.exit_code == 1
        assert f"{grafana.url} is no Grafana: it has no /api/health of one; name the address" in found.output
    assert grafana.writes == []


def test_refusals_say_what_to_do(grafana):
    wrong = run(grafana, token="nobody's")
    assert wrong.exit_code == 1 and "Grafana does not take the token" in wrong.output
    viewer = run(grafana, token="viewer-token")
    assert viewer.exit_code == 1 and "needs the role Admin" in viewer.output
    grafana.health = (400, {"message": "plugin not found"})
    ill = run(grafana)
    assert ill.exit_code == 3 and "The data source does not answer Grafana: plugin not found" in ill.output
    assert set(grafana.dashboards) == DASHBOARDS
    away = CliRunner().invoke(app, ["import", "--url", "http://127.0.0.1:9", "--token", "t", "--warehouse", WAREHOUSE])
    assert away.exit_code == 1 and "does not answer" in away.output
