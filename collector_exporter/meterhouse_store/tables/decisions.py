"""What people decided about single events of usage."""

from sqlalchemy import BigInteger, Column, Index, String, Table, Text, UniqueConstraint

from meterhouse_store.tables.columns import Exact, UtcTime, metadata

# What people decided about single rows of `events`, in the order they decided it; never deleted, and changed only where
# the erasure of a customer gives a row another name (renaming.py).
decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", String(64), primary_key=True),  # hash of row_id, follows, kind, reason, billed_customer_id
    Column("namespace", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # assign | release | discard | retract | undo
    Column("row_id", String(64), nullable=False),  # hash of the row's key, the next six
    # The sorting key of `events`; event_time_ns is 0 for an event whose identity has no time.
    Column("customer_id", String(256), nullable=False),
    Column("meter", String(256), nullable=False),
    Column("event_time_ns", BigInteger, nullable=False),
    Column("event_id", String(256), nullable=False),
    Column("quantity", Exact, nullable=False),
    # What the row is from then on: '' counts, for billed_customer_id or, where that is '', the customer as claimed.
    Column("reason", String(32), nullable=False),
    Column("billed_customer_id", String(256), nullable=False),
    Column("original_reason", String(32), nullable=False),  # before any decision
    Column("follows", String(64), nullable=False),  # the decision about this row before; '' for the first
    Column("why", Text, nullable=False),
    Column("who", String(128), nullable=False),
    Column("decided_at", UtcTime, nullable=False),  # rises with every command of a namespace
    UniqueConstraint("row_id", "follows"),  # of two people who decide at once, one is told
    Index("decisions_in_order", "decided_at"),
)
