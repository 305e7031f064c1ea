"""The SQL with which rating asks ClickHouse, as text: pure functions of what is wanted.

Column names come from a closed list; everything else, names of attributes too, is bound by the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from meterhouse_rating.metrics import ALL_TASKS, LATEST, MAX, NOT_FAILED, OK_ONLY, TIME_WEIGHTED, UNIQUE
from meterhouse_rating.models.dimensions import attribute, is_dimension
from meterhouse_rating.periods import Period
from meterhouse_rating.sorting import TASK_FAILED, TASK_OK, TASK_OPEN, Measurement
from meterhouse_store import usage_source

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

USAGE: Final = usage_source.WHOLE
"""What queries read, but for those about what was known before (WOUND_BACK)."""

MAX_GROUPS: Final = 10_000
"""So many combinations of meter, status and dimensions of one customer are rated; beyond that it is left unrated."""

LOOK_BACK: Final = timedelta(days=400)
"""A level (latest, time_weighted) that was told of before a period goes on into it for so long: as long as events may
come late."""

_TO: Final = (
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC') "
    "AND known_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC') "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')"
)
WINDOW: Final = (
    "namespace = {namespace:String} AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') " + _TO
)
"""Half-open in event_time; in known_at (received, or let through by a decision) after one moment, up to another."""

_REACH: Final = (
    "namespace = {namespace:String} AND event_time >= fromUnixTimestamp64Nano({reach_ns:Int64}, 'UTC') " + _TO
)

_OUTCOMES: Final = (
    "SELECT billed_customer_id, task_id FROM %s WHERE namespace = {namespace:String} AND meter = 'agent.tasks' "
    "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') AND task_id != '' AND status = '%s'"
)
"""The tasks that ended in one way, whenever: a task ends after its calls. One that ended well once ended well."""

FIRST_DAYS: Final = (
    "SELECT billed_customer_id, min(day) FROM usage_by_day WHERE namespace = {namespace:String} "
    "GROUP BY billed_customer_id"
)
"""The UTC day of each customer's first usage, also of what was not known yet; read from the sums of days."""

USED_DAYS: Final = (
    "SELECT DISTINCT billed_customer_id, day FROM usage_by_day WHERE namespace = {namespace:String} "
    "AND day >= {since:Date} AND billed_customer_id IN {customers:Array(String)}"
)
"""The UTC days on which customers used anything, also what was not known yet."""

FIRST_USAGE: Final = (
    "SELECT billed_customer_id, min(event_time) FROM usage WHERE namespace = {namespace:String} "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') "
    "AND billed_customer_id IN {customers:Array(String)} GROUP BY billed_customer_id"
)

WATERMARK: Final = "SELECT collector_id, segment, position, projected_through FROM watermark ORDER BY collector_id"

# Every part of the texts below is a constant of this module or a name of the closed list of dimensions.
# ruff: noqa: S608


@dataclass(frozen=True)
class Names:
    """The customers whose names are in a half-open range; `before` None: to the last of all.

    Python compares strings by code points and ClickHouse by the bytes of their UTF-8, which is the same order.
    """

    first: str = ""
    before: str | None = None

    def __contains__(self, name: str) -> bool:
        return self.first <= name and (self.before is None or name < self.before)


EVERYBODY: Final = Names()

Whom = Sequence[str] | Names | None
"""Of which customers something is asked: those named, those of a range, or (None) all of the namespace."""


def aggregate_query(
    dimensions: Sequence[str],
    customers: Whom,
    *,
    tasks: bool = False,
    source: str = USAGE,
    largest: bool = False,
    but: str = "",
) -> str:
    """The aggregate of a period: one row per customer, meter, status and the dimensions that prices depend on, with the
    number of events and the sum of their quantities (or the `largest` of them).

    `tasks`: also by how the task ended that the calls were in.
    `source`: USAGE or WOUND_BACK. `but`: a condition that leaves some out. Raises ValueError for what is no dimension.
    """
    columns = [*columns_of(dimensions), *([task_column(source)] if tasks else [])]
    keys = ", ".join(["billed_customer_id", "meter", "status", *columns])
    bounded = f" LIMIT {MAX_GROUPS + 1} BY billed_customer_id" if dimensions else ""
    quantity = "max(quantity)" if largest else "sum(quantity)"
    return (
        f"SELECT {keys}, count(), {quantity} FROM {source} WHERE {WINDOW}{only(customers)}{but} "
        f"GROUP BY {keys} ORDER BY {keys}{bounded}"
    )


