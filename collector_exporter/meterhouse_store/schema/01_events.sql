-- Usage events, one row per event, and what the projector keeps beside them (docs/contracts.md section 3).

CREATE TABLE IF NOT EXISTS {database}.events
(
    namespace LowCardinality(String),
    customer_id String,
    meter LowCardinality(String),
    event_id String,
    event_time DateTime64(9, 'UTC'),
    -- Of an event whose identity has no time: when it was told to have happened. Its event_time is 1970, for it is part
    -- of the key; the views show this one instead.
    once_time DateTime64(9, 'UTC'),
    quantity Decimal(38, 9),
    raw_value String,
    reason LowCardinality(String),
    status LowCardinality(String),
    agent_id LowCardinality(String),
    agent_name LowCardinality(String),
    provider LowCardinality(String),
    model LowCardinality(String),
    operation LowCardinality(String),
    tool LowCardinality(String),
    modality LowCardinality(String),
    cache_ttl LowCardinality(String),
    service_tier LowCardinality(String),
    call_id String,
    task_id String,
    conversation_id String,
    step String,
    response_id String,
    request_id String,
    trace_id String,
    span_id String,
    lease_id String,
    usage_source LowCardinality(String),
    source LowCardinality(String),
    attributes Map(String, String),
    credential_id LowCardinality(String),
    process_id String,
    service_name LowCardinality(String),
    received_at DateTime64(9, 'UTC'),
    segment LowCardinality(String),
    record_id String,
    -- The largest survives: the earliest copy, and never a suspended copy before one that counts.
    first UInt64,
    INDEX by_received_at received_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(first)
PARTITION BY toYYYYMM(event_time)
ORDER BY (namespace, customer_id, meter, event_time, event_id, quantity)
-- The default keeps written parts in the page cache: after a power cut acknowledged inserts would be gone. Below 128 MB
-- a part is one file of all columns: to fsync a few files instead of several per column halves the time to write it.
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

-- For a table that was made before the column was.
ALTER TABLE {database}.events ADD COLUMN IF NOT EXISTS once_time DateTime64(9, 'UTC') AFTER event_time;

-- Identities with more than one quantity. The quantity of the earliest received copy stands, the others are losers.
CREATE TABLE IF NOT EXISTS {database}.conflicts
(
    namespace LowCardinality(String),
    customer_id String,
    meter LowCardinality(String),
    event_time DateTime64(9, 'UTC'),
    event_id String,
    standing_quantity Decimal(38, 9),
    first UInt64
)
ENGINE = ReplacingMergeTree(first)
ORDER BY (namespace, customer_id, meter, event_time, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- How far each collector's journal is in `events`. `step` grows with every write of one collector.
CREATE TABLE IF NOT EXISTS {database}.checkpoints
(
    collector_id String,
    segment String,
    position UInt64,
    projected_through DateTime64(9, 'UTC'),
    step UInt64
)
ENGINE = ReplacingMergeTree(step)
ORDER BY collector_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
