"""Costs: what providers, tools and one's own units ask."""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, String, Table

from meterhouse_store import ledger_rules
from meterhouse_store.tables.columns import Exact, UtcTime, metadata

# Price lists of providers, each kept as it was imported; costs are worked out from these texts alone.
cost_catalogues = Table(
    "cost_catalogues",
    metadata,
    Column("catalogue_id", String(64), primary_key=True),  # hash of namespace, sha256, valid_from, how often retracted
    Column("namespace", String(64), nullable=False),
    Column("package", String(64), nullable=False),  # genai-prices
    Column("version", String(32), nullable=False),  # of the package
    Column("sha256", String(64), nullable=False),  # of the text
    Column("snapshot", LargeBinary, nullable=False),  # the text (UTF-8), zlib
    Column("valid_from", UtcTime, nullable=False),  # prices usage from then on, until the next one's
    Column("recorded_at", UtcTime, nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(cost_catalogues, "catalogue_id namespace version sha256 snapshot valid_from recorded_at")

# Single costs: negotiated with a provider, one's own (tools, self-hosted models, other units), or declared to be none.
# In what says which usage a cost is of, '' is any, and a * at the end any rest.
cost_entries = Table(
    "cost_entries",
    metadata,
    Column("entry_id", String(64), primary_key=True),  # hash of namespace, all that it says, how often retracted
    Column("namespace", String(64), nullable=False),
    Column(
        "source", String(16), nullable=False
    ),  # negotiated | own | declared (none: only where nothing else is known)
    Column("meter", String(256), nullable=False),
    Column("provider", String(256), nullable=False),
    Column("model", String(256), nullable=False),
    Column("modality", String(256), nullable=False),
    Column("cache_ttl", String(256), nullable=False),
    Column("service_tier", String(256), nullable=False),  # '': the standard tier
    Column("tool", String(256), nullable=False),
    Column("agent_id", String(256), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("price", Exact, nullable=False),
    Column("per", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),  # exclusive; null: open
    Column("recorded_at", UtcTime, nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Index("cost_entries_by_namespace", "namespace", "recorded_at"),
)
ledger_rules.append_only(
    cost_entries, "entry_id namespace source price per currency valid_from valid_until recorded_at"
)

# Entries and catalogues that are taken back: from then on they price nothing, as if they had not been.
cost_retractions = Table(
    "cost_retractions",
    metadata,
    Column("retracted_id", String(64), primary_key=True),  # entry_id or catalogue_id
    Column("namespace", String(64), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(cost_retractions, "retracted_id namespace recorded_at")
