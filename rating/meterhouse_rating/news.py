"""What is new in the months under way, for runs that come every minute: they read little of what they know already.

A month's usage is what happened up to the day before yesterday, which is kept from one run to the next (`usage_bases`),
and what happened since, which is read each time: usage of other times adds up. Who has new usage is asked first; where
some of it is of the kept days, that customer's are read again. Only customers with new usage are rated.

What is left to the next `rate run --due`: customers that are not registered or in a trial, those with corrections of
closed months on their open rating, usage of other months, what is new in the registry, in credits or in costs alone,
and spans that turn out days later to be metered already. Closing a period reads all of it again in any case.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final

from sqlalchemy import Engine, delete, insert, select

from meterhouse_rating import usage
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period, month_of, overlaps
from meterhouse_rating.queries import MAX_GROUPS, nanoseconds
from meterhouse_rating.rated import ABOUT_CLOSED
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import CLOSED
from meterhouse_rating.sorting import UsageRow
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Wanted, Watermark
from meterhouse_rating.windows import Window
from meterhouse_rating.world import World
from meterhouse_store.numbers import D
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import rated_lines, ratings, usage_bases

_READ_DAYS: Final = timedelta(days=1)
"""Before the day that it is so much is read each time: usage mostly comes within it."""

_LATE_AT_MOST: Final = 50
"""Of so many customers the kept days are read by name; of more, those of all are."""

_BY_NAME: Final = 4
"""Up to this part of all customers are asked for by name; to ask for more is slower than to read all of them."""

_DECIDING: Final = timedelta(minutes=10)
"""Decisions do not become visible in the order of their times: so far back they are looked for again."""

NEWS: Final = """
    SELECT customer, countIf(happened >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC')
        AND happened < fromUnixTimestamp64Nano({until_ns:Int64}, 'UTC')) FROM (
        SELECT if(billed_customer_id = '', customer_id, billed_customer_id) AS customer,
            if(event_time = toDateTime64(0, 9, 'UTC'), once_time, event_time) AS happened
        FROM events
        WHERE namespace = {namespace:String}
            AND greatest(received_at, toDateTime64(decided_at, 9, 'UTC'))
                > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC')
            AND received_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')
        UNION ALL
        SELECT customer_id, event_time FROM cumulative_points
        WHERE namespace = {namespace:String} AND received_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC')
            AND received_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC')
    )
    GROUP BY customer ORDER BY customer
"""
"""Who has rows that came or were decided about, also such as change nothing, and how many are of the kept days."""

DECIDED: Final = """
    SELECT count() FROM mirror_decisions
    WHERE namespace = {namespace:String} AND decided_at > fromUnixTimestamp64Nano({after_ns:Int64}, 'UTC')
