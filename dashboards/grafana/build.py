"""Writes Grafana's dashboards and alert rules from the queries below: `python dashboards/grafana/build.py [--check]`.

What it writes is checked in beside it, and a test runs every query. overview.json is written by hand. The files are for
the plugin grafana-clickhouse-datasource 4.20; the data source's user reads views and nothing else.
"""

# ruff: noqa: E501, S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
ALERTS: Final = HERE.parent / "provisioning" / "alerting" / "meterhouse.yaml"
RUNBOOKS: Final = "docs/runbooks"
_SOURCE: Final = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
_OF: Final = "namespace = ${namespace:singlequote}"
_CUSTOMER: Final = "$__conditionalAll(customer_id IN (${customer:singlequote}), $customer)"
_BILLED: Final = "$__conditionalAll(billed_customer_id IN (${customer:singlequote}), $customer)"
_AGENT: Final = "$__conditionalAll(agent_name IN (${agent:singlequote}), $agent)"
_MODEL: Final = "$__conditionalAll(model IN (${model:singlequote}), $model)"
_USED: Final = f"{_OF}\n  AND {_BILLED}\n  AND {_AGENT}\n  AND {_MODEL}\n  AND $__timeFilter(event_time)"

# Sums of days and hours where the range is long, single events where it is short: both come to the same for whole days.
_LONG: Final = "dateDiff('hour', $__fromTime, $__toTime) >= 72"
_DAYS: Final = (
    f"{_OF}\n    AND {_BILLED}\n    AND {_AGENT}\n    AND {_MODEL}\n"
    f"    AND day >= toDate($__fromTime) AND day <= toDate($__toTime) AND {_LONG}"
)
_WHOLE_DAYS: Final = "Ranges of three days and more are shown in whole days (UTC)."
# Sums of hours do not know customers.
_HOURLY: Final = "$__interval_s >= 3600 AND $__conditionalAll(1 = 0, $customer)"
_HOURS: Final = f"{_OF}\n    AND {_AGENT}\n    AND {_MODEL}\n    AND $__timeFilter(hour)\n    AND {_HOURLY}"


def _by_day(*columns: str, where: str = "1") -> str:
    """What a panel selects from: rows to be summed, with these columns, events and quantity."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT {named}, events, quantity FROM usage_by_day\n  WHERE {where} AND {_DAYS}\n  UNION ALL\n"
        f"  SELECT {named}, toUInt64(1) AS events, quantity FROM usage\n  WHERE {where} AND NOT {_LONG}\n    AND {_USED}\n)"
    )


def _by_hour(*columns: str, where: str) -> str:
    """The same over time: with `at` beside them."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT hour AS at, {named}, events, quantity FROM usage_by_hour\n  WHERE {where} AND {_HOURS}\n  UNION ALL\n"
        f"  SELECT toDateTime(event_time, 'UTC') AS at, {named}, toUInt64(1) AS events, quantity FROM usage\n"
        f"  WHERE {where} AND NOT ($__interval_s >= 3600 AND\n    $__conditionalAll(1 = 0, $customer))\n    AND {_USED}\n)"
    )


