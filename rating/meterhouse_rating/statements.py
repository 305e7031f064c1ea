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

from meterhouse_rating.beside import beside
from meterhouse_rating.periods import Period
from meterhouse_rating.results import rating_id
from meterhouse_store import completeness
from meterhouse_store.completeness import Report
from meterhouse_store.tables import rating_statements

_ASKED: Final = 1000
"""So many customers are asked about at a time."""

_FIRST: Final = 200
"""So many at first, and then twice as many each time: nobody is settled while these are waited for."""


class Statements:
    """The statements of many customers' usage of a period, as rows of `rating_statements`.

    They are asked for in the order of the customers, some ahead of those who wait for them: the warehouse is at work
    while their ratings are made. To be closed after use. They do not name the customer, so that an erasure leaves them
    alone.
    """

    def __init__(self, client: Client, namespace: str, period: Period, stated_at: datetime) -> None:
        self._namespace, self._period, self._stated_at = namespace, period, stated_at
        self._gathering = completeness.Gathering(beside(client), namespace, period.start, period.end)
        self._customers: set[str] = set()
        self._known: dict[str, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Sequence[str]] = deque()
        self._asked: Future[dict[str, dict[str, Any]]] | None = None

    def begin(self) -> None:
        """Ask what takes long and is about no customer, before it is known of whom there are to be statements."""
        self._pool.submit(self._gathering.begin)  # where that fails it is asked again with the first customers

    def ask(self, customers: Sequence[str]) -> None:
        """Ask about those of whom there are to be statements, before any who are asked about already."""
        self._customers |= set(customers)
        parts, at, size = [], 0, _FIRST
        while at < len(customers):
            parts.append(customers[at : at + size])
            at, size = at + size, min(2 * size, _ASKED)
        self._waiting.extendleft(reversed(parts))
        if self._asked is None:
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
