"""The audit log (meterhouse_store.audit)."""

from sqlalchemy import BigInteger, Column, Index, String, Table, Text

from meterhouse_store import ledger_rules
from meterhouse_store.tables.columns import UtcTime, metadata

# Every change that people made, or rules of theirs: sealed in a chain of each namespace. Triggers hold what they say.
audit_log = Table(
    "audit_log",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, ...
    Column("changed_at", UtcTime, nullable=False),
    Column("what", String(32), nullable=False),  # invoice | budget | key | ... (audit_rules.py)
    Column("customer_id", String(256), nullable=False),  # '' for none
    Column("subject", Text, nullable=False),  # which of them
    Column("who", String(320), nullable=False),
    Column("why", Text, nullable=False),
    Column("details", Text, nullable=False),  # JSON: added, changed (before and after) or removed
    Column("personal_salt", String(32)),  # null: erased
    Column("personal_sha256", String(64), nullable=False),  # of salt, customer, subject, who, why, details
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("audit_log_by_customer", "namespace", "customer_id"),
    Index("audit_log_by_what", "namespace", "what"),
)
ledger_rules.chained(audit_log, "namespace sequence changed_at what personal_sha256 previous_hash hash")
