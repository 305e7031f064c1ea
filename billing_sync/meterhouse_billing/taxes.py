"""Tax on an invoice: what the price book says of each line, and what Stripe may compute tax on.

With automatic tax Stripe takes no item below zero, nor one that does not say whether tax is in its price
(https://docs.stripe.com/api/invoices/create#create_invoice-automatic_tax). What discounts, credits and corrections take
off is therefore taken off the items themselves: what is taxed is what is left to be paid. Credits are taxed when they
are sold, so what they pay is not taxed again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meterhouse_billing.amounts import NotPayable, from_stripe
from meterhouse_billing.lines import Line, Tax
from meterhouse_rating.credit_lines import minor
from meterhouse_rating.discounts import share_out
from meterhouse_rating.layout import money
from meterhouse_rating.money import quantum

EXCLUSIVE: Final = "exclusive"
INCLUSIVE: Final = "inclusive"


class NotTaxable(NotPayable):
    """An invoice that tax cannot be computed on automatically."""


@dataclass(frozen=True)
class Charged:
    """Tax as Stripe computed it for a whole invoice, in Stripe's unit: on top of its lines, and within them."""

    added: int = 0
    contained: int = 0


NONE: Final = Charged()


@dataclass(frozen=True)
class Netted:
    """What is left of each line that is not negative, and with which of these each negative line goes."""

    left: Mapping[str, int]
    hosts: Mapping[str, str]


def of_line(explanation: Mapping[str, Any]) -> Tax:
    """The tax of a rated line."""
    said = explanation.get("tax", {})
    return Tax(said.get("behaviour") or "", said.get("code") or "")


def taken_off(explanation: Mapping[str, Any], currency: str) -> tuple[tuple[str, int], ...]:
    """Of a discount, or of credits: the lines that it is taken off, and how much of each where that is told."""
    steps = explanation.get("steps", ())
    paid = [(step["pays"], minor(step["amount"], currency)) for step in steps if "pays" in step]
    return (*paid, *((step["off"], 0) for step in steps if "off" in step))


def charged(taxes: Sequence[Mapping[str, Any]] | None) -> Charged:
    """The sums of Stripe's `total_taxes`."""
    sums = {EXCLUSIVE: 0, INCLUSIVE: 0}
    for tax in taxes or ():
        sums[tax["tax_behavior"]] += tax["amount"]
    return Charged(sums[EXCLUSIVE], sums[INCLUSIVE])


def in_minor(found: Charged, currency: str) -> tuple[int, int]:
    """Added and contained tax in ISO 4217 minor units."""
    return from_stripe(found.added, currency), from_stripe(found.contained, currency)


def net(lines: Sequence[Line], currency: str) -> Netted:
    """The lines with what is negative taken off them: first off what it is about, never below zero.

    A discount goes off the lines that it was computed from, in proportion; credits off those that they pay, as they pay
    them; any other negative line off its own component, then off what has its tax code, then off the rest. Raises
    NotTaxable where that leaves something, and where tax is in some prices and not in others.
    """
    _check_behaviours(lines)
    left = {line.line_id: line.amount_minor for line in lines if line.amount_minor >= 0}
    hosts: dict[str, str] = {}
    for line in lines:
        if line.amount_minor >= 0:
            continue
        rest = -line.amount_minor
        for targets, at_most in _targets(line, lines):
            open_ids = [name for name in targets if left.get(name, 0) > 0]
            shares = _shares(min(rest, at_most), [left[name] for name in open_ids], currency)
            for name, share in zip(open_ids, shares, strict=True):
                left[name] -= share
                rest -= share
                if share:
                    hosts.setdefault(line.line_id, name)
        if rest:
            shown = f"{money(rest, currency)} {currency}"
            raise NotTaxable(
                f"{shown} of {line.description!r} is more than the invoice has to be paid, and Stripe computes no tax "
                "on what is negative: let corrections be credit notes (`meterhouse contracts corrections CUSTOMER "
                "credit_note`), or turn automatic tax off for the customer (`meterhouse bill settings`)"
            )
    return Netted(left, hosts)


def _check_behaviours(lines: Sequence[Line]) -> None:
    said = {line.tax.behaviour for line in lines if line.amount_minor > 0}
    if not said <= {EXCLUSIVE, INCLUSIVE}:
        unsaid = next(it for it in lines if it.amount_minor > 0 and it.tax.behaviour not in (EXCLUSIVE, INCLUSIVE))
        raise NotTaxable(
            f"the price book does not say whether tax is in the price of {unsaid.description!r}: publish it with "
            "`tax: {behaviour: exclusive}` or inclusive, or turn automatic tax off (`meterhouse bill settings`)"
        )
    if len(said) > 1 and any(line.amount_minor < 0 for line in lines):
        raise NotTaxable(
            "some prices of this invoice have tax in them and others have not, and something is taken off: of which "
            "of them cannot be told. Give the customer's plan, add-ons and own prices one behaviour"
        )


def _targets(line: Line, lines: Sequence[Line]) -> Iterator[tuple[list[str], int]]:
    """Lines that a negative one is taken off, the nearest first, each group with what at most."""
    everything = -line.amount_minor
    for description, amount in line.off:
        if amount:
            yield [it.line_id for it in lines if it.description == description], amount
    described = {description for description, amount in line.off if not amount}
    yield [it.line_id for it in lines if it.description in described], everything
    yield [it.line_id for it in lines if it.component == line.component], everything
    yield [it.line_id for it in lines if it.tax == line.tax], everything
    yield [it.line_id for it in lines], everything


def _shares(amount: int, weights: list[int], currency: str) -> list[int]:
    amount = min(amount, sum(weights))
    return share_out(amount, weights, quantum(currency)) if amount > 0 else [0] * len(weights)
