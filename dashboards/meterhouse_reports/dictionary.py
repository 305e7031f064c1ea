"""The data dictionary: every view that finance reads, with the columns and types that the warehouse has."""

from typing import Final

from clickhouse_connect.driver.client import Client

VIEWS: Final = {
    "finance_entries": "The ledger's entries, one row each.",
    "finance_usage": "Usage events, in the month of the rating that they belong to.",
    "finance_usage_by_day": "The same by day of UTC, to be summed, and without conversations.",
    "finance_unbilled": "Rated lines that are on no invoice that went out.",
    "finance_invoices": "Invoices, what was paid of them, and what is open.",
    "finance_reconciliation": "Each closed rating from its lines to the payment.",
    "margins": "Revenue beside cost, for each rating (docs/costs.md).",
}
_COLUMNS: Final = {
    "namespace": "live or test",
    "customer_id": "who is billed",
    "accounted_at": "when it counts: the middle of the rated period; for all else when it happened (UTC)",
    "month": "first day of the month of accounted_at (UTC)",
    "day": "day of the event (UTC)",
    "account": "account of the ledger (docs/money.md)",
    "kind": "kind of the transaction or line: usage, flat, payment, credit_applied, ...",
    "currency": "ISO 4217; amounts of different currencies are never added",
    "amount_minor": "in minor units (cents); in the ledger debit is positive",
    "amount": "the same in major units, exact",
    "description": "as on the invoice, or the reason that was given",
    "component": "component of the plan; empty for what is no line",
    "metric": "billable metric of the price book",
    "plan": "plan that priced it",
    "rating_id": "the rating that it belongs to",
    "line_id": "the rated line, for `meterhouse rate explain`",
    "period_start": "begin of the rated period (UTC, in it)",
    "period_end": "end of the rated period (UTC, not in it)",
    "transaction_id": "the ledger's transaction",
    "position": "number of the entry in its transaction",
    "source_id": "what caused it: line_id, payment_id, grant_id",
    "corrects": "the transaction that it corrects",
    "effective_at": "when the transaction takes effect (UTC)",
    "as_of": "when it became known; of usage: up to which time all is in the warehouse",
    "is_closed": "true: it does not change any more",
    "event_time": "when it was used (UTC)",
    "is_rated": "a rating covers it",
    "meter": "what was counted (docs/contracts.md)",
    "provider": "model provider",
    "model": "model that answered",
    "agent": "name of the agent",
    "tool": "tool that was called",
    "conversation_id": "conversation",
    "status": "ok, failed, aborted, unfinished",
    "source": "where it was seen: sdk, framework, otel.span, ...",
    "quantity": "exact, in the meter's or metric's unit",
    "unit": "unit of the quantity",
    "stage": "period open; closed, no invoice; draft; in review; approved",
    "state": "state of the invoice or rating",
    "number": "Stripe's number of the invoice",
    "total_minor": "total of the invoice, minor units",
    "total": "the same in major units",
    "paid_minor": "payments, minor units",
    "paid": "the same in major units",
    "outstanding_minor": "what is open of an invoice that went out, minor units",
    "outstanding": "the same in major units",
    "credited_minor": "what credit notes took off it before it was paid, tax included, minor units",
    "tax_added_minor": "tax that Stripe put on top of the invoice, minor units; 0 before it went out",
    "tax_contained_minor": "tax within its lines (tax behaviour inclusive), minor units",
    "stripe_total_minor": "Stripe's total with tax, in our minor units; NULL before it is there",
    "created_at": "when the invoice was made (UTC)",
    "finalised_at": "when it went out (UTC); NULL before",
    "paid_at": "when it was paid (UTC); NULL before",
    "invoice_id": "the invoice here",
    "stripe_invoice_id": "the invoice at Stripe",
    "rated_minor": "total of the rating",
    "lines_minor": "sum of its lines",
    "ledger_minor": "what they posted to receivable",
    "invoice_minor": "total of its invoice; NULL: none",
    "stripe_minor": "Stripe's total before tax; NULL: none",
    "differs": "which of these do not agree; empty: all do",
    "revenue": "usage, fees, minimums, discounts and corrections, major units",
    "cost": "known cost, major units",
    "cost_not_ok": "of which: failed, aborted and unfinished calls",
    "events": "usage events",
    "unknown_events": "events of unknown cost",
    "margin": "revenue less cost; NULL where some cost is unknown",
}


def dictionary(client: Client) -> str:
    """Markdown: a table for each view. Raises KeyError for a column that nobody described."""
    parts = ["# Data dictionary", "", "`meterhouse report dictionary` writes this from the views as they are."]
    for view, about in VIEWS.items():
        rows = client.query(f"DESCRIBE {view}").result_rows
        parts += ["", f"## {view}", "", about, "", "| column | type | what it is |", "|---|---|---|"]
        parts += [f"| `{name}` | {kind} | {_COLUMNS[name]} |" for name, kind, *_ in rows]
    return "\n".join(parts) + "\n"
