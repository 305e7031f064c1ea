"""Who may look at the portal, and what was asked and changed there."""

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from meterhouse_store.tables.columns import MADE_AGAIN, UtcTime, metadata

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

# What customers ask about lines of their ratings, and what was answered; a question is answered once.
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

# Evidence packs that customers ask for in the portal: one of each closed period.
evidence_packs = Table(
    "evidence_packs",
    metadata,
    Column("rating_id", String(64), primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("period_start", UtcTime, nullable=False),
    Column("period_end", UtcTime, nullable=False),
    Column("state", String(8), nullable=False),  # asked | made | failed
    Column("asked_at", UtcTime, nullable=False),
    Column("tries", Integer, nullable=False),  # since it was asked for
    Column("tried_at", UtcTime),
    Column("problem", String(16)),  # of one that failed: differs | nothing | too_large | given_up
    Column("told", Text),  # why it is not made: for the operator
    Column("made_at", UtcTime),  # of the one that is there, also while it is made anew
    Column("manifest_sha256", String(64)),  # names the pack
    Column("bytes", BigInteger),
    Index("evidence_packs_by_state", "namespace", "state", "asked_at"),
    Index("evidence_packs_by_customer", "namespace", "customer_id"),
    info=MADE_AGAIN,
)

# The packs themselves, by what names them: a download of one goes on while it is made anew.
evidence_blocks = Table(
    "evidence_blocks",
    metadata,
    Column("rating_id", String(64), primary_key=True),
    Column("manifest_sha256", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("namespace", String(64), nullable=False),
    Column("customer_id", String(256), nullable=False),
    Column("block", LargeBinary, nullable=False),
    Index("evidence_blocks_by_customer", "namespace", "customer_id"),
    info=MADE_AGAIN,
)
