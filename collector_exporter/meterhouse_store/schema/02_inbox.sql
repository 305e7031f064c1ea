-- Journal records arrive here as Protobuf (rec.proto), unchanged; nothing is stored in this table. `{attributes}` is the
-- type of an attribute map, `{whole_meters}` are the built-in meters of integers, see __init__.py.

CREATE TABLE IF NOT EXISTS {database}.inbox
(
    credential_id String,
    namespace String,
    allowed_customers Array(String),
    received_at_unix_nano UInt64,
    record_id String,
    segment String,
    grants Array(Tuple(customer_id String, agent_id String, expires_at_unix_nano UInt64)),
    customers_from String,
    metrics Tuple(resource_metrics Array(Tuple(
        resource Tuple(attributes {attributes}),
        scope_metrics Array(Tuple(metrics Array(Tuple(
            name String,
            sum Tuple(
                data_points Array(Tuple(
                    attributes {attributes}, time_unix_nano UInt64,
                    as_double Nullable(Float64), as_int Nullable(Int64),
                    exemplars Array(Tuple(
                        filtered_attributes {attributes}, time_unix_nano UInt64,
                        as_double Nullable(Float64), as_int Nullable(Int64), span_id String, trace_id String)))),
                aggregation_temporality Int32,
                is_monotonic Bool)
        ))))
    )))
)
ENGINE = Null;

-- For a table that was made before the columns were.
ALTER TABLE {database}.inbox
    ADD COLUMN IF NOT EXISTS grants Array(Tuple(customer_id String, agent_id String, expires_at_unix_nano UInt64)),
    ADD COLUMN IF NOT EXISTS customers_from String;

