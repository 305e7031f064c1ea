"""The SQL that asks for usage by all that its cost depends on, as text (see `queries`)."""

from collections.abc import Sequence
from typing import Final

from meterhouse_rating.queries import MAX_GROUPS, WINDOW, Whom, columns_of, only, task_column

COST_KEY: Final = (
    "meter", "provider", "model", "modality", "cache_ttl", "service_tier", "tool", "agent_id", "customer_id",
)  # fmt: skip
"""What costs are told apart by, as `costs_entries.Usage` has it."""

# Only whom and which agent an entry names: usage of all others has the same cost, whosever it is.
_KINDS: Final = (
    *COST_KEY[1:-2],
    "if(agent_id IN {cost_agents:Array(String)}, agent_id, '')",
    "if(billed_customer_id IN {cost_customers:Array(String)}, billed_customer_id, '')",
)
_OF_METERS: Final = "meter IN {cost_meters:Array(String)}"
NOT_OF_METERS: Final = " AND meter NOT IN {cost_meters:Array(String)}"

_REQUEST: Final = "multiIf(call_id != '', call_id, source = 'otel.span', event_id, '')"
"""What tells the requests apart whose sizes some prices go by."""

_SLOTS: Final = (
    "arrayCount(edge -> edge <= toUnixTimestamp64Nano(event_time), {cost_moments:Array(Int64)})",
    "arrayCount(edge -> edge <= dateDiff('second', toStartOfDay(event_time), event_time), "
    "{cost_seconds:Array(UInt32)})",
    "%s",
    "arrayCount(edge -> quantity > 0 AND quantity < edge, {cost_least:Array(Decimal(38, 9))})",
    f"multiIf({_REQUEST} = '', 1, usage_source IN ('framework', 'sdk_loop'), 2, 0)",
    "toUInt8(meter = 'llm.requests' AND usage_source = 'none' AND status != 'failed')",
)
_SIZE: Final = "arrayCount(edge -> edge < size_tokens, {cost_sizes:Array(UInt64)})"

# Every part of the texts below is a constant, or comes from `queries`.
# ruff: noqa: S608


def combinations_query(source: str, customers: Whom) -> str:
    """The combinations of COST_KEY in a window of usage."""
    return f"SELECT DISTINCT meter, {', '.join(_KINDS)} FROM {source} WHERE {WINDOW}{only(customers)} AND {_OF_METERS}"


def costed_query(dimensions: Sequence[str], customers: Whom, *, tasks: bool, source: str, sized: bool) -> str:
    """As `queries.aggregate_query`, of the meters that cost: also by COST_KEY and by how many of each kind of edges are
    before an event.

    `sized`: prices depend on the size of requests: all input tokens of the events of one request.
    """
    chosen = [*columns_of(dimensions), *([task_column(source)] if tasks else [])]
    slots = [it % (_SIZE if sized else "toUInt64(0)") if it == "%s" else it for it in _SLOTS]
    named = [f"{column} AS key_{at}" for at, column in enumerate([*chosen, *_KINDS, *slots])]
    keys = ", ".join(["billed_customer_id", "meter", "status", *(f"key_{at}" for at in range(len(named)))])
    inside = f"{WINDOW}{only(customers)}"
    rows = source
    if sized:
        rows = (
            f"(SELECT * FROM {source} WHERE {inside} AND {_OF_METERS}) AS used LEFT JOIN ("
            "SELECT billed_customer_id AS size_customer, event_time AS size_time, provider AS size_provider, "
            f"model AS size_model, {_REQUEST} AS size_request, toUInt64(greatest(sum(quantity), 0)) AS size_tokens "
            f"FROM {source} WHERE {inside} AND meter IN {{cost_context:Array(String)}} "
            "AND (provider, model) IN {cost_tiered:Array(Tuple(String, String))} "
            "GROUP BY size_customer, size_time, size_provider, size_model, size_request) AS sizes "
            "ON billed_customer_id = size_customer AND event_time = size_time AND provider = size_provider "
            f"AND model = size_model AND {_REQUEST} = size_request"
        )
    return (
        f"SELECT billed_customer_id, meter, status, {', '.join(named)}, count(), sum(quantity) FROM {rows} "
        f"WHERE {inside} AND {_OF_METERS} GROUP BY {keys} ORDER BY {keys} "
        f"LIMIT {MAX_GROUPS + 1} BY billed_customer_id"
    )
