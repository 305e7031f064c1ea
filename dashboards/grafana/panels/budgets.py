"""Budgets, pauses and notices."""

# ruff: noqa: S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import CUSTOMER, EVENTS_OF, OF, Panel

TITLE: Final = "Meterhouse budgets"
DESCRIPTION: Final = (
    "What customers may still use, who is paused, and which notices wait; as of the last round of budgets."
)
PANELS: Final = [
    Panel("Budgets at their caps", "Budgets whose hard cap is reached in the period of now: model calls stop.",
        "stat", f"SELECT countIf(state = 'paused') AS budgets FROM budgets\nWHERE {OF} AND {CUSTOMER}", size=(6, 4)),
    Panel("Customers paused", "Customers that somebody paused, or one of whose agents; caps are not counted here.",
        "stat", f"SELECT uniqExact(customer_id) AS customers FROM pauses\nWHERE {OF} AND {CUSTOMER}", size=(6, 4)),
    Panel("Notices due", "Deliveries that are not sent yet, and those that failed for good.", "stat",
        f"SELECT sum(deliveries) AS deliveries FROM notices_due\nWHERE {OF} AND {CUSTOMER}", size=(6, 4)),
    Panel("Since the last look", "How long ago budgets were worked out; more than a minute or so: nobody does it.",
        "stat", "SELECT if(count() = 0, 0, dateDiff('second', max(looked_at), now64(6, 'UTC'))) AS since_s\n"
        f"FROM budgets\nWHERE {OF} AND {CUSTOMER}", "s", (6, 4)),
    Panel("Budgets", "Used and reserved (held by agents, or on its way) against the cap, the fullest first; amounts "
        "are in the unit beside them.", "table",
        "SELECT customer_id AS customer, budget, agent_id AS agent, unit, used, reserved, cap, left,\n"
        "  share AS used_share, state, period_end, trouble\n"
        f"FROM budgets\nWHERE {OF} AND {CUSTOMER}\nORDER BY used_share DESC, customer, budget LIMIT 500",
        size=(24, 10), links={"customer": EVENTS_OF}, units={"used_share": "percentunit"}),
    Panel("Pauses", "Who is paused, since when, by whom and why; `meterhouse budgets unpause` lifts a pause.", "table",
        "SELECT customer_id AS customer, agent_id AS agent, reason, since, who, why\n"
        f"FROM pauses\nWHERE {OF} AND {CUSTOMER}\nORDER BY since DESC, customer, agent, reason LIMIT 200",
        links={"customer": EVENTS_OF}),
    Panel("Notices that wait", "Deliveries that are pending or failed, the oldest first: `meterhouse notices list` "
        "says why.", "table",
        "SELECT customer_id AS customer, kind, channel, state, deliveries, oldest_at, next_attempt_at\n"
        f"FROM notices_due\nWHERE {OF} AND {CUSTOMER}\n"
        "ORDER BY oldest_at, customer, kind, channel, state LIMIT 200"),
]  # fmt: skip
