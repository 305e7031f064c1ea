"""Revenue beside cost: per customer, and as fine as one asks.

Revenue is what the rated lines of the period's ratings, open and closed, post to the ledger's account `revenue`; cost
is that of the usage of the same period, as the view `costs` has it. A line of usage that is divided among agents,
models or conversations is divided in proportion to the usage it charges, to the minor unit, by largest remainder: the
shares add up to the line. What is no usage of anything (fees, minimums, discounts, corrections, maxima) is not divided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, select

from meterhouse_rating import known, ledger, periods
from meterhouse_rating.charges import Portion
from meterhouse_rating.money import exact, of_minor
from meterhouse_rating.periods import Period, PeriodError
from meterhouse_rating.queries import WOUND_BACK, nanoseconds
from meterhouse_rating.rates import rate_at
from meterhouse_rating.settle import as_known
from meterhouse_rating.settled import Standing, by_rating, lines_of, standings
from meterhouse_rating.sorting import sort_out
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import NotThere, in_force
from meterhouse_rating.world import World
from meterhouse_store.tables import customers

COLUMNS: Final[Mapping[str, str]] = {
    "customer": "billed_customer_id",
    "agent": "agent_id",
    "step": "step",
    "model": "model",
    "provider": "provider",
    "source": "source",
    "tool": "tool",
    "conversation": "conversation_id",
    "meter": "meter",
    "period": "",
}
"""What margins can be shown by, and the column of `costs` that has it."""

NOT_DIVIDED: Final = "(not by usage)"
"""Stands where a value of usage would: revenue that is of nothing in particular."""

_REVENUE_KINDS: Final = ("usage", "flat", "minimum", "discount", "correction")

_IN: Final = (
    "namespace = {namespace:String} AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)

_KNOWN: Final = (
    "SELECT count() FROM cost_rates FINAL WHERE namespace = {namespace:String} AND status IN ('known', 'free')"
)

Key = tuple[str, ...]


@dataclass
class Share:
    """Revenue and cost of one group, in `currency`.

    `cost` is what is known of it, `not_ok` the part of it for calls that failed, were aborted or not finished;
    `unknown` of the `events` have an unknown cost. `foreign`: cost in currencies that no rate converts.
    """

    values: Key
    currency: str
    revenue_minor: int = 0
    cost: Decimal = Decimal(0)
    not_ok: Decimal = Decimal(0)
    events: int = 0
    unknown: int = 0
    foreign: dict[str, Decimal] = field(default_factory=dict)

    @property
    def revenue(self) -> Decimal:
        return of_minor(self.revenue_minor, self.currency)

    @property
    def margin(self) -> Decimal:
        """Revenue less what is known of the cost: where some is unknown, at most that."""
        return self.revenue - self.cost

    @property
    def certain(self) -> bool:
        return not self.unknown and not self.foreign


@dataclass(frozen=True)
class Ended:
    """The cost of calls that ended in one way, by currency as it was asked."""

    status: str
    currency: str
    events: int
    unknown: int
    cost: Decimal


@dataclass(frozen=True)
class Margins:
    """The margins of a period by some dimensions, and the cost of calls that did not end well as lines of their own."""

    period: str
    by: tuple[str, ...]
    shares: tuple[Share, ...]
    not_ok: tuple[Ended, ...]

    @property
    def unknown(self) -> int:
        return sum(it.unknown for it in self.shares)

    @property
    def certain(self) -> bool:
        return all(it.certain for it in self.shares)


def margins(world: World, text: str, by: Sequence[str], only: str | None = None) -> Margins:
    """The margins of a period as written, by the names of COLUMNS. Raises PeriodError."""
    strange = [name for name in by if name not in COLUMNS]
    if strange:
        raise PeriodError(f"there is no margin by {', '.join(strange)}. Choose from: {', '.join(COLUMNS)}.")
    terms = _terms(world)
    zones = _zones(world)
    made = _Made(world, tuple(dict.fromkeys(by)), terms, {})
    own: dict[str, str] = {}
    mine = {name: periods.parse(text, zone) for name, (zone, _) in zones.items()}
    with world.engine.connect() as connection:
        found = [
            it
            for it in standings(connection, world.namespace, only)
            if _within(it.period, mine.get(it.customer_id) or periods.parse(text, "UTC"))
        ]
        for it in found:
            own[it.customer_id] = it.currency
        made.revenue(connection, found)
    currencies = {name: currency for name, (_, currency) in zones.items()} | own
    not_ok: dict[tuple[str, str], Ended] = {}
    for row in _costs_within(made, text, mine, currencies, only):
        if row["status"] != "ok":
            key = (row["status"], row["currency"])
            was = not_ok.get(key, Ended(*key, 0, 0, Decimal(0)))
            not_ok[key] = Ended(*key, was.events + row["events"], was.unknown + row["unknown"], was.cost + row["cost"])
    return Margins(text, made.by, made.sorted(), tuple(not_ok[key] for key in sorted(not_ok)))


def costs_by_customer(world: World, text: str, only: str | None = None) -> tuple[Share, ...]:
    """The cost of each customer's usage in a period as written, without revenue. Raises PeriodError."""
    zones = _zones(world)
    made = _Made(world, ("customer",), _terms(world), {})
    mine = {name: periods.parse(text, zone) for name, (zone, _) in zones.items()}
    for _ in _costs_within(made, text, mine, {name: currency for name, (_, currency) in zones.items()}, only):
        pass
    return made.sorted()


