"""Rated lines with their explanations: of a component's charge, a discount, a top-up of credits."""

from decimal import Decimal
from typing import Any, Final

from meterhouse_rating import discounts
from meterhouse_rating.agreements import Discount
from meterhouse_rating.book import Tax
from meterhouse_rating.charges import Charge, Component, step
from meterhouse_rating.credit_lines import grants_told, pack_grants
from meterhouse_rating.credits import Grant
from meterhouse_rating.inputs import Inputs
from meterhouse_rating.money import of_minor, show, smallest, to_minor
from meterhouse_rating.rated import RatedLine
from meterhouse_rating.sorting import options_of
from meterhouse_store.numbers import plain

TOP_UP: Final = "top_up"
"""The component of what is bought by a rule; no component of a plan is called so in earlier ratings' memory."""


def charged(inputs: Inputs, component: Component, charge: Charge) -> tuple[RatedLine, list[Grant]]:
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


def top_up(inputs: Inputs, each_minor: int, times: int) -> tuple[RatedLine, list[Grant]]:
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


def discounted(inputs: Inputs, discount: Discount, taken: discounts.Taken) -> RatedLine:
    earlier = inputs.setting.discounted.get(discount.agreement_id)
    left = inputs.setting.discounted_left.get(discount.agreement_id)
    explanation = {
        "discount": discount.agreement_id,
        **({"budget": discount.budget} if discount.budget else {}),
        "order": discounts.BEFORE_MINIMUM if discount.before_minimum else discounts.AFTER_MINIMUM,
        **({"earlier_this_month": plain(earlier)} if earlier else {}),
        **({"earlier_left": plain(left)} if left else {}),
        "steps": [dict(step) for step in taken.steps],
        "amount_exact": plain(taken.exact),
        "rounding": f"{inputs.book.rounding} to {smallest(inputs.currency)} {inputs.currency}",
        "amount": show(taken.total, inputs.currency),
    }
    key = (("discount", discount.agreement_id),)
    words = ("discount", "discounts", None, discount.name, Decimal(1), "")
    return RatedLine(*words, key, taken.exact, taken.total, explanation)


def _minor(inputs: Inputs, amount: Decimal) -> int:
    return to_minor(amount, inputs.currency, inputs.book.rounding)


def _converted(inputs: Inputs, amount: Decimal) -> Decimal:
    return amount if inputs.rate is None else amount * inputs.rate.rate
