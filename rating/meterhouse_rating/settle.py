"""Settles a customer's period: rates it after what stands in SQL, and says what has to be written where it changed."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection

from meterhouse_rating import credit_book, engine, recorrect, results
from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.caps import capped
from meterhouse_rating.changes import Changes
from meterhouse_rating.charges import Before, Setting
from meterhouse_rating.credit_book import Credits
from meterhouse_rating.effective import AgreementRefused, Effective, effective
from meterhouse_rating.engine import Inputs, Leftover, Rated, RatedLine, UsageRow
from meterhouse_rating.ledger import Upto
from meterhouse_rating.periods import Period, PeriodError, month_of, overlaps, short
from meterhouse_rating.rates import Rate, rate_at
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import (
    CLOSED,
    OPEN,
    Past,
    Standing,
    by_rating,
    contract_in_force,
    lines_of,
    remembered,
    settled_before,
    span_of,
    standings,
)
from meterhouse_rating.sorting import measurements, needs_tasks
from meterhouse_rating.usage import Found, Wanted, Watermark
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.registry import ALWAYS, ENDED, Contract, Customer


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
class Terms:
    """What all customers of one run share: who is registered, on what contract, with what agreed beside it, and the
    published price books.
    """

    namespace: str
    customers: Mapping[str, Customer]
    contracts: Mapping[str, Sequence[Contract]]
    versions: Sequence[Version]
    books: Mapping[int, Book]
    declared: frozenset[str]
    agreements: Mapping[str, Agreement] = field(default_factory=dict)

    def book(self, version: Version) -> Book:
        """The book of a version."""
        return self.books[version.version]

    def wanted(self, period: Period) -> Wanted:
        """What has to be asked of the warehouse to rate a period: what the prices in force then depend on."""
        version = in_force(self.versions, period)
        if version is None:
            return Wanted()
        book, plans = self._plans(version, period)
        parts = (component for plan in plans for component in plan.components)
        dimensions = tuple(sorted({name for component in parts for name in component.dimensions}))
        return Wanted(dimensions, needs_tasks(book, plans), measurements(book, plans))

    def reaches_back(self, period: Period) -> bool:
        """Whether any price of the period goes on from more than its month."""
        version = in_force(self.versions, period)
        if version is None:
            return False
        _, plans = self._plans(version, period)
        return any(part.memory == "contract" for plan in plans for part in plan.components)

    def trial_end(self, customer_id: str, period: Period) -> datetime | None:
        """When the customer's trial ends, where that is after the period's start."""
        customer, version = self.customers.get(customer_id), in_force(self.versions, period)
        contract = contract_in_force(self.contracts.get(customer_id, ()), period)
        if customer is None or contract is None or version is None:
            return None
        plan = self.book(version).plans.get(contract.plan)
        if plan is None or not plan.trial_days:
            return None
        # A contract that holds from ever begins with the registration.
        began = customer.registered_at if contract.valid_from == ALWAYS else contract.valid_from
        end = began + timedelta(days=plan.trial_days)
        return end if end > period.start else None

    def parts(self, customer_id: str, period: Period, closed: Iterable[Period] = ()) -> list[Period]:
        """The period, cut where the customer's plan changes at once; never inside of what is closed."""
        version = in_force(self.versions, period)
        if version is None or not self.book(version).plan_changes.at_once:
            return [period]
        known = sorted(self.contracts.get(customer_id, ()), key=lambda it: it.valid_from)
        moments = {later.valid_from for one, later in pairwise(known) if later.plan != one.plan}
        settled = list(closed)
        edges = [
            it
            for it in sorted(moments)
            if period.start < it < period.end and not any(one.start < it < one.end for one in settled)
        ]
        return [Period(start, end) for start, end in pairwise((period.start, *edges, period.end))]

    def _plans(self, version: Version, period: Period) -> tuple[Book, list[Plan]]:
        book = self.book(version)
        return book, [*book.plans.values(), *book.addons.values(), *self._own_plans(book, period)]

    def _own_plans(self, book: Book, period: Period) -> list[Plan]:
        found = []
        for customer_id, agreement in self.agreements.items():
            contract = contract_in_force(self.contracts.get(customer_id, ()), period)
            plan = None if contract is None else book.plans.get(contract.plan)
            if plan is None or not agreement.overrides:
                continue
            try:
                found.append(effective(book, plan, agreement, period).plan)
            except AgreementRefused:
                continue  # said, with what to do, when the customer is settled
        return found

    def with_customer(self, customer: Customer, contracts: Sequence[Contract]) -> "Terms":
        key = customer.customer_id
        return replace(self, customers={**self.customers, key: customer}, contracts={**self.contracts, key: contracts})


