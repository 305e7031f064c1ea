"""Random months in parts, closed in random order, with usage that is late of parts that are closed: worlds from a seed.

A world has many customers, each on a plan of its own, whose October has the same parts. Usage of a part is late of it
before or after the next one is closed, or after all of them are; some is taken away again. The plans may change within
the month, at once or with the next one, or the contract ends; the month is that of a time zone, which the customer may
have been moved to. What a customer is billed for October, corrections included, is compared with the second
implementation, which is given all usage of the month at once; so is what credits paid, where there are enough of them,
or else they paid no more than that. Credits may also come when the month is closed: they pay what is more since.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any
from uuid import NAMESPACE_OID, uuid5
from zoneinfo import ZoneInfo

from rating_samples import at
from simple_rating import Bill, Later, Used, bill, new
from sqlalchemy import select

from meterhouse_rating import credit_changes, shadow
from meterhouse_rating.credits import PROMOTIONAL, Grant
from meterhouse_rating.ledger_proof import prove
from meterhouse_store import agreements, budgets, registry, tables
from meterhouse_store.budgets import MONEY, UNITS, Budget

BOOK = """
book: months
currency: USD
%smetrics:
  one: {unit: unit, meters: [llm.tokens.input]}
  two: {unit: unit, meters: [tool.calls]}
plans:
"""
TIERS = "tiers: [{up_to: 50, price: 1, flat: 3}, {up_to: 100, price: 0.5}, {price: 0.25}]"
STEADY = [  # of these a unit more never costs less
    "model: per_unit, metric: %s, price: 0.5",
    "model: per_unit, metric: %s, by: [model], prices: [{model: a, price: 2}, {model: b, price: 0.3}], default: 1",
    f"model: graduated, metric: %s, {TIERS}",
    "model: package, metric: %s, size: 30, price: 5, free: 10",
    "model: percentage, metric: %s, percent: 10, fixed: 0.5, min: 2",
    "model: included, metric: %s, included: 40, price: 1",
    "model: flat, price: 20, included: {%s: 30}, overage: {%s: {tiers: [{up_to: 20, price: 2}, {price: 1}]}}",
]
GOING_ON = [it for it in STEADY if "model: a" not in it and "percentage" not in it]
"""Of these a new plan can go on from what was used on the old one."""

CHEAPER = [
    f"model: volume, metric: %s, {TIERS}",
    "model: volume, metric: %s, tiers: [{up_to: 40, price: 4}, {price: 0.1}]",  # a part gives back nearly all of it
    "model: matrix, metric: %s, by: [model], default: 1, "
    "cells: [{model: a, mode: volume, tiers: [{up_to: 20, price: 2}, {price: 1}]}]",
]
MORE = [
    "",
    "fee: {model: recurring, price: 31}",
    "support: {model: percentage, of: [one, two], percent: 10, fixed: 1, min: 2}",
    "least: {model: minimum, amount: 60}",
    "least: {model: minimum, amount: 200}",
]
EDGES = ["2026-10-01", "2026-10-11", "2026-10-16", "2026-11-01"]
ZONES = ["UTC", "Asia/Tokyo", "America/New_York", "Europe/Berlin"]
NEXT_MONTH, RESTART, CARRY_ON = "next_month", "restart", "carry_on"
APPLIED = {
    NEXT_MONTH: "",
    RESTART: "plan_changes: {apply: at_once}\n",
    CARRY_ON: "plan_changes: {apply: at_once, usage: carry_on}\n",
}
RATED_AGAIN = 3
"""So many customers' closed ratings are rated again: it takes longer than all the rest."""

PLENTY = 100_000
"""Credits in dollars that no month uses up."""

METERS = {"one": "llm.tokens.input", "two": "tool.calls"}


@dataclass(frozen=True)
class Event:
    """`known`: how many parts are closed when it arrives, `gone`: when it is taken away again, if ever.

    `place`: at the first moment of the part, within it, or at its last second.
    """

    part: int
    place: int
    metric: str
    model: str
    quantity: int
    known: int
    gone: int | None


