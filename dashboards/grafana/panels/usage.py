"""Who used what."""

# ruff: noqa: E501, S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import AGENT, DAYS, EVENTS_OF, LONG, MODEL, OF, USED, WHOLE_DAYS, Panel

# Sums of hours do not know customers.
_HOURLY: Final = "$__interval_s >= 3600 AND $__conditionalAll(1 = 0, $customer)"
_HOURS: Final = f"{OF}\n    AND {AGENT}\n    AND {MODEL}\n    AND $__timeFilter(hour)\n    AND {_HOURLY}"


# Sums of conversations do not know customers either.
_ALL_CUSTOMERS: Final = f"{LONG}\n    AND $__conditionalAll(1 = 0, $customer)"
_BY_CONVERSATION: Final = (
    "(\n  SELECT conversation_id, customer_id, calls, tokens, last_event FROM usage_by_conversation\n"
    f"  WHERE {OF}\n    AND {AGENT}\n    AND {MODEL}\n    AND day >= toDate($__fromTime) AND day <= toDate($__toTime)"
    f"\n    AND {_ALL_CUSTOMERS}\n  UNION ALL\n"
    "  SELECT conversation_id, billed_customer_id, if(meter = 'llm.requests', quantity, 0),\n"
    "    if(startsWith(meter, 'llm.tokens.'), quantity, 0), event_time FROM usage\n"
    f"  WHERE conversation_id != '' AND NOT ({_ALL_CUSTOMERS}\n    ) AND {USED}\n)"
)
_CALLS: Final = "meter = 'llm.requests'"
_TOOL_CALLS: Final = "meter = 'tool.calls'"
_TOKENS: Final = "startsWith(meter, 'llm.tokens.')"
_NOT_OK: Final = "sumIf(used.events, status != 'ok')"
# The time of the last event but two hundred, so that nothing but times is read of the others; and of times only those from
# an hour on after which there are two hundred. The last hour may end within the range, and does not count.
_LAST_HOURS: Final = (
    "(\n      SELECT maxIf(hour, so_far >= 200) FROM (\n      SELECT hour, sum(n) OVER (ORDER BY hour DESC) AS so_far FROM (\n"
    f"      SELECT hour, sum(events) AS n FROM usage_by_hour\n      WHERE {OF}\n    AND {AGENT}\n    AND {MODEL}\n"
    "    AND $__timeFilter(hour) AND hour < toStartOfHour($__toTime)\n    AND $__conditionalAll(1 = 0, $customer)\n"
    "      GROUP BY hour)))"
)
_LAST_200: Final = (
    f"(\n    SELECT min(event_time) FROM (\n    SELECT event_time FROM usage WHERE {USED}\n"
    f"    AND event_time >= {_LAST_HOURS}\n    ORDER BY event_time DESC LIMIT 200))"
)


def _by_day(*columns: str, where: str = "1") -> str:
    """What a panel selects from: rows to be summed, with these columns, events and quantity."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT {named}, events, quantity FROM usage_by_day\n  WHERE {where} AND {DAYS}\n  UNION ALL\n"
        f"  SELECT {named}, toUInt64(1) AS events, quantity FROM usage\n  WHERE {where} AND NOT {LONG}\n    AND {USED}\n)"
    )


def _by_hour(*columns: str, where: str) -> str:
    """The same over time: with `at` beside them."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT hour AS at, {named}, events, quantity FROM usage_by_hour\n  WHERE {where} AND {_HOURS}\n  UNION ALL\n"
        f"  SELECT toDateTime(event_time, 'UTC') AS at, {named}, toUInt64(1) AS events, quantity FROM usage\n"
        f"  WHERE {where} AND NOT ($__interval_s >= 3600 AND\n    $__conditionalAll(1 = 0, $customer))\n    AND {USED}\n)"
    )


TITLE: Final = "Meterhouse usage"
DESCRIPTION: Final = f"Who used what, by customer, agent, model, tool and conversation. {WHOLE_DAYS}"
PANELS: Final = [
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
        links={"customer": EVENTS_OF}),
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
        f"WHERE {USED}\n  AND event_time >= {_LAST_200}\nORDER BY event_time DESC, event_id LIMIT 200", size=(24, 10),
        links={"trace_id": "${traces}${__value.raw}"}),
]  # fmt: skip
