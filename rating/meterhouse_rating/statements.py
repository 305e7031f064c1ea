"""What was known of a period's completeness when it was closed: kept beside its rating, and never changed.

It is about the usage that was rated, and no amount depends on it: it is no part of what a rating is computed from.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine, select

from meterhouse_rating.periods import Period
from meterhouse_rating.results import rating_id
from meterhouse_store import completeness
from meterhouse_store.completeness import Report
from meterhouse_store.tables import rating_statements

_ASKED: Final = 1000
"""So many customers are asked about at a time."""


class Statements:
    """The statements of many customers' usage of a period, as rows of `rating_statements`.

    They are asked for in the order of the customers, some ahead of those who wait for them: the warehouse is at work
    while their ratings are made. To be closed after use. They do not name the customer, so that an erasure leaves them
    alone.
    """

    def __init__(
        self, client: Client, namespace: str, period: Period, customers: Sequence[str], stated_at: datetime
    ) -> None:
        self._namespace, self._period, self._stated_at = namespace, period, stated_at
        self._gathering = completeness.Gathering(client, namespace, period.start, period.end)
        self._customers = set(customers)
        self._known: dict[str, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(1)
        asked = [customers[start : start + _ASKED] for start in range(0, len(customers), _ASKED)]
        self._waiting = deque(asked)
        self._asked: Future[dict[str, dict[str, Any]]] | None = None
        self._ask()

    def of(self, customers: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The statements of those of the customers that are asked about. Errors of the client pass through."""
        wanted = self._customers & set(customers)
        while not wanted <= self._known.keys() and self._asked is not None:
            self._known |= self._asked.result()
            self._ask()
        return {name: self._known[name] for name in wanted}

    def close(self) -> None:
        """Ask for nothing more."""
        self._pool.shutdown(cancel_futures=True)

    def _ask(self) -> None:
        self._asked = self._pool.submit(self._state, self._waiting.popleft()) if self._waiting else None

    def _state(self, customers: Sequence[str]) -> dict[str, dict[str, Any]]:
        start, end, now = self._period.start, self._period.end, self._stated_at
        found = self._gathering.of(customers).items()
        return {
            name: row_of(
                rating_id(self._namespace, name, self._period),
                completeness.assess(it, self._namespace, "the customer", start, end, now=now),
                now,
            )
            for name, it in found
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
