"""The alert rules; each has its page in docs/runbooks."""

# ruff: noqa: E501 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import Alert

RULES: Final = [
    Alert("projection-lag", "The warehouse is behind", "A collector's journal is not in the warehouse.",
        "SELECT max(dateDiff('second', projected_through, now64(9, 'UTC'))) AS lag_s FROM watermark", 120, 5, "page"),
    # Burn rates and windows: Google's SRE workbook, chapter 5. A few failures of few requests are no reason to wake anybody.
    Alert("slo-burn-fast", "An objective is missed fast", "At this rate what may go wrong in 30 days is used up in two.",
        "SELECT maxIf(least(burn_5m, burn_1h), bad_1h >= 10) AS burn_rate FROM slos", 14.4, 0, "page"),
    Alert("slo-burn-slow", "An objective is missed slowly", "At this rate what may go wrong in 30 days is used up in five.",
        "SELECT maxIf(least(burn_30m, burn_6h), bad_6h >= 10) AS burn_rate FROM slos", 6, 0, "ticket"),
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
