-- Journal records arrive here as Protobuf (rec.proto), unchanged; nothing is stored in this table. `{attributes}` is the
-- type of an attribute map, see __init__.py.

CREATE TABLE IF NOT EXISTS {database}.inbox
(
    credential_id String,
    namespace String,
    allowed_customers Array(String),
    received_at_unix_nano UInt64,
    record_id String,
    segment String,
    metrics Tuple(resource_metrics Array(Tuple(
        resource Tuple(attributes {attributes}),
        scope_metrics Array(Tuple(metrics Array(Tuple(
            name String,
            gauge Tuple(data_points Array(Tuple(
                attributes {attributes}, time_unix_nano UInt64, as_double Nullable(Float64), as_int Nullable(Int64)))),
            sum Tuple(
                data_points Array(Tuple(
                    attributes {attributes}, time_unix_nano UInt64,
                    as_double Nullable(Float64), as_int Nullable(Int64),
                    exemplars Array(Tuple(
                        filtered_attributes {attributes}, time_unix_nano UInt64,
                        as_double Nullable(Float64), as_int Nullable(Int64), span_id String, trace_id String)))),
                aggregation_temporality Int32,
                is_monotonic Bool),
            histogram Tuple(data_points Array(Tuple(
                attributes {attributes}, time_unix_nano UInt64, count UInt64, sum Nullable(Float64)))),
            exponential_histogram Tuple(data_points Array(Tuple(
                attributes {attributes}, time_unix_nano UInt64, count UInt64, sum Nullable(Float64)))),
            summary Tuple(data_points Array(Tuple(
                attributes {attributes}, time_unix_nano UInt64, count UInt64, sum Nullable(Float64))))
        ))))
    )))
)
ENGINE = Null;

-- A total function of the record: every exemplar of ours, every gap between a point and its exemplars, and every point
-- that is not ours becomes one row, with the reason why it does not count, or ''. Nothing here may throw, and nothing
-- that parses may yield no row. To be read from the inside out: resources, scopes, metrics, points, events.
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.explode TO {database}.events AS
WITH
    -- An attribute as text whatever its type; '' when it is absent, or a list, a map or bytes.
    (v -> coalesce(v.string_value, toString(v.int_value), toString(v.double_value), toString(v.bool_value), '')) AS as_text,
    -- What is longer than 256 bytes is bad; its first 64 characters, at most 256 bytes, are kept to be recognised.
    (t -> if(length(t) <= 256, t, leftUTF8(t, 64))) AS cut,
    (a -> CAST((mapKeys(a), arrayMap(v -> cut(as_text(v)), mapValues(a))), 'Map(String, String)')) AS texts,
    (a -> length(a) != length(arrayDistinct(mapKeys(a)))) AS has_key_twice,
    (a -> tupleElement(mapValues(a), 'string_value')) AS strings,
    (s -> isNull(s) OR length(s) > 256) AS is_bad_identifier,
    (k -> k IN (
        'customer.id', 'gen_ai.agent.id', 'gen_ai.agent.name', 'gen_ai.provider.name', 'gen_ai.response.model',
        'gen_ai.operation.name', 'gen_ai.tool.name', 'gen_ai.token.modality', 'cache.ttl', 'service.tier',
        'meterhouse.status')) AS is_point_key,
    (k -> k IN (
        'meterhouse.event.id', 'meterhouse.call.id', 'meterhouse.task.id', 'gen_ai.conversation.id', 'meterhouse.step',
        'gen_ai.response.id', 'meterhouse.request.id', 'meterhouse.lease.id', 'usage.source')) AS is_event_key,
    -- The shortest text that gives the double back: its decimals can be counted, those of the double itself cannot.
    (x -> if(x = 0, '0', toString(x))) AS shortest,
    -- Histograms and summaries in the shape of a number: what was added up is the number, the count a note.
    (h -> (h.attributes, h.time_unix_nano, h.sum, CAST(NULL, 'Nullable(Int64)'), [])) AS as_point,
    (h -> concat(' sum of ', toString(h.count))) AS as_note
