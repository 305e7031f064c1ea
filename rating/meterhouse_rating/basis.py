"""What one customer's period is rated by, or why it cannot be: contract, book, agreement, and the engine's inputs."""

import shlex
from dataclasses import dataclass, replace

from meterhouse_rating import engine
from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.caps import capped
from meterhouse_rating.charges import Setting
from meterhouse_rating.effective import AgreementRefused, Effective, effective
from meterhouse_rating.inputs import Inputs
from meterhouse_rating.money import LARGEST_MINOR, largest, show
from meterhouse_rating.periods import Period, month_of, short
from meterhouse_rating.rated import Rated
from meterhouse_rating.rates import Rate, rate_at
from meterhouse_rating.settled import Remembered, span_of
from meterhouse_rating.sorting import Leftover
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.registry import ENDED, Contract, Customer


@dataclass(frozen=True)
class Unpriced:
    reason: str
    hint: str


@dataclass(frozen=True)
class Basis:
    """What a customer is rated by; `rate` converts from the plan's currency to the customer's."""

    customer: Customer
    contract: Contract
    version: Version
    book: Book
    terms: Effective
    agreement: Agreement
    rate: Rate | None


def basis_of(
    terms: Terms, customer_id: str, period: Period, found: Found, *, correcting: bool = False
) -> Basis | Unpriced:
    """Where the contract ended, a rating that is `correcting` closed ones has a basis, too, which prices nothing."""
    name = shlex.quote(customer_id)
    customer = terms.customers.get(customer_id)
    contract = terms.contract(customer_id, period)
    if customer is None or contract is None:
        plans = sorted({plan for version in terms.versions[-1:] for plan in terms.book(version).plans})
        return Unpriced(engine.NOT_REGISTERED, f"meterhouse customers add {name} --plan {'|'.join(plans) or 'PLAN'}")
    ended = (
        f"its contract ended at {short(contract.valid_from)}: if that is wrong, meterhouse customers add {name} "
        "--plan PLAN --valid-from T; else find out who still uses it"
    )
    if contract.plan == ENDED and not correcting:
        return Unpriced(engine.CONTRACT_ENDED, ended)
    version = in_force(terms.versions, period)
    if version is None:
        return Unpriced(engine.NO_PRICE, _publish(period))
    book = terms.book(version)
    if contract.plan == ENDED:
        none = Plan(ENDED, "", customer.currency, (), frozenset(), 0, ended=ended)
        return Basis(customer, contract, version, book, Effective(none, {}, {}), Agreement(), None)
    plan = book.plans.get(contract.plan)
    if plan is None:
        return Unpriced(
            engine.NO_PRICE,
            f"price book version {version.version} has no plan {contract.plan} (it has {', '.join(book.plans)}): "
            f"add the plan, then {_publish(period)}; or "
            f"meterhouse customers add {name} --plan PLAN --valid-from {short(period.start)}",
        )
    rate = rate_at(book.rates, plan.currency, customer.currency, period.start)
    if plan.currency != customer.currency and rate is None:
        return Unpriced(
            engine.NO_PRICE,
            f"plan {plan.name} is priced in {plan.currency}, the customer pays in {customer.currency}: "
            f"meterhouse customers add {name} --currency {plan.currency}, give it a plan in {customer.currency}, or "
            f"add to the price book: rates: [{{from: {plan.currency}, to: {customer.currency}, rate: ..., "
            f"valid_from: {short(period.start)}}}]",
        )
    if found.too_many:
        return Unpriced(
            engine.TOO_MANY_GROUPS,
            f"more than 10,000 combinations of {', '.join(found.too_many)} in one period: each would be a line. "
            "Take what differs from call to call out of the prices' `by`, and publish the book again",
        )
    agreement = terms.agreements.get(customer_id, Agreement())
    try:
        offer = effective(book, plan, agreement, period)
    except AgreementRefused as refused:
        return Unpriced(engine.NO_PRICE, f"{refused}")
    return Basis(customer, contract, version, book, offer, agreement, rate)


def _publish(period: Period) -> str:
    # The version in force at a period's start prices all of it: one that is valid from now would come too late.
    return f"meterhouse prices publish FILE --valid-from {short(period.start)}"


def inputs_of(
    terms: Terms,
    basis: Basis,
    period: Period,
    found: Found,
    before: Remembered,
) -> Inputs:
    customer, contract, plan = basis.customer, basis.contract, basis.terms.plan
    at_once = basis.book.plan_changes.at_once
    since, until = span_of(terms.contracts[customer.customer_id], contract, customer.time_zone, period, at_once)
    trial_end = terms.trial_end(customer.customer_id, period)
    month = month_of(period.start, customer.time_zone)
    agreed = basis.agreement.discounts
    going_on = [it for it in agreed if it.amount is not None and it.agreement_id in before.used.discounted]
    setting = Setting(
        period=period,
        month=month,
        next_month=month_of(month.end, customer.time_zone),
        zone=customer.time_zone,
        since=since if trial_end is None else max(since, trial_end),
        until=until,
        facts=basis.terms.facts,
        earlier=before.earlier,
        earlier_off=before.earlier_off,
        settled_until=before.until,
        discounted={it.agreement_id: before.used.discounted[it.agreement_id] for it in going_on},
        discounted_left={it.agreement_id: before.used.left_by(it, agreed, customer.currency) for it in going_on},
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
        before=before.before,
        measures=found.measures,
        agreement=basis.agreement,
        overrides=basis.terms.overrides,
        rate=basis.rate,
    )
    return capped(inputs, basis.agreement.caps, before.used)


def beyond(rated: Rated, currency: str) -> Unpriced | None:
    """Why a rating cannot stand: a mistaken price or quantity made an amount that no ledger or invoice can hold."""
    found = max(rated.lines, key=lambda line: abs(line.amount_minor), default=None)
    if found is None or max(abs(found.amount_minor), abs(rated.total_minor)) <= LARGEST_MINOR:
        return None
    amount = f"{found.component} would come to {show(found.amount_minor, currency)} {currency}"
    remedy = "correct the price, or the quantity: `meterhouse events amend`, `events retract`"
    return Unpriced(engine.AMOUNT_TOO_LARGE, f"{amount}, and at most {largest(currency)} can be charged: {remedy}")


def with_remedy(left: Leftover, period: Period) -> Leftover:
    if left.reason != engine.NO_PRICE:
        return left
    return replace(left, hint=f"{left.hint}; then {_publish(period)}")
