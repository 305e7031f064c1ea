-- What finance reads. Each row says as of when it is known and whether it can still change (is_closed); amounts stand in
-- minor units and as exact decimals, always beside their currency: none of these may be added to another's.
--
-- `accounted_at` says in which month something counts: what was rated counts where the middle of its period lies, so that
-- a customer's October is October in every time zone; all else counts when it happened.

CREATE OR REPLACE VIEW {database}.finance_entries AS
SELECT
    entry.namespace AS namespace, entry.customer_id AS customer_id,
    if(line.rating_id = '', entry.effective_at, line.middle) AS accounted_at,
    toStartOfMonth(accounted_at) AS month,
    entry.account AS account, entry.kind AS kind, entry.currency AS currency, entry.amount_minor AS amount_minor,
    toDecimal128(entry.amount_minor, 3) / {minor_units:entry.currency} AS amount,
    entry.memo AS description, line.component AS component, line.metric AS metric, line.plan AS plan,
    line.rating_id AS rating_id, line.period_start AS period_start, line.period_end AS period_end,
    entry.transaction_id AS transaction_id, entry.position AS position, entry.source_id AS source_id,
    entry.corrects AS corrects, entry.effective_at AS effective_at, entry.recorded_at AS as_of, true AS is_closed
FROM {database}.mirror_ledger_entries AS entry FINAL
LEFT JOIN (
    SELECT
        namespace, line_id, rating_id, component, metric, plan, period_start, period_end,
        period_start + toIntervalSecond(intDiv(dateDiff('second', period_start, period_end), 2)) AS middle
    FROM {database}.rated_lines
    WHERE state = 'closed'
) AS line ON entry.namespace = line.namespace AND entry.source_id = line.line_id;

-- Usage counts in the month of the rating that it belongs to, so that it agrees with revenue. Whoever asks for a month
-- bounds event_time too, by 40 days more on either side: accounted_at alone reads all there is.
CREATE OR REPLACE VIEW {database}.finance_usage AS
SELECT
    used.namespace AS namespace, used.billed_customer_id AS customer_id,
    used.event_time < rating.period_end AS is_rated,
    if(is_rated, rating.middle, toDateTime64(used.event_time, 6, 'UTC')) AS accounted_at,
    toStartOfMonth(accounted_at) AS month, toDate(used.event_time) AS day, used.event_time AS event_time,
    used.meter AS meter,
    used.provider AS provider, used.model AS model, used.agent_name AS agent, used.tool AS tool,
    used.conversation_id AS conversation_id, used.status AS status, used.source AS source, used.quantity AS quantity,
    toUInt64(1) AS events,
    (SELECT min(projected_through) FROM {database}.watermark) AS as_of,
    is_rated AND rating.state = 'closed' AS is_closed
FROM {database}.usage AS used
ASOF LEFT JOIN (
    SELECT
        namespace, customer_id, state, toDateTime64(period_start, 9, 'UTC') AS period_start,
        toDateTime64(period_end, 9, 'UTC') AS period_end,
        mirror_ratings.period_start
            + toIntervalSecond(intDiv(dateDiff('second', mirror_ratings.period_start, mirror_ratings.period_end), 2))
            AS middle
    FROM {database}.mirror_ratings FINAL
    WHERE result_sha256 != ''
) AS rating
    ON used.namespace = rating.namespace AND used.billed_customer_id = rating.customer_id
    AND used.event_time >= rating.period_start;

-- The same by day (UTC): rows to be summed, and no conversations. A day within which a rating of the customer begins or
-- ends is there event by event.
CREATE OR REPLACE VIEW {database}.finance_usage_by_day AS
WITH (SELECT (customer_days, days) FROM {database}.rating_breaks) AS breaks
SELECT
    used.namespace AS namespace, used.billed_customer_id AS customer_id,
    used.at < rating.period_end AS is_rated,
    if(is_rated, rating.middle, toDateTime64(used.at, 6, 'UTC')) AS accounted_at,
    toStartOfMonth(accounted_at) AS month, used.day AS day, used.meter AS meter,
    used.provider AS provider, used.model AS model, used.agent_name AS agent, used.tool AS tool,
    used.status AS status, used.source AS source, used.quantity AS quantity, used.events AS events,
    (SELECT min(projected_through) FROM {database}.watermark) AS as_of,
    is_rated AND rating.state = 'closed' AS is_closed
