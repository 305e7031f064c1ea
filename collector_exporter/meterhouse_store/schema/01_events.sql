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
    -- The largest survives: the earliest copy, and never a suspended copy before one that counts. Versions from
    -- 2^64 - 2^60 - 1 on supersede every copy: the first four are verdicts about spans (meterhouse_collector/foreign),
    -- above are decisions, by 256 times decided_at in us. From 2^63 - 2^59 to 2^63 are verdicts about suspended copies.
    first UInt64,
    -- Whom the row is billed to by a decision; '': the customer as claimed.
    billed_customer_id String,
    -- The decision (SQL table `decisions`) that this version of the row was made by, when, and the reason before it.
    decision_id String,
    decided_at DateTime64(6, 'UTC'),
    original_reason LowCardinality(String),
    INDEX by_received_at received_at TYPE minmax GRANULARITY 1,
    INDEX by_known_at greatest(received_at, toDateTime64(decided_at, 9, 'UTC')) TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(first)
PARTITION BY toYYYYMM(event_time)
ORDER BY (namespace, customer_id, meter, event_time, event_id, quantity)
-- The default keeps written parts in the page cache: after a power cut acknowledged inserts would be gone. What is inserted
-- is one file of all columns: to fsync a few files instead of several per column halves the time to write it. What is
-- merged has a file per column, because only such parts are merged column by column, at half the cost.
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 10485760, min_level_for_wide_part = 1;

-- For a table that was made before the columns were.
ALTER TABLE {database}.events
    ADD COLUMN IF NOT EXISTS once_time DateTime64(9, 'UTC') AFTER event_time,
    ADD COLUMN IF NOT EXISTS billed_customer_id String,
    ADD COLUMN IF NOT EXISTS decision_id String,
    ADD COLUMN IF NOT EXISTS decided_at DateTime64(6, 'UTC'),
    ADD COLUMN IF NOT EXISTS original_reason LowCardinality(String);
-- A statement of its own: on a cluster only the tables that store rows have indices.
ALTER TABLE {database}.events
    ADD INDEX IF NOT EXISTS by_known_at greatest(received_at, toDateTime64(decided_at, 9, 'UTC')) TYPE minmax GRANULARITY 1;
-- A month of which nothing has come for six hours is merged into one part. FINAL has nothing to do there any more: reading
-- it takes half as long or less. Late events make one more part, which waits another six hours.
ALTER TABLE {database}.events
    MODIFY SETTING min_age_to_force_merge_seconds = 21600, min_age_to_force_merge_on_partition_only = 1;
-- Also for a table that was made before it was so. Statistics of columns help no query here, and cost at each merge.
ALTER TABLE {database}.events
    MODIFY SETTING min_bytes_for_wide_part = 10485760, min_level_for_wide_part = 1, auto_statistics_types = '';

-- Under which claimed customers there are rows that a decision bills to another one: what `usage` looks through for them.
CREATE TABLE IF NOT EXISTS {database}.assigned_claims
(
    namespace LowCardinality(String),
    customer_id String
)
ENGINE = ReplacingMergeTree
ORDER BY (namespace, customer_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Control totals: how many rows each record of the journal became, and their quantity, by reason. `events` keeps one copy
-- of each event and cannot say how many came. A replay replaces a record's totals: all rows of a record that come from one
-- decoder (`source`) are in one block of one insert (inbox.py). Superseding versions were not received and do not count.
CREATE TABLE IF NOT EXISTS {database}.segment_totals
(
    namespace LowCardinality(String),
    credential_id LowCardinality(String),
    segment LowCardinality(String),
    record_id String,
    source LowCardinality(String),
    hour DateTime('UTC'),
    reasons Array(LowCardinality(String)),
    rows Array(UInt64),
    quantities Array(Decimal(38, 9))
)
ENGINE = ReplacingMergeTree
ORDER BY (namespace, credential_id, segment, record_id, source)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.count_received TO {database}.segment_totals AS
SELECT
    any(namespace_) AS namespace, any(credential) AS credential_id, any(segment_) AS segment, record_id, source,
    toStartOfHour(toDateTime(min(received), 'UTC')) AS hour,
    groupArray(reason) AS reasons, groupArray(rows_of_reason) AS rows, groupArray(quantity_of_reason) AS quantities
FROM (
    -- All of a record have these in common; to group by them as well would cost more than all the rest here.
    SELECT
        record_id, source, reason, any(namespace) AS namespace_, any(credential_id) AS credential,
        any(segment) AS segment_, any(received_at) AS received,
        count() AS rows_of_reason, sum(quantity) AS quantity_of_reason
    FROM {database}.events
    WHERE first < 8646911284551352320 OR first BETWEEN 9223372036854775808 AND 17293822569102704638
    GROUP BY record_id, source, reason
)
GROUP BY record_id, source;

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

-- Every identity with each quantity that came for it, in the order of time: where a range is checked for conflicts, copies
-- of its events are found here, beside whatever happened at their moments, and not among all that `events` has of their
-- customers. Small granules, because an import may bring millions of events of one moment: an id among them costs one
-- granule. `identity` is a hash that only has to tell nearly all apart; whoever finds two quantities looks at `events`.
CREATE TABLE IF NOT EXISTS {database}.identities
(
    event_time DateTime64(9, 'UTC') CODEC(Delta, LZ4),
    identity UInt64 CODEC(NONE),
    quantity Decimal(38, 9)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(event_time)
ORDER BY (event_time, identity)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, index_granularity = 512, auto_statistics_types = '';

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.identify TO {database}.identities AS
SELECT event_time, cityHash64(namespace, customer_id, meter, event_id) AS identity, quantity
FROM {database}.events;

-- Only for a database of before version 6: what is there was not identified.
INSERT INTO {database}.identities
SELECT event_time, cityHash64(namespace, customer_id, meter, event_id) AS identity, quantity
FROM {database}.events
SETTINGS max_partitions_per_insert_block = 0;

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