def _costs(*columns: str, where: str) -> str:
    """The same of costs."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT {named}, events, cost, currency FROM costs_by_day\n  WHERE {where} AND {_DAYS}\n  UNION ALL\n"
        f"  SELECT {named}, toUInt64(1) AS events, cost, currency FROM costs\n  WHERE {where} AND NOT {_LONG}\n    AND {_USED}\n)"
    )


# Sums of conversations do not know customers either.
_ALL_CUSTOMERS: Final = f"{_LONG}\n    AND $__conditionalAll(1 = 0, $customer)"
_BY_CONVERSATION: Final = (
    "(\n  SELECT conversation_id, customer_id, calls, tokens, last_event FROM usage_by_conversation\n"
    f"  WHERE {_OF}\n    AND {_AGENT}\n    AND {_MODEL}\n    AND day >= toDate($__fromTime) AND day <= toDate($__toTime)"
    f"\n    AND {_ALL_CUSTOMERS}\n  UNION ALL\n"
    "  SELECT conversation_id, billed_customer_id, if(meter = 'llm.requests', quantity, 0),\n"
    "    if(startsWith(meter, 'llm.tokens.'), quantity, 0), event_time FROM usage\n"
    f"  WHERE conversation_id != '' AND NOT ({_ALL_CUSTOMERS}\n    ) AND {_USED}\n)"
)
_CALLS: Final = "meter = 'llm.requests'"
_TOOL_CALLS: Final = "meter = 'tool.calls'"
_TOKENS: Final = "startsWith(meter, 'llm.tokens.')"
_UNKNOWN: Final = "cost_status = 'unknown'"
_PRICED: Final = "cost_status != 'unknown'"
_FAILED: Final = " AND status != 'ok'"
_NOT_OK: Final = "sumIf(used.events, status != 'ok')"
_COST_OVER_TIME: Final = (
    "(\n  SELECT toDateTime(day, 'UTC') AS at, model, cost, currency FROM costs_by_day\n"
    f"  WHERE cost_status = 'known' AND {_DAYS}\n  UNION ALL\n"
    "  SELECT toDateTime(event_time, 'UTC') AS at, model, cost, currency FROM costs\n"
    f"  WHERE cost_status = 'known' AND NOT {_LONG}\n    AND {_USED}\n)"
)
# The time of the last event but two hundred, so that nothing but times is read of the others; and of times only those from
# an hour on after which there are two hundred. The last hour may end within the range, and does not count.
_LAST_HOURS: Final = (
    "(\n      SELECT maxIf(hour, so_far >= 200) FROM (\n      SELECT hour, sum(n) OVER (ORDER BY hour DESC) AS so_far FROM (\n"
    f"      SELECT hour, sum(events) AS n FROM usage_by_hour\n      WHERE {_OF}\n    AND {_AGENT}\n    AND {_MODEL}\n"
    "    AND $__timeFilter(hour) AND hour < toStartOfHour($__toTime)\n    AND $__conditionalAll(1 = 0, $customer)\n"
    "      GROUP BY hour)))"
)
_LAST_200: Final = (
    f"(\n    SELECT min(event_time) FROM (\n    SELECT event_time FROM usage WHERE {_USED}\n"
    f"    AND event_time >= {_LAST_HOURS}\n    ORDER BY event_time DESC LIMIT 200))"
)

# By the hour of receipt, as what was received is.
_SUSPENDED: Final = f"SELECT count() FROM (SELECT toStartOfHour(toDateTime(received_at, 'UTC')) AS hour FROM suspense WHERE {_OF}) WHERE"

# Where traces are looked up is the user's own: what stands before the id in an address.
_TRACES: Final = {
    "name": "traces", "label": "Address of traces", "type": "textbox", "query": "", "hide": 0, "options": [],
    "current": {"text": "", "value": ""},
}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """`kind`: stat, timeseries or table; `size` in columns (of 24) and rows; `links`: column -> address.

    `units`: columns of a table whose unit is another than the panel's.
    """

    title: str
    description: str
    kind: str
    sql: str
    unit: str = "short"
    size: tuple[int, int] = (12, 8)
    links: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """It fires where the query's number is above `above` for `minutes`."""

    uid: str
    title: str
    summary: str
    sql: str
    above: float
    minutes: int
    severity: str


_EVENTS_OF: Final = (
    "/d/meterhouse-usage?var-namespace=${namespace}&var-customer=${__value.raw}&from=${__from}&to=${__to}"
)

