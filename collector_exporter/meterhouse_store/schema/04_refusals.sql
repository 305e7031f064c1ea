-- Requests that the doors turned away, by credential, hour and reason. Each run of a collector writes its own growing
-- counts, the largest stands. Nothing of a request is here but its size.

CREATE TABLE IF NOT EXISTS {database}.refusals
(
    namespace LowCardinality(String),      -- '' where the sender is not known
    credential_id LowCardinality(String),
    hour DateTime('UTC'),
    code LowCardinality(String),           -- as in the reply: unauthenticated, malformed, too_large, overloaded, ...
    process_run_id String,
    requests UInt64,
    bytes UInt64                           -- read of their bodies; a body whose sender is refused is not read
)
ENGINE = ReplacingMergeTree(requests)
ORDER BY (namespace, credential_id, hour, code, process_run_id);

CREATE OR REPLACE VIEW {database}.refused AS
SELECT namespace, credential_id, hour, code, sum(refusals.requests) AS requests, sum(refusals.bytes) AS bytes
FROM {database}.refusals FINAL
GROUP BY namespace, credential_id, hour, code;
