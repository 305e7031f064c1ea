"""A recurring fee per calendar month, for one or for a dated quantity such as seats, prorated.

model: recurring
price: 10.00              # of one, for a whole calendar month
quantity: seats           # a number (default 1), or the name of a dated quantity: `meterhouse contracts quantity`
unit: seat                # what invoices say; default: the quantity's name, or month
pay: arrears              # with the month it is for (default), or advance: with the month before
prorate: day              # (default) second, or none: what holds at the month's end counts for all of it

In advance, a month is billed with what is known when the month before is rated; what changes later is made up for in
the month's own rating. What comes back is what was paid: less the part of it that discounts took off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from meterhouse_rating.charges import Before, Charge, Charged, Fact, Portion, Setting
from meterhouse_rating.document import Block
from meterhouse_rating.facts import Piece, apportion, pieces
from meterhouse_rating.models.reading import Scope, read_amount, read_proration
from meterhouse_rating.money import decimal_of
from meterhouse_rating.periods import Period, short
from meterhouse_store.numbers import plain

_PAY: Final = ("arrears", "advance")


@dataclass(frozen=True)
class Recurring:
    name: str
    line: int
    price: Decimal
    quantity: Decimal | str
    unit: str
    advance: bool
    prorate: str
    metrics: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    memory: str = "contract"
    depends_on: tuple[str, ...] | None = ()

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """In arrears what the rated part of the month is due; in advance the month and the next one, each less what was
        billed for it before.
        """
        month, following = setting.month, setting.next_month
        if not self.advance:
            charges = [self._in_arrears(before, setting)]
        else:
            charges = [self._for(month, month, before, before.billed, setting)]
            if setting.period.end >= month.end:
                charges.append(self._for(following, following, before, before.billed, setting))
        return Charged(tuple(charge for charge in charges if charge is not None))

    def _in_arrears(self, before: Before, setting: Setting) -> Charge | None:
        """Each part of a month is due its own days, at its own price, whichever of them is rated first.

        Its last part takes off what earlier months billed for it, by a book that had the fee in advance; and it alone
        knows what holds at the month's end.
        """
        month, period = setting.month, setting.period
        end = month.end if setting.until is None else min(month.end, setting.until)
        last = period.end >= end > period.start
        if self.prorate == "none":
            return self._for(month, month, before, before.billed, setting) if last else None
        return self._for(month, period, before, before.billed_ahead if last else {}, setting)

    def _for(
        self, service: Period, rated: Period, before: Before, billed_before: Mapping[str, Decimal], setting: Setting
    ) -> Charge | None:
        end = rated.end if setting.until is None else min(rated.end, setting.until)
        span = Period(max(rated.start, setting.since), end)
        facts = self._facts(setting)
        parts = pieces(facts, span, service, setting.zone, self.prorate)
        amounts = apportion(self.price, parts)
        billed = billed_before.get(str(service))
        due = sum(amounts, Decimal(0)) - (billed or 0)
        if span.start >= span.end and billed is None:
            return None
        if billed is not None and due == 0:
            return None
        steps = [self._step(part, amount) for part, amount in zip(parts, amounts, strict=True)]
        if billed is not None:
            steps.append({"billed_before": str(service), "amount": plain(-billed)})
        off = before.billed_off.get(str(service))
        if off and billed and due < 0:
            # Nobody gets back what a discount paid.
            kept = decimal_of(Fraction(off) * Fraction(-due) / Fraction(billed))
            steps.append({"discounted_before": str(service), "amount": plain(kept)})
            due += kept
        if not facts:
            steps.append({"no_quantity": str(self.quantity), "amount": "0"})
        return Charge(
            kind="flat",
            description=f"{self.name} ({service})" if self.advance or not facts or billed is not None else self.name,
            quantity=parts[-1].quantity if parts else Decimal(0),
            unit=self.unit,
            amount=due,
            steps=tuple(steps),
            book_line=self.line,
            service=service,
        )

    def _facts(self, setting: Setting) -> Sequence[Fact]:
        if isinstance(self.quantity, Decimal):
            return (Fact(setting.since, self.quantity),)
        return setting.facts.get(self.quantity, ())

    def _step(self, part: Piece, amount: Decimal) -> dict[str, Any]:
        unit = {"day": "days", "second": "seconds", "none": "months"}[self.prorate]
        return {
            "quantity": plain(part.quantity),
            "price": plain(self.price),
            "share": f"{part.used}/{part.whole} {unit}",
            "from": short(part.start),
            "to": short(part.end),
            "amount": plain(amount),
        }


def read(name: str, block: Block, scope: Scope) -> Recurring | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    price = read_amount(block, "price", scope)
    quantity = block.number_or_name("quantity", default=Decimal(1))
    default_unit = quantity if isinstance(quantity, str) else "month"
    unit = block.text("unit", default=default_unit) or default_unit
    pay = block.text("pay", choices=_PAY, default="arrears")
    prorate = read_proration(block)
    if price is None or quantity is None:
        return None
    return Recurring(name, block.line, price, quantity, unit, pay == "advance", prorate)