DASHBOARDS: Final[dict[str, tuple[str, str, list[Panel]]]] = {
    "pipeline": (
        "Meterhouse pipeline",
        "What came, what became of it, and how far behind the warehouse is.",
        [
            Panel("Rows received", "Rows that came in the chosen range, whatever became of them.", "stat",
                f"SELECT sum(received) AS received FROM received\nWHERE {_OF} AND $__timeFilter(hour)",
                size=(6, 4)),
            Panel("Rows counted", "Rows that count as usage; received = counted + duplicates + suspended + set aside.",
                "stat", f"SELECT sum(counted) AS counted FROM conservation\nWHERE {_OF} AND $__timeFilter(hour)",
                size=(6, 4)),
            Panel("Share in suspense", "Rows that wait for a decision, of all that were received in the range.", "stat",
                f"SELECT if(sum(received) = 0, 0, ({_SUSPENDED} $__timeFilter(hour)) / sum(received)) AS share\n"
                f"FROM received\nWHERE {_OF} AND $__timeFilter(hour)", "percentunit", (6, 4)),
            Panel("Suspense burn rate", "How many times faster than one row in a thousand goes to suspense, in the last "
                "hour: 1 uses up the year's allowance in a year, 14 in a month.", "stat",
                f"SELECT if(sum(received) = 0, 0, ({_SUSPENDED} hour >= now() - INTERVAL 1 HOUR)\n"
                f"  / sum(received) / 0.001) AS burn_rate\nFROM received\nWHERE {_OF} AND hour >= now() - INTERVAL 1 HOUR",
                size=(6, 4)),
            Panel("What became of the rows", "Rows by the hour in which they were received.", "timeseries",
                "SELECT $__timeInterval(hour) AS time, sum(counted) AS counted, sum(duplicates) AS duplicates,\n"
                "  sum(suspended) AS suspended, sum(set_aside) AS set_aside\nFROM conservation\n"
                f"WHERE {_OF} AND $__timeFilter(hour)\nGROUP BY time ORDER BY time", size=(24, 8)),
            Panel("Refused requests", "Requests that the doors turned away, by what was wrong; of a sender that is not "
                "known the namespace is empty.", "timeseries",
                "SELECT $__timeInterval(hour) AS time, code, sum(requests) AS requests\nFROM refused\n"
                f"WHERE ({_OF} OR namespace = '') AND $__timeFilter(hour)\nGROUP BY time, code ORDER BY time, code"),
            Panel("Projection lag", "Seconds by which the warehouse is behind each collector's journal.", "table",
                "SELECT collector_id, projected_through,\n"
                "  dateDiff('second', projected_through, now64(9, 'UTC')) AS lag_s\nFROM watermark\n"
                "ORDER BY lag_s DESC, collector_id", "s"),
            Panel("From the event to the warehouse", "How long after it happened usage was received, in seconds: half of "
                "it and nearly all of it.", "timeseries",
                "SELECT $__timeInterval(received_at) AS time,\n"
                "  quantile(0.5)(dateDiff('millisecond', event_time, received_at) / 1000) AS p50_s,\n"
                "  quantile(0.99)(dateDiff('millisecond', event_time, received_at) / 1000) AS p99_s\nFROM usage\n"
                f"WHERE {_OF} AND $__timeFilter(received_at)\nGROUP BY time ORDER BY time", "s"),
            Panel("Keys", "What each key sent in the range; a negative number of duplicates means that a count is wrong.",
                "table", "SELECT credential_id, sum(received) AS received, sum(counted) AS counted,\n"
                "  sum(duplicates) AS duplicates, sum(suspended) AS suspended, sum(refused_requests) AS refused_requests\n"
                f"FROM conservation\nWHERE {_OF} AND $__timeFilter(hour)\nGROUP BY credential_id\n"
                "ORDER BY received DESC, credential_id LIMIT 100"),
        ],
    ),
    "usage": (
        "Meterhouse usage",
        f"Who used what, by customer, agent, model, tool and conversation. {_WHOLE_DAYS}",
        [
            Panel("Calls", "Calls of models that counted, in the range and the choice above.", "stat",
                f"SELECT sum(quantity) AS calls FROM {_by_day('meter', where=_CALLS)}", size=(6, 4)),
            Panel("Calls that did not end well", "Failed, aborted and unfinished calls, of all calls of models.", "stat",
                "SELECT if(sum(events) = 0, 0, sumIf(events, status != 'ok') / sum(events)) AS share\n"
                f"FROM {_by_day('status', where=_CALLS)}", "percentunit", (6, 4)),
            Panel("Customers", "Customers with usage in the range and the choice above.", "stat",
                f"SELECT uniqExact(billed_customer_id) AS customers FROM {_by_day('billed_customer_id')}", size=(6, 4)),
            Panel("Tool calls", "Tool executions that counted, each once.", "stat",
                f"SELECT sum(quantity) AS calls FROM {_by_day('meter', where=_TOOL_CALLS)}", size=(6, 4)),
            Panel("Calls by status", "Calls of models over time, by how they ended.", "timeseries",
                "SELECT $__timeInterval(at) AS time, status, sum(events) AS calls\n"
                f"FROM {_by_hour('status', where=_CALLS)}\nGROUP BY time, status ORDER BY time, status"),
            Panel("Tokens by model", "Tokens over time: input, cached input, output and reasoning of each model.",
                "timeseries", "SELECT $__timeInterval(at) AS time, model, sum(quantity) AS tokens\n"
                f"FROM {_by_hour('model', where=_TOKENS)}\nGROUP BY time, model ORDER BY time, model"),
            Panel("Customers with the most calls", "The hundred customers with the most events in the range.", "table",
                "SELECT billed_customer_id AS customer, sum(events) AS events,\n"
                "  sumIf(quantity, meter = 'llm.requests') AS calls,\n"
                "  sumIf(quantity, startsWith(meter, 'llm.tokens.')) AS tokens,\n"
                f"  sumIf(quantity, meter = 'tool.calls') AS tool_calls, {_NOT_OK} AS not_ok\n"
                f"FROM {_by_day('billed_customer_id', 'meter', 'status')} AS used\n"
                "GROUP BY customer ORDER BY events DESC, customer LIMIT 100",
                links={"customer": _EVENTS_OF}),
            Panel("Agents and models", "Quantities by agent, model and meter, the largest number of events first.", "table",
                "SELECT agent_name AS agent, model, meter, sum(quantity) AS quantity, sum(events) AS events\n"
                f"FROM {_by_day('agent_name', 'model', 'meter')}\n"
                "GROUP BY agent, model, meter ORDER BY events DESC, agent, model, meter LIMIT 200"),
            Panel("Tools", "Tool executions by tool, and how many of them failed.", "table",
                "SELECT tool, sum(quantity) AS calls, sumIf(events, status != 'ok') AS not_ok\n"
                f"FROM {_by_day('tool', 'status', where=_TOOL_CALLS)}\n"
                "GROUP BY tool ORDER BY calls DESC, tool LIMIT 100"),
            Panel("Conversations", "The hundred conversations with the most tokens in the range.", "table",
                "SELECT conversation_id AS conversation, min(customer_id) AS customer, sum(tokens) AS tokens,\n"
                f"  sum(calls) AS calls, max(last_event) AS last\nFROM {_BY_CONVERSATION}\n"
                "GROUP BY conversation ORDER BY tokens DESC, conversation LIMIT 100"),
            Panel("Last events", "The last two hundred events of the choice above, with what leads to their traces.",
                "table", "SELECT event_time, billed_customer_id AS customer, agent_name AS agent, meter, model, tool,\n"
                "  toString(quantity) AS quantity, status, call_id, trace_id, event_id\nFROM usage\n"
                f"WHERE {_USED}\n  AND event_time >= {_LAST_200}\nORDER BY event_time DESC, event_id LIMIT 200", size=(24, 10),
                links={"trace_id": "${traces}${__value.raw}"}),
        ],
    ),
    "costs": (
        "Meterhouse cost and margin",
        f"What usage costs, of which usage that is not known, and what is left of the revenue. {_WHOLE_DAYS}",
        [
            Panel("Events of unknown cost", "Usage whose cost is not known, so that margins are not: never counted as 0.",
                "stat", f"SELECT sum(events) AS events FROM {_costs('cost_status', where=_UNKNOWN)}", size=(8, 4)),
            Panel("Cost", "Known cost in the range, per currency.", "table",
                f"SELECT currency, sum(cost) AS cost\nFROM {_costs('cost_status', where=_PRICED)}\n"
                "GROUP BY currency ORDER BY currency", size=(8, 4)),
            Panel("Cost of calls that did not end well", "Known cost of failed, aborted and unfinished calls.", "table",
                "SELECT currency, status, sum(cost) AS cost\n"
                f"FROM {_costs('status', where=_PRICED + _FAILED)}\nGROUP BY currency, status\n"
                "ORDER BY currency, status", size=(8, 4)),
            Panel("Cost over time", "Known cost by model, a series for each currency; by the day in ranges of three days and more.", "timeseries",
                "SELECT $__timeInterval(at) AS time, concat(model, ' ', currency) AS what,\n"
                f"  toFloat64(sum(cost)) AS cost\nFROM {_COST_OVER_TIME}\nGROUP BY time, what ORDER BY time, what",
                size=(24, 8)),
            Panel("Margin by customer and period", "Revenue beside known cost of each rating; no margin where some cost is "
                "unknown.", "table",
                "SELECT customer_id AS customer, period_start, state, currency, revenue, cost, cost_not_ok, margin,\n"
                f"  unknown_events\nFROM margins\nWHERE {_OF} AND {_CUSTOMER}\n"
                "ORDER BY period_start DESC, customer LIMIT 200", size=(24, 8), links={"customer": _EVENTS_OF}),
            Panel("Why costs are unknown", "What has no cost, by reason: `meterhouse costs status` says what to do.",
                "table", "SELECT cost_reason AS reason, meter, provider, model, tool, sum(events) AS events\n"
                f"FROM {_costs('cost_reason', 'meter', 'provider', 'model', 'tool', where=_UNKNOWN)}\nGROUP BY reason, meter, provider, model, tool\n"
                "ORDER BY events DESC, reason, meter LIMIT 100"),
            Panel("Cost by agent and step", "Known cost by agent, step and model, the largest first.", "table",
                "SELECT agent_name AS agent, step, model, currency, sum(cost) AS cost, sum(events) AS events\n"
                f"FROM {_costs('agent_name', 'step', 'model', where=_PRICED)}\nGROUP BY agent, step, model, currency\n"
                "ORDER BY cost DESC, agent, step LIMIT 100"),
        ],
    ),
    "billing": (
        "Meterhouse billing",
        "Revenue that is not billed yet, invoices, what is overdue, and whether all stations agree.",
        [
            Panel("Unbilled revenue", "What is rated and on no invoice that went out, by how far it came; of open periods "
                "it is provisional.", "table",
                "SELECT stage, currency, sum(amount) AS amount, uniqExact(rating_id) AS ratings FROM finance_unbilled\n"
                f"WHERE {_OF} AND {_CUSTOMER}\nGROUP BY stage, currency ORDER BY stage, currency"),
            Panel("Invoices by state", "All invoices, by state and currency.", "table",
                "SELECT state, currency, count() AS invoices, sum(total) AS total, sum(outstanding) AS outstanding\n"
                f"FROM finance_invoices\nWHERE {_OF} AND {_CUSTOMER}\nGROUP BY state, currency ORDER BY state, currency"),
            Panel("Ratings whose stations differ", "Closed ratings whose lines, ledger, invoice, Stripe and payments do not "
                "agree. It should be empty.", "table",
                "SELECT customer_id AS customer, period_start, currency, differs, rated_minor, ledger_minor,\n"
                f"  invoice_minor, stripe_minor, paid_minor\nFROM finance_reconciliation\nWHERE {_OF} AND {_CUSTOMER}\n"
                "  AND differs != ''\nORDER BY period_start DESC, customer LIMIT 200"),
            Panel("Overdue", "Invoices that went out more than 30 days ago and are not paid, the oldest first.", "table",
                "SELECT customer_id AS customer, number, currency, outstanding,\n"
                "  dateDiff('day', finalised_at, now()) AS days\nFROM finance_invoices\n"
                f"WHERE {_OF} AND {_CUSTOMER} AND outstanding_minor > 0 AND finalised_at < now() - INTERVAL 30 DAY\n"
                "ORDER BY days DESC, customer LIMIT 200", links={"customer": _EVENTS_OF}),
            Panel("From the period's end to the invoice", "Hours from a period's end until it was closed and until its "
                "invoice went out, by the period.", "table",
                "SELECT invoice.period_end AS period_end, count() AS invoices,\n"
                "  max(dateDiff('hour', invoice.period_end, invoice.created_at)) AS created_h,\n"
                "  max(dateDiff('hour', invoice.period_end, invoice.finalised_at)) AS went_out_h\n"
                f"FROM finance_invoices AS invoice\nWHERE {_OF} AND {_CUSTOMER}\nGROUP BY period_end\n"
                "ORDER BY period_end DESC LIMIT 24", "h"),
            Panel("Late invoices", "Periods that ended more than three days ago and whose invoice has not gone out.", "table",
                "SELECT customer_id AS customer, period_end, stage, currency, sum(amount) AS amount\n"
                f"FROM finance_unbilled\nWHERE {_OF} AND {_CUSTOMER} AND period_end < now() - INTERVAL 3 DAY\n"
                "GROUP BY customer, period_end, stage, currency HAVING sum(amount_minor) > 0\n"
                "ORDER BY period_end, customer LIMIT 200"),
            Panel("Revenue by month", "The ledger's revenue, by month and currency.", "table",
                "SELECT month, currency, -sum(amount) AS revenue FROM finance_entries\n"
                f"WHERE {_OF} AND {_CUSTOMER} AND account = 'revenue'\nGROUP BY month, currency\n"
                "ORDER BY month DESC, currency LIMIT 100"),
            Panel("Corrections and adjustments", "What closed periods were corrected by, the last first.", "table",
                "SELECT effective_at, customer_id AS customer, kind, description, currency, amount\nFROM finance_entries\n"
                f"WHERE {_OF} AND {_CUSTOMER} AND account = 'receivable'\n"
                "  AND kind IN ('correction', 'credit_restored', 'adjustment')\n"
                "ORDER BY effective_at DESC, customer LIMIT 100"),
        ],
    ),
    "budgets": (
        "Meterhouse budgets",
        "What customers may still use, who is paused, and which notices wait; as of the last round of budgets.",
        [
            Panel("Budgets at their caps", "Budgets whose hard cap is reached in the period of now: model calls stop.",
                "stat", f"SELECT countIf(state = 'paused') AS budgets FROM budgets\nWHERE {_OF} AND {_CUSTOMER}", size=(6, 4)),
            Panel("Customers paused", "Customers that somebody paused, or one of whose agents; caps are not counted here.",
                "stat", f"SELECT uniqExact(customer_id) AS customers FROM pauses\nWHERE {_OF} AND {_CUSTOMER}", size=(6, 4)),
            Panel("Notices due", "Deliveries that are not sent yet, and those that failed for good.", "stat",
                f"SELECT sum(deliveries) AS deliveries FROM notices_due\nWHERE {_OF} AND {_CUSTOMER}", size=(6, 4)),
            Panel("Since the last look", "How long ago budgets were worked out; more than a minute or so: nobody does it.",
                "stat", "SELECT if(count() = 0, 0, dateDiff('second', max(looked_at), now64(6, 'UTC'))) AS since_s\n"
                f"FROM budgets\nWHERE {_OF} AND {_CUSTOMER}", "s", (6, 4)),
            Panel("Budgets", "Used and reserved (held by agents, or on its way) against the cap, the fullest first; amounts "
                "are in the unit beside them.", "table",
                "SELECT customer_id AS customer, budget, agent_id AS agent, unit, used, reserved, cap, left,\n"
                "  share AS used_share, state, period_end, trouble\n"
                f"FROM budgets\nWHERE {_OF} AND {_CUSTOMER}\nORDER BY used_share DESC, customer, budget LIMIT 500",
                size=(24, 10), links={"customer": _EVENTS_OF}, units={"used_share": "percentunit"}),
            Panel("Pauses", "Who is paused, since when, by whom and why; `meterhouse budgets unpause` lifts a pause.", "table",
                "SELECT customer_id AS customer, agent_id AS agent, reason, since, who, why\n"
                f"FROM pauses\nWHERE {_OF} AND {_CUSTOMER}\nORDER BY since DESC, customer, agent, reason LIMIT 200",
                links={"customer": _EVENTS_OF}),
            Panel("Notices that wait", "Deliveries that are pending or failed, the oldest first: `meterhouse notices list` "
                "says why.", "table",
                "SELECT customer_id AS customer, kind, channel, state, deliveries, oldest_at, next_attempt_at\n"
                f"FROM notices_due\nWHERE {_OF} AND {_CUSTOMER}\n"
                "ORDER BY oldest_at, customer, kind, channel, state LIMIT 200"),
        ],
    ),
}  # fmt: skip

