"""Usage that arrived after its period was closed: found and listed, so that nobody has to wonder where it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from meterhouse_rating import periods, usage
from meterhouse_rating.periods import Period, overlaps
from meterhouse_rating.recorrect import NEXT_INVOICE, NONE, accounted, policies
from meterhouse_rating.settled import CLOSED, Standing, standings
from meterhouse_rating.world import World


@dataclass(frozen=True)
class LateUsage:
    """What arrived for a closed period after it was rated for the last time; `policy`: what becomes of it."""

    customer_id: str
    period: Period
    meter: str
    events: int
    quantity: Decimal
    policy: str = NEXT_INVOICE

    @property
    def becomes(self) -> str:
        """What becomes of it, in words."""
        return "not billed" if self.policy == NONE else "on the next invoice"


def look(
    world: World, text: str | None, only: str | None, zones: Mapping[str, str], as_of: datetime
) -> tuple[LateUsage, ...]:
    """Late usage of the closed ratings in the period as written, or of all closed ratings; one query per closing.

    `zones`: the customers' time zones, in which a month is read.
    """
    with world.engine.connect() as connection:
        every = [it for it in standings(connection, world.namespace, only) if it.state == CLOSED]
        if not every:
            return ()
        accounts, agreed = accounted(connection, world.namespace), policies(connection, world.namespace)
        closed = [
            replace(it, as_of=accounts[it.rating_id][0]) if it.rating_id in accounts else it
            for it in every
            if _asked(it, text, zones)
        ]
        closed = [it for it in closed if it.as_of < as_of]
    closings: dict[tuple[Period, datetime], set[str]] = {}
    for it in closed:
        closings.setdefault((it.period, it.as_of), set()).add(it.customer_id)
    found = []
    for (period, after), customers in sorted(closings.items()):
        rows = usage.aggregates(world.client, world.namespace, period, (), as_of=as_of, after=after)
        for customer in sorted(customers & set(rows)):
            meters: dict[str, tuple[int, Decimal]] = {}
            for row in rows[customer]:
                events, quantity = meters.get(row.meter, (0, Decimal(0)))
                meters[row.meter] = (events + row.events, quantity + row.quantity)
            policy = agreed.get(customer, NEXT_INVOICE)
            found += [LateUsage(customer, period, meter, *counted, policy) for meter, counted in sorted(meters.items())]
    return tuple(found)


def _asked(it: Standing, text: str | None, zones: Mapping[str, str]) -> bool:
    if text is None:
        return True
    return overlaps(it.period, periods.parse(text, zones.get(it.customer_id, "UTC")))