-- Our own metrics: monotonic delta Sums named `meterhouse.<meter>`. Everything else in a record is decoded by Python, which
-- takes exactly the complement (meterhouse_collector/foreign). A total function of the record: every exemplar and every
-- gap between a point and its exemplars becomes one row, with the reason why it does not count, or ''. Nothing here may
-- throw, and nothing of ours that parses may yield no row.
--
-- ClickHouse analyses this query again at each insert, which costs more than a small insert itself. So what several
-- expressions use is a column of an earlier step, instead of an alias that is expanded wherever it is used; and what
-- belongs to a resource or a point is worked out before its events are unfolded, as LowCardinality, whose copies are
-- numbers. inbox.py sets what else keeps the analysis short.
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.explode TO {database}.events AS
WITH
    -- An attribute as text whatever its type; '' when it is absent, or a list, a map or bytes. What is longer than 256
    -- bytes is bad; its first 64 characters, at most 256 bytes, are kept to be recognised. Characters that break lines,
    -- steer terminals or turn the order of what is beside them are kept as U+FFFD, as foreign/attributes.py has it:
    -- PostgreSQL takes no NUL, and one agent must not write in everybody's tables.
    '[\\p{Cc}\\x{2028}-\\x{202E}\\x{2066}-\\x{2069}]' AS unprintable,
    (t -> replaceRegexpAll(t, unprintable, '\xEF\xBF\xBD')) AS printed,
    (v -> coalesce(v.string_value, toString(v.int_value), toString(v.double_value), toString(v.bool_value), '')) AS as_text,
    (t -> printed(if(length(t) <= 256, t, leftUTF8(t, 64)))) AS cut,
    (s -> isNull(s) OR length(s) > 256) AS is_bad_identifier,
    resources AS (
        SELECT
            toLowCardinality(namespace) AS namespace,
            toLowCardinality(credential_id) AS credential_id,
            allowed_customers,
            grants,
            customers_from = 'grants' AS needs_grant,
            toLowCardinality(record_id) AS record_id,
            toLowCardinality(segment) AS segment,
            least(received_at_unix_nano, 9000000000000000000) AS received_ns,
            resource.resource.attributes AS resource_attributes,
            mapKeys(resource_attributes) AS resource_keys,
            toLowCardinality(cut(as_text(resource_attributes['meterhouse.process.id']))) AS process_id,
            toLowCardinality(cut(as_text(resource_attributes['service.name']))) AS service_name,
            length(resource_keys) != arrayUniq(resource_keys)
                OR arrayExists(
                    (k, s) -> k IN ('meterhouse.process.id', 'service.name') AND is_bad_identifier(s),
                    resource_keys, tupleElement(mapValues(resource_attributes), 'string_value')) AS resource_is_bad,
            resource.scope_metrics AS scopes,
            resource_at
        FROM {database}.inbox
        ARRAY JOIN metrics.resource_metrics AS resource, arrayEnumerate(metrics.resource_metrics) AS resource_at
    ),
    scopes_of_resources AS (
        SELECT
            namespace, credential_id, allowed_customers, grants, needs_grant, record_id, segment, received_ns,
            process_id, service_name,
            resource_is_bad, resource_at, scope_at,
            scope.metrics AS metrics
        FROM resources
        ARRAY JOIN scopes AS scope, arrayEnumerate(scopes) AS scope_at
    ),
    metrics_of_scopes AS (
        SELECT
            namespace, credential_id, allowed_customers, grants, needs_grant, record_id, segment, received_ns,
            process_id, service_name,
            resource_is_bad, resource_at, scope_at, metric_at,
            metric.name AS name,
            length(name) > 256 AS name_is_bad,
            toLowCardinality(printed(leftUTF8(substring(name, 12), if(name_is_bad, 64, 256)))) AS meter,
            metric.sum.data_points AS points
        FROM scopes_of_resources
        ARRAY JOIN metrics AS metric, arrayEnumerate(metrics) AS metric_at
        WHERE startsWith(name, 'meterhouse.') AND name != 'meterhouse.'
            AND metric.sum.aggregation_temporality = 1 AND metric.sum.is_monotonic  -- metrics.proto
    ),
    points_of_metrics AS (
        SELECT
            namespace, credential_id, allowed_customers, grants, needs_grant, record_id, segment, received_ns,
            process_id, service_name,
            resource_is_bad, name_is_bad, resource_at, scope_at, metric_at, point_at, meter,
            mapKeys(point.1) AS point_keys,
            mapValues(point.1) AS point_values,
            tupleElement(point_values, 'string_value') AS point_strings,
            point.2 AS point_time_ns,
            point.3 AS point_double,
            point.4 AS point_int,
            point.5 AS exemplars
        FROM metrics_of_scopes
        ARRAY JOIN points AS point, arrayEnumerate(points) AS point_at
    ),
    sums_of_points AS (
        SELECT
            *,
            length(exemplars) AS events,
            tupleElement(exemplars, 'as_int') AS ints,
            -- Integers are compared exactly. Doubles were added up in some order: n additions are off by n units in
            -- the last place at most, and half of the ninth decimal is beyond what a quantity may have.
            isNotNull(point_int) AND NOT has(ints, NULL) AS all_integers,
            toInt128(ifNull(point_int, 0)) - arraySum(i -> toInt128(ifNull(i, 0)), ints) AS integer_gap,
            coalesce(toFloat64(point_int), point_double, nan) AS point_float,
            arraySum(
                (i, d) -> coalesce(toFloat64(i), d, 0.), ints, tupleElement(exemplars, 'as_double')) AS exemplars_float,
            point_float - exemplars_float AS float_gap,
            CAST((point_keys, arrayMap(v -> cut(as_text(v)), point_values)), 'Map(String, String)') AS texts,
            arrayMap(k -> k IN (
                'customer.id', 'gen_ai.agent.id', 'gen_ai.agent.name', 'gen_ai.provider.name', 'gen_ai.response.model',
                'gen_ai.operation.name', 'gen_ai.tool.name', 'gen_ai.token.modality', 'cache.ttl', 'service.tier',
                'meterhouse.status'), point_keys) AS is_named
        FROM points_of_metrics
    ),
    judged_points AS (
        SELECT
            *,
            texts['customer.id'] AS customer_id,
            toLowCardinality(texts['gen_ai.agent.id']) AS agent_id,
            toLowCardinality(texts['gen_ai.agent.name']) AS agent_name,
            toLowCardinality(texts['gen_ai.provider.name']) AS provider,
            toLowCardinality(texts['gen_ai.response.model']) AS model,
            toLowCardinality(texts['gen_ai.operation.name']) AS operation,
            toLowCardinality(texts['gen_ai.tool.name']) AS tool,
            toLowCardinality(texts['gen_ai.token.modality']) AS modality,
            toLowCardinality(texts['cache.ttl']) AS cache_ttl,
            toLowCardinality(texts['service.tier']) AS service_tier,
            toLowCardinality(texts['meterhouse.status']) AS status,
            multiIf(
                all_integers, integer_gap != 0,
                isNull(point_int) AND isNull(point_double), true,
                isFinite(point_float) AND isFinite(exemplars_float),
                    abs(float_gap) > 5e-10 + 2.3e-16 * events * abs(point_float),
                toString(point_float) != toString(exemplars_float)) OR events = 0 AS has_gap,
            multiIf(
                all_integers, toDecimal128(integer_gap, 9),
                abs(float_gap) <= 1e15, ifNull(toDecimal128OrNull(toString(float_gap), 9), toDecimal128(0, 9)),
                toDecimal128(0, 9)) AS gap,
            -- The reasons that follow from the point. That of overflow comes first: the SDK writes the bool true, and
            -- whatever else stands there, the series has lost its customer.
            if(has(point_keys, 'otel.metric.overflow'), 'series_overflow', '') AS point_reason,
            resource_is_bad OR name_is_bad OR length(point_keys) != arrayUniq(point_keys)
                OR arrayExists(
                    (s, named) -> named AND is_bad_identifier(s), point_strings, is_named) AS point_is_bad,
            multiIf(
                customer_id = '', 'customer_missing',
                notEmpty(allowed_customers) AND NOT has(allowed_customers, customer_id), 'customer_forbidden',
                needs_grant AND granted_until_ns = 0, 'grant_missing',
                '') AS customer_reason,
            -- The latest expiry of the grants for this customer and agent.
            if(needs_grant, arrayMax(
                g -> if(g.1 = customer_id AND (g.2 = '' OR g.2 = agent_id), g.3, 0), grants
            ), 18446744073709551615) AS granted_until_ns,
            arrayMap((s, named) -> isNotNull(s) AND NOT named, point_strings, is_named) AS is_other,
            arrayFilter((k, other) -> other, point_keys, is_other) AS point_other_keys,
            arrayFilter((s, other) -> other, point_strings, is_other) AS point_other_values,
            -- One element more, all defaults, stands for the point as a whole.
            arrayResize(exemplars, events + has_gap) AS rows
        FROM sums_of_points
    ),
    events_of_points AS (
        SELECT
            namespace, credential_id, record_id, segment, received_ns, process_id, service_name,
            resource_at, scope_at, metric_at, point_at, event_at,
            meter, gap, point_reason, point_is_bad, customer_reason, granted_until_ns,
            customer_id, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, service_tier,
            status, point_other_keys, point_other_values,
            event_at > events AS is_whole_point,
            if(is_whole_point, point_time_ns, event.time_unix_nano) AS time_ns,
            if(is_whole_point, point_int, event.as_int) AS as_int,
            if(is_whole_point, point_double, event.as_double) AS as_double,
            event.trace_id AS trace,
            event.span_id AS span,
            mapKeys(event.filtered_attributes) AS keys,
            mapValues(event.filtered_attributes) AS values,
            tupleElement(values, 'string_value') AS strings
        FROM judged_points
        ARRAY JOIN rows AS event, arrayEnumerate(rows) AS event_at
    ),
    plain_events AS (
        SELECT
            *,
            -- As agents send them: each key once, texts only, none too long. Then nothing needs to be converted.
            length(keys) = arrayUniq(keys) AND arrayMax(s -> ifNull(length(s), 257), strings) <= 256
                AND NOT arrayExists(s -> ifNull(match(s, unprintable), false), strings) AS is_plain,
            -- The shortest text that gives the double back: its decimals can be counted, those of the double cannot.
            coalesce(toString(as_int), if(as_double = 0, '0', toString(as_double)), '') AS number,
            -- 400 days back, one day ahead.
            time_ns BETWEEN received_ns - least(received_ns, 34560000000000000)
                AND received_ns + 86400000000000 AS time_fits
        FROM events_of_points
    ),
    readable_events AS (
        SELECT
            *,
            CAST((
                keys,
                if(is_plain, arrayMap(s -> assumeNotNull(s), strings), arrayMap(v -> cut(as_text(v)), values))
            ), 'Map(String, String)') AS texts,
            arrayMap(k -> k IN (
                'meterhouse.event.id', 'meterhouse.call.id', 'meterhouse.task.id', 'gen_ai.conversation.id',
                'meterhouse.step', 'gen_ai.response.id', 'meterhouse.request.id', 'meterhouse.lease.id',
                'usage.source', 'meterhouse.once'), keys) AS is_named,
            multiIf(
                isNotNull(as_int), assumeNotNull(as_int) BETWEEN 0 AND 1000000000000000,
                isNotNull(as_double), assumeNotNull(as_double) <= 1e15 AND match(
                    number, '^([0-9]+([.][0-9]{1,9})?|[0-9]([.][0-9]{1,2})?e-7|[0-9]([.][0-9])?e-8|[0-9]e-9)$'),
                false) AS number_fits
        FROM plain_events
    ),
    named_events AS (
        SELECT
            *,
            texts['meterhouse.event.id'] AS given_event_id,
            match(given_event_id, '^[A-Za-z0-9_-]{1,64}$') AS has_event_id,
            texts['meterhouse.once'] AS once,
            once = 'true' AS is_once,
            toInt64(if(time_fits, time_ns, received_ns)) AS told_ns,
            -- The one that is no identifier may be a boolean, too. Anything else is nobody's to guess.
            NOT is_plain AND (length(keys) != arrayUniq(keys)
                OR arrayExists(
                    (k, s, named) -> named AND k != 'meterhouse.once' AND is_bad_identifier(s), keys, strings, is_named)
            ) OR once NOT IN ('', 'true', 'false') AS event_is_bad,
            arrayMap((s, named) -> isNotNull(s) AND NOT named, strings, is_named) AS is_other,
            arraySlice(arrayConcat(
                arrayFilter((k, other) -> other, keys, is_other), point_other_keys), 1, 32) AS other_keys,
            arraySlice(arrayConcat(
                arrayFilter((s, other) -> other, strings, is_other), point_other_values), 1, 32) AS other_values
        FROM readable_events
    ),
    judged_events AS (
        SELECT
            *,
            multiIf(
                point_reason != '', point_reason,
                is_whole_point, 'exemplars_missing',
                point_is_bad OR event_is_bad, 'bad_identifier',
                customer_reason != '', customer_reason,
                time_ns > granted_until_ns, 'grant_expired',
                NOT has_event_id, 'event_id_missing',
                NOT number_fits, 'bad_quantity',
                ifNull(as_double != trunc(as_double), false) AND meter IN ({whole_meters}), 'fractional_quantity',
                NOT time_fits, 'time_out_of_range',
                '') AS reason
        FROM named_events
    )
