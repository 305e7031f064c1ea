"""Small price books and usage that the rating tests share."""

from datetime import UTC, datetime
from decimal import Decimal

from meterhouse_rating.book import Book, parse
from meterhouse_rating.charges import Before
from meterhouse_rating.engine import Inputs, Rated, UsageRow, rate

BOOK = """
book: sample
currency: USD
metrics:
  input: {unit: token, meters: [llm.tokens.input, llm.tokens.cache_write]}
  output: {unit: token, meters: [llm.tokens.output, llm.tokens.reasoning]}
unbilled:
  meters: [llm.requests]
plans:
  sample:
    components:
%s
"""

DECLARED = frozenset(
    {
        "llm.tokens.input",
        "llm.tokens.cache_write",
        "llm.tokens.output",
        "llm.tokens.reasoning",
        "llm.requests",
        "tool.calls",
    }
)


def book_with(components: str) -> Book:
    """The sample book with the components of its one plan, written at any indentation."""
    lines = components.strip("\n").splitlines()
    cut = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return parse(BOOK % "\n".join(" " * 6 + line[cut:] for line in lines))


def used(meter: str, quantity: str, *, status: str = "ok", events: int = 1, **dimensions: str) -> UsageRow:
    return UsageRow(meter, status, tuple(sorted(dimensions.items())), events, Decimal(quantity))


def rated(
    book: Book,
    *usage: UsageRow,
    plan: str = "sample",
    currency: str = "USD",
    before: dict[str, Before] | None = None,
    credit_minor: int = 0,
    declared: frozenset[str] = DECLARED,
) -> Rated:
    return rate(
        inputs(book, *usage, plan=plan, currency=currency, before=before, credit_minor=credit_minor, declared=declared)
    )


def inputs(
    book: Book,
    *usage: UsageRow,
    plan: str = "sample",
    currency: str = "USD",
    before: dict[str, Before] | None = None,
    credit_minor: int = 0,
    declared: frozenset[str] = DECLARED,
) -> Inputs:
    return Inputs("contract", currency, book, 7, book.plans[plan], usage, declared, before or {}, credit_minor)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
