"""A stored rating with all that it was made from, as plain facts: for evidence packs, and for what explains a line.

Times are text with nine digits after the point, in UTC, so that they compare as they are; numbers are text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, select

from meterhouse_rating import credit_book, known
from meterhouse_rating.agreements import Agreement
from meterhouse_rating.as_of import closed_again, closed_before
from meterhouse_rating.caps import cap_name, holding_in
from meterhouse_rating.costs_asked import Cost
from meterhouse_rating.costs_book import CostBook
from meterhouse_rating.costs_catalogue import Price, Unknown
from meterhouse_rating.costs_queries import COST_KEY
from meterhouse_rating.costs_usage import Asked, Costing, combinations, dated
from meterhouse_rating.effective import effective, facts_of
from meterhouse_rating.engine import CORRECTION, UsageRow
from meterhouse_rating.evidence_check.usage import Group
from meterhouse_rating.facts import at
from meterhouse_rating.metrics import LATEST, TIME_WEIGHTED
from meterhouse_rating.periods import Period, month_of
from meterhouse_rating.queries import (
    EVENT_COLUMNS,
    LOOK_BACK,
    WOUND_BACK,
    events_query,
    levels_query,
    window_parameters,
)
from meterhouse_rating.settled import (
    CLOSED,
    Standing,
    Used,
    before,
    lines_of,
    noted_of,
    of_month,
    standings,
)
from meterhouse_rating.settling import settling
from meterhouse_rating.sorting import Measurement
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Wanted
from meterhouse_rating.versions import in_force
from meterhouse_rating.world import World
from meterhouse_store.numbers import plain
from meterhouse_store.registry import ENDED
from meterhouse_store.tables import ratings, unrated_usage

COST_DIMENSIONS: Final = (*COST_KEY[1:-1], "usage_source", "source")
"""What the cost of an event depends on, beside its meter, time, call and customer."""

_SHORT_ID: Final = 8
"""So many digits of an agreement's id stand in the name of a credit pack of an add-on."""


@dataclass(frozen=True)
class Told:
    """A rating as a pack tells it, the usage that it was made from, and what its events are grouped by."""

    standing: Standing
    facts: dict[str, Any]
    usage: tuple[UsageRow, ...]
    wanted: Wanted
    costs: CostBook | None = None
    """The costs that prices marked up, as they were known."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.wanted.dimensions

    @property
    def tasks(self) -> bool:
        return self.wanted.tasks


def tell(world: World, connection: Connection, standing: Standing, every: Sequence[Standing]) -> Told:
    """The facts of a rating as it is stored; `every`: the customer's ratings. Raises NotThere without a price book."""
    row = connection.execute(select(ratings).where(ratings.c.rating_id == standing.rating_id)).mappings().one()
    terms = known.terms(world, standing.closed_at or row["rated_at"], standing.book_version)
    if standing.state == CLOSED:
        outcome = closed_again(world, connection, standing, every).outcome
        usage, left = outcome.usage, [_left(vars(it)) for it in outcome.leftovers]
    else:
        found = known.gather(world, terms, standing.period, standing.as_of, [standing.customer_id], WOUND_BACK)
        usage, left = found.get(standing.customer_id, Found()).rows, _unrated(connection, world.namespace, standing)
    wanted = terms.wanted(standing.period)
    costing = wanted.costs
    measured = {it.metric.of for it in wanted.measurements if it.metric.of is not None}
    lines = lines_of(connection, [standing.rating_id])
    facts = {
        "rating_id": standing.rating_id,
        "period_start": moment(standing.period.start),
        "period_end": moment(standing.period.end),
        "state": standing.state,
        "currency": standing.currency,
        "total_minor": standing.total_minor,
        "plan": row["plan"],
        "book_version": standing.book_version,
        "as_of": moment(standing.as_of),
        "rated_at": moment(row["rated_at"]),
        "closed_at": None if standing.closed_at is None else moment(standing.closed_at),
        "inputs_sha256": standing.inputs_sha256,
        "result_sha256": standing.result_sha256,
        **_terms(terms, standing.customer_id, standing.period, lines, wanted),
        "lines": [_line(line) for line in lines],
        "left": sorted(left, key=lambda it: (it["meter"], it["reason"], it["hint"], sorted(it["dimensions"].items()))),
    }
    facts["caps"]["earlier"] = _used_earlier(connection, standing, every, facts["zone"])
    told_by = {*wanted.dimensions, *measured}
    facts["grants"] = _grants(connection, world.namespace, standing)
    leveled = _leveled(wanted)
    if costing is not None:
        facts["costs"] = _costs(world, standing, costing)
        told_by |= set(COST_DIMENSIONS)
    told = Wanted(tuple(sorted(told_by)), wanted.tasks, costs=costing)
    if leveled:
        facts["leveled"] = sorted({meter for it in leveled for meter in it.metric.meters})
        facts["levels"] = _levels(
            world, standing, leveled, told, terms.trial_end(standing.customer_id, standing.period)
        )
    return Told(standing, facts, usage, told, None if costing is None else costing.book)


