"""What the portal may know of one customer. Every question is asked through here, and of this customer alone.

Columns that a visitor may choose come from closed lists; everything else is bound by the server.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select

from meterhouse_billing import budget_round, fee_records, fee_refunds
from meterhouse_billing.budget_round import Round
from meterhouse_portal.chart import Bars
from meterhouse_rating import credit_book, outlook, periods, report, sums
from meterhouse_rating.credits import Grant
from meterhouse_rating.ledger import CASH
from meterhouse_rating.outlook import Outlook
from meterhouse_rating.periods import Period
from meterhouse_rating.price_api import reading
from meterhouse_rating.price_api.price_list import PriceList
from meterhouse_rating.queries import nanoseconds
from meterhouse_rating.settle import WatermarkWentBack
from meterhouse_rating.settled import contract_in_force, lines_of
from meterhouse_rating.sums import By, Sum, Sums
from meterhouse_rating.together import together
from meterhouse_rating.versions import NotThere
from meterhouse_rating.world import World
from meterhouse_reports import documents
from meterhouse_reports.documents import Document, NoDocument
from meterhouse_store import registry, usage_source
from meterhouse_store.language import Language
from meterhouse_store.meters import Meter
from meterhouse_store.tables import invoices, ledger_entries, ledger_transactions, notices, rated_lines, ratings

_Found = TypeVar("_Found")

GROUPS: Final[Mapping[str, str]] = {
    "model": "model",
    "agent": "agent_name",
    "tool": "tool",
    "status": "status",
    "provider": "provider",
}
"""What usage is shown by -> the column: names of which there are few, however much is used."""

MINE: Final = (
    "namespace = {namespace:String} AND billed_customer_id = {customer:String} "
    "AND event_time >= fromUnixTimestamp64Nano({start_ns:Int64}, 'UTC') "
    "AND event_time < fromUnixTimestamp64Nano({end_ns:Int64}, 'UTC')"
)
"""What a query of the view `usage`, or of Account.source, asks for: this customer's events of a period."""
# Every part of the texts below is a constant of this module or a name of a closed list.
# ruff: noqa: S608


@dataclass(frozen=True)
class Days:
    """Per meter its bars by day, and the totals: meter, quantity, events."""

    bars: Mapping[str, Bars]
    totals: Sequence[tuple[str, Decimal, int]]


