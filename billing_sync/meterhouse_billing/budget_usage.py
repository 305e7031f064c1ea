"""What is used of budgets: units from the usage view, money by rating the month as it is now. Writes nothing.

Everything is as of one moment up to which all collectors are in the warehouse, so that what is used and what of agents'
leases has arrived speak of the same events.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection

from meterhouse_rating import known, periods
from meterhouse_rating.changes import Changes
from meterhouse_rating.credit_lines import grants_of
from meterhouse_rating.credits import usable
from meterhouse_rating.engine import RatedLine
from meterhouse_rating.money import decimal_of, of_minor
from meterhouse_rating.periods import Period, PeriodError, month_of
from meterhouse_rating.queries import nanoseconds
from meterhouse_rating.rates import rate_at
from meterhouse_rating.results import Moment, rating_id
from meterhouse_rating.settle import Outcome, WatermarkWentBack, settle
from meterhouse_rating.settled import CLOSED, Past, Unwritten, pasts
from meterhouse_rating.terms import Terms
from meterhouse_rating.usage import Found, Watermark
from meterhouse_rating.world import World
from meterhouse_store.tables import rated_lines

Line = RatedLine | Mapping[str, Any]
"""A line as it would be rated now, or a row of `rated_lines` of what is closed."""

AGENT: Final = "agent_id"

_UNITS: Final = (
    "SELECT billed_customer_id, agent_id, meter, sum(quantity) FROM usage WHERE namespace = {namespace:String} "
    "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC') "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') "
    "AND billed_customer_id IN {customers:Array(String)} AND status NOT IN {free:Array(String)} "
    "GROUP BY billed_customer_id, agent_id, meter"
)
_ARRIVED: Final = (
    "SELECT lease_id, meter, sum(quantity) FROM usage WHERE namespace = {namespace:String} "
    "AND event_time >= fromUnixTimestamp64Nano({since_ns:Int64}, 'UTC') "
    "AND known_at <= fromUnixTimestamp64Nano({as_of_ns:Int64}, 'UTC') "
    "AND lease_id IN {leases:Array(String)} GROUP BY lease_id, meter"
)
_BEFORE_GRANTED: Final = timedelta(days=1)
"""Clocks of agents may be wrong: events of a lease are looked for from so long before it was granted."""


@dataclass(frozen=True)
class Reading:
    """The moment of which everything is told, and the terms it is rated by (None: no price book is published)."""

    world: World
    terms: Terms | None
    mark: Watermark
    as_of: datetime
    now: datetime

    def units(
        self, period: Period, customers: Sequence[str], free: Iterable[str]
    ) -> dict[str, dict[tuple[str, str], Decimal]]:
        """Per customer what its agents used of each meter in the period, of calls with a status that is billed."""
        parameters = {
            "namespace": self.world.namespace,
            "start_ns": nanoseconds(period.start),
            "end_ns": nanoseconds(period.end),
            "as_of_ns": nanoseconds(self.as_of),
            "customers": list(customers),
            "free": sorted(free),
        }
        found: dict[str, dict[tuple[str, str], Decimal]] = {}
        for customer, agent, meter, quantity in self.world.client.query(_UNITS, parameters=parameters).result_rows:
            found.setdefault(customer, {})[agent, meter] = quantity
        return found

    def arrived(self, leases: Mapping[str, datetime]) -> dict[str, dict[str, Decimal]]:
        """Per lease (with the time when it was granted) the quantities of its events that are in the warehouse."""
        if not leases:
            return {}
        parameters = {
            "namespace": self.world.namespace,
            "since_ns": nanoseconds(min(leases.values()) - _BEFORE_GRANTED),
            "as_of_ns": nanoseconds(self.as_of),
            "leases": sorted(leases),
        }
        found: dict[str, dict[str, Decimal]] = {}
        for lease, meter, quantity in self.world.client.query(_ARRIVED, parameters=parameters).result_rows:
            found.setdefault(lease, {})[meter] = quantity
        return found


@dataclass(frozen=True)
class Bill:
    """A customer's month as it would be rated now: lines, the credits before it, and what it cannot be rated for."""

    lines: tuple[Line, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    trouble: str = ""

    @property
    def used(self) -> Decimal:
        """What usage comes to, in the customer's currency, before discounts, fees and credits."""
        return sum((_exact(line) for line in self.lines if _kind(line) == "usage"), Decimal(0))

    def averages(self) -> dict[str, Decimal]:
        """Per meter what its usage cost so far, per unit of all meters on the same lines."""
        amounts: dict[str, Decimal] = {}
        quantities: dict[str, Decimal] = {}
        for line in self.lines:
            told = _explanation(line).get("meters", {})
            whole = sum((Decimal(it) for it in told.values()), Decimal(0))
            for meter in told if _kind(line) == "usage" else ():
                amounts[meter] = amounts.get(meter, Decimal(0)) + _exact(line)
                quantities[meter] = quantities.get(meter, Decimal(0)) + whole
        return {meter: amount / quantities[meter] for meter, amount in amounts.items() if quantities[meter] > 0}

    def asked(self) -> dict[str, Decimal]:
        """Per meter the most that a provider asked for a unit of its usage, in the plan's currency, where it is marked
        up and known.
        """
        found: dict[str, Decimal] = {}
        for it in self.outcomes:
            if it.inputs is None:
                continue
            own, start = it.inputs.plan.currency, it.period.start
            for row in it.inputs.usage:
                cost = row.cost
                if cost is None or cost.reason:
                    continue
                rate = rate_at(it.inputs.book.rates, cost.currency, own, start)
                if rate is None and cost.currency != own:
                    continue  # its usage is left unrated, and so costs nothing yet
                unit = decimal_of(Fraction(cost.price) / cost.per) * (1 if rate is None else rate.rate)
                found[row.meter] = max(found.get(row.meter, Decimal(0)), unit)
        return found

    def prepaid(self, currency: str) -> tuple[Decimal, Decimal]:
        """The credits that there are for the month, and what of them its usage takes, after discounts."""
        there, reduced = Decimal(0), Decimal(0)
        for it in self.outcomes[:1]:
            if it.inputs is not None:
                there += of_minor(sum(grant.left_minor for grant in usable(it.inputs.credits, it.period)), currency)
        for line in self.lines:
            bought = sum(grant.left_minor for grant in grants_of(_explanation(line), currency))
            there += of_minor(bought, currency) if _kind(line) == "credit_pack" else 0
            reduced += of_minor(_minor(line), currency) if _kind(line) in ("usage", "discount") else 0
        return there, max(Decimal(0), reduced)


@dataclass
class Bills:
    """Months of customers, rated once each. `by_agent`: what single agents come to will be asked, too."""

    reading: Reading
    customers: Sequence[str]
    by_agent: bool = False
    _found: dict[Period, dict[str, Found]] = field(default_factory=dict)
    _past: dict[Period, dict[str, Past]] = field(default_factory=dict)
    _bills: dict[tuple[str, Period, tuple[datetime, str] | None], Bill] = field(default_factory=dict)

    def spent(self, customer_id: str, period: Period, agent_id: str) -> tuple[Decimal, str]:
        """What usage of the period comes to in money, and what stands in the way of knowing it ('' nothing).

        A day's or week's, or one agent's, is what its months come to with it, less what they come to without it.
        """
        total, trouble = Decimal(0), ""
        zone = self.reading.terms.customers[customer_id].time_zone if self.reading.terms else "UTC"
        month = month_of(period.start, zone)
        while month.start < period.end:
            upto = min(month.end, period.end)
            bill = self.bill(customer_id, Period(month.start, upto))
            total, trouble = total + bill.used, trouble or bill.trouble
            if agent_id or period.start > month.start:
                total -= self.bill(customer_id, Period(month.start, upto), (period.start, agent_id)).used
            month = month_of(month.end, zone)
        return total, trouble

    def bill(self, customer_id: str, counted: Period, without: tuple[datetime, str] | None = None) -> Bill:
        """A month with its usage up to the end of `counted`; without what one agent ('' any) used from a moment on."""
        key = customer_id, counted, without
        if key not in self._bills:
            self._bills[key] = self._made(customer_id, counted, without)
        return self._bills[key]

    def _made(self, customer_id: str, counted: Period, without: tuple[datetime, str] | None) -> Bill:
        reading, terms = self.reading, self.reading.terms
        if terms is None:
            return Bill(trouble="no price book is published")
        lines: list[Line] = []
        outcomes: list[Outcome] = []
        namespace, dry = reading.world.namespace, Unwritten()
        month = month_of(counted.start, terms.customers[customer_id].time_zone)
        with reading.world.engine.connect() as connection:
            standing = self._pasts(connection, month)[customer_id].standing
            closed = [it.period for it in standing if it.state == CLOSED]
            # What was closed by hand may lie across the edge of a month: it counts in the one that it ends in.
            for part in closed:
                if month.start < part.end <= month.end:
                    is_it = rated_lines.c.rating_id == rating_id(namespace, customer_id, part)
                    lines += [dict(row) for row in connection.execute(rated_lines.select().where(is_it)).mappings()]
            rest = periods.without(month, closed)
            for part in (part for piece in rest for part in terms.parts(customer_id, piece, closed)):
                found = self._found_in(customer_id, part, counted.end, without)
                past = self._pasts(connection, part)[customer_id].after(customer_id, dry)
                changes = Changes(namespace)
                moment = Moment(reading.as_of, reading.mark.as_json(), reading.now)
                try:
                    outcome = settle(connection, terms, customer_id, part, found, past, moment, reading.mark, changes)
                except (PeriodError, WatermarkWentBack) as trouble:
                    return Bill(tuple(lines), tuple(outcomes), str(trouble))
                changes.imagine(dry)
                outcomes.append(outcome)
                if outcome.rated is None and outcome.leftovers:
                    return Bill(tuple(lines), tuple(outcomes), outcome.leftovers[0].hint)
                lines += outcome.rated.lines if outcome.rated is not None else ()
        return Bill(tuple(lines), tuple(outcomes))

    def _pasts(self, connection: Connection, period: Period) -> dict[str, Past]:
        terms = self.reading.terms
        if period not in self._past and terms is not None:
            zones = {name: terms.customers[name].time_zone for name in self.customers}
            long = terms.reaches_back(period)
            self._past[period] = pasts(connection, self.reading.world.namespace, zones, period, for_long=long)
        return self._past[period]

    def _found_in(self, customer_id: str, part: Period, until: datetime, without: tuple[datetime, str] | None) -> Found:
        end = min(part.end, until)
        if end <= part.start:
            return Found()
        found = self._gathered(Period(part.start, end)).get(customer_id, Found())
        if without is None or end <= without[0]:
            return found
        start, agent = max(without[0], part.start), without[1]
        # What is measured (a maximum, different users) cannot be taken apart: it stays.
        whole = {meter for it in found.measures for meter in it.measurement.metric.meters}
        taken = [
            replace(row, events=-row.events, quantity=-row.quantity)
            for row in self._gathered(Period(start, end)).get(customer_id, Found()).rows
            if row.meter not in whole and agent in ("", dict(row.dimensions).get(AGENT))
        ]
        return replace(found, rows=(*found.rows, *taken))

    def _gathered(self, period: Period) -> dict[str, Found]:
        reading = self.reading
        if period not in self._found and reading.terms is not None:
            only, finer = list(self.customers), (AGENT,) if self.by_agent else ()
            self._found[period] = known.gather(reading.world, reading.terms, period, reading.as_of, only, finer=finer)
        return self._found[period]


def _kind(line: Line) -> str:
    return line.kind if isinstance(line, RatedLine) else str(line["kind"])


def _explanation(line: Line) -> Mapping[str, Any]:
    return line.explanation if isinstance(line, RatedLine) else line["explanation"]


def _exact(line: Line) -> Decimal:
    return line.amount_exact if isinstance(line, RatedLine) else Decimal(str(line["amount_exact"]))


def _minor(line: Line) -> int:
    return line.amount_minor if isinstance(line, RatedLine) else int(str(line["amount_minor"]))
