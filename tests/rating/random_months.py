"""Random months in parts, closed in random order, with usage that is late of parts that are closed: worlds from a seed.

A world has many customers, each on a plan of its own, whose October has the same parts. Usage of a part is late of it
before or after the next one is closed, or after all of them are; some is taken away again. What a customer is billed
for October, corrections included, is compared with the second implementation, which is given all usage of the month at
once; so is what credits paid, where there are enough of them, or else they paid no more than that.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from rating_samples import at
from simple_rating import Used, bill, new
from sqlalchemy import select

from meterhouse_rating import credit_changes, shadow
from meterhouse_rating.credits import PROMOTIONAL, Grant
from meterhouse_rating.ledger_proof import prove
from meterhouse_store import agreements, budgets, tables
from meterhouse_store.budgets import MONEY, UNITS, Budget

BOOK = """
book: months
currency: USD
metrics:
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
CHEAPER = [
    f"model: volume, metric: %s, {TIERS}",
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
RATED_AGAIN = 3
"""So many customers' closed ratings are rated again: it takes longer than all the rest."""

PLENTY = 100_000
"""Credits in dollars that no month uses up."""

METERS = {"one": "llm.tokens.input", "two": "tool.calls"}


@dataclass(frozen=True)
class Event:
    """`known`: how many parts are closed when it arrives, `gone`: when it is taken away again, if ever."""

    part: int
    metric: str
    model: str
    quantity: int
    known: int
    gone: int | None


@dataclass(frozen=True)
class Month:
    """A customer's October, with what was agreed about it; `credits` are there from the beginning."""

    name: str
    components: tuple[str, ...]
    percent: int
    amount: int
    cap: tuple[str, int] | None
    credits: int
    events: tuple[Event, ...]

    @property
    def plan(self) -> str:
        """The customer's own plan in the price book."""
        return f"  {self.name}:\n    components:\n" + "".join(f"      {line}\n" for line in self.components)


@dataclass(frozen=True)
class World:
    """`order`: in which the parts are closed; `credit_note`: what is in the customers' favour is on such."""

    months: tuple[Month, ...]
    parts: tuple[str, ...]
    order: tuple[int, ...]
    credit_note: bool

    @property
    def text(self) -> str:
        """The price book."""
        return BOOK + "".join(it.plan for it in self.months)


def world(seed: int, customers: int) -> World:
    """The world of a seed."""
    draw = Random(seed)
    number = draw.choice([2, 3])
    edges = EDGES if number == 3 else [EDGES[0], draw.choice(EDGES[1:3]), EDGES[3]]
    order = draw.sample(range(number), number)
    months = tuple(_month(draw, f"c{at:03}", number, order) for at in range(customers))
    parts = tuple(f"{one}..{other}" for one, other in pairwise(edges))
    return World(months, parts, tuple(order), draw.random() < 0.3)


def _month(draw: Random, name: str, parts: int, order: list[int]) -> Month:
    # A cap of units is of what is there when a part is closed: not where less comes of more usage.
    priced = STEADY if draw.random() < 0.6 else STEADY + CHEAPER * 3
    of = {metric: draw.choice(priced).replace("%s", metric) for metric in METERS}
    steady = priced is STEADY
    lines = [*(f"{metric}: {{{it}}}" for metric, it in of.items()), draw.choice(MORE)]
    cap = None
    if draw.random() < 0.4:
        cappable = [metric for metric, it in of.items() if "by: [model]" not in it and "percentage" not in it]
        whole = steady and "support" not in lines[-1]
        cap = (draw.choice(["", *cappable]) if whole else "", draw.choice([10, 30, 60, 100]))
    events = []
    for part in range(parts):
        closed = order.index(part) + 1  # so many parts are closed when it is
        for _ in range(draw.randint(0, 4)):
            known = closed - 1 if draw.random() < 0.5 else draw.randint(closed, parts + 1)
            metric, model = draw.choice(list(METERS)), draw.choice("abc")
            gone = draw.randint(known + 1, parts + 2) if known <= parts and draw.random() < 0.2 else None
            events.append(Event(part, metric, model, draw.choice([1, 5, 10, 20, 40, 50]), known, gone))
    percent = draw.choice([0, 0, 10, 25, 50])
    amount = draw.choice([0, 0, 15, 40])
    # Credits pay what a cheaper tier gives back later; and what of an amount or a cap is off fees depends on the parts.
    fees = lines[-1] != "" or any("model: flat" in it for it in of.values())
    credits = draw.choice([0, 25, PLENTY]) if steady and not (fees and (amount or cap)) else 0
    return Month(name, tuple(line for line in lines if line), percent, amount, cap, credits, tuple(events))


def live(house: Any, seed: int, customers: int) -> list[str]:
    """Let the world of a seed happen in a house; what is wrong with it."""
    made = world(seed, customers)
    house.publish(made.text, now=at("2026-01-01"))
    for month in made.months:
        _agree(house, month, made.credit_note)
    house.events(
        [_row(it, made, month.name, number) for month in made.months for number, it in enumerate(month.events)]
    )
    for closed, part in enumerate(made.order):
        _at(house, made, closed)
        house.close(made.parts[part])
    for number, month in enumerate(("2026-11", "2026-12", "2027-01")):
        _at(house, made, len(made.order) + number)
        house.close(month)
    billed = _billed(house)
    found = [
        wrong for month in made.months for wrong in _compared(seed, made, month, *billed.get(month.name, (0, 0, 0)))
    ]
    kept = [month for month in made.months if all(it.gone is None for it in month.events)]
    for month in kept[:RATED_AGAIN]:
        found += [f"seed {seed}: {it}" for it in shadow.again(house.world, "2026-10", month.name).differences]
    return found + [f"seed {seed}: {it}" for it in prove(house.world.engine, "test").problems]


def _agree(house: Any, month: Month, credit_note: bool) -> None:
    engine, began = house.world.engine, at("2026-09-01")
    house.customer(month.name, plan=month.name, valid_from=began, now=began)
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
    if month.credits:
        grant = Grant("", PROMOTIONAL, month.credits * 100, began)
        told = {"reference": month.name, "who": "ann", "why": "agreed", "now": began}
        credit_changes.grant(engine, "test", month.name, grant, None, **told)
    if credit_note:
        row = {"namespace": "test", "customer_id": month.name, "recorded_at": began, "policy": "credit_note"}
        with engine.begin() as connection:
            connection.execute(tables.correction_policies.insert().values(**row, who="ann", why="agreed"))


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
    day = datetime.fromisoformat(made.parts[it.part][:10]) + timedelta(days=1, minutes=number)
    received = f"{_moment(made, it.known) - timedelta(hours=2):%Y-%m-%dT%H:%M:%S}"
    told = {"customer_id": name, "meter": METERS[it.metric], "quantity": str(it.quantity), "model": it.model}
    told |= {"event_id": _event_id(name, number)}
    return told | {"when": f"{day:%Y-%m-%dT%H:%M:%S}", "received": received}


def _billed(house: Any) -> dict[str, tuple[int, int, int]]:
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
            if kind in ("correction", "credit_applied", "credit_restored") or f"{start:%m}" == "10":
                add(name, kind, amount)
        for name, noted in connection.execute(select(notes.c.customer_id, notes.c.lines)):
            for line in noted:
                add(name, line["kind"], line["amount_minor"])
    return found


def _compared(seed: int, made: World, month: Month, billed: int, paid: int, lines: int) -> list[str]:
    used = [Used(METERS[it.metric], "ok", it.model, 1, Fraction(it.quantity)) for it in month.events if it.gone is None]
    percents = [Fraction(month.percent)] if month.percent else []
    amounts = (Fraction(month.amount),) if month.amount else ()
    cap = None if month.cap is None else (month.cap[0], Fraction(month.cap[1]))
    agreed = percents, None, month.name, amounts, cap
    whole = bill(BOOK + month.plan, used, "USD", [], *agreed).total
    plenty = [{**new("promotional", PLENTY * 100), "from": "2026-09-01"}]
    by_credits = min(month.credits * 100, sum(bill(BOOK + month.plan, used, "USD", plenty, *agreed).used.values()))
    found = []
    # Each line is rounded by itself.
    if abs(whole - billed) > lines:
        found.append(f"billed {billed}, the month comes to {whole}")
    if paid > by_credits + lines or (month.credits == PLENTY and paid < by_credits - lines):
        found.append(f"credits paid {paid}, not {by_credits}")
    return [f"seed {seed}: {it}; closed in order {made.order}: {month}" for it in found]
