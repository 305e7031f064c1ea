-- received = counted + suspended + set aside + duplicates, per credential and hour of receipt, in rows; and the requests that
-- were refused at the door. What came is counted where it is inserted, the rest is what is stored: a negative number of
-- duplicates means that one of the two is wrong. A point of a running total counts as one row, whatever increase follows
-- from it and whatever was decided about that.

-- What is stored, row by row, as 06_rollups.sql sums it. The rows that stand for decided increases are found as the view
-- `usage` finds conflicts (03_views.sql). Of a conflict all copies are in `events` as if they counted.
CREATE OR REPLACE VIEW {database}.usage_receipt_rows AS
WITH (SELECT groupUniqArray(event_time) FROM {database}.decided_increases) AS decided_times
SELECT * FROM (
    SELECT
        toDate(event_time) AS key_day, namespace, toDate(event_time) AS day, credential_id,
        toStartOfHour(toDateTime(received_at, 'UTC')) AS hour, toInt64(reason = '') AS counted,
        toInt64(reason NOT IN ('', 'twin', 'discarded', 'retracted')) AS suspended,
        toInt64(reason IN ('twin', 'discarded', 'retracted')) AS set_aside
    FROM (
        SELECT namespace, event_time, credential_id, received_at, reason FROM {database}.events FINAL
        WHERE event_time NOT IN (SELECT arrayJoin(decided_times))
        UNION ALL
        SELECT namespace, event_time, credential_id, received_at, reason FROM {database}.events FINAL
        WHERE event_time IN (SELECT arrayJoin(decided_times))
            AND (namespace, customer_id, meter, event_time, event_id) NOT IN (
                SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.decided_increases
            )
        UNION ALL
        SELECT namespace, event_time, credential_id, received_at, reason FROM {database}.cumulative_points FINAL
    )
    UNION ALL
    -- The conflicts of the view `suspense`, written out: planning all of that view took half of the time of this one.
    SELECT
        toDate(event_time), namespace, toDate(event_time), credential_id, toStartOfHour(toDateTime(received_at, 'UTC')),
        toInt64(-1), toInt64(1), toInt64(0)
    FROM {database}.events FINAL
    WHERE reason = ''
        AND (namespace, customer_id, meter, event_time, event_id) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.conflicts
        )
        AND (namespace, customer_id, meter, event_time, event_id, quantity) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id, standing_quantity FROM {database}.conflicts FINAL
        )
)
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW {database}.conservation AS
WITH (SELECT (summed, unsummed) FROM {database}.usage_day_choice) AS days
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
    SELECT namespace, credential_id, hour, 0, counted, suspended, set_aside, 0 FROM {database}.usage_receipts
    WHERE (namespace, day, version) IN (SELECT arrayJoin(tupleElement(days, 1)))
    UNION ALL
    SELECT namespace, credential_id, hour, 0, counted, suspended, set_aside, 0 FROM {database}.usage_receipt_rows
    WHERE (namespace, key_day) IN (SELECT arrayJoin(tupleElement(days, 2)))
    UNION ALL
    SELECT namespace, credential_id, hour, 0, 0, 0, 0, toInt64(requests) FROM {database}.refused
)
GROUP BY namespace, credential_id, hour;
