"""What a month of documents is rated at, by the whole rating engine."""

from datetime import UTC, datetime
from decimal import Decimal

from meterhouse_rating.book import Book
from meterhouse_rating.charges import Setting
from meterhouse_rating.engine import Inputs, UsageRow, rate
from meterhouse_rating.periods import Period

MONTH = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))


def rated_cents(book: Book, documents: int) -> int:
    """The total of the plan `pay` for so many documents, in cents."""
    usage = (UsageRow("documents", "ok", (), 1, Decimal(documents)),) if documents else ()
    following = Period(MONTH.end, datetime(2026, 12, 1, tzinfo=UTC))
    setting = Setting(MONTH, MONTH, following, "UTC", datetime(2020, 1, 1, tzinfo=UTC))
    inputs = Inputs("c", "USD", book, 1, book.plans["pay"], usage, frozenset({"documents"}), setting)
    return rate(inputs).total_minor
