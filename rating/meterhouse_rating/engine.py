"""The rating engine: usage, a plan and what was settled before go in, rated lines come out. Nothing else is read.

The same inputs give the same bytes at any later time. Every unit of usage ends in exactly one place: on a line, in what
the book leaves free by choice, or in what has no price; `rate` checks that before it returns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from meterhouse_rating import discounts, lines
from meterhouse_rating.agreements import Discount
from meterhouse_rating.charges import NO_PRICE, Before, Charge, Component, Unpriced
from meterhouse_rating.credit_lines import minor, used_told
from meterhouse_rating.credits import Grant, burn, usable
from meterhouse_rating.inputs import Inputs
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.money import decimal_of, exact, of_minor, show, to_minor
from meterhouse_rating.rated import (
    CORRECTION,
    CREDIT_APPLIED,
    CREDIT_RESTORED,
    DISCOUNTED,
    Rated,
    RatedLine,
    left_over,
    merged,
)
from meterhouse_rating.rates import Rate, rate_at
from meterhouse_rating.sorting import (
    BY_CHOICE,
    CONTRACT_ENDED,
    NOT_DECLARED,
    TOO_MANY_GROUPS,
    UNBILLED_METER,
    UNBILLED_STATUS,
    ConservationError,
    Leftover,
    UsageRow,
    sort_out,
)
from meterhouse_store.numbers import plain

__all__ = [
    "AMOUNT_TOO_LARGE",
    "BY_CHOICE",
    "CONTRACT_ENDED",
    "CORRECTION",
    "CREDIT_RESTORED",
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
AMOUNT_TOO_LARGE: Final = "amount_too_large"


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
    return Rated(tuple(bill.lines), merged(bill.leftovers), sum(line.amount_minor for line in bill.lines))


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
        setting = replace(
            inputs.setting, amounts=dict(self.amounts), currency=inputs.plan.currency, rates=_rates_to_plan(inputs)
        )
        charged = component.charge(portions, before, setting)
        amount = Decimal(0)
        for charge in charged.charges:
            _check_steps(component.name, charge)
            line, granted = lines.charged(inputs, component, charge)
            self.lines.append(line)
            self.reduced.append(0)
            self.granted += granted
            amount += _in_plan_currency(inputs, charge.amount)
        self.amounts[component.name] = self.amounts.get(component.name, Decimal(0)) + amount
        self.leftovers += [_unpriced(it) for it in charged.unpriced]

    def discount(self, found: Iterable[Discount]) -> None:
        """Apply the discounts that hold, each to what is left of the lines."""
        inputs = self.inputs
        for it in discounts.in_order(found):
            if not discounts.applies(it, inputs.setting.period, inputs.setting.zone):
                continue
            open_lines = [
                discounts.Open(line.component, line.description, _left(line, taken))
                for line, taken in zip(self.lines, self.reduced, strict=True)
            ]
            earlier = inputs.setting.discounted.get(it.agreement_id, Decimal(0))
            left = inputs.setting.discounted_left.get(it.agreement_id, Decimal(0))
            taken = discounts.take(it, open_lines, inputs.currency, inputs.book.rounding, earlier, left)
            if taken is None:
                continue
            self.lines.append(lines.discounted(inputs, it, taken))
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
            _payable(line, inputs.currency) + (taken if line.kind == "usage" else 0)
            for line, taken in zip(self.lines, self.reduced, strict=True)
        ]
        grants = usable([*inputs.credits, *self.granted], period)
        if inputs.top_up is not None and not inputs.plan.ended:
            wanted = sum(amount for amount in payable if amount > 0)
            times = inputs.top_up.times(sum(it.left_minor for it in grants), wanted)
            if times:
                line, granted = lines.top_up(inputs, inputs.top_up.amount_minor, times)
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
        words = (CREDIT_APPLIED, "credits", None, "Credits applied", Decimal(1), "")
        self.lines.append(RatedLine(*words, (), amount, -spent, explanation))
        self.reduced.append(0)


def _left(line: RatedLine, taken: int) -> int:
    """What discounts left of a line. What a fee in advance gives back is what was paid for it, after discounts."""
    left = line.amount_minor + taken
    return left if line.kind in DISCOUNTED and "service" not in line.explanation else max(0, left)


def _payable(line: RatedLine, currency: str) -> int:
    """What credits may pay of a line before discounts; of late usage all, where that is from before lines said it."""
    if line.kind == CORRECTION and "payable" in line.explanation:
        return minor(line.explanation["payable"], currency)
    return line.amount_minor if line.kind == "usage" or (line.kind == CORRECTION and line.metric is not None) else 0


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


def _rates_to_plan(inputs: Inputs) -> dict[str, Rate]:
    """The book's rates to the plan's currency at the period's start, by the currency that they are from."""
    own, start = inputs.plan.currency, inputs.setting.period.start
    found = ((it.source, rate_at(inputs.book.rates, it.source, own, start)) for it in inputs.book.rates)
    return {source: rate for source, rate in found if rate is not None}


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