SELECT
    namespace, customer_id, meter,
    if(has_event_id, given_event_id, concat('suspended-', lower(hex(
        sipHash128(record_id, resource_at, scope_at, metric_at, point_at, event_at))))) AS event_id,
    fromUnixTimestamp64Nano(toInt64(if(time_fits, time_ns, received_ns)), 'UTC') AS event_time,
    multiIf(
        is_ours AND is_whole_point, gap,
        NOT number_fits, toDecimal128(0, 9),
        isNotNull(as_int), toDecimal128(assumeNotNull(as_int), 9),
        ifNull(toDecimal128OrNull(number, 9), toDecimal128(0, 9))) AS quantity,
    if(reason = '', '', concat(number, note)) AS raw_value,
    multiIf(
        NOT is_ours, 'source_unsupported',
        overflow, 'series_overflow',
        is_whole_point, 'exemplars_missing',
        point_is_bad OR event_is_bad, 'bad_identifier',
        customer_id = '', 'customer_missing',
        notEmpty(allowed_customers) AND NOT has(allowed_customers, customer_id), 'customer_forbidden',
        NOT has_event_id, 'event_id_missing',
        NOT number_fits, 'bad_quantity',
        NOT time_fits, 'time_out_of_range',
        '') AS reason,
    status, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, service_tier,
    event_texts['meterhouse.call.id'] AS call_id,
    event_texts['meterhouse.task.id'] AS task_id,
    event_texts['gen_ai.conversation.id'] AS conversation_id,
    event_texts['meterhouse.step'] AS step,
    event_texts['gen_ai.response.id'] AS response_id,
    event_texts['meterhouse.request.id'] AS request_id,
    lower(hex(event.trace_id)) AS trace_id,
    lower(hex(event.span_id)) AS span_id,
    event_texts['meterhouse.lease.id'] AS lease_id,
    event_texts['usage.source'] AS usage_source,
    source,
    CAST((
        arrayConcat(if(time_fits, [], ['meterhouse.raw_time_unix_nano']), other_keys),
        arrayConcat(if(time_fits, [], [toString(time_ns)]),
            arrayMap(s -> leftUTF8(assumeNotNull(s), 1024), other_values))
    ), 'Map(String, String)') AS attributes,
    credential_id, process_id, service_name,
    fromUnixTimestamp64Nano(toInt64(received_ns), 'UTC') AS received_at,
    segment, record_id,
    -- The largest survives. Suspended copies rank in the lower half: none may displace a copy that counts.
    if(reason = '', bitNot(received_ns), bitShiftRight(bitNot(received_ns), 1)) AS first
