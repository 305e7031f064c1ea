"""The rating engine: usage, a plan and what was settled before go in, rated lines come out. Nothing else is read.

The same inputs give the same bytes at any later time. Every unit of usage ends in exactly one place: on a line, in what
the book leaves free by choice, or in what has no price; `rate` checks that before it returns.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from meterhouse_rating import discounts
from meterhouse_rating.agreements import Agreement, Discount
from meterhouse_rating.book import Book, Plan, Tax
from meterhouse_rating.charges import NO_PRICE, Before, Charge, Component, Dimensions, Setting, Unpriced, step
from meterhouse_rating.credit_lines import grants_told, pack_grants, used_told
from meterhouse_rating.credits import Grant, TopUp, burn, order, usable
from meterhouse_rating.facts import decimal_of
from meterhouse_rating.ids import digest
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.money import exact, of_minor, show, smallest, to_minor
from meterhouse_rating.rates import Rate
from meterhouse_rating.sorting import (
    BY_CHOICE,
    NOT_DECLARED,
    TOO_MANY_GROUPS,
    UNBILLED_METER,
    UNBILLED_STATUS,
    ConservationError,
    Leftover,
    Measure,
    UsageRow,
    options_of,
    sort_out,
)
from meterhouse_store.numbers import plain

__all__ = [
    "BY_CHOICE",
    "CONTRACT_ENDED",
    "NOT_DECLARED",
    "NOT_REGISTERED",
    "NO_PRICE",
    "TOO_MANY_GROUPS",
    "UNBILLED_METER",
    "UNBILLED_STATUS",
    "ConservationError",
    "Inputs",
    "Leftover",
    "Rated",
    "RatedLine",
    "UsageRow",
    "left_over",
    "rate",
]

NOT_REGISTERED: Final = "customer_not_registered"
CONTRACT_ENDED: Final = "contract_ended"
CORRECTION: Final = "correction"
CREDIT_RESTORED: Final = "credit_restored"
"""Kinds of lines about a period that was closed before."""

TOP_UP: Final = "top_up"
"""The component of what is bought by a rule; no component of a plan is called so in earlier ratings' memory."""


@dataclass(frozen=True)
class Inputs:
    """All that a rating depends on.

    `contract_id` names the agreement that put the customer on the plan, `plan` is the plan with the customer's add-ons
    and own prices in it, `overrides` names the latter by component. `declared` are the declared meters, `before` what
    was settled earlier per component, `credits` the customer's grants with what is left of them before this period,
    `top_up` the rule by which more are bought, `corrections` lines about closed periods that this rating bills. `rate`
    converts from the plan's currency to `currency`, where they differ.
    """

    contract_id: str
    currency: str
    book: Book
    version: int
    plan: Plan
    usage: tuple[UsageRow, ...]
    declared: frozenset[str]
    setting: Setting
    before: Mapping[str, Before] = field(default_factory=dict)
    credits: tuple[Grant, ...] = ()
    measures: tuple[Measure, ...] = ()
    agreement: Agreement = field(default_factory=Agreement)
    overrides: Mapping[str, str] = field(default_factory=dict)
    rate: Rate | None = None
    top_up: TopUp | None = None
    corrections: "tuple[RatedLine, ...]" = ()

    def sha256(self) -> str:
        """The hash of everything that can change the result."""
        usage = [
            [
                *(row.meter, row.status, [list(d) for d in row.dimensions], row.events, plain(row.quantity)),
                *(row.task, row.trial, None if row.cost is None else plain(row.cost)),
            ]
            for row in self.usage
        ]
        measures = [
            [it.measurement.metric.name, [list(d) for d in it.dimensions], it.events, plain(it.value)]
            for it in self.measures
        ]
        book = [self.book.sha256, self.version, self.plan.name]
        credits = [it.canonical() for it in order(self.credits)]
        top_up = None if self.top_up is None else list(vars(self.top_up).values())
        money = [self.currency, credits, top_up, {name: _before_json(it) for name, it in self.before.items()}]
        return digest(
            [
                self.contract_id,
                book,
                sorted(usage, key=digest),
                sorted(measures, key=digest),
                sorted(self.declared),
                money,
                _setting_json(self.setting),
                self.agreement.canonical(),
                *([] if not self.corrections else [[_plain(vars(it)) for it in self.corrections]]),
            ]
        )


@dataclass(frozen=True)
class RatedLine:
    """One line of a rating: the exact amount in major units, and the amount after rounding in minor units."""

    kind: str
    component: str
    metric: str | None
    description: str
    quantity: Decimal
    unit: str
    dimensions: Dimensions
    amount_exact: Decimal
    amount_minor: int
    explanation: Mapping[str, Any]


