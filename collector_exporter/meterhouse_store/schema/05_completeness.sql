-- What came, per credential and hour of receipt, in rows.
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
