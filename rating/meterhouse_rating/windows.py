"""Which periods a run rates, and for whom: customers in different time zones have different months."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import select

from meterhouse_rating import periods, restated, usage
from meterhouse_rating.periods import Period, PeriodError, month_of, overlaps
from meterhouse_rating.queries import EVERYBODY, Names
from meterhouse_rating.recorrect import NONE, policies
from meterhouse_rating.settled import CLOSED, OPEN, standings
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.world import World
from meterhouse_store.tables import unrated_usage

_STRANGERS_ZONE = "UTC"
"""The time zone of customers that are not registered."""

_ASKED_AT_ONCE: Final = 1000
"""So many customers at most are in one question to a database."""


@dataclass
class Window:
    """A period, the customers whose period it is, and whether those not registered are among them."""

    period: Period
    members: set[str] = field(default_factory=set)
    strangers: bool = False
    registered: frozenset[str] = frozenset()
    used: dict[str, Found] | None = None
    """The members' usage, where it was read already."""

    def customers(self, found: Mapping[str, Any], only: str | None, among: Names = EVERYBODY) -> list[str]:
        """Who is to be settled: all members, and strangers with usage; sorted, so that every run goes the same way."""
        names = set(self.members)
        if self.strangers:
            names |= {name for name in found if name not in self.registered}
        return sorted(name for name in names if name in among and only in (None, name))


def asked_for(
    world: World, text: str | None, only: str | None, terms: Terms, as_of: datetime, *, beside: bool = False
) -> list[Window]:
    """The windows of a period as written, or, for None, of all that is due up to now; in order of time.

    Raises PeriodError for text that is no period, and for a period that overlaps a closed one, unless what lies
    `beside` it is meant.
    """
    members = terms.customers if only is None else {k: v for k, v in terms.customers.items() if k == only}
    if only is not None and not members and text is None:
        raise PeriodError(f"{only} is not registered: name a --period, or `meterhouse customers add {only}`.")
    found = _of_text(world, text, members, terms, beside=beside) if text else _due(world, only, members, terms, as_of)
    return sorted(found, key=lambda window: window.period)


def _of_text(world: World, text: str, members: Iterable[str], terms: Terms, *, beside: bool) -> list[Window]:
    registered = frozenset(terms.customers)
    strangers = periods.parse(text, _STRANGERS_ZONE)
    found = {strangers: Window(strangers, set(), True, registered)}
    closed = _closed(world)
    for name in members:
        period = periods.parse(text, terms.customers[name].time_zone)
        settled = closed.get(name, ())
        parts = terms.parts(name, period, settled)
        if beside:
            parts = [rest for it in parts for rest in ([it] if it in settled else periods.without(it, settled))]
        for part in parts:
            found.setdefault(part, Window(part, registered=registered)).members.add(name)
    # What was listed as unrated is looked at again even when its usage is gone.
    found[strangers].members |= _listed(world, strangers) - registered
    _refuse_overlaps(closed, found.values())
    return list(found.values())


def _closed(world: World) -> dict[str, list[Period]]:
    found: dict[str, list[Period]] = {}
    with world.engine.connect() as connection:
        for it in standings(connection, world.namespace):
            if it.state == CLOSED:
                found.setdefault(it.customer_id, []).append(it.period)
    return found


def _refuse_overlaps(closed: Mapping[str, Iterable[Period]], found: Iterable[Window]) -> None:
    clashes = [
        f"{name} {it}"
        for window in found
        for name in sorted(window.members)
        for it in closed.get(name, ())
        if it != window.period and overlaps(it, window.period)
    ]
    if clashes:
        more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
        raise PeriodError(
            f"the period overlaps closed ones: {'; '.join(clashes[:5])}{more}. Use --due, which rates what lies beside "
            "them, or write another period."
        )


def _due(world: World, only: str | None, members: Iterable[str], terms: Terms, as_of: datetime) -> list[Window]:
    """Every calendar month since a customer began or first had usage, without what is closed of it; after the end of a
    contract only those in which there is something.

    When that was is asked only of whom it may make more due: it takes reading all of a customer's usage.
    """
    closed = _closed(world)
    zones = {name: customer.time_zone for name, customer in terms.customers.items()}
    days = usage.first_days(world.client, world.namespace)
    names = {*members, *(set(days) - set(terms.customers) if only is None else ())}
    began = {name: terms.began(name) for name in names}
    unsure = [
        name
        for name in sorted(names & days.keys())
        if _more_due(days[name], began[name], zones.get(name, _STRANGERS_ZONE), closed.get(name, ()))
    ]
    first = usage.first_usage(world.client, world.namespace, unsure, as_of=as_of)
    found: dict[Period, Window] = {}
    over: dict[str, list[Period]] = {}
    for name in names:
        since = min((it for it in (first.get(name), began[name]) if it is not None), default=None)
        if since is None:
            continue
        for month in periods.months(since, max(world.now(), since), zones.get(name, _STRANGERS_ZONE)):
            for rest in periods.without(month, closed.get(name, ())):
                for part in terms.parts(name, rest):
                    if terms.over(name, part):
                        over.setdefault(name, []).append(part)
                    else:
                        found.setdefault(part, Window(part)).members.add(name)
    ended = sorted(over)
    for start in range(0, len(ended), _ASKED_AT_ONCE):
        some = {name: over[name] for name in ended[start : start + _ASKED_AT_ONCE]}
        for name, part in _after_the_end(world, some, zones, as_of):
            found.setdefault(part, Window(part)).members.add(name)
    return list(found.values())


def _after_the_end(
    world: World, over: Mapping[str, Sequence[Period]], zones: Mapping[str, str], as_of: datetime
) -> Iterator[tuple[str, Period]]:
    """Of parts of months after the end of a contract those with usage, with something that is listed or open, and, of
    customers with closed ratings to be corrected, those of the month under way and of the one before.
    """
    names = list(over)
    since = min(part.start for parts in over.values() for part in parts)
    wanted = usage.used_days(world.client, world.namespace, names, since)
    listed = select(unrated_usage.c.customer_id, unrated_usage.c.period_start, unrated_usage.c.period_end)
    with world.engine.connect() as connection:
        for it in standings(connection, world.namespace, among=names):
            if it.state == OPEN:
                wanted.setdefault(it.customer_id, []).append(it.period)
        for name, start, end in connection.execute(listed.where(unrated_usage.c.namespace == world.namespace)):
            wanted.setdefault(name, []).append(Period(start, end))
        agreed = policies(connection, world.namespace)
    for name in restated.changed(world, names, as_of):
        if agreed.get(name) != NONE:
            now = month_of(world.now(), zones[name])
            before = month_of(now.start - timedelta(days=1), zones[name])
            wanted.setdefault(name, []).append(Period(before.start, now.end))
    for name in names:
        yield from ((name, part) for part in over[name] if any(overlaps(part, it) for it in wanted.get(name, ())))


def _more_due(day: datetime, began: datetime | None, zone: str, closed: Iterable[Period]) -> bool:
    """Whether usage from a day on may make months due beside those since a customer began, that are not closed."""
    if began is None:
        return True
    first, then = month_of(day, zone), month_of(began, zone)
    return first < then and bool(periods.without(Period(first.start, then.start), closed))


def _listed(world: World, period: Period) -> set[str]:
    query = select(unrated_usage.c.customer_id).where(
        unrated_usage.c.namespace == world.namespace,
        unrated_usage.c.period_start < period.end,
        unrated_usage.c.period_end > period.start,
    )
    with world.engine.connect() as connection:
        return set(connection.execute(query.distinct()).scalars())
