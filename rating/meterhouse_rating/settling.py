"""What lines settle for other parts of their month, beside quantities and amounts; and corrections as such lines.

A part of a month goes on from what the other parts come to, corrections included: so a correction tells by how much
what its line settles differs, as `settles`, and counts as one more line of the rating that it corrects.
"""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from meterhouse_rating.discounts import shares_told
from meterhouse_rating.money import of_minor, to_minor
from meterhouse_rating.rated import CORRECTION, CREDIT_RESTORED
from meterhouse_store.numbers import D, plain

Row = Mapping[Any, Any]
"""A row of `rated_lines`, or of the lines of a credit note."""

Sums = dict[tuple[str, str], Decimal]
"""By what is settled (`lines`, `quantities`, `events`, `in_plan`, `off`) and the name of what it is of."""

_CORRECTED: Final = " (correction of "


def settled_by(line: Row) -> Sums:
    """What a line settles: quantities of metrics that its own quantity does not say (and `lines`: that it is there),
    events, what it comes to in the plan's currency where it is converted, and what a discount takes off each line, in
    major units.
    """
    explanation = line["explanation"]
    if line["kind"] == CORRECTION:
        told = explanation.get("settles", {})
        return {(what, name): D(it) for what, found in told.items() for name, it in found.items() if what != "rate"}
    found = {("quantities", name): D(it) for name, it in explanation.get("quantities", {}).items()}
    if "quantities" in explanation:
        found["lines", line["metric"]] = Decimal(1)
    if "events" in explanation:
        found["events", line["metric"]] = Decimal(explanation["events"])
    if "conversion" in explanation:
        found["in_plan", explanation["conversion"]["currency"]] = in_plan(line, explanation["conversion"]["currency"])
    for name, minor in shares_told(line) if line["kind"] == "discount" else ():
        found["off", name] = found.get(("off", name), Decimal(0)) + of_minor(minor, line["currency"])
    return found


def told(line: Row, changed: Sums) -> dict[str, dict[str, str]]:
    """How a correction says by how much what is settled is `changed`; `line`: as it is now, or as it was."""
    found: dict[str, dict[str, str]] = {}
    for (what, name), it in sorted(changed.items()):
        if it:
            found.setdefault(what, {})[name] = plain(it)
    rate = line["explanation"].get("settles", {}).get("rate", {})
    if "conversion" in line["explanation"]:
        rate = {line["explanation"]["conversion"]["currency"]: line["explanation"]["conversion"]["rate"]}
    return {**found, "rate": rate} if found and rate else found


def in_plan(line: Row, currency: str) -> Decimal:
    """What the line comes to, in the plan's currency."""
    conversion = line["explanation"].get("conversion")
    if conversion is None:
        return of_minor(line["amount_minor"], currency)
    return of_minor(to_minor(D(conversion["amount"]), currency, "half_even"), currency)


def uncorrected(description: str) -> str:
    """What the line is called that a correction is of."""
    return description.partition(_CORRECTED)[0]


def corrected(description: str, period: object) -> str:
    """What a correction of the line is called."""
    return f"{uncorrected(description)}{_CORRECTED}{period})"


def settling(lines: Iterable[Row]) -> Iterator[Row]:
    """The lines, and each correction among them as a line of the rating that it corrects.

    One from before corrections said what they settle settles nothing, as it was then.
    """
    for line in lines:
        if line["kind"] == CORRECTION:
            if "settles" in line["explanation"]:
                yield _of_its_month(line)
        elif line["kind"] != CREDIT_RESTORED:
            yield line


def _of_its_month(line: Row) -> Row:
    explanation = line["explanation"]
    corrects, settles = explanation["corrects"], explanation["settles"]
    made: dict[str, Any] = {"price": explanation["price"], "meters": explanation["corrected_meters"]}
    if "quantities" in settles or "lines" in settles:
        made["quantities"] = settles.get("quantities", {})
        made["lines"] = int(settles.get("lines", {}).get(line["metric"], 0))
    if "events" in settles:
        made["events"] = int(settles["events"][line["metric"]])
    for currency, rate in settles.get("rate", {}).items():
        made["conversion"] = {"amount": settles.get("in_plan", {}).get(currency, "0"), "rate": rate}
    if corrects["kind"] == "discount":
        made |= {"discount": line["dimensions"]["discount"], "order": corrects["order"]}
        made |= {"budget": corrects["budget"]} if "budget" in corrects else {}
        made["steps"] = [{"off": name, "amount": plain(-D(it))} for name, it in settles.get("off", {}).items()]
    own = {"rating_id": corrects["rating"], "kind": corrects["kind"], "description": uncorrected(line["description"])}
    return {**line, **own, "explanation": made}