def told_later(world: World, told: Told, terms: Terms, as_of: datetime) -> Told:
    """A closed rating with the usage that was known at a later moment; `terms`: those that its closing knew."""
    standing = replace(told.standing, as_of=as_of)
    period, customer = standing.period, standing.customer_id
    found = known.gather(world, terms, period, as_of, [customer], WOUND_BACK).get(customer, Found())
    facts = told.facts | {"as_of": moment(as_of)}
    if leveled := _leveled(terms.wanted(period)):
        facts["levels"] = _levels(world, standing, leveled, told.wanted, terms.trial_end(customer, period))
    return replace(told, standing=standing, facts=facts, usage=found.rows)


def _leveled(wanted: Wanted) -> list[Measurement]:
    return [it for it in wanted.measurements if it.metric.aggregate in (LATEST, TIME_WEIGHTED)]


def _used_earlier(connection: Connection, standing: Standing, every: Sequence[Standing], zone: str) -> dict[str, Any]:
    """What the other ratings of the month, that it goes on from, had used of its caps; `elsewhere` what of that are
    corrections that stand on credit notes, or on ratings of other months.
    """
    known = before(every if standing.closed_at is None else closed_before(standing, every), standing.period)
    of_it = [it.rating_id for it in of_month(known, standing.period, zone)]
    beyond = [it.rating_id for it in known if it.rating_id not in of_it]
    stored, own = lines_of(connection, of_it), lines_of(connection, [standing.rating_id])
    mine = [it for it in stored if it["kind"] != CORRECTION] + _corrections_of([*stored, *own], of_it)
    made_with = [*(it.rating_id for it in known), standing.rating_id]
    noted = noted_of(connection, of_it, None if standing.closed_at is None else made_with)
    other = _corrections_of([*lines_of(connection, beyond), *noted], of_it)
    told = {"ratings": of_it, **_used([*mine, *other], standing.currency)}
    return {**told, "elsewhere": _used(other, standing.currency)} if other else told


def _corrections_of(lines: Sequence[Mapping[Any, Any]], rating_ids: Sequence[str]) -> list[Mapping[Any, Any]]:
    return [it for it in lines if it["kind"] == CORRECTION and it["explanation"]["corrects"]["rating"] in rating_ids]


def _used(lines: Sequence[Mapping[Any, Any]], currency: str) -> dict[str, Any]:
    used = Used.of(settling(lines))
    meters = {name: plain(quantity) for name, quantity in used.meters.items()}
    told = {"meters": meters, "minor": used.minor.get(currency, 0)}
    return {**told, "off": dict(used.capped)} if used.capped else told


def _grants(connection: Connection, namespace: str, standing: Standing) -> dict[str, Any]:
    """The rules of the customer's grants of credits, by their names."""
    return {
        row["grant_id"]: {
            "kind": row["kind"],
            "granted_at": moment(row["granted_at"]),
            "expires_at": None if row["expires_at"] is None else moment(row["expires_at"]),
            "priority": row["priority"],
            "rollover": row["rollover_minor"],
        }
        for row in credit_book.rows_of(connection, namespace, [standing.customer_id])
        if row["currency"] == standing.currency
        and (standing.closed_at is None or row["recorded_at"] <= standing.closed_at)
    }


def _levels(
    world: World, standing: Standing, leveled: Sequence[Measurement], told: Wanted, trial_end: datetime | None
) -> list[dict[str, Any]]:
    """The last events of before the period of each series of levels, as a pack tells events."""
    found: dict[str, dict[str, Any]] = {}
    start = standing.period.start
    since = (start if trial_end is None else max(start, trial_end)) - LOOK_BACK
    for it in leveled:
        query = levels_query(it, told.dimensions, tasks=told.tasks, source=WOUND_BACK)
        period = Period(since, start)
        known: dict[str, Any] = {"as_of": standing.as_of, "customers": [standing.customer_id]}
        parameters = window_parameters(world.namespace, period, told.dimensions, **known)
        parameters |= {"meters": list(it.metric.meters), "free": list(it.free_statuses)}
        for row in world.client.query(query, parameters=parameters).result_rows:
            event = event_of(row, standing.customer_id, told.dimensions)
            found[event["time"] + event["id"] + event["meter"]] = event
    return [found[key] for key in sorted(found)]


