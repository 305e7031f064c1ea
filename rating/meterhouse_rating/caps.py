"""What is used above a hard cap is not billed: a discount of exactly that, on usage lines, before all others.

The caps are the customer's budgets (`meterhouse_store.budgets`) as they were known when the period was rated. Above a
cap of money is what usage lines come to beyond it: where a later part of a month gives back, so does the cap, of what
an earlier part was less by it. Above a cap of units is what the invoice would be less if usage had ended at the cap,
all priced dimensions in proportion: so what is included, tiers and percentages on top come out as they then would. A
cap holds for the whole month in which it is set, raised or acknowledged, and for no month before; of a month in parts,
on whatever plans, each part has what the others left of it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Final

from meterhouse_rating import engine
from meterhouse_rating.agreements import Cap, Discount
from meterhouse_rating.book import Book
from meterhouse_rating.discounts import share_out, within
from meterhouse_rating.ids import digest
from meterhouse_rating.metrics import SUM
from meterhouse_rating.money import exact, of_minor, to_minor
from meterhouse_rating.periods import Period
from meterhouse_rating.settled import Used
from meterhouse_rating.sorting import UsageRow
from meterhouse_store import budgets
from meterhouse_store.numbers import plain
from meterhouse_store.registry import ALWAYS

NANO: Final = 10**9
"""Quantities have nine digits after the point at most."""


def caps_of(changes: Iterable[budgets.Change], known_at: datetime | None) -> dict[str, list[Cap]]:
    """Per customer the hard caps of whole months whose excess is not billed, as recorded up to a moment.

    A budget that was set anew is a cap for each time that it was set.
    """
    of_budget: dict[tuple[str, str], list[budgets.Change]] = {}
    for change in changes:
        if known_at is None or change.recorded_at <= known_at:
            of_budget.setdefault((change.customer_id, change.name), []).append(change)
    found: dict[str, list[Cap]] = {}
    for theirs in of_budget.values():
        edges = [at for at, it in enumerate(theirs) if it.change in (budgets.SET, budgets.REMOVE)] + [len(theirs)]
        for first, following in pairwise(edges):
            for it in budgets.standing(theirs[:following]):  # none, where it was removed
                if _bounds_a_month(it):
                    until = theirs[following].recorded_at if following < len(theirs) else None
                    terms = it.name, it.of, it.limit, dict(it.raised or {}), it.acknowledged
                    cap = Cap(*terms, theirs[first].recorded_at, until)
                    found.setdefault(it.customer_id, []).append(cap)
    return found


def _bounds_a_month(it: budgets.Budget) -> bool:
    return it.hard and not it.bill_over and it.measure != budgets.PREPAID and not it.agent_id and it.per == "month"


def capped(inputs: engine.Inputs, caps: Sequence[Cap], earlier: Used) -> engine.Inputs:
    """The inputs with a discount for each cap that is passed: of units first, then of money.

    `earlier`: what the other ratings of the month have used of the caps.
    """
    holding = holding_in(caps, inputs.setting.month)
    if not holding:
        return inputs
    with exact():
        made: list[Discount] = []
        part = inputs
        less_by_money = 0
        for at, (cap, limit) in enumerate(holding):
            if cap.of:
                less = replace(part, usage=_ended_at(part, cap.of, limit, earlier))
                above = _by_component(_priced(part), _priced(less), _metered(inputs))
                over, part = {of: amount for of, amount in above.items() if amount > 0}, less
            else:
                capped_before = sum(earlier.capped.get(it.name, 0) for it, _ in holding[:at])
                amount = _over_money(part, cap, limit, earlier, capped_before, less_by_money)
                over, less_by_money = {_metered(inputs): amount}, less_by_money + amount
            made += [_discount(inputs, cap, limit, of, amount) for of, amount in over.items() if amount]
        if not made:
            return inputs
        agreement = replace(inputs.agreement, discounts=(*made, *inputs.agreement.discounts))
    return replace(inputs, agreement=agreement)


def holding_in(caps: Iterable[Cap], month: Period) -> list[tuple[Cap, Decimal]]:
    """The caps that hold in a calendar month, and their limits in it, in the order in which they take off."""
    start = month.start.astimezone(UTC).isoformat()
    held = [it for it in caps if it.stands_at(month.end) and start not in it.acknowledged]
    return [(it, it.raised.get(start, it.limit)) for it in sorted(held, key=lambda it: (not it.of, it.name))]


def cap_name(cap: Cap, limit: Decimal, period: Period, components: Iterable[str]) -> str:
    """The name of the discount off components that a cap becomes in a period, at the limit that holds then."""
    return digest(["cap", cap.name, cap.of, plain(limit), period.start.isoformat(), *components])


def _ended_at(inputs: engine.Inputs, of: str, limit: Decimal, earlier: Used) -> tuple[UsageRow, ...]:
    """The usage if it had ended at the limit; as it is where it did, or where that cannot be said."""
    meters, book = _meters(inputs.book, of), inputs.book
    covered = [
        at
        for at, row in enumerate(inputs.usage)
        if row.meter in meters and not row.trial and row.status not in book.unbilled_statuses
    ]
    amounts = [int(inputs.usage[at].quantity * NANO) for at in covered]
    used = sum((quantity for meter, quantity in earlier.meters.items() if meter in meters), Decimal(0))
    room = int(max(Decimal(0), limit - used) * NANO)
    if sum(amounts) <= room or any(it < 0 for it in amounts):
        return inputs.usage
    unit = NANO if room % NANO == 0 and all(it % NANO == 0 for it in amounts) else 1
    kept = share_out(room, amounts, unit) if room else [0] * len(amounts)
    usage = list(inputs.usage)
    for at, amount in zip(covered, kept, strict=True):
        usage[at] = usage[at].of(Decimal(amount) / NANO)
    return tuple(usage)


def _meters(book: Book, of: str) -> frozenset[str]:
    metric = book.metrics.get(of)
    if metric is not None:
        return frozenset(metric.meters) if metric.aggregate == SUM else frozenset()
    measured = {meter for it in book.metrics.values() if it.aggregate != SUM for meter in it.meters}
    return frozenset([of]) - measured


def _priced(inputs: engine.Inputs) -> Counter[str]:
    """What usage, and percentages of it, come to by component, in minor units; fees are in it whatever is used."""
    lines = engine.rate(replace(inputs, agreement=replace(inputs.agreement, discounts=()))).lines
    found: Counter[str] = Counter()
    for line in lines:
        if line.kind in ("usage", "flat"):
            found[line.component] += line.amount_minor
    return found


def _by_component(whole: Counter[str], less: Counter[str], metered: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """What is too much, by the components it is of, so that each line says what is not billed of it.

    Where less usage makes a component dearer, or one without usage cheaper, one sum for all that have usage.
    """
    over = {name: whole[name] - less[name] for name in sorted({*whole, *less}) if whole[name] != less[name]}
    if all(amount > 0 and name in metered for name, amount in over.items()):
        return {(name,): amount for name, amount in over.items()}
    return {metered: sum(over.values())}


def _over_money(inputs: engine.Inputs, cap: Cap, limit: Decimal, earlier: Used, capped_before: int, less: int) -> int:
    """What usage is above the cap; less than nothing where other parts were less by it than the month is above it.

    `capped_before`: what those were less by caps before this one, `less` what this part is by such caps of money.
    """
    lines = engine.rate(replace(inputs, agreement=replace(inputs.agreement, discounts=()))).lines
    used = sum(line.amount_minor for line in lines if line.kind == "usage") - less
    whole = earlier.minor.get(inputs.currency, 0) - capped_before + used
    above = max(0, whole - to_minor(limit, inputs.currency, inputs.book.rounding))
    return within(above - earlier.capped.get(cap.name, 0), used)


def _metered(inputs: engine.Inputs) -> tuple[str, ...]:
    """The components that have usage."""
    return tuple(sorted(component.name for component in inputs.plan.components if component.metrics))


def _discount(inputs: engine.Inputs, cap: Cap, limit: Decimal, components: tuple[str, ...], over: int) -> Discount:
    return Discount(
        agreement_id=cap_name(cap, limit, inputs.setting.period, components),
        name=f"Above the cap of {plain(limit)} {cap.of or inputs.currency}: not billed",
        percent=None,
        amount=of_minor(over, inputs.currency),
        components=components,
        months=None,
        before_minimum=True,
        valid_from=ALWAYS,
        until=None,
        budget=cap.name,
    )
