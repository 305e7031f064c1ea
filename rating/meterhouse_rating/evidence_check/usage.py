"""Counts the events of a pack again: which line of which rating each is on, and what each line's quantity comes to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from .costs import Costs, Price
from .findings import Findings, Refused, number
from .levels import Level, latest, time_weighted, until
from .prices import LATEST, TIME_WEIGHTED, Part, Prices, matches

BY_CHOICE: Final = ("unbilled_meter", "unbilled_status", "unbilled_task", "unbilled_trial")
_NAMES: Final = ("id", "time", "known", "meter", "quantity", "status")

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""A line's name within a rating: component, metric, dimensions."""


@dataclass
class Group:
    """Events of one rating that are alike: how many, what they add up to, the largest; `asked`: so many units at what
    the provider asks for them, `unknown` where that is not known.
    """

    meter: str
    status: str
    task: str
    trial: bool
    dimensions: Mapping[str, str]
    events: int = 0
    quantity: Fraction = Fraction(0)
    largest: Fraction = Fraction(0)
    asked: dict[Price, Fraction] = field(default_factory=dict)
    unknown: bool = True
    levels: list[tuple[str, str, Fraction]] = field(default_factory=list)
    """Time, id and quantity of each event, of meters that are read as levels; also of before the period."""


@dataclass
class Counted:
    """What the events of one line come to; `quantity` None where it cannot be told from them."""

    quantity: Fraction | None
    events: int
    meters: dict[str, Fraction] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    @property
    def asked(self) -> dict[Price, Fraction]:
        """So many units at what the provider asks for them."""
        found: dict[Price, Fraction] = {}
        for it in self.groups:
            for price, units in it.asked.items():
                found[price] = found.get(price, Fraction(0)) + units
        return found


def costs_of(events: Iterable[Mapping[str, Any]], ratings: list[dict[str, Any]]) -> list[Costs | None]:
    """The costs of each rating whose prices depend on them."""
    found = [Costs.of(it) if "costs" in it else None for it in ratings]
    if any(it is not None and it.tiered for it in found):
        for event in events:
            for costs, it in zip(found, ratings, strict=True):
                if costs is not None and it["period_start"] <= str(event.get("time")) < it["period_end"]:
                    costs.look(event)
    return found


def groups_of(
    events: Iterable[Mapping[str, Any]],
    ratings: list[dict[str, Any]],
    findings: Findings,
    costs: Sequence[Costs | None] = (),
    customer: str = "",
) -> list[list[Group]]:
    """The events by rating, in groups. Each is there once, and within a rating's period. `costs`: of each rating."""
    found: list[dict[tuple[Any, ...], Group]] = [{} for _ in ratings]
    leveled = [{it["meter"] for it in rating.get("levels", ())} | set(rating.get("leveled", ())) for rating in ratings]
    last: tuple[str, ...] = ()
    for event in events:
        if missing := [name for name in _NAMES if not isinstance(event.get(name), str)]:
            raise Refused(f"an event has no {', '.join(missing)}")
        name = (event["time"], event["id"], event["meter"], str(event.get("claimed", "")))
        if name <= last:
            again = name == last
            findings.wrong(
                f"event {event['id']} is {'there twice' if again else 'not in its place'}: events are in order"
            )
        last = name
        at = next((i for i, it in enumerate(ratings) if it["period_start"] <= event["time"] < it["period_end"]), None)
        if at is None:
            findings.wrong(f"event {event['id']} of {event['time']} is in no rated period")
            continue
        if event["known"] > ratings[at]["as_of"]:
            findings.wrong(f"event {event['id']} became known after its period was rated")
        trial_end = ratings[at]["trial_end"]
        trial = trial_end is not None and event["time"] < trial_end
        dimensions = event.get("dimensions", {})
        known = costs[at] if costs else None
        asked = None if known is None else known.ask(event, customer)
        kind = (event["meter"], event["status"], event.get("task", ""), trial, None if asked is None else asked[0])
        key = (*kind, *sorted(dimensions.items()))
        quantity = number(event["quantity"])
        group = found[at].get(key)
        if group is None:
            group = Group(event["meter"], event["status"], event.get("task", ""), trial, dimensions, largest=quantity)
            found[at][key] = group
        group.events += 1
        group.quantity += quantity
        group.largest = max(group.largest, quantity)
        if event["meter"] in leveled[at]:
            level = (event["time"], event["id"], quantity)
            if not trial:
                group.levels.append(level)
            elif trial_end < ratings[at]["period_end"]:
                # It is free, and goes on behind the trial.
                kept = Group(group.meter, group.status, group.task, False, dimensions)
                found[at].setdefault(("level", *key), kept).levels.append(level)
        if asked is not None:
            group.unknown = False
            group.asked[asked[0]] = group.asked.get(asked[0], Fraction(0)) + asked[1]
        findings.done("events: each once, in its period, on a line or left over for a reason")
    return [[*it.values(), *_levels_before(rating, findings)] for it, rating in zip(found, ratings, strict=True)]


def _levels_before(rating: Mapping[str, Any], findings: Findings) -> list[Group]:
    """The events of before the period whose levels go on into it."""
    found: list[Group] = []
    if (rating["trial_end"] or "") >= rating["period_end"]:
        return found
    for it in rating.get("levels", ()):
        if it["time"] >= rating["period_start"] or it["known"] > rating["as_of"]:
            findings.wrong(f"event {it['id']} of {it['time']} is not one of before the period")
        level = (it["time"], it["id"], number(it["quantity"]))
        group = Group(it["meter"], it["status"], it.get("task", ""), False, it.get("dimensions", {}), levels=[level])
        found.append(group)
        findings.done("levels of before the period, that go on into it")
    return found