def events_of(world: World, told: Told, meters: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The events of a rating, one after the other, as they were known when it was made; of these meters alone."""
    standing = told.standing
    query = events_query(told.dimensions, tasks=told.tasks, source=WOUND_BACK, some=meters is not None)
    known: dict[str, Any] = {"as_of": standing.as_of, "customers": [standing.customer_id]}
    parameters = window_parameters(world.namespace, standing.period, told.dimensions, **known)
    with world.client.query_rows_stream(query, parameters=parameters | {"meters": list(meters or ())}) as rows:
        for row in rows:
            yield event_of(row, standing.customer_id, told.dimensions)


def event_of(row: Sequence[Any], customer_id: str, dimensions: Sequence[str]) -> dict[str, Any]:
    """A row of `events_query` as a pack tells it; what is empty is left out."""
    time, known_at, meter, quantity, status, task, claimed, *rest = row
    event = {"id": rest[0], "time": f"{time}Z", "known": f"{known_at}Z", "meter": meter, "quantity": quantity}
    more = {"task": task, "claimed": "" if claimed == customer_id else claimed}
    more |= dict(zip(EVENT_COLUMNS[1:], rest[1 : len(EVENT_COLUMNS)], strict=True))
    event |= {"status": status} | {name: value for name, value in more.items() if value}
    if dimensions:
        event["dimensions"] = dict(zip(dimensions, rest[len(EVENT_COLUMNS) :], strict=True))
    return event


def _costs(world: World, standing: Standing, costing: Costing) -> list[dict[str, Any]]:
    """The dated costs of the kinds of usage that the period has."""
    customers = [standing.customer_id]
    parameters = window_parameters(world.namespace, standing.period, as_of=standing.as_of, customers=customers)
    asked = Asked(standing.period, (), False, WOUND_BACK, customers, parameters)
    kinds = combinations(
        lambda query, given: world.client.query(query, parameters=dict(given)).result_rows, asked, costing
    )
    return [
        {
            "meter": usage.meter,
            "what": {name: getattr(usage, name) for name in COST_KEY[1:] if getattr(usage, name)},
            "valid_from": moment(rate.valid_from),
            **_cost(rate.cost),
        }
        for usage, found in dated(costing, kinds).items()
        for rate in found.rates
    ]


def _cost(it: Price | Unknown) -> dict[str, Any]:
    if isinstance(it, Unknown):
        return {"reason": it.reason}
    told = {"price": plain(it.price), "per": it.per, "currency": it.currency, "entry": it.entry}
    steps = {"tiers": it.tiers, "clock": it.clock}
    told |= {name: [[start, plain(price)] for start, price in found] for name, found in steps.items() if found}
    return told | ({"minimum": plain(it.minimum)} if it.minimum else {})


def groups(usage: Sequence[UsageRow], largest: Sequence[UsageRow] = ()) -> list[Group]:
    """Usage as the verifier of evidence packs groups it; `largest`: the largest quantities, where prices need them."""
    most = {_kind(it): Fraction(it.quantity) for it in largest}
    return [
        Group(
            it.meter,
            it.status,
            it.task,
            it.trial,
            dict(it.dimensions),
            it.events,
            Fraction(it.quantity),
            most.get(_kind(it), Fraction(0)),
            {} if it.cost is None or it.cost.reason else {_asked(it.cost): Fraction(it.cost.quantity)},
            it.cost is None or bool(it.cost.reason),
        )
        for it in usage
    ]


def _asked(it: Cost) -> tuple[str, Fraction, int, str]:
    return it.entry, Fraction(it.price), it.per, it.currency


def _kind(it: UsageRow) -> tuple[Any, ...]:
    return it.meter, it.status, it.task, it.dimensions


def earlier_in_month(connection: Connection, told: Told, every: Sequence[Standing]) -> list[dict[str, Any]]:
    """The lines of the ratings that came before in the same month, for where tiers went on from."""
    month = datetime.fromisoformat(told.facts["month"])
    before = [it for it in every if month <= it.period.start < told.standing.period.start]
    return [
        {
            "rating_id": it.rating_id,
            "month": told.facts["month"],
            "closed_at": None if it.closed_at is None else moment(it.closed_at),
            "lines": [_line(line) for line in lines_of(connection, [it.rating_id])],
        }
        for it in before
    ]


def standing_in(
    connection: Connection, namespace: str, customer_id: str, period: Period
) -> tuple[list[Standing], list[Standing]]:
    """The customer's ratings that touch the period, and all of them."""
    every = standings(connection, namespace, customer_id)
    return [it for it in every if it.period.start < period.end and period.start < it.period.end], every


def moment(value: datetime) -> str:
    """2026-10-01T00:00:00.000000000Z."""
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


def _terms(
    terms: Terms, customer_id: str, period: Period, lines: Sequence[Mapping[Any, Any]], wanted: Wanted
) -> dict[str, Any]:
    """What the customer had agreed to, and the calendar that it is billed by."""
    zone, agreement = terms.customers[customer_id].time_zone, terms.agreements.get(customer_id, Agreement())
    contract = terms.contract(customer_id, period)
    over = contract is not None and contract.plan == ENDED
    if over:
        agreement = Agreement()
    trial_end = terms.trial_end(customer_id, period)
    quantities = {**agreement.quantities}
    addons: dict[str, Any] = {}
    for name in sorted({it.name for it in agreement.addons}):
        rows = [it for it in agreement.addons if it.name == name and it.valid_from < period.end and not it.withdrawn]
        if rows:
            quantities[name] = facts_of(rows)
            packs = {it.agreement_id[:_SHORT_ID]: plain(it.quantity) for it in rows}
            addons[name] = {"number": plain(at(quantities[name], period.end)), "packs": packs}
    own = sorted((it for it in agreement.overrides if it.holds(period)), key=lambda it: it.valid_from)
    metered = () if contract is None or over else _metered(terms, contract.plan, agreement, period)
    return {
        "zone": zone,
        "month": moment(month_of(period.start, zone).start),
        "contract": "" if contract is None else contract.contract_id,
        "trial_end": None if trial_end is None else moment(trial_end),
        "overrides": {it.component: {"agreement": it.agreement_id, "text": it.text} for it in own},
        "addons": addons,
        "quantities": {
            name: [[moment(it.valid_from), plain(it.quantity)] for it in found] for name, found in quantities.items()
        },
        "discounts": [
            {
                "id": it.agreement_id,
                "name": it.name,
                "percent": _text(it.percent),
                "amount": _text(it.amount),
                "components": list(it.components),
                "before_minimum": it.before_minimum,
            }
            for it in agreement.discounts
        ]
        + _above_caps(agreement, lines, period, metered),
        "caps": {
            "held": [
                {"name": it.name, "of": it.of, "limit": plain(limit)}
                for it, limit in holding_in(agreement.caps, month_of(period.start, zone))
            ],
            "metered": list(metered),
            "by": list(wanted.dimensions),
            "period_start": period.start.isoformat(),
        },
    }


def _metered(terms: Terms, plan: str, agreement: Agreement, period: Period) -> tuple[str, ...]:
    """The components that have usage."""
    version = in_force(terms.versions, period)
    if version is None:
        return ()
    book = terms.book(version)
    parts = effective(book, book.plans[plan], agreement, period).plan.components
    return tuple(sorted(it.name for it in parts if it.metrics))


def _above_caps(
    agreement: Agreement, lines: Sequence[Mapping[Any, Any]], period: Period, metered: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What was not billed because it was above a cap: discounts that no record states but the rating itself."""
    stated = {it.agreement_id for it in agreement.discounts}
    above = [it for it in lines if it["kind"] == "discount" and it["explanation"]["discount"] not in stated]
    start = period.start.isoformat()
    limits = [(it, limit) for it in agreement.caps for limit in (it.limit, *it.raised.values())]
    by_name = {
        cap_name(cap, limit, period, of): (cap, limit, of)
        for cap, limit in limits
        for of in (metered, *((name,) for name in metered))
    }
    return [
        {
            "id": line["explanation"]["discount"],
            "name": line["description"],
            "percent": None,
            "amount": plain(-line["amount_exact"]),
            "components": list(of),
            "before_minimum": True,
            "cap": {"name": cap.name, "of": cap.of, "limit": plain(limit), "period_start": start},
        }
        for line in above
        for cap, limit, of in [by_name[line["explanation"]["discount"]]]
    ]


def _line(row: Mapping[Any, Any]) -> dict[str, Any]:
    names = ("line_id", "kind", "component", "metric", "description", "unit", "dimensions", "amount_minor", "currency")
    numbers = {name: plain(row[name]) for name in ("quantity", "amount_exact")}
    return {name: row[name] for name in names} | numbers | {"explanation": row["explanation"]}


def _unrated(connection: Connection, namespace: str, standing: Standing) -> list[dict[str, Any]]:
    table = unrated_usage
    query = select(table).where(
        table.c.namespace == namespace,
        table.c.customer_id == standing.customer_id,
        table.c.period_start == standing.period.start,
        table.c.period_end == standing.period.end,
    )
    return [_left(row) for row in connection.execute(query).mappings()]


def _left(it: Mapping[Any, Any]) -> dict[str, Any]:
    names = ("meter", "events", "reason", "hint")
    return {name: it[name] for name in names} | {
        "quantity": plain(it["quantity"]),
        "dimensions": dict(it["dimensions"]),
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)
