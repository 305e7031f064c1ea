"""What usage costs, and what is left of the revenue."""

# ruff: noqa: E501, S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import CUSTOMER, DAYS, EVENTS_OF, LONG, OF, USED, WHOLE_DAYS, Panel

_UNKNOWN: Final = "cost_status = 'unknown'"
_PRICED: Final = "cost_status != 'unknown'"
_FAILED: Final = " AND status != 'ok'"
_COST_OVER_TIME: Final = (
    "(\n  SELECT toDateTime(day, 'UTC') AS at, model, cost, currency FROM costs_by_day\n"
    f"  WHERE cost_status = 'known' AND {DAYS}\n  UNION ALL\n"
    "  SELECT toDateTime(event_time, 'UTC') AS at, model, cost, currency FROM costs\n"
    f"  WHERE cost_status = 'known' AND NOT {LONG}\n    AND {USED}\n)"
)


def _costs(*columns: str, where: str) -> str:
    """The same of costs."""
    named = ", ".join(columns)
    return (
        f"(\n  SELECT {named}, events, cost, currency FROM costs_by_day\n  WHERE {where} AND {DAYS}\n  UNION ALL\n"
        f"  SELECT {named}, toUInt64(1) AS events, cost, currency FROM costs\n  WHERE {where} AND NOT {LONG}\n    AND {USED}\n)"
    )


TITLE: Final = "Meterhouse cost and margin"
DESCRIPTION: Final = (
    f"What usage costs, of which usage that is not known, and what is left of the revenue. {WHOLE_DAYS}"
)
PANELS: Final = [
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
        f"  unknown_events\nFROM margins\nWHERE {OF} AND {CUSTOMER}\n"
        "ORDER BY period_start DESC, customer LIMIT 200", size=(24, 8), links={"customer": EVENTS_OF}),
    Panel("Why costs are unknown", "What has no cost, by reason: `meterhouse costs status` says what to do.",
        "table", "SELECT cost_reason AS reason, meter, provider, model, tool, sum(events) AS events\n"
        f"FROM {_costs('cost_reason', 'meter', 'provider', 'model', 'tool', where=_UNKNOWN)}\nGROUP BY reason, meter, provider, model, tool\n"
        "ORDER BY events DESC, reason, meter LIMIT 100"),
    Panel("Cost by agent and step", "Known cost by agent, step and model, the largest first.", "table",
        "SELECT agent_name AS agent, step, model, currency, sum(cost) AS cost, sum(events) AS events\n"
        f"FROM {_costs('agent_name', 'step', 'model', where=_PRICED)}\nGROUP BY agent, step, model, currency\n"
        "ORDER BY cost DESC, agent, step LIMIT 100"),
]  # fmt: skip
