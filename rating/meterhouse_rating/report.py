"""Ratings for people and machines: a table per customer of what was used and what it costs, or one JSON document."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, RowMapping, select

from meterhouse_rating import results
from meterhouse_rating.engine import BY_CHOICE
from meterhouse_rating.late import LateUsage
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period, overlaps, parse
from meterhouse_rating.results import Moment
from meterhouse_rating.settle import Outcome
from meterhouse_store import registry
from meterhouse_store.numbers import plain
from meterhouse_store.tables import rated_lines, ratings, unrated_usage

Row = RowMapping | dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Rows of `ratings`, their lines by rating id, rows of `unrated_usage`, and late usage."""

    ratings: Sequence[Row]
    lines: Mapping[str, Sequence[Row]]
    unrated: Sequence[Row]
    late: Sequence[LateUsage] = ()

    @property
    def exceptions(self) -> bool:
        """Whether there is usage that is neither on a line nor free by choice."""
        return bool(self.late) or any(row["reason"] not in BY_CHOICE for row in self.unrated)


def stored(
    engine: Engine, namespace: str, period: str | None, customer: str | None, late: Sequence[LateUsage] = ()
) -> Report:
    """What is stored of the period as written (each customer's own, and whatever overlaps it) or of all periods."""
    zones = {it.customer_id: it.time_zone for it in registry.customers(engine, namespace)}
    with engine.connect() as connection:
        found: list[list[Row]] = []
        for table in (ratings, unrated_usage):
            query = select(table).where(table.c.namespace == namespace)
            if customer is not None:
                query = query.where(table.c.customer_id == customer)
            rows = connection.execute(query.order_by(table.c.customer_id, table.c.period_start)).mappings()
            found.append(
                [
                    row
                    for row in rows
                    if period is None or _touches(row, parse(period, zones.get(row["customer_id"], "UTC")))
                ]
            )
        lines: dict[str, list[Row]] = {row["rating_id"]: [] for row in found[0]}
        every = select(rated_lines).join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
        every = every.where(ratings.c.namespace == namespace)
        for line in connection.execute(every.order_by(rated_lines.c.rating_id, rated_lines.c.position)).mappings():
            if line["rating_id"] in lines:
                lines[line["rating_id"]].append(line)
    return Report(found[0], lines, found[1], late)


