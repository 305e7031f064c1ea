"""What is behind a rated line: its events, the line of the price book, and whether both come to the amount.

It is the verifier of evidence packs that says so: it shares no code with what rated the line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection

from meterhouse_rating import known
from meterhouse_rating.engine import CORRECTION
from meterhouse_rating.evidence_check.findings import Findings, number, shown
from meterhouse_rating.evidence_check.lines import BOOK, CREDITS, DISCOUNTS, QUANTITIES, ROUNDED, check_line
from meterhouse_rating.evidence_check.prices import Prices, prices_of
from meterhouse_rating.evidence_check.usage import Counted, Group, count, groups_of
from meterhouse_rating.evidence_check.yaml_subset import Unreadable
from meterhouse_rating.layout import counted, table
from meterhouse_rating.layout import number as spelled
from meterhouse_rating.metrics import LATEST, MAX, TIME_WEIGHTED
from meterhouse_rating.periods import Period, instant
from meterhouse_rating.queries import EPOCH, WOUND_BACK, events_query, window_parameters
from meterhouse_rating.recorrect import notes
from meterhouse_rating.results import Row
from meterhouse_rating.settled import Standing, lines_of, standings
from meterhouse_rating.told import (
    COST_DIMENSIONS,
    Told,
    earlier_in_month,
    event_of,
    events_of,
    groups,
    tell,
    told_later,
)
from meterhouse_rating.usage import Found, gather, largest
from meterhouse_rating.versions import versions
from meterhouse_rating.world import World
from meterhouse_store.numbers import D

SUM: Final = "the events add up to the quantity"
AMOUNT: Final = "the arithmetic gives the amount"
_TIME: Final = len("2026-10-01T00:00:00.000000")
_SUMS: Final = {SUM, QUANTITIES}
_AMOUNTS: Final = {AMOUNT, BOOK, ROUNDED, DISCOUNTS, CREDITS}


@dataclass(frozen=True)
class Behind:
    """`events` are the first of `count` that are behind the line, which come to `meters`; `since`: those that are shown
    became known after a closing. `source`: the text of its line in the price book. The rest is what was checked.
    """

    events: tuple[dict[str, Any], ...]
    count: int
    meters: Mapping[str, str]
    since: str
    source: str
    checked: tuple[str, ...]
    carried: tuple[str, ...]
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "events": {
                "count": self.count,
                "not_shown": self.count - len(self.events),
                "meters": dict(self.meters),
                "shown": list(self.events),
            },
            "source": self.source,
            "checked": list(self.checked),
            "carried": list(self.carried),
            "problems": list(self.problems),
        }

    def as_text(self) -> str:
        """For people."""
        text = [f"  In the book: {self.source}"] if self.source else []
        if self.count:
            sums = " + ".join(f"{spelled(D(quantity))} {meter}" for meter, quantity in self.meters.items())
            text.append(f"  {counted(self.count, 'event')}{self.since}: {sums}.")
            text.append("  " + table([_HEAD, *map(_row, self.events)], right={3}).replace("\n", "\n  "))
            if rest := self.count - len(self.events):
                text.append(f"    and {counted(rest, 'more event')} (--events {self.count} shows all)")
        text += [f"  Not recomputed: {it}." for it in self.carried]
        text += [f"! {it}" for it in self.problems]
        if not self.problems:
            text.append(f"  Checked: {' and '.join(self.checked)}.")
        return "\n".join(text)


_HEAD: Final = ("time", "event", "meter", "quantity", "status", "model, tool", "trace")


def _row(event: Mapping[str, Any]) -> tuple[str, ...]:
    named = ", ".join(event[name] for name in ("model", "tool") if name in event)
    return (
        event["time"][:_TIME].replace("T", " ").removesuffix(".000000"),
        event["id"],
        event["meter"],
        spelled(D(event["quantity"])),
        event["status"],
        named,
        event.get("trace_id", ""),
    )


def behind(world: World, line: Row, limit: int) -> Behind:
    """What is behind a line, with so many of its events; `line` as `report.lines_named` finds it."""
    with world.engine.connect() as connection:
        every = standings(connection, world.namespace, line["customer_id"])
        corrects = line["explanation"].get("corrects", {}).get("rating")
        standing = next(it for it in every if it.rating_id == (corrects or line["rating_id"]))
        told = tell(world, connection, standing, every)
        prices = _prices(world, told)
        if corrects is not None:
            return _correction(world, connection, line, told, prices, every, limit)
        before = earlier_in_month(connection, told, every)
    usage = _usage(world, told, prices, line)
    findings, on_it = check_line(told.facts, prices, usage, before, line["line_id"])
    events = (
        ()
        if on_it is None
        else _events(world, told, on_it.groups, _listed_by(prices, line), limit, as_of=told.standing.as_of)
    )
    if on_it is not None:
        _add_up(findings, on_it, events)
    return _made(world, line, told, findings, on_it, events, "")


def _usage(world: World, told: Told, prices: Prices | str, line: Row) -> list[Group]:
    """The rating's usage by all that its prices, and what they count, depend on."""
    how = _aggregates(prices, line)
    wanted, standing = told.wanted, told.standing
    where = (world.client, world.namespace, _billed_span(told), wanted)
    as_known: dict[str, Any] = {"as_of": standing.as_of, "source": WOUND_BACK}
    found = gather(*where, customers=[standing.customer_id], **as_known).get(standing.customer_id, Found())
    trial = tuple(row for row in told.usage if row.trial)
    most = largest(*where, standing.customer_id, **as_known) if MAX in how else ()
    alike = groups((*trial, *found.rows), most)
    if not how & {LATEST, TIME_WEIGHTED}:
        return alike
    # Of levels it decides when each event came, and what held before.
    leveled = told.facts["leveled"]
    levels = groups_of(events_of(world, told, leveled), [told.facts], Findings())[0]
    return [it for it in alike if it.meter not in leveled] + levels


