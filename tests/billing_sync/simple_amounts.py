"""What a month of documents is rated at, by the whole rating engine."""

from datetime import UTC, datetime
from decimal import Decimal

from meterhouse_rating.book import Book
from meterhouse_rating.charges import Setting
from meterhouse_rating.engine import Inputs, UsageRow, rate
from meterhouse_rating.periods import Period

MONTH = Period(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))


def rated_cents(book: Book, quantity: int, meter: str = "documents") -> int:
    """The total of the plan `pay` for so much of a meter, in cents."""
    usage = (UsageRow(meter, "ok", (), 1, Decimal(quantity)),) if quantity else ()
    following = Period(MONTH.end, datetime(2026, 12, 1, tzinfo=UTC))
    setting = Setting(MONTH, MONTH, following, "UTC", datetime(2020, 1, 1, tzinfo=UTC))
    inputs = Inputs("c", "USD", book, 1, book.plans["pay"], usage, frozenset({meter}), setting)
    return rate(inputs).total_minor
