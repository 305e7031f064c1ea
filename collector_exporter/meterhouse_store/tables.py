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
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

from meterhouse_store import ledger_rules

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
    # What the operator calls the customer elsewhere, where the id is a pseudonym; erasing removes it.
    Column("reference", String(256)),
)

# Customers whose personal data was removed. `customer_id` is the id that the customer has now; while an erasure of
# bytes is under way, `former_id` is the one that is being replaced.
erasures = Table(
    "erasures",
    metadata,
    Column("erasure_id", String(64), primary_key=True),  # by chance
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("former_id", String(256)),
    Column("bytes", String(8), nullable=False),  # kept | begun | erased
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("begun_at", UtcTime, nullable=False),
    Column("done_at", UtcTime),
)

contracts = Table(
    "contracts",
    metadata,
    Column("contract_id", String(64), primary_key=True),  # hash of namespace, customer, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("plan", String(64), nullable=False),  # '': none, the customer's contract ended
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    UniqueConstraint("namespace", "customer_id", "valid_from"),
)

# Who ended a contract, and why; the end itself is a contract without a plan.
contract_ends = Table(
    "contract_ends",
    metadata,
    Column("contract_id", String(64), ForeignKey("contracts.contract_id"), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
)

# What a customer agreed to beside its plan. Rows are added and ended, never changed otherwise.
customer_addons = Table(
    "customer_addons",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, add-on, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("addon", String(64), nullable=False),
    Column("quantity", Exact, nullable=False),
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),  # exclusive; null: open
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_addons_by_customer", "namespace", "customer_id"),
)

price_overrides = Table(
    "price_overrides",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, component, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("component", String(64), nullable=False),
    Column("source", Text, nullable=False),  # the component, YAML as in a price book
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),
    Column("recorded_at", UtcTime, nullable=False),
    Index("price_overrides_by_customer", "namespace", "customer_id"),
)

customer_discounts = Table(
    "customer_discounts",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, name, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("name", String(128), nullable=False),
    Column("percent", Exact),  # one of percent and amount
    Column("amount", Exact),  # in major units of the customer's currency
    Column("components", JSON, nullable=False),  # names; empty: all
    Column("months", Integer),  # calendar months from valid_from's on; null: until it is ended
    Column("before_minimum", Integer, nullable=False),  # 1: a minimum commitment is compared with what it leaves
    Column("valid_from", UtcTime, nullable=False),
    Column("valid_until", UtcTime),
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_discounts_by_customer", "namespace", "customer_id"),
)

