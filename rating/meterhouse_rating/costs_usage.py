"""Usage with what it cost: aggregates in which all events of a row have the same price by the costs that are known.

What an event costs depends on what it is of, on when it happened, for some models on the time of day or on the size of
its request, and on least quantities. The warehouse groups by these; the prices come from the records in SQL as they
were known, so that a rating can be made again at any later time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating import costs_resolve
from meterhouse_rating.costs_asked import CONTEXT_UNKNOWN, USAGE_UNKNOWN, Cost, priced
from meterhouse_rating.costs_book import CostBook
from meterhouse_rating.costs_catalogue import CONTEXT_METERS, Price, Unknown
from meterhouse_rating.costs_entries import Usage
from meterhouse_rating.costs_queries import COST_KEY, combinations_query, costed_query
from meterhouse_rating.costs_resolve import Rate
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import MAX_GROUPS, Whom, nanoseconds
from meterhouse_rating.sorting import UsageRow

Ask = Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]]
"""Asks the warehouse: a query and its parameters, rows come back."""

_NO_REQUEST: Final = 1
_SEVERAL_REQUESTS: Final = 2


@dataclass(frozen=True)
class Costing:
    """The meters whose prices mark up what the provider asks, and the costs that are known."""

    meters: tuple[str, ...]
    book: CostBook


@dataclass(frozen=True)
class Asked:
    """What is asked for: a period of some customers (None: all), by dimensions; `parameters` of its window."""

    period: Period
    dimensions: tuple[str, ...]
    tasks: bool
    source: str
    customers: Whom
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Dated:
    """The rates of one combination of usage in the order of time; neighbours differ."""

    rates: tuple[Rate, ...]

    def at(self, moment: datetime) -> Price | Unknown:
        """What holds at a moment."""
        return next(it.cost for it in reversed(self.rates) if it.valid_from <= moment)


def dated(costing: Costing, usage: Iterable[Usage]) -> dict[Usage, Dated]:
    """The rates of combinations of usage, by the costs that are known."""
    found: dict[Usage, list[Rate]] = {}
    for it in costs_resolve.rates(costing.book, sorted(usage, key=lambda it: [getattr(it, key) for key in COST_KEY])):
        found.setdefault(it.usage, []).append(it)
    return {usage: Dated(tuple(rates)) for usage, rates in found.items()}


def combinations(ask: Ask, asked: Asked, costing: Costing) -> set[Usage]:
    """The combinations of what costs depend on that occur."""
    query = combinations_query(asked.source, asked.customers)
    return {Usage(**dict(zip(COST_KEY, row, strict=True))) for row in ask(query, _parameters(asked, costing))}


def costed(ask: Ask, asked: Asked, costing: Costing) -> tuple[list[tuple[str, UsageRow]], set[str]]:
    """Customers and rows of usage of the costing's meters, each row with its cost; and the customers with more than
    MAX_GROUPS rows, of whom only some are there.
    """
    usage = combinations(ask, asked, costing)
    if not usage:
        return [], set()
    rates = dated(costing, usage)
    edges = _Edges.of(rates.values(), asked.period)
    query = costed_query(
        asked.dimensions, asked.customers, tasks=asked.tasks, source=asked.source, sized=bool(edges.sizes)
    )
    parameters = _parameters(asked, costing) | edges.parameters
    sums: dict[tuple[Any, ...], tuple[int, Decimal, Cost]] = {}
    groups = Counter[str]()
    for customer, meter, status, *rest, events, quantity in ask(query, parameters):
        groups[customer] += 1
        values, rest = rest[: len(asked.dimensions)], rest[len(asked.dimensions) :]
        task = rest.pop(0) if asked.tasks else ""
        kind = Usage(meter, **dict(zip(COST_KEY[1:], rest, strict=False)))
        slot = _Slot(*rest[len(COST_KEY) - 1 :])
        cost = edges.cost(rates[kind].at(edges.moment(slot.moment)), kind, slot, events, quantity)
        # What has the same price is one row, whatever else tells it apart.
        key = (customer, meter, status, tuple(values), task, cost.entry, cost.price, cost.per, cost.reason, cost.what)
        so_far = sums.get(key)
        if so_far is not None:
            events, quantity = events + so_far[0], quantity + so_far[1]
            cost = Cost(*key[5:8], cost.currency, cost.quantity + so_far[2].quantity, cost.reason, cost.what)
        sums[key] = (events, quantity, cost)
    rows = [
        (
            it[0],
            UsageRow(
                it[1], it[2], tuple(zip(asked.dimensions, it[3], strict=True)), events, quantity, it[4], cost=cost
            ),
        )
        for it, (events, quantity, cost) in sums.items()
    ]
    return rows, {customer for customer, count in groups.items() if count > MAX_GROUPS}


@dataclass(frozen=True)
class _Slot:
    """Where the events of a row stand among the edges: how many of each kind of edge are before them.

    `request`: 0, _NO_REQUEST or _SEVERAL_REQUESTS; `silent`: whether nobody reported what was used.
    """

    moment: int
    second: int
    size: int
    short: int
    request: int
    silent: int


@dataclass(frozen=True)
class _Edges:
    """All that prices of a period change at: moments, seconds of the UTC day, sizes of requests, least quantities."""

    start: datetime
    moments: tuple[datetime, ...]
    seconds: tuple[int, ...]
    sizes: tuple[int, ...]
    least: tuple[Decimal, ...]
    tiered: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, rates: Iterable[Dated], period: Period) -> "_Edges":
        every = [it for dated in rates for it in dated.rates]
        prices = [(it.usage, it.cost) for it in every if isinstance(it.cost, Price)]
        return cls(
            period.start,
            tuple(sorted({it.valid_from for it in every if period.start < it.valid_from < period.end})),
            tuple(sorted({second for _, it in prices for second, _ in it.clock})),
            tuple(sorted({start for _, it in prices for start, _ in it.tiers})),
            tuple(sorted({it.minimum for _, it in prices if it.minimum})),
            tuple(sorted({(usage.provider, usage.model) for usage, it in prices if it.tiers})),
        )

    @property
    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "cost_moments": [nanoseconds(it) for it in self.moments],
            "cost_seconds": list(self.seconds),
            "cost_least": list(self.least),
        }
        if self.sizes:
            found |= {"cost_sizes": list(self.sizes), "cost_context": list(CONTEXT_METERS)}
            found |= {"cost_tiered": list(self.tiered)}
        return found

    def moment(self, passed: int) -> datetime:
        """A moment from which on prices are the same up to the next edge."""
        return self.moments[passed - 1] if passed else self.start

    def cost(self, rate: Price | Unknown, kind: Usage, slot: _Slot, events: int, quantity: Decimal) -> Cost:
        """What the events of a row cost."""
        what = tuple((name, getattr(kind, name)) for name in COST_KEY if getattr(kind, name))
        if slot.silent:
            return Cost(reason=USAGE_UNKNOWN, what=what)
        if isinstance(rate, Unknown):
            return Cost(reason=rate.reason, what=what)
        above = [it for start, it in rate.tiers if start in self.sizes[: slot.size]]
        if rate.tiers and (slot.request == _NO_REQUEST or (above and slot.request == _SEVERAL_REQUESTS)):
            return Cost(reason=CONTEXT_UNKNOWN, what=what)
        price = rate.price
        if above:
            price = above[-1]
        elif rate.clock:
            now = self.seconds[slot.second - 1]
            price = [it for second, it in rate.clock if second <= now][-1]
        below = rate.minimum in self.least[len(self.least) - slot.short :]
        return priced(rate, price, events * rate.minimum if below else quantity)


def _parameters(asked: Asked, costing: Costing) -> dict[str, Any]:
    customers, agents = costs_resolve.named(costing.book)
    named = {"cost_meters": list(costing.meters), "cost_agents": sorted(agents), "cost_customers": sorted(customers)}
    return dict(asked.parameters) | named