@dataclass(frozen=True)
class Change:
    """The plan changes so many days after the beginning of a part; it is recorded when so many are closed."""

    how: str
    part: int
    days: int
    recorded: int

    @property
    def at_once(self) -> bool:
        """Whether the new plan prices the part."""
        return self.how != NEXT_MONTH


@dataclass(frozen=True)
class Month:
    """A customer's October, with what was agreed about it; `credits` are there from the beginning, and as many cents
    in `packs` that its plans sell; or `gift` comes when all parts are closed.

    `later`: the components of the plan that it changes to; none where the contract ends.
    """

    name: str
    components: tuple[str, ...]
    later: tuple[str, ...]
    percent: int
    amount: int
    cap: tuple[str, int] | None
    credits: int
    packs: int
    gift: int
    events: tuple[Event, ...]

    @property
    def plans(self) -> str:
        """The customer's own plans in the price book."""
        plans = {self.name: self.components, f"{self.name}-later": self.later}
        return "".join(
            f"  {name}:\n    components:\n" + "".join(f"      {line}\n" for line in lines)
            for name, lines in plans.items()
            if lines
        )


@dataclass(frozen=True)
class World:
    """`order`: in which the parts are closed; `credit_note`: what is in the customers' favour is on such; `moved`: its
    customers were in UTC when the month was rated for the first time.
    """

    months: tuple[Month, ...]
    edges: tuple[datetime, ...]
    order: tuple[int, ...]
    credit_note: bool
    zone: str
    moved: bool
    change: Change | None

    @property
    def book(self) -> str:
        """The price book without plans."""
        return BOOK % APPLIED[NEXT_MONTH if self.change is None else self.change.how]

    @property
    def parts(self) -> tuple[str, ...]:
        """As on the command line."""
        return tuple(f"{one.isoformat()}..{other.isoformat()}" for one, other in pairwise(self.edges))

    def changes(self, month: Month) -> datetime | None:
        """When the customer's plan changes or its contract ends: of those that wait for it, with the month."""
        if self.change is None:
            return None
        if self.change.at_once:
            return self.edges[self.change.part]
        when = self.edges[self.change.part] + timedelta(days=self.change.days)
        return when if month.later else self.edges[-1]


def world(seed: int, customers: int) -> World:
    """The world of a seed."""
    draw = Random(seed)
    number = draw.choice([2, 3])
    days = EDGES if number == 3 else [EDGES[0], draw.choice(EDGES[1:3]), EDGES[3]]
    order = draw.sample(range(number), number)
    how = draw.choice([None, None, NEXT_MONTH, RESTART, CARRY_ON])
    change = None
    if how is not None:
        # What the new plan goes on from is what was closed before it.
        order = sorted(order) if how == CARRY_ON else order
        waits = how == NEXT_MONTH
        part = draw.randint(0 if waits else 1, number - 1)
        after = draw.choice([0, 3] if part else [3]) if waits else 0
        change = Change(how, part, after, draw.randint(0, next(at for at, it in enumerate(order) if it >= part)))
    zone = draw.choice(ZONES)
    # An open rating of an earlier part would have to be closed first.
    moved = draw.random() < 0.5 and (change is None or order == sorted(order))
    edges = tuple(datetime.fromisoformat(it).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) for it in days)
    months = tuple(_month(draw, f"c{at:03}", order, change) for at in range(customers))
    return World(months, edges, tuple(order), draw.random() < 0.3, zone, moved, change)