FROM
(
    SELECT
        *, event, event_at,
        event.filtered_attributes AS event_attributes,
        texts(event_attributes) AS event_texts,
        event_texts['meterhouse.event.id'] AS given_event_id,
        match(given_event_id, '^[A-Za-z0-9_-]{1,64}$') AS has_event_id,
        event_at > events AS is_whole_point,
        if(is_whole_point, point_time_ns, event.time_unix_nano) AS time_ns,
        -- 400 days back, one day ahead.
        time_ns BETWEEN received_ns - least(received_ns, 34560000000000000) AND received_ns + 86400000000000 AS time_fits,
        if(is_whole_point, point_int, event.as_int) AS as_int,
        if(is_whole_point, point_double, event.as_double) AS as_double,
        coalesce(toString(as_int), shortest(as_double), '') AS number,
        multiIf(
            isNotNull(as_int), assumeNotNull(as_int) BETWEEN 0 AND 1000000000000000,
            isNotNull(as_double), assumeNotNull(as_double) <= 1e15 AND match(
                number, '^([0-9]+([.][0-9]{1,9})?|[0-9]([.][0-9]{1,2})?e-7|[0-9]([.][0-9])?e-8|[0-9]e-9)$'),
            false) AS number_fits,
        has_key_twice(event_attributes)
            OR arrayExists(
                (k, s) -> is_event_key(k) AND is_bad_identifier(s), mapKeys(event_attributes), strings(event_attributes)) AS event_is_bad,
        arrayFilter((k, s) -> isNotNull(s) AND NOT is_event_key(k),
            mapKeys(event_attributes), strings(event_attributes)) AS event_other_keys,
        arrayFilter((s, k) -> isNotNull(s) AND NOT is_event_key(k),
            strings(event_attributes), mapKeys(event_attributes)) AS event_other_values,
        arraySlice(arrayConcat(event_other_keys, point_other_keys), 1, 32) AS other_keys,
        arraySlice(arrayConcat(event_other_values, point_other_values), 1, 32) AS other_values
    FROM
    (
        SELECT
            namespace, credential_id, allowed_customers, received_ns, record_id, segment, process_id, service_name,
            resource_at, scope_at, metric_at, point_at, meter, is_ours, source, note,
            point.1 AS point_attributes,
            texts(point_attributes) AS point_texts,
            point.2 AS point_time_ns,
            point.3 AS point_double,
            point.4 AS point_int,
            arraySlice(point.5, 1, if(is_ours, length(point.5), 0)) AS exemplars,
            length(exemplars) AS events,
            -- Integers are compared exactly. Doubles were added up in some order: n additions are off by n units in
            -- the last place at most, and half of the ninth decimal is beyond what a quantity may have.
            isNotNull(point_int) AND arrayAll(e -> isNotNull(e.as_int), exemplars) AS all_integers,
            toInt128(ifNull(point_int, 0)) - arraySum(e -> toInt128(ifNull(e.as_int, 0)), exemplars) AS integer_gap,
            coalesce(toFloat64(point_int), point_double, nan) AS point_float,
            arraySum(e -> coalesce(toFloat64(e.as_int), e.as_double, 0.), exemplars) AS exemplars_float,
            point_float - exemplars_float AS float_gap,
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
            point_texts['customer.id'] AS customer_id,
            point_texts['gen_ai.agent.id'] AS agent_id,
            point_texts['gen_ai.agent.name'] AS agent_name,
            point_texts['gen_ai.provider.name'] AS provider,
            point_texts['gen_ai.response.model'] AS model,
            point_texts['gen_ai.operation.name'] AS operation,
            point_texts['gen_ai.tool.name'] AS tool,
            point_texts['gen_ai.token.modality'] AS modality,
            point_texts['cache.ttl'] AS cache_ttl,
            point_texts['service.tier'] AS service_tier,
            point_texts['meterhouse.status'] AS status,
            -- The SDK writes the bool true; whatever else stands there, the series has lost its customer.
            mapContains(point_attributes, 'otel.metric.overflow') AS overflow,
            resource_is_bad OR name_is_bad OR has_key_twice(point_attributes)
                OR arrayExists(
                    (k, s) -> is_point_key(k) AND is_bad_identifier(s), mapKeys(point_attributes), strings(point_attributes)) AS point_is_bad,
            arrayFilter((k, s) -> isNotNull(s) AND NOT is_point_key(k),
                mapKeys(point_attributes), strings(point_attributes)) AS point_other_keys,
            arrayFilter((s, k) -> isNotNull(s) AND NOT is_point_key(k),
                strings(point_attributes), mapKeys(point_attributes)) AS point_other_values,
            -- One element more, all defaults, stands for the point as a whole.
            arrayResize(exemplars, if(is_ours, events + has_gap, 1)) AS rows
        FROM
        (
            SELECT
                namespace, credential_id, allowed_customers, received_ns, record_id, segment, process_id, service_name,
                resource_is_bad, resource_at, scope_at, metric_at, name_is_bad, meter,
                has_our_name AND kind = 'otel.sum' AND metric.sum.aggregation_temporality = 1 AND metric.sum.is_monotonic
                    AS is_ours,  -- 1: delta (metrics.proto, AggregationTemporality)
                if(is_ours, 'meterhouse', kind) AS source,
                point, note, point_at
            FROM
            (
                SELECT
                    *, metric, metric_at,
                    startsWith(metric.name, 'meterhouse.') AND metric.name != 'meterhouse.' AS has_our_name,
                    length(metric.name) > 256 AS name_is_bad,
                    leftUTF8(if(has_our_name, substring(metric.name, 12), metric.name), if(name_is_bad, 64, 256)) AS meter,
                    metric.sum.data_points AS sums,
                    metric.gauge.data_points AS gauges,
                    metric.histogram.data_points AS histograms,
                    metric.exponential_histogram.data_points AS exponential_histograms,
                    metric.summary.data_points AS summaries,
                    arrayConcat(
                        sums,
                        arrayMap(g -> (g.attributes, g.time_unix_nano, g.as_double, g.as_int, []), gauges),
                        arrayMap(as_point, histograms),
                        arrayMap(as_point, exponential_histograms),
                        arrayMap(as_point, summaries)) AS points,
                    arrayConcat(
                        arrayWithConstant(length(sums) + length(gauges), ''),
                        arrayMap(as_note, histograms),
                        arrayMap(as_note, exponential_histograms),
                        arrayMap(as_note, summaries)) AS notes,
                    arrayConcat(
                        arrayWithConstant(length(sums), 'otel.sum'),
                        arrayWithConstant(length(gauges), 'otel.gauge'),
                        arrayWithConstant(length(histograms), 'otel.histogram'),
                        arrayWithConstant(length(exponential_histograms), 'otel.exponential_histogram'),
                        arrayWithConstant(length(summaries), 'otel.summary')) AS kinds
                FROM
                (
                    SELECT *, scope_at, scope.metrics AS metrics
                    FROM
                    (
                        SELECT
                            namespace, credential_id, allowed_customers, record_id, segment,
                            least(received_at_unix_nano, 9000000000000000000) AS received_ns,
                            texts(resource.resource.attributes)['meterhouse.process.id'] AS process_id,
                            texts(resource.resource.attributes)['service.name'] AS service_name,
                            has_key_twice(resource.resource.attributes)
                                OR arrayExists(
                                    (k, s) -> k IN ('meterhouse.process.id', 'service.name') AND is_bad_identifier(s),
                                    mapKeys(resource.resource.attributes), strings(resource.resource.attributes)) AS resource_is_bad,
                            resource.scope_metrics AS scopes,
                            resource_at
                        FROM {database}.inbox
                        ARRAY JOIN
                            metrics.resource_metrics AS resource,
                            arrayEnumerate(metrics.resource_metrics) AS resource_at
                    )
                    ARRAY JOIN scopes AS scope, arrayEnumerate(scopes) AS scope_at
                )
                ARRAY JOIN metrics AS metric, arrayEnumerate(metrics) AS metric_at
            )
            ARRAY JOIN points AS point, notes AS note, kinds AS kind, arrayEnumerate(points) AS point_at
        )
    )
    ARRAY JOIN rows AS event, arrayEnumerate(rows) AS event_at
);
