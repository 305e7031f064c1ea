"""A customer's rating, its lines and its unrated usage as rows of SQL tables, with deterministic names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meterhouse_rating.engine import Inputs, Leftover, Rated, RatedLine
from meterhouse_rating.ids import digest
from meterhouse_rating.periods import Period
from meterhouse_rating.settled import CLOSED, OPEN
from meterhouse_store.numbers import plain

Row = Mapping[Any, Any]
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


def standing_unrated(rows: Iterable[Row], period: Period) -> list[Row]:
    """Of a customer's rows of `unrated_usage` those of the period, by id."""
    mine = [row for row in rows if row["period_start"] < period.end and row["period_end"] > period.start]
    return sorted(mine, key=lambda row: str(row["unrated_id"]))


def same_unrated(standing: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Whether rows of `unrated_usage`, each by id, say the same."""
    return [_compared(row) for row in standing] == [_compared(row) for row in rows]


def _compared(row: Row) -> tuple[Any, ...]:
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
