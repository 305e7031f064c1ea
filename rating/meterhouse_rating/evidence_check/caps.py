"""What is above the hard caps of a customer's budgets: the lines again, as if usage had ended at the caps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from . import amounts, money
from .amounts import Carried
from .findings import number, sha256, whole
from .prices import Part, Prices
from .usage import Group, count, inputs_of

_NANO: Final = 10**9
"""Quantities have nine digits after the point at most."""
_CARRIED: Final = "how much less an invoice is by caps"

Amounts = dict[tuple[str, str], int]
"""By component and kind of line, in minor units."""


@dataclass(frozen=True)
class Above:
    """What is not billed of some components because of a cap, in minor units; `name` of the discount that it is."""

    name: str
    cap: str
    components: tuple[str, ...]
    minor: int


def above(prices: Prices, groups: Sequence[Group], rating: Mapping[str, Any]) -> list[Above]:
    """What each cap that holds takes off: those of units first, then of money. Raises Carried."""
    told = rating["caps"]
    if rating["period_start"] != rating["month"] and "earlier" not in told:
        raise Carried(f"{_CARRIED}, of a month in parts, in packs that do not say what its other parts used")
    earlier = told.get("earlier", {"meters": {}, "minor": 0})
    metered = tuple(told["metered"])
    usage, now = list(groups), _stated(rating)
    found: list[Above] = []
    touched: set[str] = set()
    capped_before = less_by_money = 0
    for cap in sorted(told["held"], key=lambda it: (not it["of"], it["name"])):
        limit, off = number(cap["limit"]), whole(earlier.get("off", {}).get(cap["name"], 0))
        if cap["of"]:
            usage, meters = _ended_at(prices, usage, cap["of"], limit, told["by"], earlier["meters"])
            touched |= meters  # what is a percentage of several is of all that ended
            less = _priced(prices, usage, touched, now, rating) if meters else now
            over, now = _by_component(_sums(now), _sums(less), metered), less
        else:
            used = sum(minor for (_, kind), minor in now.items() if kind == "usage") - less_by_money
            month = whole(earlier["minor"]) - capped_before + used
            most = max(0, month - money.minor(limit, rating["currency"], prices.rounding)) - off
            over = {metered: max(min(most, max(0, used)), min(0, used))}
            less_by_money += over[metered]
        capped_before += off
        for of, minor in over.items():
            if minor > 0 or (minor and not cap["of"]):
                name = sha256(["cap", cap["name"], cap["of"], cap["limit"], told["period_start"], *of])
                found.append(Above(name, cap["name"], of, minor))
    return found


def _stated(rating: Mapping[str, Any]) -> Amounts:
    """What the lines come to, which are checked one by one."""
    found: Amounts = {}
    for line in rating["lines"]:
        if line["kind"] in ("usage", "flat"):
            key = line["component"], line["kind"]
            found[key] = found.get(key, 0) + whole(line["amount_minor"])
    return found


def _sums(of: Amounts) -> dict[str, int]:
    found: dict[str, int] = {}
    for (component, _), minor in of.items():
        found[component] = found.get(component, 0) + minor
    return found


def _ended_at(
    prices: Prices, groups: list[Group], of: str, limit: Fraction, by: Sequence[str], earlier: Mapping[str, str]
) -> tuple[list[Group], set[str]]:
    """The usage if it had ended at the limit, in proportion, and the meters of which it then is less.

    `earlier`: what the month's other parts used, per meter.
    """
    meters, free = _meters(prices, of), prices.free_statuses(None, None)
    covered = [it for it in groups if it.meter in meters and not it.trial and it.status not in free]
    rows: dict[tuple[str, ...], Group] = {}
    for it in covered:
        dimensions = {name: it.dimensions.get(name, "") for name in by}
        key = (it.meter, it.status, *dimensions.values(), it.task)
        row = rows.setdefault(key, Group(it.meter, it.status, it.task, False, dimensions))
        row.events += it.events
        row.quantity += it.quantity
    ordered = [rows[key] for key in sorted(rows)]
    used = sum((number(quantity) for meter, quantity in earlier.items() if meter in meters), Fraction(0))
    units, room = [int(it.quantity * _NANO) for it in ordered], int(max(Fraction(0), limit - used) * _NANO)
    if sum(units) <= room or any(it < 0 for it in units):
        return groups, set()
    step = _NANO if room % _NANO == 0 and all(it % _NANO == 0 for it in units) else 1
    kept = money.shares(room, units, step) if room else [0] * len(units)
    less = [replace(row, quantity=Fraction(amount, _NANO)) for row, amount in zip(ordered, kept, strict=True)]
    others = [it for it in groups if all(it is not one for one in covered)]
    return [*others, *less], {it.meter for it in covered}


def _meters(prices: Prices, of: str) -> set[str]:
    """The meters that a cap counts: those of a metric that sums them, or one that no metric measures otherwise."""
    metrics = prices.metrics()
    if of in metrics:
        return set(prices.meters(of)) if prices.aggregate(of) == "sum" else set()
    return {of} - {meter for it in metrics if prices.aggregate(it) != "sum" for meter in prices.meters(it)}


def _priced(prices: Prices, groups: list[Group], touched: set[str], now: Amounts, rating: Mapping[str, Any]) -> Amounts:
    """What the lines come to with less usage of some meters; those of others stay. Raises Carried."""
    counted, _ = count(prices, groups, rating["left"])
    found = dict(now)
    money_of = _in_plan(prices, rating["lines"])
    fees = _in_plan(prices, [it for it in rating["lines"] if it["kind"] != "usage"])
    changed = {
        name
        for name, part in prices.parts.items()
        if any(touched.intersection(prices.meters(metric)) for metric in part.metrics())
    }
    for name in changed:
        part = prices.parts[name]
        if part.marks_up_costs:
            raise Carried(f"{_CARRIED} of units whose costs are marked up")
        lines = [it for it in rating["lines"] if it["component"] == name and it["kind"] == "usage"]
        minor = 0
        money_of[name] = fees.get(name, Fraction(0))
        for line in lines:
            metric = line["metric"]
            key = name, metric, tuple((it, line["dimensions"].get(it, "")) for it in part.by)
            it = counted.get(key)
            exact = Fraction(0)
            start = went_on_from(line)
            check_whole(part, line)
            if part.model == "formula":
                exact = amounts.formula(part.node.text("amount"), inputs_of(prices, part, groups))
            elif it is not None and it.quantity is not None:
                more = start, it.events, prices.each(part)
                exact = amounts.usage_amount(part, metric, dict(key[2]), it.quantity, *more)
            minor += _minor(prices, exact, line, rating)
            money_of[name] += money.major(money.minor(exact, part.currency, prices.rounding), part.currency)
        found[name, "usage"] = minor
    for name, part in prices.parts.items():
        if part.model == "percentage" and not part.metrics():
            found |= _percentage(prices, part, name, money_of, changed, rating)
    return found


def check_whole(part: Part, line: Mapping[str, Any]) -> None:
    """Raises Carried where a line is what the month comes to, less what that was earlier, if only for events of 0."""
    went_on = any("earlier_this_month" in it for it in line["explanation"]["steps"])
    if went_on and part.model in ("formula", "percentage"):
        raise Carried(f"what a {part.model} came to earlier in the month")


def went_on_from(line: Mapping[str, Any]) -> Fraction:
    """How much of the month a usage line says that is on lines of earlier ratings."""
    said = Fraction(0)
    for step in line["explanation"]["steps"]:
        said = number(step.get("already_rated_this_month", step.get("earlier_this_month", "0"))) or said
    return said


def _percentage(
    prices: Prices, part: Part, name: str, money_of: dict[str, Fraction], changed: set[str], rating: Mapping[str, Any]
) -> Amounts:
    """A percentage of components that come to less, or nothing where it is of others."""
    of = [f"{part.addon}.{it}" if part.addon else it for it in part.node.texts("of")]
    line = next((it for it in rating["lines"] if it["component"] == name and it["kind"] == "flat"), None)
    if line is None or not changed.intersection(of):
        return {}
    if rating["period_start"] != rating["month"]:
        raise Carried("percentages of what is above caps, in a month that was rated in parts")
    base = sum((money_of.get(it, Fraction(0)) for it in of), Fraction(0))
    exact = amounts.percentage(part, base, 1 if base else 0)
    changed.add(name)
    money_of[name] = money.major(money.minor(exact, part.currency, prices.rounding), part.currency)
    return {(name, "flat"): _minor(prices, exact, line, rating)}


def _in_plan(prices: Prices, lines: Sequence[Mapping[str, Any]]) -> dict[str, Fraction]:
    """What components come to on these lines, in the plan's currency."""
    found: dict[str, Fraction] = {}
    for line in lines:
        part = prices.parts.get(line["component"])
        if part is not None:
            conversion = line["explanation"].get("conversion")
            exact = number(line["amount_exact"] if conversion is None else conversion["amount"])
            minor = money.minor(exact, part.currency, prices.rounding)
            found[part.name] = found.get(part.name, Fraction(0)) + money.major(minor, part.currency)
    return found


def _minor(prices: Prices, exact: Fraction, line: Mapping[str, Any], rating: Mapping[str, Any]) -> int:
    currency, conversion = rating["currency"], line["explanation"].get("conversion")
    rate = (
        Fraction(1)
        if conversion is None
        else prices.rate(conversion["currency"], currency, whole(conversion["line"])) or Fraction(0)
    )
    return money.minor(exact * rate, currency, prices.rounding)


def _by_component(
    now: Mapping[str, int], less: Mapping[str, int], metered: tuple[str, ...]
) -> dict[tuple[str, ...], int]:
    """What is too much, by component; where one becomes dearer, or one without usage cheaper, in one sum."""
    over = {it: now.get(it, 0) - less.get(it, 0) for it in sorted({*now, *less}) if now.get(it, 0) != less.get(it, 0)}
    if all(minor > 0 and it in metered for it, minor in over.items()):
        return {(it,): minor for it, minor in over.items()}
    return {metered: sum(over.values())}