def _aggregates(prices: Prices | str, line: Row) -> set[str]:
    """How what the line's component charges for is counted: a formula has one line for all its metrics."""
    if isinstance(prices, str) or line["metric"] is None:
        return set()
    part = prices.parts.get(line["component"])
    return {prices.aggregate(it) for it in ([line["metric"]] if part is None else part.metrics())}


def _correction(
    world: World,
    connection: Connection,
    line: Row,
    told: Told,
    prices: Prices | str,
    every: Sequence[Standing],
    limit: int,
) -> Behind:
    """A correction is what the events of a closed period come to now, less what was billed of them so far."""
    findings, closed = Findings(), told.standing
    steps = sum((number(it["amount"]) for it in line["explanation"]["steps"]), Fraction(0))
    if findings.equal("the sum of its arithmetic", Fraction(line["amount_exact"]), steps):
        findings.done(AMOUNT)
    if line["kind"] != CORRECTION or line["metric"] is None or isinstance(prices, str):
        return _made(world, line, told, findings, None, (), "")
    assert closed.closed_at is not None, "only what is closed is corrected"
    terms, customer = known.terms(world, closed.closed_at, closed.book_version), closed.customer_id
    now = _on_line(prices, told, line, _usage(world, told_later(world, told, terms, line["as_of"]), prices, line))
    what = f"the quantity of {closed.period} by its events, and as it was billed with its corrections"
    if now.quantity is None:
        findings.carry(f"a quantity that is {prices.aggregate(line['metric'])}")
    elif findings.equal(what, _billed(connection, world.namespace, line, every), now.quantity):
        findings.done(SUM)
    wanted = replace(terms.wanted(closed.period), measurements=())
    since = gather(
        world.client,
        world.namespace,
        _billed_span(told),
        wanted,
        as_of=line["as_of"],
        customers=[customer],
        source=WOUND_BACK,
        after=closed.as_of,
    )
    late = _on_line(prices, told, line, groups(since.get(customer, Found()).rows))
    events = _events(world, told, late.groups, _listed_by(prices, line), limit, as_of=line["as_of"], after=closed.as_of)
    return _made(world, line, told, findings, late, events, f" of {closed.period} became known since it was closed")


def _on_line(prices: Prices, told: Told, line: Row, usage: list[Group]) -> Counted:
    """What of the usage is on a line like this."""
    dimensions = tuple((name, line["dimensions"].get(name, "")) for name in _by(prices, line))
    key = (line["component"], line["metric"], dimensions)
    return count(prices, usage, told.facts["left"])[0].get(key, Counted(Fraction(0), 0))


def _by(prices: Prices | str, line: Row) -> list[str]:
    """The dimensions that the lines of its component are apart by."""
    part = None if isinstance(prices, str) else prices.parts.get(line["component"])
    return [] if part is None else part.by


