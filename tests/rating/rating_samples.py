"""Small price books and usage that the rating tests share."""

from datetime import UTC, datetime
from decimal import Decimal

from meterhouse_rating.agreements import Agreement
from meterhouse_rating.book import Book, parse
from meterhouse_rating.charges import Before, Fact, Setting
from meterhouse_rating.costs_asked import Cost
from meterhouse_rating.credits import Grant
from meterhouse_rating.effective import effective
from meterhouse_rating.engine import Inputs, Rated, UsageRow, rate
from meterhouse_rating.periods import month_of
from meterhouse_rating.periods import parse as period

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


def used(
    meter: str,
    quantity: str,
    *,
    status: str = "ok",
    events: int = 1,
    task: str = "",
    cost: str | None = None,
    **dimensions: str,
) -> UsageRow:
    known = tuple(sorted((name.replace("__", "."), value) for name, value in dimensions.items()))
    asked = None if cost is None else Cost("list", Decimal(cost), 1, "USD", Decimal(1))
    return UsageRow(meter, status, known, events, Decimal(quantity), task, cost=asked)


def rated(book: Book, *usage: UsageRow, **more: object) -> Rated:
    return rate(inputs(book, *usage, **more))


def inputs(
    book: Book,
    *usage: UsageRow,
    plan: str = "sample",
    currency: str = "USD",
    before: dict[str, Before] | None = None,
    credit_minor: int = 0,
    declared: frozenset[str] = DECLARED,
    rated_period: str = "2026-10",
    since: str = "2026-01-01",
    until: str | None = None,
    facts: dict[str, list[tuple[str, str]]] | None = None,
    earlier: dict[str, str] | None = None,
    agreement: Agreement | None = None,
    credits: list[Grant] | None = None,
    **more: object,
) -> Inputs:
    """What the engine is given for a period (October 2026, UTC) on a contract that began long ago."""
    span = period(rated_period, "UTC")
    agreed = agreement or Agreement()
    offer = effective(book, book.plans[plan], agreed, span)
    own = {name: tuple(Fact(at(when), Decimal(so_many)) for when, so_many in it) for name, it in (facts or {}).items()}
    setting = Setting(
        period=span,
        month=month_of(span.start, "UTC"),
        next_month=month_of(month_of(span.start, "UTC").end, "UTC"),
        zone="UTC",
        since=at(since),
        until=None if until is None else at(until),
        facts={**offer.facts, **own},
        earlier={name: Decimal(it) for name, it in (earlier or {}).items()},
    )
    return Inputs(
        "contract",
        currency,
        book,
        7,
        offer.plan,
        usage,
        declared,
        setting,
        before or {},
        credits_of(credit_minor) if credits is None else tuple(credits),
        agreement=agreed,
        overrides=offer.overrides,
        **more,
    )


def credits_of(amount_minor: int) -> tuple[Grant, ...]:
    return (Grant("earlier", "bought", amount_minor, at("2026-01-01")),) if amount_minor else ()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
