-- What money and people read. `do_not_merge_across_partitions_select_final` is safe: the partition follows from the key.
-- Events that count once whenever they are told have time 0 in their key, so that FINAL keeps the first copy of each; a
-- second branch shows them with their own time. A query for other meters skips it by the key.

CREATE OR REPLACE VIEW {database}.usage AS
SELECT
    namespace, customer_id, meter, event_id, event_time, quantity, raw_value, status, agent_id, agent_name, provider,
    model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id, conversation_id, step, response_id,
    request_id, trace_id, span_id, lease_id, usage_source, source, attributes, credential_id, process_id, service_name,
    received_at, segment, record_id, customer_id AS billed_customer_id
FROM (
    SELECT *, event_time AS key_time FROM {database}.events FINAL
    WHERE reason = '' AND event_time > toDateTime64(0, 9, 'UTC')
    UNION ALL
    SELECT * REPLACE (once_time AS event_time), events.event_time AS key_time FROM {database}.events FINAL
    WHERE reason = '' AND events.event_time = toDateTime64(0, 9, 'UTC')
)
WHERE NOT (
        (namespace, customer_id, meter, key_time, event_id) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.conflicts
        )
        AND (namespace, customer_id, meter, key_time, event_id, quantity) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id, standing_quantity FROM {database}.conflicts FINAL
        )
    )
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.suspense AS
SELECT
    namespace, customer_id, meter, event_id, event_time, quantity, raw_value,
    if(why = '', 'conflict', why) AS reason,
    status, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, service_tier, call_id, task_id,
    conversation_id, step, response_id, request_id, trace_id, span_id, lease_id, usage_source, source, attributes,
    credential_id, process_id, service_name, received_at, segment, record_id
FROM (
    SELECT *, event_time AS key_time, reason AS why FROM {database}.events FINAL
    WHERE event_time > toDateTime64(0, 9, 'UTC')
    UNION ALL
    SELECT * REPLACE (once_time AS event_time), events.event_time AS key_time, reason AS why FROM {database}.events FINAL
    WHERE events.event_time = toDateTime64(0, 9, 'UTC')
)
WHERE why != ''
    OR (
        (namespace, customer_id, meter, key_time, event_id) IN (
            SELECT namespace, customer_id, meter, event_time, event_id FROM {database}.conflicts
        )
        AND (namespace, customer_id, meter, key_time, event_id, quantity) NOT IN (
            SELECT namespace, customer_id, meter, event_time, event_id, standing_quantity FROM {database}.conflicts FINAL
        )
    )
SETTINGS do_not_merge_across_partitions_select_final = 1;

CREATE OR REPLACE VIEW {database}.watermark AS
SELECT collector_id, segment, position, projected_through
FROM {database}.checkpoints FINAL;
