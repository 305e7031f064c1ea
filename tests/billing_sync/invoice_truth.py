"""What random months of invoices and credits ought to come to, worked out from what was used, agreed and paid.

Nothing here is the product's: amounts are whole minor units, tax is computed by hand per line and rounded half up.
"""

import math
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

CUSTOMERS = {
    "acme": "USD",
    "kaisha": "JPY",
    "small": "USD",
    "dinar": "KWD",
    "brot": "EUR",
    "tea": "GBP",
    "prepaid": "USD",
}
PREPAID = "prepaid"
"""The one whose credits a rule buys."""
SHOP = "acct_1SHOP0000000000"
"""The connected account that sells to some of the customers."""
FEES = ("2.5%", "0.1%", "33.3%", "100%", "USD=1.50,JPY=30,KWD=0.75,EUR=1.40,GBP=1.20")
FIXED = {"USD": 150, "JPY": 30, "KWD": 750, "EUR": 140, "GBP": 120}
SMALLEST = {"USD": 1, "JPY": 1, "KWD": 10, "EUR": 1, "GBP": 1}
PERCENT = {"DE": 19, "FR": 20, "GB": 20, "IE": 0}
"""By the customer's country, in the sandbox's Stripe as here; in Ireland it collects nothing."""


def half_up(amount: Fraction) -> int:
    return math.floor(amount + Fraction(1, 2))


@dataclass
class Due:
    """One invoice: the amounts of its lines, what credits pay of the first one, and how it is taxed ('' not at all)."""

    lines: list[int]
    credit: int = 0
    behaviour: str = ""
    country: str = ""

    @property
    def rated(self) -> int:
        return sum(self.lines) - self.credit

    @property
    def taxes(self) -> tuple[int, int]:
        """Tax on top of the lines, and within them."""
        if not self.behaviour:
            return 0, 0
        percent = PERCENT[self.country]
        left = [self.lines[0] - self.credit, *self.lines[1:]]
        if self.behaviour == "exclusive":
            return sum(half_up(Fraction(it * percent, 100)) for it in left), 0
        return 0, sum(half_up(Fraction(it * percent, 100 + percent)) for it in left)

    @property
    def told(self) -> tuple[int, int, int]:
        """The total and both taxes, as Stripe has to show them."""
        added, contained = self.taxes
        return self.rated + added, added, contained

    def creditable(self, most: int) -> list[int]:
        """Amounts up to `most` that a credit note can take off the first line: all but where tax is in the price.

        There a note takes an amount before tax, of which some come with their tax to no whole number in between.
        """
        if self.behaviour != "inclusive":
            return list(range(1, most + 1))
        gross, percent = self.lines[0], PERCENT[self.country]
        within = half_up(Fraction(gross * percent, 100 + percent))
        share = Fraction(within, gross - within)
        return sorted({it + half_up(it * share) for it in range(1, most + 1)} - {0})


@dataclass
class Credits:
    """A customer's prepaid credits, and the rule by which they are bought: below so much, so much, so often a month."""

    below: int
    amount: int
    per_month: int
    given: int
    """Promotional ones that were there at first."""
    card_is_good: bool = True
    is_on: bool = True
    used: dict[str, int] = field(default_factory=dict)
    """Of each grant, by its name."""
    charges: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Between which moments each charge was asked for, also those that were declined."""

    def asks(self, left: int, before: datetime, after: datetime) -> set[int]:
        """How many charges a round may ask for that began and ended so, with so much left at its beginning."""
        if not self.is_on or left >= self.below:
            return {0}
        months = [{_month(one), _month(other)} for one, other in self.charges]
        this = {_month(before), _month(after)}
        surely = sum(it == this for it in months) if len(this) == 1 else 0
        if surely >= self.per_month:
            return {0}
        return {1} if sum(bool(it & this) for it in months) < self.per_month else {0, 1}


def _month(moment: datetime) -> tuple[int, int]:
    return moment.year, moment.month


def fee(said: str, total: int, currency: str) -> int:
    """What is asked for of an invoice or top-up."""
    if total <= 0:
        return 0
    if said.endswith("%"):
        return rounded(Fraction(said[:-1]) * total / 100, currency)
    return min(total, FIXED[currency])


def rounded(amount: Fraction, currency: str) -> int:
    """To what Stripe can charge, half up."""
    step = SMALLEST[currency]
    return half_up(amount / step) * step