@dataclass(frozen=True)
class Restated:
    """A closed rating whose usage is not what it was: what it is now, and the terms that its closing knew."""

    standing: Standing
    terms: Terms
    found: Found


@dataclass(frozen=True)
class Imagined:
    """A rating that is not stored; `for_long`: the components that later months go on from, too."""

    name: str
    period: Period
    lines: tuple[Mapping[str, Any], ...]
    for_long: frozenset[str]

    def after_its_month(self) -> "Imagined":
        """What of it still matters in later months."""
        return replace(self, lines=tuple(line for line in self.lines if line["component"] in self.for_long))


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
    basis = _basis(terms, customer_id, period, found)
    if isinstance(basis, _Unpriced):
        left = engine.left_over(usage, basis.reason, basis.hint)
        changed = changes.unrated(past, customer_id, period, left)
        changes.remove_open(replaced)
        what = "unrated" if usage else "rated" if changed else "nothing"
        return Outcome(what, customer_id, period, leftovers=left, usage=usage)
    corrected = recorrect.corrected(connection, terms.namespace, customer_id, period, standing, restated, rerate)
    lines = tuple(line for it in corrected for line in it.on_rating)
    inputs = _inputs(terms, basis, period, found, standing, past.lines, past.credits, lines)
    rated = engine.rate(inputs)
    left = tuple(_with_remedy(it, period) for it in rated.leftovers)
    outcome = Outcome("rated", customer_id, period, rated, inputs, left, usage)
    expiring = (customer_id, past.credits, basis.customer.currency)
    if not usage and not rated.lines and not replaced and not corrected:
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
    mine = results.rating_id(terms.namespace, customer_id, period)
    changes.account(mine, usage, moment.as_of)
    for late in corrected:
        posted += changes.correction(customer_id, late, mine, moment)
        changes.unrated(past, customer_id, late.restated.standing.period, engine.rate(late.inputs).leftovers)
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
) -> Outcome:
    """The customer's period rated by what is given, with the credits that were there then; nothing is written."""
    basis = _basis(terms, customer_id, period, found)
    if isinstance(basis, _Unpriced):
        left = engine.left_over(found.rows, basis.reason, basis.hint)
        return Outcome("unrated", customer_id, period, leftovers=left, usage=found.rows)
    where = (connection, terms.namespace, customer_id, basis.customer.currency)
    lines = by_rating(lines_of(connection, [it.rating_id for it in standing]))
    inputs = replace(
        _inputs(terms, basis, period, found, standing, lines, Credits(), corrections),
        credits=credit_book.at_start(credit_book.standing(*where, upto=upto), period.start),
        top_up=credit_book.top_up_in_force(*where, period.end, upto.recorded_at),
    )
    rated = engine.rate(inputs)
    left = tuple(_with_remedy(it, period) for it in rated.leftovers)
    return Outcome("rated", customer_id, period, rated, inputs, left, found.rows)


