"""Grafana's dashboard against the real engine: every panel's SQL, its macros expanded, on a few known rows."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from meterhouse import vocabulary
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.reasons import SENTENCES

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "dashboards" / "grafana" / "overview.json").read_text())
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in DASHBOARD["panels"]}
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

# The chosen range: 2026-11-10 00:00 to 2026-11-11 00:00 UTC, five minutes to a point.
FROM_S, TO_S, INTERVAL_S = 1_794_268_800, 1_794_355_200, 300
VIEWS = {"usage", "usage_by_day", "usage_by_hour", "suspense", "watermark"}
VIEWS |= {"rated_lines", "ledger_entries", "invoices", "payments", "received", "usage_delays_by_hour"}


def expand(sql: str, **chosen: list[str] | None) -> str:
    """The SQL as the plugin sends it; a variable chosen as None is Grafana's `All`."""

    def conditional(match: re.Match[str]) -> str:
        return "1=1" if chosen[match[2]] is None else match[1]

    sql = re.sub(r"\$__conditionalAll\((.*), \$(\w+)\)", conditional, sql)
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= toDateTime({FROM_S}) AND \1 <= toDateTime({TO_S})", sql)
    sql = re.sub(r"\$__timeInterval\((\w+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {INTERVAL_S} second)", sql)
    for macro, value in (
        ("interval_s", INTERVAL_S),
        ("fromTime", f"toDateTime({FROM_S})"),
        ("toTime", f"toDateTime({TO_S})"),
    ):
        sql = sql.replace(f"$__{macro}", str(value))
    for name, values in chosen.items():
        quoted = ",".join("'" + value.replace("'", "\\'") + "'" for value in values or [])
        sql = sql.replace(f"${{{name}:singlequote}}", quoted)
    assert "$" not in sql, f"a macro or variable that this test does not know: {sql}"
    return sql


def sql_of(title: str) -> str:
    (target,) = PANELS[title]["targets"]
    return target["rawSql"]


# ---- what the file says ---------------------------------------------------------------------------------------------


def test_the_dashboard_has_the_panels_that_operations_need():
    assert list(PANELS) == [
        "Usage events",
        "Events in suspense",
        "Projection lag",
        "Events per minute",
        "Usage by customer and meter",
        "Suspense by reason",
        "Revenue of ratings",
        "What is in suspense, and why",
    ]


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_says_what_it_shows_and_in_which_unit(title):
    panel = PANELS[title]
    assert len(panel["description"]) > 40
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}


@pytest.mark.parametrize("title", PANELS)
def test_every_target_has_the_form_of_the_plugin_4_20(title):
    (target,) = PANELS[title]["targets"]
    assert target["editorType"] == "sql"
    assert target["datasource"]["uid"] == "${datasource}"
    assert (target["format"], target["queryType"]) == (
        (0, "timeseries") if PANELS[title]["type"] == "timeseries" else (1, "table")
    )


def test_panels_lie_beside_each_other_and_never_on_one_another():
    cells = [
        (x, y)
        for panel in PANELS.values()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in PANELS.values()]
    assert len(ids) == len(set(ids))


def test_only_views_are_read():
    queries = [sql_of(title) for title in PANELS] + [VARIABLES[name]["query"] for name in ("namespace", "customer")]
    read = {table for query in queries for table in re.findall(r"(?:FROM|JOIN)\s+(\w+)", query)}
    assert read <= VIEWS


def test_the_minor_units_of_the_revenue_panel_are_those_of_rating():
    zero, three = (
        set(re.findall(r"'([A-Z]{3})'", part)) for part in re.findall(r"IN \(([^$)]*)\)", sql_of("Revenue of ratings"))
    )
    assert zero == {currency for currency, digits in MINOR_DIGITS.items() if digits == 0}
    assert three == {currency for currency, digits in MINOR_DIGITS.items() if digits == 3}
    assert set(MINOR_DIGITS.values()) == {0, 2, 3}


