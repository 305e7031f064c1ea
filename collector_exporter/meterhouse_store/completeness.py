"""Whether a customer's usage of a period is all there: what is known of it, and a verdict in a sentence.

`Gathering` asks the warehouse, `assess` is a pure function of what it answered; `report` is both.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import pairwise
from operator import sub
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from meterhouse.vocabulary import ESTIMATED, NO_USAGE, UNFINISHED
from meterhouse_store.numbers import plain
from meterhouse_store.reasons import sentence

HOUR: Final = timedelta(hours=1)
SILENT_AT_LEAST: Final = timedelta(hours=24)
"""A stream that sent nothing for so long, and for longer than ever between two hours before, has fallen silent."""
IMPORTS, AMENDMENTS = "meterhouse-import", "meterhouse-events"
"""What `meterhouse events` calls itself where it sends what a person decided."""
BY_HAND: Final = frozenset({IMPORTS, AMENDMENTS})
"""Nobody expects these to send again: they fall silent without being told."""

# All queries are of many customers at once: to plan the views takes longer than to read a customer's rows by the key.
# A stream is what one service sends with one key. Hours before the period tell what is usual for it.
_STREAMS: Final = """
    SELECT billed_customer_id, service_name, credential_id,
        uniqExactIf(process_id, event_time >= {start:DateTime64(6, 'UTC')}) AS processes,
        countIf(event_time >= {start:DateTime64(6, 'UTC')}) AS events,
        countIf(event_time >= {start:DateTime64(6, 'UTC')} AND status = {unfinished:String}) AS unfinished,
        countIf(event_time >= {start:DateTime64(6, 'UTC')} AND usage_source = {estimated:String}) AS estimated,
        countIf(event_time >= {start:DateTime64(6, 'UTC')} AND usage_source = {no_usage:String}) AS without_usage,
        arraySort(groupUniqArray(toUInt32(intDiv(toUnixTimestamp(toDateTime(event_time, 'UTC')), 3600)))) AS hours
    FROM usage
    WHERE namespace = {namespace:String} AND billed_customer_id IN {customers:Array(String)}
        AND event_time >= {before:DateTime64(6, 'UTC')} AND event_time < {end:DateTime64(6, 'UTC')}
    GROUP BY billed_customer_id, service_name, credential_id
    ORDER BY billed_customer_id, service_name, credential_id
"""
# Of nobody, sent with a key: of whom the key is, the streams say.
_SUSPENSE: Final = """
    SELECT reason, customer_id, if(customer_id = '', credential_id, '') AS key, count()
    FROM suspense
    WHERE namespace = {namespace:String} AND (customer_id IN {customers:Array(String)}
            OR customer_id = '' AND credential_id IN {credentials:Array(String)})
        AND event_time >= {start:DateTime64(6, 'UTC')} AND event_time < {end:DateTime64(6, 'UTC')}
    GROUP BY reason, customer_id, key ORDER BY reason, customer_id, key
"""
_RESETS: Final = """
    SELECT customer_id, sum(starts - 1) FROM (
        SELECT customer_id, uniqExact(start_time) AS starts FROM cumulative_points
        WHERE namespace = {namespace:String} AND customer_id IN {customers:Array(String)}
            AND event_time >= {start:DateTime64(6, 'UTC')} AND event_time < {end:DateTime64(6, 'UTC')}
        GROUP BY customer_id, series, part
    ) GROUP BY customer_id
