"""The most that one more unit of a meter can cost on a plan: with it a budget of money is handed out in units.

A price that depends on the model, a tier or what is included is here the highest of them: an agent that knows one
number per meter must not be able to pass a budget with whatever it uses next. What a provider asks for whatever is used
next is not known, so that a markup on known costs has no such highest price, only that of what was used already.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from meterhouse_rating.book import Book, Plan
from meterhouse_rating.charges import Component
from meterhouse_rating.metrics import COUNT, SUM
from meterhouse_rating.models.cost_plus import CostPlus
from meterhouse_rating.models.flat import Flat
from meterhouse_rating.models.graduated import Graduated
from meterhouse_rating.models.included import Included
from meterhouse_rating.models.matrix import Matrix
from meterhouse_rating.models.package import Package
from meterhouse_rating.models.per_unit import PerUnit
from meterhouse_rating.models.percentage import Percentage
from meterhouse_rating.models.volume import Volume
from meterhouse_rating.money import decimal_of
from meterhouse_rating.tiers import Tier


@dataclass(frozen=True)
class Ceilings:
    """Per meter the highest price of a unit, in the plan's currency; `unknown`: meters whose price does not say it.

    `asked`: meters whose price is that of what was used so far, and may be passed by what providers ask more for.
    """

    prices: dict[str, Decimal]
    unknown: frozenset[str]
    asked: frozenset[str] = frozenset()


def ceilings(book: Book, plan: Plan, asked: Mapping[str, Decimal]) -> Ceilings:
    """Of all meters that the plan charges for. Meters of metrics that are no sum (a maximum, seats) are unknown.

    `asked`: per meter the most that a provider asked for a unit so far, in the plan's currency.
    """
    prices: dict[str, Decimal] = {}
    unknown: set[str] = set()
    marked_up: set[str] = set()
    for component in plan.components:
        for name in component.metrics:
            metric = book.metrics[name]
            for meter in metric.meters:
                price = _of_metric(component, name)
                if isinstance(component, CostPlus) and component.costs is None and meter in asked:
                    price = _marked_up(component, asked[meter])
                    marked_up.add(meter)
                if price is None or metric.aggregate not in (SUM, COUNT):
                    unknown.add(meter)
                else:
                    prices[meter] = price * (1 + _on_top(plan.components, component.name))
    return Ceilings(prices, frozenset(unknown), frozenset(marked_up - unknown))


def _of_metric(component: Component, metric: str) -> Decimal | None:
    match component:
        case PerUnit():
            return _highest((it.price for it in component.prices), component.per)
        case Graduated() | Volume() | Included():
            return _of_tiers(component.tiers, component.per)
        case Flat():
            return max(_of_tiers(it.tiers, it.per) for it in component.allowances if it.metric == metric)
        case Matrix():
            return max((_of_tiers(cell.tiers, cell.per) for cell in component.cells), default=Decimal(0))
        case Package():
            return decimal_of(Fraction(component.price) / Fraction(component.size))
        case Percentage():
            return component.percent / 100
        case CostPlus() if component.costs is not None:
            return _marked_up(component, _highest((it.price for it in component.costs.prices), component.costs.per))
    return None


def _marked_up(component: CostPlus, cost: Decimal) -> Decimal:
    return cost * (1 + component.markup / 100) + component.fee / component.per


def _of_tiers(tiers: Sequence[Tier], per: Decimal) -> Decimal:
    return _highest((it.price for it in tiers), per)


def _highest(prices: Iterable[Decimal], per: Decimal) -> Decimal:
    return max(prices, default=Decimal(0)) / per


def _on_top(components: Iterable[Component], name: str) -> Decimal:
    """The part that percentages of this component put on top of it."""
    found = (it.percent for it in components if isinstance(it, Percentage) and name in it.of)
    return sum(found, Decimal(0)) / 100