def count(
    prices: Prices, groups: list[Group], left: list[Mapping[str, Any]]
) -> tuple[dict[Key, Counted], dict[str, Fraction]]:
    """Per line what its events come to; and per `meter reason` what is free by choice."""
    undeclared = {it["meter"] for it in left if it["reason"] == "meter_not_declared"}
    charged: dict[tuple[str, str], list[Group]] = {}
    free: dict[str, Fraction] = {}
    for group in groups:
        if group.meter in undeclared:
            continue
        found = prices.of_meter(group.meter)
        why = _free(prices, group, found)
        if why is not None:
            key = f"{group.meter} {why}"
            free[key] = free.get(key, Fraction(0)) + group.quantity
        elif found is not None:
            charged.setdefault((found[0].name, found[1]), []).append(group)
    lines: dict[Key, Counted] = {}
    formulas: dict[str, Counted] = {}
    for (component, metric), mine in charged.items():
        part = prices.parts[component]
        if part.marks_up_costs:
            mine = [it for it in mine if _cost_known(prices, part, it)]
        for dimensions, cell in _cells(part, _not_negative(prices, part, metric, mine)):
            counted = _counted(prices, metric, cell)
            if part.model == "formula":
                # One line for all its metrics, which bears the name of the first.
                whole = formulas.setdefault(component, Counted(Fraction(1), 0))
                whole.events += counted.events
                whole.meters |= counted.meters
                whole.groups += counted.groups
                lines[component, part.metrics()[0], ()] = whole
            else:
                lines[component, metric, dimensions] = counted
    return lines, free


def _cost_known(prices: Prices, part: Part, group: Group) -> bool:
    """Whether what the provider asks is known, in a currency that the book converts."""
    return not group.unknown and all(
        currency == part.currency or prices.converts(currency, part.currency) for *_, currency in group.asked
    )


def inputs_of(prices: Prices, part: Part, groups: list[Group]) -> dict[str, Fraction]:
    """What the inputs of a formula come to, by their names in it."""
    found = {}
    inputs = part.node.get("inputs")
    for name, metric in {} if inputs is None else inputs.items().items():
        named = str(metric.value)
        mine = [it for it in groups if it.meter in prices.meters(named) and _free(prices, it, (part, named)) is None]
        counted = _counted(prices, named, _not_negative(prices, part, named, mine))
        found[name] = Fraction(0) if counted.quantity is None else counted.quantity
    return found


def _free(prices: Prices, group: Group, found: tuple[Part, str] | None) -> str | None:
    """Why the book leaves the usage free; None where it does not."""
    if group.trial:
        return "unbilled_trial"
    if found is None:
        if group.status in prices.free_statuses(None, None):
            return "unbilled_status"
        return "unbilled_meter" if group.meter in prices.unbilled_meters() else None
    part, metric = found
    if group.status in prices.free_statuses(metric, part):
        return "unbilled_status"
    rule = prices.tasks(metric, part)
    bad = {"ok_only": ("failed", "open"), "not_failed": ("failed",)}.get(rule, ())
    return "unbilled_task" if group.task in bad else None


def _not_negative(prices: Prices, part: Part, metric: str, groups: list[Group]) -> list[Group]:
    """Without combinations that sum to less than zero: parts whose whole has not arrived, which are left over."""
    if prices.aggregate(metric) != "sum":
        return groups
    sums: dict[tuple[str, ...], Fraction] = {}
    for it in groups:
        key = _values(part, it)
        sums[key] = sums.get(key, Fraction(0)) + it.quantity
    return [it for it in groups if sums[_values(part, it)] >= 0]


def _values(part: Part, group: Group) -> tuple[str, ...]:
    return tuple(group.dimensions.get(name, "") for name in part.by)


def _cells(part: Part, groups: list[Group]) -> list[tuple[tuple[tuple[str, str], ...], list[Group]]]:
    """The groups by the dimensions of their lines: values, or in a matrix the patterns of the cell that fits first."""
    found: dict[tuple[str, ...], list[Group]] = {}
    for it in groups:
        values = _values(part, it)
        if part.model == "matrix":
            cells = [[cell.text(name, "*") for name in part.by] for cell in part.node.entries("cells")]
            cells.append(["*"] * len(part.by))
            values = tuple(next(cell for cell in cells if matches(cell, list(values))))
        found.setdefault(values, []).append(it)
    return [(tuple(zip(part.by, values, strict=True)), mine) for values, mine in found.items()]


def _counted(prices: Prices, metric: str, groups: list[Group]) -> Counted:
    how, events = prices.aggregate(metric), sum(it.events for it in groups)
    meters: dict[str, Fraction] = {}
    for it in groups:
        meters[it.meter] = meters.get(it.meter, Fraction(0)) + it.quantity
    if how in (LATEST, TIME_WEIGHTED):
        return Counted(_level(prices, metric, groups), events, meters, groups)
    values: dict[str, Fraction | None] = {
        "sum": sum(meters.values(), Fraction(0)),
        "count": Fraction(events),
        "max": max((it.largest for it in groups), default=Fraction(0)),
        "unique": Fraction(len({it.dimensions.get(prices.of(metric), "") for it in groups})),
    }
    return Counted(values.get(how), events, meters, groups)


def _level(prices: Prices, metric: str, groups: list[Group]) -> Fraction:
    """What levels come to: behind a trial, into which those of the trial go on."""
    start = max(prices.terms["period_start"], prices.terms["trial_end"] or "")
    series = prices.of(metric)
    found = [
        Level((it.meter, it.dimensions.get(series, "") if series else ""), *one) for it in groups for one in it.levels
    ]
    if prices.aggregate(metric) == LATEST:
        return latest(found)
    return time_weighted(found, start, until(prices.terms), prices.per(metric))
