"""The price list that applies to one customer at a moment: what the rating of the period around it goes by.

Pure: what it depends on comes in as `Terms`, which the rating itself uses, and the customer's closed periods.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from meterhouse_rating.agreements import AddOn, Agreement, Discount, Override
from meterhouse_rating.book import Book, Options, Plan
from meterhouse_rating.cancelling import takes_effect
from meterhouse_rating.charges import Component, Fact
from meterhouse_rating.discounts import applies
from meterhouse_rating.effective import AgreementRefused, effective, own_price
from meterhouse_rating.periods import Period, month_of, next_month
from meterhouse_rating.price_api import books
from meterhouse_rating.price_api.written import tree
from meterhouse_rating.rates import Rate, rate_at
from meterhouse_rating.settled import Standing
from meterhouse_rating.terms import Terms
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.numbers import plain
from meterhouse_store.registry import ENDED, Contract, Customer

NO_BOOK, NO_PLAN, CONTRACT_ENDED, PLAN_NOT_IN_BOOK, TERMS_DO_NOT_FIT, NO_RATE = (
    "no_book", "no_plan", "contract_ended", "plan_not_in_book", "terms_do_not_fit", "no_rate"
)  # fmt: skip
"""Why there is no price list."""


class NotPriced(LookupError):
    """There is no price list for the customer then; the text says why, to operators, and `reason` as one of the names
    above. `ended`: when its contract did.
    """

    def __init__(self, reason: str, text: str, ended: datetime | None = None) -> None:
        super().__init__(text)
        self.reason, self.ended = reason, ended


@dataclass(frozen=True)
class Part:
    """One priced part as it is charged; `own`: at a price of the customer's own."""

    component: Component
    options: Options
    own: bool


@dataclass(frozen=True)
class Added:
    """An add-on of the customer's, and what one of it costs."""

    row: AddOn
    plan: Plan

    @property
    def parts(self) -> list[Part]:
        return [Part(it, self.plan.options[it.name], False) for it in self.plan.components]


@dataclass(frozen=True)
class PriceList:
    """What a customer pays at a moment: the same objects that a rating charges by.

    `told` is the whole of it as JSON. `rate` converts from the plan's currency to the customer's, where they differ.
    """

    told: dict[str, Any]
    book: Book
    plan: Plan
    parts: Sequence[Part]
    addons: Sequence[Added]
    discounts: Sequence[Discount]
    quantities: Mapping[str, Fact]
    rate: Rate | None


@dataclass(frozen=True)
class _Basis:
    terms: Terms
    customer: Customer
    at: datetime
    period: Period
    contract: Contract
    version: Version
    book: Book
    plan: Plan
    agreement: Agreement

    @property
    def zone(self) -> str:
        return self.customer.time_zone

    @property
    def contracts(self) -> list[Contract]:
        found = self.terms.contracts.get(self.customer.customer_id, ())
        return sorted(found, key=lambda it: it.valid_from)


def price_list(terms: Terms, customer: Customer, closed: Sequence[Standing], at: datetime) -> PriceList:
    """What the customer pays at the moment, and what is to change after it. Raises NotPriced.

    `closed`: the customer's closed ratings. A period that is closed keeps the book that it was rated by.
    """
    basis = _basis(terms, customer, closed, at)
    own, agreement = _own(basis), basis.agreement
    rate = _rate(basis)
    standing = {name: _standing(facts, at) for name, facts in agreement.quantities.items()}
    quantities = {name: fact for name, fact in standing.items() if fact is not None}
    parts = [
        Part(*own[it.name][1:], True) if it.name in own else Part(it, basis.plan.options[it.name], False)
        for it in basis.plan.components
    ]
    addons = [Added(it, basis.book.addons[it.name]) for it in agreement.addons if _holds(it, at)]
    discounts = [it for it in agreement.discounts if applies(it, basis.period, basis.zone)]
    told = _told(basis, closed, own, addons, discounts, quantities, rate)
    return PriceList(told, basis.book, basis.plan, parts, addons, discounts, quantities, rate)


_Own = Mapping[str, tuple[Override, Component, Options]]
"""Component -> the customer's own price of it, as it is recorded, and as it is charged."""


