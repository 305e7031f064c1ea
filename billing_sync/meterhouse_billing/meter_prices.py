"""Stripe prices of a plan, where Stripe can express the plan exactly; pure.

Stripe multiplies a whole number of units by a price of at most 12 decimals (in its smallest unit), and rounds each
line of an invoice by itself, a half upwards; of graduated tiers each is a line. Ratings round the component's sum once,
by the book's rounding. So both come to the same amount exactly when:

- quantities are whole numbers that add up, whatever call they are of;
- the book rounds half up, or no price has a fraction of the smallest unit;
- each tier that has an end comes to a whole number of smallest units, so that only the last one can have a fraction.

https://docs.stripe.com/billing/subscriptions/decimal-amounts,
https://docs.stripe.com/subscriptions/pricing-models/tiered-pricing
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from meterhouse_billing.gateway import BillingError
from meterhouse_rating.book import Book, Options, Plan
from meterhouse_rating.charges import Component
from meterhouse_rating.ids import digest
from meterhouse_rating.metrics import ALL_TASKS, COUNT, SUM
from meterhouse_rating.models.flat import Flat
from meterhouse_rating.models.graduated import Graduated
from meterhouse_rating.models.per_unit import PerUnit
from meterhouse_rating.models.volume import Volume
from meterhouse_rating.money import exact
from meterhouse_rating.tiers import Tier
from meterhouse_store.currencies import MINOR_DIGITS
from meterhouse_store.meters import Meter
from meterhouse_store.numbers import plain

MAX_DECIMALS: Final = 12
HALF_UP: Final = "half_up"
_UNLIKE: Final = frozenset({"BHD", "ISK", "JOD", "KWD", "MGA", "OMR", "TND", "UGX"})
"""Currencies whose smallest unit at Stripe is not the one that ratings round to."""


class NotExpressible(BillingError):
    """A plan that Stripe's prices cannot express exactly; `reasons` are all that stands against it."""

    def __init__(self, plan: str, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        listed = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(
            f"Stripe cannot bill the plan {plan} to the cent as it is rated here:\n{listed}\n"
            "Change the price book, or bill such customers by invoices (`meterhouse bill driver CUSTOMER invoices`)"
        )


@dataclass(frozen=True)
class Item:
    """One Stripe price: a fee (`event_name` is None), or one of a meter's usage.

    `price`: parameters of prices.create without product and meter. A metered item has all that usage is found by.
    """

    component: str
    title: str
    price: Mapping[str, Any]
    tax_code: str | None = None
    metric: str = ""
    aggregate: str = SUM
    meters: tuple[str, ...] = ()
    free_statuses: tuple[str, ...] = ()
    event_name: str | None = None

    @property
    def name(self) -> str:
        """What of the plan it is: a component may have a fee and prices of several metrics."""
        return f"{self.component}/{self.metric}" if self.metric else self.component


def offer(book: Book, plan: Plan, currency: str, declared: Mapping[str, Meter], namespace: str) -> tuple[Item, ...]:
    """The prices of a plan for customers who pay in `currency`. Raises NotExpressible with all reasons."""
    reader = _Reader(book, plan, declared, namespace)
    if plan.currency != currency:
        reader.refuse("", f"it is in {plan.currency}, the customer pays in {currency}: Stripe converts nothing")
    if plan.currency in _UNLIKE:
        reader.refuse("", f"Stripe's smallest unit of {plan.currency} is not the one that is rated in")
    if plan.trial_days:
        reader.refuse("", f"a trial of {plan.trial_days} days ends within a month, Stripe's meters count all of it")
    with exact():
        items = [item for component in plan.components for item in reader.items(component)]
    if not items and not reader.reasons:
        reader.refuse("", "it has no prices")
    if reader.reasons:
        raise NotExpressible(plan.name, reader.reasons)
    return tuple(items)


@dataclass
class _Reader:
    book: Book
    plan: Plan
    declared: Mapping[str, Meter]
    namespace: str
    reasons: list[str] = field(default_factory=list)

    def refuse(self, where: str, why: str) -> None:
        self.reasons.append(f"{where}: {why}" if where else why)

    def items(self, component: Component) -> list[Item]:
        options = self.plan.options.get(component.name, Options(component.name))
        name = component.name
        if isinstance(component, PerUnit):
            if component.dimensions:
                by = ", ".join(component.dimensions)
                self.refuse(name, f"a price by {by}: each combination is rounded by itself here, and Stripe has one")
                return []
            price = self._unit(name, component.prices[0].price, component.per)
            made = {"billing_scheme": "per_unit", "unit_amount_decimal": price}
            return [self._metered(component, options, component.metric, made)]
        if isinstance(component, Graduated):
            tiers = self._graduated(name, component.tiers, component.per, Decimal(0))
            return [self._metered(component, options, component.metric, _tiered("graduated", tiers))]
        if isinstance(component, Volume):
            tiers = self._tiers(name, component.tiers, component.per)
            return [self._metered(component, options, component.metric, _tiered("volume", tiers))]
        if isinstance(component, Flat):
            return self._flat(component, options)
        model = type(component).__name__.lower()
        self.refuse(name, f"Stripe has no price like {model}")
        return []

    def _flat(self, component: Flat, options: Options) -> list[Item]:
        fee = {
            "billing_scheme": "per_unit",
            "unit_amount_decimal": self._whole(component.name, component.price, "the fee"),
            "recurring": {"interval": "month", "usage_type": "licensed"},
        }
        items = [Item(component.name, options.title, self._said(fee, options), self._tax_code(options))]
        for allowance in component.allowances:
            name = f"{component.name}/{allowance.metric}"
            tiers = self._graduated(name, allowance.tiers, allowance.per, allowance.included)
            items.append(self._metered(component, options, allowance.metric, _tiered("graduated", tiers)))
        return items

    def _metered(self, component: Component, options: Options, metric_name: str, price: dict[str, Any]) -> Item:
        metric = self.book.metrics[metric_name]
        if metric.aggregate not in (SUM, COUNT):
            self.refuse(
                component.name, f"{metric_name} is {metric.aggregate} over the month, hours do not add up to it"
            )
        if self.book.task_rule(metric, options) != ALL_TASKS:
            self.refuse(component.name, f"{metric_name} is billed by how tasks end, which is known later than usage")
        for meter in metric.meters:
            if metric.aggregate == SUM and (meter not in self.declared or self.declared[meter].values != "integer"):
                self.refuse(component.name, f"{meter} is no meter of whole numbers, and Stripe's meters take no others")
        free = self.book.free_statuses(metric, options)
        price["recurring"] = {"interval": "month", "usage_type": "metered"}
        return Item(
            component.name,
            options.title,
            self._said(price, options),
            self._tax_code(options),
            metric_name,
            metric.aggregate,
            metric.meters,
            free,
            event_name(self.namespace, metric_name, metric.aggregate, metric.meters, free),
        )

    def _said(self, price: dict[str, Any], options: Options) -> dict[str, Any]:
        behaviour = options.tax.behaviour or self.book.tax.behaviour
        tax = {"tax_behavior": behaviour} if behaviour else {}
        return {"currency": self.plan.currency.lower(), "nickname": options.title, **price, **tax}

    def _tax_code(self, options: Options) -> str | None:
        return options.tax.code or self.book.tax.code

    def _graduated(self, name: str, tiers: Sequence[Tier], per: Decimal, included: Decimal) -> list[dict[str, Any]]:
        """Tiers that count from behind what is included; each with an end has to come to whole smallest units."""
        below = Decimal(0)
        for tier in tiers:
            if tier.up_to is not None:
                self._whole(name, (tier.up_to - below) * tier.price / per, f"the tier up to {plain(tier.up_to)}")
                below = tier.up_to
        free = []
        if included:
            free = [{"up_to": self._edge(name, included), "unit_amount_decimal": "0"}]
        moved = [
            Tier(None if tier.up_to is None else tier.up_to + included, tier.price, tier.line, tier.flat)
            for tier in tiers
        ]
        made = [*free, *self._tiers(name, moved, per)]
        if "flat_amount" in made[0]:
            self.refuse(name, "its first tier has a flat fee, which Stripe also charges where nothing is used")
        return made

    def _tiers(self, name: str, tiers: Sequence[Tier], per: Decimal) -> list[dict[str, Any]]:
        made = []
        for tier in tiers:
            up_to = "inf" if tier.up_to is None else self._edge(name, tier.up_to)
            entry: dict[str, Any] = {"up_to": up_to, "unit_amount_decimal": self._unit(name, tier.price, per)}
            if tier.flat:
                entry["flat_amount"] = int(self._whole(name, tier.flat, "the flat fee of a tier"))
            made.append(entry)
        return made

    def _edge(self, name: str, edge: Decimal) -> int:
        if edge != edge.to_integral_value():
            self.refuse(name, f"a tier ends at {plain(edge)}, Stripe's end at whole numbers")
        return int(edge)

    def _unit(self, name: str, price: Decimal, per: Decimal) -> str:
        """A price per unit in smallest units, as text."""
        amount = price.scaleb(MINOR_DIGITS[self.plan.currency]) / per
        if amount.scaleb(MAX_DECIMALS) % 1:
            self.refuse(name, f"{plain(price)} per {plain(per)} has more than {MAX_DECIMALS} decimals of a cent a unit")
        if self.book.rounding != HALF_UP and amount != amount.to_integral_value():
            self.refuse(
                name,
                f"{plain(price)} per {plain(per)} can come to half a cent, which Stripe rounds up and the book by "
                f"{self.book.rounding}: write `rounding: {HALF_UP}`",
            )
        return plain(amount)

    def _whole(self, name: str, amount: Decimal, what: str) -> str:
        units = amount.scaleb(MINOR_DIGITS[self.plan.currency])
        if units != units.to_integral_value():
            self.refuse(name, f"{what} comes to {plain(amount)} {self.plan.currency}, which is no amount to be paid")
        return plain(units.to_integral_value())


def event_name(namespace: str, metric: str, aggregate: str, meters: Sequence[str], free_statuses: Sequence[str]) -> str:
    """The name of a Stripe meter, at most 100 characters: the same for all plans that count the same usage."""
    counted = digest([namespace, metric, aggregate, sorted(meters), sorted(free_statuses)])
    return f"{namespace[:40]}.{metric[:40]}.{counted[:12]}"


def _tiered(mode: str, tiers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"billing_scheme": "tiered", "tiers_mode": mode, "tiers": tiers}