customer_quantities = Table(
    "customer_quantities",
    metadata,
    Column("agreement_id", String(64), primary_key=True),  # hash of namespace, customer, name, valid_from
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("name", String(64), nullable=False),  # seats, ...
    Column("quantity", Exact, nullable=False),  # so many from valid_from on, until the next row
    Column("valid_from", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Index("customer_quantities_by_customer", "namespace", "customer_id"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("credential_id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("customers", JSON),  # list of customer ids it may report, or read, for; null: any
    Column("valid_from", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("role", String(16), nullable=False, server_default="metering"),  # metering | pricing
)

# Keys that were replaced by a new one of the same credential, and until when they are taken all the same.
retired_keys = Table(
    "retired_keys",
    metadata,
    Column("key_sha256", String(64), primary_key=True),
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), nullable=False),
    Column("valid_until", UtcTime, nullable=False),
)

# Written by collectors, once a minute at most: a request never waits for it.
key_uses = Table(
    "key_uses",
    metadata,
    Column("credential_id", String(32), ForeignKey("credentials.credential_id"), primary_key=True),
    Column("last_used_at", UtcTime, nullable=False),
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

# Every time somebody turned rating, sync or pausing of a namespace on or off; the latest counts. None: on.
namespace_switches = Table(
    "namespace_switches",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("switch", String(16), primary_key=True),  # rating | sync | pausing
    Column("changed_at", UtcTime, primary_key=True),
    Column("state", String(4), nullable=False),  # on | off
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# Who may change what (roles.py); the row recorded last counts. A role that nobody has is everybody's.
operator_roles = Table(
    "operator_roles",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("role", String(16), primary_key=True),  # metering | pricing | invoicing | administration
    Column("person", String(320), primary_key=True),  # an account or an e-mail address, lower case
    Column("recorded_at", UtcTime, primary_key=True),
    Column("granted", Integer, nullable=False),  # 1 | 0
    Column("who", String(320), nullable=False),
    Column("why", String(500), nullable=False),
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

# What waits for, or had, a second person's word: a price book, or the end of the rule that asks for one.
price_proposals = Table(
    "price_proposals",
    metadata,
    # hash of namespace, kind, sha256, valid_from, base_version, how often it was rejected before
    Column("proposal_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # book | one_person
    Column("sha256", String(64), nullable=False),
    Column("source", Text, nullable=False),  # the YAML text, which becomes the version's as it is
    Column("valid_from", UtcTime),  # null: as `publish` has it, at the time of the approval
    Column("base_version", Integer, nullable=False),  # the newest version that its author saw; 0: none
    Column("author", String(128), nullable=False),
    Column("account", String(128), nullable=False),  # of the operating system
    Column("recorded_at", UtcTime, nullable=False),
    Index("price_proposals_by_namespace", "namespace", "recorded_at"),
)
ledger_rules.append_only(
    price_proposals, "proposal_id namespace kind sha256 source valid_from base_version author account recorded_at"
)

# Who did what about proposals and the rule, refused attempts too; the latest *_person(s) is the rule that holds.
price_audit = Table(
    "price_audit",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # 1, 2, 3, ...
    Column("recorded_at", UtcTime, nullable=False),
    Column("what", String(16), nullable=False),  # proposed | approved | rejected | refused | two_persons | one_person
    Column("proposal_id", String(64)),
    Column("version", Integer),  # what an approval made
    Column("who", String(128), nullable=False),
    Column("account", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)
ledger_rules.append_only(price_audit, "namespace position recorded_at what proposal_id version")

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

# What was known of the usage's completeness when the period was closed; no amount depends on it.
rating_statements = Table(
    "rating_statements",
    metadata,
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), primary_key=True),
    Column("verdict", Text, nullable=False),  # a sentence
    Column("statement", JSON, nullable=False),  # as `meterhouse completeness --json`, without the customer
    Column("stated_at", UtcTime, nullable=False),
)

# What `rate run --new` goes on from: usage of a period before a moment, as it was known. A copy of what the warehouse
# has, which may be deleted: the next run reads it again.
usage_bases = Table(
    "usage_bases",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("period_start", UtcTime, primary_key=True),
    Column("period_end", UtcTime, primary_key=True),
    Column("until", UtcTime, nullable=False),  # events before it are in `usage`
    Column("looked_at", UtcTime, nullable=False),  # what was known up to then is rated
    Column("wanted", String(64), nullable=False),  # a hash of what the prices depend on
    Column("watermark", JSON, nullable=False),
    Column("usage", JSON, nullable=False),  # by customer: meter, status, dimensions, events, quantity
)

# The last runs of commands that are scheduled, one row per command: for alarms when they stop coming.
command_runs = Table(
    "command_runs",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("command", String(64), primary_key=True),  # rate run --due, rate close --period, ...
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),  # before started_at, or none: it is under way, or was killed
    Column("exit_code", Integer),  # of the one that finished last
    Column("succeeded_at", UtcTime),  # the last end with exit code 0 or 3
)

rated_lines = Table(
    "rated_lines",
    metadata,
    Column("line_id", String(64), primary_key=True),  # hash of rating_id, component, dimensions
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # usage | flat | minimum | credit_pack | discount | credit_applied
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
    # customer_not_registered | contract_ended | meter_not_declared | no_price | cost_unknown | formula_failed |
    # too_many_groups | negative_quantity, or by choice: unbilled_meter | unbilled_status | unbilled_task |
    # unbilled_trial
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
    Column("grant_id", String(64)),  # whose credits, in deferred_credits
)

# The seals of the transactions, one after the other in each namespace (ledger_chain.py). Triggers hold what they say.
ledger_chain = Table(
    "ledger_chain",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, ...
    Column("transaction_id", String(64), ForeignKey("ledger_transactions.transaction_id"), nullable=False, unique=True),
    Column("personal_salt", String(32)),  # null: erased
    Column("personal_sha256", String(64), nullable=False),  # of salt, customer and memo
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
ledger_chain.add_is_dependent_on(ledger_entries)
ledger_rules.attach(ledger_chain)

# Credits that a customer was granted; what is left of a grant is the fold of its entries in deferred_credits.
credit_grants = Table(
    "credit_grants",
    metadata,
    Column("grant_id", String(64), primary_key=True),  # hash of what made it
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("kind", String(16), nullable=False),  # bought | promotional
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("priority", Integer, nullable=False),  # lower ones are used first
    Column("granted_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),  # exclusive; null: never
    Column("rollover_minor", BigInteger, nullable=False),  # so much of a rest is carried over when it expires
    Column("source", String(16), nullable=False),  # operator | pack | rollover
    Column("source_id", String(128), nullable=False),  # '', line_id, grant_id
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Index("credit_grants_by_customer", "namespace", "customer_id"),
)

# By which rule a customer buys more credits; the last row that begins before a period's end counts.
credit_top_ups = Table(
    "credit_top_ups",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("valid_from", UtcTime, primary_key=True),
    Column("below_minor", BigInteger, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),  # 0: none any more
    Column("times", Integer, nullable=False),  # at most, in a period
    Column("currency", String(3), nullable=False),
    Column("who", String(128), nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
)

# The usage that a closed rating and its corrections account for: replaced when a correction is closed.
accounted_usage = Table(
    "accounted_usage",
    metadata,
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), primary_key=True),
    Column("meter", String(128), primary_key=True),  # '' with quantity 0: none at all
    Column("quantity", Exact, nullable=False),
    Column("as_of", UtcTime, nullable=False),
)

# What becomes of usage that changes after its period was closed; the row recorded last counts. None: next_invoice.
correction_policies = Table(
    "correction_policies",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("recorded_at", UtcTime, primary_key=True),
    Column("policy", String(16), nullable=False),  # next_invoice | credit_note | none
    Column("who", String(128), nullable=False),
    Column("why", String(500), nullable=False),
)

# Corrections in the customer's favour, where they are not lines of the next rating.
credit_notes = Table(
    "credit_notes",
    metadata,
    Column("credit_note_id", String(64), primary_key=True),  # hash of the rating, and of the one it was closed with
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("rating_id", String(64), ForeignKey("ratings.rating_id"), nullable=False),  # what is corrected
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),  # negative
    Column("lines", JSON, nullable=False),  # as rows of rated_lines; exact numbers are text
    Column("as_of", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
)

# ---- cost: what providers, tools and one's own units ask -------------------------------------------------------------

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

# ---- decisions about usage -------------------------------------------------------------------------------------------

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
    Column("state", String(16), nullable=False),  # draft | in review | approved | finalised | paid | failed | void
    Column("currency", String(3), nullable=False),
    Column("total_minor", BigInteger, nullable=False),
    Column("stripe_invoice_id", String(64), unique=True),
    Column("stripe_total_minor", BigInteger),
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
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("status", String(32), nullable=False),  # Stripe's
    Column("reason", String(64), nullable=False),  # Stripe's
    Column("disputed_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Index("disputes_by_customer", "namespace", "customer_id"),
)

# ---- Stripe's meters, the other way to bill -------------------------------------------------------------------------

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

# ---- budgets (meterhouse_store.budgets) ------------------------------------------------------------------------------

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

# ---- portal ---------------------------------------------------------------------------------------------------------

# Who may sign in for a customer, as what; the row recorded last counts. No role: not any more.
portal_members = Table(
    "portal_members",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("customer_id", String(256), primary_key=True),
    Column("email", String(320), primary_key=True),  # lower case
    Column("changed_at", UtcTime, primary_key=True),
    Column("role", String(8)),  # owner | billing | viewer
    Column("who", String(320), nullable=False),
    Index("portal_members_by_email", "namespace", "email"),
)

# Operators who may sign in to the portal; the row recorded last counts.
portal_operators = Table(
    "portal_operators",
    metadata,
    Column("namespace", String(64), primary_key=True),
    Column("email", String(320), primary_key=True),  # lower case
    Column("changed_at", UtcTime, primary_key=True),
    Column("active", Integer, nullable=False),  # 1 | 0
    Column("who", String(320), nullable=False),
)

# Links that were mailed; each signs in once.
portal_links = Table(
    "portal_links",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("email", String(320), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("used_at", UtcTime),
    Index("portal_links_by_email", "namespace", "email"),
)

portal_sessions = Table(
    "portal_sessions",
    metadata,
    Column("session_sha256", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("email", String(320), nullable=False),
    Column("customer_id", String(256)),  # whom it looks at; null: not chosen yet
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
)

# Keys of a customer for the API of its own figures.
portal_keys = Table(
    "portal_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("name", String(128), nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("who", String(320), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Index("portal_keys_by_customer", "namespace", "customer_id"),
)

# Keys that a host application signs the addresses of its frames with.
portal_embed_keys = Table(
    "portal_embed_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256)),  # whom it can show; null: every customer of the namespace
    Column("name", String(128), nullable=False),
    Column("key", Text, nullable=False),  # of an HMAC: what verifies also signs
    Column("who", String(320), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
)

# What came of a signed address of a frame; each opens one session.
portal_embed_sessions = Table(
    "portal_embed_sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),  # of the key's id and the token's
    Column("session_sha256", String(64), nullable=False, unique=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("key_id", String(32), ForeignKey("portal_embed_keys.key_id"), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

# What customers ask about lines of their ratings, and what was answered; a question is answered once.
# What operators change about customers in the portal, and what waits there for another one.
operator_changes = Table(
    "operator_changes",
    metadata,
    Column("change_id", String(64), primary_key=True),  # hash of namespace, customer, what, form, when
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("what", String(16), nullable=False),  # add | edit | plan | cancel | withdraw | driver | key | revoke | ...
    Column("form", JSON, nullable=False),  # name -> text, as it was sent
    Column("who", String(320), nullable=False),
    Column("why", String(500), nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("outcome", String(500)),  # a sentence; null: it waits for another person
    Column("decided_by", String(320)),
    Column("decided_why", String(500)),
    Column("decided_at", UtcTime),
    Index("operator_changes_by_time", "namespace", "asked_at"),
)

line_questions = Table(
    "line_questions",
    metadata,
    Column("question_id", String(64), primary_key=True),  # hash of namespace, line, text
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("rating_id", String(64), nullable=False),
    Column("line_id", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),  # of the line when it was asked about
    Column("currency", String(3), nullable=False),
    Column("question", Text, nullable=False),
    Column("who", String(320), nullable=False),
    Column("asked_at", UtcTime, nullable=False),
    Column("outcome", String(8)),  # accepted | rejected
    Column("answer", Text),
    Column("answered_by", String(128)),
    Column("answered_at", UtcTime),
    Index("line_questions_by_customer", "namespace", "customer_id"),
)

# ---- audit log (meterhouse_store.audit) -----------------------------------------------------------------------------

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
)
ledger_rules.chained(audit_log, "namespace sequence changed_at what personal_sha256 previous_hash hash")
