-- received = counted + suspended + set aside + duplicates, per credential and hour of receipt, in rows; and the requests that
-- were refused at the door. What came is counted
-- where it is inserted, the rest is what is stored: a negative number of duplicates means that one of the two is wrong. A
-- point of a running total counts as one row, whatever increase follows from it and whatever was decided about that.

-- The rows that stand for decided increases are found as the view `usage` finds conflicts (03_views.sql).
CREATE OR REPLACE VIEW {database}.conservation AS
WITH (SELECT groupUniqArray(event_time) FROM {database}.decided_increases) AS decided_times
SELECT
    namespace, credential_id, hour, sum(n_received) AS received, sum(n_counted) AS counted, sum(n_suspended) AS suspended,
    sum(n_set_aside) AS set_aside, received - counted - suspended - set_aside AS duplicates,
    sum(n_refused) AS refused_requests
FROM (
    SELECT
        namespace, credential_id, hour, toInt64(arraySum(rows)) AS n_received, 0 AS n_counted, 0 AS n_suspended,
        0 AS n_set_aside, 0 AS n_refused
    FROM {database}.segment_totals FINAL
    UNION ALL
    SELECT
        namespace, credential_id, toStartOfHour(toDateTime(received_at, 'UTC')) AS hour, 0,
        toInt64(countIf(reason = '')), toInt64(countIf(reason NOT IN ('', 'twin', 'discarded', 'retracted'))),
        toInt64(countIf(reason IN ('twin', 'discarded', 'retracted'))), 0
    FROM {database}.events FINAL
    WHERE event_time NOT IN (SELECT arrayJoin(decided_times))
    GROUP BY namespace, credential_id, hour
    UNION ALL
    SELECT
        namespace, credential_id, toStartOfHour(toDateTime(received_at, 'UTC')) AS hour, 0,
        toInt64(countIf(reason = '')), toInt64(countIf(reason NOT IN ('', 'twin', 'discarded', 'retracted'))),
        toInt64(countIf(reason IN ('twin', 'discarded', 'retracted'))), 0
    FROM {database}.events FINAL
    WHERE event_time IN (SELECT arrayJoin(decided_times))
        AND (namespace, customer_id, meter, event_time, event_id) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.decided_increases
        )
    GROUP BY namespace, credential_id, hour
    UNION ALL
    SELECT
        namespace, credential_id, toStartOfHour(toDateTime(received_at, 'UTC')) AS hour, 0,
        toInt64(countIf(reason = '')), toInt64(countIf(reason != '')), 0, 0
    FROM {database}.cumulative_points FINAL
    GROUP BY namespace, credential_id, hour
    UNION ALL
    SELECT
        namespace, credential_id, toStartOfHour(toDateTime(received_at, 'UTC')) AS hour, 0, -toInt64(count()),
        toInt64(count()), 0, 0
    FROM {database}.suspense
    WHERE reason = 'conflict'
    GROUP BY namespace, credential_id, hour
    UNION ALL
    SELECT namespace, credential_id, hour, 0, 0, 0, 0, toInt64(requests)
    FROM {database}.refused
)
GROUP BY namespace, credential_id, hour
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

-- What came, alone: the other numbers of `conservation` take a look at all that is stored.
CREATE OR REPLACE VIEW {database}.received AS
SELECT namespace, credential_id, hour, sum(arraySum(rows)) AS received
FROM {database}.segment_totals FINAL
GROUP BY namespace, credential_id, hour;

-- What was seen per customer, service, key and month (UTC); `meterhouse completeness` says what to make of it.
CREATE OR REPLACE VIEW {database}.completeness AS
SELECT
    namespace, billed_customer_id, service_name, credential_id, toStartOfMonth(event_time) AS month, count() AS events,
    uniqExact(process_id) AS processes, min(event_time) AS first_event, max(event_time) AS last_event,
    uniqExact(toStartOfHour(event_time)) AS hours_with_events, countIf(status = 'unfinished') AS unfinished,
    countIf(usage_source = 'estimated') AS estimated, countIf(usage_source = 'none') AS without_usage
FROM {database}.usage
GROUP BY namespace, billed_customer_id, service_name, credential_id, month;
