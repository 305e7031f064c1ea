"""A rated line's explanation in sentences: where its price stands, the arithmetic, the rounding, the credits."""

from collections.abc import Mapping
from typing import Any

from meterhouse_rating.layout import money, number, unit
from meterhouse_rating.periods import Period
from meterhouse_rating.results import Row
from meterhouse_store.numbers import D


def as_text(line: Row) -> str:
    """The sentences; `line` is a row of `rated_lines` with its rating's customer_id, period and state."""
    explanation, currency = line["explanation"], line["currency"]
    used = f"{number(line['quantity'])} {unit(line['unit'], line['quantity'])}, " if line["unit"] else ""
    period = Period(line["period_start"], line["period_end"])
    text = [
        f"{line['description']}: {used}{money(line['amount_minor'], currency)} {currency}",
        f"  Line {line['line_id']}",
        f"  of {line['customer_id']} for {period}, {line['state']}.",
    ]
    if price := explanation.get("price"):
        text.append(
            f"  Priced by {price['component']} of the plan {price['plan']}: price book {price['book']}, "
            f"version {price['version']}, line {price['line']}."
        )
    text += [
        f"  {number(D(part))} of it {'is' if D(part) == 1 else 'are'} {meter}."
        for meter, part in explanation.get("meters", {}).items()
    ]
    if "balance_before" in explanation:
        text.append(f"  Credits before: {number(D(explanation['balance_before']))} {currency}.")
    text += [f"  {_step(step, currency)}" for step in explanation["steps"]]
    if "balance_after" in explanation:
        text.append(f"  Credits left: {number(D(explanation['balance_after']))} {currency}.")
    if "credits" in explanation:
        text.append(f"  Grants credits of {number(D(explanation['credits']))} {currency}.")
    if "amount_exact" in explanation:
        exact = number(D(explanation["amount_exact"]))
        text.append(f"  Exactly {exact} {currency}, rounded {explanation['rounding']}: {explanation['amount']}.")
    return "\n".join(text)


def _step(step: Mapping[str, Any], currency: str) -> str:
    if "pays" in step:
        return f"Pays {step['amount']} {currency} of {step['pays']}."
    if "already_rated_this_month" in step:
        return f"{number(D(step['already_rated_this_month']))} were rated earlier this month."
    quantity = number(D(step["quantity"]))
    if "included" in step:
        return f"{quantity} are within the included {number(D(step['included']))}: 0 {currency}."
    per = "" if step["per"] == "1" else f" per {number(D(step['per']))}"
    lower, dots, upper = str(step.get("tier", "")).partition("..")
    where = ""
    if dots:
        beyond = f"beyond {number(D(lower))}"
        where = f", {beyond}" if not upper else f", {beyond} up to {number(D(upper))}"
    line = f" (line {step['book_line']})" if "book_line" in step else ""
    return f"{quantity} at {step['price']} {currency}{per}{where}: {number(D(step['amount']))} {currency}{line}."
