"""A customer's rated periods with what single uses of them cost, as they are closed, or as they would be rated now."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from meterhouse_rating import known, outlook, periods, results, sums, usage
from meterhouse_rating.basis import Unpriced, basis_of
from meterhouse_rating.periods import Period, overlaps
from meterhouse_rating.queries import USAGE
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import CLOSED, Standing, Unwritten, lines_of, standings
from meterhouse_rating.shares import NOT_RATED, Part, left_in
from meterhouse_rating.sums import By, Sums
from meterhouse_rating.terms import Terms
from meterhouse_rating.together import together
from meterhouse_rating.usage import Found, Wanted, Watermark
from meterhouse_rating.world import World
from meterhouse_store.tables import unrated_usage


@dataclass(frozen=True)
class Begun:
    """The rated periods that a period touches, of which all is known but the usage of those that are under way.

    `wanted`: what of single uses their prices depend on.
    """

    world: World
    customer_id: str
    period: Period
    terms: Terms
    closed: tuple[Part, ...]
    under_way: tuple[Period, ...]
    wanted: Wanted
    moment: Moment
    mark: Watermark
    zone: str

    def ask(self, *more: By, source: str = USAGE) -> Sums | None:
        """The usage of what is under way, and sums of the period by `more`; None where there is nothing to ask for."""
        if not self.under_way and not more:
            return None
        return sums.ask(
            self.world.client,
            self.world.namespace,
            self.customer_id,
            [self.period.start, self.period.end, *outlook.edges_of(self.terms, self.customer_id, self.under_way)],
            as_of=self.moment.as_of,
            dimensions=outlook.dimensions_of(self.terms, self.under_way) if self.under_way else None,
            more=more,
            source=source,
        )

    def parts(self, told: Sums | None) -> list[Part]:
        """The rated periods in order, by what `ask` told. Raises WatermarkWentBack."""
        dry = Unwritten()
        rated = [self._open(it, told, dry) for it in self.under_way]  # in order: each goes on from the one before
        return sorted([*self.closed, *rated], key=lambda it: it.period)

    def _open(self, period: Period, told: Sums | None, dry: Unwritten) -> Part:
        terms, customer_id = self.terms, self.customer_id
        found = outlook.found_now(self.world, terms, customer_id, period, self.moment.as_of, told)
        outcome = outlook.rater(self.world, terms, customer_id, period, self.moment, self.mark, dry)(found, dry)
        if outcome.inputs is None or outcome.rated is None:
            reasons = [it.reason for it in outcome.leftovers]
            return Part(period, self.zone, reason=reasons[0] if reasons else NOT_RATED)
        inputs = outcome.inputs
        rows = results.unrated_rows(self.world.namespace, customer_id, period, outcome.leftovers)
        return Part(
            period,
            self.zone,
            inputs.currency,
            (inputs.book, inputs.plan),
            "",
            results.line_rows_of("", inputs.currency, outcome.rated.lines),
            left_in(rows),
            inputs.declared,
            terms.trial_end(customer_id, period),
        )


def begin(world: World, customer_id: str, period: Period) -> Begun:
    """The rated periods that the period touches. Raises NotThere without a price book."""
    now = world.now()
    terms, mark = together(lambda: known.terms(world, only=customer_id), lambda: usage.watermark(world.client))
    zone = terms.customers[customer_id].time_zone if customer_id in terms.customers else "UTC"
    with world.engine.connect() as connection:
        every = [it for it in standings(connection, world.namespace, customer_id) if it.state == CLOSED]
        closed = [_closed(world, connection, it, zone) for it in every if overlaps(it.period, period)]
    settled = [it.period for it in every]
    moment = Moment(min(mark.as_of or now, now), mark.as_json(), now)
    under_way = tuple(
        it
        for month in periods.months(period.start, period.end, zone)
        for rest in periods.without(month, settled)
        if rest.start < now
        for it in terms.parts(customer_id, rest, settled)
        if overlaps(it, period)
    )
    every_wanted = [*(wanted for _, wanted in closed), *map(terms.wanted, under_way)]
    dimensions = sorted({name for it in every_wanted for name in it.dimensions})
    wanted = Wanted(tuple(dimensions), any(it.tasks for it in every_wanted))
    parts = tuple(part for part, _ in closed)
    return Begun(world, customer_id, period, terms, parts, under_way, wanted, moment, mark, zone)


def _closed(world: World, connection: Connection, closed: Standing, zone: str) -> tuple[Part, Wanted]:
    terms = known.terms(world, closed.closed_at, closed.book_version, closed.customer_id)
    by = basis_of(terms, closed.customer_id, closed.period, Found(), correcting=True)
    query = select(unrated_usage).where(
        unrated_usage.c.namespace == world.namespace,
        unrated_usage.c.customer_id == closed.customer_id,
        unrated_usage.c.period_start == closed.period.start,
        unrated_usage.c.period_end == closed.period.end,
    )
    part = Part(
        closed.period,
        zone,
        closed.currency,
        None if isinstance(by, Unpriced) else (by.book, by.terms.plan),
        by.reason if isinstance(by, Unpriced) else "",
        lines_of(connection, [closed.rating_id]),
        left_in(connection.execute(query).mappings().all()),
        terms.declared,
        terms.trial_end(closed.customer_id, closed.period),
        closed.as_of,
    )
    return part, terms.wanted(closed.period)