_SHOWN: Final = (
    "namespace, meter, event_id, status, agent_id, agent_name, provider, model, operation, tool, modality, cache_ttl, "
    "service_tier, call_id, task_id, conversation_id, step, response_id, request_id, trace_id, lease_id, usage_source, "
    "source, attributes, credential_id, process_id, service_name, quantity"
)
_AT: Final = "fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')"
_ROW: Final = "namespace, customer_id, meter, event_time, event_id, quantity"

WOUND_BACK: Final = f"""(
    SELECT {_SHOWN}, customer_id, event_time, billed_customer_id, known_at FROM usage WHERE decided_at <= {_AT}
    UNION ALL
    SELECT {", ".join(f"row.{name} AS {name}" for name in _SHOWN.split(", "))}, row.customer_id AS customer_id,
        if(row.event_time = toDateTime64(0, 9, 'UTC'), row.once_time, row.event_time) AS event_time,
        if(then.decided > 0 AND then.billed != '', then.billed, row.customer_id) AS billed_customer_id,
        if(then.decided > 0, greatest(row.received_at, toDateTime64(then.last, 9, 'UTC')), row.received_at) AS known_at
    FROM (SELECT * FROM events FINAL WHERE ({_ROW}) IN (SELECT {_ROW} FROM mirror_decisions)) AS row
    INNER JOIN (
        SELECT {_ROW}, countIf(decided_at <= {_AT}) AS decided, maxIf(decided_at, decided_at <= {_AT}) AS last,
            argMaxIf(reason, decided_at, decided_at <= {_AT}) AS reason_then,
            argMaxIf(mirror_decisions.billed_customer_id, decided_at, decided_at <= {_AT}) AS billed,
            argMin(original_reason, decided_at) AS reason_before
        FROM mirror_decisions FINAL GROUP BY {_ROW} HAVING max(decided_at) > {_AT}
    ) AS then ON {" AND ".join(f"row.{name} = then.{name}" for name in _ROW.split(", "))}
    WHERE if(then.decided > 0, then.reason_then, then.reason_before) = ''
)"""
"""`usage` as it was at a moment: what was decided since is taken back."""

EVENT_COLUMNS: Final = ("event_id", "trace_id", "call_id", "task_id", "model", "tool", "agent_id")
"""What is told of an event beside its time, meter, quantity, status and dimensions."""


def events_query(
    dimensions: Sequence[str],
    *,
    tasks: bool,
    source: str = USAGE,
    by: Sequence[str] | None = None,
    some: bool = False,
) -> str:
    """The events of a period of one customer, in order: time, when it was known, meter, quantity, status, how its task
    ended (empty without `tasks`), the customer as claimed, EVENT_COLUMNS, then the dimensions.

    With `by`, some of the dimensions: those of a meter, status, task and values of `by` that are among the parameter
    `groups` (all text), and no more than `limit`. `some`: of the parameter `meters` alone. Raises ValueError for a
    dimension that is none.
    """
    columns, task = columns_of(dimensions), task_column(source) if tasks else "''"
    among, limit = " AND meter IN {meters:Array(String)}" if some else "", ""
    if by is not None:
        chosen = ["meter", "status", task, *(columns[list(dimensions).index(name)] for name in by)]
        kinds = ", ".join(["String"] * len(chosen))
        among += f" AND ({', '.join(chosen)}) IN {{groups:Array(Tuple({kinds}))}}"
        limit = " LIMIT {limit:UInt64}"
    told = ", ".join([*EVENT_COLUMNS, *columns])
    return (
        "SELECT replaceOne(toString(event_time), ' ', 'T'), replaceOne(toString(known_at), ' ', 'T'), meter, "
        f"toString(quantity), status, {task}, customer_id, {told} FROM {source} WHERE {WINDOW}"
        f"{only([])}{among} ORDER BY event_time, event_id, meter, customer_id{limit}"
    )


