-- What finance reads of the SQL database. Rows may be written any number of times; the views show each once.
CREATE TABLE IF NOT EXISTS {database}.mirror_ratings
(
    namespace LowCardinality(String), customer_id String, rating_id String, period_start DateTime64(6, 'UTC'),
    period_end DateTime64(6, 'UTC'), state LowCardinality(String), plan LowCardinality(String), book_version UInt32,
    currency LowCardinality(String), total_minor Int64, as_of DateTime64(6, 'UTC'), rated_at DateTime64(6, 'UTC'),
    closed_at Nullable(DateTime64(6, 'UTC')), result_sha256 String, version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, customer_id, rating_id);

-- Lines carry the hash of the result they belong to: those of an earlier run of an open rating drop out of the view.
CREATE TABLE IF NOT EXISTS {database}.mirror_rated_lines
(
    namespace LowCardinality(String), customer_id String, rating_id String, result_sha256 String, line_id String,
    position UInt32, kind LowCardinality(String), component LowCardinality(String), metric LowCardinality(String),
    description String, quantity Decimal(38, 9), unit LowCardinality(String), dimensions String,
    amount_exact Decimal(76, 18), amount_minor Int64, currency LowCardinality(String), explanation String
)
ENGINE = ReplacingMergeTree ORDER BY (namespace, customer_id, rating_id, result_sha256, line_id);

CREATE TABLE IF NOT EXISTS {database}.mirror_ledger_entries
(
    namespace LowCardinality(String), customer_id String, transaction_id String, position UInt32,
    kind LowCardinality(String), source_id String, account LowCardinality(String), amount_minor Int64,
    currency LowCardinality(String), effective_at DateTime64(6, 'UTC'), recorded_at DateTime64(6, 'UTC'),
    corrects String, memo String
)
ENGINE = ReplacingMergeTree ORDER BY (namespace, customer_id, transaction_id, position);

CREATE TABLE IF NOT EXISTS {database}.mirror_invoices
(
    namespace LowCardinality(String), customer_id String, invoice_id String, rating_id String,
    period_start DateTime64(6, 'UTC'), period_end DateTime64(6, 'UTC'), state LowCardinality(String),
    currency LowCardinality(String), total_minor Int64, stripe_invoice_id String,
    stripe_total_minor Nullable(Int64), number String, hosted_url String, created_at DateTime64(6, 'UTC'),
    finalised_at Nullable(DateTime64(6, 'UTC')), paid_at Nullable(DateTime64(6, 'UTC')), version UInt64,
    tax_added_minor Int64, tax_contained_minor Int64, credited_minor Int64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, customer_id, invoice_id);

ALTER TABLE {database}.mirror_invoices
    ADD COLUMN IF NOT EXISTS tax_added_minor Int64, ADD COLUMN IF NOT EXISTS tax_contained_minor Int64,
    ADD COLUMN IF NOT EXISTS credited_minor Int64;

CREATE TABLE IF NOT EXISTS {database}.mirror_payments
(
    namespace LowCardinality(String), customer_id String, payment_id String, invoice_id String, amount_minor Int64,
    currency LowCardinality(String), paid_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree ORDER BY (namespace, customer_id, payment_id);

-- `version` is odd when the row in `events` has the version that the decision makes of it, even while that is to be done.
CREATE TABLE IF NOT EXISTS {database}.mirror_decisions
(
    namespace LowCardinality(String), decision_id String, kind LowCardinality(String), row_id String,
    customer_id String, meter LowCardinality(String), event_time DateTime64(9, 'UTC'), event_id String,
    quantity Decimal(38, 9), reason LowCardinality(String), billed_customer_id String,
    original_reason LowCardinality(String), follows String, why String, who LowCardinality(String),
    decided_at DateTime64(6, 'UTC'), version UInt8
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, decided_at, decision_id);

CREATE OR REPLACE VIEW {database}.rated_lines AS
SELECT
    line_row.namespace AS namespace, line_row.customer_id AS customer_id, line_row.rating_id AS rating_id,
    rating_row.period_start AS period_start, rating_row.period_end AS period_end, rating_row.state AS state,
    rating_row.plan AS plan, rating_row.book_version AS book_version, rating_row.rated_at AS rated_at,
    line_row.line_id AS line_id, line_row.position AS position, line_row.kind AS kind,
    line_row.component AS component, line_row.metric AS metric, line_row.description AS description,
    line_row.quantity AS quantity, line_row.unit AS unit, line_row.dimensions AS dimensions,
    line_row.amount_exact AS amount_exact, line_row.amount_minor AS amount_minor, line_row.currency AS currency,
    line_row.explanation AS explanation
FROM {database}.mirror_rated_lines AS line_row FINAL
INNER JOIN {database}.mirror_ratings AS rating_row FINAL
    ON line_row.namespace = rating_row.namespace AND line_row.customer_id = rating_row.customer_id
    AND line_row.rating_id = rating_row.rating_id AND line_row.result_sha256 = rating_row.result_sha256;

CREATE OR REPLACE VIEW {database}.ledger_entries AS
SELECT * FROM {database}.mirror_ledger_entries FINAL;

CREATE OR REPLACE VIEW {database}.invoices AS
SELECT * EXCEPT (version) FROM {database}.mirror_invoices FINAL;

CREATE OR REPLACE VIEW {database}.payments AS
SELECT * FROM {database}.mirror_payments FINAL;

CREATE OR REPLACE VIEW {database}.decisions AS
SELECT * EXCEPT (version), version % 2 = 1 AS applied FROM {database}.mirror_decisions FINAL;

-- Customers of whom the other branches of `usage` may have something, or the first may have to leave something out.
CREATE OR REPLACE VIEW {database}.usage_apart AS
SELECT namespace, customer_id FROM {database}.conflicts
UNION ALL
SELECT namespace, customer_id FROM {database}.counted_increases
UNION ALL
SELECT namespace, customer_id FROM {database}.events WHERE event_time = toDateTime64(0, 9, 'UTC')
UNION ALL
-- What a decision bills to somebody else than was claimed. It is mirrored before its row has it, and stays when it is undone.
SELECT namespace, billed_customer_id AS customer_id FROM {database}.mirror_decisions WHERE billed_customer_id != '';
