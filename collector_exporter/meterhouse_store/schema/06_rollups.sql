-- Usage summed by day and by hour, for dashboards and reports over much of it. A sum cannot be kept up to date row by row:
-- copies would count twice, and what a late copy, a conflict or a decision takes back would stay. So days are summed as a
-- whole, from the view `usage`, once nothing has come for them for a while (meterhouse_store/rollups.py). Whatever is
-- inserted afterwards touches its day; a day that was touched since it was summed is read from `usage` again. All of this
-- can be emptied at any time: then everything is.

-- What was inserted for a day (UTC, of the key's event_time; 1970: events that count once), as a sum of random numbers: it
-- is another one after every insert, in whichever order inserts are seen.
CREATE TABLE IF NOT EXISTS {database}.usage_touches
(
    namespace LowCardinality(String),
    day Date,
    mark SimpleAggregateFunction(sum, UInt64),
    touched_at SimpleAggregateFunction(max, DateTime('UTC'))
)
ENGINE = AggregatingMergeTree
ORDER BY (namespace, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.touch_events TO {database}.usage_touches AS
SELECT namespace, toDate(event_time) AS day, rand64() AS mark, now() AS touched_at
FROM {database}.events GROUP BY namespace, day;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.touch_increases TO {database}.usage_touches AS
SELECT namespace, toDate(event_time) AS day, rand64() AS mark, now() AS touched_at
FROM {database}.counted_increases GROUP BY namespace, day;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.touch_decided_increases TO {database}.usage_touches AS
SELECT namespace, toDate(event_time) AS day, rand64() AS mark, now() AS touched_at
FROM {database}.decided_increases GROUP BY namespace, day;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.touch_conflicts TO {database}.usage_touches AS
SELECT namespace, toDate(event_time) AS day, rand64() AS mark, now() AS touched_at
FROM {database}.conflicts GROUP BY namespace, day;

CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.touch_points TO {database}.usage_touches AS
SELECT namespace, toDate(event_time) AS day, rand64() AS mark, now() AS touched_at
FROM {database}.cumulative_points GROUP BY namespace, day;

-- Only for a database of before version 5: what is there was not touched, or was summed without delays and receipts.
INSERT INTO {database}.usage_touches (namespace, day, mark, touched_at)
SELECT namespace, day, rand64() AS mark, now() AS touched_at FROM (
    SELECT namespace, toDate(event_time) AS day FROM {database}.events GROUP BY namespace, day
    UNION DISTINCT
    SELECT namespace, toDate(event_time) AS day FROM {database}.counted_increases GROUP BY namespace, day
    UNION DISTINCT
    SELECT namespace, toDate(event_time) AS day FROM {database}.cumulative_points GROUP BY namespace, day
);

-- The sums. Each time a day is summed they get another `version`; which one counts stands in `usage_rolled`, written after
-- them. Versions that count no more are deleted some time later, when no query can be reading them.
CREATE TABLE IF NOT EXISTS {database}.usage_days
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    billed_customer_id String,
    meter LowCardinality(String),
    provider LowCardinality(String),
    model LowCardinality(String),
    modality LowCardinality(String),
    cache_ttl LowCardinality(String),
    service_tier LowCardinality(String),
    tool LowCardinality(String),
    agent_id LowCardinality(String),
    agent_name LowCardinality(String),
    step LowCardinality(String),
    status LowCardinality(String),
    usage_source LowCardinality(String),
    source LowCardinality(String),
    events UInt64,
    -- Of which have another quantity than 0.
    moving UInt64,
    quantity Decimal(38, 9)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (namespace, day, version, billed_customer_id, meter)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Without the customer, so that there are few of them however many customers there are.
CREATE TABLE IF NOT EXISTS {database}.usage_hours
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    hour DateTime('UTC'),
    received_hour DateTime('UTC'),
    meter LowCardinality(String),
    provider LowCardinality(String),
    model LowCardinality(String),
    modality LowCardinality(String),
    cache_ttl LowCardinality(String),
    service_tier LowCardinality(String),
    tool LowCardinality(String),
    agent_id LowCardinality(String),
    agent_name LowCardinality(String),
    status LowCardinality(String),
    usage_source LowCardinality(String),
    source LowCardinality(String),
    events UInt64,
    quantity Decimal(38, 9)
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (namespace, day, version, hour, meter)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.usage_conversations
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    conversation_id String,
    agent_name LowCardinality(String),
    model LowCardinality(String),
    -- The first by name of the customers of that day.
    customer_id String,
    calls Decimal(38, 9),
    tokens Decimal(38, 9),
    last_event DateTime64(9, 'UTC'),
    events UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (namespace, day, version, conversation_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- How long after it happened usage was received: in milliseconds, of its first two digits.
CREATE TABLE IF NOT EXISTS {database}.usage_delays
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    received_hour DateTime('UTC'),
    delay_ms Int64,
    events UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (namespace, day, version, received_hour)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- All that is stored of the day, by what became of it: `conservation` (05_completeness.sql).
CREATE TABLE IF NOT EXISTS {database}.usage_receipts
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    credential_id LowCardinality(String),
    hour DateTime('UTC'),
    counted Int64,
    suspended Int64,
    set_aside Int64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (namespace, day, version, credential_id, hour)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS {database}.usage_rolled
(
    namespace LowCardinality(String),
    day Date,
    version UInt64,
    mark UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (namespace, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Each day that has usage: the version of its sums (0: none), and whether they are those of all that was inserted.
CREATE OR REPLACE VIEW {database}.usage_day_states AS
SELECT
    touched.namespace AS namespace, touched.day AS day, rolled.version AS version, touched.mark AS mark,
    touched.touched_at AS touched_at, rolled.version > 0 AND rolled.mark = touched.mark AS is_rolled
FROM (
    SELECT namespace, day, sum(mark) AS mark, max(touched_at) AS touched_at
    FROM {database}.usage_touches GROUP BY namespace, day
) AS touched
LEFT JOIN (SELECT namespace, day, version, mark FROM {database}.usage_rolled FINAL) AS rolled
    ON touched.namespace = rolled.namespace AND touched.day = rolled.day
SETTINGS join_use_nulls = 0;

-- The days that are read from their sums, with the version, and those that are not. Asked for once in a query: two questions
-- could have two answers, and a day be in both branches of a view or in neither.
CREATE OR REPLACE VIEW {database}.usage_day_choice AS
SELECT
    groupArrayIf((toString(namespace), day, version), is_rolled) AS summed,
    groupArrayIf((toString(namespace), day), NOT is_rolled) AS unsummed
FROM {database}.usage_day_states;

-- What is summed, row by row: for each table of sums a view with its columns (but `version`), and `key_day`, the day that a
-- row is summed with. That is another one than `day` only where it is 1970, which is never summed.
CREATE OR REPLACE VIEW {database}.usage_day_rows AS
SELECT
    toDate(key_time) AS key_day, namespace, toDate(event_time) AS day, billed_customer_id, meter, provider, model, modality,
    cache_ttl, service_tier, tool, agent_id, agent_name, step, status, usage_source, source, toUInt64(1) AS events,
    toUInt64(quantity != 0) AS moving, quantity
FROM {database}.usage;

CREATE OR REPLACE VIEW {database}.usage_hour_rows AS
SELECT
    toDate(key_time) AS key_day, namespace, toDate(event_time) AS day, toStartOfHour(toDateTime(event_time, 'UTC')) AS hour,
    toStartOfHour(toDateTime(received_at, 'UTC')) AS received_hour, meter, provider, model, modality, cache_ttl,
    service_tier, tool, agent_id, agent_name, status, usage_source, source, toUInt64(1) AS events, quantity
FROM {database}.usage;

CREATE OR REPLACE VIEW {database}.usage_conversation_rows AS
SELECT
    toDate(key_time) AS key_day, namespace, toDate(event_time) AS day, conversation_id, agent_name, model,
    billed_customer_id AS customer_id, if(meter = 'llm.requests', quantity, 0) AS calls,
    if(startsWith(meter, 'llm.tokens.'), quantity, 0) AS tokens, event_time AS last_event, toUInt64(1) AS events
FROM {database}.usage
WHERE conversation_id != '';

CREATE OR REPLACE VIEW {database}.usage_delay_rows AS
SELECT
    toDate(key_time) AS key_day, namespace, toDate(event_time) AS day,
    toStartOfHour(toDateTime(received_at, 'UTC')) AS received_hour, intDiv(exact_ms, step_ms) * step_ms AS delay_ms,
    toUInt64(1) AS events
FROM (
    SELECT
        namespace, key_time, event_time, received_at, dateDiff('millisecond', event_time, received_at) AS exact_ms,
        toInt64(intExp10(toInt32(greatest(floor(log10(greatest(abs(exact_ms), 1))) - 1, 0)))) AS step_ms
    FROM {database}.usage
);

-- The sums of the days that have them, else the rows: to be summed, too. In one SELECT, for settings are those of one.
-- `usage` by day (UTC).
CREATE OR REPLACE VIEW {database}.usage_by_day AS
WITH (SELECT (summed, unsummed) FROM {database}.usage_day_choice) AS days
SELECT * FROM (
    SELECT * EXCEPT (version) FROM {database}.usage_days
    WHERE (namespace, day, version) IN (SELECT arrayJoin(tupleElement(days, 1)))
    UNION ALL
    SELECT * EXCEPT (key_day) FROM {database}.usage_day_rows
    WHERE (namespace, key_day) IN (SELECT arrayJoin(tupleElement(days, 2)))
);

-- By hour, and not by customer.
CREATE OR REPLACE VIEW {database}.usage_by_hour AS
WITH (SELECT (summed, unsummed) FROM {database}.usage_day_choice) AS days
SELECT * FROM (
    SELECT * EXCEPT (day, version) FROM {database}.usage_hours
    WHERE (namespace, day, version) IN (SELECT arrayJoin(tupleElement(days, 1)))
    UNION ALL
    SELECT * EXCEPT (day, key_day) FROM {database}.usage_hour_rows
    WHERE (namespace, key_day) IN (SELECT arrayJoin(tupleElement(days, 2)))
);

-- By conversation and day, of the usage that has one.
CREATE OR REPLACE VIEW {database}.usage_by_conversation AS
WITH (SELECT (summed, unsummed) FROM {database}.usage_day_choice) AS days
SELECT * FROM (
    SELECT * EXCEPT (version) FROM {database}.usage_conversations
    WHERE (namespace, day, version) IN (SELECT arrayJoin(tupleElement(days, 1)))
    UNION ALL
    SELECT * EXCEPT (key_day) FROM {database}.usage_conversation_rows
    WHERE (namespace, key_day) IN (SELECT arrayJoin(tupleElement(days, 2)))
);

-- By how long it took to be received, and the hour of that.
CREATE OR REPLACE VIEW {database}.usage_delays_by_hour AS
WITH (SELECT (summed, unsummed) FROM {database}.usage_day_choice) AS days
SELECT * FROM (
    SELECT * EXCEPT (day, version) FROM {database}.usage_delays
    WHERE (namespace, day, version) IN (SELECT arrayJoin(tupleElement(days, 1)))
    UNION ALL
    SELECT * EXCEPT (day, key_day) FROM {database}.usage_delay_rows
    WHERE (namespace, key_day) IN (SELECT arrayJoin(tupleElement(days, 2)))
);