"""
# A running total whose first point counts nothing: it began before its key was valid, or nobody knows when.
_BASELINES: Final = """
    SELECT customer, meter, count(), sum(stood_at) FROM (
        SELECT argMin(customer_id, at) AS customer, argMin(meter, at) AS meter, min(event_time) AS since,
            argMin(toDecimal256(value, 9) * factor, at) AS stood_at, argMin(from_zero, at) AS counted
        FROM (SELECT *, (event_time, bitNot(first)) AS at FROM cumulative_points FINAL)
        WHERE namespace = {namespace:String} AND series IN (
            SELECT series FROM cumulative_points
            WHERE namespace = {namespace:String} AND customer_id IN {customers:Array(String)}
        )
        GROUP BY series, part, start_time
    )
    WHERE NOT counted AND stood_at > 0 AND customer IN {customers:Array(String)}
        AND since >= {start:DateTime64(6, 'UTC')} AND since < {end:DateTime64(6, 'UTC')}
    GROUP BY customer, meter ORDER BY customer, meter
"""
_CONSERVATION: Final = """
    SELECT credential_id, sum(received), sum(counted), sum(suspended), sum(set_aside), sum(duplicates),
        countIf(duplicates < 0)
    FROM conservation
    WHERE namespace = {namespace:String}
        AND hour >= {start:DateTime64(6, 'UTC')} AND hour < {end:DateTime64(6, 'UTC')}
    GROUP BY credential_id ORDER BY credential_id
"""
_WATERMARK: Final = "SELECT collector_id, projected_through FROM watermark ORDER BY collector_id"
_WAITING: Final = "SELECT count() FROM decisions WHERE NOT applied AND namespace = {namespace:String}"


@dataclass(frozen=True, slots=True)
class Stream:
    """What one service sent with one key; `hours` in which it sent, also before the period, in order."""

    service_name: str
    credential_id: str
    processes: int
    events: int
    unfinished: int
    estimated: int
    without_usage: int
    hours: tuple[datetime, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.service_name or 'a service without a name'} ({self.credential_id or 'no key'})"


@dataclass(frozen=True, slots=True)
class Held:
    """Rows in suspense that may concern the customer: `claimed` by name, else of nobody, with the customer's keys."""

    reason: str
    claimed: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """Running totals of a meter that had begun before they could count: what they stood at is not in usage."""

    meter: str
    totals: int
    stood_at: Decimal


@dataclass(frozen=True, slots=True)
class Received:
    """Control totals of a key, in rows received in the period; `wrong_hours` do not add up."""

    credential_id: str
    received: int
    counted: int
    suspended: int
    set_aside: int
    duplicates: int
    wrong_hours: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the warehouse knows."""

    streams: tuple[Stream, ...]
    held: tuple[Held, ...]
    resets: int
    baselines: tuple[Baseline, ...]
    received: tuple[Received, ...]
    projected_through: tuple[tuple[str, datetime], ...]
    waiting_decisions: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was found about [start, end), and what is an exception: a sentence each."""

    namespace: str
    customer_id: str
    start: datetime
    end: datetime
    found: Found
    exceptions: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        events = sum(stream.events for stream in self.found.streams)
        streams = len(self.found.streams)
        seen = f"{events:,} event{'' if events == 1 else 's'} of {streams} stream{'' if streams == 1 else 's'}"
        if not self.exceptions:
            return f"Complete as far as can be known: {seen}, nothing is held back and nothing is missing."
        return f"Not certain to be complete: {seen}, {len(self.exceptions)} to look at."

    def as_json(self) -> dict[str, Any]:
        """For machines; times in ISO 8601."""
        told = {
            "namespace": self.namespace,
            "customer_id": self.customer_id,
            "start": self.start,
            "end": self.end,
            "verdict": self.verdict,
            "exceptions": list(self.exceptions),
            **_fields(self.found),
        }
        return {name: _plain(value) for name, value in told.items()}


def report(client: Client, namespace: str, customer: str, start: datetime, end: datetime, *, now: datetime) -> Report:
    """The completeness of a customer's usage in [start, end), aware times, as the warehouse knows it now."""
    found = Gathering(client, namespace, start, end).of([customer])[customer]
    return assess(found, namespace, customer, start, end, now=now)


