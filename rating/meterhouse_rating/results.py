"""Writes one customer's rating: replaced while it is open, frozen and posted to the ledger when it is closed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select

from meterhouse_rating import credit_book, ledger
from meterhouse_rating.engine import Inputs, Leftover, Rated, RatedLine
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period
from meterhouse_rating.settled import CLOSED, OPEN, Standing
from meterhouse_store.numbers import plain
from meterhouse_store.tables import rated_lines, ratings, unrated_usage

Row = RowMapping | dict[str, Any]
"""A row of `ratings`, `rated_lines` or `unrated_usage`: read from SQL, or as it would be written."""


@dataclass(frozen=True)
class Moment:
    """When and on what a rating is made: `as_of` the latest receipt that counts, `watermark` per collector."""

    as_of: datetime
    watermark: Mapping[str, Any]
    rated_at: datetime


def rating_id(namespace: str, customer_id: str, period: Period) -> str:
    """The one name of a customer's rating of a period."""
    return digest(["rating", namespace, customer_id, period.start.isoformat(), period.end.isoformat()])


def write(
    connection: Connection,
    namespace: str,
    customer_id: str,
    period: Period,
    inputs: Inputs,
    rated: Rated,
    moment: Moment,
    *,
    close: bool,
) -> None:
    """Put the rating and its lines in the place of whatever open rating there was, which is removed before.

    With `close` the rating is frozen and its lines are posted to the ledger in the same transaction.
    """
    row = rating_row(namespace, customer_id, period, inputs, rated, moment, close=close)
    connection.execute(insert(ratings).values(**row))
    rows = line_rows(row["rating_id"], inputs.currency, rated)
    if rows:
        connection.execute(insert(rated_lines), rows)
    if close:
        credit_book.keep_line_grants(connection, namespace, customer_id, rows, moment.rated_at)
        postings = ledger.of_lines(rows, namespace)
        ledger.post(connection, namespace, customer_id, postings, effective_at=period.end, recorded_at=moment.rated_at)


def rating_row(
    namespace: str,
    customer_id: str,
    period: Period,
    inputs: Inputs,
    rated: Rated,
    moment: Moment,
    *,
    close: bool,
) -> dict[str, Any]:
    """The rating as a row of `ratings`."""
    return {
        "rating_id": rating_id(namespace, customer_id, period),
        "namespace": namespace,
        "customer_id": customer_id,
        "period_start": period.start,
        "period_end": period.end,
        "state": CLOSED if close else OPEN,
        "currency": inputs.currency,
        "plan": inputs.plan.name,
        "book_version": inputs.version,
        "watermark": moment.watermark,
        "as_of": moment.as_of,
        "inputs_sha256": inputs.sha256(),
        "result_sha256": rated.sha256(),
        "total_minor": rated.total_minor,
        "rated_at": moment.rated_at,
        "closed_at": moment.rated_at if close else None,
    }


def remove_open(connection: Connection, standing: Iterable[Standing]) -> None:
    """Remove open ratings with their lines."""
    names = [it.rating_id for it in standing if it.state == OPEN]
    if names:
        connection.execute(delete(rated_lines).where(rated_lines.c.rating_id.in_(names)))
        connection.execute(delete(ratings).where(ratings.c.rating_id.in_(names), ratings.c.state == OPEN))


def unrated_rows(
    namespace: str, customer_id: str, period: Period, leftovers: Iterable[Leftover]
) -> list[dict[str, Any]]:
    """The leftovers as rows of `unrated_usage`, by id."""
    rows = []
    for it in leftovers:
        dimensions = dict(it.dimensions)
        identity = [namespace, customer_id, str(period), it.meter, dimensions, it.reason, it.hint]
        rows.append(
            {
                "unrated_id": digest(["unrated", *identity]),
                "namespace": namespace,
                "customer_id": customer_id,
                "period_start": period.start,
                "period_end": period.end,
                "meter": it.meter,
                "dimensions": dimensions,
                "events": it.events,
                "quantity": it.quantity,
                "reason": it.reason,
                "hint": it.hint,
            }
        )
    return sorted(rows, key=lambda row: str(row["unrated_id"]))


def replace_unrated(
    connection: Connection, namespace: str, customer_id: str, period: Period, rows: list[dict[str, Any]]
) -> bool:
    """Make the rows the customer's unrated usage of the period; False when they are already there."""
    in_period = (
        (unrated_usage.c.namespace == namespace)
        & (unrated_usage.c.customer_id == customer_id)
        & (unrated_usage.c.period_start < period.end)
        & (unrated_usage.c.period_end > period.start)
    )
    query = select(unrated_usage).where(in_period).order_by(unrated_usage.c.unrated_id)
    standing = [dict(row) for row in connection.execute(query).mappings()]
    if [_compared(row) for row in standing] == [_compared(row) for row in rows]:
        return False
    connection.execute(delete(unrated_usage).where(in_period))
    if rows:
        connection.execute(insert(unrated_usage), rows)
    return True


def _compared(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["unrated_id"], row["events"], plain(row["quantity"])


def line_rows(rating: str, currency: str, rated: Rated) -> list[dict[str, Any]]:
    """The lines as rows of `rated_lines`."""
    return line_rows_of(rating, currency, rated.lines)


def line_rows_of(rating: str, currency: str, lines: Iterable[RatedLine]) -> list[dict[str, Any]]:
    """Lines of a rating, or of a credit note, as rows of `rated_lines`."""
    return [
        {
            "line_id": _line_id(rating, line),
            "rating_id": rating,
            "position": position,
            "kind": line.kind,
            "component": line.component,
            "metric": line.metric,
            "description": line.description[:256],
            "quantity": line.quantity,
            "unit": line.unit[:32],
            "dimensions": dict(line.dimensions),
            "amount_exact": line.amount_exact,
            "amount_minor": line.amount_minor,
            "currency": currency,
            "explanation": dict(line.explanation),
        }
        for position, line in enumerate(lines, 1)
    ]


def _line_id(rating: str, line: RatedLine) -> str:
    name = ["line", rating, line.kind, line.component, line.metric, [list(d) for d in line.dimensions]]
    # A fee in advance has two lines on a rating: one for the month, one for the next.
    service = line.explanation.get("service")
    # Of several closed periods the same component may be corrected.
    corrects = [line.explanation["corrects"]["name"]] if "corrects" in line.explanation else []
    return digest([*name, *corrects] if service is None else [*name, service, *corrects])
