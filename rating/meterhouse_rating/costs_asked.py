"""What a provider asks for usage that a price marks up: so many units at a price, and what says so; or why that is not
known, and what to do about it.
"""

import shlex
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from meterhouse_rating.costs_catalogue import NO_CATALOGUE, Price
from meterhouse_rating.money import decimal_of
from meterhouse_store.numbers import plain

CONTEXT_UNKNOWN: Final = "context_unknown"
USAGE_UNKNOWN: Final = "usage_unknown"

_OPTIONS: Final = ("provider", "model", "modality", "cache_ttl", "service_tier", "tool")
_TOKENS: Final = "llm.tokens."


@dataclass(frozen=True)
class Cost:
    """`quantity` units at `price` of `currency` per `per`, as `entry` says (an own cost, or a place in a price list).

    `quantity` is more than what was used where the provider has a least quantity. Of a cost with a `reason` nothing
    else is known but `what` it would be of: names and values of usage as costs see it.
    """

    entry: str = ""
    price: Decimal = Decimal(0)
    per: int = 1
    currency: str = ""
    quantity: Decimal = Decimal(0)
    reason: str = ""
    what: tuple[tuple[str, str], ...] = ()

    @property
    def amount(self) -> Decimal:
        """In its currency: exact, but for a quotient that does not end, which is rounded at the twelfth digit."""
        return amount_of(self.quantity, self.price, self.per)

    def shared(self, part: Decimal, whole: Decimal) -> "Cost":
        """The cost of a part of the usage, in proportion."""
        if self.quantity == whole or not whole:
            return replace(self, quantity=part)
        return replace(self, quantity=decimal_of(Fraction(self.quantity) * Fraction(part) / Fraction(whole)))

    def canonical(self) -> list[Any]:
        """For a hash."""
        money = [plain(self.price), self.per, self.currency, plain(self.quantity)]
        return [self.entry, *money, self.reason, [list(it) for it in self.what]]


def amount_of(quantity: Decimal, price: Decimal, per: int) -> Decimal:
    """So many units at a price per so many: exact where the quotient ends, else rounded at the twelfth digit."""
    rest = per
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return quantity * price / per if rest == 1 else decimal_of(Fraction(quantity) * Fraction(price) / per)


def priced(rate: Price, price: Decimal, quantity: Decimal) -> Cost:
    """What so many units cost by a rate, at the one of its prices that holds for them."""
    return Cost(rate.entry, price, rate.per, rate.currency, quantity)


def remedy(it: Cost | None, component: str, line: int) -> str:
    """What to do about a cost that is not known."""
    own = f"give the component `{component}` (line {line}) a `cost` list of its own"
    if it is None:
        return f"what the provider asks for it is not known: {own}"
    what = dict(it.what)
    told = ", ".join(f"{name} {value}" for name, value in it.what if name != "meter")
    of = f"{what['meter']} ({told})" if told else what["meter"]
    if it.reason == USAGE_UNKNOWN:
        return (
            f"nobody reported what was used of {of}: the provider's own usage page knows. Bill it by "
            "`meterhouse ledger adjust`, or name the statuses that the component bills"
        )
    options = "".join(f" --{name.replace('_', '-')} {shlex.quote(what[name])}" for name in _OPTIONS if name in what)
    per = " --per 1000000" if what["meter"].startswith(_TOKENS) else ""
    command = f"meterhouse costs set {what['meter']} PRICE{per}{options} --why ..."
    first = "meterhouse costs import (the price list), or " if it.reason == NO_CATALOGUE else ""
    return f"what the provider asks for {of} is not known ({it.reason}): {first}{command}, or {own}; then rate again"


def no_rate(it: Cost, currency: str) -> str:
    """What to do where a cost is in another currency than the plan."""
    return (
        f"the provider asks {it.currency} and the plan is in {currency}: add to the price book "
        f"rates: [{{from: {it.currency}, to: {currency}, rate: ..., valid_from: ...}}], or name the cost in {currency} "
        "(`meterhouse costs set --currency`)"
    )