def imagined(namespace: str, outcomes: Iterable[Outcome], moment: Moment, late: Sequence[LateUsage]) -> Report:
    """What a dry run would have stored."""
    rows: list[Row] = []
    lines: dict[str, Sequence[Row]] = {}
    unrated: list[Row] = []
    for it in outcomes:
        unrated += results.unrated_rows(namespace, it.customer_id, it.period, it.leftovers)
        if it.rated is not None and it.inputs is not None:
            row = results.rating_row(
                namespace, it.customer_id, it.period, it.inputs, it.rated, moment, close=it.what == "closed"
            )
            rows.append(row)
            lines[row["rating_id"]] = results.line_rows(row["rating_id"], it.inputs.currency, it.rated)
    return Report(rows, lines, unrated, late)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document; numbers of usage and money are text, minor units are integers."""
    return {
        "ratings": [_rating_json(report, rating) for rating in report.ratings],
        "unrated": [_unrated_json(row) for row in report.unrated],
        "late": [
            {
                "customer_id": it.customer_id,
                "period_start": it.period.start.isoformat(),
                "period_end": it.period.end.isoformat(),
                "meter": it.meter,
                "events": it.events,
                "quantity": plain(it.quantity),
            }
            for it in report.late
        ],
    }


def as_text(report: Report) -> str:
    """The report as tables that line up, one per customer and period, then what needs a look."""
    blocks = [_rating_text(report, rating) for rating in report.ratings]
    left = [row for row in report.unrated if row["reason"] not in BY_CHOICE]
    if left:
        rows = [
            (row["customer_id"], row["meter"], plain(row["quantity"]), row["reason"], f"-> {row['hint']}")
            for row in left
        ]
        blocks.append("Unrated usage (what to do)\n" + _table(rows, right={2}))
    if report.late:
        rows_late = [(it.customer_id, str(it.period), it.meter, plain(it.quantity)) for it in report.late]
        blocks.append("Arrived after the period was closed (not billed)\n" + _table(rows_late, right={3}))
    return "\n\n".join(blocks) if blocks else "Nothing is rated yet: `meterhouse rate run --due`."


def _rating_text(report: Report, rating: Row) -> str:
    currency = rating["currency"]
    period = Period(rating["period_start"], rating["period_end"])
    head = f"{rating['customer_id']}  {period}  plan {rating['plan']}, price book version {rating['book_version']}"
    head += f", {rating['state']}"
    rows = [
        (line["description"], plain(line["quantity"]), line["unit"], show(line["amount_minor"], currency), currency)
        for line in report.lines[rating["rating_id"]]
    ]
    rows += [
        (row["meter"], plain(row["quantity"]), row["reason"], "free", "")
        for row in _left_of(report, rating)
        if row["reason"] in BY_CHOICE
    ]
    rows.append(("Total", "", "", show(rating["total_minor"], currency), currency))
    return f"{head}\n{_table(rows, right={1, 3})}"


def _rating_json(report: Report, rating: Row) -> dict[str, Any]:
    currency = rating["currency"]
    lines = report.lines[rating["rating_id"]]
    meters: dict[str, dict[str, Decimal]] = {}
    for line in lines:
        for meter, quantity in line["explanation"].get("meters", {}).items():
            _count(meters, meter, "rated", Decimal(quantity))
    for row in _left_of(report, rating):
        _count(meters, row["meter"], "unbilled" if row["reason"] in BY_CHOICE else "unrated", row["quantity"])
    return {
        "rating_id": rating["rating_id"],
        "customer_id": rating["customer_id"],
        "period_start": rating["period_start"].isoformat(),
        "period_end": rating["period_end"].isoformat(),
        "state": rating["state"],
        "currency": currency,
        "plan": rating["plan"],
        "book_version": rating["book_version"],
        "as_of": rating["as_of"].isoformat(),
        "total_minor": rating["total_minor"],
        "total": show(rating["total_minor"], currency),
        "lines": [
            {
                "line_id": line["line_id"],
                "kind": line["kind"],
                "component": line["component"],
                "metric": line["metric"],
                "description": line["description"],
                "quantity": plain(line["quantity"]),
                "unit": line["unit"],
                "dimensions": line["dimensions"],
                "amount_minor": line["amount_minor"],
                "amount": show(line["amount_minor"], currency),
            }
            for line in lines
        ],
        "meters": {
            meter: {key: plain(value) for key, value in counted.items()} for meter, counted in sorted(meters.items())
        },
    }


def _count(meters: dict[str, dict[str, Decimal]], meter: str, key: str, quantity: Decimal) -> None:
    zero = dict.fromkeys(("used", "rated", "unbilled", "unrated"), Decimal(0))
    counted = meters.setdefault(meter, zero)
    counted[key] += quantity
    counted["used"] += quantity


def _unrated_json(row: Row) -> dict[str, Any]:
    return {
        "customer_id": row["customer_id"],
        "period_start": row["period_start"].isoformat(),
        "period_end": row["period_end"].isoformat(),
        "meter": row["meter"],
        "dimensions": row["dimensions"],
        "events": row["events"],
        "quantity": plain(row["quantity"]),
        "reason": row["reason"],
        "hint": row["hint"],
    }


def _left_of(report: Report, rating: Row) -> list[Row]:
    key = (rating["customer_id"], rating["period_start"], rating["period_end"])
    return [row for row in report.unrated if (row["customer_id"], row["period_start"], row["period_end"]) == key]


def _touches(row: Row, asked: Period) -> bool:
    return overlaps(Period(row["period_start"], row["period_end"]), asked)


def _table(rows: Sequence[tuple[str, ...]], right: set[int]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
