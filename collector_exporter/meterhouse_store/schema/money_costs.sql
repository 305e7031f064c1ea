-- What usage costs whoever runs the agents: rates that rating resolves from the cost entries and pinned catalogues in SQL
-- (costs_rates.py), and the cost of each event. An event that no rate is known of has the cost NULL, never 0.

-- For each combination of what costs depend on, as it occurs in usage, what it costs from `valid_from` on, until the
-- combination's next row. agent_id and customer_id are set only where a cost entry names them: `scope` has their names.
CREATE TABLE IF NOT EXISTS {database}.cost_rates
(
    namespace LowCardinality(String),
    meter LowCardinality(String),
    provider LowCardinality(String),
    model LowCardinality(String),
    modality LowCardinality(String),
    cache_ttl LowCardinality(String),
    service_tier LowCardinality(String),
    tool LowCardinality(String),
    agent_id LowCardinality(String),
    customer_id String,
    valid_from DateTime64(6, 'UTC'),
    status LowCardinality(String),               -- known | free | unknown | gone | scope | resolved (up to entry_id; all in `reason`)
    reason LowCardinality(String),               -- why it is unknown
    price Decimal(38, 18),
    per Int64,
    currency LowCardinality(String),
    tiers Array(Tuple(start UInt64, price Decimal(38, 18))),   -- the request's total input is above `start`
    clock Array(Tuple(second UInt32, price Decimal(38, 18))),  -- from that second of the UTC day on
    minimum Decimal(38, 9),
    entry_id String,
    version UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (namespace, meter, provider, model, modality, cache_ttl, service_tier, tool, agent_id, customer_id, valid_from)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- The columns of `usage`, and: combination (the number of what its rate depends on), cost (NULL where it is unknown), currency, cost_status (known | free | unknown), cost_reason,
-- cost_entry (what priced it). Prices that depend on the size of a request go by the input tokens of its call; several
-- requests that were reported as one have such a price only where all of them together are too small for a tier.
CREATE OR REPLACE VIEW {database}.costs AS
SELECT
    * EXCEPT (rate_status, rate_reason, rate_price, rate_per, rate_currency, rate_tiers, rate_clock, rate_minimum,
        rate_entry, request, above),
    multiIf(
        rate_status = '', 'not_resolved',
        meter = 'llm.requests' AND usage_source = 'none' AND status != 'failed', 'usage_unknown',
        notEmpty(rate_tiers) AND (request = '' OR above > 0 AND usage_source IN ('framework', 'sdk_loop')),
        'context_unknown',
        rate_reason) AS cost_reason,
    if(cost_reason = '', rate_status, 'unknown') AS cost_status,
    if(cost_reason != '', NULL,
        toDecimal256(if(rate_minimum > 0 AND quantity > 0, greatest(quantity, rate_minimum), quantity), 18) * multiIf(
            above > 0 AND notEmpty(rate_tiers),
            if(arrayExists(step -> step.1 < above, rate_tiers),
                tupleElement(arrayLast(step -> step.1 < above, rate_tiers), 2), rate_price),
            notEmpty(rate_clock),
            tupleElement(arrayLast(step -> step.1 <= dateDiff('second', toStartOfDay(event_time), event_time), rate_clock), 2),
            rate_price) / rate_per) AS cost,
    if(cost_reason = '', rate_currency, '') AS currency,
    if(cost_reason = '', rate_entry, '') AS cost_entry
FROM (
    SELECT
        used.*, rate.status AS rate_status, rate.reason AS rate_reason, rate.price AS rate_price, rate.per AS rate_per,
        rate.currency AS rate_currency, rate.tiers AS rate_tiers, rate.clock AS rate_clock,
        rate.minimum AS rate_minimum, rate.entry_id AS rate_entry
    FROM (
        SELECT
            usage_row.*,
            multiIf(usage_row.call_id != '', usage_row.call_id, usage_row.source = 'otel.span', usage_row.event_id, '')
                AS request,
            if(empty(big.requests), 0, tupleElement(arrayFirst(
                it -> it.1 = cityHash64(usage_row.provider, usage_row.model, request), big.requests), 2)) AS above,
            -- One number instead of ten texts: a join by those takes twice as long. costs_rates.py refuses two combinations
            -- of the same number.
            cityHash64(usage_row.namespace, usage_row.meter, usage_row.provider, usage_row.model, usage_row.modality,
                usage_row.cache_ttl, usage_row.service_tier, usage_row.tool,
                if((usage_row.namespace, usage_row.agent_id) IN (
                    SELECT namespace, agent_id FROM {database}.cost_rates FINAL WHERE status = 'scope'),
                    usage_row.agent_id, ''),
                if((usage_row.namespace, usage_row.billed_customer_id) IN (
                    SELECT namespace, customer_id FROM {database}.cost_rates FINAL WHERE status = 'scope'),
                    usage_row.billed_customer_id, '')) AS combination
        FROM {database}.usage AS usage_row
        -- Only requests above the smallest tier matter: they are few, however much usage there is.
        LEFT JOIN (
            SELECT namespace, billed_customer_id, event_time, groupArray((hash, tokens)) AS requests
            FROM (
                SELECT
                    namespace, billed_customer_id, event_time,
                    cityHash64(provider, model,
                        multiIf(call_id != '', call_id, source = 'otel.span', event_id, '')) AS hash,
                    toUInt64(greatest(sum(quantity), 0)) AS tokens
                FROM {database}.usage
                WHERE meter IN ('llm.tokens.input', 'llm.tokens.cache_read', 'llm.tokens.cache_write')
                    AND (namespace, provider, model) IN (
                        SELECT namespace, provider, model FROM {database}.cost_rates FINAL WHERE notEmpty(tiers))
                GROUP BY namespace, billed_customer_id, event_time, hash
                HAVING tokens > (
                    SELECT min(tupleElement(tiers[1], 'start')) FROM {database}.cost_rates FINAL WHERE notEmpty(tiers))
            )
            GROUP BY namespace, billed_customer_id, event_time
        ) AS big
        -- By these, so that a question about one customer and time looks for requests of those alone.
        ON usage_row.namespace = big.namespace AND usage_row.billed_customer_id = big.billed_customer_id
            AND usage_row.event_time = big.event_time
    ) AS used
    ASOF LEFT JOIN (
        SELECT
            cityHash64(namespace, meter, provider, model, modality, cache_ttl, service_tier, tool, agent_id, customer_id)
                AS combination,
            valid_from, status, reason, price, per, currency, tiers, clock, minimum, entry_id
        FROM {database}.cost_rates FINAL
        WHERE status IN ('known', 'free', 'unknown')
    ) AS rate
    ON used.combination = rate.combination AND used.event_time >= rate.valid_from
)
SETTINGS join_use_nulls = 0;

-- `costs` by day (UTC): rows to be summed. A sum costs what its events cost together where one price holds all day and
-- depends neither on the request's size nor on the hour, nor has a minimum, and where the cost of every quantity ends within
-- the 36 decimals (9 of the quantity, 18 of the price, 9 of what it is for); what else there is comes from `costs`.
-- `costing`: how many of the events cost something. What has which price is asked for once, as in `usage_by_day`.
CREATE OR REPLACE VIEW {database}.costs_by_day AS
WITH (
    SELECT (
        groupUniqArrayIf(combination, NOT is_plain), groupUniqArrayIf(toString(meter), NOT is_plain),
        groupUniqArrayIf(cityHash64(combination, toDate(valid_from)), is_plain AND valid_from != toStartOfDay(valid_from)),
        groupUniqArrayIf(toDate(valid_from), is_plain AND valid_from != toStartOfDay(valid_from)))
    FROM (
        SELECT
            cityHash64(namespace, meter, provider, model, modality, cache_ttl, service_tier, tool, agent_id, customer_id)
                AS combination,
            meter, valid_from,
            empty(tiers) AND empty(clock) AND minimum = 0 AND 1000000000 % greatest(per, 1) = 0 AS is_plain
        FROM {database}.cost_rates FINAL
        WHERE status IN ('known', 'free', 'unknown')
    )
) AS single
SELECT
    namespace, day, billed_customer_id, meter, provider, model, tool, agent_name, step, status, events, costing, cost_reason,
    cost_status, cost, currency
FROM (
    SELECT
        used.namespace AS namespace, used.day AS day, used.billed_customer_id AS billed_customer_id, used.meter AS meter,
        used.provider AS provider, used.model AS model, used.tool AS tool, used.agent_name AS agent_name,
        used.step AS step, used.status AS status, used.events AS events,
        if(cost_reason = '' AND rate.price != 0, used.moving, 0) AS costing,
        multiIf(
            rate.status = '', 'not_resolved',
            used.meter = 'llm.requests' AND used.usage_source = 'none' AND used.status != 'failed', 'usage_unknown',
            rate.reason) AS cost_reason,
        if(cost_reason = '', rate.status, 'unknown') AS cost_status,
        if(cost_reason != '', NULL, toDecimal256(used.quantity, 9) * rate.unit_price) AS cost,
        if(cost_reason = '', rate.currency, '') AS currency
    FROM (
        SELECT
            daily.*,
            cityHash64(daily.namespace, daily.meter, daily.provider, daily.model, daily.modality, daily.cache_ttl,
                daily.service_tier, daily.tool,
                if((daily.namespace, daily.agent_id) IN (
                    SELECT namespace, agent_id FROM {database}.cost_rates FINAL WHERE status = 'scope'),
                    daily.agent_id, ''),
                if((daily.namespace, daily.billed_customer_id) IN (
                    SELECT namespace, customer_id FROM {database}.cost_rates FINAL WHERE status = 'scope'),
                    daily.billed_customer_id, '')) AS combination
        FROM {database}.usage_by_day AS daily
    ) AS used
    ASOF LEFT JOIN (
        SELECT
            cityHash64(namespace, meter, provider, model, modality, cache_ttl, service_tier, tool, agent_id, customer_id)
                AS combination,
            -- Exact, for what is read here. (Nothing costs so much per 0, which unknown costs have.)
            valid_from, status, reason, price, toDecimal256(price, 27) / greatest(per, 1) AS unit_price, currency
        FROM {database}.cost_rates FINAL
        WHERE status IN ('known', 'free', 'unknown')
    ) AS rate
    ON used.combination = rate.combination AND toDateTime64(used.day, 6, 'UTC') >= rate.valid_from
    WHERE used.combination NOT IN (SELECT arrayJoin(tupleElement(single, 1)))
        AND cityHash64(used.combination, used.day) NOT IN (SELECT arrayJoin(tupleElement(single, 3)))
    UNION ALL
    SELECT
        namespace, toDate(event_time) AS day, billed_customer_id, meter, provider, model, tool, agent_name, step, status,
        toUInt64(1) AS events, toUInt64(ifNull(costs.cost, 0) != 0) AS costing, cost_reason, cost_status,
        costs.cost AS cost, costs.currency AS currency
    FROM {database}.costs
    -- What is not plain, and days on which a price changes: first by what events are found by, then exactly.
    WHERE (meter IN (SELECT arrayJoin(tupleElement(single, 2)))
            OR toDate(event_time) IN (SELECT arrayJoin(tupleElement(single, 4))))
        AND (combination IN (SELECT arrayJoin(tupleElement(single, 1)))
            OR cityHash64(combination, toDate(event_time)) IN (SELECT arrayJoin(tupleElement(single, 3))))
)
SETTINGS join_use_nulls = 0;

-- Customers' days (as a number, and the days) within which one of their ratings begins or ends: a sum of such a day belongs
-- to two ratings. One row.
CREATE OR REPLACE VIEW {database}.rating_breaks AS
SELECT
    groupUniqArray(cityHash64(namespace, customer_id, toDate(at))) AS customer_days, groupUniqArray(toDate(at)) AS days
FROM (
    SELECT namespace, customer_id, arrayJoin([period_start, period_end]) AS at
    FROM {database}.mirror_ratings FINAL WHERE result_sha256 != ''
)
WHERE at != toStartOfDay(at);

-- Revenue beside cost of each rating's customer and period, in the rating's currency. `cost` is what is known of it; of
-- `unknown_events` there is none, or one in another currency (`meterhouse margin` converts), and the margin is NULL.
CREATE OR REPLACE VIEW {database}.margins AS
WITH (SELECT (customer_days, days) FROM {database}.rating_breaks) AS breaks
SELECT
    rated.namespace AS namespace, rated.customer_id AS customer_id, rated.period_start AS period_start,
    rated.period_end AS period_end, rated.state AS state, rated.currency AS currency,
    toDecimal128(earned.minor, 6) / {minor_units:rated.currency} AS revenue,
    spent.cost AS cost, spent.cost_not_ok AS cost_not_ok, spent.events AS events,
    spent.unknown_events AS unknown_events,
    if(unknown_events > 0, NULL, revenue - cost) AS margin
FROM (SELECT * FROM {database}.mirror_ratings FINAL WHERE result_sha256 != '') AS rated
LEFT JOIN (
    SELECT namespace, customer_id, rating_id, sum(amount_minor) AS minor FROM {database}.rated_lines
    WHERE kind IN ('usage', 'flat', 'minimum', 'discount', 'correction') GROUP BY namespace, customer_id, rating_id
) AS earned
    ON rated.namespace = earned.namespace AND rated.customer_id = earned.customer_id
    AND rated.rating_id = earned.rating_id
LEFT JOIN (
    SELECT
        during.namespace AS namespace, during.customer_id AS customer_id, during.rating_id AS rating_id,
        sumIf(ifNull(used.cost, 0), used.currency = during.currency) AS cost,
        sumIf(ifNull(used.cost, 0), used.currency = during.currency AND used.status != 'ok') AS cost_not_ok,
        sum(used.events) AS events,
        sumIf(used.events, used.cost_status = 'unknown')
            + sumIf(used.costing, used.cost_status != 'unknown' AND used.currency != during.currency) AS unknown_events
    FROM (
        SELECT
            namespace, billed_customer_id, toDateTime64(day, 6, 'UTC') AS at, status, events, costing, cost_status, cost, currency
        FROM {database}.costs_by_day
        WHERE cityHash64(namespace, billed_customer_id, day) NOT IN (SELECT arrayJoin(tupleElement(breaks, 1)))
        UNION ALL
        SELECT
            namespace, billed_customer_id, toDateTime64(event_time, 6, 'UTC') AS at, status, toUInt64(1) AS events,
            toUInt64(ifNull(costs.cost, 0) != 0) AS costing, cost_status, costs.cost AS cost, costs.currency AS currency
        FROM {database}.costs
        WHERE cityHash64(namespace, billed_customer_id, toDate(event_time)) IN (SELECT arrayJoin(tupleElement(breaks, 1)))
            AND toDate(event_time) IN (SELECT arrayJoin(tupleElement(breaks, 2)))
    ) AS used
    ASOF INNER JOIN (SELECT * FROM {database}.mirror_ratings FINAL WHERE result_sha256 != '') AS during
        ON used.namespace = during.namespace AND used.billed_customer_id = during.customer_id
        AND used.at >= during.period_start
    WHERE used.at < during.period_end
    GROUP BY namespace, customer_id, rating_id
) AS spent
    ON rated.namespace = spent.namespace AND rated.customer_id = spent.customer_id
    AND rated.rating_id = spent.rating_id
SETTINGS join_use_nulls = 0;
