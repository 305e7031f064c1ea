"""Real history priced under another book: two sides of the same usage, customer by customer. Writes nothing.

Both sides are rated alike, from what is known now: usage, contracts and agreements, without credits, which pay revenue
and do not change it. The old side goes by the published books, each in its time; the new one by the other book alone.
Months go on from each other within a side. A fee in advance counts in the months that it is for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating import known, periods
from meterhouse_rating.agreements import Agreement, Override
from meterhouse_rating.book import check
from meterhouse_rating.engine import RatedLine
from meterhouse_rating.margin import costs_by_customer, nothing_known
from meterhouse_rating.periods import Period, PeriodError
from meterhouse_rating.settle import Imagined, Outcome, imagine
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found
from meterhouse_rating.versions import Version
from meterhouse_rating.world import World
from meterhouse_store.registry import ALWAYS

MAX_MONTHS: Final = 24
REVENUE_KINDS: Final = frozenset({"usage", "flat", "minimum", "discount"})
"""Kinds of lines that are revenue; a credit pack is not before its credits are used."""

_STRANGERS_ZONE: Final = "UTC"


@dataclass(frozen=True)
class Item:
    """What revenue is of: a metric (of a fee the component), and a model where prices know it."""

    name: str
    model: str = ""


@dataclass(frozen=True)
class Move:
    """A component whose highest tier reached, or whose minimum, differs between the sides in a month."""

    customer_id: str
    month: str
    component: str
    old: str
    new: str


@dataclass
class Left:
    """Usage that the new book leaves without a price, and the old side did not or did as well (`also_old`)."""

    meter: str
    reason: str
    hint: str
    events: int = 0
    quantity: Decimal = Decimal(0)
    customers: set[str] = field(default_factory=set)


@dataclass
class Change:
    """A customer's revenue on both sides, in minor units of its currency; `cost` None: not known, or not in it."""

    customer_id: str
    currency: str
    old_minor: int = 0
    new_minor: int = 0
    cost: Decimal | None = None

    @property
    def minor(self) -> int:
        return self.new_minor - self.old_minor


@dataclass
class Simulation:
    """What another book would have come to. `items`: (currency, item) -> old and new minor units."""

    months: tuple[str, ...]
    book: str
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    items: dict[tuple[str, Item], tuple[int, int]] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    left: dict[tuple[str, str, str], Left] = field(default_factory=dict)
    left_old: int = 0
    """How many events the old side leaves without a price."""

    @property
    def totals(self) -> dict[str, Change]:
        """Per currency the sum of all customers."""
        found: dict[str, Change] = {}
        for it in self.changes.values():
            total = found.setdefault(it.currency, Change("", it.currency, cost=Decimal(0)))
            total.old_minor += it.old_minor
            total.new_minor += it.new_minor
            total.cost = None if total.cost is None or it.cost is None else total.cost + it.cost
        return dict(sorted(found.items()))

    @property
    def ranked(self) -> list[Change]:
        """Who pays more first, who pays less last; by currency."""
        return sorted(self.changes.values(), key=lambda it: (it.currency, -it.minor, it.customer_id))


def months_of(text: str) -> tuple[str, ...]:
    """`2026-10`, or `2026-08..2026-10` with both ends. Raises PeriodError."""
    first, dots, last = text.partition("..")
    one, other = _month(first, text), _month(last if dots else first, text)
    if other < one:
        raise PeriodError(f"{text} ends before it begins.")
    count = (other.year - one.year) * 12 + other.month - one.month + 1
    if count > MAX_MONTHS:
        raise PeriodError(f"{text} has {count} months: simulate at most {MAX_MONTHS} at a time.")
    start = one.year * 12 + one.month - 1
    return tuple(f"{(start + n) // 12:04d}-{(start + n) % 12 + 1:02d}" for n in range(count))


