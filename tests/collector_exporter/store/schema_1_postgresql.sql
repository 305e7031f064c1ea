-- The SQL schema of version 1, as the first release made it on PostgreSQL. A test migrates it to today's; never change it.

CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE allowances (
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    agent_id VARCHAR(256) NOT NULL,
    decision VARCHAR(8) NOT NULL,
    units NUMERIC,
    weights JSON NOT NULL,
    pause_at VARCHAR(8) NOT NULL,
    on_unreachable VARCHAR(8) NOT NULL,
    reason VARCHAR(64),
    computed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (namespace, customer_id, agent_id)
);
CREATE TABLE contracts (
    contract_id VARCHAR(64) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    plan VARCHAR(64) NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (contract_id),
    UNIQUE (namespace, customer_id, valid_from)
);
CREATE TABLE credentials (
    credential_id VARCHAR(32) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    name VARCHAR(128) NOT NULL,
    key_sha256 VARCHAR(64) NOT NULL,
    customers JSON,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (credential_id),
    UNIQUE (key_sha256)
);
CREATE TABLE customers (
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    name VARCHAR(256) NOT NULL,
    currency VARCHAR(3) NOT NULL,
    time_zone VARCHAR(64) NOT NULL,
    email VARCHAR(320),
    stripe_customer_id VARCHAR(64),
    origin VARCHAR(16) NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (namespace, customer_id)
);
CREATE TABLE ledger_transactions (
    transaction_id VARCHAR(64) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    kind VARCHAR(32) NOT NULL,
    source_id VARCHAR(128) NOT NULL,
    effective_at TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    corrects VARCHAR(64),
    memo VARCHAR(256) NOT NULL,
    PRIMARY KEY (transaction_id)
);
CREATE INDEX ledger_by_customer ON ledger_transactions (namespace, customer_id, effective_at);
CREATE TABLE namespaces (
    namespace VARCHAR(64) NOT NULL,
    kind VARCHAR(8) NOT NULL,
    default_plan VARCHAR(64),
    default_currency VARCHAR(3) NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (namespace)
);
CREATE TABLE outbox (
    idempotency_key VARCHAR(128) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    operation VARCHAR(64) NOT NULL,
    subject_id VARCHAR(64) NOT NULL,
    request JSON NOT NULL,
    state VARCHAR(8) NOT NULL,
    attempts INTEGER NOT NULL,
    response JSON,
    last_error TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    done_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (idempotency_key)
);
CREATE INDEX ix_outbox_subject_id ON outbox (subject_id);
CREATE TABLE price_books (
    namespace VARCHAR(64) NOT NULL,
    version INTEGER NOT NULL,
    sha256 VARCHAR(64) NOT NULL,
    source TEXT NOT NULL,
    author VARCHAR(128) NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (namespace, version),
    UNIQUE (namespace, sha256, valid_from)
);
CREATE TABLE ratings (
    rating_id VARCHAR(64) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    state VARCHAR(8) NOT NULL,
    currency VARCHAR(3) NOT NULL,
    plan VARCHAR(64) NOT NULL,
    book_version INTEGER NOT NULL,
    watermark JSON NOT NULL,
    as_of TIMESTAMP WITH TIME ZONE NOT NULL,
    inputs_sha256 VARCHAR(64) NOT NULL,
    result_sha256 VARCHAR(64) NOT NULL,
    total_minor BIGINT NOT NULL,
    rated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (rating_id),
    UNIQUE (namespace, customer_id, period_start)
);
CREATE TABLE unrated_usage (
    unrated_id VARCHAR(64) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    meter VARCHAR(128) NOT NULL,
    dimensions JSON NOT NULL,
    events BIGINT NOT NULL,
    quantity NUMERIC NOT NULL,
    reason VARCHAR(32) NOT NULL,
    hint TEXT NOT NULL,
    PRIMARY KEY (unrated_id)
);
CREATE TABLE webhook_inbox (
    event_id VARCHAR(128) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    type VARCHAR(128) NOT NULL,
    object_id VARCHAR(128) NOT NULL,
    payload TEXT NOT NULL,
    stripe_created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    processed_at TIMESTAMP WITH TIME ZONE,
    outcome VARCHAR(256),
    PRIMARY KEY (event_id)
);
CREATE TABLE grant_keys (
    credential_id VARCHAR(32) NOT NULL,
    key_id VARCHAR(16) NOT NULL,
    key TEXT NOT NULL,
    valid_from TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (credential_id, key_id),
    FOREIGN KEY(credential_id) REFERENCES credentials (credential_id)
);
CREATE TABLE invoices (
    invoice_id VARCHAR(64) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    rating_id VARCHAR(64) NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    state VARCHAR(16) NOT NULL,
    currency VARCHAR(3) NOT NULL,
    total_minor BIGINT NOT NULL,
    stripe_invoice_id VARCHAR(64),
    stripe_total_minor BIGINT,
    number VARCHAR(64),
    hosted_url TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finalised_at TIMESTAMP WITH TIME ZONE,
    paid_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (invoice_id),
    UNIQUE (rating_id),
    FOREIGN KEY(rating_id) REFERENCES ratings (rating_id),
    UNIQUE (stripe_invoice_id)
);
CREATE TABLE ledger_entries (
    transaction_id VARCHAR(64) NOT NULL,
    position INTEGER NOT NULL,
    account VARCHAR(64) NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency VARCHAR(3) NOT NULL,
    PRIMARY KEY (transaction_id, position),
    FOREIGN KEY(transaction_id) REFERENCES ledger_transactions (transaction_id)
);
CREATE TABLE rated_lines (
    line_id VARCHAR(64) NOT NULL,
    rating_id VARCHAR(64) NOT NULL,
    position INTEGER NOT NULL,
    kind VARCHAR(16) NOT NULL,
    component VARCHAR(64) NOT NULL,
    metric VARCHAR(64),
    description VARCHAR(256) NOT NULL,
    quantity NUMERIC NOT NULL,
    unit VARCHAR(32) NOT NULL,
    dimensions JSON NOT NULL,
    amount_exact NUMERIC NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency VARCHAR(3) NOT NULL,
    explanation JSON NOT NULL,
    PRIMARY KEY (line_id),
    FOREIGN KEY(rating_id) REFERENCES ratings (rating_id)
);
CREATE INDEX ix_rated_lines_rating_id ON rated_lines (rating_id);
CREATE TABLE invoice_lines (
    invoice_id VARCHAR(64) NOT NULL,
    position INTEGER NOT NULL,
    line_id VARCHAR(64) NOT NULL,
    description VARCHAR(500) NOT NULL,
    quantity NUMERIC NOT NULL,
    amount_minor BIGINT NOT NULL,
    stripe_item_id VARCHAR(64),
    PRIMARY KEY (invoice_id, position),
    FOREIGN KEY(invoice_id) REFERENCES invoices (invoice_id),
    UNIQUE (line_id),
    FOREIGN KEY(line_id) REFERENCES rated_lines (line_id)
);
CREATE TABLE invoice_transitions (
    transition_id VARCHAR(64) NOT NULL,
    invoice_id VARCHAR(64) NOT NULL,
    from_state VARCHAR(16) NOT NULL,
    to_state VARCHAR(16) NOT NULL,
    who VARCHAR(128) NOT NULL,
    why VARCHAR(500) NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (transition_id),
    FOREIGN KEY(invoice_id) REFERENCES invoices (invoice_id)
);
CREATE TABLE payments (
    payment_id VARCHAR(128) NOT NULL,
    namespace VARCHAR(64) NOT NULL,
    invoice_id VARCHAR(64) NOT NULL,
    customer_id VARCHAR(256) NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency VARCHAR(3) NOT NULL,
    paid_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (payment_id),
    FOREIGN KEY(invoice_id) REFERENCES invoices (invoice_id)
);
INSERT INTO schema_version VALUES (1);
