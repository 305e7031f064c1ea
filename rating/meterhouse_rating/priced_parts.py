"""A customer's rated periods with what single uses of them cost, as they are closed, or as they would be rated now."""

from sqlalchemy import Connection, select

from meterhouse_rating import known, outlook, periods, results, usage
from meterhouse_rating.basis import Unpriced, basis_of
from meterhouse_rating.periods import Period, overlaps
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import CLOSED, Standing, lines_of, standings
from meterhouse_rating.shares import NOT_RATED, Part, left_in
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Wanted, Watermark
from meterhouse_rating.world import World
from meterhouse_store.tables import unrated_usage


def parts_of(world: World, customer_id: str, period: Period) -> tuple[list[Part], Wanted]:
    """The parts that the period touches, in order, and what of single uses their prices depend on.

    Raises NotThere without a price book, WatermarkWentBack.
    """
    now, terms = world.now(), known.terms(world, only=customer_id)
    zone = terms.customers[customer_id].time_zone if customer_id in terms.customers else "UTC"
    found: list[tuple[Part, Wanted]] = []
    with world.engine.connect() as connection:
        every = [it for it in standings(connection, world.namespace, customer_id) if it.state == CLOSED]
        for closed in every:
            if overlaps(closed.period, period):
                found.append(_closed(world, connection, closed, zone))
    settled = [it.period for it in every]
    mark = usage.watermark(world.client)
    moment = Moment(min(mark.as_of or now, now), mark.as_json(), now)
    for month in periods.months(period.start, period.end, zone):
        for rest in periods.without(month, settled):
            parts = terms.parts(customer_id, rest, settled) if rest.start < now else []
            found += [_open(world, terms, customer_id, it, moment, mark, zone) for it in parts if overlaps(it, period)]
    dimensions = sorted({name for _, wanted in found for name in wanted.dimensions})
    tasks = any(wanted.tasks for _, wanted in found)
    return sorted((it for it, _ in found), key=lambda it: it.period), Wanted(tuple(dimensions), tasks)


def _closed(world: World, connection: Connection, closed: Standing, zone: str) -> tuple[Part, Wanted]:
    terms = known.terms(world, closed.closed_at, closed.book_version, closed.customer_id)
    by = basis_of(terms, closed.customer_id, closed.period, Found())
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


def _open(
    world: World, terms: Terms, customer_id: str, period: Period, moment: Moment, mark: Watermark, zone: str
) -> tuple[Part, Wanted]:
    found = outlook.found_now(world, terms, customer_id, period, moment.as_of)
    outcome = outlook.rater(world, terms, customer_id, period, moment, mark)(found)
    wanted = terms.wanted(period)
    if outcome.inputs is None or outcome.rated is None:
        reasons = [it.reason for it in outcome.leftovers]
        return Part(period, zone, reason=reasons[0] if reasons else NOT_RATED), wanted
    inputs = outcome.inputs
    rows = results.unrated_rows(world.namespace, customer_id, period, outcome.leftovers)
    part = Part(
        period,
        zone,
        inputs.currency,
        (inputs.book, inputs.plan),
        "",
        results.line_rows_of("", inputs.currency, outcome.rated.lines),
        left_in(rows),
        inputs.declared,
        terms.trial_end(customer_id, period),
    )
    return part, wanted