def imagine(
    terms: Terms, customer_id: str, period: Period, found: Found, history: Sequence[Imagined], made: str
) -> tuple[Outcome, Imagined | None]:
    """The customer's period rated by the terms alone, without credits and SQL, after an imagined `history`.

    The second is what has to be appended to the history for later periods; `made` names the rating in it.
    """
    basis = _basis(terms, customer_id, period, found)
    if isinstance(basis, _Unpriced):
        left = engine.left_over(found.rows, basis.reason, basis.hint)
        return Outcome("unrated", customer_id, period, leftovers=left, usage=found.rows), None
    month = month_of(period.start, basis.customer.time_zone)
    this_month = {it.name for it in history if it.period.start >= month.start}
    lines = [line for it in history for line in it.lines]
    plan, carried = basis.terms.plan, basis.book.carried_on()
    before, earlier = remembered(lines, this_month, basis.contract, plan, carried)
    inputs = _inputs_of(terms, basis, period, found, before, earlier)
    rated = engine.rate(inputs)
    left = tuple(_with_remedy(it, period) for it in rated.leftovers)
    outcome = Outcome("rated", customer_id, period, rated, inputs, left, found.rows)
    for_long = frozenset(part.name for part in plan.components if part.memory == "contract")
    rows = tuple(results.line_rows_of(made, inputs.currency, rated.lines))
    return outcome, Imagined(made, period, rows, for_long)


def rerate(connection: Connection, it: Restated) -> Inputs | None:
    """The inputs of a closed rating at its own time, with the usage of now; None where it cannot be priced any more."""
    customer_id, period = it.standing.customer_id, it.standing.period
    basis = _basis(it.terms, customer_id, period, it.found)
    if isinstance(basis, _Unpriced):
        return None
    then = [
        other
        for other in standings(connection, it.terms.namespace, customer_id)
        if other.closed_at is not None
        and it.standing.closed_at is not None
        and (other.closed_at, other.period) < (it.standing.closed_at, period)
    ]
    # Credits are those that paid then (corrections.correct).
    lines = by_rating(lines_of(connection, [other.rating_id for other in then]))
    inputs = _inputs(it.terms, basis, period, it.found, then, lines, Credits(), ())
    return inputs if inputs.currency == it.standing.currency else None


@dataclass(frozen=True)
class _Unpriced:
    reason: str
    hint: str


def _check_order(customer_id: str, period: Period, standing: Sequence[Standing], close: bool) -> None:
    for it in standing:
        if it.state == CLOSED and overlaps(it.period, period):
            raise PeriodError(
                f"{customer_id}: {period} overlaps {it.period}, which is closed. Use --due, or a period beside it."
            )
        if close and it.state == OPEN and it.period.end <= period.start:
            # Credits, tiers and fees go on from what came before, so they have to be settled in order.
            raise PeriodError(f"{customer_id}: close {it.period} before {period}.")


@dataclass(frozen=True)
class _Basis:
    """What a customer is rated by; `rate` converts from the plan's currency to the customer's."""

    customer: Customer
    contract: Contract
    version: Version
    book: Book
    terms: Effective
    agreement: Agreement
    rate: Rate | None