RULES: Final = [
    Alert("projection-lag", "The warehouse is behind", "A collector's journal is not in the warehouse.",
        "SELECT max(dateDiff('second', projected_through, now64(9, 'UTC'))) AS lag_s FROM watermark", 120, 5, "page"),
    Alert("suspense", "Usage goes to suspense", "Usage of the last hour waits for a decision and is not billed.",
        "SELECT count() AS events FROM suspense WHERE received_at >= now() - INTERVAL 1 HOUR", 0, 0, "ticket"),
    Alert("refused", "Requests are refused", "The doors turned away requests in the last two hours.",
        "SELECT sum(requests) AS requests FROM refused WHERE hour >= now() - INTERVAL 2 HOUR", 100, 5, "ticket"),
    Alert("no-usage", "No usage arrives", "No usage arrived for an hour, though some did in the day before.",
        "SELECT countIf(received_at >= now() - INTERVAL 1 HOUR) = 0 AND count() > 0 AS silent FROM usage "
        "WHERE received_at >= now() - INTERVAL 1 DAY", 0, 10, "page"),
    Alert("unknown-cost", "Costs are unknown", "Usage of the last day has no known cost: margins are not known.",
        "SELECT countIf(cost_status = 'unknown') AS events FROM costs WHERE event_time >= now() - INTERVAL 1 DAY",
        0, 60, "ticket"),
    Alert("reconciliation", "Billing does not add up", "Lines, ledger, invoice, Stripe and payments of a rating differ.",
        "SELECT countIf(differs != '') AS ratings FROM finance_reconciliation", 0, 30, "page"),
    Alert("late-invoices", "Invoices are late", "A period ended three days ago and its invoice has not gone out.",
        "SELECT uniqExact(rating_id) AS ratings FROM finance_unbilled "
        "WHERE period_end < now() - INTERVAL 3 DAY AND amount_minor > 0", 0, 60, "ticket"),
    Alert("overdue", "Invoices are overdue", "Invoices went out more than 30 days ago and are not paid.",
        "SELECT count() AS invoices FROM finance_invoices "
        "WHERE outstanding_minor > 0 AND finalised_at < now() - INTERVAL 30 DAY", 0, 60, "ticket"),
    Alert("budgets-stale", "Budgets are not looked at", "No round of budgets for ten minutes: caps see no new usage.",
        "SELECT if(count() = 0, 0, dateDiff('second', max(looked_at), now64(6, 'UTC'))) AS since_s FROM budgets",
        600, 0, "page"),
    Alert("budgets-unknown", "Budgets cannot be worked out", "A budget limits nobody, because its usage is not known.",
        "SELECT countIf(state = 'unknown') AS budgets FROM budgets", 0, 10, "ticket"),
    Alert("notices-failed", "Notices do not arrive", "Deliveries of notices failed for good.",
        "SELECT sumIf(deliveries, state = 'failed') AS deliveries FROM notices_due", 0, 0, "ticket"),
]  # fmt: skip