def _told(
    basis: _Basis,
    closed: Sequence[Standing],
    own: _Own,
    addons: Sequence[Added],
    discounts: Sequence[Discount],
    quantities: Mapping[str, Fact],
    rate: Rate | None,
) -> dict[str, Any]:
    terms, customer, at = basis.terms, basis.customer, basis.at
    version, plan, contract = basis.version, basis.plan, basis.contract
    trial_end = terms.trial_end(customer.customer_id, basis.period)
    is_closed = any(it.period == basis.period for it in closed)
    return {
        "customer_id": customer.customer_id,
        "at": at.isoformat(),
        "time_zone": customer.time_zone,
        "currency": customer.currency,
        "period": _span(basis.period) | {"state": "closed" if is_closed else "open"},
        "price_book": {
            "version": version.version,
            "book": basis.book.name,
            "sha256": version.sha256,
            "valid_from": version.valid_from.isoformat(),
        },
        "plan": books.summary(plan)
        | {
            "contract_id": contract.contract_id,
            "valid_from": contract.valid_from.isoformat(),
            "trial_until": None if trial_end is None else trial_end.isoformat(),
            "unbilled": sorted(plan.unbilled | basis.book.unbilled_meters),
        },
        "conversion": _conversion(rate),
        "components": _components(basis, own),
        "addons": [_addon(basis, it.row) for it in addons],
        "discounts": [_discount(it) for it in discounts],
        "quantities": [
            {"name": name, "quantity": plain(fact.quantity), "valid_from": fact.valid_from.isoformat()}
            for name, fact in quantities.items()
        ],
        "scheduled": sorted(_scheduled(basis, trial_end), key=lambda it: (it["applies_from"], it["kind"], it["name"])),
    }


def _basis(terms: Terms, customer: Customer, closed: Sequence[Standing], at: datetime) -> _Basis:
    name = customer.customer_id
    frozen = next((it for it in closed if it.period.start <= at < it.period.end), None)
    if frozen is not None:
        period = frozen.period
        version = next(it for it in terms.versions if it.version == frozen.book_version)
    else:
        parts = terms.parts(name, month_of(at, customer.time_zone), [it.period for it in closed])
        period = next(it for it in parts if it.start <= at < it.end)
        found = in_force(terms.versions, period)
        if found is None:
            raise NotPriced(NO_BOOK, f"no price book is in force in {period}")
        version = found
    contract = terms.contract(name, period)
    if contract is None:
        raise NotPriced(NO_PLAN, f"{name} has no plan in {period}")
    if contract.plan == ENDED:
        end = takes_effect(terms.versions, customer.time_zone, contract.valid_from)
        raise NotPriced(CONTRACT_ENDED, f"the contract of {name} ended at {end.isoformat()}", end)
    book = terms.book(version)
    plan = book.plans.get(contract.plan)
    if plan is None:
        raise NotPriced(
            PLAN_NOT_IN_BOOK, f"price book version {version.version} has no plan {contract.plan}, which {name} is on"
        )
    basis = _Basis(terms, customer, at, period, contract, version, book, plan, terms.agreements.get(name, Agreement()))
    try:
        effective(book, plan, basis.agreement, period)
    except AgreementRefused as refused:
        raise NotPriced(TERMS_DO_NOT_FIT, str(refused)) from None
    return basis


def _own(basis: _Basis) -> _Own:
    """The customer's own prices that hold in the period."""
    held = sorted((it for it in basis.agreement.overrides if it.holds(basis.period)), key=lambda it: it.valid_from)
    return {it.component: (it, *own_price(it.component, it.text, basis.book, basis.plan)) for it in held}


def _components(basis: _Basis, own: _Own) -> list[dict[str, Any]]:
    """Those of the plan, each with where its terms stand: the plan, or a price of the customer's own."""
    found = []
    for component in books.components(basis.version, books.PLANS, basis.plan):
        agreement_id = None
        if component["name"] in own:
            override, made, options = own[component["name"]]
            component = books.component(basis.book, made, options, tree(override.text))
            agreement_id = override.agreement_id
        found.append(component | {"own_price": agreement_id})
    return found


def _addon(basis: _Basis, row: AddOn) -> dict[str, Any]:
    addon = basis.book.addons[row.name]  # `effective` has refused what the book does not have
    return books.summary(addon) | {
        "agreement_id": row.agreement_id,
        "quantity": plain(row.quantity),
        "valid_from": row.valid_from.isoformat(),
        "valid_until": None if row.until is None else row.until.isoformat(),
        "components": books.components(basis.version, books.ADDONS, addon),
    }