FROM (
    SELECT
        namespace, billed_customer_id, day, toDateTime64(day, 9, 'UTC') AS at, meter, provider, model, agent_name, tool,
        status, source, quantity, events
    FROM {database}.usage_by_day
    WHERE cityHash64(namespace, billed_customer_id, day) NOT IN (SELECT arrayJoin(tupleElement(breaks, 1)))
    UNION ALL
    SELECT
        namespace, billed_customer_id, toDate(event_time) AS day, event_time AS at, meter, provider, model, agent_name,
        tool, status, source, quantity, toUInt64(1) AS events
    FROM {database}.usage
    WHERE cityHash64(namespace, billed_customer_id, toDate(event_time)) IN (SELECT arrayJoin(tupleElement(breaks, 1)))
        AND toDate(event_time) IN (SELECT arrayJoin(tupleElement(breaks, 2)))
) AS used
ASOF LEFT JOIN (
    SELECT
        namespace, customer_id, state, toDateTime64(period_start, 9, 'UTC') AS period_start,
        toDateTime64(period_end, 9, 'UTC') AS period_end,
        mirror_ratings.period_start
            + toIntervalSecond(intDiv(dateDiff('second', mirror_ratings.period_start, mirror_ratings.period_end), 2))
            AS middle
    FROM {database}.mirror_ratings FINAL
    WHERE result_sha256 != ''
) AS rating
    ON used.namespace = rating.namespace AND used.billed_customer_id = rating.customer_id
    AND used.at >= rating.period_start;

-- What is rated and not on an invoice that went out: `stage` says how far it came.
CREATE OR REPLACE VIEW {database}.finance_unbilled AS
SELECT
    line.namespace AS namespace, line.customer_id AS customer_id,
    line.period_start + toIntervalSecond(intDiv(dateDiff('second', line.period_start, line.period_end), 2))
        AS accounted_at,
    toStartOfMonth(accounted_at) AS month,
    multiIf(line.state = 'open', 'period open', invoice.state = '', 'closed, no invoice', invoice.state) AS stage,
    line.plan AS plan, line.kind AS kind, line.component AS component, line.metric AS metric,
    line.description AS description, line.quantity AS quantity, line.unit AS unit, line.currency AS currency,
    line.amount_minor AS amount_minor, toDecimal128(line.amount_minor, 3) / {minor_units:line.currency} AS amount,
    line.period_start AS period_start, line.period_end AS period_end, line.rating_id AS rating_id,
    line.line_id AS line_id, line.rated_at AS as_of, line.state = 'closed' AS is_closed
FROM {database}.rated_lines AS line
LEFT JOIN {database}.mirror_invoices AS invoice FINAL
    ON line.namespace = invoice.namespace AND line.customer_id = invoice.customer_id
    AND line.rating_id = invoice.rating_id
WHERE invoice.state IN ('', 'draft', 'in review', 'approved');

