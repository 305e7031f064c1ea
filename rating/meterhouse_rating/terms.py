"""What all customers of one run share: who is registered, on what contract, and the prices that were published."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.costs_book import CostBook
from meterhouse_rating.costs_usage import Costing
from meterhouse_rating.effective import AgreementRefused, effective
from meterhouse_rating.models.cost_plus import CostPlus
from meterhouse_rating.periods import Period, month_of
from meterhouse_rating.settled import contract_in_force
from meterhouse_rating.sorting import measurements, needs_tasks
from meterhouse_rating.usage import Wanted
from meterhouse_rating.versions import Version, in_force
from meterhouse_store.registry import ALWAYS, ENDED, Contract, Customer


@dataclass(frozen=True)
class Terms:
    """What all customers of one run share: who is registered, on what contract, with what agreed beside it, the
    published price books, and what providers ask.
    """

    namespace: str
    customers: Mapping[str, Customer]
    contracts: Mapping[str, Sequence[Contract]]
    versions: Sequence[Version]
    books: Mapping[int, Book]
    declared: frozenset[str]
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    costs: CostBook = field(default_factory=CostBook)

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
        return Wanted(dimensions, needs_tasks(book, plans), measurements(book, plans), self._costing(book, plans))

    def reaches_back(self, period: Period) -> bool:
        """Whether any price of the period goes on from more than its month."""
        version = in_force(self.versions, period)
        if version is None:
            return False
        _, plans = self._plans(version, period)
        return any(part.memory == "contract" for plan in plans for part in plan.components)

    def contract(self, customer_id: str, period: Period) -> Contract | None:
        """The contract that prices the period; where plans change with the month, the one that prices its month."""
        customer, version = self.customers.get(customer_id), in_force(self.versions, period)
        if customer is not None and version is not None and not self.book(version).plan_changes.at_once:
            period = Period(month_of(period.start, customer.time_zone).start, period.end)
        return contract_in_force(self.contracts.get(customer_id, ()), period)

    def trial_end(self, customer_id: str, period: Period) -> datetime | None:
        """When the customer's trial ends, where that is after the period's start."""
        customer, version = self.customers.get(customer_id), in_force(self.versions, period)
        contract = self.contract(customer_id, period)
        if customer is None or contract is None or version is None:
            return None
        plan = self.book(version).plans.get(contract.plan)
        if plan is None or not plan.trial_days:
            return None
        # A contract that holds from ever begins with the registration.
        began = customer.registered_at if contract.valid_from == ALWAYS else contract.valid_from
        end = began + timedelta(days=plan.trial_days)
        return end if end > period.start else None

    def began(self, customer_id: str) -> datetime | None:
        """When the customer began by its contracts; None where it has none."""
        contracts = self.contracts.get(customer_id, ())
        if not contracts:
            return None
        # A contract that holds from ever obliges to nothing before the customer was there.
        return max(min(contract.valid_from for contract in contracts), self.customers[customer_id].registered_at)

    def over(self, customer_id: str, period: Period) -> bool:
        """Whether the customer's contract ended before the period."""
        contract = self.contract(customer_id, period)
        return contract is not None and contract.plan == ENDED

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

    def _costing(self, book: Book, plans: Iterable[Plan]) -> Costing | None:
        """Of which meters prices mark up what the provider asks, by the costs that are known."""
        parts = (component for plan in plans for component in plan.components)
        found = {
            meter
            for it in parts
            if isinstance(it, CostPlus) and it.costs is None
            for name in it.metrics
            for meter in book.metrics[name].meters
        }
        return Costing(tuple(sorted(found)), self.costs) if found else None

    def _plans(self, version: Version, period: Period) -> tuple[Book, list[Plan]]:
        book = self.book(version)
        return book, [*book.plans.values(), *book.addons.values(), *self._own_plans(book, period)]

    def _own_plans(self, book: Book, period: Period) -> list[Plan]:
        found = []
        for customer_id, agreement in self.agreements.items():
            contract = self.contract(customer_id, period)
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
