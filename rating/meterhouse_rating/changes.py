"""What settling customers will write, collected, and written in one transaction with a handful of statements."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Column, Connection, Table, delete, insert, select

from meterhouse_rating import credit_book, ledger, results
from meterhouse_rating.credit_book import Credits
from meterhouse_rating.engine import Inputs, Rated
from meterhouse_rating.ledger import Due, Posting
from meterhouse_rating.periods import Period
from meterhouse_rating.recorrect import Corrected, account_rows, note_of
from meterhouse_rating.results import Moment
from meterhouse_rating.settled import OPEN, Past, Standing, Unwritten
from meterhouse_rating.sorting import Leftover, UsageRow
from meterhouse_store.tables import (
    accounted_usage,
    credit_grants,
    credit_notes,
    customers,
    rated_lines,
    rating_statements,
    ratings,
    unrated_usage,
)

_INSERTED: Final = (
    ratings,
    rated_lines,
    unrated_usage,
    accounted_usage,
    credit_grants,
    credit_notes,
    rating_statements,
)
"""In this order: a row comes after those that it names."""

_CHUNK: Final = 5000


def lock(connection: Connection, namespace: str, names: Iterable[str]) -> None:
    """Let no other run settle these customers before the transaction ends: their rows are the lock (SQLite has locked
    by now). In the order of their names, and before any other lock: so that nobody waits in a circle.
    """
    is_it = (customers.c.namespace == namespace) & customers.c.customer_id.in_(sorted(names))
    connection.execute(select(customers.c.customer_id).where(is_it).order_by(customers.c.customer_id).with_for_update())


@dataclass
class Changes:
    """Of one transaction and namespace: rows that go, rows that come, and what is posted, in its order."""

    namespace: str
    gone: dict[Column[Any], list[str]] = field(default_factory=dict)
    rows: dict[Table, list[dict[str, Any]]] = field(default_factory=dict)
    due: list[Due] = field(default_factory=list)

    def add(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Insert rows of one of the tables."""
        self.rows.setdefault(table, []).extend(rows)

    def remove_open(self, standing: Iterable[Standing]) -> None:
        """Remove open ratings with their lines."""
        names = [it.rating_id for it in standing if it.state == OPEN]
        self._remove(rated_lines.c.rating_id, names)
        self._remove(ratings.c.rating_id, names)

    def rating(
        self, customer_id: str, period: Period, inputs: Inputs, rated: Rated, moment: Moment, *, close: bool
    ) -> list[dict[str, Any]]:
        """A rating with its lines, in the place of whatever open rating there was; returns the lines' rows.

        With `close` the rating is frozen and its lines are posted to the ledger.
        """
        row = results.rating_row(self.namespace, customer_id, period, inputs, rated, moment, close=close)
        lines = results.line_rows(row["rating_id"], inputs.currency, rated)
        self.add(ratings, [row])
        self.add(rated_lines, lines)
        if close:
            self.add(credit_grants, credit_book.line_grants(self.namespace, customer_id, lines, moment.rated_at))
            self._post(customer_id, ledger.of_lines(lines, self.namespace), period.end, moment.rated_at)
        return lines

    def unrated(self, past: Past, customer_id: str, period: Period, left: Iterable[Leftover]) -> bool:
        """Make the leftovers the customer's unrated usage of the period; False when they are that already."""
        rows = results.unrated_rows(self.namespace, customer_id, period, left)
        standing = results.standing_unrated(past.unrated, period)
        if results.same_unrated(standing, rows):
            return False
        self._remove(unrated_usage.c.unrated_id, [row["unrated_id"] for row in standing])
        self.add(unrated_usage, rows)
        return True

    def account(self, rating_id: str, usage: Iterable[UsageRow], as_of: datetime) -> None:
        """Remember what usage a closed rating and its corrections account for, and up to when it is known."""
        self._remove(accounted_usage.c.rating_id, [rating_id])
        self.add(accounted_usage, account_rows(rating_id, usage, as_of))

    def correction(self, customer_id: str, it: Corrected, with_rating: str, moment: Moment) -> list[dict[str, Any]]:
        """What the closing of a rating means for one that it corrects; returns the lines of its credit note."""
        self.account(it.restated.standing.rating_id, it.restated.found.rows, moment.as_of)
        noted = note_of(self.namespace, customer_id, it, with_rating, moment)
        if noted is None:
            return []
        note, lines = noted
        self.add(credit_notes, [note])
        self._post(customer_id, ledger.of_lines(lines, self.namespace), moment.rated_at, moment.rated_at)
        return lines

    def expire(
        self,
        customer_id: str,
        credits: Credits,
        currency: str,
        posted: Iterable[Mapping[str, Any]],
        through: datetime,
        recorded_at: datetime,
    ) -> int | None:
        """Post which credits have expired up to a moment, after the lines that are posted with it; returns what is lost
        of them, in minor units, and None where none have.
        """
        found = credit_book.expiries(credits.standing(currency, posted), currency, through)
        for it in found:
            if it.carried is not None:
                row = credit_book.row_of(self.namespace, customer_id, currency, *it.carried, recorded_at)
                self.add(credit_grants, [row])
            self._post(customer_id, [it.posting], it.effective_at, recorded_at)
        return sum(it.lost_minor for it in found) if found else None

    def imagine(self, dry: Unwritten) -> None:
        """Only note what it would do to ratings: later periods of a dry run go on from that."""
        dry.add(self.gone.get(ratings.c.rating_id, ()), self.rows.get(ratings, ()), self.rows.get(rated_lines, ()))

    def write(self, connection: Connection) -> None:
        """Write all of it, in the caller's transaction."""
        for column, names in self.gone.items():
            for start in range(0, len(names), _CHUNK):
                connection.execute(delete(column.table).where(column.in_(names[start : start + _CHUNK])))
        for table in _INSERTED:
            if self.rows.get(table):
                connection.execute(insert(table), self.rows[table])
        ledger.post_all(connection, self.namespace, self.due)

    def _post(
        self, customer_id: str, postings: Iterable[Posting], effective_at: datetime, recorded_at: datetime
    ) -> None:
        self.due += [Due(customer_id, it, effective_at, recorded_at) for it in postings]

    def _remove(self, column: Column[Any], names: list[str]) -> None:
        if names:
            self.gone.setdefault(column, []).extend(names)
