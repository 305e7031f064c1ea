"""Grafana's generated dashboards and alert rules against the real engine: every query, on rows of known totals."""

import importlib.util
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from quick_stores import empty

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "dashboards" / "grafana"
sys.path.insert(0, str(FOLDER))  # as where build.py is run; for `panels`
_SPEC = importlib.util.spec_from_file_location("grafana_build", FOLDER / "build.py")
assert _SPEC is not None and _SPEC.loader is not None
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)

DASHBOARDS = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in build.DASHBOARDS}
PANELS = {(name, panel["title"]): panel for name, one in DASHBOARDS.items() for panel in one["panels"]}
RULES = yaml.safe_load((ROOT / "dashboards/provisioning/alerting/meterhouse.yaml").read_text())["groups"][0]["rules"]
VIEWS = {"usage", "suspense", "watermark", "conservation", "received", "refused", "costs", "margins"}
VIEWS |= {"budgets", "pauses", "notices_due"}
VIEWS |= {"usage_by_day", "usage_by_hour", "usage_by_conversation", "usage_delays_by_hour", "costs_by_day"}
OF_COLLECTORS = {"watermark", "collector_health", "collector_durations", "slos"}  # which serve all namespaces
VIEWS |= OF_COLLECTORS
VIEWS |= {"finance_entries", "finance_unbilled", "finance_invoices", "finance_reconciliation"}
# The panels of the pipeline that need to know what is stored, not only what came.
KEPT = {"Rows counted", "What became of the rows", "Keys", "From the event to the warehouse"}
UNITS = {"short", "s", "h", "percentunit", "bytes"}
NOW = datetime.now(UTC).replace(microsecond=0)


def expand(sql, customer=None, days=30, interval_s=300):
    """As the plugin sends it: the last days; `interval_s` seconds a point; `customer` None is Grafana's `All`."""
    sql = re.sub(r"\$__conditionalAll\((.*), \$customer\)", r"\1" if customer else "1=1", sql)
    sql = re.sub(r"\$__conditionalAll\((.*), \$\w+\)", "1=1", sql)
    now = datetime.now(UTC)
    since, until = int((now - timedelta(days=days)).timestamp()), int((now + timedelta(minutes=1)).timestamp())
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= toDateTime({since}) AND \1 <= toDateTime({until})", sql)
    sql = re.sub(r"\$__timeInterval\((\w+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {interval_s} second)", sql)
    for told, value in (
        ("interval_s", interval_s),
        ("fromTime", f"toDateTime({since})"),
        ("toTime", f"toDateTime({until})"),
    ):
        sql = sql.replace(f"$__{told}", str(value))
    sql = sql.replace("${namespace:singlequote}", "'live'").replace("${customer:singlequote}", f"'{customer}'")
    assert "$" not in sql, f"a macro or variable that this test does not know: {sql}"
    return sql


# ---- what the files say ---------------------------------------------------------------------------------------------


def test_what_is_checked_in_is_what_the_generator_writes():
    assert [str(path) for path, text in build.files().items() if path.read_text() != text] == []


