"""How budgets stand: of each the limit, what is used, and what the units of meters count for it.

The core of a round (`budget_round`): it reads registry, prices and warehouse as of one moment, and writes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from meterhouse_billing.budget_periods import period_of
from meterhouse_billing.budget_usage import Bills, Reading
from meterhouse_rating import known
from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, Plan
from meterhouse_rating.ceilings import ceilings
from meterhouse_rating.effective import AgreementRefused, Effective, effective
from meterhouse_rating.facts import at
from meterhouse_rating.metrics import UNBILLED_STATUSES
from meterhouse_rating.models.included import Included
from meterhouse_rating.periods import Period, month_of
from meterhouse_rating.rates import rate_at
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import watermark
from meterhouse_rating.versions import NotThere, in_force
from meterhouse_rating.world import World
from meterhouse_store import budgets, registry
from meterhouse_store.budgets import MONEY, PLAN, PREPAID, UNITS, Budget
from meterhouse_store.reservations import Limit

HARD_CAP: Final = "hard_cap"
PREPAID_USED: Final = "prepaid_used"
DEAREST: Final = "the most that a provider asked for it this month, marked up"
TWICE: Final = "twice what it cost so far this month"
NOT_HELD: Final = "nothing, until it has cost something"
_SHARES: Final = 100
"""The smallest share of a limit that is handed out: so many agents at most come through near its end."""
_GUESS: Final = 2
"""A price that the plan does not tell is taken to be so many times what it was so far."""


@dataclass(frozen=True)
class State:
    """A budget in its period of now. `used` and `limit` are in its own units: money of `currency`, or units.

    `time_zone` is the customer's.

    `trouble`: why the usage is not known, or not all of it; then nothing is limited by it. `loose`: of money, the
    meters whose price is not known before they are used, and what agents are granted them at instead.
    """

    budget: Budget
    period: Period
    limit: Decimal
    used: Decimal
    currency: str = ""
    weights: dict[str, Decimal] = field(default_factory=dict)
    trouble: str = ""
    time_zone: str = "UTC"
    loose: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> Decimal:
        return self.limit - self.used

    @property
    def over(self) -> Decimal:
        return max(Decimal(0), self.used - self.limit)

    @property
    def caps(self) -> bool:
        """Whether model calls stop at its end."""
        return self.budget.caps(self.period.start) and not self.trouble

    @property
    def percent(self) -> Decimal:
        """How much of it is used, in per cent; 0 where nothing is there and nothing is used."""
        if self.limit <= 0:
            return Decimal(100) if self.used > 0 or self.budget.measure == PREPAID else Decimal(0)
        return self.used * 100 / self.limit

    def as_limit(self) -> Limit:
        """What the collector goes by."""
        it = self.budget
        least = max(Decimal(1), self.limit / _SHARES) if it.measure == UNITS else self.limit / _SHARES
        reason = PREPAID_USED if it.measure == PREPAID else HARD_CAP
        return Limit(it.name, it.agent_id, self.left, least, self.weights, reason)


def read(world: World, only: str | None = None) -> Reading:
    """The moment that everything is told of; `only`: by the terms of one customer."""
    try:
        terms = known.terms(world, only=only)
    except NotThere:
        terms = None
    mark, now = watermark(world.client), world.now()
    return Reading(world, terms, mark, min(mark.as_of or now, now), now)


def budgets_of(reading: Reading, customer_id: str | None = None) -> list[Budget]:
    """The budgets that hold, with the limits that plans have. Customers that are not registered have none."""
    world = reading.world
    given = [] if reading.terms is None else _plan_limits(reading.terms, reading.now, customer_id)
    found = budgets.standing(budgets.changes(world.engine, world.namespace, customer_id), given)
    customers = {it.customer_id for it in registry.customers(world.engine, world.namespace, customer_id)}
    return [it for it in found if it.customer_id in customers]


def states(reading: Reading, found: Sequence[Budget]) -> list[State]:
    """How the budgets stand, in their order."""
    if not found:
        return []
    world = reading.world
    only = found[0].customer_id if len({it.customer_id for it in found}) == 1 else None
    customers = {it.customer_id: it for it in registry.customers(world.engine, world.namespace, only)}
    names = sorted({it.customer_id for it in found if it.measure != UNITS})
    bills = Bills(reading, names, by_agent=any(it.agent_id for it in found if it.measure == MONEY))
    counted = _Counted(reading, found, {name: it.time_zone for name, it in customers.items()})
    made = []
    for budget in found:
        customer = customers[budget.customer_id]
        period = period_of(reading.now, budget.per, customer.time_zone)
        limit, zone = budget.limit_in(period.start), customer.time_zone
        state = State(budget, period, limit, Decimal(0), customer.currency, time_zone=zone)
        if budget.measure == UNITS:
            made.append(counted.of(replace(state, currency="")))
        else:
            made.append(_of_money(reading, bills, state))
    return made


@dataclass
class _Counted:
    """Units used in the periods of the budgets, asked once for all customers that share a period."""

    reading: Reading
    budgets: Sequence[Budget]
    zones: dict[str, str]
    _found: dict[tuple[Period, frozenset[str]], dict[str, dict[tuple[str, str], Decimal]]] = field(default_factory=dict)

    def of(self, state: State) -> State:
        meters, free, trouble = _meters(self.reading.terms, state.budget, state.period)
        if trouble:
            return replace(state, trouble=trouble)
        used, who = Decimal(0), state.budget.agent_id
        for (agent, meter), quantity in self._in(state.period, free).get(state.budget.customer_id, {}).items():
            if meter in meters and who in ("", agent):
                used += quantity
        return replace(state, used=used, weights=dict.fromkeys(sorted(meters), Decimal(1)))

    def _in(self, period: Period, free: frozenset[str]) -> dict[str, dict[tuple[str, str], Decimal]]:
        key = period, free
        if key not in self._found:
            who = {
                it.customer_id
                for it in self.budgets
                if it.measure == UNITS and period_of(self.reading.now, it.per, self.zones[it.customer_id]) == period
            }
            self._found[key] = self.reading.units(period, sorted(who), free)
        return self._found[key]


def _meters(terms: Terms | None, budget: Budget, period: Period) -> tuple[frozenset[str], frozenset[str], str]:
    """The meters that a budget of units counts, statuses that it does not count, and what is wrong with it."""
    version = None if terms is None else in_force(terms.versions, period)
    book = None if terms is None or version is None else terms.book(version)
    free = frozenset(UNBILLED_STATUSES if book is None else book.unbilled_statuses)
    metric = None if book is None else book.metrics.get(budget.of)
    if metric is not None:
        if metric.measured:
            return frozenset(), free, f"{budget.of} is no sum of events: set a budget on one of its meters"
        return frozenset(metric.meters), free, ""
    if terms is not None and budget.of not in terms.declared:
        return frozenset(), free, f"{budget.of} is neither a meter nor a metric of the price book"
    return frozenset([budget.of]), free, ""


def _of_money(reading: Reading, bills: Bills, state: State) -> State:
    budget = state.budget
    if budget.measure == PREPAID:
        bill = bills.bill(budget.customer_id, state.period)
        there, used = bill.prepaid(state.currency)
        return _priced(reading, bills, replace(state, limit=there + state.limit, used=used, trouble=bill.trouble))
    used, trouble = bills.spent(budget.customer_id, state.period, budget.agent_id)
    return _priced(reading, bills, replace(state, used=used, trouble=trouble))


def _priced(reading: Reading, bills: Bills, state: State) -> State:
    """With the most that one unit of each meter can cost the customer now, in its currency; where the prices do not say
    it, with what is taken instead.
    """
    customer_id, terms = state.budget.customer_id, reading.terms
    if terms is None:
        return state
    customer = terms.customers[customer_id]
    month = month_of(reading.now, customer.time_zone)
    found = _offer(terms, customer_id, month)
    if found is None:
        return state
    book, offer = found
    bill = bills.bill(customer_id, month)
    highest = ceilings(book, offer.plan, bill.asked())
    rate = rate_at(book.rates, offer.plan.currency, customer.currency, month.start)
    prices = {name: it if rate is None else it * rate.rate for name, it in highest.prices.items() if it}
    guessed = {name: it * _GUESS for name, it in bill.averages().items() if name in highest.unknown and it > 0}
    loose = dict.fromkeys(highest.asked, DEAREST) | dict.fromkeys(highest.unknown, NOT_HELD)
    loose |= dict.fromkeys(guessed, TWICE)
    return replace(state, weights=prices | guessed, loose=dict(sorted(loose.items())))


def _offer(terms: Terms, customer_id: str, period: Period) -> tuple[Book, Effective] | None:
    """The customer's book and plan in the period; None where it has none, or one that does not fit."""
    contract = terms.contract(customer_id, period)
    version = in_force(terms.versions, period)
    plan: Plan | None = None
    if contract is not None and version is not None:
        plan = terms.book(version).plans.get(contract.plan)
    if plan is None or version is None:
        return None
    try:
        return terms.book(version), effective(
            terms.book(version), plan, terms.agreements.get(customer_id, Agreement()), period
        )
    except AgreementRefused:
        return None  # `rate run` says what to do


def _plan_limits(terms: Terms, now: datetime, only: str | None) -> list[Budget]:
    """What plans include without a price for more (`beyond: none`): there is no more on them, so calls stop there."""
    found: list[Budget] = []
    for customer_id, customer in terms.customers.items():
        if only is not None and customer_id != only:
            continue
        month = month_of(now, customer.time_zone)
        offered = _offer(terms, customer_id, month)
        if offered is not None:
            found += _limits(customer_id, offered[1], month)
    return found


def _limits(customer_id: str, offer: Effective, month: Period) -> Iterable[Budget]:
    for part in offer.plan.components:
        if isinstance(part, Included) and not part.tiers:
            number = Decimal(1) if part.each is None else at(offer.facts.get(part.each, ()), month.end)
            limit = part.included * number
            if limit > 0:
                yield Budget(customer_id, f"{PLAN}{part.name}", UNITS, limit, of=part.metric)