def levels_query(measurement: Measurement, dimensions: Sequence[str], *, tasks: bool, source: str = USAGE) -> str:
    """The last events of each series of levels in a window of one customer, with the columns of `events_query`."""
    columns, task, metric = columns_of(dimensions), task_column(source) if tasks else "''", measurement.metric
    named = [*measurement.dimensions, *([metric.of] if metric.of is not None else [])]
    series = ", ".join(["meter", *(columns[list(dimensions).index(name)] for name in named)])
    billed = " AND meter IN {meters:Array(String)} AND status NOT IN {free:Array(String)}"
    told = ", ".join([*EVENT_COLUMNS, *columns])
    return (
        "SELECT replaceOne(toString(event_time), ' ', 'T'), replaceOne(toString(known_at), ' ', 'T'), meter, "
        f"toString(quantity), status, {task}, customer_id, {told} FROM {source} WHERE {WINDOW}{only([])}{billed}"
        f"{_tasks_billed(measurement.tasks, source)} ORDER BY event_time DESC, event_id DESC LIMIT 1 BY {series}"
    )


def totals_query(customers: Whom) -> str:
    """Per customer and meter what a period comes to, and when the last of it became known."""
    return (
        f"SELECT billed_customer_id, meter, sum(quantity), max(known_at) FROM usage WHERE {WINDOW}"
        f"{only(customers)} GROUP BY billed_customer_id, meter ORDER BY billed_customer_id, meter"
    )


HOURS: Final = (
    "SELECT billed_customer_id, meter, status, toUnixTimestamp(toStartOfHour(event_time, 'UTC')) AS hour, count(), "
    f"sum(quantity) FROM usage WHERE {WINDOW} AND billed_customer_id IN {{customers:Array(String)}} "
    "GROUP BY billed_customer_id, meter, status, hour ORDER BY billed_customer_id, meter, status, hour"
)
"""Per customer, meter, status and hour (its start, seconds since 1970) events and quantity."""


def window_parameters(
    namespace: str,
    period: Period,
    dimensions: Sequence[str] = (),
    *,
    as_of: datetime,
    after: datetime = EPOCH,
    customers: Whom = None,
) -> dict[str, Any]:
    """The parameters of `aggregate_query`."""
    parameters: dict[str, Any] = {
        "namespace": namespace,
        "start_ns": nanoseconds(period.start),
        "end_ns": nanoseconds(period.end),
        "after_ns": nanoseconds(after),
        "as_of_ns": nanoseconds(as_of),
    }
    names = {f"attribute_{at}": attribute(name) for at, name in enumerate(dimensions) if attribute(name) is not None}
    return parameters | names | _named(customers)


def measure_query(measurement: Measurement, customers: Whom, *, source: str = USAGE) -> str:
    """The value of a metric that is no sum: per customer and dimensions the events of the period, and the value.

    For `time_weighted` the value is the sum of level times nanoseconds. Raises ValueError for a dimension that is none.
    """
    metric = measurement.metric
    columns = columns_of(measurement.dimensions)
    keys = ", ".join(["billed_customer_id", *columns])
    billed = f"{only(customers)} AND meter IN {{meters:Array(String)}} AND status NOT IN {{free:Array(String)}}"
    billed += _tasks_billed(measurement.tasks, source)
    bounded = f" ORDER BY {keys} LIMIT {MAX_GROUPS + 1} BY billed_customer_id" if columns else f" ORDER BY {keys}"
    if metric.aggregate in (MAX, UNIQUE):
        value = "max(quantity)" if metric.aggregate == MAX else f"uniqExact({_column(metric.of or '', 'of')})"
        return f"SELECT {keys}, count(), {value} FROM {source} WHERE {WINDOW}{billed} GROUP BY {keys}{bounded}"
    if metric.aggregate not in (LATEST, TIME_WEIGHTED):
        raise ValueError(f"{metric.aggregate} is a sum over rows")
    named = [f"{column} AS key_{at}" for at, column in enumerate(columns)]
    key_names = ", ".join(["billed_customer_id", *(f"key_{at}" for at in range(len(columns)))])
    series = "''" if metric.of is None else _column(metric.of, "of")
    levels = (
        f"SELECT {', '.join(['billed_customer_id', *named])}, event_time, event_id, quantity, meter, "
        f"{series} AS series FROM {source} WHERE {_REACH}{billed}"
    )
    partition = f"PARTITION BY {key_names}, meter, series ORDER BY event_time, event_id"
    ends = (
        "SELECT *, toUnixTimestamp64Nano(event_time) AS from_ns, leadInFrame(toUnixTimestamp64Nano(event_time), 1, "
        f"{{until_ns:Int64}}) OVER ({partition} ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS next_ns "
        f"FROM ({levels})"
    )
    if metric.aggregate == TIME_WEIGHTED:
        held = "greatest(0, least(next_ns, {until_ns:Int64}) - greatest(from_ns, {start_ns:Int64}))"
        value = f"sum(toDecimal256(quantity, 9) * toInt256({held}))"
    else:
        value = "sum(if(next_ns = {until_ns:Int64}, quantity, toDecimal128(0, 9)))"
    counted = "countIf(from_ns >= {start_ns:Int64})"
    bounded = bounded.replace(keys, key_names)
    return f"SELECT {key_names}, {counted}, {value} FROM ({ends}) GROUP BY {key_names}{bounded}"


