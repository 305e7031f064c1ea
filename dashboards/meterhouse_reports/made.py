"""Makes a report: asks the warehouse, and whether the warehouse has all that the ledger has."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, func, select

from meterhouse_rating.periods import FIRST_YEAR, LAST_YEAR
from meterhouse_reports.definitions import CannotBe, Report
from meterhouse_store import tables

_MONTH: Final = re.compile(r"([0-9]{4})-([0-9]{2})")
_COPIED: Final = (
    ("ledger transactions", tables.ledger_transactions, "uniqExact(transaction_id)", "ledger_entries", ""),
    ("closed ratings", tables.ratings, "count()", "finance_reconciliation", "state = 'closed'"),
    ("invoices", tables.invoices, "count()", "finance_invoices", ""),
)


@dataclass(frozen=True)
class Span:
    """[start, end) in UTC, for which a report is made."""

    start: datetime
    end: datetime

    @property
    def is_of_days(self) -> bool:
        """Whether it begins and ends with a day of UTC."""
        return all(at.astimezone(UTC).time() == time.min for at in (self.start, self.end))


@dataclass(frozen=True)
class Made:
    """A report as it came out: rows of text, whole numbers, Decimal (amounts in major units), times and truths."""

    report: Report
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def span_of(text: str, now: datetime) -> Span:
    """`2026-10`, `2026-08..2026-10`, `2026`, or dates as START..END (END is not in it); '' for the last whole month.

    Months are UTC's: what is rated counts where the middle of its period lies. Raises CannotBe.
    """
    if not text:
        this = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return Span(_months_on(this, -1), this)
    first, dots, last = text.partition("..")
    if re.fullmatch(r"[0-9]{4}", text):
        first, last, dots = f"{text}-01", f"{text}-12", ".."
    if _MONTH.fullmatch(first) and (not dots or _MONTH.fullmatch(last)):
        start, end = _month(first), _months_on(_month(last if dots else first), 1)
    elif dots:
        start, end = _day(first), _day(last)
    else:
        raise CannotBe(f"{text!r} is no period: write 2026-10, 2026-08..2026-10, 2026 or 2026-10-01..2026-10-15")
    if start >= end:
        raise CannotBe(f"{text} ends before it begins")
    return Span(start, end)


def make(
    client: Client, namespace: str, report: Report, span: Span, by: Sequence[str], customer: str | None = None
) -> Made:
    """The report's rows. Raises CannotBe; clickhouse_connect's errors pass through."""
    result = client.query(
        report.sql(by, customer, whole_days=span.is_of_days), parameters=parameters(namespace, span, customer)
    )
    rows = tuple(tuple(_aware(value) for value in row) for row in result.result_rows)
    return Made(report, report.columns(by), rows)


def as_file(
    client: Client, namespace: str, report: Report, span: Span, by: Sequence[str], customer: str | None, form: str
) -> bytes:
    """The same as ClickHouse writes it in one of its formats, Parquet for one."""
    told: bytes = client.raw_query(
        report.sql(by, customer, whole_days=span.is_of_days), parameters(namespace, span, customer), fmt=form
    )
    return told


def parameters(namespace: str, span: Span, customer: str | None) -> dict[str, Any]:
    """What the queries of reports are told."""
    at = {name: f"{value:%Y-%m-%d %H:%M:%S.%f}" for name, value in (("start", span.start), ("end", span.end))}
    return {"namespace": namespace, **at, **({} if customer is None else {"customer": customer})}


def lacking(engine: Engine, client: Client, namespace: str) -> list[str]:
    """What the warehouse's copy lacks of the SQL database, in sentences; empty where a report has all there is."""
    found = []
    with engine.connect() as connection:
        for what, table, count, view, where in _COPIED:
            chosen = select(func.count()).select_from(table).where(table.c.namespace == namespace)
            if where:
                chosen = chosen.where(table.c.state == "closed")
            there = int(connection.execute(chosen).scalar_one())
            query = f"SELECT {count} FROM {view} WHERE namespace = {{namespace:String}}"  # noqa: S608 - fixed parts
            here = int(client.query(query, parameters={"namespace": namespace}).result_rows[0][0])
            if here != there:
                run = "bill run" if table is tables.invoices else "rate run"
                missing = f"{here:,} of {there:,} {what} are in the warehouse"
                found.append(f"{missing}: `meterhouse {run} --due` brings what is missing there")
    return found


def totals(made: Made) -> Mapping[str, Mapping[str, Decimal]]:
    """Currency -> measure -> sum, of the amounts; currencies are never added together.

    There is no sum of what is not known for one of the rows.
    """
    sums: dict[str, dict[str, Decimal]] = {}
    if made.report.apart != "currency":
        return sums
    at = made.columns.index("currency")
    for row in made.rows:
        of_currency = sums.setdefault(row[at], {})
        for name, value in zip(made.columns, row, strict=True):
            if name in made.report.amounts() and value is not None:
                of_currency[name] = of_currency.get(name, Decimal(0)) + value
    for name in made.report.unknown:
        for row in made.rows:
            if row[made.columns.index(name)] is None:
                sums[row[at]].pop(name, None)
    return sums


def _month(text: str) -> datetime:
    try:
        at = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
    except ValueError:
        raise CannotBe(f"{text} is no month: write it as 2026-10") from None
    return _within_calendar(at, text)


def _months_on(month: datetime, count: int) -> datetime:
    whole = month.year * 12 + month.month - 1 + count
    return month.replace(year=whole // 12, month=whole % 12 + 1)


def _day(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise CannotBe(f"{text!r} is no date: write 2026-10-01") from None
    at = _within_calendar(at, text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _within_calendar(at: datetime, text: str) -> datetime:
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise CannotBe(f"{text} is not within the years {FIRST_YEAR} to {LAST_YEAR}")
    return at


def _aware(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value
