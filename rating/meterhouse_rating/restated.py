"""Closed ratings whose usage is not what it was: more of it arrived, or a decision took some away."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection

from meterhouse_rating import known, recorrect, usage
from meterhouse_rating.metrics import LATEST, TIME_WEIGHTED
from meterhouse_rating.periods import Period, month_of
from meterhouse_rating.queries import EPOCH, LOOK_BACK
from meterhouse_rating.recorrect import Restated
from meterhouse_rating.settled import CLOSED, Standing, lines_of, standings
from meterhouse_rating.versions import versions
from meterhouse_rating.world import World
from meterhouse_store import registry
from meterhouse_store.numbers import D
from meterhouse_store.tables import unrated_usage

_NONE: Final = (Decimal(0), EPOCH)


def changed(world: World, customers: Sequence[str] | None, as_of: datetime) -> dict[str, list[Restated]]:
    """Per customer, of these or of all, its closed ratings whose usage is another than they account for, with what it
    is now; and those that go on from such a one: later parts of its month, and, of a level, later months.

    Ratings that ended more than 400 days ago are settled: usage that old is not taken any more.
    """
    with world.engine.connect() as connection:
        closed = [
            it
            for it in standings(connection, world.namespace, among=customers)
            if it.state == CLOSED and it.period.end > as_of - LOOK_BACK
        ]
        if not closed:
            return {}
        accounts = recorrect.accounted(connection, world.namespace, as_of - LOOK_BACK)
        suspects: dict[str, set[str]] = {}
        known_to: dict[str, datetime] = {}
        totals: dict[Period, dict[str, dict[str, tuple[Decimal, datetime]]]] = {}
        for it in closed:
            if it.period not in totals:
                about = world.client, world.namespace, it.period
                totals[it.period] = usage.totals(*about, as_of=as_of, customers=customers)
            through, quantities = accounts.get(it.rating_id) or (it.as_of, _from_lines(connection, it))
            known_to[it.rating_id] = through
            now = totals[it.period].get(it.customer_id, {})
            other = {
                meter for meter in {*now, *quantities} if now.get(meter, _NONE)[0] != quantities.get(meter, Decimal(0))
            }
            other |= {meter for meter, (_, last) in now.items() if last > through}
            if other:
                suspects[it.rating_id] = other
    zones = {it.customer_id: it.time_zone for it in registry.customers(world.engine, world.namespace)}
    again = {*suspects, *(_held_on(closed, suspects, _levels(world)) if suspects else ())}
    again |= _going_on(closed, again, known_to, zones)
    groups: dict[tuple[Period, datetime, int], list[Standing]] = {}
    for it in closed:
        if it.rating_id in again and it.closed_at is not None:
            groups.setdefault((it.period, it.closed_at, it.book_version), []).append(it)
    found: dict[str, list[Restated]] = {}
    for (period, closed_at, version), group in sorted(groups.items(), key=lambda it: it[0]):
        terms = known.terms(world, closed_at, version)
        names = sorted({it.customer_id for it in group})
        used = known.gather(world, terms, period, as_of, names)
        for it in group:
            now_used = used.get(it.customer_id, usage.Found())
            found.setdefault(it.customer_id, []).append(Restated(it, terms, now_used))
    return found


def _levels(world: World) -> dict[int, frozenset[str]]:
    """Per version of the price book the meters that it reads as levels."""
    return {
        it.version: frozenset(
            meter
            for metric in it.book.metrics.values()
            if metric.aggregate in (LATEST, TIME_WEIGHTED)
            for meter in metric.meters
        )
        for it in versions(world.engine, world.namespace)
    }


def _held_on(
    closed: Iterable[Standing], changed: Mapping[str, Collection[str]], levels: Mapping[int, frozenset[str]]
) -> set[str]:
    """Ratings of after one in which a level is another than it was: it goes on until there is a further event.

    `changed`: per rating the meters of which it is; `levels`: per version of the price book those that are read so.
    """
    found: set[str] = set()
    so_far: dict[str, dict[str, datetime]] = {}
    for it in sorted(closed, key=lambda it: it.period):
        moved = so_far.setdefault(it.customer_id, {})
        if any(moved[meter] > it.period.start - LOOK_BACK for meter in levels[it.book_version] & moved.keys()):
            found.add(it.rating_id)
        moved |= dict.fromkeys(changed.get(it.rating_id, ()), it.period.end)
    return found


def _going_on(
    closed: Iterable[Standing], suspects: Collection[str], known_to: Mapping[str, datetime], zones: Mapping[str, str]
) -> set[str]:
    """Parts of months that were closed after another one whose usage changed, or that was corrected since."""
    months: dict[tuple[str, datetime], list[Standing]] = {}
    for it in closed:
        month = month_of(it.period.start, zones.get(it.customer_id, "UTC"))
        months.setdefault((it.customer_id, month.start), []).append(it)
    found: set[str] = set()
    for parts in months.values():
        changed, corrected = False, datetime.min.replace(tzinfo=UTC)
        for it in sorted(parts, key=lambda it: (it.closed_at or corrected, it.period)):
            if changed or corrected > known_to[it.rating_id]:
                found.add(it.rating_id)
            changed = changed or it.rating_id in suspects
            corrected = max(corrected, known_to[it.rating_id])
    return found


def _from_lines(connection: Connection, it: Standing) -> dict[str, Decimal]:
    """What a rating accounts for that was closed before this was remembered."""
    found: dict[str, Decimal] = {}
    for line in lines_of(connection, [it.rating_id]):
        for meter, quantity in line["explanation"].get("meters", {}).items():
            found[meter] = found.get(meter, Decimal(0)) + D(quantity)
    table = unrated_usage
    left = table.select().where(
        table.c.customer_id == it.customer_id,
        table.c.period_start == it.period.start,
        table.c.period_end == it.period.end,
    )
    for row in connection.execute(left).mappings():
        found[row["meter"]] = found.get(row["meter"], Decimal(0)) + row["quantity"]
    return found
