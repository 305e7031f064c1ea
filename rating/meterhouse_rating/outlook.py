"""What a customer's month comes to so far, and what it may come to by its end. Rated by the prices in force; nothing is
stored.

So far: the usage that is in the warehouse now, as the next run would rate it. To the end: each meter goes on as it went
in the last 14 days, to the month's end. The range: how far whole days of each meter differed from their mean, 90 % of a
normal distribution's sums of as many days; it is then priced like usage, so that tiers, minimums and credits count.
Metrics that are no sums (max, unique, latest, over time) stay as they are.
"""

import decimal
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, Protocol

from meterhouse_rating import known, periods, sums, usage
from meterhouse_rating.changes import Changes
from meterhouse_rating.periods import Period, month_of, overlaps
from meterhouse_rating.queries import USAGE, nanoseconds
from meterhouse_rating.results import Moment
from meterhouse_rating.settle import Outcome, settle
from meterhouse_rating.settled import CLOSED, Unwritten, pasts, standings
from meterhouse_rating.sorting import UsageRow
from meterhouse_rating.sums import By, Sums
from meterhouse_rating.terms import Terms
from meterhouse_rating.together import together
from meterhouse_rating.usage import Found, Watermark
from meterhouse_rating.world import World

BACK: Final = timedelta(days=14)
DAY: Final = timedelta(days=1)
LEAST_DAYS: Final = 3
"""From fewer whole days nothing is said of how much they differ."""

_Z: Final = Decimal("1.645")
"""Of 100 sums of a normal distribution, 5 are further below their mean than so many standard deviations, 5 above."""

_QUANTUM: Final = Decimal("1e-9")


class Rater(Protocol):
    """Rates usage of one part of a customer's month; `noted` is told what would be stored."""

    def __call__(self, found: Found, noted: Unwritten | None = None) -> Outcome: ...


_BACK: Final = "intDiv({now_ns:Int64} - 1 - toUnixTimestamp64Nano(event_time), 86400000000000)"
"""Whole days back from now."""


@dataclass(frozen=True)
class Range:
    """Amounts in minor units; `low` and `high` are None where too few days are known (`days` whole ones are)."""

    expected: int
    low: int | None
    high: int | None
    days: int


@dataclass(frozen=True)
class Outlook:
    """A month under way. `outcomes`: its parts as they would be rated now; `ahead` None: nothing to go on from.

    A part is a span of one plan; what is closed of the month is not in it, but in `closed`.
    """

    month: Period
    now: datetime
    outcomes: tuple[Outcome, ...]
    ahead: Range | None
    closed: tuple[Period, ...]

    @property
    def currency(self) -> str | None:
        return next((it.inputs.currency for it in self.outcomes if it.inputs is not None), None)

    @property
    def so_far_minor(self) -> int:
        return sum(it.rated.total_minor for it in self.outcomes if it.rated is not None)


@dataclass(frozen=True)
class _Recent:
    """Usage that a month goes on by: `rows`, and per meter the sums of the whole days since, the latest first."""

    since: datetime
    whole_days: int
    daily: Mapping[str, Sequence[Decimal]]
    rows: tuple[UsageRow, ...]


