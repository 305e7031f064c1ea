"""What is settled already: a customer's ratings in SQL, and what they mean for the next one."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, select

from meterhouse_rating.agreements import Discount
from meterhouse_rating.book import Plan
from meterhouse_rating.charges import Before, Dimensions
from meterhouse_rating.credit_book import Credits, credits_of
from meterhouse_rating.discounts import BEFORE_MINIMUM, in_order, shares_told
from meterhouse_rating.ids import digest
from meterhouse_rating.models.minimum import Minimum
from meterhouse_rating.money import decimal_of, of_minor
from meterhouse_rating.periods import Period, month_of, next_month, overlaps
from meterhouse_rating.rated import DISCOUNTED
from meterhouse_rating.settling import in_plan, settling
from meterhouse_store.numbers import D
from meterhouse_store.registry import Contract, Customer
from meterhouse_store.tables import credit_notes, rated_lines, ratings, unrated_usage

OPEN = "open"
CLOSED = "closed"

_CHUNK: Final = 5000
"""So many names at most are in one statement."""


@dataclass(frozen=True)
class Standing:
    """A rating that is stored, or that a dry run would store; `watermark` as it was recorded with it.

    `closed_at`: when its lines were posted to the ledger.
    """

    rating_id: str
    customer_id: str
    period: Period
    state: str
    as_of: datetime
    watermark: Mapping[str, Any]
    inputs_sha256: str
    result_sha256: str
    total_minor: int
    currency: str
    closed_at: datetime | None = None
    book_version: int = 0


Row = Mapping[Any, Any]

_STANDING: Final = (
    "rating_id", "customer_id", "state", "as_of", "watermark", "inputs_sha256", "result_sha256", "total_minor",
    "currency", "closed_at", "book_version",
)  # fmt: skip


def standings(
    connection: Connection, namespace: str, customer_id: str | None = None, among: Sequence[str] | None = None
) -> list[Standing]:
    """The ratings of a customer, of those `among` all, or of the whole namespace, by customer and period."""
    columns = [ratings.c[name] for name in ("period_start", "period_end", *_STANDING)]
    query = select(*columns).where(ratings.c.namespace == namespace)
    if customer_id is not None:
        query = query.where(ratings.c.customer_id == customer_id)
    if among is not None:
        query = query.where(ratings.c.customer_id.in_(among))
    return [
        Standing(period=Period(start, end), **dict(zip(_STANDING, rest, strict=True)))
        for start, end, *rest in connection.execute(query.order_by(ratings.c.customer_id, ratings.c.period_start))
    ]


@dataclass
class Unwritten:
    """What a dry run would have done to ratings so far: ids of those that are gone, and what came, with its lines."""

    gone: set[str] = field(default_factory=set)
    standing: dict[str, list[Standing]] = field(default_factory=dict)
    lines: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, gone: Iterable[str], came: Iterable[Row], lines: Iterable[Row]) -> None:
        """Rows of `ratings` and `rated_lines`."""
        self.gone.update(gone)
        for row in came:
            # Whatever its state, none of its lines is in the ledger.
            told = {name: row[name] for name in _STANDING} | {"closed_at": None}
            made = Standing(period=Period(row["period_start"], row["period_end"]), **told)
            self.standing.setdefault(made.customer_id, []).append(made)
        for line in lines:
            self.lines.setdefault(line["rating_id"], []).append(line)


@dataclass(frozen=True)
class Past:
    """What SQL has of one customer that a rating depends on.

    `standing`: its ratings, by period; `lines` by rating, as far as a period goes on from them; `noted`: what credit
    notes correct of these; `unrated`: its rows of `unrated_usage`.
    """

    standing: Sequence[Standing] = ()
    lines: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    credits: Credits = field(default_factory=Credits)
    unrated: Sequence[Row] = ()
    noted: Sequence[Row] = ()

    def after(self, customer_id: str, dry: Unwritten) -> "Past":
        """With what a dry run would have stored, in the place of what it would have removed."""
        came = dry.standing.get(customer_id, [])
        kept = [it for it in self.standing if it.rating_id not in dry.gone]
        lines = {it.rating_id: dry.lines.get(it.rating_id, []) for it in came}
        return replace(self, standing=sorted([*kept, *came], key=lambda it: it.period), lines={**self.lines, **lines})


def pasts(
    connection: Connection, namespace: str, zones: Mapping[str, str], period: Period, *, for_long: bool
) -> dict[str, Past]:
    """The past of each customer in `zones`, where its time zone stands, read with a handful of queries.

    `for_long`: some prices of the period go on from more than its month, so that all lines are read.
    """
    names = sorted(zones)
    standing: dict[str, list[Standing]] = {name: [] for name in names}
    for it in standings(connection, namespace, among=names):
        standing[it.customer_id].append(it)
    wanted = []
    for name, theirs in standing.items():
        since = month_of(period.start, zones[name]).start
        wanted += [
            it.rating_id for it in before(theirs, period) if for_long or it.state == OPEN or it.period.start >= since
        ]
    lines = by_rating(lines_of(connection, wanted))
    notes: dict[str, list[Row]] = {}
    for line in noted_of(connection, wanted):
        notes.setdefault(line["explanation"]["corrects"]["rating"], []).append(line)
    credits = credits_of(connection, namespace, names)
    unrated: dict[str, list[Row]] = {}
    query = select(unrated_usage).where(unrated_usage.c.namespace == namespace, unrated_usage.c.customer_id.in_(names))
    for row in connection.execute(query).mappings():
        unrated.setdefault(row["customer_id"], []).append(row)
    return {
        name: Past(
            theirs,
            {it.rating_id: lines[it.rating_id] for it in theirs if it.rating_id in lines},
            credits[name],
            unrated.get(name, ()),
            [line for it in theirs for line in notes.get(it.rating_id, ())],
        )
        for name, theirs in standing.items()
    }


def contract_in_force(contracts: Iterable[Contract], period: Period) -> Contract | None:
    """The contract of the whole period: the one in force at its start, else the first that begins within it."""
    known = sorted(contracts, key=lambda contract: contract.valid_from)
    at_start = [contract for contract in known if contract.valid_from <= period.start]
    if at_start:
        return at_start[-1]
    return next((contract for contract in known if contract.valid_from < period.end), None)


@dataclass(frozen=True)
class Used:
    """What lines have of usage: the quantity per meter, and what they come to per currency, in minor units; and what
    discounts took off, by agreement, and caps, by budget, in minor units.

    `came` is what the lines come to that discounts may be off, by kind and component, and `off` what each discount took
    off that, in minor units.
    """

    meters: Mapping[str, Decimal] = field(default_factory=dict)
    minor: Mapping[str, int] = field(default_factory=dict)
    discounted: Mapping[str, Decimal] = field(default_factory=dict)
    capped: Mapping[str, int] = field(default_factory=dict)
    came: Mapping[tuple[str, str], int] = field(default_factory=dict)
    off: Mapping[str, Mapping[tuple[str, str], int]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Row]) -> "Used":
        """Of rows of `rated_lines` (corrections: as `settling` has them)."""
        meters: dict[str, Decimal] = {}
        minor: dict[str, int] = {}
        discounted: dict[str, Decimal] = {}
        capped: dict[str, int] = {}
        lines = list(lines)
        named = {(line["rating_id"], line["description"]): _what(line) for line in lines if line["kind"] != "discount"}
        came: dict[tuple[str, str], int] = {}
        off: dict[str, dict[tuple[str, str], int]] = {}
        for line in lines:
            if line["kind"] == "discount":
                name, amount = line["explanation"]["discount"], of_minor(-line["amount_minor"], line["currency"])
                discounted[name] = discounted.get(name, Decimal(0)) + amount
                if budget := line["explanation"].get("budget"):
                    capped[budget] = capped.get(budget, 0) - line["amount_minor"]
                taken = off.setdefault(name, {})
                for reduced, minor_off in shares_told(line):
                    what = named.get((line["rating_id"], reduced), ("", ""))
                    taken[what] = taken.get(what, 0) + minor_off
                continue
            if line["kind"] in (*DISCOUNTED, "credit_pack"):
                gives_back = line["kind"] in DISCOUNTED and "service" not in line["explanation"]
                amount_minor = line["amount_minor"] if gives_back else max(0, line["amount_minor"])
                came[_what(line)] = came.get(_what(line), 0) + amount_minor
            if line["kind"] == "usage":
                minor[line["currency"]] = minor.get(line["currency"], 0) + line["amount_minor"]
                for meter, quantity in line["explanation"].get("meters", {}).items():
                    meters[meter] = meters.get(meter, Decimal(0)) + D(quantity)
        sums = dict(sorted(meters.items())), dict(sorted(minor.items())), dict(sorted(discounted.items()))
        return cls(*sums, dict(sorted(capped.items())), came, off)

    def left_by(self, discount: Discount, agreed: Iterable[Discount], currency: str) -> Decimal:
        """What a discount left of the lines that it is off, in major units; of those `agreed` the ones before it, and
        caps, were taken off first.
        """
        ordered = [it.agreement_id for it in in_order(agreed)]
        later = set(ordered[ordered.index(discount.agreement_id) + 1 :])
        left = 0
        for sign, found in ((1, self.came), *((-1, off) for name, off in self.off.items() if name not in later)):
            for (kind, component), minor in found.items():
                covered = not discount.components or component in discount.components
                if covered and not (discount.before_minimum and kind == "minimum"):
                    left += sign * minor
        return of_minor(max(0, left), currency)


def _what(line: Row) -> tuple[str, str]:
    return line["kind"], line["component"]


@dataclass(frozen=True)
class Remembered:
    """What earlier ratings leave to the next one.

    Per component `before`, and in `earlier` what the ratings of this month come to, in major units of the plan's
    currency, of which discounts before the minimum took `earlier_off`; in `used` what usage they have, on whichever
    plan; the latest of them ends at `until`.
    """

    before: Mapping[str, Before] = field(default_factory=dict)
    earlier: Mapping[str, Decimal] = field(default_factory=dict)
    earlier_off: Mapping[str, Decimal] = field(default_factory=dict)
    used: Used = field(default_factory=Used)
    until: datetime | None = None


def settled_before(
    customer: Customer,
    contract: Contract,
    plan: Plan,
    period: Period,
    standing: Sequence[Standing],
    lines: Mapping[str, Sequence[Row]],
    carried: frozenset[str] = frozenset(),
    corrections: Sequence[Row] = (),
) -> tuple[Remembered, list[Row]]:
    """What earlier ratings settled, and the lines of what is not in the ledger: they use credits that are not posted
    yet. `lines` are by rating; `corrections` of them that stand on none of them.

    Closed ratings count, and open ones of earlier periods, as if they were closed as they are. Of the `carried` metrics
    counts what the month's earlier plans rated, too.
    """
    counted = sorted(before(standing, period), key=lambda it: it.rating_id)
    parts = of_month(counted, period, customer.time_zone)
    this_month = {it.rating_id for it in parts}
    known = [line for it in counted for line in lines.get(it.rating_id, ())]
    pending = [line for it in counted if it.closed_at is None for line in lines.get(it.rating_id, ())]
    found = remembered([*known, *corrections], this_month, contract, plan, carried)
    return replace(found, until=max((it.period.end for it in parts), default=None)), pending


def of_month(standing: Iterable[Standing], period: Period, zone: str) -> list[Standing]:
    """Those of the ratings that one of the period goes on from that are of its own month."""
    month = month_of(period.start, zone)
    return [it for it in before(standing, period) if overlaps(it.period, month) and it.period.start >= month.start]


def before(standing: Iterable[Standing], period: Period) -> list[Standing]:
    """The ratings that one of the period goes on from."""
    return [
        it
        for it in standing
        if not overlaps(it.period, period) and (it.state == CLOSED or it.period.start < period.start)
    ]


def remembered(
    lines: Sequence[Mapping[Any, Any]],
    this_month: Collection[str],
    contract: Contract,
    plan: Plan,
    carried: frozenset[str] = frozenset(),
) -> Remembered:
    """What lines of earlier ratings settled; `this_month`: ids of the month's ratings.

    Corrections count as lines of the rating that they correct, whatever they stand on.
    """
    known, earlier = {}, {}
    lines = list(settling(lines))
    discounts = [line for line in lines if line["kind"] == "discount"]
    for component in plan.components:
        mine = [
            line
            for line in lines
            if line["component"] == component.name
            and line["explanation"].get("price", {}).get("contract") == contract.contract_id
            and (component.memory == "contract" or line["rating_id"] in this_month)
        ]
        others = [
            line
            for line in lines
            if line["kind"] == "usage"
            and line["metric"] in carried.intersection(component.metrics)
            and line["explanation"].get("price", {}).get("contract") != contract.contract_id
            and component.memory == "month"
            and line["rating_id"] in this_month
        ]
        if mine or others:
            known[component.name] = _settled_by([*mine, *others], this_month, discounts)
        now = [line for line in mine if line["rating_id"] in this_month]
        if now:
            earlier[component.name] = sum((in_plan(line, plan.currency) for line in now), Decimal(0))
    now = [line for line in lines if line["rating_id"] in this_month]
    off = _taken_off(now, contract) if any(isinstance(it, Minimum) for it in plan.components) else {}
    return Remembered(known, earlier, off, Used.of(now))


def span_of(
    contracts: Iterable[Contract], contract: Contract, zone: str, period: Period, at_once: bool
) -> tuple[datetime, datetime | None]:
    """From when and until when (None: open) the contract is billed.

    Where plans do not change `at_once` its successor prices whole months: it goes on to the end of the month in which
    that begins; and where it is a successor itself, it starts with a month.
    """
    known = sorted(contracts, key=lambda it: it.valid_from)
    at = next(index for index, it in enumerate(known) if it.contract_id == contract.contract_id)
    since, until = contract.valid_from, None if at + 1 == len(known) else known[at + 1].valid_from
    # A period that is closed was not cut at what was agreed later: it is billed to its end.
    if until is not None and (not at_once or period.start < until < period.end):
        until = next_month(until, zone)
    if at > 0 and not at_once:
        since = next_month(since, zone)
    return since, until


def _settled_by(
    lines: Iterable[Mapping[Any, Any]], this_month: Collection[str], discounts: Iterable[Mapping[Any, Any]]
) -> Before:
    lines = list(lines)
    quantities: dict[str, Decimal] = {}
    cells: dict[tuple[str, Dimensions], Decimal] = {}
    events: dict[str, int] = {}
    billed: dict[str, Decimal] = {}
    ahead: dict[str, Decimal] = {}
    standing: list[int] = []
    off: dict[str, Decimal] = {}
    charged = False
    for line in lines:
        explanation, metric = line["explanation"], line["metric"]
        if "service" in explanation:
            service, conversion = explanation["service"], explanation.get("conversion")
            exact = D(explanation["amount_exact"] if conversion is None else conversion["amount"])
            kept = sum((D(it["amount"]) for it in explanation["steps"] if "discounted_before" in it), Decimal(0))
            exact -= kept
            off[service] = off.get(service, Decimal(0)) - kept
            billed[service] = billed.get(service, Decimal(0)) + exact
            if line["rating_id"] not in this_month:
                ahead[service] = ahead.get(service, Decimal(0)) + exact
        if metric is None:
            charged = True
            continue
        used = {metric: line["quantity"]}
        if "quantities" in explanation:
            used = {name: D(it) for name, it in explanation["quantities"].items()}
            standing.append(explanation.get("lines", 1))
        for name, quantity in used.items():
            quantities[name] = quantities.get(name, Decimal(0)) + quantity
        cell = (metric, tuple(line["dimensions"].items()))
        cells[cell] = cells.get(cell, Decimal(0)) + line["quantity"]
        events[metric] = events.get(metric, 0) + explanation.get("events", 0)
    if standing and sum(standing) <= 0:
        # All its lines were taken away: what it comes to with nothing used is on none.
        quantities = {name: it for name, it in quantities.items() if it}
    known = dict(sorted(quantities.items())), charged, dict(sorted(cells.items())), dict(sorted(events.items()))
    fees = [line for line in lines if "service" in line["explanation"]]
    for fee, amount in _off_lines(discounts, fees):
        off[fee["explanation"]["service"]] += amount
    return Before(*known, billed, ahead, {service: amount for service, amount in off.items() if amount})


def _taken_off(lines: Sequence[Row], contract: Contract) -> dict[str, Decimal]:
    """What discounts before the minimum took off the contract's lines, by component, in the plan's currency."""
    mine = [line for line in lines if line["explanation"].get("price", {}).get("contract") == contract.contract_id]
    first = [line for line in lines if line["kind"] == "discount" and line["explanation"]["order"] == BEFORE_MINIMUM]
    found: dict[str, Decimal] = {}
    for reduced, amount in _off_lines(first, mine):
        found[reduced["component"]] = found.get(reduced["component"], Decimal(0)) + amount
    return dict(sorted(found.items()))


def _off_lines(discounts: Iterable[Row], lines: Iterable[Row]) -> Iterator[tuple[Row, Decimal]]:
    """What discounts took off each of the lines, in the plan's currency."""
    named = {(line["rating_id"], line["description"]): line for line in lines}
    for discount in discounts if named else ():
        for name, minor in shares_told(discount):
            reduced = named.get((discount["rating_id"], name))
            if reduced is not None:
                conversion = reduced["explanation"].get("conversion")
                rate = Fraction(1) if conversion is None else Fraction(D(conversion["rate"]))
                yield reduced, decimal_of(Fraction(of_minor(minor, discount["currency"])) / rate)


