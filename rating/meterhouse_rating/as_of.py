"""What a period came to by what was known at a moment: usage, decisions, prices, contracts, credits. Writes nothing.

A period that was closed by then is rated as its closing did it, from the same usage and records, and has to give the
same bytes. One that was open is rated by all that was known at the moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from meterhouse_rating import known, ledger, periods
from meterhouse_rating.changes import Changes
from meterhouse_rating.engine import RatedLine
from meterhouse_rating.periods import Period
from meterhouse_rating.queries import WOUND_BACK
from meterhouse_rating.rated import ABOUT_CLOSED
from meterhouse_rating.results import Moment
from meterhouse_rating.settle import Outcome, as_known
from meterhouse_rating.settled import CLOSED, Standing, Unwritten, lines_of, noted_of, standings
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import versions
from meterhouse_rating.world import World
from meterhouse_store.tables import ledger_chain, ledger_transactions


@dataclass(frozen=True)
class Known:
    """A customer's period as it was known; `same`: whether that is what was closed, None where it was open then;
    `uncorrected`: others were closed by then, whose corrections would stand on it.
    """

    outcome: Outcome
    closed: Standing | None
    same: bool | None
    uncorrected: bool = False

    def __str__(self) -> str:
        it = self.outcome
        if self.same is None:
            left_out = ", told without corrections of what was closed by then" if self.uncorrected else ""
            return f"{it.customer_id} {it.period}: open then{left_out}"
        told = "as it was closed, to the byte" if self.same else "NOT as it was closed"
        return f"{it.customer_id} {it.period}: {told}"


def rate_as_of(world: World, text: str, only: str | None, moment: datetime) -> Iterator[Known]:
    """The period as written, of one customer or of all that are registered. Raises PeriodError, NotThere."""
    then = known.terms(world, moment, _version_at(world, moment))
    for name in sorted(then.customers) if only is None else [only]:
        customer = then.customers.get(name)
        asked = periods.parse(text, "UTC" if customer is None else customer.time_zone)
        with world.engine.connect() as connection:
            every = standings(connection, world.namespace, name)
            settled, dry = {it.period: it for it in every if _closed_by(it, moment)}, Unwritten()
            for period in then.parts(name, asked, settled):
                if period in settled:
                    found = closed_again(world, connection, settled[period], every)
                else:
                    found = _open(world, connection, then, name, period, every, moment, dry)
                if found.outcome.usage or (found.outcome.rated is not None and found.outcome.rated.lines):
                    yield found


def closed_again(world: World, connection: Connection, closed: Standing, every: Sequence[Standing]) -> Known:
    """A closed rating, rated again from what its closing knew; `every`: the customer's ratings."""
    assert closed.closed_at is not None, "it is closed"
    terms = known.terms(world, closed.closed_at, closed.book_version)
    used = _used(world, terms, closed.customer_id, closed.period, closed.as_of)
    before = closed_before(closed, every)
    lines = lines_of(connection, [closed.rating_id])
    names = [line["line_id"] for line in lines]
    first = (
        select(func.min(ledger_chain.c.sequence))
        .join(ledger_transactions, ledger_transactions.c.transaction_id == ledger_chain.c.transaction_id)
        .where(ledger_transactions.c.namespace == world.namespace, ledger_transactions.c.source_id.in_(names))
    )
    upto = ledger.Upto(closed.closed_at, connection.execute(first).scalar_one())
    corrections = tuple(_line(row) for row in lines if row["kind"] in ABOUT_CLOSED)
    noted = noted_of(connection, [it.rating_id for it in before], [*(it.rating_id for it in before), closed.rating_id])
    what = (closed.customer_id, closed.period, used, before, upto, corrections, noted)
    outcome = as_known(connection, terms, *what, correcting=True)
    same = outcome.rated is not None and outcome.rated.sha256() == closed.result_sha256
    return Known(outcome, closed, same)


def closed_before(closed: Standing, every: Sequence[Standing]) -> list[Standing]:
    """Those of the customer's ratings that were closed before a closed one."""
    own = closed.closed_at
    return [
        it
        for it in every
        if own is not None and it.closed_at is not None and (it.closed_at, it.period) < (own, closed.period)
    ]


def _open(
    world: World,
    connection: Connection,
    terms: Terms,
    name: str,
    period: Period,
    every: Sequence[Standing],
    moment: datetime,
    dry: Unwritten,
) -> Known:
    """`dry`: what open parts of the period before it come to; this one is noted there for those behind it."""
    used = _used(world, terms, name, period, moment)
    closed = [it for it in every if _closed_by(it, moment)]
    before = [*closed, *dry.standing.get(name, ())]
    known_by = [it.rating_id for it in before]
    noted = noted_of(connection, known_by, known_by)
    outcome = as_known(connection, terms, name, period, used, before, ledger.Upto(moment, None), (), noted, dry.lines)
    if outcome.inputs is not None and outcome.rated is not None:
        changes = Changes(world.namespace)
        changes.rating(name, period, outcome.inputs, outcome.rated, Moment(moment, {}, moment), close=False)
        changes.imagine(dry)
    return Known(outcome, None, None, bool(closed))


def _used(world: World, terms: Terms, name: str, period: Period, as_of: datetime) -> Found:
    return known.gather(world, terms, period, as_of, [name], WOUND_BACK).get(name, Found())


def _closed_by(it: Standing, moment: datetime) -> bool:
    return it.state == CLOSED and it.closed_at is not None and it.closed_at <= moment


def _version_at(world: World, moment: datetime) -> int:
    return max((it.version for it in versions(world.engine, world.namespace) if it.recorded_at <= moment), default=0)


def _line(row: Mapping[Any, Any]) -> RatedLine:
    names = ("kind", "component", "metric", "description", "quantity", "unit")
    rest = ("amount_exact", "amount_minor", "explanation")
    values: dict[str, Any] = {name: row[name] for name in (*names, *rest)}
    return RatedLine(**values, dimensions=tuple(row["dimensions"].items()))
