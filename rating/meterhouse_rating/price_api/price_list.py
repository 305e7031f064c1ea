"""The price list that applies to one customer at a moment: what the rating of the period around it goes by.

Pure: what it depends on comes in as `Terms`, which the rating itself uses, and the customer's closed periods.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from meterhouse_rating.agreements import AddOn, Agreement, Discount, Override
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.cancelling import takes_effect
from meterhouse_rating.charges import Fact
from meterhouse_rating.discounts import applies
from meterhouse_rating.effective import AgreementRefused, effective, own_price
from meterhouse_rating.periods import Period, month_of, next_month
from meterhouse_rating.price_api import books
from meterhouse_rating.price_api.written import tree
from meterhouse_rating.rates import rate_at
from meterhouse_rating.settled import Standing
from meterhouse_rating.terms import Terms
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.numbers import plain
from meterhouse_store.registry import ENDED, Contract, Customer


class NotPriced(LookupError):
    """There is no price list for the customer then; the text says why. `ended`: when its contract did."""

    def __init__(self, text: str, ended: datetime | None = None) -> None:
        super().__init__(text)
        self.ended = ended


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


def price_list(terms: Terms, customer: Customer, closed: Sequence[Standing], at: datetime) -> dict[str, Any]:
    """What the customer pays at the moment, as JSON, and what is to change after it. Raises NotPriced.

    `closed`: the customer's closed ratings. A period that is closed keeps the book that it was rated by.
    """
    basis = _basis(terms, customer, closed, at)
    version, plan, contract, agreement = basis.version, basis.plan, basis.contract, basis.agreement
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
        "conversion": _conversion(basis),
        "components": _components(basis),
        "addons": [_addon(basis, it) for it in agreement.addons if _holds(it, at)],
        "discounts": [_discount(it) for it in agreement.discounts if applies(it, basis.period, basis.zone)],
        "quantities": [
            {"name": name, "quantity": plain(fact.quantity), "valid_from": fact.valid_from.isoformat()}
            for name, facts in agreement.quantities.items()
            if (fact := _standing(facts, at)) is not None
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
            raise NotPriced(f"no price book is in force in {period}")
        version = found
    contract = terms.contract(name, period)
    if contract is None:
        raise NotPriced(f"{name} has no plan in {period}")
    if contract.plan == ENDED:
        end = takes_effect(terms.versions, customer.time_zone, contract.valid_from)
        raise NotPriced(f"the contract of {name} ended at {end.isoformat()}", end)
    book = terms.book(version)
    plan = book.plans.get(contract.plan)
    if plan is None:
        raise NotPriced(f"price book version {version.version} has no plan {contract.plan}, which {name} is on")
    basis = _Basis(terms, customer, at, period, contract, version, book, plan, terms.agreements.get(name, Agreement()))
    try:
        effective(book, plan, basis.agreement, period)
    except AgreementRefused as refused:
        raise NotPriced(str(refused)) from None
    return basis


def _components(basis: _Basis) -> list[dict[str, Any]]:
    """Those of the plan, each with where its terms stand: the plan, or a price of the customer's own."""
    held = sorted((it for it in basis.agreement.overrides if it.holds(basis.period)), key=lambda it: it.valid_from)
    own = {it.component: it for it in held}
    found = []
    for component in books.components(basis.version, books.PLANS, basis.plan):
        override = own.get(component["name"])
        if override is not None:
            made, options = own_price(override.component, override.text, basis.book, basis.plan)
            component = books.component(basis.book, made, options, tree(override.text))
        found.append(component | {"own_price": None if override is None else override.agreement_id})
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


def _conversion(basis: _Basis) -> dict[str, str] | None:
    source, target = basis.plan.currency, basis.customer.currency
    if source == target:
        return None
    rate = rate_at(basis.book.rates, source, target, basis.period.start)
    if rate is None:
        raise NotPriced(f"the price book has no rate from {source} to {target} at {basis.period.start.isoformat()}")
    return {"from": source, "to": target, "rate": plain(rate.rate), "valid_from": rate.valid_from.isoformat()}


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
        yield from _discount_changes(at, zone, discount)
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


def _discount_changes(at: datetime, zone: str, discount: Discount) -> Iterator[dict[str, Any]]:
    since = month_of(discount.valid_from, zone).start
    if not applies(discount, Period(since, month_of(since, zone).end), zone):
        return
    until = None if discount.until is None else next_month(discount.until, zone)
    if discount.months is not None:
        end = since
        for _ in range(discount.months):
            end = month_of(end, zone).end
        until = end if until is None else min(end, until)
    off = f"{plain(discount.percent)} %" if discount.percent is not None else plain(discount.amount or Decimal(0))
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