@dataclass(frozen=True)
class Rated:
    """A rated period of one customer. The total is the sum of the lines."""

    lines: tuple[RatedLine, ...]
    leftovers: tuple[Leftover, ...]
    total_minor: int

    def sha256(self) -> str:
        """The hash of the result: the same inputs give the same hash."""
        return digest([[_plain(vars(line)) for line in self.lines], [_plain(vars(it)) for it in self.leftovers]])


def rate(inputs: Inputs) -> Rated:
    """Rate one customer's period. Raises ConservationError where a price model lost or doubled usage."""
    with exact():
        found = sort_out(inputs.book, inputs.plan, inputs.usage, inputs.measures, inputs.declared, inputs.before)
        bill = _Bill(inputs, leftovers=found.leftovers)
        last = [component for component in inputs.plan.components if isinstance(component, Minimum)]
        for component in inputs.plan.components:
            if component not in last:
                bill.charge(component, found.portions[component.name])
        bill.discount(it for it in inputs.agreement.discounts if it.before_minimum)
        for component in last:
            bill.charge(component, found.portions[component.name])
        bill.discount(it for it in inputs.agreement.discounts if not it.before_minimum)
        bill.correct()
        bill.apply_credits()
        _check_conservation(inputs.usage, bill.lines, bill.leftovers)
    return Rated(tuple(bill.lines), _merge(bill.leftovers), sum(line.amount_minor for line in bill.lines))


def left_over(usage: Iterable[UsageRow], reason: str, hint: str) -> tuple[Leftover, ...]:
    """All of the usage, left for one reason: a customer that cannot be rated at all."""
    return _merge(Leftover(row.meter, (), row.events, row.quantity, reason, hint) for row in usage)


@dataclass
class _Bill:
    """The lines as they come about; `reduced` is what discounts took off each of them."""

    inputs: Inputs
    leftovers: list[Leftover]
    lines: list[RatedLine] = field(default_factory=list)
    reduced: list[int] = field(default_factory=list)
    amounts: dict[str, Decimal] = field(default_factory=dict)
    granted: list[Grant] = field(default_factory=list)

    def charge(self, component: Component, portions: Sequence[Any]) -> None:
        """Charge a component, with what the components before it come to."""
        inputs = self.inputs
        before = inputs.before.get(component.name, Before())
        setting = replace(inputs.setting, amounts=dict(self.amounts))
        charged = component.charge(portions, before, setting)
        amount = Decimal(0)
        for charge in charged.charges:
            _check_steps(component.name, charge)
            line, granted = _line(inputs, component, charge)
            self.lines.append(line)
            self.reduced.append(0)
            self.granted += granted
            amount += _in_plan_currency(inputs, charge.amount)
        self.amounts[component.name] = self.amounts.get(component.name, Decimal(0)) + amount
        self.leftovers += [_unpriced(it) for it in charged.unpriced]

    def discount(self, found: Iterable[Discount]) -> None:
        """Apply the discounts that hold, each to what is left of the lines."""
        inputs = self.inputs
        for it in sorted(found, key=lambda it: (it.valid_from, it.agreement_id)):
            if not discounts.applies(it, inputs.setting.period, inputs.setting.zone):
                continue
            open_lines = [
                discounts.Open(line.component, line.description, line.amount_minor + taken)
                for line, taken in zip(self.lines, self.reduced, strict=True)
            ]
            taken = discounts.take(it, open_lines, inputs.currency, inputs.book.rounding)
            if taken is None:
                continue
            self.lines.append(_discount_line(inputs, it, taken))
            self.reduced = [old - new for old, new in zip(self.reduced, taken.of_lines, strict=True)] + [-taken.total]
            for line, share in zip(self.lines, taken.of_lines, strict=False):
                if share:
                    off = _taken_in_plan_currency(inputs, share)
                    self.amounts[line.component] = self.amounts.get(line.component, Decimal(0)) - off

    def correct(self) -> None:
        """The corrections of closed periods, as they are: no discount or minimum of this period is about them."""
        self.lines += self.inputs.corrections
        self.reduced += [0] * len(self.inputs.corrections)

    def apply_credits(self) -> None:
        """Top up where the rule says so; then one negative line that pays the usage lines, as far as credits reach."""
        inputs, period = self.inputs, self.inputs.setting.period
        payable = [
            line.amount_minor + taken if line.kind == "usage" or _late_usage(line) else 0
            for line, taken in zip(self.lines, self.reduced, strict=True)
        ]
        grants = usable([*inputs.credits, *self.granted], period)
        if inputs.top_up is not None:
            wanted = sum(amount for amount in payable if amount > 0)
            times = inputs.top_up.times(sum(it.left_minor for it in grants), wanted)
            if times:
                line, granted = _top_up_line(inputs, inputs.top_up.amount_minor, times)
                self.lines.append(line)
                self.reduced.append(0)
                grants = usable([*grants, *granted], period)
        uses = burn(grants, payable)
        spent, balance = sum(it.amount_minor for it in uses), sum(it.left_minor for it in grants)
        if not spent:
            return
        explanation = {
            "balance_before": show(balance, inputs.currency),
            **used_told(uses, [line.description for line in self.lines], inputs.currency),
            "balance_after": show(balance - spent, inputs.currency),
            "amount": show(-spent, inputs.currency),
        }
        amount = of_minor(-spent, inputs.currency)
        words = ("credit_applied", "credits", None, "Credits applied", Decimal(1), "")
        self.lines.append(RatedLine(*words, (), amount, -spent, explanation))
        self.reduced.append(0)