def dashboard(name: str) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    title, description, panels = DASHBOARDS[name]
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        width, rows = panel.size
        if x + width > 24:
            x, y, height = 0, y + height, 0
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": width, "h": rows}))
        x, height = x + width, max(height, rows)
    return {
        "uid": f"meterhouse-{name}",
        "title": title,
        "description": description,
        "tags": ["meterhouse"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "1m",
        "time": {"from": "now-24h" if name == "pipeline" else "now-30d", "to": "now"},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "tags": ["meterhouse"], "title": "Meterhouse", "asDropdown": True}],
        "templating": {"list": _variables(panels)},
        "panels": placed,
    }


def alerts() -> dict[str, Any]:
    """The rules as Grafana provisions them."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": "meterhouse",
                "folder": "Meterhouse",
                "interval": "1m",
                "rules": [_rule(alert) for alert in RULES],
            }
        ],
    }


def files() -> dict[Path, str]:
    """What is written where."""
    made = {HERE / f"{name}.json": json.dumps(dashboard(name), indent=2) + "\n" for name in DASHBOARDS}
    head = "# Written by dashboards/grafana/build.py.\n"
    return made | {ALERTS: head + yaml.safe_dump(alerts(), sort_keys=False, width=120)}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    series = panel.kind == "timeseries"
    target = {
        "refId": "A",
        "datasource": _SOURCE,
        "editorType": "sql",
        "queryType": "timeseries" if series else "table",
        "format": 0 if series else 1,
        "pluginVersion": "4.20.0",
        "rawSql": panel.sql,
    }
    defaults: dict[str, Any] = {"unit": panel.unit}
    if series:
        defaults |= {"min": 0, "custom": {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 10, "showPoints": "auto"}}
    overrides = [
        {
            "matcher": {"id": "byName", "options": column},
            "properties": [{"id": "links", "value": [{"title": "Show", "url": address}]}],
        }
        for column, address in panel.links.items()
    ]
    overrides += [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in panel.units.items()
    ]
    options: dict[str, Any] = {"cellHeight": "sm", "showHeader": True}
    if series:
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    elif panel.kind == "stat":
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        options = {"colorMode": "value", "graphMode": "none", "textMode": "auto", "reduceOptions": calculated}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _SOURCE,
        "targets": [target],
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
    }


def _variables(panels: list[Panel]) -> list[dict[str, Any]]:
    queries = {
        "namespace": "SELECT DISTINCT namespace FROM usage ORDER BY namespace",
        "customer": f"SELECT DISTINCT billed_customer_id FROM usage WHERE {_OF} ORDER BY billed_customer_id LIMIT 1000",
        "agent": f"SELECT DISTINCT agent_name FROM usage WHERE {_OF} ORDER BY agent_name LIMIT 1000",
        "model": f"SELECT DISTINCT model FROM usage WHERE {_OF} ORDER BY model LIMIT 1000",
    }
    used = [name for name in queries if any(f"${{{name}:" in panel.sql for panel in panels)]
    source = {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": _SOURCE["type"], "refresh": 1,
        "hide": 0, "options": [], "current": {},
    }  # fmt: skip
    traces = [_TRACES] if any("${traces}" in address for panel in panels for address in panel.links.values()) else []
    return [source, *(_variable(name, queries[name]) for name in used), *traces]


def _variable(name: str, query: str) -> dict[str, Any]:
    many = name != "namespace"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]} if many else {},
        "multi": many,
        "includeAll": many,
    }


def _rule(alert: Alert) -> dict[str, Any]:
    source = "meterhouse-clickhouse"
    query = {
        "refId": "A", "editorType": "sql", "queryType": "table", "format": 1, "pluginVersion": "4.20.0",
        "rawSql": alert.sql,
    }  # fmt: skip
    threshold = {
        "refId": "B", "type": "threshold", "expression": "A",
        "conditions": [{"evaluator": {"type": "gt", "params": [alert.above]}}],
    }  # fmt: skip
    window = {"from": 600, "to": 0}
    return {
        "uid": f"meterhouse-{alert.uid}",
        "title": alert.title,
        "condition": "B",
        "for": f"{alert.minutes}m",
        "noDataState": "Alerting" if alert.uid == "projection-lag" else "OK",
        "execErrState": "Error",
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{RUNBOOKS}/{alert.uid}.md"},
        "data": [
            {"refId": "A", "relativeTimeRange": window, "datasourceUid": source, "model": query},
            {"refId": "B", "relativeTimeRange": window, "datasourceUid": "__expr__", "model": threshold},
        ],
    }


def main() -> int:
    """Write the files, or with --check say which differ (exit code 1)."""
    stale = [file for file, text in files().items() if not file.exists() or file.read_text() != text]
    if "--check" in sys.argv[1:]:
        for file in stale:
            print(f"{file} is not what build.py writes: run it", file=sys.stderr)
        return 1 if stale else 0
    for file, text in files().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    print(f"{len(files())} files, {len(stale)} of them new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
