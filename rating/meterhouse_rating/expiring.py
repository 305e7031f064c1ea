"""Credits of customers whose contract ended: no closing comes with which they would expire, so a scheduled run does it.

They expire at their time, once nothing is open any more that they may pay.
"""

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import select

from meterhouse_rating.changes import Changes, lock
from meterhouse_rating.credit_book import credits_of
from meterhouse_rating.periods import Period
from meterhouse_rating.settled import OPEN, standings
from meterhouse_rating.terms import Terms
from meterhouse_rating.world import World
from meterhouse_store.sql import begin_write
from meterhouse_store.tables import credit_grants

_BATCH: Final = 100
"""So many customers are in one transaction."""

_INSTANT: Final = timedelta(microseconds=1)


class Expired(NamedTuple):
    """What a customer lost, in minor units; 0 where all of it was carried over."""

    customer_id: str
    lost_minor: int
    currency: str


def expire(world: World, terms: Terms, only: str | None, unsettled: Collection[str]) -> Iterator[Expired]:
    """Post what has expired up to now of customers (or `only` one) whose contract is over; each of them whole or not.

    Those wait that are `unsettled`, as something of the time before the end is not closed, or have an open rating.
    """
    now = world.now()
    query = select(credit_grants.c.customer_id).where(
        credit_grants.c.namespace == world.namespace, credit_grants.c.expires_at <= now
    )
    with world.engine.connect() as connection:
        holders = sorted(connection.execute(query.distinct()).scalars())
    names = [
        name
        for name in holders
        if only in (None, name) and name not in unsettled and terms.over(name, Period(now, now + _INSTANT))
    ]
    for start in range(0, len(names), _BATCH):
        batch, changes, found = names[start : start + _BATCH], Changes(world.namespace), []
        with begin_write(world.engine) as connection:
            lock(connection, world.namespace, batch)
            waiting = {it.customer_id for it in standings(connection, world.namespace, among=batch) if it.state == OPEN}
            for name, credits in credits_of(connection, world.namespace, batch).items():
                for currency in sorted({row["currency"] for row in credits.grants} if name not in waiting else ()):
                    lost = changes.expire(name, credits, currency, (), now, now)
                    found += [] if lost is None else [Expired(name, lost, currency)]
            changes.write(connection)
        yield from found
