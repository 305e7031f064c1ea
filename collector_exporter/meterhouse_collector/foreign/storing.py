"""Foreign rows in ClickHouse: inserted by column, totals counted, spans settled once all that may be twins is there."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse.vocabulary import REASON_SPAN_AMBIGUOUS, REASON_TWIN
from meterhouse_collector.foreign import counting
from meterhouse_collector.foreign.judging import UNAUTHORISED
from meterhouse_collector.foreign.rows import CumulativePoint, Event, Rows, Span, columns, values
from meterhouse_collector.foreign.spans import METERS
from meterhouse_collector.foreign.twins import DAY_NS, Call, Metered, judge

AMBIGUOUS_VERSION: Final = 2**64 - 2**60 - 1
"""Of rows: it supersedes every copy of its row. Those of higher verdicts follow it, decisions are far above."""
SUSPENDED_AMBIGUOUS_VERSION: Final = 2**63 - 2**59
"""The same of rows of which all copies are suspended: it supersedes them, and a copy that counts supersedes it. So what
the verdict is about is the earliest copy that counts, wherever the ranges were cut and whichever copy came first."""
_IDS_PER_QUERY: Final = 300
_ANY_MONTH: Final[dict[str, Any]] = {"max_partitions_per_insert_block": 0}
_ID: Final = re.compile("[0-9a-f]{32}-[0-9a-f]{16}")

_RECEIVED: Final = (
    "received_at BETWEEN fromUnixTimestamp64Nano({from_ns:Int64}, 'UTC') "
    "AND fromUnixTimestamp64Nano({through_ns:Int64}, 'UTC')"
)
# Traces whose verdict may have changed by what was received: those of its spans, of spans with the same response id,
# and those that its Meterhouse events speak of.
_TOUCHED: Final = f"""
    SELECT namespace, trace_id FROM spans WHERE {_RECEIVED}
    UNION DISTINCT
    SELECT namespace, trace_id FROM spans WHERE is_call AND response_id != '' AND (namespace, response_id) IN (
        SELECT namespace, response_id FROM spans WHERE is_call AND response_id != '' AND {_RECEIVED}
        UNION DISTINCT
        SELECT namespace, response_id FROM events WHERE source = 'meterhouse' AND response_id != '' AND {_RECEIVED})
    UNION DISTINCT
    SELECT namespace, trace_id FROM spans WHERE is_call AND (namespace, trace_id) IN (
        SELECT namespace, trace_id FROM events WHERE source = 'meterhouse' AND trace_id != '' AND {_RECEIVED})
"""  # noqa: S608 (constants of this module)
_SPANS: Final = f"""
    SELECT namespace, trace_id, span_id, parent_id, toUnixTimestamp64Nano(start_time), toUnixTimestamp64Nano(end_time),
        is_call, has_usage, may_report, provider, response_id
    FROM spans FINAL WHERE length(trace_id) = 32 AND (namespace, trace_id) IN ({_TOUCHED})
"""  # noqa: S608
# An event is received a day before its time at the earliest (else it is out of range), and matches within a day.
_METERED: Final = f"""
    SELECT DISTINCT namespace, trace_id, span_id, provider, response_id, toUnixTimestamp64Nano(event_time)
    FROM events
    WHERE source = 'meterhouse' AND received_at >= fromUnixTimestamp64Nano({{since_ns:Int64}}, 'UTC')
        AND reason NOT IN {{unauthorised:Array(String)}}
        AND (
            (trace_id != '' AND (namespace, trace_id, span_id) IN (
                SELECT namespace, trace_id, span_id FROM spans WHERE is_call AND (namespace, trace_id) IN ({_TOUCHED})))
            OR (response_id != '' AND (namespace, response_id) IN (
                SELECT namespace, response_id FROM spans
                WHERE is_call AND response_id != '' AND (namespace, trace_id) IN ({_TOUCHED})))
        )
"""  # noqa: S608
_WITHOUT: Final = """
    FROM events FINAL
    WHERE source = 'otel.span'
        AND events.first < if(events.first < 9223372036854775808, {suspended:UInt64}, {version:UInt64})
        AND (namespace, customer_id, meter, event_time, event_id) IN (
            SELECT namespace, customer_id, arrayJoin({meters:Array(String)}), event_time, concat(trace_id, '-', span_id)
            FROM spans
            WHERE namespace = {namespace:String} AND trace_id IN {traces:Array(String)}
                AND concat(trace_id, '-', span_id) IN {ids:Array(String)}
        )