def nothing_known(world: World) -> bool:
    """Whether no kind of usage has a known cost: then that of all usage is unknown, and nobody has to work it out."""
    return not world.client.query(_KNOWN, parameters={"namespace": world.namespace}).result_rows[0][0]


def _costs_within(
    made: "_Made", text: str, mine: Mapping[str, Period], currencies: Mapping[str, str], only: str | None
) -> Iterable[Mapping[str, Any]]:
    """Put costs into their groups, of each customer those of its own period; yields what was put."""
    utc = periods.parse(text, "UTC")
    for period in sorted({*mine.values(), utc}):
        for row in _costs(made.world, period, made.by, only):
            customer = row["customer"]
            if mine.get(customer, period if period == utc else None) == period:
                made.cost(row, period, currencies.get(customer))
                yield row


@dataclass
class _Made:
    """The groups as they come about."""

    world: World
    by: tuple[str, ...]
    terms: Terms | None
    shares: dict[tuple[Key, str], Share]

    def sorted(self) -> tuple[Share, ...]:
        """The groups in their order."""
        return tuple(sorted(self.shares.values(), key=lambda it: (it.values, it.currency)))

    def revenue(self, connection: Connection, found: Sequence[Standing]) -> None:
        """Put the revenue of ratings into its groups."""
        usage = self._usage(found)
        every = by_rating(lines_of(connection, [it.rating_id for it in found]))
        for it in found:
            lines = [row for row in every.get(it.rating_id, ()) if row["kind"] in _REVENUE_KINDS]
            portions = self._portions(connection, it, usage)
            for line in lines:
                for values, amount in self._divided(it, line, portions):
                    self._share(values, it.currency).revenue_minor += amount

    def cost(self, row: Mapping[str, Any], period: Period, currency: str | None) -> None:
        """Put a sum of costs into its group, in the currency of the customer's revenue where a rate converts it."""
        known_by = {"customer": row["customer"], "period": str(period)}
        values = tuple(known_by.get(name) or row.get(name, "") for name in self.by)
        share = self._share(values, currency or row["currency"] or "USD")
        share.events += row["events"]
        share.unknown += row["unknown"]
        if not row["cost"]:
            return
        factor = self._factor(row["currency"], share.currency, period)
        if factor is None:
            share.foreign[row["currency"]] = share.foreign.get(row["currency"], Decimal(0)) + row["cost"]
            return
        with exact():
            cost = row["cost"] * factor
            share.cost += cost
            if row["status"] != "ok":
                share.not_ok += cost

    def _factor(self, source: str, target: str, period: Period) -> Decimal | None:
        if source == target:
            return Decimal(1)
        version = None if self.terms is None else in_force(self.terms.versions, period)
        if self.terms is None or version is None:
            return None
        rate = rate_at(self.terms.book(version).rates, source, target, period.start)
        return None if rate is None else rate.rate

    @property
    def _finer(self) -> tuple[str, ...]:
        return tuple(COLUMNS[name] for name in self.by if name not in ("customer", "period", "meter"))

    def _usage(self, found: Iterable[Standing]) -> dict[str, tuple[Terms, Found]]:
        """By rating: the terms it was made by, and its usage as finely as asked."""
        if not set(self.by) - {"customer", "period"}:
            return {}
        groups: dict[tuple[Any, ...], list[Standing]] = {}
        for it in found:
            groups.setdefault((it.period, it.as_of, it.closed_at, it.book_version if it.closed_at else 0), []).append(
                it
            )
        used: dict[str, tuple[Terms, Found]] = {}
        for (period, as_of, closed_at, version), group in groups.items():
            terms = self.terms if closed_at is None else known.terms(self.world, closed_at, version)
            if terms is None:
                continue
            names = sorted(it.customer_id for it in group)
            rows = known.gather(self.world, terms, period, as_of, names, WOUND_BACK, self._finer)
            used |= {it.rating_id: (terms, rows[it.customer_id]) for it in group if it.customer_id in rows}
        return used

    def _portions(
        self, connection: Connection, it: Standing, usage: Mapping[str, tuple[Terms, Found]]
    ) -> Mapping[str, Sequence[Portion]]:
        """What each component of the rating charges; empty where that is not known any more."""
        if it.rating_id not in usage:
            return {}
        terms, found = usage[it.rating_id]
        upto = ledger.Upto(it.as_of, None)
        inputs = as_known(connection, terms, it.customer_id, it.period, found, (), upto, (), ()).inputs
        if inputs is None:
            return {}
        return sort_out(inputs.book, inputs.plan, inputs.usage, inputs.measures, inputs.declared, {}).portions

    def _divided(
        self, it: Standing, line: Mapping[Any, Any], portions: Mapping[str, Sequence[Portion]]
    ) -> Iterable[tuple[Key, int]]:
        weights: dict[Key, Decimal] = {}
        if line["kind"] == "usage":
            for portion in portions.get(line["component"], ()):
                said = dict(portion.dimensions)
                if portion.metric == line["metric"] and all(
                    said.get(name) == value for name, value in line["dimensions"].items()
                ):
                    values = self._values(it, said | {"meter": portion.meter})
                    weights[values] = weights.get(values, Decimal(0)) + portion.priced
        weights = {values: weight for values, weight in weights.items() if weight > 0}
        if set(self.by) <= {"customer", "period"} or not weights or not self._tell_apart(portions, line):
            return [(self._values(it, None), line["amount_minor"])]
        return list(share_out(line["amount_minor"], weights).items())

    def _tell_apart(self, portions: Mapping[str, Sequence[Portion]], line: Mapping[Any, Any]) -> bool:
        """Whether the usage is known as finely as asked: that of a maximum, or of a level, is not."""
        mine = [it for it in portions.get(line["component"], ()) if it.metric == line["metric"]]
        return all(set(self._finer) <= {name for name, _ in it.dimensions} for it in mine)

    def _values(self, it: Standing, said: Mapping[str, str] | None) -> Key:
        own = {"customer": it.customer_id, "period": str(it.period)}
        return tuple(
            own[name] if name in own else NOT_DIVIDED if said is None else said.get(COLUMNS[name], "")
            for name in self.by
        )

    def _share(self, values: Key, currency: str) -> Share:
        return self.shares.setdefault((values, currency), Share(values, currency))