def _listed_by(prices: Prices | str, line: Row) -> list[str]:
    """The dimensions by which one knows whether an event is on the line."""
    part = None if isinstance(prices, str) else prices.parts.get(line["component"])
    known_by = COST_DIMENSIONS if part is not None and part.marks_up_costs else ()
    return list(dict.fromkeys((*_by(prices, line), *known_by)))


def _billed(connection: Connection, namespace: str, line: Row, every: Sequence[Standing]) -> Fraction:
    """The quantity that the corrected line and its corrections up to this one bill."""
    corrects = line["explanation"]["corrects"]
    ids = [it.rating_id for it in every if it.period.start <= line["period_start"] or it.rating_id == line["rating_id"]]
    rows = [row for row in lines_of(connection, ids) if _corrects(row, corrects["name"])]
    noted = [
        row
        for note in notes(connection, namespace, line["customer_id"])
        if note["as_of"] <= line["as_of"]
        for row in note["lines"]
        if _corrects(row, corrects["name"])
    ]
    closed = [row for row in lines_of(connection, [corrects["rating"]]) if row["line_id"] == corrects["line"]]
    return sum((Fraction(D(row["quantity"])) for row in (*closed, *rows, *noted)), Fraction(0))


def _corrects(row: Mapping[Any, Any], name: str) -> bool:
    return bool(row["kind"] == CORRECTION and row["explanation"]["corrects"]["name"] == name)


def _prices(world: World, told: Told) -> Prices | str:
    text = _book(world, told.standing.book_version)
    try:
        return prices_of(text, told.facts)
    except Unreadable as unreadable:
        return f"the price book is written in YAML that the verifier does not read ({unreadable})"


def _book(world: World, version: int) -> str:
    return next(it.source for it in versions(world.engine, world.namespace) if it.version == version)


def _add_up(findings: Findings, on_it: Counted, events: Sequence[Mapping[str, Any]]) -> None:
    """Where all events are shown, they are what was counted."""
    sums: dict[str, Fraction] = {}
    for event in events:
        sums[event["meter"]] = sums.get(event["meter"], Fraction(0)) + number(event["quantity"])
    if len(events) == on_it.events:
        findings.equal(
            "the sum of the events that are shown", sums, {k: v for k, v in on_it.meters.items() if v or k in sums}
        )


def _events(
    world: World,
    told: Told,
    among: Sequence[Group],
    by: Sequence[str],
    limit: int,
    *,
    as_of: datetime,
    after: datetime = EPOCH,
) -> tuple[dict[str, Any], ...]:
    """The first events of the groups, in order."""
    if not among or not limit:
        return ()
    # Whether an event is on a line depends on these alone: so few groups are asked for, however many others there are.
    kinds = sorted({(it.meter, it.status, it.task, *(it.dimensions.get(name, "") for name in by)) for it in among})
    query = events_query(told.dimensions, tasks=told.tasks, source=WOUND_BACK, by=by)
    customer = told.standing.customer_id
    parameters = window_parameters(
        world.namespace, _billed_span(told), told.dimensions, as_of=as_of, after=after, customers=[customer]
    )
    rows = world.client.query(query, parameters=parameters | {"groups": kinds, "limit": limit}).result_rows
    return tuple(event_of(row, customer, told.dimensions) for row in rows)


def _billed_span(told: Told) -> Period:
    """The rating's period without the trial in it."""
    period, trial_end = told.standing.period, told.facts["trial_end"]
    return period if trial_end is None else Period(max(period.start, instant(trial_end)), period.end)


def _made(
    world: World,
    line: Row,
    told: Told,
    findings: Findings,
    on_it: Counted | None,
    events: tuple[dict[str, Any], ...],
    since: str,
) -> Behind:
    checked = [AMOUNT] if set(findings.recomputed) & _AMOUNTS else []
    checked = [SUM, *checked] if set(findings.recomputed) & _SUMS else checked
    return Behind(
        events,
        0 if on_it is None else on_it.events,
        {} if on_it is None else {meter: shown(quantity) for meter, quantity in on_it.meters.items()},
        since,
        _source(world, line, told),
        tuple(checked),
        tuple(findings.carried),
        tuple(findings.problems),
    )


def _source(world: World, line: Row, told: Told) -> str:
    """The line of the price book, or of the customer's own price, that the rated line names."""
    price = line["explanation"].get("price")
    if not price:
        return ""
    own = told.facts["overrides"].get(line["component"]) if "override" in price else None
    text = _book(world, price["version"]) if own is None else own["text"]
    return str(text.splitlines()[price["line"] - 1]).strip()
