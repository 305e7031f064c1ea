-- How each collector does, minute by minute, as it writes it itself: for the dashboards, which read nothing but ClickHouse.
-- Nothing of a request is here. The minute under way is written several times, the last stands. Minutes of before 100 days
-- are removed.

CREATE TABLE IF NOT EXISTS {database}.collector_minutes
(
    collector_id LowCardinality(String),
    minute DateTime('UTC'),                -- in which the row begins; it ends where the next one of this run begins
    process_run_id String,
    accepted UInt64,                       -- requests acknowledged, on disk
    refused UInt64,                        -- for good: the sender has to change something
    failed UInt64,                         -- to be sent again: overload, disk, time
    bounds_s Array(Float64),               -- of the two histograms, each including its bound; the last is infinite
    acknowledged Array(UInt64),            -- requests by the time from their head to their acknowledgement
    synced Array(UInt64),                  -- fdatasync of the journal, by how long it took
    waiting_bytes UInt64,                  -- for the disk, the most that was seen; looked at each second
    lag_s Float64,                         -- age of what was not in the warehouse yet, the most that was seen
    edition UInt32                         -- of the row: the last says most
)
ENGINE = ReplacingMergeTree(edition)
ORDER BY (collector_id, minute, process_run_id)
TTL minute + INTERVAL 100 DAY;

-- A minute is one row, however often the collector was started in it.
CREATE OR REPLACE VIEW {database}.collector_health AS
SELECT
    collector_id, minute, sum(collector_minutes.accepted) AS accepted, sum(collector_minutes.refused) AS refused,
    sum(collector_minutes.failed) AS failed, max(collector_minutes.waiting_bytes) AS waiting_bytes,
    max(collector_minutes.lag_s) AS lag_s
FROM {database}.collector_minutes FINAL
GROUP BY collector_id, minute;

CREATE OR REPLACE VIEW {database}.collector_durations AS
SELECT collector_id, minute, what, at_most_s, times
FROM (
    SELECT collector_id, minute, 'acknowledged' AS what, bounds_s, acknowledged AS counts
    FROM {database}.collector_minutes FINAL
    UNION ALL
    SELECT collector_id, minute, 'synced', bounds_s, synced FROM {database}.collector_minutes FINAL
)
ARRAY JOIN bounds_s AS at_most_s, counts AS times
WHERE times > 0;

-- The service level objectives: what of it was good and what bad, and the share that may be bad (docs/operations.md).
CREATE OR REPLACE VIEW {database}.slo_counts AS
SELECT 'requests are not turned away for want of room or time' AS slo, minute AS at, accepted AS good, failed AS bad, 0.001 AS allowed
FROM {database}.collector_health
UNION ALL
SELECT 'acknowledged within 50 ms', minute, sumIf(times, at_most_s <= 0.05), sumIf(times, at_most_s > 0.05), 0.01
FROM {database}.collector_durations
WHERE what = 'acknowledged'
GROUP BY minute
UNION ALL
SELECT 'minutes less than a minute behind', minute, toUInt64(lag_s <= 60), toUInt64(lag_s > 60), 0.01
FROM {database}.collector_health;

-- A burn rate of 1 uses up in 30 days just what may be bad in 30 days. Minutes of a clock that was far ahead do not count:
-- they would be of the last five minutes until their time has passed.
CREATE OR REPLACE VIEW {database}.slos AS
SELECT
    slo, 1 - any(allowed) AS objective, any(allowed) AS may_be_bad,
    if(sum(good + bad) = 0, 1, sum(good) / sum(good + bad)) AS met, 1 - (1 - met) / may_be_bad AS budget_left,
    sumIf(bad, at >= now() - INTERVAL 5 MINUTE) / greatest(sumIf(good + bad, at >= now() - INTERVAL 5 MINUTE), 1) / may_be_bad AS burn_5m,
    sumIf(bad, at >= now() - INTERVAL 30 MINUTE) / greatest(sumIf(good + bad, at >= now() - INTERVAL 30 MINUTE), 1) / may_be_bad AS burn_30m,
    sumIf(bad, at >= now() - INTERVAL 1 HOUR) / greatest(sumIf(good + bad, at >= now() - INTERVAL 1 HOUR), 1) / may_be_bad AS burn_1h,
    sumIf(bad, at >= now() - INTERVAL 6 HOUR) / greatest(sumIf(good + bad, at >= now() - INTERVAL 6 HOUR), 1) / may_be_bad AS burn_6h,
    sumIf(bad, at >= now() - INTERVAL 1 HOUR) AS bad_1h, sumIf(bad, at >= now() - INTERVAL 6 HOUR) AS bad_6h
FROM {database}.slo_counts
WHERE at BETWEEN now() - INTERVAL 30 DAY AND now() + INTERVAL 5 MINUTE
GROUP BY slo;
