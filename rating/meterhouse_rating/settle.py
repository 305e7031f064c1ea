"""Settles one customer's period in one transaction: reads what stands, rates, and writes only what changed."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, select

from meterhouse_rating import engine, results
from meterhouse_rating.book import Book
from meterhouse_rating.engine import Inputs, Leftover, Rated, UsageRow
from meterhouse_rating.periods import Period, PeriodError, overlaps, short
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import CLOSED, OPEN, Standing, contract_in_force, settled_before, standings
from meterhouse_rating.usage import Watermark
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.registry import Contract, Customer
from meterhouse_store.tables import customers


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
    """What all customers of one run share: who is registered, on what contract, and the published price books."""

    namespace: str
    customers: Mapping[str, Customer]
    contracts: Mapping[str, Sequence[Contract]]
    versions: Sequence[Version]
    books: Mapping[int, Book]
    declared: frozenset[str]

    def book(self, version: Version) -> Book:
        """The book of a version."""
        return self.books[version.version]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What usage has to be grouped by, whichever version prices it."""
        return tuple(sorted({name for book in self.books.values() for name in book.dimensions}))

    def with_customer(self, customer: Customer, contracts: Sequence[Contract]) -> "Terms":
        key = customer.customer_id
        return replace(self, customers={**self.customers, key: customer}, contracts={**self.contracts, key: contracts})


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
    usage: tuple[UsageRow, ...],
    moment: Moment,
    mark: Watermark,
    *,
    close: bool = False,
    write: bool = True,
) -> Outcome:
    """Rate the customer's period on the open connection; with `write` false only compute.

    Raises PeriodError for a period that overlaps a closed one or is closed before an earlier one; WatermarkWentBack.
    """
    is_it = (customers.c.namespace == terms.namespace) & (customers.c.customer_id == customer_id)
    if write:
        # The customer's row is the lock: two runs settle one customer one after the other (SQLite has locked by now).
        connection.execute(select(customers.c.customer_id).where(is_it).with_for_update())
    standing = standings(connection, terms.namespace, customer_id)
    same = next((it for it in standing if it.period == period), None)
    if same and same.state == CLOSED:
        return Outcome("already_closed", customer_id, period)
    _check_order(customer_id, period, standing, close)
    for it in standing:
        if gone := mark.went_backwards(dict(it.watermark)):
            raise WatermarkWentBack(gone, it)
    replaced = [it for it in standing if overlaps(it.period, period)]
    basis = _basis(terms, customer_id, period)
    if isinstance(basis, _Unpriced):
        left = engine.left_over(usage, basis.reason, basis.hint)
        changed = write and _replace_unrated(connection, terms, customer_id, period, left)
        if write:
            results.remove_open(connection, replaced)
        what = "unrated" if usage else "rated" if changed else "nothing"
        return Outcome(what, customer_id, period, leftovers=left, usage=usage)
    inputs = _inputs(connection, terms, basis, customer_id, period, usage, standing)
    rated = engine.rate(inputs)
    left = tuple(_with_remedy(it, period) for it in rated.leftovers)
    outcome = Outcome("rated", customer_id, period, rated, inputs, left, usage)
    if not usage and not rated.lines and not replaced:
        return replace(outcome, what="nothing")
    unchanged = replaced == [same] and same is not None and same.inputs_sha256 == inputs.sha256()
    if unchanged and not close:
        return replace(outcome, what="unchanged")
    if write:
        results.remove_open(connection, replaced)
        results.write(connection, terms.namespace, customer_id, period, inputs, rated, moment, close=close)
        _replace_unrated(connection, terms, customer_id, period, left)
    return replace(outcome, what="closed") if close else outcome


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


def _basis(terms: Terms, customer_id: str, period: Period) -> tuple[Customer, Contract, Version, Book] | _Unpriced:
    name = shlex.quote(customer_id)
    customer = terms.customers.get(customer_id)
    contract = contract_in_force(terms.contracts.get(customer_id, ()), period)
    if customer is None or contract is None:
        plans = sorted({plan for version in terms.versions[-1:] for plan in terms.book(version).plans})
        return _Unpriced(engine.NOT_REGISTERED, f"meterhouse customers add {name} --plan {'|'.join(plans) or 'PLAN'}")
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
    if plan.currency != customer.currency:
        return _Unpriced(
            engine.NO_PRICE,
            f"plan {plan.name} is priced in {plan.currency}, the customer pays in {customer.currency}: "
            f"meterhouse customers add {name} --currency {plan.currency}, or give it a plan in {customer.currency}",
        )
    return customer, contract, version, book


def _publish(period: Period) -> str:
    # The version in force at a period's start prices all of it: one that is valid from now would come too late.
    return f"meterhouse prices publish FILE --valid-from {short(period.start)}"


def _with_remedy(left: Leftover, period: Period) -> Leftover:
    if left.reason != engine.NO_PRICE:
        return left
    return replace(left, hint=f"{left.hint}; then {_publish(period)}")


def _inputs(
    connection: Connection,
    terms: Terms,
    basis: tuple[Customer, Contract, Version, Book],
    customer_id: str,
    period: Period,
    usage: tuple[UsageRow, ...],
    standing: Sequence[Standing],
) -> Inputs:
    customer, contract, version, book = basis
    plan = book.plans[contract.plan]
    before, balance = settled_before(connection, customer, contract, plan, period, standing)
    return Inputs(
        contract_id=contract.contract_id,
        currency=plan.currency,
        book=book,
        version=version.version,
        plan=plan,
        usage=usage,
        declared=terms.declared,
        before=before,
        credit_minor=balance,
    )


def _replace_unrated(
    connection: Connection, terms: Terms, customer_id: str, period: Period, leftovers: Sequence[Leftover]
) -> bool:
    rows = results.unrated_rows(terms.namespace, customer_id, period, leftovers)
    return results.replace_unrated(connection, terms.namespace, customer_id, period, rows)
