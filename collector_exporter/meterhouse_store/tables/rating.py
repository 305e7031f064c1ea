"""Price books, ratings and their lines, the ledger, credits, corrections."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from meterhouse_store import ledger_rules
from meterhouse_store.tables.columns import Exact, UtcTime, metadata

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
    # too_many_groups | negative_quantity | amount_too_large, or by choice: unbilled_meter | unbilled_status |
    # unbilled_task | unbilled_trial
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
