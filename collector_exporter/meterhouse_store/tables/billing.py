"""Invoices, credit notes, payments, and all that goes to Stripe and comes from there."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from meterhouse_store.tables.columns import Exact, UtcTime, metadata

invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", String(64), primary_key=True),  # hash of the rating_id
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), nullable=False, unique=True),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),
    Column("state", String(16), nullable=False),  # draft | in review | approved | finalised | paid | failed | void
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),
    Column("stripe_invoice_id", String(64), unique=True),
    Column("stripe_total_minor", BigInteger),
    Column("remaining_minor", BigInteger),  # what Stripe asked for when it was last looked at, from finalising on
    Column("number", String(64)),
    Column("hosted_url", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("finalised_at", UtcTime),
    Column("paid_at", UtcTime),
    Index("invoices_by_customer", "namespace", "customer_id", "period_start"),
)

# Tax on invoices in Stripe: a row for each on which tax is computed, or was found; the amounts when it is finalised.
invoice_taxes = Table(
    "invoice_taxes",
    metadata,
    Column("stripe_invoice_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False, index=True),
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("automatic", Integer, nullable=False),  # 1: we asked Stripe to compute it
    Column("added_minor", BigInteger),  # on top of the lines
    Column("contained_minor", BigInteger),  # within them
    Column("recorded_at", UtcTime, nullable=False),
)

invoice_lines = Table(
    "invoice_lines",
    metadata,
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("line_id", String(64), ForeignKey("rated_lines.line_id"), nullable=False, unique=True),
    Column("description", String(500), nullable=False),
    Column("quantity", Exact, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("stripe_item_id", String(64)),
)

invoice_transitions = Table(
    "invoice_transitions",
    metadata,
    Column("transition_id", String(64), primary_key=True),  # hash of invoice_id, number, from_state, to_state
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("changed_at", UtcTime, nullable=False),
    Index("invoice_transitions_by_invoice", "invoice_id", "changed_at"),
)

# The invoices in Stripe that stood for one of ours, one after the other: a draft that was deleted or whose rating
# changed is made again, a void one may be issued again.
invoice_issues = Table(
    "invoice_issues",
    metadata,
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), primary_key=True),
    Column("issue", Integer, primary_key=True),  # 1, 2, ...
    Column("content_sha256", String(64), nullable=False),  # of the lines that were rated for it
    Column("stripe_invoice_id", String(64), unique=True),
    Column("begun_at", UtcTime, nullable=False),
    Column("ended", String(8)),  # deleted | replaced | void; null: it is the one that counts
    Column("ended_at", UtcTime),
)

# What made an invoice wait for a person; a row whenever that changed, the one recorded last counts.
invoice_findings = Table(
    "invoice_findings",
    metadata,
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("findings", JSON, nullable=False),  # [{code, sentence}]
)

# How a namespace, or one of its customers, wants to be billed; the row recorded last counts.
billing_settings = Table(
    "billing_settings",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),  # '' for all
    Column("setting", String(32), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("value", JSON, nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# What became of a credit note on its way to Stripe.
credit_note_issues = Table(
    "credit_note_issues",
    metadata,
    Column("credit_note_id", String(64), ForeignKey("credit_notes.credit_note_id"), primary_key=True),
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False, index=True),
    Column("state", String(16), nullable=False),  # waiting | approved | issued
    Column("currency", String(3), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),  # positive, before tax; with the tax the parts add up to it
    Column("tax_minor", BigInteger),  # given back beside it
    Column("pre_payment_minor", BigInteger),  # off what remained to be paid
    Column("balance_minor", BigInteger),  # onto the customer's balance
    Column("refunded_minor", BigInteger),
    Column("outside_minor", BigInteger),  # given back outside of Stripe
    Column("lines", JSON),  # {Stripe's line: minor units}
    Column("stripe_invoice_id", String(64)),
    Column("stripe_credit_note_id", String(64), unique=True),
    Column("number", String(64)),
    Column("created_at", UtcTime, nullable=False),
    Column("issued_at", UtcTime),
)

credit_note_transitions = Table(
    "credit_note_transitions",
    metadata,
    Column("transition_id", String(64), primary_key=True),  # hash of credit_note_id, number, from_state, to_state
    Column("credit_note_id", String(64), ForeignKey("credit_note_issues.credit_note_id"), nullable=False),
    Column("from_state", String(16), nullable=False),  # '' of the first
    Column("to_state", String(16), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("changed_at", UtcTime, nullable=False),
)

# Every call to Stripe that changes something is a row here before it is sent.
outbox = Table(
    "outbox",
    metadata,
    Column("idempotency_key", String(128), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("subject_id", String(64), nullable=False, index=True),
    Column("request", JSON, nullable=False),
    Column("state", String(8), nullable=False),  # pending | done | failed
    Column("attempts", Integer, nullable=False),
    Column("response", JSON),
    Column("last_error", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("done_at", UtcTime),
)

webhook_inbox = Table(
    "webhook_inbox",
    metadata,
    Column("event_id", String(128), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("type", String(128), nullable=False),
    Column("object_id", String(128), nullable=False),
    Column("payload", Text, nullable=False),
    Column("stripe_created_at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("processed_at", UtcTime),
    Column("outcome", String(256)),
)

# Credits that a customer buys through Stripe, on a page of Stripe's or by its rule: one grant each, when it is paid.
credit_purchases = Table(
    "credit_purchases",
    metadata,
    Column("purchase_id", String(64), primary_key=True),  # hash of what asked for it
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("how", String(8), nullable=False),  # page | rule
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("state", String(8), nullable=False),  # open | paid | failed | expired
    Column("stripe_id", String(128), unique=True),  # cs_... of a page, pi_... of a charge
    Column("payment_intent", String(128), unique=True),
    Column("url", Text),  # of the page
    Column("grant_id", String(64)),
    Column("problem", String(500)),
    Column("who", String(128), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    Index("credit_purchases_by_customer", "namespace", "customer_id"),
)

# By which rule a customer is charged for credits when little is left; the row recorded last counts.
credit_charge_rules = Table(
    "credit_charge_rules",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("below_minor", BigInteger, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),  # 0: it is off
    Column("per_day", Integer, nullable=False),
    Column("per_month", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# What the platform keeps of invoices of connected accounts: asked when the draft is made, taken when it is paid.
application_fees = Table(
    "application_fees",
    metadata,
    Column("stripe_invoice_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False, index=True),
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("stripe_account", String(64), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("asked_minor", BigInteger, nullable=False),
    Column("taken_minor", BigInteger),  # null: not known to be paid
    Column("payment_intent", String(128)),  # null: paid outside of Stripe
    Column("recorded_at", UtcTime, nullable=False),
)

# Meter events that went out together by Stripe's stream: its reports name the request, not the event.
meter_batches = Table(
    "meter_batches",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("identifiers", JSON, nullable=False),
    Column("sent_at", UtcTime, nullable=False, index=True),
)

# Payments that a customer's bank took back, or asks about, as Stripe showed them last.
disputes = Table(
    "disputes",
    metadata,
    Column("dispute_id", String(128), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("payment_intent", String(128), nullable=False),
    Column("stripe_invoice_id", String(64)),  # of the invoice that was paid; null: a top-up
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("status", String(32), nullable=False),  # Stripe's
    Column("reason", String(64), nullable=False),  # Stripe's
    Column("disputed_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Index("disputes_by_customer", "namespace", "customer_id"),
)

payments = Table(
    "payments",
    metadata,
    Column("payment_id", String(128), primary_key=True),  # hash of the Stripe invoice id and its payment
    Column("namespace", String(64), nullable=False),
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("paid_at", UtcTime, nullable=False),
)