def measure_parameters(
    namespace: str,
    period: Period,
    measurement: Measurement,
    *,
    as_of: datetime,
    customers: Whom = None,
) -> dict[str, Any]:
    """The parameters of `measure_query`. A level lasts to the period's end, in a period under way up to now."""
    metric = measurement.metric
    parameters = window_parameters(namespace, period, measurement.dimensions, as_of=as_of, customers=customers)
    end = nanoseconds(period.end)
    until = min(end, max(nanoseconds(as_of), nanoseconds(period.start))) if metric.aggregate == TIME_WEIGHTED else end
    own = {} if metric.of is None or attribute(metric.of) is None else {"attribute_of": attribute(metric.of)}
    return (
        parameters
        | own
        | {
            "meters": list(metric.meters),
            "free": list(measurement.free_statuses),
            "reach_ns": nanoseconds(period.start - LOOK_BACK),
            "until_ns": until,
        }
    )


def kind_columns(dimensions: Sequence[str], *, tasks: bool) -> list[str]:
    """What of an event of the view `usage` its price depends on: status, how its task ended, the dimensions.

    With the parameters of `window_parameters`. Raises ValueError for a dimension that is none.
    """
    return ["status", task_column(USAGE) if tasks else "''", *columns_of(dimensions)]


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970 of an aware datetime, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def columns_of(dimensions: Sequence[str]) -> list[str]:
    """The expressions of dimensions, their attributes as parameters. Raises ValueError for what is none."""
    return [_column(name, str(at)) for at, name in enumerate(dimensions)]


def _column(name: str, place: str) -> str:
    if not is_dimension(name):
        raise ValueError(f"no dimensions of usage: {[name]}")
    return name if attribute(name) is None else f"attributes[{{attribute_{place}:String}}]"


def only(customers: Whom) -> str:
    """A condition that chooses customers; empty for all."""
    if customers is None:
        return ""
    if not isinstance(customers, Names):
        return " AND billed_customer_id IN {customers:Array(String)}"
    end = "" if customers.before is None else " AND billed_customer_id < {names_before:String}"
    return " AND billed_customer_id >= {names_first:String}" + end


def _named(customers: Whom) -> dict[str, Any]:
    if isinstance(customers, Names):
        end = {} if customers.before is None else {"names_before": customers.before}
        return {"names_first": customers.first} | end
    return {} if customers is None else {"customers": list(customers)}


def task_column(source: str) -> str:
    """How the task ended that an event was in: empty, ok, failed, open."""
    ended = f"(billed_customer_id, task_id) IN ({_OUTCOMES % (source, 'ok')})"
    failed = f"(billed_customer_id, task_id) IN ({_OUTCOMES % (source, 'failed')})"
    return f"multiIf(task_id = '', '', {ended}, '{TASK_OK}', {failed}, '{TASK_FAILED}', '{TASK_OPEN}')"


def _tasks_billed(rule: str, source: str) -> str:
    if rule == ALL_TASKS:
        return ""
    allowed = {OK_ONLY: f"'', '{TASK_OK}'", NOT_FAILED: f"'', '{TASK_OK}', '{TASK_OPEN}'"}[rule]
    return f" AND {task_column(source)} IN ({allowed})"
