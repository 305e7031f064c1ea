"""Stripe's meters, the other way to bill."""

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, String, Table, Text, UniqueConstraint

from meterhouse_store.tables.columns import Exact, UtcTime, metadata

# How a customer is billed from a month on: the row recorded last for the latest valid_from. None: invoices.
billing_drivers = Table(
    "billing_drivers",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("valid_from", UtcTime, primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("driver", String(8), nullable=False),  # invoices | meters
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# What a customer of the meters has in Stripe from a month on.
meter_subscriptions = Table(
    "meter_subscriptions",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("valid_from", UtcTime, primary_key=True),
    Column("stripe_customer_id", String(64), nullable=False),
    Column("stripe_subscription_id", String(64), nullable=False),
    Column("plan", String(64), nullable=False),
    Column("book_version", Integer, nullable=False),
    Column("items", JSON, nullable=False),  # [{component, metric, aggregate, meters, free_statuses, event_name, ...}]
    Column("recorded_at", UtcTime, nullable=False),
)

# Every meter event that was ever to be sent: written before it is sent, its outcome after. Of an hour, the event with
# the highest version holds the whole total.
meter_events = Table(
    "meter_events",
    metadata,
    Column("identifier", String(64), primary_key=True),  # hash of all that follows up to total
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("event_name", String(100), nullable=False),
    Column("stripe_customer_id", String(64), nullable=False),
    Column("hour", UtcTime, nullable=False),  # its start
    Column("version", Integer, nullable=False),  # 1, 2, ...
    Column("total", BigInteger, nullable=False),
    Column("state", String(10), nullable=False),  # pending | delivered | rejected | superseded
    Column("attempts", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("sent_at", UtcTime),  # first attempt
    Column("settled_at", UtcTime),
    Column("last_error", Text),
    UniqueConstraint("namespace", "customer_id", "event_name", "hour", "version"),
    Index("meter_events_by_state", "namespace", "state"),
)

# Months that were compared for good: usage here, Stripe's summary, per customer and meter.
meter_periods = Table(
    "meter_periods",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("period_start", UtcTime, primary_key=True),
    Column("event_name", String(100), primary_key=True),
    Column("period_end", UtcTime, nullable=False),
    Column("ours", Exact, nullable=False),
    Column("stripes", Exact, nullable=False),
    Column("later", Exact, nullable=False),  # ours, as it became known after the freeze: differs where usage came late
    Column("frozen_at", UtcTime, nullable=False),
    Column("handled_at", UtcTime),  # when somebody said that what differs is seen to; null: nobody, or it changed since
)

# The invoices that Stripe makes of subscriptions, as it showed them last: customers on the meters owe these.
metered_invoices = Table(
    "metered_invoices",
    metadata,
    Column("stripe_invoice_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),
    Column("state", String(16), nullable=False),  # finalised | paid | failed | void
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),  # with tax
    Column("remaining_minor", BigInteger),  # of that, what Stripe still asked for when it was last looked at
    Column("paid_minor", BigInteger),  # and what was paid: the customer's balance may have paid some
    Column("number", String(64)),
    Column("hosted_url", Text),
    Column("lines", JSON, nullable=False),  # [{description, amount_minor}]
    Column("finalised_at", UtcTime, nullable=False),
    Column("due_at", UtcTime),
    Column("failed_at", UtcTime),  # when a failed payment was first seen
    Column("paid_at", UtcTime),
    Index("metered_invoices_by_customer", "namespace", "customer_id", "period_start"),
)