def lines_of(connection: Connection, rating_ids: Sequence[str]) -> Sequence[RowMapping]:
    """The lines of ratings, by rating and position."""
    found: list[RowMapping] = []
    for start in range(0, len(rating_ids), _CHUNK):
        query = select(rated_lines).where(rated_lines.c.rating_id.in_(rating_ids[start : start + _CHUNK]))
        rows = connection.execute(query.order_by(rated_lines.c.rating_id, rated_lines.c.position))
        found += rows.mappings().all()
    return found


def noted_of(connection: Connection, rating_ids: Sequence[str], made_with: Collection[str] | None = None) -> list[Row]:
    """The lines of credit notes that correct these ratings; of those alone that were made when ratings of `made_with`
    were closed, where it is given.
    """
    found: list[Row] = []
    for start in range(0, len(rating_ids), _CHUNK):
        query = select(credit_notes).where(credit_notes.c.rating_id.in_(rating_ids[start : start + _CHUNK]))
        for note in connection.execute(query.order_by(credit_notes.c.recorded_at)).mappings():
            known = made_with is None or note["credit_note_id"] in {
                credit_note_id(note["rating_id"], it) for it in made_with
            }
            for line in note["lines"] if known else ():
                found.append({**line, "quantity": D(line["quantity"]), "amount_exact": D(line["amount_exact"])})
    return found


def credit_note_id(rating_id: str, made_with: str) -> str:
    """The one name of the credit note that corrects a rating, made when another one is closed."""
    return digest(["credit note", rating_id, made_with])


def by_rating(lines: Iterable[Row]) -> dict[str, list[Row]]:
    """Lines by the rating that they are of."""
    found: dict[str, list[Row]] = {}
    for line in lines:
        found.setdefault(line["rating_id"], []).append(line)
    return found
