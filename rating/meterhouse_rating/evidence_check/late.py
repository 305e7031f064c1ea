"""Late usage of closed periods on a rating: what credits may pay of it, from the corrections."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from . import money
from .dates import month_in
from .findings import Findings, number, whole

PAYABLE: Final = "what credits may pay of late usage, from the corrections"
_ON_NOTES: Final = "what credits may pay of late usage that is set off against credit notes"
_OFF: Final = "what of late usage discounts take off, of ratings that are not before it in the pack"


def payable(line: Mapping[str, Any], currency: str) -> int:
    """What credits may pay of a correction: of late usage all, where that is from before lines said it."""
    told = line["explanation"].get("payable")
    if told is not None:
        return money.minor(number(told), currency, "half_even")
    return whole(line["amount_minor"]) if line["metric"] else 0


def check_now(name: str, line: Mapping[str, Any], findings: Findings) -> None:
    """The arithmetic that a correction shows of its line as it is now is what that comes to."""
    now = line["explanation"].get("now")
    if now is None or not line["metric"]:
        return
    come_to = sum((number(it["amount"]) for it in now["steps"] if "amount" in it), Fraction(0))
    if "conversion" in now:
        findings.equal(f"{name}: what it comes to now, converted", number(now["conversion"]["amount"]), come_to)
        come_to *= number(now["conversion"]["rate"])
    said = [number(it["amount"]) for it in line["explanation"]["steps"] if "comes_to" in it]
    findings.equal(f"{name}: what it comes to now", sum(said, Fraction(0)), come_to)


def check(rating: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """What credits may pay of each month's corrections is what usage comes to more, after what is given back."""
    currency, months = rating["currency"], dict[str, list[Mapping[str, Any]]]()
    for line in rating["lines"]:
        if line["kind"] in ("correction", "credit_restored"):
            start = line["explanation"]["corrects"]["period"].partition("..")[0]
            months.setdefault(month_in(start, rating["zone"]), []).append(line)
    for month, lines in sorted(months.items()):
        late = [it for it in lines if it["kind"] == "correction"]
        told = sum(payable(it, currency) for it in late if "payable" in it["explanation"])
        if not any("payable" in it["explanation"] for it in lines):
            continue
        owed: dict[str, int] = {}
        back = 0
        for line in lines:
            name = line["explanation"]["corrects"]["rating"]
            owed[name] = owed.get(name, 0) + _of_usage(line, rating, earlier, findings)
            back += whole(line["amount_minor"]) if line["kind"] == "credit_restored" else 0
        most = min(sum(max(0, it) for it in owed.values()), max(sum(owed.values()), back))
        if 0 <= told < most:
            findings.carry(_ON_NOTES)
        elif findings.equal(f"what credits may pay of the late usage of {month}", told, most):
            findings.done(PAYABLE)


def _of_usage(
    line: Mapping[str, Any], rating: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], findings: Findings
) -> int:
    """What is usage of a correction, or credits that come back, in minor units."""
    if line["kind"] == "credit_restored" or line["metric"]:
        return whole(line["amount_minor"])
    explanation, currency = line["explanation"], rating["currency"]
    said, off = number(explanation.get("of_usage", "0")), explanation.get("settles", {}).get("off", {})
    corrects = explanation["corrects"]
    closed = next((it for it in earlier if it["rating_id"] == corrects["rating"]), None)
    if closed is None:
        if off:
            findings.carry(_OFF)
    else:
        usage = {it["description"] for it in closed["lines"] if it["kind"] == "usage"}
        usage |= {
            it["description"].partition(" (correction of ")[0]
            for other in (*earlier, rating)
            for it in other["lines"]
            if it["metric"] and it["explanation"].get("corrects", {}).get("rating") == corrects["rating"]
        }
        taken = sum((number(it) for name, it in off.items() if name in usage), Fraction(0))
        findings.equal(f"what is usage of {line['description']}", said, -taken)
    return money.minor(said, currency, "half_even")