@dataclass(frozen=True)
class Begun:
    """A month under way of which all is known but the usage: its parts, and which of them is now."""

    world: World
    terms: Terms
    customer_id: str
    month: Period
    parts: tuple[Period, ...]
    closed: tuple[Period, ...]
    moment: Moment
    mark: Watermark

    @property
    def current(self) -> Period | None:
        return next((part for part in self.parts if part.start <= self.moment.rated_at < part.end), None)

    def ask(self, *more: By, source: str = USAGE) -> Sums:
        """The usage that the month is looked at by; and sums by `more` of all of it."""
        end, current = self.moment.as_of, self.current
        edges = {self.month.start, self.month.end, *edges_of(self.terms, self.customer_id, self.parts)}
        if current is not None:
            edges |= {end - 2 * BACK, end - BACK, end}
        return sums.ask(
            self.world.client,
            self.world.namespace,
            self.customer_id,
            [*edges],
            as_of=end,
            dimensions=dimensions_of(self.terms, self.parts),
            more=[*more, *([] if current is None else [_daily(end)])],
            source=source,
        )

    def outlook(self, told: Sums) -> Outlook:
        """The month, by what `ask` told. Raises WatermarkWentBack."""
        world, terms, customer_id, moment, current = self.world, self.terms, self.customer_id, self.moment, self.current
        found = {part: found_now(world, terms, customer_id, part, moment.as_of, told) for part in self.parts}
        rates: dict[Period, Rater] = {}
        outcomes, dry = [], Unwritten()
        for part in self.parts:  # in order: each goes on from the one before
            rates[part] = rater(world, terms, customer_id, part, moment, self.mark, dry)
            outcomes.append(rates[part](found[part], dry))
        recent = None if current is None else _recent(world, terms, customer_id, current, moment.as_of, told)
        ahead = None
        if current is not None and recent is not None:
            ahead = _ahead(current, found[current], recent, moment.as_of, rates[current])
            before = sum(
                it.rated.total_minor
                for part, it in zip(self.parts, outcomes, strict=True)
                if part != current and it.rated is not None
            )
            ahead = None if ahead is None else _shifted(ahead, before)
        return Outlook(self.month, moment.rated_at, tuple(outcomes), ahead, self.closed)


def begin(world: World, customer_id: str) -> Begun:
    """The customer's month of now. Raises NotThere without a price book."""
    terms, mark = together(lambda: known.terms(world, only=customer_id), lambda: usage.watermark(world.client))
    now = world.now()
    moment = Moment(min(mark.as_of or now, now), mark.as_json(), now)
    customer = terms.customers.get(customer_id)
    month = month_of(now, customer.time_zone if customer else "UTC")
    with world.engine.connect() as connection:
        closed = [it.period for it in standings(connection, world.namespace, customer_id) if it.state == CLOSED]
    parts = [part for rest in periods.without(month, closed) for part in terms.parts(customer_id, rest, closed)]
    of_month = tuple(sorted(it for it in closed if overlaps(it, month)))
    return Begun(world, terms, customer_id, month, tuple(parts), of_month, moment, mark)


def look(world: World, customer_id: str) -> Outlook:
    """The customer's month of now. Raises NotThere without a price book, WatermarkWentBack."""
    begun = begin(world, customer_id)
    return begun.outlook(begun.ask())


def edges_of(terms: Terms, customer_id: str, parts: Iterable[Period]) -> set[datetime]:
    """Between which moments the usage of parts of a month has to be known: their own, and the ends of trials."""
    found = {moment for part in parts for moment in (part.start, part.end)}
    trials = {part: terms.trial_end(customer_id, part) for part in parts}
    return found | {min(end, part.end) for part, end in trials.items() if end is not None}


def dimensions_of(terms: Terms, parts: Iterable[Period]) -> list[str]:
    """What prices of any of the parts depend on."""
    return sorted({name for part in parts for name in terms.wanted(part).dimensions})


def going_on(
    rows: Sequence[UsageRow], recent: Iterable[UsageRow], factors: Mapping[str, Decimal]
) -> tuple[UsageRow, ...]:
    """The rows, and as much more of each meter's recent rows as its factor says; quantities have nine decimals."""
    made: dict[tuple[object, ...], UsageRow] = {_key(row): row for row in rows}
    for row in recent:
        more = (row.quantity * factors.get(row.meter, Decimal(0))).quantize(_QUANTUM, rounding=ROUND_HALF_EVEN)
        if not more:
            continue
        so_far = made.get(_key(row))
        if so_far is None:
            made[_key(row)] = row.of(more)
        else:
            made[_key(row)] = replace(so_far.of(so_far.quantity + more), events=so_far.events + row.events)
    return tuple(made.values())


def factors_of(
    daily: Mapping[str, Sequence[Decimal]], known_days: Decimal, days_left: Decimal, z: Decimal
) -> dict[str, Decimal]:
    """Per meter how many times its recent sum comes in the days that are left, `z` deviations off the mean; >= 0.

    `daily`: the sums of whole days; `known_days`: of how many days the recent sum is.
    """
    found = {}
    for meter, days in daily.items():
        total = sum(days, Decimal(0))
        factor = days_left / known_days
        if z and total and len(days) >= LEAST_DAYS:
            spread = statistics.stdev(days) * days_left.sqrt()
            factor += z * spread / total
        found[meter] = max(factor, Decimal(0))
    return found


