-- What was applied to this database: a row for each script of the schema, whenever it was not the one applied before.
-- `cluster` is the cluster that the database was made on, or ''.

CREATE TABLE IF NOT EXISTS {database}.schema_migrations
(
    script LowCardinality(String),
    sha256 String,
    version UInt32,
    meterhouse LowCardinality(String),
    cluster LowCardinality(String),
    applied_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (script, applied_at, sha256);