def _basis(terms: Terms, customer_id: str, period: Period, found: Found) -> _Basis | _Unpriced:
    name = shlex.quote(customer_id)
    customer = terms.customers.get(customer_id)
    contract = contract_in_force(terms.contracts.get(customer_id, ()), period)
    if customer is None or contract is None:
        plans = sorted({plan for version in terms.versions[-1:] for plan in terms.book(version).plans})
        return _Unpriced(engine.NOT_REGISTERED, f"meterhouse customers add {name} --plan {'|'.join(plans) or 'PLAN'}")
    if contract.plan == ENDED:
        return _Unpriced(
            engine.CONTRACT_ENDED,
            f"its contract ended at {short(contract.valid_from)}: if that is wrong, meterhouse customers add {name} "
            "--plan PLAN --valid-from T; else find out who still uses it",
        )
    version = in_force(terms.versions, period)
    if version is None:
        return _Unpriced(engine.NO_PRICE, _publish(period))
    book = terms.book(version)
    plan = book.plans.get(contract.plan)
    if plan is None:
        return _Unpriced(
            engine.NO_PRICE,
            f"price book version {version.version} has no plan {contract.plan} (it has {', '.join(book.plans)}): "
            f"add the plan, then {_publish(period)}; or "
            f"meterhouse customers add {name} --plan PLAN --valid-from {short(period.start)}",
        )
    rate = rate_at(book.rates, plan.currency, customer.currency, period.start)
    if plan.currency != customer.currency and rate is None:
        return _Unpriced(
            engine.NO_PRICE,
            f"plan {plan.name} is priced in {plan.currency}, the customer pays in {customer.currency}: "
            f"meterhouse customers add {name} --currency {plan.currency}, give it a plan in {customer.currency}, or "
            f"add to the price book: rates: [{{from: {plan.currency}, to: {customer.currency}, rate: ..., "
            f"valid_from: {short(period.start)}}}]",
        )
    if found.too_many:
        return _Unpriced(
            engine.TOO_MANY_GROUPS,
            f"more than 10,000 combinations of {', '.join(found.too_many)} in one period: each would be a line. "
            "Take what differs from call to call out of the prices' `by`, and publish the book again",
        )
    agreement = terms.agreements.get(customer_id, Agreement())
    try:
        offer = effective(book, plan, agreement, period)
    except AgreementRefused as refused:
        return _Unpriced(engine.NO_PRICE, f"{refused}")
    return _Basis(customer, contract, version, book, offer, agreement, rate)


def _publish(period: Period) -> str:
    # The version in force at a period's start prices all of it: one that is valid from now would come too late.
    return f"meterhouse prices publish FILE --valid-from {short(period.start)}"


def _with_remedy(left: Leftover, period: Period) -> Leftover:
    if left.reason != engine.NO_PRICE:
        return left
    return replace(left, hint=f"{left.hint}; then {_publish(period)}")


def _inputs(
    terms: Terms,
    basis: _Basis,
    period: Period,
    found: Found,
    standing: Sequence[Standing],
    lines: Mapping[str, Sequence[Mapping[Any, Any]]],
    credits: Credits,
    corrections: tuple[RatedLine, ...],
) -> Inputs:
    customer, plan = basis.customer, basis.terms.plan
    carried = basis.book.carried_on()
    before, earlier, pending = settled_before(customer, basis.contract, plan, period, standing, lines, carried)
    grants = credits.standing(customer.currency, pending)
    return replace(
        _inputs_of(terms, basis, period, found, before, earlier),
        credits=credit_book.at_start(grants, period.start),
        top_up=credits.top_up(customer.currency, period.end),
        corrections=corrections,
    )


def _inputs_of(
    terms: Terms,
    basis: _Basis,
    period: Period,
    found: Found,
    before: Mapping[str, Before],
    earlier: Mapping[str, Decimal],
) -> Inputs:
    customer, contract, plan = basis.customer, basis.contract, basis.terms.plan
    at_once = basis.book.plan_changes.at_once
    since, until = span_of(terms.contracts[customer.customer_id], contract, customer.time_zone, period, at_once)
    trial_end = terms.trial_end(customer.customer_id, period)
    month = month_of(period.start, customer.time_zone)
    setting = Setting(
        period=period,
        month=month,
        next_month=month_of(month.end, customer.time_zone),
        zone=customer.time_zone,
        since=since if trial_end is None else max(since, trial_end),
        until=until,
        facts=basis.terms.facts,
        earlier=earlier,
    )
    inputs = Inputs(
        contract_id=contract.contract_id,
        currency=customer.currency if basis.rate is not None else plan.currency,
        book=basis.book,
        version=basis.version.version,
        plan=plan,
        usage=found.rows,
        declared=terms.declared,
        setting=setting,
        before=before,
        measures=found.measures,
        agreement=basis.agreement,
        overrides=basis.terms.overrides,
        rate=basis.rate,
    )
    return capped(inputs, basis.agreement.caps)
