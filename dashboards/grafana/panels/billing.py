"""Revenue that is not billed yet, invoices, and whether all stations agree."""

# ruff: noqa: S608 - texts; what is put into the queries stands here, or is a variable that Grafana quotes

from typing import Final

from panels.parts import CUSTOMER, EVENTS_OF, OF, Panel

TITLE: Final = "Meterhouse billing"
DESCRIPTION: Final = "Revenue that is not billed yet, invoices, what is overdue, and whether all stations agree."
PANELS: Final = [
    Panel("Unbilled revenue", "What is rated and on no invoice that went out, by how far it came; of open periods "
        "it is provisional.", "table",
        "SELECT stage, currency, sum(amount) AS amount, uniqExact(rating_id) AS ratings FROM finance_unbilled\n"
        f"WHERE {OF} AND {CUSTOMER}\nGROUP BY stage, currency ORDER BY stage, currency"),
    Panel("Invoices by state", "All invoices, by state and currency.", "table",
        "SELECT state, currency, count() AS invoices, sum(total) AS total, sum(outstanding) AS outstanding\n"
        f"FROM finance_invoices\nWHERE {OF} AND {CUSTOMER}\nGROUP BY state, currency ORDER BY state, currency"),
    Panel("Ratings whose stations differ", "Closed ratings whose lines, ledger, invoice, Stripe and payments do not "
        "agree. It should be empty.", "table",
        "SELECT customer_id AS customer, period_start, currency, differs, rated_minor, ledger_minor,\n"
        f"  invoice_minor, stripe_minor, paid_minor\nFROM finance_reconciliation\nWHERE {OF} AND {CUSTOMER}\n"
        "  AND differs != ''\nORDER BY period_start DESC, customer LIMIT 200"),
    Panel("Overdue", "Invoices that went out more than 30 days ago and are not paid, the oldest first.", "table",
        "SELECT customer_id AS customer, number, currency, outstanding,\n"
        "  dateDiff('day', finalised_at, now()) AS days\nFROM finance_invoices\n"
        f"WHERE {OF} AND {CUSTOMER} AND outstanding_minor > 0 AND finalised_at < now() - INTERVAL 30 DAY\n"
        "ORDER BY days DESC, customer LIMIT 200", links={"customer": EVENTS_OF}),
    Panel("From the period's end to the invoice", "Hours from a period's end until it was closed and until its "
        "invoice went out, by the period.", "table",
        "SELECT invoice.period_end AS period_end, count() AS invoices,\n"
        "  max(dateDiff('hour', invoice.period_end, invoice.created_at)) AS created_h,\n"
        "  max(dateDiff('hour', invoice.period_end, invoice.finalised_at)) AS went_out_h\n"
        f"FROM finance_invoices AS invoice\nWHERE {OF} AND {CUSTOMER}\nGROUP BY period_end\n"
        "ORDER BY period_end DESC LIMIT 24", "h"),
    Panel("Late invoices", "Periods that ended more than three days ago and whose invoice has not gone out.", "table",
        "SELECT customer_id AS customer, period_end, stage, currency, sum(amount) AS amount\n"
        f"FROM finance_unbilled\nWHERE {OF} AND {CUSTOMER} AND period_end < now() - INTERVAL 3 DAY\n"
        "GROUP BY customer, period_end, stage, currency HAVING sum(amount_minor) > 0\n"
        "ORDER BY period_end, customer LIMIT 200"),
    Panel("Revenue by month", "The ledger's revenue, by month and currency.", "table",
        "SELECT month, currency, -sum(amount) AS revenue FROM finance_entries\n"
        f"WHERE {OF} AND {CUSTOMER} AND account = 'revenue'\nGROUP BY month, currency\n"
        "ORDER BY month DESC, currency LIMIT 100"),
    Panel("Corrections and adjustments", "What closed periods were corrected by, the last first.", "table",
        "SELECT effective_at, customer_id AS customer, kind, description, currency, amount\nFROM finance_entries\n"
        f"WHERE {OF} AND {CUSTOMER} AND account = 'receivable'\n"
        "  AND kind IN ('correction', 'credit_restored', 'adjustment')\n"
        "ORDER BY effective_at DESC, customer LIMIT 100"),
]  # fmt: skip
