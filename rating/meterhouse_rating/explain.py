"""A rated line's explanation in sentences: where its price stands, the arithmetic, the rounding, the credits."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from meterhouse_rating.layout import money, number, unit
from meterhouse_rating.periods import Period
from meterhouse_rating.results import Row
from meterhouse_store.numbers import D


def as_text(line: Row) -> str:
    """A heading and the sentences; `line` is a row of `rated_lines` with its rating's customer_id, period and state."""
    currency = line["currency"]
    used = f"{number(line['quantity'])} {unit(line['unit'], line['quantity'])}, " if line["unit"] else ""
    period = Period(line["period_start"], line["period_end"])
    text = [
        f"{line['description']}: {used}{money(line['amount_minor'], currency)} {currency}",
        f"  Line {line['line_id']}",
        f"  of {line['customer_id']} for {period}, {line['state']}.",
    ]
    return "\n".join([*text, *(f"  {sentence}" for sentence in sentences(line))])


def sentences(line: Row) -> list[str]:
    """What the amount of a row of `rated_lines` comes from: price, arithmetic, credits, discounts, tax, rounding."""
    explanation, currency = line["explanation"], line["currency"]
    text = []
    if price := explanation.get("price"):
        text.append(
            f"Priced by {price['component']} of the plan {price['plan']}: price book {price['book']}, "
            f"version {price['version']}, line {price['line']}"
            + (f" of the customer's own price {price['override'][:12]}." if "override" in price else ".")
        )
    text += [
        f"{number(D(part))} of it {'is' if D(part) == 1 else 'are'} {meter}."
        for meter, part in explanation.get("meters", {}).items()
    ]
    if "balance_before" in explanation:
        text.append(f"Credits before: {number(D(explanation['balance_before']))} {currency}.")
    conversion = explanation.get("conversion")
    priced_in = currency if conversion is None else conversion["currency"]
    text += [said(step, priced_in) for step in explanation["steps"]]
    if conversion is not None:
        rate = f"{conversion['rate']} {currency} (line {conversion['line']}, from {conversion['valid_from'][:10]} on)"
        text.append(f"{number(D(conversion['amount']))} {priced_in} at {rate}.")
    if "balance_after" in explanation:
        text.append(f"Credits left: {number(D(explanation['balance_after']))} {currency}.")
    if "credits" in explanation:
        text.append(f"Grants credits of {number(D(explanation['credits']))} {currency}.")
    if "discount" in explanation:
        why = f"agreement {explanation['discount'][:12]}"
        if budget := explanation.get("budget"):
            why = f"the cap of the budget {budget} (`meterhouse budgets show CUSTOMER`)"
        text.append(f"Taken off {explanation['order']}, by {why}.")
    if tax := explanation.get("tax"):
        text.append(f"Tax: {tax['behaviour'] or 'unspecified'}, code {tax['code'] or 'none'}.")
    if "amount_exact" in explanation:
        exact = number(D(explanation["amount_exact"]))
        # A top-up needs no rounding.
        how = f", rounded {_rounding(explanation['rounding'])}: " if "rounding" in explanation else ": "
        if "corrects" in explanation:
            how = ", of two amounts that were rounded by themselves: "
        text.append(f"Exactly {exact} {currency}{how}{explanation['amount']}.")
    return text


def _rounding(told: str) -> str:
    """`half_even to 0.01 USD` is half to even, to 0.01 USD."""
    mode, _, rest = told.partition(" ")
    return f"{'half to even' if mode == 'half_even' else mode.replace('_', ' ')}, {rest}"


def said(step: Mapping[str, Any], currency: str) -> str:
    """One step in words: the first of its keys that says what kind of step it is."""
    for key, say in _SAYINGS.items():
        if key in step:
            return say(step, currency)
    return _units(step, currency)


def _amount(step: Mapping[str, Any], currency: str) -> str:
    return f"{number(D(step['amount']))} {currency}"


def _units(step: Mapping[str, Any], currency: str) -> str:
    quantity = number(D(step["quantity"]))
    per = "" if step["per"] == "1" else f" per {number(D(step['per']))}"
    line = f" (line {step['book_line']})" if "book_line" in step else ""
    cost = f"Costs {number(D(step['cost']))} {currency}: " if "cost" in step else ""
    return f"{cost}{quantity} at {step['price']} {currency}{per}{_tier(step)}: {_amount(step, currency)}{line}."


