"""Ratings for people and machines: a table per customer of what was used and what it costs, or one JSON document."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from meterhouse_rating import recorrect, results
from meterhouse_rating.causes import causes
from meterhouse_rating.engine import BY_CHOICE
from meterhouse_rating.late import LateUsage
from meterhouse_rating.layout import money, number, table, unit
from meterhouse_rating.money import show
from meterhouse_rating.periods import Period, overlaps, parse
from meterhouse_rating.rated import ABOUT_CLOSED
from meterhouse_rating.results import Moment, Row
from meterhouse_rating.settle import Outcome
from meterhouse_rating.settled import CLOSED
from meterhouse_store import registry
from meterhouse_store.last_runs import LastRun
from meterhouse_store.numbers import D, plain
from meterhouse_store.tables import rated_lines, ratings, unrated_usage

SHORT_ID: Final = 10
"""So many digits of a line's id are shown; `rate explain` takes any beginning that only one line has."""

_WIDTH: Final = 100
"""Lines' ids are shown where the table stays within so many columns."""


@dataclass(frozen=True)
class Report:
    """Rows of `ratings`, their lines by rating id, rows of `unrated_usage`, and late usage; `dry_run`: none stored."""

    ratings: Sequence[Row]
    lines: Mapping[str, Sequence[Row]]
    unrated: Sequence[Row]
    late: Sequence[LateUsage] = ()
    dry_run: bool = False

    @property
    def closed(self) -> bool:
        """Whether any rating is closed, so that usage may have come too late for it."""
        return any(rating["state"] == CLOSED for rating in self.ratings)

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


def corrections(engine: Engine, namespace: str, customer: str | None) -> list[dict[str, Any]]:
    """The corrections of closed periods, by customer: on which rating they stand, or in which credit note."""
    of_rating = (ratings.c.customer_id, ratings.c.state, ratings.c.period_start, ratings.c.period_end)
    query = select(rated_lines, *of_rating).join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
    query = query.where(ratings.c.namespace == namespace, rated_lines.c.kind.in_(ABOUT_CLOSED))
    if customer is not None:
        query = query.where(ratings.c.customer_id == customer)
    found = []
    with engine.connect() as connection:
        for row in connection.execute(query.order_by(ratings.c.period_start, rated_lines.c.position)).mappings():
            period = Period(row["period_start"], row["period_end"])
            found.append(_correction(row, row["customer_id"], f"{period} ({row['state']})"))
        for note in recorrect.notes(connection, namespace, customer):
            on = f"credit note {note['credit_note_id'][:SHORT_ID]}"
            found += [_correction(line, note["customer_id"], on) for line in note["lines"]]
    return sorted(found, key=lambda it: (it["customer_id"], it["period"]))


def _correction(line: Mapping[Any, Any], customer_id: str, on: str) -> dict[str, Any]:
    corrects = line["explanation"]["corrects"]
    quantity = line["quantity"]
    return {
        "customer_id": customer_id,
        "line_id": line["line_id"],
        "corrects_line": corrects["line"] or None,
        "period": corrects["period"],
        "description": line["description"],
        "quantity": quantity if isinstance(quantity, str) else plain(quantity),
        "amount_minor": line["amount_minor"],
        "amount": show(line["amount_minor"], line["currency"]),
        "currency": line["currency"],
        "on": on,
    }


def lines_named(engine: Engine, namespace: str, beginning: str) -> Sequence[Row]:
    """Up to two lines whose id begins so, each with its rating's customer, period, state and as_of.

    A line of a credit note has the period of the rating that it corrects.
    """
    of_rating = (ratings.c.customer_id, ratings.c.period_start, ratings.c.period_end, ratings.c.state, ratings.c.as_of)
    query = select(rated_lines, *of_rating).join(ratings, ratings.c.rating_id == rated_lines.c.rating_id)
    query = query.where(ratings.c.namespace == namespace)
    with engine.connect() as connection:
        named = query.where(rated_lines.c.line_id.startswith(beginning, autoescape=True)).limit(2)
        found: list[Row] = [dict(row) for row in connection.execute(named).mappings()]
        return [*found, *_noted(connection, namespace, beginning)][:2]


def _noted(connection: Connection, namespace: str, beginning: str) -> list[Row]:
    found: list[Row] = []
    for note in recorrect.notes(connection, namespace):
        for line in note["lines"]:
            if line["line_id"].startswith(beginning):
                of = select(ratings.c.period_start, ratings.c.period_end)
                period = connection.execute(of.where(ratings.c.rating_id == note["rating_id"])).mappings().one()
                exact = {name: D(line[name]) for name in ("quantity", "amount_exact")}
                told = {name: note[name] for name in ("customer_id", "as_of")} | {"state": "credit note"}
                found.append(line | exact | told | dict(period))
    return found


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
    return Report(rows, lines, unrated, late, dry_run=True)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document; numbers of usage and money are text, minor units are integers."""
    return {
        "dry_run": report.dry_run,
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
                "policy": it.policy,
            }
            for it in report.late
        ],
    }


def as_text(report: Report, *, line_ids: bool = False, empty: str = "Nothing is rated yet.") -> str:
    """The report as tables that line up, one per customer and period, then what needs a look by its causes.

    `line_ids`: show the beginnings of the lines' ids however wide that gets; `empty`: what to say of an empty report.
    """
    blocks = [_rating_text(report, rating, line_ids) for rating in report.ratings]
    left = causes(row for row in report.unrated if row["reason"] not in BY_CHOICE)
    if left:
        blocks.append("Unrated usage (what to do)\n" + "\n".join(str(cause) for cause in left))
    if report.late:
        rows_late = [(it.customer_id, str(it.period), it.meter, number(it.quantity), it.becomes) for it in report.late]
        blocks.append("Arrived after the period was closed\n" + table(rows_late, right={3}))
    return "\n\n".join(blocks) if blocks else empty


def runs_as_text(runs: Sequence[LastRun]) -> str:
    """When commands were last run, how that ended, and when it last went well."""
    rows = [("Last runs", "began", "ended", "exit code", "succeeded")]
    for it in runs:
        ended = "not yet, or killed" if it.unfinished else _minute(it.finished_at)
        code = "" if it.exit_code is None or it.unfinished else str(it.exit_code)
        rows.append((it.command, _minute(it.started_at), ended, code, _minute(it.succeeded_at)))
    return table(rows, right={3})


def _minute(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _rating_text(report: Report, rating: Row, line_ids: bool) -> str:
    currency = rating["currency"]
    period = Period(rating["period_start"], rating["period_end"])
    head = f"{rating['customer_id']}  {period}  plan {rating['plan']}, price book version {rating['book_version']}"
    head += ", not written (dry run)" if report.dry_run else f", {rating['state']}"
    rows = [
        (
            line["description"],
            number(line["quantity"]),
            unit(line["unit"], line["quantity"]),
            money(line["amount_minor"], currency),
            currency,
            line["line_id"][:SHORT_ID],
        )
        for line in report.lines[rating["rating_id"]]
    ]
    free = [row for row in _left_of(report, rating) if row["reason"] in BY_CHOICE]
    rows += [
        (row["meter"], number(row["quantity"]), row["reason"], "free", "", "")
        for row in sorted(free, key=lambda row: (row["meter"], row["reason"]))
    ]
    rows.append(("Total", "", "", money(rating["total_minor"], currency), currency, ""))
    shown = table(rows, right={1, 3})
    if not line_ids and max(len(line) for line in shown.splitlines()) > _WIDTH:
        shown = table([row[:-1] for row in rows], right={1, 3})
    return f"{head}\n{shown}"


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