class Gathering:
    """Asks the warehouse about [start, end), aware times, of as many customers as one likes.

    What is about no customer (control totals of keys, how far collectors are, decisions that wait) is asked once:
    with `begin`, else before the first of them. Streams are looked at from one length of the period before its start.
    """

    def __init__(self, client: Client, namespace: str, start: datetime, end: datetime) -> None:
        self._client = client
        self._shared: _Shared | None = None
        self._known: dict[str, Any] = {
            "namespace": namespace,
            "start": start.astimezone(UTC),
            "end": end.astimezone(UTC),
            "before": (start - (end - start)).astimezone(UTC),
            "unfinished": UNFINISHED,
            "estimated": ESTIMATED,
            "no_usage": NO_USAGE,
        }

    def begin(self) -> None:
        """Ask what is about no customer, of which the control totals take long."""
        self._about_all()

    def of(self, customers: Sequence[str]) -> dict[str, Found]:
        """What the warehouse knows of each of the customers, of some hundreds at a time."""
        known = self._known | {"customers": list(customers)}
        shared = self._about_all()
        streams: dict[str, list[Stream]] = {}
        for customer, *counted, hours in self._rows(_STREAMS, known):
            told = [*counted, tuple(map(_hour, hours))]
            streams.setdefault(customer, []).append(Stream(*told))
        keys = {name: sorted({it.credential_id for it in streams.get(name, ())}) for name in customers}
        known["credentials"] = sorted({key for theirs in keys.values() for key in theirs})
        claimed: dict[str, list[tuple[str, int]]] = {}
        of_nobody: dict[str, list[tuple[str, int]]] = {}
        for reason, customer, key, rows in self._rows(_SUSPENSE, known):
            # Rows that name no customer may be of any that sends with the same key.
            whose = claimed.setdefault(customer, []) if customer else of_nobody.setdefault(key, [])
            whose.append((reason, rows))
        resets = {customer: int(number) for customer, number in self._rows(_RESETS, known)}
        baselines: dict[str, list[Baseline]] = {}
        for customer, *told in self._rows(_BASELINES, known):
            baselines.setdefault(customer, []).append(Baseline(*told))
        return {
            name: Found(
                tuple(streams.get(name, ())),
                _held(claimed.get(name, ()), [it for key in keys[name] for it in of_nobody.get(key, ())]),
                resets.get(name, 0),
                tuple(baselines.get(name, ())),
                tuple(shared.received[key] for key in keys[name] if key in shared.received),
                shared.projected_through,
                shared.waiting_decisions,
            )
            for name in customers
        }

    def _about_all(self) -> "_Shared":
        if self._shared is None:
            self._shared = _Shared(
                {row[0]: Received(*row) for row in self._rows(_CONSERVATION, self._known)},
                tuple((name, _aware(through)) for name, through in self._rows(_WATERMARK, self._known)),
                int(self._rows(_WAITING, self._known)[0][0]),
            )
        return self._shared

    def _rows(self, query: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
        return self._client.query(query, parameters=parameters).result_rows


@dataclass(frozen=True, slots=True)
class _Shared:
    """What is about keys and collectors: control totals per key, progress, and decisions that wait."""

    received: Mapping[str, Received]
    projected_through: tuple[tuple[str, datetime], ...]
    waiting_decisions: int


def _held(claimed: Iterable[tuple[str, int]], of_nobody: Iterable[tuple[str, int]]) -> tuple[Held, ...]:
    rows: dict[tuple[str, bool], int] = {(reason, True): number for reason, number in claimed}
    for reason, number in of_nobody:
        rows[reason, False] = rows.get((reason, False), 0) + number
    return tuple(Held(*key, number) for key, number in sorted(rows.items()))


@cache
def _hour(number: int) -> datetime:
    """The hour of that number since 1970."""
    return datetime.fromtimestamp(number * 3600, UTC)


def assess(found: Found, namespace: str, customer: str, start: datetime, end: datetime, *, now: datetime) -> Report:
    """What of it is an exception."""
    exceptions = [
        *_of_the_watermark(found, end, now),
        *(sentence for stream in found.streams for sentence in _of_a_stream(stream, start, min(end, now))),
        *(_of_suspense(held, customer) for held in found.held),
        *(_of_a_baseline(baseline) for baseline in found.baselines),
        *(
            f"the control totals of {_of_key(one.credential_id)} do not add up in {one.wrong_hours} hours: "
            "`meterhouse warehouse verify`"
            for one in found.received
            if one.wrong_hours
        ),
    ]
    if found.waiting_decisions:
        exceptions.append(f"{found.waiting_decisions} decisions wait for their rows: `meterhouse suspense apply`")
    return Report(namespace, customer, start, end, found, tuple(exceptions))


def _of_the_watermark(found: Found, end: datetime, now: datetime) -> list[str]:
    if not found.projected_through:
        return ["no collector has written to this warehouse"]
    due = min(end, now - timedelta(minutes=1))
    sentences = [
        f"collector {name} is in the warehouse up to {through:%Y-%m-%d %H:%M:%S} UTC only"
        for name, through in found.projected_through
        if through < due
    ]
    return [*sentences, "the period is not over"] if end > now else sentences


def _of_a_stream(stream: Stream, start: datetime, until: datetime) -> list[str]:
    sentences = [] if stream.service_name in BY_HAND else _of_silence(stream, start, until)
    if stream.unfinished:
        sentences.append(f"{stream.name}: {stream.unfinished} calls died before their answer was read")
    if stream.without_usage > stream.unfinished:
        sentences.append(f"{stream.name}: of {stream.without_usage - stream.unfinished} calls no usage was reported")
    if stream.estimated:
        sentences.append(f"{stream.name}: {stream.estimated} events are estimates")
    return sentences


def _of_silence(stream: Stream, start: datetime, until: datetime) -> list[str]:
    sentences = []
    first = bisect_left(stream.hours, start - HOUR)
    before, hours = stream.hours[:first], stream.hours[first:]
    usual, inner = _longest_gap(before), _longest_gap(hours)
    if not stream.events:
        sentences.append(f"{stream.name} sent before the period, up to {stream.hours[-1]:%Y-%m-%d}, and nothing in it")
    if inner > (silent := max(SILENT_AT_LEAST, usual)):
        sentences += [
            f"{stream.name} sent nothing between {_at(earlier)} and {_at(later)}"
            for earlier, later in pairwise(hours)
            if later - earlier > silent
        ]
    if hours and until - hours[-1] > max(silent, inner):
        sentences.append(f"{stream.name} sent nothing after {_at(hours[-1])}")
    return sentences


def _longest_gap(hours: Sequence[datetime]) -> timedelta:
    return max(map(sub, hours[1:], hours), default=HOUR)


def _of_suspense(held: Held, customer: str) -> str:
    whose = f"of {customer}" if held.claimed else "of nobody, sent with the same keys"
    words = sentence(held.reason)
    rows, are = ("1 row", "is") if held.rows == 1 else (f"{held.rows} rows", "are")
    return f"{rows} {whose} {are} in suspense as {held.reason}" + (f": {words}" if words else "")


def _of_key(credential_id: str) -> str:
    return f"key {credential_id}" if credential_id else "what came without a key"


def _of_a_baseline(baseline: Baseline) -> str:
    return (
        f"{baseline.totals} running totals of {baseline.meter} had begun before their key was valid, or do not say "
        f"when: the {plain(baseline.stood_at)} that they stood at are taken for their beginning and do not count"
    )


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {name: _plain(one) for name, one in _fields(value).items()} if is_dataclass(value) else value


def _fields(record: Any) -> dict[str, Any]:
    """The fields, without the hours of a stream, of which there are hundreds: asdict would copy each first."""
    return {field.name: getattr(record, field.name) for field in fields(record) if field.name != "hours"}