def _discount(found: Discount) -> dict[str, Any]:
    return {
        "agreement_id": found.agreement_id,
        "name": found.name,
        "percent": None if found.percent is None else plain(found.percent),
        "amount": None if found.amount is None else plain(found.amount),
        "components": list(found.components),
        "months": found.months,
        "before_minimum": found.before_minimum,
        "valid_from": found.valid_from.isoformat(),
        "valid_until": None if found.until is None else found.until.isoformat(),
    }


def _rate(basis: _Basis) -> Rate | None:
    source, target = basis.plan.currency, basis.customer.currency
    if source == target:
        return None
    rate = rate_at(basis.book.rates, source, target, basis.period.start)
    if rate is None:
        told = f"the price book has no rate from {source} to {target} at {basis.period.start.isoformat()}"
        raise NotPriced(NO_RATE, told)
    return rate


def _conversion(rate: Rate | None) -> dict[str, str] | None:
    if rate is None:
        return None
    valid_from = rate.valid_from.isoformat()
    return {"from": rate.source, "to": rate.target, "rate": plain(rate.rate), "valid_from": valid_from}


def _scheduled(basis: _Basis, trial_end: datetime | None) -> Iterator[dict[str, Any]]:
    """What is known to change after the moment, each with when it does."""
    at, zone = basis.at, basis.zone
    for contract in basis.contracts:
        if contract.valid_from > basis.contract.valid_from:
            when = takes_effect(basis.terms.versions, zone, contract.valid_from)
            if when > at:
                kind, name = (
                    ("contract_ends", basis.contract.plan) if contract.plan == ENDED else ("plan", contract.plan)
                )
                yield _change(when, kind, name, f"from {basis.contract.plan}")
    for version in basis.terms.versions:
        when = next_month(version.valid_from, zone)
        if when > at and in_force(basis.terms.versions, Period(when, month_of(when, zone).end)) == version:
            yield _change(when, "price_book", str(version.version), version.book.name)
    for row in basis.agreement.addons:
        if not row.withdrawn:
            yield from _begins_and_ends(at, "addon", row.name, plain(row.quantity), row.valid_from, row.until)
    for own in basis.agreement.overrides:
        yield from _own_price(at, zone, own)
    for discount in basis.agreement.discounts:
        yield from _discount_changes(at, zone, discount, basis.customer.currency)
    for name, facts in basis.agreement.quantities.items():
        for fact in facts:
            if fact.valid_from > at:
                yield _change(fact.valid_from, "quantity", name, plain(fact.quantity))
    if trial_end is not None and trial_end > at:
        yield _change(trial_end, "trial_ends", basis.plan.name, "")


def _own_price(at: datetime, zone: str, own: Override) -> Iterator[dict[str, Any]]:
    """A price of a customer's own holds in months that begin while it is in force."""
    until = None if own.until is None else next_month(own.until, zone)
    since = next_month(own.valid_from, zone)
    if until is None or since < until:
        yield from _begins_and_ends(at, "own_price", own.component, "", since, until)


def _discount_changes(at: datetime, zone: str, discount: Discount, currency: str) -> Iterator[dict[str, Any]]:
    since = month_of(discount.valid_from, zone).start
    if not applies(discount, Period(since, month_of(since, zone).end), zone):
        return
    until = None if discount.until is None else next_month(discount.until, zone)
    if discount.months is not None:
        end = since
        for _ in range(discount.months):
            end = month_of(end, zone).end
        until = end if until is None else min(end, until)
    off = f"{plain(discount.amount or Decimal(0))} {currency}"
    if discount.percent is not None:
        off = f"{plain(discount.percent)} %"
    yield from _begins_and_ends(at, "discount", discount.name, off, since, until)


def _begins_and_ends(
    at: datetime, kind: str, name: str, detail: str, since: datetime, until: datetime | None
) -> Iterator[dict[str, Any]]:
    if since > at:
        yield _change(since, f"{kind}_begins", name, detail)
    if until is not None and until > at:
        yield _change(until, f"{kind}_ends", name, detail)


def _change(applies_from: datetime, kind: str, name: str, detail: str) -> dict[str, Any]:
    return {"applies_from": applies_from.isoformat(), "kind": kind, "name": name, "detail": detail}


def _holds(row: AddOn, at: datetime) -> bool:
    return row.valid_from <= at and (row.until is None or row.until > at)


def _standing(facts: Sequence[Fact], at: datetime) -> Fact | None:
    known = [it for it in facts if it.valid_from <= at]
    return max(known, key=lambda it: it.valid_from, default=None)


def _span(period: Period) -> dict[str, str]:
    return {"start": period.start.isoformat(), "end": period.end.isoformat()}
