"""Usage that is included in a plan, and what goes beyond it, without a fee of its own.

model: included
metric: output_tokens
included: 1_000_000       # per calendar month; with `each`, so many for each of a dated quantity, such as seats
each: seats
per: 1_000_000
price: 9.00               # or graduated `tiers`, which count from the end of what is included; or:
beyond: none              # there is no more on this plan: what goes beyond it is left unrated and listed
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from meterhouse_rating.charges import Before, Charged, Portion, Setting, Unpriced, total, usage_charge
from meterhouse_rating.document import Block
from meterhouse_rating.facts import at
from meterhouse_rating.models.reading import Scope, read_metric
from meterhouse_rating.tiers import Tier, graduate, read_per, read_price_or_tiers
from meterhouse_store.numbers import plain


@dataclass(frozen=True)
class Included:
    name: str
    line: int
    metric: str
    included: Decimal
    each: str | None
    per: Decimal
    tiers: tuple[Tier, ...]
    """None at all: what goes beyond what is included has no price."""
    dimensions: tuple[str, ...] = ()
    memory: str = "month"
    depends_on: tuple[str, ...] | None = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def charge(self, portions: Sequence[Portion], before: Before, setting: Setting) -> Charged:
        """One charge; what is included is used up once a month. Of a dated quantity the period's last one counts."""
        if not portions:
            return Charged(())
        start = before.quantities.get(self.metric, Decimal(0))
        number = Decimal(1) if self.each is None else at(setting.facts.get(self.each, ()), setting.period.end)
        included = self.included * number
        room = max(Decimal(0), included - start)
        if not self.tiers:
            return self._up_to(room, portions, included, start)
        free = min(total(portions), room)
        amount, steps = graduate(max(Decimal(0), start - included), total(portions) - free, self.tiers, self.per)
        if free:
            steps.insert(0, self._free(included, free))
        if start:
            steps.insert(0, {"already_rated_this_month": plain(start)})
        return Charged((usage_charge(self.name, self.metric, portions, amount, steps, self.line),))

    def _up_to(self, room: Decimal, portions: Sequence[Portion], included: Decimal, start: Decimal) -> Charged:
        """Split the portions, in the order of their meters and dimensions, where the included quantity ends."""
        inside: list[Portion] = []
        beyond: list[Unpriced] = []
        hint = (
            f"{self.name} (line {self.line}) includes {plain(included)} a month and has no price beyond: move the "
            "customer to a plan that has one, or give the component a price"
        )
        for portion in sorted(portions, key=lambda it: (it.meter, it.dimensions)):
            fits = min(room, portion.quantity)
            room -= fits
            if fits == portion.quantity:
                inside.append(portion)
                continue
            if fits:
                inside.append(replace(portion, quantity=fits))
            # The event on the edge is counted where most of the usage is left over.
            rest = replace(portion, quantity=portion.quantity - fits, events=portion.events if not fits else 0)
            beyond.append(Unpriced(rest, hint))
        if not inside:
            return Charged((), tuple(beyond))
        steps = [self._free(included, total(inside))]
        if start:
            steps.insert(0, {"already_rated_this_month": plain(start)})
        charge = usage_charge(self.name, self.metric, inside, Decimal(0), steps, self.line)
        return Charged((charge,), tuple(beyond))

    def _free(self, included: Decimal, quantity: Decimal) -> dict[str, str]:
        return {"included": plain(included), "quantity": plain(quantity), "amount": "0"}


def read(name: str, block: Block, scope: Scope) -> Included | None:
    """The component, or None when it cannot be made; mistakes are collected by the block."""
    metric = read_metric(block, scope)
    included = block.number("included", positive=True)
    each = block.text("each") if block.has("each") else None
    per = read_per(block)
    if block.has("beyond"):
        block.text("beyond", choices=("none",))
        tiers: tuple[Tier, ...] = ()
        if block.has("price") or block.has("tiers"):
            block.wrong("has a price and `beyond: none`", "Keep one of the two.", key="beyond")
        if metric is not None and scope.metrics.get(metric, "sum") != "sum":
            block.wrong(f"{metric} is no sum, so it cannot end at a limit", "Give it a price.", key="beyond")
    else:
        tiers = read_price_or_tiers(block)
        if not tiers:
            return None
    if metric is None or included is None:
        return None
    return Included(name, block.line, metric, included, each, per, tiers)