"""


@dataclass(frozen=True)
class Base:
    """The usage of a period before `until`, per customer as it is stored, and up to when what is known is rated."""

    namespace: str
    period: Period
    until: datetime
    looked_at: datetime
    wanted: str
    watermark: Mapping[str, Any]
    usage: Mapping[str, Sequence[Any]]
    changed: bool = True
    """Whether `usage` is another than what is stored."""


def windows(world: World, terms: Terms, mark: Watermark, moment: Moment) -> Iterator[tuple[Base, Window]]:
    """Each period under way, with the customers that have new usage and their usage, and what to keep afterwards."""
    members: dict[Period, set[str]] = {}
    left = _left_out(world, moment.as_of)
    months = {zone: month_of(moment.as_of, zone) for zone in {it.time_zone for it in terms.customers.values()}}
    for name, customer in terms.customers.items():
        for period in terms.parts(name, months[customer.time_zone]):
            alone = any(overlaps(period, it) for it in left.get(name, ()))
            if period.start <= moment.as_of < period.end and not alone and terms.trial_end(name, period) is None:
                members.setdefault(period, set()).add(name)
    for period, names in sorted(members.items()):
        yield _window(world, terms, mark, moment, period, names)


def keep(engine: Engine, base: Base) -> None:
    """Keep what the next run goes on from."""
    table = usage_bases
    is_it = (
        (table.c.namespace == base.namespace)
        & (table.c.period_start == base.period.start)
        & (table.c.period_end == base.period.end)
    )
    with begin_write(engine) as connection:
        if not base.changed:
            seen = {"looked_at": base.looked_at, "watermark": base.watermark}
            connection.execute(table.update().where(is_it, table.c.until == base.until).values(**seen))
            return
        # Of other months nothing is under way any more.
        connection.execute(
            delete(table).where(table.c.namespace == base.namespace, table.c.period_end < base.looked_at)
        )
        connection.execute(delete(table).where(is_it))
        row = {
            "namespace": base.namespace,
            "period_start": base.period.start,
            "period_end": base.period.end,
            "until": base.until,
            "looked_at": base.looked_at,
            "wanted": base.wanted,
            "watermark": base.watermark,
            "usage": base.usage,
        }
        connection.execute(insert(table), [row])


def _window(
    world: World, terms: Terms, mark: Watermark, moment: Moment, period: Period, names: set[str]
) -> tuple[Base, Window]:
    wanted = terms.wanted(period)
    today = datetime.combine(moment.as_of.astimezone(UTC).date(), time(0), UTC)
    until = max(period.start, today - _READ_DAYS)
    # What is measured over a month, and what depends on how tasks end, does not add up from its days; what usage costs
    # may be recorded at any time.
    if wanted.tasks or wanted.measurements or wanted.costs is not None:
        until = period.start
    asked = digest([wanted.dimensions, wanted.tasks, repr(wanted.measurements)])
    base = _stored(world, period)
    if base is not None and (base.wanted != asked or not _goes_on(base, mark)):
        base = None
    kept: dict[str, Sequence[Any]] | None
    new = None if base is None else _news(world, base, moment.as_of)
    if base is None or new is None or base.until != until:
        kept = _read(world, wanted, Period(period.start, until), moment, None)
        if kept is None:
            until, kept = period.start, {}
        base = Base(world.namespace, period, until, moment.as_of, asked, moment.watermark, kept)
    else:
        late = {name for name, rows in new.items() if rows}
        again = sorted(late) if len(late) <= _LATE_AT_MOST else None
        fresh = _read(world, wanted, Period(period.start, until), moment, again) if late else {}
        if fresh is None:
            until, kept = period.start, {}
        elif again is None:
            kept = fresh
        else:
            kept = {name: it for name, it in base.usage.items() if name not in late}
            kept |= fresh
        base = replace(base, looked_at=moment.as_of, watermark=moment.watermark)
        base = replace(base, until=until, usage=kept, changed=bool(late))
    if new == {}:
        return base, Window(period, used={})
    only = None if new is None else sorted(names & new.keys())
    if only is not None and len(only) > len(names) // _BY_NAME:
        only = None
    days = Period(until, period.end)
    rest = usage.gather(world.client, world.namespace, days, wanted, as_of=moment.as_of, customers=only)
    users = names & (base.usage.keys() | rest.keys()) if new is None else names & new.keys()
    used = {name: _joined(map(_row, base.usage.get(name, ())), rest.get(name, Found())) for name in users}
    if wanted.dimensions:
        used = {name: it for name, it in used.items() if len(it.rows) <= MAX_GROUPS or it.too_many}
    return base, Window(period, set(used), used=used)


def _news(world: World, base: Base, as_of: datetime) -> dict[str, int] | None:
    """Per customer with new rows how many of these are of the kept days; None where decisions were made, which may have
    moved usage away from anybody.
    """
    parameters = {
        "namespace": world.namespace,
        "after_ns": nanoseconds(base.looked_at - _DECIDING),
        "start_ns": nanoseconds(base.period.start),
        "until_ns": nanoseconds(base.until),
        "as_of_ns": nanoseconds(as_of),
    }
    if world.client.query(DECIDED, parameters=parameters).result_rows[0][0]:
        return None
    rows = world.client.query(NEWS, parameters=parameters | {"after_ns": nanoseconds(base.looked_at)}).result_rows
    return {name: int(late) for name, late in rows}


def _left_out(world: World, as_of: datetime) -> dict[str, list[Period]]:
    """Per customer the periods, not over at a moment, of ratings that are closed or carry corrections of others."""
    correcting = select(rated_lines.c.rating_id).where(rated_lines.c.kind.in_(ABOUT_CLOSED))
    query = select(ratings.c.customer_id, ratings.c.period_start, ratings.c.period_end).where(
        ratings.c.namespace == world.namespace,
        ratings.c.period_end > as_of,
        (ratings.c.state == CLOSED) | ratings.c.rating_id.in_(correcting),
    )
    found: dict[str, list[Period]] = {}
    with world.engine.connect() as connection:
        for name, start, end in connection.execute(query):
            found.setdefault(name, []).append(Period(start, end))
    return found


def _goes_on(base: Base, mark: Watermark) -> bool:
    """Whether the collectors are those of then, and went on: else rows of long ago may have come."""
    return set(base.watermark) == set(mark.positions) and not mark.went_backwards(dict(base.watermark))


def _read(
    world: World, wanted: Wanted, days: Period, moment: Moment, only: list[str] | None
) -> dict[str, Sequence[Any]] | None:
    """The usage of some days, as it is stored; None where some customer has too many groups, which do not add up."""
    if days.start >= days.end:
        return {}
    found = usage.gather(world.client, world.namespace, days, wanted, as_of=moment.as_of, customers=only)
    if any(it.too_many for it in found.values()):
        return None
    return {name: [_json(row) for row in it.rows] for name, it in found.items()}


def _joined(kept: Iterable[UsageRow], rest: Found) -> Found:
    """The usage of both times, one row for each meter, status and combination of dimensions."""
    kept = list(kept)
    if not kept:
        return rest
    rows: dict[tuple[Any, ...], UsageRow] = {}
    for row in (*kept, *rest.rows):
        key = (row.meter, row.status, row.dimensions, row.task)
        so_far = rows.get(key)
        rows[key] = (
            row
            if so_far is None
            else replace(so_far, events=so_far.events + row.events, quantity=so_far.quantity + row.quantity)
        )
    return replace(rest, rows=tuple(rows[key] for key in sorted(rows)))


def _stored(world: World, period: Period) -> Base | None:
    table = usage_bases
    query = select(table).where(
        table.c.namespace == world.namespace,
        table.c.period_start == period.start,
        table.c.period_end == period.end,
    )
    with world.engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    told = {name: row[name] for name in ("until", "looked_at", "wanted", "watermark")}
    return Base(world.namespace, period, usage=row["usage"], changed=False, **told)


def _json(row: UsageRow) -> list[Any]:
    return [row.meter, row.status, [list(it) for it in row.dimensions], row.events, format(row.quantity, "f"), row.task]


def _row(it: list[Any]) -> UsageRow:
    meter, status, dimensions, events, quantity, task = it
    return UsageRow(meter, status, tuple((name, value) for name, value in dimensions), events, D(quantity), task)