"""
_LACKING: Final = f"SELECT count() {_WITHOUT}"
# The same rows with another reason, as later versions of them.
_SUPERSEDE: Final = f"""
    INSERT INTO events
    SELECT * REPLACE (
        {{why:String}} AS reason,
        if(events.first < 9223372036854775808, {{suspended:UInt64}}, {{version:UInt64}}) AS first,
        if(events.reason IN {{verdicts:Array(String)}}, original_reason, events.reason) AS original_reason)
    {_WITHOUT}
"""


def insert(client: Client, rows: Rows, settings: dict[str, Any]) -> None:
    """Store rows and the increases that follow; those that are there already are equal by their keys."""
    tables: tuple[tuple[str, type, list[Any]], ...] = (
        ("events", Event, rows.events),
        ("cumulative_points", CumulativePoint, rows.points),
        ("spans", Span, rows.spans),
    )
    for table, kind, found in tables:
        if found:
            types = columns(kind)
            client.insert(
                table,
                [values(row) for row in found],
                column_names=list(types),
                column_type_names=list(types.values()),
                settings=settings | _ANY_MONTH | {"optimize_on_insert": 0},
            )
    if rows.points:
        counting.bring_up_to_date(client, rows.points, settings)


def settle_spans(client: Client, from_ns: int, through_ns: int, settings: dict[str, Any]) -> None:
    """Leave out the spans that are twins, suspend the ambiguous ones and circles, by what was received in this time.

    Where there are no spans at all this is one query that reads nothing.
    """
    for parameters in _verdicts(client, from_ns, through_ns):
        client.command(_SUPERSEDE, parameters=parameters, settings=settings | _ANY_MONTH)


def unsettled(client: Client, from_ns: int, through_ns: int) -> int:
    """How many rows lack the verdict that `settle_spans` would give them."""
    found = (client.query(_LACKING, parameters=told).result_rows for told in _verdicts(client, from_ns, through_ns))
    return sum(int(rows[0][0]) for rows in found)


def _verdicts(client: Client, from_ns: int, through_ns: int) -> Iterator[dict[str, Any]]:
    """What was received in this time comes to, as the parameters of queries about the rows."""
    if not client.query("SELECT 1 FROM spans LIMIT 1").result_rows:
        return
    parameters = {"from_ns": from_ns, "through_ns": through_ns}
    calls = [Call(*row) for row in client.query(_SPANS, parameters=parameters).result_rows]
    ends = [call.end_ns for call in calls if call.is_call]
    if not ends:
        return
    since_ns = max(0, min(ends) - 2 * DAY_NS)
    more = parameters | {"since_ns": since_ns, "unauthorised": list(UNAUTHORISED)}
    verdicts = judge(calls, [Metered(*row) for row in client.query(_METERED, parameters=more).result_rows])
    ranks = (
        (verdicts.ambiguous, REASON_SPAN_AMBIGUOUS),
        (verdicts.twins, REASON_TWIN),
        (verdicts.in_circles, REASON_SPAN_AMBIGUOUS),
        (verdicts.metered, REASON_TWIN),
    )
    for rank, (keys, why) in enumerate(ranks):
        yield from _in_parts(keys, why, rank)


def _in_parts(keys: Iterable[tuple[str, str, str]], why: str, rank: int) -> Iterator[dict[str, Any]]:
    namespaces: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for namespace, trace_id, span_id in sorted(keys):
        if _ID.fullmatch(f"{trace_id}-{span_id}"):
            namespaces[namespace].append((trace_id, span_id))
    for namespace, ids in namespaces.items():
        for at in range(0, len(ids), _IDS_PER_QUERY):
            some = ids[at : at + _IDS_PER_QUERY]
            yield {
                "why": why,
                "version": AMBIGUOUS_VERSION + rank,
                "suspended": SUSPENDED_AMBIGUOUS_VERSION + rank,
                "verdicts": [REASON_SPAN_AMBIGUOUS, REASON_TWIN],
                "meters": list(METERS),
                "namespace": namespace,
                "traces": sorted({trace_id for trace_id, _ in some}),
                "ids": [f"{trace_id}-{span_id}" for trace_id, span_id in some],
            }