@dataclass(frozen=True)
class Account:
    """One customer's world; `meters` are the declared ones.

    What is in SQL can be read without a warehouse: `connect` is called by what reads usage.
    """

    engine: Engine
    connect: Callable[[], Client]
    namespace: str
    customer_id: str
    meters: Mapping[str, Meter]
    now: datetime

    source: str = usage_source.WHOLE
    """The view that is asked for this customer's usage."""

    @property
    def client(self) -> Client:
        """The warehouse. Raises WarehouseUnavailable."""
        return self.connect()

    def soonest(self, ask: Callable[["Account"], _Found]) -> _Found:
        """What `ask` finds of the view that is planned the soonest, once the watermark is known.

        It is asked while it is looked up whether that has all of this customer's usage, and again of the whole where it
        has not. After the watermark: what is known up to that is in conflict in the warehouse already, if it is.
        """
        plain = replace(self, source=usage_source.PLAIN)
        found, source = together(
            lambda: ask(plain), lambda: usage_source.of_customer(self.client, self.namespace, self.customer_id)
        )
        return found if source == plain.source else ask(replace(self, source=source))

    def customer(self) -> registry.Customer:
        """Who it is. Raises RegistryError for one that is not registered any more."""
        found = registry.customer(self.engine, self.namespace, self.customer_id)
        if found is None:
            raise registry.RegistryError(f"there is no customer {self.customer_id!r}")
        return found

    def plan(self, period: Period) -> str | None:
        """The plan that the period is priced by."""
        found = contract_in_force(registry.contracts(self.engine, self.namespace, self.customer_id), period)
        return None if found is None else found.plan or None

    def outlook(self) -> Outlook:
        """The month under way: so far, and to its end. Raises NotThere without a price book."""
        return outlook.look(self.world(), self.customer_id)

    def sums(self, period: Period, *more: By) -> Sums:
        """What was used in a period, by each of `more`."""
        edges = [period.start, period.end]
        return sums.ask(
            self.client, self.namespace, self.customer_id, edges, as_of=self.now, more=more, source=self.source
        )

    def totals(self, period: Period) -> list[tuple[str, Decimal, int]]:
        """Meter, quantity and events of the period."""
        query = f"SELECT meter, sum(quantity), count() FROM {self.source} WHERE {MINE} GROUP BY meter"
        rows = self.ask(query, period)
        return sorted((str(meter), quantity, int(events)) for meter, quantity, events in rows)

    def under_way(self, by: str, month: Period, zone: str) -> tuple[Days, Outlook | None, str]:
        """The month of now by the days of the zone, by meter and one of GROUPS; what it comes to, or why that is not
        known. Asked for at once.
        """
        daily = By(("toDate(event_time, {zone:String})", "meter", GROUPS[by]), {"zone": zone})
        try:
            begun = outlook.begin(self.world(), self.customer_id)
        except NotThere:
            found = self.soonest(lambda it: it.sums(month, daily)).by(daily, month)
            return _by_day(found, month, zone), None, "There are no prices yet."
        told = self.soonest(lambda it: begun.ask(daily, source=it.source))
        days = _by_day(told.by(daily, month), month, zone)
        try:
            return days, begun.outlook(told), ""
        except WatermarkWentBack:
            return days, None, "The warehouse is being brought up to date: amounts come back when it is."

    def ratings(self) -> list[dict[str, Any]]:
        """Its rated periods, latest first, each with its invoice where there is one.

        `amount_minor` is what the invoice asks for, with tax, once it is out; before, what was rated.
        """
        query = (
            select(
                ratings.c.rating_id, ratings.c.period_start, ratings.c.period_end, ratings.c.state, ratings.c.currency,
                ratings.c.plan, ratings.c.total_minor, ratings.c.rated_at, invoices.c.invoice_id,
                invoices.c.state.label("invoice_state"), invoices.c.number, invoices.c.hosted_url,
                invoices.c.finalised_at, invoices.c.paid_at, invoices.c.stripe_total_minor,
            )
            .outerjoin(invoices, invoices.c.rating_id == ratings.c.rating_id)
            .where(ratings.c.namespace == self.namespace, ratings.c.customer_id == self.customer_id)
            .order_by(ratings.c.period_start.desc())
            .limit(120)
        )  # fmt: skip
        with self.engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        for row in rows:
            row["amount_minor"] = row["total_minor"] if row["finalised_at"] is None else row["stripe_total_minor"]
        return rows

    def rating(self, rating_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """A rated period and its lines; None where this customer has none of that id."""
        found = next((it for it in self.ratings() if it["rating_id"] == rating_id), None)
        if found is None:
            return None
        with self.engine.connect() as connection:
            return found, [dict(row) for row in lines_of(connection, [rating_id])]

    def line(self, line_id: str) -> dict[str, Any] | None:
        """A rated line with its rating's period and state; None where this customer has none of that id."""
        query = (
            select(
                rated_lines, ratings.c.customer_id, ratings.c.period_start, ratings.c.period_end, ratings.c.state,
                ratings.c.namespace,
            )
            .join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
            .where(
                rated_lines.c.line_id == line_id,
                ratings.c.namespace == self.namespace,
                ratings.c.customer_id == self.customer_id,
            )
        )  # fmt: skip
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else dict(row)

    def payments(self) -> list[dict[str, Any]]:
        """Money that the customer paid (above zero) and that went back, as the ledger has it, latest first.

        What a platform keeps of it is the seller's matter.
        """
        entries, transactions = ledger_entries, ledger_transactions
        query = (
            select(
                transactions.c.kind, transactions.c.effective_at, entries.c.amount_minor, entries.c.currency,
            )
            .join(transactions, transactions.c.transaction_id == entries.c.transaction_id)
            .where(
                transactions.c.namespace == self.namespace, transactions.c.customer_id == self.customer_id,
                entries.c.account == CASH, transactions.c.kind.not_in((fee_records.KIND, fee_refunds.KIND)),
            )
            .order_by(transactions.c.effective_at.desc(), transactions.c.transaction_id)
            .limit(120)
        )  # fmt: skip
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def credits(self) -> list[Grant]:
        """The grants with what is left of each."""
        customer = self.customer()
        with self.engine.connect() as connection:
            return list(credit_book.standing(connection, self.namespace, self.customer_id, customer.currency))

    def corrections(self) -> list[dict[str, Any]]:
        """What was corrected in closed periods."""
        return report.corrections(self.engine, self.namespace, self.customer_id)

    def document(self, rating: Mapping[str, Any], language: Language) -> Document:
        """The invoice of a rated period, or its usage statement where there is no invoice. Raises NoDocument."""
        span = f"{periods.short(rating['period_start'])}..{periods.short(rating['period_end'])}"
        try:
            return documents.invoice(self.engine, self.namespace, self.customer_id, span, language)
        except NoDocument:
            return documents.statement(self.engine, self.namespace, self.customer_id, span, language)

    def prices(self) -> PriceList | None:
        """The price list of now. Raises NotPriced."""
        return reading.prices_of(self.engine, self.namespace, self.customer_id, self.now)

    def budgets(self) -> Round:
        """How the budgets stand, and pauses."""
        return budget_round.run(self.world(), self.customer_id, write=False)

    def notices(self) -> list[dict[str, Any]]:
        """What the customer was told, latest first; the last hundred."""
        query = (
            select(notices)
            .where(notices.c.namespace == self.namespace, notices.c.customer_id == self.customer_id)
            .order_by(notices.c.created_at.desc(), notices.c.notice_id)
            .limit(100)
        )
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def world(self) -> World:
        """What rating and billing go by."""
        return World(self.engine, self.client, self.namespace, self.meters, now=lambda: self.now)

    def bound(self, period: Period) -> dict[str, Any]:
        """The parameters of MINE."""
        return {
            "namespace": self.namespace,
            "customer": self.customer_id,
            "start_ns": nanoseconds(period.start),
            "end_ns": nanoseconds(period.end),
        }

    def ask(self, query: str, period: Period, **bound: Any) -> Sequence[Sequence[Any]]:
        """Rows of the warehouse; the query has MINE in it."""
        return self.client.query(query, parameters=self.bound(period) | bound).result_rows


def month(text: str | None, zone: str, now: datetime) -> Period:
    """The month as written, or the one of now. Raises PeriodError."""
    return periods.month_of(now, zone) if text is None else periods.parse(text, zone)


def _by_day(told: Iterable[Sum], period: Period, zone: str) -> Days:
    days = tuple(_days(period, zone))
    place = {day: at for at, day in enumerate(days)}
    quantities: dict[tuple[str, str, date], Decimal] = defaultdict(Decimal)
    totals: dict[str, tuple[Decimal, int]] = {}
    for it in told:
        day, meter, name = it.values
        so_far = totals.get(meter, (Decimal(0), 0))
        totals[meter] = (so_far[0] + it.quantity, so_far[1] + it.events)
        quantities[meter, str(name) or "(none)", day] += it.quantity
    found: dict[str, dict[str, list[Decimal]]] = defaultdict(lambda: defaultdict(lambda: [Decimal(0)] * len(days)))
    for (meter, name, day), quantity in quantities.items():
        if day in place:
            found[meter][name][place[day]] = max(quantity, Decimal(0))
    bars = {meter: Bars(days, sorted(series.items())) for meter, series in found.items()}
    return Days(bars, sorted((meter, *sums) for meter, sums in totals.items()))


def _days(period: Period, zone: str) -> Iterator[date]:
    place = ZoneInfo(zone)
    day, last = period.start.astimezone(place).date(), (period.end - timedelta(microseconds=1)).astimezone(place).date()
    while day <= last:
        yield day
        day += timedelta(days=1)
