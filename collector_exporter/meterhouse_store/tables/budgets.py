"""Budgets, pauses, what agents hold of limits, and notices (meterhouse_store.budgets)."""

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String, Table, Text

from meterhouse_store import ledger_rules
from meterhouse_store.tables.columns import Exact, UtcTime, metadata

# Everything that people said about budgets, in order; what holds now is the fold of a budget's rows.
budget_changes = Table(
    "budget_changes",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),  # rises with every change of a budget
    Column("change", String(16), nullable=False),  # set | raise | acknowledge | remove
    Column("terms", JSON, nullable=False),  # set: all that the budget says; raise, acknowledge: of which period
    Column("amount", Exact),  # set: the limit; raise: the new one
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(budget_changes, "recorded_at change amount")

# How a customer's agents are stopped; the row recorded last counts. None: before a call; go on where nobody answers.
budget_policies = Table(
    "budget_policies",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("pause_at", String(8), nullable=False),  # call | task
    Column("on_unreachable", String(8), nullable=False),  # allow | pause
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(budget_policies, "recorded_at pause_at on_unreachable")

# Pauses that somebody, or a failed payment, asked for. Each reason is of its own: lifting one leaves the others.
pause_changes = Table(
    "pause_changes",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("agent_id", String(256), primary_key=True),  # '' for all agents
    Column("reason", String(64), primary_key=True),  # operator, payment_failed, ...
    Column("recorded_at", UtcTime, primary_key=True),
    Column("state", String(4), nullable=False),  # on | off
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(pause_changes, "recorded_at state")

# What `POST /v1/allowance` goes by; worked out from budgets and usage by billing. No row: no limit.
allowances = Table(
    "allowances",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("pauses", JSON, nullable=False),  # [{agent_id, reason}]
    # [{name, agent_id, left, least, weights: {meter: units of this limit that one costs}, reason}], numbers as text
    Column("limits", JSON, nullable=False),
    Column("pause_at", String(8), nullable=False),  # call | task
    Column("on_unreachable", String(8), nullable=False),  # allow | pause
    Column("computed_at", UtcTime, nullable=False),
)

# What agents hold of limits, one row per process, customer and agent: written before the answer that grants it.
leases = Table(
    "leases",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("lease_id", String(64), primary_key=True),
    Column("customer_id", String(256), nullable=False),
    Column("agent_id", String(256), nullable=False),
    Column("process_id", String(256), nullable=False),
    Column("granted", JSON, nullable=False),  # {name of the limit: units from the last answer on}; empty: given back
    Column("used", JSON, nullable=False),  # {meter: quantity} that the agent said it used, up to its last question
    Column("arrived", JSON, nullable=False),  # {meter: quantity} that is in the warehouse, and in what is left
    Column("granted_at", UtcTime, nullable=False),  # first
    Column("expires_at", UtcTime, nullable=False),
    Index("leases_by_customer", "namespace", "customer_id"),
)

# What customers and operators are to be told, once each: the id is the hash of what it is about.
notices = Table(
    "notices",
    metadata,
    Column("notice_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("kind", String(32), nullable=False),  # budget_threshold | budget_cap | paused | ...
    Column("subject", String(256), nullable=False),  # one line
    Column("facts", JSON, nullable=False),  # what templates show
    Column("created_at", UtcTime, nullable=False),
    Index("notices_by_customer", "namespace", "customer_id", "created_at"),
)

# Where notices go; of a customer, or ('') of all. A customer's own e-mail address needs no row.
notice_channels = Table(
    "notice_channels",
    metadata,
    Column("channel_id", String(64), primary_key=True),  # hash of namespace, customer, kind, address, recorded_at
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("kind", String(8), nullable=False),  # email | webhook
    Column("address", String(2000), nullable=False),  # an e-mail address, or a URL
    Column("secret", String(128)),  # signs what goes to a webhook
    Column("kinds", JSON, nullable=False),  # of notices; empty: all
    Column("who", String(128), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("removed_at", UtcTime),
)

# Each notice to each address; written with the notice, so that none is forgotten, and never sent under another id.
notice_deliveries = Table(
    "notice_deliveries",
    metadata,
    Column("delivery_id", String(64), primary_key=True),  # hash of notice, kind of channel, address
    Column("notice_id", String(64), ForeignKey("notices.notice_id"), nullable=False, index=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("channel", String(8), nullable=False),  # email | webhook
    Column("address", String(2000), nullable=False),
    Column("state", String(8), nullable=False),  # pending | sent | failed
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", UtcTime, nullable=False),
    Column("last_error", Text),
    Column("sent_at", UtcTime),
    Index("notice_deliveries_due", "namespace", "state", "next_attempt_at"),
)
