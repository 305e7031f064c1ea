-- What money and people read. `do_not_merge_across_partitions_select_final` is safe: the partition follows from the key.
-- So is optimize_move_to_prewhere_if_final: ClickHouse moves conditions on columns of the key only, which all versions of
-- a row have in common.
--
-- Nearly no event is in conflict, and event_id, by which one is found, is the widest column there is. So the first branch
-- has what happened at a moment at which no event is in conflict, and never reads it; what happened at the other moments
-- is looked up. conflict_times is asked for once: two questions could have two answers, and a row in neither branch.
-- The second branch is the view `increases` (02_increases.sql), written out: a view in a view takes a third of the time to
-- plan all of this. Its rows are never in conflict, those that a decision was made about are in `events`.
-- Events that count once whenever they are told have time 0 in their key, so that FINAL keeps the first copy of each; a
-- branch shows them with their own time. A query for other meters skips it by the key. The last branch has what
-- a decision bills to another customer than the one claimed: so the others need no expression for billed_customer_id,
-- and a query for one customer finds its rows by the key.

CREATE OR REPLACE VIEW {database}.usage AS
WITH (SELECT groupUniqArray(event_time) FROM {database}.conflicts) AS conflict_times
SELECT
    namespace, customer_id, meter, event_id, event_time, quantity, raw_value, status, agent_id, agent_name, provider,
    model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id, conversation_id, step, response_id,
    request_id, trace_id, span_id, lease_id, usage_source, source, attributes, credential_id, process_id, service_name,
    received_at, segment, record_id, billed_customer_id, key_time, decision_id, decided_at, original_reason,
    -- From when on it was known that the row counts.
    greatest(received_at, toDateTime64(decided_at, 9, 'UTC')) AS known_at
FROM (
    SELECT * REPLACE (customer_id AS billed_customer_id), event_time AS key_time FROM {database}.events FINAL
    WHERE reason = '' AND events.billed_customer_id = '' AND event_time > toDateTime64(0, 9, 'UTC')
        AND event_time NOT IN (SELECT arrayJoin(conflict_times))
    UNION ALL
    SELECT * EXCEPT (is_row, version) REPLACE (customer_id AS billed_customer_id), event_time AS key_time
    FROM {database}.counted_increases FINAL
    WHERE reason = '' AND is_row AND (namespace, customer_id, meter, event_time, event_id) NOT IN (
        SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.decided_increases)
    UNION ALL
    SELECT * FROM (
        SELECT * REPLACE (customer_id AS billed_customer_id), event_time AS key_time FROM {database}.events FINAL
        WHERE reason = '' AND events.billed_customer_id = '' AND event_time > toDateTime64(0, 9, 'UTC')
            AND event_time IN (SELECT arrayJoin(conflict_times))
        UNION ALL
        SELECT * REPLACE (once_time AS event_time, customer_id AS billed_customer_id), events.event_time AS key_time
        FROM {database}.events FINAL
        WHERE reason = '' AND events.billed_customer_id = '' AND events.event_time = toDateTime64(0, 9, 'UTC')
        UNION ALL
        SELECT
            * REPLACE (if(events.event_time = toDateTime64(0, 9, 'UTC'), once_time, events.event_time) AS event_time),
            events.event_time AS key_time
        FROM {database}.events FINAL
        WHERE reason = '' AND billed_customer_id != ''
            AND (namespace, customer_id) IN (SELECT namespace, customer_id FROM {database}.assigned_claims)
    )
    -- AND computes its other side only where it is needed if that holds a function such as concat, which changes nothing.
    WHERE NOT (
        event_id IN (SELECT event_id FROM {database}.conflicts)
        AND (namespace, customer_id, meter, key_time, concat(event_id, '')) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.conflicts
        )
        AND (namespace, customer_id, meter, key_time, concat(event_id, ''), quantity) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id, standing_quantity FROM {database}.conflicts FINAL
        )
    )
)
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

-- `usage` of a customer that `usage_apart` (mirrors.sql) does not name: its events are all there is to look at. A question
-- of it takes a third of the time to plan, which is most of what a page of one customer takes.
CREATE OR REPLACE VIEW {database}.usage_plain AS
SELECT
    namespace, customer_id, meter, event_id, event_time, quantity, raw_value, status, agent_id, agent_name, provider,
    model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id, conversation_id, step, response_id,
    request_id, trace_id, span_id, lease_id, usage_source, source, attributes, credential_id, process_id, service_name,
    received_at, segment, record_id, customer_id AS billed_customer_id, event_time AS key_time, decision_id, decided_at,
    original_reason, greatest(received_at, toDateTime64(decided_at, 9, 'UTC')) AS known_at
FROM {database}.events FINAL
WHERE reason = '' AND events.billed_customer_id = '' AND event_time > toDateTime64(0, 9, 'UTC')
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 1;

CREATE OR REPLACE VIEW {database}.suspense AS
SELECT
    namespace, customer_id, meter, event_id, event_time, quantity, raw_value,
    if(why = '', 'conflict', why) AS reason,
    status, agent_id, agent_name, provider,
    model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id, conversation_id, step, response_id,
    request_id, trace_id, span_id, lease_id, usage_source, source, attributes, credential_id, process_id, service_name,
    received_at, segment, record_id, key_time, decision_id, decided_at,
    if(decision_id = '', why, original_reason) AS original_reason
FROM (
    SELECT *, event_time AS key_time, reason AS why FROM {database}.events FINAL
    WHERE reason NOT IN ('', 'twin', 'discarded', 'retracted') AND event_time > toDateTime64(0, 9, 'UTC')
    UNION ALL
    SELECT * REPLACE (once_time AS event_time), events.event_time AS key_time, reason AS why
    FROM {database}.events FINAL
    WHERE reason NOT IN ('', 'twin', 'discarded', 'retracted') AND events.event_time = toDateTime64(0, 9, 'UTC')
    UNION ALL
    -- Found by the key: of the many rows that have no reason only these are read.
    SELECT
        * REPLACE (if(events.event_time = toDateTime64(0, 9, 'UTC'), once_time, events.event_time) AS event_time),
        events.event_time AS key_time, reason AS why
    FROM {database}.events FINAL
    WHERE reason = ''
        AND (namespace, customer_id, meter, events.event_time, event_id) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.conflicts
        )
        AND (namespace, customer_id, meter, events.event_time, event_id, quantity) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id, standing_quantity FROM {database}.conflicts FINAL
        )
    UNION ALL
    SELECT *, event_time AS key_time, reason AS why FROM {database}.increases
    WHERE reason != ''
)
SETTINGS do_not_merge_across_partitions_select_final = 1;

-- What is neither usage nor suspense: a span that is metered already, and what a decision took out.
CREATE OR REPLACE VIEW {database}.set_aside AS
SELECT
    namespace, customer_id, meter, event_id,
    if(events.event_time = toDateTime64(0, 9, 'UTC'), once_time, events.event_time) AS event_time,
    quantity, raw_value, reason, original_reason, status, agent_id, agent_name, provider,
    model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id, conversation_id, step, response_id,
    request_id, trace_id, span_id, lease_id, usage_source, source, attributes, credential_id, process_id, service_name,
    received_at, segment, record_id, events.event_time AS key_time, decision_id, decided_at
FROM {database}.events FINAL
WHERE reason IN ('twin', 'discarded', 'retracted')
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.watermark AS
SELECT collector_id, segment, position, projected_through
FROM {database}.checkpoints FINAL;
