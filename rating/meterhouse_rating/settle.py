"""Settles a customer's period: rates it after what stands in SQL, and says what has to be written where it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from meterhouse_rating import credit_book, engine, recorrect, results
from meterhouse_rating.basis import Basis, Unpriced, basis_of, beyond, inputs_of, with_remedy
from meterhouse_rating.changes import Changes
from meterhouse_rating.credit_book import Credits
from meterhouse_rating.engine import Inputs, Leftover, Rated, RatedLine, UsageRow
from meterhouse_rating.ledger import Upto
from meterhouse_rating.periods import Period, PeriodError, month_of, overlaps
from meterhouse_rating.rated import ABOUT_CLOSED, CREDIT_RESTORED
from meterhouse_rating.recorrect import Corrected, Restated
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import (
    CLOSED,
    OPEN,
    Past,
    Row,
    Standing,
    by_rating,
    lines_of,
    remembered,
    settled_before,
    standings,
)
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Watermark


class WatermarkWentBack(RuntimeError):
    """The warehouse knows less than a stored rating was made from."""

    def __init__(self, collectors: Sequence[str], standing: Standing) -> None:
        self.recorded = standing.watermark
        super().__init__(
            f"the warehouse is behind the rating of {standing.customer_id} for {standing.period}: "
            f"{', '.join(collectors)} went backwards. Was a journal or the warehouse restored from an older copy? "
            "Bring the journal back and run `meterhouse warehouse rebuild`"
        )


@dataclass(frozen=True)
class Imagined:
    """A rating that is not stored; `for_long`: the components that later months go on from, too."""

    name: str
    period: Period
    lines: tuple[Mapping[str, Any], ...]
    for_long: frozenset[str]

    def after_its_month(self) -> "Imagined":
        """What of it still matters in later months."""
        kept = [
            it for it in self.lines if it["component"] in self.for_long or (self.for_long and it["kind"] == "discount")
        ]
        return replace(self, lines=tuple(kept))


@dataclass(frozen=True)
class Outcome:
    """What happened to a customer's period.

    `what`: rated, unchanged, closed, already_closed, unrated (there is usage and no way to rate it), nothing.
    """

    what: str
    customer_id: str
    period: Period
    rated: Rated | None = None
    inputs: Inputs | None = None
    leftovers: tuple[Leftover, ...] = ()
    usage: tuple[UsageRow, ...] = ()

    @property
    def exceptions(self) -> tuple[Leftover, ...]:
        """Usage that is not on a line and not free by choice."""
        return tuple(it for it in self.leftovers if it.reason not in engine.BY_CHOICE)


def settle(
    connection: Connection,
    terms: Terms,
    customer_id: str,
    period: Period,
    found: Found,
    past: Past,
    moment: Moment,
    mark: Watermark,
    changes: Changes,
    *,
    close: bool = False,
    restated: Sequence[Restated] = (),
) -> Outcome:
    """Rate the customer's period, after its past; what has to be written is put into `changes`.

    Of `restated`, closed ratings before the period are corrected on it, unless another open rating does that; what that
    takes is read on the connection.

    Raises PeriodError for a period that overlaps a closed one or is closed before an earlier one; WatermarkWentBack.
    """
    usage, standing = found.rows, past.standing
    same = next((it for it in standing if it.period == period), None)
    if same and same.state == CLOSED:
        return Outcome("already_closed", customer_id, period)
    _check_order(customer_id, period, standing, close)
    for it in standing:
        if gone := mark.went_backwards(dict(it.watermark)):
            raise WatermarkWentBack(gone, it)
    replaced = [it for it in standing if overlaps(it.period, period)]
    corrected: tuple[Corrected, ...] = ()
    if customer_id in terms.customers:
        month = month_of(period.start, terms.customers[customer_id].time_zone)
        corrected = recorrect.corrected(connection, terms.namespace, customer_id, period, month, past, restated, rerate)
    correcting = any(it.on_rating or it.on_note for it in corrected)
    basis = basis_of(terms, customer_id, period, found, correcting=correcting)
    mine = results.rating_id(terms.namespace, customer_id, period)

    def accounted() -> list[dict[str, Any]]:
        noted: list[dict[str, Any]] = []
        for late in corrected:
            noted += changes.correction(customer_id, late, mine, moment)
            changes.unrated(past, customer_id, late.restated.standing.period, engine.rate(late.inputs).leftovers)
        return noted

    def unpriced(why: Unpriced) -> Outcome:
        left = engine.left_over(usage, why.reason, why.hint)
        changed = changes.unrated(past, customer_id, period, left)
        changes.remove_open(replaced)
        what = "unrated" if usage else "rated" if changed else "nothing"
        return Outcome(what, customer_id, period, leftovers=left, usage=usage)

    if isinstance(basis, Unpriced):
        if close and basis.reason == engine.CONTRACT_ENDED:
            accounted()  # what changed and comes to the same needs no rating
        return unpriced(basis)
    lines = tuple(line for it in corrected for line in it.on_rating)
    noted = tuple(line for it in corrected for line in it.on_note)
    rows = [*past.noted, *results.line_rows_of("", basis.customer.currency, (*lines, *noted))]
    inputs = _inputs(terms, basis, period, found, standing, past.lines, past.credits, lines, rows)
    rated = engine.rate(inputs)
    if (too_large := beyond(rated, inputs.currency)) is not None:
        return unpriced(too_large)
    left = tuple(with_remedy(it, period) for it in rated.leftovers)
    outcome = Outcome("rated", customer_id, period, rated, inputs, left, usage)
    expiring = (customer_id, past.credits, basis.customer.currency)
    began = terms.began(customer_id)
    # A month that comes to nothing is closed like any other, so that it is not due for ever.
    due = close and began is not None and began < period.end
    if not usage and not rated.lines and not replaced and not corrected and not due:
        if close:
            changes.expire(*expiring, (), period.end, moment.rated_at)
        return replace(outcome, what="nothing")
    unchanged = replaced == [same] and same is not None and same.inputs_sha256 == inputs.sha256()
    if unchanged and not close:
        return replace(outcome, what="unchanged")
    changes.remove_open(replaced)
    posted = changes.rating(customer_id, period, inputs, rated, moment, close=close)
    changes.unrated(past, customer_id, period, left)
    if not close:
        return outcome
    changes.account(mine, usage, moment.as_of)
    posted += accounted()
    changes.expire(*expiring, posted, period.end, moment.rated_at)
    return replace(outcome, what="closed")


def as_known(
    connection: Connection,
    terms: Terms,
    customer_id: str,
    period: Period,
    found: Found,
    standing: Sequence[Standing],
    upto: Upto,
    corrections: tuple[RatedLine, ...],
    noted: Sequence[Row],
    unwritten: Mapping[str, Sequence[Mapping[Any, Any]]] | None = None,
    *,
    correcting: bool = False,
) -> Outcome:
    """The customer's period rated by what is given, with the credits that were there then; nothing is written.

    `corrections` stand on it, `noted` on credit notes; it is `correcting` where it may have such. `unwritten`: the
    lines, by rating, of those in `standing` that are not stored.
    """
    basis = basis_of(terms, customer_id, period, found, correcting=correcting)
    if isinstance(basis, Unpriced):
        left = engine.left_over(found.rows, basis.reason, basis.hint)
        return Outcome("unrated", customer_id, period, leftovers=left, usage=found.rows)
    where = (connection, terms.namespace, customer_id, basis.customer.currency)
    lines = {**by_rating(lines_of(connection, [it.rating_id for it in standing])), **(unwritten or {})}
    pending = [line for it in standing if it.closed_at is None for line in lines.get(it.rating_id, ())]
    rows = [*noted, *results.line_rows_of("", basis.customer.currency, corrections)]
    inputs = replace(
        _inputs(terms, basis, period, found, standing, lines, Credits(), corrections, rows),
        credits=credit_book.at_start(
            credit_book.standing(*where, [*pending, *_restored(rows)], upto=upto), period.start
        ),
        top_up=credit_book.top_up_in_force(*where, period.end, upto.recorded_at),
    )
    rated = engine.rate(inputs)
    left = tuple(with_remedy(it, period) for it in rated.leftovers)
    return Outcome("rated", customer_id, period, rated, inputs, left, found.rows)


def imagine(
    terms: Terms, customer_id: str, period: Period, found: Found, history: Sequence[Imagined], made: str
) -> tuple[Outcome, Imagined | None]:
    """The customer's period rated by the terms alone, without credits and SQL, after an imagined `history`.

    The second is what has to be appended to the history for later periods; `made` names the rating in it.
    """
    basis = basis_of(terms, customer_id, period, found)
    if isinstance(basis, Unpriced):
        left = engine.left_over(found.rows, basis.reason, basis.hint)
        return Outcome("unrated", customer_id, period, leftovers=left, usage=found.rows), None
    month = month_of(period.start, basis.customer.time_zone)
    this_month = {it.name for it in history if it.period.start >= month.start}
    lines = [line for it in history for line in it.lines]
    plan, carried = basis.terms.plan, basis.book.carried_on()
    before = remembered(lines, this_month, basis.contract, plan, carried)
    inputs = inputs_of(terms, basis, period, found, before)
    rated = engine.rate(inputs)
    left = tuple(with_remedy(it, period) for it in rated.leftovers)
    outcome = Outcome("rated", customer_id, period, rated, inputs, left, found.rows)
    for_long = frozenset(part.name for part in plan.components if part.memory == "contract")
    rows = tuple(results.line_rows_of(made, inputs.currency, rated.lines))
    return outcome, Imagined(made, period, rows, for_long)


def rerate(connection: Connection, it: Restated, corrections: Sequence[Row]) -> Inputs | None:
    """The inputs of a closed rating at its own time, with the usage of now, after what was closed before it with the
    `corrections` of that; None where it cannot be priced any more.
    """
    customer_id, period = it.standing.customer_id, it.standing.period
    basis = basis_of(it.terms, customer_id, period, it.found)
    if isinstance(basis, Unpriced):
        return None
    then = [
        other
        for other in standings(connection, it.terms.namespace, customer_id)
        if other.closed_at is not None
        and it.standing.closed_at is not None
        and (other.closed_at, other.period) < (it.standing.closed_at, period)
    ]
    # Credits are those that paid then (corrections.correct).
    stored = lines_of(connection, [other.rating_id for other in then])
    lines = by_rating(line for line in stored if line["kind"] not in ABOUT_CLOSED)
    inputs = _inputs(it.terms, basis, period, it.found, then, lines, Credits(), (), corrections)
    return inputs if inputs.currency == it.standing.currency else None


def _check_order(customer_id: str, period: Period, standing: Sequence[Standing], close: bool) -> None:
    for it in standing:
        if it.state == CLOSED and overlaps(it.period, period):
            raise PeriodError(
                f"{customer_id}: {period} overlaps {it.period}, which is closed. Use --due, or a period beside it."
            )
        if close and it.state == OPEN and it.period.end <= period.start:
            # Credits, tiers and fees go on from what came before, so they have to be settled in order.
            raise PeriodError(f"{customer_id}: close {it.period} before {period}.")


def _inputs(
    terms: Terms,
    basis: Basis,
    period: Period,
    found: Found,
    standing: Sequence[Standing],
    lines: Mapping[str, Sequence[Mapping[Any, Any]]],
    credits: Credits,
    corrections: tuple[RatedLine, ...],
    corrected: Sequence[Row],
) -> Inputs:
    """`corrections` stand on the rating; `corrected`: those that do not stand on what it goes on from, as rows."""
    customer, plan = basis.customer, basis.terms.plan
    carried = basis.book.carried_on()
    before, pending = settled_before(customer, basis.contract, plan, period, standing, lines, carried, corrected)
    back = _restored(results.line_rows_of("", customer.currency, corrections))
    grants = credits.standing(customer.currency, [*pending, *back])
    return replace(
        inputs_of(terms, basis, period, found, before),
        credits=credit_book.at_start(grants, period.start),
        top_up=credits.top_up(customer.currency, period.end),
        corrections=corrections,
    )


def _restored(corrections: Sequence[Row]) -> list[Row]:
    """Those that give credits back which may pay at once; from before lines said so none does."""
    return [it for it in corrections if it["kind"] == CREDIT_RESTORED and "payable" in it["explanation"]]