def _month(draw: Random, name: str, order: list[int], change: Change | None) -> Month:
    changes = change is not None and change.at_once
    # A cap of units is of what is there when a part is closed: not where less comes of more usage.
    steady = draw.random() < 0.6 or (change is not None and change.how == CARRY_ON)
    priced = STEADY if steady else STEADY + CHEAPER * 3
    if change is not None and change.how == CARRY_ON:
        priced = GOING_ON
    lines = _components(draw, priced)
    later = [] if change is None or draw.random() < 0.2 else _components(draw, priced)
    if changes and change.recorded:
        # The part that turns out to be the plan's last is closed without what it would be trued up by.
        lines = [line for line in lines if "least" not in line]
    cap = None
    trued_up = any("least" in line for line in (*lines, *later))
    if draw.random() < 0.4 and not (changes and trued_up):
        cappable = [line[:3] for line in lines if "by: [model]" not in line and "percentage" not in line]
        cappable = [it for it in cappable if it in METERS]
        whole = steady and not changes and not any("support" in line for line in lines)
        cap = (draw.choice(["", *cappable]) if whole else "", draw.choice([10, 30, 60, 100]))
    events = []
    for part in range(len(order)):
        closed = order.index(part) + 1  # so many parts are closed when it is
        for _ in range(draw.randint(0, 4)):
            known = closed - 1 if draw.random() < 0.5 else draw.randint(closed, len(order) + 1)
            metric, model = draw.choice(list(METERS)), draw.choice("abc")
            gone = draw.randint(known + 1, len(order) + 2) if known <= len(order) and draw.random() < 0.2 else None
            quantity = draw.choice([1, 5, 10, 20, 40, 50])
            events.append(Event(part, draw.randint(0, 2), metric, model, quantity, known, gone))
    percent = draw.choice([0, 0, 10, 25, 50])
    # Off some months more than they come to: what gives back then has none of it left.
    amount = draw.choice([0, 0, 15, 40, 200])
    # Credits pay what a cheaper tier gives back later; and what of an amount or a cap is off fees depends on the parts.
    fees = any(not line.startswith(tuple(METERS)) or "model: flat" in line for line in (*lines, *later))
    payable = steady and not (fees and (amount or cap))
    credits = draw.choice([0, 0, 25, PLENTY]) if payable else 0
    packs = 0
    for plan in (lines, later):
        if payable and plan and not (amount or cap) and draw.random() < 0.3:
            worth, days = draw.choice([20, 40, PLENTY]), draw.choice(["", ", expires_days: 6", ", expires_days: 60"])
            plan.append(f"pack: {{model: credit_pack, price: 15, credits: {worth}{days}}}")
            packs += worth * 100
    # What is late of a part is corrected on the next one, or, where that is closed already, in November.
    gift = draw.choice([0, 25, PLENTY]) if payable and not (credits or packs) and order == sorted(order) else 0
    return Month(name, tuple(lines), tuple(later), percent, amount, cap, credits, packs, gift, tuple(events))


def _components(draw: Random, priced: list[str]) -> list[str]:
    of = {metric: draw.choice(priced).replace("%s", metric) for metric in METERS}
    lines = [*(f"{metric}: {{{it}}}" for metric, it in of.items()), draw.choice(MORE)]
    return [line for line in lines if line]


def live(house: Any, seed: int, customers: int) -> list[str]:
    """Let the world of a seed happen in a house; what is wrong with it."""
    made = world(seed, customers)
    house.publish(made.book + "".join(it.plans for it in made.months), now=at("2026-01-01"))
    for month in made.months:
        _agree(house, month, made)
    house.events(
        [_row(it, made, month.name, number) for month in made.months for number, it in enumerate(month.events)]
    )
    for closed, part in enumerate(made.order):
        _at(house, made, closed)
        if made.change is not None and made.change.recorded == closed:
            for month in made.months:
                _change(house, month, made.changes(month))
        if made.moved and closed == 0:
            house.run("2026-10")
            for month in made.months:
                registry.add_customer(house.world.engine, "test", month.name, time_zone=made.zone)
        house.close(made.parts[part])
    for month in made.months:
        _grant(house, month.name, month.gift, at("2026-11-20"))
    for number, month in enumerate(("2026-11", "2026-12", "2027-01")):
        _at(house, made, len(made.order) + number)
        house.close(month)
    billed = _billed(house, made)
    found = [
        wrong for month in made.months for wrong in _compared(seed, made, month, *billed.get(month.name, (0, 0, 0)))
    ]
    kept = [month for month in made.months if all(it.gone is None for it in month.events)]
    for month in kept[:RATED_AGAIN]:
        found += [f"seed {seed}: {it}" for it in shadow.again(house.world, "2026-10", month.name).differences]
    return found + [f"seed {seed}: {it}" for it in prove(house.world.engine, "test").problems]


