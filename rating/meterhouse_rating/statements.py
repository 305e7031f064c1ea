"""What was known of a period's completeness when it was closed: kept beside its rating, and never changed.

It is about the usage that was rated, and no amount depends on it: it is no part of what a rating is computed from.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from meterhouse_rating.periods import Period
from meterhouse_rating.world import World
from meterhouse_store import completeness
from meterhouse_store.completeness import Report
from meterhouse_store.tables import rating_statements


def gather(world: World, customer_id: str, period: Period, now: datetime) -> Report:
    """The completeness of the customer's usage. It does not name the customer, so that an erasure leaves it alone."""
    found = completeness.gather(world.client, world.namespace, customer_id, period.start, period.end)
    return completeness.assess(found, world.namespace, "the customer", period.start, period.end, now=now)


def keep(connection: Connection, rating_id: str, report: Report, stated_at: datetime) -> None:
    """Keep it for a rating that is closed in the same transaction."""
    statement = report.as_json()
    for name in ("namespace", "customer_id"):
        del statement[name]
    row = {"rating_id": rating_id, "verdict": report.verdict, "statement": statement, "stated_at": stated_at}
    connection.execute(insert(rating_statements).values(**row))


def of(engine: Engine, rating_id: str) -> dict[str, Any] | None:
    """The statement of a rating, as `meterhouse completeness --json` shows it; None of one that was closed without."""
    query = select(rating_statements.c.statement).where(rating_statements.c.rating_id == rating_id)
    with engine.connect() as connection:
        found: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
    return found
