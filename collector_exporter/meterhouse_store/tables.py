"""The SQL tables: registry, price books, rated results, ledger, invoices, outbox, inbox, allowances.

One schema for SQLite and PostgreSQL. Amounts of money are integers in the currency's minor unit; quantities are exact
decimals; times are aware UTC. Ids are deterministic wherever a row can be written twice (see each table).
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData()


class Exact(TypeDecorator[Decimal]):
    """A Decimal kept exactly: NUMERIC on PostgreSQL, plain text on SQLite, whose own numbers are floats."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric(asdecimal=True))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if not isinstance(value, Decimal) or not value.is_finite():
            raise TypeError(f"an exact column takes a finite Decimal, not {value!r}")
        return format(value, "f") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime: TIMESTAMPTZ on PostgreSQL, sortable ISO 8601 text on SQLite."""

    impl = String(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError(f"a time needs a zone: {value!r}")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else value
        return parsed.astimezone(UTC)


# ---- registry -------------------------------------------------------------------------------------------------------

namespaces = Table(
    "namespaces",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),  # test | live
    # Customers seen in usage and not registered get this plan; null leaves their usage unrated (`--strict`).
    Column("default_plan", String(64)),
    Column("default_currency", String(3), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

customers = Table(
    "customers",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("currency", String(3), nullable=False),  # ISO 4217, upper case
    Column("time_zone", String(64), nullable=False),  # IANA name
    Column("email", String(320)),
    Column("stripe_customer_id", String(64)),
    Column("origin", String(16), nullable=False),  # operator | auto
    Column("registered_at", UtcTime, nullable=False),
)

contracts = Table(
    "contracts",
    metadata,
    Column("contract_id", String(64), primary_key=True),  # hash of namespace, customer, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("plan", String(64), nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    UniqueConstraint("namespace", "customer_id", "valid_from"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("credential_id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("customers", JSON),  # list of customer ids it may report for; null: any
    Column("valid_from", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
)

# Keys that sign usage grants. A credential that has any, revoked ones too, may report only for customers of a grant.
grant_keys = Table(
    "grant_keys",
    metadata,
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), primary_key=True),
    Column("key_id", String(16), primary_key=True),
    Column("key", Text, nullable=False),  # what verifies: a public key, or of an HMAC key the key itself
    Column("valid_from", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
)

# ---- price books and rating -----------------------------------------------------------------------------------------

price_books = Table(
    "price_books",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),  # 1, 2, 3, ...
    Column("sha256", String(64), nullable=False),
    Column("source", Text, nullable=False),  # the YAML text as published
    Column("author", String(128), nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    UniqueConstraint("namespace", "sha256", "valid_from"),
)

ratings = Table(
    "ratings",
    metadata,
    Column("rating_id", String(64), primary_key=True),  # hash of namespace, customer, period_start, period_end
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),  # half-open
    Column(
        "state", String(8), nullable=False
    ),  # open: lines are replaced by each run; closed: frozen and in the ledger
    Column("currency", String(3), nullable=False),
    Column("plan", String(64), nullable=False),
    Column("book_version", Integer, nullable=False),
    Column("watermark", JSON, nullable=False),  # {collector_id: position}
    Column("as_of", UtcTime, nullable=False),  # events received up to here are in it
    Column("inputs_sha256", String(64), nullable=False),
    Column("result_sha256", String(64), nullable=False),
    Column("total_minor", BigInteger, nullable=False),
    Column("rated_at", UtcTime, nullable=False),
    Column("closed_at", UtcTime),
    UniqueConstraint("namespace", "customer_id", "period_start"),
)

rated_lines = Table(
    "rated_lines",
    metadata,
    Column("line_id", String(64), primary_key=True),  # hash of rating_id, component, dimensions
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # usage | flat | credit_pack | credit_applied
    Column("component", String(64), nullable=False),
    Column("metric", String(64)),  # billable metric of the book, for usage
    Column("description", String(256), nullable=False),
    Column("quantity", Exact, nullable=False),
    Column("unit", String(32), nullable=False),
    Column("dimensions", JSON, nullable=False),
    Column("amount_exact", Exact, nullable=False),  # in major units, before rounding
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("explanation", JSON, nullable=False),
)

# Usage that is in `usage` but has no price: replaced by each run. usage = rated + unbilled + unrated, always.
unrated_usage = Table(
    "unrated_usage",
    metadata,
    Column("unrated_id", String(64), primary_key=True),  # hash of namespace, customer, period, meter, dimensions
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),
    Column("meter", String(128), nullable=False),
    Column("dimensions", JSON, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("quantity", Exact, nullable=False),
    # customer_not_registered | meter_not_declared | no_price, or by choice: unbilled_meter | unbilled_status
    Column("reason", String(32), nullable=False),
    Column("hint", Text, nullable=False),  # the line to add, or why it is free
)

ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("transaction_id", String(64), primary_key=True),  # hash of namespace, kind and what caused it
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("kind", String(32), nullable=False),  # usage | flat | credit_pack | credit_applied | payment | ...
    Column("source_id", String(128), nullable=False),  # line_id, payment_id, ...
    Column("effective_at", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("corrects", String(64)),
    Column("memo", String(256), nullable=False),
    Index("ledger_by_customer", "namespace", "customer_id", "effective_at"),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("transaction_id", String(64), ForeignKey("ledger_transactions.transaction_id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("account", String(64), nullable=False),  # receivable | revenue | deferred_credits | cash | ...
    Column("amount_minor", BigInteger, nullable=False),  # debit positive, credit negative; a transaction sums to 0
    Column("currency", String(3), nullable=False),
)

# ---- billing --------------------------------------------------------------------------------------------------------

invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", String(64), primary_key=True),  # hash of the rating_id
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), nullable=False, unique=True),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),
    Column("state", String(16), nullable=False),  # draft | approved | finalised | paid | failed | void
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),
    Column("stripe_invoice_id", String(64), unique=True),
    Column("stripe_total_minor", BigInteger),
    Column("number", String(64)),
    Column("hosted_url", Text),
    Column("created_at", UtcTime, nullable=False),
    Column("finalised_at", UtcTime),
    Column("paid_at", UtcTime),
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
    Column("transition_id", String(64), primary_key=True),  # hash of invoice_id, from_state, to_state
    Column("invoice_id", String(64), ForeignKey("invoices.invoice_id"), nullable=False),
    Column("from_state", String(16), nullable=False),
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

# What `POST /v1/allowance` serves; written by billing, read by the collector. No row: no limit.
allowances = Table(
    "allowances",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("agent_id", String(256), primary_key=True),  # '' for all agents
    Column("decision", String(8), nullable=False),  # allow | pause
    Column("units", Exact),  # weighted units left; null: no limit
    Column("weights", JSON, nullable=False),  # {meter: "weight"}
    Column("pause_at", String(8), nullable=False),  # call | task
    Column("on_unreachable", String(8), nullable=False),  # allow | pause
    Column("reason", String(64)),
    Column("computed_at", UtcTime, nullable=False),
)