def _change(house: Any, month: Month, when: datetime) -> None:
    if month.later:
        house.customer(month.name, plan=f"{month.name}-later", valid_from=when, now=house.world.now())
    else:
        said = {"who": "ann", "why": "moved away", "now": house.world.now()}
        registry.end_contract(house.world.engine, "test", month.name, when, **said)


def _agree(house: Any, month: Month, made: World) -> None:
    engine, began = house.world.engine, at("2026-09-01")
    zone = "UTC" if made.moved else made.zone
    house.customer(month.name, plan=month.name, time_zone=zone, valid_from=began, now=began)
    if month.percent:
        more = {"percent": Decimal(month.percent), "valid_from": began, "now": began}
        agreements.add_discount(engine, "test", month.name, "share", **more)
    if month.amount:
        more = {"amount": Decimal(month.amount), "valid_from": began + timedelta(days=1), "now": began}
        agreements.add_discount(engine, "test", month.name, "so much", **more)
    if month.cap is not None:
        of, limit = month.cap
        measure = UNITS if of else MONEY
        budget = Budget(month.name, "most", measure, Decimal(limit), **({"of": of} if of else {}))
        budgets.set_budget(engine, "test", budget, who="ann", why="agreed", now=began)
    _grant(house, month.name, month.credits, began)
    if made.credit_note:
        row = {"namespace": "test", "customer_id": month.name, "recorded_at": began, "policy": "credit_note"}
        with engine.begin() as connection:
            connection.execute(tables.correction_policies.insert().values(**row, who="ann", why="agreed"))


def _grant(house: Any, name: str, dollars: int, when: datetime) -> None:
    if dollars:
        grant = Grant("", PROMOTIONAL, dollars * 100, when)
        told = {"reference": name, "who": "ann", "why": "agreed", "now": when}
        credit_changes.grant(house.world.engine, "test", name, grant, None, **told)


def _moment(made: World, closed: int) -> datetime:
    """When the next part is closed after so many; then the months after it."""
    later = closed - len(made.order)
    return at("2026-11-03") + timedelta(days=closed) if later < 0 else at("2026-12-05") + timedelta(days=31 * later)


def _at(house: Any, made: World, closed: int) -> None:
    moment = _moment(made, closed)
    house.at(moment)
    house.collected(f"{moment:%Y-%m-%dT%H:%M:%S}", position=1000 + closed)
    gone = [
        f"'{_event_id(month.name, number)}'"
        for month in made.months
        for number, it in enumerate(month.events)
        if it.gone == closed
    ]
    if gone:
        house.world.client.command(
            "INSERT INTO events SELECT * REPLACE ('retracted' AS reason, toUInt64(18446744073709551615) AS first, "
            f"toDateTime64('{moment - timedelta(hours=2):%Y-%m-%d %H:%M:%S}', 6, 'UTC') AS decided_at, "
            f"'d{closed}' AS decision_id) FROM events FINAL WHERE event_id IN ({', '.join(gone)})"
        )


def _event_id(name: str, number: int) -> str:
    return uuid5(NAMESPACE_OID, f"{name} {number}").hex


def _row(it: Event, made: World, name: str, number: int) -> dict[str, str]:
    first, after = made.edges[it.part : it.part + 2]
    day = (first, first + timedelta(days=1, minutes=number), after - timedelta(seconds=1))[it.place]
    received = f"{_moment(made, it.known) - timedelta(hours=2):%Y-%m-%dT%H:%M:%S}"
    told = {"customer_id": name, "meter": METERS[it.metric], "quantity": str(it.quantity), "model": it.model}
    told |= {"event_id": _event_id(name, number)}
    return told | {"when": f"{day:%Y-%m-%dT%H:%M:%S}", "received": received}