def _tier(step: Mapping[str, Any]) -> str:
    lower, dots, upper = str(step.get("tier", "")).partition("..")
    if not dots:
        return ""
    beyond = f"beyond {number(D(lower))}"
    return f", {beyond}" if not upper else f", {beyond} up to {number(D(upper))}"


def _share(step: Mapping[str, Any], currency: str) -> str:
    if "minimum" in step:
        return f"{_amount(step, currency)} of the minimum of {step['minimum']} {currency}, for {step['share']}."
    what = f"{number(D(step['quantity']))} at {step['price']} {currency}"
    return f"{what} from {step['from']} to {step['to']}, {step['share']}: {_amount(step, currency)}."


def _packages(step: Mapping[str, Any], currency: str) -> str:
    packages = f"{number(D(step['packages']))} packages of {number(D(step['size']))} at {step['price']} {currency}"
    return f"{number(D(step['quantity']))} in {packages}: {_amount(step, currency)} (line {step['book_line']})."


def _formula(step: Mapping[str, Any], currency: str) -> str:
    inputs = ", ".join(f"{name} {number(D(value))}" for name, value in step["inputs"].items())
    return f"{step['formula']} with {inputs}: {_amount(step, currency)}."


def _no_quantity(step: Mapping[str, Any], _currency: str) -> str:
    name = step["no_quantity"]
    return f"No quantity of {name} is recorded: `meterhouse contracts quantity CUSTOMER {name} NUMBER`."


def _off(step: Mapping[str, Any], currency: str) -> str:
    percent = f"{step['percent']} % of {step['money']} {currency}: " if "percent" in step else ""
    return f"Off {step['off']}: {percent}{_amount(step, currency)}."


def _included(step: Mapping[str, Any], currency: str) -> str:
    return f"{number(D(step['quantity']))} are within the included {number(D(step['included']))}: 0 {currency}."


def _asked(step: Mapping[str, Any], currency: str) -> str:
    per = "" if step["per"] == "1" else f" per {number(D(step['per']))}"
    what = f"The provider asks {number(D(step['quantity']))} at {step['price']} {step.get('currency', currency)}{per}"
    if "rate" in step:
        money = f"{number(D(step['cost']))} {step['currency']}"
        what += f": {money} at {step['rate']} {currency} (line {step['rate_line']})"
    return f"{what}: {_amount(step, currency)} ({step['asked_by']})."


_SAYINGS: Final[dict[str, Callable[[Mapping[str, Any], str], str]]] = {
    "asked_by": _asked,
    "comes_to": lambda it, money: f"{it['comes_to']} comes to {_amount(it, money)} by what is known now.",
    "billed_so_far": lambda it, money: f"Less what was billed of it so far: {_amount(it, money)}.",
    "restored": lambda it, money: f"Grant {it['restored'][:12]} gets {_amount(it, money)} back.",
    "pays": lambda it, money: f"Pays {it['amount']} {money} of {it['pays']}.",
    "already_rated_this_month": lambda it, _: (
        f"{number(D(it['already_rated_this_month']))} were rated earlier this month."
    ),
    "earlier_this_month": lambda it, money: (
        f"Less what {number(D(it['earlier_this_month']))} came to earlier this month: {_amount(it, money)}."
    ),
    "billed_before": lambda it, money: f"Less what was billed before for {it['billed_before']}: {_amount(it, money)}.",
    "no_quantity": _no_quantity,
    "included": _included,
    "fee": lambda it, money: f"The fee of the tier{_tier(it)}: {_amount(it, money)} (line {it['book_line']}).",
    "packages": _packages,
    "share": _share,
    "minimum": lambda it, money: f"The minimum is {_amount(it, money)}.",
    "spent": lambda it, money: f"The other components come to {number(D(it['spent']))} {money}.",
    "formula": _formula,
    "off": _off,
    "percent": lambda it, money: f"{it['percent']} % of {number(D(it['money']))} {money}: {_amount(it, money)}.",
    "fixed": lambda it, money: f"{it['times']} times {it['fixed']} {money}: {_amount(it, money)}.",
    "at_least": lambda it, money: f"At least {it['at_least']} {money}: {_amount(it, money)} more.",
    "at_most": lambda it, money: f"At most {it['at_most']} {money}: {_amount(it, money)}.",
    "per": _units,
}
"""Key of a step -> what it says, in a currency; the first key that a step has decides."""
