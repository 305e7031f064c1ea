-- What other sources than Meterhouse's own leave beside `events`: running totals, and the links of their traces.

-- Points of cumulative sums and histograms. A sequence is (namespace, series, part, start_time).
CREATE TABLE IF NOT EXISTS {database}.cumulative_points
(
    namespace LowCardinality(String),
    series String,
    -- One point may count under several meters: 0, 1, ...
    part UInt8,
    start_time DateTime64(9, 'UTC'),
    event_time DateTime64(9, 'UTC'),
    -- The running total, and how many of the meter each of its units is.
    value Decimal(38, 9),
    factor Decimal(38, 9),
    -- The sequence began with nought while the credential was valid: its first point counts in full.
    from_zero Bool,
    customer_id String,
    meter LowCardinality(String),
    event_id String,
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
    conversation_id String,
    response_id String,
    trace_id String,
    span_id String,
    usage_source LowCardinality(String),
    source LowCardinality(String),
    attributes Map(String, String),
    credential_id LowCardinality(String),
    process_id String,
    service_name LowCardinality(String),
    received_at DateTime64(9, 'UTC'),
    segment LowCardinality(String),
    record_id String,
    first UInt64
)
ENGINE = ReplacingMergeTree(first)
ORDER BY (namespace, series, part, start_time, event_time, value)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Increases of which a decision has made a version in `events`: that one is shown in their place.
CREATE TABLE IF NOT EXISTS {database}.decided_increases
(
    namespace LowCardinality(String),
    customer_id String,
    meter LowCardinality(String),
    event_time DateTime64(9, 'UTC'),
    event_id String
)
ENGINE = ReplacingMergeTree
ORDER BY (namespace, customer_id, meter, event_time, event_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Control totals of points, as for `events` (01_events.sql).
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.count_points TO {database}.segment_totals AS
SELECT
    any(namespace_) AS namespace, any(credential) AS credential_id, any(segment_) AS segment, record_id,
    concat('running total: ', source_) AS source, toStartOfHour(toDateTime(min(received), 'UTC')) AS hour,
    groupArray(reason) AS reasons, groupArray(rows_of_reason) AS rows, groupArray(value_of_reason) AS quantities
FROM (
    SELECT
        record_id, source AS source_, reason, any(namespace) AS namespace_, any(credential_id) AS credential,
        any(segment) AS segment_, any(received_at) AS received, count() AS rows_of_reason, sum(value) AS value_of_reason
    FROM {database}.cumulative_points
    GROUP BY record_id, source, reason
)
GROUP BY record_id, source_;

-- Spans, all of a trace: which of them is the call itself follows from the others (meterhouse_collector/foreign/twins.py).
CREATE TABLE IF NOT EXISTS {database}.spans
(
    namespace LowCardinality(String),
    trace_id String,
    span_id String,
    parent_id String,
    event_time DateTime64(9, 'UTC'),
    customer_id String,
    is_call Bool,
    has_usage Bool,
    provider LowCardinality(String),
    response_id String,
    start_time DateTime64(9, 'UTC'),
    end_time DateTime64(9, 'UTC'),
    may_report UInt8,
    received_at DateTime64(9, 'UTC'),
    INDEX by_received_at received_at TYPE minmax GRANULARITY 1,
    INDEX by_response_id response_id TYPE bloom_filter GRANULARITY 1
)
ENGINE = ReplacingMergeTree(may_report)
ORDER BY (namespace, trace_id, span_id, parent_id, event_time, customer_id, is_call, has_usage, response_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