def _billed(house: Any, made: World) -> dict[str, tuple[int, int, int]]:
    """Per customer what October comes to with all corrections, in cents, what of it credits paid, and the lines."""
    found: dict[str, tuple[int, int, int]] = {}

    def add(name: str, kind: str, amount: int) -> None:
        total, paid, count = found.get(name, (0, 0, 0))
        by_credits = kind in ("credit_applied", "credit_restored")
        found[name] = total + (0 if by_credits else amount), paid - (amount if by_credits else 0), count + 1

    rated, lines, notes = tables.ratings, tables.rated_lines, tables.credit_notes
    with house.world.engine.connect() as connection:
        query = select(rated.c.customer_id, rated.c.period_start, lines.c.kind, lines.c.amount_minor)
        for name, start, kind, amount in connection.execute(query.join(lines, lines.c.rating_id == rated.c.rating_id)):
            if kind in ("correction", "credit_applied", "credit_restored") or made.edges[0] <= start < made.edges[-1]:
                add(name, kind, amount)
        for name, noted in connection.execute(select(notes.c.customer_id, notes.c.lines)):
            for line in noted:
                add(name, line["kind"], line["amount_minor"])
    return found


def _compared(seed: int, made: World, month: Month, billed: int, paid: int, lines: int) -> list[str]:
    closings = range(len(made.order) - 1, len(made.order) + 3)
    bills = [_comes_to(made, month, closed) for closed in closings]
    total = sum(amount for (kind, *_), amount in bills[-1].lines.items() if kind != "credit_applied")
    payable = [sum(it.used.values()) for it in bills]
    least, most = _credits_pay(month, payable)
    found = []
    # Each line is rounded by itself.
    if abs(total - billed) > lines:
        found.append(f"billed {billed}, the month comes to {total}")
    if not least - lines <= paid <= most + lines:
        found.append(f"credits paid {paid}, not {least} to {most}")
    told = f"closed in order {made.order}, {made.zone}, moved {made.moved}, {made.change}"
    return [f"seed {seed}: {it}; {told}: {month}" for it in found]


def _comes_to(made: World, month: Month, closed: int) -> Bill:
    """What October comes to by what is known with the closing of that number, paid by credits as far as they may."""
    change = made.change if made.change is not None and made.change.at_once else None
    first, rest = [], []
    for it in month.events:
        if it.known <= closed and (it.gone is None or it.gone > closed):
            used = Used(METERS[it.metric], "ok", it.model, 1, Fraction(it.quantity))
            (first if change is None or it.part < change.part else rest).append(used)
    later = None
    if change is not None:
        share = Fraction(made.edges[change.part].astimezone(ZoneInfo(made.zone)).day - 1, 31)
        later = Later(f"{month.name}-later" if month.later else "", rest, share, change.how == CARRY_ON)
    percents = [Fraction(month.percent)] if month.percent else []
    amounts = (Fraction(month.amount),) if month.amount else ()
    cap = None if month.cap is None else (month.cap[0], Fraction(month.cap[1]))
    plenty = [{**new("promotional", PLENTY * 100), "from": "2026-09-01"}]
    agreed = percents, None, month.name, amounts, cap, later
    return bill(made.book + month.plans, first, "USD", plenty, *agreed)


def _credits_pay(month: Month, payable: Sequence[int]) -> tuple[int, int]:
    """The least and the most that credits pay of a month; `payable` is usage when its last part is closed, and with
    each closing after it.

    What is there from the beginning pays what there is in the end. A gift pays what comes to be more with a closing;
    where it comes to be less, the gift is used no more than before, and comes back at most by as much.
    """
    if not month.gift:
        there = min(month.credits * 100 + month.packs, payable[-1])
        return there if month.credits == PLENTY else 0, there
    least = most = 0
    for before, now in pairwise(payable):
        least = max(0, least + now - before)
        most = min(month.gift * 100, most + max(0, now - before))
    return least if month.gift == PLENTY else 0, most