SELECT
    namespace, customer_id, meter,
    if(has_event_id, given_event_id, concat('suspended-', lower(hex(
        sipHash128(toString(record_id), resource_at, scope_at, metric_at, point_at, event_at))))) AS event_id,
    fromUnixTimestamp64Nano(if(is_once, 0, told_ns), 'UTC') AS event_time,
    fromUnixTimestamp64Nano(if(is_once, told_ns, 0), 'UTC') AS once_time,
    multiIf(
        is_whole_point, gap,
        NOT number_fits, toDecimal128(0, 9),
        isNotNull(as_int), toDecimal128(assumeNotNull(as_int), 9),
        ifNull(toDecimal128OrNull(number, 9), toDecimal128(0, 9))) AS quantity,
    if(reason = '', '', number) AS raw_value,
    reason, status, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, service_tier,
    texts['meterhouse.call.id'] AS call_id,
    texts['meterhouse.task.id'] AS task_id,
    texts['gen_ai.conversation.id'] AS conversation_id,
    texts['meterhouse.step'] AS step,
    texts['gen_ai.response.id'] AS response_id,
    texts['meterhouse.request.id'] AS request_id,
    lower(hex(trace)) AS trace_id,
    lower(hex(span)) AS span_id,
    texts['meterhouse.lease.id'] AS lease_id,
    texts['usage.source'] AS usage_source,
    toLowCardinality('meterhouse') AS source,
    CAST((
        arrayConcat(if(time_fits, [], ['meterhouse.raw_time_unix_nano']), arrayMap(k -> printed(k), other_keys)),
        arrayConcat(if(time_fits, [], [toString(time_ns)]),
            arrayMap(s -> printed(leftUTF8(assumeNotNull(s), 1024)), other_values))
    ), 'Map(String, String)') AS attributes,
    credential_id, process_id, service_name,
    fromUnixTimestamp64Nano(toInt64(received_ns), 'UTC') AS received_at,
    segment, record_id,
    -- The largest survives. Suspended copies rank in the lower half: none may displace a copy that counts.
    if(reason = '', bitNot(received_ns), bitShiftRight(bitNot(received_ns), 1)) AS first
FROM judged_events;