def other_terms(world: World, terms: Terms, text: str) -> Terms:
    """The terms with the book of the text as the only one, valid from the beginning. Raises BookRefused."""
    book = check(text, {name: meter.unit for name, meter in world.meters.items()}).book
    number = max(it.version for it in terms.versions) + 1
    version = Version(number, book.sha256, text, "simulation", ALWAYS, world.now())
    return replace(terms, versions=[version], books={number: book})


def simulate(
    world: World,
    text: str,
    months: Sequence[str],
    only: str | None = None,
    *,
    costs: bool = True,
    beside: Version | None = None,
) -> Simulation:
    """The months under the book of the text, beside what they come to under the published ones, each in its time.

    `beside`: under this version alone instead. `costs`: with what providers ask, which readers of the views alone may
    not see.

    Raises BookRefused, NotThere without a published book, PeriodError.
    """
    old = known.terms(world)
    new = other_terms(world, old, text)
    if beside is not None:
        old = replace(old, versions=[replace(beside, valid_from=ALWAYS)])
    return _compared(world, old, new, Simulation(tuple(months), new.book(new.versions[0]).name), only, costs=costs)


def simulate_own_price(
    world: World, customer_id: str, component: str, text: str, months: Sequence[str], *, costs: bool = True
) -> Simulation:
    """The customer's months with a price of its own for a component of its plan, beside what they come to as it is.

    Raises as `simulate`.
    """
    old = known.terms(world, only=customer_id)
    agreed = old.agreements.get(customer_id, Agreement())
    kept = [it for it in agreed.overrides if it.component != component]
    own = Override("simulation", component, text, ALWAYS, None)
    new = replace(old, agreements={**old.agreements, customer_id: replace(agreed, overrides=(*kept, own))})
    return _compared(world, old, new, Simulation(tuple(months), component), customer_id, costs=costs)


def _compared(world: World, old: Terms, new: Terms, made: Simulation, only: str | None, *, costs: bool) -> Simulation:
    months = made.months
    histories: tuple[History, History] = {}, {}
    now, users = world.now(), set[str]()
    for month in months:
        seen: Seen = {}
        sides = [
            _Side.of(side(world, terms, month, history, only, now, seen), months[-1], terms)
            for terms, history in zip((old, new), histories, strict=True)
        ]
        _put(made, month, *sides)
        users |= sides[0].users
    if costs:
        _put_costs(world, made, users, only)
    return made


History = dict[str, list[Imagined]]
"""What was imagined so far of one side, by customer."""

Seen = dict[tuple[Any, ...], dict[str, Found]]
"""Usage that was read already, by all that it depends on: mostly both sides need the same."""


def side(
    world: World, terms: Terms, month: str, history: History, only: str | None, as_of: datetime, seen: Seen
) -> Iterator[Outcome]:
    """One month of all customers (or one) under the terms; the history grows, and is cut to what later months need.

    Usage that is `seen` is not read again.
    """
    windows: dict[Period, set[str]] = {}
    strangers = periods.parse(month, _STRANGERS_ZONE)
    for name, customer in terms.customers.items():
        if only is None or name == only:
            for part in terms.parts(name, periods.parse(month, customer.time_zone)):
                windows.setdefault(part, set()).add(name)
    windows.setdefault(strangers, set())
    for period in sorted(windows):
        trials = [(name, terms.trial_end(name, period)) for name in terms.customers]
        key = (period, as_of, terms.wanted(period), tuple(it for it in trials if it[1] is not None))
        if key not in seen:
            seen[key] = known.gather(world, terms, period, as_of, None if only is None else [only])
        found = seen[key]
        names = windows[period]
        if period == strangers:
            names = names | {name for name in found if name not in terms.customers}
        for name in sorted(names):
            mine = history.setdefault(name, [])
            outcome, imagined = imagine(terms, name, period, found.get(name, Found()), mine, str(period))
            if imagined is not None:
                mine.append(imagined)
            yield outcome
    for mine in history.values():
        mine[:] = [it for it in (one.after_its_month() for one in mine) if it.lines]


def tier_of(line: RatedLine) -> str:
    """The highest tier that a line reaches, as `1000000..5000000`; empty where it has none."""
    tiers = [str(step["tier"]) for step in line.explanation.get("steps", ()) if "tier" in step]
    return tiers[-1] if tiers else ""