def share_out(amount_minor: int, weights: Mapping[Key, Decimal]) -> dict[Key, int]:
    """The amount in minor units, in proportion to the weights (above 0), by largest remainder; of equal remainders the
    first in the order of the keys has the unit. The parts add up to the amount."""
    total = sum((Fraction(it) for it in weights.values()), Fraction(0))
    sign, units = (-1 if amount_minor < 0 else 1), abs(amount_minor)
    ideal = {key: Fraction(weight) * units / total for key, weight in sorted(weights.items())}
    parts = {key: int(it) for key, it in ideal.items()}
    left = units - sum(parts.values())
    for key in sorted(ideal, key=lambda key: (parts[key] - ideal[key], key))[:left]:
        parts[key] += 1
    return {key: sign * part for key, part in parts.items()}


def cost_query(by: Sequence[str], only: str | None) -> str:
    """Costs of a period by customer, status and currency, and by what else is asked; names are of COLUMNS."""
    columns = [COLUMNS[name] for name in by if name not in ("customer", "period")]
    keys = ", ".join(["billed_customer_id", "status", "currency", *columns])
    one = "" if only is None else " AND billed_customer_id = {customer:String}"
    return (
        f"SELECT {keys}, count(), countIf(cost_status = 'unknown'), sum(ifNull(cost, 0)) FROM costs "  # noqa: S608
        f"WHERE {_IN}{one} GROUP BY {keys} ORDER BY {keys}"
    )


def _costs(world: World, period: Period, by: Sequence[str], only: str | None) -> Iterable[dict[str, Any]]:
    finer = [name for name in by if name not in ("customer", "period")]
    names = ["customer", "status", "currency", *finer, "events", "unknown", "cost"]
    parameters = {
        "namespace": world.namespace,
        "start_ns": nanoseconds(period.start),
        "end_ns": nanoseconds(period.end),
    } | ({} if only is None else {"customer": only})
    for row in world.client.query(cost_query(by, only), parameters=parameters).result_rows:
        yield dict(zip(names, row, strict=True))


def _terms(world: World) -> Terms | None:
    try:
        return known.terms(world)
    except NotThere:
        return None


def _zones(world: World) -> dict[str, tuple[str, str]]:
    """Time zone and currency of the registered customers."""
    query = select(customers.c.customer_id, customers.c.time_zone, customers.c.currency)
    with world.engine.connect() as connection:
        rows = connection.execute(query.where(customers.c.namespace == world.namespace)).all()
    return {name: (zone, currency) for name, zone, currency in rows}


def _within(period: Period, asked: Period) -> bool:
    return asked.start <= period.start and period.end <= asked.end