def test_every_reason_of_the_vocabulary_has_its_sentence_in_the_dashboard():
    codes = {value for name, value in vars(vocabulary).items() if name.startswith("REASON_")}
    codes -= {vocabulary.REASON_TWIN, vocabulary.REASON_DISCARDED, vocabulary.REASON_RETRACTED}
    assert set(SENTENCES) == codes
    told, meant = re.findall(r"\[([^]]*)\]", sql_of("What is in suspense, and why"))
    words = [re.findall(r"'((?:[^']|'')*)'", part) for part in (told, meant)]
    assert dict(zip(*([word.replace("''", "'") for word in part] for part in words), strict=True)) == SENTENCES


def test_grafana_is_provisioned_with_this_dashboard_and_a_reading_user():
    (source,) = yaml.safe_load((ROOT / "dashboards/provisioning/datasources/clickhouse.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == VARIABLES["datasource"]["query"] == "grafana-clickhouse-datasource"
    assert source["jsonData"]["username"] == "reader"
    (provider,) = yaml.safe_load((ROOT / "dashboards/provisioning/dashboards/meterhouse.yaml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert f"./dashboards/grafana:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]


# ---- what the engine answers ----------------------------------------------------------------------------------------


@pytest.fixture
def ask(warehouse_client, reader_client):
    """Ask a panel's SQL of the engine, as Grafana's user; gives (column names, rows)."""
    client = warehouse_client
    event = "('live', %s, %s, %s, toDateTime64(%s, 9, 'UTC'), %s, '', %s, toDateTime64(%s, 9, 'UTC'), %s)"
    rows = [
        ("acme", "llm.tokens.input", "e1", FROM_S + 60, "1000", "", FROM_S + 61),
        ("acme", "llm.tokens.input", "e2", FROM_S + 120, "234", "", FROM_S + 121),
        ("acme", "llm.requests", "e3", FROM_S + 120, "1", "", FROM_S + 121),
        ("globex", "agent.seconds", "e4", FROM_S + 400, "1.125", "", FROM_S + 401),
        ("globex", "agent.seconds", "e5", FROM_S - 9, "9", "", FROM_S - 8),  # the day before
        ("", "llm.tokens.input", "e6", FROM_S + 60, "5", "customer_missing", FROM_S + 61),
        ("acme", "llm.tokens.input", "e7", FROM_S + 700, "0", "bad_quantity", FROM_S + 701),
        ("acme", "llm.tokens.input", "e8", FROM_S + 710, "0", "bad_quantity", FROM_S + 711),
    ]
    values = ", ".join(
        event % (*(f"'{v}'" for v in row[:3]), row[3], row[4], f"'{row[5]}'", row[6], index)
        for index, row in enumerate(rows)
    )
    # The first copy once more: it must not count twice.
    values += ", " + event % ("'acme'", "'llm.tokens.input'", "'e1'", FROM_S + 60, "1000", "''", FROM_S + 99, 0)
    client.command(
        "INSERT INTO events (namespace, customer_id, meter, event_id, event_time, quantity, raw_value, reason, "
        f"received_at, first) VALUES {values}"
    )
    client.command(
        "INSERT INTO checkpoints (collector_id, segment, position, projected_through, step) "
        "VALUES ('c1', 's', 1, now64(9, 'UTC') - INTERVAL 90 SECOND, 1)"
    )
    ratings, lines = [], []
    for rating, currency, amounts in (("r1", "USD", [1000, 234]), ("r2", "JPY", [1500]), ("r3", "KWD", [1500])):
        ratings.append(
            f"('live', 'c-{rating}', '{rating}', '2026-11-01 00:00:00', '2026-12-01 00:00:00', 'open', 'team', "
            f"'{currency}', {sum(amounts)}, 'h', 1)"
        )
        lines += [
            f"('live', 'c-{rating}', '{rating}', 'h', '{rating}-{n}', {a}, '{currency}')" for n, a in enumerate(amounts)
        ]
    client.command(
        "INSERT INTO mirror_ratings (namespace, customer_id, rating_id, period_start, period_end, state, plan, "
        f"currency, total_minor, result_sha256, version) VALUES {', '.join(ratings)}"
    )
    client.command(
        "INSERT INTO mirror_rated_lines (namespace, customer_id, rating_id, result_sha256, line_id, amount_minor, "
        f"currency) VALUES {', '.join(lines)}"
    )

    def question(title: str, customer: list[str] | None = None) -> tuple[tuple[str, ...], list[Any]]:
        answer = reader_client.query(expand(sql_of(title), namespace=["live"], customer=customer))
        return answer.column_names, [tuple(row) for row in answer.result_rows]

    return question


def test_usage_events_counts_each_event_of_the_range_once(ask):
    assert ask("Usage events") == (("events",), [(4,)])
    assert ask("Usage events", ["globex"]) == (("events",), [(1,)])


def test_events_in_suspense_counts_what_was_held_back_in_the_range(ask):
    assert ask("Events in suspense") == (("events",), [(3,)])


def test_projection_lag_is_the_age_of_each_collector_s_watermark(ask):
    columns, ((collector, lag_s),) = ask("Projection lag")
    assert columns == ("collector_id", "lag_s")
    assert collector == "c1"
    assert 90 <= lag_s <= 120


def test_events_per_minute_is_a_rate_whatever_the_interval(ask):
    columns, rows = ask("Events per minute")
    assert columns == ("time", "events_per_minute")
    # Three events in the first five minutes, one in the next: 0.6 and 0.2 a minute.
    assert [(int(time.timestamp()), rate) for time, rate in rows] == [(FROM_S, 0.6), (FROM_S + 300, 0.2)]


def test_usage_by_customer_and_meter_sums_exactly(ask):
    columns, rows = ask("Usage by customer and meter")
    assert columns == ("customer", "meter", "quantity", "events")
    assert rows == [
        ("acme", "llm.tokens.input", Decimal(1234), 2),
        ("acme", "llm.requests", Decimal(1), 1),
        ("globex", "agent.seconds", Decimal("1.125"), 1),
    ]
    assert ask("Usage by customer and meter", ["globex", "it's"])[1] == [
        ("globex", "agent.seconds", Decimal("1.125"), 1)
    ]


def test_what_is_in_suspense_is_told_in_sentences(ask):
    columns, rows = ask("What is in suspense, and why")
    assert columns == ("events", "reason", "meaning")
    assert rows == [
        (2, "bad_quantity", "its quantity is no number that can be counted"),
        (1, "customer_missing", "nobody says which customer it was for"),
    ]


def test_suspense_by_reason_is_one_series_for_each_reason(ask):
    columns, rows = ask("Suspense by reason")
    assert columns == ("time", "reason", "events")
    assert [(int(time.timestamp()), reason, events) for time, reason, events in rows] == [
        (FROM_S, "customer_missing", 1),
        (FROM_S + 600, "bad_quantity", 2),
    ]


def test_revenue_is_in_the_major_unit_of_each_currency(ask):
    columns, rows = ask("Revenue of ratings")
    assert columns == ("customer", "period_start", "period_end", "plan", "state", "revenue", "currency")
    assert [(row[0], row[4], row[5], row[6]) for row in rows] == [
        ("c-r1", "open", Decimal("12.34"), "USD"),
        ("c-r2", "open", Decimal(1500), "JPY"),
        ("c-r3", "open", Decimal("1.5"), "KWD"),
    ]
    assert [row[6] for row in ask("Revenue of ratings", ["c-r2"])[1]] == ["JPY"]


def test_the_choices_of_the_variables_come_from_usage(ask, reader_client):
    def choices(name: str) -> list[str]:
        query = expand(VARIABLES[name]["query"], namespace=["live"])
        return [row[0] for row in reader_client.query(query).result_rows]

    assert choices("namespace") == ["live"]
    assert choices("customer") == ["acme", "globex"]