@dataclass
class _Side:
    """One side of a month, folded: revenue per customer and item, tiers per customer and component, who had usage."""

    revenue: dict[tuple[str, str], int] = field(default_factory=dict)
    items: dict[tuple[str, Item], int] = field(default_factory=dict)
    tiers: dict[tuple[str, str], str] = field(default_factory=dict)
    left: list[tuple[str, Any]] = field(default_factory=list)
    users: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, outcomes: Iterator[Outcome], last_month: str, terms: Terms) -> "_Side":
        made = cls()
        for outcome in outcomes:
            name = outcome.customer_id
            made.left += [(name, it) for it in outcome.exceptions]
            if outcome.usage:
                made.users.add(name)
            if outcome.rated is None or outcome.inputs is None:
                continue
            currency = outcome.inputs.currency
            end = periods.parse(last_month, terms.customers[name].time_zone).end
            for line in outcome.rated.lines:
                if line.kind in REVENUE_KINDS and not _of_later(line, end):
                    made.line(name, currency, line)
        return made

    def line(self, customer: str, currency: str, line: RatedLine) -> None:
        """Put one line of revenue in its place."""
        key = (customer, currency)
        self.revenue[key] = self.revenue.get(key, 0) + line.amount_minor
        item = (currency, Item(line.metric or line.component, dict(line.dimensions).get("model", "")))
        self.items[item] = self.items.get(item, 0) + line.amount_minor
        reached = "minimum" if line.kind == "minimum" else tier_of(line)
        if reached:
            told = ", ".join(f"{one}={value}" for one, value in line.dimensions)
            self.tiers[customer, f"{line.component} ({told})" if told else line.component] = reached


def _put(made: Simulation, month: str, old: _Side, new: _Side) -> None:
    for key in sorted({*old.revenue, *new.revenue}):
        change = made.changes.setdefault(key, Change(*key))
        change.old_minor += old.revenue.get(key, 0)
        change.new_minor += new.revenue.get(key, 0)
    for item in {*old.items, *new.items}:
        one, other = made.items.get(item, (0, 0))
        made.items[item] = (one + old.items.get(item, 0), other + new.items.get(item, 0))
    for customer, component in sorted({*old.tiers, *new.tiers}):
        was, now = old.tiers.get((customer, component), ""), new.tiers.get((customer, component), "")
        if was != now:
            made.moves.append(Move(customer, month, component, was, now))
    made.left_old += sum(it.events for _, it in old.left)
    for customer, it in new.left:
        left = made.left.setdefault((it.meter, it.reason, it.hint), Left(it.meter, it.reason, it.hint))
        left.events += it.events
        left.quantity += it.quantity
        left.customers.add(customer)


def _put_costs(world: World, made: Simulation, users: set[str], only: str | None) -> None:
    """Beside each customer's revenue its cost, where all of it is known: the same on both sides."""
    if nothing_known(world):
        for key, change in made.changes.items():
            change.cost = None if key[0] in users else Decimal(0)
        return
    costs: dict[tuple[str, str], Decimal | None] = {}
    for month in made.months:
        for share in costs_by_customer(world, month, only):
            key, certain = (share.values[0], share.currency), share.certain
            so_far = costs.get(key, Decimal(0))
            costs[key] = so_far + share.cost if certain and so_far is not None else None
    for key, change in made.changes.items():
        change.cost = costs.get(key, Decimal(0))


def _of_later(line: RatedLine, end: datetime) -> bool:
    """Whether it is a fee in advance for a time after all that is simulated."""
    service = line.explanation.get("service")
    return service is not None and periods.instant(str(service).partition("..")[0]) >= end


def _month(text: str, whole: str) -> date:
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text) or text.startswith("0000"):
        raise PeriodError(f"{whole!r} is no month or months. Write 2026-10, or 2026-08..2026-10 with both ends.")
    return date(int(text[:4]), int(text[5:]), 1)