def _late_usage(line: RatedLine) -> bool:
    return line.kind == CORRECTION and line.metric is not None


def _line(inputs: Inputs, component: Component, charge: Charge) -> tuple[RatedLine, list[Grant]]:
    amount = _converted(inputs, charge.amount)
    amount_minor = _minor(inputs, amount)
    options = options_of(inputs.plan, component)
    explanation: dict[str, Any] = {
        "price": {
            "book": inputs.book.name,
            "version": inputs.version,
            "plan": inputs.plan.name,
            "component": component.name,
            "line": charge.book_line,
            "contract": inputs.contract_id,
        },
        "meters": {meter: plain(quantity) for meter, quantity in charge.meters.items()},
        "steps": [dict(step) for step in charge.steps],
        "amount_exact": plain(amount),
        "rounding": f"{inputs.book.rounding} to {smallest(inputs.currency)} {inputs.currency}",
        "amount": show(amount_minor, inputs.currency),
    }
    if component.name in inputs.overrides:
        explanation["price"]["override"] = inputs.overrides[component.name]
    grants: list[Grant] = []
    if charge.credits:
        credits = _minor(inputs, _converted(inputs, charge.credits))
        grants = pack_grants(
            [inputs.contract_id, component.name, inputs.setting.period.start.isoformat()],
            amount_minor,
            credits,
            inputs.setting.period.start,
            expires_days=charge.credits_expire_days,
            priority=charge.credits_priority,
        )
        explanation |= {"credits": show(credits, inputs.currency), "grants": grants_told(grants, inputs.currency)}
    if charge.quantities:
        explanation["quantities"] = {name: plain(quantity) for name, quantity in charge.quantities.items()}
    if charge.events is not None:
        explanation["events"] = charge.events
    if charge.service is not None:
        explanation["service"] = str(charge.service)
    if inputs.rate is not None:
        explanation["conversion"] = {
            "amount": plain(charge.amount),
            "currency": inputs.rate.source,
            "rate": plain(inputs.rate.rate),
            "to": inputs.rate.target,
            "valid_from": inputs.rate.valid_from.isoformat(),
            "line": inputs.rate.line,
        }
    explanation |= _taxed(options.tax, inputs.book.tax)
    line = RatedLine(
        charge.kind,
        component.name,
        charge.metric,
        f"{options.title}{charge.description.removeprefix(component.name)}",
        charge.quantity,
        charge.unit,
        charge.dimensions,
        amount,
        amount_minor,
        explanation,
    )
    return line, grants


def _taxed(own: Tax, of_book: Tax) -> dict[str, Any]:
    """How a line is taxed, for its explanation; nothing where the book says nothing."""
    tax = {"behaviour": own.behaviour or of_book.behaviour, "code": own.code or of_book.code}
    return {"tax": tax} if any(tax.values()) else {}


def _top_up_line(inputs: Inputs, each_minor: int, times: int) -> tuple[RatedLine, list[Grant]]:
    total, start, currency = each_minor * times, inputs.setting.period.start, inputs.currency
    grants = pack_grants([inputs.contract_id, TOP_UP, start.isoformat()], total, total, start)
    amount = of_minor(total, currency)
    explanation = {
        "steps": [step(Decimal(times), of_minor(each_minor, currency), Decimal(1))],
        "amount_exact": plain(amount),
        "amount": show(total, currency),
        "credits": show(total, currency),
        "grants": grants_told(grants, currency),
        **_taxed(Tax(), inputs.book.tax),
    }
    words = ("credit_pack", TOP_UP, None, "Credit top-up", Decimal(times), "top-up")
    return RatedLine(*words, (), amount, total, explanation), grants