def _ahead(part: Period, so_far: Found, recent: _Recent, as_of: datetime, rate: Rater) -> Range | None:
    length, left = _in_days(as_of - recent.since), _in_days(part.end - as_of)
    daily = {**{row.meter: [Decimal(0)] for row in recent.rows}, **recent.daily}

    def total(z: Decimal) -> int | None:
        with decimal.localcontext(prec=80):
            rows = going_on(so_far.rows, recent.rows, factors_of(daily, length, left, z))
        rated = rate(replace(so_far, rows=rows)).rated
        return None if rated is None else rated.total_minor

    expected = total(Decimal(0))
    if expected is None:
        return None
    if recent.whole_days < LEAST_DAYS:
        return Range(expected, None, None, recent.whole_days)
    return Range(expected, total(-_Z), total(_Z), recent.whole_days)


def _daily(end: datetime) -> By:
    return By(("meter", _BACK), {"now_ns": nanoseconds(end)})


def _recent(world: World, terms: Terms, customer_id: str, part: Period, end: datetime, told: Sums) -> _Recent | None:
    """What was used up to the end; None without any usage.

    That is 14 days back; for somebody new from the first event on, at least an hour. New is who used nothing in the 14
    days before those.
    """
    days = told.by(_daily(end), Period(end - 2 * BACK, end))
    if not days:
        return None
    since = min(max(min(it.first for it in days), end - BACK), end - timedelta(hours=1))
    whole = (end - since) // DAY
    daily: dict[str, list[Decimal]] = defaultdict(lambda: [Decimal(0)] * max(whole, 1))
    for it in days:
        meter, back = it.values
        if back < whole:
            daily[meter][int(back)] += it.quantity
    wanted = replace(terms.wanted(part), measurements=())
    # All of the 14 days: where `since` is later, nothing is before it.
    found = usage.gather(
        world.client, world.namespace, Period(end - BACK, end), wanted, as_of=end, customers=[customer_id], sums=told
    ).get(customer_id, Found())
    return _Recent(since, whole, dict(daily), found.rows)


def _in_days(span: timedelta) -> Decimal:
    return Decimal(span // timedelta(microseconds=1)) / Decimal(DAY // timedelta(microseconds=1))


def found_now(world: World, terms: Terms, customer_id: str, part: Period, as_of: datetime, told: Sums | None) -> Found:
    """The customer's usage of a part of a month, as far as it was known then."""
    return known.gather(world, terms, part, as_of, [customer_id], sums=told).get(customer_id, Found())


def rater(
    world: World, terms: Terms, customer_id: str, part: Period, moment: Moment, mark: Watermark, dry: Unwritten
) -> Rater:
    """Rates a part of a month that is not closed, as the next run would; nothing is stored, and what SQL has of the
    customer's past is read once, here. `dry`: what would be stored of earlier parts.

    What it returns raises WatermarkWentBack.
    """
    zone = terms.customers[customer_id].time_zone if customer_id in terms.customers else "UTC"
    namespace, reaches_back = world.namespace, terms.reaches_back(part)
    with world.engine.connect() as connection:
        past = pasts(connection, namespace, {customer_id: zone}, part, for_long=reaches_back)[customer_id]
    past = past.after(customer_id, dry)

    def rate(found: Found, noted: Unwritten | None = None) -> Outcome:
        changes = Changes(namespace)
        with world.engine.connect() as connection:
            outcome = settle(connection, terms, customer_id, part, found, past, moment, mark, changes)
        if noted is not None:
            changes.imagine(noted)
        return outcome

    return rate


def _shifted(ahead: Range, minor: int) -> Range:
    low, high = (None if it is None else it + minor for it in (ahead.low, ahead.high))
    return Range(ahead.expected + minor, low, high, ahead.days)


def _key(row: UsageRow) -> tuple[object, ...]:
    cost = None if row.cost is None else replace(row.cost, quantity=Decimal(0))
    return row.meter, row.status, row.dimensions, row.task, row.trial, cost