CREATE OR REPLACE VIEW {database}.finance_invoices AS
SELECT
    invoice.namespace AS namespace, invoice.customer_id AS customer_id,
    invoice.period_start + toIntervalSecond(intDiv(dateDiff('second', invoice.period_start, invoice.period_end), 2))
        AS accounted_at,
    toStartOfMonth(accounted_at) AS month,
    invoice.state AS state, invoice.number AS number, invoice.currency AS currency,
    invoice.total_minor AS total_minor, toDecimal128(total_minor, 3) / {minor_units:invoice.currency} AS total,
    paid.paid_minor AS paid_minor, toDecimal128(paid_minor, 3) / {minor_units:invoice.currency} AS paid,
    invoice.tax_added_minor AS tax_added_minor, invoice.tax_contained_minor AS tax_contained_minor,
    invoice.credited_minor AS credited_minor,
    if(invoice.finalised_at IS NULL OR invoice.state = 'void', 0,
        total_minor + tax_added_minor - credited_minor - paid_minor) AS outstanding_minor,
    toDecimal128(outstanding_minor, 3) / {minor_units:invoice.currency} AS outstanding,
    invoice.stripe_total_minor AS stripe_total_minor,
    invoice.period_start AS period_start, invoice.period_end AS period_end, invoice.created_at AS created_at,
    invoice.finalised_at AS finalised_at, invoice.paid_at AS paid_at, invoice.rating_id AS rating_id,
    invoice.invoice_id AS invoice_id, invoice.stripe_invoice_id AS stripe_invoice_id,
    greatest(invoice.created_at, coalesce(invoice.finalised_at, invoice.created_at),
        coalesce(invoice.paid_at, invoice.created_at)) AS as_of,
    invoice.state IN ('paid', 'void') AS is_closed
FROM {database}.mirror_invoices AS invoice FINAL
LEFT JOIN (
    SELECT namespace, invoice_id, sum(amount_minor) AS paid_minor
    FROM {database}.mirror_payments FINAL
    GROUP BY namespace, invoice_id
) AS paid ON invoice.namespace = paid.namespace AND invoice.invoice_id = paid.invoice_id;

-- A closed rating, and what it came to at each station on its way: rated, posted, on the invoice, at Stripe, paid.
CREATE OR REPLACE VIEW {database}.finance_reconciliation AS
SELECT
    rating.namespace AS namespace, rating.customer_id AS customer_id,
    rating.period_start + toIntervalSecond(intDiv(dateDiff('second', rating.period_start, rating.period_end), 2))
        AS accounted_at,
    toStartOfMonth(accounted_at) AS month,
    rating.period_start AS period_start, rating.period_end AS period_end, rating.currency AS currency,
    rating.total_minor AS rated_minor, line.lines_minor AS lines_minor, posted.ledger_minor AS ledger_minor,
    if(invoice.invoice_id = '', NULL, invoice.total_minor) AS invoice_minor,
    invoice.stripe_total_minor - invoice.tax_added_minor AS stripe_minor, invoice.paid_minor AS paid_minor,
    invoice.tax_added_minor AS tax_added_minor,
    if(invoice.invoice_id = '', 'no invoice', invoice.state) AS state, invoice.number AS number,
    arrayStringConcat(arrayFilter(told -> told != '', [
        if(lines_minor != rated_minor, 'lines', ''),
        if(ledger_minor != rated_minor, 'ledger', ''),
        if(invoice_minor IS NOT NULL AND invoice_minor != rated_minor, 'invoice', ''),
        if(stripe_minor IS NOT NULL AND stripe_minor != rated_minor, 'stripe', ''),
        if(invoice.state = 'paid' AND paid_minor != rated_minor + tax_added_minor - invoice.credited_minor
            AND rated_minor > 0, 'paid', ''),
        if(paid_minor > greatest(rated_minor, 0) + tax_added_minor, 'overpaid', '')
    ]), ', ') AS differs,
    rating.rating_id AS rating_id, rating.rated_at AS as_of, true AS is_closed
FROM {database}.mirror_ratings AS rating FINAL
LEFT JOIN (
    SELECT namespace, rating_id, sum(amount_minor) AS lines_minor
    FROM {database}.rated_lines
    GROUP BY namespace, rating_id
) AS line ON rating.namespace = line.namespace AND rating.rating_id = line.rating_id
LEFT JOIN (
    SELECT namespace, rating_id, sum(amount_minor) AS ledger_minor
    FROM {database}.finance_entries
    WHERE account = 'receivable'
    GROUP BY namespace, rating_id
) AS posted ON rating.namespace = posted.namespace AND rating.rating_id = posted.rating_id
LEFT JOIN {database}.finance_invoices AS invoice
    ON rating.namespace = invoice.namespace AND rating.rating_id = invoice.rating_id
WHERE rating.state = 'closed' AND rating.result_sha256 != '';