def _discount_line(inputs: Inputs, discount: Discount, taken: discounts.Taken) -> RatedLine:
    explanation = {
        "discount": discount.agreement_id,
        "order": "before the minimum commitment" if discount.before_minimum else "after the minimum commitment",
        "steps": [dict(step) for step in taken.steps],
        "amount_exact": plain(taken.exact),
        "rounding": f"{inputs.book.rounding} to {smallest(inputs.currency)} {inputs.currency}",
        "amount": show(taken.total, inputs.currency),
    }
    key = (("discount", discount.agreement_id),)
    words = ("discount", "discounts", None, discount.name, Decimal(1), "")
    return RatedLine(*words, key, taken.exact, taken.total, explanation)


def _check_steps(component: str, charge: Charge) -> None:
    """The arithmetic that is shown is the arithmetic that was done."""
    shown = sum((Decimal(step.get("amount", "0")) for step in charge.steps), Decimal(0))
    if shown != charge.amount:
        raise ConservationError(f"the steps of {component} add up to {plain(shown)}, not to {plain(charge.amount)}")


def _check_conservation(usage: Iterable[UsageRow], lines: Iterable[RatedLine], left: Iterable[Leftover]) -> None:
    balance: dict[str, Decimal] = {}
    for row in usage:
        balance[row.meter] = balance.get(row.meter, Decimal(0)) + row.quantity
    for line in lines:
        for meter, quantity in line.explanation.get("meters", {}).items():
            balance[meter] = balance.get(meter, Decimal(0)) - Decimal(quantity)
    for item in left:
        balance[item.meter] = balance.get(item.meter, Decimal(0)) - item.quantity
    wrong = {meter: plain(rest) for meter, rest in balance.items() if rest}
    if wrong:
        raise ConservationError(f"usage minus rated, unbilled and unrated is not zero: {wrong}")


def _merge(leftovers: Iterable[Leftover]) -> tuple[Leftover, ...]:
    """One leftover per meter, dimensions, reason and hint, in a fixed order."""
    merged: dict[tuple[str, Dimensions, str, str], tuple[int, Decimal]] = {}
    with exact():
        for it in leftovers:
            key = (it.meter, it.dimensions, it.reason, it.hint)
            events, quantity = merged.get(key, (0, Decimal(0)))
            merged[key] = (events + it.events, quantity + it.quantity)
    return tuple(
        Leftover(meter, dimensions, events, quantity, reason, hint)
        for (meter, dimensions, reason, hint), (events, quantity) in sorted(merged.items())
    )


def _minor(inputs: Inputs, amount: Decimal) -> int:
    return to_minor(amount, inputs.currency, inputs.book.rounding)


def _converted(inputs: Inputs, amount: Decimal) -> Decimal:
    return amount if inputs.rate is None else amount * inputs.rate.rate


def _in_plan_currency(inputs: Inputs, amount: Decimal) -> Decimal:
    """The amount as it stands on a line in the plan's currency, which other components compare with."""
    currency = inputs.plan.currency
    return of_minor(to_minor(amount, currency, inputs.book.rounding), currency)


def _taken_in_plan_currency(inputs: Inputs, share: int) -> Decimal:
    amount = of_minor(share, inputs.currency)
    if inputs.rate is None:
        return amount
    # Only compared with a minimum; the quotient need not be exact.
    return decimal_of(Fraction(amount) / Fraction(inputs.rate.rate))


def _unpriced(it: Unpriced) -> Leftover:
    portion = it.portion
    return Leftover(portion.meter, portion.dimensions, portion.events, portion.quantity, it.reason, it.hint)


def _before_json(before: Before) -> dict[str, Any]:
    return {
        "charged": before.charged,
        "quantities": {name: plain(it) for name, it in before.quantities.items()},
        "cells": sorted([[name, [list(d) for d in key], plain(it)] for (name, key), it in before.cells.items()]),
        "events": dict(before.events),
        "billed": {name: plain(it) for name, it in before.billed.items()},
    }


def _setting_json(setting: Setting) -> list[Any]:
    earlier = {name: plain(it) for name, it in setting.earlier.items()}
    until = None if setting.until is None else setting.until.isoformat()
    return [str(setting.period), str(setting.month), setting.zone, setting.since.isoformat(), until, earlier]


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
