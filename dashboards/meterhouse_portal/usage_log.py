"""The usage log of one customer: one row per call or other use with its price, single events, and downloads."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from meterhouse_portal.account import GROUPS, MINE, Account
from meterhouse_portal.use_prices import Prices, Pricing, Use, UsePrice, prices_of, pricing, summed
from meterhouse_rating.periods import Period
from meterhouse_rating.sums import By
from meterhouse_rating.together import together
from meterhouse_store.spreadsheet import FORMULA

PAGE: Final = 50
"""So many rows of the usage log are on a page."""

FILTERS: Final[Mapping[str, str]] = {**GROUPS, "conversation": "conversation_id", "meter": "meter", "task": "task_id"}
"""What the usage log may be narrowed to -> the column."""

CURSOR: Final = r"^[0-8]?[0-9]{1,18}-[^\x00-\x1f]{1,256}$"
"""A place in the log: when, in nanoseconds since 1970, and which action."""

_ACTION: Final = "if(call_id != '', call_id, event_id)"
_AHEAD: Final = timedelta(days=1)
"""Clocks of agents may be ahead by so much."""
_RECENT: Final = timedelta(days=2) + _AHEAD
_FIRST_SPAN: Final = timedelta(hours=2)
_WIDER: Final = 8
_FEW: Final = 20_000
"""So many events are looked through as fast as the question is planned."""
_LATEST: Final = 2_000
"""So many events are more than a page of actions, unless one has dozens."""

_EXPORTED: Final = (
    "event_time", "meter", "quantity", "status", "agent_id", "agent_name", "provider", "model", "operation", "tool",
    "modality", "cache_ttl", "service_tier", "conversation_id", "task_id", "step", "call_id", "event_id", "trace_id",
    "received_at",
)  # fmt: skip
_NUMBERS: Final = frozenset({"quantity"})
_TIMES: Final = frozenset({"event_time", "received_at"})
_MINUTE_NS: Final = 60 * 10**9
_SORTED: Final = 200_000
"""So many events of a download are sorted at once, or those of a minute that has more."""

# Every part of the texts below is a constant or a name of a closed list.
# ruff: noqa: S608


@dataclass(frozen=True)
class Action:
    """One call, tool execution or other use: what it consumed, meter by meter, and what that costs."""

    action_id: str
    event_time: datetime
    agent: str
    model: str
    tool: str
    operation: str
    status: str
    conversation: str
    task: str
    trace_id: str
    used: tuple[tuple[str, Decimal], ...]
    price: UsePrice


@dataclass(frozen=True)
class Log:
    """A page of the usage log, latest first; `next` continues it, None at its end."""

    actions: tuple[Action, ...]
    next: str | None


@dataclass(frozen=True)
class _Place:
    """Where a page of the log ended: when, in nanoseconds since 1970, and with which action."""

    at_ns: int
    action: str

    @property
    def at(self) -> datetime:
        return _moment(self.at_ns)


_CHOICES: Final = {name: By((FILTERS[name],), some=True) for name in ("meter", "model", "agent", "tool", "status")}
_MOST_CHOICES: Final = 100


def with_choices(
    mine: Account, period: Period, wanted: Mapping[str, str], after: str | None
) -> tuple[Mapping[str, Sequence[str]], Log]:
    """What the log of a period can be narrowed to, by filter, and a page of it. Raises ValueError."""
    place, priced = _place(after), pricing(mine, period)
    told, rows = priced.soonest(
        lambda it: together(lambda: it.ask(*_CHOICES.values()), lambda: _latest(it, wanted, place))
    )
    assert told is not None, "choices were asked for"
    values = {name: {str(it.values[0]) for it in told.by(by, period)} - {""} for name, by in _CHOICES.items()}
    return {name: sorted(them)[:_MOST_CHOICES] for name, them in values.items()}, _log(rows, priced.prices(told))


def page(mine: Account, period: Period, wanted: Mapping[str, str], after: str | None) -> Log:
    """A page of the usage log, narrowed to what is `wanted` (names of FILTERS). Raises ValueError."""
    place, priced = _place(after), pricing(mine, period)
    told, rows = priced.soonest(lambda it: together(it.ask, lambda: _latest(it, wanted, place)))
    return _log(rows, priced.prices(told))


def _latest(priced: Pricing, wanted: Mapping[str, str], place: _Place | None) -> Sequence[Sequence[Any]]:
    """The actions after a place, latest first: a page of them, and one more if there is one.

    Most pages are in the last two days, which only the newest parts of the warehouse have to be read for. Where that is
    no page and few events are left, all of them are looked through. Else it looks back from where it stands over longer
    and longer spans, and in one with many events only at its latest: a page is found at once, however many events there
    are in the period, and however close together.
    """
    mine, period = priced.mine, priced.period
    end = period.end if place is None else min(period.end, place.at + timedelta(microseconds=1))
    latest = min(end, mine.now + _AHEAD)
    narrowed, bound = _narrowed(wanted)
    bound |= priced.bound
    if place is not None:
        narrowed += f" AND (toUnixTimestamp64Nano(event_time), {_ACTION}) < ({{cursor_ns:Int64}}, {{cursor_id:String}})"
        bound |= {"cursor_ns": place.at_ns, "cursor_id": place.action}

    def asked(start: datetime, limit: str = "") -> Sequence[Sequence[Any]]:
        query = (
            "SELECT at, action, any(agent_name), any(agent_id), any(model), any(tool), any(operation), "
            "if(countIf(status = 'failed') > 0, 'failed', any(status)), any(conversation_id), any(task_id), "
            "any(trace_id), groupArray(told), toUnixTimestamp64Nano(at), sum(count()) OVER () FROM ("
            f"SELECT event_time AS at, {_ACTION} AS action, agent_name, agent_id, model, tool, operation, status, "
            f"conversation_id, task_id, trace_id, tuple({priced.columns}) AS told FROM {mine.source} "
            f"WHERE {MINE}{narrowed}{limit}) GROUP BY at, action ORDER BY at DESC, action DESC LIMIT {PAGE + 1}"
        )
        return mine.ask(query, Period(start, end) if start < end else Period(period.start, end), **bound)

    def latest_since(start: datetime) -> datetime:
        times = f"SELECT event_time FROM {mine.source} WHERE {MINE}{narrowed} ORDER BY event_time DESC LIMIT {_LATEST}"
        query = f"SELECT toUnixTimestamp64Nano(min(event_time)) FROM ({times})"
        return max(start, _moment(mine.ask(query, Period(start, end), **bound)[0][0]))

    def are_few(rows: Sequence[Sequence[Any]]) -> bool:
        return not rows or rows[0][13] < _FEW

    few = f" LIMIT {_FEW}"
    recent = max(period.start, latest - _RECENT)
    rows = asked(recent, few)
    if are_few(rows) and len(rows) <= PAGE and recent > period.start:
        rows = asked(period.start, few)
    if are_few(rows):
        return rows
    span = _FIRST_SPAN
    while True:
        start = max(period.start, latest - span)
        rows = asked(start, few)
        if not are_few(rows):
            rows = asked(latest_since(start))
            if len(rows) <= PAGE:
                rows = asked(start)
        if len(rows) > PAGE or start <= period.start:
            return rows
        span *= _WIDER


def _log(rows: Sequence[Sequence[Any]], prices: Prices) -> Log:
    actions = tuple(_action(row, prices) for row in rows[:PAGE])
    return Log(actions, f"{rows[PAGE - 1][12]}-{rows[PAGE - 1][1]}" if len(rows) > PAGE else None)


def events(mine: Account, action_id: str, at: datetime) -> list[dict[str, Any]]:
    """The single events of an action of that time (to the second), with all that is stored of them, and `price`."""
    period = Period(at - timedelta(seconds=1), at + timedelta(seconds=1))
    prices = prices_of(mine, period)
    names = (*_EXPORTED, "usage_source", "response_id", "request_id", "source")
    rows = mine.ask(
        f"SELECT {', '.join(names)}, tuple({prices.columns}) FROM usage WHERE {MINE} AND {_ACTION} = "
        "{action:String} ORDER BY meter, event_id LIMIT 1000",
        period,
        action=action_id,
        **prices.bound,
    )
    return [
        {**dict(zip(names, row, strict=False)), "price": prices.use(_aware(row[0]), row[len(names)]).price}
        for row in rows
    ]


def export(mine: Account, period: Period, wanted: Mapping[str, str], form: str) -> Iterator[bytes]:
    """The events of the log as a stream of `csv`, in the order of their time, or `parquet`, in none; text that a
    spreadsheet takes for a formula is not one any more in CSV (https://owasp.org/www-community/attacks/CSV_Injection),
    and times say that they are of UTC.
    """
    narrowed, bound = _narrowed(wanted)
    priced = prices_of(mine, period).in_warehouse(mine, period, narrowed, bound)
    spans = _spans(mine, period, narrowed, bound) if form == "csv" else [period]
    columns = ", ".join(f"{_in_csv(name)} AS {name}_" if form == "csv" else name for name in _EXPORTED)
    names = ", ".join(f"{name}_ AS {name}" if form == "csv" else name for name in _EXPORTED)
    # No price is an empty cell for a spreadsheet, where ClickHouse would write \N.
    cost = "ifNull(toString(price), '') AS price" if form == "csv" else "price"
    line = f"{_no_formula('line')} AS line" if form == "csv" else "line"
    order = " ORDER BY at, meter_, event_id_" if form == "csv" else ""
    rows = f"SELECT event_time AS at, {columns}, {priced.columns} FROM usage WHERE {MINE}{narrowed}"
    query = f"SELECT {names}, {cost}, currency, price_is, {line} FROM ({rows}){order}"
    for number, span in enumerate(spans):
        kind = {"csv": "CSV" if number else "CSVWithNames", "parquet": "Parquet"}[form]
        parameters = mine.bound(span) | bound | priced.bound
        with mine.client.raw_stream(query, parameters=parameters, fmt=kind) as stream:
            while block := stream.read(65536):
                yield block


def _spans(mine: Account, period: Period, narrowed: str, bound: Mapping[str, Any]) -> list[Period]:
    """The period cut between minutes such that each part is sorted in a bounded memory of the warehouse."""
    minutes = mine.ask(
        f"SELECT intDiv(toUnixTimestamp64Nano(event_time), {_MINUTE_NS}) AS minute, count() FROM {mine.source} "
        f"WHERE {MINE}{narrowed} GROUP BY minute ORDER BY minute",
        period,
        **bound,
    )
    edges, events = [period.start], 0
    for minute, count in minutes:
        begins = _moment(minute * _MINUTE_NS)
        if events and events + count > _SORTED and begins > edges[-1]:
            edges.append(begins)
            events = 0
        events += count
    return [Period(start, end) for start, end in pairwise([*edges, period.end])]


def _in_csv(name: str) -> str:
    if name in _TIMES:
        return f"concat(replaceOne(toString({name}), ' ', 'T'), 'Z')"
    return name if name in _NUMBERS else _no_formula(name)


def _no_formula(column: str) -> str:
    pattern = FORMULA.replace("\\", "\\\\")
    return f"if(match({column}, '{pattern}'), concat('''', {column}), toString({column}))"


def _narrowed(wanted: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    text = "".join(f" AND {FILTERS[name]} = {{filter_{name}:String}}" for name in sorted(wanted))
    return text, {f"filter_{name}": value for name, value in wanted.items()}


def _place(text: str | None) -> _Place | None:
    if text is None:
        return None
    if not re.fullmatch(CURSOR, text, re.ASCII):
        raise ValueError("this is no place in the log")
    number, _, action = text.partition("-")
    return _Place(int(number), action)


def _action(row: Sequence[Any], prices: Prices) -> Action:
    at, action_id, name, agent, model, tool, operation, status, conversation, task, trace, parts, *_ = row
    uses: list[Use] = sorted((prices.use(_aware(at), part) for part in parts), key=lambda it: it.meter)
    sums: dict[str, Decimal] = {}
    for use in uses:
        sums[use.meter] = sums.get(use.meter, Decimal(0)) + use.quantity
    return Action(
        action_id, _aware(at), name or agent, model, tool, operation, status, conversation, task, trace,
        tuple(sums.items()), summed(uses),
    )  # fmt: skip


def _moment(at_ns: int) -> datetime:
    """Nanoseconds since 1970 as a time, down to the microsecond before."""
    return datetime.fromtimestamp(at_ns // 10**9, UTC) + timedelta(microseconds=at_ns % 10**9 // 1000)


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
