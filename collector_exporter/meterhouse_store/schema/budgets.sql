-- How budgets stand, who is paused, and which notices wait: copies of what a round of budgets found (standing.py). A row
-- that holds no longer is written once more with is_there = 0, and the views leave it out.
CREATE TABLE IF NOT EXISTS {database}.mirror_budgets
(
    namespace LowCardinality(String), customer_id String, budget String, agent_id String,
    measure LowCardinality(String), unit LowCardinality(String), per LowCardinality(String), is_hard Bool,
    cap Decimal(38, 9), used Decimal(38, 9), reserved Decimal(38, 9), state LowCardinality(String), trouble String,
    period_start DateTime64(6, 'UTC'), period_end DateTime64(6, 'UTC'),
    is_there Bool, looked_at DateTime64(6, 'UTC'), version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, customer_id, budget);

CREATE TABLE IF NOT EXISTS {database}.mirror_pauses
(
    namespace LowCardinality(String), customer_id String, agent_id String, reason LowCardinality(String),
    since DateTime64(6, 'UTC'), who String, why String,
    is_there Bool, looked_at DateTime64(6, 'UTC'), version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, customer_id, agent_id, reason);

CREATE TABLE IF NOT EXISTS {database}.mirror_notices_due
(
    namespace LowCardinality(String), customer_id String, kind LowCardinality(String), channel LowCardinality(String),
    state LowCardinality(String), deliveries UInt64, oldest_at DateTime64(6, 'UTC'),
    next_attempt_at DateTime64(6, 'UTC'),
    is_there Bool, looked_at DateTime64(6, 'UTC'), version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (namespace, customer_id, kind, channel, state);

-- Amounts are in `unit`: a currency, or a meter. Those of different units are never added.
CREATE OR REPLACE VIEW {database}.budgets AS
SELECT
    * EXCEPT (is_there, version), greatest(cap - used - reserved, 0) AS left,
    if(cap <= 0, if(used > 0, 1, 0), toFloat64(used) / toFloat64(cap)) AS share
FROM {database}.mirror_budgets FINAL
WHERE is_there;

CREATE OR REPLACE VIEW {database}.pauses AS
SELECT * EXCEPT (is_there, version) FROM {database}.mirror_pauses FINAL WHERE is_there;

CREATE OR REPLACE VIEW {database}.notices_due AS
SELECT * EXCEPT (is_there, version) FROM {database}.mirror_notices_due FINAL WHERE is_there;
