-- What running totals add: each point's increase over all before it in its sequence, which is (namespace, series, part,
-- start_time). Worked out where points are projected (meterhouse_collector/foreign/increases.py, counting.py), so that a
-- query finds a customer's increases by the key, as it finds events.

-- The columns of `events`, and two more. A point that comes late makes its successors' increases others: their rows are
-- stored again with a larger `version`, which grows with every point that is known up to the row's time and is a function
-- of those points alone. Not `is_row`: no increase (the baseline, an unchanged total), or a row that has another name now.
CREATE TABLE IF NOT EXISTS {database}.counted_increases
(
    namespace LowCardinality(String),
    customer_id String,
    meter LowCardinality(String),
    event_id String,
    event_time DateTime64(9, 'UTC'),
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
    first UInt64,
    billed_customer_id String,
    decision_id String,
    decided_at DateTime64(6, 'UTC'),
    original_reason LowCardinality(String),
    is_row Bool,
    version UInt128,
    INDEX by_received_at received_at TYPE minmax GRANULARITY 1,
    INDEX by_known_at greatest(received_at, toDateTime64(decided_at, 9, 'UTC')) TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(event_time)
ORDER BY (namespace, customer_id, meter, event_time, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_bytes_for_wide_part = 134217728;

-- How many points were ever inserted of a sequence, copies included, and of which customers and meters: by the mapping
-- file of the day the same sequence may count for another one.
CREATE TABLE IF NOT EXISTS {database}.sequence_counts
(
    namespace LowCardinality(String),
    series String,
    part UInt8,
    start_time DateTime64(9, 'UTC'),
    customer_id String,
    meter LowCardinality(String),
    points UInt64
)
ENGINE = SummingMergeTree(points)
ORDER BY (namespace, series, part, start_time, customer_id, meter)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.count_sequences TO {database}.sequence_counts AS
SELECT namespace, series, part, start_time, customer_id, meter, count() AS points
FROM {database}.cumulative_points
GROUP BY namespace, series, part, start_time, customer_id, meter;

-- Where a sequence stood when `points` of it had been inserted: all that its next increase needs. With another number now
-- it says nothing, and the sequence is counted from its beginning.
CREATE TABLE IF NOT EXISTS {database}.sequence_ends
(
    namespace LowCardinality(String),
    series String,
    part UInt8,
    start_time DateTime64(9, 'UTC'),
    event_time DateTime64(9, 'UTC'),
    highest Decimal(38, 9),
    last Decimal(38, 9),
    version UInt128,
    points UInt64
)
ENGINE = ReplacingMergeTree(points)
ORDER BY (namespace, series, part, start_time)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Only for a database of before version 3: every sequence has been counted from its beginning once.
INSERT INTO {database}.sequence_counts (namespace, series, part, start_time, customer_id, meter, points)
SELECT namespace, series, part, start_time, customer_id, meter, count()
FROM {database}.cumulative_points
GROUP BY namespace, series, part, start_time, customer_id, meter;

-- Only for a database of before version 3: until then this was a view. Version 0, for whatever is counted anew is right.
INSERT INTO {database}.counted_increases
WITH
    -- All windows have the same order, so that the points are sorted once.
    ranked AS (
        SELECT *, row_number() OVER before = 1 OR lagInFrame(event_time) OVER before != event_time AS stands
        FROM {database}.cumulative_points FINAL
        WINDOW before AS (
            PARTITION BY namespace, series, part, start_time ORDER BY event_time, first DESC, record_id, value
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ),
    compared AS (
        SELECT
            *,
            max(if(stands, value, NULL)) OVER before AS highest,
            -- Of a point that does not stand: the one that does.
            anyLast(if(stands, value, NULL)) OVER before AS previous
        FROM ranked
        WINDOW before AS (
            PARTITION BY namespace, series, part, start_time ORDER BY event_time, first DESC, record_id, value
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
    ),
    judged AS (
        SELECT
            * EXCEPT (quantity, reason),
            reason AS told,
            stands AND value < highest AS falls,
            multiIf(told != '', told, NOT stands, 'cumulative_conflict', falls, 'cumulative_fall', '') AS why,
            multiIf(
                NOT stands, value - previous,
                isNull(highest), if(from_zero, value, toDecimal128(0, 9)),
                falls, if(value < previous, value, value - previous),
                value - highest) AS increase
        FROM compared
    )
SELECT
    -- A total that does not stand is another row than the one that does: deciding about it says nothing of that.
    namespace, customer_id, meter, if(stands, event_id, concat(event_id, '-', toString(value))) AS event_id, event_time,
    toDateTime64(0, 9, 'UTC') AS once_time,
    toDecimal128(toDecimal256(ifNull(increase, 0), 9) * factor, 9) AS quantity,
    multiIf(
        why = 'cumulative_conflict', concat(toString(value), ' instead of ', toString(ifNull(previous, 0))),
        why = 'cumulative_fall', concat(toString(value), ' after ', toString(ifNull(highest, 0))),
        raw_value) AS raw_value,
    why AS reason, status, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, service_tier,
    '' AS call_id, '' AS task_id, conversation_id, '' AS step, response_id, '' AS request_id, trace_id, span_id,
    '' AS lease_id, usage_source, source, attributes, credential_id, process_id, service_name, received_at, segment,
    record_id, first, '' AS billed_customer_id, '' AS decision_id, toDateTime64(0, 6, 'UTC') AS decided_at,
    '' AS original_reason, increase != 0 OR why IN ('cumulative_conflict', 'cumulative_fall') AS is_row,
    toUInt128(0) AS version
FROM judged;

CREATE OR REPLACE VIEW {database}.increases AS
SELECT * EXCEPT (is_row, version) FROM {database}.counted_increases FINAL
WHERE is_row AND (namespace, customer_id, meter, event_time, event_id) NOT IN (
    SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.decided_increases)
SETTINGS do_not_merge_across_partitions_select_final = 1;

DROP VIEW IF EXISTS {database}.all_increases;
DROP VIEW IF EXISTS {database}.point_increases;
