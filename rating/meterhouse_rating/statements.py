"""What was known of a period's completeness when it was closed: kept beside its rating, and never changed.

It is about the usage that was rated, and no amount depends on it: it is no part of what a rating is computed from.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select

from meterhouse_rating.periods import Period
from meterhouse_store import completeness
from meterhouse_store.completeness import Gathering, Report
from meterhouse_store.tables import rating_statements


def state(
    gathering: Gathering, customers: Sequence[str], namespace: str, period: Period, now: datetime
) -> dict[str, Report]:
    """The completeness of each customer's usage. It does not name the customer, so that an erasure leaves it alone."""
    return {
        name: completeness.assess(found, namespace, "the customer", period.start, period.end, now=now)
        for name, found in gathering.of(customers).items()
    }


def row_of(rating_id: str, report: Report, stated_at: datetime) -> dict[str, Any]:
    """The statement as a row of `rating_statements`, for a rating that is closed in the same transaction."""
    statement = report.as_json()
    for name in ("namespace", "customer_id"):
        del statement[name]
    return {"rating_id": rating_id, "verdict": report.verdict, "statement": statement, "stated_at": stated_at}


def of(engine: Engine, rating_id: str) -> dict[str, Any] | None:
    """The statement of a rating, as `meterhouse completeness --json` shows it; None of one that was closed without."""
    query = select(rating_statements.c.statement).where(rating_statements.c.rating_id == rating_id)
    with engine.connect() as connection:
        found: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
    return found