@pytest.mark.parametrize(("name", "title"), PANELS)
def test_every_panel_has_a_description_a_unit_and_reads_views_by_namespace(name, title):
    panel = PANELS[name, title]
    assert len(panel["description"]) > 30 and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    sql = panel["targets"][0]["rawSql"]
    read = set(re.findall(r"(?:FROM|JOIN)\s+(\w+)", sql))
    assert read <= VIEWS
    assert "${namespace:singlequote}" in sql or read <= OF_COLLECTORS
    if panel["type"] == "table":
        assert "ORDER BY" in sql
    variables = {one["name"] for one in DASHBOARDS[name]["templating"]["list"]}
    assert set(re.findall(r"\$\{(\w+):", sql)) <= variables


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_never_lie_on_one_another(name):
    cells = [
        (x, y)
        for panel in DASHBOARDS[name]["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_every_alert_has_a_runbook_that_says_when_it_is_over():
    for rule in RULES:
        page = (ROOT / rule["annotations"]["runbook_url"]).read_text()
        assert page.startswith(f"# {rule['title']}\n")
        wanted = ["## What it means", "## What to look at", "## What to do", "## How to know that it is over"]
        assert re.findall(r"^## .*$", page, re.MULTILINE) == wanted
    assert len(list((ROOT / "docs" / "runbooks").glob("*.md"))) == len(RULES)


def test_compose_gives_grafana_the_rules():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    wanted = "./dashboards/provisioning/alerting:/etc/grafana/provisioning/alerting:ro"
    assert wanted in compose["services"]["grafana"]["volumes"]


# ---- what the engine answers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ask(warehouse_address):
    """Asks as Grafana's user, on three calls, one of which failed, a tool call, a row in suspense, and two closed
    ratings: one invoiced 40 days ago, at Stripe with one cent less, and one without an invoice five days after it."""
    from meterhouse_store import warehouse
    from meterhouse_store.settings import Settings

    def client(user):
        url = f"http://{user}:{user}-password-of-the-tests@{warehouse_address}"
        return warehouse.connect(Settings(warehouse_url=url), timeout_s=120, database="meterhouse")

    admin, reader = client("admin"), client("reader")
    empty(admin)
    at = NOW - timedelta(minutes=10)
    call = {"meter": "llm.requests", "quantity": Decimal(1), "model": "gpt-5", "agent_name": "helper"}
    rows = [
        {**call, "event_id": "1", "customer_id": "acme", "call_id": "c1", "conversation_id": "talk", "trace_id": "t1"},
        {**call, "event_id": "2", "customer_id": "acme", "call_id": "c2", "status": "failed"},
        {**call, "event_id": "3", "customer_id": "globex", "call_id": "c3"},
        {**call, "event_id": "4", "customer_id": "acme", "call_id": "c1", "conversation_id": "talk",
         "meter": "llm.tokens.input", "quantity": Decimal(1200)},
        {**call, "event_id": "5", "customer_id": "acme", "meter": "tool.calls", "model": "", "tool": "search"},
        {**call, "event_id": "6", "customer_id": "", "reason": "customer_missing"},
    ]  # fmt: skip
    defaults = {"namespace": "live", "status": "ok", "reason": "", "conversation_id": "", "tool": "", "call_id": ""}
    defaults |= {
        "agent_name": "helper",
        "trace_id": "",
        "event_time": at,
        "received_at": at + timedelta(seconds=3),
        "credential_id": "key",
    }
    rows.append(rows[0])  # once more: a duplicate
    put(admin, "events", [defaults | {"first": number} | row for number, row in enumerate(rows)])
    hour = at.replace(minute=0, second=0)
    put(
        admin,
        "collector_minutes",
        [
            minute(2, 96, failed=4, acknowledged=[90, 5, 1], waiting_bytes=5000),
            minute(180, 900, refused=7, acknowledged=[900, 0, 0], lag_s=100.0),
            minute(180, 4, acknowledged=[4, 0, 0], process_run_id="next"),
        ],
    )  # started again: the same minute
    put(admin, "refusals", [
        {"namespace": "", "credential_id": "", "hour": hour, "code": "unauthenticated", "process_run_id": "p",
         "requests": 500, "bytes": 0},
    ])  # fmt: skip
    known = {"namespace": "live", "model": "gpt-5", "status": "known", "currency": "USD", "version": 1}
    known |= {"valid_from": NOW - timedelta(days=90)}
    put(admin, "cost_rates", [
        {**known, "meter": "llm.requests", "price": Decimal("0.01"), "per": 1},
        {**known, "meter": "llm.tokens.input", "price": Decimal(2), "per": 1000},
    ])  # fmt: skip
    lag = {"collector_id": "c", "segment": "s", "position": 1, "projected_through": NOW - timedelta(seconds=400)}
    put(admin, "checkpoints", [{**lag, "step": 1}])
    end = NOW - timedelta(days=5)
    period = {"namespace": "live", "customer_id": "acme", "rating_id": "r1", "currency": "USD"}
    dates = {"period_start": end - timedelta(days=30), "period_end": end}
    put(admin, "mirror_ratings", [
        {**period, **dates, "state": "closed", "plan": "pay", "total_minor": 6100, "result_sha256": "h", "version": 1},
        {**period, **dates, "customer_id": "globex", "rating_id": "r2", "state": "closed", "plan": "pay",
         "total_minor": 500, "result_sha256": "h", "version": 1},
    ])  # fmt: skip
    line = {**period, "result_sha256": "h", "line_id": "l1", "kind": "usage", "amount_minor": 6100}
    other = {**line, "customer_id": "globex", "rating_id": "r2", "line_id": "l2", "amount_minor": 500}
    put(admin, "mirror_rated_lines", [line, other])
    entry = {"namespace": "live", "customer_id": "acme", "transaction_id": "t", "kind": "usage", "source_id": "l1",
             "currency": "USD", "effective_at": end}  # fmt: skip
    adjusted = {**entry, "transaction_id": "a", "kind": "adjustment", "source_id": "x", "account": "receivable"}
    posted = {**entry, "customer_id": "globex", "transaction_id": "t2", "source_id": "l2"}
    put(admin, "mirror_ledger_entries", [
        {**entry, "position": 0, "account": "receivable", "amount_minor": 6100},
        {**entry, "position": 1, "account": "revenue", "amount_minor": -6100},
        {**posted, "position": 0, "account": "receivable", "amount_minor": 500},
        {**posted, "position": 1, "account": "revenue", "amount_minor": -500},
        {**adjusted, "position": 0, "amount_minor": -100, "memo": "outage"},
    ])  # fmt: skip
    put(admin, "mirror_invoices", [
        {**period, **dates, "invoice_id": "i1", "state": "finalised", "total_minor": 6100, "stripe_total_minor": 6099,
         "number": "A-1", "created_at": NOW - timedelta(days=41), "finalised_at": NOW - timedelta(days=40),
         "version": 1},
    ])  # fmt: skip
    looked = {"namespace": "live", "customer_id": "acme", "is_there": True, "looked_at": NOW - timedelta(minutes=20)}
    budget = {**looked, "budget": "money", "unit": "USD", "measure": "money", "per": "month", "is_hard": True,
              "period_start": NOW, "period_end": NOW + timedelta(days=1), "trouble": "", "version": 1}  # fmt: skip
    put(admin, "mirror_budgets", [
        {**budget, "cap": Decimal(100), "used": Decimal(90), "reserved": Decimal(20), "state": "held by agents"},
        {**budget, "cap": Decimal(100), "used": Decimal(100), "reserved": Decimal(0), "state": "paused", "version": 2},
        {**budget, "customer_id": "globex", "budget": "talks", "unit": "agent.conversations", "measure": "units",
         "cap": Decimal(50), "used": Decimal(10), "reserved": Decimal(5), "state": "unknown", "trouble": "no price"},
        {**budget, "customer_id": "gone", "cap": Decimal(1), "used": Decimal(1), "reserved": Decimal(0),
         "state": "paused", "is_there": False},
    ])  # fmt: skip
    put(admin, "mirror_pauses", [
        {**looked, "reason": "operator", "since": NOW, "who": "ann", "why": "key leaked", "version": 1},
    ])  # fmt: skip
    due = {**looked, "kind": "paused", "channel": "email", "oldest_at": NOW, "next_attempt_at": NOW, "version": 1}
    put(admin, "mirror_notices_due", [
        {**due, "state": "pending", "deliveries": 3}, {**due, "state": "failed", "deliveries": 1},
    ])  # fmt: skip
    yield lambda sql, customer=None, **chosen: reader.query(expand(sql, customer, **chosen))
    admin.close()
    reader.close()


def put(client, table, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    client.insert(table, [[row.get(name, "") for name in names] for row in rows], column_names=names)


def minute(ago, accepted, **more):
    """A collector's row of so many minutes ago; the histogram's bounds are 50 ms, 100 ms and none."""
    row = {
        "collector_id": "c-1",
        "minute": datetime.now(UTC) - timedelta(minutes=ago),
        "process_run_id": "run",
        "accepted": accepted,
    }
    row |= {"refused": 0, "failed": 0, "bounds_s": [0.05, 0.1, float("inf")], "synced": [accepted, 0, 0]}
    return row | {"waiting_bytes": 0, "lag_s": 1.0, "edition": 1} | more


def shown(ask, name, title, customer=None):
    answer = ask(PANELS[name, title]["targets"][0]["rawSql"], customer)
    return [dict(zip(answer.column_names, row, strict=True)) for row in answer.result_rows]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_answers_in_its_shape(ask, name):
    for (of, title), panel in PANELS.items():
        if of != name:
            continue
        answer = ask(panel["targets"][0]["rawSql"])
        assert answer.result_rows, title  # there is something to see on each of them
        if panel["type"] == "timeseries":
            assert answer.column_names[0] == "time" and len(answer.column_names) > 1, title
        if panel["type"] == "stat":
            assert len(answer.result_rows) == len(answer.column_names) == 1, title
        assert set(panel["fieldConfig"]["overrides"] and [
            one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]
        ]) <= set(answer.column_names), title  # fmt: skip
        for variable in DASHBOARDS[name]["templating"]["list"]:
            if variable["type"] == "query":
                assert ask(variable["query"]).result_rows


def test_the_pipeline_shows_what_became_of_the_rows(ask):
    (found,) = shown(ask, "pipeline", "Keys")
    assert {name: found[name] for name in ("received", "counted", "duplicates", "suspended")} == {
        "received": 7, "counted": 5, "duplicates": 1, "suspended": 1,
    }  # fmt: skip
    assert shown(ask, "pipeline", "Rows received") == [{"received": 7}]
    assert shown(ask, "pipeline", "Share in suspense") == [{"share": pytest.approx(1 / 7)}]
    assert shown(ask, "pipeline", "Suspense burn rate")[0]["burn_rate"] in (0, pytest.approx(1 / 7 / 0.001))
    assert shown(ask, "pipeline", "Refused requests")[0]["requests"] == 500
    since = (datetime.now(UTC) - NOW).total_seconds()
    assert 400 <= shown(ask, "pipeline", "Projection lag")[0]["lag_s"] <= 400 + since + 1
    assert shown(ask, "pipeline", "From the event to the warehouse")[0]["p99_s"] == 3


def test_a_range_of_less_than_an_hour_shows_the_hour_that_it_begins_in(ask):
    since = datetime.now(UTC) - (NOW - timedelta(minutes=10))  # when the rows were received
    for title in ("Rows received", "Rows counted", "What became of the rows", "Refused requests", "Keys"):
        answer = ask(PANELS["pipeline", title]["targets"][0]["rawSql"], days=since / timedelta(days=1))
        assert answer.result_rows and answer.result_rows[0][-1] is not None, title
        assert any(row for row in answer.result_rows[0] if row not in (0, None)), title


def test_the_pipeline_shows_how_long_senders_wait_and_what_waits(ask):
    then, now = shown(ask, "pipeline", "Time to acknowledge")
    # Of 96 requests 90 took 50 ms at most; the 99th of a hundred is beyond the last bound, which a graph cannot draw.
    assert (now["p50_s"], now["p99_s"], now["fsync_p99_s"]) == (0.05, 60, 0.05)
    assert (then["p50_s"], then["p99_s"]) == (0.05, 0.05)
    assert [row["waiting_bytes"] for row in shown(ask, "pipeline", "Waiting for the disk")] == [0, 5000]
    assert [row["lag_s"] for row in shown(ask, "pipeline", "Lag over time")] == [100, 1]
    assert [(row["accepted"], row["refused"], row["failed"]) for row in shown(ask, "pipeline", "Requests")] == [
        (904, 7, 0), (96, 0, 4),
    ]  # fmt: skip


def test_objectives_are_kept_or_missed_at_a_rate(ask):
    found = {row["slo"]: row for row in shown(ask, "pipeline", "Objectives")}
    served = found["requests are not turned away for want of room or time"]
    # One in a thousand may fail. Of a thousand and four did 4; of the last hour's hundred 4, of six hours' all 4.
    assert served["objective"] == pytest.approx(0.999) and served["met"] == pytest.approx(1000 / 1004)
    assert served["budget_left"] == pytest.approx(1 - 4 / 1004 / 0.001)
    assert (served["burn_5m"], served["burn_1h"]) == (pytest.approx(40), pytest.approx(40))
    assert served["burn_6h"] == pytest.approx(4 / 1004 / 0.001)
    quick = found["acknowledged within 50 ms"]  # one in a hundred may take longer; 6 of the last 96 did
    assert quick["objective"] == pytest.approx(0.99) and quick["met"] == pytest.approx(994 / 1000)
    assert quick["burn_1h"] == pytest.approx(6 / 96 / 0.01) and quick["budget_left"] == pytest.approx(0.4)
    behind = found["minutes less than a minute behind"]
    # Two minutes, one of them with two starts: not three.
    assert behind["met"] == 0.5 and behind["burn_1h"] == 0 and behind["burn_6h"] == pytest.approx(50)


def test_usage_is_by_customer_and_status(ask):
    assert shown(ask, "usage", "Calls") == [{"calls": 3}]
    assert shown(ask, "usage", "Calls", "acme") == [{"calls": 2}]
    assert shown(ask, "usage", "Calls that did not end well", "acme") == [{"share": 0.5}]
    acme, globex = shown(ask, "usage", "Customers with the most calls")
    assert acme == {"customer": "acme", "events": 4, "calls": 2, "tokens": 1200, "tool_calls": 1, "not_ok": 1}
    assert globex["calls"] == 1
    (talk,) = shown(ask, "usage", "Conversations")
    assert (talk["conversation"], talk["tokens"], talk["calls"]) == ("talk", 1200, 1)


@pytest.mark.parametrize(
    "asked",
    [
        [(None, 30, 3600)],
        pytest.param([(None, 30, 3600), ("acme", 2, 300)], marks=pytest.mark.long),
    ],
    ids=["all", "all and one"],
)
def test_sums_of_days_and_hours_show_the_same_as_single_events(ask, warehouse_address, asked):
    from meterhouse_store import rollups, warehouse
    from meterhouse_store.settings import Settings

    def told():
        return {
            (*of, customer, days): ask(
                PANELS[of]["targets"][0]["rawSql"], customer, days=days, interval_s=interval_s
            ).result_rows
            for of in PANELS
            if of[0] in ("usage", "costs") or of[1] in KEPT
            for customer, days, interval_s in asked
        }

    before = told()
    assert before["usage", "Calls by status", None, 30][0][1:] in [("failed", 1), ("ok", 2)]
    url = f"http://admin:admin-password-of-the-tests@{warehouse_address}"
    admin = warehouse.connect(Settings(warehouse_url=url), timeout_s=120, database="meterhouse")
    assert rollups.roll_up(admin, settled_s=0).unsettled == 0
    assert told() == before
    sums = [("usage_days", "quantity"), ("usage_hours", "quantity"), ("usage_conversations", "tokens")]
    for table, column in [*sums, ("usage_delays", "delay_ms"), ("usage_receipts", "counted")]:
        admin.command(f"ALTER TABLE {table} UPDATE {column} = 77 WHERE 1", settings={"mutations_sync": 2})
    read = {of[:2] for of, rows in told().items() if rows != before[of]}
    admin.command("TRUNCATE TABLE usage_rolled")
    admin.close()
    assert {title for name, title in read if name == "usage"} == {
        "Calls", "Tool calls", "Tokens by model", "Customers with the most calls", "Agents and models", "Tools",
        "Conversations",
    }  # fmt: skip
    assert {title for name, title in read if name == "pipeline"} == KEPT


def test_costs_are_known_or_told_to_be_unknown(ask):
    assert shown(ask, "costs", "Events of unknown cost") == [{"events": 1}]
    (unknown,) = shown(ask, "costs", "Why costs are unknown")
    assert (unknown["reason"], unknown["tool"]) == ("not_resolved", "search")
    # Three calls at 0.01, and 1,200 tokens at 2.00 for a thousand.
    assert shown(ask, "costs", "Cost") == [{"currency": "USD", "cost": Decimal("2.43")}]
    assert shown(ask, "costs", "Cost of calls that did not end well") == [
        {"currency": "USD", "status": "failed", "cost": Decimal("0.01")}
    ]


def test_billing_shows_what_is_open_late_overdue_and_wrong(ask):
    assert shown(ask, "billing", "Unbilled revenue") == [
        {"stage": "closed, no invoice", "currency": "USD", "amount": Decimal(5), "ratings": 1}
    ]
    (state,) = shown(ask, "billing", "Invoices by state")
    assert (state["state"], state["invoices"], state["total"], state["outstanding"]) == ("finalised", 1, 61, 61)
    (wrong,) = shown(ask, "billing", "Ratings whose stations differ")
    assert (wrong["customer"], wrong["differs"], wrong["stripe_minor"]) == ("acme", "stripe", 6099)
    (overdue,) = shown(ask, "billing", "Overdue")
    assert (overdue["customer"], overdue["outstanding"], overdue["days"]) == ("acme", 61, 40)
    (late,) = shown(ask, "billing", "Late invoices")
    assert (late["customer"], late["amount"]) == ("globex", 5)
    assert [row["revenue"] for row in shown(ask, "billing", "Revenue by month")] == [66]
    (adjusted,) = shown(ask, "billing", "Corrections and adjustments")
    assert (adjusted["description"], adjusted["amount"]) == ("outage", -1)


def test_budgets_show_what_is_used_and_reserved_against_the_cap(ask):
    assert shown(ask, "budgets", "Budgets at their caps") == [{"budgets": 1}]
    assert shown(ask, "budgets", "Customers paused") == [{"customers": 1}]
    assert shown(ask, "budgets", "Notices due") == [{"deliveries": 4}]
    assert shown(ask, "budgets", "Since the last look", "acme")[0]["since_s"] >= 20 * 60
    acme, globex = shown(ask, "budgets", "Budgets")
    assert (acme["customer"], acme["used"], acme["reserved"], acme["cap"], acme["left"]) == ("acme", 100, 0, 100, 0)
    assert (acme["unit"], acme["used_share"], acme["state"]) == ("USD", 1, "paused")
    assert (globex["used"], globex["reserved"], globex["left"], globex["used_share"]) == (10, 5, 35, 0.2)
    assert shown(ask, "budgets", "Pauses")[0]["why"] == "key leaked"
    assert {row["state"]: row["deliveries"] for row in shown(ask, "budgets", "Notices that wait")} == {
        "failed": 1, "pending": 3,
    }  # fmt: skip


def test_alerts_fire_on_what_is_wrong_here_and_not_on_what_is_well(ask):
    firing = set()
    for rule in RULES:
        query, threshold = rule["data"]
        ((value,),) = ask(query["model"]["rawSql"]).result_rows
        if value > threshold["model"]["conditions"][0]["evaluator"]["params"][0]:
            firing.add(rule["uid"].removeprefix("meterhouse-"))
    wrong = {"projection-lag", "suspense", "refused", "unknown-cost", "reconciliation", "late-invoices", "overdue"}
    wrong |= {"budgets-stale", "budgets-unknown", "notices-failed"}
    assert firing == wrong


def test_with_nothing_in_the_warehouse_no_alert_fires(warehouse_client, reader_client):
    for rule in RULES:
        ((value,),) = reader_client.query(rule["data"][0]["model"]["rawSql"]).result_rows
        assert not value, rule["uid"]


def test_an_objective_that_is_missed_fast_or_slowly_raises_an_alert_and_a_few_failures_do_not(
    warehouse_client, reader_client
):
    def firing(*rows):
        empty(warehouse_client)
        put(warehouse_client, "collector_minutes", [row | {"acknowledged": [row["accepted"], 0, 0]} for row in rows])
        return {
            rule["uid"].removeprefix("meterhouse-slo-burn-")
            for rule in RULES
            if "slo-burn" in rule["uid"]
            and reader_client.query(rule["data"][0]["model"]["rawSql"]).result_rows[0][0]
            > rule["data"][1]["model"]["conditions"][0]["evaluator"]["params"][0]
        }

    assert firing(minute(2, 100, failed=9)) == set()  # 80 times what may be, but nine in all
    assert firing(minute(2, 1000, failed=15)) == {"fast", "slow"}
    assert firing(minute(2, 1000), minute(40, 100, failed=100)) == set()  # it is over: nobody is woken
    assert firing(minute(2, 10_000, failed=70)) == {"slow"}  # 7 times as fast as may be
    assert firing(minute(2, 10_000, failed=70), minute(200, 10_000)) == set()  # of six hours 3.5 times
    assert firing(*(minute(ago, 0, lag_s=300.0) for ago in range(1, 60))) == {"fast", "slow"}
